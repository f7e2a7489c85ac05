//! Arm SMMUv3 driver of the Portcullis IOMMU stack
#![no_std]
