//! The vendor-neutral layer of the Portcullis IOMMU stack: units, devices, groups, domains, faults
#![no_std]
