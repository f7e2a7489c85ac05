//! Which commands invalidate a range of addresses.

use crate::command::{Command, Scope, Span, Tag};
use portcullis_hal::{Granule, IovaRange};

/// The largest batch, in commands. More single-address invalidations than this cost more than a refill of the TLB, so
/// that the whole tag is invalidated instead.
pub const BATCH: usize = 32;

/// The largest SCALE of a range.
const MAX_SCALE: u8 = 31;
/// The largest number of units of a range, NUM + 1.
const MAX_UNITS: u64 = 32;

/// Commands to be submitted together.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    commands: [Command; BATCH],
    len: usize,
}

/// A batch has no room for another command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchFull;

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self { commands: [Command::sync(); BATCH], len: 0 }
    }

    /// A batch of one command.
    pub fn of(command: Command) -> Self {
        Self { commands: [command; BATCH], len: 1 }
    }

    /// Adds a command.
    pub fn push(&mut self, command: Command) -> Result<(), BatchFull> {
        let slot = self.commands.get_mut(self.len).ok_or(BatchFull)?;
        *slot = command;
        self.len += 1;
        Ok(())
    }

    /// The commands, in order.
    pub fn commands(&self) -> &[Command] {
        self.commands.get(..self.len).unwrap_or_default()
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether the unit invalidates ranges (IDR3.RIL).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RangeInvalidation {
    /// It does.
    Supported,
    /// One address per command.
    Unsupported,
}

/// What was unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmapped {
    /// The hull of the addresses.
    pub range: IovaRange,
    /// The smallest leaf entry among them, as a power of two in bytes.
    pub leaf_shift: u8,
    /// Whether tables were cut off.
    pub scope: Scope,
}

/// The commands, without the sync, that make a unit forget what was unmapped under `tag` in tables of this granule.
pub fn invalidation(tag: Tag, granule: Granule, ranges: RangeInvalidation, what: Option<Unmapped>) -> Batch {
    what.and_then(|what| match ranges {
        RangeInvalidation::Supported => by_range(tag, granule, what),
        RangeInvalidation::Unsupported => by_address(tag, granule, what),
    })
    .unwrap_or_else(|| Batch::of(Command::tlbi_tag(tag)))
}

fn by_address(tag: Tag, granule: Granule, what: Unmapped) -> Option<Batch> {
    // One address per leaf is enough, and one per table that was cut off, which covers a granule's worth of entries.
    const WIDEST: u8 = 48;
    let largest = match what.scope {
        Scope::Leaf => WIDEST,
        Scope::Walk => 2 * granule.shift() - 3,
    };
    let step = 1_u64 << what.leaf_shift.clamp(granule.shift(), largest);
    let mut batch = Batch::new();
    let mut address = what.range.start().align_down(step);
    loop {
        batch.push(Command::tlbi_span(tag, Span::Address(address.get()), what.scope)).ok()?;
        match address.checked_add(step) {
            Some(next) if next <= what.range.last() => address = next,
            _ => return Some(batch),
        }
    }
}

fn by_range(tag: Tag, granule: Granule, what: Unmapped) -> Option<Batch> {
    let shift = granule.shift();
    let mut first = what.range.start().get() >> shift;
    let last = what.range.last().get() >> shift;
    let mut batch = Batch::new();
    while first <= last {
        // From the low end of the count, five bits at a time, so that every piece is an exact multiple of its unit.
        let left = last - first + 1;
        let scale = (left.trailing_zeros() as u8).min(MAX_SCALE);
        let count = match left >> scale {
            units if scale == MAX_SCALE => units.min(MAX_UNITS),
            units => units % MAX_UNITS,
        };
        let start = first << shift;
        // NUM, SCALE and TTL of zero together are reserved with a granule.
        let span = if count == 1 && scale == 0 {
            Span::Address(start)
        } else {
            Span::Granules { start, granule, num: (count - 1) as u8, scale }
        };
        batch.push(Command::tlbi_span(tag, span, what.scope)).ok()?;
        first += count << scale;
    }
    Some(batch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_hal::{Asid, Iova};

    const TAG: Tag = Tag::Asid(Asid::new(5));
    const GRANULES: [Granule; 3] = [Granule::Size4K, Granule::Size16K, Granule::Size64K];

    fn unmapped(start: u64, len: u64, leaf_shift: u8, scope: Scope) -> Unmapped {
        let range = IovaRange::new(Iova::new(start), len).unwrap();
        Unmapped { range, leaf_shift, scope }
    }

    /// What a command covers, by the manual's words: `None` for the whole tag.
    fn covered(command: &Command, granule: Granule) -> Option<(u64, u64)> {
        let [word0, word1] = command.0;
        assert_eq!(word0 >> 48, 5);
        if word0 & 0xff == 0x11 {
            return None;
        }
        assert_eq!(word0 & 0xff, 0x12);
        let start = word1 & !0xfff;
        if word1 >> 10 & 3 == 0 {
            assert_eq!(word0 & 0x01f1_f000, 0, "range fields without a granule");
            return Some((start, 1 << granule.shift()));
        }
        let (num, scale) = (word0 >> 12 & 0x1f, word0 >> 20 & 0x1f);
        assert!(num != 0 || scale != 0, "reserved");
        Some((start, (num + 1) << scale << granule.shift()))
    }

    #[test]
    fn range_commands_cover_the_range_exactly_and_without_overlap() {
        for granule in GRANULES {
            let page = 1_u64 << granule.shift();
            for pages in (1..200).chain([511, 512, 513, 0x3_ffff, 0x40_0001, (1 << 48) / page]) {
                for first in [0, 1, 5, 0x1000] {
                    let what = unmapped(first * page, pages * page, granule.shift(), Scope::Leaf);
                    let batch = invalidation(TAG, granule, RangeInvalidation::Supported, Some(what));
                    let mut next = first * page;
                    for command in batch.commands() {
                        let (start, len) = covered(command, granule).unwrap();
                        assert_eq!(start, next);
                        next += len;
                    }
                    assert_eq!(next, (first + pages) * page);
                    assert!(batch.commands().len() <= 8);
                }
            }
        }
    }

    #[test]
    fn without_ranges_each_leaf_gets_a_command_until_that_costs_more_than_the_whole_tag() {
        let commands = |pages: u64, shift| {
            let what = unmapped(0x4000_0000, pages << shift, shift, Scope::Leaf);
            invalidation(TAG, Granule::Size4K, RangeInvalidation::Unsupported, Some(what))
        };
        for pages in 1..=BATCH as u64 {
            for shift in [12, 21, 30] {
                let batch = commands(pages, shift);
                let starts: Vec<u64> =
                    batch.commands().iter().map(|c| covered(c, Granule::Size4K).unwrap().0).collect();
                let expected: Vec<u64> = (0..pages).map(|i| 0x4000_0000 + (i << shift)).collect();
                assert_eq!(starts, expected);
            }
        }
        let whole = commands(BATCH as u64 + 1, 12);
        assert_eq!(whole.commands(), [Command::tlbi_tag(TAG)]);
    }

    #[test]
    fn tables_that_were_cut_off_get_an_address_each_and_the_walk_scope() {
        let what = unmapped(0, 4 << 21, u8::MAX, Scope::Walk);
        let batch = invalidation(TAG, Granule::Size4K, RangeInvalidation::Unsupported, Some(what));
        let words: Vec<u64> = batch.commands().iter().map(|command| command.0[1]).collect();
        assert_eq!(words, [0, 0x20_0000, 0x40_0000, 0x60_0000]);
    }

    #[test]
    fn nothing_known_invalidates_the_whole_tag() {
        let batch = invalidation(TAG, Granule::Size4K, RangeInvalidation::Supported, None);
        assert_eq!(batch.commands(), [Command::tlbi_tag(TAG)]);
    }

    #[test]
    fn a_range_at_the_top_of_the_address_space_ends_there() {
        let what = unmapped(u64::MAX - 0x1fff, 0x2000, 12, Scope::Leaf);
        let batch = invalidation(TAG, Granule::Size4K, RangeInvalidation::Unsupported, Some(what));
        assert_eq!(batch.commands().len(), 2);
    }
}
