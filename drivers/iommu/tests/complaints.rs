//! What hardware and devices can cause at will goes to the log at a limited rate.
//!
//! A program of its own: the log is the whole program's.

#![expect(unsafe_code, reason = "a clock that the test sets")]

mod rig;

use core::ptr::NonNull;
use portcullis_hal::host::HostHal;
use portcullis_hal::{FrameOrder, Hal, InterruptMask, OutOfMemory, PhysAddr, unsize_arc};
use portcullis_iommu::*;
use rig::{PRI, Rig, description, last, pasid, request};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// The kernel's services, with a clock that stands still until the test sets it.
#[derive(Clone)]
struct Clock {
    memory: HostHal,
    now_ns: Arc<AtomicU64>,
}

// SAFETY: the memory is the host's, as `HostHal` has it.
unsafe impl Hal for Clock {
    fn alloc_frames(&self, order: FrameOrder) -> Result<PhysAddr, OutOfMemory> {
        self.memory.alloc_frames(order)
    }
    unsafe fn free_frames(&self, base: PhysAddr, order: FrameOrder) {
        // SAFETY: the caller's promise is handed on.
        unsafe { self.memory.free_frames(base, order) }
    }
    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        self.memory.phys_to_virt(phys)
    }
    fn clean_cache(&self, start: NonNull<u8>, len: usize) {
        self.memory.clean_cache(start, len);
    }
    fn now_ns(&self) -> u64 {
        self.now_ns.load(Ordering::Relaxed)
    }
    fn mask_interrupts(&self) -> InterruptMask {
        self.memory.mask_interrupts()
    }
    fn restore_interrupts(&self, mask: InterruptMask) {
        self.memory.restore_interrupts(mask);
    }
}

/// The lines that were logged.
struct Lines(Mutex<Vec<String>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push(record.args().to_string());
    }
    fn flush(&self) {}
}

#[test]
fn complaints_are_logged_once_in_a_tenth_of_a_second_and_counted_meanwhile() {
    const TENTH: u64 = 100_000_000;
    log::set_logger(&LINES).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let rig = Rig::new(1);
    let now_ns = Arc::new(AtomicU64::new(0));
    let iommu = Iommu::new(Clock { memory: HostHal::new(), now_ns: now_ns.clone() });
    iommu.add_unit(unsize_arc!(rig.units[0].clone() => dyn Unit)).unwrap();
    let [asks, may_not] = [8, 9].map(|bdf| iommu.add_device(description(0, bdf)).unwrap());
    iommu.enable(&asks, &Unswitched(PRI), &PRI).unwrap();

    // Each is a complaint. No PASID has a handler.
    let page = |device, group| UnitEvent::PageRequest(request(device, Some(pasid(5)), 1, last(group)));
    let fire = UnitEvent::UnitError { name: "the unit is on fire", value: 0x2a };
    let events = |from: u16, count: u16| -> Vec<UnitEvent> {
        let five = |group| {
            [fire, UnitEvent::QueueError, UnitEvent::Overflow, page(&may_not, group), page(&asks, group)]
        };
        (from..from + count).flat_map(five).collect()
    };
    // What is logged when the unit has reported them, and a thread has handled them.
    let lines = |now: u64, events: &[UnitEvent]| {
        now_ns.store(now, Ordering::Relaxed);
        for event in events {
            match event {
                UnitEvent::PageRequest(request) => rig.unit().ask(*request),
                other => rig.unit().wires().events.push(*other),
            }
        }
        let _more = iommu.handle_interrupt(UnitId(0));
        assert_eq!(iommu.handle_page_faults(), PageFaultWork::Done);
        std::mem::take(&mut *LINES.0.lock().unwrap())
    };
    let line =
        |what: &str, before: u32| format!("iommu0: {what}; {before} complaints before were not logged");
    let burning = "the unit is on fire (0x2a)";

    assert_eq!(lines(7, &events(0, 40)), [line(burning, 0)]);
    assert_eq!(lines(6 + TENTH, &events(40, 40)), [""; 0]);
    assert_eq!(lines(7 + TENTH, &events(80, 40)), [line(burning, 2 * 200 - 1)]);
    // A clock that goes back is no reason for a complaint.
    assert_eq!(lines(6, &events(120, 1)), [""; 0]);
    let unknown = "a page request with a PASID that nobody handles was refused";
    assert_eq!(lines(7 + 2 * TENTH, &[page(&asks, 121)]), [line(unknown, 199 + 5)]);
    let stray = "a page request of a device that may make none was refused";
    assert_eq!(lines(7 + 3 * TENTH, &[page(&may_not, 121)]), [line(stray, 0)]);
}
