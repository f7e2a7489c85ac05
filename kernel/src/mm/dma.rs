//! What devices see of an address space.

#![expect(unsafe_code, reason = "implements the contract under which devices share the tables")]

use super::space::Life;
use super::{AddressSpace, MmError, PageRange};
use crate::memory::KernelHal;
use portcullis_hal::{
    Access, Arc, Asid, FaultOutcome, Hal, MapError, Mm, MmFault, MmNotifier, PinError, SubscribeError,
    TableRoot, list,
};

// SAFETY: the root lives as long as the space, which its users hold; the tables below it go when `release` has returned.
// Whatever removes or restricts an entry goes through `forget`, before memory is reused, and the page tables are made
// with `TableWrites::Cleaned`.
unsafe impl Mm for AddressSpace {
    fn root(&self) -> TableRoot {
        self.table_root()
    }

    /// The CPUs' own, where invalidations of it are broadcast.
    fn pinned_asid(&self) -> Option<Asid> {
        cfg!(target_arch = "aarch64").then_some(self.tables.asid)
    }

    fn subscribe(&self, notifier: Arc<dyn MmNotifier>) -> Result<(), SubscribeError> {
        let mut state = self.state.lock();
        state.running().map_err(|_| SubscribeError::Released)?;
        Ok(list::push(&mut state.notifiers, notifier)?)
    }

    fn unsubscribe(&self, notifier: &Arc<dyn MmNotifier>) {
        // All calls are made under the lock, but for those at the end.
        let mut state = self.state.lock();
        while state.life == Life::Ending {
            drop(state);
            KernelHal.relax();
            state = self.state.lock();
        }
        state.notifiers.retain(|known| !Arc::ptr_eq(known, notifier));
    }

    fn handle_fault(&self, fault: MmFault) -> FaultOutcome {
        self.resolve(fault.address, fault.access)
    }

    fn pin(&self, first: u64, last: u64, access: Access) -> Result<(), PinError> {
        let denied = |_| PinError::Denied(first);
        self.pin_pages(PageRange::around(first, last).map_err(denied)?, access)
    }

    fn unpin(&self, first: u64, last: u64) {
        if let Ok(range) = PageRange::around(first, last) {
            self.unpin_pages(range);
        }
    }
}

impl AddressSpace {
    /// Gives all pages of `range` memory of their own and entries that allow what their regions do, at least `access`,
    /// and keeps both until they are unpinned, unmapped or protected: for devices that cannot fault. Nothing is pinned
    /// after an error.
    fn pin_pages(&self, range: PageRange, access: Access) -> Result<(), PinError> {
        for (done, address) in range.pages().enumerate() {
            if let Err(error) = self.pin_page(address, access) {
                if done > 0 {
                    self.unpin_pages(PageRange::of_pages(range.first(), done));
                }
                return Err(match error {
                    MmError::OutOfMemory(error) | MmError::Map(MapError::OutOfMemory(error)) => error.into(),
                    _ => PinError::Denied(address),
                });
            }
        }
        Ok(())
    }

    fn pin_page(&self, address: u64, access: Access) -> Result<(), MmError> {
        let mut state = self.state.lock();
        let region = state.regions.at(address).ok_or(MmError::NotMapped(address))?;
        // A page that may be written to must not be shared, whatever this pin is for: copying it later would take it
        // from under the device.
        let settled = access | region.access() & (Access::READ | Access::WRITE);
        self.make_present(&mut state, address, settled)?;
        if let Some(page) = state.page_mut(address) {
            page.pins = page.pins.saturating_add(1);
        }
        Ok(())
    }

    /// Takes one pin from each page of `range` that has any.
    fn unpin_pages(&self, range: PageRange) {
        let mut state = self.state.lock();
        for address in range.pages() {
            if let Some(page) = state.page_mut(address) {
                page.pins = page.pins.saturating_sub(1);
            }
        }
    }
}
