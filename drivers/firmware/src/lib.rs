//! ACPI and device-tree descriptions of IOMMUs, parsed into one topology
#![no_std]
