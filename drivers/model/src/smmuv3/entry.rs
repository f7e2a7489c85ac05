//! Stream Table Entries: decoding and the rules of validity (IHI 0070, 5.1 and 5.2).

use super::config::Config;
use super::walk::{Granule, stage2_start};
use crate::core::View;

/// Who a stream belongs to: the translation regime that tags its TLB entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamWorld {
    /// Non-secure EL1 and EL0.
    El1,
    /// EL2 without ASIDs.
    El2,
    /// EL2 with ASIDs (E2H).
    El2E2h,
}

/// Stage-1 part of an STE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stage1 {
    pub(super) two_level_shift: Option<u8>,
    pub(super) pointer: u64,
    pub(super) cd_bits: u8,
    pub(super) dss: u8,
    pub(super) stalls_off: bool,
    pub(super) view: View,
}

/// Stage-2 part of an STE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stage2 {
    pub(super) granule: Granule,
    pub(super) input_bits: u8,
    pub(super) output_bits: u8,
    pub(super) start: i8,
    pub(super) ds: bool,
    pub(super) table: u64,
    pub(super) affd: bool,
    pub(super) ptw: bool,
    pub(super) ha: bool,
    pub(super) hd: bool,
    pub(super) stall: bool,
    pub(super) record: bool,
    pub(super) view: View,
}

/// Effective ATS mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ats {
    Off,
    Full,
    Split,
}

/// A valid STE that translates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Translating {
    pub(super) stage1: Option<Stage1>,
    pub(super) stage2: Option<Stage2>,
    pub(super) world: StreamWorld,
    pub(super) vmid: u16,
    pub(super) ats: Ats,
    /// PRIVCFG and INSTCFG where they count: 2 or 3, else 0.
    pub(super) privcfg: u8,
    pub(super) instcfg: u8,
}

/// What hardware makes of an STE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// V = 0 or ILLEGAL: C_BAD_STE.
    Invalid,
    /// Config = 0b0xx: silent abort.
    Abort,
    /// Config = 0b100.
    Bypass,
    /// Config = 0b101, 0b110 or 0b111.
    Translate(Box<Translating>),
}

/// A decoded STE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ste {
    pub(super) meaning: Meaning,
    pub(super) ppar: bool,
}

impl Ste {
    /// A short name for coverage.
    pub(super) fn name(&self) -> &'static str {
        match &self.meaning {
            Meaning::Invalid => "invalid",
            Meaning::Abort => "abort",
            Meaning::Bypass => "bypass",
            Meaning::Translate(t) => match (&t.stage1, &t.stage2) {
                (Some(s1), None) if s1.cd_bits == 0 => "stage 1",
                (Some(_), None) => "stage 1 with substreams",
                (None, _) => "stage 2",
                (Some(_), Some(_)) => "nested",
            },
        }
    }
}

/// Everything besides the entry that its meaning depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    pub(super) config: &'a Config,
    pub(super) atschk: bool,
    pub(super) e2h: bool,
}

const fn field(word: u64, high: u32, low: u32) -> u64 {
    word >> low & (u64::MAX >> (63 - (high - low)))
}

/// The observer that accesses with these attributes are: coherent only if cacheable, shareable, and the system
/// can do it.
pub(super) fn view(config: &Config, inner: u64, outer: u64, shareability: u64) -> View {
    if config.coherent && inner != 0 && outer != 0 && shareability >= 2 {
        View::Coherent
    } else {
        View::Uncached
    }
}

/// Reserved bits that are set in an entry, as (word, bits).
pub(super) fn reserved(words: &[u64; 8]) -> Option<(usize, u64)> {
    const RES0: [u64; 8] =
        [0x0700_0000_0000_0000, 0x0000_0e00_0000_0000, 0, 0x9f00_0000_0000_0000, 0, 0, 0, 0];
    if words[0] & 1 == 0 {
        return None;
    }
    (0..8).map(|i| (i, words[i] & RES0[i])).find(|&(_, bits)| bits != 0)
}

/// Decodes an STE of the Non-secure Stream table.
pub(super) fn decode(words: &[u64; 8], context: Context<'_>) -> Ste {
    let ppar = field(words[1], 18, 18) == 1;
    Ste { meaning: meaning(words, context).unwrap_or(Meaning::Invalid), ppar }
}

fn meaning(words: &[u64; 8], context: Context<'_>) -> Option<Meaning> {
    let config = context.config;
    let [w0, w1, w2, ..] = *words;
    if w0 & 1 == 0 {
        return None;
    }
    let selected = field(w0, 3, 1);
    match selected {
        0..=3 => return Some(Meaning::Abort),
        4 => return Some(Meaning::Bypass),
        _ => {}
    }
    let (has1, has2) = (selected & 1 == 1, selected & 2 == 2);
    if has1 && !config.stage1 || has2 && !config.stage2 {
        return None;
    }
    let stage2 = if has2 { Some(stage2(words, config)?) } else { None };
    let stall2 = stage2.as_ref().is_some_and(|s2| s2.stall);
    let ats = ats(field(w1, 29, 28), selected, stall2, context)?;
    let world = world(field(w1, 31, 30), selected, context)?;
    let stage1 = if has1 { Some(stage1(w0, w1, has2, config)?) } else { None };
    let vmid_used = config.stage2 && world == StreamWorld::El1;
    let vmid = field(w2, 15, 0) as u16;
    if vmid_used && !config.vmid16 && vmid > 0xff {
        return None;
    }
    let attribute = |value: u64| if config.perms_override && value >= 2 { value as u8 } else { 0 };
    Some(Meaning::Translate(Box::new(Translating {
        stage1,
        stage2,
        world,
        vmid: if vmid_used { vmid } else { 0 },
        ats,
        privcfg: attribute(field(w1, 49, 48)),
        instcfg: attribute(field(w1, 51, 50)),
    })))
}

fn ats(eats: u64, selected: u64, stall2: bool, context: Context<'_>) -> Option<Ats> {
    if !context.config.ats {
        return Some(Ats::Off);
    }
    match eats {
        1 if stall2 => None,
        1 => Some(Ats::Full),
        2 if selected != 7 || stall2 || context.config.no_split_ats => None,
        2 if context.atschk => Some(Ats::Split),
        _ => Some(Ats::Off),
    }
}

fn world(strw: u64, selected: u64, context: Context<'_>) -> Option<StreamWorld> {
    if !context.config.stage1 || !context.config.hyp || selected & 2 == 2 {
        return Some(StreamWorld::El1);
    }
    match strw {
        0 => Some(StreamWorld::El1),
        2 if context.e2h => Some(StreamWorld::El2E2h),
        2 => Some(StreamWorld::El2),
        _ => None,
    }
}

fn stage1(w0: u64, w1: u64, nested: bool, config: &Config) -> Option<Stage1> {
    let stalls_off = field(w1, 27, 27) == 1;
    if stalls_off && config.stall_model != 0 {
        return None;
    }
    let format = field(w0, 5, 4);
    let cd_bits = if config.ssid_bits == 0 { 0 } else { field(w0, 63, 59) as u8 };
    if cd_bits > config.ssid_bits || cd_bits != 0 && !config.cd2l && matches!(format, 1 | 2) {
        return None;
    }
    let two_level_shift = match format {
        1 if cd_bits != 0 => Some(6),
        2 if cd_bits != 0 => Some(10),
        _ => None,
    };
    let pointer = w0 & 0x00ff_ffff_ffff_ffc0;
    // An IPA out of range may also be a stage-2 fault; a PA out of range always makes the entry ILLEGAL.
    if pointer >> config.oas != 0 && (!nested || config.minor > 0) {
        return None;
    }
    let view = view(config, field(w1, 3, 2), field(w1, 5, 4), field(w1, 7, 6));
    // What is RES0 because of the table's size is taken as zero.
    let bytes = match two_level_shift {
        _ if cd_bits == 0 => 6,
        None => cd_bits + 6,
        Some(shift) => (cd_bits.saturating_sub(shift) + 3).max(6),
    };
    let pointer = pointer & !((1u64 << bytes) - 1);
    Some(Stage1 { two_level_shift, pointer, cd_bits, dss: field(w1, 1, 0) as u8, stalls_off, view })
}

fn stage2(words: &[u64; 8], config: &Config) -> Option<Stage2> {
    let [_, _, w2, w3, ..] = *words;
    let bit = |at: u32| w2 >> at & 1 == 1;
    let (stall, ha, hd) = (bit(57), bit(56), bit(55));
    // AArch32 tables and big-endian walks are not implemented.
    if !bit(51) || bit(52) {
        return None;
    }
    if config.stall_model == 1 && stall || config.stall_model == 2 && !stall {
        return None;
    }
    if (ha || hd) && config.httu == 0 || hd && config.httu == 1 {
        return None;
    }
    let granule = Granule::from_tg0(field(w2, 47, 46)).filter(|&granule| config.has(granule))?;
    let ds = config.ds && field(w3, 3, 3) == 1 && granule != Granule::K64;
    let t0sz = field(w2, 37, 32) as u8;
    let most = match (config.stt, granule) {
        (false, _) => 39,
        (true, Granule::K64) => 47,
        (true, _) => 48,
    };
    let least = if granule == Granule::K64 || ds { 12 } else { 16 }.max(64 - config.oas);
    if !(least..=most).contains(&t0sz) {
        return None;
    }
    let input_bits = 64 - t0sz;
    let sl0_2 = config.ds && ds && field(w3, 2, 2) == 1;
    let start = stage2_start(granule, field(w2, 39, 38), sl0_2, input_bits, config.oas, config.stt)?;
    let output_bits = config.address_bits(field(w2, 50, 48));
    let base = w3 & 0x000f_ffff_ffff_fff0;
    if base >> output_bits != 0 || base >> 48 != 0 && granule != Granule::K64 && !ds {
        return None;
    }
    let table_bits = (input_bits - granule.span(start) + 3).max(if output_bits == 52 { 6 } else { 4 });
    Some(Stage2 {
        granule,
        input_bits,
        output_bits,
        start,
        ds,
        table: base & !((1u64 << table_bits) - 1),
        affd: bit(53),
        ptw: bit(54),
        ha,
        hd: ha && hd,
        stall,
        record: bit(58),
        view: view(config, field(w2, 41, 40), field(w2, 43, 42), field(w2, 45, 44)),
    })
}
