//! User code: programs, and the threads that run them.

mod program;
mod thread;

pub(crate) use program::{Order, Program};
pub(crate) use thread::{Ended, Thread};
