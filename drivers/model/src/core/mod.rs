//! What the models share.
//!
//! | part | what it is |
//! |---|---|
//! | [`Memory`], [`Ram`] | what the device sees of memory, and a ready-made one for tests |
//! | [`Schedule`] | every choice that the architecture leaves to hardware, from a seed or a script |
//! | [`Torn`], [`Versions`] | caches that hold all versions hardware may hold |
//! | [`Violations`], [`Interrupts`], [`Coverage`] | what software did wrong, what was signalled, what was exercised |
//! | [`Request`], [`Response`], [`Outcome`] | DMA |
//! | [`Upstream`], [`Downstream`] | the link between a device and its IOMMU (ATS, PRI) |

mod cache;
mod fabric;
mod log;
mod memory;
mod request;
mod schedule;

pub use cache::{Torn, Versions};
pub use fabric::{AtcInvalidation, Downstream, PageRequest, PageResponse, ResponseCode, Upstream};
pub use log::{Coverage, Interrupt, Interrupts, Violation, Violations};
pub use memory::{Abort, Memory, Ram, View};
pub use request::{Access, AddressKind, Grant, Mode, Outcome, Privilege, Request, Response};
pub use schedule::{Prng, Schedule};
