//! Intel VT-d (scalable mode) driver of the Portcullis IOMMU stack
#![no_std]
