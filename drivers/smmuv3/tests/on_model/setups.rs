//! The units that seeds run on.

use crate::board::{Caused, Kernel, Registers};
use crate::ram::lock;
use crate::space::Driver;
use portcullis_hal::{EndpointId, FixedMapping, MsiMessage, PhysAddr};
use portcullis_iommu::{PageRequest, PageRequestKind, Unit as _, UnitEvent};
use portcullis_model::core::{Prng, Schedule};
use portcullis_model::device::points as habits;
use portcullis_model::smmuv3::{Config, Smmu, points};
use portcullis_smmuv3::{Coherency, InitError, Interrupts, Options, Setup, SyncSignal};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// What a unit has told its interrupt handler.
#[derive(Default)]
pub(crate) struct Told {
    /// Each with the number of records that were lost by then.
    pub(crate) events: Vec<(UnitEvent, u64)>,
    /// How many of all were faults or stalls.
    faults: u64,
}

/// What a unit tells its interrupt handler.
pub(crate) type Inbox = Arc<Mutex<Told>>;

/// Handles a unit's interrupts, and what they leave.
pub(crate) fn handle(driver: &Driver, model: &Smmu, inbox: &Inbox) {
    let mut unread = true;
    while unread {
        unread = false;
        driver.handle_interrupt(&mut |event| {
            unread |= event == UnitEvent::Unread;
            tell(model, inbox, event);
        });
    }
}

/// Takes what a unit tells.
pub(crate) fn tell(model: &Smmu, inbox: &Inbox, event: UnitEvent) {
    let mut told = lock(inbox);
    let stall = |request: &PageRequest| matches!(request.kind, PageRequestKind::Stall(_));
    let lost = match &event {
        UnitEvent::Overflow => {
            // Those that the unit had no room for.
            let records = model.coverage().table().into_iter().filter(|(class, ..)| *class == "event");
            let all: u64 = records.map(|(.., count)| count).sum();
            all + model.coverage().of("error", "EVENTQ_ABT_ERR") - told.faults
        }
        UnitEvent::Fault(_) => {
            told.faults += 1;
            0
        }
        UnitEvent::PageRequest(request) if stall(request) => {
            told.faults += 1;
            0
        }
        _ => 0,
    };
    told.events.push((event, lost));
}

/// One unit, its driver, and what is known of both.
pub(crate) struct Unit {
    pub(crate) model: Arc<Smmu>,
    pub(crate) schedule: Arc<Schedule>,
    pub(crate) options: Options,
    pub(crate) driver: Option<Driver>,
    pub(crate) inbox: Inbox,
    /// The hardware was made to fail: the driver may have taken it out of service.
    pub(crate) suspect: bool,
    /// The driver said that it is out of service.
    pub(crate) down: bool,
    /// Faults that will be reported, unless reports are lost.
    pub(crate) caused: Vec<Caused>,
    /// Faults of an earlier life, that may be reported still.
    pub(crate) bygone: Vec<Caused>,
    /// Streams and addresses of accesses that were stalled: what comes of them may be reported as a fault.
    pub(crate) stalled: BTreeSet<(u32, u64)>,
    /// Reports were lost.
    pub(crate) lost: bool,
    /// How many records were lost when that was last reported, and how often it was with that many.
    pub(crate) losses: (u64, u32),
}

/// The kinds of units, by seed.
pub(crate) fn config(seed: u64) -> (&'static str, Config) {
    let qemu = Config::qemu();
    // So few ids that they come round.
    let few = Config { asid16: false, vmid16: false, ..Config::qemu() };
    // Addresses of 52 bits, by the descriptors of FEAT_LPA2 or with the 64 KiB granule.
    let wide = Config { oas: 52, ds: true, va52: true, httu: 2, ..Config::qemu() };
    match seed % 13 {
        0 => ("qemu", qemu),
        1 => ("full", Config { bbml: 1 + (seed / 10 % 2) as u8, ..Config::full() }),
        2 => ("small", Config::small()),
        3 => ("stage 1 only", Config { stage2: false, ril: false, ..few }),
        4 => ("stage 2 only", Config { stage1: false, oas: 48, ..few }),
        5 => ("16 KiB", Config { gran4k: false, gran64k: false, bbml: 1, httu: 2, ..qemu }),
        6 => ("64 KiB", Config { gran4k: false, gran16k: false, ril: false, oas: 48, ..qemu }),
        7 => ("full, not coherent", Config { coherent: false, ..Config::full() }),
        8 => ("linear, no ranges", Config { two_level_streams: false, sid_bits: 10, ril: false, ..few }),
        9 => ("52 bits, 4 KiB", wide),
        10 => ("52 bits, 16 KiB", Config { gran4k: false, gran64k: false, bbml: 1, ..wide }),
        11 => ("52 bits, 64 KiB", Config { gran4k: false, gran16k: false, ds: false, ..wide }),
        _ => ("16 KiB, not coherent", Config { coherent: false, gran4k: false, oas: 40, ..few }),
    }
}

/// Whether firmware says that a unit does not snoop, whatever it says itself.
pub(crate) fn overridden(seed: u64) -> bool {
    seed.wrapping_add(4).is_multiple_of(7)
}

impl Unit {
    pub(crate) fn new(seed: u64, kernel: &Kernel, prng: &mut Prng) -> Self {
        let (_, config) = config(seed);
        Self::with(config, seed, kernel, prng)
    }

    pub(crate) fn with(config: Config, seed: u64, kernel: &Kernel, prng: &mut Prng) -> Self {
        let schedule = Arc::new(Schedule::new(prng.next_u64()));
        let coherency = if overridden(seed) { Coherency::NotSnooped } else { Coherency::Detect };
        let options = Options {
            coherency,
            command_queue_log2: prng.below(9) as u8,
            event_queue_log2: prng.below(8) as u8,
            page_request_queue_log2: Options::default().page_request_queue_log2,
            sync_signal: if seed.is_multiple_of(3) { SyncSignal::Poll } else { SyncSignal::Best },
            stream_bits: 32,
            timeout_ns: 1_000_000_000,
        };
        let model = Arc::new(Smmu::new(config, kernel.0.ram.clone(), schedule.clone()));
        let unit = Self {
            model,
            schedule,
            options,
            driver: None,
            inbox: Inbox::default(),
            suspect: false,
            down: false,
            caused: Vec::new(),
            bygone: Vec::new(),
            stalled: BTreeSet::new(),
            lost: false,
            losses: (0, 0),
        };
        unit.pace(0);
        unit
    }

    /// How the unit behaves from now on.
    pub(crate) fn pace(&self, kind: u64) {
        let schedule = &self.schedule;
        schedule.calm();
        schedule.odds(points::OBSERVE_SKIP, 3, 4);
        let slow = !kind.is_multiple_of(4);
        if slow {
            schedule.odds(points::CMDQ_PAUSE, 1, 4).odds(points::CMDQ_SINGLE, 1, 2);
            schedule.odds(points::SYNC_LATE, 1, 3).odds(points::UPDATE_LATE, 1, 3);
            schedule.odds(points::EVENT_LATE, 1, 3);
            schedule.odds(points::STALL_EARLY_RETRY, 1, 16).odds(points::STALL_SUPPRESS, 1, 4);
            schedule.odds(habits::REQUEST_HELD, 1, 8);
        }
        if kind % 4 == 2 {
            schedule.odds(points::EVENTQ_ABORT, 1, 16).odds(points::MSI_ABORT, 1, 8);
        }
    }

    /// Brings the unit up, with direct maps for some endpoints.
    pub(crate) fn start(
        &mut self,
        kernel: &Kernel,
        direct: &[(Vec<EndpointId>, FixedMapping)],
        interrupts: u64,
    ) -> Result<(), InitError> {
        let registers = Registers { board: kernel.0.clone(), unit: self.model.clone() };
        let mut setup = Setup::new(kernel.clone(), registers, self.options)?;
        for (endpoints, mapping) in direct {
            if let Err(error) = setup.reserve_direct(endpoints, &[*mapping]) {
                panic!("a direct map was refused: {error}");
            }
        }
        let driver = setup.enable()?;
        let message = |data| MsiMessage { address: PhysAddr::new(crate::ram::DOORBELL + 0x40), data };
        let how = match interrupts % 2 == 1 && driver.features().msi {
            true => Interrupts::Msi { events: message(1), errors: message(2) },
            false => Interrupts::Wired,
        };
        if let Err(error) = driver.enable_interrupts(how) {
            panic!("interrupts were not enabled: {error}");
        }
        self.driver = Some(driver);
        self.suspect = false;
        self.down = false;
        Ok(())
    }
}
