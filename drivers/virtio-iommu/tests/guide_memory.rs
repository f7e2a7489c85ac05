//! The guide's example of memory for a device does what it says, on a device that a unit guards. `portcullis-iommu` sees
//! that the guide shows what stands between the marks.

mod support;

use std::cell::RefCell;
use support::{Fake, Req, registered};

// --- SHOWN ---
use portcullis_hal::{Attributes, FrameOrder, Frames, Gather, Hal, Iova, Mapped};
use portcullis_iommu::{Device, Domain, DomainSpec, Iommu, PagingSpec};
use std::error::Error;

/// Lends a device a ring and some buffers, and takes all of it back.
fn lend<H: Hal>(iommu: &Iommu<H>, device: &Device, hal: &H) -> Result<Vec<Frames<H>>, Box<dyn Error>> {
    let domain = iommu.new_domain(device, &DomainSpec::Paging(PagingSpec::default()))?;
    iommu.attach(device, &domain)?;

    let ring = Frames::zeroed(hal, FrameOrder::SINGLE)?;
    let ring = Mapped::map(&domain, Iova::new(0x10_0000), ring, Attributes::READ_WRITE)?;
    let mut buffers = Vec::new();
    for number in 0..8 {
        let buffer = Frames::zeroed(hal, FrameOrder::SINGLE)?;
        let iova = Iova::new(0x20_0000 + number * 0x1000);
        buffers.push(Mapped::map(&domain, iova, buffer, Attributes::READ)?);
    }
    work(&ring, &buffers);

    // Strict: the call waits until the hardware has forgotten the page.
    let mut frames = vec![ring.unmap()?];

    // Gathered: one invalidation and one wait for all of them.
    let mut gather = Gather::new();
    let mut unmapped = Vec::new();
    for buffer in buffers {
        unmapped.push(buffer.unmap_into(&mut gather)?);
    }
    let proof = domain.sync(&mut gather)?;
    frames.extend(unmapped.into_iter().flat_map(|buffer| buffer.reclaim(&proof)));
    iommu.detach(device)?;
    Ok(frames)
}
// --- SHOWN ---

thread_local! {
    /// That of the test.
    static FAKE: RefCell<Option<Fake>> = const { RefCell::new(None) };
}

fn work<H: Hal>(ring: &Mapped<Frames<H>, dyn Domain>, buffers: &[Mapped<Frames<H>, dyn Domain>]) {
    let fake = FAKE.with_borrow(|fake| fake.clone()).expect("a device");
    let reached = |mapped: &Mapped<Frames<H>, dyn Domain>, write| {
        fake.dma(1, mapped.range().start().get(), write) == Some(mapped.memory().range().start().get())
    };
    assert!(reached(ring, true) && buffers.iter().all(|buffer| reached(buffer, false)));
    assert!(!buffers.iter().any(|buffer| reached(buffer, true)), "they are lent for reading");
}

#[test]
fn the_device_reaches_what_it_was_lent_and_nothing_in_the_end() {
    let fake = Fake::new();
    FAKE.set(Some(fake.clone()));
    let (iommu, _unit, device) = registered(&fake);
    let before = fake.hal.frames_in_use();
    let notifications = fake.state().notifications;

    let frames = lend(&iommu, &device, &fake.hal).unwrap();
    assert_eq!(frames.len(), 9);
    drop(frames);
    assert_eq!(fake.hal.frames_in_use(), before, "all of it came back");
    for iova in [0x10_0000, 0x20_0000, 0x20_7000] {
        assert_eq!(fake.dma(1, iova, false), None);
    }
    let unmaps = |req: &&Req| matches!(req, Req::Unmap { .. });
    assert_eq!(fake.take_requests().iter().filter(unmaps).count(), 9);
    // ATTACH, nine times MAP, the ring's UNMAP, eight times UNMAP together, DETACH.
    assert_eq!(fake.state().notifications - notifications, 1 + 9 + 1 + 1 + 1);
}
