//! User code: ring 3, entered and left like a subroutine.

#![expect(unsafe_code, reason = "goes to ring 3 and back")]

use super::cpu;
use super::percpu::{TRAP_STACK, USER_CODE, USER_DATA};
use super::trap::{self, FIRST_INTERRUPT, TrapFrame};
use crate::{Call, Exception, Exit, PageFault};
use core::arch::global_asm;
use core::mem::offset_of;
use portcullis_hal::Access;
use x86_64::registers::control::Cr2;
use x86_64::structures::idt::{ExceptionVector, PageFaultErrorCode};

/// The vector by which user code calls the kernel, with the number in RAX and the arguments in RDI and RSI. No device
/// has it.
pub const CALL_VECTOR: u8 = 0xf1;

/// One past the last address that user code may have. The page below the end of the canonical half stays free: an
/// instruction there would return to an address that `iretq` refuses.
pub const END: u64 = (1 << 47) - 4096;

// The CPU saves the state of user code in its context, since TSS.RSP0 points behind the context's frame. The kernel's
// own state waits on its stack, at `kernel_stack`.
global_asm!(
    r#"
    .section .text.user, "ax"
    .global user_enter, user_leave
user_enter:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, {kernel_stack}(%rdi)
    leaq {frame_size}(%rdi), %rax
    movq %rax, %gs:{trap_stack}
    movq %rdi, %rsp
    jmp trap_return

    /* From the stubs, on the context as stack. */
user_leave:
    movq {kernel_stack}(%rsp), %rsp
    pushq $2                    /* no flag of user code's stays: AC above all */
    popfq
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    "#,
    kernel_stack = const offset_of!(Context, kernel_stack),
    frame_size = const size_of::<TrapFrame>(),
    trap_stack = const TRAP_STACK,
    options(att_syntax)
);

unsafe extern "C" {
    /// Runs user code until it traps. Interrupts are masked before and after.
    fn user_enter(context: &mut Context);
}

/// The registers of a thread of user code.
#[derive(Clone, Debug)]
#[repr(C, align(16))]
pub struct Context {
    frame: TrapFrame,
    kernel_stack: u64,
}

// The CPU aligns the stack to 16 bytes before it pushes.
const _: () = assert!(size_of::<TrapFrame>().is_multiple_of(16) && offset_of!(Context, frame) == 0);

/// RFLAGS of user code: interrupts on, and the bit that is always set.
const FLAGS: u64 = 1 << 9 | 1 << 1;

impl Context {
    /// A thread that begins at `entry` with this stack pointer and one argument.
    pub fn new(entry: u64, stack: u64, argument: u64) -> Self {
        let frame = TrapFrame {
            rip: entry.min(END),
            cs: USER_CODE.into(),
            rflags: FLAGS,
            rsp: stack,
            ss: USER_DATA.into(),
            rdi: argument,
            ..TrapFrame::default()
        };
        Self { frame, kernel_stack: 0 }
    }

    /// What the call returns from which user code came back: in RAX, RDI and RSI.
    pub fn set_results(&mut self, results: [u64; 3]) {
        [self.frame.rax, self.frame.rdi, self.frame.rsi] = results;
    }

    /// The address of the next instruction.
    pub fn instruction(&self) -> u64 {
        self.frame.rip
    }

    /// Runs the thread on this CPU, in the address space that is active, until it needs the kernel. Interrupts are on
    /// meanwhile, and afterwards what they were.
    pub fn run(&mut self) -> Exit {
        let mask = cpu::mask_interrupts();
        // SAFETY: the context was made by `new` and changed by user code within what ring 3 can change; it stays where
        // it is as long as it is borrowed. Whatever user code does, it reaches user pages only.
        unsafe { user_enter(self) };
        let exit = self.why();
        cpu::restore_interrupts(mask);
        exit
    }

    /// Why the CPU left user code. Interrupts are still masked, so that CR2 is that of this page fault.
    fn why(&self) -> Exit {
        let TrapFrame { vector, error_code, rip, .. } = self.frame;
        match vector as u8 {
            CALL_VECTOR => {
                let TrapFrame { rax, rdi, rsi, .. } = self.frame;
                Exit::Call(Call { number: rax, arguments: [rdi, rsi] })
            }
            vector if vector >= FIRST_INTERRUPT => {
                trap::interrupt(vector);
                Exit::Interrupt
            }
            vector if vector == ExceptionVector::Page as u8 => {
                let code = PageFaultErrorCode::from_bits_truncate(error_code);
                let access = if code.contains(PageFaultErrorCode::INSTRUCTION_FETCH) {
                    Access::EXECUTE
                } else if code.contains(PageFaultErrorCode::CAUSED_BY_WRITE) {
                    Access::WRITE
                } else {
                    Access::READ
                };
                Exit::PageFault(PageFault { address: Cr2::read_raw(), access, instruction: rip })
            }
            _ => Exit::Exception(Exception { code: vector, instruction: rip, name: self.frame.name() }),
        }
    }
}
