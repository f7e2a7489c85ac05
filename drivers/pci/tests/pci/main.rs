//! The crate against a fake fabric: bridges that route by their registers, BARs that size, capabilities, damage.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may end in a panic")]

mod assignment;
mod control;
mod damage;
mod enumeration;
mod fabric;
mod groups;
mod registers;
