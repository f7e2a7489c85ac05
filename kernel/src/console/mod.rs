//! An interactive console on the serial port, for people who bring up hardware; scripts of the test harness use it too.
//!
//! Each command answers on lines of `name: value` pairs and ends with `ok` or `error: REASON`. Only frames that the
//! console allocated, and windows of devices that cannot harm the kernel, can be mapped.

mod commands;
mod look;
mod mappings;
mod pages;
mod pasids;
mod processes;
mod state;

use crate::machine::Machine;
use crate::memory::KernelHal;
use crate::report;
use alloc::format;
use alloc::string::String;
use portcullis_hal::Hal;
use state::State;

/// The longest command line, in bytes.
const LINE: usize = 256;

/// What a command does when it is done.
enum Next {
    Continue,
    PowerOff,
}

/// Reads and runs commands until `poweroff`.
pub(crate) fn serve(machine: &'static Machine) -> ! {
    let mut state = State::new(machine);
    // What start-up provoked is not the user's doing.
    crate::job::drain_faults(machine.iommu);
    report::text(format_args!("console ready, try `help`"));
    loop {
        report::prompt("> ");
        let line = read_line(&state);
        match commands::run(&mut state, &line) {
            Ok(Next::Continue) => report::text(format_args!("ok")),
            Ok(Next::PowerOff) => {
                report::text(format_args!("ok"));
                portcullis_arch::power::exit(portcullis_arch::power::Outcome::Success)
            }
            Err(reason) => report::text(format_args!("error: {reason}")),
        }
    }
}

/// Reads a line, echoing it. What is longer than a line is dropped. Page requests are served meanwhile.
fn read_line(state: &State) -> String {
    let mut line = String::new();
    loop {
        let Some(byte) = portcullis_arch::console::read_byte() else {
            pages::service(state);
            KernelHal.relax();
            continue;
        };
        match byte {
            b'\r' | b'\n' => {
                report::prompt("\n");
                return line;
            }
            8 | 127 if line.pop().is_some() => report::prompt("\u{8} \u{8}"),
            b' '..=b'~' if line.len() < LINE => {
                line.push(char::from(byte));
                report::prompt(&format!("{}", char::from(byte)));
            }
            _ => {}
        }
    }
}
