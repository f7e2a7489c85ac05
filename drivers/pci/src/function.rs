//! What is known of a function.

use crate::acs::Acs;
use crate::capability::{self, CapabilityError};
use crate::config::{ConfigSpace, Place};
use crate::express::Express;
use crate::msi::MsiCapability;
use crate::msix::MsixCapability;
use crate::power::PowerCapability;
use crate::spec::{BusNumbers, CapabilityId, ClassRegister, ExtendedId, HeaderRegister, PortType, offset};
use crate::sriov::SrIov;
use crate::translation::{AtsCapability, PasidCapability, PriCapability};
use core::fmt;
use pci_types::device_type::DeviceType;
use portcullis_hal::{Mmio, RequesterId};

/// A class code.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Class {
    /// The base class: 06h is a bridge.
    pub base: u8,
    /// The sub-class: 06h/00h is a host bridge.
    pub sub: u8,
    /// The programming interface.
    pub interface: u8,
}

impl Class {
    /// What it stands for.
    pub fn device_type(self) -> DeviceType {
        DeviceType::from((self.base, self.sub))
    }

    /// Whether it is a host bridge.
    pub const fn is_host_bridge(self) -> bool {
        self.base == 0x06 && self.sub == 0x00
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}{:02x}{:02x}", self.base, self.sub, self.interface)
    }
}

impl fmt::Debug for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Class({self})")
    }
}

/// The layout of a function's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// Type 0: an endpoint.
    Endpoint,
    /// Type 1: a bridge, with its bus numbers.
    Bridge(BusNumbers),
    /// Any other layout; its registers beyond the common part are not touched.
    Other(u8),
}

/// A function of a segment, as it was when it was enumerated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it is, and what its requests carry.
    pub id: RequesterId,
    /// What its requests carry when they reach the root complex, if a bridge on the way takes them over: bus
    /// behind a PCI-Express-to-PCI bridge with device and function 0, or a conventional bridge's own id. A
    /// PCI-X device may get through under its own id too, so that an IOMMU needs an entry for both.
    pub alias: Option<RequesterId>,
    /// The index, in the list it was enumerated into, of the bridge it is behind; always below its own.
    /// `None` on a root bus.
    pub parent: Option<usize>,
    /// The vendor.
    pub vendor: u16,
    /// The vendor's number for the device.
    pub device: u16,
    /// The revision.
    pub revision: u8,
    /// The class code.
    pub class: Class,
    /// The layout of its header.
    pub header: Header,
    /// The header says that the device has more than this function.
    pub multi_function: bool,
    /// PCI Express; `None` for a conventional function.
    pub express: Option<Express>,
    /// Power management.
    pub power: Option<PowerCapability>,
    /// Message-signalled interrupts.
    pub msi: Option<MsiCapability>,
    /// Message-signalled interrupts with a table.
    pub msix: Option<MsixCapability>,
    /// Access control services.
    pub acs: Option<Acs>,
    /// The function counts among up to 256 of its device (alternative routing-ID interpretation).
    pub ari: bool,
    /// Address translation services.
    pub ats: Option<AtsCapability>,
    /// Page requests.
    pub pri: Option<PriCapability>,
    /// Process address-space identifiers.
    pub pasid: Option<PasidCapability>,
    /// Virtual functions.
    pub sriov: Option<SrIov>,
    /// What is wrong with its capability lists, if anything; those found before the damage are reported. Such a
    /// function counts as one without ACS.
    pub damage: Option<CapabilityError>,
}

impl Function {
    /// The kind of PCI Express function or port; `None` for a conventional function.
    pub fn port_type(&self) -> Option<PortType> {
        self.express.map(|express| express.port_type)
    }

    /// The bus numbers, if the function is a bridge.
    pub const fn buses(&self) -> Option<BusNumbers> {
        match self.header {
            Header::Bridge(buses) => Some(buses),
            Header::Endpoint | Header::Other(_) => None,
        }
    }

    /// Whether the function is a PCI Express port with a link below it.
    pub(crate) fn has_link_below(&self) -> bool {
        self.buses().is_some() && matches!(self.port_type(), Some(PortType::ROOT_PORT | PortType::DOWNSTREAM))
    }

    /// What the requests of a function behind this bridge carry at the root complex, if not their own id.
    pub(crate) fn alias_for_children(&self) -> Option<RequesterId> {
        let taken_over = match self.port_type() {
            Some(PortType::EXPRESS_TO_PCI) => self
                .buses()
                .map(|buses| RequesterId::from_bdf(self.id.segment(), u16::from(buses.secondary()) << 8)),
            Some(PortType::PCI_TO_EXPRESS) | None => Some(self.id),
            Some(_) => None,
        };
        // A bridge nearer to the root takes over what this one sends.
        self.alias.or(taken_over)
    }

    /// Reads everything that the registers of a present function say.
    pub(crate) fn read<M: Mmio>(config: &ConfigSpace<M>, id: RequesterId) -> Self {
        let ids = config.read32(id, offset::ID);
        let class = ClassRegister::from_bits(config.read32(id, offset::CLASS));
        let header = HeaderRegister::from_bits(config.read32(id, offset::HEADER));
        let mut function = Self {
            id,
            alias: None,
            parent: None,
            vendor: ids as u16,
            device: (ids >> 16) as u16,
            revision: class.revision(),
            class: Class { base: class.base_class(), sub: class.sub_class(), interface: class.interface() },
            header: match header.layout() {
                0 => Header::Endpoint,
                1 => Header::Bridge(BusNumbers::from_bits(config.read32(id, offset::BUS_NUMBERS))),
                other => Header::Other(other),
            },
            multi_function: header.multi_function(),
            express: None,
            power: None,
            msi: None,
            msix: None,
            acs: None,
            ari: false,
            ats: None,
            pri: None,
            pasid: None,
            sriov: None,
            damage: None,
        };
        function.damage = function.read_capabilities(config).err();
        function
    }

    fn read_capabilities<M: Mmio>(&mut self, config: &ConfigSpace<M>) -> Result<(), CapabilityError> {
        for entry in capability::standard(config, self.id) {
            let (id, place) = entry?;
            self.read_standard(config, CapabilityId(id as u8), place)?;
        }
        if self.express.is_some() {
            for entry in capability::extended(config, self.id) {
                let (id, place) = entry?;
                self.read_extended(config, ExtendedId(id), place)?;
            }
        }
        Ok(())
    }

    /// The first of several capabilities with one id counts.
    fn read_standard<M: Mmio>(
        &mut self,
        config: &ConfigSpace<M>,
        id: CapabilityId,
        place: Place,
    ) -> Result<(), CapabilityError> {
        match id {
            CapabilityId::EXPRESS if self.express.is_none() => {
                self.express = Some(Express::read(config, place)?);
            }
            CapabilityId::POWER if self.power.is_none() => self.power = Some(PowerCapability::read(place)?),
            CapabilityId::MSI if self.msi.is_none() => self.msi = Some(MsiCapability::read(config, place)?),
            CapabilityId::MSIX if self.msix.is_none() => {
                self.msix = Some(MsixCapability::read(config, place)?);
            }
            _ => {}
        }
        Ok(())
    }

    fn read_extended<M: Mmio>(
        &mut self,
        config: &ConfigSpace<M>,
        id: ExtendedId,
        place: Place,
    ) -> Result<(), CapabilityError> {
        match id {
            ExtendedId::ACS if self.acs.is_none() => self.acs = Some(Acs::read(config, place)?),
            ExtendedId::ARI => self.ari = true,
            ExtendedId::ATS if self.ats.is_none() => self.ats = Some(AtsCapability::read(config, place)?),
            ExtendedId::PRI if self.pri.is_none() => self.pri = Some(PriCapability::read(config, place)?),
            ExtendedId::PASID if self.pasid.is_none() => {
                self.pasid = Some(PasidCapability::read(config, place)?);
            }
            ExtendedId::SRIOV if self.sriov.is_none() => self.sriov = Some(SrIov::read(config, place)?),
            _ => {}
        }
        Ok(())
    }
}
