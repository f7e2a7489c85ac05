//! What an SMMU may cache: configuration structures and translations, and what invalidations cover.

use super::entry::StreamWorld;
use super::walk::{Format, Granule, Hierarchy, Permissions};
use crate::core::{Torn, Versions};
use std::collections::BTreeMap;

/// Where an L1CD was found: stream, first substream of its span, log2 of the span.
pub(super) type L1CdKey = (u32, u32, u8);

/// Cached configuration structures. STEs are found by StreamID, CDs by StreamID and index; the address keeps the
/// words of different tables apart, since one fetch reads one table.
#[derive(Default)]
pub(super) struct ConfigCache {
    /// By first StreamID of the span.
    pub(super) l1stds: Versions<(u32, u64), u64>,
    pub(super) stes: BTreeMap<(u32, u64), Torn<u64, 8>>,
    pub(super) l1cds: Versions<L1CdKey, u64>,
    pub(super) cds: BTreeMap<(u32, u32, u64), Torn<u64, 8>>,
}

impl ConfigCache {
    /// CFGI_STE and CFGI_STE_RANGE: the STEs of `first..=last`, everything located through them and, unless
    /// `leaf`, the level-1 descriptors on the way.
    pub(super) fn doom_streams(&mut self, first: u32, last: u32, leaf: bool) {
        let covered = |sid: u32| (first..=last).contains(&sid);
        self.stes.iter_mut().filter(|((sid, _), _)| covered(*sid)).for_each(|(_, ste)| ste.doom());
        self.cds.iter_mut().filter(|((sid, ..), _)| covered(*sid)).for_each(|(_, cd)| cd.doom());
        self.l1cds.doom(|&(sid, ..), _| covered(sid));
        if !leaf {
            self.l1stds.doom(|&(start, span), _| start <= last && u64::from(start) + span > u64::from(first));
        }
    }

    /// CFGI_CD.
    pub(super) fn doom_cd(&mut self, sid: u32, index: u32, leaf: bool) {
        self.cds.iter_mut().filter(|((s, i, _), _)| (*s, *i) == (sid, index)).for_each(|(_, cd)| cd.doom());
        if !leaf {
            self.l1cds.doom(|&(s, first, shift), _| s == sid && index >> shift == first >> shift);
        }
    }

    /// CFGI_CD_ALL.
    pub(super) fn doom_cds(&mut self, sid: u32) {
        self.cds.iter_mut().filter(|((s, ..), _)| *s == sid).for_each(|(_, cd)| cd.doom());
        self.l1cds.doom(|&(s, ..), _| s == sid);
    }

    pub(super) fn commit(&mut self) {
        self.l1stds.commit();
        self.l1cds.commit();
        self.stes.retain(|_, ste| !ste.commit());
        self.cds.retain(|_, cd| !cd.commit());
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Which region of which address space a TLB entry covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) world: StreamWorld,
    pub(super) vmid: u16,
    /// log2 of the region.
    pub(super) bits: u8,
    pub(super) base: u64,
}

impl Key {
    pub(super) const fn new(world: StreamWorld, vmid: u16, bits: u8, address: u64) -> Self {
        let base = if bits >= 64 { 0 } else { address >> bits << bits };
        Self { world, vmid, bits, base }
    }

    const fn last(&self) -> u64 {
        self.base | if self.bits >= 64 { u64::MAX } else { (1 << self.bits) - 1 }
    }
}

/// ASID tag: `None` for a global entry, which matches in its ASID set only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) asid: Option<u16>,
    pub(super) private: bool,
}

/// Where a stage-1 leaf leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// To an address that stage 2, if there is one, has still to translate.
    Intermediate(u64),
    /// To the end: a stage-1-only translation, or both stages in one entry.
    Physical(u64, Permissions),
}

/// A writable-clean descriptor: its address and value. A write has to make it dirty first.
pub(super) type Clean = Option<(u64, u64)>;

/// A cached stage-1 (or combined) leaf; its key covers at most what one entry may cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaf1 {
    pub(super) tag: Tag,
    pub(super) granule: Granule,
    pub(super) level: i8,
    pub(super) target: Target,
    pub(super) permissions: Permissions,
    pub(super) clean: Clean,
}

/// A cached pointer to a stage-1 table, for walks that begin in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table1 {
    pub(super) tag: Tag,
    pub(super) format: Format,
    /// Level at which the table is used.
    pub(super) level: i8,
    pub(super) next: u64,
    /// Stage 2 was applied to `next` already.
    pub(super) physical: bool,
    pub(super) hierarchy: Hierarchy,
}

/// A cached stage-2 leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaf2 {
    pub(super) granule: Granule,
    pub(super) level: i8,
    pub(super) address: u64,
    pub(super) permissions: Permissions,
    pub(super) device: bool,
    pub(super) clean: Clean,
}

/// A cached pointer to a stage-2 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table2 {
    pub(super) format: Format,
    pub(super) level: i8,
    pub(super) next: u64,
}

/// One kind of TLB entries, found by address whatever their size.
pub(super) struct Regions<V> {
    entries: Versions<Key, V>,
    /// Sizes that ever occurred, one bit each.
    sizes: u64,
}

impl<V> Default for Regions<V> {
    fn default() -> Self {
        Self { entries: Versions::default(), sizes: 0 }
    }
}

impl<V: PartialEq + Copy> Regions<V> {
    /// `doomed`: found through an entry that an invalidation under way covers.
    pub(super) fn observe(&mut self, key: &Key, value: V, doomed: bool) {
        self.sizes |= 1u64.checked_shl(u32::from(key.bits)).unwrap_or(0);
        if doomed {
            self.entries.observe_doomed(key, value);
        } else {
            self.entries.observe(key, value);
        }
    }

    /// Entries whose region contains an address, and whether they are doomed.
    pub(super) fn at(&self, world: StreamWorld, vmid: u16, address: u64) -> Vec<(Key, V, bool)> {
        let keys = (0..64).filter(|bits| self.sizes >> bits & 1 == 1);
        let keys = keys.map(|bits| Key::new(world, vmid, bits, address));
        keys.flat_map(|key| self.entries.marked(&key).map(move |(value, doomed)| (key, *value, doomed)))
            .collect()
    }

    fn cover(&mut self, at_once: bool, covered: impl FnMut(&Key, &V) -> bool) -> usize {
        if at_once { self.entries.remove(covered) } else { self.entries.doom(covered) }
    }
}

/// What a TLB invalidation covers, beyond stream world and VMID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scope {
    /// Only entries with this ASID, or global ones if there is a range; `None` is any.
    pub(super) asid: Option<u16>,
    /// First and last byte; `None` is the whole address space.
    pub(super) range: Option<(u64, u64)>,
    /// Only last-level entries.
    pub(super) leaf: bool,
    /// Only entries made with this granule.
    pub(super) granule: Option<Granule>,
    /// Only leaves of this level, and tables above it.
    pub(super) level: Option<i8>,
    /// Entries of the private ASID set are spared (broadcasts).
    pub(super) spare_private: bool,
    /// Gone at once, not with the next CMD_SYNC (broadcasts).
    pub(super) at_once: bool,
}

impl Scope {
    pub(super) const ALL: Self = Self {
        asid: None,
        range: None,
        leaf: false,
        granule: None,
        level: None,
        spare_private: false,
        at_once: false,
    };

    fn region(&self, key: &Key, granule: Granule) -> bool {
        self.range.is_none_or(|(first, last)| key.base <= last && key.last() >= first)
            && self.granule.is_none_or(|wanted| wanted == granule)
    }

    fn leaf_level(&self, level: i8) -> bool {
        self.level.is_none_or(|wanted| wanted == level)
    }

    /// A pointer used at `level` came from a descriptor one level up.
    fn table_level(&self, level: i8) -> bool {
        !self.leaf && self.level.is_none_or(|wanted| level <= wanted)
    }

    fn tag(&self, tag: Tag, global: bool) -> bool {
        if self.spare_private && tag.private {
            return false;
        }
        match (self.asid, tag.asid) {
            (None, _) => true,
            (Some(wanted), Some(asid)) => wanted == asid,
            (Some(_), None) => global,
        }
    }
}

/// All TLBs and walk caches.
#[derive(Default)]
pub(super) struct Tlb {
    pub(super) leaves1: Regions<Leaf1>,
    pub(super) tables1: Regions<Table1>,
    pub(super) leaves2: Regions<Leaf2>,
    pub(super) tables2: Regions<Table2>,
    /// VMIDs with an invalidation of both stages under way: a stage-1 entry found through a doomed stage-2 entry
    /// goes with it. Invalidation by IPA alone does not cover stage-1 entries.
    both: Both,
}

/// See [`Tlb`].
#[derive(Default)]
struct Both {
    all: bool,
    vmids: std::collections::BTreeSet<u16>,
}

impl Tlb {
    /// Both stages of a VMID, or of all, are being invalidated.
    pub(super) fn doom_both(&mut self, vmid: Option<u16>) {
        match vmid {
            Some(vmid) => {
                self.both.vmids.insert(vmid);
            }
            None => self.both.all = true,
        }
    }

    pub(super) fn both_doomed(&self, vmid: u16) -> bool {
        self.both.all || self.both.vmids.contains(&vmid)
    }

    /// Stage-1 entries, and those that combine both stages, of the worlds and VMIDs that `space` accepts. Gives
    /// how many were covered.
    pub(super) fn doom1(&mut self, space: impl Fn(&Key) -> bool, scope: Scope) -> usize {
        // Invalidation by ASID alone leaves global entries; by address it takes them.
        let global = scope.range.is_some();
        self.leaves1.cover(scope.at_once, |key, leaf| {
            space(key)
                && scope.region(key, leaf.granule)
                && scope.leaf_level(leaf.level)
                && scope.tag(leaf.tag, global)
        }) + self.tables1.cover(scope.at_once, |key, table| {
            space(key)
                && scope.region(key, table.format.granule)
                && scope.table_level(table.level)
                && scope.tag(table.tag, global)
        })
    }

    /// Stage-2 entries. Entries that combine both stages are not among them.
    pub(super) fn doom2(&mut self, space: impl Fn(&Key) -> bool, scope: Scope) -> usize {
        self.leaves2.cover(scope.at_once, |key, leaf| {
            space(key) && scope.region(key, leaf.granule) && scope.leaf_level(leaf.level)
        }) + self.tables2.cover(scope.at_once, |key, table| {
            space(key) && scope.region(key, table.format.granule) && scope.table_level(table.level)
        })
    }

    pub(super) fn commit(&mut self) {
        self.leaves1.entries.commit();
        self.tables1.entries.commit();
        self.leaves2.entries.commit();
        self.tables2.entries.commit();
        self.both = Both::default();
    }

    /// Leaves, tables of stage 1, then of stage 2.
    pub(super) fn len(&self) -> [usize; 4] {
        [
            self.leaves1.entries.len(),
            self.tables1.entries.len(),
            self.leaves2.entries.len(),
            self.tables2.entries.len(),
        ]
    }
}
