//! Address spaces of user code: what runs in them without privilege, and what it can and cannot reach.

use super::Outcome;
use crate::machine::{Cpus, Machine};
use crate::memory::KernelHal;
use crate::mm::{self, AddressSpace, PAGE, PageRange, UserFrame};
use crate::report::Report;
use crate::report::words;
use crate::second::{self, Pending};
use crate::user::{Ended, Order, Program, Thread};
use alloc::format;
use alloc::string::{String, ToString};
use core::sync::atomic::{AtomicUsize, Ordering};
use portcullis_arch::PageFault;
use portcullis_hal::{
    Access, Arc, FaultOutcome, Frames, Hal, Mm, MmFault, MmNotifier, PinError, SyncError, unsize_arc,
};

pub(super) const READ_WRITE: Access = Access::READ.union(Access::WRITE);

/// Where the checks have their memory.
pub(super) const HEAP: u64 = 0x10_0000_0000;

/// How long the other CPU may take, in nanoseconds.
const TIMEOUT_NS: u64 = 60_000_000_000;

/// A check that needs nothing of the machine but its CPUs.
type Check = fn() -> Outcome;

pub(super) fn run(machine: &'static Machine, report: &mut Report) {
    report.section("Address spaces");
    let frames = mm::in_use();
    report.check("space.program", program());
    report.check("space.demand", demand());
    report.check("space.fork", fork());
    report.check("space.protect", protect());
    report.check("space.unmap", unmap());
    report.check("space.privilege", privilege());
    report.check("space.fault", fault());
    report.check("space.pin", pin());
    report.check("space.told", told());
    report.check("space.exit", exit());
    let on_two: [(&str, Check); 2] =
        [("space.shoot-unmap", shoot_unmap), ("space.shoot-protect", shoot_protect)];
    for (name, check) in on_two {
        match machine.cpus() {
            cpus @ Cpus::One => report.skip(name, format_args!("{cpus}")),
            Cpus::Two => _ = report.check(name, check()),
        }
    }
    let left = mm::in_use();
    report.check("space.frames", if left == frames { Ok("all came back") } else { Err("some are lost") });
}

pub(super) fn pages(index: u64, count: u64) -> Result<PageRange, String> {
    PageRange::new(HEAP + index * PAGE, count * PAGE).map_err(words)
}

/// A servant with `count` pages from [`HEAP`] on.
pub(super) fn servant(count: u64) -> Result<Thread, String> {
    let thread = Thread::new(Program::Servant, 0).map_err(words)?;
    thread.space().map(pages(0, count)?, READ_WRITE).map_err(words)?;
    Ok(thread)
}

pub(super) fn execute(thread: &mut Thread, order: Order) -> Result<u64, String> {
    thread.execute(order).map_err(|ended| format!("{order:?}: {ended}"))
}

/// Requires that an access ends the thread, at this address and for this reason.
fn refused(thread: &mut Thread, order: Order, address: u64, access: Access) -> Result<String, String> {
    match thread.execute(order) {
        Err(ended) => denied(ended, address, access),
        Ok(result) => Err(format!("{order:?} gave {result:#x}")),
    }
}

fn denied(ended: Ended, address: u64, access: Access) -> Result<String, String> {
    match ended {
        Ended::Fault(PageFault { address: at, access: how, .. }, FaultOutcome::Denied)
            if at == address && how == access =>
        {
            Ok(words(ended))
        }
        other => Err(format!("ended otherwise: {other}")),
    }
}

pub(super) fn first_word(memory: &Frames<KernelHal>) -> u64 {
    memory.words().first().map_or(0, |word| word.load(Ordering::Acquire))
}

pub(super) fn word_at(space: &AddressSpace, address: u64) -> Result<u64, String> {
    Ok(first_word(space.frame_at(address).ok_or("no memory there")?.frames()))
}

/// A program that gets its memory as it runs.
fn program() -> Outcome {
    let mut thread = Thread::new(Program::Squares, HEAP).map_err(words)?;
    thread.space().map(pages(0, Program::PAGES)?, READ_WRITE).map_err(words)?;
    let before = thread.space().resident();
    let ended = thread.run();
    if ended != Ended::Exit(Program::SUM) {
        return Err(words(ended));
    }
    let (resident, faults) = (thread.space().resident() - before, thread.space().faults());
    // Its pages and one of the stack.
    if resident as u64 != Program::PAGES + 1 {
        return Err(format!("{resident} pages have memory"));
    }
    Ok(format!("{ended}; {resident} pages and {faults} faults"))
}

/// Untouched memory reads as zero, and each page has its own.
fn demand() -> Outcome {
    let mut thread = servant(2)?;
    let space = thread.space().clone();
    if space.frame_at(HEAP).is_some() {
        return Err("memory before the first touch".to_string());
    }
    let (first, second) = (HEAP + 8, HEAP + PAGE + 8);
    if execute(&mut thread, Order::Load(first))? != 0 {
        return Err("not zero".to_string());
    }
    execute(&mut thread, Order::Store(first, 0x1111))?;
    if execute(&mut thread, Order::Load(second))? != 0 {
        return Err("the second page is not zero".to_string());
    }
    if execute(&mut thread, Order::Load(first))? != 0x1111 {
        return Err("the word is lost".to_string());
    }
    let phys = |address| space.frame_at(address).map(|frame| frame.frames().phys());
    match (phys(HEAP), phys(HEAP + PAGE)) {
        (Some(one), Some(other)) if one != other => Ok(format!("zero at first, then {one} and {other}")),
        other => Err(format!("{other:?}")),
    }
}

/// Both sides of a fork see the same, until one of them writes.
fn fork() -> Outcome {
    let mut parent = servant(2)?;
    execute(&mut parent, Order::Store(HEAP, 1))?;
    execute(&mut parent, Order::Store(HEAP + PAGE, 2))?;
    let frames = mm::in_use();
    let mut child = parent.fork().map_err(words)?;
    if mm::in_use() != frames {
        return Err("the fork copied memory".to_string());
    }
    for thread in [&mut parent, &mut child] {
        if execute(thread, Order::Load(HEAP))? != 1 || execute(thread, Order::Load(HEAP + PAGE))? != 2 {
            return Err("not the same after the fork".to_string());
        }
    }
    execute(&mut parent, Order::Store(HEAP, 3))?;
    execute(&mut child, Order::Store(HEAP + PAGE, 4))?;
    for (thread, expected) in [(&mut parent, [3, 2]), (&mut child, [1, 4])] {
        let found = [execute(thread, Order::Load(HEAP))?, execute(thread, Order::Load(HEAP + PAGE))?];
        if found != expected {
            return Err(format!("{found:?} instead of {expected:?}"));
        }
    }
    let copied = mm::in_use().saturating_sub(frames);
    // The other side has its own by now: what is left is not copied again.
    execute(&mut child, Order::Store(HEAP, 5))?;
    if mm::in_use() != frames + copied || execute(&mut parent, Order::Load(HEAP))? != 3 {
        return Err("the last owner copied, or wrote to the other's".to_string());
    }
    match child.execute(Order::Exit(copied as u64)) {
        Err(Ended::Exit(pages)) => Ok(format!("{pages} pages copied by the first write")),
        other => Err(format!("the child did not end by itself: {other:?}")),
    }
}

/// Read-only memory refuses writes, keeps its contents, and takes writes again when it may.
fn protect() -> Outcome {
    let mut thread = servant(3)?;
    let middle = HEAP + PAGE;
    for page in 0..3 {
        execute(&mut thread, Order::Store(HEAP + page * PAGE, 10 + page))?;
    }
    let space = thread.space().clone();
    space.protect(pages(1, 1)?, Access::READ).map_err(words)?;
    if execute(&mut thread, Order::Load(middle))? != 11 {
        return Err("the contents are lost".to_string());
    }
    execute(&mut thread, Order::Store(HEAP, 20))?;
    execute(&mut thread, Order::Store(HEAP + 2 * PAGE, 22))?;
    let mut witness = thread.clone();
    let line = refused(&mut thread, Order::Store(middle, 21), middle, Access::WRITE)?;
    if word_at(&space, middle)? != 11 {
        return Err("written all the same".to_string());
    }
    space.protect(pages(1, 1)?, READ_WRITE).map_err(words)?;
    execute(&mut witness, Order::Store(middle, 31))?;
    if word_at(&space, middle)? != 31 { Err("not written afterwards".to_string()) } else { Ok(line) }
}

/// What is unmapped is gone for the thread, and its neighbours are not.
fn unmap() -> Outcome {
    let mut thread = servant(3)?;
    for page in 0..3 {
        execute(&mut thread, Order::Store(HEAP + page * PAGE, 1))?;
    }
    let frames = mm::in_use();
    let gone = thread.space().unmap(pages(1, 1)?).map_err(words)?;
    if gone != 1 || mm::in_use() + 1 != frames {
        return Err(format!("{gone} pages gone, {} frames freed", frames.saturating_sub(mm::in_use())));
    }
    execute(&mut thread, Order::Load(HEAP))?;
    execute(&mut thread, Order::Load(HEAP + 2 * PAGE))?;
    refused(&mut thread, Order::Load(HEAP + PAGE), HEAP + PAGE, Access::READ)
}

/// What user code must not do ends it, each time with the reason.
fn privilege() -> Outcome {
    let mut thread = servant(1)?;
    execute(&mut thread, Order::Store(HEAP, 0))?;
    // The kernel's own memory, which is mapped while the thread runs.
    let kernel = KernelHal.phys_to_virt(thread.space().table_root().root).addr().get() as u64;
    let fresh = || servant(1);
    refused(&mut fresh()?, Order::Load(kernel), kernel, Access::READ)?;
    refused(&mut fresh()?, Order::Store(kernel, 0), kernel, Access::WRITE)?;
    refused(&mut fresh()?, Order::Jump(kernel), kernel, Access::EXECUTE)?;
    // Data is not code, and code is not data.
    refused(&mut thread, Order::Jump(HEAP), HEAP, Access::EXECUTE)?;
    refused(&mut fresh()?, Order::Store(0x40_0000, 0), 0x40_0000, Access::WRITE)?;
    refused(&mut fresh()?, Order::Load(0), 0, Access::READ)?;
    match fresh()?.execute(Order::Trespass) {
        Err(Ended::Exception(exception)) => Ok(words(exception)),
        Err(other) => Err(format!("ended otherwise: {other}")),
        Ok(_) => Err("a privileged instruction was executed".to_string()),
    }
}

/// A fault that a device reports is resolved or denied as one of the CPU is.
fn fault() -> Outcome {
    let mut thread = servant(2)?;
    let space = thread.space().clone();
    space.protect(pages(1, 1)?, Access::READ).map_err(words)?;
    let ask = |address, access| space.handle_fault(MmFault { address, access });
    for (address, access, expected) in [
        (HEAP, Access::WRITE, FaultOutcome::Resolved),
        (HEAP + PAGE, Access::WRITE, FaultOutcome::Denied),
        (HEAP + PAGE, Access::READ, FaultOutcome::Resolved),
        (HEAP + 2 * PAGE, Access::READ, FaultOutcome::Denied),
        (HEAP, Access::EXECUTE, FaultOutcome::Denied),
        (u64::MAX, Access::READ, FaultOutcome::Denied),
    ] {
        let found = ask(address, access);
        if found != expected {
            return Err(format!("{access} at {address:#x}: {found:?}"));
        }
    }
    // What was made present for the device is there for the CPU.
    let faults = space.faults();
    execute(&mut thread, Order::Store(HEAP, 7))?;
    space.end().map_err(words)?;
    match ask(HEAP, Access::READ) {
        FaultOutcome::Denied => Ok(format!("{faults} resolved, and none after the end")),
        other => Err(format!("after the end: {other:?}")),
    }
}

/// Pinned pages are there before they are touched, and keep their memory and their permissions over a fork.
fn pin() -> Outcome {
    let mut thread = servant(4)?;
    let space = thread.space().clone();
    let range = pages(0, 4)?;
    let frames = mm::in_use();
    let last = HEAP + 4 * PAGE - 1;
    space.pin(HEAP, last, READ_WRITE).map_err(words)?;
    if mm::in_use() != frames + 4 {
        return Err("the pages have no memory".to_string());
    }
    let page = space.frame_at(HEAP).ok_or("no memory")?;
    let child = thread.fork().map_err(words)?;
    if child.space().resident() < 4 || mm::in_use() < frames + 8 {
        return Err("the child shares pinned memory".to_string());
    }
    let faults = space.faults();
    execute(&mut thread, Order::Store(HEAP, 0x9199))?;
    if first_word(page.frames()) != 0x9199 || word_at(child.space(), HEAP)? != 0 {
        return Err("the write went elsewhere".to_string());
    }
    // Read-only and back: the permission is there without a fault.
    space.protect(range, Access::READ).map_err(words)?;
    space.protect(range, READ_WRITE).map_err(words)?;
    execute(&mut thread, Order::Store(HEAP + 3 * PAGE, 1))?;
    // The thread's code is the only other page that it touched since.
    if space.faults() > faults + 1 {
        return Err("a pinned page faulted".to_string());
    }
    space.unpin(HEAP, last);
    let outside = space.pin(HEAP + 2 * PAGE, last + PAGE, Access::READ);
    if outside != Err(PinError::Denied(HEAP + 4 * PAGE)) {
        return Err(format!("beyond the region: {outside:?}"));
    }
    Ok(format!("4 pages from {HEAP:#x} on, copied by the fork"))
}

/// A device's place in an address space: sees whether it is told of a page that goes while that still has its memory.
struct Witness {
    page: UserFrame,
    /// Calls that came in time, and those that came when the memory could be somebody else's.
    in_time: AtomicUsize,
    late: AtomicUsize,
}

impl Witness {
    /// Counts the calls about the page at [`HEAP`].
    fn new(space: &AddressSpace) -> Result<Arc<Self>, String> {
        let page = space.frame_at(HEAP).ok_or("no memory")?;
        let witness = Self { page, in_time: AtomicUsize::new(0), late: AtomicUsize::new(0) };
        let witness = Arc::try_new(witness).map_err(words)?;
        space.subscribe(unsize_arc!(witness.clone() => dyn MmNotifier)).map_err(words)?;
        Ok(witness)
    }

    /// Takes note of a call. Were the frame not held here, its only owner could free it.
    fn note(&self) {
        let calls = if self.page.is_sole() { &self.late } else { &self.in_time };
        calls.fetch_add(1, Ordering::Relaxed);
    }

    /// Requires that there were so many calls and none too late, and that the memory is given back now.
    fn expect(&self, what: &str, calls: usize) -> Result<(), String> {
        let (in_time, late) = (self.in_time.load(Ordering::Relaxed), self.late.load(Ordering::Relaxed));
        match (in_time, late) {
            (_, 0) if in_time == calls && self.page.is_sole() => Ok(()),
            (_, 0) if in_time == calls => Err(format!("{what}: the memory is not given back")),
            (_, 0) => Err(format!("{what}: devices were told {in_time} times, not {calls}")),
            _ => Err(format!("{what}: devices were told when the memory was free")),
        }
    }
}

impl MmNotifier for Witness {
    fn invalidate(&self, first: u64, last: u64) -> Result<(), SyncError> {
        if (first..=last).contains(&HEAP) {
            self.note();
        }
        Ok(())
    }

    fn release(&self) -> Result<(), SyncError> {
        self.note();
        Ok(())
    }
}

/// Whoever shares the tables has forgotten a page before its memory is free: unmapped, copied after a fork, or gone with
/// the process.
fn told() -> Outcome {
    let touched = || {
        let mut thread = servant(2)?;
        execute(&mut thread, Order::Store(HEAP, 1))?;
        Ok::<_, String>(thread)
    };
    let thread = touched()?;
    let witness = Witness::new(thread.space())?;
    thread.space().unmap(pages(0, 1)?).map_err(words)?;
    witness.expect("unmap", 1)?;

    let mut parent = touched()?;
    drop(parent.fork().map_err(words)?);
    // It shares the page, as the child did.
    let witness = Witness::new(parent.space())?;
    execute(&mut parent, Order::Store(HEAP, 2))?;
    witness.expect("copy", 1)?;

    let thread = touched()?;
    let witness = Witness::new(thread.space())?;
    thread.space().end().map_err(words)?;
    witness.expect("exit", 2)?;
    Ok("of an unmap, a copy and an exit, each before the memory was free".to_string())
}

/// The end gives back every frame, of memory and of tables, and stops the thread.
fn exit() -> Outcome {
    let (frames, bytes) = (mm::in_use(), crate::memory::usage().0);
    let mut thread = servant(600)?;
    for page in (0..600).step_by(3) {
        execute(&mut thread, Order::Store(HEAP + page * PAGE, page))?;
    }
    let child = thread.fork().map_err(words)?;
    let used = crate::memory::usage().0.saturating_sub(bytes);
    let gone = thread.space().end().map_err(words)?;
    let instruction = match thread.execute(Order::Load(HEAP)) {
        Err(Ended::Fault(fault, FaultOutcome::Denied)) => fault,
        other => return Err(format!("it still runs: {other:?}")),
    };
    if instruction.access != Access::EXECUTE {
        return Err(format!("{instruction:?} instead of the next instruction"));
    }
    drop((thread, child));
    let left = (mm::in_use(), crate::memory::usage().0);
    if left != (frames, bytes) {
        return Err(format!("{left:?} frames and bytes in use, {:?} before", (frames, bytes)));
    }
    Ok(format!("{gone} pages, {} KiB with their tables", used / 1024))
}

/// A thread on the second CPU that executes one order until it ends.
fn elsewhere(thread: &Thread, order: Order) -> Result<Pending<Ended>, String> {
    let mut thread = thread.sibling();
    second::submit(move || thread.execute(order).err().unwrap_or(Ended::Late))
}

/// What a thread on the other CPU counts in a word that the first CPU sees.
struct Progress {
    page: UserFrame,
    word: usize,
}

impl Progress {
    fn count(&self) -> u64 {
        self.page.frames().words().get(self.word).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Waits until the thread has counted for a while, so that its CPU's TLB knows the page.
    fn await_rounds(&self, thread: &Pending<Ended>) -> Result<(), String> {
        match self.watch(thread)? {
            None => Ok(()),
            Some(ended) => Err(format!("the other CPU ended early: {ended}")),
        }
    }

    /// Waits until the thread has ended, which it does before it has counted for a while.
    fn await_end(&self, thread: &Pending<Ended>) -> Result<Ended, String> {
        self.watch(thread)?.ok_or_else(|| "the other CPU goes on".to_string())
    }

    /// Waits until the thread has counted on by 1000, or has ended.
    fn watch(&self, thread: &Pending<Ended>) -> Result<Option<Ended>, String> {
        let (start, before) = (KernelHal.now_ns(), self.count());
        while self.count() < before + 1000 {
            if let Some(ended) = thread.poll() {
                return Ok(Some(ended));
            }
            if KernelHal.now_ns() - start > TIMEOUT_NS {
                return Err("the other CPU makes no progress".to_string());
            }
            KernelHal.relax();
        }
        Ok(None)
    }
}

/// Where the other CPU reports.
const REPORT: u64 = HEAP + PAGE;

/// A page goes while a thread on the other CPU reads it all the time: once `unmap` has returned, it is read no more.
fn shoot_unmap() -> Outcome {
    const POISON: u64 = 0xdead_beef;
    let mut thread = servant(2)?;
    execute(&mut thread, Order::Store(HEAP, 0x600d))?;
    execute(&mut thread, Order::Store(REPORT, 0))?;
    let space = thread.space().clone();
    let page = space.frame_at(HEAP).ok_or("no memory")?;
    let report = space.frame_at(REPORT).ok_or("no memory")?;
    let rounds = Progress { page: report.clone(), word: 1 };
    let other = elsewhere(&thread, Order::Watch { address: HEAP, report: REPORT })?;
    rounds.await_rounds(&other)?;
    space.unmap(pages(0, 1)?).map_err(words)?;
    // Whoever reads the page now, reads this.
    page.frames().words().iter().for_each(|word| word.store(POISON, Ordering::Release));
    let ended = rounds.await_end(&other)?;
    let line = denied(ended, HEAP, Access::READ)?;
    if first_word(report.frames()) != 0x600d {
        return Err("the other CPU read the page after its unmap".to_string());
    }
    Ok(format!("{line}, after {} reads", rounds.count()))
}

/// A page becomes read-only while a thread on the other CPU writes to it all the time.
fn shoot_protect() -> Outcome {
    let mut thread = servant(2)?;
    execute(&mut thread, Order::Store(HEAP, 0))?;
    execute(&mut thread, Order::Store(REPORT, 0))?;
    let space = thread.space().clone();
    let page = space.frame_at(HEAP).ok_or("no memory")?;
    let writes = Progress { page: space.frame_at(REPORT).ok_or("no memory")?, word: 0 };
    let other = elsewhere(&thread, Order::Count { address: HEAP, report: REPORT })?;
    writes.await_rounds(&other)?;
    space.protect(pages(0, 1)?, Access::READ).map_err(words)?;
    let last = first_word(page.frames());
    let ended = writes.await_end(&other)?;
    let line = denied(ended, HEAP, Access::WRITE)?;
    if first_word(page.frames()) != last {
        return Err("the other CPU wrote after the page was read-only".to_string());
    }
    Ok(format!("{line}, after {last} writes"))
}
