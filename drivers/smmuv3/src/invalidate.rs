//! Which commands invalidate a range of addresses.
//!
//! What they cost, in order: a look at a register, a doorbell and a sync are paid once, however many commands there are; a
//! command is a slot and a search of the TLB; forgetting a whole tag is one command, and afterwards a walk for each address
//! that is used again. So:
//!
//! - With ranges (IDR3.RIL) a range of `n` granules takes one command for every five bits of `n` that are not all zero,
//!   eight at most, and nothing that stays mapped is forgotten.
//! - Without, each leaf takes a command; from more than [`MOST_ADDRESSES`] on, the whole tag is forgotten.
//! - Walk caches are spared ([`Scope::Leaf`]) unless a table was cut off.
//!
//! The level of the leaves is told (TTL) where it is sure: if no larger leaf fits into the range. A large leaf that was
//! split is still cached as what it was, so whoever splits has it forgotten before anything is unmapped from it.

use crate::command::{Command, Level, Scope, Span, Tag, field};
use crate::spec::cmd::{COMMAND_WORDS, Tlbi0, Tlbi1};
use portcullis_hal::{Gather, Granule, Iova, IovaRange};
use portcullis_iommu::Stage;

/// The most commands by address. More cost the unit more than walks do for what it then looks up again.
pub const MOST_ADDRESSES: u32 = 32;

/// The largest SCALE of a range.
const MAX_SCALE: u8 = 31;
/// The largest number of units of a range, NUM + 1.
const MAX_UNITS: u64 = 32;

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

impl Unmapped {
    /// What `gather` recorded, within `range`.
    #[inline]
    pub(crate) fn of(gather: &Gather, range: IovaRange) -> Self {
        let scope = if gather.has_tables() { Scope::Walk } else { Scope::Leaf };
        Self { range, leaf_shift: gather.leaf_shift(), scope }
    }
}

/// The commands, without the sync, that make a unit forget something. They are made as they are taken.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    tag: Tag,
    scope: Scope,
    pieces: Pieces,
    left: usize,
}

#[derive(Clone, Copy, Debug)]
enum Pieces {
    Whole,
    Addresses { next: u64, step: u64 },
    Ranges { next: u64, granules: u64, granule: Granule, level: Option<Level> },
}

/// The commands, without the sync, that make a unit forget what was unmapped under `tag` in tables of this granule;
/// everything under it, if that is not known.
pub fn invalidation(tag: Tag, granule: Granule, ranges: RangeInvalidation, what: Option<Unmapped>) -> Batch {
    let scope = what.map_or(Scope::Walk, |what| what.scope);
    let (pieces, left) = match (what, ranges) {
        (None, _) => (Pieces::Whole, 1),
        (Some(what), RangeInvalidation::Supported) => by_range(granule, what),
        (Some(what), RangeInvalidation::Unsupported) => by_address(granule, what),
    };
    Batch { tag, scope, pieces, left }
}

/// The commands of a target, made once: the way of most unmaps is one command, which lacks its tag and its addresses only.
#[derive(Clone, Copy, Debug)]
pub struct Prepared {
    /// All in one granule.
    page: Piece,
    /// A leaf one level above the last one.
    block: Piece,
    /// Its size, as a power of two in bytes; 0 where nobody tells of leaves.
    block_shift: u8,
    /// A granule, as a power of two in bytes.
    granule_shift: u8,
    /// What is invalidated at the least.
    least: Scope,
    ranges: RangeInvalidation,
    /// Any range, in units of one granule.
    range: [u64; COMMAND_WORDS],
}

/// A naturally aligned piece of the addresses, and the command for it.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// The bits of an address within it.
    mask: u64,
    command: [u64; COMMAND_WORDS],
}

impl Piece {
    /// The command of [`invalidation`], without a tag and a place.
    fn new(stage: Stage, granule: Granule, ranges: RangeInvalidation, shift: u8, scope: Scope) -> Self {
        let (tag, range) = (Tag::from_bits(stage, 0), IovaRange::block(Iova::new(0), 1 << shift));
        let what = Unmapped { range, leaf_shift: shift, scope };
        let mut batch = invalidation(tag, granule, ranges, Some(what));
        let Command(command) = batch.next().unwrap_or(Command::tlbi_tag(tag));
        Self { mask: (1 << shift) - 1, command }
    }

    /// The command for the piece that has this address.
    #[inline]
    fn at(&self, tag: u64, address: u64) -> Command {
        let [first, second] = self.command;
        Command([first | tag, second | address & !self.mask])
    }
}

impl Prepared {
    /// For tables of this stage and granule, on a unit that invalidates ranges or not.
    pub fn new(stage: Stage, granule: Granule, ranges: RangeInvalidation, least: Scope) -> Self {
        let (granule_shift, block_shift) = (granule.shift(), 2 * granule.shift() - 3);
        let span = Span::Granules { start: 0, granule, num: 0, scale: 0, level: None };
        let Command(range) = Command::tlbi_span(Tag::from_bits(stage, 0), span, least);
        Self {
            page: Piece::new(stage, granule, ranges, granule_shift, least),
            block: Piece::new(stage, granule, ranges, block_shift, least),
            block_shift: if least == Scope::Leaf { block_shift } else { 0 },
            granule_shift,
            least,
            ranges,
            range,
        }
    }

    /// The only command of [`invalidation`] under the tag with these [bits](Tag::bits), where it is plain that there is but
    /// one.
    #[inline(always)]
    pub fn single(&self, tag: u64, what: &Unmapped) -> Option<Command> {
        let (start, last) = (what.range.start().get(), what.range.last().get());
        match what.scope {
            // No larger leaf, and no table, fits in.
            Scope::Leaf if start ^ last == self.page.mask => Some(self.page.at(tag, start)),
            Scope::Leaf if start ^ last == self.block.mask && what.leaf_shift == self.block_shift => {
                Some(self.block.at(tag, start))
            }
            _ => self.single_range(tag, what),
        }
    }

    /// [`single`](Self::single) of several granules.
    #[inline(always)]
    fn single_range(&self, tag: u64, what: &Unmapped) -> Option<Command> {
        const NUM: u64 = Tlbi0::new().with_num(1).into_bits();
        const SCALE: u64 = Tlbi0::new().with_scale(1).into_bits();
        const LEAF: u64 = Tlbi1::new().with_leaf(true).into_bits();
        const LAST: u64 = Tlbi1::new().with_ttl(3).into_bits();
        if self.ranges == RangeInvalidation::Unsupported {
            return None;
        }
        let shift = u32::from(self.granule_shift);
        let page = what.range.start().get().wrapping_shr(shift);
        let last = what.range.last().get().wrapping_shr(shift);
        let granules = last.wrapping_sub(page).wrapping_add(1);
        let scale = granules.trailing_zeros();
        let num = granules.wrapping_shr(scale).wrapping_sub(1);
        // Either is too large for its five bits. The scale leaves an odd number of units, or none of all that there are.
        // A single granule is an address, not a range.
        if num | u64::from(scale) >= MAX_UNITS || granules == 1 {
            return None;
        }
        let [first, second] = self.range;
        let second = match what.scope {
            Scope::Walk => second & !LEAF,
            _ if self.least == Scope::Walk => second,
            // No larger leaf fits in.
            Scope::Leaf
                if what.leaf_shift == self.granule_shift
                    && granules.wrapping_shl(shift) <= self.block.mask =>
            {
                second | LAST
            }
            Scope::Leaf => return None,
        };
        let range = field(num, NUM) | field(scale, SCALE);
        Some(Command([first | tag | range, second | page.wrapping_shl(shift)]))
    }
}

fn by_address(granule: Granule, what: Unmapped) -> (Pieces, usize) {
    // One address per leaf is enough, and one per table that was cut off, which covers a granule's worth of entries.
    const WIDEST: u8 = 48;
    let largest = match what.scope {
        Scope::Leaf => WIDEST,
        Scope::Walk => 2 * granule.shift() - 3,
    };
    let shift = what.leaf_shift.clamp(granule.shift(), largest);
    let first = what.range.start().get() >> shift;
    let count = (what.range.last().get() >> shift).wrapping_sub(first).wrapping_add(1);
    match u32::try_from(count) {
        Ok(count) if count <= MOST_ADDRESSES => {
            (Pieces::Addresses { next: first << shift, step: 1 << shift }, count as usize)
        }
        _ => (Pieces::Whole, 1),
    }
}

fn by_range(granule: Granule, what: Unmapped) -> (Pieces, usize) {
    let first = what.range.start().get() >> granule.shift();
    let granules = (what.range.last().get() >> granule.shift()).wrapping_sub(first).wrapping_add(1);
    let mut count = 0_usize;
    let mut left = granules;
    while left != 0 {
        let (units, scale) = lowest_piece(left);
        left = left.wrapping_sub(units << scale);
        count = count.wrapping_add(1);
    }
    let level = uniform_level(granule, &what);
    (Pieces::Ranges { next: first << granule.shift(), granules, granule, level }, count)
}

/// The piece of a range to begin with, as a number of units and their scale. It comes from the low end of the count, five
/// bits at a time, so that every piece is an exact multiple of its unit.
fn lowest_piece(granules: u64) -> (u64, u8) {
    let scale = (granules.trailing_zeros() as u8).min(MAX_SCALE);
    match granules >> scale {
        units if scale == MAX_SCALE => (units.min(MAX_UNITS), scale),
        units => (units % MAX_UNITS, scale),
    }
}

/// The level of all leaves in the range, if it is sure.
fn uniform_level(granule: Granule, what: &Unmapped) -> Option<Level> {
    if what.scope == Scope::Walk {
        return None;
    }
    let bits_per_level = granule.shift() - 3;
    let above = what.leaf_shift.checked_sub(granule.shift())? / bits_per_level;
    let level = Level::of_leaf(granule, above)?;
    // A larger leaf fits if there is an aligned place for it.
    let (start, last) = (what.range.start().get(), what.range.last().get());
    let larger =
        1_u64.checked_shl(u32::from(granule.shift()) + (u32::from(above) + 1) * u32::from(bits_per_level))?;
    let place = start.checked_next_multiple_of(larger);
    let fits =
        place.is_some_and(|place| place.checked_add(larger.wrapping_sub(1)).is_some_and(|end| end <= last));
    let aligned = start.trailing_zeros() >= u32::from(what.leaf_shift);
    (aligned && !fits).then_some(level)
}

impl Iterator for Batch {
    type Item = Command;

    fn next(&mut self) -> Option<Command> {
        self.left = self.left.checked_sub(1)?;
        Some(match &mut self.pieces {
            Pieces::Whole => Command::tlbi_tag(self.tag),
            Pieces::Addresses { next, step } => {
                let address = *next;
                *next = address.wrapping_add(*step);
                Command::tlbi_span(self.tag, Span::Address(address), self.scope)
            }
            Pieces::Ranges { next, granules, granule, level } => {
                let (start, (units, scale)) = (*next, lowest_piece(*granules));
                *next = start.wrapping_add(units << scale << granule.shift());
                *granules = granules.wrapping_sub(units << scale);
                let (granule, level, num) = (*granule, *level, units.wrapping_sub(1) as u8);
                // NUM, SCALE and TTL of zero together are reserved with a granule.
                let span = match level {
                    None if (num, scale) == (0, 0) => Span::Address(start),
                    _ => Span::Granules { start, granule, num, scale, level },
                };
                Command::tlbi_span(self.tag, span, self.scope)
            }
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Batch {}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_hal::{Asid, Iova, Vmid};

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
        let (num, scale, ttl) = (word0 >> 12 & 0x1f, word0 >> 20 & 0x1f, word1 >> 8 & 3);
        assert!(num != 0 || scale != 0 || ttl != 0, "reserved");
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
                    for command in batch {
                        let (start, len) = covered(&command, granule).unwrap();
                        assert_eq!(start, next);
                        next += len;
                    }
                    assert_eq!(next, (first + pages) * page);
                    assert!(batch.len() <= 8);
                }
            }
        }
    }

    #[test]
    fn what_is_plainly_one_command_is_the_one_that_the_batch_has() {
        let mut found = 0;
        let tags = [(Stage::Stage1, TAG), (Stage::Stage2, Tag::Vmid(Vmid::new(0xfff7)))];
        for (granule, (stage, tag)) in GRANULES.into_iter().flat_map(|g| tags.map(|tag| (g, tag))) {
            assert_eq!(Tag::from_bits(stage, tag.bits()), tag);
            let (page, per_table) = (1_u64 << granule.shift(), 1_u64 << (granule.shift() - 3));
            let counts =
                (1..70).chain([256, 300, per_table - 1, per_table, per_table + 1, 2 * per_table, 1 << 36]);
            for (pages, first) in
                counts.flat_map(|pages| [0, 1, 5, 64, per_table].map(|first| (pages, first)))
            {
                for shift in
                    [granule.shift(), granule.shift() + 4, 2 * granule.shift() - 3, 3 * granule.shift() - 6]
                {
                    for scope in [Scope::Leaf, Scope::Walk] {
                        let what = unmapped(first * page, pages * page, shift, scope);
                        for ranges in [RangeInvalidation::Supported, RangeInvalidation::Unsupported] {
                            // No leaf reaches out of the range.
                            let batch = invalidation(tag, granule, ranges, Some(what));
                            let prepared = Prepared::new(stage, granule, ranges, Scope::Leaf);
                            if (pages * page) >> shift != 0
                                && let Some(one) = prepared.single(tag.bits(), &what)
                            {
                                assert_eq!(batch.collect::<Vec<_>>(), [one], "{granule:?} {what:?}");
                                found += 1;
                            }
                            // Nor does it matter which leaves they say there are, whose tables are somebody else's.
                            let all = Unmapped {
                                range: what.range,
                                leaf_shift: granule.shift(),
                                scope: Scope::Walk,
                            };
                            let batch = invalidation(tag, granule, ranges, Some(all));
                            let prepared = Prepared::new(stage, granule, ranges, Scope::Walk);
                            if let Some(one) = prepared.single(tag.bits(), &what) {
                                assert_eq!(batch.collect::<Vec<_>>(), [one], "{granule:?} {what:?}");
                                found += 1;
                            }
                        }
                    }
                }
            }
        }
        assert!(found > 1000, "{found}");
        let is_plain = |ranges, least, what: Unmapped| {
            Prepared::new(Stage::Stage1, Granule::Size4K, ranges, least).single(TAG.bits(), &what).is_some()
        };
        use RangeInvalidation::{Supported, Unsupported};
        for ranges in [Supported, Unsupported] {
            for least in [Scope::Leaf, Scope::Walk] {
                assert!(is_plain(ranges, least, unmapped(0x20_0000, 0x1000, 12, Scope::Leaf)), "a page");
            }
            let leaf = unmapped(0x20_0000, 0x20_0000, 21, Scope::Leaf);
            assert!(is_plain(ranges, Scope::Leaf, leaf), "a large leaf");
        }
        let table = |scope| unmapped(0x20_0000, 0x20_0000, 12, scope);
        assert!(is_plain(Supported, Scope::Leaf, table(Scope::Walk)), "a table");
        assert!(is_plain(Supported, Scope::Walk, table(Scope::Leaf)), "a table of somebody else's");
    }

    #[test]
    fn what_somebody_else_changed_within_a_page_is_invalidated_with_the_page() {
        let prepared =
            Prepared::new(Stage::Stage1, Granule::Size4K, RangeInvalidation::Supported, Scope::Walk);
        let word1 = |start: u64, last: u64| {
            let range = IovaRange::from_bounds(Iova::new(start), Iova::new(last)).unwrap();
            let what = Unmapped { range, leaf_shift: 12, scope: Scope::Leaf };
            prepared.single(TAG.bits(), &what).map(|Command([_, second])| second)
        };
        // Bits 11:0 of the word are not the address's.
        assert_eq!(word1(0x5000, 0x5fff), Some(0x5000));
        assert!(word1(0x5123, 0x5edc).is_none_or(|word| word == 0x5000));
        assert!(word1(0x5800, 0x67ff).is_none_or(|word| word & !0xfff == 0x5000 && word & 0xc00 != 0));
    }

    #[test]
    fn without_ranges_each_leaf_gets_a_command_until_that_costs_more_than_the_whole_tag() {
        let commands = |pages: u64, shift| {
            let what = unmapped(0x4000_0000, pages << shift, shift, Scope::Leaf);
            invalidation(TAG, Granule::Size4K, RangeInvalidation::Unsupported, Some(what))
        };
        for pages in 1..=u64::from(MOST_ADDRESSES) {
            for shift in [12, 21, 30] {
                let batch = commands(pages, shift);
                let starts: Vec<u64> = batch.map(|c| covered(&c, Granule::Size4K).unwrap().0).collect();
                let expected: Vec<u64> = (0..pages).map(|i| 0x4000_0000 + (i << shift)).collect();
                assert_eq!(starts, expected);
            }
        }
        let whole = commands(u64::from(MOST_ADDRESSES) + 1, 12);
        assert_eq!(whole.collect::<Vec<_>>(), [Command::tlbi_tag(TAG)]);
    }

    #[test]
    fn tables_that_were_cut_off_get_an_address_each_and_the_walk_scope() {
        let what = unmapped(0, 4 << 21, u8::MAX, Scope::Walk);
        let batch = invalidation(TAG, Granule::Size4K, RangeInvalidation::Unsupported, Some(what));
        let words: Vec<u64> = batch.map(|command| command.0[1]).collect();
        assert_eq!(words, [0, 0x20_0000, 0x40_0000, 0x60_0000]);
    }

    #[test]
    fn nothing_known_invalidates_the_whole_tag() {
        let batch = invalidation(TAG, Granule::Size4K, RangeInvalidation::Supported, None);
        assert_eq!(batch.collect::<Vec<_>>(), [Command::tlbi_tag(TAG)]);
    }

    #[test]
    fn a_range_at_the_top_of_the_address_space_ends_there() {
        let what = unmapped(u64::MAX - 0x1fff, 0x2000, 12, Scope::Leaf);
        let batch = invalidation(TAG, Granule::Size4K, RangeInvalidation::Unsupported, Some(what));
        assert_eq!(batch.len(), 2);
    }

    #[test]
    fn the_number_of_commands_is_known_before_they_are_made() {
        for ranges in [RangeInvalidation::Supported, RangeInvalidation::Unsupported] {
            for pages in 1..100 {
                let what = unmapped(0x5000, pages << 12, 12, Scope::Leaf);
                let mut batch = invalidation(TAG, Granule::Size4K, ranges, Some(what));
                for left in (0..batch.len()).rev() {
                    assert!(batch.next().is_some());
                    assert_eq!(batch.len(), left);
                }
                assert_eq!(batch.next(), None);
            }
        }
    }

    #[test]
    fn the_level_is_told_only_if_no_larger_leaf_fits_and_no_table_was_cut_off() {
        let ttl = |granule, start, len, shift, scope| {
            let what = unmapped(start, len, shift, scope);
            let batch = invalidation(TAG, granule, RangeInvalidation::Supported, Some(what));
            let levels: Vec<u64> = batch.map(|command| command.0[1] >> 8 & 3).collect();
            assert!(levels.iter().all(|level| *level == levels[0]));
            levels[0]
        };
        use Granule::{Size4K, Size16K, Size64K};
        const MIB: u64 = 1 << 20;
        assert_eq!(ttl(Size4K, 0x1000, 0x1000, 12, Scope::Leaf), 3);
        assert_eq!(ttl(Size4K, 0x1000, 2 * MIB - 0x1000, 12, Scope::Leaf), 3);
        assert_eq!(ttl(Size4K, 0x1000, 4 * MIB - 0x2000, 12, Scope::Leaf), 3, "two halves of tables");
        assert_eq!(ttl(Size4K, 0, 2 * MIB, 12, Scope::Leaf), 0, "may hold a leaf of 2 MiB");
        assert_eq!(ttl(Size4K, 0x1000, 4 * MIB - 0x1000, 12, Scope::Leaf), 0, "its second half may");
        assert_eq!(ttl(Size4K, 0x1_0000, 0x1_0000, 16, Scope::Leaf), 3, "contiguous entries");
        assert_eq!(ttl(Size4K, 2 * MIB, 2 * MIB, 21, Scope::Leaf), 2);
        assert_eq!(ttl(Size4K, 1 << 30, 1 << 30, 21, Scope::Leaf), 0, "may hold a leaf of 1 GiB");
        assert_eq!(ttl(Size4K, 1 << 30, 1 << 30, 30, Scope::Leaf), 1);
        assert_eq!(ttl(Size4K, 1 << 39, 1 << 39, 39, Scope::Leaf), 0, "as is what is not known");
        assert_eq!(ttl(Size4K, 2 * MIB, 2 * MIB, 21, Scope::Walk), 0);
        assert_eq!(ttl(Size16K, 32 * MIB, 32 * MIB, 25, Scope::Leaf), 2);
        assert_eq!(ttl(Size16K, 1 << 36, 1 << 36, 36, Scope::Leaf), 0, "reserved");
        assert_eq!(ttl(Size64K, 1 << 29, 1 << 29, 29, Scope::Leaf), 2);
        assert_eq!(ttl(Size64K, 1 << 42, 1 << 42, 42, Scope::Leaf), 0);
    }
}
