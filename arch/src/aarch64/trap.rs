//! Exception vectors, the frame they save, and the report of those that nobody handles.

#![expect(unsafe_code, reason = "vectors")]

use super::{console, cpu, interrupts, power};
use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{CurrentEL, Readable, VBAR_EL1, Writeable};
use core::arch::{asm, global_asm};
use core::fmt::{self, Write};
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, Ordering};

/// The whole state of the interrupted code, so that it can be resumed, inspected or changed.
#[derive(Clone, Debug)]
#[repr(C, align(16))]
pub(super) struct TrapFrame {
    /// x0 to x30.
    pub(super) x: [u64; 31],
    /// The stack pointer of the interrupted code.
    pub(super) sp: u64,
    /// Where it was interrupted.
    pub(super) elr: u64,
    /// Its processor state.
    pub(super) spsr: u64,
    /// The syndrome; of use for synchronous exceptions and SErrors.
    pub(super) esr: u64,
    /// The faulting address; of use for aborts and alignment faults.
    pub(super) far: u64,
    fpcr: u64,
    fpsr: u64,
    q: [u128; 32],
}

impl TrapFrame {
    /// The state of user code before its first instruction: interrupts on, and nothing of the kernel's in registers.
    pub(super) fn of_user(entry: u64, stack: u64, argument: u64) -> Self {
        let mut x = [0; 31];
        let [x0, ..] = &mut x;
        *x0 = argument;
        let spsr = if cpu::has_pan() { SPSR_PAN } else { 0 };
        Self { x, sp: stack, elr: entry, spsr, esr: 0, far: 0, fpcr: 0, fpsr: 0, q: [0; 32] }
    }
}

/// SPSR.PAN, which stays with the CPU when it comes back to the kernel: no access to user pages by accident.
const SPSR_PAN: u64 = 1 << 22;

/// What brought the CPU from user code to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UserTrap {
    Synchronous,
    Interrupt,
    /// It has nothing to do with the code that was interrupted, and nobody expects it.
    Fatal,
}

/// What the number of a vector says that [`super::user`] got.
pub(super) fn from_user(number: u64) -> UserTrap {
    match Vector::from_number(number) {
        Vector::Synchronous(Source::User64) => UserTrap::Synchronous,
        Vector::Irq(Source::User64) => UserTrap::Interrupt,
        _ => UserTrap::Fatal,
    }
}

/// Ends the machine for an exception that came while user code ran.
pub(super) fn die_in_user(number: u64, frame: &TrapFrame) -> ! {
    die(Vector::from_number(number), frame)
}

const FRAME_SIZE: usize = size_of::<TrapFrame>();
const _: () = assert!(FRAME_SIZE.is_multiple_of(16) && offset_of!(TrapFrame, q).is_multiple_of(16));

/// The 16 entries of the vector table (Arm ARM, D1, "Exception vectors"), as the entry code numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vector {
    Synchronous(Source),
    Irq(Source),
    Fiq(Source),
    SError(Source),
    StackOverflow,
}

/// Where an exception came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Sp0,
    Kernel,
    User64,
    User32,
}

/// The number that entry code gives to an overflow of the kernel's stack; 0 to 15 are the vectors.
const STACK_OVERFLOW: u64 = 16;

/// The first of the four vectors of 64-bit user code.
const USER_FIRST: u64 = 8;

/// How far below the stack pointer an access counts as an overflow of the stack.
const OVERFLOW_SHIFT: u64 = 16;

impl Vector {
    const fn from_number(number: u64) -> Self {
        let source = match number >> 2 {
            0 => Source::Sp0,
            1 => Source::Kernel,
            2 => Source::User64,
            3 => Source::User32,
            _ => return Self::StackOverflow,
        };
        match number & 3 {
            0 => Self::Synchronous(source),
            1 => Self::Irq(source),
            2 => Self::Fiq(source),
            _ => Self::SError(source),
        }
    }
}

global_asm!(
    r#"
    .section .bss.trap_stack, "aw", @nobits
    .balign 16
    .fill 16384, 1, 0
trap_stack_top:

    .section .text.vectors, "ax"

    .macro vector number, sp
    .balign 128
    sub     sp, sp, #{frame}
    stp     x0, x1, [sp, #0]
    mov     x0, #\number
    .ifc \sp, user
    mrs     x1, sp_el0
    .else
    add     x1, sp, #{frame}
    .endif
    b       trap_entry
    .endm

    .balign 2048
    .global exception_vectors
exception_vectors:
    vector  0, user
    vector  1, user
    vector  2, user
    vector  3, user

    // A fault just below the stack pointer, or within the frame that is about to be saved, means that the stack is
    // full: saving the frame there would fault again, without end. SPSR keeps the flags, TPIDRRO_EL0 one register.
    .balign 128
    msr     tpidrro_el0, x0
    mrs     x0, far_el1
    sub     sp, sp, #{frame}
    sub     x0, sp, x0
    add     x0, x0, #(2 * {frame})
    lsr     x0, x0, #{overflow_shift}
    cbz     x0, 1f
    mrs     x0, tpidrro_el0
    stp     x0, x1, [sp, #0]
    mov     x0, #4
    add     x1, sp, #{frame}
    b       trap_entry
1:  b       stack_overflow

    vector  5, kernel
    vector  6, kernel
    vector  7, kernel
    vector  8, user
    vector  9, user
    vector  10, user
    vector  11, user
    vector  12, user
    vector  13, user
    vector  14, user
    vector  15, user
    .balign 128

    // x0 is the vector's number, x1 the interrupted stack pointer; x0 and x1 themselves are in the frame.
trap_entry:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    stp     x30, x1, [sp, #240]
    mrs     x2, elr_el1
    mrs     x3, spsr_el1
    stp     x2, x3, [sp, #{elr}]
    mrs     x4, esr_el1
    mrs     x5, far_el1
    stp     x4, x5, [sp, #{esr}]
    mrs     x6, fpcr
    mrs     x7, fpsr
    stp     x6, x7, [sp, #{fpcr}]
    add     x8, sp, #{q}
    stp     q0, q1, [x8, #0]
    stp     q2, q3, [x8, #32]
    stp     q4, q5, [x8, #64]
    stp     q6, q7, [x8, #96]
    stp     q8, q9, [x8, #128]
    stp     q10, q11, [x8, #160]
    stp     q12, q13, [x8, #192]
    stp     q14, q15, [x8, #224]
    stp     q16, q17, [x8, #256]
    stp     q18, q19, [x8, #288]
    stp     q20, q21, [x8, #320]
    stp     q22, q23, [x8, #352]
    stp     q24, q25, [x8, #384]
    stp     q26, q27, [x8, #416]
    stp     q28, q29, [x8, #448]
    stp     q30, q31, [x8, #480]
    sub     x1, x0, #{user_first}
    cmp     x1, #4
    b.lo    user_leave
    mov     x1, sp
    stp     x29, x2, [sp, #-16]!            // a frame record, so that backtraces go on
    mov     x29, sp
    bl      handle_trap
    add     sp, sp, #16

    .global trap_return
trap_return:
    add     x8, sp, #{q}
    ldp     q0, q1, [x8, #0]
    ldp     q2, q3, [x8, #32]
    ldp     q4, q5, [x8, #64]
    ldp     q6, q7, [x8, #96]
    ldp     q8, q9, [x8, #128]
    ldp     q10, q11, [x8, #160]
    ldp     q12, q13, [x8, #192]
    ldp     q14, q15, [x8, #224]
    ldp     q16, q17, [x8, #256]
    ldp     q18, q19, [x8, #288]
    ldp     q20, q21, [x8, #320]
    ldp     q22, q23, [x8, #352]
    ldp     q24, q25, [x8, #384]
    ldp     q26, q27, [x8, #416]
    ldp     q28, q29, [x8, #448]
    ldp     q30, q31, [x8, #480]
    ldp     x6, x7, [sp, #{fpcr}]
    msr     fpcr, x6
    msr     fpsr, x7
    ldp     x2, x3, [sp, #{elr}]
    msr     elr_el1, x2
    msr     spsr_el1, x3
    tst     x3, #0xc                        // SPSR.M[3:2]: to EL0?
    b.ne    1f
    ldr     x1, [sp, #{sp}]
    msr     sp_el0, x1
1:  ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    ldr     x30, [sp, #240]
    ldp     x0, x1, [sp, #0]
    add     sp, sp, #{frame}
    eret

    // The frame goes to a stack of its own. All CPUs share it: the first to come here stops the machine.
stack_overflow:
    mov     x0, sp
    msr     sp_el0, x0
    adrp    x0, trap_stack_top
    add     x0, x0, :lo12:trap_stack_top
    sub     sp, x0, #{frame}
    mrs     x0, tpidrro_el0
    stp     x0, x1, [sp, #0]
    mrs     x1, sp_el0
    add     x1, x1, #{frame}
    mov     x0, #{stack_overflow}
    b       trap_entry
    "#,
    frame = const FRAME_SIZE,
    sp = const offset_of!(TrapFrame, sp),
    elr = const offset_of!(TrapFrame, elr),
    esr = const offset_of!(TrapFrame, esr),
    fpcr = const offset_of!(TrapFrame, fpcr),
    q = const offset_of!(TrapFrame, q),
    overflow_shift = const OVERFLOW_SHIFT,
    user_first = const USER_FIRST,
    stack_overflow = const STACK_OVERFLOW,
);

unsafe extern "C" {
    static exception_vectors: u8;
}

/// Installs the vectors on this CPU and lets SErrors through, which entry code masks.
pub(super) fn install() {
    VBAR_EL1.set(&raw const exception_vectors as u64);
    barrier::isb(barrier::SY);
    // SAFETY: the vectors are in place; an SError that was pending is reported now.
    unsafe { asm!("msr daifclr, #4", options(nostack, preserves_flags)) };
}

/// All exceptions come here, interrupts masked, and return to the code that `frame` describes.
#[unsafe(no_mangle)]
extern "C" fn handle_trap(number: u64, frame: &mut TrapFrame) {
    match Vector::from_number(number) {
        Vector::Irq(_) => interrupts::handle_pending(),
        vector => die(vector, frame),
    }
}

static DYING: AtomicBool = AtomicBool::new(false);

fn die(vector: Vector, frame: &TrapFrame) -> ! {
    // An exception in the report must not start another one.
    if !DYING.swap(true, Ordering::Relaxed) {
        console::force_unlock();
        // There is nobody else to tell if the console fails.
        let _ = report(&mut console::Writer, vector, frame);
    }
    power::exit(power::Outcome::Failure)
}

fn report(out: &mut impl Write, vector: Vector, frame: &TrapFrame) -> fmt::Result {
    let syndrome = Syndrome(frame.esr);
    match vector {
        Vector::StackOverflow => write!(out, "panic: exception: kernel stack overflow")?,
        Vector::Synchronous(Source::Kernel) => write!(out, "panic: exception: {syndrome}")?,
        vector => write!(out, "panic: exception: {vector:?}: {syndrome}")?,
    }
    writeln!(
        out,
        " at {:#x}, address {:#x}, CPU {:#x}, EL{}",
        frame.elr,
        frame.far,
        cpu::affinity(),
        CurrentEL.read(CurrentEL::EL)
    )?;
    writeln!(out, "  esr {:#018x}  spsr {:#018x}  sp  {:#018x}", frame.esr, frame.spsr, frame.sp)?;
    for (row, registers) in frame.x.chunks(3).enumerate() {
        for (column, value) in registers.iter().enumerate() {
            write!(out, "  x{:<2} {value:#018x}", row * 3 + column)?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// `ESR`, for people (Arm ARM, ESR_EL2).
#[derive(Clone, Copy)]
pub(super) struct Syndrome(pub(super) u64);

impl Syndrome {
    pub(super) const fn class(self) -> u64 {
        self.0 >> 26 & 0x3f
    }

    /// Whether an abort says that the tables do not translate the address, or do not allow the access.
    pub(super) const fn is_page_fault(self) -> bool {
        matches!(self.0 & 0x3f, 0x04..=0x0f)
    }

    /// Whether a data abort was a write.
    pub(super) const fn writes(self) -> bool {
        self.0 & ESR_WRITE != 0
    }

    /// The status code of an abort.
    const fn abort_reason(self) -> &'static str {
        match self.0 & 0x3f {
            0x00..=0x03 => "address size fault",
            0x04..=0x07 => "translation fault",
            0x08..=0x0b => "access flag fault",
            0x0c..=0x0f => "permission fault",
            0x10 => "external abort",
            0x13..=0x17 => "external abort on a table walk",
            0x18 => "parity or ECC error",
            0x1b..=0x1f => "parity or ECC error on a table walk",
            0x21 => "alignment fault",
            0x30 => "TLB conflict",
            _ => "abort",
        }
    }

    pub(super) const fn class_name(self) -> &'static str {
        match self.class() {
            0x00 => "undefined instruction",
            0x01 => "trapped WFI or WFE",
            0x07 => "trapped floating point",
            0x0d => "branch target exception",
            0x0e => "illegal execution state",
            0x15 => "SVC",
            0x16 => "HVC",
            0x17 => "SMC",
            0x18 => "trapped system register",
            0x19 => "trapped SVE",
            0x1c => "pointer authentication failure",
            0x20 | 0x21 => "instruction abort",
            0x22 => "misaligned PC",
            0x24 | 0x25 => "data abort",
            0x26 => "misaligned SP",
            0x2c => "floating-point exception",
            0x2f => "SError",
            0x30 | 0x31 => "hardware breakpoint",
            0x32 | 0x33 => "single step",
            0x34 | 0x35 => "watchpoint",
            0x3c => "BRK",
            _ => "unknown class",
        }
    }
}

impl fmt::Display for Syndrome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.class_name())?;
        match self.class() {
            0x20 | 0x21 => write!(f, " ({})", self.abort_reason()),
            0x24 | 0x25 => {
                let access = if self.writes() { "write" } else { "read" };
                write!(f, " ({access}, {})", self.abort_reason())
            }
            0x15..=0x17 | 0x3c => write!(f, " #{:#x}", self.0 & 0xffff),
            _ => Ok(()),
        }
    }
}

/// `ESR.ISS.WnR` of a data abort.
const ESR_WRITE: u64 = 1 << 6;
