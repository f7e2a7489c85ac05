//! The GICv3 distributor, redistributors and CPU interface (Arm IHI 0069), by the `arm-gic` crate but for what it
//! leaves out: finding a CPU's redistributor in several regions, waits with a bound, and LPIs.

#![expect(unsafe_code, reason = "register blocks")]

use super::its_spec::{
    CACHE_NONE, CACHE_WRITE_BACK, FIRST_LPI, INNER_SHAREABLE, NON_SHAREABLE, PendingBase, PropertiesBase,
    RedistributorType, Target, gicr, lpi_configuration,
};
use super::paging::MapDeviceError;
use super::{cpu, paging, time};
use crate::imp::interrupts::{InitError, Trigger, WiredError};
use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{ICC_SRE_EL2, Writeable};
use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{GicCpuInterface, GicDistributor, GicRedistributor, HIGHEST_NS_PRIORITY};
use arm_gic::{IntId, UniqueMmioPointer};
use core::arch::asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, Ordering};
use portcullis_hal::wait::Timeout;
use portcullis_hal::{FrameOrder, Frames, Hal, Mmio, MmioRegion, PhysAddr, PhysRange};

/// How long a redistributor or the distributor may take to answer.
const TIMEOUT_NS: u64 = 100_000_000;

/// The control frame of a redistributor, and the distance to the next redistributor without and with virtual LPIs.
const FRAME: u64 = 0x1_0000;
const STRIDE: u64 = 0x2_0000;
const STRIDE_VIRTUAL: u64 = 0x4_0000;

/// Most regions of redistributors.
pub(super) const MAX_REGIONS: usize = 8;

/// Bits of an LPI's number in the tables here: LPIs 8192 to 16383.
const LPI_ID_BITS: u32 = 14;

/// Bytes of the pending table for that many bits; it is aligned to 64 KiB, which also holds it.
const PENDING_BYTES: u64 = 0x1_0000;

/// The distributor.
pub(super) struct Distributor(GicDistributor<'static>);

impl Distributor {
    /// Starts the distributor behind `range`: affinity routing, all shared interrupts disabled, in group 1.
    ///
    /// # Safety
    ///
    /// The range holds a GICv3 distributor, and nobody else drives it.
    pub(super) unsafe fn start(range: PhysRange) -> Result<Self, InitError> {
        if range.len() < size_of::<Gicd>() as u64 {
            return Err(InitError::TooShort(range));
        }
        let base = paging::map_device(range)?;
        // SAFETY: mapped above and long enough; the caller vouches for the rest.
        let mut distributor = GicDistributor::new(unsafe { UniqueMmioPointer::new(base.cast()) });
        distributor.enable_all_interrupts(false);
        distributor.configure_default_settings();
        Ok(Self(distributor))
    }

    /// Enables a shared interrupt and routes it to the CPU with this affinity.
    pub(super) fn connect(&mut self, line: u32, trigger: Trigger, affinity: u64) -> Result<(), WiredError> {
        let limit = FIRST_SPI + self.0.typer().num_spis();
        if !(FIRST_SPI..limit).contains(&line) {
            return Err(WiredError::NotShared(line));
        }
        let id = IntId::spi(line - FIRST_SPI);
        let trigger = match trigger {
            Trigger::Edge => arm_gic::Trigger::Edge,
            Trigger::Level => arm_gic::Trigger::Level,
        };
        let result = (|| {
            self.0.enable_interrupt(id, false)?;
            self.0.set_trigger(id, trigger)?;
            self.0.set_interrupt_priority(id, HIGHEST_NS_PRIORITY)?;
            self.0.set_routing(id, Some(affinity))?;
            self.0.enable_interrupt(id, true)
        })();
        result.map_err(|_| WiredError::NotShared(line))
    }
}

/// The number of the first shared interrupt, and one past the last.
pub(super) const FIRST_SPI: u32 = 32;
pub(super) const SPI_END: u32 = 1020;

/// The configuration table of all LPIs and the pending table of each CPU. They live until power-off.
pub(super) struct LpiTables {
    configuration: NonNull<AtomicU8>,
    configuration_base: PhysAddr,
    pending: [Option<PhysAddr>; cpu::MAX_CPUS],
}

// SAFETY: the pointer leads to memory of its own, reached as atomics.
unsafe impl Send for LpiTables {}

impl LpiTables {
    /// How many LPIs the tables hold.
    pub(super) const COUNT: u32 = (1 << LPI_ID_BITS) - FIRST_LPI;

    /// Allocates the tables for `cpus` CPUs, all LPIs disabled.
    pub(super) fn new<H: Hal>(hal: &H, cpus: usize) -> Result<Self, InitError> {
        let configuration = allocate(hal, u64::from(Self::COUNT))?;
        let mut pending = [None; cpu::MAX_CPUS];
        for slot in pending.iter_mut().take(cpus) {
            *slot = Some(allocate(hal, PENDING_BYTES)?.0);
        }
        Ok(Self { configuration: configuration.1.cast(), configuration_base: configuration.0, pending })
    }

    /// Enables an LPI in the table. The ITS has to be told to read it again.
    pub(super) fn enable(&self, lpi: u32) {
        let Some(index) = lpi.checked_sub(FIRST_LPI).filter(|&index| index < Self::COUNT) else {
            return;
        };
        // SAFETY: the index was checked against the table's length.
        let entry = unsafe { self.configuration.add(index as usize) };
        // SAFETY: the table lives until power-off and is reached through atomics only.
        unsafe { entry.as_ref() }.store(lpi_configuration(HIGHEST_NS_PRIORITY), Ordering::Relaxed);
        cpu::clean_cache(entry.cast(), 1);
    }
}

/// Allocates zeroed memory that lives until power-off, and writes the zeros out for a GIC that does not snoop.
pub(super) fn allocate<H: Hal>(hal: &H, bytes: u64) -> Result<(PhysAddr, NonNull<u8>), InitError> {
    let order = FrameOrder::for_bytes(bytes).ok_or(InitError::OutOfMemory)?;
    let (base, _) = Frames::zeroed(hal, order).map_err(|_| InitError::OutOfMemory)?.into_raw();
    let start = hal.phys_to_virt(base);
    cpu::clean_cache(start, order.bytes() as usize);
    Ok((base, start))
}

/// The redistributor of one CPU.
pub(super) struct Redistributor {
    control: MmioRegion,
    base: NonNull<u8>,
    phys: PhysAddr,
    kind: RedistributorType,
}

impl Redistributor {
    /// The redistributor of this CPU, somewhere in `regions`.
    pub(super) fn of_this_cpu(regions: &[Option<Region>]) -> Result<Self, InitError> {
        let affinity = cpu::affinity();
        let wanted = (affinity >> 8 & 0xff00_0000 | affinity & 0x00ff_ffff) as u32;
        regions
            .iter()
            .flatten()
            .flat_map(Region::redistributors)
            .find(|redistributor| redistributor.kind.affinity() == wanted)
            .ok_or(InitError::NoRedistributor(affinity))
    }

    /// Wakes it up and puts its private interrupts into group 1, disabled.
    pub(super) fn start(&self) -> Result<(), Timeout> {
        let waker = self.control.read32(gicr::WAKER) & !gicr::WAKER_PROCESSOR_SLEEP;
        self.control.write32(gicr::WAKER, waker);
        self.wait("GICR_WAKER", gicr::WAKER, gicr::WAKER_CHILDREN_ASLEEP)?;
        let base: NonNull<GicrSgi> = self.base.cast();
        // SAFETY: both frames lie in a `Region`. Until the end of this function nothing
        // else touches the registers: `control` belongs to self, and the CPU's redistributor to this CPU.
        GicRedistributor::new(unsafe { UniqueMmioPointer::new(base) }).configure_default_settings();
        Ok(())
    }

    /// Gives it its LPI tables and turns LPIs on.
    pub(super) fn enable_lpis(&self, tables: &LpiTables, cpu: usize) -> Result<(), InitError> {
        if !self.kind.physical_lpis() {
            return Err(InitError::NoLpis);
        }
        let pending = tables.pending.get(cpu).copied().flatten().ok_or(InitError::TooManyCpus)?;
        // Tables of a former owner cannot be replaced while LPIs are on, and not all GICs let them be turned off.
        let control = self.control.read32(gicr::CTLR) & !gicr::CTLR_ENABLE_LPIS;
        self.control.write32(gicr::CTLR, control);
        self.wait("GICR_CTLR", gicr::CTLR, gicr::CTLR_ENABLE_LPIS | gicr::CTLR_WRITE_PENDING)?;

        let properties = PropertiesBase::new()
            .with_address(tables.configuration_base.get() >> 12)
            .with_id_bits((LPI_ID_BITS - 1) as u8)
            .with_inner_cache(CACHE_WRITE_BACK)
            .with_shareability(INNER_SHAREABLE);
        self.control.write64(gicr::PROPBASER, properties.into_bits());
        let accepted = PropertiesBase::from_bits(self.control.read64(gicr::PROPBASER));
        if accepted.shareability() == NON_SHAREABLE {
            let properties = properties.with_inner_cache(CACHE_NONE).with_shareability(NON_SHAREABLE);
            self.control.write64(gicr::PROPBASER, properties.into_bits());
        }

        let pending = PendingBase::new()
            .with_address(pending.get() >> 16)
            .with_zero(true)
            .with_inner_cache(CACHE_WRITE_BACK)
            .with_shareability(INNER_SHAREABLE);
        self.control.write64(gicr::PENDBASER, pending.into_bits());
        let accepted = PendingBase::from_bits(self.control.read64(gicr::PENDBASER));
        if accepted.shareability() == NON_SHAREABLE {
            let pending = pending.with_inner_cache(CACHE_NONE).with_shareability(NON_SHAREABLE);
            self.control.write64(gicr::PENDBASER, pending.into_bits());
        }

        self.control.write32(gicr::CTLR, control | gicr::CTLR_ENABLE_LPIS);
        // The redistributor sees the tables before the ITS sends it anything.
        barrier::dsb(barrier::SY);
        Ok(())
    }

    /// As the ITS names it.
    pub(super) fn target(&self, by_address: bool) -> Target {
        if by_address { Target::address(self.phys) } else { Target::number(self.kind.processor_number()) }
    }

    fn wait(&self, name: &'static str, register: usize, clear: u32) -> Result<(), Timeout> {
        time::wait_until(name, u64::from(clear), 0, TIMEOUT_NS, || u64::from(self.control.read32(register)))
            .map(drop)
    }
}

/// A mapped region of redistributors.
#[derive(Clone, Copy)]
pub(super) struct Region(PhysRange);

impl Region {
    /// Maps the region.
    ///
    /// # Safety
    ///
    /// The range holds redistributors, one after the other, and nobody else drives them.
    pub(super) unsafe fn map(range: PhysRange) -> Result<Self, MapDeviceError> {
        paging::map_device(range)?;
        Ok(Self(range))
    }

    /// The redistributors up to the one that says it is the last, or that the region ends in.
    pub(super) fn redistributors(&self) -> impl Iterator<Item = Redistributor> {
        let region = self.0;
        let mut next = Some(region.start());
        core::iter::from_fn(move || {
            let phys = next?;
            PhysRange::new(phys, STRIDE).ok().filter(|frames| region.covers(frames))?;
            let base = paging::phys_to_virt(phys);
            // SAFETY: the frame lies in the region, which `map` mapped and its caller vouched for.
            let control = unsafe { MmioRegion::new(base, FRAME as usize) };
            let kind = RedistributorType::from_bits(control.read64(gicr::TYPER));
            let stride = if kind.virtual_lpis() { STRIDE_VIRTUAL } else { STRIDE };
            next = if kind.last() { None } else { phys.checked_add(stride) };
            Some(Redistributor { control, base, phys, kind })
        })
    }
}

/// Lets this CPU take group 1 interrupts of any priority.
pub(super) fn start_cpu_interface() {
    ICC_SRE_EL2.write(ICC_SRE_EL2::SRE::SET + ICC_SRE_EL2::ENABLE::SET);
    barrier::isb(barrier::SY);
    // SAFETY: without EOImode, the end of an interrupt also deactivates it; no interrupt is active yet.
    unsafe { asm!("msr icc_ctlr_el1, xzr", options(nostack, preserves_flags)) };
    GicCpuInterface::set_priority_mask(0xff);
    GicCpuInterface::enable_group1(true);
    barrier::isb(barrier::SY);
}
