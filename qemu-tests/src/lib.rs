//! The host side of Portcullis: `cargo xtask`.
//!
//! It installs what is missing ([`setup`]), boots the reference kernel in QEMU ([`profile`], [`session`]), reads what
//! the kernel says on its serial port ([`protocol`]) and holds it against what the host knows ([`verdict`], [`disk`]).
//! On top of that stand the commands: [`run`], [`shell`], [`mod@test`], [`check`], [`mod@bench`] and [`mutants`].

pub mod bench;
pub mod build;
pub mod check;
pub mod cli;
pub mod console;
pub mod device_tree;
pub mod differential;
pub mod disk;
pub mod endpoint;
pub mod host_tests;
pub mod mutants;
pub mod no_panic;
pub mod pasid;
pub mod process;
pub mod profile;
pub mod prompt;
pub mod protocol;
pub mod qemu;
pub mod run;
pub mod script;
pub mod session;
pub mod setup;
pub mod shell;
pub mod soak;
pub mod test;
pub mod ui;
pub mod verdict;
pub mod workspace;
