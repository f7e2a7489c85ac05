//! Further CPUs, started through PSCI.

use super::cpu::MAX_CPUS;
use super::interrupts::{self, InitError};
use super::{boot, cpu, paging, psci, time, trap};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use portcullis_hal::wait::Timeout;
use spin::Mutex;
use thiserror::Error;

/// A CPU by its affinity: the fields of its `MPIDR_EL1`, as in its device tree node's `reg`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuId(pub u64);

/// Why a CPU was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StartError {
    /// The index is that of the boot CPU, in use, or too large.
    #[error("CPU index {0} cannot be used")]
    Index(usize),
    /// The stack is too small to run on.
    #[error("a stack of {0} bytes is too small")]
    Stack(usize),
    /// Firmware refuses.
    #[error("firmware did not start the CPU: {0}")]
    Firmware(smccc::psci::Error),
    /// The CPU did not arrive in time; should it come later, it stops itself.
    #[error(transparent)]
    Timeout(#[from] Timeout),
    /// The CPU arrived, but its part of the interrupt controller did not start.
    #[error(transparent)]
    Interrupts(InitError),
}

/// How long firmware and the CPU may take together.
const TIMEOUT_NS: u64 = 2_000_000_000;

const MIN_STACK: usize = 4096;

/// What a starting CPU reads. Entry code reads the first word.
#[repr(C)]
struct StartBlock {
    stack: AtomicU64,
    index: AtomicU64,
    /// What became of it.
    state: AtomicU32,
    task: Mutex<Task>,
}

/// What the CPU is to do, and how its start ended.
struct Task {
    entry: Option<fn(usize) -> !>,
    failure: Option<InitError>,
}

/// The states of a start block.
const FREE: u32 = 0;
const STARTING: u32 = 1;
const RUNNING: u32 = 2;
const FAILED: u32 = 3;
const ABANDONED: u32 = 4;

static BLOCKS: [StartBlock; MAX_CPUS] = [const {
    StartBlock {
        stack: AtomicU64::new(0),
        index: AtomicU64::new(0),
        state: AtomicU32::new(FREE),
        task: Mutex::new(Task { entry: None, failure: None }),
    }
}; MAX_CPUS];

/// The boot CPU.
///
/// Meaningful on the boot CPU itself and, since it is noted there, on all others.
pub fn boot_cpu() -> CpuId {
    CpuId(BOOT_CPU.load(Ordering::Relaxed))
}

static BOOT_CPU: AtomicU64 = AtomicU64::new(0);

/// Notes that the calling CPU is the boot CPU.
pub(super) fn note_boot_cpu() {
    cpu::set_index(0);
    BOOT_CPU.store(cpu::affinity(), Ordering::Relaxed);
}

/// Starts `cpu` and returns once it runs: it calls `entry(index)` on `stack`, interrupts masked, with its part of
/// the interrupt controller initialized.
///
/// Once firmware agreed, the index is used up even if the start fails, since the CPU might still come.
pub fn start(
    cpu: CpuId,
    index: usize,
    stack: &'static mut [u8],
    entry: fn(usize) -> !,
) -> Result<(), StartError> {
    let block = BLOCKS.get(index).filter(|_| index != 0).ok_or(StartError::Index(index))?;
    if stack.len() < MIN_STACK {
        return Err(StartError::Stack(stack.len()));
    }
    block
        .state
        .compare_exchange(FREE, STARTING, Ordering::Acquire, Ordering::Relaxed)
        .map_err(|_| StartError::Index(index))?;
    // Rounded down to what the architecture asks of a stack pointer.
    let top = stack.as_mut_ptr_range().end as u64 & !15;
    block.stack.store(top, Ordering::Relaxed);
    block.index.store(index as u64, Ordering::Relaxed);
    block.task.lock().entry = Some(entry);

    // The CPU reads the block with its caches on, in the same coherency domain; PSCI is called after the stores.
    aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::ISHST);
    if let Err(refusal) = psci::cpu_on(cpu.0, boot::secondary_entry(), &raw const *block as u64) {
        block.state.store(FREE, Ordering::Release);
        return Err(StartError::Firmware(refusal));
    }
    let arrived = time::wait_until("CPU start state", !0, u64::from(RUNNING), TIMEOUT_NS, || {
        match block.state.load(Ordering::Acquire) {
            // Over as well; told apart below.
            FAILED => u64::from(RUNNING),
            state => u64::from(state),
        }
    });
    if let Err(timeout) = arrived {
        let abandoned =
            block.state.compare_exchange(STARTING, ABANDONED, Ordering::AcqRel, Ordering::Acquire);
        if abandoned.is_ok() {
            return Err(StartError::Timeout(timeout));
        }
    }
    match block.task.lock().failure {
        Some(failure) => Err(StartError::Interrupts(failure)),
        None => Ok(()),
    }
}

/// The first Rust code of a further CPU: on its own stack in the top half, interrupts masked.
#[expect(unsafe_code, reason = "entry code calls it by name")]
#[unsafe(no_mangle)]
extern "C" fn secondary_main(block: &'static StartBlock) -> ! {
    trap::install();
    paging::drop_identity_map();
    let index = block.index.load(Ordering::Relaxed) as usize;
    cpu::set_index(index);
    let ready = interrupts::init_secondary();
    let entry = {
        let mut task = block.task.lock();
        task.failure = ready.err();
        task.entry
    };
    let next = if ready.is_ok() { RUNNING } else { FAILED };
    let wanted = block.state.compare_exchange(STARTING, next, Ordering::AcqRel, Ordering::Acquire);
    if let (Ok(_), Ok(()), Some(entry)) = (wanted, ready, entry) {
        entry(index)
    }
    psci::cpu_off();
    cpu::park()
}
