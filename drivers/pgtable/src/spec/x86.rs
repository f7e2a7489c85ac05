//! x86-64 paging-structure entries (Intel SDM volume 3, section 5.5, tables 5-15 to 5-20), which are also those
//! of VT-d's first stage (VT-d specification, section 9.8).

use bitfield_struct::bitfield;

/// An entry that maps a page: a PTE, or a PDE or PDPTE with PS set.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Leaf {
    /// Bit 0: P, present.
    pub present: bool,
    /// Bit 1: R/W, writes are permitted.
    pub write: bool,
    /// Bit 2: U/S, user accesses are permitted. A device's requests without privilege are user accesses.
    pub user: bool,
    /// Bit 3: PWT, low bit of the PAT index.
    pub pwt: bool,
    /// Bit 4: PCD, middle bit of the PAT index.
    pub pcd: bool,
    /// Bit 5: A, accessed.
    pub accessed: bool,
    /// Bit 6: D, dirty.
    pub dirty: bool,
    /// Bit 7: PS, set in a PDE or PDPTE that maps a page. In a PTE the bit is the high bit of the PAT index.
    pub page_size: bool,
    /// Bit 8: G, global.
    pub global: bool,
    #[bits(3)]
    __: u8,
    /// Bits 51:12: physical address. In a large page's entry bit 12 is the high bit of the PAT index.
    #[bits(40)]
    pub address: u64,
    #[bits(11)]
    __: u16,
    /// Bit 63: XD, execution is not permitted.
    pub execute_disable: bool,
}

/// An entry that references a table. Bits 62:52 and 11:8 are ignored by hardware but for VT-d's bit 10
/// (extended accessed); the walker keeps its own notes in some of them.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Table {
    /// Bit 0: P, present.
    pub present: bool,
    /// Bit 1: R/W, writes are permitted below.
    pub write: bool,
    /// Bit 2: U/S, user accesses are permitted below.
    pub user: bool,
    /// Bit 3: PWT, for accesses to the table.
    pub pwt: bool,
    /// Bit 4: PCD, for accesses to the table.
    pub pcd: bool,
    /// Bit 5: A, accessed.
    pub accessed: bool,
    __: bool,
    /// Bit 7: PS, clear.
    pub page_size: bool,
    __: bool,
    /// Bit 9, ignored by hardware: the entry has been cleaned to memory.
    pub cleaned: bool,
    #[bits(2)]
    __: u8,
    /// Bits 51:12: physical address of the table.
    #[bits(40)]
    pub address: u64,
    /// Bits 61:52, ignored by hardware: the leaf count.
    #[bits(10)]
    pub leaves: u64,
    __: bool,
    /// Bit 63: XD, execution is not permitted below.
    pub execute_disable: bool,
}

const _: () = {
    assert!(Leaf::WRITE_OFFSET == 1 && Leaf::USER_OFFSET == 2 && Leaf::PCD_OFFSET == 4);
    assert!(Leaf::ACCESSED_OFFSET == 5 && Leaf::DIRTY_OFFSET == 6 && Leaf::PAGE_SIZE_OFFSET == 7);
    assert!(Leaf::ADDRESS_OFFSET == 12 && Leaf::EXECUTE_DISABLE_OFFSET == 63);
    assert!(Table::USER_OFFSET == 2 && Table::ACCESSED_OFFSET == 5 && Table::PAGE_SIZE_OFFSET == 7);
    assert!(Table::CLEANED_OFFSET == 9 && Table::ADDRESS_OFFSET == 12 && Table::LEAVES_OFFSET == 52);
};
