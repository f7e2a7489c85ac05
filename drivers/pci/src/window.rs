//! Addresses on the bus, and the windows through which the host reaches them.

use core::fmt;
use portcullis_hal::PhysAddr;
use thiserror::Error;

/// An address as a BAR or a bridge window holds it. The host bridge may shift it against the CPU's view.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BusAddress(u64);

impl BusAddress {
    /// The address with this value.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The value.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The CPU's view of it, where the host bridge shifts nothing, as on every PC.
    pub const fn unshifted(self) -> PhysAddr {
        PhysAddr::new(self.0)
    }
}

impl fmt::Display for BusAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for BusAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BusAddress({:#x})", self.0)
    }
}

/// A window of the host bridge is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a window of {len:#x} bytes from {bus} is empty or wraps around")]
pub struct HostWindowError {
    /// Where it would begin.
    pub bus: BusAddress,
    /// How long it would be.
    pub len: u64,
}

/// A range of bus addresses that the host bridge forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostWindow {
    first: u64,
    last: u64,
    phys: PhysAddr,
}

impl HostWindow {
    /// The window of `len` bytes from `bus`, which the CPU sees from `phys` on.
    ///
    /// # Errors
    ///
    /// It is empty, or wraps around on one side or the other.
    pub fn new(bus: BusAddress, phys: PhysAddr, len: u64) -> Result<Self, HostWindowError> {
        let error = HostWindowError { bus, len };
        let distance = len.checked_sub(1).ok_or(error)?;
        let last = bus.0.checked_add(distance).ok_or(error)?;
        phys.checked_add(distance).ok_or(error)?;
        Ok(Self { first: bus.0, last, phys })
    }

    /// The first bus address.
    pub const fn first(&self) -> BusAddress {
        BusAddress(self.first)
    }

    /// The last bus address.
    pub const fn last(&self) -> BusAddress {
        BusAddress(self.last)
    }

    /// The CPU's view of `len` bytes from `address`, if they all lie in the window.
    pub fn to_phys(&self, address: BusAddress, len: u64) -> Option<PhysAddr> {
        let end = address.0.checked_add(len.checked_sub(1)?)?;
        if address.0 < self.first || end > self.last {
            return None;
        }
        self.phys.checked_add(address.0 - self.first)
    }
}

/// The memory windows of a host bridge, as firmware describes them (`ranges` in the device tree).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HostWindows {
    /// Below 4 GiB, for whatever cannot lie above.
    pub low: Option<HostWindow>,
    /// For prefetchable 64-bit BARs; anywhere.
    pub high: Option<HostWindow>,
}

impl HostWindows {
    /// The CPU's view of `len` bytes from `address`, if they lie in one of the windows.
    pub fn to_phys(&self, address: BusAddress, len: u64) -> Option<PhysAddr> {
        let windows = [self.low, self.high];
        windows.iter().flatten().find_map(|window| window.to_phys(address, len))
    }
}
