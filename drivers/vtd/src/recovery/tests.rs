//! The queue on a unit whose every step the test takes itself.

use crate::invalidate::Descriptor;
use crate::queue::{Queue, Ticket};
use crate::registers::Registers;
use crate::ring::Ring;
use crate::spec::registers::{FSTS, IQERCD, IQH, IQT};
use portcullis_hal::host::HostHal;
use portcullis_hal::wait::Timeout;
use portcullis_hal::{DomainId, FrameOrder, Frames, Hal, Mmio, PhysAddr, SyncError};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

const IQE: u32 = 0x10;
const ICE: u32 = 0x20;
const ITE: u32 = 0x40;

#[derive(Clone, Default)]
struct Stub {
    registers: Arc<Mutex<HashMap<usize, u64>>>,
    /// The memory that the ring is in, and where.
    ring: Arc<OnceLock<(HostHal, u64)>>,
    /// The descriptor before the tail, at each write of it.
    last: Arc<Mutex<Vec<[u64; 4]>>>,
}

impl Stub {
    fn set(&self, offset: usize, value: u64) {
        self.registers.lock().unwrap().insert(offset, value);
    }

    fn get(&self, offset: usize) -> u64 {
        self.registers.lock().unwrap().get(&offset).copied().unwrap_or(0)
    }
}

// SAFETY: nothing here does DMA but the test.
#[expect(unsafe_code, reason = "the contract of registers")]
unsafe impl Mmio for Stub {
    fn read32(&self, offset: usize) -> u32 {
        self.get(offset) as u32
    }

    fn write32(&self, offset: usize, value: u32) {
        // Bits of FSTS are cleared by writing them.
        let cleared = if offset == FSTS.offset { self.get(offset) & !u64::from(value) } else { value.into() };
        self.set(offset, cleared);
    }

    fn read64(&self, offset: usize) -> u64 {
        self.get(offset)
    }

    fn write64(&self, offset: usize, value: u64) {
        self.set(offset, value);
        if offset == IQT.offset
            && let Some((hal, ring)) = self.ring.get()
        {
            self.last.lock().unwrap().push(descriptor(hal, *ring, (value / 32 + 127) % 128));
        }
    }
}

/// The words of the descriptor in a slot.
#[expect(unsafe_code, reason = "the unit's view of memory")]
fn descriptor(hal: &HostHal, ring: u64, slot: u64) -> [u64; 4] {
    [0, 8, 16, 24].map(|offset| {
        let word = hal.phys_to_virt(PhysAddr::new(ring + slot * 32 + offset)).cast::<AtomicU64>();
        // SAFETY: the ring is allocated as long as the queue is there.
        unsafe { word.as_ref() }.load(Ordering::Relaxed)
    })
}

struct Machine {
    hal: HostHal,
    stub: Stub,
    registers: Registers<HostHal, Stub>,
    queue: Queue<HostHal>,
}

impl Machine {
    fn new() -> Self {
        let hal = HostHal::new();
        let stub = Stub::default();
        let frames = || Frames::zeroed(&hal, FrameOrder::SINGLE).unwrap();
        let queue = Queue::new(Ring::new(FrameOrder::SINGLE).unwrap(), frames(), frames()).unwrap();
        stub.ring.get_or_init(|| (hal.clone(), queue.phys().get()));
        // Nobody here waits for what does not come.
        let registers = Registers::new(hal.clone(), stub.clone(), 0);
        Self { hal, stub, registers, queue }
    }

    fn submit(&self, batch: &[Descriptor]) -> Ticket {
        self.try_submit(batch).unwrap()
    }

    fn try_submit(&self, batch: &[Descriptor]) -> Result<Ticket, Timeout> {
        self.queue.submit(&self.registers, batch.iter().copied())
    }

    fn wait(&self, ticket: Ticket) -> Result<(), SyncError> {
        self.queue.wait(&self.registers, ticket)
    }

    /// The unit has fetched everything, and reports errors with devices' ids.
    fn fetch_all(&self, status: u32, errors: u64) {
        self.stub.set(IQH.offset, self.stub.get(IQT.offset));
        self.stop(status, errors);
    }

    fn stop(&self, status: u32, errors: u64) {
        self.stub.set(FSTS.offset, u64::from(status));
        self.stub.set(IQERCD.offset, errors);
        self.queue.recover(&self.registers);
        assert_eq!(self.stub.get(FSTS.offset), 0, "all that was found is cleared");
    }

    fn slot(&self, slot: u64) -> [u64; 4] {
        descriptor(&self.hal, self.queue.phys().get(), slot)
    }

    /// Carries out the descriptor before the tail, which is a wait, and returns its slot.
    fn complete(&self) -> u64 {
        let tail = self.stub.get(IQT.offset) / 32;
        let slot = (tail + 127) % 128;
        let [low, address, ..] = self.slot(slot);
        assert_eq!(low & 0x6f, 0x65, "a wait that writes its status and is a fence");
        self.write_status(address, low >> 32);
        self.stub.set(IQH.offset, self.stub.get(IQT.offset));
        slot
    }

    #[expect(unsafe_code, reason = "the unit's view of memory")]
    fn write_status(&self, address: u64, value: u64) {
        let word = self.hal.phys_to_virt(PhysAddr::new(address)).cast::<AtomicU64>();
        // SAFETY: the word is allocated as long as the queue is there.
        unsafe { word.as_ref() }.store(value, Ordering::Release);
    }
}

fn iotlb() -> Descriptor {
    Descriptor::pasid_iotlb_all(DomainId::new(1), 0)
}

fn device_tlb(sid: u64) -> Descriptor {
    Descriptor([sid << 32 | 0x3, 0x1000])
}

fn pasid_device_tlb(sid: u64) -> Descriptor {
    Descriptor([5 << 32 | sid << 16 | 0x8, 0x1000])
}

#[test]
fn a_device_that_does_not_answer_fails_those_who_asked_it_and_the_others_get_a_new_wait() {
    let machine = Machine::new();
    let answered = machine.submit(&[device_tlb(0x20)]);
    machine.complete();
    let none = machine.submit(&[iotlb()]);
    let asked = machine.submit(&[iotlb(), device_tlb(0x20)]);
    let other = machine.submit(&[iotlb(), device_tlb(0x28)]);
    let asked_too = machine.submit(&[pasid_device_tlb(0x20)]);
    let tail = machine.stub.get(IQT.offset);
    machine.fetch_all(ITE, 0x20 << 32);
    let later = machine.submit(&[iotlb(), device_tlb(0x20)]);
    assert_ne!(machine.stub.get(IQT.offset), tail);
    machine.complete();
    for (ticket, expected) in [
        (answered, Ok(())),
        (none, Ok(())),
        (asked, Err(SyncError::Faulted)),
        (other, Ok(())),
        (asked_too, Err(SyncError::Faulted)),
        (later, Ok(())),
    ] {
        assert_eq!(machine.wait(ticket), expected, "{ticket:?}");
    }
    assert_eq!(machine.queue.counters.errors.load(Ordering::Relaxed), 1);
    assert_eq!(machine.queue.last_error().last, ITE);
}

#[test]
fn the_wait_that_makes_up_for_dropped_ones_comes_by_itself() {
    let machine = Machine::new();
    let ticket = machine.submit(&[iotlb()]);
    machine.fetch_all(ITE, 0x20 << 32);
    assert_eq!(machine.stub.get(IQT.offset), 3 * 32);
    assert_eq!(machine.complete(), 2);
    assert_eq!(machine.wait(ticket), Ok(()));
    machine.queue.recover(&machine.registers);
    assert_eq!(machine.stub.get(IQT.offset), 3 * 32, "once");
}

#[test]
fn where_the_unit_does_not_say_which_device_it_was_all_that_were_asked_count() {
    let machine = Machine::new();
    let none = machine.submit(&[iotlb()]);
    let one = machine.submit(&[iotlb(), device_tlb(0x20)]);
    let two = machine.submit(&[pasid_device_tlb(0x28)]);
    machine.fetch_all(ITE, 0);
    machine.complete();
    assert_eq!(machine.wait(none), Ok(()));
    assert_eq!(machine.wait(one), Err(SyncError::Faulted));
    assert_eq!(machine.wait(two), Err(SyncError::Faulted));
}

#[test]
fn what_was_not_fetched_when_a_device_did_not_answer_is_not_blamed() {
    let machine = Machine::new();
    let fetched = machine.submit(&[device_tlb(0x20)]);
    let head = machine.stub.get(IQT.offset);
    let waiting = machine.submit(&[device_tlb(0x20)]);
    machine.stub.set(IQH.offset, head);
    machine.stop(ITE, 0x20 << 32);
    machine.complete();
    assert_eq!(machine.wait(fetched), Err(SyncError::Faulted));
    assert_eq!(machine.wait(waiting), Ok(()));
}

#[test]
fn in_a_ring_full_of_dropped_waits_there_is_room_for_the_new_one_and_for_batches_behind_it() {
    let machine = Machine::new();
    let tickets: Vec<_> = (0..63).map(|_| machine.submit(&[iotlb()])).collect();
    let last = machine.submit(&[]);
    assert!(machine.try_submit(&[iotlb()]).is_err(), "the ring is full");
    machine.fetch_all(ITE, 0);
    // By the status word nothing is free yet.
    let more: Vec<_> = (0..20).map(|_| machine.submit(&[iotlb()])).collect();
    machine.complete();
    let again: Vec<_> = (0..50).map(|_| machine.submit(&[iotlb()])).collect();
    machine.complete();
    for ticket in tickets.into_iter().chain([last]).chain(more).chain(again) {
        assert_eq!(machine.wait(ticket), Ok(()));
    }
}

#[test]
fn an_answer_that_fits_no_question_is_counted_and_nothing_else() {
    let machine = Machine::new();
    let ticket = machine.submit(&[device_tlb(0x20)]);
    let tail = machine.stub.get(IQT.offset);
    machine.fetch_all(ICE, 0x20 << 48);
    assert_eq!(machine.stub.get(IQT.offset), tail);
    machine.complete();
    assert_eq!(machine.wait(ticket), Ok(()));
    assert_eq!(machine.queue.counters.errors.load(Ordering::Relaxed), 1);
}

#[test]
fn a_bad_descriptor_and_a_silent_device_at_once_fail_one_submitter_each() {
    let machine = Machine::new();
    let silent = machine.submit(&[device_tlb(0x20)]);
    let fine = machine.submit(&[iotlb()]);
    let head = machine.stub.get(IQT.offset);
    let bad = machine.submit(&[iotlb()]);
    let behind = machine.submit(&[iotlb()]);
    machine.stub.set(IQH.offset, head);
    machine.stop(IQE | ITE, 0x20 << 32 | 4);
    let [low, ..] = machine.slot(head / 32);
    assert_eq!((low & 0xf, low >> 32), (5, head / 32 + 1), "a wait took the bad one's place");
    machine.complete();
    assert_eq!(machine.wait(silent), Err(SyncError::Faulted));
    assert_eq!(machine.wait(fine), Ok(()));
    assert_eq!(machine.wait(bad), Err(SyncError::Faulted));
    assert_eq!(machine.wait(behind), Ok(()));
}

#[test]
fn who_cannot_know_whether_an_error_was_its_own_takes_it_for_its_own() {
    let machine = Machine::new();
    let early = machine.submit(&[iotlb()]);
    let late = machine.submit(&[device_tlb(0x20); 17]);
    machine.fetch_all(ITE, 0x20 << 32);
    machine.complete();
    assert_eq!(machine.wait(late), Err(SyncError::Faulted));
    assert_eq!(machine.wait(early), Err(SyncError::Faulted), "more errors than are remembered");
    let new = machine.submit(&[iotlb()]);
    machine.complete();
    assert_eq!(machine.wait(new), Ok(()));
}

#[test]
fn a_wait_without_end_and_a_full_ring_tell_what_was_waited_for() {
    let machine = Machine::new();
    let ticket = machine.submit(&[iotlb()]);
    let Err(SyncError::Timeout(late)) = machine.wait(ticket) else { panic!("nobody answered") };
    assert_eq!((late.register, late.expected, late.last), ("invalidation status word", 2, 0));
    while let Ok(ticket) = machine.try_submit(&[iotlb(); 3]) {
        let _ = ticket;
    }
    let full = machine.try_submit(&[iotlb(); 3]).unwrap_err();
    assert_eq!((full.register, full.expected, full.last), ("free invalidation queue slots", 4, 1));
    // Those who gave up are not in the way of what needs less.
    assert!(machine.try_submit(&[]).is_ok());
}

#[test]
fn a_unit_that_talks_nonsense_gets_no_more_room_than_there_is_and_no_endless_search() {
    for nonsense in [0x1000, 0x4000_0000, 0x8000_0000, 0xffff_ff00] {
        let machine = Machine::new();
        let ticket = machine.submit(&[device_tlb(0x20)]);
        let [_, status, ..] = machine.slot(1);
        machine.write_status(status, nonsense);
        machine.fetch_all(ITE, 0x20 << 32);
        let mut taken = 0;
        while machine.try_submit(&[]).is_ok() {
            taken += 1;
            assert!(taken < 128, "more than the ring holds");
        }
        let _ = ticket;
    }
}

#[test]
fn what_the_tail_says_is_there_has_been_written() {
    let machine = Machine::new();
    for round in 0..100 {
        let ticket = machine.submit(&[iotlb(), device_tlb(0x20)]);
        let Some([low, _, third, fourth]) = machine.stub.last.lock().unwrap().pop() else {
            panic!("no doorbell")
        };
        assert_eq!((low & 0xf, low >> 32), (5, u64::from(ticket.end.get())), "round {round}");
        assert_eq!((third, fourth), (0, 0));
        machine.complete();
        assert_eq!(machine.wait(ticket), Ok(()));
    }
}
