//! Context Descriptors: decoding and the rules of validity (IHI 0070, 5.3 and 5.4).

use super::config::Config;
use super::entry::{StreamWorld, view};
use super::walk::{Granule, stage1_start};
use crate::core::View;

/// One of the two halves of a stage-1 address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Half {
    pub(super) granule: Granule,
    pub(super) input_bits: u8,
    pub(super) start: i8,
    pub(super) ds: bool,
    pub(super) table: u64,
    pub(super) hierarchy_off: bool,
    pub(super) view: View,
}

/// A decoded CD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cd {
    /// Walks through TTB0; `None` if EPD0 disables them.
    pub(super) low: Option<Half>,
    /// Walks through TTB1; `None` if EPD1 disables them or the regime has no upper half.
    pub(super) high: Option<Half>,
    pub(super) output_bits: u8,
    pub(super) asid: u16,
    /// ASET: 1 is the set not shared with CPUs.
    pub(super) private: bool,
    pub(super) affd: bool,
    pub(super) wxn: bool,
    pub(super) pan: bool,
    pub(super) tbi: [bool; 2],
    pub(super) ha: bool,
    pub(super) hd: bool,
    pub(super) stall: bool,
    pub(super) record: bool,
}

const fn field(word: u64, high: u32, low: u32) -> u64 {
    word >> low & (u64::MAX >> (63 - (high - low)))
}

/// Decodes a CD reached through a stream of `world`; `None` is C_BAD_CD.
pub(super) fn decode(words: &[u64; 8], world: StreamWorld, stalls_off: bool, config: &Config) -> Option<Cd> {
    let [w0, w1, w2, ..] = *words;
    let bit = |at: u32| w0 >> at & 1 == 1;
    if !bit(31) {
        return None;
    }
    let (stall, record, abort) = (bit(44), bit(45), bit(46));
    if stalls_off && stall || config.abort_only && !abort {
        return None;
    }
    if config.stall_model == 1 && stall || config.stall_model == 2 && !stall {
        return None;
    }
    let two_levels = world != StreamWorld::El2;
    let (epd0, epd1) = (two_levels && bit(14), !two_levels || bit(30));
    // Little-endian walks and VMSAv8-64 tables only.
    if !(epd0 && epd1) && bit(15) || !bit(41) {
        return None;
    }
    let (hd, ha) = (bit(42), bit(43));
    if (ha || hd) && config.httu == 0 || hd && config.httu == 1 {
        return None;
    }
    let asid = field(w0, 63, 48) as u16;
    if two_levels && !config.asid16 && asid > 0xff {
        return None;
    }
    let output_bits = config.address_bits(field(w0, 34, 32));
    let low = if epd0 { None } else { Some(half(w0, w1, w2, false, output_bits, config)?) };
    let high = if epd1 { None } else { Some(half(w0 >> 16, w2, w2, true, output_bits, config)?) };
    Some(Cd {
        low,
        high,
        output_bits,
        asid: if two_levels { asid } else { 0 },
        private: bit(47),
        affd: bit(35),
        wxn: bit(36),
        pan: two_levels && bit(40),
        tbi: [bit(38), bit(39)],
        ha,
        hd: ha && hd,
        stall,
        record,
    })
}

/// TxSZ, TGx, IRx, ORx and SHx lie in the low half of `controls`, TTBx and HADx in `table`, DS in word 2.
fn half(controls: u64, table: u64, w2: u64, high: bool, output_bits: u8, config: &Config) -> Option<Half> {
    let tg = field(controls, 7, 6);
    let granule = if high { Granule::from_tg1(tg) } else { Granule::from_tg0(tg) };
    let granule = granule.filter(|&granule| config.has(granule))?;
    let ds = config.ds && field(w2, 58, 58) == 1 && granule != Granule::K64;
    let size = field(controls, 5, 0) as u8;
    let most = match (config.stt, granule) {
        (false, _) => 39,
        (true, Granule::K64) => 47,
        (true, _) => 48,
    };
    let least = if config.va52 && (granule == Granule::K64 || ds) { 12 } else { 16 };
    if !(least..=most).contains(&size) {
        return None;
    }
    let base = table & 0x000f_ffff_ffff_fff0;
    if base >> output_bits != 0 || base >> 48 != 0 && granule != Granule::K64 && !ds {
        return None;
    }
    let input_bits = 64 - size;
    let start = stage1_start(granule, input_bits);
    let table_bits = (input_bits - granule.span(start) + 3).max(if output_bits == 52 { 6 } else { 4 });
    Some(Half {
        granule,
        input_bits,
        start,
        ds,
        table: base & !((1u64 << table_bits) - 1),
        hierarchy_off: config.had && table >> 1 & 1 == 1,
        view: view(config, field(controls, 9, 8), field(controls, 11, 10), field(controls, 13, 12)),
    })
}
