//! VMSAv8-64 descriptors (Arm ARM, section D8.3), 48-bit output addresses.
//!
//! Where the output addresses have 52 bits, some of them take the place of other fields: see [`HIGH_ADDRESS_64K`] and
//! [`HIGH_ADDRESS_LPA2`].

use bitfield_struct::bitfield;

/// A stage-1 block or page descriptor (D8.3.1.1, attributes D8.3.1.2).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Stage1Leaf {
    /// Bit 0: valid.
    pub valid: bool,
    /// Bit 1: set in a page descriptor (level 3), clear in a block descriptor.
    pub page: bool,
    /// Bits 4:2: AttrIndx, the byte of MAIR that describes the memory.
    #[bits(3)]
    pub attr_index: u8,
    /// Bit 5: NS; only used from Secure state.
    pub ns: bool,
    /// Bit 6: AP\[1\], unprivileged accesses are permitted.
    pub unprivileged: bool,
    /// Bit 7: AP\[2\], read-only.
    pub read_only: bool,
    /// Bits 9:8: SH.
    #[bits(2)]
    pub sh: u8,
    /// Bit 10: AF, the access flag.
    pub accessed: bool,
    /// Bit 11: nG, the translation belongs to one ASID.
    pub not_global: bool,
    /// Bits 47:12: output address.
    #[bits(36)]
    pub address: u64,
    #[bits(3)]
    __: u8,
    /// Bit 51: DBM, dirty-bit modifier.
    pub dbm: bool,
    /// Bit 52: contiguous hint.
    pub contiguous: bool,
    /// Bit 53: PXN, no privileged execution.
    pub pxn: bool,
    /// Bit 54: UXN, no unprivileged execution.
    pub uxn: bool,
    #[bits(9)]
    __: u16,
}

/// A stage-2 block or page descriptor (D8.3.1.1, attributes D8.3.1.2), without forced write-back.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Stage2Leaf {
    /// Bit 0: valid.
    pub valid: bool,
    /// Bit 1: set in a page descriptor (level 3), clear in a block descriptor.
    pub page: bool,
    /// Bits 5:2: MemAttr.
    #[bits(4)]
    pub mem_attr: u8,
    /// Bit 6: S2AP\[0\], reads are permitted.
    pub read: bool,
    /// Bit 7: S2AP\[1\], writes are permitted.
    pub write: bool,
    /// Bits 9:8: SH.
    #[bits(2)]
    pub sh: u8,
    /// Bit 10: AF, the access flag.
    pub accessed: bool,
    __: bool,
    /// Bits 47:12: output address.
    #[bits(36)]
    pub address: u64,
    #[bits(3)]
    __: u8,
    /// Bit 51: DBM, dirty-bit modifier.
    pub dbm: bool,
    /// Bit 52: contiguous hint.
    pub contiguous: bool,
    /// Bits 54:53: XN; see [`s2_xn`].
    #[bits(2)]
    pub xn: u8,
    #[bits(9)]
    __: u16,
}

/// A table descriptor of either stage (D8.3.1.1). Bits 58:52 and 11:2 are ignored by hardware; the walker keeps
/// its own notes there. FEAT_LPA2 gives bits 9:8 a meaning, where the walker keeps none then, and FEAT_HAFT bit 10,
/// which the walker does not go with.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Table {
    /// Bit 0: valid.
    pub valid: bool,
    /// Bit 1: set in a table descriptor.
    pub table: bool,
    /// Bits 11:2, ignored by hardware: bits 9:0 of the leaf count.
    #[bits(10)]
    pub leaves_low: u64,
    /// Bits 47:12: address of the next-level table.
    #[bits(36)]
    pub address: u64,
    #[bits(4)]
    __: u8,
    /// Bits 57:52, ignored by hardware: bits 15:10 of the leaf count.
    #[bits(6)]
    pub leaves_high: u64,
    /// Bit 58, ignored by hardware: the descriptor has been cleaned to memory.
    pub cleaned: bool,
    #[bits(5)]
    __: u8,
}

/// Bits 15:12 of leaf and table descriptors with the 64 KiB granule: bits 51:48 of the address (FEAT_LPA).
pub const HIGH_ADDRESS_64K: u64 = 0xf << 12;

/// Bits 9:8 of leaf and table descriptors with the 4 and 16 KiB granule where FEAT_LPA2 is in use: bits 51:50 of the
/// address, whose bits 49:48 are in their place. Leaves have no SH then.
pub const HIGH_ADDRESS_LPA2: u64 = 0b11 << 8;

/// Bit 16 of a block descriptor: nT (FEAT_BBM).
pub const BLOCK_NT: u64 = 1 << 16;

/// SH: inner shareable.
pub const SH_INNER: u8 = 0b11;

/// Stage-2 MemAttr\[3:0\] (D8.6.6).
pub mod mem_attr {
    /// Device-nGnRE.
    pub const DEVICE_NGNRE: u8 = 0b0001;
    /// Normal, outer and inner non-cacheable.
    pub const NON_CACHEABLE: u8 = 0b0101;
    /// Normal, outer and inner write-back cacheable.
    pub const WRITE_BACK: u8 = 0b1111;
}

/// Stage-2 XN\[1:0\]; the values mean the same with and without FEAT_XNX.
pub mod s2_xn {
    /// Execution is permitted.
    pub const EXECUTABLE: u8 = 0b00;
    /// No execution at any level.
    pub const NEVER: u8 = 0b10;
}

const _: () = {
    assert!(Stage1Leaf::ATTR_INDEX_OFFSET == 2 && Stage1Leaf::UNPRIVILEGED_OFFSET == 6);
    assert!(Stage1Leaf::READ_ONLY_OFFSET == 7 && Stage1Leaf::SH_OFFSET == 8);
    assert!(Stage1Leaf::ACCESSED_OFFSET == 10 && Stage1Leaf::NOT_GLOBAL_OFFSET == 11);
    assert!(Stage1Leaf::ADDRESS_OFFSET == 12 && Stage1Leaf::DBM_OFFSET == 51);
    assert!(Stage1Leaf::PXN_OFFSET == 53 && Stage1Leaf::UXN_OFFSET == 54);
    assert!(
        Stage2Leaf::MEM_ATTR_OFFSET == 2 && Stage2Leaf::READ_OFFSET == 6 && Stage2Leaf::WRITE_OFFSET == 7
    );
    assert!(Stage2Leaf::SH_OFFSET == 8 && Stage2Leaf::ACCESSED_OFFSET == 10);
    assert!(Stage2Leaf::ADDRESS_OFFSET == 12 && Stage2Leaf::DBM_OFFSET == 51 && Stage2Leaf::XN_OFFSET == 53);
    assert!(Table::LEAVES_LOW_OFFSET == 2 && Table::ADDRESS_OFFSET == 12);
    assert!(Stage1Leaf::SH_OFFSET == Stage2Leaf::SH_OFFSET);
    assert!(Stage1Leaf::CONTIGUOUS_OFFSET == 52 && Stage2Leaf::CONTIGUOUS_OFFSET == 52);
    assert!(Table::LEAVES_HIGH_OFFSET == 52 && Table::CLEANED_OFFSET == 58);
};
