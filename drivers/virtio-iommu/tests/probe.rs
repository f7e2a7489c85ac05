//! What a device says of its endpoints (virtio 1.2, 5.13.6.7), and what it may say wrongly.
mod support;

use portcullis_hal::{IovaRange, SyncError};
use portcullis_iommu::{AttachError, ReservedKind, Unit};
use portcullis_virtio_iommu::{InitError, Setup};
use support::*;

const SIZE: u32 = PROBE_SIZE;

/// A device that says this of every endpoint.
fn device(properties: &[u8]) -> Fake {
    let fake = Fake::new();
    fake.state().properties = properties.to_vec();
    fake
}

/// A property: type, length and what follows.
fn property(kind: u16, length: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &length.to_le_bytes(), body].concat()
}

/// RESV_MEM.
fn region(subtype: u8, start: u64, end: u64) -> Vec<u8> {
    let body = [&[subtype, 0, 0, 0][..], &start.to_le_bytes(), &end.to_le_bytes()].concat();
    property(1, 20, &body)
}

fn reserved(unit: &FakeUnit) -> Result<Vec<IovaRange>, AttachError> {
    let regions = unit.reserved(endpoint(3))?;
    assert!(regions.iter().all(|region| region.kind == ReservedKind::Excluded));
    Ok(regions.into_iter().map(|region| region.range).collect())
}

#[test]
fn reserved_regions_are_found_among_properties_that_nobody_knows() {
    let properties = [
        property(7, 4, &[1, 2, 3, 4]),
        region(1, 0xfee0_0000, 0xfeef_ffff),
        property(0xffe, 0, &[]),
        // Bits 15:12 of the type say nothing, and a subtype that nobody knows is a reserved one.
        property(0xf001, 24, &[&[9, 0, 0, 0][..], &[0; 8], &0xfff_u64.to_le_bytes(), &[5; 4]].concat()),
        property(0, 0, &[]),
        region(0, 0x5000, 0x5fff),
    ];
    let fake = device(&properties.concat());
    let unit = up(&fake);
    assert_eq!(reserved(&unit).unwrap(), [range(0xfee0_0000, 0x10_0000), range(0, 0x1000)]);
    assert_eq!(fake.take_requests(), [Req::Probe { endpoint: 3 }]);
    // The slot serves other requests afterwards.
    let domain = paging(&unit);
    unit.attach(&[endpoint(3)], &domain).unwrap();
    for round in 0..300 {
        map(&domain, &[piece(0x1_0000, round << 12, 0x1000)]).unwrap();
        assert_eq!(fake.dma(3, 0x1_0000, true), Some(round << 12));
        assert_eq!(unmap(&domain, 0x1_0000, 0x1000), Ok(Ok(0x1000)));
        if round % 50 == 0 {
            assert_eq!(reserved(&unit).unwrap().len(), 2);
        }
    }
}

#[test]
fn a_device_is_not_asked_what_it_did_not_offer() {
    let fake = device(&region(0, 0, 0xfff));
    fake.state().offered &= !PROBE;
    let unit = up(&fake);
    assert_eq!(reserved(&unit).unwrap(), []);
    assert_eq!(fake.take_requests(), []);
}

#[test]
fn an_endpoint_that_the_device_does_not_know_has_no_regions() {
    let unit = up(&device(&region(0, 0, 0xfff)));
    assert_eq!(unit.reserved(endpoint(0x100)).unwrap(), []);
}

#[test]
fn properties_up_to_the_last_byte_are_taken_and_those_beyond_are_an_error() {
    let filler = |length: u16| property(5, length, &vec![0; length.into()]);
    let least = 24;
    // One that ends with the buffer, and one whose end is cut off.
    let fitting = [filler(SIZE as u16 - 4 - least), region(0, 0x1000, 0x1fff)].concat();
    assert_eq!(fitting.len(), SIZE as usize);
    assert_eq!(reserved(&up(&device(&fitting))), Ok(vec![range(0x1000, 0x1000)]));
    let cut = [filler(SIZE as u16 - 3 - least), region(0, 0x1000, 0x1fff)].concat();
    assert_eq!(reserved(&up(&device(&cut))), Err(AttachError::Refused));
    // Too little room for another head ends the list.
    for rest in 0..4 {
        assert_eq!(reserved(&up(&device(&filler(SIZE as u16 - 4 - rest)))), Ok(vec![]), "{rest}");
    }
}

#[test]
fn properties_that_make_no_sense_are_an_error() {
    for (what, properties) in [
        ("longer than all of them", property(5, SIZE as u16, &[])),
        ("of the greatest length", property(1, u16::MAX, &[])),
        ("shorter than its type", property(1, 19, &[0; 19])),
        ("a region without a body", property(1, 0, &[])),
        ("a region that ends before it starts", region(0, 0x2000, 0x1fff)),
    ] {
        assert_eq!(reserved(&up(&device(&properties))), Err(AttachError::Refused), "{what}");
    }
    // All addresses are a region, too.
    assert_eq!(reserved(&up(&device(&region(0, 0, u64::MAX)))).unwrap().len(), 1);
}

#[test]
fn a_refused_or_short_answer_is_an_error_and_the_next_probe_works() {
    let fake = device(&region(0, 0, 0xfff));
    let unit = up(&fake);
    for answer in [Answer::Status(UNSUPP), Answer::Status(0xff), Answer::Length(4), Answer::Length(SIZE + 3)]
    {
        fake.script(move |_| answer);
        assert_eq!(reserved(&unit), Err(AttachError::Refused), "{answer:?}");
    }
    fake.script(|_| Answer::Right);
    assert_eq!(reserved(&unit).unwrap().len(), 1);
}

#[test]
fn an_answer_that_never_comes_is_waited_for_no_longer_than_stated() {
    let fake = device(&region(0, 0, 0xfff));
    let unit = up(&fake);
    fake.script(|_| Answer::Never);
    assert!(matches!(reserved(&unit), Err(AttachError::Timeout(_))));
    let domain = paging(&unit);
    assert_eq!(map(&domain, &[piece(0, 0, 0x1000)]), Ok(()), "nothing to tell the device");
    assert_eq!(domain.sync(&mut portcullis_hal::Gather::new()).unwrap_err(), SyncError::Faulted);
}

#[test]
fn a_senseless_size_of_properties_is_an_error_that_names_the_field() {
    for size in [0, (1 << 16) + 1, u32::MAX] {
        let fake = device(&[]);
        fake.set_config(32, &size.to_le_bytes());
        let setup = Setup::new(fake.hal.clone(), fake.clone(), options());
        let found = setup.err();
        assert_eq!(found, Some(InitError::Configuration { field: "probe_size", value: size.into() }));
    }
}
