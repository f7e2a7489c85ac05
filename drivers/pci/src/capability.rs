//! Finding capabilities in lists that a device wrote.

use crate::config::{ConfigSpace, Place};
use crate::spec::{CapabilityHeader, CapabilityId, ExtendedHeader, ExtendedId, offset};
use pci_types::StatusRegister;
use portcullis_hal::{Mmio, RequesterId};
use thiserror::Error;

/// A capability list of a device is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CapabilityError {
    /// The list comes back to a capability it has already passed.
    #[error("{function}: the capability list loops at {offset:#x}")]
    Loop {
        /// The function.
        function: RequesterId,
        /// The offset that was reached twice.
        offset: u16,
    },
    /// A pointer leads into the header, or from the extended list out of it.
    #[error("{function}: a capability pointer leads to {offset:#x}")]
    Stray {
        /// The function.
        function: RequesterId,
        /// Where it leads.
        offset: u16,
    },
    /// The registers of a capability do not fit behind its header.
    #[error("{function}: the capability at {offset:#x} runs over the end of its space")]
    Truncated {
        /// The function.
        function: RequesterId,
        /// Where the capability begins.
        offset: u16,
    },
    /// The function stopped answering while its list was walked.
    #[error("{function}: the capability at {offset:#x} reads as all ones")]
    Vanished {
        /// The function.
        function: RequesterId,
        /// Where the walk had arrived.
        offset: u16,
    },
}

/// Which of the two lists of a function is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    Standard,
    Extended,
}

/// The capabilities of one list, in its order. After an error the walk is over.
pub(crate) struct Walk<'a, M> {
    config: &'a ConfigSpace<M>,
    function: RequesterId,
    list: List,
    next: u16,
    /// One bit per word of the space.
    seen: [u64; 16],
}

/// The capabilities in the first 256 bytes.
pub(crate) fn standard<M: Mmio>(config: &ConfigSpace<M>, function: RequesterId) -> Walk<'_, M> {
    let status = StatusRegister::new((config.read32(function, offset::COMMAND) >> 16) as u16);
    let next = if status.has_capability_list() {
        pointer(config.read32(function, offset::CAPABILITIES) as u8)
    } else {
        0
    };
    Walk { config, function, list: List::Standard, next, seen: [0; 16] }
}

/// The extended capabilities; only functions with the PCI Express capability have any.
pub(crate) fn extended<M: Mmio>(config: &ConfigSpace<M>, function: RequesterId) -> Walk<'_, M> {
    // A function without extended capabilities has zeros here, or ones if its space ends before.
    let next = match config.read32(function, offset::EXTENDED) {
        0 | u32::MAX => 0,
        _ => offset::EXTENDED,
    };
    Walk { config, function, list: List::Extended, next, seen: [0; 16] }
}

/// The place of a capability in the first 256 bytes, as an offset, if the function has it.
pub fn standard_capability<M: Mmio>(
    config: &ConfigSpace<M>,
    function: RequesterId,
    id: CapabilityId,
) -> Result<Option<u16>, CapabilityError> {
    find(standard(config, function), u16::from(id.0))
}

/// The place of an extended capability, as an offset, if the function has it. The caller has made sure that it
/// is a PCI Express function.
pub fn extended_capability<M: Mmio>(
    config: &ConfigSpace<M>,
    function: RequesterId,
    id: ExtendedId,
) -> Result<Option<u16>, CapabilityError> {
    find(extended(config, function), id.0)
}

fn find<M: Mmio>(mut walk: Walk<'_, M>, id: u16) -> Result<Option<u16>, CapabilityError> {
    walk.find(|entry| !matches!(entry, Ok((found, _)) if *found != id))
        .transpose()
        .map(|entry| entry.map(|(_, place)| place.offset))
}

/// The two low bits of a pointer are reserved and read by mistake as ones on some devices.
fn pointer(raw: u8) -> u16 {
    u16::from(raw & !3)
}

impl<M: Mmio> Walk<'_, M> {
    fn step(&mut self, at: u16) -> Result<(u16, Place), CapabilityError> {
        let function = self.function;
        let space = match self.list {
            List::Standard => offset::FIRST_CAPABILITY..offset::EXTENDED,
            List::Extended => offset::EXTENDED..offset::END,
        };
        let (word, bit) = (usize::from(at / 4) / 64, (at / 4) % 64);
        let seen = self.seen.get_mut(word).filter(|_| space.contains(&at));
        let seen = seen.ok_or(CapabilityError::Stray { function, offset: at })?;
        if *seen & 1 << bit != 0 {
            return Err(CapabilityError::Loop { function, offset: at });
        }
        *seen |= 1 << bit;

        let header = self.config.read32(function, at);
        if header == u32::MAX {
            return Err(CapabilityError::Vanished { function, offset: at });
        }
        let (id, next) = match self.list {
            List::Standard => {
                let header = CapabilityHeader::from_bits(header);
                (u16::from(header.id()), pointer(header.next()))
            }
            List::Extended => {
                let header = ExtendedHeader::from_bits(header);
                (header.id(), header.next() & !3)
            }
        };
        self.next = next;
        Ok((id, Place { function, offset: at }))
    }
}

impl<M: Mmio> Iterator for Walk<'_, M> {
    type Item = Result<(u16, Place), CapabilityError>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = core::mem::take(&mut self.next);
        (at != 0).then(|| self.step(at))
    }
}

impl Place {
    /// The place, if `size` bytes from it lie in the space of its list.
    pub(crate) fn holding(self, size: u16) -> Result<Self, CapabilityError> {
        let end = if self.offset < offset::EXTENDED { offset::EXTENDED } else { offset::END };
        if end.saturating_sub(self.offset) < size {
            return Err(CapabilityError::Truncated { function: self.function, offset: self.offset });
        }
        Ok(self)
    }
}
