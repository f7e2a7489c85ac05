//! An address space with page tables in memory that the model walks: demand-zero and copy-on-write pages.

#![expect(unsafe_code, reason = "shares page tables with a device, which is a model")]

use portcullis_hal::{
    Access, Arc, Attributes, FaultOutcome, Gather, Hal, Iova, IovaRange, Mapping, Mm, MmFault, MmNotifier,
    PAGE_SIZE, PhysAddr, PhysRange, PinError, SubscribeError, SyncError, TableRoot, unsize_arc,
};
use portcullis_pgtable::{Config, Format, PageTable};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

/// Where user memory begins; nothing is stored there, only its addresses are looked at, each of which is used once.
const FIRST_PAGE: u64 = 0x10_0000;

/// Memory for processes.
#[derive(Clone, Default)]
pub(crate) struct Pool(std::sync::Arc<AtomicU64>);

impl Pool {
    fn page(&self) -> u64 {
        FIRST_PAGE + self.0.fetch_add(PAGE_SIZE, Ordering::SeqCst)
    }
}

/// A page of a process.
#[derive(Clone, Copy, Debug)]
struct Page {
    writable: bool,
    memory: Option<u64>,
    /// Another process may have the same memory: a write gets some of its own.
    shared: bool,
}

impl Page {
    fn access(&self) -> Access {
        if self.writable && !self.shared { Access::READ | Access::WRITE } else { Access::READ }
    }
}

struct State<H: Hal, F: Format> {
    /// `None` after the end.
    table: Option<PageTable<H, F>>,
    pages: BTreeMap<u64, Page>,
    notifiers: Vec<Arc<dyn MmNotifier>>,
}

pub(crate) struct Process<H: Hal, F: Format> {
    hal: H,
    pool: Pool,
    root: TableRoot,
    state: Mutex<State<H, F>>,
}

impl<H: Hal, F: Format + Send + Sync + 'static> Process<H, F> {
    pub(crate) fn new(hal: &H, pool: &Pool, format: F, config: Config) -> Arc<Self> {
        let table = PageTable::new(hal, format, config).expect("memory");
        let root = table.root();
        let state = State { table: Some(table), pages: BTreeMap::new(), notifiers: Vec::new() };
        let (hal, pool) = (hal.clone(), pool.clone());
        Arc::try_new(Self { hal, pool, root, state: Mutex::new(state) }).expect("memory")
    }

    pub(crate) fn mm(this: &Arc<Self>) -> Arc<dyn Mm> {
        unsize_arc!(this.clone() => dyn Mm)
    }

    fn lock(&self) -> MutexGuard<'_, State<H, F>> {
        self.state.lock().unwrap()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.lock().table.is_none()
    }

    /// Lets the process use a page, which gets memory when it is touched.
    pub(crate) fn reserve(&self, address: u64, writable: bool) {
        let page = Page { writable, memory: None, shared: false };
        self.lock().pages.entry(address).or_insert(page);
    }

    /// What may be reached at a page: its memory, if the access is allowed.
    pub(crate) fn reaches(&self, address: u64, access: Access) -> Option<u64> {
        let state = self.lock();
        let page = state.pages.get(&address).filter(|page| page.access().contains(access))?;
        state.table.as_ref().and(page.memory)
    }

    /// Whether the process itself may access a page so.
    pub(crate) fn allows(&self, address: u64, access: Access) -> bool {
        let state = self.lock();
        let wanted = access.contains(Access::WRITE);
        state.table.is_some() && state.pages.get(&address).is_some_and(|page| page.writable || !wanted)
    }

    /// Takes a range away, or all rights to write to it. Returns whether any of it had memory.
    pub(crate) fn change(&self, first: u64, count: u64, change: Change) -> bool {
        let mut state = self.lock();
        let range = first..first + count * PAGE_SIZE;
        let there = state.pages.range(range.clone()).any(|(_, page)| page.memory.is_some());
        match change {
            Change::Unmap => state.pages.retain(|address, _| !range.contains(address)),
            Change::Protect => state.pages.range_mut(range).for_each(|(_, page)| page.writable = false),
        }
        self.redo(&state, first, count);
        there
    }

    /// A copy of the process, that shares all memory until somebody writes.
    pub(crate) fn fork(&self, format: F, config: Config) -> Arc<Self> {
        let mut state = self.lock();
        state.pages.values_mut().for_each(|page| page.shared = true);
        if let (Some((&first, _)), Some((&last, _))) =
            (state.pages.first_key_value(), state.pages.last_key_value())
        {
            self.redo(&state, first, (last - first) / PAGE_SIZE + 1);
        }
        let child = Self::new(&self.hal, &self.pool, format, config);
        let mut theirs = child.lock();
        theirs.pages.clone_from(&state.pages);
        for (&address, page) in &state.pages {
            enter(&theirs, address, page);
        }
        drop(theirs);
        child
    }

    /// Ends the process.
    pub(crate) fn end(&self) -> Result<(), SyncError> {
        let mut state = self.lock();
        state.notifiers.iter().try_for_each(|notifier| notifier.release())?;
        // The frames of the tables are free from here on.
        state.table = None;
        Ok(())
    }

    /// Makes entries again what the pages say: away with the old ones, everybody forgets them, and then the new ones.
    fn redo(&self, state: &State<H, F>, first: u64, count: u64) {
        let Some(table) = &state.table else { return };
        let mut gather = Gather::new();
        let range = IovaRange::new(Iova::new(first), count * PAGE_SIZE).expect("a range");
        table.unmap(range, &mut gather).expect("pages");
        for notifier in &state.notifiers {
            notifier.invalidate(first, range.last().get()).expect("an answer");
        }
        // SAFETY: everybody that walks these tables has forgotten the range.
        let _proof = unsafe { gather.finish(&self.hal) };
        for (&address, page) in state.pages.range(first..=range.last().get()) {
            enter(state, address, page);
        }
    }
}

fn enter<H: Hal, F: Format>(state: &State<H, F>, address: u64, page: &Page) {
    if let (Some(table), Some(memory)) = (&state.table, page.memory) {
        let memory = PhysRange::new(PhysAddr::new(memory), PAGE_SIZE).expect("a page");
        let attributes = Attributes::memory(page.access());
        table.map(&[Mapping { iova: Iova::new(address), memory, attributes }]).expect("room");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Unmap,
    Protect,
}

// SAFETY: the tables go after `release` of all notifiers has returned, and whatever is removed is invalidated before its
// memory, which is never used again, would be.
unsafe impl<H: Hal, F: Format + Send + Sync + 'static> Mm for Process<H, F> {
    fn root(&self) -> TableRoot {
        self.root
    }

    fn subscribe(&self, notifier: Arc<dyn MmNotifier>) -> Result<(), SubscribeError> {
        let mut state = self.lock();
        if state.table.is_none() {
            return Err(SubscribeError::Released);
        }
        state.notifiers.push(notifier);
        Ok(())
    }

    fn unsubscribe(&self, notifier: &Arc<dyn MmNotifier>) {
        self.lock().notifiers.retain(|known| !Arc::ptr_eq(known, notifier));
    }

    fn handle_fault(&self, fault: MmFault) -> FaultOutcome {
        let mut state = self.lock();
        let address = fault.address & !(PAGE_SIZE - 1);
        let writes = fault.access.contains(Access::WRITE);
        let ended = state.table.is_none();
        let Some(page) = state.pages.get_mut(&address) else { return FaultOutcome::Denied };
        if ended || writes && !page.writable {
            return FaultOutcome::Denied;
        }
        if page.memory.is_some() && page.access().contains(fault.access) {
            return FaultOutcome::Resolved;
        }
        *page = Page { memory: Some(self.pool.page()), shared: false, ..*page };
        self.redo(&state, address, 1);
        FaultOutcome::Resolved
    }

    fn pin(&self, first: u64, last: u64, access: Access) -> Result<(), PinError> {
        for address in (first..=last).step_by(PAGE_SIZE as usize) {
            if self.handle_fault(MmFault { address, access }) != FaultOutcome::Resolved {
                return Err(PinError::Denied(address));
            }
        }
        Ok(())
    }
}
