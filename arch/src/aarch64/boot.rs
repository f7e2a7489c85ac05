//! From the loader to Rust: EL2 with VHE, the MMU on, the kernel in the top half.
//!
//! The loader enters with the MMU off at the image's physical address. With `HCR_EL2.E2H` set, the `_EL1` names of
//! the translation registers reach those of EL2 (Arm ARM, D8, "EL2&0 translation regime"), so one piece of
//! code serves two cases: EL2 with VHE, where the kernel runs, and EL1, where it only says why it cannot.

#![expect(unsafe_code, reason = "entry code, linker symbols")]

use super::paging::{Attributes, KERNEL_OFFSET, MAIR};
use super::{console, cpu, device_tree, paging, power, psci, smp, trap};
use crate::{BootInfo, Firmware};
use aarch64_cpu::registers::{CPACR_EL1, HCR_EL2, SCTLR_EL1, TCR_EL1};
use core::arch::global_asm;
use core::fmt::Write;
use portcullis_hal::PhysAddr;

/// What keeps the kernel from running on this CPU; set by the entry code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    NotEl2,
    NoVhe,
}

const OBSTACLE_NOT_EL2: u64 = 1;
const OBSTACLE_NO_VHE: u64 = 2;

impl Obstacle {
    const fn from_entry_code(code: u64) -> Option<Self> {
        match code {
            OBSTACLE_NOT_EL2 => Some(Self::NotEl2),
            OBSTACLE_NO_VHE => Some(Self::NoVhe),
            _ => None,
        }
    }

    const fn message(self) -> &'static str {
        match self {
            Self::NotEl2 => "the kernel was not entered at EL2 (QEMU: -machine virt,virtualization=on)",
            Self::NoVhe => "this CPU has no virtualization host extensions (QEMU: -cpu max)",
        }
    }
}

/// Host mode: all exceptions and both halves of the address space belong to EL2.
const HCR_HOST: u64 = HCR_EL2::E2H::EnableOsAtEl2.value
    | HCR_EL2::TGE::EnableTrapGeneralExceptionsToEl2.value
    | HCR_EL2::RW::EL1IsAarch64.value;

/// 48-bit halves, 4 KiB granule, walks through write-back inner-shareable memory; `IPS` is filled in at run time.
const TCR: u64 = TCR_EL1::T0SZ.val(16).value
    | TCR_EL1::TG0::KiB_4.value
    | TCR_EL1::SH0::Inner.value
    | TCR_EL1::ORGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable.value
    | TCR_EL1::IRGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable.value
    | TCR_EL1::T1SZ.val(16).value
    | TCR_EL1::TG1::KiB_4.value
    | TCR_EL1::SH1::Inner.value
    | TCR_EL1::ORGN1::WriteBack_ReadAlloc_WriteAlloc_Cacheable.value
    | TCR_EL1::IRGN1::WriteBack_ReadAlloc_WriteAlloc_Cacheable.value
    | TCR_EL1::AS::ASID16Bits.value;

/// The bits of `SCTLR` that read as one where the features behind them are missing (Arm ARM, SCTLR_EL1).
const SCTLR_RES1: u64 = 0x30d0_0980;

/// MMU and caches on, stack alignment checked, writable memory never executable.
const SCTLR: u64 = SCTLR_RES1
    | SCTLR_EL1::M::Enable.value
    | SCTLR_EL1::C::Cacheable.value
    | SCTLR_EL1::I::Cacheable.value
    | SCTLR_EL1::SA::Enable.value
    | SCTLR_EL1::SA0::Enable.value
    | SCTLR_EL1::WXN::Enable.value;

/// Where the kernel's gigabyte lies in the tables of the top half and of the identity map.
const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;
const KERNEL_L0_INDEX: u64 = KERNEL_BASE >> 39 & 511;
const KERNEL_L1_INDEX: u64 = KERNEL_BASE >> 30 & 511;
const IDENTITY_L1_INDEX: u64 = (KERNEL_BASE - KERNEL_OFFSET) >> 30;
const _: () = assert!(IDENTITY_L1_INDEX < 512 && (KERNEL_BASE - KERNEL_OFFSET).is_multiple_of(1 << 30));

global_asm!(
    r#"
    // Translation tables. Both halves share kernel_l2, so the identity map has the image's permissions too. All but
    // kernel_l2 are complete when the image is loaded.
    .section .data.boot_tables, "aw"
    .balign 4096
    .global kernel_l0
identity_l0:
    .quad identity_l1 - {offset} + {table}
    .fill 511, 8, 0
identity_l1:
    .fill {identity_l1_index}, 8, 0
    .quad kernel_l2 - {offset} + {table}
    .fill 511 - {identity_l1_index}, 8, 0
kernel_l0:
    .fill {kernel_l0_index}, 8, 0
    .quad kernel_l1 - {offset} + {table}
    .fill 511 - {kernel_l0_index}, 8, 0
kernel_l1:
    .fill {kernel_l1_index}, 8, 0
    .quad kernel_l2 - {offset} + {table}
    .fill 511 - {kernel_l1_index}, 8, 0
kernel_l2:
    .fill 512, 8, 0

    .section .text.boot, "ax"
    .global _start
_start:
    mov     x20, x0                         // the device tree, if the loader passed it
    bl      enter_host_mode
    bl      map_image
    bl      enable_mmu
    ldr     x0, =boot_high
    br      x0

    // A further CPU, started through PSCI: x0 is its start block, at its address in the top half.
    .global secondary_start
secondary_start:
    mov     x20, x0
    bl      enter_host_mode
    cbnz    x21, park
    bl      enable_mmu
    ldr     x0, =secondary_high
    br      x0

    // Goes to EL2 with VHE and x21 = 0, or to EL1 with what stood in the way in x21.
enter_host_mode:
    msr     daifset, #0xf
    msr     spsel, #1
    ldr     x1, ={sctlr_off}
    mov     x2, #0x3c5                      // EL1h, all masked
    mrs     x0, currentel
    cmp     x0, #(2 << 2)
    b.eq    2f
    mov     x21, #{not_el2}
    b.lo    3f
    mrs     x0, mpidr_el1                   // no firmware, so all CPUs come here: one is enough to complain
    tst     x0, #0xffffff
    b.ne    park
    mov     x0, #0x431                      // SCR_EL3: RW, RES1, NS
    msr     scr_el3, x0
    msr     cptr_el3, xzr
    mov     x0, #(1 << 31)                  // HCR_EL2: EL1 is AArch64
    msr     hcr_el2, x0
    mov     x0, #0x33ff                     // CPTR_EL2: RES1, no traps
    msr     cptr_el2, x0
    msr     sctlr_el1, x1
    msr     spsr_el3, x2
    msr     elr_el3, x30
    isb
    eret
2:  mrs     x0, id_aa64mmfr1_el1
    ubfx    x0, x0, #8, #4                  // VH
    cbz     x0, 4f
    ldr     x0, ={hcr}
    msr     hcr_el2, x0
    isb
    mov     x21, #0
3:  msr     sctlr_el1, x1
    isb
    ret
4:  mov     x21, #{no_vhe}
    mov     x0, #(1 << 31)                  // as above
    msr     hcr_el2, x0
    mov     x0, #0x33ff
    msr     cptr_el2, x0
    msr     sctlr_el1, x1
    msr     spsr_el2, x2
    msr     elr_el2, x30
    isb
    eret

    // Fills kernel_l2: text executable, read-only data, the rest writable. The caches are off: what they hold of the
    // table is stale, before and after.
map_image:
    mov     x9, x30
    adrp    x0, kernel_l2
    bl      invalidate_page
    adrp    x1, __image_start
    adrp    x2, __text_end
    adrp    x3, __rodata_end
    adrp    x4, __image_end
    and     x1, x1, #~0x1fffff
1:  ldr     x5, ={text}
    cmp     x1, x2
    b.lo    2f
    ldr     x5, ={rodata}
    cmp     x1, x3
    b.lo    2f
    ldr     x5, ={data}
2:  orr     x5, x5, x1
    ubfx    x6, x1, #21, #9
    str     x5, [x0, x6, lsl #3]
    add     x1, x1, #0x200000
    cmp     x1, x4
    b.lo    1b
    bl      invalidate_page
    mov     x30, x9
    ret

    // Drops the page at x0 from the caches, in steps of the smallest line that the architecture allows.
invalidate_page:
    dsb     sy
    mov     x7, x0
    add     x8, x0, #4096
1:  dc      ivac, x7
    add     x7, x7, #16
    cmp     x7, x8
    b.lo    1b
    dsb     sy
    ret

    // Returns with the MMU on and floating point usable, still at the physical address.
enable_mmu:
    ldr     x0, ={cpacr}
    msr     cpacr_el1, x0
    ldr     x0, ={mair}
    msr     mair_el1, x0
    ldr     x0, ={tcr}
    mrs     x1, id_aa64mmfr0_el1
    and     x1, x1, #0xf                    // PARange
    mov     x2, #5                          // 48 bits: more need another descriptor format
    cmp     x1, x2
    csel    x1, x1, x2, lo
    bfi     x0, x1, #32, #3                 // IPS
    msr     tcr_el1, x0
    adrp    x0, identity_l0
    msr     ttbr0_el1, x0
    adrp    x0, kernel_l0
    msr     ttbr1_el1, x0
    isb
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    ldr     x0, ={sctlr}
    msr     sctlr_el1, x0
    isb
    ret

park:
    wfi
    b       park
    .ltorg

    .section .text, "ax"
boot_high:
    ldr     x0, =__boot_stack_top
    mov     sp, x0
    ldr     x0, =__bss_start
    ldr     x1, =__bss_end
1:  cmp     x0, x1
    b.hs    2f
    stp     xzr, xzr, [x0], #16
    b       1b
2:  mov     x29, #0
    mov     x30, #0
    mov     x0, x20
    ldr     x1, =DEFAULT_DEVICE_TREE
    mov     x2, x21
    b       boot_main

secondary_high:
    ldr     x0, [x20]                       // the first word of the start block is its stack
    mov     sp, x0
    mov     x29, #0
    mov     x30, #0
    mov     x0, x20
    b       secondary_main
    .ltorg
    "#,
    offset = const KERNEL_OFFSET,
    table = const Attributes::TABLE,
    identity_l1_index = const IDENTITY_L1_INDEX,
    kernel_l0_index = const KERNEL_L0_INDEX,
    kernel_l1_index = const KERNEL_L1_INDEX,
    not_el2 = const OBSTACLE_NOT_EL2,
    no_vhe = const OBSTACLE_NO_VHE,
    hcr = const HCR_HOST,
    sctlr_off = const SCTLR_RES1,
    sctlr = const SCTLR,
    cpacr = const CPACR_EL1::FPEN::TrapNothing.value,
    mair = const MAIR,
    tcr = const TCR,
    text = const Attributes::TEXT.block(),
    rodata = const Attributes::READ_ONLY.block(),
    data = const Attributes::READ_WRITE.block(),
);

unsafe extern "Rust" {
    /// The kernel's entry, in the kernel crate.
    fn kernel_main(boot: BootInfo) -> !;
}

unsafe extern "C" {
    /// The physical address of this entry is what PSCI starts a CPU at.
    fn secondary_start();
}

/// The physical address at which a further CPU begins.
pub(super) fn secondary_entry() -> PhysAddr {
    PhysAddr::new((secondary_start as *const () as u64).wrapping_sub(KERNEL_OFFSET))
}

/// The first Rust code: on the boot stack in the top half, interrupts masked, nothing but the image mapped.
///
/// `device_tree` is what the loader left in x0, `fallback` the start of RAM, `obstacle` the entry code's verdict.
#[unsafe(no_mangle)]
extern "C" fn boot_main(device_tree: u64, fallback: u64, obstacle: u64) -> ! {
    trap::install();
    paging::drop_identity_map();
    let Some(tree) = device_tree::find(PhysAddr::new(device_tree), PhysAddr::new(fallback)) else {
        // Without a device tree there is no console to complain on and no PSCI to turn to.
        cpu::park()
    };
    let command_line = tree.command_line();
    power::init(command_line);
    psci::init(tree.psci_conduit());
    if let Some(console) = tree.console() {
        console::init(console);
    }
    if let Some(obstacle) = Obstacle::from_entry_code(obstacle) {
        fail(obstacle.message());
    }
    smp::note_boot_cpu();
    let Ok(memory) = paging::map_memory(&tree) else {
        fail("the memory map of the device tree cannot be mapped");
    };
    let boot = BootInfo { memory, firmware: Firmware::DeviceTree(tree.range()), command_line };
    // SAFETY: the kernel crate defines it with this signature; it is called once, on the boot CPU, in the state
    // that the crate's documentation promises.
    unsafe { kernel_main(boot) }
}

fn fail(message: &str) -> ! {
    // The console has no error that could be reported anywhere else.
    let _ = writeln!(console::Writer, "panic: {message}");
    power::exit(power::Outcome::Failure)
}
