//! Layouts of table words: data only.
//!
//! Addresses are masked in and out by [`Scheme`](crate::Scheme), since their low end moves with the level; the
//! fields here are those of the widest address.
#![forbid(unsafe_code)]

pub mod vmsa;
pub mod vtd;
pub mod x86;
