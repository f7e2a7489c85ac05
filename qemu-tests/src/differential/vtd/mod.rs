//! The VT-d unit of q35 in scalable mode, with first-stage or second-stage tables, driven with raw words.

mod classes;
mod draft;

use anyhow::{Result, ensure};

use super::machine::Machine;
use super::{Driver, Record};

pub(super) use classes::{case, count};

/// The stage that a machine has, besides pass-through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    First,
    Second,
}

const ROOT: u64 = 0x1000_0000;
const QUEUE: u64 = 0x1001_0000;
const STATUS: u64 = 0x1001_1000;
/// Bytes of the queue.
const SIZE: u64 = 4096;

const GCMD: u64 = 0x18;
const RTADDR: u64 = 0x20;
const IQT: u64 = 0x88;
const IQA: u64 = 0x90;
/// The one fault record: CAP.FRO is 0x22.
const FRCD: u64 = 0x220;

const QIE: u32 = 1 << 26;
const SRTP: u32 = 1 << 30;
const TE: u32 = 1 << 31;

/// Software's side of the queue.
#[derive(Debug, Default)]
pub(super) struct Vtd {
    tail: u64,
    ticket: u64,
}

impl Vtd {
    fn queue(&mut self, machine: &mut dyn Machine, descriptor: [u64; 2]) -> Result<()> {
        let [low, high] = descriptor;
        for (at, word) in (QUEUE + self.tail..).step_by(8).zip([low, high, 0, 0]) {
            machine.store(at, word)?;
        }
        self.tail = (self.tail + 32) % SIZE;
        Ok(())
    }
}

impl Driver for Vtd {
    fn start(&mut self, machine: &mut dyn Machine) -> Result<()> {
        // 256-bit descriptors; scalable mode.
        machine.write64(IQA, QUEUE | 1 << 11)?;
        machine.write32(GCMD, QIE)?;
        machine.write64(RTADDR, ROOT | 1 << 10)?;
        machine.write32(GCMD, QIE | SRTP)?;
        machine.write32(GCMD, QIE | TE)
    }

    fn commands(&mut self, machine: &mut dyn Machine, commands: &[[u64; 2]]) -> Result<()> {
        for command in commands {
            self.queue(machine, *command)?;
        }
        self.ticket += 1;
        // A wait that writes the ticket.
        self.queue(machine, [self.ticket << 32 | 1 << 5 | 5, STATUS])?;
        machine.write64(IQT, self.tail)?;
        let status = machine.load(STATUS, 1)?;
        ensure!(status == [self.ticket], "wait {} did not complete: {status:x?}", self.ticket);
        Ok(())
    }

    fn reset(&mut self, machine: &mut dyn Machine) -> Result<()> {
        // Context cache, PASID cache and IOTLB, all of them.
        self.commands(machine, &[[1 << 4 | 1, 0], [3 << 4 | 7, 0], [1 << 4 | 2, 0]])
    }

    fn records(&mut self, machine: &mut dyn Machine) -> Result<Vec<Record>> {
        let high = machine.read64(FRCD + 8)?;
        if high >> 63 == 0 {
            return Ok(Vec::new());
        }
        let low = machine.read64(FRCD)?;
        machine.write32(FRCD + 12, 1 << 31)?;
        let code = (high >> 32) as u8;
        Ok(vec![Record { code, words: [low, high & !(0xff << 32), 0, 0] }])
    }

    fn same_layout(&self, _: u8, _: u8) -> bool {
        true
    }
}
