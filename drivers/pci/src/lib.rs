//! PCI Express configuration space: enumeration, resource assignment, BARs and the capabilities that matter for DMA isolation
#![no_std]
