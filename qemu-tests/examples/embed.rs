//! The README's example of embedding the stack in a kernel. What stands between the marks is shown there, word for word.

#![allow(unsafe_code, reason = "a kernel's Hal")]

/// What a kernel has anyway.
mod frames {
    pub(crate) fn alloc(_bytes: u64) -> Option<u64> {
        None
    }
    pub(crate) fn free(_base: u64, _bytes: u64) {}
    pub(crate) fn direct_map(phys: u64) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut(phys as usize)
    }
}

/// What a kernel has anyway.
mod cpu {
    pub(crate) fn clean_cache(_start: *const u8, _len: usize) {}
    pub(crate) fn nanoseconds() -> u64 {
        0
    }
    pub(crate) fn interrupts_off() -> u64 {
        0
    }
    pub(crate) fn interrupts_restore(_state: u64) {}
}

// --- README ---
use core::ptr::NonNull;
use portcullis_hal::{
    Attributes, EndpointId, FrameOrder, Frames, Hal, InterruptMask, Iova, Mapped, MmioRegion, OutOfMemory,
    PhysAddr, RequesterId,
};
use portcullis_iommu::{DeviceDescription, DeviceId, DomainSpec, GroupId, Iommu, PagingSpec};
use portcullis_smmuv3::{Interrupts, Options, Setup};

/// Your kernel, as the drivers see it.
#[derive(Clone, Copy)]
struct Kernel;

// SAFETY: frames are zeroed, aligned to their size, the caller's alone, and stay in the direct map.
unsafe impl Hal for Kernel {
    fn alloc_frames(&self, order: FrameOrder) -> Result<PhysAddr, OutOfMemory> {
        frames::alloc(order.bytes()).map(PhysAddr::new).ok_or(OutOfMemory)
    }
    unsafe fn free_frames(&self, base: PhysAddr, order: FrameOrder) {
        frames::free(base.get(), order.bytes());
    }
    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        NonNull::new(frames::direct_map(phys.get())).expect("the direct map does not contain address 0")
    }
    fn clean_cache(&self, start: NonNull<u8>, len: usize) {
        cpu::clean_cache(start.as_ptr(), len);
    }
    fn now_ns(&self) -> u64 {
        cpu::nanoseconds()
    }
    fn mask_interrupts(&self) -> InterruptMask {
        InterruptMask(cpu::interrupts_off())
    }
    fn restore_interrupts(&self, mask: InterruptMask) {
        cpu::interrupts_restore(mask.0);
    }
}

static IOMMU: Iommu<Kernel> = Iommu::new(Kernel);

fn isolate(registers: MmioRegion, nic: RequesterId) -> Result<(), Box<dyn core::error::Error>> {
    // From its first register write on the unit aborts all DMA; after `enable` it translates, and nobody is attached.
    let smmu = Setup::new(Kernel, registers, Options::default())?.enable()?;
    let unit = IOMMU.add_unit(smmu.unit()?)?;
    // The unit's interrupt handler calls `IOMMU.handle_interrupt(unit)`, and wakes a thread that calls
    // `IOMMU.handle_page_faults()` if that leaves more to do; when both stand, the unit may use its interrupt.
    smmu.enable_interrupts(Interrupts::Wired)?;

    let nic = IOMMU.add_device(DeviceDescription {
        id: DeviceId::Pci(nic),
        unit,
        endpoints: vec![EndpointId::new(u32::from(nic.bdf()))],
        group: GroupId(0),
        reserved: vec![],
    })?;
    let domain = IOMMU.new_domain(&nic, &DomainSpec::Paging(PagingSpec::default()))?;
    IOMMU.attach(&nic, &domain)?;

    // Memory goes in by value ...
    let ring = Frames::zeroed(&Kernel, FrameOrder::SINGLE)?;
    let ring = Mapped::map(&domain, Iova::new(0x10_0000), ring, Attributes::READ_WRITE)?;
    // ... the device works on `ring.range()` ...
    let ring = ring.unmap()?;
    // ... and comes back when no device can reach it any more.
    drop(ring);

    while let Some(fault) = IOMMU.next_fault() {
        log::warn!("{fault}");
    }
    Ok(())
}
// --- README ---

fn main() {
    // There are no registers to drive on a host.
    let _: fn(MmioRegion, RequesterId) -> _ = isolate;
}
