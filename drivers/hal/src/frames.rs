//! Owned frames, and the chain in which detached table frames wait until hardware has forgotten them.

#![expect(unsafe_code, reason = "owned memory that devices reach")]

use crate::{Hal, PAGE_SIZE, PhysAddr, PhysRange};
use core::fmt;
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU64, Ordering};
use thiserror::Error;

/// No memory of the size asked for is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("out of memory")]
pub struct OutOfMemory;

/// A size of `2^order` frames of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameOrder(u8);

impl FrameOrder {
    /// One frame.
    pub const SINGLE: Self = Self(0);
    /// The largest order the stack asks for: 1 GiB.
    pub const MAX: Self = Self(18);

    /// `2^order` frames; `None` above [`MAX`](Self::MAX).
    pub const fn new(order: u8) -> Option<Self> {
        if order > Self::MAX.0 { None } else { Some(Self(order)) }
    }

    /// The smallest order that holds `bytes`; `None` above [`MAX`](Self::MAX).
    pub const fn for_bytes(bytes: u64) -> Option<Self> {
        let frames = bytes.div_ceil(PAGE_SIZE);
        if frames <= 1 {
            return Some(Self::SINGLE);
        }
        Self::new((64 - (frames - 1).leading_zeros()) as u8)
    }

    /// The exponent.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        PAGE_SIZE.wrapping_shl(self.0 as u32)
    }
}

/// Contiguous, naturally aligned frames that belong to this value, zeroed at first and freed on drop.
///
/// The contents are reached as atomics, since a device may read or write them at any time.
pub struct Frames<H: Hal> {
    hal: H,
    base: PhysAddr,
    order: FrameOrder,
}

impl<H: Hal> Frames<H> {
    /// Allocates `2^order` zeroed frames.
    pub fn zeroed(hal: &H, order: FrameOrder) -> Result<Self, OutOfMemory> {
        Ok(Self { hal: hal.clone(), base: hal.alloc_frames(order)?, order })
    }

    /// Takes over frames that were released with [`into_raw`](Self::into_raw).
    ///
    /// # Safety
    ///
    /// `base` and `order` come from `into_raw` of frames of the same `Hal`, used once, and no device can reach
    /// the frames unless the caller keeps that in mind until the value is dropped.
    pub unsafe fn from_raw(hal: &H, base: PhysAddr, order: FrameOrder) -> Self {
        Self { hal: hal.clone(), base, order }
    }

    /// Gives up ownership without freeing: the frames leak unless [`from_raw`](Self::from_raw) takes them back.
    pub fn into_raw(self) -> (PhysAddr, FrameOrder) {
        let this = ManuallyDrop::new(self);
        // SAFETY: the services are taken out once, and `this` is not used or dropped afterwards.
        drop(unsafe { core::ptr::read(&this.hal) });
        (this.base, this.order)
    }

    /// The physical address of the first byte.
    pub fn phys(&self) -> PhysAddr {
        self.base
    }

    /// The size.
    pub fn order(&self) -> FrameOrder {
        self.order
    }

    /// The physical range.
    pub fn range(&self) -> PhysRange {
        PhysRange::block(self.base, self.order.bytes())
    }

    /// The services these frames came from.
    pub fn hal(&self) -> &H {
        &self.hal
    }

    /// The contents as 64-bit words.
    pub fn words(&self) -> &[AtomicU64] {
        let start = self.hal.phys_to_virt(self.base).cast();
        let count = (self.order.bytes() / 8) as usize;
        // SAFETY: the frames belong to self, are mapped as normal memory and aligned; devices and CPUs share them
        // through atomics only.
        unsafe { core::slice::from_raw_parts(start.as_ptr(), count) }
    }

    /// Copies `bytes` to `offset`. Bytes beyond the end are not written.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let end = self.order.bytes() as usize;
        for (i, &byte) in
            bytes.iter().enumerate().take_while(|(i, _)| offset.checked_add(*i).is_some_and(|at| at < end))
        {
            // SAFETY: in bounds of frames that belong to self; volatile, as a device may look.
            unsafe { self.hal.phys_to_virt(self.base).add(offset + i).write_volatile(byte) };
        }
    }

    /// Copies from `offset` to `bytes`. Bytes beyond the end are left as they are.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let end = self.order.bytes() as usize;
        for (i, byte) in bytes
            .iter_mut()
            .enumerate()
            .take_while(|(i, _)| offset.checked_add(*i).is_some_and(|at| at < end))
        {
            // SAFETY: in bounds of frames that belong to self; volatile, as a device may write.
            *byte = unsafe { self.hal.phys_to_virt(self.base).add(offset + i).read_volatile() };
        }
    }

    /// Writes the cache lines of `len` bytes from `offset` back to memory.
    pub fn clean(&self, offset: usize, len: usize) {
        // SAFETY: the offset is clamped to the frames.
        let start = unsafe { self.hal.phys_to_virt(self.base).add(offset.min(self.order.bytes() as usize)) };
        self.hal.clean_cache(start, len.min((self.order.bytes() as usize).saturating_sub(offset)));
    }
}

impl<H: Hal> Drop for Frames<H> {
    fn drop(&mut self) {
        // SAFETY: the frames belong to self, and whoever let a device reach them took that back before the drop
        // (or leaked them with `into_raw`).
        unsafe { self.hal.free_frames(self.base, self.order) };
    }
}

impl<H: Hal> fmt::Debug for Frames<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frames({:#x}, {:#x} bytes)", self.base, self.order.bytes())
    }
}

/// Detached table frames, linked through their own first word, that wait for an invalidation before they can be
/// freed. Adding allocates nothing.
///
/// A link is the next frame's address, whose low bits are zero: to a walker that still looks at the frame it is
/// an entry that is not present, in every table format of the stack.
///
/// Where a table was replaced by an equivalent, hardware must find its entries as they are until the sync. The link of
/// such a frame is spread over bits 58:55 of its first words, which all these formats leave to software.
///
/// Dropping a chain leaks its frames, which is safe; [`free`](Self::free) gives them back.
#[derive(Debug)]
#[must_use = "a dropped chain leaks its frames"]
pub struct FrameChain {
    first: Option<PhysAddr>,
    first_intact: Option<PhysAddr>,
    order: FrameOrder,
    count: usize,
}

impl FrameChain {
    /// An empty chain of frames of one order.
    pub const fn new(order: FrameOrder) -> Self {
        Self { first: None, first_intact: None, order, count: 0 }
    }

    /// How many frames the chain holds.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// The order of the frames.
    pub const fn order(&self) -> FrameOrder {
        self.order
    }

    /// Whether the chain holds no frames.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a frame to the chain.
    ///
    /// # Safety
    ///
    /// The frame was allocated from `hal` with the chain's order, nobody will reach it from the CPU any more,
    /// and what hardware may still read there may be replaced by entries that are not present.
    pub unsafe fn push<H: Hal>(&mut self, hal: &H, frame: PhysAddr) {
        let link = hal.phys_to_virt(frame).cast::<AtomicU64>();
        // SAFETY: the caller gave the frame away; it is mapped and aligned.
        unsafe { link.as_ref() }.store(self.first.map_or(0, PhysAddr::get), Ordering::Release);
        self.first = Some(frame);
        self.count = self.count.saturating_add(1);
    }

    /// Adds a frame whose entries stay as hardware knows them.
    ///
    /// # Safety
    ///
    /// The frame was allocated from `hal` with the chain's order, nobody will reach it from the CPU any more, and
    /// bits 58:55 of its words are clear and without a meaning for hardware.
    pub unsafe fn push_intact<H: Hal>(&mut self, hal: &H, frame: PhysAddr) {
        // SAFETY: the caller gave the frame away.
        let words = unsafe { spread(hal, frame) };
        let mut link = self.first_intact.map_or(0, PhysAddr::get).wrapping_shr(FRAME_SHIFT);
        for word in words {
            // Hardware may note an access in the entry at the same time.
            word.fetch_or((link & SPREAD_MASK).wrapping_shl(SPREAD_SHIFT), Ordering::Relaxed);
            link = link.wrapping_shr(SPREAD_BITS);
        }
        self.first_intact = Some(frame);
        self.count = self.count.saturating_add(1);
    }

    fn pop<H: Hal>(&mut self, hal: &H) -> Option<PhysAddr> {
        let frame = self.pop_intact(hal).or_else(|| self.pop_plain(hal))?;
        self.count = self.count.saturating_sub(1);
        Some(frame)
    }

    fn pop_intact<H: Hal>(&mut self, hal: &H) -> Option<PhysAddr> {
        let frame = self.first_intact?;
        // SAFETY: the frame is on the chain, hence mapped and not used by anyone else.
        let words = unsafe { spread(hal, frame) };
        let link = words.iter().rev().fold(0_u64, |link, word| {
            let part = word.load(Ordering::Relaxed).wrapping_shr(SPREAD_SHIFT) & SPREAD_MASK;
            link.wrapping_shl(SPREAD_BITS) | part
        });
        self.first_intact = (link != 0).then_some(PhysAddr::new(link.wrapping_shl(FRAME_SHIFT)));
        Some(frame)
    }

    fn pop_plain<H: Hal>(&mut self, hal: &H) -> Option<PhysAddr> {
        let frame = self.first?;
        let link = hal.phys_to_virt(frame).cast::<AtomicU64>();
        // SAFETY: the frame is on the chain, hence mapped and not used by anyone else.
        let next = unsafe { link.as_ref() }.load(Ordering::Acquire);
        self.first = (next != 0).then_some(PhysAddr::new(next));
        Some(frame)
    }

    /// Frees all frames.
    ///
    /// # Safety
    ///
    /// The hardware has confirmed that it no longer holds a reference to any of the frames: the invalidations of
    /// everything that was reached through them have been synced.
    #[inline]
    pub unsafe fn free<H: Hal>(&mut self, hal: &H) {
        if !self.is_empty() {
            // SAFETY: as the caller vouches.
            unsafe { self.free_all(hal) }
        }
    }

    /// See [`free`](Self::free).
    ///
    /// # Safety
    ///
    /// As for `free`.
    unsafe fn free_all<H: Hal>(&mut self, hal: &H) {
        while let Some(frame) = self.pop(hal) {
            // SAFETY: allocated from `hal` with this order (contract of `push`), unreachable (contract of this
            // function), and popped, so freed once.
            unsafe { hal.free_frames(frame, self.order) };
        }
    }
}

/// Bits 58:55 of an entry.
const SPREAD_SHIFT: u32 = 55;
const SPREAD_BITS: u32 = 4;
const SPREAD_MASK: u64 = 0xf;
/// Addresses of frames have 52 bits, of which the lowest 12 are zero.
const FRAME_SHIFT: u32 = 12;
const SPREAD_WORDS: usize = 10;

/// The words of a frame over which its link is spread.
///
/// # Safety
///
/// The frame is mapped as long as the result is used.
unsafe fn spread<'a, H: Hal>(hal: &H, frame: PhysAddr) -> &'a [AtomicU64; SPREAD_WORDS] {
    // SAFETY: a frame has as many words, is aligned, and is mapped as the caller vouches.
    unsafe { hal.phys_to_virt(frame).cast().as_ref() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::HostHal;

    #[test]
    fn orders_hold_what_they_are_asked_for() {
        let order = |bytes| FrameOrder::for_bytes(bytes).map(FrameOrder::get);
        assert_eq!([order(0), order(1), order(4096), order(4097)], [Some(0), Some(0), Some(0), Some(1)]);
        assert_eq!([order(3 * 4096), order(1 << 30), order((1 << 30) + 1)], [Some(2), Some(18), None]);
    }

    #[test]
    fn frames_come_zeroed_aligned_and_go_back() {
        let hal = HostHal::new();
        let frames = Frames::zeroed(&hal, FrameOrder::new(2).unwrap()).unwrap();
        assert!(frames.phys().is_aligned(4 * PAGE_SIZE));
        assert!(frames.words().iter().all(|word| word.load(Ordering::Relaxed) == 0));
        frames.write(4 * 4096 - 2, &[1, 2, 3]);
        let mut back = [9; 4];
        frames.read(4 * 4096 - 2, &mut back);
        assert_eq!(back, [1, 2, 9, 9]);
        drop(frames);
        assert_eq!(hal.frames_in_use(), 0);
    }

    #[test]
    fn giving_up_frames_does_not_keep_their_services_alive() {
        let hal = HostHal::new();
        let before = hal.handles();
        let _ = Frames::zeroed(&hal, FrameOrder::SINGLE).unwrap().into_raw();
        assert_eq!(hal.handles(), before);
    }

    #[test]
    fn frames_that_stay_intact_keep_all_but_four_bits_of_their_words() {
        let hal = HostHal::new();
        let mut chain = FrameChain::new(FrameOrder::SINGLE);
        let spread = 0xf_u64 << 55;
        let mut pushed = Vec::new();
        for _ in 0..3 {
            let frames = Frames::zeroed(&hal, FrameOrder::SINGLE).unwrap();
            frames.words().iter().for_each(|word| word.store(!spread, Ordering::Relaxed));
            let (frame, _) = frames.into_raw();
            // SAFETY: just allocated, with the bits clear.
            unsafe { chain.push_intact(&hal, frame) };
            pushed.push(frame);
        }
        let (plain, _) = Frames::zeroed(&hal, FrameOrder::SINGLE).unwrap().into_raw();
        // SAFETY: just allocated, and nobody else knows it.
        unsafe { chain.push(&hal, plain) };
        for &frame in &pushed {
            for i in 0..512 {
                // SAFETY: mapped host memory.
                let word = unsafe { hal.phys_to_virt(frame).cast::<AtomicU64>().add(i).as_ref() };
                assert_eq!(word.load(Ordering::Relaxed) | spread, u64::MAX);
            }
        }
        assert_eq!((chain.count(), hal.frames_in_use()), (4, 4));
        // SAFETY: no hardware in this test.
        unsafe { chain.free(&hal) };
        assert_eq!((chain.count(), chain.is_empty(), hal.frames_in_use()), (0, true, 0));
    }

    #[test]
    fn a_chain_frees_what_was_pushed_and_a_walker_sees_no_present_entry_in_it() {
        let hal = HostHal::new();
        let mut chain = FrameChain::new(FrameOrder::SINGLE);
        for _ in 0..3 {
            let (frame, _) = Frames::zeroed(&hal, FrameOrder::SINGLE).unwrap().into_raw();
            // SAFETY: just allocated, and nobody else knows it.
            unsafe { chain.push(&hal, frame) };
            // SAFETY: mapped host memory.
            let link = unsafe { hal.phys_to_virt(frame).cast::<AtomicU64>().as_ref() };
            assert_eq!(link.load(Ordering::Relaxed) & 0xfff, 0);
        }
        assert_eq!((chain.count(), hal.frames_in_use()), (3, 3));
        // SAFETY: no hardware in this test.
        unsafe { chain.free(&hal) };
        assert_eq!((chain.count(), hal.frames_in_use()), (0, 0));
    }
}
