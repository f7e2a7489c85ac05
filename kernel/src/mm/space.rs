//! An address space: its regions, its tables, the CPUs in it, and the devices that share it.

#![expect(unsafe_code, reason = "gives tables to the CPU, and frees them when all have forgotten them")]

use super::asid::Lease;
use super::lock::SpaceLock;
use super::page::{Page, UserFrame};
use super::table::{self, UserTable};
use super::{MmError, PAGE, PageRange, Region, Regions};
use crate::memory::KernelHal;
use alloc::vec::Vec;
use core::marker::PhantomData;
use core::mem::{self, ManuallyDrop};
use core::sync::atomic::{AtomicU64, Ordering};
use portcullis_arch::{CpuSet, UserTables, cpu, paging, tlb};
use portcullis_hal::{Access, Arc, Gather, MmNotifier, TableRoot, barrier};

/// An address space of user code.
pub(crate) struct AddressSpace {
    /// Freed at the end of this, unless somebody may still walk them.
    pub(super) table: ManuallyDrop<UserTable>,
    pub(super) tables: UserTables,
    /// The CPUs that run in it, one bit each.
    cpus: AtomicU64,
    pub(super) state: SpaceLock<State>,
    /// Faults that were resolved.
    pub(super) faults: AtomicU64,
    _asid: Lease,
}

/// What changes, under the lock.
pub(super) struct State {
    pub(super) regions: Regions,
    pub(super) notifiers: Vec<Arc<dyn MmNotifier>>,
    pub(super) life: Life,
    /// Whether the tables may be freed.
    walkers: Walkers,
}

/// Who may still walk the tables when nobody knows the space any more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Walkers {
    None,
    /// A device, whose unit did not confirm its release.
    Some,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Running,
    /// Notifiers are told of the end, without the lock; nobody else changes them.
    Ending,
    Ended,
}

impl State {
    /// The page at `address`, if it has memory.
    pub(super) fn page_mut(&mut self, address: u64) -> Option<&mut Page> {
        self.regions.at(address)?.page_mut(address)?.as_mut()
    }

    /// Refuses a space that is going or gone.
    pub(super) fn running(&self) -> Result<(), MmError> {
        if self.life == Life::Running { Ok(()) } else { Err(MmError::Ended) }
    }
}

impl AddressSpace {
    /// An empty address space.
    pub(crate) fn new() -> Result<Arc<Self>, MmError> {
        let table = table::new()?;
        let asid = Lease::take()?;
        let tables = UserTables { root: table.root().root, asid: asid.get() };
        // SAFETY: the root is a frame of its own, and its table uses the lower half at most.
        unsafe { paging::adopt(&tables) }?;
        let state = State {
            regions: Regions::new(),
            notifiers: Vec::new(),
            life: Life::Running,
            walkers: Walkers::None,
        };
        Ok(Arc::try_new(Self {
            table: ManuallyDrop::new(table),
            tables,
            cpus: AtomicU64::new(0),
            state: SpaceLock::new(state),
            faults: AtomicU64::new(0),
            _asid: asid,
        })?)
    }

    /// The tables, for walkers.
    pub(crate) fn table_root(&self) -> TableRoot {
        self.table.root()
    }

    /// Adds pages of zeros, which get memory when they are touched.
    pub(crate) fn map(&self, range: PageRange, access: Access) -> Result<(), MmError> {
        allowed(access)?;
        let region = Region::new(range, access)?;
        let mut state = self.state.lock();
        state.running()?;
        Ok(state.regions.add(region)?)
    }

    /// Adds a program, which can be read and executed.
    pub(crate) fn map_program(&self, range: PageRange, code: &[u8]) -> Result<(), MmError> {
        if code.len() > range.count() * PAGE as usize {
            return Err(MmError::TooLong(code.len()));
        }
        let mut region = Region::new(range, Access::READ | Access::EXECUTE)?;
        for ((_, place), part) in region.pages_mut().zip(code.chunks(PAGE as usize)) {
            let frame = UserFrame::zeroed()?;
            frame.frames().write(0, part);
            let memory = paging::phys_to_virt(frame.frames().phys());
            cpu::publish_code(memory, PAGE as usize);
            *place = Some(Page { frame, pins: 0 });
        }
        let mut state = self.state.lock();
        state.running()?;
        Ok(state.regions.add(region)?)
    }

    /// Takes pages out, and with them their memory, pinned or not. Returns how many had memory.
    pub(crate) fn unmap(&self, range: PageRange) -> Result<usize, MmError> {
        let mut state = self.state.lock();
        state.running()?;
        state.regions.cut(range)?;
        self.remove(&mut state, range)
    }

    /// Changes what may be done with pages, all of which belong to regions.
    ///
    /// A permission that is taken away is gone when this returns. One that is given shows with the next fault; pinned
    /// pages, which devices reach that cannot fault, have it when this returns.
    pub(crate) fn protect(&self, range: PageRange, access: Access) -> Result<(), MmError> {
        allowed(access)?;
        let mut state = self.state.lock();
        state.running()?;
        state.regions.protect(range, access)?;
        let mut gather = Gather::new();
        self.table.protect(range.iova(), |present| present & access, &mut gather)?;
        self.forget(&state, &mut gather)?;
        self.settle_pinned(&mut state, range)
    }

    /// Ends the address space: devices lose their access, user code faults at its next instruction, and all memory goes
    /// back. The tables stay until nobody knows the space any more.
    ///
    /// Of several callers one ends it. The others get [`MmError::Ended`] at once, also while devices still have their
    /// access: that those are cut off, only the first one's return says.
    pub(crate) fn end(&self) -> Result<usize, MmError> {
        let mut state = self.state.lock();
        state.running()?;
        state.life = Life::Ending;
        let notifiers = mem::take(&mut state.notifiers);
        // Drivers stop their devices now, which may wait for an answer to a page request, and that for this lock.
        drop(state);
        let mut released = Ok(());
        for notifier in &notifiers {
            released = released.and(notifier.release());
        }
        let mut state = self.state.lock();
        state.notifiers = notifiers;
        state.life = Life::Ended;
        if let Err(error) = released {
            // Neither the tables nor what they map may be reused.
            state.walkers = Walkers::Some;
            state.regions.forget_all();
            return Err(error.into());
        }
        self.remove(&mut state, PageRange::all())
    }

    /// Pages that have memory.
    pub(crate) fn resident(&self) -> usize {
        self.state.lock().regions.iter().map(Region::resident).sum()
    }

    /// The memory behind an address, if it has any. It stays as long as the result does, whatever becomes of the page.
    pub(crate) fn frame_at(&self, address: u64) -> Option<UserFrame> {
        let mut state = self.state.lock();
        Some(state.page_mut(address)?.frame.clone())
    }

    /// Faults that were resolved so far.
    pub(crate) fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// Takes the regions in `range` out, which are whole, and gives their memory back when nobody reaches it any more.
    fn remove(&self, state: &mut State, range: PageRange) -> Result<usize, MmError> {
        let mut gather = Gather::new();
        self.table.unmap(range.iova(), &mut gather)?;
        let forgotten = self.forget(state, &mut gather);
        let mut resident = 0;
        while let Some(region) = state.regions.take_within(range) {
            resident += region.resident();
            if forgotten.is_err() {
                // Somebody may still reach it.
                mem::forget(region);
            }
        }
        forgotten.map(|()| resident)
    }

    /// Makes all CPUs and devices forget what the gather collected, and frees the tables that were cut off. After an
    /// error they are lost, and the memory must not be reused either.
    pub(super) fn forget(&self, state: &State, gather: &mut Gather) -> Result<(), MmError> {
        let Some(range) = gather.range() else { return Ok(()) };
        let (first, last) = (range.start().get(), range.last().get());
        // A CPU that enters after this reads the changed tables; one that entered before is in the set.
        barrier::store_then_load();
        let cpus = CpuSet::from_bits(self.cpus.load(Ordering::SeqCst));
        let mut forgotten = tlb::shoot_down(cpus, &self.tables, first, last).map_err(MmError::from);
        // All are told in any case: what one does not confirm is no reason to leave it to the others.
        for notifier in &state.notifiers {
            forgotten = forgotten.and(notifier.invalidate(first, last).map_err(MmError::from));
        }
        if let Err(error) = forgotten {
            gather.quarantine();
            return Err(error);
        }
        // SAFETY: all CPUs in the space and all devices that share it have forgotten the range; the tables came from
        // the kernel's frames.
        let _ = unsafe { gather.finish(&KernelHal) };
        Ok(())
    }

    /// Lets this CPU run in the space until the result is dropped. It is in no other one meanwhile.
    pub(crate) fn activate(&self) -> Active<'_> {
        let cpu = cpu::index();
        // Before the walker can read an entry, whoever changes entries knows of this CPU.
        self.cpus.fetch_or(CpuSet::one(cpu).bits(), Ordering::SeqCst);
        // SAFETY: adopted when they were made, and borrowed until they are deactivated; they map user pages only.
        unsafe { paging::activate(&self.tables) };
        Active { space: self, cpu, stays: PhantomData }
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        // Before the id serves another space.
        tlb::retire(&self.tables);
        if self.state.lock().walkers == Walkers::None {
            // SAFETY: not used after this. No CPU is in the space, and notifiers hold it as long as devices share it.
            unsafe { ManuallyDrop::drop(&mut self.table) };
        }
    }
}

/// A CPU's stay in an address space.
pub(crate) struct Active<'a> {
    space: &'a AddressSpace,
    cpu: usize,
    /// Not to be sent to another CPU.
    stays: PhantomData<*const ()>,
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        paging::deactivate();
        self.space.cpus.fetch_and(!CpuSet::one(self.cpu).bits(), Ordering::SeqCst);
    }
}

/// Refuses what the formats or the CPUs cannot express.
fn allowed(access: Access) -> Result<(), MmError> {
    let both = Access::WRITE | Access::EXECUTE;
    if access.contains(Access::READ) && !access.contains(both) {
        Ok(())
    } else {
        Err(MmError::Access(access))
    }
}
