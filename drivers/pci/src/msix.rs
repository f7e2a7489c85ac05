//! Message-signalled interrupts with a table in a BAR (7.7.2).

use crate::bar::Bar;
use crate::capability::CapabilityError;
use crate::config::{ConfigSpace, Place};
use crate::msi::MsiError;
use crate::spec::{MsixControl, MsixLocation, MsixVectorControl, msix};
use portcullis_hal::{Iova, Mmio};

/// The MSI-X capability of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixCapability {
    place: Place,
    /// How many vectors the table has, 1 to 2048.
    pub vectors: u16,
    /// The BAR with the table, 0 to 7 as the device says; only 0 to 5 exist.
    pub table_bar: u8,
    /// Where in it the table begins, in bytes.
    pub table_offset: u32,
    /// The BAR with the pending bits.
    pub pending_bar: u8,
    /// Where in it they begin, in bytes.
    pub pending_offset: u32,
}

impl MsixCapability {
    pub(crate) fn read<M: Mmio>(config: &ConfigSpace<M>, place: Place) -> Result<Self, CapabilityError> {
        let place = place.holding(msix::PENDING + 4)?;
        let control = MsixControl::from_bits(config.read_at(place, 0));
        let table = MsixLocation::from_bits(config.read_at(place, msix::TABLE));
        let pending = MsixLocation::from_bits(config.read_at(place, msix::PENDING));
        Ok(Self {
            place,
            vectors: control.last_entry() + 1,
            table_bar: table.bar(),
            table_offset: table.units() << 3,
            pending_bar: pending.bar(),
            pending_offset: pending.units() << 3,
        })
    }

    fn control<M: Mmio>(&self, config: &ConfigSpace<M>) -> MsixControl {
        MsixControl::from_bits(config.read_at(self.place, 0))
    }

    fn set_control<M: Mmio>(&self, config: &ConfigSpace<M>, control: MsixControl) {
        config.write_at(self.place, 0, control.into_bits());
    }

    /// Turns MSI-X on and lets unmasked vectors go. The function stops using INTx and MSI.
    pub fn enable<M: Mmio>(&self, config: &ConfigSpace<M>) {
        let control = self.control(config).with_enable(true).with_function_mask(false);
        self.set_control(config, control);
    }

    /// Turns MSI-X on with all vectors held back, as it has to be while the table is set up.
    pub fn enable_masked<M: Mmio>(&self, config: &ConfigSpace<M>) {
        let control = self.control(config).with_enable(true).with_function_mask(true);
        self.set_control(config, control);
    }

    /// Turns MSI-X off.
    pub fn disable<M: Mmio>(&self, config: &ConfigSpace<M>) {
        let control = self.control(config).with_enable(false).with_function_mask(false);
        self.set_control(config, control);
    }
}

/// The vectors of a function, in its BAR.
#[derive(Debug)]
pub struct MsixTable<M> {
    bar: M,
    offset: usize,
    vectors: u16,
}

impl<M: Mmio> MsixTable<M> {
    /// The table of `capability` in `bar`, whose registers are `mmio`.
    ///
    /// # Errors
    ///
    /// [`TableOutside`](MsiError::TableOutside), if it is another BAR or the table does not lie inside it.
    pub fn new(mmio: M, bar: &Bar, capability: &MsixCapability) -> Result<Self, MsiError> {
        let bytes = u32::from(capability.vectors) * msix::ENTRY_SIZE as u32;
        let end = u64::from(capability.table_offset) + u64::from(bytes);
        if bar.index != capability.table_bar || !bar.is_memory() || end > bar.size {
            return Err(MsiError::TableOutside {
                bar: capability.table_bar,
                offset: capability.table_offset,
                bytes,
                given: *bar,
            });
        }
        Ok(Self { bar: mmio, offset: capability.table_offset as usize, vectors: capability.vectors })
    }

    /// How many vectors there are.
    pub const fn vectors(&self) -> u16 {
        self.vectors
    }

    fn entry(&self, vector: u16) -> Result<usize, MsiError> {
        if vector >= self.vectors {
            return Err(MsiError::NoSuchVector { vector, vectors: self.vectors });
        }
        Ok(self.offset + usize::from(vector) * msix::ENTRY_SIZE)
    }

    /// Masks a vector and gives it a message; [`unmask`](Self::unmask) lets it go.
    ///
    /// `address` is what the function puts on the bus: behind an IOMMU, an address that its domain translates to
    /// the doorbell.
    ///
    /// # Errors
    ///
    /// [`Unaligned`](MsiError::Unaligned), [`NoSuchVector`](MsiError::NoSuchVector); nothing was changed then.
    pub fn program(&self, vector: u16, address: Iova, data: u32) -> Result<(), MsiError> {
        let entry = self.entry(vector)?;
        if !address.is_aligned(4) {
            return Err(MsiError::Unaligned(address));
        }
        // An entry may change only while it is masked (6.1.4.2).
        self.mask(vector)?;
        self.bar.write32(entry + msix::ADDRESS, address.get() as u32);
        self.bar.write32(entry + msix::ADDRESS_UPPER, (address.get() >> 32) as u32);
        self.bar.write32(entry + msix::DATA, data);
        Ok(())
    }

    /// Holds a vector back; when it returns, no message of it is under way from the function.
    ///
    /// # Errors
    ///
    /// [`NoSuchVector`](MsiError::NoSuchVector).
    pub fn mask(&self, vector: u16) -> Result<(), MsiError> {
        let register = self.entry(vector)? + msix::CONTROL;
        let control = MsixVectorControl::from_bits(self.bar.read32(register));
        self.bar.write32(register, control.with_masked(true).into_bits());
        // The write is posted; a read of the function pushes it there, and its messages here.
        self.bar.read32(register);
        Ok(())
    }

    /// Lets a vector go, also a message that was held back.
    ///
    /// # Errors
    ///
    /// [`NoSuchVector`](MsiError::NoSuchVector).
    pub fn unmask(&self, vector: u16) -> Result<(), MsiError> {
        let register = self.entry(vector)? + msix::CONTROL;
        let control = MsixVectorControl::from_bits(self.bar.read32(register));
        self.bar.write32(register, control.with_masked(false).into_bits());
        Ok(())
    }
}
