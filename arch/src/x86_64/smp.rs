//! Further CPUs: INIT, start-up IPI, and the way from real mode into the image (SDM vol. 3, 10.4).

#![expect(unsafe_code, reason = "the entry of further CPUs")]

use super::apic::{self, Command, CommandPending};
use super::percpu::PerCpu;
use super::{boot, cpu, interrupts, paging, time, trap};
use core::arch::global_asm;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering};
use portcullis_hal::PhysAddr;
use spin::Mutex;
use thiserror::Error;

/// A CPU as the firmware names it: its APIC id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuId(pub u64);

/// Why a CPU did not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StartError {
    /// The boot CPU's interrupt controller is not set up.
    #[error("the boot CPU's interrupt controller is not set up")]
    NoController,
    /// The id does not fit into an interrupt command, or is that of the calling CPU.
    #[error("CPU {0:#x} cannot be addressed")]
    Id(u64),
    /// There is no RAM below 1 MiB for the trampoline.
    #[error("no RAM for the trampoline")]
    NoTrampoline,
    /// The local APIC does not take commands.
    #[error(transparent)]
    Command(#[from] CommandPending),
    /// The stack has no room for the CPU's own block.
    #[error("a stack of {given} bytes is too small, {needed} are needed")]
    StackTooSmall {
        /// Its size.
        given: usize,
        /// What it takes: the CPU's block and 16 KiB.
        needed: usize,
    },
    /// The CPU did not arrive in time. It was sent back to wait for a start-up IPI.
    #[error("CPU {0:#x} did not arrive")]
    Timeout(u64),
}

/// Where the trampoline is copied to, in memory below 1 MiB that the memory map leaves out.
const TRAMPOLINE: u64 = 0x8000;
/// What is left of the stack below the CPU's block.
const MIN_STACK: usize = 16 << 10;

const MS: u64 = 1_000_000;
const INIT_DELAY_NS: u64 = 10 * MS;
/// After the first start-up IPI, which a CPU may miss.
const RETRY_NS: u64 = 10 * MS;
const ARRIVAL_TIMEOUT_NS: u64 = 2000 * MS;

// Real mode at TRAMPOLINE:0. Long mode is entered in one step, with paging and protection together.
global_asm!(
    r#"
    .set TRAMPOLINE, {trampoline}
    .section .rodata.trampoline, "a"
    .balign 16
    .global trampoline_start, trampoline_end, trampoline_boot_tables, trampoline_tables, trampoline_stack
    .code16
trampoline_start:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    movl trampoline_boot_tables - trampoline_start, %eax
    movl %eax, %cr3
    movl $0x20, %eax            /* CR4.PAE */
    movl %eax, %cr4
    movl $0xc0000080, %ecx      /* EFER */
    rdmsr
    orl $0x900, %eax            /* LME, NXE */
    wrmsr
    lgdtl trampoline_gdt_pointer - trampoline_start
    movl $0x80010031, %eax      /* CR0: PG, WP, NE, ET, PE */
    movl %eax, %cr0
    ljmpl $0x08, $(1f - trampoline_start + TRAMPOLINE)

    .code64
1:  movl $0x10, %eax
    movl %eax, %ss
    movl %eax, %ds
    movl %eax, %es
    movq trampoline_tables(%rip), %rcx
    movq trampoline_stack(%rip), %rsp
    movabsq $2f, %rax
    jmp *%rax

    .balign 8
trampoline_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    /* 64-bit code */
    .quad 0x00cf93000000ffff    /* data */
trampoline_gdt_pointer:
    .word 23
    .long trampoline_gdt - trampoline_start + TRAMPOLINE
    .balign 8
trampoline_boot_tables:
    .quad 0
trampoline_tables:
    .quad 0
trampoline_stack:
    .quad 0
trampoline_end:

    .section .text.trampoline, "ax"
2:  movq %rcx, %cr3             /* the stack may be where the boot tables do not reach */
    movq %rsp, %rdi
    xorl %ebp, %ebp
    call {arrive}
    ud2
    "#,
    trampoline = const TRAMPOLINE,
    arrive = sym arrive,
    options(att_syntax)
);

unsafe extern "C" {
    static trampoline_start: u8;
    static trampoline_end: u8;
    static trampoline_boot_tables: u8;
    static trampoline_tables: u8;
    static trampoline_stack: u8;
}

/// What a CPU finds above its stack.
#[repr(C, align(16))]
struct Start {
    block: MaybeUninit<PerCpu>,
    index: usize,
    entry: fn(usize) -> !,
}

/// There is one trampoline, so CPUs start one after the other.
static STARTING: Mutex<()> = Mutex::new(());
/// Set by the CPU that is being started.
static ARRIVED: AtomicBool = AtomicBool::new(false);

/// The id of the boot CPU, which is the one that calls. Zero before the interrupt controller is set up.
pub fn boot_cpu() -> CpuId {
    CpuId(apic::local().map_or(0, |apic| u64::from(apic.id())))
}

/// Starts a CPU and returns once it runs. It calls `entry(index)` on `stack`, with interrupts masked and its local
/// APIC enabled.
///
/// The top of the stack is taken for the CPU's descriptor tables and emergency stacks: 64 KiB in all is a good size.
/// There is no guard page below it. After an error the stack is lost, since the CPU might still be about to use it.
/// A CPU that was started before is reset, whatever it is doing.
pub fn start(
    cpu: CpuId,
    index: usize,
    stack: &'static mut [u8],
    entry: fn(usize) -> !,
) -> Result<(), StartError> {
    let apic = apic::local().ok_or(StartError::NoController)?;
    let id = u32::try_from(cpu.0).ok().filter(|&id| apic.reaches(id) && id != apic.id());
    let id = id.ok_or(StartError::Id(cpu.0))?;
    let tables = paging::root().ok_or(StartError::NoTrampoline)?;
    let start = carve(stack)?;
    let top = start.as_mut_ptr();
    // SAFETY: exclusively borrowed for ever, and handed to the CPU only after this; it fills `block` itself.
    unsafe {
        (&raw mut (*top).index).write(index);
        (&raw mut (*top).entry).write(entry);
    }

    let _turn = STARTING.lock();
    ARRIVED.store(false, Ordering::Relaxed);
    write_trampoline(tables, top.addr() as u64)?;
    let page = (TRAMPOLINE >> 12) as u8;
    apic.send(id, Command::Init)?;
    arrives_within(INIT_DELAY_NS);
    apic.send(id, Command::StartUp { page })?;
    if !arrives_within(RETRY_NS) {
        apic.send(id, Command::StartUp { page })?;
    }
    if arrives_within(ARRIVAL_TIMEOUT_NS) {
        return Ok(());
    }
    // Whatever it is doing, it must not come out of the trampoline when that serves another CPU.
    apic.send(id, Command::Init)?;
    Err(StartError::Timeout(cpu.0))
}

/// Takes room for a `Start` from the top of `stack`.
fn carve(stack: &'static mut [u8]) -> Result<&'static mut MaybeUninit<Start>, StartError> {
    const NEEDED: usize = size_of::<Start>() + align_of::<Start>() + MIN_STACK;
    let given = stack.len();
    let keep = given.checked_sub(size_of::<Start>() + align_of::<Start>()).filter(|_| given >= NEEDED);
    let keep = keep.ok_or(StartError::StackTooSmall { given, needed: NEEDED })?;
    let (_, top) = stack.split_at_mut(keep);
    let padding = top.as_ptr().align_offset(align_of::<Start>());
    // SAFETY: at most `align_of - 1` bytes of padding, for which there is room, and the bytes are nobody else's.
    Ok(unsafe { &mut *top.as_mut_ptr().add(padding).cast() })
}

/// Copies the trampoline to its page and fills in what the CPU needs before it has a stack.
fn write_trampoline(tables: PhysAddr, stack: u64) -> Result<(), StartError> {
    let page = PhysAddr::new(TRAMPOLINE);
    if !paging::is_mapped(page) {
        return Err(StartError::NoTrampoline);
    }
    let page = paging::phys_to_virt(page).as_ptr();
    let offset = |symbol: *const u8| symbol.addr() - (&raw const trampoline_start).addr();
    // SAFETY: the page is RAM that the memory map leaves out, the code is shorter than a page, its variables are
    // aligned to 8 bytes, and only the holder of `STARTING` gets here.
    unsafe {
        page.copy_from_nonoverlapping(&raw const trampoline_start, offset(&raw const trampoline_end));
        for (variable, value) in [
            (&raw const trampoline_boot_tables, boot::boot_tables().get()),
            (&raw const trampoline_tables, tables.get()),
            (&raw const trampoline_stack, stack),
        ] {
            page.add(offset(variable)).cast::<u64>().write_volatile(value);
        }
    }
    Ok(())
}

fn arrives_within(timeout_ns: u64) -> bool {
    let start = time::now_ns();
    loop {
        if ARRIVED.load(Ordering::Acquire) {
            return true;
        }
        if time::now_ns().saturating_sub(start) > timeout_ns {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// The first Rust code of a further CPU: on the kernel's tables and its own stack, interrupts masked.
extern "C" fn arrive(start: *mut Start) -> ! {
    // SAFETY: the block above the stack was made for this CPU, which has no other yet.
    let start = unsafe { &mut *start };
    let block = PerCpu::write(&mut start.block, start.index);
    // SAFETY: as above.
    unsafe { block.install() };
    trap::load();
    paging::keep_global_entries();
    cpu::guard_against_user_code();
    // It cannot fail: the boot CPU's is set up, or there would have been no IPI.
    let _ = interrupts::init_secondary();
    ARRIVED.store(true, Ordering::Release);
    (start.entry)(start.index)
}
