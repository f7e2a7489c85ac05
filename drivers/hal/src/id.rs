//! Identifiers of the architectures, each with the range the hardware gives it.

use core::fmt;
use thiserror::Error;

/// An identifier is outside the range of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{value:#x} is outside the {kind} range")]
pub struct IdError {
    /// The kind of identifier.
    pub kind: &'static str,
    /// The value that does not fit.
    pub value: u32,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($repr:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($repr);

        impl $name {
            /// The identifier with this value.
            pub const fn new(value: $repr) -> Self {
                Self(value)
            }

            /// The value.
            pub const fn get(self) -> $repr {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

id! {
    /// An SMMUv3 StreamID (up to 32 bits; the width in use is SMMU_IDR1.SIDSIZE).
    StreamId(u32)
}
id! {
    /// An address-space identifier of stage-1 TLB entries (8 or 16 bits, SMMU_IDR0.ASID16).
    Asid(u16)
}
id! {
    /// A virtual-machine identifier of stage-2 TLB entries (8 or 16 bits, SMMU_IDR0.VMID16).
    Vmid(u16)
}
id! {
    /// A VT-d domain identifier (4 to 16 bits, CAP_REG.ND).
    DomainId(u16)
}
id! {
    /// The number by which one unit knows a requester: a StreamID on SMMUv3, a source-id on VT-d, an endpoint
    /// id on virtio-iommu. Firmware tables map requesters to it.
    EndpointId(u32)
}

/// A process address-space identifier (20 bits): the architecture's PASID on PCI and VT-d, SubstreamID on
/// SMMUv3. Zero stands for requests without a PASID and is never handed out, so it cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pasid(u32);

impl Pasid {
    /// The widest PASID of PCI Express, in bits.
    pub const MAX_BITS: u32 = 20;

    /// The PASID with this value: 1 to 2^20 - 1.
    pub const fn new(value: u32) -> Result<Self, IdError> {
        if value == 0 || value >= 1 << Self::MAX_BITS {
            return Err(IdError { kind: "PASID", value });
        }
        Ok(Self(value))
    }

    /// The value, 1 to 2^20 - 1.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A PCI requester: segment, bus, device and function.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequesterId {
    segment: u16,
    bdf: u16,
}

impl RequesterId {
    /// The requester with this bus/device/function word on `segment`.
    pub const fn from_bdf(segment: u16, bdf: u16) -> Self {
        Self { segment, bdf }
    }

    /// The requester at bus, device (0 to 31) and function (0 to 7).
    pub const fn new(segment: u16, bus: u8, device: u8, function: u8) -> Result<Self, IdError> {
        if device > 31 {
            return Err(IdError { kind: "PCI device", value: device as u32 });
        }
        if function > 7 {
            return Err(IdError { kind: "PCI function", value: function as u32 });
        }
        Ok(Self { segment, bdf: (bus as u16) << 8 | (device as u16) << 3 | function as u16 })
    }

    /// The PCI segment group.
    pub const fn segment(self) -> u16 {
        self.segment
    }

    /// Bus in bits 15:8, device in 7:3, function in 2:0.
    pub const fn bdf(self) -> u16 {
        self.bdf
    }

    /// The bus number.
    pub const fn bus(self) -> u8 {
        (self.bdf >> 8) as u8
    }

    /// The device number, 0 to 31.
    pub const fn device(self) -> u8 {
        (self.bdf >> 3) as u8 & 0x1f
    }

    /// The function number, 0 to 7.
    pub const fn function(self) -> u8 {
        self.bdf as u8 & 7
    }
}

impl fmt::Display for RequesterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.segment, self.bus(), self.device(), self.function())
    }
}

impl fmt::Debug for RequesterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequesterId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pasid_zero_and_wide_pasids_cannot_be_made() {
        assert!(Pasid::new(0).is_err());
        assert!(Pasid::new(1 << 20).is_err());
        assert_eq!(Pasid::new((1 << 20) - 1).unwrap().get(), 0xf_ffff);
    }

    #[test]
    fn a_requester_prints_as_lspci_does() {
        let id = RequesterId::new(0, 1, 0x1f, 3).unwrap();
        assert_eq!((id.bdf(), std::format!("{id}").as_str()), (0x01fb, "0000:01:1f.3"));
        assert!(RequesterId::new(0, 0, 32, 0).is_err() && RequesterId::new(0, 0, 0, 8).is_err());
    }
}
