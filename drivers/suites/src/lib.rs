//! What every back end has to pass on the adversarial models, with its driver under the common layer.
//!
//! | module | what |
//! |---|---|
//! | [`coverage`] | what random operations did, for people to read |
//! | [`fail_nth`] | every operation, with each of its allocations failing |
//! | [`sva`] | random processes that share their addresses with devices |

pub mod coverage;
pub mod fail_nth;
pub mod sva;
