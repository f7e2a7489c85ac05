//! The layouts of configuration space: types and offsets only.
//!
//! Every register is described as the 32-bit word it lies in, since that is the width of an access. Sections are
//! those of the PCI Express Base Specification 6.0, and of the PCI-to-PCI Bridge Architecture Specification 1.2
//! for the windows of a bridge.

mod capability;
mod extended;
mod header;

pub use capability::{
    CapabilityHeader, CapabilityId, DeviceCapabilities, DeviceCapabilities2, DeviceControl2, ExpressHeader,
    MsiControl, MsixControl, MsixLocation, MsixVectorControl, PortType, PowerControl, express, msi, msix,
    power,
};
pub use extended::{
    AcsFlags, AcsRegister, AriRegister, AtsRegister, CONTROL_WORD, ExtendedHeader, ExtendedId, PasidFeatures,
    PasidRegister, PriRegister, SrIovControl, SrIovPlacement, SrIovVfs, pri, sriov,
};
pub use header::{BusNumbers, CLOSED_IO, CLOSED_WINDOW, ClassRegister, HeaderRegister, MemoryWindow, offset};
