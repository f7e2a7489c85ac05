//! The kinds of input: what is done to a good stream.

use std::ops::Range;

use super::super::case::Case;
use super::super::machine::{Kind, READER, WRITER};
use super::draft::{ASID, Draft, Shape, Streams, VMID};
use Shape::{Bypass, Concatenated, Nested, Scattered, Stage1, Stage2, WideStage2};

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

fn size1(d: &mut Draft, sizes: &[u64]) {
    let at = if d.upper { 16 } else { 0 };
    d.cd[0] = d.cd[0] & !(0x3f << at) | d.pick(sizes) << at;
}

fn size2(d: &mut Draft, sizes: &[u64]) {
    d.ste[2] = d.ste[2] & !(0x3f << 32) | d.pick(sizes) << 32;
}

/// Damages the first leaf.
fn leaf(d: &mut Draft, clear: &[u64], set: &[u64]) {
    if let Some(&at) = d.leaves[0].path.last() {
        damage(d, at, clear, set);
    }
}

/// Clears and sets bits of a word, each one of several choices.
fn damage(d: &mut Draft, at: u64, clear: &[u64], set: &[u64]) {
    let clear = if clear.is_empty() { 0 } else { d.pick(clear) };
    let set = if set.is_empty() { 0 } else { d.pick(set) };
    d.flip(at, clear, set);
}

/// Damages an entry that points to a table, if there is one; else the tree is all leaves and stays good.
fn table(d: &mut Draft, clear: &[u64], set: &[u64]) {
    let path = d.leaves[0].path.clone();
    if let Some((_, tables @ [_, ..])) = path.split_last() {
        let at = d.pick(tables);
        damage(d, at, clear, set);
    }
}

/// Makes a page a block, or a block a table.
fn other_kind(d: &mut Draft) {
    let page = d.leaves[0].span == d.tree.granule;
    if page { leaf(d, &[2], &[]) } else { leaf(d, &[], &[2]) }
}

/// Damages the second-stage leaves for some bytes.
fn outer(d: &mut Draft, bytes: fn(&Draft) -> Range<u64>, clear: u64, set: u64) {
    for ipa in bytes(d).step_by(1 << d.outer.granule) {
        if let Some(&at) = d.outer_path(ipa).last() {
            d.flip(at, clear, set);
        }
    }
}

/// The first stage's root.
fn root(d: &Draft) -> Range<u64> {
    d.tree.root..d.tree.root + (1 << d.tree.granule)
}

/// The CD.
fn descriptor(_: &Draft) -> Range<u64> {
    Draft::CD..Draft::CD + 64
}

/// Where the first leaf leads.
fn output(d: &Draft) -> Range<u64> {
    d.leaves[0].ipa..d.leaves[0].ipa + 1
}

/// Accesses the first leaf in one way, and then in the other.
fn both_ways(d: &mut Draft, first: Kind) {
    let address = d.leaves[0].address;
    d.access(first, address);
    d.access(if first == Kind::Read { Kind::Write } else { Kind::Read }, address);
}

fn tagged(d: &mut Draft, enable: u64) {
    d.cd[0] |= enable << 38;
    let tag = d.prng.below(0xff) << 56;
    let address = d.leaves[0].address & (u64::MAX >> 8) | tag;
    d.access(Kind::Read, address);
    d.access(Kind::Write, address);
}

/// Accesses just outside of the input's range, and far outside.
fn beyond(d: &mut Draft) {
    for at in [d.tree.bits, 50] {
        let address = d.leaves[0].address ^ 1 << at;
        d.access(Kind::Read, address);
        d.access(Kind::Write, address);
    }
}

fn other_half(d: &mut Draft) {
    let address = d.leaves[0].address ^ u64::MAX << d.tree.bits;
    d.access(Kind::Read, address);
    d.access(Kind::Write, address);
}

/// Uses a leaf, makes it lead elsewhere, invalidates, and uses it again.
fn remap(d: &mut Draft, invalidation: fn(u64) -> Vec<[u64; 2]>) {
    replace(d, invalidation, 1);
}

/// As [`remap`], for the entry above the leaf, which is cleared.
fn cut(d: &mut Draft, invalidation: fn(u64) -> Vec<[u64; 2]>) {
    replace(d, invalidation, 2);
}

fn replace(d: &mut Draft, invalidation: fn(u64) -> Vec<[u64; 2]>, from_end: usize) {
    d.ste[2] |= VMID;
    d.accesses();
    let leaf = d.leaves[0].clone();
    let Some(&at) = leaf.path.iter().rev().nth(from_end - 1) else { return };
    let word = d.image.get(at);
    let new = if from_end == 1 { d.pick(&[0, word | 1 << 7, word & !(1 << 10)]) } else { 0 };
    d.store(at, new);
    d.commands(&invalidation(leaf.address));
    d.accesses();
}

/// Uses a stream, makes its STE one that aborts, bypasses or is not valid, invalidates, and uses it again.
fn reconfigure(d: &mut Draft, invalidation: &[[u64; 2]]) {
    d.accesses();
    let word = d.ste[0];
    let new = d.pick(&[word & !1, word & !(1 << 3)]);
    for stream in [READER, WRITER] {
        d.store(d.ste_at(stream), new);
    }
    d.commands(invalidation);
    d.accesses();
}

/// As [`reconfigure`], for the CD.
fn redescribe(d: &mut Draft, invalidation: &[[u64; 2]]) {
    d.accesses();
    let new = d.cd[0] & !(1 << 31);
    d.store(d.cd_at(), new);
    d.commands(invalidation);
    d.accesses();
}
