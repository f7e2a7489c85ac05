//! The specification's examples and statuses (virtio 1.2, 5.13.6), request by request.
mod support;

use portcullis_hal::{Iova, MapError, UnmapError};
use portcullis_iommu::{AttachError, Unit};
use support::*;

const PAGE: u64 = 0x1000;

/// The examples of 5.13.6.6.1, a page for each address: what is mapped, what is unmapped, and what is left of it; or
/// nothing, if the unmap is refused.
#[test]
fn the_examples_of_unmap_do_what_the_specification_says() {
    type Pages = (u64, u64);
    type Example = (&'static [Pages], Pages, Option<&'static [Pages]>);
    let examples: [Example; 8] = [
        (&[], (0, 4), Some(&[])),
        (&[(0, 9)], (0, 9), Some(&[])),
        (&[(0, 4), (5, 9)], (0, 9), Some(&[])),
        (&[(0, 9)], (0, 4), None),
        (&[(0, 4), (5, 9)], (0, 4), Some(&[(5, 9)])),
        (&[(0, 4)], (0, 9), Some(&[])),
        (&[(0, 4), (10, 14)], (0, 14), Some(&[])),
        (&[(10, 14), (0, 4)], (0, 4), Some(&[(10, 14)])),
    ];
    for (number, (maps, (first, last), left)) in examples.into_iter().enumerate() {
        let (fake, _unit, domain) = attached();
        for (index, &(first, last)) in maps.iter().enumerate() {
            let memory = 0x10_0000 * (1 + index as u64);
            map(&domain, &[piece(first * PAGE, memory, (last - first + 1) * PAGE)]).unwrap();
        }
        fake.take_requests();
        let pages = |list: &[Pages]| list.iter().map(|(first, last)| last - first + 1).sum::<u64>();
        let result = unmap(&domain, first * PAGE, (last - first + 1) * PAGE);
        let there = left.unwrap_or(maps);
        match left {
            Some(left) => assert_eq!(result, Ok(Ok((pages(maps) - pages(left)) * PAGE)), "example {number}"),
            // The device is not even asked.
            None => {
                assert_eq!(result, Err(UnmapError::Partial { iova: Iova::new(0), size: 10 * PAGE }));
                assert!(fake.take_requests().is_empty());
            }
        }
        for page in 0..16 {
            let mapped = there.iter().any(|(first, last)| (*first..=*last).contains(&page));
            assert_eq!(fake.dma(1, page * PAGE, true).is_some(), mapped, "example {number}, page {page}");
            assert_eq!(domain.iova_to_phys(Iova::new(page * PAGE)).is_some(), mapped);
        }
    }
}

#[test]
fn every_status_of_an_attachment_is_an_error_and_nothing_is_reached() {
    let lost = [1, 2, 3, 4, 5, 7, 9, 0xff].map(|status| (status, AttachError::Refused));
    let known = [
        (NOENT, AttachError::UnknownEndpoint(endpoint(1))),
        (NOMEM, AttachError::OutOfMemory(portcullis_hal::OutOfMemory)),
    ];
    for (status, error) in lost.into_iter().chain(known) {
        let fake = Fake::new();
        let unit = up(&fake);
        let domain = paging(&unit);
        map(&domain, &[piece(0x1000, 0x8000_0000, PAGE)]).unwrap();
        fake.script(move |req| match req {
            Req::Attach { domain: 7, .. } => Answer::Status(status),
            _ => Answer::Right,
        });
        assert_eq!(unit.attach(&[endpoint(1)], &domain), Err(error), "status {status}");
        assert_eq!(fake.dma(1, 0x1000, true), None);
        fake.script(|_| Answer::Right);
        unit.attach(&[endpoint(1)], &domain).unwrap();
        assert_eq!(fake.dma(1, 0x1000, true), Some(0x8000_0000));
    }
}

#[test]
fn every_status_of_a_detachment_ends_in_nothing_reached() {
    for status in (1..=9).chain([0xff]) {
        let (fake, unit, domain) = attached();
        map(&domain, &[piece(0x1000, 0x8000_0000, PAGE)]).unwrap();
        fake.script(move |req| match req {
            Req::Detach { .. } => Answer::Status(status),
            _ => Answer::Right,
        });
        assert_eq!(unit.detach(&[endpoint(1)]), Ok(()), "status {status}");
        assert_eq!((fake.dma(1, 0x1000, true), fake.state().endpoints[&1]), (None, 5));
        // The domain is not on the device any more: what is unmapped needs no request.
        fake.take_requests();
        assert_eq!(unmap(&domain, 0x1000, PAGE), Ok(Ok(PAGE)));
        assert!(fake.take_requests().is_empty());
    }
}

#[test]
fn every_status_of_a_map_is_an_error_and_nothing_of_the_list_is_mapped() {
    for status in (1..=9).chain([0xff]) {
        let (fake, _unit, domain) = attached();
        fake.script(move |req| match req {
            Req::Map { first: 0x3000, .. } => Answer::Status(status),
            _ => Answer::Right,
        });
        let list = [piece(0x1000, 0x8000_0000, PAGE), piece(0x3000, 0x8000_0000, PAGE)];
        let error = map(&domain, &list).unwrap_err();
        assert_eq!(fake.state().domains[&7].mappings.len(), 0, "status {status}");
        // What the device did is only doubtful if its status says nothing of a map.
        let doubtful = matches!(error, MapError::Sync(_));
        assert_eq!(doubtful, ![INVAL, RANGE, NOMEM].contains(&status), "status {status}");
        assert_eq!(domain.iova_to_phys(list[0].iova).is_some(), doubtful);
    }
}

#[test]
fn the_endpoints_of_the_examples_move_between_domains() {
    let (fake, unit, one) = attached();
    let other = paging(&unit);
    let unknown = unit.attach(&[endpoint(444)], &one);
    assert_eq!(unknown, Err(AttachError::UnknownEndpoint(endpoint(444))));
    // An endpoint that was never attached is not asked about.
    fake.take_requests();
    assert_eq!((unit.detach(&[endpoint(2)]), fake.take_requests().len()), (Ok(()), 0));
    unit.attach(&[endpoint(1)], &other).unwrap();
    assert_eq!(fake.take_requests(), [Req::Attach { domain: 8, endpoint: 1, flags: 0 }]);
    unit.detach(&[endpoint(1)]).unwrap();
    assert_eq!(fake.take_requests(), [Req::Detach { domain: 8, endpoint: 1 }]);
    // Mappings of a domain without endpoints are the driver's alone, and go with the next attachment.
    map(&other, &[piece(0, 0xa1000, PAGE), piece(0x2000, 0xb1000, PAGE)]).unwrap();
    assert_eq!(fake.take_requests(), []);
    unit.attach(&[endpoint(1)], &other).unwrap();
    assert_eq!(fake.take_requests().len(), 3);
    assert_eq!((fake.dma(1, 0, true), fake.dma(1, 0x2fff, false)), (Some(0xa1000), Some(0xb1fff)));
}
