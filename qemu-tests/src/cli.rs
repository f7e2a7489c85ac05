//! The command line of `cargo xtask`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::differential::Amount;
use crate::profile::{Arch, Iommu};
use crate::ui::{Style, paint};
use crate::workspace::Workspace;
use crate::{bench, check, mutants, process, run, setup, shell, soak, test};

/// Set-up, QEMU runs and tests of Portcullis.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Installs what is missing (Rust targets, QEMU); the other commands do so by themselves
    Setup,
    /// Boots the reference kernel and runs the main job
    Run {
        /// One architecture only
        arch: Option<Arch>,
        /// Which IOMMU the machines have
        #[arg(long, value_enum, default_value_t)]
        iommu: Iommu,
    },
    /// Boots into the kernel's console
    Shell(Machine),
    /// Prints the QEMU command line that boots the kernel
    Qemu(Machine),
    /// Runs every test on the host and in QEMU
    Test {
        /// Only tests whose name contains this (`host/`, `differential/`, `qemu/`, `pasid/` and `script/` begin the kinds)
        filter: Option<String>,
        /// Cases for each machine of the differential tests
        #[arg(long)]
        cases: Option<u64>,
        /// Seed of the first of these cases
        #[arg(long, default_value_t)]
        seed: u64,
    },
    /// Checks formatting, lints and documentation, and that no driver can panic
    Check {
        /// Only steps whose name contains this
        filter: Option<String>,
    },
    /// Runs the random-operation suites with new seeds, and what Miri can run
    Soak {
        /// How long the suites run
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// The first seed, to repeat a run; by default a new one
        #[arg(long)]
        seed: Option<u64>,
        /// Leaves out Miri, which needs a nightly toolchain
        #[arg(long)]
        without_miri: bool,
    },
    /// Measures instructions per operation, beside Linux's figures
    Bench {
        /// One architecture only
        arch: Option<Arch>,
    },
    /// Builds deliberate defects and sees that the tests catch them
    Mutants {
        /// Only mutants whose name contains one of these
        filters: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct Machine {
    /// The architecture
    arch: Arch,
    /// Which IOMMU the machine has
    #[arg(long, value_enum, default_value_t)]
    iommu: Iommu,
    /// One machine of qemu-tests/profiles.toml by name
    #[arg(long)]
    profile: Option<String>,
}

/// Does what the command line asks for.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    process::end_groups_on_interrupt();
    match perform(cli.command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{} {error:#}", paint(Style::Bad, "error:"));
            ExitCode::FAILURE
        }
    }
}

fn perform(action: Action) -> Result<bool> {
    let workspace = Workspace::current();
    match action {
        Action::Setup => setup::command(&workspace).map(|()| true),
        Action::Run { arch, iommu } => run::command(&workspace, arch, iommu),
        Action::Shell(machine) => {
            shell::command(&workspace, machine.arch, machine.iommu, machine.profile.as_deref())
        }
        Action::Qemu(machine) => {
            run::print_command(&workspace, machine.arch, machine.iommu, machine.profile.as_deref())
                .map(|()| true)
        }
        Action::Test { filter, cases, seed } => {
            test::command(&workspace, filter.as_deref(), Amount { cases, seed })
        }
        Action::Check { filter } => check::command(&workspace, filter.as_deref()),
        Action::Soak { minutes, seed, without_miri } => {
            let then = if without_miri { soak::Then::Nothing } else { soak::Then::Miri };
            soak::command(&workspace, minutes, seed, then)
        }
        Action::Bench { arch } => bench::command(&workspace, arch),
        Action::Mutants { filters } => mutants::command(&workspace, &filters),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
