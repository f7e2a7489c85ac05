//! What can be done to a good stream: damage in one place, or a change while it is in use.

use std::ops::Range;

use super::super::machine::{Kind, READER, WRITER};
use super::draft::{Draft, VMID};

pub(super) fn size1(d: &mut Draft, sizes: &[u64]) {
    let at = if d.upper { 16 } else { 0 };
    d.cd[0] = d.cd[0] & !(0x3f << at) | d.pick(sizes) << at;
}

pub(super) fn size2(d: &mut Draft, sizes: &[u64]) {
    d.ste[2] = d.ste[2] & !(0x3f << 32) | d.pick(sizes) << 32;
}

/// Damages the first leaf.
pub(super) fn leaf(d: &mut Draft, clear: &[u64], set: &[u64]) {
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
pub(super) fn table(d: &mut Draft, clear: &[u64], set: &[u64]) {
    let path = d.leaves[0].path.clone();
    if let Some((_, tables @ [_, ..])) = path.split_last() {
        let at = d.pick(tables);
        damage(d, at, clear, set);
    }
}

/// Makes a page a block, or a block a table.
pub(super) fn other_kind(d: &mut Draft) {
    let page = d.leaves[0].span == d.tree.granule;
    if page { leaf(d, &[2], &[]) } else { leaf(d, &[], &[2]) }
}

/// Damages the second-stage leaves for some bytes.
pub(super) fn outer(d: &mut Draft, bytes: fn(&Draft) -> Range<u64>, clear: u64, set: u64) {
    for ipa in bytes(d).step_by(1 << d.outer.granule) {
        if let Some(&at) = d.outer_path(ipa).last() {
            d.flip(at, clear, set);
        }
    }
}

/// The first stage's root.
pub(super) fn root(d: &Draft) -> Range<u64> {
    d.tree.root..d.tree.root + (1 << d.tree.granule)
}

/// The CD.
pub(super) fn descriptor(_: &Draft) -> Range<u64> {
    Draft::CD..Draft::CD + 64
}

/// Where the first leaf leads.
pub(super) fn output(d: &Draft) -> Range<u64> {
    d.leaves[0].ipa..d.leaves[0].ipa + 1
}

/// Accesses the first leaf in one way, and then in the other.
pub(super) fn both_ways(d: &mut Draft, first: Kind) {
    let address = d.leaves[0].address;
    d.access(first, address);
    d.access(if first == Kind::Read { Kind::Write } else { Kind::Read }, address);
}

pub(super) fn tagged(d: &mut Draft, enable: u64) {
    d.cd[0] |= enable << 38;
    let tag = d.prng.below(0xff) << 56;
    let address = d.leaves[0].address & (u64::MAX >> 8) | tag;
    d.access(Kind::Read, address);
    d.access(Kind::Write, address);
}

/// Accesses just outside of the input's range, and far outside.
pub(super) fn beyond(d: &mut Draft) {
    for at in [d.tree.bits, 50] {
        let address = d.leaves[0].address ^ 1 << at;
        d.access(Kind::Read, address);
        d.access(Kind::Write, address);
    }
}

pub(super) fn other_half(d: &mut Draft) {
    let address = d.leaves[0].address ^ u64::MAX << d.tree.bits;
    d.access(Kind::Read, address);
    d.access(Kind::Write, address);
}

/// Sets the contiguous hint in a run of leaves that deserve it.
pub(super) fn contiguous(d: &mut Draft) {
    let leaf = d.leaves[0].clone();
    let Some(&at) = leaf.path.last() else { return };
    // The smallest run of any granule and level is of 16 entries, the largest of 128.
    let (granule, level) = (d.tree.granule, (leaf.span - d.tree.granule) / (d.tree.granule - 3));
    let entries: u64 = match (granule, level) {
        (14, 0) => 128,
        (14, 1) | (16, _) => 32,
        (12, _) => 16,
        _ => return,
    };
    let page = 1u64 << leaf.span;
    let run = entries * page;
    // A root may be smaller than a run, and memory is.
    if leaf.path.len() == 1 || run > 1 << 30 {
        return;
    }
    let first = at & !(8 * entries - 1);
    let base = d.place_run(run);
    let word = d.image.get(at) & !0x0000_ffff_ffff_f000;
    for entry in 0..entries {
        d.image.set(first + 8 * entry, (base + entry * page) | word | 1 << 52);
    }
    d.watch(base | leaf.address & (run - 1), run);
    let offset = 16 * d.prng.below(run >> 4);
    for address in [leaf.address, leaf.address & !(run - 1) | offset] {
        d.access(Kind::Read, address);
        d.access(Kind::Write, address);
    }
}

/// As [`remap`], with an invalidation of a range around the leaf: SCALE 0, the stream's granule.
pub(super) fn range(d: &mut Draft, command: u64) {
    let (granule, span) = (d.tree.granule, d.leaves[0].span);
    // NUM says how many granules there are, less one: 32 at most.
    if span > granule + 5 {
        return;
    }
    let tg = match granule {
        12 => 1,
        14 => 2,
        _ => 3,
    };
    let pages = (1u64 << (span - granule)) - 1;
    let base = d.leaves[0].address >> span << span;
    let number = pages.max(d.prng.below(8));
    let command = [command | number << 12, base | tg << 10];
    // A range of one granule without a level is not a range.
    let command = if number == 0 { [command[0] | 1 << 12, command[1]] } else { command };
    replace_with(d, 1, |_| vec![command]);
}

/// Uses a leaf, makes it lead elsewhere, invalidates, and uses it again.
pub(super) fn remap(d: &mut Draft, invalidation: fn(u64) -> Vec<[u64; 2]>) {
    replace(d, invalidation, 1);
}

/// As [`remap`], for the entry above the leaf, which is cleared.
pub(super) fn cut(d: &mut Draft, invalidation: fn(u64) -> Vec<[u64; 2]>) {
    replace(d, invalidation, 2);
}

fn replace(d: &mut Draft, invalidation: fn(u64) -> Vec<[u64; 2]>, from_end: usize) {
    replace_with(d, from_end, invalidation);
}

fn replace_with(d: &mut Draft, from_end: usize, invalidation: impl Fn(u64) -> Vec<[u64; 2]>) {
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
pub(super) fn reconfigure(d: &mut Draft, invalidation: &[[u64; 2]]) {
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
pub(super) fn redescribe(d: &mut Draft, invalidation: &[[u64; 2]]) {
    d.accesses();
    let new = d.cd[0] & !(1 << 31);
    d.store(d.cd_at(), new);
    d.commands(invalidation);
    d.accesses();
}
