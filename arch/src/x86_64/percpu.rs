//! What each CPU has of its own: index, GDT, TSS and emergency stacks.

#![expect(unsafe_code, reason = "loads descriptor tables and segment registers")]

use core::arch::asm;
use core::mem::{MaybeUninit, offset_of};
use x86_64::VirtAddr;
use x86_64::instructions::tables::load_tss;
use x86_64::registers::model_specific::GsBase;
use x86_64::registers::segmentation::{CS, DS, ES, SS, Segment, SegmentSelector};
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::tss::TaskStateSegment;

/// The selectors of user code and data, by the order in which [`PerCpu::install`] fills the GDT, at privilege level 3.
pub(super) const USER_DATA: u16 = 3 << 3 | 3;
/// See [`USER_DATA`].
pub(super) const USER_CODE: u16 = 4 << 3 | 3;

/// Where in a CPU's block is the stack pointer on which it enters the kernel from user code (TSS.RSP0).
pub(super) const TRAP_STACK: usize =
    offset_of!(PerCpu, tss) + offset_of!(TaskStateSegment, privilege_stack_table);

/// An entry of the interrupt stack table: an exception that may not trust the stack it interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Emergency {
    /// The stack may have overflowed.
    DoubleFault = 0,
    /// May come at any instruction.
    NonMaskable = 1,
    /// May come at any instruction.
    MachineCheck = 2,
}

const EMERGENCIES: usize = 3;
/// Enough to format and print the registers.
const EMERGENCY_STACK: usize = 8 << 10;

#[repr(C, align(16))]
struct EmergencyStack([MaybeUninit<u8>; EMERGENCY_STACK]);

/// One CPU's block. GS.base points to it as long as the CPU runs.
#[repr(C, align(16))]
pub(super) struct PerCpu {
    index: usize,
    gdt: GlobalDescriptorTable,
    tss: TaskStateSegment,
    stacks: [EmergencyStack; EMERGENCIES],
}

impl PerCpu {
    /// Fills `block` for the CPU with this index and returns it.
    pub(super) fn write(block: &'static mut MaybeUninit<Self>, index: usize) -> &'static mut Self {
        let fresh = block.as_mut_ptr();
        let mut tss = TaskStateSegment::new();
        let entries = tss.interrupt_stack_table;
        let mut stacks = entries;
        for (slot, number) in stacks.iter_mut().zip(1..=EMERGENCIES) {
            // Stacks grow down from the end of each array.
            let end = offset_of!(Self, stacks) + number * size_of::<EmergencyStack>();
            *slot = VirtAddr::from_ptr(fresh) + end as u64;
        }
        tss.interrupt_stack_table = stacks;
        // SAFETY: the block is exclusively borrowed; the emergency stacks need no initial contents.
        unsafe {
            (&raw mut (*fresh).index).write(index);
            (&raw mut (*fresh).gdt).write(GlobalDescriptorTable::new());
            (&raw mut (*fresh).tss).write(tss);
            block.assume_init_mut()
        }
    }

    /// Makes the block that of the calling CPU: loads its GDT, TSS and GS.base.
    ///
    /// # Safety
    ///
    /// The calling CPU has no other block that anything refers to, and runs in 64-bit mode at privilege level 0.
    pub(super) unsafe fn install(&'static mut self) {
        let base = VirtAddr::from_ptr(self);
        let code = self.gdt.append(Descriptor::kernel_code_segment());
        let data = self.gdt.append(Descriptor::kernel_data_segment());
        self.gdt.append(Descriptor::user_data_segment());
        self.gdt.append(Descriptor::user_code_segment());
        let tss = self.gdt.append(Descriptor::tss_segment(&self.tss));
        self.gdt.load();
        // SAFETY: the selectors are those of the table just loaded, which lives for ever; FS and GS are used by
        // their base only, and loading GS clears the base, so that comes first.
        unsafe {
            CS::set_reg(code);
            SS::set_reg(data);
            DS::set_reg(data);
            ES::set_reg(data);
            asm!("mov fs, {0:x}", "mov gs, {0:x}", in(reg) SegmentSelector::NULL.0, options(nostack, preserves_flags));
            load_tss(tss);
        }
        GsBase::write(base);
    }
}

/// The index of the calling CPU, whose block is installed.
pub(super) fn index() -> usize {
    let index;
    // SAFETY: GS.base points to the block of this CPU since before Rust code could call this.
    unsafe {
        asm!("mov {}, gs:[{offset}]", out(reg) index, offset = const offset_of!(PerCpu, index),
            options(nostack, preserves_flags, readonly));
    }
    index
}
