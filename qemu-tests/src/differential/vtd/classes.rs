//! The kinds of input: what is done to good entries and tables.

use super::super::case::Case;
use super::super::machine::{Kind, READER, WRITER};
use super::Stage;
use super::draft::{DOMAIN, Draft, PAGE_SIZE, Shape};
use Shape::{PassThrough, Tables};

/// A kind of input.
type Class = (&'static str, Shape, fn(&mut Draft));

const fn own(stage: Stage) -> &'static [Class] {
    match stage {
        Stage::First => FIRST,
        Stage::Second => SECOND,
    }
}

/// How many cases have each kind once.
pub(crate) const fn count(stage: Stage) -> u64 {
    (BOTH.len() + own(stage).len()) as u64
}

/// The case of a seed.
pub(crate) fn case(stage: Stage, seed: u64) -> Case {
    let at = (seed % count(stage)) as usize;
    let (input, shape, change) = BOTH.iter().chain(own(stage)).copied().nth(at).unwrap_or(BOTH[0]);
    let mut draft = Draft::new(seed, stage, shape);
    change(&mut draft);
    draft.finish(seed, input)
}

/// Kinds for both stages.
const BOTH: &[Class] = &[
    ("good", Tables, |_| {}),
    ("good", PassThrough, |_| {}),
    ("root entry not present", Tables, |d| d.root[0] &= !1),
    ("root entry, reserved bits", Tables, |d| d.root[0] |= 1 << d.pick(&[1, 5, 11])),
    ("root entry out of range", Tables, |d| d.root[0] |= 1 << d.pick(&[48, 51])),
    ("context entry not present", Tables, |d| d.context[0] &= !1),
    ("context entry, reserved bits", Tables, |d| d.context[0] |= 1 << d.pick(&[5, 6, 7, 8])),
    ("context entry out of range", Tables, |d| d.context[0] |= 1 << d.pick(&[48, 51])),
    ("context entry, RID_PASID without RPS", Tables, |d| d.context[1] |= 1 + d.prng.below(0xf_ffff)),
    ("context entry, upper reserved bits", Tables, |d| d.context[1] |= 1 << d.pick(&[21, 40, 63])),
    ("context entry, third and fourth word", Tables, |d| {
        let word = d.pick(&[2, 3]);
        d.context[word] |= 1 << d.prng.below(64);
    }),
    ("context entry with FPD", Tables, |d| {
        d.context[0] |= 2;
        leaf(d, 3, &[]);
    }),
    ("context entry with PASIDE", Tables, |d| d.context[0] |= 1 << 3),
    ("context entry with PDTS", Tables, |d| d.context[0] |= d.prng.below(8) << 9),
    ("directory entry not present", Tables, |d| d.directory &= !1),
    ("directory entry, reserved bits", Tables, |d| d.directory |= 1 << d.pick(&[2, 7, 11])),
    ("directory entry out of range", Tables, |d| d.directory |= 1 << d.pick(&[48, 51])),
    ("directory entry with FPD", Tables, |d| {
        d.directory |= 2;
        leaf(d, 3, &[]);
    }),
    ("PASID entry not present", Tables, |d| d.pasid[0] &= !1),
    ("PASID entry zero", Tables, |d| d.pasid = [0; 8]),
    ("PASID entry, reserved bits", Tables, |d| d.pasid[0] |= 1 << d.pick(&[5, 10, 11])),
    ("PASID entry, upper reserved bits", Tables, |d| d.pasid[1] |= 1 << d.pick(&[16, 22])),
    ("PASID entry, SNP and memory types", Tables, |d| d.pasid[1] |= 1 << d.pick(&[23, 24, 25, 31, 32, 63])),
    ("PASID entry, fourth word and above", Tables, |d| {
        let word = d.pick(&[3, 4, 7]);
        d.pasid[word] |= 1 << d.prng.below(64);
    }),
    ("PASID entry with FPD", Tables, |d| {
        d.pasid[0] |= 2;
        leaf(d, 3, &[]);
    }),
    ("PGTT reserved", Tables, |d| d.pasid[0] = d.pasid[0] & !(7 << 6) | d.pick(&[0, 5, 6, 7]) << 6),
    ("PGTT of the other stage", Tables, |d| d.pasid[0] ^= 3 << 6),
    ("PGTT nested", Tables, |d| d.pasid[0] |= 3 << 6),
    ("pass-through, input out of range", PassThrough, |d| both(d, &[48, 60])),
    ("leaf not present", Tables, |d| leaf(d, 3, &[])),
    ("table not present", Tables, |d| table(d, 3, &[])),
    ("leaf out of range", Tables, |d| leaf(d, 0, &[48, 51])),
    ("table out of range", Tables, |d| table(d, 0, &[48, 51])),
    ("large page not aligned", Tables, |d| large_leaf(d, |span| span - 1)),
    ("leaf into the interrupt range", Tables, |d| {
        let page = d.leaves.iter().find(|leaf| leaf.span == 12);
        if let Some(&at) = page.and_then(|leaf| leaf.path.last()) {
            d.flip(at, ADDRESS, 0xfee0_1000);
        }
    }),
    ("leaf in the top table", Tables, |d| {
        let at = d.leaves[0].path[0];
        d.flip(at, ADDRESS, PAGE_SIZE);
    }),
    ("leaf changed, IOTLB global", Tables, |d| remap(d, |_| vec![[1 << 4 | 2, 0]])),
    ("leaf changed, IOTLB by domain", Tables, |d| remap(d, |_| vec![BY_DOMAIN])),
    ("leaf changed, IOTLB of another domain", Tables, |d| {
        remap(d, |_| vec![[(DOMAIN + 1) << 16 | 2 << 4 | 2, 0]]);
    }),
    ("leaf changed, nothing invalidated", Tables, |d| remap(d, |_| vec![])),
    ("table cut off, IOTLB by domain", Tables, |d| cut(d, |_| vec![BY_DOMAIN])),
    ("PASID entry taken away, by PASID", Tables, |d| take_away(d, &[BY_PASID, BY_DOMAIN])),
    ("PASID entry taken away, by domain", Tables, |d| {
        take_away(d, &[[DOMAIN << 16 | 7, 0], BY_DOMAIN]);
    }),
    ("PASID entry taken away, global", Tables, |d| take_away(d, &[[3 << 4 | 7, 0], [1 << 4 | 2, 0]])),
    ("PASID entry taken away, nothing invalidated", Tables, |d| take_away(d, &[])),
    ("PASID entry to pass-through, by PASID", Tables, |d| let_through(d, &[BY_PASID, BY_DOMAIN])),
    ("PASID entry to pass-through, nothing invalidated", Tables, |d| let_through(d, &[])),
    ("context entry changed, by device", Tables, |d| {
        let devices = [READER, WRITER].map(|device| [u64::from(device) << 32 | 3 << 4 | 1, 0]);
        leave(d, &[&devices[..], &[[3 << 4 | 7, 0], [1 << 4 | 2, 0]]].concat());
    }),
    ("context entry changed, global", Tables, |d| {
        leave(d, &[[1 << 4 | 1, 0], [3 << 4 | 7, 0], [1 << 4 | 2, 0]])
    }),
    ("context entry changed, nothing invalidated", Tables, |d| leave(d, &[])),
];

/// Kinds for first-stage tables.
const FIRST: &[Class] = &[
    ("AW smaller than the address", Tables, |d| d.pasid[0] &= !(7 << 2)),
    ("five levels", Tables, |d| d.pasid[2] |= 1 << 2),
    ("FSPM reserved", Tables, |d| d.pasid[2] |= 1 << 3),
    ("first-stage reserved bits", Tables, |d| d.pasid[2] |= 1 << d.pick(&[8, 11])),
    ("first-stage pointer out of range", Tables, |d| d.pasid[2] |= 1 << d.pick(&[48, 51])),
    ("SRE, ERE, WPE, SMEP", Tables, |d| d.pasid[2] |= d.pick(&[1 << 4, 1 << 6, 1 << 4 | 1 << 6])),
    ("address not canonical", Tables, |d| both(d, &[48, 56, 63])),
    ("leaf for supervisors", Tables, |d| leaf(d, 1 << 2, &[])),
    ("table for supervisors", Tables, |d| table(d, 1 << 2, &[])),
    ("table for supervisors, leaf not present", Tables, |d| {
        let page = d.leaves.iter().find(|leaf| leaf.span == 12).map(|leaf| leaf.path.clone());
        if let Some([.., table, leaf]) = page.as_deref() {
            d.flip(*table, 1 << 2, 0);
            d.flip(*leaf, 1, 0);
        }
    }),
    ("leaf not writable", Tables, |d| leaf(d, 1 << 1, &[])),
    ("table not writable", Tables, |d| table(d, 1 << 1, &[])),
    ("leaf not accessed", Tables, |d| leaf(d, 1 << 5, &[])),
    ("table not accessed", Tables, |d| table(d, 1 << 5, &[])),
    ("leaf not dirty", Tables, |d| leaf(d, 1 << 6, &[])),
    ("XD without NXE", Tables, |d| leaf(d, 0, &[63])),
    ("XD with NXE", Tables, |d| {
        d.pasid[2] |= 1 << 5;
        leaf(d, 0, &[63]);
    }),
    ("ignored bits", Tables, |d| leaf(d, 0, &[8, 9, 10, 11, 52, 58, 62])),
    ("large page with PAT", Tables, |d| large_leaf(d, |_| 12)),
    ("leaf changed, PASID IOTLB by address", Tables, |d| {
        remap(d, |leaf| vec![[DOMAIN << 16 | 3 << 4 | 6, leaf & !0xfff]]);
    }),
    ("leaf changed, PASID IOTLB", Tables, |d| remap(d, |_| vec![[DOMAIN << 16 | 2 << 4 | 6, 0]])),
    ("leaf changed, another PASID", Tables, |d| remap(d, |_| vec![[1 << 32 | DOMAIN << 16 | 2 << 4 | 6, 0]])),
    ("leaf changed, another address", Tables, |d| {
        remap(d, |leaf| vec![[DOMAIN << 16 | 3 << 4 | 6, (leaf & !0xfff) ^ 1 << 33]]);
    }),
    ("table cut off, PASID IOTLB", Tables, |d| cut(d, |_| vec![[DOMAIN << 16 | 2 << 4 | 6, 0]])),
];

/// Kinds for second-stage tables.
const SECOND: &[Class] = &[
    ("AW not supported", Tables, |d| d.pasid[0] = d.pasid[0] & !(7 << 2) | d.pick(&[0, 3, 4, 7]) << 2),
    ("second-stage pointer out of range", Tables, |d| d.pasid[0] |= 1 << d.pick(&[48, 51])),
    ("SSADE without SSADS", Tables, |d| d.pasid[0] |= 1 << 9),
    ("input out of range", Tables, |d| both(d, &[u64::from(d.tree.bits)])),
    ("input far out of range", Tables, |d| both(d, &[56])),
    ("leaf not readable", Tables, |d| leaf(d, 1, &[])),
    ("leaf not writable", Tables, |d| leaf(d, 2, &[])),
    ("table not readable", Tables, |d| table(d, 1, &[])),
    ("table not writable", Tables, |d| table(d, 2, &[])),
    ("ignored bits", Tables, |d| leaf(d, 0, &[8, 9, 10, 52, 61])),
    ("SNP", Tables, |d| leaf(d, 0, &[11])),
    ("SNP in a table", Tables, |d| table(d, 0, &[11])),
    ("TM", Tables, |d| leaf(d, 0, &[62])),
    ("TM in a table", Tables, |d| table(d, 0, &[62])),
    ("leaf changed, IOTLB by address", Tables, |d| {
        remap(d, |leaf| vec![[DOMAIN << 16 | 3 << 4 | 2, leaf & !0xfff]]);
    }),
    ("leaf changed, IOTLB by address with mask", Tables, |d| {
        remap(d, |leaf| vec![[DOMAIN << 16 | 3 << 4 | 2, leaf & !0x3_ffff | 6]]);
    }),
    ("leaf changed, another address", Tables, |d| {
        remap(d, |leaf| vec![[DOMAIN << 16 | 3 << 4 | 2, (leaf & !0xfff) ^ 1 << 33]]);
    }),
    ("table cut off, IOTLB global", Tables, |d| cut(d, |_| vec![[1 << 4 | 2, 0]])),
];

/// PASID cache, one PASID of the domain.
const BY_PASID: [u64; 2] = [DOMAIN << 16 | 1 << 4 | 7, 0];
/// IOTLB, the domain.
const BY_DOMAIN: [u64; 2] = [DOMAIN << 16 | 2 << 4 | 2, 0];
/// The address field of an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Damages the first leaf: clears bits, and sets one of some others.
fn leaf(d: &mut Draft, clear: u64, set: &[u64]) {
    if let Some(&at) = d.leaves[0].path.last() {
        let set = one_of(d, set);
        d.flip(at, clear, set);
    }
}

/// Sets a bit, which depends on the size, in a leaf that is a large page.
fn large_leaf(d: &mut Draft, bit: fn(u32) -> u32) {
    let large = d.leaves.iter().find(|leaf| leaf.span > 12);
    if let Some((span, &at)) = large.and_then(|leaf| Some((leaf.span, leaf.path.last()?))) {
        d.flip(at, 0, 1 << bit(span));
    }
}

/// Damages an entry that points to a table.
fn table(d: &mut Draft, clear: u64, set: &[u64]) {
    let above = d.leaves.iter().filter_map(|leaf| Some(leaf.path.split_last()?.1));
    let tables: Vec<u64> = above.flatten().copied().collect();
    let at = d.pick(&tables);
    let set = one_of(d, set);
    d.flip(at, clear, set);
}

fn one_of(d: &mut Draft, bits: &[u64]) -> u64 {
    if bits.is_empty() { 0 } else { 1 << d.pick(bits) }
}

/// Accesses an address with one of some bits turned over.
fn both(d: &mut Draft, bits: &[u64]) {
    let address = d.leaves[0].address ^ one_of(d, bits);
    d.access(Kind::Read, address);
    d.access(Kind::Write, address);
}

/// Uses a leaf, makes it another one, invalidates, and uses it again.
fn remap(d: &mut Draft, invalidation: fn(u64) -> Vec<[u64; 2]>) {
    let leaf = d.leaves[0].clone();
    let Some(&at) = leaf.path.last() else { return };
    d.accesses();
    let word = d.image.get(at);
    let new = d.pick(&[0, word & !2]);
    d.store(at, new);
    d.commands(&invalidation(leaf.address));
    d.accesses();
}

/// As [`remap`], for the entry above the leaf, which is cleared.
fn cut(d: &mut Draft, invalidation: fn(u64) -> Vec<[u64; 2]>) {
    let leaf = d.leaves[0].clone();
    let Some(&at) = leaf.path.iter().rev().nth(1) else { return };
    d.accesses();
    d.store(at, 0);
    d.commands(&invalidation(leaf.address));
    d.accesses();
}

/// Uses a device, clears the present bit of its PASID table entry, invalidates, and uses it again.
fn take_away(d: &mut Draft, invalidation: &[[u64; 2]]) {
    reconfigure(d, d.pasid[0] & !1, invalidation);
}

/// As [`take_away`], but the entry becomes one for pass-through.
fn let_through(d: &mut Draft, invalidation: &[[u64; 2]]) {
    reconfigure(d, d.pasid[0] & !(7 << 6) | 4 << 6, invalidation);
}

fn reconfigure(d: &mut Draft, new: u64, invalidation: &[[u64; 2]]) {
    d.accesses();
    d.store(Draft::PASID, new);
    d.commands(invalidation);
    d.accesses();
}

/// As [`take_away`], for the context entries.
fn leave(d: &mut Draft, invalidation: &[[u64; 2]]) {
    d.accesses();
    for device in [READER, WRITER] {
        d.store(Draft::context_at(device), 0);
    }
    d.commands(invalidation);
    d.accesses();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::case::Step;

    #[test]
    fn every_seed_gives_a_case_with_accesses() {
        for stage in [Stage::First, Stage::Second] {
            for seed in 0..20 * count(stage) {
                let case = case(stage, seed);
                assert!(case.steps.iter().any(|step| matches!(step, Step::Access(_))), "{case}");
            }
        }
    }
}
