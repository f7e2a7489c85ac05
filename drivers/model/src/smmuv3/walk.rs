//! VMSAv8-64 translation table descriptors, both stages (DDI 0487, chapter D8).

/// Translation granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Granule {
    K4,
    K16,
    K64,
}

impl Granule {
    /// log2 of the granule.
    pub(super) const fn bits(self) -> u8 {
        match self {
            Self::K4 => 12,
            Self::K16 => 14,
            Self::K64 => 16,
        }
    }

    /// Address bits resolved by one full table.
    pub(super) const fn stride(self) -> u8 {
        self.bits() - 3
    }

    /// log2 of what one descriptor at `level` covers.
    pub(super) const fn span(self, level: i8) -> u8 {
        self.bits() + (3 - level) as u8 * self.stride()
    }

    /// TG0 and S2TG encoding.
    pub(super) const fn from_tg0(field: u64) -> Option<Self> {
        match field & 3 {
            0 => Some(Self::K4),
            1 => Some(Self::K64),
            2 => Some(Self::K16),
            _ => None,
        }
    }

    /// TG1 encoding.
    pub(super) const fn from_tg1(field: u64) -> Option<Self> {
        match field & 3 {
            1 => Some(Self::K16),
            2 => Some(Self::K4),
            3 => Some(Self::K64),
            _ => None,
        }
    }

    /// Number of entries that a set Contiguous bit joins at `level`, as a power of two; 0 where it means nothing.
    const fn contiguous(self, level: i8) -> u8 {
        match (self, level) {
            (Self::K4, 1..=3) => 4,
            (Self::K16, 3) => 7,
            (Self::K16, 2) | (Self::K64, 2 | 3) => 5,
            _ => 0,
        }
    }
}

/// What decides how descriptors of a walk are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) granule: Granule,
    /// 52-bit addresses with a small granule.
    pub(super) ds: bool,
    /// The implementation has 52-bit output addresses.
    pub(super) lpa: bool,
}

/// A decoded descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Descriptor {
    Invalid,
    /// Next-level table address.
    Table(u64),
    /// Output address, log2 of what the descriptor maps, and log2 of the region that one TLB entry may cover
    /// because of its Contiguous bit.
    Leaf {
        address: u64,
        span: u8,
        reach: u8,
    },
}

impl Format {
    /// The output or next-level address in a descriptor.
    fn address(self, descriptor: u64, low: u8) -> u64 {
        let mask = |high: u8| (1u64 << high) - (1u64 << low);
        match self.granule {
            Granule::K64 if self.lpa => descriptor & mask(48) | (descriptor >> 12 & 0xf) << 48,
            _ if self.ds => descriptor & mask(50) | (descriptor >> 8 & 3) << 50,
            _ => descriptor & mask(48),
        }
    }

    /// The leaf address of a block lies above its span; 64 KiB descriptors keep address bits below it.
    fn leaf_address(self, descriptor: u64, span: u8) -> u64 {
        self.address(descriptor, span)
    }

    /// Decodes a descriptor found at `level`.
    pub(super) fn decode(self, descriptor: u64, level: i8) -> Descriptor {
        let granule = self.granule;
        let kind = descriptor & 3;
        let span = granule.span(level);
        let leaf = match (level, kind) {
            (_, 0 | 2) | (3, 1) => return Descriptor::Invalid,
            (3, _) => true,
            (_, 1) => {
                let lowest = match granule {
                    Granule::K4 => i8::from(!self.ds),
                    Granule::K16 => 1 + i8::from(!self.ds),
                    Granule::K64 => 1 + i8::from(!self.lpa),
                };
                if level < lowest {
                    return Descriptor::Invalid;
                }
                true
            }
            _ => false,
        };
        if !leaf {
            return Descriptor::Table(self.address(descriptor, granule.bits()));
        }
        let joined = if descriptor >> 52 & 1 == 1 { granule.contiguous(level) } else { 0 };
        Descriptor::Leaf { address: self.leaf_address(descriptor, span), span, reach: span + joined }
    }
}

/// First level of a stage-1 walk for an input of `bits` bits.
pub(super) const fn stage1_start(granule: Granule, bits: u8) -> i8 {
    3 - ((bits - 1 - granule.bits()) / granule.stride()) as i8
}

/// First level of a stage-2 walk, from {S2SL0_2, S2SL0}; `None` if the encoding is reserved or does not fit the
/// input size or what the implementation has.
pub(super) fn stage2_start(
    granule: Granule,
    sl0: u64,
    sl0_2: bool,
    bits: u8,
    oas: u8,
    stt: bool,
) -> Option<i8> {
    let level = match granule {
        Granule::K4 => match (sl0_2, sl0) {
            (true, 0) => -1,
            (true, _) => return None,
            (false, 0) => 2,
            (false, 1) => 1,
            (false, 2) => 0,
            (false, _) if stt => 3,
            _ => return None,
        },
        Granule::K16 => [3, 2, 1, 0][sl0 as usize & 3],
        Granule::K64 if sl0 < 3 => 3 - sl0 as i8,
        Granule::K64 => return None,
    };
    let too_high = match granule {
        Granule::K4 => level == 0 && oas <= 42,
        Granule::K16 => level == 1 && oas <= 40 || level == 0 && oas < 52,
        Granule::K64 => level == 1 && oas <= 42,
    };
    let first = i16::from(bits) - i16::from(granule.span(level));
    (!too_high && (1..=i16::from(granule.stride()) + 4).contains(&first)).then_some(level)
}

/// Descriptor bits.
pub(super) const AF: u64 = 1 << 10;
pub(super) const NG: u64 = 1 << 11;
pub(super) const DBM: u64 = 1 << 51;
/// AP\[2\] of stage 1 (read-only) and S2AP\[1\] of stage 2 (writable) share bit 7.
pub(super) const BIT7: u64 = 1 << 7;

/// What an address may be used for, by privilege; indices are `[user, supervisor]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Permissions {
    pub(super) read: [bool; 2],
    pub(super) write: [bool; 2],
    pub(super) execute: [bool; 2],
}

impl Permissions {
    pub(super) const ALL: Self = Self { read: [true; 2], write: [true; 2], execute: [true; 2] };
}

/// What table descriptors on the way take away (APTable, UXNTable, PXNTable).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Hierarchy {
    no_write: bool,
    no_user: bool,
    no_user_execute: bool,
    no_supervisor_execute: bool,
}

impl Hierarchy {
    /// Adds a table descriptor's bits.
    pub(super) fn and(self, descriptor: u64) -> Self {
        let bit = |at: u32| descriptor >> at & 1 == 1;
        Self {
            no_write: self.no_write | bit(62),
            no_user: self.no_user | bit(61),
            no_user_execute: self.no_user_execute | bit(60),
            no_supervisor_execute: self.no_supervisor_execute | bit(59),
        }
    }
}

/// The permission controls of a CD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Controls {
    pub(super) wxn: bool,
    pub(super) pan: bool,
    /// The regime has two privilege levels; else everything is privileged and AP\[1\] is taken as 1.
    pub(super) two_levels: bool,
}

/// Permissions of a stage-1 leaf. `writable` overrides AP\[2\], for the writable-clean state under HTTU.
pub(super) fn stage1(
    descriptor: u64,
    hierarchy: Hierarchy,
    controls: Controls,
    writable: bool,
) -> Permissions {
    let bit = |at: u32| descriptor >> at & 1 == 1;
    let user = controls.two_levels && bit(6) && !hierarchy.no_user;
    let write = (!bit(7) || writable) && !hierarchy.no_write;
    let (uxn, pxn) = (bit(54) | hierarchy.no_user_execute, bit(53) | hierarchy.no_supervisor_execute);
    if !controls.two_levels {
        let execute = !(uxn || controls.wxn && write);
        return Permissions { read: [true; 2], write: [write; 2], execute: [execute; 2] };
    }
    let user_write = user && write;
    // A page that user mode can write is never privileged-executable.
    let execute = [!(uxn || controls.wxn && user_write), !(pxn || user_write || controls.wxn && write)];
    // PAN takes data access to user pages away from privileged mode.
    let supervisor = !(controls.pan && user);
    Permissions { read: [user, supervisor], write: [user_write, supervisor && write], execute }
}

/// Permissions of a stage-2 leaf. `writable` as for [`stage1`].
pub(super) fn stage2(descriptor: u64, xnx: bool, writable: bool) -> Permissions {
    let bit = |at: u32| descriptor >> at & 1 == 1;
    let execute = match (bit(54), bit(53)) {
        (false, false) => [true, true],
        (false, true) if xnx => [true, false],
        (true, true) if xnx => [false, true],
        (false, true) => [true, true],
        (true, _) => [false, false],
    };
    Permissions { read: [bit(6); 2], write: [bit(7) || writable; 2], execute }
}

/// Whether a stage-2 leaf maps Device memory (MemAttr\[3:2\] = 0 without S2FWB).
pub(super) const fn stage2_is_device(descriptor: u64) -> bool {
    descriptor >> 4 & 3 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(granule: Granule) -> Format {
        Format { granule, ds: false, lpa: false }
    }

    #[test]
    fn start_levels_are_those_of_the_architecture() {
        // DDI 0487 table of initial lookup levels.
        for (granule, bits, level) in [
            (Granule::K4, 48, 0),
            (Granule::K4, 40, 0),
            (Granule::K4, 39, 1),
            (Granule::K4, 30, 2),
            (Granule::K4, 25, 2),
            (Granule::K4, 52, -1),
            (Granule::K16, 48, 0),
            (Granule::K16, 47, 1),
            (Granule::K64, 48, 1),
            (Granule::K64, 42, 2),
        ] {
            assert_eq!(stage1_start(granule, bits), level, "{granule:?} {bits}");
        }
        assert_eq!(stage2_start(Granule::K4, 2, false, 44, 44, false), Some(0));
        assert_eq!(stage2_start(Granule::K4, 1, false, 40, 44, false), Some(1));
        assert_eq!(stage2_start(Granule::K4, 1, false, 43, 44, false), Some(1));
        assert_eq!(stage2_start(Granule::K4, 1, false, 44, 44, false), None, "more than 16 tables");
        assert_eq!(
            stage2_start(Granule::K4, 2, false, 39, 44, false),
            None,
            "no bit left for the first level"
        );
        assert_eq!(stage2_start(Granule::K4, 3, false, 25, 44, false), None);
        assert_eq!(stage2_start(Granule::K64, 1, false, 40, 40, false), Some(2));
    }

    #[test]
    fn blocks_are_leaves_only_where_the_granule_has_them() {
        assert_eq!(format(Granule::K4).decode(0x4000_0001, 0), Descriptor::Invalid);
        assert_eq!(
            format(Granule::K4).decode(0x4000_0001, 1),
            Descriptor::Leaf { address: 0x4000_0000, span: 30, reach: 30 }
        );
        assert_eq!(format(Granule::K16).decode(0x0200_0001, 1), Descriptor::Invalid);
        assert_eq!(
            format(Granule::K16).decode(0x0200_0001, 2),
            Descriptor::Leaf { address: 0x0200_0000, span: 25, reach: 25 }
        );
        assert_eq!(format(Granule::K4).decode(0x1001, 3), Descriptor::Invalid, "0b01 is reserved at level 3");
        assert_eq!(format(Granule::K4).decode(0x1003, 2), Descriptor::Table(0x1000));
        let contiguous = 0x0010_0000_0001_0003;
        assert_eq!(
            format(Granule::K4).decode(contiguous, 3),
            Descriptor::Leaf { address: 0x1_0000, span: 12, reach: 16 }
        );
    }

    #[test]
    fn descriptors_with_52_bits_keep_the_top_bits_where_the_format_says() {
        let lpa = Format { granule: Granule::K64, ds: false, lpa: true };
        assert_eq!(
            lpa.decode(0x0000_0000_0001_f003, 3),
            Descriptor::Leaf { address: 0xf_0000_0001_0000, span: 16, reach: 16 }
        );
        let lpa2 = Format { granule: Granule::K4, ds: true, lpa: true };
        assert_eq!(
            lpa2.decode(0x0000_0000_0000_1303, 3),
            Descriptor::Leaf { address: 0xc_0000_0000_1000, span: 12, reach: 12 }
        );
    }

    #[test]
    fn stage_1_permissions_follow_ap_xn_and_the_tables_above() {
        let controls = Controls { wxn: false, pan: false, two_levels: true };
        let user_rw = stage1(1 << 6, Hierarchy::default(), controls, false);
        assert_eq!((user_rw.read, user_rw.write, user_rw.execute), ([true; 2], [true; 2], [true, false]));
        let kernel_ro = stage1(1 << 7, Hierarchy::default(), controls, false);
        assert_eq!((kernel_ro.read, kernel_ro.write), ([false, true], [false; 2]));
        let table = Hierarchy::default().and(1 << 62 | 1 << 61);
        let taken = stage1(1 << 6, table, controls, false);
        assert_eq!((taken.read, taken.write), ([false, true], [false; 2]));
        let pan = stage1(1 << 6, Hierarchy::default(), Controls { pan: true, ..controls }, false);
        assert_eq!((pan.read, pan.write), ([true, false], [true, false]));
    }
}
