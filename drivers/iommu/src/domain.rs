//! I/O address spaces, as users see them.

use crate::Missing;
use bitflags::bitflags;
use core::fmt;
use portcullis_hal::{IdentityAccess, IoSpace, OutOfMemory, SharedTable, TableRoot};
use thiserror::Error;

/// A stage of translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Stage 1 (VT-d: first stage): a process's or kernel's view.
    Stage1,
    /// Stage 2 (VT-d: second stage): a VM's physical view.
    Stage2,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stage1 => "stage 1",
            Self::Stage2 => "stage 2",
        })
    }
}

/// The kind of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DomainKind {
    /// Nothing is reachable. The hardware may abort silently.
    Blocked,
    /// I/O virtual addresses are physical addresses.
    Identity,
    /// Mappings of its own.
    Paging,
    /// Tables that somebody else owns.
    Shared,
}

impl fmt::Display for DomainKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blocked => "blocked",
            Self::Identity => "identity",
            Self::Paging => "paging",
            Self::Shared => "shared",
        })
    }
}

bitflags! {
    /// What a domain with tables of its own can do besides translating.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Abilities: u8 {
        /// Leaves change their size while devices use them ([`IoSpace::split`], [`IoSpace::join`]).
        const RESIZE = 1;
        /// Hardware marks the leaves that devices use ([`IoSpace::harvest`]). They begin unmarked, so each costs the
        /// hardware a write when it is first used.
        const TRACKING = 2;
    }
}

impl Abilities {
    /// What is missing where these are wanted and `offered` are had.
    pub fn missing(self, offered: Self) -> Missing {
        let lacks = self - offered;
        let mut missing = Missing::empty();
        missing.set(Missing::RESIZE, lacks.contains(Self::RESIZE));
        missing.set(Missing::TRACKING, lacks.contains(Self::TRACKING));
        missing
    }
}

/// How finely a paging domain can be unmapped where the unit has no page tables but is asked for each mapping, as
/// virtio-iommu. Page tables can always be unmapped leaf by leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Grain {
    /// Each piece of a map call's list is one mapping, which is unmapped as a whole: the fewest requests.
    #[default]
    Piece,
    /// Pieces are cut to the leaves that page tables would have, so that the same can be unmapped as on other units. Each
    /// leaf is one request, and counts against what the host allows.
    Leaf,
}

/// What a paging domain should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PagingSpec {
    /// The stage; by default what the unit does best.
    pub stage: Option<Stage>,
    /// At least this many bits of I/O virtual address, by default as many as the unit offers.
    pub input_bits: Option<u8>,
    /// What it has to be able to do, on every unit that it is attached to. Where hardware differs in an ability, a domain
    /// made without it has not got it.
    pub abilities: Abilities,
    /// How finely it can be unmapped.
    pub grain: Grain,
}

/// What a new domain should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DomainSpec {
    /// Reaches nothing.
    Blocked,
    /// Reaches all memory at its physical address.
    Identity(IdentityAccess),
    /// Mappings of its own.
    Paging(PagingSpec),
    /// Foreign tables.
    Shared(SharedTable),
}

/// What a domain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainInfo {
    /// The kind.
    pub kind: DomainKind,
    /// The stage, for domains with tables.
    pub stage: Option<Stage>,
    /// The tables, for domains with tables.
    pub root: Option<TableRoot>,
}

/// Why a domain was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DomainError {
    /// The unit cannot do that.
    #[error("the unit lacks {missing}")]
    Unsupported {
        /// What it lacks.
        missing: Missing,
    },
    /// No memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// All ids of the kind are in use.
    #[error("no address-space id is free")]
    NoFreeId,
}

/// An I/O address space that any number of devices can be attached to.
///
/// Mapping and unmapping are the methods of [`IoSpace`]; most users map memory by value with
/// [`Mapped::map`](portcullis_hal::Mapped::map).
pub trait Domain: IoSpace {
    /// What the domain is.
    fn info(&self) -> DomainInfo;

    /// Its kind, as [`info`](Self::info) has it.
    fn kind(&self) -> DomainKind {
        self.info().kind
    }

    /// The ids by which hardware tags the domain's translations, for humans.
    fn describe(&self, out: &mut dyn fmt::Write) -> fmt::Result;
}
