//! The guide's example of a device that works on a process's own addresses does what it says.

#![expect(unsafe_code, reason = "an address space for the test")]

mod rig;

use portcullis_hal::{
    FaultOutcome, MmFault, MmNotifier, PAGE_SIZE, PhysAddr, SubscribeError, TableFormat, TableRoot,
    TableWrites,
};
use portcullis_iommu::{PageResponse, Unswitched};
use rig::{PRI, Rig, last, request};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Mutex;

// --- SHOWN ---
use portcullis_hal::{Arc, Hal, Mm, Pasid, unsize_arc};
use portcullis_iommu::{Device, DeviceControl, ExitHandler, Feature, Iommu, PageRights};

struct Driver;

impl ExitHandler for Driver {
    fn exit(&self, device: &Device, pasid: Option<Pasid>) {
        stop(device, pasid);
    }
}

/// Lets a device work on a process's buffer, where the process sees it.
fn work<H: Hal>(
    iommu: &Iommu<H>,
    device: &Arc<Device>,
    control: &dyn DeviceControl,
    mm: &Arc<dyn Mm>,
    buffer: u64,
) -> Result<(), Box<dyn std::error::Error>> {
    iommu.enable_feature(device, control, Feature::Sva, &mm.root())?;
    let on_exit = unsize_arc!(Arc::try_new(Driver)? => dyn ExitHandler);
    let bond = iommu.bind(device, mm, PageRights::empty(), on_exit)?;
    start(device, bond.pasid(), buffer);
    // Interrupt handlers call `iommu.handle_interrupt`, and a thread:
    let _more = iommu.handle_page_faults();
    stop(device, bond.pasid());
    bond.unbind()?;
    Ok(iommu.disable_feature(device, control, Feature::Sva)?)
}
// --- SHOWN ---

/// The process's buffer. Its page is there when the device has asked for it.
const BUFFER: u64 = 0x7000;

/// What happens after the device was started.
#[derive(Clone, Copy)]
enum Then {
    /// It asks for the buffer.
    Asks,
    /// It asks for the buffer, and the process exits before anybody looks.
    ProcessExits,
}

/// A unit, and a process.
struct Machine {
    rig: Rig,
    process: Arc<Process>,
    then: Then,
}

thread_local! {
    /// That of the test.
    static MACHINE: RefCell<Option<Rc<Machine>>> = const { RefCell::new(None) };
}

impl Machine {
    fn current() -> Rc<Self> {
        MACHINE.with_borrow(|machine| machine.clone()).expect("a machine")
    }

    fn note(&self, what: String) {
        self.rig.log.lock().unwrap().push(what);
    }
}

fn start(device: &Device, pasid: Option<Pasid>, buffer: u64) {
    let machine = Machine::current();
    machine.note(format!("start {buffer:#x}"));
    machine.rig.unit().ask(request(device, pasid, buffer / 4096, last(1)));
    machine.rig.interrupt();
    if let Then::ProcessExits = machine.then {
        let notifier = machine.process.notifier.lock().unwrap().clone();
        notifier.expect("somebody to tell").release().unwrap();
    }
}

fn stop(device: &Device, pasid: Option<Pasid>) {
    let pasid = pasid.map_or(0, Pasid::get);
    Machine::current().note(format!("stop {}.{pasid:#x}", device.endpoints()[0]));
}

struct Process {
    notifier: Mutex<Option<Arc<dyn MmNotifier>>>,
    faults: Mutex<Vec<u64>>,
}

// SAFETY: no device walks the tables.
unsafe impl Mm for Process {
    fn root(&self) -> TableRoot {
        TableRoot {
            format: TableFormat::X86 { levels: 4 },
            root: PhysAddr::new(0x1000),
            input_bits: 48,
            output_bits: 40,
            page_sizes: PAGE_SIZE,
            writes: TableWrites::Cleaned,
        }
    }
    fn subscribe(&self, notifier: Arc<dyn MmNotifier>) -> Result<(), SubscribeError> {
        *self.notifier.lock().unwrap() = Some(notifier);
        Ok(())
    }
    fn unsubscribe(&self, _notifier: &Arc<dyn MmNotifier>) {
        *self.notifier.lock().unwrap() = None;
    }
    fn handle_fault(&self, fault: MmFault) -> FaultOutcome {
        self.faults.lock().unwrap().push(fault.address);
        FaultOutcome::Resolved
    }
}

/// Runs the example. Gives what happened, the responses to the device, and the faults that the process resolved.
fn run(then: Then) -> (Vec<String>, Vec<PageResponse>, Vec<u64>) {
    let process = Process { notifier: Mutex::default(), faults: Mutex::default() };
    let process = Arc::try_new(process).unwrap();
    let machine = Rc::new(Machine { rig: Rig::new(1), process, then });
    MACHINE.set(Some(machine.clone()));
    let Machine { rig, process, .. } = &*machine;
    let device = rig.plain_device(0, 8);
    let mm = unsize_arc!(process.clone() => dyn Mm);
    work(&rig.iommu, &device, &Unswitched(PRI), &mm, BUFFER).unwrap();
    assert!(!device.is_enabled(Feature::Sva));
    assert!(process.notifier.lock().unwrap().is_none(), "the address space is told nothing any more");
    let responses = rig.unit().wires().answered.iter().map(|answer| answer.response).collect();
    let faults = process.faults.lock().unwrap().clone();
    (rig.take_log(), responses, faults)
}

#[test]
fn the_device_gets_its_page_and_is_cut_off_in_the_end() {
    let (log, responses, faults) = run(Then::Asks);
    assert_eq!((responses, faults), (vec![PageResponse::Success], vec![BUFFER]));
    let begin = ["permit 0x8 8", "attach 0x8.0x1 shared", "start 0x7000", "stop 0x8.0x1"];
    let end = ["detach 0x8.0x1", "drain 0x8", "drain 0x8", "permit 0x8 0"];
    assert_eq!(log, [begin, end].concat());
}

#[test]
fn a_process_that_exits_stops_the_device_first() {
    let (log, responses, faults) = run(Then::ProcessExits);
    assert_eq!((responses, faults), (vec![PageResponse::Invalid], vec![]));
    let begin = ["permit 0x8 8", "attach 0x8.0x1 shared", "start 0x7000"];
    let exit = ["stop 0x8.0x1", "attach 0x8.0x1 blocked", "stop 0x8.0x1"];
    let end = ["detach 0x8.0x1", "drain 0x8", "drain 0x8", "permit 0x8 0"];
    assert_eq!(log, [&begin[..], &exit, &end].concat());
}
