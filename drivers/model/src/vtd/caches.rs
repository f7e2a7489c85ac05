//! Translation caches: the IOTLB and the paging-structure caches, and what each invalidation covers of them
//! (specification chapter 6).
//!
//! | cache | tags |
//! |---|---|
//! | IOTLB, second stage | domain id, address |
//! | IOTLB, first stage and nested | domain id, PASID, address |
//! | paging structures, second stage (also below a nested walk) | domain id, address |
//! | paging structures, first stage; the first stage of a nested walk | domain id, PASID, address |
//!
//! Nothing is tagged by requester: two devices that share a domain id (and a PASID) share translations.

use std::collections::BTreeMap;

use super::entry::{PasidEntry, Pgtt};
use super::fetches::{Fetches, Look};
use crate::core::Versions;

/// Tags of a cached translation. `pasid` is 0 for second-stage entries, which are not tagged by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TlbKey {
    pub(super) domain: u16,
    pub(super) pgtt: Pgtt,
    pub(super) pasid: u32,
    /// log2 of the size of the page, 12 or more.
    pub(super) shift: u32,
    /// First byte of the page.
    pub(super) page: u64,
}

/// What may be done through a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rights {
    /// R of the second stage; the first stage has none.
    pub(super) read: bool,
    /// W of the second stage.
    pub(super) second_write: bool,
    /// R/W of the first stage.
    pub(super) write: bool,
    /// U/S of the first stage.
    pub(super) user: bool,
    /// No XD in the first stage.
    pub(super) execute: bool,
}

impl Rights {
    pub(super) const ALL: Self =
        Self { read: true, second_write: true, write: true, user: true, execute: true };

    pub(super) const fn and(self, other: Self) -> Self {
        Self {
            read: self.read && other.read,
            second_write: self.second_write && other.second_write,
            write: self.write && other.write,
            user: self.user && other.user,
            execute: self.execute && other.execute,
        }
    }
}

/// A translation as cached: of the whole page of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TlbEntry {
    Page {
        output: u64,
        rights: Rights,
        /// The dirty flags need no update for a write.
        dirty: bool,
    },
    /// Caching mode: the walk ended with this second-stage fault.
    Fault(u8),
}

/// Which tables a cached table pointer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    First,
    /// The first stage of a nested walk: its pointers are guest addresses.
    Guest,
    Second,
}

/// Tags of a cached table pointer: that which an entry of `level` gave for the region at `base`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WalkKey {
    pub(super) domain: u16,
    pub(super) stage: Stage,
    pub(super) pasid: u32,
    /// Level of the entry that was read; its table is of the level below.
    pub(super) level: u32,
    pub(super) base: u64,
}

/// A cached table pointer and the rights on the way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WalkEntry {
    pub(super) table: u64,
    pub(super) rights: Rights,
}

/// log2 of the bytes that one entry of `level` spans.
pub(super) const fn span(level: u32) -> u32 {
    12 + 9 * (level - 1)
}

/// The first byte of the aligned region of `1 << shift` bytes around an address.
pub(super) const fn base(address: u64, shift: u32) -> u64 {
    if shift >= 64 { 0 } else { address >> shift << shift }
}

/// A range of pages that an invalidation names: aligned, a power of two, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Range {
    pub(super) const ALL: Self = Self { first: 0, last: u64::MAX };

    /// `1 << mask` pages around an address.
    pub(super) const fn pages(address: u64, mask: u64) -> Self {
        if mask >= 52 {
            return Self::ALL;
        }
        let size = 4096u64 << mask;
        let first = address & !(size - 1);
        Self { first, last: first | (size - 1) }
    }

    const fn touches(&self, base: u64, shift: u32) -> bool {
        let last = if shift >= 64 { u64::MAX } else { base | ((1 << shift) - 1) };
        base <= self.last && self.first <= last
    }
}

/// What an IOTLB invalidation names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TlbScope {
    /// Everything.
    Global,
    /// All that is tagged with a domain id.
    Domain(u16),
    /// Pages of a domain (`leaf_only` is the invalidation hint).
    Pages { domain: u16, range: Range, leaf_only: bool },
    /// First-stage and nested translations of a PASID.
    Pasid { domain: u16, pasid: u32 },
    /// Pages of first-stage and nested translations of a PASID.
    PasidPages { domain: u16, pasid: u32, range: Range, leaf_only: bool },
}

impl TlbScope {
    fn covers_translation(&self, key: &TlbKey) -> bool {
        let first = matches!(key.pgtt, Pgtt::FirstStage | Pgtt::Nested);
        match *self {
            Self::Global => true,
            Self::Domain(domain) => key.domain == domain,
            // The address is a guest address: first-stage and nested translations of the domain all go.
            Self::Pages { domain, range, .. } => {
                key.domain == domain && (first || range.touches(key.page, key.shift))
            }
            Self::Pasid { domain, pasid } => key.domain == domain && key.pasid == pasid && first,
            Self::PasidPages { domain, pasid, range, .. } => {
                key.domain == domain && key.pasid == pasid && first && range.touches(key.page, key.shift)
            }
        }
    }

    fn covers_table(&self, key: &WalkKey) -> bool {
        let first = key.stage != Stage::Second;
        let within = |range: &Range| range.touches(key.base, span(key.level));
        match self {
            Self::Global => true,
            Self::Domain(domain) => key.domain == *domain,
            Self::Pages { leaf_only: true, .. } | Self::PasidPages { leaf_only: true, .. } => false,
            Self::Pages { domain, range, .. } => key.domain == *domain && (first || within(range)),
            Self::Pasid { domain, pasid } => key.domain == *domain && key.pasid == *pasid && first,
            Self::PasidPages { domain, pasid, range, .. } => {
                key.domain == *domain && key.pasid == *pasid && first && within(range)
            }
        }
    }
}

/// What a PASID-cache invalidation names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PasidScope {
    Global,
    Domain(u16),
    Pasid { domain: u16, pasid: u32 },
}

impl PasidScope {
    /// An entry is tagged by the domain id that it holds. One that is not present (caching mode) has none that
    /// hardware could rely on: it goes with any invalidation of its PASID, and with those of domain 0, the tag of
    /// such entries.
    fn covers(&self, pasid: u32, look: &Look<4>) -> bool {
        let held = match look {
            Look::Entry { quanta, .. } => PasidEntry::raw_domain(quanta),
            Look::Flaw(_) => 0,
        };
        match *self {
            Self::Global => true,
            Self::Domain(domain) => held == domain || !look.present() && domain == 0,
            Self::Pasid { domain, pasid: named } => named == pasid && (held == domain || !look.present()),
        }
    }
}

/// What a context-cache invalidation names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ContextScope {
    Global,
    /// Scalable-mode context entries have no domain id, so nothing is promised.
    Domain,
    /// One requester, or several functions of a device: bits of `mask` in the function number are ignored.
    Device {
        requester: u16,
        mask: u16,
    },
}

impl ContextScope {
    fn covers(&self, sid: u16) -> bool {
        match *self {
            Self::Global => true,
            Self::Domain => false,
            Self::Device { requester, mask } => (sid ^ requester) & !mask == 0,
        }
    }
}

/// All that the unit may hold. An invalidation dooms entries when it is executed, and they go when the hardware
/// is done with it: at the latest when a wait behind it completes, or when a later invalidation is executed that
/// the architecture orders behind it.
#[derive(Clone, Debug, Default)]
pub(super) struct Caches {
    /// By requester.
    pub(super) contexts: BTreeMap<u16, Fetches<2>>,
    /// By requester and PASID.
    pub(super) pasids: BTreeMap<(u16, u32), Fetches<4>>,
    pub(super) tlb: Versions<TlbKey, TlbEntry>,
    pub(super) walks: Versions<WalkKey, WalkEntry>,
}

impl Caches {
    pub(super) fn invalidate_contexts(&mut self, scope: ContextScope) -> usize {
        self.contexts.iter_mut().filter(|(sid, _)| scope.covers(**sid)).map(|(_, f)| f.doom(|_| true)).sum()
    }

    pub(super) fn invalidate_pasids(&mut self, scope: PasidScope) -> usize {
        // A PASID-cache invalidation is executed only after the context-cache invalidations ahead of it.
        self.commit_contexts();
        let doom = |(&(_, pasid), fetches): (&(u16, u32), &mut Fetches<4>)| {
            fetches.doom(|look| scope.covers(pasid, look))
        };
        self.pasids.iter_mut().map(doom).sum()
    }

    pub(super) fn invalidate_translations(&mut self, scope: TlbScope) -> usize {
        // Only after the context- and PASID-cache invalidations ahead of it.
        self.commit_entries();
        let tables = self.walks.doom(|key, _| scope.covers_table(key));
        // Table pointers go at once: a walk that still used one could otherwise refill the IOTLB behind it.
        self.walks.commit();
        tables + self.tlb.doom(|key, _| scope.covers_translation(key))
    }

    fn commit_contexts(&mut self) {
        self.contexts.retain(|_, fetches| !fetches.commit());
    }

    pub(super) fn commit_entries(&mut self) {
        self.commit_contexts();
        self.pasids.retain(|_, fetches| !fetches.commit());
    }

    /// All invalidations executed so far are complete.
    pub(super) fn commit(&mut self) {
        self.commit_entries();
        self.walks.commit();
        self.tlb.commit();
    }

    /// As setting the root-table pointer does with ESRTPS.
    pub(super) fn clear(&mut self) {
        self.contexts.clear();
        self.pasids.clear();
        self.tlb.clear();
        self.walks.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(pgtt: Pgtt, pasid: u32, page: u64) -> TlbKey {
        TlbKey { domain: 5, pgtt, pasid, shift: 12, page }
    }

    #[test]
    fn page_selective_scopes_cover_what_the_architecture_says() {
        let range = Range::pages(0x5000, 1);
        assert_eq!((range.first, range.last), (0x4000, 0x5fff));
        let pages = TlbScope::Pages { domain: 5, range, leaf_only: false };
        assert!(pages.covers_translation(&key(Pgtt::SecondStage, 0, 0x4000)));
        assert!(!pages.covers_translation(&key(Pgtt::SecondStage, 0, 0x6000)));
        // First-stage and nested translations of the domain go whatever their address.
        assert!(pages.covers_translation(&key(Pgtt::FirstStage, 9, 0x6000)));
        assert!(pages.covers_translation(&key(Pgtt::Nested, 9, 0x6000)));
        let pasid = TlbScope::PasidPages { domain: 5, pasid: 9, range, leaf_only: false };
        assert!(pasid.covers_translation(&key(Pgtt::FirstStage, 9, 0x5000)));
        assert!(!pasid.covers_translation(&key(Pgtt::FirstStage, 9, 0x6000)));
        assert!(!pasid.covers_translation(&key(Pgtt::FirstStage, 8, 0x5000)));
        assert!(!pasid.covers_translation(&key(Pgtt::SecondStage, 9, 0x5000)));
    }

    #[test]
    fn a_leaf_only_hint_keeps_table_pointers() {
        let walk = WalkKey { domain: 5, stage: Stage::Second, pasid: 0, level: 2, base: 0 };
        let scope = |leaf_only| TlbScope::Pages { domain: 5, range: Range::pages(0, 0), leaf_only };
        assert!(!scope(true).covers_table(&walk));
        assert!(scope(false).covers_table(&walk));
        assert!(!scope(false).covers_table(&WalkKey { base: 1 << 21, ..walk }));
        assert!(TlbScope::Domain(5).covers_table(&walk));
    }

    #[test]
    fn function_masks_cover_neighbouring_functions() {
        let scope = ContextScope::Device { requester: 0x108, mask: 0b100 };
        assert!(scope.covers(0x108) && scope.covers(0x10c));
        assert!(!scope.covers(0x109) && !scope.covers(0x208));
    }
}
