//! What CPUs remember of user tables, and how they are made to forget it: each does so for itself, when another one
//! asks by an interrupt.

use super::apic::{self, Command, CommandPending};
use super::{cpu, time};
use crate::{CpuSet, UserTables};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use thiserror::Error;
use x86_64::VirtAddr;
use x86_64::instructions::tlb;

/// The vector of requests. No device has it.
pub(super) const VECTOR: u8 = 0xf0;

/// More pages than these are flushed by flushing everything.
const FEW_PAGES: u64 = 32;

/// How long another CPU may take. It answers within microseconds, unless the host does not let it run.
const TIMEOUT_NS: u64 = 60_000_000_000;

/// A CPU may still use what it was to forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ShootDownError {
    /// It cannot be asked.
    #[error("CPU {cpu} cannot be asked to flush its TLB: {error}")]
    Send {
        /// The CPU's index.
        cpu: usize,
        /// Why.
        error: CommandPending,
    },
    /// It did not answer.
    #[error("CPU {cpu} did not flush its TLB")]
    Timeout {
        /// The CPU's index.
        cpu: usize,
    },
}

/// What a CPU was asked, and what it did.
struct Mailbox {
    asked: AtomicU64,
    done: AtomicU64,
    apic: AtomicU32,
}

static MAILBOXES: [Mailbox; 64] =
    [const { Mailbox { asked: AtomicU64::new(0), done: AtomicU64::new(0), apic: AtomicU32::new(0) } }; 64];

/// Notes how this CPU is asked, once its local APIC is on.
pub(super) fn join() {
    if let (Some(mailbox), Some(apic)) = (MAILBOXES.get(cpu::index()), apic::local()) {
        mailbox.apic.store(apic.id(), Ordering::Relaxed);
    }
}

/// Makes `cpus` forget the translations of `first..=last`, and what they know of tables there. When this returns, none
/// of them uses what the tables held before the caller changed them.
///
/// # Errors
///
/// Of the first CPU that could not be asked or did not answer: the memory behind the translations must not be reused.
pub fn shoot_down(cpus: CpuSet, _tables: &UserTables, first: u64, last: u64) -> Result<(), ShootDownError> {
    // Nothing moves the caller to another CPU, so it stays the one that flushes for itself.
    let mask = cpu::mask_interrupts();
    let own = cpu::index();
    let result = ask(cpus, own);
    if cpus.contains(own) {
        flush(first, last);
    }
    let result = result.and_then(|tickets| await_all(cpus, own, &tickets));
    cpu::restore_interrupts(mask);
    result
}

/// The number that `done` of each CPU's mailbox has to reach.
type Tickets = [u64; 64];

fn ask(cpus: CpuSet, own: usize) -> Result<Tickets, ShootDownError> {
    let mut tickets = [0; 64];
    for cpu in cpus.iter().filter(|&cpu| cpu != own) {
        let (Some(mailbox), Some(ticket)) = (MAILBOXES.get(cpu), tickets.get_mut(cpu)) else { continue };
        // A locked instruction, before which the changes of the tables are visible.
        *ticket = mailbox.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let apic = apic::local().ok_or(ShootDownError::Timeout { cpu })?;
        let id = mailbox.apic.load(Ordering::Relaxed);
        apic.send(id, Command::Interrupt { vector: VECTOR })
            .map_err(|error| ShootDownError::Send { cpu, error })?;
    }
    Ok(tickets)
}

fn await_all(cpus: CpuSet, own: usize, tickets: &Tickets) -> Result<(), ShootDownError> {
    let start = time::now_ns();
    for cpu in cpus.iter().filter(|&cpu| cpu != own) {
        let (Some(mailbox), Some(&ticket)) = (MAILBOXES.get(cpu), tickets.get(cpu)) else { continue };
        while mailbox.done.load(Ordering::Acquire) < ticket {
            if time::now_ns().saturating_sub(start) > TIMEOUT_NS {
                return Err(ShootDownError::Timeout { cpu });
            }
            // That CPU may be waiting for this one in the same way.
            serve();
            core::hint::spin_loop();
        }
    }
    Ok(())
}

/// Does what other CPUs ask of this one, for whoever waits for one of them with interrupts masked.
pub fn serve() {
    let Some(mailbox) = MAILBOXES.get(cpu::index()) else { return };
    let asked = mailbox.asked.load(Ordering::Acquire);
    if mailbox.done.load(Ordering::Relaxed) < asked {
        tlb::flush_all();
        // An interrupt may have come in between and done more.
        mailbox.done.fetch_max(asked, Ordering::Release);
    }
}

/// Handles the interrupt of a request.
pub(super) fn handle_request() {
    serve();
    if let Some(apic) = apic::local() {
        apic.end_of_interrupt();
    }
}

/// Forgets a range on this CPU. Both ways drop what it knows of tables, too (SDM vol. 3, 5.10.4.1).
fn flush(first: u64, last: u64) {
    let pages = (last >> 12).saturating_sub(first >> 12).saturating_add(1);
    if pages > FEW_PAGES {
        tlb::flush_all();
        return;
    }
    for page in 0..pages {
        tlb::flush(VirtAddr::new_truncate((first & !0xfff).saturating_add(page << 12)));
    }
}

/// What an address space has left in TLBs beyond its life: nothing, since a CPU that leaves one forgets it.
pub fn retire(_tables: &UserTables) {}
