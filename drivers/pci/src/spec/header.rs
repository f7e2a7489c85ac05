//! The configuration header (sections 7.5.1.1 to 7.5.1.3).

use bitfield_struct::bitfield;

/// Offsets of the words of the header.
pub mod offset {
    /// Vendor ID 15:0, device ID 31:16.
    pub const ID: u16 = 0x00;
    /// Command 15:0, status 31:16 (write-1-to-clear bits: write zeros).
    pub const COMMAND: u16 = 0x04;
    /// Revision and class code.
    pub const CLASS: u16 = 0x08;
    /// Header type in 23:16.
    pub const HEADER: u16 = 0x0c;
    /// The first base address register.
    pub const BAR0: u16 = 0x10;
    /// Type 1: primary, secondary and subordinate bus number.
    pub const BUS_NUMBERS: u16 = 0x18;
    /// Type 1: I/O base 7:0, I/O limit 15:8, secondary status 31:16 (write-1-to-clear).
    pub const IO_WINDOW: u16 = 0x1c;
    /// Type 1: memory base and limit.
    pub const MEMORY_WINDOW: u16 = 0x20;
    /// Type 1: prefetchable memory base and limit.
    pub const PREFETCHABLE_WINDOW: u16 = 0x24;
    /// Type 1: bits 63:32 of the prefetchable base.
    pub const PREFETCHABLE_BASE_UPPER: u16 = 0x28;
    /// Type 1: bits 63:32 of the prefetchable limit.
    pub const PREFETCHABLE_LIMIT_UPPER: u16 = 0x2c;
    /// Type 1: I/O base and limit, bits 31:16.
    pub const IO_UPPER: u16 = 0x30;
    /// The pointer to the first capability, in 7:0.
    pub const CAPABILITIES: u16 = 0x34;
    /// The first capability that a pointer may name.
    pub const FIRST_CAPABILITY: u16 = 0x40;
    /// The first extended capability.
    pub const EXTENDED: u16 = 0x100;
    /// The end of a function's configuration space.
    pub const END: u16 = 0x1000;
}

/// Revision and class code (offset 08h).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ClassRegister {
    /// Bits 7:0: revision.
    pub revision: u8,
    /// Bits 15:8: programming interface.
    pub interface: u8,
    /// Bits 23:16: sub-class.
    pub sub_class: u8,
    /// Bits 31:24: base class.
    pub base_class: u8,
}

/// Cache line, latency, header type and BIST (offset 0Ch).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct HeaderRegister {
    /// Bits 7:0: cache line size.
    pub cache_line: u8,
    /// Bits 15:8: latency timer.
    pub latency: u8,
    /// Bits 22:16: header layout: 0 endpoint, 1 bridge, 2 CardBus bridge.
    #[bits(7)]
    pub layout: u8,
    /// Bit 23: the device has more than one function.
    pub multi_function: bool,
    /// Bits 31:24: built-in self test.
    pub bist: u8,
}

/// The bus numbers of a bridge (offset 18h).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct BusNumbers {
    /// Bits 7:0: the bus the bridge is on.
    pub primary: u8,
    /// Bits 15:8: the bus right behind it; 0 if nobody configured the bridge.
    pub secondary: u8,
    /// Bits 23:16: the highest bus behind it.
    pub subordinate: u8,
    /// Bits 31:24: secondary latency timer.
    pub latency: u8,
}

/// A memory window of a bridge (offsets 20h and 24h): address bits 31:20 of base and limit.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct MemoryWindow {
    /// Bits 3:0: 1 if a prefetchable window has upper halves, else 0.
    #[bits(4)]
    pub base_type: u8,
    /// Bits 15:4: bits 31:20 of the first address.
    #[bits(12)]
    pub base: u16,
    /// Bits 19:16: as `base_type`.
    #[bits(4)]
    pub limit_type: u8,
    /// Bits 31:20: bits 31:20 of the last address; the bits below are ones.
    #[bits(12)]
    pub limit: u16,
}

/// A memory window with its base above its limit: it forwards nothing.
pub const CLOSED_WINDOW: MemoryWindow = MemoryWindow::new().with_base(0xfff);

/// An I/O window (word at 1Ch) with its base above its limit; the status half is left alone.
pub const CLOSED_IO: u32 = 0x0000_00f0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_words() {
        // 8086:244e, 06.04.01 revision 0x92.
        let class = ClassRegister::from_bits(0x0604_0192);
        assert_eq!(
            (class.base_class(), class.sub_class(), class.interface(), class.revision()),
            (6, 4, 1, 0x92)
        );
        let header = HeaderRegister::from_bits(0x0081_0010);
        assert_eq!((header.layout(), header.multi_function()), (1, true));
        let buses = BusNumbers::from_bits(0x0004_0201);
        assert_eq!((buses.primary(), buses.secondary(), buses.subordinate()), (1, 2, 4));
        // Base 0xfe80_0000, limit 0xfe9f_ffff.
        let window = MemoryWindow::new().with_base(0xfe8).with_limit(0xfe9);
        assert_eq!(window.into_bits(), 0xfe90_fe80);
        assert_eq!(CLOSED_WINDOW.into_bits(), 0x0000_fff0);
    }
}
