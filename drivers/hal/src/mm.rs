//! A process's address space, as a kernel shows it to the drivers.

#![expect(unsafe_code, reason = "sharing CPU page tables is a contract of this crate")]

use crate::{Access, Arc, Asid, OutOfMemory, TableRoot};

/// A CPU address space whose page tables devices can share.
///
/// # Implementation safety
///
/// - [`root`](Self::root) never changes, and its tables stay valid until every notifier's
///   [`release`](MmNotifier::release) has returned.
/// - Whoever removes or restricts an entry calls [`invalidate`](MmNotifier::invalidate) on all notifiers after the
///   entry changed and before the memory behind it is reused.
/// - Entries reach memory as [`TableRoot::writes`] says.
pub unsafe trait Mm: Send + Sync {
    /// The tables, with the format, widths and memory attributes that a walker needs.
    fn root(&self) -> TableRoot;

    /// An ASID that the kernel pinned for this address space and invalidates by broadcast, if it has one.
    fn pinned_asid(&self) -> Option<Asid> {
        None
    }

    /// Registers a notifier; it stays until [`unsubscribe`](Self::unsubscribe).
    fn subscribe(&self, notifier: Arc<dyn MmNotifier>) -> Result<(), OutOfMemory>;

    /// Removes a notifier; returns when none of its calls is running.
    fn unsubscribe(&self, notifier: &Arc<dyn MmNotifier>);

    /// Resolves a fault that a device met, as the CPU's page-fault handler would.
    fn handle_fault(&self, fault: MmFault) -> FaultOutcome;
}

/// What an address space tells those who cache its translations.
pub trait MmNotifier: Send + Sync {
    /// Entries in `first..=last` were removed or restricted; `u64::MAX` as last address means all from `first` on.
    fn invalidate(&self, first: u64, last: u64);

    /// The address space is going away. When this returns, no device uses its tables.
    fn release(&self);
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
