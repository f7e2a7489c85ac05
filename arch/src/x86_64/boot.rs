//! From the PVH entry point to `kernel_main`.

#![expect(unsafe_code, reason = "entry point and boot page tables")]

use super::paging::{self, KERNEL_OFFSET};
use super::percpu::PerCpu;
use super::power::{self, Outcome};
use super::pvh::{self, COMMAND_LINE_SIZE, StartInfo};
use super::{console, cpu, interrupts, time, trap};
use crate::{BootInfo, Firmware};
use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::fmt::{self, Write};
use core::mem::MaybeUninit;
use portcullis_hal::{PhysAddr, PhysRange};
use spin::Once;

// PVH (docs/misc/pvh.pandoc of Xen): 32-bit protected mode without paging, flat segments, interrupts off, EBX =
// start info. The boot tables map the first 4 GiB with 2 MiB pages at 0 and in the direct map, and the first GiB at
// KERNEL_OFFSET.
global_asm!(
    r#"
    .set KERNEL_OFFSET, {kernel_offset}

    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 8, 18              /* name and descriptor sizes; XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad pvh_start - KERNEL_OFFSET

    .section .text.boot, "ax"
    .code32
    .global pvh_start
pvh_start:
    cli
    cld
    movl $(__bss_start - KERNEL_OFFSET), %edi
    movl $(__bss_end - KERNEL_OFFSET), %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    xorl %eax, %eax
    rep stosl

    movl $(boot_directories - KERNEL_OFFSET), %edi
    movl $0x83, %eax            /* present, writable, 2 MiB */
1:  movl %eax, (%edi)
    addl $8, %edi
    addl $0x200000, %eax
    jnc 1b                      /* carries at 4 GiB */

    movl $(boot_directories - KERNEL_OFFSET + 3), %eax
    movl $(boot_low - KERNEL_OFFSET), %edi
    movl %eax, (%edi)
    movl %eax, boot_high - KERNEL_OFFSET + 510 * 8
    addl $0x1000, %eax
    movl %eax, 8(%edi)
    addl $0x1000, %eax
    movl %eax, 16(%edi)
    addl $0x1000, %eax
    movl %eax, 24(%edi)
    movl $(boot_low - KERNEL_OFFSET + 3), %eax
    movl $(boot_root - KERNEL_OFFSET), %edi
    movl %eax, (%edi)
    movl %eax, 256 * 8(%edi)
    movl $(boot_high - KERNEL_OFFSET + 3), %eax
    movl %eax, 511 * 8(%edi)

    movl %edi, %cr3
    movl $0x20, %eax            /* CR4.PAE */
    movl %eax, %cr4
    movl $0xc0000080, %ecx      /* EFER */
    rdmsr
    orl $0x900, %eax            /* LME, NXE */
    wrmsr
    movl $0x80010031, %eax      /* CR0: PG, WP, NE, ET, PE */
    movl %eax, %cr0
    lgdt boot_gdt_pointer - KERNEL_OFFSET
    ljmp $0x08, $(1f - KERNEL_OFFSET)

    .code64
1:  movabsq $2f, %rax
    jmp *%rax
2:  movl $0x10, %eax
    movl %eax, %ss
    movl %eax, %ds
    movl %eax, %es
    movq $boot_stack_top, %rsp
    xorl %ebp, %ebp
    movl %ebx, %edi
    call {start}
    ud2

    .section .rodata.boot, "a"
    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff    /* 64-bit code */
    .quad 0x00cf93000000ffff    /* data */
boot_gdt_pointer:
    .word 23
    .quad boot_gdt - KERNEL_OFFSET

    .section .bss.boot, "aw", @nobits
    .balign 4096
    .global boot_stack_guard, boot_root
boot_stack_guard:
    .skip 4096
    .skip {stack_size}
boot_stack_top:
boot_root:
    .skip 4096
boot_low:
    .skip 4096
boot_high:
    .skip 4096
boot_directories:
    .skip 4 * 4096
    "#,
    kernel_offset = const KERNEL_OFFSET,
    stack_size = const BOOT_STACK_SIZE,
    start = sym start,
    options(att_syntax)
);

/// The stack on which `kernel_main` runs. The page below it is never mapped.
const BOOT_STACK_SIZE: usize = 256 << 10;

/// What the boot tables map, in bytes.
const BOOT_REACH: u64 = 4 << 30;

unsafe extern "C" {
    static boot_root: u8;
}

unsafe extern "Rust" {
    /// The kernel's entry, defined by the crate that links this one.
    fn kernel_main(boot: BootInfo) -> !;
}

/// The root of the boot tables, in the first 4 GiB, for further CPUs on their way into the image.
pub(super) fn boot_tables() -> PhysAddr {
    PhysAddr::new(paging::linked_to_phys((&raw const boot_root).addr() as u64))
}

struct BootBlock(UnsafeCell<MaybeUninit<PerCpu>>);

// SAFETY: only `start` touches it, once, on the boot CPU.
unsafe impl Sync for BootBlock {}

static BOOT_BLOCK: BootBlock = BootBlock(UnsafeCell::new(MaybeUninit::uninit()));

struct CommandLine {
    bytes: [u8; COMMAND_LINE_SIZE],
    len: usize,
}

static COMMAND_LINE: Once<CommandLine> = Once::new();

/// The first Rust code, on the boot CPU, on the boot tables.
extern "C" fn start(start_info: u32) -> ! {
    // SAFETY: this is the only use of the block, and the CPU has none yet.
    unsafe { PerCpu::write(&mut *BOOT_BLOCK.0.get(), 0).install() };
    trap::load();
    console::init();
    interrupts::mask_legacy();
    time::init();
    match boot_info(start_info) {
        // SAFETY: the kernel defines the function with this signature.
        Ok(boot) => unsafe { kernel_main(boot) },
        Err(error) => {
            let _ = writeln!(Console, "panic: boot: {error}");
            power::exit(Outcome::Failure)
        }
    }
}

/// The boot code's way to print.
pub(super) struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        console::write_bytes(text.as_bytes());
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error(transparent)]
    StartInfo(#[from] pvh::StartInfoError),
    #[error("kernel tables: {0}")]
    Paging(#[from] paging::MapDeviceError),
    #[error("image bounds: {0}")]
    Image(#[from] portcullis_hal::AddressError),
}

/// Reads the loader's description, goes over to the kernel's tables, and says what RAM is free.
fn boot_info(start_info: u32) -> Result<BootInfo, BootError> {
    let StartInfo { ram, modules, rsdp, command_line, command_line_len } =
        pvh::read(&copy_physical, u64::from(start_info))?;
    // SAFETY: called once, on the boot tables, with the loader's memory map.
    let mut memory = unsafe { paging::init(&ram)? };
    cpu::guard_against_user_code();
    // The first MiB has firmware's data and the trampoline of further CPUs. The loader's structures were copied.
    memory.remove(PhysRange::block(PhysAddr::new(0), 1 << 20));
    memory.remove(paging::image()?);
    modules.iter().for_each(|module| memory.remove(paging::enclosing_pages(module)));
    let line = COMMAND_LINE.call_once(|| CommandLine { bytes: command_line, len: command_line_len });
    let bytes = line.bytes.get(..line.len).unwrap_or_default();
    let text = bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid());
    Ok(BootInfo { memory, firmware: Firmware::Acpi(rsdp), command_line: text })
}

/// Copies from physical memory as far as the boot tables reach.
fn copy_physical(address: u64, buffer: &mut [u8]) -> Option<()> {
    let end = address.checked_add(buffer.len() as u64)?;
    if end > BOOT_REACH {
        return None;
    }
    let source = paging::phys_to_virt(PhysAddr::new(address)).as_ptr();
    for (index, byte) in buffer.iter_mut().enumerate() {
        // SAFETY: the boot tables map the first 4 GiB in the direct map. What is read may be no memory at all, or
        // change, so each byte is one volatile read.
        *byte = unsafe { source.add(index).read_volatile() };
    }
    Some(())
}
