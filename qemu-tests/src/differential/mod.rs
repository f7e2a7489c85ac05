//! The differential tests: the same tables, commands and accesses in a model of `portcullis-model` and in QEMU.
//!
//! No guest runs. QEMU's CPUs are stopped, and tables, registers and devices are worked from outside (`qtest`). A
//! case (`case`) is a memory image and a sequence of stores, register writes, commands and device accesses, made
//! from a seed: a small good configuration with damage in one place, or a change with its invalidation. Each access
//! has to end in QEMU in a way that the model says is possible, with the same data in the same place or with the same
//! fault record. What is different and known is in one table (`known`), and a row that is not used is as wrong as a
//! difference that is not in it.

mod case;
mod known;
mod machine;
mod qtest;
mod smmuv3;
mod vtd;

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result};
use portcullis_model::core::{Outcome, Ram, Schedule};
use portcullis_model::smmuv3::{Config, Smmu};
use portcullis_model::vtd as model;

use crate::profile::Profiles;
use crate::setup::Tools;
use crate::workspace::Workspace;
use case::{Case, Step};
use known::{Known, Table, Verdict};
use machine::{Access, Emulated, Landing, Machine, Modelled, Unit};
use qtest::Qtest;
use vtd::Stage;

/// Software's part in driving a unit: the same on both sides.
trait Driver {
    /// Sets up queues, once.
    fn start(&mut self, machine: &mut dyn Machine) -> Result<()>;
    /// Turns translation off and invalidates everything.
    fn reset(&mut self, machine: &mut dyn Machine) -> Result<()>;
    /// Queues commands and waits for them.
    fn commands(&mut self, machine: &mut dyn Machine, commands: &[[u64; 2]]) -> Result<()>;
    /// Takes the fault records that are there.
    fn records(&mut self, machine: &mut dyn Machine) -> Result<Vec<Record>>;
    /// Whether records with these codes have the same fields.
    fn same_layout(&self, one: u8, other: u8) -> bool {
        one == other
    }
}

/// What is compared: a machine of `profiles.toml`, and the model of its IOMMU.
struct Subject {
    name: &'static str,
    /// Where there is memory that cases may use.
    ram: Range<u64>,
    known: &'static [&'static [Known]],
    /// How many cases have each kind of input once.
    count: u64,
    /// Seeds of what comes up once in thousands of cases.
    rare: &'static [u64],
    case: fn(u64) -> Case,
    unit: fn(Arc<Ram>, Arc<Schedule>) -> Unit,
    driver: fn() -> Box<dyn Driver>,
}

static SUBJECTS: [Subject; 3] = [
    Subject {
        name: "smmuv3",
        ram: 0x4000_0000..0x1_0000_0000,
        known: &[known::SMMUV3],
        count: smmuv3::COUNT,
        rare: &[102_188, 104_869],
        case: smmuv3::case,
        unit: |ram, schedule| Unit::Smmu(Smmu::new(Config::qemu(), ram, schedule)),
        driver: || Box::<smmuv3::Smmuv3>::default(),
    },
    Subject {
        name: "vtd-first",
        ram: 0x1000_0000..0x8000_0000,
        known: &[known::VTD, known::FIRST],
        count: vtd::count(Stage::First),
        rare: &[],
        case: |seed| vtd::case(Stage::First, seed),
        unit: |ram, schedule| Unit::Vtd(model::Vtd::new(model::Config::qemu_first_stage(), ram, schedule)),
        driver: || Box::<vtd::Vtd>::default(),
    },
    Subject {
        name: "vtd-second",
        ram: 0x1000_0000..0x8000_0000,
        known: &[known::VTD, known::SECOND],
        count: vtd::count(Stage::Second),
        rare: &[],
        case: |seed| vtd::case(Stage::Second, seed),
        unit: |ram, schedule| Unit::Vtd(model::Vtd::new(model::Config::qemu_second_stage(), ram, schedule)),
        driver: || Box::<vtd::Vtd>::default(),
    },
];

/// A fault record.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Record {
    code: u8,
    words: [u64; 4],
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x?} {:x?}", self.code, self.words)
    }
}

/// How many cases to run, and from which seed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Cases for each machine; without it as many as use every row of the table.
    pub cases: Option<u64>,
    /// The first seed.
    pub seed: u64,
}

/// One side: a machine and its driver.
struct Side<M> {
    machine: M,
    driver: Box<dyn Driver>,
}

impl<M: Machine> Side<M> {
    fn take(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Register32(register, value) => self.machine.write32(*register, *value),
            Step::Register64(register, value) => self.machine.write64(*register, *value),
            Step::Store(address, word) => self.machine.store(*address, *word),
            Step::Commands(commands) => self.driver.commands(&mut self.machine, commands),
            Step::Access(_) => Ok(()),
        }
    }

    /// Forgets one case, and has the memory of the next.
    fn begin(&mut self, old: &Case, new: &Case) -> Result<()> {
        for address in old.touched() {
            self.machine.store(address, 0)?;
        }
        for (address, word) in &new.image.0 {
            self.machine.store(*address, *word)?;
        }
        self.driver.reset(&mut self.machine)
    }
}

/// Both sides of one machine.
struct Bench {
    subject: &'static Subject,
    model: Side<Modelled>,
    qemu: Side<Emulated>,
    last: Case,
    accesses: u64,
    known: Table,
}

impl Bench {
    fn start(
        subject: &'static Subject,
        workspace: &Workspace,
        tools: &Tools,
        profiles: &Profiles,
    ) -> Result<Self> {
        let frozen = profiles.frozen(subject.name)?;
        let log = workspace.log_dir().join(log(subject.name));
        std::fs::create_dir_all(workspace.log_dir())?;
        let qtest = Qtest::start(profiles.frozen_command(frozen, tools.qemu(frozen.arch)), &log)?;
        let ram = Arc::new(Ram::new());
        let unit = (subject.unit)(ram.clone(), Arc::new(Schedule::new(0)));
        let mut bench = Self {
            subject,
            model: Side { machine: Modelled { ram, unit }, driver: (subject.driver)() },
            qemu: Side { machine: Emulated::new(qtest, frozen.arch)?, driver: (subject.driver)() },
            last: Case::default(),
            accesses: 0,
            known: Table::new(subject.known),
        };
        bench.model.driver.start(&mut bench.model.machine)?;
        bench.qemu.driver.start(&mut bench.qemu.machine)?;
        Ok(bench)
    }

    /// Runs a case. Gives what is different and not known.
    fn run(&mut self, case: Case) -> Result<Vec<String>> {
        self.model.begin(&self.last, &case)?;
        self.qemu.begin(&self.last, &case)?;
        let mut differences = Vec::new();
        for (at, step) in case.steps.iter().enumerate() {
            if let Step::Access(access) = step {
                let difference = self.compare(*access, &case)?;
                differences.extend(difference.map(|difference| format!("step {at}, {step}: {difference}")));
            } else {
                self.model.take(step)?;
                self.qemu.take(step)?;
            }
        }
        self.last = case;
        Ok(differences)
    }

    fn compare(&mut self, access: Access, case: &Case) -> Result<Option<String>> {
        let possible = self.model.machine.reachable(access);
        self.model.machine.access(access);
        let expected = self.model.driver.records(&mut self.model.machine)?;
        let allowed: Vec<u64> = possible.iter().filter_map(|outcome| outcome.output()).collect();
        if allowed.iter().any(|at| !self.subject.ram.contains(at)) {
            // There is nothing there that could tell.
            return Ok(None);
        }
        self.accesses += 1;
        let decoys: Vec<u64> = case.outputs.iter().map(|output| output.of(access.address)).collect();
        let landing = self.qemu.machine.access(access, &allowed, &decoys)?;
        let mut records = self.qemu.driver.records(&mut self.qemu.machine)?;
        // QEMU refuses the pieces of an access one by one.
        records.dedup_by_key(|record| record.words.map(|word| word & !0xf));
        let found = match (landing, records.first()) {
            (Landing::Elsewhere, _) if !allowed.is_empty() => Verdict::Astray,
            (Landing::Allowed | Landing::Elsewhere, _) => Verdict::Lands,
            (Landing::Nowhere, Some(record)) => Verdict::Fault(record.code),
            (Landing::Nowhere, None) => Verdict::Silent,
        };
        let verdicts: Vec<Verdict> = possible.iter().map(|outcome| verdict(*outcome)).collect();
        let mut fine = verdicts.contains(&found)
            || verdicts.iter().any(|verdict| self.known.outcome(case.input, *verdict, found));
        // What went through has no record.
        fine &= landing == Landing::Nowhere || records.is_empty();
        // Of several possibilities the model took one that need not be QEMU's.
        if let [_] = verdicts[..] {
            let different = self.differences(&expected, &records);
            fine &= different == [0; 4] || self.known.fields(case.input, different);
        }
        let report =
            || format!("the model says {verdicts:x?} {expected:?}, QEMU does {found:x?} {records:?}");
        Ok((!fine).then(report))
    }

    /// The bits in which the records differ. A record that is missing, or one of another kind, has no fields to compare:
    /// that is left to the comparison of outcomes.
    fn differences(&self, model: &[Record], qemu: &[Record]) -> [u64; 4] {
        match (model, qemu) {
            ([model], [qemu, rest @ ..]) if self.qemu.driver.same_layout(model.code, qemu.code) => {
                // More than one record for an access is always wrong.
                let more = if rest.is_empty() { 0 } else { u64::MAX };
                std::array::from_fn(|word| model.words[word] ^ qemu.words[word] | more)
            }
            _ => [0; 4],
        }
    }
}

fn verdict(outcome: Outcome) -> Verdict {
    match outcome {
        Outcome::Done(_) => Verdict::Lands,
        Outcome::Fault(code) | Outcome::Stalled(code) => Verdict::Fault(code),
        _ => Verdict::Silent,
    }
}

/// So many failing cases are enough to see what is wrong.
const ENOUGH: usize = 20;

/// The machines that are compared, as `profiles.toml` calls them.
pub fn machines() -> impl Iterator<Item = &'static str> {
    SUBJECTS.iter().map(|subject| subject.name)
}

/// The file that has what a machine's QEMU complained about.
pub fn log(machine: &str) -> String {
    format!("differential-{machine}.log")
}

/// Runs the cases of a machine. Gives what is wrong, and a remark.
pub fn run(
    machine: &str,
    workspace: &Workspace,
    tools: &Tools,
    profiles: &Profiles,
    amount: Amount,
) -> Result<(Vec<String>, String)> {
    let subject = SUBJECTS.iter().find(|subject| subject.name == machine);
    let subject = subject.with_context(|| format!("no differential test of {machine}"))?;
    let mut bench = Bench::start(subject, workspace, tools, profiles)?;
    let count = amount.cases.unwrap_or(10 * subject.count);
    let mut problems = Vec::new();
    let mut cases: Vec<Case> = (amount.seed..amount.seed + count).map(subject.case).collect();
    if amount == Amount::default() {
        cases.extend(subject.rare.iter().copied().map(subject.case));
    }
    let tried = cases.len();
    cases.sort_by_key(|case| case.order);
    for case in cases {
        let text = case.to_string();
        let differences = bench.run(case).with_context(|| text.clone())?;
        if !differences.is_empty() {
            problems.push(format!("{}\n{text}", differences.join("\n")));
        }
        if problems.len() == ENOUGH {
            break;
        }
    }
    if amount == Amount::default() {
        problems.extend(bench.known.unused().map(|(row, input)| match input {
            Some(input) => format!("no case with {input:?} used the row {row}"),
            None => format!("no case used the row {row}"),
        }));
        if bench.accesses < count {
            problems.push(format!("{} accesses in {count} cases say too little", bench.accesses));
        }
    }
    let remark =
        format!("{tried} cases, {} accesses, {} known differences", bench.accesses, bench.known.total());
    Ok((problems, remark))
}
