//! ATS, PRI and the device behind them.

use crate::bench::*;
use portcullis_model::core::{
    AddressKind, Interrupt, Mode, Outcome, PageRequest, Request, ResponseCode, Schedule, Upstream,
};
use portcullis_model::device::{self, Attempt, Device, Job};
use portcullis_model::smmuv3::{self, Config, code};
use std::sync::Arc;

const PASID: u32 = 9;

/// Substreams, full ATS, S1DSS bypass, PPAR; PASID 9 uses the CD of [`cd`].
fn with_ats() -> (Bench, Arc<Device>) {
    with(Config::full())
}

fn with(config: Config) -> (Bench, Arc<Device>) {
    let bench = Bench::new(config);
    bench.map1(PAGE | LEAF);
    bench.cd(CD + 64 * u64::from(PASID), cd());
    bench.install(SID, [CD | 0xb | 4 << 59, 0xd4 | 1 | 1 << 18 | 1 << 28, 0, 0, 0, 0, 0, 0]);
    let schedule: Arc<Schedule> = bench.schedule.clone();
    let device = Arc::new(Device::new(SID, bench.smmu.clone(), schedule, true));
    device.set_pasid(Some(20));
    device.set_pri(Some(4));
    device.set_ats(true);
    (bench, device)
}

fn atc_inv(pasid: Option<u32>, address: u64, size: u64) -> [u64; 2] {
    let substream = pasid.map_or(0, |pasid| 1 << 11 | u64::from(pasid) << 12);
    [0x40 | 3 << 32 | substream, address | size]
}

fn job() -> Job {
    Job::read(VA).with_pasid(PASID)
}

#[test]
fn a_grant_is_cached_in_the_device_until_it_confirms_an_invalidation() {
    let (bench, device) = with_ats();
    assert_eq!(device.access(job(), Mode::Hostile).output(), Some(PAGE));
    assert_eq!(device.atc_len(), 1);
    bench.leaf1(0);
    bench.synced(&[tlbi_va(0, ASID, VA)]);
    assert_eq!(
        device.access(job(), Mode::Hostile).output(),
        Some(PAGE),
        "the TLBI does not reach the device"
    );
    let reachable = || device.reachable(job(), |request| bench.smmu.reachable(request));
    assert_eq!(reachable().into_iter().collect::<Vec<_>>(), [Outcome::Done(PAGE), Outcome::NotGranted]);
    for wrong in [
        atc_inv(None, VA, 0),
        atc_inv(Some(8), VA, 0),
        atc_inv(Some(PASID), VA + 0x1000, 0),
        atc_inv(Some(PASID), VA ^ 0x20_0000, 9),
    ] {
        bench.commands(&[wrong]);
        device.step();
        assert_eq!(device.cached(job()), [PAGE], "{wrong:x?}");
    }
    let cons = bench.smmu.read32(0x9c);
    bench.commands(&[atc_inv(Some(PASID), VA, 0), CMD_SYNC]);
    assert_eq!(bench.smmu.read32(0x9c), (cons + 1) & 31, "the CMD_SYNC waits for the device");
    assert_eq!(device.access(job(), Mode::Hostile).output(), Some(PAGE));
    device.step();
    bench.smmu.run();
    assert_eq!(bench.smmu.read32(0x9c), (cons + 2) & 31);
    assert_eq!(device.cached(job()), [0; 0]);
    assert_eq!(reachable().into_iter().collect::<Vec<_>>(), [Outcome::NotGranted]);
    bench.clean();
    assert_eq!(device.take_violations(), []);
}

#[test]
fn a_device_tlb_flushed_before_the_iotlb_refills_from_it() {
    let (bench, device) = with_ats();
    device.access(job(), Mode::Fresh);
    bench.leaf1(0);
    bench.commands(&[atc_inv(Some(PASID), VA, 0)]);
    device.step();
    device.prefetch(job(), Mode::Hostile);
    bench.synced(&[tlbi_va(0, ASID, VA)]);
    assert_eq!(device.cached(job()), [PAGE]);
    // The same without a CMD_SYNC in between: the TLBI is not complete when the device asks again.
    bench.commands(&[tlbi_va(0, ASID, VA), atc_inv(Some(PASID), VA, 52)]);
    device.step();
    assert_eq!(device.prefetch(job(), Mode::Hostile), None, "the TLB was clean already");
}

#[test]
fn a_device_that_never_confirms_ends_in_cerror_atc_inv_sync() {
    let (bench, device) = with_ats();
    device.access(job(), Mode::Fresh);
    bench.schedule.script(device::points::INVALIDATION_LOST, &[1]);
    let start = bench.prod();
    bench.commands(&[atc_inv(Some(PASID), 0, 52), CMD_SYNC]);
    device.step();
    bench.smmu.run();
    assert_eq!(bench.smmu.read32(0x9c), (start + 1) & 31, "no answer yet");
    bench.schedule.script(smmuv3::points::ATC_TIMEOUT, &[1]);
    bench.smmu.run();
    assert_eq!(bench.smmu.read32(0x9c), (start + 1) & 31 | 3 << 24);
    assert_eq!(device.cached(job()), [PAGE], "and the grant is still there");
    bench.smmu.write32(0x64, bench.smmu.read32(0x60));
    bench.smmu.run();
    assert_eq!(bench.smmu.read32(0x9c) & 31, (start + 2) & 31, "the next attempt does not wait for it");
    bench.clean();
}

#[test]
fn a_late_confirmation_keeps_the_grant_and_the_sync() {
    let (bench, device) = with_ats();
    device.access(job(), Mode::Fresh);
    bench.schedule.script(device::points::INVALIDATION_LATE, &[1, 1, 0]);
    bench.commands(&[atc_inv(Some(PASID), 0, 52), CMD_SYNC]);
    for _ in 0..2 {
        device.step();
        assert_eq!(device.cached(job()), [PAGE]);
    }
    device.step();
    assert_eq!(device.cached(job()), [0; 0]);
    bench.synced(&[]);
}

#[test]
fn eats_and_atschk_decide_who_may_use_translated_addresses() {
    let (bench, _device) = with_ats();
    let forged = Request::read(SID, 0x6666_6000).with_kind(AddressKind::Translated);
    let stranger = Request { requester: 4, ..forged };
    let outcome = |request| bench.smmu.dma(request, Mode::Fresh).outcome;
    assert_eq!(outcome(forged), Outcome::Done(0x6666_6000), "EATS 1 passes anything");
    bench.install(4, ste1(CD));
    assert_eq!(outcome(stranger), Outcome::Fault(code::F_TRANSL_FORBIDDEN));
    let request = Request::read(4, VA).with_kind(AddressKind::TranslationRequest);
    assert_eq!(outcome(request), Outcome::Fault(code::F_BAD_ATS_TREQ));
    let events = bench.events();
    assert_eq!(events[0], [0x4_0000_0007, 1 << 35, 0x6666_6000, 0]);
    assert_eq!((events[1][0], events[1][2]), (0x4_0000_0005, VA));
    bench.install(4, [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(outcome(request), Outcome::Aborted, "UR without an event");
    bench.install(4, [0; 8]);
    assert_eq!(outcome(request), Outcome::Silent(code::C_BAD_STE), "CA without an event");
    bench.smmu.write32(0x20, 0xf);
    assert_eq!(outcome(stranger), Outcome::Done(0x6666_6000), "ATSCHK = 0");
    bench.clean();
}

#[test]
fn grants_say_what_both_stages_allow() {
    let (bench, device) = with_ats();
    let grant = device.prefetch(Job::write(VA).with_pasid(PASID), Mode::Fresh).unwrap();
    assert_eq!(
        (grant.address, grant.size, grant.read, grant.write, grant.global),
        (PAGE, 4096, true, true, false)
    );
    bench.leaf1(PAGE | LEAF | 1 << 7);
    bench.synced(&[tlbi_va(0, ASID, VA)]);
    let grant = device.prefetch(Job::write(VA).with_pasid(PASID), Mode::Fresh).unwrap();
    assert_eq!((grant.read, grant.write), (true, false));
    let untagged = device.prefetch(Job::read(VA), Mode::Fresh).unwrap();
    assert_eq!(untagged.address, VA, "S1DSS bypass: the identity");
}

#[test]
fn split_stage_ats_hands_out_ipas_and_translates_them_again() {
    let config = Config { no_split_ats: false, ..Config::full() };
    let bench = Bench::new(config);
    bench.nested();
    let mut words = nested(CD);
    words[1] |= 2 << 28;
    bench.install(SID, words);
    let request = read().with_kind(AddressKind::TranslationRequest);
    let Outcome::Granted(grant) = bench.smmu.dma(request, Mode::Fresh).outcome else { panic!() };
    assert_eq!(grant.address, IPA);
    let translated = Request::read(SID, IPA).with_kind(AddressKind::Translated);
    assert_eq!(bench.smmu.dma(translated, Mode::Fresh).outcome, Outcome::Done(PAGE));
    let beyond = Request { address: IPA + 0x1000, ..translated };
    assert_eq!(bench.smmu.dma(beyond, Mode::Fresh).outcome, Outcome::Fault(code::F_TRANSLATION));
    bench.clean();
}

fn page_requests(bench: &Bench) -> Vec<[u64; 2]> {
    let (prod, mut cons) = (bench.smmu.read32(0x1_00c8), bench.smmu.read32(0x1_00cc));
    let mut all = Vec::new();
    while (prod ^ cons) & 7 != 0 {
        let at = PRIQ + 16 * u64::from(cons & 3);
        all.push([bench.ram.load(at), bench.ram.load(at + 8)]);
        cons = cons & !7 | (cons + 1) & 7;
    }
    bench.smmu.write32(0x1_00cc, cons & 7 | prod & 1 << 31);
    all
}

fn pri_resp(pasid: u32, group: u16, response: u64) -> [u64; 2] {
    [0x41 | 1 << 11 | u64::from(pasid) << 12 | 3 << 32, u64::from(group) | response << 12]
}

#[test]
fn a_missing_page_is_asked_for_and_used_after_the_answer() {
    let (bench, device) = with_ats();
    bench.leaf1(0);
    let Attempt::Requested { group } = device.access(job(), Mode::Fresh) else { panic!() };
    let record = page_requests(&bench);
    assert_eq!(record, [[1 << 63 | 9 << 32 | 1 << 62 | 1 << 60 | 3, VA | u64::from(group)]]);
    assert_eq!((device.unanswered(), bench.smmu.unanswered_groups()), (1, 1));
    bench.leaf1(PAGE | LEAF);
    bench.commands(&[pri_resp(PASID, group, 2)]);
    device.step();
    assert_eq!(device.take_answers()[0].code, ResponseCode::Success);
    assert_eq!(device.access(job(), Mode::Fresh).output(), Some(PAGE));
    assert_eq!(device.unanswered(), 0);
    bench.clean();
    // Twice, or to another PASID.
    bench.commands(&[pri_resp(PASID, group, 2)]);
    device.step();
    assert_eq!(bench.violations(), ["page-response"]);
    assert_eq!(device.take_violations()[0].rule, "device-response");
}

#[test]
fn groups_have_members_and_a_last_one_and_credits_are_obeyed() {
    let (bench, device) = with_ats();
    let member = |page: u64| Job::write(VA + (page << 12)).with_pasid(PASID);
    let group = device.request_pages(&[member(0), member(1), member(2)]).unwrap();
    assert_eq!(device.request_pages(&[member(3), member(4)]), None, "5 of 4 credits");
    let records = page_requests(&bench);
    let last: Vec<_> = records.iter().map(|record| record[0] >> 62 & 1).collect();
    assert_eq!(last, [0, 0, 1]);
    assert!(records.iter().all(|record| record[0] >> 60 & 3 == 2), "writes only");
    bench.commands(&[pri_resp(PASID, group, 0)]);
    device.step();
    assert_eq!(device.request_pages(&[member(0)]), None, "a failure response stops the interface");
    device.stop(PASID);
    let [marker] = page_requests(&bench)[..] else { panic!() };
    assert_eq!(marker[0], 1 << 63 | 9 << 32 | 1 << 62 | 3);
    bench.clean();
}

#[test]
fn an_overflown_pri_queue_answers_by_itself() {
    let (bench, device) = with(Config { pps: false, ..Config::full() });
    bench.schedule.odds(device::points::CREDITS_IGNORED, 1, 1);
    for _ in 0..6 {
        device.request_pages(&[job()]);
    }
    assert_eq!(bench.smmu.read32(0x1_00c8), 4 | 1 << 31);
    device.step();
    let answers = device.take_answers();
    assert_eq!(answers.len(), 2);
    assert!(answers.iter().all(|a| a.code == ResponseCode::Success && a.pasid == Some(PASID)), "PPAR = 1");
    // Unacknowledged, the condition keeps new requests out even with room.
    bench.smmu.write32(0x1_00cc, 2);
    device.request_pages(&[job()]);
    device.step();
    assert_eq!(device.take_answers().len(), 1);
    page_requests(&bench);
    device.request_pages(&[job()]);
    assert_eq!(page_requests(&bench).len(), 1, "acknowledged");
    // Without a valid STE there is no PASID and a failure.
    bench.install(SID, [0; 8]);
    bench.schedule.script(smmuv3::points::PRIQ_OVERFLOW, &[1]);
    device.request_pages(&[job()]);
    device.step();
    let answers = device.take_answers();
    assert_eq!((answers[0].code, answers[0].pasid), (ResponseCode::Failure, None));
    bench.clean();
    assert_eq!(device.take_violations(), []);
}

#[test]
fn the_pri_queue_interrupts_when_it_stops_being_empty_or_at_each_last_request() {
    let (bench, device) = with_ats();
    let wire = Interrupt::Wire { source: "priq" };
    device.request_pages(&[job(), job()]);
    device.request_pages(&[job()]);
    assert_eq!(bench.smmu.take_interrupts(), [wire]);
    page_requests(&bench);
    device.set_pri(Some(4));
    bench.smmu.write32(0x50, 5);
    bench.smmu.write32(0xdc, 1 << 31);
    bench.smmu.write32(0x50, 7);
    device.request_pages(&[job(), job()]);
    device.request_pages(&[job()]);
    assert_eq!(bench.smmu.take_interrupts(), [wire, wire]);
    bench.clean();
}

#[test]
fn a_disabled_or_aborting_pri_queue_fails_requests() {
    let (bench, device) = with_ats();
    bench.smmu.write32(0x20, 0x1d);
    device.request_pages(&[job()]);
    device.step();
    assert_eq!(device.take_answers()[0].code, ResponseCode::Failure);
    device.set_pri(Some(4));
    bench.smmu.write32(0x20, 0x1f);
    bench.ram.punch(PRIQ, PRIQ + 64);
    device.request_pages(&[job()]);
    device.step();
    assert_eq!(device.take_answers()[0].code, ResponseCode::Failure);
    assert_eq!(bench.smmu.read32(0x60), 8, "PRIQ_ABT_ERR");
    let marker = PageRequest {
        requester: SID,
        pasid: Some(1),
        address: 0,
        read: false,
        write: false,
        execute: false,
        privileged: false,
        last: true,
        group: 0,
    };
    bench.smmu.page_request(marker);
    device.step();
    assert_eq!(device.take_answers(), [], "stop markers are never answered");
    bench.clean();
}

#[test]
fn enables_in_the_wrong_order_are_violations() {
    let (_bench, device) = with_ats();
    device.set_pasid(None);
    device.set_ats(false);
    let rules: Vec<_> = device.take_violations().into_iter().map(|v| v.detail).collect();
    assert_eq!(rules.len(), 2, "{rules:?}");
    device.set_pri(None);
    device.set_ats(false);
    device.set_pasid(Some(8));
    assert_eq!(device.take_violations(), []);
    assert_eq!(device.access(Job::read(VA).with_pasid(256), Mode::Fresh), Attempt::Refused);
    assert_eq!(device.access(Job::read(VA), Mode::Fresh).output(), Some(VA), "untranslated, S1DSS bypass");
}
