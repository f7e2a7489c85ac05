//! `portcullis-hal`.

#![expect(unsafe_code, reason = "calls unsafe operations")]

use crate::embedder::{Kernel, debug, registers, show};
use core::hint::black_box;
use portcullis_hal::atomic128::AtomicU128;
use portcullis_hal::wait::{self, Register};
use portcullis_hal::{
    Arc, Asid, DomainId, EndpointId, FrameChain, FrameOrder, Frames, Gather, Granule, Hal, Iova, IovaRange,
    Ipa, Mmio, Pasid, PhysAddr, PhysRange, RequesterId, SpaceKey, StreamId, Vmid, barrier,
};

/// Calls everything but what takes an address space: that is in [`iommu`](crate::iommu).
#[inline(never)]
pub(crate) fn probe() {
    addresses();
    ids();
    frames();
    registers_and_waits();
    gathers();
    pointers();
}

fn addresses() {
    let [a, b, c] = black_box([0_u64; 3]);
    let phys = PhysAddr::new(a);
    black_box((phys.get(), phys.is_aligned(b), phys.align_down(b), phys.checked_add(c)));
    show(&phys);
    show(&Ipa::new(b));
    let iova = Iova::new(b);
    black_box((iova.is_aligned(b), iova.align_down(c), iova.checked_add(c)));
    match (IovaRange::new(iova, c), IovaRange::from_bounds(Iova::new(a), iova)) {
        (Ok(range), Ok(other)) => {
            black_box((range.start(), range.last(), range.len(), range.contains(iova), range.covers(&other)));
            black_box((range.overlaps(&other), range.hull(&other), range.is_aligned(a)));
            show(&range);
        }
        (Err(error), _) | (_, Err(error)) => show(&error),
    }
    black_box((IovaRange::block(iova, c), PhysRange::block(phys, c)));
    match PhysRange::new(phys, b) {
        Ok(range) => debug(&range),
        Err(error) => debug(&error),
    }
    debug(&(phys, iova));
}

fn ids() {
    let [a, b] = black_box([0_u32; 2]);
    let [c, d] = black_box([0_u16; 2]);
    let [bus, device, function] = black_box([0_u8; 3]);
    show(&StreamId::new(a));
    show(&EndpointId::new(b));
    show(&Asid::new(c));
    show(&Vmid::new(d));
    show(&DomainId::new(d));
    match Pasid::new(a) {
        Ok(pasid) => show(&pasid),
        Err(error) => show(&error),
    }
    match RequesterId::new(c, bus, device, function) {
        Ok(id) => {
            black_box((id.segment(), id.bdf(), id.bus(), id.device(), id.function()));
            show(&id);
        }
        Err(error) => show(&error),
    }
    debug(&RequesterId::from_bdf(c, d));
    black_box(black_box(Granule::Size4K).shift());
}

fn frames() {
    let [offset, len] = black_box([0_usize; 2]);
    let Some(order) = FrameOrder::new(black_box(0)) else { return };
    black_box((FrameOrder::for_bytes(black_box(0)), order.get(), order.bytes()));
    match Frames::zeroed(&Kernel, order) {
        Ok(frames) => {
            let mut bytes = black_box([0_u8; 8]);
            frames.write(offset, &bytes);
            frames.read(offset, &mut bytes);
            frames.clean(offset, len);
            black_box((bytes, frames.words(), frames.phys(), frames.order(), frames.range()));
            debug(&frames);
            let (base, order) = frames.into_raw();
            // SAFETY: the program never runs.
            drop(unsafe { Frames::from_raw(&Kernel, base, order) });
        }
        Err(error) => show(&error),
    }
    let mut chain = FrameChain::new(order);
    // SAFETY: the program never runs.
    unsafe { chain.push(&Kernel, black_box(PhysAddr::new(0))) };
    black_box((chain.count(), chain.order(), chain.is_empty()));
    // SAFETY: the program never runs.
    unsafe { chain.free(&Kernel) };
    Kernel.critical(|| Kernel.relax());
}

fn registers_and_waits() {
    let registers = registers();
    let offset = black_box(0_usize);
    black_box((registers.read32(offset), registers.read64(offset), registers.size()));
    registers.write32(offset, black_box(0));
    registers.write64(offset, black_box(0));
    let register = Register { name: "R", offset };
    let [mask, expected] = black_box([0_u32; 2]);
    match wait::register32(&Kernel, &registers, register, mask, expected, black_box(0)) {
        Ok(value) => drop(black_box(value)),
        Err(timeout) => show(&timeout),
    }
    barrier::publish_to_device();
    barrier::before_doorbell();
    barrier::after_completion();
    barrier::store_then_load();
    let word = AtomicU128::new(black_box(0));
    word.store(black_box(1));
    black_box((word.load(), word.compare_exchange(black_box(1), black_box(2)).is_ok()));
    debug(&word);
}

fn gathers() {
    let mut gather = Gather::default();
    if let Err(error) = gather.claim(SpaceKey::new()) {
        show(&error);
    }
    gather.record(IovaRange::block(black_box(Iova::new(0)), black_box(0)), black_box(12));
    gather.raise_token(black_box(0));
    black_box((gather.range(), gather.leaf_shift(), gather.table_count(), gather.has_tables()));
    black_box(gather.token());
    debug(&gather);
    // SAFETY: the program never runs.
    let _ = black_box(unsafe { gather.finish(&Kernel) });
    gather.quarantine();
    // SAFETY: the program never runs.
    black_box(unsafe { gather.tables() });
}

fn pointers() {
    match Arc::try_new(black_box(0_u64)) {
        Ok(one) => {
            let other = one.clone();
            black_box((Arc::ptr_eq(&one, &other), Arc::count(&one), *other));
            debug(&one);
        }
        Err(error) => show(&error),
    }
}
