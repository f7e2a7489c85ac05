//! What is mapped in a domain: disjoint intervals, in order.

use crate::tree::Tree;
use core::ops::ControlFlow;
use portcullis_hal::{Attributes, Iova, IovaRange, OutOfMemory, PhysAddr, Translated};

/// One mapping, as it was made: the protocol removes mappings only whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interval {
    pub(crate) range: IovaRange,
    pub(crate) phys: PhysAddr,
    pub(crate) attributes: Attributes,
}

/// Why an interval was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InsertError {
    /// Another one covers this address, too.
    Overlap(Iova),
    OutOfMemory,
}

impl From<OutOfMemory> for InsertError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// Mappings that follow each other: one request removes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// From the first mapping's first address to the last one's last.
    pub(crate) range: IovaRange,
    /// What is mapped in it, in bytes.
    pub(crate) bytes: u64,
}

/// The mappings of a domain.
#[derive(Debug, Default)]
pub(crate) struct Intervals {
    tree: Tree,
}

impl Intervals {
    pub(crate) fn len(&self) -> usize {
        self.tree.len()
    }

    /// Adds a mapping.
    pub(crate) fn insert(&mut self, interval: &Interval) -> Result<(), InsertError> {
        self.tree.insert(interval)
    }

    /// Removes the mappings that lie in `range` as a whole.
    pub(crate) fn remove(&mut self, range: &IovaRange) {
        self.tree.remove(range);
    }

    /// The mapping that lies only partly in `range`, if there is one. Only one at either end can.
    pub(crate) fn cut_by(&self, range: &IovaRange) -> Option<&Interval> {
        [range.start(), range.last()].into_iter().find_map(|end| {
            let found = self.tree.at_or_after(end)?;
            (found.range.overlaps(range) && !range.covers(&found.range)).then_some(found)
        })
    }

    /// The first mappings in `range`, `most` at most. None is cut by it.
    pub(crate) fn first_run(&self, range: &IovaRange, most: usize) -> Option<Run> {
        let mut run: Option<Run> = None;
        let mut left = most;
        self.tree.visit(range, &mut |interval| {
            if left == 0 {
                return ControlFlow::Break(());
            }
            left -= 1;
            let Run { range, bytes } = run.unwrap_or(Run { range: interval.range, bytes: 0 });
            run = Some(Run {
                range: range.hull(&interval.range),
                bytes: bytes.saturating_add(interval.range.len()),
            });
            ControlFlow::Continue(())
        });
        run
    }

    /// Copies the mappings that end at or after `iova` to `places`, as many as there are of both. The others are
    /// `None` then.
    pub(crate) fn copy_from(&self, iova: Iova, places: &mut [Option<Interval>]) {
        places.fill(None);
        let rest = IovaRange::from_bounds(iova, Iova::new(u64::MAX)).unwrap_or(IovaRange::block(iova, 1));
        let mut places = places.iter_mut();
        self.tree.visit(&rest, &mut |interval| match places.next() {
            Some(place) => {
                *place = Some(*interval);
                ControlFlow::Continue(())
            }
            None => ControlFlow::Break(()),
        });
    }

    /// Where `iova` leads.
    pub(crate) fn lookup(&self, iova: Iova) -> Option<Translated> {
        let interval = self.tree.at_or_after(iova).filter(|interval| interval.range.contains(iova))?;
        let inside = iova.get() - interval.range.start().get();
        Some(Translated {
            phys: interval.phys.checked_add(inside)?,
            attributes: interval.attributes,
            size: block_around(iova, interval),
        })
    }
}

/// The largest naturally aligned block around `iova` that the mapping leads to one block of memory: what an entry of a
/// page table could map, whatever the mapping's length.
fn block_around(iova: Iova, interval: &Interval) -> u64 {
    let apart = interval.range.start().get() ^ interval.phys.get();
    let mut size = 1_u64;
    while let Some(next) = size.checked_mul(2)
        && apart & size == 0
        && interval.range.covers(&IovaRange::block(iova, next))
    {
        size = next;
    }
    size
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len: u64) -> IovaRange {
        IovaRange::new(Iova::new(start), len).unwrap()
    }

    fn add(map: &mut Intervals, start: u64, len: u64) -> Result<(), InsertError> {
        map.insert(&Interval {
            range: range(start, len),
            phys: PhysAddr::new(start + (1 << 40)),
            attributes: Attributes::READ,
        })
    }

    #[test]
    fn an_overlap_names_an_address_of_both_and_neighbours_are_fine() {
        let mut map = Intervals::default();
        add(&mut map, 0x3000, 0x2000).unwrap();
        for (start, len, both) in
            [(0x3000, 0x1000, 0x3000), (0x2000, 0x1001, 0x3000), (0x4fff, 1, 0x4fff), (0, 0x10_0000, 0x3000)]
        {
            assert_eq!(add(&mut map, start, len), Err(InsertError::Overlap(Iova::new(both))));
        }
        add(&mut map, 0x2000, 0x1000).unwrap();
        add(&mut map, 0x5000, 0x1000).unwrap();
        add(&mut map, u64::MAX - (1 << 41), 0x1000).unwrap();
        let mut all = [None; 8];
        map.copy_from(Iova::new(0x2fff), &mut all);
        let starts: Vec<u64> = all.iter().flatten().map(|found| found.range.start().get()).collect();
        assert_eq!(starts, [0x2000, 0x3000, 0x5000, u64::MAX - (1 << 41)]);
        map.copy_from(Iova::new(0x3000), &mut all[..2]);
        assert_eq!(all[1].unwrap().range, range(0x5000, 0x1000));
    }

    #[test]
    fn an_address_leads_where_its_offset_in_the_mapping_says() {
        let mut map = Intervals::default();
        add(&mut map, 0x1000, 0x1000).unwrap();
        add(&mut map, 0x3000, 0x3000).unwrap();
        for (iova, phys) in [
            (0xfff, None),
            (0x1000, Some(0x1000)),
            (0x1fff, Some(0x1fff)),
            (0x2000, None),
            (0x2fff, None),
            (0x5ffe, Some(0x5ffe)),
            (0x6000, None),
        ] {
            let found = map.lookup(Iova::new(iova)).map(|found| found.phys.get());
            assert_eq!(found, phys.map(|phys: u64| phys + (1 << 40)), "{iova:#x}");
        }
    }

    #[test]
    fn a_run_goes_from_the_first_mapping_to_the_last_that_is_asked_for() {
        let mut map = Intervals::default();
        for start in [0x1000, 0x3000, 0x4000, 0x9000] {
            add(&mut map, start, 0x1000).unwrap();
        }
        let run = |from, len, most| map.first_run(&range(from, len), most).map(|run| (run.range, run.bytes));
        assert_eq!(run(0, 0x10_0000, 100), Some((range(0x1000, 0x9000), 0x4000)));
        assert_eq!(run(0, 0x10_0000, 3), Some((range(0x1000, 0x4000), 0x3000)));
        assert_eq!(run(0x2000, 0x7000, 3), Some((range(0x3000, 0x2000), 0x2000)));
        assert_eq!(run(0x5000, 0x4000, 3), None);
        map.remove(&range(0x3000, 0x2000));
        assert_eq!((map.len(), map.lookup(Iova::new(0x4000))), (2, None));
    }

    #[test]
    fn a_range_that_cuts_a_mapping_is_found_out() {
        let mut map = Intervals::default();
        add(&mut map, 0x2000, 0x3000).unwrap();
        add(&mut map, 0x8000, 0x1000).unwrap();
        for (start, len, cut) in [
            (0x1000, 0x1000, false),
            (0x1000, 0x2000, true),
            (0x2000, 0x3000, false),
            (0x3000, 0x1000, true),
            (0x4000, 0x5000, true),
            (0x2000, 0x7000, false),
            (0x2000, 0x6800, true),
            (0x5000, 0x3000, false),
        ] {
            assert_eq!(map.cut_by(&range(start, len)).is_some(), cut, "{start:#x} {len:#x}");
        }
    }
}
