//! What has to be reachable, what may be, and what must not: known from the operations alone.

use portcullis_hal::Access;
use portcullis_iommu::{Abilities, Permissions, Requests};
use portcullis_model::core::{self as model, Outcome};
use std::collections::{BTreeMap, BTreeSet};

/// The bytes that the smallest table spans.
const SMALLEST_TABLE: u64 = 0x20_0000;

/// Kinds of faults: no context entry, not permitted by it, at the PASID entry, in the page tables.
pub(crate) const AT_CONTEXT: u8 = 1;
pub(crate) const AT_GATE: u8 = 2;
pub(crate) const AT_PASID: u8 = 4;
pub(crate) const AT_PAGE: u8 = 8;

/// The kind of a fault code; `None` for those that a right driver never causes.
pub(crate) const fn kind_of(code: u8) -> Option<u8> {
    match code {
        0x39 | 0x41 => Some(AT_CONTEXT),
        0x44 | 0x45 | 0x46 | 0x48 => Some(AT_GATE),
        0x51 | 0x59 => Some(AT_PASID),
        0x71 | 0x79 | 0x80 | 0x83 | 0x85 | 0x86 => Some(AT_PAGE),
        _ => None,
    }
}

/// What a request may end with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allowed {
    pub(crate) outputs: BTreeSet<u64>,
    pub(crate) faults: u8,
    /// It may end without a record.
    pub(crate) silent: bool,
}

impl Allowed {
    pub(crate) fn faults(faults: u8) -> Self {
        Self { faults, ..Self::default() }
    }

    pub(crate) fn or(mut self, other: Self) -> Self {
        self.outputs.extend(other.outputs);
        self.faults |= other.faults;
        self.silent |= other.silent;
        self
    }

    pub(crate) fn admits(&self, outcome: &Outcome) -> bool {
        match *outcome {
            Outcome::Done(address) => self.outputs.contains(&address),
            Outcome::Fault(code) => kind_of(code).is_some_and(|kind| self.faults & kind != 0),
            Outcome::Silent(code) => self.silent && kind_of(code) == Some(AT_PASID),
            // A translation request meets what would be a fault in the page tables.
            Outcome::NotGranted => self.faults & AT_PAGE != 0,
            _ => false,
        }
    }
}

/// A mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) iova: u64,
    pub(crate) len: u64,
    pub(crate) phys: u64,
    pub(crate) access: Access,
}

impl Piece {
    pub(crate) const fn last(&self) -> u64 {
        self.iova + (self.len - 1)
    }

    pub(crate) const fn touches(&self, first: u64, last: u64) -> bool {
        self.iova <= last && first <= self.last()
    }

    /// Whether all of a block is in it.
    pub(crate) const fn covers(&self, first: u64, len: u64) -> bool {
        match first.checked_add(len - 1) {
            Some(last) => self.iova <= first && last <= self.last(),
            None => false,
        }
    }

    /// The part in a range, if there is one.
    fn within(&self, first: u64, last: u64) -> Option<Self> {
        if !self.touches(first, last) {
            return None;
        }
        let (start, end) = (self.iova.max(first), self.last().min(last));
        Some(Self { iova: start, len: end - start + 1, phys: self.phys + (start - self.iova), ..*self })
    }

    /// Where an access ends up, if the mapping is about it and allows it.
    fn output(&self, address: u64, access: model::Access) -> Option<u64> {
        let right = match access {
            model::Access::Write => Access::WRITE,
            _ => Access::READ,
        };
        let hit = self.touches(address, address) && self.access.contains(right);
        hit.then(|| self.phys + (address - self.iova))
    }
}

/// What may yet be used although it was unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// The domain's gather is synced.
    Gather,
    /// Hardware forgets the domain as a whole: a sync failed.
    Forgotten,
}

/// What a domain's addresses lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Nothing,
    Everything,
    Mappings,
}

/// A domain, as the oracle knows it.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) content: Content,
    /// Whether translations are tagged by the PASID besides the domain id.
    pub(crate) tagged_by_pasid: bool,
    /// The last address that can be mapped, and the width of physical addresses.
    pub(crate) last: u64,
    pub(crate) width: u32,
    pub(crate) live: Vec<Piece>,
    ghosts: Vec<(Until, Piece)>,
    /// Mapped, but hardware that caches absent entries did not confirm it.
    doubtful: Vec<Piece>,
    pub(crate) abilities: Abilities,
    /// Where devices wrote since the marks were collected.
    pub(crate) written: BTreeSet<u64>,
    /// Leaves whose marks were collected, and of which hardware may yet think that they are marked.
    harvested: Vec<(Until, (u64, u64))>,
    /// Devices attached, by index, with the PASID; 0 without one.
    pub(crate) users: BTreeSet<(usize, u32)>,
    /// Hardware may use the domain for ever.
    pub(crate) quarantined: bool,
}

impl Space {
    pub(crate) fn new(content: Content, tagged_by_pasid: bool, last: u64, width: u32) -> Self {
        Self {
            content,
            tagged_by_pasid,
            last,
            width,
            live: Vec::new(),
            ghosts: Vec::new(),
            doubtful: Vec::new(),
            abilities: Abilities::empty(),
            written: BTreeSet::new(),
            harvested: Vec::new(),
            users: BTreeSet::new(),
            quarantined: false,
        }
    }

    pub(crate) fn allowed(&self, address: u64, access: model::Access) -> Allowed {
        match self.content {
            Content::Nothing => return Allowed::faults(AT_CONTEXT),
            Content::Everything if address >> self.width != 0 => return Allowed::faults(AT_PAGE),
            Content::Everything => return Allowed { outputs: [address].into(), ..Allowed::default() },
            Content::Mappings => {}
        }
        let covers = |piece: &&Piece| piece.touches(address, address);
        let now = self.live.iter().find_map(|piece| piece.output(address, access));
        let ghosts: Vec<_> = self.ghosts.iter().map(|(_, piece)| piece).filter(covers).collect();
        let sure = now.is_some() && ghosts.is_empty() && !self.doubtful.iter().any(|piece| covers(&piece));
        let old = ghosts.iter().filter_map(|piece| piece.output(address, access));
        let faults = if sure { 0 } else { AT_PAGE };
        Allowed { outputs: old.chain(now).collect(), faults, silent: false }
    }

    pub(crate) fn is_mapped(&self, address: u64) -> bool {
        self.content == Content::Everything || self.live.iter().any(|piece| piece.touches(address, address))
    }

    pub(crate) fn overlaps(&self, piece: &Piece) -> bool {
        self.live.iter().any(|other| other.touches(piece.iova, piece.last()))
    }

    /// How many bytes are mapped in a range.
    pub(crate) fn mapped_bytes(&self, first: u64, last: u64) -> u64 {
        self.live.iter().filter_map(|piece| piece.within(first, last)).map(|piece| piece.len).sum()
    }

    pub(crate) fn map(&mut self, pieces: &[Piece], confirmed: bool) {
        self.live.extend(pieces);
        if !confirmed {
            self.doubtful.extend(pieces);
        }
    }

    /// A device wrote to `phys`.
    pub(crate) fn note_write(&mut self, address: u64, phys: u64) {
        let allowed = self.allowed(address, model::Access::Write);
        let sure = allowed.faults == 0 && allowed.outputs.iter().eq([&phys]);
        let hidden = self.harvested.iter().any(|(_, (first, last))| (*first..=*last).contains(&address));
        if self.abilities.contains(Abilities::TRACKING) && sure && !hidden {
            self.written.insert(address);
        }
    }

    /// The marks of a leaf were collected; in a gather that failed to be synced, or in the domain's own.
    pub(crate) fn harvested(&mut self, leaf: (u64, u64), failed: bool) {
        self.harvested.push((if failed { Until::Forgotten } else { Until::Gather }, leaf));
    }

    /// Hardware knows that a leaf is not marked.
    pub(crate) fn settled(&mut self, leaf: (u64, u64)) {
        self.harvested.retain(|(_, other)| *other != leaf);
    }

    /// Takes out what is mapped in a range. It stays possible until its sync.
    pub(crate) fn unmap(&mut self, first: u64, last: u64) {
        self.written.retain(|address| !(first..=last).contains(address));
        let mut kept = Vec::new();
        for piece in std::mem::take(&mut self.live) {
            let below = first.checked_sub(1).and_then(|end| piece.within(0, end));
            let above = last.checked_add(1).and_then(|start| piece.within(start, u64::MAX));
            kept.extend(below.into_iter().chain(above));
            self.ghosts.extend(piece.within(first, last).map(|piece| (Until::Gather, piece)));
        }
        self.live = kept;
        if last - first >= SMALLEST_TABLE - 1 {
            // Tables may have been cut off, and what is mapped here before the sync may not be found yet.
            let hole = Piece { iova: first, len: last - first + 1, phys: 0, access: Access::empty() };
            self.ghosts.push((Until::Gather, hole));
        }
    }

    /// A gather that holds the unmaps since `mark` was synced, or failed to be.
    pub(crate) fn synced(&mut self, mark: usize, confirmed: bool) {
        let since: Vec<_> = self.ghosts.drain(mark.min(self.ghosts.len())..).collect();
        if !confirmed {
            self.ghosts.extend(since.into_iter().map(|(_, piece)| (Until::Forgotten, piece)));
        }
    }

    /// How many unmaps are not confirmed, as a mark for [`synced`](Self::synced).
    pub(crate) fn mark(&self) -> usize {
        self.ghosts.len()
    }

    /// The domain's own gather was synced, or failed to be.
    pub(crate) fn gather_synced(&mut self, confirmed: bool) {
        if confirmed {
            self.ghosts.retain(|(until, _)| *until == Until::Forgotten);
            self.harvested.retain(|(until, _)| *until == Until::Forgotten);
        } else {
            self.ghosts.iter_mut().for_each(|(until, _)| *until = Until::Forgotten);
            self.harvested.iter_mut().for_each(|(until, _)| *until = Until::Forgotten);
        }
    }

    /// A PASID of a device has left the domain for good. With the last one hardware forgot all that it knew of the
    /// domain.
    pub(crate) fn leave(&mut self, device: usize, pasid: u32) {
        self.users.remove(&(device, pasid));
        if self.users.is_empty() && !self.quarantined {
            self.ghosts.clear();
            self.harvested.clear();
            self.doubtful.clear();
        }
    }

    /// How many ids of the unit the domain takes at most: one, or one for each user if the PASID is part of the tag.
    pub(crate) fn ids(&self) -> usize {
        match self.content {
            Content::Nothing => 0,
            _ if self.tagged_by_pasid => self.users.len(),
            _ => self.users.len().min(1),
        }
    }
}

/// What a device is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Attached {
    /// Domains by PASID; 0 without one.
    To(BTreeMap<u32, usize>),
    /// Hardware did not confirm a change between these domains.
    Unknown(Vec<usize>),
}

impl Attached {
    pub(crate) const NOTHING: Self = Self::To(BTreeMap::new());

    pub(crate) fn at(&self, pasid: u32) -> Option<usize> {
        match self {
            Self::To(domains) => domains.get(&pasid).copied(),
            Self::Unknown(_) => None,
        }
    }

    /// The greatest PASID in use.
    pub(crate) fn last(&self) -> Option<u32> {
        match self {
            Self::To(domains) => domains.keys().copied().next_back().filter(|&pasid| pasid != 0),
            Self::Unknown(_) => None,
        }
    }

    /// All domains that the device may reach with some PASID.
    pub(crate) fn all(&self) -> Vec<usize> {
        match self {
            Self::To(domains) => domains.values().copied().collect(),
            Self::Unknown(several) => several.clone(),
        }
    }
}

/// What a request of a device with these permissions and attachments may end with.
pub(crate) fn allowed(
    spaces: &[Space],
    attached: &Attached,
    cut: &BTreeSet<u32>,
    permissions: &Permissions,
    request: &model::Request,
) -> Allowed {
    let of = |space: usize| spaces[space].allowed(request.address, request.access);
    let domains = match attached {
        Attached::To(domains) => domains,
        Attached::Unknown(several) => {
            let faults = AT_CONTEXT | AT_GATE | AT_PASID | AT_PAGE;
            let anything = Allowed { faults, silent: true, ..Allowed::default() };
            return several.iter().fold(anything, |all, &space| all.or(of(space)));
        }
    };
    if domains.is_empty() && cut.is_empty() {
        return Allowed::faults(AT_CONTEXT);
    }
    let asks = permissions.requests.contains(Requests::TRANSLATION);
    match request.pasid {
        _ if request.kind != model::AddressKind::Untranslated && !asks => Allowed::faults(AT_GATE),
        // Requests without PASID have an entry beside the others, which leads nowhere.
        None => domains.get(&0).map_or(Allowed::faults(AT_PAGE), |&space| of(space)),
        Some(0) => Allowed::faults(AT_GATE),
        Some(_) if permissions.pasid_bits == 0 => Allowed::faults(AT_GATE),
        Some(pasid) if cut.contains(&pasid) => Allowed { silent: true, ..Allowed::default() },
        // Beyond the directory or the tables, or only not attached.
        Some(pasid) => domains.get(&pasid).map_or(Allowed::faults(AT_GATE | AT_PASID), |&space| of(space)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: Piece =
        Piece { iova: 0x4000, len: 0x3000, phys: 0x10_0000, access: Access::READ.union(Access::WRITE) };

    fn space() -> Space {
        let mut space = Space::new(Content::Mappings, true, 0xffff_ffff, 48);
        space.map(&[PIECE], true);
        space
    }

    #[test]
    fn what_is_mapped_is_required_and_what_is_unmapped_forbidden_after_its_sync() {
        let mut space = space();
        let read = |space: &Space, at| space.allowed(at, model::Access::Read);
        assert_eq!(read(&space, 0x5008), Allowed { outputs: [0x10_1008].into(), faults: 0, silent: false });
        space.unmap(0x5000, 0x5fff);
        assert_eq!(
            read(&space, 0x5008),
            Allowed { outputs: [0x10_1008].into(), faults: AT_PAGE, silent: false }
        );
        assert_eq!(read(&space, 0x6008), Allowed { outputs: [0x10_2008].into(), faults: 0, silent: false });
        space.gather_synced(true);
        assert_eq!(read(&space, 0x5008), Allowed::faults(AT_PAGE));
        assert_eq!(space.mapped_bytes(0, u64::MAX), 0x2000);
    }

    #[test]
    fn a_failed_sync_leaves_what_was_unmapped_possible_until_the_domain_is_forgotten() {
        let mut space = space();
        space.users.insert((1, 5));
        space.unmap(0x4000, 0x4fff);
        space.gather_synced(false);
        space.gather_synced(true);
        let possible = space.allowed(0x4000, model::Access::Write);
        assert_eq!(possible, Allowed { outputs: [0x10_0000].into(), faults: AT_PAGE, silent: false });
        space.leave(1, 5);
        assert_eq!(space.allowed(0x4000, model::Access::Write), Allowed::faults(AT_PAGE));
    }
}
