//! The SMMUv3 of `-machine virt,iommu=smmuv3`, driven with raw words.

mod changes;
mod classes;
mod draft;
mod nested;

use anyhow::{Result, ensure};

use super::machine::Machine;
use super::{Driver, Record};

pub(super) use classes::{COUNT, case};

const COMMANDS: u64 = 0x4100_0000;
const EVENTS: u64 = 0x4101_0000;
/// log2 of the entries of both queues.
const LOG2: u32 = 8;
const INDEX: u32 = (2 << LOG2) - 1;

const CR0: u64 = 0x20;
/// SMMUEN, EVENTQEN and CMDQEN.
const ON: u32 = 0b1101;
const CMDQ_PROD: u64 = 0x98;
const CMDQ_CONS: u64 = 0x9c;
const EVENTQ_PROD: u64 = 0x1_00a8;
const EVENTQ_CONS: u64 = 0x1_00ac;

const CMD_SYNC: [u64; 2] = [0x46, 0];

/// Software's side of the queues.
#[derive(Debug, Default)]
pub(super) struct Smmuv3 {
    prod: u32,
    cons: u32,
}

impl Driver for Smmuv3 {
    fn start(&mut self, machine: &mut dyn Machine) -> Result<()> {
        // Tables and queues are inner shareable, write-back; bad StreamIDs are recorded.
        machine.write32(0x28, 0xd75)?;
        machine.write32(0x2c, 0x2)?;
        machine.write64(0x90, COMMANDS | u64::from(LOG2))?;
        machine.write64(0xa0, EVENTS | u64::from(LOG2))?;
        machine.write32(CR0, ON & !1)
    }

    fn commands(&mut self, machine: &mut dyn Machine, commands: &[[u64; 2]]) -> Result<()> {
        for command in commands.iter().chain([&CMD_SYNC]) {
            let slot = COMMANDS + 16 * u64::from(self.prod & (INDEX >> 1));
            machine.store(slot, command[0])?;
            machine.store(slot + 8, command[1])?;
            self.prod = (self.prod + 1) & INDEX;
        }
        machine.write32(CMDQ_PROD, self.prod)?;
        let cons = machine.read32(CMDQ_CONS)?;
        ensure!(cons == self.prod, "commands are not taken: CONS is {cons:#x}, PROD {:#x}", self.prod);
        Ok(())
    }

    fn reset(&mut self, machine: &mut dyn Machine) -> Result<()> {
        machine.write32(CR0, ON & !1)?;
        // CFGI_ALL and TLBI_NSNH_ALL.
        self.commands(machine, &[[0x04, 31], [0x30, 0]])
    }

    fn records(&mut self, machine: &mut dyn Machine) -> Result<Vec<Record>> {
        let prod = machine.read32(EVENTQ_PROD)?;
        let mut records = Vec::new();
        while self.cons != prod & INDEX {
            // As many as there are in one go, up to where the queue wraps.
            let first = self.cons & (INDEX >> 1);
            let count = (prod.wrapping_sub(self.cons) & INDEX).min((1 << LOG2) - first);
            let words = machine.load(EVENTS + 32 * u64::from(first), 4 * u64::from(count))?;
            records.extend(words.chunks_exact(4).map(|words| {
                let words = [words[0], words[1], words[2], words[3]];
                Record { code: words[0] as u8, words }
            }));
            self.cons = (self.cons + count) & INDEX;
        }
        if !records.is_empty() {
            machine.write32(EVENTQ_CONS, self.cons)?;
        }
        Ok(records)
    }
}
