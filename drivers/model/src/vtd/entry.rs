//! Decoders of the structures in memory (specification chapter 9): scalable-mode root and context entries, PASID
//! directory and table entries. Raw words in, meaning or a fault reason out.

use super::config::{Config, Feature};
use super::reason;

/// Address field of every entry: bits 63:12, less those beyond the host's width, which must be zero.
const ADDRESS: u64 = !0xfff;

const fn field(word: u64, low: u32, bits: u32) -> u64 {
    word >> low & ((1 << bits) - 1)
}

const fn bit(word: u64, at: u32) -> bool {
    word >> at & 1 != 0
}

/// An entry of `Q` 128-bit quanta as 64-bit words, low word first.
pub(super) const fn words(quantum: u128) -> [u64; 2] {
    [quantum as u64, (quantum >> 64) as u64]
}

/// A fault found in an entry, and whether that entry disables fault recording (FPD).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Flaw {
    pub(super) reason: u8,
    pub(super) silent: bool,
}

impl Flaw {
    pub(super) const fn loud(reason: u8) -> Self {
        Self { reason, silent: false }
    }
}

/// Gives the context table of one half of a root entry (64 bits, section 9.1).
pub(super) const fn root_half(config: &Config, half: u64) -> Result<u64, Flaw> {
    if !bit(half, 0) {
        return Err(Flaw::loud(reason::ROOT_NOT_PRESENT));
    }
    if half & 0xffe != 0 || half & config.reserved_address() != 0 {
        return Err(Flaw::loud(reason::ROOT_RESERVED));
    }
    Ok(half & ADDRESS)
}

/// A scalable-mode context entry (256 bits, section 9.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Context {
    pub(super) silent: bool,
    pub(super) device_tlb: bool,
    pub(super) pasids: bool,
    pub(super) page_requests: bool,
    /// Number of PASIDs that the directory covers.
    pub(super) pasid_limit: u64,
    pub(super) directory: u64,
    pub(super) rid_pasid: u32,
    pub(super) rid_privileged: bool,
}

impl Context {
    pub(super) fn decode(config: &Config, quanta: [u128; 2]) -> Result<Self, Flaw> {
        let [low, second] = words(quanta[0]);
        let silent = bit(low, 1);
        let flaw = |reason| Err(Flaw { reason, silent });
        if !bit(low, 0) {
            return flaw(reason::CONTEXT_NOT_PRESENT);
        }
        let rid_fields = if config.has(Feature::RidPasid) {
            0xf_ffff | u64::from(config.has(Feature::SupervisorRequests)) << 20
        } else {
            0
        };
        // Bits 8:5 and, above the pointer, everything beyond the host's width; RID_PASID only with ECAP.RPS.
        if low & 0x1e0 != 0
            || low & ADDRESS & config.reserved_address() != 0
            || second & !rid_fields != 0
            || quanta[1] != 0
        {
            return flaw(reason::CONTEXT_RESERVED);
        }
        let context = Self {
            silent,
            device_tlb: bit(low, 2),
            pasids: bit(low, 3),
            page_requests: bit(low, 4),
            // PDTS: 2^(X+7) directory entries of 64 PASIDs each.
            pasid_limit: 1 << (field(low, 9, 3) + 7 + 6),
            directory: low & ADDRESS,
            rid_pasid: field(second, 0, 20) as u32,
            rid_privileged: bit(second, 20),
        };
        if context.pasids && !config.has(Feature::Pasid)
            || context.device_tlb && !config.has(Feature::DeviceTlb)
            || context.page_requests && !config.has(Feature::PageRequests)
        {
            return flaw(reason::CONTEXT_INVALID);
        }
        Ok(context)
    }
}

/// Gives the PASID table of a directory entry (64 bits, section 9.5) and its FPD.
pub(super) const fn directory(config: &Config, entry: u64) -> Result<(u64, bool), Flaw> {
    let silent = bit(entry, 1);
    if !bit(entry, 0) {
        return Err(Flaw { reason: reason::DIRECTORY_NOT_PRESENT, silent });
    }
    if entry & 0xffc != 0 || entry & config.reserved_address() != 0 {
        return Err(Flaw { reason: reason::DIRECTORY_RESERVED, silent });
    }
    Ok((entry & ADDRESS, silent))
}

/// PASID granular translation type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Pgtt {
    FirstStage,
    SecondStage,
    Nested,
    PassThrough,
}

impl Pgtt {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::FirstStage => "first stage",
            Self::SecondStage => "second stage",
            Self::Nested => "nested",
            Self::PassThrough => "pass-through",
        }
    }
}

/// A scalable-mode PASID table entry (512 bits, section 9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PasidEntry {
    pub(super) silent: bool,
    pub(super) pgtt: Pgtt,
    pub(super) domain: u16,
    /// Levels of the second-stage table.
    pub(super) second_levels: u32,
    pub(super) second_pointer: u64,
    /// Second-stage accessed and dirty flags.
    pub(super) second_flags: bool,
    /// Levels of the first-stage table.
    pub(super) first_levels: u32,
    pub(super) first_pointer: u64,
    /// The page walks are coherent (PWSNP).
    pub(super) walk_snoop: bool,
    pub(super) supervisor: bool,
    pub(super) execute: bool,
    pub(super) write_protect: bool,
    pub(super) no_execute: bool,
    pub(super) smep: bool,
}

impl PasidEntry {
    /// DID as the raw entry holds it, present or not.
    pub(super) const fn raw_domain(quanta: &[u128; 4]) -> u16 {
        (quanta[0] >> 64) as u16
    }

    pub(super) fn decode(config: &Config, quanta: [u128; 4]) -> Result<Self, Flaw> {
        let [w0, w1] = words(quanta[0]);
        let [w2, w3] = words(quanta[1]);
        let silent = bit(w0, 1);
        let flaw = |reason| Err(Flaw { reason, silent });
        if !bit(w0, 0) {
            return flaw(reason::PASID_NOT_PRESENT);
        }
        if Self::reserved(config, [w0, w1, w2, w3]) || quanta[2] != 0 || quanta[3] != 0 {
            return flaw(reason::PASID_RESERVED);
        }
        let pgtt = match (field(w0, 6, 3), config) {
            (1, c) if c.has(Feature::FirstStage) => Pgtt::FirstStage,
            (2, c) if c.has(Feature::SecondStage) => Pgtt::SecondStage,
            (3, c) if c.has(Feature::Nested) => Pgtt::Nested,
            (4, c) if c.has(Feature::PassThrough) => Pgtt::PassThrough,
            _ => return flaw(reason::PASID_INVALID),
        };
        let second_levels = field(w0, 2, 3) as u32 + 2;
        if matches!(pgtt, Pgtt::SecondStage | Pgtt::Nested) && !config.second_stage_levels(second_levels) {
            return flaw(reason::PASID_INVALID);
        }
        let first_levels = match (pgtt, field(w2, 2, 2)) {
            (Pgtt::FirstStage | Pgtt::Nested, 1) if config.has(Feature::FirstStage5Level) => 5,
            (Pgtt::FirstStage | Pgtt::Nested, 1..) => return flaw(reason::PASID_INVALID),
            _ => 4,
        };
        // Fields that the type does not use are left out, so that entries are equal if they mean the same.
        let first = matches!(pgtt, Pgtt::FirstStage | Pgtt::Nested);
        let second = matches!(pgtt, Pgtt::SecondStage | Pgtt::Nested);
        Ok(Self {
            silent,
            pgtt,
            domain: w1 as u16,
            second_levels: if second { second_levels } else { 0 },
            second_pointer: if second { w0 & ADDRESS } else { 0 },
            second_flags: second && bit(w0, 9),
            first_levels: if first { first_levels } else { 0 },
            first_pointer: if first { w2 & ADDRESS } else { 0 },
            walk_snoop: bit(w1, 23),
            supervisor: bit(w2, 0),
            execute: bit(w2, 1),
            write_protect: first && bit(w2, 4),
            no_execute: first && bit(w2, 5),
            smep: first && bit(w2, 6),
        })
    }

    /// Whether a reserved field is set, or one whose feature the unit lacks.
    fn reserved(config: &Config, [w0, w1, w2, w3]: [u64; 4]) -> bool {
        let mut mask = [0x1 << 5 | 0x3 << 10, 0x7f << 16, 0xf << 8, u64::MAX];
        let mut require = |word: usize, bits: u64, feature| {
            if !config.has(feature) {
                mask[word] |= bits;
            }
        };
        require(0, 1 << 9, Feature::SecondStageDirty);
        require(1, 1 << 23, Feature::PageWalkCoherent);
        require(1, 1 << 24, Feature::SnoopControl);
        // CD, EMTE, EMT, PWT, PCD and PAT.
        require(1, !0 << 25, Feature::MemoryTypes);
        require(2, 1, Feature::SupervisorRequests);
        require(2, 1 << 1, Feature::ExecuteRequests);
        require(2, 1 << 7, Feature::ExtendedAccessed);
        // Domain-id bits that the unit does not have.
        mask[1] |= 0xffff & !((1u64 << config.domain_bits()) - 1);
        mask[0] |= ADDRESS & config.reserved_address();
        // A nested entry's first-stage pointer is a guest address; the second stage checks it.
        if field(w0, 6, 3) != 3 {
            mask[2] |= ADDRESS & config.reserved_address();
        }
        w0 & mask[0] | w1 & mask[1] | w2 & mask[2] | w3 & mask[3] != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: Config = Config::full();

    fn pasid(words: [u64; 4]) -> Result<PasidEntry, Flaw> {
        let pair = |low, high| u128::from(low) | u128::from(high) << 64;
        PasidEntry::decode(&UNIT, [pair(words[0], words[1]), pair(words[2], words[3]), 0, 0])
    }

    fn context(low: u64, second: u64) -> Result<Context, Flaw> {
        Context::decode(&UNIT, [u128::from(low) | u128::from(second) << 64, 0])
    }

    #[test]
    fn a_context_entry_decodes_field_by_field() {
        // P, DTE, PASIDE, PRE, PDTS=3, directory 0x1234_5000; RID_PASID 0xabcde, RID_PRIV.
        let entry = context(0x1234_5000 | 3 << 9 | 0x1d, 0x1a_bcde);
        let entry = entry.expect("a good entry");
        assert!(entry.device_tlb && entry.pasids && entry.page_requests && entry.rid_privileged);
        assert!(!entry.silent);
        assert_eq!((entry.directory, entry.rid_pasid), (0x1234_5000, 0xa_bcde));
        assert_eq!(entry.pasid_limit, 1 << 16);
        for reserved in 5..9 {
            assert_eq!(context(1 | 1 << reserved, 0), Err(Flaw::loud(0x42)));
        }
        assert_eq!(context(1, 1 << 21), Err(Flaw::loud(0x42)));
        assert_eq!(context(2, 0), Err(Flaw { reason: 0x41, silent: true }));
        let no_ats = UNIT.without(Feature::DeviceTlb);
        assert_eq!(Context::decode(&no_ats, [5, 0]), Err(Flaw::loud(0x43)));
        let no_rps = UNIT.without(Feature::RidPasid);
        assert_eq!(Context::decode(&no_rps, [1 | 5 << 64, 0]), Err(Flaw::loud(0x42)));
    }

    #[test]
    fn a_pasid_entry_decodes_field_by_field() {
        // P, AW=2 (48 bits), PGTT=2, table 0x7000; DID 0x1234, PWSNP.
        let entry = pasid([0x7000 | 2 << 6 | 2 << 2 | 1, 1 << 23 | 0x1234, 0, 0]).expect("good");
        assert_eq!((entry.pgtt, entry.domain, entry.second_levels), (Pgtt::SecondStage, 0x1234, 4));
        assert_eq!((entry.second_pointer, entry.walk_snoop, entry.second_flags), (0x7000, true, false));
        // PGTT=1, FSPM=1: five levels; SRE, WPE, NXE.
        let entry = pasid([1 << 6 | 1, 7, 0x8000 | 1 << 5 | 1 << 4 | 1 << 2 | 1, 0]).expect("good");
        assert_eq!((entry.pgtt, entry.first_levels, entry.first_pointer), (Pgtt::FirstStage, 5, 0x8000));
        assert!(entry.supervisor && entry.write_protect && entry.no_execute && !entry.execute);
    }

    #[test]
    fn reserved_and_unsupported_pasid_entries_are_told_apart() {
        let good = [2 << 6 | 2 << 2 | 1, 1, 0, 0];
        assert!(pasid(good).is_ok());
        for (word, at) in
            [(0, 5), (0, 10), (0, 11), (1, 16), (1, 22), (1, 25), (2, 8), (2, 11), (3, 0), (3, 63)]
        {
            let mut bad = good;
            bad[word] |= 1 << at;
            assert_eq!(pasid(bad), Err(Flaw::loud(0x5a)), "word {word} bit {at}");
        }
        for pgtt in [0, 5, 6, 7] {
            assert_eq!(pasid([pgtt << 6 | 1, 0, 0, 0]), Err(Flaw::loud(0x5b)), "PGTT {pgtt}");
        }
        // Six levels, and a first-stage paging mode that does not exist.
        assert_eq!(pasid([4 << 2 | 2 << 6 | 1, 0, 0, 0]), Err(Flaw::loud(0x5b)));
        assert_eq!(pasid([1 << 6 | 1, 0, 2 << 2, 0]), Err(Flaw::loud(0x5b)));
        assert_eq!(pasid([2, 0, 0, 0]), Err(Flaw { reason: 0x59, silent: true }));
    }

    #[test]
    fn domain_ids_beyond_nd_are_reserved() {
        let small = UNIT.with_domain_ids(0);
        let entry = |did: u128| [1 | 2 << 2 | 2 << 6 | did << 64, 0, 0, 0];
        assert!(PasidEntry::decode(&small, entry(15)).is_ok());
        assert_eq!(PasidEntry::decode(&small, entry(16)), Err(Flaw::loud(0x5a)));
    }

    #[test]
    fn root_and_directory_entries() {
        assert_eq!(root_half(&UNIT, 0x5001), Ok(0x5000));
        assert_eq!(root_half(&UNIT, 0x5000), Err(Flaw::loud(0x39)));
        assert_eq!(root_half(&UNIT, 0x5003), Err(Flaw::loud(0x3a)));
        assert_eq!(directory(&UNIT, 0x6003), Ok((0x6000, true)));
        assert_eq!(directory(&UNIT, 0x6005), Err(Flaw::loud(0x52)));
        assert_eq!(directory(&UNIT, 0x6000), Err(Flaw::loud(0x51)));
        assert_eq!(directory(&UNIT, 1 << 60 | 1), Err(Flaw::loud(0x52)));
    }
}
