//! The second CPU: it does what the first one gives it.

use crate::machine::Machine;
use crate::memory::KernelHal;
use crate::report::words;
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use portcullis_arch::cpu;
use portcullis_hal::{Arc, Hal};
use spin::Mutex;

type Task = Box<dyn FnOnce() + Send>;

/// What is to be done next.
static NEXT: Mutex<Option<Task>> = Mutex::new(None);

/// Tasks that were given and tasks that are over, with all that they held.
static GIVEN: AtomicU64 = AtomicU64::new(0);
static FINISHED: AtomicU64 = AtomicU64::new(0);

/// Whether the second CPU was started.
static STARTED: AtomicBool = AtomicBool::new(false);

/// Starts the second CPU.
pub(crate) fn start(machine: &Machine) -> Result<String, String> {
    let started = machine.start_second_cpu(serve)?;
    STARTED.store(true, Ordering::Release);
    Ok(started)
}

/// The second CPU's own code: does one task after the other.
fn serve(_index: usize) -> ! {
    cpu::enable_interrupts();
    loop {
        let task = NEXT.lock().take();
        match task {
            Some(task) => {
                task();
                FINISHED.fetch_add(1, Ordering::Release);
            }
            None => KernelHal.relax(),
        }
    }
}

/// A task under way, whose result is `T`.
pub(crate) struct Pending<T> {
    number: u64,
    result: Arc<Mutex<Option<T>>>,
}

/// Gives the second CPU a task. There is one at a time: it is an error to come while it has not finished the last one.
pub(crate) fn submit<T: Send + 'static>(
    task: impl FnOnce() -> T + Send + 'static,
) -> Result<Pending<T>, String> {
    if !STARTED.load(Ordering::Acquire) {
        return Err("the second CPU does not run".to_string());
    }
    if FINISHED.load(Ordering::Acquire) != GIVEN.load(Ordering::Relaxed) {
        return Err("the second CPU has not finished its last task".to_string());
    }
    let result = Arc::try_new(Mutex::new(None)).map_err(words)?;
    let place = result.clone();
    *NEXT.lock() = Some(Box::new(move || {
        let done = task();
        *place.lock() = Some(done);
    }));
    Ok(Pending { number: GIVEN.fetch_add(1, Ordering::Relaxed) + 1, result })
}

impl<T> Pending<T> {
    /// The result, once, if the task is over.
    pub(crate) fn poll(&self) -> Option<T> {
        let is_over = FINISHED.load(Ordering::Acquire) >= self.number;
        is_over.then(|| self.result.lock().take()).flatten()
    }

    /// Waits until the task is over, for `timeout_ns` at most, and returns its result.
    pub(crate) fn wait(&self, timeout_ns: u64) -> Option<T> {
        let start = KernelHal.now_ns();
        loop {
            if let Some(result) = self.poll() {
                return Some(result);
            }
            if KernelHal.now_ns().saturating_sub(start) > timeout_ns {
                return None;
            }
            KernelHal.relax();
        }
    }
}
