//! An adversarial Arm SMMUv3 (IHI 0070): the Non-secure programming interface, VMSAv8-64 tables.
//!
//! A test drives an [`Smmu`] through its registers, its memory, [`Smmu::dma`] and [`Smmu::step`]. The unit holds
//! everything that the architecture lets it hold, in every version that it could have seen, until an invalidation
//! that covers it *and* the CMD_SYNC behind it are consumed:
//!
//! | cache | found by | covered by |
//! |---|---|---|
//! | L1STD | StreamID | CFGI_STE with Leaf 0, CFGI_STE_RANGE |
//! | STE, word by word | StreamID | CFGI_STE, CFGI_STE_RANGE |
//! | L1CD | StreamID, SubstreamID | CFGI_CD with Leaf 0, CFGI_CD_ALL, CFGI_STE and wider |
//! | CD, word by word | StreamID, SubstreamID | CFGI_CD, CFGI_CD_ALL, CFGI_STE and wider |
//! | stage-1 leaves and table pointers | stream world, VMID, ASID or global and set, address | TLBI_NH_\*, TLBI_EL2_\*, S12_VMALL, NSNH_ALL, broadcasts |
//! | both stages in one entry, and table pointers with stage 2 applied | as stage 1 | as stage 1, *not* by S2_IPA |
//! | stage-2 leaves and table pointers | VMID, IPA | TLBI_S2_IPA, S12_VMALL, NSNH_ALL |
//!
//! Invalid descriptors, and those with the access flag clear, are never cached; invalid STEs and CDs are.
//!
//! [`points`] names the choices of the [`Schedule`]; all are tame unless odds or scripts say otherwise.
//!
//! Differences to QEMU's emulation are on purpose, since the model follows the architecture. In QEMU everything is
//! synchronous and only what a transaction used is cached; commands for ATS, PRI, stalls, EL2 and EL3 do nothing;
//! MSIs of CMD_SYNC are not written; a full event queue is EVENTQ_ABT_ERR instead of OVFLG; a stage-2 fault on a
//! stage-1 table has S2 = 0; S1CDMax with SSIDSIZE 0 is C_BAD_STE instead of ignored; HA and HD are refused; stall,
//! PASIDs and two-level CD tables do not exist; GERROR interrupts are wired only.
//!
//! Where the architecture leaves a choice: an invalidation with reserved bits or out of range does nothing, a CD
//! pointer beyond OAS makes the entry illegal (from SMMUv3.1 on), translated addresses beyond OAS are aborted, tables
//! accessed as non-cacheable or non-shareable are read from memory behind the caches, and entries in a TLB are found
//! whatever the sizes and granules in today's CD and STE are.
//!
//! Not modelled: Secure and Realm interfaces, VMSAv8-32 and VMSAv9-128, big-endian tables, ATOS, MPAM, DPT, ECMDQ,
//! memory attributes other than what decides whether table accesses see CPU caches, RAZ/WI termination (a
//! terminated access is a fault whatever CD.A says), STE.CONT, merging of events.

mod broadcast;
mod caches;
mod command;
mod config;
mod context;
mod entry;
mod locate;
mod output;
mod queue;
mod regs;
mod resolve;
mod run;
mod stage;
mod state;
mod walk;

pub use broadcast::Broadcast;
pub use config::Config;
pub use entry::StreamWorld;
pub use run::code;

use crate::core::{
    Coverage, Downstream, Interrupt, Memory, Mode, Outcome, PageRequest, Request, Response, Schedule,
    Upstream, Violation,
};
use run::Hw;
use state::State;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Names of the choices that the unit asks its schedule for. All are tame (never) unless odds or a script are set.
pub mod points {
    /// No command is consumed in this step.
    pub const CMDQ_PAUSE: &str = "smmu.cmdq.pause";
    /// At most one command is consumed in this step.
    pub const CMDQ_SINGLE: &str = "smmu.cmdq.single";
    /// A CMD_SYNC does not complete in this step.
    pub const SYNC_LATE: &str = "smmu.sync.late";
    /// A CMD_SYNC that waits for a device ends in CERROR_ATC_INV_SYNC.
    pub const ATC_TIMEOUT: &str = "smmu.atc.timeout";
    /// A good command fails with CERROR_ILL.
    pub const COMMAND_ILL: &str = "smmu.cmdq.ill";
    /// The fetch of a command fails with CERROR_ABT.
    pub const COMMAND_ABT: &str = "smmu.cmdq.abt";
    /// Reserved bits in a command are an error, not only a violation.
    pub const COMMAND_STRICT: &str = "smmu.cmdq.strict";
    /// This step does not fetch ahead for what is watched.
    pub const OBSERVE_SKIP: &str = "smmu.observe.skip";
    /// Which of the possible versions a [`Mode::Any`](crate::core::Mode::Any) lookup uses.
    pub const LOOKUP: &str = "smmu.lookup";
    /// CR0ACK, IRQ_CTRLACK or GBPA.UPDATE stay behind in this step.
    pub const UPDATE_LATE: &str = "smmu.update.late";
    /// An event reaches the queue in a later step, or, where the architecture wants it earlier, with a CMD_SYNC.
    pub const EVENT_LATE: &str = "smmu.event.late";
    /// A stalled transaction is tried again although software has not answered.
    pub const STALL_EARLY_RETRY: &str = "smmu.stall.early";
    /// A stall for a page that is stalled already is not recorded.
    pub const STALL_SUPPRESS: &str = "smmu.stall.suppress";
    /// The write of an event fails.
    pub const EVENTQ_ABORT: &str = "smmu.eventq.abort";
    /// The write of a page request fails.
    pub const PRIQ_ABORT: &str = "smmu.priq.abort";
    /// The write of an MSI fails.
    pub const MSI_ABORT: &str = "smmu.msi.abort";
    /// A page request finds the queue full.
    pub const PRIQ_OVERFLOW: &str = "smmu.priq.overflow";
}

/// One SMMU.
pub struct Smmu {
    hw: Hw,
    state: Mutex<State>,
}

impl fmt::Debug for Smmu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Smmu")
            .field("config", &self.hw.config)
            .field("registers", &state.regs)
            .field("stalled", &state.stalled)
            .field("invalidations", &state.invalidations)
            .finish_non_exhaustive()
    }
}

impl Smmu {
    /// A unit out of reset: bypassing, everything disabled.
    pub fn new(config: Config, memory: Arc<dyn Memory>, schedule: Arc<Schedule>) -> Self {
        let state = State { regs: regs::Registers::reset(&config), ..State::default() };
        let hw = Hw {
            config,
            memory,
            schedule,
            violations: crate::core::Violations::default(),
            interrupts: crate::core::Interrupts::default(),
            coverage: Coverage::default(),
        };
        Self { hw, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accessed(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        if self.hw.config.step_on_access {
            Self::work(&self.hw, &mut state);
        }
        state
    }

    fn misaligned(&self, offset: u64, bytes: u64) -> bool {
        let wrong = !offset.is_multiple_of(bytes);
        if wrong {
            self.hw.violations.report("register-access", format_args!("{bytes} bytes at {offset:#x}"));
        }
        wrong
    }

    fn is_wide(&self, offset: u64) -> bool {
        let wide = matches!(offset, 0x68 | 0x80 | 0x90 | 0xa0 | 0xb0 | 0xc0 | 0xd0);
        if !wide {
            self.hw
                .violations
                .report("register-access", format_args!("64 bits at {offset:#x}: two registers"));
        }
        wide
    }

    /// A 32-bit register read.
    pub fn read32(&self, offset: u64) -> u32 {
        if self.misaligned(offset, 4) {
            return 0;
        }
        self.accessed().read(&self.hw, offset)
    }

    /// A 64-bit register read.
    pub fn read64(&self, offset: u64) -> u64 {
        if self.misaligned(offset, 8) || !self.is_wide(offset) {
            return 0;
        }
        let state = self.accessed();
        u64::from(state.read(&self.hw, offset)) | u64::from(state.read(&self.hw, offset + 4)) << 32
    }

    /// A 32-bit register write.
    pub fn write32(&self, offset: u64, value: u32) {
        if !self.misaligned(offset, 4) {
            self.lock().write(&self.hw, offset, value);
            drop(self.accessed());
        }
    }

    /// A 64-bit register write; hardware may see it as two.
    pub fn write64(&self, offset: u64, value: u64) {
        if !self.misaligned(offset, 8) && self.is_wide(offset) {
            let mut state = self.lock();
            state.write(&self.hw, offset, value as u32);
            state.write(&self.hw, offset + 4, (value >> 32) as u32);
        }
    }

    /// Lets the unit work: late updates, fetching ahead, late events, held transactions, commands. Gives how many
    /// commands were consumed.
    pub fn step(&self) -> usize {
        Self::work(&self.hw, &mut self.lock())
    }

    fn work(hw: &Hw, state: &mut State) -> usize {
        state.settle(hw);
        if !hw.schedule.fires(points::OBSERVE_SKIP) {
            Self::observe_all(hw, state);
        }
        if !hw.schedule.fires(points::EVENT_LATE) {
            state.flush_events(hw);
            state.settle_stalls(hw);
        }
        state.retry_unrecorded(hw);
        state.retry_early(hw);
        state.consume(hw)
    }

    /// Steps until no command is left, or nothing moves for 64 steps; gives how many commands were consumed.
    pub fn run(&self) -> usize {
        let (mut total, mut idle) = (0, 0);
        loop {
            let mut state = self.lock();
            let count = Self::work(&self.hw, &mut state);
            let waiting = state.commands_wait();
            drop(state);
            total += count;
            idle = if count == 0 { idle + 1 } else { 0 };
            if !waiting || idle == 64 {
                return total;
            }
        }
    }

    /// From now on no command is consumed, until [`Smmu::unhang`].
    pub fn hang(&self) {
        self.lock().hung = true;
    }

    /// Undoes [`Smmu::hang`].
    pub fn unhang(&self) {
        self.lock().hung = false;
    }

    /// Makes a request one that the unit fetches ahead for: at each step, and so best at each store of the
    /// driver, it caches the STE, CD and walk as they are then.
    pub fn watch(&self, request: Request) {
        let mut state = self.lock();
        if !state.watched.contains(&request) {
            state.watched.push(request);
        }
    }

    /// Ends what [`watch`](Self::watch) began.
    pub fn unwatch_all(&self) {
        self.lock().watched.clear();
    }

    /// Lets the unit cache all that it can reach for what is watched, now.
    pub fn observe(&self) {
        Self::observe_all(&self.hw, &mut self.lock());
    }

    fn observe_all(hw: &Hw, state: &mut State) {
        if !state.regs.enabled() {
            return;
        }
        let watched = std::mem::take(&mut state.watched);
        for request in &watched {
            state.behaviours(hw, request, true);
        }
        state.watched = watched;
    }

    /// One transaction, in one of the ways that hardware may do it.
    pub fn dma(&self, request: Request, mode: Mode) -> Response {
        self.lock().transact(&self.hw, request, mode)
    }

    /// Everything that may become of a transaction now, whatever hardware cached; nothing is changed by asking.
    pub fn reachable(&self, request: Request) -> BTreeSet<Outcome> {
        self.lock().behaviours(&self.hw, &request, false).into_iter().map(|r| r.outcome).collect()
    }

    /// What memory and registers say about a transaction, caches left aside.
    pub fn expected(&self, request: Request) -> Outcome {
        let run = run::Run::new(run::Choice::Fresh, false);
        self.lock().resolve(&self.hw, run, &request).0.outcome
    }

    /// Answers to transactions of a device that were stalled: their tags and what became of them.
    pub fn take_resumed(&self, requester: u32) -> Vec<(u16, Response)> {
        let mut state = self.lock();
        let (mine, others) =
            std::mem::take(&mut state.resumed).into_iter().partition(|(device, ..)| *device == requester);
        state.resumed = others;
        let mine: Vec<(u32, u16, Response)> = mine;
        mine.into_iter().map(|(_, tag, response)| (tag, response)).collect()
    }

    /// How many transactions are stalled, and how many of those wait for room in the event queue.
    pub fn stalled(&self) -> (usize, usize) {
        let state = self.lock();
        let unrecorded = state.stalled.iter().filter(|held| !held.recorded).count();
        (state.stalled.len(), unrecorded)
    }

    /// Stalled transactions that software was told of and has not answered, early successes among them: requester,
    /// PASID, tag.
    pub fn open_stalls(&self) -> Vec<(u32, Option<u32>, u16)> {
        let state = self.lock();
        let told = state.stalled.iter().filter(|held| held.recorded);
        told.map(|held| (held.request.requester, held.request.pasid, held.tag)).collect()
    }

    /// Page request groups that are in the queue and not answered: requester, PASID, group index.
    pub fn open_groups(&self) -> Vec<(u32, Option<u32>, u16)> {
        let state = self.lock();
        state.groups.iter().map(|(group, pasid)| (group.requester, *pasid, group.group)).collect()
    }

    /// How many page request groups wait for an answer.
    pub fn unanswered_groups(&self) -> usize {
        self.lock().groups.len()
    }

    /// Versions held in the TLBs: stage-1 leaves, stage-1 table pointers, stage-2 leaves, stage-2 table pointers.
    pub fn tlb_len(&self) -> [usize; 4] {
        self.lock().tlb.len()
    }

    /// Power-on reset: registers and caches.
    pub fn reset(&self) {
        let mut state = self.lock();
        state.drop_stalls();
        state.configs.clear();
        let (connected, watched) = (std::mem::take(&mut state.connected), std::mem::take(&mut state.watched));
        *state =
            State { regs: regs::Registers::reset(&self.hw.config), connected, watched, ..State::default() };
    }

    /// What the unit implements.
    pub const fn config(&self) -> &Config {
        &self.hw.config
    }

    /// What software did wrong so far, and starts anew.
    pub fn take_violations(&self) -> Vec<Violation> {
        self.hw.violations.take()
    }

    /// Interrupts raised since the last call.
    pub fn take_interrupts(&self) -> Vec<Interrupt> {
        self.hw.interrupts.take()
    }

    /// What was exercised.
    pub const fn coverage(&self) -> &Coverage {
        &self.hw.coverage
    }
}

impl Upstream for Smmu {
    fn dma(&self, request: Request, mode: Mode) -> Response {
        Self::dma(self, request, mode)
    }

    fn page_request(&self, request: PageRequest) {
        self.lock().page_request(&self.hw, request);
    }

    fn take_messages(&self, requester: u32) -> Vec<Downstream> {
        self.lock().outbox.remove(&requester).map(Vec::from).unwrap_or_default()
    }

    fn invalidation_done(&self, requester: u32, tag: u32) {
        let mut state = self.lock();
        if state.invalidations.get(&tag) == Some(&requester) {
            state.invalidations.remove(&tag);
        }
    }

    fn connect(&self, requester: u32) {
        self.lock().connected.insert(requester);
    }
}
