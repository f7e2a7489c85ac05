//! Commands, built from the fields of [`spec::cmd`](crate::spec::cmd).

use crate::atc::{Block, Cached};
use crate::spec::Shareability;
use crate::spec::cmd::{
    Atc0, Atc1, COMMAND_WORDS, Cfgi0, Cfgi1, CommandGranule, CompletionSignal, Opcode, PriResp0, PriResp1,
    Resume0, Resume1, Sync0, Sync1, Tlbi0, Tlbi1,
};
pub(crate) use crate::spec::cmd::{PageAction, StallAction};
use core::fmt;
use portcullis_hal::{Asid, Granule, Pasid, PhysAddr, StreamId, Vmid};
use portcullis_iommu::Stage;

/// A command as it stands in a slot of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command(pub [u64; COMMAND_WORDS]);

/// Which of the entries on the way to a translation a TLB invalidation concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Leaf entries: no table was cut off.
    Leaf,
    /// Leaf entries and the table entries above them.
    Walk,
}

/// The address-space tag of TLB entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Stage 1, NS-EL1, under VMID 0.
    Asid(Asid),
    /// Stage 2.
    Vmid(Vmid),
}

impl Tag {
    /// The tag where the first word of a TLB invalidation has it, in bits 63:32.
    pub fn bits(self) -> u64 {
        const ASID: u64 = Tlbi0::new().with_asid(1).into_bits();
        const VMID: u64 = Tlbi0::new().with_vmid(1).into_bits();
        match self {
            Self::Asid(asid) => field(asid.get(), ASID),
            Self::Vmid(vmid) => field(vmid.get(), VMID),
        }
    }

    /// The tag of a stage that has these bits.
    pub(crate) fn from_bits(stage: Stage, bits: u64) -> Self {
        let word = Tlbi0::from(bits);
        match stage {
            Stage::Stage1 => Self::Asid(Asid::new(word.asid())),
            Stage::Stage2 => Self::Vmid(Vmid::new(word.vmid())),
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asid(asid) => write!(f, "ASID {asid}"),
            Self::Vmid(vmid) => write!(f, "VMID {vmid}"),
        }
    }
}

/// Addresses to invalidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// The entry that translates this address.
    Address(u64),
    /// `(num + 1) << scale` granules from `start`: needs IDR3.RIL.
    Granules {
        /// The first address.
        start: u64,
        /// The granule of the tables.
        granule: Granule,
        /// NUM, 0 to 31.
        num: u8,
        /// SCALE, 0 to 31.
        scale: u8,
        /// The level of all leaf entries there, if it is known.
        level: Option<Level>,
    },
}

/// The level of leaf entries, as a hint that spares the unit a search of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(u8);

impl Level {
    /// `above` levels above the last one; `None` where TTL cannot say so: of 16 KiB and 64 KiB granules, the level whose
    /// leaves need larger addresses than the driver uses is reserved.
    #[inline]
    pub const fn of_leaf(granule: Granule, above: u8) -> Option<Self> {
        match (granule, above) {
            (_, 0 | 1) | (Granule::Size4K, 2) => Some(Self(3 - above)),
            _ => None,
        }
    }

    /// TTL.
    #[inline]
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// A value in the field whose lowest bit is `unit`, where it fits: what a setter does, without its checks, on the way of
/// every unmap.
#[inline]
pub(crate) fn field(value: impl Into<u64>, unit: u64) -> u64 {
    value.into().wrapping_mul(unit)
}

impl Command {
    /// CFGI_STE for the entry, the level-1 descriptor above it and the context descriptors below it (4.3.1).
    pub fn cfgi_ste(stream: StreamId) -> Self {
        let word = Cfgi0::new().with_opcode(Opcode::CFGI_STE).with_sid(stream.get());
        Self([word.into(), Cfgi1::new().into()])
    }

    /// CFGI_ALL: every stream table entry and context descriptor (4.3.2).
    pub fn cfgi_all() -> Self {
        const ALL: u8 = 31;
        let word = Cfgi0::new().with_opcode(Opcode::CFGI_STE_RANGE);
        Self([word.into(), Cfgi1::new().with_leaf_or_range(ALL).into()])
    }

    /// CFGI_CD_ALL: all context descriptors of a stream whose entry stays (4.3.4).
    pub fn cfgi_cd_all(stream: StreamId) -> Self {
        let word = Cfgi0::new().with_opcode(Opcode::CFGI_CD_ALL).with_sid(stream.get());
        Self([word.into(), 0])
    }

    /// CFGI_CD: one context descriptor, or with [`Scope::Walk`] the level-1 descriptor above it too (4.3.3).
    pub fn cfgi_cd(stream: StreamId, substream: u32, scope: Scope) -> Self {
        let word = Cfgi0::new().with_opcode(Opcode::CFGI_CD).with_sid(stream.get()).with_ssid(substream);
        Self([word.into(), Cfgi1::new().with_leaf_or_range(u8::from(scope == Scope::Leaf)).into()])
    }

    /// ATC_INV: what the device has cached for `cached` in a block (4.5.1).
    pub fn atc_inv(cached: Cached, block: Block) -> Self {
        let word = Atc0::new().with_opcode(Opcode::ATC_INV).with_sid(cached.stream.get());
        let word = match cached.pasid {
            Some(pasid) => word.with_ssv(true).with_ssid(pasid.get()),
            None => word,
        };
        Self([word.into(), Atc1::new().with_size(block.log2).with_addr(block.start >> 12).into()])
    }

    /// ATC_INV of all that the device has cached, without a PASID and with any. An invalidation without a PASID may
    /// spare the others.
    pub fn atc_inv_all(stream: StreamId) -> [Self; 2] {
        let word = Atc0::new().with_opcode(Opcode::ATC_INV).with_sid(stream.get());
        let all = Atc1::new().with_size(Block::ALL.log2).into();
        [Self([word.into(), all]), Self([word.with_ssv(true).with_g(true).into(), all])]
    }

    /// ATC_INV of as little as can be (4.5.1).
    pub fn atc_inv_page(stream: StreamId) -> Self {
        Self::atc_inv(Cached { stream, pasid: None }, Block { start: 0, log2: 0 })
    }

    /// CMD_PRI_RESP: the answer to a group of page requests, with a PASID for devices that want it there (4.5.2).
    pub fn pri_resp(stream: StreamId, pasid: Option<Pasid>, group: u16, action: PageAction) -> Self {
        let word = PriResp0::new()
            .with_opcode(Opcode::PRI_RESP)
            .with_ssv(pasid.is_some())
            .with_ssid(pasid.map_or(0, Pasid::get))
            .with_sid(stream.get());
        Self([word.into(), PriResp1::new().with_group(group & 0x1ff).with_action(action).into()])
    }

    /// CMD_RESUME: what becomes of a stalled transaction (4.6.1).
    pub fn resume(stream: StreamId, tag: u16, action: StallAction) -> Self {
        let word = Resume0::new().with_opcode(Opcode::RESUME).with_action(action).with_sid(stream.get());
        Self([word.into(), Resume1::new().with_stag(tag).into()])
    }

    /// CMD_STALL_TERM: ends all stalled transactions of a stream whose entry lets none through any more (4.6.2).
    pub fn stall_term(stream: StreamId) -> Self {
        Self([Resume0::new().with_opcode(Opcode::STALL_TERM).with_sid(stream.get()).into(), 0])
    }

    /// TLBI_NH_ASID or TLBI_S12_VMALL: everything with this tag (4.4).
    #[inline]
    pub fn tlbi_tag(tag: Tag) -> Self {
        Self([Self::tagged(tag, Opcode::TLBI_NH_ASID, Opcode::TLBI_S12_VMALL), 0])
    }

    /// TLBI_NH_VA or TLBI_S2_IPA: the entries with this tag that translate `span` (4.4).
    #[inline]
    pub fn tlbi_span(tag: Tag, span: Span, scope: Scope) -> Self {
        let first = Self::tagged(tag, Opcode::TLBI_NH_VA, Opcode::TLBI_S2_IPA);
        const LEAF: u64 = Tlbi1::new().with_leaf(true).into_bits();
        const ADDR: u64 = Tlbi1::new().with_addr(u64::MAX >> 12).into_bits();
        let second = if scope == Scope::Leaf { LEAF } else { 0 };
        match span {
            Span::Address(address) => Self([first, second | address & ADDR]),
            Span::Granules { start, granule, num, scale, level } => {
                const NUM: u64 = Tlbi0::new().with_num(1).into_bits();
                const SCALE: u64 = Tlbi0::new().with_scale(1).into_bits();
                const TTL: u64 = Tlbi1::new().with_ttl(1).into_bits();
                const TG: u64 = Tlbi1::new().with_tg(CommandGranule(1)).into_bits();
                let (tg, ttl) = (CommandGranule::of(granule).into_bits(), level.map_or(0, Level::get));
                Self([
                    first | field(num & 0x1f, NUM) | field(scale & 0x1f, SCALE),
                    second | field(tg, TG) | field(ttl, TTL) | start & ADDR,
                ])
            }
        }
    }

    /// The first word of a TLB invalidation.
    #[inline]
    fn tagged(tag: Tag, stage_1: Opcode, stage_2: Opcode) -> u64 {
        const OPCODE: u64 = Tlbi0::new().with_opcode(Opcode(1)).into_bits();
        let opcode = match tag {
            Tag::Asid(_) => stage_1,
            Tag::Vmid(_) => stage_2,
        };
        field(opcode.into_bits(), OPCODE) | tag.bits()
    }

    /// TLBI_EL2_ALL: all EL2 entries; needs IDR0.HYP (4.4).
    pub fn tlbi_el2_all() -> Self {
        Self([Tlbi0::new().with_opcode(Opcode::TLBI_EL2_ALL).into(), 0])
    }

    /// TLBI_NSNH_ALL: all non-secure entries that are not EL2's (4.4).
    pub fn tlbi_nsnh_all() -> Self {
        Self([Tlbi0::new().with_opcode(Opcode::TLBI_NSNH_ALL).into(), 0])
    }

    /// CMD_SYNC whose completion shows in CMDQ_CONS (4.7.3).
    pub const fn sync() -> Self {
        let word = Sync0::new().with_opcode(Opcode::SYNC).with_cs(CompletionSignal::NONE);
        Self([word.into_bits(), 0])
    }

    /// CMD_SYNC that on completion also writes `data` to `address`, a multiple of 4 in memory that the unit snoops;
    /// needs IDR0.MSI (4.7.3).
    pub fn sync_with_message(address: PhysAddr, data: u32) -> Self {
        /// Normal memory, write-back in both caches, as the MemAttr field encodes it.
        const WRITE_BACK: u8 = 0xf;
        let word = Sync0::new()
            .with_opcode(Opcode::SYNC)
            .with_cs(CompletionSignal::IRQ)
            .with_msh(Shareability::INNER.into_bits())
            .with_msiattr(WRITE_BACK)
            .with_msidata(data);
        Self([word.into(), Sync1::new().with_msiaddr(address.get() >> 2).into()])
    }

    /// Whether this is a CMD_SYNC.
    pub(crate) fn is_sync(&self) -> bool {
        Sync0::from(self.0[0]).opcode() == Opcode::SYNC
    }
}

/// CMD_SYNC for each position in a ring, made once but for that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PreparedSync {
    words: [u64; COMMAND_WORDS],
    /// The lowest bit of the field that has the message's data; 0 if there is no message.
    data: u64,
}

impl PreparedSync {
    /// It tells the position where there is a word for messages.
    pub(crate) fn new(message: Option<PhysAddr>) -> Self {
        const DATA: u64 = Sync0::new().with_msidata(1).into_bits();
        let (Command(words), data) = match message {
            Some(address) => (Command::sync_with_message(address, 0), DATA),
            None => (Command::sync(), 0),
        };
        Self { words, data }
    }

    /// The sync before the position `end`.
    #[inline]
    pub(crate) fn before(&self, end: u32) -> Command {
        let Self { words: [first, second], data } = *self;
        Command([first | field(end, data), second])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASID: Tag = Tag::Asid(Asid::new(0x1234));
    const VMID: Tag = Tag::Vmid(Vmid::new(0x5678));

    #[test]
    fn configuration_commands_have_the_manuals_words() {
        let stream = StreamId::new(0xdead_beef);
        assert_eq!(Command::cfgi_ste(stream).0, [0xdead_beef_0000_0003, 0]);
        assert_eq!(Command::cfgi_cd_all(stream).0, [0xdead_beef_0000_0006, 0]);
        assert_eq!(Command::cfgi_all().0, [0x04, 31]);
        assert_eq!(Command::sync().0, [0x46, 0]);
        let message = Command::sync_with_message(PhysAddr::new(0x1_2345_6040), 0x9abc_def0);
        assert_eq!(message.0, [0x9abc_def0_0fc0_1046, 0x1_2345_6040]);
        assert_eq!(PreparedSync::new(Some(PhysAddr::new(0x1_2345_6040))).before(0x9abc_def0), message);
        assert_eq!(PreparedSync::new(None).before(0x9abc_def0), Command::sync());
        assert!(message.is_sync() && Command::sync().is_sync() && !Command::cfgi_all().is_sync());
    }

    #[test]
    fn commands_of_substreams_and_device_caches_have_the_manuals_words() {
        let stream = StreamId::new(0xdead_beef);
        assert_eq!(Command::cfgi_cd(stream, 0xa_bcde, Scope::Leaf).0, [0xdead_beef_abcd_e005, 1]);
        assert_eq!(Command::cfgi_cd(stream, 0xa_bcde, Scope::Walk).0, [0xdead_beef_abcd_e005, 0]);
        let pasid = portcullis_hal::Pasid::new(0xa_bcde).ok();
        let block = Block { start: 0x1234_0000, log2: 4 };
        assert_eq!(Command::atc_inv(Cached { stream, pasid }, block).0, [0xdead_beef_abcd_e840, 0x1234_0004]);
        let cached = Cached { stream, pasid: None };
        assert_eq!(Command::atc_inv(cached, Block::ALL).0, [0xdead_beef_0000_0040, 52]);
        let all = Command::atc_inv_all(stream).map(|command| command.0);
        assert_eq!(all, [[0xdead_beef_0000_0040, 52], [0xdead_beef_0000_0a40, 52]]);
    }

    #[test]
    fn answers_have_the_manuals_words() {
        let stream = StreamId::new(0xdead_beef);
        let pasid = portcullis_hal::Pasid::new(0xa_bcde).ok();
        let success = Command::pri_resp(stream, pasid, 0x155, PageAction::SUCCESS);
        assert_eq!(success.0, [0xdead_beef_abcd_e841, 0x2155]);
        let invalid = Command::pri_resp(stream, None, 0x1ff, PageAction::INVALID);
        assert_eq!(invalid.0, [0xdead_beef_0000_0041, 0x11ff]);
        assert_eq!(Command::pri_resp(stream, None, 1, PageAction::FAILURE).0, [0xdead_beef_0000_0041, 1]);
        assert_eq!(Command::resume(stream, 0x1234, StallAction::RETRY).0, [0xdead_beef_0000_1044, 0x1234]);
        assert_eq!(Command::resume(stream, 0x1234, StallAction::ABORT).0, [0xdead_beef_0000_2044, 0x1234]);
        assert_eq!(Command::stall_term(stream).0, [0xdead_beef_0000_0045, 0]);
        assert_eq!(Command::atc_inv_page(stream).0, [0xdead_beef_0000_0040, 0]);
    }

    #[test]
    fn tlb_commands_carry_the_tag_of_their_stage_only() {
        assert_eq!(Command::tlbi_tag(ASID).0, [0x1234_0000_0000_0011, 0]);
        assert_eq!(Command::tlbi_tag(VMID).0, [0x0000_5678_0000_0028, 0]);
        assert_eq!(Command::tlbi_nsnh_all().0, [0x30, 0]);
        assert_eq!(Command::tlbi_el2_all().0, [0x20, 0]);
    }

    #[test]
    fn an_address_is_invalidated_without_range_fields() {
        let span = Span::Address(0xffff_1234_5000);
        let leaf = Command::tlbi_span(ASID, span, Scope::Leaf);
        assert_eq!(leaf.0, [0x1234_0000_0000_0012, 0xffff_1234_5001]);
        let walk = Command::tlbi_span(VMID, span, Scope::Walk);
        assert_eq!(walk.0, [0x0000_5678_0000_002a, 0xffff_1234_5000]);
    }

    #[test]
    fn a_range_carries_num_scale_granule_and_level() {
        let span = |granule| Span::Granules { start: 0x4000_0000, granule, num: 31, scale: 9, level: None };
        let word0 = 0x1234_0000_0091_f012;
        for (granule, tg) in [(Granule::Size4K, 1), (Granule::Size16K, 2), (Granule::Size64K, 3)] {
            let command = Command::tlbi_span(ASID, span(granule), Scope::Leaf);
            assert_eq!(command.0, [word0, 0x4000_0001 | tg << 10]);
        }
        let level = Level::of_leaf(Granule::Size4K, 1);
        let span = Span::Granules { start: 0x4000_0000, granule: Granule::Size4K, num: 31, scale: 9, level };
        assert_eq!(Command::tlbi_span(ASID, span, Scope::Leaf).0, [word0, 0x4000_0601]);
    }
}
