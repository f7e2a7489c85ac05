//! Where the architecture's start-up code hands over, and where everything ends.

use crate::machine::Start;
use crate::report::Report;
use crate::{console, job, machine, memory, report};
use core::panic::PanicInfo;
use log::LevelFilter;
use portcullis_arch::power::Outcome;
use portcullis_arch::{BootInfo, cpu, power};

/// What the kernel was asked to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Job {
    /// The main job.
    Main,
    /// Taking over from a predecessor that left a device open, and the engines after it.
    Takeover,
    /// The benchmark.
    Bench,
    /// The console.
    Shell,
}

impl Job {
    fn from_command_line(line: &str) -> Option<Self> {
        let name = line.split_whitespace().find_map(|word| word.strip_prefix("job="));
        match name {
            None | Some("main") => Some(Self::Main),
            Some("takeover") => Some(Self::Takeover),
            Some("bench") => Some(Self::Bench),
            Some("shell") => Some(Self::Shell),
            Some(_) => None,
        }
    }
}

#[expect(unsafe_code, reason = "the architecture's start-up code calls it by this name")]
// SAFETY: no other item of the image has this name.
#[unsafe(no_mangle)]
fn kernel_main(boot: BootInfo) -> ! {
    report::init_log(LevelFilter::Info);
    memory::init(&boot.memory);
    report::text(format_args!("Portcullis {} on {}", env!("CARGO_PKG_VERSION"), report::Cpu));
    report::text(format_args!("command line: {}", boot.command_line));
    let Some(job) = Job::from_command_line(boot.command_line) else {
        report::text(format_args!("[FAIL] job: unknown"));
        power::exit(Outcome::Failure);
    };
    let mut report = Report::new();
    let start = if job == Job::Takeover { Start::LeftOpen } else { Start::AsFound };
    let machine = match machine::Machine::discover(&boot, start, &mut report) {
        Ok(machine) => machine,
        Err(error) => {
            report.fail("discover", format_args!("{error}"));
            report.close();
        }
    };
    match job {
        Job::Main => {
            job::main(machine, &mut report);
            report.close()
        }
        Job::Takeover => {
            job::takeover(machine, &mut report);
            report.close()
        }
        Job::Bench => {
            job::bench(machine, &mut report);
            report.close()
        }
        Job::Shell => console::serve(machine),
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let _ = cpu::mask_interrupts();
    portcullis_arch::console::force_unlock();
    report::text(format_args!("panic: {info}"));
    power::exit(Outcome::Failure)
}
