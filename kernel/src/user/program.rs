//! The programs: position-independent code of a few lines, copied into user pages.

#![expect(unsafe_code, reason = "programs are code between two symbols of the image")]

use core::arch::global_asm;

/// A call: the thread ends, with the first argument as its result.
pub(super) const EXIT: u64 = 0;
/// A call: the thread gives the result of its last order and wants the next one.
pub(super) const NEXT: u64 = 1;

/// What [`Program::Servant`] does on order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Reads the word at an address; that is the result.
    Load(u64),
    /// Writes a word.
    Store(u64, u64),
    /// Calls code at an address.
    Jump(u64),
    /// Reads a word again and again, and after each time writes what it read to the page `report`, and to the word after it
    /// how often it did. Only a fault ends it.
    Watch {
        /// What it reads.
        address: u64,
        /// Where it reports.
        report: u64,
    },
    /// Writes ascending numbers to a word, and after each time the same number to the page `report`. Only a fault ends it.
    Count {
        /// Where it writes.
        address: u64,
        /// Where it reports.
        report: u64,
    },
    /// Does what only the kernel may: on x86 `hlt`, on Arm a read of a system register.
    Trespass,
    /// Ends with a result.
    Exit(u64),
}

impl Order {
    /// The order's number and its two operands, as the programs read them.
    pub(super) fn encode(self) -> [u64; 3] {
        match self {
            Self::Load(address) => [0, address, 0],
            Self::Store(address, value) => [1, address, value],
            Self::Jump(address) => [2, address, 0],
            Self::Watch { address, report } => [3, address, report],
            Self::Count { address, report } => [4, address, report],
            Self::Trespass => [5, 0, 0],
            Self::Exit(result) => [6, 0, result],
        }
    }
}

/// A program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// Executes [`Order`]s.
    Servant,
    /// Writes the square of each number below 64 to a page of its own, from the address that it is given on, reads them
    /// back in descending order by way of its stack, and exits with the sum.
    Squares,
}

#[cfg(target_arch = "x86_64")]
global_asm!(
    r#"
    .section .rodata.user, "a"
    .balign 16
    .global servant_start, servant_end, squares_start, squares_end
servant_start:
    xorl %edi, %edi
1:  movl ${next}, %eax
    int ${call}
    cmpl $1, %eax
    jb 2f
    je 3f
    cmpl $3, %eax
    jb 4f
    je 5f
    cmpl $5, %eax
    jb 6f
    je 7f
    movq %rsi, %rdi
    movl ${exit}, %eax
    int ${call}
2:  movq (%rdi), %rdi
    jmp 1b
3:  movq %rsi, (%rdi)
    xorl %edi, %edi
    jmp 1b
4:  call *%rdi
    movq %rax, %rdi
    jmp 1b
5:  xorl %ecx, %ecx
8:  movq (%rdi), %rax
    movq %rax, (%rsi)
    incq %rcx
    movq %rcx, 8(%rsi)
    jmp 8b
6:  xorl %ecx, %ecx
9:  incq %rcx
    movq %rcx, (%rdi)
    movq %rcx, (%rsi)
    jmp 9b
7:  hlt
    jmp 1b
servant_end:

    .balign 16
squares_start:
    xorl %ecx, %ecx
1:  movl %ecx, %eax
    imull %eax, %eax
    movl %ecx, %edx
    shll $12, %edx
    movq %rax, (%rdi, %rdx)
    pushq (%rdi, %rdx)
    incl %ecx
    cmpl $64, %ecx
    jb 1b
    xorl %edi, %edi
2:  popq %rax
    addq %rax, %rdi
    decl %ecx
    jnz 2b
    movl ${exit}, %eax
    int ${call}
squares_end:
    "#,
    next = const NEXT,
    exit = const EXIT,
    call = const portcullis_arch::user::CALL_VECTOR,
    options(att_syntax)
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    r#"
    .section .rodata.user, "a"
    .balign 16
    .global servant_start, servant_end, squares_start, squares_end
servant_start:
    mov     x0, #0
1:  mov     x8, #{next}
    svc     #0
    cmp     x0, #1
    b.lo    2f
    b.eq    3f
    cmp     x0, #3
    b.lo    4f
    b.eq    5f
    cmp     x0, #5
    b.lo    6f
    b.eq    7f
    mov     x0, x2
    mov     x8, #{exit}
    svc     #0
2:  ldr     x0, [x1]
    b       1b
3:  str     x2, [x1]
    mov     x0, #0
    b       1b
4:  blr     x1
    b       1b
5:  mov     x3, #0
8:  ldr     x4, [x1]
    str     x4, [x2]
    add     x3, x3, #1
    str     x3, [x2, #8]
    b       8b
6:  mov     x3, #0
9:  add     x3, x3, #1
    str     x3, [x1]
    str     x3, [x2]
    b       9b
7:  mrs     x0, sctlr_el1
    b       1b
servant_end:

    .balign 16
squares_start:
    mov     x1, #0
1:  mul     x2, x1, x1
    str     x2, [x0, x1, lsl #3]
    ldr     x2, [x0, x1, lsl #3]
    str     x2, [sp, #-16]!
    add     x0, x0, #4088
    add     x1, x1, #1
    cmp     x1, #64
    b.lo    1b
    mov     x0, #0
2:  ldr     x2, [sp], #16
    add     x0, x0, x2
    subs    x1, x1, #1
    b.ne    2b
    mov     x8, #{exit}
    svc     #0
squares_end:
    "#,
    next = const NEXT,
    exit = const EXIT,
);

unsafe extern "C" {
    static servant_start: u8;
    static servant_end: u8;
    static squares_start: u8;
    static squares_end: u8;
}

impl Program {
    /// The sum that [`Squares`](Self::Squares) exits with.
    pub(crate) const SUM: u64 = 63 * 64 * 127 / 6;
    /// The pages that it writes to.
    pub(crate) const PAGES: u64 = 64;

    /// The code.
    pub(crate) fn code(self) -> &'static [u8] {
        let (start, end) = match self {
            Self::Servant => (&raw const servant_start, &raw const servant_end),
            Self::Squares => (&raw const squares_start, &raw const squares_end),
        };
        // SAFETY: constants of the image between two of its symbols.
        unsafe { core::slice::from_raw_parts(start, end.addr().saturating_sub(start.addr())) }
    }
}
