//! The kinds of input: what is done to a good stream.

use super::super::case::Case;
use super::super::machine::{Kind, READER, WRITER};
use super::changes::{
    beyond, both_ways, contiguous, cut, descriptor, leaf, other_half, other_kind, outer, output, range,
    reconfigure, redescribe, remap, root, size1, size2, table, tagged,
};
use super::draft::{ASID, Draft, Shape, Streams, VMID};
use Shape::{Bypass, Concatenated, LargeTables, Nested, Scattered, Stage1, Stage2, WideStage2};

/// A kind of input.
type Class = (&'static str, Shape, fn(&mut Draft));

/// How many cases have each kind once.
pub(crate) const COUNT: u64 = CLASSES.len() as u64;

/// The case of a seed.
pub(crate) fn case(seed: u64) -> Case {
    let (input, shape, change) = CLASSES[(seed % COUNT) as usize];
    let mut draft = Draft::new(seed, shape);
    change(&mut draft);
    draft.finish(seed, input)
}

const CLASSES: &[Class] = &[
    ("good", Bypass, |_| {}),
    ("SMMUEN = 0, GBPA bypasses", Stage1, |d| d.without_translation(0)),
    ("SMMUEN = 0, GBPA aborts", Stage1, |d| d.without_translation(1 << 20)),
    ("good", Stage1, |_| {}),
    ("good", Stage2, |_| {}),
    ("good", Nested, |_| {}),
    ("stage 2: input larger than output", WideStage2, |_| {}),
    ("stage 2: root of several tables", Concatenated, |_| {}),
    ("nested: tables scattered over pages", Scattered, |_| {}),
    ("stream table linear again", Stage1, |d| d.streams = Streams::LinearAgain),
    ("STE.V = 0", Stage1, |d| d.ste[0] &= !1),
    ("STE.Config aborts", Stage1, |d| d.ste[0] &= !(1 << 3)),
    ("STE.Config for one stage, tables for both", Nested, |d| d.ste[0] &= !(1 << 2)),
    ("STE.S1CDMax without substreams", Stage1, |d| d.ste[0] |= 1 << 59),
    ("STE.S1Fmt without substreams", Stage1, |d| d.ste[0] |= d.pick(&[1, 2, 3]) << 4),
    ("STE.S1DSS without substreams", Stage1, |d| d.ste[1] |= d.pick(&[1, 2, 3])),
    ("STE.S1STALLD = 1", Stage1, |d| d.ste[1] |= 1 << 27),
    ("STE.EATS without ATS", Stage1, |d| d.ste[1] |= d.pick(&[1, 2, 3]) << 28),
    ("STE.STRW without EL2", Stage1, |d| d.ste[1] |= d.pick(&[1, 2, 3]) << 30),
    ("STE.PRIVCFG and INSTCFG without overrides", Stage1, |d| d.ste[1] |= d.prng.below(16) << 48),
    ("STE.S1ContextPtr out of range", Stage1, |d| d.ste[0] |= 1 << d.pick(&[44, 47, 51])),
    ("STE.S2S = 1", Stage2, |d| d.ste[2] |= 1 << 57),
    ("STE.S2HA without HTTU", Stage2, |d| d.ste[2] |= 1 << 56),
    ("STE.S2HD without HTTU", Stage2, |d| d.ste[2] |= 1 << 55),
    ("STE.S2TG reserved", Stage2, |d| d.ste[2] |= 3 << 46),
    ("STE.S2T0SZ too small", Stage2, |d| size2(d, &[0, 12, 16, 19])),
    ("STE.S2T0SZ too large", Stage2, |d| size2(d, &[40, 48, 63])),
    ("STE.S2SL0 reserved", Stage2, |d| d.ste[2] |= 3 << 38),
    ("STE.S2PS reserved", Stage2, |d| d.ste[2] = d.ste[2] & !(7 << 48) | d.pick(&[6, 7]) << 48),
    ("STE.S2TTB out of range", Stage2, |d| d.ste[3] |= 1 << d.pick(&[44, 47])),
    ("STE.S2ENDI = 1", Stage2, |d| d.ste[2] |= 1 << 52),
    ("STE.S2AFFD = 1", Stage2, |d| {
        d.ste[2] |= 1 << 53;
        leaf(d, &[1 << 10], &[]);
    }),
    ("STE.S2R = 0", Stage2, |d| {
        d.ste[2] &= !(1 << 58);
        leaf(d, &[3], &[]);
    }),
    ("StreamID out of the table", Stage1, |d| {
        d.streams = Streams::TwoLevel(8);
        d.image.set(Draft::L1STD, 0x4112_0000 | 4);
    }),
    ("L1STD.Span = 0", Stage1, |d| {
        d.streams = Streams::TwoLevel(6);
        d.image.set(Draft::L1STD, 0x4112_0000);
    }),
    ("L1STD.Span reserved", Stage1, |d| {
        d.streams = Streams::TwoLevel(6);
        let span = d.pick(&[8, 12, 31]);
        d.image.set(Draft::L1STD, 0x4112_0000 | span);
    }),
    ("CD.V = 0", Stage1, |d| d.cd[0] &= !(1 << 31)),
    ("CD.AA64 = 0", Stage1, |d| d.cd[0] &= !(1 << 41)),
    ("CD.A = 0", Stage1, |d| d.cd[0] &= !(1 << 46)),
    ("CD.S = 1", Stage1, |d| d.cd[0] |= 1 << 44),
    ("CD.HA without HTTU", Stage1, |d| d.cd[0] |= 1 << 43),
    ("CD.HD without HTTU", Stage1, |d| d.cd[0] |= 1 << 42),
    ("CD.ENDI = 1", Stage1, |d| d.cd[0] |= 1 << 15),
    ("CD.T0SZ too small", Stage1, |d| size1(d, &[0, 12, 15])),
    ("CD.T0SZ too large", Stage1, |d| size1(d, &[40, 48, 63])),
    ("CD.TG reserved", Stage1, |d| {
        let at = if d.upper { 22 } else { 6 };
        let reserved = if d.upper { 0 } else { 3 };
        d.cd[0] = d.cd[0] & !(3 << at) | reserved << at;
    }),
    ("CD.EPD = 1", Stage1, |d| d.cd[0] |= 1 << if d.upper { 30 } else { 14 }),
    ("CD.TTB out of range", Stage1, |d| {
        let word = if d.upper { 2 } else { 1 };
        d.cd[word] |= 1 << d.pick(&[44, 47]);
    }),
    ("CD.IPS smaller than the output", Stage1, |d| {
        d.cd[0] &= !(7 << 32);
        leaf(d, &[], &[1 << 32, 1 << 36]);
    }),
    ("CD.TBI = 1, tagged address", Stage1, |d| tagged(d, 3)),
    ("CD.TBI = 0, tagged address", Stage1, |d| tagged(d, 0)),
    ("CD.AFFD = 1", Stage1, |d| {
        d.cd[0] |= 1 << 35;
        leaf(d, &[1 << 10], &[]);
    }),
    ("CD.R = 0", Stage1, |d| {
        d.cd[0] &= !(1 << 45);
        leaf(d, &[3], &[]);
    }),
    ("CD.HAD = 1, APTable", Stage1, |d| {
        d.cd[if d.upper { 2 } else { 1 }] |= 2;
        table(d, &[], &[3 << 61]);
    }),
    ("CD.PAN and WXN", Stage1, |d| d.cd[0] |= d.pick(&[1 << 36, 1 << 37, 1 << 40, 1 << 36 | 1 << 40])),
    ("leaf not valid", Stage1, |d| leaf(d, &[1], &[])),
    ("table not valid", Stage1, |d| table(d, &[1], &[])),
    ("leaf of the other kind", Stage1, other_kind),
    ("AF = 0", Stage1, |d| leaf(d, &[1 << 10], &[])),
    ("AP[2] = 1", Stage1, |d| leaf(d, &[], &[1 << 7])),
    ("AP[1] = 0", Stage1, |d| leaf(d, &[1 << 6], &[])),
    ("APTable[1] = 1", Stage1, |d| table(d, &[], &[1 << 62])),
    ("APTable[1] = 1, leaf not valid", Stage1, |d| {
        table(d, &[], &[1 << 62]);
        leaf(d, &[1], &[]);
    }),
    ("APTable[0] = 1", Stage1, |d| table(d, &[], &[1 << 61])),
    ("XN and PXN", Stage1, |d| leaf(d, &[], &[1 << 53, 1 << 54, 3 << 53])),
    ("DBM without HTTU", Stage1, |d| leaf(d, &[], &[1 << 51 | 1 << 7])),
    ("contiguous", Stage1, contiguous),
    ("contiguous", Stage2, contiguous),
    ("nG = 0", Stage1, |d| leaf(d, &[1 << 11], &[])),
    ("leaf out of range", Stage1, |d| leaf(d, &[], &[1 << 44, 1 << 47])),
    ("table out of range", Stage1, |d| table(d, &[], &[1 << 44, 1 << 47])),
    ("leaf not valid", Stage2, |d| leaf(d, &[1], &[])),
    ("table not valid", Stage2, |d| table(d, &[1], &[])),
    ("leaf of the other kind", Stage2, other_kind),
    ("AF = 0", Stage2, |d| leaf(d, &[1 << 10], &[])),
    ("S2AP: nothing", Stage2, |d| leaf(d, &[3 << 6], &[])),
    ("S2AP: write only", Stage2, |d| {
        leaf(d, &[1 << 6], &[]);
        both_ways(d, Kind::Write);
    }),
    ("S2AP: read only", Stage2, |d| {
        leaf(d, &[1 << 7], &[]);
        both_ways(d, Kind::Read);
    }),
    ("S2 XN", Stage2, |d| leaf(d, &[], &[1 << 53, 1 << 54, 3 << 53])),
    ("leaf out of range", Stage2, |d| leaf(d, &[], &[1 << 44, 1 << 47])),
    ("table out of range", Stage2, |d| table(d, &[], &[1 << 44, 1 << 47])),
    ("S2PS smaller than the output", Stage2, |d| {
        if d.tree.bits <= 32 {
            d.ste[2] &= !(7 << 48);
            leaf(d, &[], &[1 << 32, 1 << 36]);
        }
    }),
    ("input out of range", Stage1, beyond),
    ("input out of range", Stage2, beyond),
    ("input in the half without walks", Stage1, |d| other_half(d)),
    ("bypass, input out of range", Bypass, |d| {
        let address = d.leaves[0].address | 1 << d.pick(&[44, 48, 60]);
        d.access(Kind::Read, address);
        d.access(Kind::Write, address);
    }),
    ("nested: CD not mapped", Nested, |d| outer(d, descriptor, 1, 0)),
    ("nested: CD not readable", Nested, |d| outer(d, descriptor, 1 << 6, 0)),
    ("nested: CD mapped without access flag", Nested, |d| outer(d, descriptor, 1 << 10, 0)),
    ("nested: root not mapped", Nested, |d| outer(d, root, 1, 0)),
    ("nested: large root not mapped", LargeTables, |d| outer(d, root, 1, 0)),
    ("nested: root not readable", Nested, |d| outer(d, root, 1 << 6, 0)),
    ("nested: root not writable", Nested, |d| outer(d, root, 1 << 7, 0)),
    ("nested: root mapped without access flag", Nested, |d| outer(d, root, 1 << 10, 0)),
    ("nested: output not mapped", Nested, |d| outer(d, output, 1, 0)),
    ("nested: output not readable", Nested, |d| {
        outer(d, output, 1 << 6, 0);
        both_ways(d, Kind::Write);
    }),
    ("nested: output not writable", Nested, |d| {
        outer(d, output, 1 << 7, 0);
        both_ways(d, Kind::Read);
    }),
    ("nested: output mapped without access flag", Nested, |d| outer(d, output, 1 << 10, 0)),
    ("nested: output out of range", Nested, |d| outer(d, output, 0, 1 << 44)),
    ("nested: leaf not valid", Nested, |d| leaf(d, &[1], &[])),
    ("nested: AF = 0", Nested, |d| leaf(d, &[1 << 10], &[])),
    ("nested: AP[2] = 1", Nested, |d| leaf(d, &[], &[1 << 7])),
    ("nested: S2PTW, tables in device memory", Nested, |d| {
        d.ste[2] |= 1 << 54;
        outer(d, root, 0xf << 2, 0);
    }),
    ("leaf changed, TLBI_NH_VA", Stage1, |d| remap(d, |leaf| vec![[0x12 | TAGS, leaf & !0xfff | 1]])),
    ("leaf changed, TLBI_NH_VAA", Stage1, |d| remap(d, |leaf| vec![[0x13 | VMIDS, leaf & !0xfff | 1]])),
    ("leaf changed, TLBI_NH_VA of a range", Stage1, |d| range(d, 0x12 | TAGS)),
    ("leaf changed, TLBI_NH_VAA of a range", Stage1, |d| range(d, 0x13 | VMIDS)),
    ("leaf changed, TLBI_S2_IPA of a range", Stage2, |d| range(d, 0x2a | VMIDS)),
    ("leaf changed, TLBI_NH_ASID", Stage1, |d| remap(d, |_| vec![[0x11 | TAGS, 0]])),
    ("leaf changed, TLBI_NH_ALL", Stage1, |d| remap(d, |_| vec![[0x10 | VMIDS, 0]])),
    ("leaf changed, TLBI_NSNH_ALL", Stage1, |d| remap(d, |_| vec![[0x30, 0]])),
    ("leaf changed, TLBI of another ASID", Stage1, |d| remap(d, |_| vec![[0x11 | TAGS ^ 1 << 48, 0]])),
    ("leaf changed, TLBI of another address", Stage1, |d| {
        remap(d, |leaf| vec![[0x12 | TAGS, (leaf & !0xfff | 1) ^ 1 << 33]]);
    }),
    ("leaf changed, nothing invalidated", Stage1, |d| remap(d, |_| vec![])),
    ("leaf changed, TLBI_S12_VMALL", Stage2, |d| remap(d, |_| vec![[0x28 | VMIDS, 0]])),
    ("leaf changed, TLBI_S2_IPA", Stage2, |d| remap(d, |leaf| vec![[0x2a | VMIDS, leaf & !0xfff | 1]])),
    ("leaf changed, TLBI of another VMID", Stage2, |d| remap(d, |_| vec![[0x28 | VMIDS ^ 1 << 32, 0]])),
    ("leaf changed, nothing invalidated", Stage2, |d| remap(d, |_| vec![])),
    ("leaf changed, TLBI_S12_VMALL", Nested, |d| remap(d, |_| vec![[0x28 | VMIDS, 0]])),
    ("leaf changed, TLBI_NH_ASID", Nested, |d| remap(d, |_| vec![[0x11 | TAGS, 0]])),
    ("table cut off, TLBI_NH_VA without Leaf", Stage1, |d| {
        cut(d, |leaf| vec![[0x12 | TAGS, leaf & !0xfff]]);
    }),
    ("table cut off, TLBI_NH_ASID", Stage1, |d| cut(d, |_| vec![[0x11 | TAGS, 0]])),
    ("table cut off, TLBI_S12_VMALL", Stage2, |d| cut(d, |_| vec![[0x28 | VMIDS, 0]])),
    ("STE changed, CFGI_STE", Stage1, |d| reconfigure(d, &[cfgi(0x03, READER, 1), cfgi(0x03, WRITER, 1)])),
    ("STE changed, CFGI_STE_RANGE", Stage1, |d| reconfigure(d, &[cfgi(0x04, READER, 5)])),
    ("STE changed, CFGI_ALL", Stage2, |d| reconfigure(d, &[[0x04, 31]])),
    ("STE changed, CFGI_STE of another", Stage1, |d| reconfigure(d, &[cfgi(0x03, READER ^ 8, 1)])),
    ("CD changed, CFGI_CD", Stage1, |d| redescribe(d, &[cfgi(0x05, READER, 1), cfgi(0x05, WRITER, 1)])),
    ("CD changed, CFGI_CD_ALL", Stage1, |d| redescribe(d, &[cfgi(0x06, READER, 0), cfgi(0x06, WRITER, 0)])),
    ("CD changed, nothing invalidated", Stage1, |d| redescribe(d, &[])),
];

/// The VMID field of a command, which counts for streams with stage 1 alone too.
const VMIDS: u64 = VMID << 32;
/// The VMID and ASID fields.
const TAGS: u64 = VMIDS | ASID << 48;

const fn cfgi(opcode: u64, stream: u32, second: u64) -> [u64; 2] {
    [opcode | (stream as u64) << 32, second]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::case::Step;

    #[test]
    fn every_seed_gives_a_case_with_accesses() {
        for seed in 0..20 * COUNT {
            let case = case(seed);
            assert!(case.steps.iter().any(|step| matches!(step, Step::Access(_))), "{case}");
        }
    }

    #[test]
    fn most_contiguous_runs_are_there() {
        let cases = (0..20 * COUNT).map(case).filter(|case| case.input == "contiguous");
        let (with, without): (Vec<Case>, Vec<Case>) =
            cases.partition(|case| case.image.0.values().any(|word| word >> 52 & 1 == 1));
        assert!(with.len() > 20 && with.len() > without.len(), "{} and {}", with.len(), without.len());
    }
}
