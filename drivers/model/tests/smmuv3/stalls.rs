//! The stall fault model.

use crate::bench::*;
use portcullis_model::core::{Mode, Outcome, Request};
use portcullis_model::smmuv3::{Config, code, points};

const STALL: u64 = 1 << 31;

fn stalling(config: Config) -> Bench {
    let bench = Bench::new(config);
    bench.stage1();
    bench.leaf1(0);
    let mut words = cd();
    words[0] |= 1 << 44;
    bench.cd(CD, words);
    bench.synced(&[cfgi_cd(SID, 0)]);
    bench
}

fn resume(sid: u64, tag: u16, action: u64) -> [u64; 2] {
    [0x44 | sid << 32 | action << 12, u64::from(tag)]
}

#[test]
fn a_stalled_access_waits_for_resume_and_is_tried_again() {
    let bench = stalling(Config::full());
    let held = bench.smmu.dma(read(), Mode::Hostile);
    assert_eq!(held.outcome, Outcome::Stalled(code::F_TRANSLATION));
    let tag = held.tag.unwrap();
    let [event] = bench.events()[..] else { panic!() };
    assert_eq!(event, [0x3_0000_0010, STALL | 1 << 35 | 2 << 40 | u64::from(tag), VA, 0]);
    bench.leaf1(PAGE | LEAF);
    bench.smmu.step();
    assert_eq!(bench.smmu.take_resumed(SID), []);
    bench.commands(&[resume(3, tag, 1)]);
    let resumed = bench.smmu.take_resumed(SID);
    assert_eq!((resumed.len(), resumed[0].0, resumed[0].1.outcome), (1, tag, Outcome::Done(PAGE)));
    assert_eq!(bench.smmu.stalled(), (0, 0));
    bench.clean();
}

#[test]
fn a_retry_that_faults_again_stalls_again_with_a_new_record() {
    let bench = stalling(Config::full());
    let tag = bench.smmu.dma(read(), Mode::Fresh).tag.unwrap();
    bench.events();
    bench.commands(&[resume(3, tag, 1)]);
    assert_eq!(bench.event_codes(), [code::F_TRANSLATION]);
    bench.commands(&[resume(3, tag, 2)]);
    assert_eq!(bench.smmu.take_resumed(SID)[0].1.outcome, Outcome::Aborted);
    bench.clean();
}

#[test]
fn resuming_what_is_not_stalled_is_a_violation() {
    let bench = stalling(Config::full());
    let tag = bench.smmu.dma(read(), Mode::Fresh).tag.unwrap();
    bench.commands(&[resume(3, tag + 1, 1), resume(4, tag, 1)]);
    assert_eq!(bench.violations(), ["resume", "resume"]);
    assert_eq!(bench.smmu.stalled(), (1, 0));
    bench.commands(&[resume(3, tag, 0), resume(3, tag, 0)]);
    assert_eq!(bench.violations(), ["resume"], "answered twice");
}

#[test]
fn stalls_that_find_no_room_wait_and_are_not_lost() {
    let bench = stalling(Config::full());
    let tags: Vec<_> = (0..6).map(|_| bench.smmu.dma(read(), Mode::Fresh).tag.unwrap()).collect();
    assert_eq!(bench.smmu.stalled(), (6, 2));
    assert_eq!(bench.smmu.read32(0x1_00a8) >> 31, 0, "no overflow");
    assert_eq!(bench.events().len(), 4);
    bench.smmu.step();
    assert_eq!(bench.smmu.stalled(), (6, 0));
    assert_eq!(bench.events().len(), 2);
    bench.commands(&tags.iter().map(|tag| resume(3, *tag, 0)).collect::<Vec<_>>());
    assert_eq!(bench.smmu.take_resumed(SID).len(), 6);
    // More than STALL_MAX wait outside.
    let bench = stalling(Config { stall_max: 1, ..Config::full() });
    bench.smmu.dma(read(), Mode::Fresh);
    bench.smmu.dma(read(), Mode::Fresh);
    assert_eq!((bench.smmu.stalled(), bench.events().len()), ((2, 1), 1));
    bench.clean();
}

#[test]
fn stall_term_ends_all_of_a_stream_that_takes_no_more() {
    let bench = stalling(Config::full());
    bench.smmu.dma(read(), Mode::Fresh);
    bench.smmu.dma(Request::write(SID, VA), Mode::Fresh);
    bench.commands(&[[0x45 | 3 << 32, 0]]);
    assert_eq!(bench.violations(), ["stall-term"], "the stream is still alive");
    bench.smmu.dma(read(), Mode::Fresh);
    bench.install(SID, [1, 0, 0, 0, 0, 0, 0, 0]);
    bench.commands(&[[0x45 | 3 << 32, 0]]);
    assert_eq!(bench.smmu.take_resumed(SID).len(), 3);
    bench.clean();
}

#[test]
fn disabling_the_unit_terminates_stalls() {
    let bench = stalling(Config::full());
    bench.smmu.dma(read(), Mode::Fresh);
    bench.smmu.write32(0x20, 0x1e);
    assert_eq!(bench.smmu.take_resumed(SID)[0].1.outcome, Outcome::Aborted);
}

#[test]
fn s1stalld_makes_a_stalling_cd_illegal_and_stage_2_stalls_by_s2s() {
    let bench = stalling(Config::full());
    let mut words = ste1(CD);
    words[1] |= 1 << 27;
    bench.install(SID, words);
    assert_eq!(bench.read(Mode::Fresh), Outcome::Fault(code::C_BAD_CD));
    let mut words = ste2();
    words[2] |= 1 << 57;
    bench.install(SID, words);
    assert_eq!(bench.read(Mode::Fresh), Outcome::Stalled(code::F_TRANSLATION));
    let events = bench.events();
    assert_eq!(events[1][1] & (STALL | 1 << 39), STALL | 1 << 39);
}

#[test]
fn an_early_retry_goes_through_without_an_answer_and_the_answer_is_still_due() {
    let bench = stalling(Config::full());
    let tag = bench.smmu.dma(read(), Mode::Fresh).tag.unwrap();
    bench.schedule.odds(points::STALL_EARLY_RETRY, 1, 1);
    bench.smmu.step();
    assert_eq!(bench.smmu.take_resumed(SID), [], "still no page");
    assert_eq!(bench.events().len(), 1, "nothing recorded for the attempt");
    bench.leaf1(PAGE | LEAF);
    bench.smmu.step();
    assert_eq!(bench.smmu.take_resumed(SID)[0].1.outcome, Outcome::Done(PAGE));
    assert_eq!(bench.smmu.stalled(), (1, 0));
    bench.commands(&[resume(3, tag, 2)]);
    assert_eq!(bench.smmu.take_resumed(SID), []);
    assert_eq!(bench.smmu.stalled(), (0, 0));
    bench.clean();
}

#[test]
fn a_second_stall_on_a_page_may_go_unrecorded_until_the_first_is_answered() {
    let bench = stalling(Config::full());
    bench.schedule.odds(points::STALL_SUPPRESS, 1, 1);
    let first = bench.smmu.dma(read(), Mode::Fresh).tag.unwrap();
    bench.smmu.dma(Request::read(SID, VA + 8), Mode::Fresh);
    bench.smmu.dma(Request::write(SID, VA), Mode::Fresh);
    assert_eq!(bench.events().len(), 2, "a write is another matter");
    bench.leaf1(PAGE | LEAF);
    bench.commands(&[resume(3, first, 0)]);
    let outcomes: Vec<_> = bench.smmu.take_resumed(SID).into_iter().map(|(_, r)| r.outcome).collect();
    assert_eq!(outcomes, [Outcome::Aborted, Outcome::Done(PAGE + 8)]);
    bench.clean();
}

#[test]
fn an_event_on_its_way_is_visible_after_an_invalidation_that_affects_it_and_a_sync() {
    let bench = stalling(Config::full());
    bench.schedule.odds(points::EVENT_LATE, 1, 1);
    let held = bench.smmu.dma(read(), Mode::Fresh);
    assert_eq!(held.outcome, Outcome::Stalled(code::F_TRANSLATION));
    bench.synced(&[]);
    assert_eq!(bench.smmu.stalled(), (1, 1), "a CMD_SYNC alone does nothing for it");
    bench.synced(&[cfgi_cd(SID, 1)]);
    bench.synced(&[cfgi_cd(SID + 1, 0)]);
    assert_eq!(bench.smmu.stalled(), (1, 1), "nor does one behind what does not affect it");
    bench.synced(&[cfgi_cd(SID, 0)]);
    assert_eq!((bench.smmu.stalled(), bench.events().len()), ((1, 0), 1));
    bench.clean();
}

#[test]
fn an_event_on_its_way_that_finds_no_room_is_of_the_new_configuration() {
    let bench = stalling(Config::full());
    for _ in 0..4 {
        bench.smmu.dma(read(), Mode::Fresh);
    }
    bench.schedule.odds(points::EVENT_LATE, 1, 1);
    let tag = bench.smmu.dma(Request::write(SID, VA), Mode::Fresh).tag;
    bench.schedule.calm();
    assert_eq!(bench.smmu.stalled(), (5, 1));
    bench.cd(CD, [0; 8]);
    bench.synced(&[cfgi_cd(SID, 0)]);
    assert_eq!(bench.smmu.stalled(), (5, 1), "the queue is full");
    assert_eq!(bench.events().len(), 4);
    bench.smmu.step();
    assert_eq!(bench.event_codes(), [code::C_BAD_CD]);
    let ended = bench.smmu.take_resumed(SID);
    assert_eq!((ended.len(), Some(ended[0].0), ended[0].1.outcome), (1, tag, Outcome::Fault(code::C_BAD_CD)));
    bench.clean();
}
