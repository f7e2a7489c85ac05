//! Page faults, of CPUs and of devices alike, and the pages that must not fault.

use super::page::{Page, UserFrame};
use super::space::State;
use super::{AddressSpace, MmError, PageRange};
use core::sync::atomic::Ordering;
use portcullis_hal::{Access, Attributes, FaultOutcome, Gather, Iova, Mapping};

impl AddressSpace {
    /// Gives the page at `address` what an access needs: memory, a copy of its own, an entry.
    pub(crate) fn resolve(&self, address: u64, access: Access) -> FaultOutcome {
        let mut state = self.state.lock();
        match self.make_present(&mut state, address, access) {
            Ok(()) => {
                self.faults.fetch_add(1, Ordering::Relaxed);
                FaultOutcome::Resolved
            }
            Err(MmError::Ended | MmError::NotMapped(_) | MmError::Access(_) | MmError::Range(_)) => {
                FaultOutcome::Denied
            }
            Err(error) => {
                log::warn!("page fault at {address:#x} not resolved: {error}");
                FaultOutcome::Failed
            }
        }
    }

    /// As [`resolve`](Self::resolve), under the lock.
    pub(super) fn make_present(
        &self,
        state: &mut State,
        address: u64,
        access: Access,
    ) -> Result<(), MmError> {
        state.running()?;
        let range = PageRange::page_of(address)?;
        let region = state.regions.at(address).ok_or(MmError::NotMapped(address))?;
        let allowed = region.access();
        if !allowed.contains(access) {
            return Err(MmError::Access(access));
        }
        let place = region.page_mut(address).ok_or(MmError::NotMapped(address))?;
        let Some(page) = place else {
            let frame = UserFrame::zeroed()?;
            self.set_entry(range, &frame, allowed)?;
            *place = Some(Page { frame, pins: 0 });
            return Ok(());
        };
        let present = self.table.translate(Iova::new(range.first())).map(|entry| entry.attributes.access);
        if present.is_some_and(|present| present.contains(access)) {
            // Somebody else was faster.
            return Ok(());
        }
        if !page.frame.is_sole() && access.contains(Access::WRITE) {
            let copy = page.frame.copied()?;
            return self.exchange(state, range, copy, allowed);
        }
        let given = if page.frame.is_sole() { allowed } else { allowed - Access::WRITE };
        if present.is_none() {
            return self.set_entry(range, &page.frame, given);
        }
        let mut gather = Gather::new();
        self.table.protect(range.iova(), |_| given, &mut gather)?;
        // Hardware need not look again by itself before it refuses.
        self.forget(state, &mut gather)
    }

    /// Makes the entry of a page that has none.
    fn set_entry(&self, range: PageRange, frame: &UserFrame, access: Access) -> Result<(), MmError> {
        let attributes = Attributes::memory(access);
        Ok(self.table.map(&[Mapping { iova: range.iova().start(), memory: frame.range(), attributes }])?)
    }

    /// Puts `frame` in the place of a page's memory, which is shared. Nobody uses the old memory by this page when the
    /// new one can be seen.
    fn exchange(
        &self,
        state: &mut State,
        range: PageRange,
        frame: UserFrame,
        access: Access,
    ) -> Result<(), MmError> {
        let mut gather = Gather::new();
        self.table.unmap(range.iova(), &mut gather)?;
        self.forget(state, &mut gather)?;
        self.set_entry(range, &frame, access)?;
        if let Some(page) = state.page_mut(range.first()) {
            page.frame = frame;
        }
        Ok(())
    }

    /// Gives the pinned pages in `range` the entry that their region allows.
    pub(super) fn settle_pinned(&self, state: &mut State, range: PageRange) -> Result<(), MmError> {
        range.pages().try_for_each(|address| {
            let Some(region) = state.regions.at(address) else { return Ok(()) };
            let access = region.access() & (Access::READ | Access::WRITE);
            match region.page_mut(address) {
                Some(Some(page)) if page.pins > 0 => self.make_present(state, address, access),
                _ => Ok(()),
            }
        })
    }
}
