//! The two sides of a comparison: a machine in QEMU, and a model with memory of its own.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use portcullis_model::core::{Mode, Outcome, Ram, Request};
use portcullis_model::smmuv3::Smmu;
use portcullis_model::vtd::Vtd;

use super::qtest::Qtest;
use crate::profile::Arch;

/// Memory and the registers of an IOMMU, as software sees them. Both sides are driven through this alone.
pub(super) trait Machine {
    /// Stores a word in memory.
    fn store(&mut self, address: u64, word: u64) -> Result<()>;
    /// Loads words from memory.
    fn load(&mut self, address: u64, count: u64) -> Result<Vec<u64>>;
    /// Writes a 32-bit register.
    fn write32(&mut self, register: u64, value: u32) -> Result<()>;
    /// Writes a 64-bit register.
    fn write64(&mut self, register: u64, value: u64) -> Result<()>;
    /// Reads a 32-bit register.
    fn read32(&mut self, register: u64) -> Result<u32>;
    /// Reads a 64-bit register.
    fn read64(&mut self, register: u64) -> Result<u64>;
}

/// Which way data goes. Reads and writes come from two devices, so their requester ids differ too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
}

/// The device that reads: an e1000 at 00:06.0.
pub(super) const READER: u32 = 6 << 3;
/// The device that writes: an iommu-testdev at 00:07.0.
pub(super) const WRITER: u32 = 7 << 3;

/// One access by a device, to 16 aligned bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) kind: Kind,
    pub(super) address: u64,
}

impl Access {
    /// The same as a request to a model.
    pub(super) const fn request(self) -> Request {
        match self.kind {
            Kind::Read => Request::read(READER, self.address),
            Kind::Write => Request::write(WRITER, self.address),
        }
    }
}

/// Where an access in QEMU ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Landing {
    /// At an address where it may.
    Allowed,
    /// In memory, but not there.
    Elsewhere,
    /// Not in memory.
    Nowhere,
}

/// A machine in QEMU with the two devices.
pub(super) struct Emulated {
    qtest: Qtest,
    /// Where the IOMMU's registers are.
    unit: u64,
    reader: u64,
    writer: u64,
}

/// What the writing device writes, over and over (iommu-testdev).
const PATTERN: u64 = 0x1234_5678;
/// Second word of a transmit descriptor without data that ends a packet: the e1000 counts a packet when it reads one.
const END_OF_PACKET: u64 = 1 << 24;

impl Emulated {
    /// Takes over a QEMU that was just started, and makes its devices ready.
    pub(super) fn new(qtest: Qtest, arch: Arch) -> Result<Self> {
        let (unit, window) = match arch {
            Arch::Aarch64 => (0x0905_0000, 0x1000_0000),
            Arch::X86_64 => (0xfed9_0000, 0xf000_0000),
        };
        let (reader, writer) = (window, window + 0x10_0000);
        let mut machine = Self { qtest, unit, reader, writer };
        for (device, bar, id) in [(READER, reader, 0x100e_8086), (WRITER, writer, 0x0005_1b36)] {
            let found = machine.configure(arch, device, 0, None)?;
            ensure!(found == id, "device {device:#x} is {found:#x}, not {id:#x}");
            machine.configure(arch, device, 0x10, Some(bar as u32))?;
            // Memory space and bus master.
            machine.configure(arch, device, 4, Some(6))?;
        }
        // TCTL.EN, and a ring of eight descriptors.
        machine.qtest.write32(reader + 0x400, 2)?;
        machine.qtest.write32(reader + 0x3808, 128)?;
        Ok(machine)
    }

    /// Reads, or writes and reads, a configuration register.
    fn configure(&mut self, arch: Arch, device: u32, register: u32, value: Option<u32>) -> Result<u32> {
        match arch {
            Arch::Aarch64 => {
                let at = 0x40_1000_0000 + u64::from(device << 12 | register);
                value.map_or(Ok(()), |value| self.qtest.write32(at, value))?;
                self.qtest.ask32(at)?;
            }
            Arch::X86_64 => {
                self.qtest.out32(0xcf8, 1 << 31 | device << 8 | register)?;
                value.map_or(Ok(()), |value| self.qtest.out32(0xcfc, value))?;
                self.qtest.ask(format_args!("inl 0xcfc"))?;
            }
        }
        Ok(self.qtest.result()? as u32)
    }

    /// Lets a device do an access that may end at any address of `allowed`. If that is empty, `decoys` are watched: it
    /// should end at none of them.
    pub(super) fn access(&mut self, access: Access, allowed: &[u64], decoys: &[u64]) -> Result<Landing> {
        match access.kind {
            Kind::Read => self.read(access.address, allowed, decoys),
            Kind::Write => self.write(access.address, allowed, decoys),
        }
    }

    /// The e1000 fetches one transmit descriptor. Only where it should come from there is one that it counts.
    fn read(&mut self, address: u64, allowed: &[u64], decoys: &[u64]) -> Result<Landing> {
        let (marked, landing) = match allowed {
            [] => (decoys, Landing::Elsewhere),
            _ => (allowed, Landing::Allowed),
        };
        for place in marked {
            self.qtest.write64(place + 8, END_OF_PACKET)?;
        }
        let reader = self.reader;
        self.qtest.write32(reader + 0x3800, address as u32)?;
        self.qtest.write32(reader + 0x3804, (address >> 32) as u32)?;
        // Head 0, and tail 1: go.
        self.qtest.write32(reader + 0x3810, 0)?;
        self.qtest.write32(reader + 0x3818, 1)?;
        for place in marked {
            self.qtest.write64(place + 8, 0)?;
        }
        self.qtest.ask32(reader + 0x40d4)?;
        Ok(if self.qtest.result()? == 0 { Landing::Nowhere } else { landing })
    }

    /// The test device writes four bytes.
    fn write(&mut self, address: u64, allowed: &[u64], decoys: &[u64]) -> Result<Landing> {
        let writer = self.writer;
        // It also looks for what it wrote, at an address without translation; the answer to that is not used.
        let look = allowed.iter().chain(decoys).next().copied().unwrap_or(0);
        for (register, value) in [(0x04, address), (0x1c, look)] {
            self.qtest.write32(writer + register, value as u32)?;
            self.qtest.write32(writer + register + 4, (value >> 32) as u32)?;
        }
        // Four bytes; on Arm from the Non-secure world; armed.
        for (register, value) in [(0x0c, 4), (0x18, 0xa), (0x14, 1)] {
            self.qtest.write32(writer + register, value)?;
        }
        self.qtest.ask32(writer)?;
        self.qtest.ask32(writer + 0x10)?;
        for place in allowed.iter().chain(decoys) {
            self.qtest.ask64(*place)?;
            self.qtest.write64(*place, 0)?;
        }
        let results = self.qtest.results()?;
        let [_, result, ref places @ ..] = results[..] else { bail!("qtest: answers are missing") };
        Ok(if places.iter().take(allowed.len()).any(|word| *word == PATTERN) {
            Landing::Allowed
        } else if result == 0xdead_0002 {
            Landing::Nowhere
        } else {
            Landing::Elsewhere
        })
    }
}

impl Machine for Emulated {
    fn store(&mut self, address: u64, word: u64) -> Result<()> {
        self.qtest.write64(address, word)
    }

    fn load(&mut self, address: u64, count: u64) -> Result<Vec<u64>> {
        for word in 0..count {
            self.qtest.ask64(address + 8 * word)?;
        }
        self.qtest.results()
    }

    fn write32(&mut self, register: u64, value: u32) -> Result<()> {
        self.qtest.write32(self.unit + register, value)
    }

    fn write64(&mut self, register: u64, value: u64) -> Result<()> {
        self.qtest.write64(self.unit + register, value)
    }

    fn read32(&mut self, register: u64) -> Result<u32> {
        self.qtest.ask32(self.unit + register)?;
        Ok(self.qtest.result()? as u32)
    }

    fn read64(&mut self, register: u64) -> Result<u64> {
        self.qtest.ask64(self.unit + register)?;
        self.qtest.result()
    }
}

/// A modelled IOMMU.
pub(super) enum Unit {
    Smmu(Smmu),
    Vtd(Vtd),
}

/// A model and its memory.
pub(super) struct Modelled {
    pub(super) ram: Arc<Ram>,
    pub(super) unit: Unit,
}

impl Modelled {
    /// All that may become of an access, by what is in memory and what may be cached.
    pub(super) fn reachable(&self, access: Access) -> BTreeSet<Outcome> {
        match &self.unit {
            Unit::Smmu(smmu) => smmu.reachable(access.request()),
            Unit::Vtd(vtd) => vtd.reachable(access.request()),
        }
    }

    /// Does the access as memory says.
    pub(super) fn access(&mut self, access: Access) {
        match &self.unit {
            Unit::Smmu(smmu) => smmu.dma(access.request(), Mode::Fresh),
            Unit::Vtd(vtd) => vtd.dma(access.request(), Mode::Fresh),
        };
    }
}

impl Machine for Modelled {
    fn store(&mut self, address: u64, word: u64) -> Result<()> {
        self.ram.store_all(address, &[word]);
        Ok(())
    }

    fn load(&mut self, address: u64, count: u64) -> Result<Vec<u64>> {
        Ok((0..count).map(|word| self.ram.load(address + 8 * word)).collect())
    }

    fn write32(&mut self, register: u64, value: u32) -> Result<()> {
        match &self.unit {
            Unit::Smmu(smmu) => smmu.write32(register, value),
            Unit::Vtd(vtd) => vtd.write32(register, value),
        }
        Ok(())
    }

    fn write64(&mut self, register: u64, value: u64) -> Result<()> {
        match &self.unit {
            Unit::Smmu(smmu) => smmu.write64(register, value),
            Unit::Vtd(vtd) => vtd.write64(register, value),
        }
        Ok(())
    }

    fn read32(&mut self, register: u64) -> Result<u32> {
        Ok(match &self.unit {
            Unit::Smmu(smmu) => smmu.read32(register),
            Unit::Vtd(vtd) => vtd.read32(register),
        })
    }

    fn read64(&mut self, register: u64) -> Result<u64> {
        Ok(match &self.unit {
            Unit::Smmu(smmu) => smmu.read64(register),
            Unit::Vtd(vtd) => vtd.read64(register),
        })
    }
}
