//! Random requests, handlers and teardowns.

use super::rig::{FakeUnit, PRI, Rig, STALL, last, request, stall, stalled};
use super::{SUCCESS, handle_with, handler};
use portcullis_hal::host::Random;
use portcullis_hal::{Access, Pasid};
use portcullis_iommu::*;

/// The unit panics at an answer that nobody waits for.
#[test]
fn whatever_happens_every_request_is_answered_once() {
    let runs = if cfg!(miri) { 2 } else { 200 };
    let mut counts = [0_u64; 12];
    for seed in 0..runs {
        println!("seed {seed}");
        random_run(&mut Random::new(seed), &mut counts);
    }
    println!("{counts:?}");
    assert!(cfg!(miri) || counts.iter().all(|count| *count >= 100), "{counts:?}");
}

/// A group index, of which there are 512, or one of 4096 places of stalls, that waits for no answer. With all in use, a stop
/// marker.
fn next_kind(unit: &FakeUnit, device: &Device, model: Permissions, next: &mut u16) -> PageRequestKind {
    let endpoint = device.endpoints()[0];
    let stalls = model.requests.contains(Requests::STALL);
    let count = if stalls { 4096 } else { 512 };
    loop {
        *next = (*next + 1) % count;
        let (kind, to) = match stalls {
            true => (stalled(*next), Answered::Stall(stall(*next))),
            false => (last(*next), Answered::Group(GroupIndex::new(*next))),
        };
        let wires = unit.wires();
        if !wires.asked.iter().any(|asked| asked.endpoint == endpoint && asked.to == to) {
            return kind;
        }
        if wires.asked.iter().filter(|asked| asked.endpoint == endpoint).count() == usize::from(count) {
            return PageRequestKind::StopMarker;
        }
    }
}

fn random_run(random: &mut Random, counts: &mut [u64; 12]) {
    let rig = Rig::new(2);
    let models = [PRI, STALL, PRI];
    let devices: Vec<_> =
        models.iter().zip(8..).map(|(model, bdf)| rig.device(u16::from(bdf == 10), bdf, *model)).collect();
    let handler = handler(SUCCESS);
    let mut groups = [0_u16; 3];
    for _ in 0..400 {
        let which = random.below(3) as usize;
        let device = &devices[which];
        let unit = &rig.units[usize::from(device.unit().0)];
        let whose = Pasid::new(random.below(4) as u32).ok();
        let act = random.below(12) as usize;
        counts[act] += 1;
        match act {
            0..=2 => {
                let count = 1 + random.below(3);
                let own = next_kind(unit, device, models[which], &mut groups[which]);
                for at in 1..=count {
                    let kind = match own {
                        PageRequestKind::Stall(_) => {
                            next_kind(unit, device, models[which], &mut groups[which])
                        }
                        PageRequestKind::Group(index, _) if at < count => {
                            PageRequestKind::Group(index, InGroup::Partial)
                        }
                        own => own,
                    };
                    let access = Access::from_bits_truncate(random.below(8) as u8);
                    let asks = PageRequest { access, ..request(device, whose, at, kind) };
                    if random.below(8) == 0 { unit.hold(asks) } else { unit.ask(asks) }
                }
            }
            3 => {
                for _ in 0..random.below(500) {
                    let kind = next_kind(unit, device, models[which], &mut groups[which]);
                    unit.ask(request(device, whose, 1, kind));
                }
            }
            4 => unit.wires().events.push(UnitEvent::PageRequestOverflow),
            5 => unit.ask(request(device, whose, 0, PageRequestKind::StopMarker)),
            6 => handle_with(&rig, device, whose, &handler),
            7 => {
                rig.iommu.remove_page_fault_handler(device, whose).unwrap();
                let endpoint = device.endpoints()[0];
                let theirs = |asked: &PageAnswer| asked.endpoint == endpoint && asked.pasid == whose;
                assert!(!unit.wires().asked.iter().any(theirs));
            }
            8 => {
                let mut kept = handler.kept.lock().unwrap();
                if !kept.is_empty() {
                    let at = random.below(kept.len() as u64) as usize;
                    let group = kept.swap_remove(at);
                    drop(kept);
                    if random.below(2) == 0 { group.answer(PageResponse::Success) } else { drop(group) }
                }
            }
            9 => {
                *handler.response.lock().unwrap() =
                    [None, SUCCESS, Some(PageResponse::Invalid)][random.below(3) as usize];
            }
            10 => {
                let _more = rig.handle();
            }
            _ => {
                let control = Unswitched(models[which]);
                rig.iommu.disable(device, &control).unwrap();
                let endpoint = device.endpoints()[0];
                assert!(!unit.wires().asked.iter().any(|asked| asked.endpoint == endpoint));
                rig.iommu.enable(device, &control, &models[which]).unwrap();
            }
        }
    }
    let control = Unswitched(PRI);
    for device in &devices {
        rig.iommu.disable(device, &control).unwrap();
        let stats = device.page_fault_stats().unwrap();
        assert_eq!((stats.owed, stats.undelivered), (0, 0));
    }
    handler.kept.lock().unwrap().clear();
    assert!(rig.units.iter().all(|unit| unit.wires().asked.is_empty()));
}
