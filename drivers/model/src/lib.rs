//! Adversarial hardware models of IOMMUs, for host tests.
//!
//! Each model is a device in software, written from the architecture's rules, that a test drives step by step
//! from a seed. It keeps *everything* that hardware may keep: every cache holds every version of an entry that
//! hardware could have fetched since the last invalidation that covers it completed, each fetch unit of an entry
//! apart. A translation is then a choice among these versions and what is in memory, and the oracle is the set
//! of all choices.
//!
//! * [`core`]: memory, schedule, logs, caches, requests: what the models share.
//! * [`smmuv3`]: Arm SMMUv3 (IHI 0070), non-secure programming interface.
//! * [`vtd`]: Intel VT-d in scalable mode.
//! * [`device`]: a PCIe function with PASID, ATS and PRI.
//!
//! Memory is called with a model's lock held, so an implementation of [`core::Memory`] must not call the model
//! back from the device's side; hooks belong to the software's side.

#![forbid(unsafe_code)]

pub mod core;
pub mod device;
pub mod smmuv3;
pub mod vtd;
