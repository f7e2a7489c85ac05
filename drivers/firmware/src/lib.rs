//! ACPI and device-tree descriptions of IOMMUs, parsed into one [`Topology`].
//!
//! A kernel hands over what its firmware left in memory and gets one value that says which IOMMUs there are,
//! which requesters and streams each covers, what must stay mapped, and the little else that is needed to
//! reach the devices (ECAM and PCI windows, CPUs, interrupt controllers, console). The vendor of the tables
//! does not show in the result.
//!
//! # Entry points
//!
//! | firmware | function |
//! |---|---|
//! | ACPI, RSDP known (PVH, UEFI) | [`acpi::from_rsdp`], tables mapped by [`PhysMemory`] |
//! | ACPI, tables at hand | [`acpi::from_tables`] |
//! | ACPI through QEMU's fw_cfg | [`acpi::loader::run`], then [`acpi::from_rsdp`] |
//! | device tree | [`devicetree::parse`] |
//!
//! ```
//! use portcullis_firmware::{BusRange, UnitKind, devicetree};
//! use portcullis_hal::RequesterId;
//!
//! let blob = include_bytes!("../tests/data/virt-smmuv3.dtb");
//! let mut topology = devicetree::parse(blob)?;
//! let UnitKind::Smmuv3(smmu) = &topology.units[0].kind else { panic!("another machine") };
//! assert_eq!(smmu.registers.start().get(), 0x905_0000);
//!
//! // Once PCI bus numbers are final (only VT-d needs it; no bridge has anything behind it here):
//! topology.resolve_scopes(|_bridge| None::<BusRange>)?;
//! let (unit, stream) = topology.unit_of(RequesterId::from_bdf(0, 0x0010)).unwrap();
//! assert_eq!((unit.get(), stream.get()), (0, 0x10));
//! # Ok::<(), portcullis_firmware::FirmwareError>(())
//! ```
//!
//! # The types
//!
//! - [`Topology::units`]: one [`UnitDescription`] per IOMMU: [`Smmuv3Unit`] (registers, coherency of walks,
//!   wired interrupts), [`VtdUnit`] (registers, segment, device scopes) or [`VirtioIommuUnit`] (PCI function
//!   or MMIO window). [`UnitIndex`] points into the list.
//! - [`Topology::unit_of`]: which unit translates a PCI requester and under which
//!   [`EndpointId`](portcullis_hal::EndpointId) (StreamID, source-id or endpoint id) it knows it.
//! - [`Topology::msi_device_id`]: which ITS takes the requester's MSIs and under which DeviceID.
//! - [`Topology::platform_devices`]: devices that are not PCI, with their [`StreamRange`]s.
//! - [`Topology::reserved`]: [`ReservedRegion`]s with their [`ReservedKind`] and the [`DeviceSet`] they
//!   concern; [`Topology::reserved_for`] and [`Topology::reserved_for_stream`] select.
//! - [`Topology::host_bridges`]: ECAM, bus range and address windows per PCI host bridge.
//! - [`Topology::cpus`], [`Topology::psci`], [`Topology::local_apic`], [`Topology::io_apics`],
//!   [`Topology::gic`], [`Topology::consoles`].
//! - [`Topology::dmar`], [`Topology::ats_support`]: what DMAR says beside its units.
//! - [`Topology::warnings`]: contradictions that were settled by a rule instead of an error.
//!
//! # Order of use
//!
//! VT-d names devices by a path through bridges, so its scopes mean something only once bus numbers are
//! final. After enumeration the kernel calls [`Topology::resolve_scopes`] with a closure that gives the buses
//! behind a bridge; before that, [`Topology::unit_of`] knows no requester behind VT-d and default deny holds.
//!
//! # What a damaged table can do
//!
//! Nothing but return a [`FirmwareError`] that names the table and the offset: lengths are checked before
//! anything is read, references are followed a bounded number of times, lists are bounded and allocated
//! fallibly, and a topology exists only after all tables were read. The crate has no unsafe code.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acpi;
pub mod devicetree;
mod error;
mod list;
mod memory;
pub mod topology;
mod view;

pub use error::{FirmwareError, Location, Signature, Table, Warning};
pub use memory::PhysMemory;
pub use topology::*;
