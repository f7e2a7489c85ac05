//! The PCI segment: configuration space, functions and their windows.

#![expect(unsafe_code, reason = "maps configuration space and device registers")]

use crate::report::words;
use alloc::string::String;
use alloc::vec::Vec;
use log::info;
use portcullis_arch::paging;
use portcullis_firmware::{HostBridge, PciSpace, Topology};
use portcullis_hal::{MmioRegion, PhysAddr, PhysRange};
use portcullis_pci::{
    Assignment, Bar, BarKind, Bars, BusAddress, BusMaster, BusRange, ConfigSpace, Function, GroupId,
    HostWindow, HostWindows,
};

/// The PCI segment, enumerated; nothing masters the bus.
pub(crate) struct Bus {
    pub(crate) config: ConfigSpace<MmioRegion>,
    pub(crate) functions: Vec<Function>,
    pub(crate) groups: Vec<GroupId>,
    bars: Vec<Bars>,
    windows: HostWindows,
}

/// Registers at a physical address that firmware or a BAR named.
pub(crate) fn registers(range: PhysRange) -> Result<MmioRegion, String> {
    let base = paging::map_device(range).map_err(words)?;
    // SAFETY: the range is a device's register window, just mapped as such, and each device has one driver here.
    Ok(unsafe { MmioRegion::new(base, range.len() as usize) })
}

fn windows(bridge: &HostBridge) -> HostWindows {
    let window = |space: PciSpace| {
        let found = bridge.windows.iter().find(|window| window.space == space)?;
        HostWindow::new(BusAddress::new(found.bus), found.cpu.start(), found.cpu.len()).ok()
    };
    HostWindows { low: window(PciSpace::Memory32), high: window(PciSpace::Memory64) }
}

impl Bus {
    /// Finds the functions behind the first host bridge. Where no firmware ran it numbers buses and assigns addresses
    /// first. Afterwards no function masters the bus, except those that firmware goes on to use.
    pub(crate) fn discover(topology: &mut Topology) -> Result<Self, String> {
        let bridge = topology.host_bridges.first().ok_or("no PCI host bridge")?;
        let (first, last) = (bridge.buses.first, bridge.buses.last);
        let buses = BusRange::new(first, last).map_err(words)?;
        let config = ConfigSpace::new(registers(bridge.ecam)?, bridge.segment, buses);
        let windows = windows(bridge);
        match portcullis_pci::assign(&config, &windows).map_err(words)? {
            Assignment::Kept => info!("PCI: bus numbers and addresses are firmware's"),
            Assignment::Assigned { bridges, bars } => {
                info!("PCI: numbered {bridges} bridges, assigned {bars} BARs")
            }
        }
        let mut functions = portcullis_pci::enumerate(&config).map_err(words)?;
        let behind = |id| {
            let bridge = functions.iter().find(|function: &&Function| function.id == id)?;
            let buses = bridge.buses()?;
            Some(portcullis_firmware::BusRange { first: buses.secondary(), last: buses.subordinate() })
        };
        topology.resolve_scopes(behind).map_err(words)?;
        let policy = |function: &Function| {
            if topology.reserved_for(function.id).next().is_some_and(|region| {
                matches!(
                    region.kind,
                    portcullis_firmware::ReservedKind::Direct
                        | portcullis_firmware::ReservedKind::DirectRelaxable
                )
            }) {
                BusMaster::Keep
            } else {
                BusMaster::Clear
            }
        };
        portcullis_pci::clear_bus_master_everywhere(&config, &functions, policy).map_err(words)?;
        portcullis_pci::enable_acs(&config, &mut functions);
        let groups = portcullis_pci::isolation_groups(&functions).map_err(words)?;
        let mut bars = Vec::new();
        bars.try_reserve_exact(functions.len()).map_err(words)?;
        for function in &functions {
            bars.push(Bars::probe(&config, function).map_err(words)?);
        }
        Ok(Self { config, functions, groups, bars, windows })
    }

    /// A BAR.
    pub(crate) fn bar(&self, index: usize, bar: u8) -> Option<&Bar> {
        self.bars.get(index)?.get(bar)
    }

    /// Where a memory BAR lies in the CPU's address space.
    pub(crate) fn window(&self, index: usize, bar: u8) -> Option<PhysRange> {
        let bar = self.bars.get(index)?.get(bar)?;
        if bar.kind == BarKind::Io || bar.address.get() == 0 {
            return None;
        }
        PhysRange::new(self.to_phys(bar.address, bar.size), bar.size).ok()
    }

    /// Host bridges without windows in the firmware tables do not shift addresses.
    fn to_phys(&self, address: BusAddress, len: u64) -> PhysAddr {
        self.windows.to_phys(address, len).unwrap_or(address.unshifted())
    }

    /// The registers behind a memory BAR; the function decodes memory afterwards.
    pub(crate) fn registers(&self, index: usize, bar: u8) -> Result<MmioRegion, String> {
        let function = self.functions.get(index).ok_or("no such function")?;
        let range = self.window(index, bar).ok_or("no such BAR")?;
        portcullis_pci::enable_memory(&self.config, function.id);
        registers(range)
    }

    /// The bus addresses that BARs decode, as two hulls: below 4 GiB and above. A device's request there may be
    /// answered by a peer and never reach the IOMMU.
    pub(crate) fn peer_addresses(&self) -> [Option<(u64, u64)>; 2] {
        let mut hulls = [None, None];
        let memory =
            self.bars.iter().flat_map(Bars::iter).filter(|bar| bar.is_memory() && bar.address.get() != 0);
        for bar in memory {
            let (first, last) = (bar.address.get(), bar.address.get() + (bar.size - 1));
            let [low, high] = &mut hulls;
            let hull = if first >> 32 == 0 { low } else { high };
            *hull = Some(
                hull.map_or((first, last), |(start, end): (u64, u64)| (start.min(first), end.max(last))),
            );
        }
        hulls
    }
}
