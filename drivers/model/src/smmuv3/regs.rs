//! The register file of the Non-secure programming interface (IHI 0070, chapter 6).

use super::config::Config;
use super::entry::view;
use super::points;
use super::queue::Queue;
use super::run::Hw;
use super::state::State;
use crate::core::View;

/// CR0 fields.
pub(super) mod cr0 {
    pub(in crate::smmuv3) const SMMUEN: u32 = 1 << 0;
    pub(in crate::smmuv3) const PRIQEN: u32 = 1 << 1;
    pub(in crate::smmuv3) const EVENTQEN: u32 = 1 << 2;
    pub(in crate::smmuv3) const CMDQEN: u32 = 1 << 3;
    pub(in crate::smmuv3) const ATSCHK: u32 = 1 << 4;
}

/// GERROR bits.
pub(super) mod gerror {
    pub(in crate::smmuv3) const CMDQ: u32 = 1 << 0;
    pub(in crate::smmuv3) const EVENTQ_ABT: u32 = 1 << 2;
    pub(in crate::smmuv3) const PRIQ_ABT: u32 = 1 << 3;
    pub(in crate::smmuv3) const MSI_CMDQ: u32 = 1 << 4;
    pub(in crate::smmuv3) const MSI_EVENTQ: u32 = 1 << 5;
    pub(in crate::smmuv3) const MSI_PRIQ: u32 = 1 << 6;
    pub(in crate::smmuv3) const MSI_GERROR: u32 = 1 << 7;
    pub(in crate::smmuv3) const ALL: u32 = 0x1fd;
}

/// IRQ_CTRL bits.
pub(super) mod irq {
    pub(in crate::smmuv3) const GERROR: u32 = 1 << 0;
    pub(in crate::smmuv3) const PRIQ: u32 = 1 << 1;
    pub(in crate::smmuv3) const EVENTQ: u32 = 1 << 2;
}

/// Address bits of base registers.
const ADDRESS: u64 = 0x00ff_ffff_ffff_ffe0;

/// GBPA.ABORT and GBPA.UPDATE.
const GBPA_ABORT: u32 = 1 << 20;
const UPDATE: u32 = 1 << 31;
const GBPA_FIELDS: u32 = 0x001f_ff1f;

/// MSI configuration of one source.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Msi {
    pub(super) address: u64,
    pub(super) data: u32,
    pub(super) attributes: u32,
}

/// The registers; `cr0` is what was written, `cr0ack` what is in force.
#[derive(Debug, Default)]
pub(super) struct Registers {
    pub(super) cr0: u32,
    pub(super) cr0ack: u32,
    cr1: u32,
    cr2: u32,
    gbpa: u32,
    gbpa_next: Option<u32>,
    pub(super) irq_ctrl: u32,
    pub(super) irq_ctrlack: u32,
    pub(super) gerror: u32,
    pub(super) gerrorn: u32,
    pub(super) gerror_msi: Msi,
    pub(super) eventq_msi: Msi,
    pub(super) priq_msi: Msi,
    strtab: u64,
    strtab_cfg: u32,
    pub(super) cmdq: Queue,
    pub(super) eventq: Queue,
    pub(super) priq: Queue,
}

/// The Stream table as configured.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamTable {
    pub(super) base: u64,
    pub(super) log2: u32,
    pub(super) split: Option<u8>,
    pub(super) view: View,
}

impl Registers {
    pub(super) fn reset(config: &Config) -> Self {
        let mut regs = Self { gbpa: 0x1000, ..Self::default() };
        regs.cmdq.most = config.cmdq_log2;
        regs.eventq.most = config.eventq_log2;
        regs.priq.most = config.priq_log2;
        regs
    }

    pub(super) const fn enabled(&self) -> bool {
        self.cr0ack & cr0::SMMUEN != 0
    }

    pub(super) const fn on(&self, field: u32) -> bool {
        self.cr0ack & field != 0
    }

    pub(super) const fn atschk(&self) -> bool {
        self.cr0ack & cr0::ATSCHK != 0
    }

    pub(super) const fn e2h(&self) -> bool {
        self.cr2 & 1 != 0
    }

    pub(super) const fn records_bad_streams(&self) -> bool {
        self.cr2 & 2 != 0
    }

    pub(super) const fn ignores_broadcasts(&self) -> bool {
        self.cr2 & 4 != 0
    }

    pub(super) const fn records_ats_errors(&self) -> bool {
        self.cr2 & 8 != 0
    }

    pub(super) const fn bypass_aborts(&self) -> bool {
        self.gbpa & GBPA_ABORT != 0
    }

    pub(super) fn queue_view(&self, config: &Config) -> View {
        let cr1 = u64::from(self.cr1);
        view(config, cr1 & 3, cr1 >> 2 & 3, cr1 >> 4 & 3)
    }

    pub(super) fn stream_table(&self, config: &Config) -> StreamTable {
        let cr1 = u64::from(self.cr1);
        let log2 = (self.strtab_cfg & 0x3f).min(u32::from(config.sid_bits));
        let two_level = config.two_level_streams && self.strtab_cfg >> 16 & 3 == 1;
        let split = two_level.then_some(match self.strtab_cfg >> 6 & 0x1f {
            8 => 8u8,
            10 => 10,
            _ => 6,
        });
        let low = match split {
            None => log2 + 6,
            Some(split) => (log2.saturating_sub(u32::from(split)) + 3).max(6),
        };
        let base = (self.strtab & 0x00ff_ffff_ffff_ffc0) >> low << low & ((1 << config.oas) - 1);
        StreamTable { base, log2, split, view: view(config, cr1 >> 6 & 3, cr1 >> 8 & 3, cr1 >> 10 & 3) }
    }

    const fn active_errors(&self) -> u32 {
        (self.gerror ^ self.gerrorn) & gerror::ALL
    }

    pub(super) const fn has_error(&self, bit: u32) -> bool {
        self.active_errors() & bit != 0
    }

    /// A field that guards others: off, and not on its way anywhere.
    const fn off(&self, field: u32) -> bool {
        (self.cr0 | self.cr0ack) & field == 0
    }

    const fn irq_off(&self, field: u32) -> bool {
        (self.irq_ctrl | self.irq_ctrlack) & field == 0
    }
}

const fn merge(old: u64, at: u64, value: u32) -> u64 {
    if at & 4 == 0 { old & !0xffff_ffff | value as u64 } else { old & 0xffff_ffff | (value as u64) << 32 }
}

const fn half(register: u64, at: u64) -> u32 {
    (register >> ((at & 4) * 8)) as u32
}

impl State {
    /// A 32-bit read.
    pub(super) fn read(&self, hw: &Hw, offset: u64) -> u32 {
        let (regs, config) = (&self.regs, &hw.config);
        match offset {
            0x00 => config.idr0(),
            0x04 => config.idr1(),
            0x0c => config.idr3(),
            0x14 => config.idr5(),
            0x1c => u32::from(config.minor),
            0x20 => regs.cr0,
            0x24 => regs.cr0ack,
            0x28 => regs.cr1,
            0x2c => regs.cr2,
            0x44 => match regs.gbpa_next {
                Some(next) => next | UPDATE,
                None => regs.gbpa,
            },
            0x50 => regs.irq_ctrl,
            0x54 => regs.irq_ctrlack,
            0x60 => regs.gerror,
            0x64 => regs.gerrorn,
            0x68 | 0x6c => half(regs.gerror_msi.address, offset),
            0x70 => regs.gerror_msi.data,
            0x74 => regs.gerror_msi.attributes,
            0x80 | 0x84 => half(regs.strtab, offset),
            0x88 => regs.strtab_cfg,
            0x90 | 0x94 => half(regs.cmdq.base, offset),
            0x98 => regs.cmdq.prod,
            0x9c => regs.cmdq.cons,
            0xa0 | 0xa4 => half(regs.eventq.base, offset),
            0xb0 | 0xb4 => half(regs.eventq_msi.address, offset),
            0xb8 => regs.eventq_msi.data,
            0xbc => regs.eventq_msi.attributes,
            0xc0 | 0xc4 => half(regs.priq.base, offset),
            0xd0 | 0xd4 => half(regs.priq_msi.address, offset),
            0xd8 => regs.priq_msi.data,
            0xdc => regs.priq_msi.attributes,
            0x1_00a8 => regs.eventq.prod,
            0x1_00ac => regs.eventq.cons,
            0x1_00c8 => regs.priq.prod,
            0x1_00cc => regs.priq.cons,
            0xa8 | 0xac | 0xc8 | 0xcc => {
                hw.violations
                    .report("register-alias", format_args!("read of {offset:#x}: it lies on page 1"));
                0
            }
            _ => 0,
        }
    }

    /// A 32-bit write.
    pub(super) fn write(&mut self, hw: &Hw, offset: u64, value: u32) {
        let refuse = |why: &str| {
            hw.violations.report("register-guarded", format_args!("{offset:#x} = {value:#x} {why}"));
        };
        let old = self.read(hw, offset & !3);
        let same = old == value;
        let reserved = value & !writable(offset, hw);
        if reserved != 0 {
            let text = format_args!("{offset:#x} = {value:#x}: reserved {reserved:#x}");
            hw.violations.report("register-reserved", text);
        }
        let value = value & writable(offset, hw);
        let regs = &mut self.regs;
        match offset {
            0x20 => self.write_cr0(hw, value),
            0x28 => {
                let tables = (old ^ value) & 0xfc0 != 0 && !regs.off(cr0::SMMUEN);
                let queues = cr0::CMDQEN | cr0::EVENTQEN | cr0::PRIQEN;
                if tables || (old ^ value) & 0x3f != 0 && !regs.off(queues) {
                    return refuse("while what uses it is enabled");
                }
                regs.cr1 = value;
            }
            0x2c if !same && !regs.off(cr0::SMMUEN) => refuse("while SMMUEN is 1"),
            0x2c => regs.cr2 = value,
            0x44 => self.write_gbpa(hw, value),
            0x50 => {
                if regs.irq_ctrl != regs.irq_ctrlack && !same {
                    return refuse("before the last update was acknowledged");
                }
                regs.irq_ctrl = value;
                self.settle(hw);
            }
            0x64 => self.write_gerrorn(hw, value),
            0x68..=0x74 if !same && !regs.irq_off(irq::GERROR) => refuse("while its interrupt is enabled"),
            0xb0..=0xbc if !same && !regs.irq_off(irq::EVENTQ) => refuse("while its interrupt is enabled"),
            0xd0..=0xdc if !same && !regs.irq_off(irq::PRIQ) => refuse("while its interrupt is enabled"),
            0x68..=0x74 => regs.gerror_msi.write(offset - 0x68, value),
            0xb0..=0xbc => regs.eventq_msi.write(offset - 0xb0, value),
            0xd0..=0xdc => regs.priq_msi.write(offset - 0xd0, value),
            0x80..=0x88 if !same && !regs.off(cr0::SMMUEN) => refuse("while SMMUEN is 1"),
            0x80 | 0x84 => regs.strtab = merge(regs.strtab, offset, value),
            0x88 => {
                if value & 0x3f > u32::from(hw.config.sid_bits) {
                    hw.violations.report("stream-table", format_args!("LOG2SIZE {} too large", value & 0x3f));
                }
                regs.strtab_cfg = value;
            }
            0x90 | 0x94 | 0x9c if !same && !regs.off(cr0::CMDQEN) => refuse("while CMDQEN is 1"),
            0x90 | 0x94 => regs.cmdq.base = merge(regs.cmdq.base, offset, value),
            0x9c => regs.cmdq.cons = value,
            0x98 => self.write_cmdq_prod(hw, value),
            0xa0 | 0xa4 | 0x1_00a8 if !same && !regs.off(cr0::EVENTQEN) => refuse("while EVENTQEN is 1"),
            0xa0 | 0xa4 => regs.eventq.base = merge(regs.eventq.base, offset, value),
            0x1_00a8 => regs.eventq.prod = value,
            0x1_00ac => {
                let on = !regs.off(cr0::EVENTQEN);
                write_cons(hw, &mut regs.eventq, on, value, "event queue");
            }
            0xc0 | 0xc4 | 0x1_00c8 if !same && !regs.off(cr0::PRIQEN) => refuse("while PRIQEN is 1"),
            0xc0 | 0xc4 => regs.priq.base = merge(regs.priq.base, offset, value),
            0x1_00c8 => regs.priq.prod = value,
            0x1_00cc => {
                let on = !regs.off(cr0::PRIQEN);
                write_cons(hw, &mut regs.priq, on, value, "PRI queue");
            }
            _ => hw
                .violations
                .report("register-write", format_args!("{offset:#x} = {value:#x}: no such register")),
        }
    }

    fn write_cr0(&mut self, hw: &Hw, value: u32) {
        let regs = &mut self.regs;
        let busy = regs.cr0 ^ regs.cr0ack;
        if (regs.cr0 ^ value) & busy != 0 {
            hw.violations.report(
                "cr0-update",
                format_args!("field {busy:#x} changed again before its update completed"),
            );
            return;
        }
        let rising = value & !regs.cr0;
        if rising & cr0::SMMUEN != 0 {
            let (written, used) = (regs.strtab & ADDRESS, regs.stream_table(&hw.config).base);
            if written == 0 || written != used {
                hw.violations.report("stream-table", format_args!("base {written:#x} is taken as {used:#x}"));
            }
        }
        let queues =
            [(cr0::CMDQEN, regs.cmdq, 16), (cr0::EVENTQEN, regs.eventq, 32), (cr0::PRIQEN, regs.priq, 16)];
        for (_, queue, bytes) in queues.into_iter().filter(|(enable, ..)| rising & enable != 0) {
            let (written, used) = (queue.base & ADDRESS & !0x1f, queue.entry(0, bytes, hw.config.oas));
            if written == 0 || written != used || queue.base & 0x1f > u64::from(queue.most) {
                hw.violations.report("queue-base", format_args!("{:#x} is taken as {used:#x}", queue.base));
            }
        }
        regs.cr0 = value;
        self.settle(hw);
    }

    fn write_gbpa(&mut self, hw: &Hw, value: u32) {
        if self.regs.gbpa_next.is_some() {
            hw.violations.report("gbpa-update", "written while UPDATE is 1");
            return;
        }
        if value & UPDATE == 0 {
            hw.violations.report("gbpa-update", "written without UPDATE");
            return;
        }
        self.regs.gbpa_next = Some(value & GBPA_FIELDS);
        self.settle(hw);
    }

    /// Completes updates, unless the schedule makes them wait.
    pub(super) fn settle(&mut self, hw: &Hw) {
        let regs = &mut self.regs;
        if regs.gbpa_next.is_some() && !hw.schedule.fires(points::UPDATE_LATE) {
            regs.gbpa = regs.gbpa_next.take().unwrap_or(regs.gbpa);
        }
        if regs.irq_ctrl != regs.irq_ctrlack && !hw.schedule.fires(points::UPDATE_LATE) {
            regs.irq_ctrlack = regs.irq_ctrl;
        }
        if regs.cr0 != regs.cr0ack && !hw.schedule.fires(points::UPDATE_LATE) {
            let before = std::mem::replace(&mut regs.cr0ack, regs.cr0);
            let (went_off, went_on) = (before & !regs.cr0, regs.cr0 & !before);
            if went_off & cr0::SMMUEN != 0 {
                self.drop_stalls();
            }
            if went_off & cr0::CMDQEN != 0 {
                self.fetched.clear();
            }
            if went_on & cr0::CMDQEN != 0 {
                self.fetch_commands(hw);
            }
        }
    }

    fn write_gerrorn(&mut self, hw: &Hw, value: u32) {
        let regs = &mut self.regs;
        let toggled = regs.gerrorn ^ value;
        let wrong = toggled & !regs.active_errors();
        if wrong != 0 {
            hw.violations
                .report("gerrorn", format_args!("acknowledges errors that are not active: {wrong:#x}"));
        }
        regs.gerrorn = value;
        if toggled & gerror::CMDQ != 0 && !regs.has_error(gerror::CMDQ) {
            // Commands are fetched anew after an error.
            self.fetched.clear();
            self.fetch_commands(hw);
        }
    }

    fn write_cmdq_prod(&mut self, hw: &Hw, value: u32) {
        let regs = &mut self.regs;
        if regs.off(cr0::CMDQEN) {
            regs.cmdq.prod = value;
            return;
        }
        let before = regs.cmdq;
        let (used, next) = (before.used(), before.between(before.cons, value));
        if next > before.size() {
            let text = format_args!("PROD {value:#x} is beyond CONS {:#x}", before.cons);
            hw.violations.report("cmdq-prod", text);
            return;
        }
        if next < used && !regs.has_error(gerror::CMDQ) {
            let text = format_args!("PROD goes back from {:#x} to {value:#x}", before.prod);
            hw.violations.report("cmdq-prod", text);
            return;
        }
        regs.cmdq.prod = value;
        hw.coverage.count("register", "CMDQ_PROD");
        self.fetch_commands(hw);
    }
}

impl Msi {
    const fn write(&mut self, at: u64, value: u32) {
        match at {
            0 | 4 => self.address = merge(self.address, at, value),
            8 => self.data = value,
            _ => self.attributes = value,
        }
    }
}

fn write_cons(hw: &Hw, queue: &mut Queue, on: bool, value: u32, name: &str) {
    if on && queue.between(queue.cons, value) > queue.used() {
        let text =
            format_args!("{name}: CONS {value:#x} is not between {:#x} and {:#x}", queue.cons, queue.prod);
        hw.violations.report("queue-cons", text);
        return;
    }
    queue.cons = value;
}

/// Bits of a register that software may set.
fn writable(offset: u64, hw: &Hw) -> u32 {
    let config = &hw.config;
    let on = |have: bool, bits: u32| if have { bits } else { 0 };
    let index = |most: u8| (2u32 << most) - 1;
    match offset {
        0x20 => 0xd | on(config.pri, cr0::PRIQEN) | on(config.ats, cr0::ATSCHK),
        0x28 => 0xfff,
        0x2c => 2 | on(config.hyp, 1) | on(config.btm, 4) | on(config.ats_record_errors, 8),
        0x44 => UPDATE | GBPA_FIELDS,
        0x50 => irq::GERROR | irq::EVENTQ | on(config.pri, irq::PRIQ),
        0x64 => gerror::ALL,
        // Addresses lie in bits [55:2]; the data registers are free.
        0x68 | 0xb0 | 0xd0 => 0xffff_fffc,
        0x6c | 0xb4 | 0xd4 => 0x00ff_ffff,
        0x74 | 0xbc => 0x3f,
        0xdc => 0x8000_003f,
        0x80 => 0xffff_ffc0,
        0x84 => 0x40ff_ffff,
        0x88 => 0x3f | 0x7c0 | on(config.two_level_streams, 0x3_0000),
        0x90 | 0xa0 | 0xc0 => 0xffff_ffff,
        0x94 | 0xa4 | 0xc4 => 0x40ff_ffff,
        0x98 => index(config.cmdq_log2),
        0x9c => index(config.cmdq_log2) | 0x7f00_0000,
        0x1_00a8 | 0x1_00ac => index(config.eventq_log2) | 1 << 31,
        0x1_00c8 | 0x1_00cc => index(config.priq_log2) | 1 << 31,
        _ => u32::MAX,
    }
}
