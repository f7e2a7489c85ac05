//! The guide's examples do what they say. What stands between the marks is shown there, word for word: here page faults, in
//! `guide_sva.rs` a process's own addresses, and what takes a device, in the tests of virtio-iommu.

mod rig;

use portcullis_iommu::UnitId;
use rig::{PRI, Rig, last, partial, pasid, request};
use std::sync::Mutex;

// --- SHOWN ---
use portcullis_hal::{Access, Arc, Hal, Iova, Pasid, unsize_arc};
use portcullis_iommu::{
    Device, FaultGroup, Handled, Iommu, PageFaultHandler, PageFaultWork, PageResponse, PageRights,
};
use std::error::Error;

struct Pager;

impl PageFaultHandler for Pager {
    fn handle(&self, group: FaultGroup) -> Handled {
        let there = group.requests().all(|request| fetch(request.address, request.access));
        Handled::Now(group, if there { PageResponse::Success } else { PageResponse::Invalid })
    }
}

fn page<H: Hal>(iommu: &Iommu<H>, device: &Device, pasid: Option<Pasid>) -> Result<(), Box<dyn Error>> {
    let pager = unsize_arc!(Arc::try_new(Pager)? => dyn PageFaultHandler);
    Ok(iommu.set_page_fault_handler(device, pasid, pager, PageRights::empty())?)
}

/// A thread that interrupts wake.
fn serve<H: Hal>(iommu: &Iommu<H>) {
    while iommu.handle_page_faults() == PageFaultWork::More {}
}
// --- SHOWN ---

/// What was fetched. The page at 0x9000 is not to be had.
static FETCHED: Mutex<Vec<(u64, Access)>> = Mutex::new(Vec::new());

fn fetch(address: Iova, access: Access) -> bool {
    FETCHED.lock().unwrap().push((address.get(), access));
    address.get() != 0x9000
}

#[test]
fn every_group_has_one_answer_and_devices_that_may_not_ask_no_handler() {
    let rig = Rig::new(1);
    let (device, other) = (rig.device(0, 8, PRI), rig.plain_device(0, 0x10));
    let process = Some(pasid(5));
    page(&rig.iommu, &device, process).unwrap();
    assert!(page(&rig.iommu, &other, process).is_err());
    for (group, page) in [(1, 0x8), (2, 0x9)] {
        rig.unit().ask(request(&device, process, page - 2, partial(group)));
        rig.unit().ask(request(&device, process, page, last(group)));
    }
    rig.unit().ask(request(&device, Some(pasid(6)), 0x1, last(3)));
    assert_eq!(rig.iommu.handle_interrupt(UnitId(0)), PageFaultWork::More);
    serve(&rig.iommu);
    let expected = [0x6, 0x8, 0x7, 0x9].map(|page| (page << 12, Access::READ));
    assert_eq!(*FETCHED.lock().unwrap(), expected);
    let wires = rig.unit().wires();
    let mut responses: Vec<_> = wires.answered.iter().map(|answer| (answer.to, answer.response)).collect();
    responses.sort_by_key(|(to, _)| format!("{to:?}"));
    let responses: Vec<_> = responses.into_iter().map(|(_, response)| response).collect();
    assert_eq!(responses, [PageResponse::Success, PageResponse::Invalid, PageResponse::Invalid]);
}

/// Who runs the first example below a heading of the guide.
const RUN: [(&str, &str); 4] = [
    ("# Memory for a device", include_str!("../../virtio-iommu/tests/guide_memory.rs")),
    ("# Faults", include_str!("../../virtio-iommu/tests/guide_faults.rs")),
    ("# Page faults", include_str!("guide.rs")),
    ("# A process's own addresses", include_str!("guide_sva.rs")),
];

#[test]
fn the_guide_shows_what_tests_run() {
    let guide = include_str!("../src/guide.rs");
    for (heading, test) in RUN {
        let section = guide.split_once(&format!("//! {heading}\n")).expect(heading).1;
        let shown = section.split("//! ```\n").nth(1).expect(heading);
        let lines = shown.lines().map(|line| line.trim_start_matches("//!").strip_prefix(' ').unwrap_or(""));
        let visible: Vec<&str> = lines.filter(|line| !line.starts_with("# ")).collect();
        let run = test.split("// --- SHOWN ---\n").nth(1).expect(heading);
        assert_eq!(visible, run.lines().collect::<Vec<_>>(), "{heading}");
    }
    let examples = guide.matches("//! ```\n").count() / 2;
    assert_eq!(examples, RUN.len(), "each is run");
}
