//! `portcullis-pci`.

use crate::embedder::{Kernel, debug, registers, show};
use core::hint::black_box;
use portcullis_hal::{Iova, MmioRegion, PhysAddr, RequesterId};
use portcullis_pci::spec::{CapabilityId, ExtendedId, PasidFeatures};
use portcullis_pci::{
    Bars, BusAddress, BusMaster, BusRange, ConfigSpace, Function, HostWindow, HostWindows, MsixTable,
    SmallestTranslationUnit, assign, clear_bus_master_everywhere, disable_bus_master, disable_intx,
    enable_acs, enable_bus_master, enable_memory, enumerate, extended_capability, isolation_groups,
    standard_capability,
};

type Config = ConfigSpace<MmioRegion>;

#[inline(never)]
pub(crate) fn probe() {
    let buses = match BusRange::new(black_box(0), black_box(0)) {
        Ok(buses) => buses,
        Err(error) => return show(&error),
    };
    let config = ConfigSpace::new(registers(), black_box(0), buses);
    match assign(&config, &windows()) {
        Ok(assignment) => debug(&assignment),
        Err(error) => show(&error),
    }
    let mut functions = match enumerate(&config) {
        Ok(functions) => functions,
        Err(error) => return show(&error),
    };
    let policy = |_: &Function| black_box(BusMaster::Clear);
    if let Err(error) = clear_bus_master_everywhere(&config, &functions, policy) {
        show(&error);
    }
    enable_acs(&config, &mut functions);
    match isolation_groups(&functions) {
        Ok(groups) => debug(&groups),
        Err(error) => show(&error),
    }
    enable_bus_master(&config, &functions, black_box(0));
    for function in &functions {
        debug(function);
        show(&function.class);
        interrupts(&config, function);
        translation(&config, function);
        rest(&config, function);
    }
}

fn windows() -> HostWindows {
    let [bus, phys, len] = black_box([0_u64; 3]);
    let window = match HostWindow::new(BusAddress::new(bus), PhysAddr::new(phys), len) {
        Ok(window) => window,
        Err(error) => {
            show(&error);
            return black_box(HostWindows::default());
        }
    };
    let windows = HostWindows { low: Some(window), high: black_box(None) };
    black_box((windows.to_phys(BusAddress::new(bus), len), window.first(), window.last()));
    windows
}

#[inline(never)]
fn interrupts(config: &Config, function: &Function) {
    let (address, data) = (black_box(Iova::new(0)), black_box(0));
    if let Some(msi) = &function.msi {
        if let Err(error) = msi.program(config, address, data) {
            show(&error);
        }
        black_box((msi.mask(config).is_ok(), msi.unmask(config).is_ok()));
        msi.enable(config);
        msi.disable(config);
    }
    let bars = match Bars::probe(config, function) {
        Ok(bars) => bars,
        Err(error) => return show(&error),
    };
    black_box(bars.iter().count());
    let (Some(msix), Some(bar)) = (&function.msix, bars.get(black_box(0))) else { return };
    msix.enable_masked(config);
    msix.enable(config);
    msix.disable(config);
    match MsixTable::new(registers(), bar, msix) {
        Ok(table) => {
            let vector = black_box(0);
            if let Err(error) = table.program(vector, address, data) {
                show(&error);
            }
            black_box((table.mask(vector).is_ok(), table.unmask(vector).is_ok(), table.vectors()));
        }
        Err(error) => show(&error),
    }
}

#[inline(never)]
fn translation(config: &Config, function: &Function) {
    if let (Some(ats), Some(unit)) = (&function.ats, SmallestTranslationUnit::new(black_box(0))) {
        black_box((ats.is_enabled(config), ats.enable(config, unit).is_ok(), unit.bytes()));
        ats.disable(config);
    }
    if let Some(pasid) = &function.pasid {
        let ats = function.ats.as_ref();
        let features = black_box(PasidFeatures::all());
        black_box((pasid.is_enabled(config), pasid.enable(config, ats, features).is_ok()));
        if let Err(error) = pasid.disable(config, ats) {
            show(&error);
        }
    }
    if let Some(pri) = &function.pri {
        black_box((pri.is_enabled(config), pri.enable(config, black_box(0)).is_ok()));
        pri.disable(config);
        black_box(pri.wait_stopped(&Kernel, config, black_box(0)).is_ok());
    }
}

#[inline(never)]
fn rest(config: &Config, function: &Function) {
    disable_bus_master(config, function.id);
    enable_memory(config, function.id);
    disable_intx(config, function.id);
    let register = black_box(0);
    black_box((config.is_present(function.id), config.read32(function.id, register)));
    config.write32(function.id, register, black_box(0));
    if let Some(power) = &function.power {
        black_box((power.state(config), power.wake(&Kernel, config).is_ok()));
    }
    if let Some(sriov) = &function.sriov {
        black_box(sriov.requester(black_box(0)));
    }
    if let Some(error) = &function.damage {
        show(error);
    }
    black_box((function.port_type(), function.buses(), function.class.device_type()));
    black_box(standard_capability(config, function.id, black_box(CapabilityId(1))).is_ok());
    let id = RequesterId::from_bdf(black_box(0), black_box(0));
    black_box(extended_capability(config, id, black_box(ExtendedId(1))).is_ok());
}
