//! What every back end has to pass on the adversarial models, with its driver under the common layer.
//!
//! | module | what |
//! |---|---|
//! | [`fail_nth`] | every operation, with each of its allocations failing |
//! | [`sva`] | random processes that share their addresses with devices |

pub mod fail_nth;
pub mod sva;
