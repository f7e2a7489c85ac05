//! User code: EL0, entered and left like a subroutine.
//!
//! It calls the kernel by `svc`, with the number in x8 and the arguments in x0 and x1.

#![expect(unsafe_code, reason = "goes to EL0 and back")]

use super::trap::{self, Syndrome, TrapFrame, UserTrap};
use super::{cpu, interrupts};
use crate::{Call, Exception, Exit, PageFault};
use core::arch::global_asm;
use core::mem::offset_of;
use portcullis_hal::Access;

/// One past the last address that user code may have.
pub const END: u64 = (1 << 47) - 4096;

// While user code runs, the kernel's stack pointer stands behind the frame of its context, so that the vectors save its
// state there. The kernel's own state waits on its stack, at `kernel_stack`.
global_asm!(
    r#"
    .section .text.user, "ax"
    .global user_enter, user_leave
user_enter:
    sub     sp, sp, #160
    stp     x19, x20, [sp, #0]
    stp     x21, x22, [sp, #16]
    stp     x23, x24, [sp, #32]
    stp     x25, x26, [sp, #48]
    stp     x27, x28, [sp, #64]
    stp     x29, x30, [sp, #80]
    stp     d8, d9, [sp, #96]
    stp     d10, d11, [sp, #112]
    stp     d12, d13, [sp, #128]
    stp     d14, d15, [sp, #144]
    mov     x1, sp
    str     x1, [x0, #{kernel_stack}]
    mov     sp, x0
    b       trap_return

    // From the vectors, on the context as stack, with the vector's number in x0.
user_leave:
    ldr     x1, [sp, #{kernel_stack}]
    mov     sp, x1
    ldp     x19, x20, [sp, #0]
    ldp     x21, x22, [sp, #16]
    ldp     x23, x24, [sp, #32]
    ldp     x25, x26, [sp, #48]
    ldp     x27, x28, [sp, #64]
    ldp     x29, x30, [sp, #80]
    ldp     d8, d9, [sp, #96]
    ldp     d10, d11, [sp, #112]
    ldp     d12, d13, [sp, #128]
    ldp     d14, d15, [sp, #144]
    add     sp, sp, #160
    ret
    "#,
    kernel_stack = const offset_of!(Context, kernel_stack),
);

unsafe extern "C" {
    /// Runs user code until an exception, and returns the number of its vector. Interrupts are masked before and after.
    fn user_enter(context: &mut Context) -> u64;
}

/// The registers of a thread of user code.
#[derive(Clone, Debug)]
#[repr(C, align(16))]
pub struct Context {
    frame: TrapFrame,
    kernel_stack: u64,
}

const _: () = assert!(offset_of!(Context, frame) == 0);
const _: () = assert!(offset_of!(Context, kernel_stack) == size_of::<TrapFrame>());

impl Context {
    /// A thread that begins at `entry` with this stack pointer and one argument.
    pub fn new(entry: u64, stack: u64, argument: u64) -> Self {
        Self { frame: TrapFrame::of_user(entry, stack, argument), kernel_stack: 0 }
    }

    /// What the call returns from which user code came back: in x0, x1 and x2.
    pub fn set_results(&mut self, results: [u64; 3]) {
        let [x0, x1, x2, ..] = &mut self.frame.x;
        [*x0, *x1, *x2] = results;
    }

    /// The address of the next instruction.
    pub fn instruction(&self) -> u64 {
        self.frame.elr
    }

    /// Runs the thread on this CPU, in the address space that is active, until it needs the kernel. Interrupts are on
    /// meanwhile, and afterwards what they were.
    pub fn run(&mut self) -> Exit {
        let mask = cpu::mask_interrupts();
        // SAFETY: the context was made by `new` and changed by user code within what EL0 can change; it stays where it
        // is as long as it is borrowed. Whatever user code does, it reaches user pages only.
        let number = unsafe { user_enter(self) };
        let exit = self.why(number);
        cpu::restore_interrupts(mask);
        exit
    }

    fn why(&self, number: u64) -> Exit {
        match trap::from_user(number) {
            UserTrap::Interrupt => {
                interrupts::handle_pending();
                Exit::Interrupt
            }
            UserTrap::Synchronous => self.decode(),
            UserTrap::Fatal => trap::die_in_user(number, &self.frame),
        }
    }

    fn decode(&self) -> Exit {
        let TrapFrame { x, elr, esr, far, .. } = &self.frame;
        let syndrome = Syndrome(*esr);
        let access = match syndrome.class() {
            0x15 => {
                let [argument0, argument1, .., number] = x.first_chunk::<9>().copied().unwrap_or_default();
                return Exit::Call(Call { number, arguments: [argument0, argument1] });
            }
            0x20 => Some(Access::EXECUTE),
            0x24 if syndrome.writes() => Some(Access::WRITE),
            0x24 => Some(Access::READ),
            _ => None,
        };
        match access {
            Some(access) if syndrome.is_page_fault() => {
                Exit::PageFault(PageFault { address: *far, access, instruction: *elr })
            }
            _ => Exit::Exception(Exception {
                code: syndrome.class(),
                instruction: *elr,
                name: syndrome.class_name(),
            }),
        }
    }
}
