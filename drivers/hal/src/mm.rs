//! A process's address space, as a kernel shows it to the drivers.

#![expect(unsafe_code, reason = "sharing CPU page tables is a contract of this crate")]

use crate::{Access, Arc, Asid, OutOfMemory, SharedTable, SyncError, TableRoot};
use core::fmt;
use thiserror::Error;

/// A CPU address space whose page tables devices can share.
///
/// # Implementation safety
///
/// - [`root`](Self::root) never changes, and its tables stay valid until every notifier's
///   [`release`](MmNotifier::release) has returned; for ever, if one of them returned an error.
/// - Whoever removes or restricts an entry calls [`invalidate`](MmNotifier::invalidate) on all notifiers after the
///   entry changed and before the memory behind it is reused. That memory, and tables that were cut off, are not reused
///   if one of them returned an error.
/// - Entries reach memory as [`TableRoot::writes`] says.
/// - Devices may access the memory that user entries map as these allow, at any time.
/// - From [`pin`](Self::pin) to [`unpin`](Self::unpin), entries stay valid unless a notifier is told otherwise.
pub unsafe trait Mm: Send + Sync {
    /// The tables, with the format, widths and memory attributes that a walker needs.
    fn root(&self) -> TableRoot;

    /// An ASID that the kernel pinned for this address space and invalidates by broadcast, if it has one.
    ///
    /// For units that listen to the CPUs' broadcasts (SMMU_IDR0.BTM with SMMU_CR2.PTM = 0). The drivers of this stack
    /// have theirs not listen: they take ASIDs of their own and learn of every change by the notifier, and so do not
    /// ask for this.
    fn pinned_asid(&self) -> Option<Asid> {
        None
    }

    /// Registers a notifier; it stays until [`unsubscribe`](Self::unsubscribe).
    ///
    /// # Errors
    ///
    /// [`SubscribeError::Released`] as soon as the tables may go without the notifier being told.
    fn subscribe(&self, notifier: Arc<dyn MmNotifier>) -> Result<(), SubscribeError>;

    /// Removes a notifier; returns when none of its calls is running.
    fn unsubscribe(&self, notifier: &Arc<dyn MmNotifier>);

    /// Resolves a fault that a device met, as the CPU's page-fault handler would. After the address space is gone,
    /// every access is denied.
    fn handle_fault(&self, fault: MmFault) -> FaultOutcome;

    /// Makes all pages of `first..=last` resident for a device that cannot wait for them: valid entries with the
    /// accessed flag set, and with the dirty state too where `access` writes, since nothing will fault them in. They
    /// stay so until [`unpin`](Self::unpin), or until the process itself unmaps or protects them, of which notifiers
    /// are told as ever. Pins of the same page add up.
    ///
    /// # Errors
    ///
    /// Nothing is pinned then.
    fn pin(&self, first: u64, last: u64, access: Access) -> Result<(), PinError> {
        let _ = (first, last, access);
        Err(PinError::Unsupported)
    }

    /// Ends a pin of the same range.
    fn unpin(&self, first: u64, last: u64) {
        let _ = (first, last);
    }
}

/// Why a notifier was not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SubscribeError {
    /// The address space is gone, or going.
    #[error("the address space is gone")]
    Released,
    /// No memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// Why pages were not made resident.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PinError {
    /// The address space does not pin pages.
    #[error("the address space does not pin pages")]
    Unsupported,
    /// The process itself may not access them so.
    #[error("the process has no such access at {0:#x}")]
    Denied(u64),
    /// No memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// What an address space tells those who cache its translations.
///
/// Called in thread context. A notifier must not subscribe or unsubscribe from inside a call.
pub trait MmNotifier: Send + Sync {
    /// Entries in `first..=last` were removed or restricted; `u64::MAX` as last address means all from `first` on.
    /// The range covers every entry that changed as a whole, a large one too. When this returns, no device uses the old
    /// ones.
    ///
    /// # Errors
    ///
    /// The hardware did not confirm it: what the old entries led to is not to be reused.
    fn invalidate(&self, first: u64, last: u64) -> Result<(), SyncError>;

    /// The address space is going away. When this returns, no device uses its tables.
    ///
    /// # Errors
    ///
    /// The hardware did not confirm it: neither the tables nor what they map are to be reused.
    fn release(&self) -> Result<(), SyncError>;
}

/// A notifier that is registered with an address space for as long as this is kept.
pub struct MmSubscription {
    mm: Arc<dyn Mm>,
    notifier: Arc<dyn MmNotifier>,
}

impl MmSubscription {
    /// Registers `notifier` with `mm`.
    pub fn new(mm: Arc<dyn Mm>, notifier: Arc<dyn MmNotifier>) -> Result<Self, SubscribeError> {
        mm.subscribe(notifier.clone())?;
        Ok(Self { mm, notifier })
    }

    /// The address space.
    pub fn mm(&self) -> &Arc<dyn Mm> {
        &self.mm
    }

    /// The tables, for a domain that is attached nowhere any more when this is dropped or the address space released,
    /// and that is made to forget what the notifier is told of.
    ///
    /// Not unsafe for the same reason for which it is not unsafe to implement a unit: subscriptions are made by the
    /// part of the stack whose work this is, as [`Mm`] vouches for the tables.
    pub fn table(&self) -> SharedTable {
        // SAFETY: the implementation of Mm vouches for the tables up to the release, and tells the notifier of what it
        // removes; the notifier has devices forget it and cuts them off at the release.
        unsafe { SharedTable::new(self.mm.root()) }
    }
}

impl Drop for MmSubscription {
    fn drop(&mut self) {
        self.mm.unsubscribe(&self.notifier);
    }
}

impl fmt::Debug for MmSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MmSubscription").field(&self.mm.root()).finish()
    }
}

/// A device's access that the tables did not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmFault {
    /// The virtual address.
    pub address: u64,
    /// What the device wanted to do.
    pub access: Access,
}

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOutcome {
    /// The entry is there now; the device tries again.
    Resolved,
    /// The access is not allowed.
    Denied,
    /// It could not be resolved now, for lack of memory say.
    Failed,
}
