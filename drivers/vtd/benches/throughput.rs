//! How many invalidations per second threads get through one queue, against a unit that has done everything at once.
//!
//! Each thread submits an invalidation of a domain of its own and waits for it, over and over. The numbers say what the
//! driver costs and how it bears company, not what hardware can do.
//!
//! One line per number of threads, medians of nine runs:
//! `throughput threads=N per_second=N retries_ppm=N doorbells_ppm=N`, the last two per million submissions.

#![expect(unsafe_code, reason = "memory and a unit that do nothing but be there")]

use portcullis_hal::{
    Arc, EndpointId, FrameOrder, Gather, Hal, InterruptMask, Mmio, OutOfMemory, PhysAddr, SharedTable,
    TableFormat, TableRoot, TableWrites,
};
use portcullis_iommu::{Domain, DomainSpec, Unit};
use portcullis_vtd::{Driver, Options, Setup};
use std::ptr::NonNull;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const THREADS: [usize; 4] = [1, 2, 4, 8];
const RUNS: usize = 9;
const RUN: Duration = Duration::from_millis(150);
/// How many submissions a thread makes between two looks at the clock.
const BURST: u64 = 256;

/// Physical memory from here on.
const BASE: u64 = 1 << 32;
const WORDS: usize = 1 << 17;

/// Memory that is handed out once, found by a subtraction, so that looking it up costs nothing.
#[derive(Clone, Copy)]
struct Memory(&'static State);

struct State {
    words: Vec<AtomicU64>,
    next: AtomicU64,
    start: Instant,
}

impl Memory {
    fn new() -> Self {
        let words = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        Self(Box::leak(Box::new(State { words, next: AtomicU64::new(0), start: Instant::now() })))
    }

    /// The first word on a page boundary, so that frames are aligned for the CPU too.
    fn first(&self) -> usize {
        self.0.words.as_ptr().align_offset(4096)
    }

    fn word(&self, phys: u64) -> &'static AtomicU64 {
        &self.0.words[self.first() + ((phys - BASE) / 8) as usize]
    }
}

// SAFETY: frames are aligned blocks of memory that lives for ever, zero at first and never given out again. There are no
// interrupts.
unsafe impl Hal for Memory {
    fn alloc_frames(&self, order: FrameOrder) -> Result<PhysAddr, OutOfMemory> {
        let size = order.bytes();
        let claim = |next: u64| Some(next.next_multiple_of(size) + size);
        let before = self.0.next.fetch_update(Ordering::SeqCst, Ordering::SeqCst, claim).unwrap_or_default();
        let offset = before.next_multiple_of(size);
        let fits = self.first() + ((offset + size) / 8) as usize <= WORDS;
        if fits { Ok(PhysAddr::new(BASE + offset)) } else { Err(OutOfMemory) }
    }

    unsafe fn free_frames(&self, _base: PhysAddr, _order: FrameOrder) {}

    fn phys_to_virt(&self, phys: PhysAddr) -> NonNull<u8> {
        NonNull::from(self.word(phys.get())).cast()
    }

    fn clean_cache(&self, _start: NonNull<u8>, _len: usize) {}

    fn now_ns(&self) -> u64 {
        self.0.start.elapsed().as_nanos() as u64
    }

    fn relax(&self) {
        // More threads than CPUs wait for each other here.
        std::thread::yield_now();
    }

    fn mask_interrupts(&self) -> InterruptMask {
        InterruptMask(0)
    }

    fn restore_interrupts(&self, _mask: InterruptMask) {}
}

const VER: usize = 0x00;
const CAP: usize = 0x08;
const ECAP: usize = 0x10;
const GCMD: usize = 0x18;
const GSTS: usize = 0x1c;
const FSTS: usize = 0x34;
const IQT: usize = 0x88;
const IQA: usize = 0x90;
/// GSTS_REG: the queue is on.
const QIE: u32 = 1 << 26;

/// A unit that has carried out what the tail register says when the write returns.
#[derive(Clone, Copy)]
struct NullUnit {
    memory: Memory,
    registers: &'static [AtomicU32; 0x400],
}

impl NullUnit {
    fn new(memory: Memory) -> Self {
        let registers = Box::leak(Box::new([const { AtomicU32::new(0) }; 0x400]));
        let unit = Self { memory, registers };
        unit.write32(VER, 0x10);
        // QEMU 11.1: `scalable-mode=on,fsts=on,pasid-bits=20,svm=on,device-iotlb=on`.
        unit.write64(CAP, 0x81d2_008c_222f_0606);
        unit.write64(ECAP, 0x0000_8d9a_20f0_0f4a);
        unit
    }

    /// The descriptor before the tail is a wait that says where to write what.
    fn complete(&self, tail: u64) {
        let address = self.read64(IQA);
        let bytes = 0x1000_u64 << (address & 7);
        let last = (address & !0xfff) + (tail + bytes - 32) % bytes;
        let wait = self.memory.word(last).load(Ordering::Acquire);
        let status = self.memory.word(last + 8).load(Ordering::Relaxed);
        assert_eq!(wait & 0xf, 5);
        self.memory.word(status).store(wait >> 32, Ordering::Release);
    }
}

// SAFETY: the unit writes only the status word that the driver gave it.
unsafe impl Mmio for NullUnit {
    fn read32(&self, offset: usize) -> u32 {
        self.registers[offset / 4].load(Ordering::Relaxed)
    }

    fn write32(&self, offset: usize, value: u32) {
        match offset {
            // There is never an error to clear.
            FSTS => {}
            // Levels and one-shot commands are in force at once.
            GCMD => self.registers[GSTS / 4].store(value, Ordering::Relaxed),
            _ => self.registers[offset / 4].store(value, Ordering::Relaxed),
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        u64::from(self.read32(offset + 4)) << 32 | u64::from(self.read32(offset))
    }

    fn write64(&self, offset: usize, value: u64) {
        if offset == IQT && self.read32(GSTS) & QIE != 0 {
            return self.complete(value);
        }
        self.write32(offset, value as u32);
        self.write32(offset + 4, (value >> 32) as u32);
    }
}

type Machine = Driver<Memory, NullUnit>;

/// A domain with tables of somebody else, so that a sync is an invalidation and nothing besides.
fn domain(driver: &Machine, memory: &Memory, sid: u32) -> Arc<dyn Domain> {
    let root = memory.alloc_frames(FrameOrder::SINGLE).expect("memory");
    let root = TableRoot {
        root,
        format: TableFormat::X86 { levels: 4 },
        input_bits: 47,
        output_bits: 39,
        writes: TableWrites::Cleaned,
    };
    // SAFETY: the tables are empty, and nobody walks them.
    let table = unsafe { SharedTable::new(root) };
    let domain = driver.new_domain(&DomainSpec::Shared(table)).expect("a domain");
    driver.attach(&[EndpointId::new(sid)], &domain).expect("an attachment");
    domain
}

/// Submissions until the time is over.
fn work(domain: &dyn Domain) -> u64 {
    let (start, mut done) = (Instant::now(), 0);
    while start.elapsed() < RUN {
        for _ in 0..BURST {
            let proof = domain.sync(&mut Gather::new());
            assert!(proof.is_ok());
        }
        done += BURST;
    }
    done
}

/// What one run gives: submissions per second, and retries and doorbells per million submissions.
fn run(threads: usize) -> [u64; 3] {
    let memory = Memory::new();
    let unit = NullUnit::new(memory);
    let driver = Setup::new(memory, unit, Options::new(39)).and_then(Setup::enable).expect("a unit");
    let domains: Vec<_> = (0..threads).map(|sid| domain(&driver, &memory, sid as u32)).collect();
    let (before, retries) = (driver.stats(), driver.queue_retries());
    let barrier = Barrier::new(threads);
    let start = Instant::now();
    let done: u64 = std::thread::scope(|scope| {
        let workers: Vec<_> = domains
            .iter()
            .map(|domain| {
                scope.spawn(|| {
                    barrier.wait();
                    work(&**domain)
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("no panic")).sum()
    });
    let seconds = start.elapsed().as_secs_f64();
    let after = driver.stats();
    assert_eq!(after.syncs - before.syncs, done, "every submission was published once");
    let per_million = |count: u64| count * 1_000_000 / done;
    [
        (done as f64 / seconds) as u64,
        per_million(driver.queue_retries() - retries),
        per_million(after.doorbells - before.doorbells),
    ]
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

fn main() {
    for threads in THREADS {
        let runs: Vec<_> = (0..RUNS).map(|_| run(threads)).collect();
        let [per_second, retries, doorbells] =
            [0, 1, 2].map(|n| median(runs.iter().map(|run| run[n]).collect()));
        println!(
            "throughput threads={threads} per_second={per_second} retries_ppm={retries} doorbells_ppm={doorbells}"
        );
    }
}
