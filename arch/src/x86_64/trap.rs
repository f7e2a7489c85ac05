//! Exceptions and interrupts: the descriptor table, the entry code, and what becomes of an exception.

#![expect(unsafe_code, reason = "interrupt entry points")]

use super::boot::Console;
use super::percpu::Emergency;
use super::power::{self, Outcome};
use super::{console, cpu, interrupts, tlb, user};
use core::arch::global_asm;
use core::fmt::{self, Write};
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, Ordering};
use spin::Once;
use x86_64::registers::control::Cr2;
use x86_64::structures::idt::{
    ExceptionVector, InterruptDescriptorTable, PageFaultErrorCode, SelectorErrorCode,
};
use x86_64::{PrivilegeLevel, VirtAddr};

// One stub per vector, 16 bytes apart: each pushes an error code, where the CPU did not (SDM vol. 3, table 7-1), and
// its vector, so that all frames look alike.
global_asm!(
    r#"
    .section .text.trap, "ax"
    .balign 16
    .global trap_stubs
trap_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if vector != 8 && (vector < 10 || vector > 14) && vector != 17 && vector != 21 && vector != 29 && vector != 30
    pushq $0
    .endif
    pushq $vector
    jmp trap_common
    .set vector, vector + 1
    .endr

trap_common:
    testb $3, 24(%rsp)          /* CS: from user code? */
    jz 1f
    swapgs
1:  cld
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rbx
    pushq %rbp
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    testb $3, {cs}(%rsp)
    jz 2f
    /* NMI, double fault and machine check have stacks of their own: they end here, wherever they came from. */
    movq {vector}(%rsp), %rax
    movl $(1 << 2 | 1 << 8 | 1 << 18), %ecx
    cmpq $32, %rax
    jae user_leave
    btl %eax, %ecx
    jnc user_leave
2:  movq %rsp, %rdi
    call {trap}
    .global trap_return
trap_return:
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rbx
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    testb $3, 8(%rsp)           /* CS: to user code? */
    jz 3f
    swapgs
3:  iretq
    "#,
    trap = sym trap,
    cs = const offset_of!(TrapFrame, cs),
    vector = const offset_of!(TrapFrame, vector),
    options(att_syntax)
);

unsafe extern "C" {
    static trap_stubs: u8;
}

/// The distance between the entry points of two vectors, in bytes.
const STUB_SIZE: u64 = 16;

/// The first vector that is no exception.
pub(super) const FIRST_INTERRUPT: u8 = 32;

/// All registers of the interrupted code, as the entry stubs push them.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub(super) struct TrapFrame {
    pub(super) r15: u64,
    pub(super) r14: u64,
    pub(super) r13: u64,
    pub(super) r12: u64,
    pub(super) r11: u64,
    pub(super) r10: u64,
    pub(super) r9: u64,
    pub(super) r8: u64,
    pub(super) rdi: u64,
    pub(super) rsi: u64,
    pub(super) rbp: u64,
    pub(super) rbx: u64,
    pub(super) rdx: u64,
    pub(super) rcx: u64,
    pub(super) rax: u64,
    pub(super) vector: u64,
    pub(super) error_code: u64,
    pub(super) rip: u64,
    pub(super) cs: u64,
    pub(super) rflags: u64,
    pub(super) rsp: u64,
    pub(super) ss: u64,
}

static TABLE: Once<InterruptDescriptorTable> = Once::new();

/// Loads the descriptor table, which the first caller builds. The CPU's own GDT is in place.
pub(super) fn load() {
    TABLE.call_once(build).load();
}

fn build() -> InterruptDescriptorTable {
    let base = (&raw const trap_stubs).addr() as u64;
    let stub = |vector: u8| VirtAddr::new(base + u64::from(vector) * STUB_SIZE);
    let mut table = InterruptDescriptorTable::new();
    macro_rules! exceptions {
        ($($entry:ident: $vector:ident $(on $stack:ident)?;)*) => {$({
            // SAFETY: the stub of this vector makes a frame of the right form and saves all registers.
            let options = unsafe { table.$entry.set_handler_addr(stub(ExceptionVector::$vector as u8)) };
            // SAFETY: `PerCpu` fills this entry of each CPU's interrupt stack table, and no other vector uses it.
            $(unsafe { options.set_stack_index(Emergency::$stack as u16) };)?
            let _ = options;
        })*};
    }
    exceptions! {
        divide_error: Division;
        debug: Debug;
        non_maskable_interrupt: NonMaskableInterrupt on NonMaskable;
        breakpoint: Breakpoint;
        overflow: Overflow;
        bound_range_exceeded: BoundRange;
        invalid_opcode: InvalidOpcode;
        device_not_available: DeviceNotAvailable;
        double_fault: Double on DoubleFault;
        invalid_tss: InvalidTss;
        segment_not_present: SegmentNotPresent;
        stack_segment_fault: Stack;
        general_protection_fault: GeneralProtection;
        page_fault: Page;
        x87_floating_point: X87FloatingPoint;
        alignment_check: AlignmentCheck;
        machine_check: MachineCheck on MachineCheck;
        simd_floating_point: SimdFloatingPoint;
        virtualization: Virtualization;
        cp_protection_exception: ControlProtection;
    }
    for vector in FIRST_INTERRUPT..=u8::MAX {
        // SAFETY: as above.
        let options = unsafe { table[vector].set_handler_addr(stub(vector)) };
        if vector == user::CALL_VECTOR {
            options.set_privilege_level(PrivilegeLevel::Ring3);
        }
    }
    table
}

/// Called by the stubs.
extern "C" fn trap(frame: &mut TrapFrame) {
    let vector = frame.vector as u8;
    if vector >= FIRST_INTERRUPT {
        interrupt(vector);
    } else if vector == ExceptionVector::Breakpoint as u8 {
        let _ = writeln!(Console, "breakpoint: cpu {} rip={:#x}", cpu::index(), frame.rip);
    } else {
        die(frame)
    }
}

/// Handles an interrupt.
pub(super) fn interrupt(vector: u8) {
    if vector == tlb::VECTOR { tlb::handle_request() } else { interrupts::dispatch(vector) }
}

/// Prints an exception that nobody expects, and ends the run.
fn die(frame: &TrapFrame) -> ! {
    static DYING: AtomicBool = AtomicBool::new(false);
    if DYING.swap(true, Ordering::Relaxed) {
        // Printing the first one failed, or two CPUs die at once.
        power::exit(Outcome::Failure)
    }
    // The exception may have come in the middle of output.
    console::force_unlock();
    let _ = writeln!(Console, "panic: exception on cpu {}: {frame}", cpu::index());
    power::exit(Outcome::Failure)
}

impl TrapFrame {
    /// The exception's name (SDM vol. 3, table 7-1).
    pub(super) fn name(&self) -> &'static str {
        match self.vector {
            0 => "divide error #DE",
            1 => "debug exception #DB",
            2 => "non-maskable interrupt",
            3 => "breakpoint #BP",
            4 => "overflow #OF",
            5 => "bound range exceeded #BR",
            6 => "invalid opcode #UD",
            7 => "device not available #NM",
            8 => "double fault #DF",
            10 => "invalid TSS #TS",
            11 => "segment not present #NP",
            12 => "stack fault #SS",
            13 => "general protection #GP",
            14 => "page fault #PF",
            16 => "x87 error #MF",
            17 => "alignment check #AC",
            18 => "machine check #MC",
            19 => "SIMD error #XM",
            20 => "virtualization exception #VE",
            21 => "control protection #CP",
            _ => "reserved exception",
        }
    }
}

impl fmt::Display for TrapFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (vector {}), error code {:#x}", self.name(), self.vector, self.error_code)?;
        match self.vector {
            10..=13 if self.error_code != 0 => {
                write!(f, " {:?}", SelectorErrorCode::new_truncate(self.error_code))?
            }
            14 => write!(f, " {:?}", PageFaultErrorCode::from_bits_truncate(self.error_code))?,
            _ => {}
        }
        writeln!(f, ", cr2={:#018x}", Cr2::read_raw())?;
        writeln!(
            f,
            "  rip={:#018x} cs={:#x} rflags={:#x} rsp={:#018x} ss={:#x}",
            self.rip, self.cs, self.rflags, self.rsp, self.ss
        )?;
        writeln!(
            f,
            "  rax={:#018x} rbx={:#018x} rcx={:#018x} rdx={:#018x}",
            self.rax, self.rbx, self.rcx, self.rdx
        )?;
        writeln!(
            f,
            "  rsi={:#018x} rdi={:#018x} rbp={:#018x}  r8={:#018x}",
            self.rsi, self.rdi, self.rbp, self.r8
        )?;
        writeln!(
            f,
            "   r9={:#018x} r10={:#018x} r11={:#018x} r12={:#018x}",
            self.r9, self.r10, self.r11, self.r12
        )?;
        write!(f, "  r13={:#018x} r14={:#018x} r15={:#018x}", self.r13, self.r14, self.r15)
    }
}
