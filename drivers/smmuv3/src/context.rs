//! The context descriptors of a stream that may use PASIDs (IHI 0070, 3.3.2): linear, or two-level with second-level
//! tables made on demand. One that may stall has descriptors of its own too, be it a single one: others that are attached
//! to the same domain may not.
//!
//! The descriptor of a PASID is the one with that SubstreamID. Descriptor 0 is for requests without a PASID, if
//! stage 1 translates them; no PASID is 0.

use crate::entry::Contexts;
use crate::features::Features;
use crate::memory::{EntryTable, Form, NoFrames, Slot};
use crate::spec::cd::L1Cd;
use crate::spec::ste::{ContextFormat, DefaultSubstream};
use portcullis_hal::{Hal, PhysAddr};

/// The bits of SubstreamID that a second-level table covers: 1024 descriptors, 64 KiB.
const SPLIT: u8 = 10;

/// A stream's context descriptors.
pub(crate) struct ContextTable<H: Hal>(EntryTable<H>);

impl<H: Hal> ContextTable<H> {
    /// An empty table for SubstreamIDs of `bits`; descriptor 0 has its place.
    pub(crate) fn new(hal: &H, features: &Features, bits: u8) -> Result<Self, NoFrames> {
        let form = match features.two_level_cd && bits > SPLIT {
            true => Form::TwoLevel { split: SPLIT, descriptor },
            false => Form::Linear,
        };
        let mut table = EntryTable::new(hal, features, form, bits)?;
        table.prepare(features, 0)?;
        Ok(Self(table))
    }

    /// The bits of SubstreamID that the table covers.
    pub(crate) fn bits(&self) -> u8 {
        self.0.bits()
    }

    /// What a stream table entry says of the table, with SubstreamIDs of `bits` permitted, at most as many as the table
    /// covers.
    pub(crate) fn contexts(&self, bits: u8, default: DefaultSubstream) -> Contexts {
        // Without SubstreamIDs the entry leads to the descriptor itself.
        if let (0, Some(descriptor)) = (bits, self.entry(0).and_then(|slot| slot.address())) {
            return Contexts::one(descriptor);
        }
        let format = match self.0.form() {
            Form::Linear => ContextFormat::LINEAR,
            Form::TwoLevel { .. } => ContextFormat::TWO_LEVEL_64K,
        };
        Contexts { table: self.0.base(), format, bits, default }
    }

    /// Makes sure that `substream`, which the table covers, has a descriptor. The unit may have cached that it has none.
    pub(crate) fn prepare(&mut self, features: &Features, substream: u32) -> Result<(), NoFrames> {
        self.0.prepare(features, substream)
    }

    /// The descriptor of `substream`; `None` if it has none: then it is invalid.
    pub(crate) fn entry(&self, substream: u32) -> Option<Slot<'_, H>> {
        self.0.entry(substream)
    }
}

fn descriptor(table: PhysAddr) -> u64 {
    L1Cd::new().with_v(true).with_l2ptr(table.get() >> 12).into()
}
