//! virtio-iommu driver of the Portcullis IOMMU stack
#![no_std]
