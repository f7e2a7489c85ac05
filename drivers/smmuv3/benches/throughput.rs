//! How many submissions per second the command queue takes from several threads, on the host, with hardware that does at
//! once what it is told. `cargo xtask bench` runs this program and prints what it says.
//!
//! A submission is a strict invalidation of a domain's translations: a TLB command, a sync, and the wait for it. Each thread
//! has a domain and a stream of its own; the queue is what they share. Between two looks at the hardware that fail, a
//! thread gives its processor away, as there may be more threads than processors here, other than in a kernel.
//!
//! What counts is processor time: seconds are those that the threads ran, divided by the processors that they can have at
//! once, so that what else the host does only adds noise.
//!
//! Prints a line per number of threads: `throughput threads=N per_second=N retries_ppm=N doorbells_ppm=N`, the median of
//! several rounds. Retries are looks at the hardware beyond one per submission: for room, or in vain; with doorbells they
//! are counted per million submissions.

#![expect(unsafe_code, reason = "registers of hardware that is not there")]

use portcullis_hal::host::HostHal;
use portcullis_hal::{
    Arc, EndpointId, FrameOrder, Frames, Gather, Granule, Hal, InterruptMask, Mmio, OutOfMemory, PhysAddr,
    SharedTable, TableFormat, TableRoot, TableWrites,
};
use portcullis_iommu::{Domain, DomainSpec, Unit};
use portcullis_smmuv3::{Driver, Options, Setup};
use std::ptr::NonNull;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const THREADS: [usize; 4] = [1, 2, 4, 8];
const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(100);

/// The host's memory, and processors that are given away while waiting.
#[derive(Clone)]
struct Host(HostHal);

// SAFETY: all of it is `HostHal`.
unsafe impl Hal for Host {
    fn alloc_frames(&self, order: FrameOrder) -> Result<PhysAddr, OutOfMemory> {
        self.0.alloc_frames(order)
    }

    unsafe fn free_frames(&self, base: PhysAddr, order: FrameOrder) {
        // SAFETY: the caller's promise.
        unsafe { self.0.free_frames(base, order) }
    }

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        self.0.phys_to_virt(phys)
    }

    fn clean_cache(&self, start: NonNull<u8>, len: usize) {
        self.0.clean_cache(start, len);
    }

    fn now_ns(&self) -> u64 {
        self.0.now_ns()
    }

    fn relax(&self) {
        thread::yield_now();
    }

    fn mask_interrupts(&self) -> InterruptMask {
        self.0.mask_interrupts()
    }

    fn restore_interrupts(&self, mask: InterruptMask) {
        self.0.restore_interrupts(mask);
    }
}

/// An SMMUv3 that takes each command as soon as it is told of it.
struct Smmu {
    registers: Vec<AtomicU32>,
    /// Reads of CMDQ_CONS, by thread.
    looks: Vec<Count>,
}

/// A counter in a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Count(AtomicU64);

impl Count {
    fn add_one(&self) {
        // Nobody else adds.
        self.0.store(self.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

thread_local! {
    /// The number of this thread, below [`MOST_THREADS`].
    static NUMBER: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

const MOST_THREADS: usize = 64;

impl Smmu {
    const CR0: usize = 0x20;
    const GBPA: usize = 0x44;
    const IRQ_CTRL: usize = 0x50;
    const CMDQ_PROD: usize = 0x98;
    const CMDQ_CONS: usize = 0x9c;
    const SIZE: usize = 0x2_0000;

    fn new() -> Self {
        let registers: Vec<AtomicU32> = (0..Self::SIZE / 4).map(|_| AtomicU32::new(0)).collect();
        // IDR0, IDR1, IDR3 and IDR5 of QEMU's unit: both stages, ranges, no messages.
        for (offset, value) in [(0x00, 0x0d44_101b), (0x04, 0x0273_0010), (0x0c, 0x1414), (0x14, 0x74)] {
            registers[offset / 4].store(value, Ordering::Relaxed);
        }
        Self { registers, looks: (0..MOST_THREADS).map(|_| Count::default()).collect() }
    }

    fn register(&self, offset: usize) -> Option<&AtomicU32> {
        self.registers.get(offset / 4)
    }

    fn set(&self, offset: usize, value: u32) {
        if let Some(register) = self.register(offset) {
            register.store(value, Ordering::Release);
        }
    }
}

/// The unit's registers; clones are the same ones.
#[derive(Clone)]
struct Registers(std::sync::Arc<Smmu>);

// SAFETY: nothing acts on memory.
unsafe impl Mmio for Registers {
    fn read32(&self, offset: usize) -> u32 {
        if offset == Smmu::CMDQ_CONS {
            self.0.looks[NUMBER.get()].add_one();
        }
        self.0.register(offset).map_or(0, |register| register.load(Ordering::Acquire))
    }

    fn write32(&self, offset: usize, value: u32) {
        match offset {
            Smmu::CMDQ_PROD => self.0.set(Smmu::CMDQ_CONS, value),
            // Acknowledged in the register behind.
            Smmu::CR0 | Smmu::IRQ_CTRL => self.0.set(offset + 4, value),
            // The update is over at once.
            Smmu::GBPA => return self.0.set(offset, value & 0x7fff_ffff),
            _ => {}
        }
        self.0.set(offset, value);
    }

    fn read64(&self, offset: usize) -> u64 {
        u64::from(self.read32(offset)) | u64::from(self.read32(offset + 4)) << 32
    }

    fn write64(&self, offset: usize, value: u64) {
        self.write32(offset, value as u32);
        self.write32(offset + 4, (value >> 32) as u32);
    }
}

/// What one round gave.
#[derive(Clone, Copy)]
struct Round {
    submissions: u64,
    /// How long the threads ran, in nanoseconds, all together.
    ran_ns: u64,
    /// How many could run at once.
    processors: u64,
    looks: u64,
    doorbells: u64,
}

impl Round {
    fn per_second(&self) -> u64 {
        (self.submissions as f64 * self.processors as f64 * 1e9 / self.ran_ns.max(1) as f64) as u64
    }

    fn per_million(&self, count: u64) -> u64 {
        count.saturating_mul(1_000_000) / self.submissions.max(1)
    }
}

/// How long this thread has run so far, in nanoseconds.
fn ran_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ran = text.split(' ').next().and_then(|number| number.parse().ok());
    ran.unwrap_or_else(|| panic!("the kernel keeps no account of this thread's time: {text:?}"))
}

/// Lets threads submit on a unit for the length of a round.
fn round(unit: &Driver<Host, Registers>, smmu: &Smmu, domains: &[Arc<dyn Domain>]) -> Round {
    let looks = || smmu.looks.iter().map(|count| count.0.load(Ordering::Relaxed)).sum::<u64>();
    let (stats, looked) = (unit.stats(), looks());
    let stop = AtomicBool::new(false);
    let start = Barrier::new(domains.len() + 1);
    let (submissions, ran_ns) = thread::scope(|scope| {
        let submitters: Vec<_> = domains
            .iter()
            .enumerate()
            .map(|(number, domain)| {
                let (stop, start) = (&stop, &start);
                scope.spawn(move || {
                    NUMBER.set(number);
                    let mut gather = Gather::new();
                    let mut submissions = 0_u64;
                    start.wait();
                    let begun = ran_ns();
                    while !stop.load(Ordering::Relaxed) {
                        if let Err(error) = domain.sync(&mut gather) {
                            panic!("a submission failed: {error}");
                        }
                        submissions += 1;
                    }
                    (submissions, ran_ns() - begun)
                })
            })
            .collect();
        start.wait();
        thread::sleep(ROUND);
        stop.store(true, Ordering::Relaxed);
        submitters.into_iter().fold((0, 0), |(submissions, ran), submitter| {
            let (more, longer) = submitter.join().unwrap_or((0, 0));
            (submissions + more, ran + longer)
        })
    });
    let processors = thread::available_parallelism().map_or(1, |count| count.get()).min(domains.len()) as u64;
    let now = unit.stats();
    Round {
        submissions,
        ran_ns,
        processors,
        looks: looks() - looked,
        doorbells: now.doorbells - stats.doorbells,
    }
}

fn main() {
    let hal = Host(HostHal::new());
    let root = Frames::zeroed(&hal, FrameOrder::SINGLE).unwrap_or_else(|error| panic!("{error}"));
    let format = TableFormat::VmsaStage1 { granule: Granule::Size4K, mair: 0xff };
    let root =
        TableRoot { root: root.phys(), format, input_bits: 48, output_bits: 44, writes: TableWrites::Cached };
    for threads in THREADS {
        let smmu = std::sync::Arc::new(Smmu::new());
        let unit = Setup::new(hal.clone(), Registers(smmu.clone()), Options::default())
            .and_then(Setup::enable)
            .unwrap_or_else(|error| panic!("the unit does not come up: {error}"));
        let domains: Vec<Arc<dyn Domain>> = (0..threads)
            .map(|number| {
                // SAFETY: nothing walks the table.
                let spec = DomainSpec::Shared(unsafe { SharedTable::new(root) });
                let domain = unit.new_domain(&spec).unwrap_or_else(|error| panic!("{error}"));
                let endpoint = EndpointId::new(number as u32);
                unit.attach(&[endpoint], &domain).unwrap_or_else(|error| panic!("{error}"));
                domain
            })
            .collect();
        let mut rounds: Vec<Round> = (0..ROUNDS).map(|_| round(&unit, &smmu, &domains)).collect();
        rounds.sort_by_key(Round::per_second);
        let median = rounds[ROUNDS / 2];
        println!(
            "throughput threads={threads} per_second={} retries_ppm={} doorbells_ppm={}",
            median.per_second(),
            median.per_million(median.looks.saturating_sub(median.submissions)),
            median.per_million(median.doorbells)
        );
    }
}
