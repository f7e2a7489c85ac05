//! The second CPU: it does what the first one gives it.

use crate::machine::Machine;
use crate::memory::KernelHal;
use crate::report::words;
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use core::sync::atomic::{AtomicBool, Ordering};
use portcullis_arch::cpu;
use portcullis_hal::{Arc, Hal};
use spin::Mutex;

type Task = Box<dyn FnOnce() + Send>;

/// What is to be done next.
static NEXT: Mutex<Option<Task>> = Mutex::new(None);

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
            Some(task) => task(),
            None => KernelHal.relax(),
        }
    }
}

/// A task under way, whose result is `T`.
pub(crate) struct Pending<T>(Arc<Mutex<Option<T>>>);

/// Gives the second CPU a task. There is one at a time.
pub(crate) fn submit<T: Send + 'static>(
    task: impl FnOnce() -> T + Send + 'static,
) -> Result<Pending<T>, String> {
    if !STARTED.load(Ordering::Acquire) {
        return Err("the second CPU does not run".to_string());
    }
    let result = Arc::try_new(Mutex::new(None)).map_err(words)?;
    let place = result.clone();
    *NEXT.lock() = Some(Box::new(move || {
        let done = task();
        *place.lock() = Some(done);
    }));
    Ok(Pending(result))
}

impl<T> Pending<T> {
    /// Waits for the result, for `timeout_ns` at most.
    pub(crate) fn wait(&self, timeout_ns: u64) -> Option<T> {
        let start = KernelHal.now_ns();
        loop {
            if let Some(result) = self.0.lock().take() {
                return Some(result);
            }
            if KernelHal.now_ns().saturating_sub(start) > timeout_ns {
                return None;
            }
            KernelHal.relax();
        }
    }
}
