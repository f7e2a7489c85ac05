//! A second address space with the same contents.

use super::page::UserFrame;
use super::region::{Page, Region};
use super::space::State;
use super::{AddressSpace, MmError, PageRange};
use portcullis_hal::{Access, Arc, Gather, OutOfMemory};

impl AddressSpace {
    /// A copy of the address space, whose pages share their memory with this one's until one side writes. Devices do
    /// not share the copy. Pinned pages are copied at once: devices may write to them at any time.
    pub(crate) fn fork(&self) -> Result<Arc<Self>, MmError> {
        let child = Self::new()?;
        let mut state = self.state.lock();
        if state.life == super::space::Life::Ended {
            return Err(MmError::Ended);
        }
        let mut gather = Gather::new();
        let copied = copy_regions(&mut state, &child, |range| {
            self.table.protect(range.iova(), |present| present - Access::WRITE, &mut gather)?;
            Ok(())
        });
        // Also after an error: what has become read-only is made writable again by the next write.
        self.forget(&state, &mut gather)?;
        copied.map(|()| child)
    }
}

/// Gives `child` copies of all regions. `restrict` takes the permission to write from pages that are shared now.
fn copy_regions(
    state: &mut State,
    child: &AddressSpace,
    mut restrict: impl FnMut(PageRange) -> Result<(), MmError>,
) -> Result<(), MmError> {
    let mut theirs = child.state.lock();
    for region in state.regions.iter_mut() {
        let mut copy = Region::new(region.range(), region.access)?;
        for ((address, place), (_, copied)) in region.pages_mut().zip(copy.pages_mut()) {
            let Some(page) = place else { continue };
            let frame = share(page)?;
            *copied = Some(Page { frame, pins: 0 });
            if page.pins == 0 {
                restrict(PageRange::of_pages(address, 1))?;
            }
        }
        theirs.regions.add(copy)?;
    }
    Ok(())
}

/// The memory that the other side gets.
fn share(page: &Page) -> Result<UserFrame, OutOfMemory> {
    if page.pins > 0 { page.frame.copied() } else { Ok(page.frame.clone()) }
}
