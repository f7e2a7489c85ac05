//! The local APIC (SDM vol. 3, chapter 12), in the mode in which firmware left it: registers in memory (xAPIC) or
//! MSRs (x2APIC).

#![expect(unsafe_code, reason = "APIC registers and MSRs")]

use super::paging::{self, MapDeviceError};
use core::arch::asm;
use portcullis_hal::{Mmio, MmioRegion, PAGE_SIZE, PhysAddr, PhysRange};
use spin::Once;
use thiserror::Error;
use x86_64::registers::model_specific::{ApicBase, ApicBaseFlags, Msr};

/// The vector of interrupts that went away before the CPU took them; its low four bits are ones on all models.
pub(super) const SPURIOUS_VECTOR: u8 = 0xff;

/// A register, by its offset in memory; the MSR is 0x800 plus a sixteenth of it.
#[derive(Clone, Copy)]
#[repr(u16)]
enum Register {
    Id = 0x20,
    TaskPriority = 0x80,
    Eoi = 0xb0,
    SpuriousVector = 0xf0,
    CommandLow = 0x300,
    CommandHigh = 0x310,
    LvtTimer = 0x320,
    LvtLint0 = 0x350,
    LvtError = 0x370,
}

const LVT_MASKED: u32 = 1 << 16;
const SOFTWARE_ENABLE: u32 = 1 << 8;
/// Interrupt command: the previous one is still being sent (xAPIC only).
const DELIVERY_PENDING: u32 = 1 << 12;
/// Reads of the command register before a pending command counts as stuck; it takes microseconds.
const MAX_POLLS: u32 = 1_000_000;

/// The interrupt command before is stuck in the local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("ICR.delivery status is still pending")]
pub struct CommandPending;

/// What an interrupt command asks for (SDM vol. 3, figure 12-12); all are edge-triggered, to one physical APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Resets the CPU and lets it wait for a start-up IPI.
    Init,
    /// Starts the CPU in real mode at this page of the first MiB.
    StartUp {
        /// Physical address divided by 4096.
        page: u8,
    },
    /// Raises an interrupt.
    Interrupt {
        /// The vector.
        vector: u8,
    },
}

impl Command {
    fn encode(self) -> u32 {
        const ASSERT: u32 = 1 << 14;
        match self {
            Self::Init => 0b101 << 8 | ASSERT,
            Self::StartUp { page } => 0b110 << 8 | ASSERT | u32::from(page),
            Self::Interrupt { vector } => ASSERT | u32::from(vector),
        }
    }
}

/// The way to the registers; every CPU finds its own APIC behind it.
pub(super) enum LocalApic {
    /// xAPIC.
    Memory(MmioRegion),
    /// x2APIC.
    Msrs,
}

static APIC: Once<LocalApic> = Once::new();

/// The local APIC, once [`init`] has found it.
pub(super) fn local() -> Option<&'static LocalApic> {
    APIC.get()
}

/// Finds the APIC, on the boot CPU, and enables it.
pub(super) fn init(base: PhysAddr) -> Result<&'static LocalApic, MapDeviceError> {
    let (_, flags) = ApicBase::read();
    let apic = if flags.contains(ApicBaseFlags::X2APIC_ENABLE) {
        LocalApic::Msrs
    } else {
        let registers = paging::map_device(PhysRange::block(base, PAGE_SIZE))?;
        // SAFETY: just mapped, never unmapped, and this module alone drives the APIC.
        LocalApic::Memory(unsafe { MmioRegion::new(registers, PAGE_SIZE as usize) })
    };
    let apic = APIC.call_once(|| apic);
    apic.enable();
    Ok(apic)
}

impl LocalApic {
    /// Enables the APIC of the calling CPU, with its own sources but LINT1 (the NMI) masked.
    pub(super) fn enable(&self) {
        let (frame, flags) = ApicBase::read();
        let mode = match self {
            Self::Memory(_) => ApicBaseFlags::LAPIC_ENABLE,
            Self::Msrs => ApicBaseFlags::LAPIC_ENABLE | ApicBaseFlags::X2APIC_ENABLE,
        };
        // SAFETY: keeps the base; off to xAPIC or x2APIC are allowed transitions, and nothing else changes.
        unsafe { ApicBase::write(frame, flags | mode) };
        self.write(Register::TaskPriority, 0);
        for source in [Register::LvtTimer, Register::LvtLint0, Register::LvtError] {
            self.write(source, LVT_MASKED);
        }
        self.write(Register::SpuriousVector, SOFTWARE_ENABLE | u32::from(SPURIOUS_VECTOR));
    }

    /// The id of the calling CPU's APIC.
    pub(super) fn id(&self) -> u32 {
        match self {
            Self::Memory(_) => self.read(Register::Id) >> 24,
            Self::Msrs => self.read(Register::Id),
        }
    }

    /// Tells the APIC that the interrupt in service is done.
    pub(super) fn end_of_interrupt(&self) {
        self.write(Register::Eoi, 0);
    }

    /// Whether a CPU with this id can be addressed.
    pub(super) fn reaches(&self, id: u32) -> bool {
        match self {
            // 0xff is broadcast.
            Self::Memory(_) => id < 0xff,
            Self::Msrs => id != u32::MAX,
        }
    }

    /// Sends an interrupt command to the APIC `id`, once the one before is on its way. Interrupts are masked, or no
    /// handler sends any.
    pub(super) fn send(&self, id: u32, command: Command) -> Result<(), CommandPending> {
        match self {
            Self::Memory(_) => {
                let is_idle = |_| self.read(Register::CommandLow) & DELIVERY_PENDING == 0;
                if !(0..MAX_POLLS).any(is_idle) {
                    return Err(CommandPending);
                }
                self.write(Register::CommandHigh, id << 24);
                self.write(Register::CommandLow, command.encode());
            }
            Self::Msrs => {
                let value = u64::from(id) << 32 | u64::from(command.encode());
                // Unlike a store to memory, the write may overtake earlier stores, which the receiver is to see
                // (SDM vol. 3, 12.12.3).
                // SAFETY: barriers only.
                unsafe { asm!("mfence", "lfence", options(nostack, preserves_flags)) };
                // SAFETY: the command register takes all 64 bits in one write; INIT and start-up go to other CPUs, and
                // vectors have handlers.
                unsafe { msr(Register::CommandLow).write(value) };
            }
        }
        Ok(())
    }

    fn read(&self, register: Register) -> u32 {
        match self {
            Self::Memory(registers) => registers.read32(register as usize),
            // SAFETY: the register exists in x2APIC mode, which the variant stands for.
            Self::Msrs => unsafe { msr(register).read() as u32 },
        }
    }

    fn write(&self, register: Register, value: u32) {
        match self {
            Self::Memory(registers) => registers.write32(register as usize, value),
            // SAFETY: as in `read`; the values are legal for their registers.
            Self::Msrs => unsafe { msr(register).write(u64::from(value)) },
        }
    }
}

fn msr(register: Register) -> Msr {
    Msr::new(0x800 + (register as u32 >> 4))
}
