//! VT-d second-stage paging entries (VT-d specification, section 9.9).

use bitfield_struct::bitfield;

/// An entry that maps a page: an SS-PTE, or an SS-PDE or SS-PDPE with PS set.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Leaf {
    /// Bit 0: R, reads are permitted.
    pub read: bool,
    /// Bit 1: W, writes are permitted.
    pub write: bool,
    /// Bit 2: X, execution is permitted; ignored where execute requests do not exist.
    pub execute: bool,
    /// Bits 5:3: EMT, the memory type; only used for nested translation with EMTE.
    #[bits(3)]
    pub emt: u8,
    /// Bit 6: IPAT, ignore PAT; only used as EMT is.
    pub ignore_pat: bool,
    /// Bit 7: PS, set in an SS-PDE or SS-PDPE that maps a page.
    pub page_size: bool,
    /// Bit 8: A, accessed.
    pub accessed: bool,
    /// Bit 9: D, dirty.
    pub dirty: bool,
    __: bool,
    /// Bit 11: SNP, snoop behaviour.
    pub snoop: bool,
    /// Bits 51:12: host physical address.
    #[bits(40)]
    pub address: u64,
    #[bits(12)]
    __: u16,
}

/// An entry that references a table. Bits 61:52 and 10:9 are ignored by hardware; the walker keeps its own notes
/// there. Bit 11 and bit 62 are left clear: some implementations take them for reserved.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Table {
    /// Bit 0: R, reads are permitted below.
    pub read: bool,
    /// Bit 1: W, writes are permitted below.
    pub write: bool,
    /// Bit 2: X, execution is permitted below.
    pub execute: bool,
    #[bits(4)]
    __: u8,
    /// Bit 7: PS, clear.
    pub page_size: bool,
    /// Bit 8: A, accessed.
    pub accessed: bool,
    __: bool,
    /// Bit 10, ignored by hardware: the entry has been cleaned to memory.
    pub cleaned: bool,
    __: bool,
    /// Bits 51:12: host physical address of the table.
    #[bits(40)]
    pub address: u64,
    /// Bits 61:52, ignored by hardware: the leaf count.
    #[bits(10)]
    pub leaves: u64,
    #[bits(2)]
    __: u8,
}

const _: () = {
    assert!(Leaf::READ_OFFSET == 0 && Leaf::WRITE_OFFSET == 1 && Leaf::EMT_OFFSET == 3);
    assert!(Leaf::PAGE_SIZE_OFFSET == 7 && Leaf::ACCESSED_OFFSET == 8 && Leaf::DIRTY_OFFSET == 9);
    assert!(Leaf::SNOOP_OFFSET == 11 && Leaf::ADDRESS_OFFSET == 12);
    assert!(Table::PAGE_SIZE_OFFSET == 7 && Table::CLEANED_OFFSET == 10);
    assert!(Table::ADDRESS_OFFSET == 12 && Table::LEAVES_OFFSET == 52);
};
