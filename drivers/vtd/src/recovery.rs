//! Errors of the invalidation queue (section 6.5.2.10): whose descriptor it was is remembered, and the others complete.
//!
//! | FSTS_REG | what has happened | what is done |
//! |---|---|---|
//! | IQE | the hardware stopped at a descriptor, or cannot read it | a wait descriptor takes its place |
//! | ITE | a device did not answer; waits that were fetched are dropped | its invalidations count as refused; a new wait is submitted |
//! | ICE | a device's answer fits no question | it is logged; if an answer is missing, ITE comes later |

use crate::invalidate::Descriptor;
use crate::queue::{Queue, Size, Ticket};
use crate::registers::Registers;
use crate::spec::descriptors::{DeviceTlb0, Kind, PasidDeviceTlb0};
use crate::spec::registers::{FSTS, FaultStatus, IQERCD, IQH, QueueErrors};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use portcullis_hal::producers::Position;
use portcullis_hal::wait::Timeout;
use portcullis_hal::{Hal, Mmio};
use spin::Mutex;

/// How many bad descriptors are remembered for those who have not looked yet.
const REMEMBERED: usize = 16;

/// How often a slot for the wait that makes up for dropped ones is asked for in one go.
const ATTEMPTS: usize = 4;

/// What is known of errors.
#[derive(Default)]
pub(crate) struct Errors {
    /// The number of bad descriptors so far; changes under the lock.
    count: AtomicU32,
    /// FSTS_REG at the latest error.
    last: AtomicU32,
    /// Waits were dropped, and no new one is submitted yet.
    waits_dropped: AtomicBool,
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    /// The places of the latest bad descriptors; the n-th is at n modulo the size.
    bad: [Position; REMEMBERED],
}

impl Errors {
    /// How many descriptors were bad so far, modulo 2^32.
    #[inline]
    pub(crate) fn count(&self) -> u32 {
        self.count.load(Ordering::Acquire)
    }

    /// Remembers a bad descriptor. Its submitter looks when it has completed, so after this.
    fn add(&self, recent: &mut Recent, bad: Position) {
        let count = self.count.load(Ordering::Relaxed);
        if let Some(place) = recent.bad.get_mut(count as usize % REMEMBERED) {
            *place = bad;
        }
        self.count.store(count.wrapping_add(1), Ordering::Release);
    }

    /// Whether one of the errors since the ticket was made concerns it. If there were more than are remembered, it is
    /// taken for granted.
    pub(crate) fn concern<H: Hal>(&self, hal: &H, ticket: &Ticket) -> bool {
        let length = ticket.end.since(ticket.first);
        self.any(hal, ticket, |bad| bad.since(ticket.first) < length).unwrap_or(true)
    }

    /// Whether the descriptor at a place of the ticket was bad; `None` if nobody remembers.
    pub(crate) fn refused<H: Hal>(&self, hal: &H, ticket: &Ticket, place: Position) -> Option<bool> {
        self.any(hal, ticket, |bad| bad == place)
    }

    /// Whether any of the places of the errors since the ticket was made is such a one, if they are all remembered.
    fn any<H: Hal>(&self, hal: &H, ticket: &Ticket, is: impl Fn(Position) -> bool) -> Option<bool> {
        hal.critical(|| {
            let recent = self.recent.lock();
            let now = self.count.load(Ordering::Relaxed);
            let new = now.wrapping_sub(ticket.errors) as usize;
            let index = |back| now.wrapping_sub(back as u32) as usize % REMEMBERED;
            let mut bad = (1..=new).filter_map(|back| recent.bad.get(index(back)).copied());
            (new <= REMEMBERED).then(|| bad.any(is))
        })
    }
}

impl<H: Hal> Queue<H> {
    /// What the hardware said when it last stopped.
    pub(crate) fn last_error(&self) -> Timeout {
        let error = FaultStatus::new().with_iqe(true).with_ice(true).with_ite(true);
        let last = self.errors.last.load(Ordering::Relaxed);
        Timeout::new(FSTS.name, error.into_bits().into(), 0, last.into())
    }

    /// Looks whether the hardware stopped at an error, and sets it going again. Any number of waiters and an interrupt
    /// handler may call it at once; who comes second finds nothing to do. Never waits for the hardware.
    pub(crate) fn recover<M: Mmio>(&self, registers: &Registers<H, M>) {
        if has_error(registers) {
            registers.hal().critical(|| self.attend(registers));
        }
        if self.errors.waits_dropped.load(Ordering::Relaxed) {
            registers.hal().critical(|| self.make_up_for_waits(registers));
        }
    }

    fn attend<M: Mmio>(&self, registers: &Registers<H, M>) {
        let mut recent = self.errors.recent.lock();
        let status = FaultStatus::from_bits(registers.read32(FSTS));
        if !is_error(status) {
            return;
        }
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        self.errors.last.store(status.into_bits(), Ordering::Relaxed);
        let errors = QueueErrors::from_bits(registers.read64(IQERCD));
        let head = self.ring().position_of(registers.read64(IQH), self.producers.published());
        if status.ice() {
            log::error!(
                "VT-d: device {:#06x} confirmed an invalidation that it was not asked for",
                errors.icesid()
            );
        }
        if status.ite() {
            log::error!("VT-d: device {:#06x} did not confirm an invalidation", errors.itesid());
            self.blame_device(&mut recent, head, errors.itesid());
            self.errors.waits_dropped.store(true, Ordering::Relaxed);
        }
        if status.iqe() {
            self.replace_bad(&mut recent, head, errors);
        }
        // The hardware goes on when the last of the bits is cleared, so the ring is in order before. By the manual that is
        // enough; QEMU fetches again only when the tail is written.
        let cleared = FaultStatus::new().with_iqe(status.iqe()).with_ite(status.ite()).with_ice(status.ice());
        registers.write32(FSTS, cleared.into_bits());
        if status.iqe() {
            self.producers.ring_again(|run| self.ring_doorbell(registers, &run));
        }
    }

    /// The hardware stopped at a descriptor: puts a wait descriptor in its place and remembers the place.
    fn replace_bad(&self, recent: &mut Recent, bad: Position, errors: QueueErrors) {
        log::error!(
            "VT-d: invalidation descriptor {:#x?} in slot {} refused (IQERCD_REG {:#x})",
            self.slots.read(bad).0,
            self.ring().slot(bad),
            errors.into_bits()
        );
        // At the tail there is no descriptor: then it was the tail register itself that was refused.
        if bad != self.producers.published() {
            self.put_wait(bad);
            self.errors.add(recent, bad);
        }
    }

    /// A device did not confirm the invalidation of its TLB: remembers all those that it was sent and that are not known
    /// to be done. Where the unit does not say which device it was, they are those of all devices.
    fn blame_device(&self, recent: &mut Recent, head: Position, device: u16) {
        let done = self.done();
        // Both come from the hardware, which may be mistaken.
        let count = if head.has_reached(done) { head.since(done).min(2 * self.ring().slots()) } else { 0 };
        let sent = |wanted: Option<u16>| {
            let places = (0..count).map(move |offset| done.plus(offset));
            places.filter(move |&place| {
                let target = target(self.slots.read(place));
                target.is_some() && wanted.is_none_or(|wanted| target == Some(wanted))
            })
        };
        let known = sent(Some(device)).next().is_some();
        sent(known.then_some(device)).for_each(|place| self.errors.add(recent, place));
    }

    /// Submits a wait for those whose own were dropped.
    ///
    /// The ring may be full of what is fetched and not known to be done, so the head tells what is free. If it is full
    /// even so, a wait is among what is still to be fetched; this is tried again all the same.
    fn make_up_for_waits<M: Mmio>(&self, registers: &Registers<H, M>) {
        let published = self.producers.published();
        let head = self.ring().position_of(registers.read64(IQH), published);
        for _ in 0..ATTEMPTS {
            if let Some(place) = self.producers.reserve_again(1, || head) {
                self.errors.waits_dropped.store(false, Ordering::Relaxed);
                self.put_wait(place);
                let _ = self.hand_over(registers, place, Size::WAIT);
                return;
            }
        }
    }
}

/// The device whose TLB a descriptor invalidates.
fn target(descriptor: Descriptor) -> Option<u16> {
    let [low, _] = descriptor.0;
    match DeviceTlb0::from_bits(low).kind() {
        Kind::DEVICE_TLB => Some(DeviceTlb0::from_bits(low).sid()),
        Kind::PASID_DEVICE_TLB => Some(PasidDeviceTlb0::from_bits(low).sid()),
        _ => None,
    }
}

/// Whether the queue stopped at an error.
pub(crate) fn has_error<H: Hal, M: Mmio>(registers: &Registers<H, M>) -> bool {
    is_error(FaultStatus::from_bits(registers.read32(FSTS)))
}

/// Whether a status says that the queue stopped at an error.
pub(crate) fn is_error(status: FaultStatus) -> bool {
    status.iqe() || status.ite() || status.ice()
}

#[cfg(test)]
mod tests;
