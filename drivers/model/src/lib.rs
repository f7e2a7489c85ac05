//! Adversarial hardware models of IOMMUs, for host tests
#![no_std]
