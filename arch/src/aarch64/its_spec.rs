//! Registers, tables and commands of the GICv3 ITS and of LPIs (Arm IHI 0069, GIC architecture specification):
//! layouts only.

#![forbid(unsafe_code)]

use bitfield_struct::bitfield;
use portcullis_hal::PhysAddr;

/// Byte offsets in the ITS control frame (IHI 0069, 12.19).
pub(super) mod gits {
    pub(in super::super) const CTLR: usize = 0x0;
    pub(in super::super) const TYPER: usize = 0x8;
    pub(in super::super) const CBASER: usize = 0x80;
    pub(in super::super) const CWRITER: usize = 0x88;
    pub(in super::super) const CREADR: usize = 0x90;
    /// The first of the eight `GITS_BASER`, 8 bytes apart.
    pub(in super::super) const BASER: usize = 0x100;
    pub(in super::super) const BASERS: usize = 8;
    /// Where devices write the event, in the frame after the control frame.
    pub(in super::super) const TRANSLATER: u64 = 0x1_0040;
    /// The control and the translation frame.
    pub(in super::super) const FRAMES: u64 = 0x2_0000;

    /// `GITS_CTLR.Enabled`.
    pub(in super::super) const CTLR_ENABLED: u32 = 1;
    /// `GITS_CTLR.Quiescent`.
    pub(in super::super) const CTLR_QUIESCENT: u32 = 1 << 31;
    /// `GITS_CREADR.Stalled`.
    pub(in super::super) const CREADR_STALLED: u64 = 1;
}

/// Byte offsets in a redistributor's control frame (IHI 0069, 12.11).
pub(super) mod gicr {
    pub(in super::super) const CTLR: usize = 0x0;
    pub(in super::super) const TYPER: usize = 0x8;
    pub(in super::super) const WAKER: usize = 0x14;
    pub(in super::super) const PROPBASER: usize = 0x70;
    pub(in super::super) const PENDBASER: usize = 0x78;

    /// `GICR_CTLR.EnableLPIs`.
    pub(in super::super) const CTLR_ENABLE_LPIS: u32 = 1;
    /// `GICR_CTLR.RWP`.
    pub(in super::super) const CTLR_WRITE_PENDING: u32 = 1 << 3;
    /// `GICR_WAKER.ProcessorSleep`.
    pub(in super::super) const WAKER_PROCESSOR_SLEEP: u32 = 1 << 1;
    /// `GICR_WAKER.ChildrenAsleep`.
    pub(in super::super) const WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;
}

/// Inner write-back cacheable, read- and write-allocate: the value of every `InnerCache` field.
pub(super) const CACHE_WRITE_BACK: u8 = 0b111;
/// Normal non-cacheable.
pub(super) const CACHE_NONE: u8 = 0b001;
/// Inner shareable: the value of every `Shareability` field.
pub(super) const INNER_SHAREABLE: u8 = 0b01;
/// Non-shareable; what a GIC that does not snoop reads back.
pub(super) const NON_SHAREABLE: u8 = 0b00;

/// `GITS_TYPER` (IHI 0069, 12.19): what the ITS supports.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(super) struct ItsType {
    /// Bit 0: physical LPIs.
    pub(super) physical: bool,
    #[bits(3)]
    __: u8,
    /// Bits 7:4: bytes per entry of an interrupt translation table, minus one.
    #[bits(4)]
    pub(super) itt_entry_size: u8,
    /// Bits 12:8: bits of an event id, minus one.
    #[bits(5)]
    pub(super) id_bits: u8,
    /// Bits 17:13: bits of a device id, minus one.
    #[bits(5)]
    pub(super) device_bits: u8,
    /// Bit 18: SError reporting.
    pub(super) seis: bool,
    /// Bit 19: redistributors are named by address, not by number.
    pub(super) physical_target_addresses: bool,
    #[bits(4)]
    __: u8,
    /// Bits 31:24: collections held in hardware.
    pub(super) hardware_collections: u8,
    #[bits(32)]
    __: u32,
}

/// Types of the tables behind `GITS_BASER`.
pub(super) const TABLE_DEVICES: u8 = 1;
pub(super) const TABLE_COLLECTIONS: u8 = 4;

/// `GITS_BASER<n>` (IHI 0069, 12.19): a table of the ITS.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(super) struct TableBase {
    /// Bits 7:0: the number of pages, minus one.
    pub(super) pages: u8,
    /// Bits 9:8: 4, 16 or 64 KiB.
    #[bits(2)]
    pub(super) page_size: u8,
    /// Bits 11:10.
    #[bits(2)]
    pub(super) shareability: u8,
    /// Bits 47:12: the address, in 4 KiB.
    #[bits(36)]
    pub(super) address: u64,
    /// Bits 52:48: bytes per entry, minus one; read-only.
    #[bits(5)]
    pub(super) entry_size: u8,
    /// Bits 55:53: 0 means the same as the inner cacheability.
    #[bits(3)]
    pub(super) outer_cache: u8,
    /// Bits 58:56: what the table holds; read-only.
    #[bits(3)]
    pub(super) kind: u8,
    /// Bits 61:59.
    #[bits(3)]
    pub(super) inner_cache: u8,
    /// Bit 62: two levels.
    pub(super) indirect: bool,
    /// Bit 63.
    pub(super) valid: bool,
}

/// `GITS_CBASER` (IHI 0069, 12.19): the command queue.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(super) struct CommandBase {
    /// Bits 7:0: the number of 4 KiB pages, minus one.
    pub(super) pages: u8,
    #[bits(2)]
    __: u8,
    /// Bits 11:10.
    #[bits(2)]
    pub(super) shareability: u8,
    /// Bits 51:12: the address, in 4 KiB; aligned to 64 KiB.
    #[bits(40)]
    pub(super) address: u64,
    __: bool,
    /// Bits 55:53.
    #[bits(3)]
    pub(super) outer_cache: u8,
    #[bits(3)]
    __: u8,
    /// Bits 61:59.
    #[bits(3)]
    pub(super) inner_cache: u8,
    __: bool,
    /// Bit 63.
    pub(super) valid: bool,
}

/// `GICR_TYPER` (IHI 0069, 12.11): what a redistributor supports and whose it is.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(super) struct RedistributorType {
    /// Bit 0: physical LPIs.
    pub(super) physical_lpis: bool,
    /// Bit 1: virtual LPIs, which take two more frames.
    pub(super) virtual_lpis: bool,
    #[bits(2)]
    __: u8,
    /// Bit 4: the last one of its region.
    pub(super) last: bool,
    #[bits(3)]
    __: u8,
    /// Bits 23:8: the number by which an ITS may name it.
    pub(super) processor_number: u16,
    __: u8,
    /// Bits 63:32: Aff3, Aff2, Aff1, Aff0 of its CPU.
    pub(super) affinity: u32,
}

/// `GICR_PROPBASER` (IHI 0069, 12.11): the configuration table of LPIs.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(super) struct PropertiesBase {
    /// Bits 4:0: bits of an LPI's number, minus one.
    #[bits(5)]
    pub(super) id_bits: u8,
    #[bits(2)]
    __: u8,
    /// Bits 9:7.
    #[bits(3)]
    pub(super) inner_cache: u8,
    /// Bits 11:10.
    #[bits(2)]
    pub(super) shareability: u8,
    /// Bits 51:12: the address, in 4 KiB.
    #[bits(40)]
    pub(super) address: u64,
    #[bits(4)]
    __: u8,
    /// Bits 58:56.
    #[bits(3)]
    pub(super) outer_cache: u8,
    #[bits(5)]
    __: u8,
}

/// `GICR_PENDBASER` (IHI 0069, 12.11): a CPU's table of pending LPIs.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(super) struct PendingBase {
    #[bits(7)]
    __: u8,
    /// Bits 9:7.
    #[bits(3)]
    pub(super) inner_cache: u8,
    /// Bits 11:10.
    #[bits(2)]
    pub(super) shareability: u8,
    #[bits(4)]
    __: u8,
    /// Bits 51:16: the address, in 64 KiB.
    #[bits(36)]
    pub(super) address: u64,
    #[bits(4)]
    __: u8,
    /// Bits 58:56.
    #[bits(3)]
    pub(super) outer_cache: u8,
    #[bits(3)]
    __: u8,
    /// Bit 62: the table is all zeros.
    pub(super) zero: bool,
    __: bool,
}

/// The number of the first LPI.
pub(super) const FIRST_LPI: u32 = 8192;

/// An LPI's byte in the configuration table (IHI 0069, 5.1.1): priority in bits 7:2, bit 1 reads as one, bit 0
/// enables.
pub(super) const fn lpi_configuration(priority: u8) -> u8 {
    priority & 0xfc | 0b11
}

/// A redistributor as the `RDbase` field of a command names it, at its place in the command's third word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target(u64);

impl Target {
    /// By number, where `GITS_TYPER.PTA` is 0.
    pub(super) const fn number(processor: u16) -> Self {
        Self((processor as u64) << 16)
    }

    /// By address, where it is 1: bits 51:16 of the address become bits 51:16 of the word.
    pub(super) const fn address(base: PhysAddr) -> Self {
        Self(base.get() & 0x000f_ffff_ffff_0000)
    }
}

/// A command of the ITS (IHI 0069, 5.3): four words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command(pub(super) [u64; 4]);

const VALID: u64 = 1 << 63;

impl Command {
    /// The size in the queue, in bytes.
    pub(super) const SIZE: u64 = 32;

    /// Gives a device its interrupt translation table for `2^event_bits` events.
    pub(super) const fn map_device(device: u32, event_bits: u8, table: PhysAddr) -> Self {
        let size = event_bits.saturating_sub(1) as u64 & 0x1f;
        Self([0x08 | (device as u64) << 32, size, VALID | table.get() & 0x000f_ffff_ffff_ff00, 0])
    }

    /// Sends the interrupts of a collection to a redistributor.
    pub(super) const fn map_collection(collection: u16, target: Target) -> Self {
        Self([0x09, 0, VALID | target.0 | collection as u64, 0])
    }

    /// Makes an event of a device the LPI with this number, in a collection.
    pub(super) const fn map_event(device: u32, event: u32, lpi: u32, collection: u16) -> Self {
        Self([0x0a | (device as u64) << 32, event as u64 | (lpi as u64) << 32, collection as u64, 0])
    }

    /// Makes the redistributor read an event's configuration again.
    pub(super) const fn invalidate(device: u32, event: u32) -> Self {
        Self([0x0c | (device as u64) << 32, event as u64, 0, 0])
    }

    /// Makes the redistributor read the configuration of all of a collection's LPIs again.
    pub(super) const fn invalidate_all(collection: u16) -> Self {
        Self([0x0d, 0, collection as u64, 0])
    }

    /// Completes when all earlier commands have reached the redistributor.
    pub(super) const fn sync(target: Target) -> Self {
        Self([0x05, 0, target.0, 0])
    }
}

/// Golden words, put together by hand from the tables of IHI 0069.
const _: () = {
    const fn is(command: Command, words: [u64; 4]) -> bool {
        let Command([a, b, c, d]) = command;
        a == words[0] && b == words[1] && c == words[2] && d == words[3]
    }
    let table = PhysAddr::new(0x4567_8900);
    assert!(is(Command::map_device(0x120, 5, table), [0x0000_0120_0000_0008, 4, 0x8000_0000_4567_8900, 0]));
    let target = Target::number(1);
    assert!(is(Command::map_collection(1, target), [0x09, 0, 0x8000_0000_0001_0001, 0]));
    assert!(is(Command::map_event(0x120, 3, 8195, 1), [0x0000_0120_0000_000a, 0x0000_2003_0000_0003, 1, 0]));
    assert!(is(Command::invalidate(0x120, 3), [0x0000_0120_0000_000c, 3, 0, 0]));
    assert!(is(Command::invalidate_all(1), [0x0d, 0, 1, 0]));
    assert!(is(Command::sync(Target::address(PhysAddr::new(0x080a_0000))), [0x05, 0, 0x080a_0000, 0]));

    let base = TableBase::new()
        .with_valid(true)
        .with_inner_cache(CACHE_WRITE_BACK)
        .with_shareability(INNER_SHAREABLE)
        .with_address(0x4020_0000 >> 12)
        .with_page_size(2)
        .with_pages(7);
    assert!(base.into_bits() == 0xb800_0000_4020_0607);
    let base = CommandBase::new()
        .with_valid(true)
        .with_inner_cache(CACHE_WRITE_BACK)
        .with_shareability(INNER_SHAREABLE)
        .with_address(0x4020_0000 >> 12)
        .with_pages(15);
    assert!(base.into_bits() == 0xb800_0000_4020_040f);
    let base = PropertiesBase::new()
        .with_id_bits(13)
        .with_inner_cache(CACHE_WRITE_BACK)
        .with_shareability(INNER_SHAREABLE)
        .with_address(0x4020_0000 >> 12);
    assert!(base.into_bits() == 0x4020_078d);
    let base = PendingBase::new()
        .with_inner_cache(CACHE_WRITE_BACK)
        .with_shareability(INNER_SHAREABLE)
        .with_address(0x4021_0000 >> 16)
        .with_zero(true);
    assert!(base.into_bits() == 0x4000_0000_4021_0780);
    let kind = ItsType::from_bits(0x0001_e0f1);
    assert!(
        kind.physical() && kind.itt_entry_size() == 15 && kind.device_bits() == 15 && kind.id_bits() == 0
    );
    let redistributor = RedistributorType::from_bits(0x0102_0304_0000_0111);
    assert!(redistributor.physical_lpis() && redistributor.last() && redistributor.processor_number() == 1);
    assert!(redistributor.affinity() == 0x0102_0304 && !redistributor.virtual_lpis());
    assert!(lpi_configuration(0x80) == 0x83);
};
