//! Random operations of the driver on the adversarial model of the hardware, with an oracle.
//!
//! A failure prints the seed and the shrunk list of operations, with the command that replays them.
//! `PORTCULLIS_OPERATIONS` sets how many operations are done in all, `PORTCULLIS_FIRST` the first seed.

mod acts;
mod asking;
mod board;
mod change;
mod coverage;
mod ids;
mod mappings;
mod page_requests;
mod pasids;
mod plan;
mod racing;
mod ram;
mod regressions;
mod run;
mod setups;
mod sizes;
mod space;
mod stalls;
mod substreams;
mod sva;
mod world;
