//! Commands on page requests: memory that is there when a device asks for it.

#![expect(unsafe_code, reason = "maps memory that the console keeps for ever")]

use super::Next;
use super::commands::usage;
use super::pasids::pasid;
use super::state::{State, length, range};
use crate::memory::KernelHal;
use crate::report::{text, words};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use portcullis_hal::{
    Access, Arc, Attributes, Hal, Iova, IovaRange, MapError, Mapping, MemoryKind, PAGE_SIZE, PhysAddr,
    PhysRange, unsize_arc,
};
use portcullis_iommu::{
    Domain, FaultGroup, Handled, PageFaultHandler, PageFaultWork, PageResponse, PageRights,
};
use portcullis_operations::Meter;
use spin::Mutex;

/// Groups whose answer the user gives.
static HELD: Mutex<Vec<FaultGroup>> = Mutex::new(Vec::new());

/// When groups get their answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Now,
    /// When the user says so.
    Later,
}

/// Maps a frame's pages one by one, as they are asked for.
struct Pager {
    domain: Arc<dyn Domain>,
    range: IovaRange,
    memory: PhysAddr,
    access: Access,
    when: When,
}

impl Pager {
    fn resolve(&self, group: &FaultGroup) -> PageResponse {
        for request in group.requests() {
            let page = request.address.get() & !(PAGE_SIZE - 1);
            let wanted = request.access | Access::READ;
            if !self.range.contains(Iova::new(page)) || !self.access.contains(wanted) {
                return PageResponse::Invalid;
            }
            if let Err(error) = self.map(page) {
                log::error!("a page was not mapped for a device: {error}");
                return PageResponse::Failure;
            }
        }
        PageResponse::Success
    }

    fn map(&self, page: u64) -> Result<(), MapError> {
        let iova = Iova::new(page);
        let phys = PhysAddr::new(self.memory.get() + (page - self.range.start().get()));
        let memory = PhysRange::new(phys, PAGE_SIZE).map_err(|_| MapError::Misaligned { iova })?;
        let attributes = Attributes { access: self.access, memory: MemoryKind::WriteBack };
        // SAFETY: the console's frames are never freed and hold nothing but bytes.
        match unsafe { self.domain.map(&[Mapping { iova, memory, attributes }]) } {
            // Another request was first.
            Err(MapError::Overlap { .. }) => Ok(()),
            result => result,
        }
    }
}

impl PageFaultHandler for Pager {
    fn handle(&self, group: FaultGroup) -> Handled {
        let response = self.resolve(&group);
        if self.when == When::Now || response != PageResponse::Success {
            return Handled::Now(group, response);
        }
        let mut held = HELD.lock();
        if held.try_reserve(1).is_err() {
            return Handled::Now(group, PageResponse::Failure);
        }
        held.push(group);
        Handled::Later
    }
}

/// Sets frames aside, of which each page is mapped when the device asks for it.
pub(super) fn pager(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let (name, pasid_text, domain, iova, len, access, when) = match arguments {
        [name, pasid, domain, iova, len, access] => (name, pasid, domain, iova, len, access, When::Now),
        [name, pasid, domain, iova, len, access, "later"] => {
            (name, pasid, domain, iova, len, access, When::Later)
        }
        _ => return usage("pager"),
    };
    let access = match *access {
        "r" => Access::READ,
        "rw" => Access::READ | Access::WRITE,
        _ => return usage("pager"),
    };
    let (device, pasid) = (state.device(name)?, pasid(pasid_text)?);
    let (range, domain) = (range(iova, len)?, state.domain(domain)?.clone());
    if !range.start().get().is_multiple_of(PAGE_SIZE) || !range.len().is_multiple_of(PAGE_SIZE) {
        return Err("whole pages only".to_string());
    }
    let frame = state.allocate(length(len)?)?;
    let memory = state.frame(&frame)?.phys();
    let pager = Arc::try_new(Pager { domain, range, memory, access, when }).map_err(words)?;
    let handler = unsize_arc!(pager => dyn PageFaultHandler);
    state
        .machine
        .iommu
        .set_page_fault_handler(&device, Some(pasid), handler, PageRights::empty())
        .map_err(words)?;
    text(format_args!("pager: {frame} phys={memory} at {} len={:#x}", range.start(), range.len()));
    Ok(Next::Continue)
}

/// Ends that. What was asked until then is refused.
pub(super) fn no_pager(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [name, number] = arguments else { return usage("no-pager") };
    let device = state.device(name)?;
    let pasid = pasid(number)?;
    state.machine.iommu.remove_page_fault_handler(&device, Some(pasid)).map_err(words)?;
    Ok(Next::Continue)
}

/// Answers the groups that are held, the newest first.
pub(super) fn answer(_state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let response = match arguments {
        ["success"] => PageResponse::Success,
        ["invalid"] => PageResponse::Invalid,
        ["failure"] => PageResponse::Failure,
        _ => return usage("answer"),
    };
    let mut count = 0;
    loop {
        let newest = HELD.lock().pop();
        let Some(group) = newest else { break };
        group.answer(response);
        count += 1;
    }
    text(format_args!("answered: {count}"));
    Ok(Next::Continue)
}

/// Counters of a device's page requests.
pub(super) fn page_faults(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [name] = arguments else { return usage("page-faults") };
    let stats = state.device(name)?.page_fault_stats().ok_or("page requests were never enabled")?;
    text(format_args!(
        "page-faults: requests={} groups={} answers={} owed={} unknown={} rights={} malformed={} flooded={} \
         dropped={} undelivered={} held={}",
        stats.requests,
        stats.groups,
        stats.answers,
        stats.owed,
        stats.unknown,
        stats.rights,
        stats.malformed,
        stats.flooded,
        stats.dropped,
        stats.undelivered,
        HELD.lock().len()
    ));
    Ok(Next::Continue)
}

/// Leaves page requests in the queues of the units, up to the next `serve`.
pub(super) fn hold(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [] = arguments else { return usage("hold") };
    if state.held.is_none() {
        state.held = Some(KernelHal.mask_interrupts());
    }
    Ok(Next::Continue)
}

/// Reads the queue of a device's unit, resolves what is in it, and answers; tells what that takes, from the first look at
/// the queue on.
pub(super) fn serve(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [name] = arguments else { return usage("serve") };
    let device = state.device(name)?;
    let iommu = state.machine.iommu;
    let meter = Meter::new(iommu, &device, crate::job::clock())?;
    let answers = || meter.unit().stats().answers;
    let before = answers();
    let (time, events, work) = meter.measure(|| {
        let _more = iommu.handle_interrupt(device.unit());
        iommu.handle_page_faults()
    });
    if let Some(mask) = state.held.take() {
        KernelHal.restore_interrupts(mask);
    }
    let (PageFaultWork::Done | PageFaultWork::More) = work;
    text(format_args!("served: answers={} instructions={time} {events}", answers() - before));
    Ok(Next::Continue)
}

/// Looks after page requests while the user thinks. There is more to do when it is called again.
pub(super) fn service(state: &State) {
    if state.held.is_some() {
        return;
    }
    let (PageFaultWork::Done | PageFaultWork::More) = state.machine.iommu.handle_page_faults();
}
