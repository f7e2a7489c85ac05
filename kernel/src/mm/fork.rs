//! A second address space with the same contents.

use super::page::{Page, UserFrame};
use super::{AddressSpace, MmError, PageRange};
use portcullis_hal::{Access, Arc, Gather, OutOfMemory};

impl AddressSpace {
    /// A copy of the address space, whose pages share their memory with this one's until one side writes. Devices do
    /// not share the copy. Pinned pages are copied at once: devices may write to them at any time.
    pub(crate) fn fork(&self) -> Result<Arc<Self>, MmError> {
        let child = Self::new()?;
        let mut state = self.state.lock();
        state.running()?;
        let mut gather = Gather::new();
        let copied = state.regions.copied(|address, page| {
            let frame = share(page)?;
            if page.pins == 0 {
                let range = PageRange::of_pages(address, 1);
                self.table.protect(range.iova(), |present| present - Access::WRITE, &mut gather)?;
            }
            Ok::<_, MmError>(Page { frame, pins: 0 })
        });
        // Also after an error: what has become read-only is made writable again by the next write.
        self.forget(&state, &mut gather)?;
        child.state.lock().regions = copied?;
        Ok(child)
    }
}

/// The memory that the other side gets.
fn share(page: &Page) -> Result<UserFrame, OutOfMemory> {
    if page.pins > 0 { page.frame.copied() } else { Ok(page.frame.clone()) }
}
