//! What is mapped in a domain: disjoint intervals, in order.

use alloc::vec::Vec;
use portcullis_hal::{Attributes, Iova, IovaRange, Mapping, OutOfMemory, PhysAddr, Translated};

/// Whether a mapping is there for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It keeps its place while the device is being asked.
    Pending,
    /// It is.
    Settled,
}

/// One mapping, as it was made: the protocol removes mappings only whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interval {
    pub(crate) range: IovaRange,
    pub(crate) phys: PhysAddr,
    pub(crate) attributes: Attributes,
    state: State,
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

/// A run of settled mappings with nothing pending in between: one request removes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    first: usize,
    end: usize,
    /// From the first mapping's first address to the last one's last.
    pub(crate) range: IovaRange,
    /// What is mapped in it, in bytes.
    pub(crate) bytes: u64,
}

/// The mappings of a domain, sorted by address.
#[derive(Debug, Default)]
pub(crate) struct Intervals {
    list: Vec<Interval>,
}

impl Intervals {
    /// The index of the first interval that ends at or after `iova`.
    fn at_or_after(&self, iova: Iova) -> usize {
        self.list.partition_point(|interval| interval.range.last() < iova)
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Makes room for `count` more.
    pub(crate) fn reserve(&mut self, count: usize) -> Result<(), OutOfMemory> {
        self.list.try_reserve(count).map_err(|_| OutOfMemory)
    }

    /// Adds a mapping that nobody else sees until it is settled.
    pub(crate) fn insert_pending(&mut self, range: IovaRange, mapping: &Mapping) -> Result<(), InsertError> {
        let index = self.at_or_after(range.start());
        if let Some(next) = self.list.get(index)
            && next.range.overlaps(&range)
        {
            return Err(InsertError::Overlap(next.range.start().max(range.start())));
        }
        self.reserve(1)?;
        let interval = Interval {
            range,
            phys: mapping.memory.start(),
            attributes: mapping.attributes,
            state: State::Pending,
        };
        self.list.insert(index, interval);
        Ok(())
    }

    /// Lets others see the mapping that starts at `iova`.
    pub(crate) fn settle(&mut self, iova: Iova) {
        let index = self.at_or_after(iova);
        if let Some(interval) = self.list.get_mut(index) {
            interval.state = State::Settled;
        }
    }

    /// Takes back the pending mapping that starts at `iova`.
    pub(crate) fn remove_pending(&mut self, iova: Iova) {
        let index = self.at_or_after(iova);
        let found = self.list.get(index);
        if found.is_some_and(|found| found.range.start() == iova && found.state == State::Pending) {
            self.list.remove(index);
        }
    }

    /// The settled mapping that lies only partly in `range`, if there is one.
    pub(crate) fn cut_by(&self, range: &IovaRange) -> Option<&Interval> {
        let touched = self.list.iter().skip(self.at_or_after(range.start()));
        touched
            .take_while(|interval| interval.range.start() <= range.last())
            .find(|interval| interval.state == State::Settled && !range.covers(&interval.range))
    }

    /// The first run of settled mappings that lie in `range`.
    pub(crate) fn first_run(&self, range: &IovaRange) -> Option<Run> {
        let mut run: Option<Run> = None;
        let from = self.at_or_after(range.start());
        for (index, interval) in self.list.iter().enumerate().skip(from) {
            let usable = interval.state == State::Settled && range.covers(&interval.range);
            match &mut run {
                _ if interval.range.start() > range.last() => break,
                Some(_) if !usable => break,
                Some(run) => {
                    run.end = index + 1;
                    run.range = run.range.hull(&interval.range);
                    run.bytes = run.bytes.saturating_add(interval.range.len());
                }
                None if usable => {
                    run = Some(Run {
                        first: index,
                        end: index + 1,
                        range: interval.range,
                        bytes: interval.range.len(),
                    });
                }
                None => {}
            }
        }
        run
    }

    /// Removes a run that was found just now.
    pub(crate) fn remove_run(&mut self, run: &Run) {
        let end = run.end.min(self.list.len());
        self.list.drain(run.first.min(end)..end);
    }

    /// The mapping at `index`, in order of addresses.
    pub(crate) fn get(&self, index: usize) -> Option<&Interval> {
        self.list.get(index)
    }

    /// Where `iova` leads.
    pub(crate) fn lookup(&self, iova: Iova) -> Option<Translated> {
        let interval = self.list.get(self.at_or_after(iova))?;
        if !interval.range.contains(iova) || interval.state == State::Pending {
            return None;
        }
        let inside = iova.get() - interval.range.start().get();
        Some(Translated {
            phys: interval.phys.checked_add(inside)?,
            attributes: interval.attributes,
            size: interval.range.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_hal::PhysRange;

    fn range(start: u64, len: u64) -> IovaRange {
        IovaRange::new(Iova::new(start), len).unwrap()
    }

    fn add(map: &mut Intervals, start: u64, len: u64) -> Result<(), InsertError> {
        map.insert_pending(
            range(start, len),
            &Mapping {
                iova: Iova::new(start),
                memory: PhysRange::new(PhysAddr::new(start + (1 << 40)), len).unwrap(),
                attributes: Attributes::READ,
            },
        )
    }

    fn add_settled(map: &mut Intervals, start: u64, len: u64) {
        add(map, start, len).unwrap();
        map.settle(Iova::new(start));
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
        let starts: Vec<u64> = map.list.iter().map(|interval| interval.range.start().get()).collect();
        assert_eq!(starts, [0x2000, 0x3000, 0x5000, u64::MAX - (1 << 41)]);
    }

    #[test]
    fn a_pending_mapping_leads_nowhere_and_breaks_a_run() {
        let mut map = Intervals::default();
        add_settled(&mut map, 0x1000, 0x1000);
        add(&mut map, 0x2000, 0x1000).unwrap();
        add_settled(&mut map, 0x3000, 0x1000);
        add_settled(&mut map, 0x5000, 0x1000);
        assert_eq!(map.lookup(Iova::new(0x2000)), None);
        let found = map.lookup(Iova::new(0x3008)).unwrap();
        assert_eq!((found.phys.get(), found.size), ((1 << 40) + 0x3008, 0x1000));
        let all = range(0, 0x10_0000);
        let run = map.first_run(&all).unwrap();
        assert_eq!((run.range, run.bytes), (range(0x1000, 0x1000), 0x1000));
        map.remove_run(&run);
        let run = map.first_run(&all).unwrap();
        assert_eq!((run.range, run.bytes), (range(0x3000, 0x3000), 0x2000));
        map.remove_run(&run);
        assert_eq!((map.first_run(&all), map.len()), (None, 1));
        map.remove_pending(Iova::new(0x1800));
        assert_eq!(map.len(), 1, "only the start names a mapping");
        map.remove_pending(Iova::new(0x2000));
        assert_eq!(map.len(), 0);
    }

    #[test]
    fn a_range_that_cuts_a_settled_mapping_is_found_out() {
        let mut map = Intervals::default();
        add_settled(&mut map, 0x2000, 0x3000);
        add_settled(&mut map, 0x8000, 0x1000);
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
        assert_eq!(map.first_run(&range(0x3000, 0x6000)).unwrap().range, range(0x8000, 0x1000));
    }
}
