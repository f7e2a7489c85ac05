//! What devices cache of a domain's translations (ATS): who they are, and how they are told to forget a range.

use crate::command::Command;
use crate::invalidate;
use crate::port::Port;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};
use portcullis_hal::list::push_reserved;
use portcullis_hal::{Hal, IovaRange, Mmio, OutOfMemory, Pasid, StreamId, SyncError};
use spin::Mutex;

/// Addresses that one ATC_INV covers: `2^log2` times 4 KiB, naturally aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The first address.
    pub start: u64,
    /// The size, as a power of two of 4 KiB; 52 for all addresses.
    pub log2: u8,
}

impl Block {
    /// All addresses.
    pub const ALL: Self = Self { start: 0, log2: 52 };

    /// The smallest block from the page `first` to the page `last`.
    fn around(first: u64, last: u64) -> Self {
        let log2 = 64 - (first ^ last).leading_zeros();
        Self { start: first >> log2 << log2 << 12, log2: log2 as u8 }
    }
}

/// The blocks that cover a range: one, or two that meet inside where one would be much larger than the range.
fn blocks(range: Option<IovaRange>) -> (Block, Option<Block>) {
    let Some(range) = range else { return (Block::ALL, None) };
    let (first, last) = (range.start().get() >> 12, range.last().get() >> 12);
    let one = Block::around(first, last);
    if 1 << one.log2 <= 2 * (last - first + 1) {
        return (one, None);
    }
    // The first page of the upper half of the large block.
    let middle = last >> (one.log2 - 1) << (one.log2 - 1);
    (Block::around(first, middle - 1), Some(Block::around(middle, last)))
}

/// Who caches: a stream, under one PASID or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cached {
    /// The stream.
    pub stream: StreamId,
    /// The PASID; `None` for requests without one.
    pub pasid: Option<Pasid>,
}

/// Invalidations that are submitted together. They are taken in their order.
pub(crate) struct Batch {
    commands: [Command; Self::MOST],
    taken: usize,
    len: usize,
}

impl Batch {
    const MOST: usize = 32;

    fn new() -> Self {
        Self { commands: [Command::sync(); Self::MOST], taken: 0, len: 0 }
    }

    /// How many more commands fit.
    fn room(&self) -> usize {
        Self::MOST.saturating_sub(self.len)
    }

    /// Adds a command, for which there is room.
    fn push(&mut self, command: Command) {
        if let Some(slot) = self.commands.get_mut(self.len) {
            *slot = command;
            self.len += 1;
        }
    }
}

impl Iterator for Batch {
    type Item = Command;

    fn next(&mut self) -> Option<Command> {
        let command = self.commands.get(..self.len)?.get(self.taken)?;
        self.taken = self.taken.wrapping_add(1);
        Some(*command)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.len.saturating_sub(self.taken);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Batch {}

/// What a unit is to forget, and then its devices, in one batch.
///
/// A device refills its cache from the TLB, so it is told when that is done. Commands have no order but by a sync: none
/// behind it begins before it completes (IHI 0070, 4.7.3).
pub(crate) struct UnitThenDevices {
    unit: invalidate::Batch,
    between: Option<Command>,
    devices: Batch,
}

impl UnitThenDevices {
    /// How many syncs a batch has in it.
    pub(crate) const SYNCS: u64 = 1;

    pub(crate) fn new(unit: invalidate::Batch, devices: Batch) -> Self {
        Self { unit, between: Some(Command::sync()), devices }
    }
}

impl Iterator for UnitThenDevices {
    type Item = Command;

    fn next(&mut self) -> Option<Command> {
        let Self { unit, between, devices } = self;
        unit.next().or_else(|| between.take()).or_else(|| devices.next())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let between = usize::from(self.between.is_some());
        let left = self.unit.len().saturating_add(between).saturating_add(self.devices.len());
        (left, Some(left))
    }
}

impl ExactSizeIterator for UnitThenDevices {}

/// How far the devices were told in the batch that told the unit.
#[derive(Clone, Copy)]
pub(crate) struct Told {
    /// The place to go on from, if there are more.
    next: Option<usize>,
    /// How many had been added ever.
    added: usize,
}

/// The devices that cache translations of one tag of a unit.
///
/// A place in the list stays what it is while somebody is there, so that it can be gone through piece by piece. Who
/// comes meanwhile is not missed: it reads the page tables after the TLB was invalidated, see
/// [`invalidate`](Self::invalidate).
pub(crate) struct Caches {
    count: AtomicUsize,
    /// How many were added ever, modulo 2^64. Counted after `count`.
    added: AtomicUsize,
    list: Mutex<Vec<Option<Cached>>>,
}

impl Caches {
    pub(crate) const fn new() -> Self {
        Self { count: AtomicUsize::new(0), added: AtomicUsize::new(0), list: Mutex::new(Vec::new()) }
    }

    /// Whether no device caches anything.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// Makes room for `more`. Only one CPU at a time changes the list.
    pub(crate) fn reserve(&self, hal: &impl Hal, more: usize) -> Result<(), OutOfMemory> {
        let wanted = self.count.load(Ordering::Relaxed) + more;
        if hal.critical(|| self.list.lock().capacity()) >= wanted {
            return Ok(());
        }
        let mut larger = Vec::new();
        larger.try_reserve(2 * wanted).map_err(|_| OutOfMemory)?;
        let old = hal.critical(|| {
            let mut list = self.list.lock();
            // Twice the room that these take.
            for place in list.iter() {
                let _ = push_reserved(&mut larger, *place);
            }
            core::mem::replace(&mut *list, larger)
        });
        drop(old);
        Ok(())
    }

    /// Adds `who`, for whom there is room, before its entry is published.
    pub(crate) fn add(&self, hal: &impl Hal, who: Cached) {
        hal.critical(|| {
            let mut list = self.list.lock();
            if let Some(place) = list.iter_mut().find(|place| place.is_none()) {
                *place = Some(who);
            } else {
                let _ = push_reserved(&mut list, Some(who));
            }
        });
        self.count.fetch_add(1, Ordering::SeqCst);
        self.added.fetch_add(1, Ordering::SeqCst);
    }

    /// Removes `who`, if it is there: it has forgotten everything, or cannot use it any more.
    pub(crate) fn remove(&self, hal: &impl Hal, who: Cached) {
        let gone = hal.critical(|| {
            let mut list = self.list.lock();
            let place = list.iter_mut().find(|place| **place == Some(who));
            place.and_then(Option::take)
        });
        if gone.is_some() {
            self.count.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Puts invalidations into `batch` from the place `from` on, and gives the place to go on from.
    fn fill(
        &self,
        hal: &impl Hal,
        from: usize,
        range: Option<IovaRange>,
        batch: &mut Batch,
    ) -> Option<usize> {
        let (first, second) = blocks(range);
        hal.critical(|| {
            let list = self.list.lock();
            for (at, who) in list.iter().enumerate().skip(from) {
                let Some(who) = *who else { continue };
                // Room for both, or a batch of its own.
                if batch.room() < 2 {
                    return Some(at);
                }
                for block in core::iter::once(first).chain(second) {
                    batch.push(Command::atc_inv(who, block));
                }
            }
            None
        })
    }

    /// What tells the devices, for the batch that tells the unit, if there are any. The rest is for
    /// [`go_on`](Self::go_on), when the unit has done that.
    pub(crate) fn first(&self, hal: &impl Hal, range: Option<IovaRange>) -> (Option<Batch>, Told) {
        // Read first: whoever is counted here is in the list.
        let added = self.added.load(Ordering::SeqCst);
        if self.is_empty() {
            return (None, Told { next: None, added });
        }
        let mut batch = Batch::new();
        let next = self.fill(hal, 0, range, &mut batch);
        (Some(batch), Told { next, added })
    }

    /// Has all devices forget a range, or everything, that were not told yet, and waits for it. The unit has completed the
    /// invalidation of its TLB.
    pub(crate) fn go_on<H: Hal, M: Mmio>(
        &self,
        port: &Port<H, M>,
        range: Option<IovaRange>,
        told: Told,
    ) -> Result<(), SyncError> {
        self.tell(port, range, self.left(told))
    }

    /// The place to go on from, if there are any left to be told.
    fn left(&self, told: Told) -> Option<usize> {
        // Who came before the TLB was done may have filled its cache from there.
        let nobody_came = self.added.load(Ordering::SeqCst) == told.added;
        if nobody_came { told.next } else { Some(0) }
    }

    /// Has all devices forget a range, or everything, and waits for it.
    ///
    /// The unit has completed the invalidation of its TLB (3.9.1: a device refills from there). A device that is added
    /// after this has looked has its entry published later still, and finds no stale translation.
    pub(crate) fn invalidate<H: Hal, M: Mmio>(
        &self,
        port: &Port<H, M>,
        range: Option<IovaRange>,
    ) -> Result<(), SyncError> {
        self.tell(port, range, (!self.is_empty()).then_some(0))
    }

    /// Tells those from the place `next` on.
    fn tell<H: Hal, M: Mmio>(
        &self,
        port: &Port<H, M>,
        range: Option<IovaRange>,
        mut next: Option<usize>,
    ) -> Result<(), SyncError> {
        while let Some(from) = next {
            let mut batch = Batch::new();
            next = self.fill(port.hal(), from, range, &mut batch);
            if batch.len() != 0 {
                let ticket = port.submit(batch)?;
                port.complete(&ticket)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Scope, Tag};
    use crate::invalidate::{RangeInvalidation, Unmapped};
    use portcullis_hal::host::HostHal;
    use portcullis_hal::{Asid, Granule, Iova};
    use std::vec::Vec;

    fn pages(block: Block) -> (u128, u128) {
        let first = u128::from(block.start >> 12);
        (first, first + (1 << block.log2))
    }

    #[test]
    fn blocks_cover_the_range_aligned_and_at_most_four_times_over() {
        for first in [0_u64, 1, 3, 7, 0x1ff, 0x200, 0xfff_ffff, (1 << 52) - 600] {
            for count in [1_u64, 2, 3, 8, 9, 511, 512, 513, 600] {
                let range = IovaRange::new(Iova::new(first << 12), count << 12).unwrap();
                let (one, two) = blocks(Some(range));
                let all: Vec<Block> = [Some(one), two].into_iter().flatten().collect();
                for block in &all {
                    assert_eq!(block.start >> 12 & ((1 << block.log2) - 1), 0, "aligned to its size");
                }
                let (start, mut end) = pages(one);
                if let Some(two) = two {
                    assert_eq!(pages(two).0, end, "without a hole");
                    end = pages(two).1;
                }
                assert!(start <= u128::from(first) && end >= u128::from(first + count));
                assert!(end - start <= 4 * u128::from(count), "{first:#x} {count:#x} {all:?}");
            }
        }
        assert_eq!(blocks(None), (Block::ALL, None));
        let all = IovaRange::from_bounds(Iova::new(0), Iova::new(u64::MAX)).unwrap();
        assert_eq!(blocks(Some(all)), (Block::ALL, None));
    }

    #[test]
    fn devices_are_told_behind_a_sync_behind_the_units_commands() {
        let hal = HostHal::new();
        let caches = Caches::new();
        let range = IovaRange::new(Iova::new(0x1000), 0x2000).unwrap();
        assert!(caches.first(&hal, Some(range)).0.is_none());
        caches.reserve(&hal, 2).unwrap();
        for pasid in [1, 2] {
            let pasid = Pasid::new(pasid).ok();
            caches.add(&hal, Cached { stream: StreamId::new(7), pasid });
        }
        let (devices, told) = caches.first(&hal, Some(range));
        let what = Unmapped { range, leaf_shift: 12, scope: Scope::Leaf };
        let tag = Tag::Asid(Asid::new(3));
        let none = RangeInvalidation::Unsupported;
        let unit = invalidate::invalidation(tag, Granule::Size4K, none, Some(what));
        let mut batch = UnitThenDevices::new(unit, devices.unwrap());
        let mut opcodes = Vec::new();
        for left in (0..batch.len()).rev() {
            let Command([first, _]) = batch.next().unwrap();
            opcodes.push((first & 0xff, first >> 12 & 0xfffff));
            assert_eq!(batch.len(), left);
        }
        assert_eq!(batch.next(), None);
        // Two addresses, and one block for each PASID.
        let expected = [(0x12, 0), (0x12, 0), (0x46, 0), (0x40, 1), (0x40, 2)];
        assert_eq!(opcodes, expected);
        assert_eq!(caches.left(told), None);
    }

    #[test]
    fn whoever_came_before_the_unit_was_done_is_told_after_it() {
        let hal = HostHal::new();
        let caches = Caches::new();
        let who = |at| Cached { stream: StreamId::new(at), pasid: None };
        caches.reserve(&hal, 100).unwrap();
        let (_, told) = caches.first(&hal, None);
        assert_eq!(caches.left(told), None);
        caches.add(&hal, who(0));
        assert_eq!(caches.left(told), Some(0));
        (1..100).for_each(|at| caches.add(&hal, who(at)));
        let (batch, told) = caches.first(&hal, None);
        let told_first = batch.unwrap().len();
        assert!((1..100).contains(&told_first));
        assert_eq!(caches.left(told), Some(told_first));
        // In the place of one that is gone, which was told already.
        caches.remove(&hal, who(0));
        caches.add(&hal, who(100));
        assert_eq!(caches.left(told), Some(0));
    }

    #[test]
    fn a_list_longer_than_a_batch_is_gone_through_once_whatever_goes_meanwhile() {
        let hal = HostHal::new();
        let caches = Caches::new();
        let who = |at| Cached { stream: StreamId::new(at), pasid: None };
        for at in 0..100 {
            caches.reserve(&hal, 1).unwrap();
            caches.add(&hal, who(at));
        }
        let (mut next, mut seen) = (Some(0), Vec::new());
        while let Some(from) = next {
            let mut batch = Batch::new();
            next = caches.fill(&hal, from, None, &mut batch);
            seen.extend(batch.map(|command| command.0[0] >> 32));
            // One that was told already.
            caches.remove(&hal, who(seen.len() as u32 - 1));
        }
        assert_eq!(seen, (0..100).collect::<Vec<u64>>());
    }
}
