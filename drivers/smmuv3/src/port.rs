//! One unit's registers and queues: what both the unit and the domains attached to it need.

use crate::block::RegisterBlock;
use crate::cmdq::CommandQueue;
use crate::dma::{MessageWord, Ring};
use crate::evtq::RecordQueue;
use crate::features::Features;
use crate::line::Totals;
use crate::memory::NoFrames;
use crate::options::{Options, SyncSignal};
use crate::ring::RingSize;
use crate::spec::event::EVENT_WORDS;
use crate::spec::pri::PAGE_REQUEST_WORDS;
use crate::spec::registers::{self, Cr0, Gerror};
use crate::stalls::{self, Stalls};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use portcullis_hal::wait::Timeout;
use portcullis_hal::{Hal, Mmio, TableWrites};
use portcullis_iommu::UnitStats;
use spin::Mutex;

/// The state of a unit, as the driver knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// The queues are not enabled, and nothing is cached.
    Off,
    /// The queues are enabled.
    Running,
    /// The unit did not answer, or said that it failed: what it caches is not known any more.
    Faulted,
}

impl Health {
    #[inline]
    const fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::Off,
            1 => Self::Running,
            _ => Self::Faulted,
        }
    }
}

/// Counters, since start-up.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) domains: AtomicU64,
    pub(crate) attaches: AtomicU64,
    pub(crate) faults: AtomicU64,
    pub(crate) overflows: AtomicU64,
    pub(crate) queue_errors: AtomicU64,
    pub(crate) page_requests: AtomicU64,
    pub(crate) answers: AtomicU64,
    /// Queue errors that an interrupt handler has reported.
    pub(crate) queue_errors_reported: AtomicU64,
}

/// Adds one to a counter.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    fn stats(&self, commands: &Totals) -> UnitStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        UnitStats {
            domains: get(&self.domains),
            attaches: get(&self.attaches),
            faults: get(&self.faults),
            overflows: get(&self.overflows),
            invalidations: commands.commands,
            syncs: commands.syncs,
            doorbells: commands.doorbells,
            queue_errors: get(&self.queue_errors),
            page_requests: get(&self.page_requests),
            answers: get(&self.answers),
        }
    }
}

/// One unit's registers and queues.
pub(crate) struct Port<H: Hal, M: Mmio> {
    pub(crate) block: RegisterBlock<H, M>,
    pub(crate) features: Features,
    pub(crate) commands: CommandQueue<H>,
    pub(crate) events: RecordQueue<H, EVENT_WORDS>,
    /// The stalls that events told of.
    pub(crate) stalls: Stalls,
    /// Where devices' page requests arrive, if the unit takes any.
    pub(crate) page_requests: Option<RecordQueue<H, PAGE_REQUEST_WORDS>>,
    /// Held by whoever reads events or page requests, until they are reported. Taken with interrupts masked.
    pub(crate) reading: Mutex<()>,
    /// Page requests are to be left where they are.
    pub(crate) held: AtomicBool,
    pub(crate) counters: Counters,
    health: AtomicU8,
    /// What it did not do in time, if that is why it is out of service. Taken with interrupts masked.
    late: Mutex<Option<Timeout>>,
    /// Serialises the read-modify-write of GERRORN.
    gerror: Mutex<()>,
}

impl<H: Hal, M: Mmio> Port<H, M> {
    /// The queues of a unit that is off.
    pub(crate) fn new(
        block: RegisterBlock<H, M>,
        features: Features,
        options: &Options,
    ) -> Result<Self, NoFrames> {
        let writes = features.table_writes();
        let commands = options.command_queue_log2.max(CommandQueue::<H>::MIN_LOG2);
        let commands = RingSize::new(commands.min(features.command_queue_log2));
        let events = RingSize::new(options.event_queue_log2.min(features.event_queue_log2));
        // The unit writes messages past the caches of CPUs that it does not snoop.
        let messages =
            features.msi && writes == TableWrites::Cached && options.sync_signal == SyncSignal::Best;
        let message = messages.then(|| MessageWord::new(&block.hal)).transpose()?;
        let commands = Ring::new(&block.hal, commands, writes)?;
        let events = Ring::new(&block.hal, events, writes)?;
        let page_requests = features.page_request_queue_log2.map(|most| {
            let size = RingSize::new(options.page_request_queue_log2.min(most));
            Ring::new(&block.hal, size, writes)
        });
        let page_requests = page_requests.transpose()?;
        let request_range = page_requests.as_ref().and_then(Ring::range);
        let message_range = message.as_ref().and_then(MessageWord::range);
        for range in [message_range, request_range, commands.range(), events.range()].into_iter().flatten() {
            features.reach(range.start(), range.len())?;
        }
        Ok(Self {
            features,
            commands: CommandQueue::new(commands, message)?,
            events: RecordQueue::new(events, [registers::EVENTQ_PROD, registers::EVENTQ_CONS])
                .amended_by(stalls::ended)?,
            stalls: Stalls::new(if features.can_stall() { features.stall_max } else { 0 })?,
            page_requests: page_requests
                .map(|ring| RecordQueue::new(ring, [registers::PRIQ_PROD, registers::PRIQ_CONS])),
            reading: Mutex::new(()),
            held: AtomicBool::new(false),
            block,
            counters: Counters::default(),
            health: AtomicU8::new(Health::Off as u8),
            late: Mutex::new(None),
            gerror: Mutex::new(()),
        })
    }

    #[inline]
    pub(crate) fn hal(&self) -> &H {
        &self.block.hal
    }

    #[inline]
    pub(crate) fn health(&self) -> Health {
        Health::from_bits(self.health.load(Ordering::Acquire))
    }

    pub(crate) fn set_health(&self, health: Health) {
        self.health.store(health as u8, Ordering::Release);
    }

    /// Takes the unit out of service: what it caches is not known any more.
    pub(crate) fn fault(&self, why: &dyn core::fmt::Display) {
        if self.health.swap(Health::Faulted as u8, Ordering::AcqRel) != Health::Faulted as u8 {
            log::error!("SMMUv3: out of service: {why}");
        }
    }

    /// Takes the unit out of service since it did not do something in time.
    pub(crate) fn fault_late(&self, timeout: &Timeout) {
        self.hal().critical(|| {
            self.late.lock().get_or_insert(*timeout);
        });
        self.fault(timeout);
    }

    /// What the unit did not do in time when it was taken out of service for that.
    pub(crate) fn late(&self) -> Option<Timeout> {
        self.hal().critical(|| *self.late.lock())
    }

    /// Ends translation and the queues. The unit aborts what arrives, as GBPA was set so at start-up.
    pub(crate) fn stop(&self) -> Result<(), Timeout> {
        self.block.write_acknowledged(registers::CR0, registers::CR0ACK, Cr0::new().into())?;
        self.set_health(Health::Off);
        Ok(())
    }

    /// Calls `section` with the active global errors, and acknowledges those that it returns. Interrupts are masked
    /// and nobody else acknowledges meanwhile.
    pub(crate) fn acknowledge_errors(&self, section: impl FnOnce(Gerror) -> Gerror) {
        self.hal().critical(|| {
            let _turn = self.gerror.lock();
            let acknowledged = self.block.read(registers::GERRORN);
            let active = self.block.read(registers::GERROR) ^ acknowledged;
            let done = u32::from(section(Gerror::from(active))) & active;
            if done != 0 {
                self.block.write(registers::GERRORN, acknowledged ^ done);
            }
        });
    }

    pub(crate) fn stats(&self) -> UnitStats {
        self.counters.stats(&self.commands.totals())
    }
}

impl<H: Hal, M: Mmio> Drop for Port<H, M> {
    fn drop(&mut self) {
        if self.health() != Health::Off {
            self.commands.leak();
            self.events.leak();
            self.page_requests.iter_mut().for_each(RecordQueue::leak);
        }
    }
}
