//! What belongs to an endpoint: its PASID tables, and what its PASIDs are attached to.

use crate::entry::{PRESENT, SILENT};
use crate::error::TableError;
use crate::features::Features;
use crate::invalidate::{RID_PASID, Tag};
use crate::spec::entries::{Context0, Directory};
use crate::tables::{Table, quantum, words};
use alloc::vec::Vec;
use portcullis_hal::{Arc, FrameOrder, Hal, OutOfMemory, list};
use portcullis_iommu::{Domain, Permissions, Requests};

/// A PASID entry.
pub(crate) type PasidEntry = [u128; 4];

/// The bits of a PASID that choose the entry of a PASID table.
const TABLE_BITS: u8 = 6;

/// The bits of a PASID that the smallest directory takes, besides: it has 128 entries.
const SMALLEST_DIRECTORY: u8 = 7;

/// The size of a PASID directory as context entries tell it: 2^(PDTS + 7) entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pdts(u8);

impl Pdts {
    /// The smallest directory for PASIDs of this width.
    pub(crate) fn for_bits(pasid_bits: u8) -> Self {
        Self(pasid_bits.min(20).saturating_sub(TABLE_BITS + SMALLEST_DIRECTORY))
    }

    /// The frames that it fills, of 512 entries each.
    fn order(self) -> FrameOrder {
        FrameOrder::new(self.0.saturating_sub(2)).unwrap_or(FrameOrder::SINGLE)
    }

    /// The number of quanta, of two entries each.
    fn quanta(self) -> usize {
        64 << self.0
    }
}

/// A PASID directory and the PASID tables that it leads to.
///
/// A table stays once it is there. It is complete in memory before the directory leads to it.
pub(crate) struct PasidTables<H: Hal> {
    directory: Table<H>,
    pdts: Pdts,
    /// By the directory's entry, in order.
    leaves: Vec<(u16, Table<H>)>,
}

/// The directory's entry for a PASID, and the number of its entry in the table there.
fn place(pasid: u32) -> (u16, usize) {
    ((pasid >> TABLE_BITS) as u16, (pasid & 63) as usize)
}

impl<H: Hal> PasidTables<H> {
    /// A directory with a table for PASIDs 0 to 63.
    pub(crate) fn new(hal: &H, features: &Features, pdts: Pdts) -> Result<Self, TableError> {
        let directory = Table::new(hal, features, pdts.order())?;
        let mut this = Self { directory, pdts, leaves: Vec::new() };
        this.add_leaf(hal, features, RID_PASID)?;
        Ok(this)
    }

    /// Adds the table for a PASID, if there is none. A unit that caches absent entries has to be told.
    pub(crate) fn add_leaf(&mut self, hal: &H, features: &Features, pasid: u32) -> Result<(), TableError> {
        let (slot, _) = place(pasid);
        let Err(index) = self.leaves.binary_search_by_key(&slot, |&(slot, _)| slot) else {
            return Ok(());
        };
        self.leaves.try_reserve(1).map_err(|_| OutOfMemory)?;
        let leaf = Table::new(hal, features, FrameOrder::SINGLE)?;
        let entry = Directory::new().with_present(true).with_smptblptr(leaf.publish());
        list::insert_reserved(&mut self.leaves, index, (slot, leaf)).map_err(|_| OutOfMemory)?;
        let at = usize::from(slot / 2);
        let [even, odd] = words(self.directory.load(at));
        let pair = if slot & 1 == 0 { [entry.into_bits(), odd] } else { [even, entry.into_bits()] };
        self.directory.store(at, quantum(pair[0], pair[1]));
        Ok(())
    }

    /// Exchanges the directory for a larger one that leads to the same tables, and returns the old one, which hardware
    /// may use until it was told; `None` if the directory is large enough.
    pub(crate) fn grow(
        &mut self,
        hal: &H,
        features: &Features,
        pdts: Pdts,
    ) -> Result<Option<Table<H>>, TableError> {
        if pdts <= self.pdts {
            return Ok(None);
        }
        let larger = Table::new(hal, features, pdts.order())?;
        for at in 0..self.pdts.quanta() {
            match self.directory.load(at) {
                0 => {}
                pair => larger.store(at, pair),
            }
        }
        self.pdts = pdts;
        Ok(Some(core::mem::replace(&mut self.directory, larger)))
    }

    fn leaf(&self, pasid: u32) -> Option<(&Table<H>, usize)> {
        let (slot, number) = place(pasid);
        let index = self.leaves.binary_search_by_key(&slot, |&(slot, _)| slot).ok()?;
        self.leaves.get(index).map(|(_, leaf)| (leaf, number))
    }

    /// The directory's entry for a PASID, raw; zero beyond its end.
    pub(crate) fn directory_entry(&self, pasid: u32) -> u64 {
        let (slot, _) = place(pasid);
        let [even, odd] = words(self.directory.load(usize::from(slot / 2)));
        if slot & 1 == 0 { even } else { odd }
    }

    /// The entry of a PASID; zeros if it has no table.
    pub(crate) fn entry(&self, pasid: u32) -> PasidEntry {
        self.leaf(pasid).map_or([0; 4], |(leaf, number)| leaf.entry(number))
    }

    /// Writes a quantum of a PASID's entry, if it has a table.
    pub(crate) fn store(&self, pasid: u32, quantum: usize, value: u128) {
        if let Some((leaf, number)) = self.leaf(pasid) {
            leaf.store(number * 4 + quantum, value);
        }
    }

    /// Whether the entry of a PASID is not present and keeps its faults from being recorded.
    fn is_silent(&self, pasid: u32) -> bool {
        let [first, ..] = self.entry(pasid);
        first & (PRESENT | SILENT) == SILENT
    }

    /// The PASIDs from `first` on whose entries keep faults from being recorded.
    fn silent_from(&self, first: u32) -> impl Iterator<Item = u32> + '_ {
        let tables = self.leaves.iter().map(|&(slot, _)| u32::from(slot) << TABLE_BITS);
        let pasids = tables.flat_map(|base| base..base + (1 << TABLE_BITS));
        pasids.filter(move |&pasid| pasid >= first && self.is_silent(pasid))
    }

    /// Clears the entries from `first` on that keep faults from being recorded.
    pub(crate) fn clear_silent_from(&self, first: u32) {
        self.silent_from(first).for_each(|pasid| self.write(pasid, [0; 4]));
    }

    /// Writes the entry of a PASID that is not present, and that hardware has forgotten.
    pub(crate) fn write(&self, pasid: u32, entry: PasidEntry) {
        if let Some((leaf, number)) = self.leaf(pasid) {
            // The upper half is reserved, and zero in every entry.
            let [first, second, ..] = entry;
            leaf.write(2 * number, [first, second]);
        }
    }
}

/// What a PASID of an endpoint is attached to.
#[derive(Clone)]
pub(crate) struct Attachment {
    /// Kept, so that the tables stay as long as hardware knows them.
    pub(crate) domain: Arc<dyn Domain>,
    pub(crate) tag: Tag,
}

/// What hardware remembers of an endpoint that is not attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Nothing, as it confirmed.
    Nothing,
    /// It did not say.
    Unknown,
}

/// An endpoint that was ever attached or permitted something. The tables stay when it is detached.
pub(crate) struct Endpoint<H: Hal> {
    pub(crate) sid: u16,
    pub(crate) pasids: PasidTables<H>,
    pub(crate) permissions: Permissions,
    /// In the order of PASIDs, those of requests without one first. The context entry is present if there is any.
    pub(crate) attachments: Vec<Attachment>,
    pub(crate) memory: Memory,
    /// How many PASIDs reach nothing without a record of it.
    pub(crate) silenced: u32,
}

impl<H: Hal> Endpoint<H> {
    pub(crate) fn new(sid: u16, pasids: PasidTables<H>) -> Self {
        Self {
            sid,
            pasids,
            permissions: Permissions::NONE,
            attachments: Vec::new(),
            memory: Memory::Nothing,
            silenced: 0,
        }
    }

    /// Whether hardware can find its PASID entries.
    pub(crate) fn is_live(&self) -> bool {
        !self.attachments.is_empty() || self.silenced > 0
    }

    /// Whether a PASID reaches nothing without a record of it.
    pub(crate) fn is_silenced(&self, pasid: u32) -> bool {
        self.silenced > 0 && self.pasids.is_silent(pasid)
    }

    /// How many PASIDs from `first` on reach nothing without a record of it.
    pub(crate) fn silenced_from(&self, first: u32) -> u32 {
        if self.silenced == 0 { 0 } else { self.pasids.silent_from(first).fold(0, |count, _| count + 1) }
    }

    fn find(&self, pasid: u32) -> Result<usize, usize> {
        self.attachments.binary_search_by_key(&pasid, |attachment| attachment.tag.pasid)
    }

    pub(crate) fn attachment(&self, pasid: u32) -> Option<&Attachment> {
        self.attachments.get(self.find(pasid).ok()?)
    }

    /// Whether any other PASID is attached than this one, or silenced.
    pub(crate) fn has_others(&self, pasid: u32) -> bool {
        self.attachments.iter().any(|attachment| attachment.tag.pasid != pasid)
            || self.silenced > u32::from(self.is_silenced(pasid))
    }

    /// Notes an attachment and returns the one that it takes the place of. There is room.
    pub(crate) fn attach(&mut self, new: Attachment) -> Option<Attachment> {
        match self.find(new.tag.pasid) {
            Ok(index) => {
                self.attachments.get_mut(index).map(|attachment| core::mem::replace(attachment, new))
            }
            Err(index) => {
                // Without room the domain would stay for ever, as hardware may use it.
                list::insert_reserved(&mut self.attachments, index, new).unwrap_or_else(core::mem::forget);
                None
            }
        }
    }

    /// Strikes an attachment out.
    pub(crate) fn detach(&mut self, pasid: u32) -> Option<Attachment> {
        let index = self.find(pasid).ok()?;
        list::remove(&mut self.attachments, index)
    }

    /// The first quantum of its context entry. RID_PASID, in the upper half, is 0.
    pub(crate) fn context(&self) -> u128 {
        context_entry(self.permissions, self.pasids.pdts, self.pasids.directory.publish())
    }
}

/// The first quantum of a context entry, which leads to the directory in the frame of this number. Not generic, so that
/// it is compiled where the setters are, of which a foreign crate would call each.
fn context_entry(permissions: Permissions, pdts: Pdts, directory: u64) -> u128 {
    let context = Context0::new()
        .with_present(true)
        .with_dte(permissions.requests.contains(Requests::TRANSLATION))
        .with_paside(permissions.pasid_bits > 0)
        .with_pre(permissions.requests.contains(Requests::PAGE))
        .with_pdts(pdts.0)
        .with_pasiddirptr(directory);
    quantum(context.into_bits(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_an_entry_for_each_64_pasids_and_fills_whole_frames() {
        let sizes = [(0, 0, 0), (6, 0, 0), (13, 0, 0), (14, 1, 0), (15, 2, 0), (16, 3, 1), (20, 7, 5)];
        for (bits, pdts, order) in sizes {
            let found = Pdts::for_bits(bits);
            assert_eq!((found.0, found.order().get()), (pdts, order), "{bits} bits");
            assert!(found.quanta() * 2 * 64 >= 1 << bits);
            assert!(found.quanta() as u64 * 16 <= found.order().bytes());
        }
    }

    #[test]
    fn a_pasid_is_an_entry_of_the_directory_and_one_of_a_table() {
        assert_eq!(place(0), (0, 0));
        assert_eq!(place(63), (0, 63));
        assert_eq!(place(64), (1, 0));
        assert_eq!(place(0xf_ffff), (0x3fff, 63));
    }
}
