//! The SMMUv3 model against hand-made raw tables and commands (IHI 0070).

mod ats;
mod bench;
mod errors;
mod invalidation;
mod machine;
mod queues;
mod random;
mod registers;
mod stages;
mod stalls;
mod streams;
mod torn;
mod updates;
