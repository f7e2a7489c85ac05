//! Message-signalled interrupts (7.7.1).

use crate::bar::Bar;
use crate::capability::CapabilityError;
use crate::config::{ConfigSpace, Place};
use crate::spec::{MsiControl, msi};
use portcullis_hal::{Iova, Mmio};
use thiserror::Error;

/// A message-signalled interrupt cannot be set up as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MsiError {
    /// The doorbell is not aligned to 4 bytes.
    #[error("message address {0} is not a multiple of 4")]
    Unaligned(Iova),
    /// The doorbell lies above 4 GiB and the function has only 32 address bits.
    #[error("message address {0} does not fit 32 bits")]
    AddressTooHigh(Iova),
    /// MSI has 16 bits of data (MSI-X has 32).
    #[error("message data {0:#x} does not fit 16 bits")]
    DataTooWide(u32),
    /// The function has no mask bits.
    #[error("the function cannot mask its message")]
    NoMask,
    /// The table has fewer vectors.
    #[error("vector {vector} is past the {vectors} of the table")]
    NoSuchVector {
        /// The vector asked for.
        vector: u16,
        /// How many there are.
        vectors: u16,
    },
    /// The table does not lie in the BAR that was given, or not wholly.
    #[error("the MSI-X table of {bytes:#x} bytes at {offset:#x} of BAR {bar} is not in {given}")]
    TableOutside {
        /// The BAR that the capability names.
        bar: u8,
        /// The offset that it names.
        offset: u32,
        /// The length of the table.
        bytes: u32,
        /// The BAR given.
        given: Bar,
    },
}

/// The MSI capability of a function. One message is used of those the function may offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiCapability {
    place: Place,
    /// The function can send to addresses above 4 GiB.
    pub wide: bool,
    /// The function has mask bits.
    pub maskable: bool,
    /// How many messages the function would like, 1 to 32.
    pub messages: u8,
}

impl MsiCapability {
    pub(crate) fn read<M: Mmio>(config: &ConfigSpace<M>, place: Place) -> Result<Self, CapabilityError> {
        let control = MsiControl::from_bits(config.read_at(place.holding(4)?, 0));
        let size = match (control.wide(), control.maskable()) {
            (true, true) => msi::MASK_64 + 4,
            (true, false) => msi::DATA_64 + 4,
            (false, true) => msi::MASK_32 + 4,
            (false, false) => msi::DATA_32 + 4,
        };
        Ok(Self {
            place: place.holding(size)?,
            wide: control.wide(),
            maskable: control.maskable(),
            messages: 1 << control.capable().min(5),
        })
    }

    fn control<M: Mmio>(&self, config: &ConfigSpace<M>) -> MsiControl {
        MsiControl::from_bits(config.read_at(self.place, 0))
    }

    fn set_control<M: Mmio>(&self, config: &ConfigSpace<M>, control: MsiControl) {
        config.write_at(self.place, 0, control.into_bits());
    }

    /// Gives the function one message and leaves MSI off.
    ///
    /// `address` is what the function puts on the bus: behind an IOMMU, an address that its domain translates to
    /// the doorbell.
    ///
    /// # Errors
    ///
    /// [`Unaligned`](MsiError::Unaligned), [`AddressTooHigh`](MsiError::AddressTooHigh),
    /// [`DataTooWide`](MsiError::DataTooWide); nothing was changed then.
    pub fn program<M: Mmio>(
        &self,
        config: &ConfigSpace<M>,
        address: Iova,
        data: u32,
    ) -> Result<(), MsiError> {
        if !address.is_aligned(4) {
            return Err(MsiError::Unaligned(address));
        }
        let upper = (address.get() >> 32) as u32;
        if upper != 0 && !self.wide {
            return Err(MsiError::AddressTooHigh(address));
        }
        if data > 0xffff {
            return Err(MsiError::DataTooWide(data));
        }
        let control = self.control(config).with_enable(false).with_enabled(0);
        self.set_control(config, control);
        config.write_at(self.place, msi::ADDRESS, address.get() as u32);
        if self.wide {
            config.write_at(self.place, msi::ADDRESS_UPPER, upper);
        }
        let register = if self.wide { msi::DATA_64 } else { msi::DATA_32 };
        // The half above the data is reserved, or extended data that stays off.
        config.write_at(self.place, register, data);
        Ok(())
    }

    /// Turns MSI on. The function stops using INTx.
    pub fn enable<M: Mmio>(&self, config: &ConfigSpace<M>) {
        self.set_control(config, self.control(config).with_enable(true));
    }

    /// Turns MSI off.
    pub fn disable<M: Mmio>(&self, config: &ConfigSpace<M>) {
        self.set_control(config, self.control(config).with_enable(false));
    }

    /// Holds the message back.
    ///
    /// # Errors
    ///
    /// [`NoMask`](MsiError::NoMask).
    pub fn mask<M: Mmio>(&self, config: &ConfigSpace<M>) -> Result<(), MsiError> {
        let register = self.mask_register()?;
        config.write_at(self.place, register, config.read_at(self.place, register) | 1);
        Ok(())
    }

    /// Lets the message go, also one that was held back.
    ///
    /// # Errors
    ///
    /// [`NoMask`](MsiError::NoMask).
    pub fn unmask<M: Mmio>(&self, config: &ConfigSpace<M>) -> Result<(), MsiError> {
        let register = self.mask_register()?;
        config.write_at(self.place, register, config.read_at(self.place, register) & !1);
        Ok(())
    }

    fn mask_register(&self) -> Result<u16, MsiError> {
        match (self.maskable, self.wide) {
            (false, _) => Err(MsiError::NoMask),
            (true, true) => Ok(msi::MASK_64),
            (true, false) => Ok(msi::MASK_32),
        }
    }
}
