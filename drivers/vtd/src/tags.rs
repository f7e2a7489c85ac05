//! Domain ids, and which translations they tag on one unit.

use crate::invalidate::{Tag, TagKind};
use alloc::vec::Vec;
use portcullis_hal::{DomainId, OutOfMemory, list};
use portcullis_iommu::IdPool;

/// A tag in use, by one domain; by two while one replaces the other at all places where it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Use {
    did: DomainId,
    pasid: u32,
    kind: TagKind,
    domains: u32,
}

/// The tags in use on a unit.
///
/// Second-stage translations are tagged by the domain id alone: such an id belongs to one domain. First-stage and
/// pass-through translations are tagged by the PASID too: several domains share an id, but no two the same PASID.
#[derive(Debug)]
pub(crate) struct Tags {
    ids: IdPool,
    /// In the order of ids and PASIDs.
    uses: Vec<Use>,
}

impl Tags {
    pub(crate) fn new(ids: IdPool) -> Self {
        Self { ids, uses: Vec::new() }
    }

    /// Makes room for one more tag.
    pub(crate) fn reserve(&mut self) -> Result<(), OutOfMemory> {
        self.uses.try_reserve(1).map_err(|_| OutOfMemory)
    }

    fn find(&self, did: DomainId, pasid: u32) -> Result<usize, usize> {
        self.uses.binary_search_by_key(&(did.get(), pasid), |other| (other.did.get(), other.pasid))
    }

    /// Whether a tag is free for another domain.
    pub(crate) fn is_free(&self, tag: Tag) -> bool {
        let tag = tag.of_translations();
        self.find(tag.did, tag.pasid).is_err()
    }

    /// Puts a tag of this kind in use that nobody else uses: with an id of its own, or, when all ids are out, with one
    /// that others use at other PASIDs. There is room by [`reserve`](Self::reserve).
    pub(crate) fn take(&mut self, kind: TagKind, pasid: u32) -> Option<Tag> {
        let tag = |did| Tag { kind, did, pasid };
        let tag = match self.ids.take() {
            Some(id) => tag(DomainId::new(id as u16)),
            None => {
                let shareable = |other: &&Use| kind.is_tagged_by_pasid() && other.kind.is_tagged_by_pasid();
                let mut candidates = self.uses.iter().filter(shareable).map(|other| tag(other.did));
                candidates.find(|&tag| self.is_free(tag))?
            }
        };
        self.add(tag);
        Some(tag)
    }

    /// Puts a tag in use by one more domain. There is room by [`reserve`](Self::reserve).
    pub(crate) fn add(&mut self, tag: Tag) {
        let Tag { kind, did, pasid } = tag.of_translations();
        match self.find(did, pasid) {
            Ok(index) => {
                if let Some(found) = self.uses.get_mut(index) {
                    found.domains = found.domains.saturating_add(1);
                }
            }
            Err(index) => {
                let new = Use { did, pasid, kind, domains: 1 };
                // A use that is not noted never frees its id.
                let _ = list::insert_reserved(&mut self.uses, index, new);
            }
        }
    }

    /// A domain does not use the tag any more, and the unit has forgotten all that is tagged so. With its last tag an id
    /// is free.
    pub(crate) fn remove(&mut self, tag: Tag) {
        let Tag { did, pasid, .. } = tag.of_translations();
        let Ok(index) = self.find(did, pasid) else { return };
        let Some(found) = self.uses.get_mut(index) else { return };
        found.domains = found.domains.saturating_sub(1);
        if found.domains > 0 {
            return;
        }
        list::remove(&mut self.uses, index);
        let neighbours = [index.checked_sub(1), Some(index)];
        let is_of = |at: Option<usize>| at.and_then(|at| self.uses.get(at)).is_some_and(|one| one.did == did);
        if !neighbours.into_iter().any(is_of) {
            self.ids.give_back(u32::from(did.get()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(kind: TagKind, did: u16, pasid: u32) -> Tag {
        Tag { kind, did: DomainId::new(did), pasid }
    }

    fn tags(last: u32) -> Tags {
        Tags::new(IdPool::new(1, last).unwrap())
    }

    fn take(tags: &mut Tags, kind: TagKind, pasid: u32) -> Option<u16> {
        tags.reserve().unwrap();
        tags.take(kind, pasid).map(|tag| tag.did.get())
    }

    #[test]
    fn ids_are_shared_when_none_is_left_and_never_at_the_same_pasid() {
        let mut tags = tags(3);
        assert_eq!(take(&mut tags, TagKind::SecondStage, 5), Some(1));
        assert_eq!(take(&mut tags, TagKind::FirstStage, 5), Some(2));
        assert_eq!(take(&mut tags, TagKind::PassThrough, 6), Some(3));
        assert_eq!(take(&mut tags, TagKind::SecondStage, 7), None);
        assert_eq!(take(&mut tags, TagKind::FirstStage, 6), Some(2));
        assert_eq!(take(&mut tags, TagKind::FirstStage, 6), None);
        assert_eq!(take(&mut tags, TagKind::PassThrough, 5), Some(3));
        assert_eq!(take(&mut tags, TagKind::FirstStage, 5), None);
    }

    #[test]
    fn an_id_is_free_when_its_last_tag_is() {
        let mut tags = tags(1);
        assert_eq!(take(&mut tags, TagKind::FirstStage, 0), Some(1));
        assert_eq!(take(&mut tags, TagKind::FirstStage, 9), Some(1));
        // Another domain takes the place of the first.
        tags.add(tag(TagKind::FirstStage, 1, 0));
        tags.remove(tag(TagKind::FirstStage, 1, 0));
        tags.remove(tag(TagKind::FirstStage, 1, 9));
        assert_eq!(take(&mut tags, TagKind::SecondStage, 0), None);
        tags.remove(tag(TagKind::FirstStage, 1, 0));
        assert_eq!(take(&mut tags, TagKind::SecondStage, 3), Some(1));
        // By whatever PASID it is used, there is one second-stage tag with an id.
        assert!(!tags.is_free(tag(TagKind::SecondStage, 1, 8)));
        tags.remove(tag(TagKind::SecondStage, 1, 8));
        assert_eq!(take(&mut tags, TagKind::FirstStage, 0), Some(1));
    }
}
