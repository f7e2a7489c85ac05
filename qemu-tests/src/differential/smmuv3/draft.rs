//! A stream with its tables, before it becomes a case: good as it is made, and open to damage.

use portcullis_model::core::Prng;

use super::super::case::{Bump, Case, Image, Output, Path, Step, Tree};
use super::super::machine::{Access, Kind, READER, WRITER};
use super::{CR0, ON};

/// Which stages a stream goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Bypass,
    Stage1,
    Stage2,
    /// Stage 2 with an input larger than its output.
    WideStage2,
    /// Stage 2 with a root of several tables.
    Concatenated,
    Nested,
    /// Both stages; tables of the first are larger than pages of the second.
    LargeTables,
    /// The same, and the pages of a table are not contiguous.
    Scattered,
}

impl Shape {
    const fn has_large_tables(self) -> bool {
        matches!(self, Self::LargeTables | Self::Scattered)
    }

    pub(super) const fn is_nested(self) -> bool {
        matches!(self, Self::Nested | Self::LargeTables | Self::Scattered)
    }
}

/// One mapping.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    /// The address that devices use: somewhere in what the leaf maps.
    pub(super) address: u64,
    /// log2 of what it maps.
    pub(super) span: u32,
    /// Entries of the first stage, or of the only one, from the root down.
    pub(super) path: Path,
    /// The intermediate address in a nested stream.
    pub(super) ipa: u64,
}

/// How the Stream table is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Streams {
    Linear,
    /// Two levels, with this SPLIT.
    TwoLevel(u32),
    /// Linear, after it had two levels.
    LinearAgain,
}

pub(super) const ASID: u64 = 0x4a;
pub(super) const VMID: u64 = 0x5b;

const GBPA: u64 = 0x44;
const UPDATE: u32 = 1 << 31;
/// Incoming shareability, as after a reset.
const GBPA_RESET: u32 = 1 << 12;

const STREAMS: u64 = 0x4110_0000;
const SECOND_LEVEL: u64 = 0x4112_0000;
pub(super) const CD: u64 = 0x4118_0000;
/// log2 of the number of streams.
const STREAM_BITS: u32 = 8;
/// Tables, at the addresses at which their stage finds them.
const TABLES: u64 = 0x4200_0000;
/// The physical pages behind the tables of a nested first stage, and second-stage tables.
pub(super) const OUTER_TABLES: u64 = 0x4500_0000;
/// Where data may go; the end of memory.
const DATA: (u64, u64) = (0x5000_0000, 0x1_0000_0000);

/// A valid stage-1 leaf: shareable, access flag, for user and supervisor to read and write, not global.
pub(super) const LEAF1: u64 = 1 << 11 | 1 << 10 | 3 << 8 | 1 << 6;
/// A valid stage-2 leaf: write-back, shareable, access flag, to read and write.
pub(super) const LEAF2: u64 = 1 << 10 | 3 << 8 | 3 << 6 | 0xf << 2;

/// A stream under construction.
pub(super) struct Draft {
    pub(super) prng: Prng,
    pub(super) shape: Shape,
    pub(super) ste: [u64; 8],
    pub(super) cd: [u64; 8],
    pub(super) streams: Streams,
    pub(super) image: Image,
    pub(super) leaves: Vec<Leaf>,
    /// The first stage, or the only one.
    pub(super) tree: Tree,
    /// The second stage of a nested stream.
    pub(super) outer: Tree,
    pub(super) upper: bool,
    notes: Vec<String>,
    steps: Vec<Step>,
    outputs: Vec<Output>,
    bump: Bump,
    pub(super) outer_bump: Bump,
    pub(super) cd_at: u64,
}

/// The field of a granule in TG0 and S2TG, and in TG1.
const fn granule_fields(granule: u32) -> (u64, u64) {
    match granule {
        12 => (0, 2),
        14 => (2, 1),
        _ => (1, 3),
    }
}

/// The size field of an output of so many bits.
const fn size_field(bits: u32) -> u64 {
    match bits {
        32 => 0,
        36 => 1,
        40 => 2,
        42 => 3,
        _ => 4,
    }
}

impl Draft {
    /// A good stream with random geometry and a few mappings.
    pub(super) fn new(seed: u64, shape: Shape) -> Self {
        let nothing = Tree { granule: 12, top: 0, bits: 64, root: 0, table: 3 };
        let mut draft = Self {
            prng: Prng::new(seed),
            shape,
            ste: [0; 8],
            cd: [0; 8],
            streams: Streams::Linear,
            image: Image::default(),
            leaves: Vec::new(),
            tree: nothing,
            outer: nothing,
            upper: false,
            notes: Vec::new(),
            steps: Vec::new(),
            outputs: Vec::new(),
            bump: Bump(TABLES),
            outer_bump: Bump(OUTER_TABLES),
            cd_at: CD,
        };
        draft.streams = match draft.prng.below(3) {
            0 => Streams::Linear,
            1 => Streams::TwoLevel(6),
            _ => Streams::TwoLevel(8),
        };
        draft.ste[0] = 1 | match shape {
            Shape::Bypass => 4,
            Shape::Stage1 => 5,
            Shape::Stage2 | Shape::WideStage2 | Shape::Concatenated => 6,
            Shape::Nested | Shape::LargeTables | Shape::Scattered => 7,
        } << 1;
        match shape {
            Shape::Bypass => draft.bypass(),
            Shape::Stage1 => {
                draft.stage1();
                draft.fill(LEAF1);
            }
            Shape::Stage2 | Shape::WideStage2 | Shape::Concatenated => {
                draft.tree = draft.stage2(25);
                draft.fill(LEAF2);
            }
            Shape::Nested | Shape::LargeTables | Shape::Scattered => {
                draft.stage1();
                draft.outer = draft.stage2(34);
                draft.fill(LEAF1);
            }
        }
        draft
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.prng.below(from.len() as u64) as usize]
    }

    pub(super) fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    fn bypass(&mut self) {
        for _ in 0..2 {
            let address = self.place(12) + 16 * self.prng.below(256);
            self.outputs.push(Output { address, span: 12 });
            let leaf = Leaf { address, span: 12, path: vec![], ipa: 0 };
            self.leaves.push(leaf);
        }
    }

    /// A random aligned place for data.
    pub(super) fn place(&mut self, span: u32) -> u64 {
        let first = DATA.0.div_ceil(1 << span);
        (first + self.prng.below((DATA.1 >> span) - first)) << span
    }

    /// STE, CD and an empty tree for stage 1.
    fn stage1(&mut self) {
        let granule = if self.shape.has_large_tables() { 16 } else { self.pick(&[12, 14, 16]) };
        // Sizes of the input that the granule has tables for.
        let bits = 25 + self.prng.below(24) as u32;
        let output = self.pick(&[32, 36, 40, 42, 44]);
        self.upper = self.prng.chance(1, 3);
        let top = (bits - 1 - granule) / (granule - 3);
        // A root smaller than a table need not be aligned like one; 64 bytes are the least here.
        let root = self.bump.take(granule);
        self.tree = Tree { granule, top, bits, root, table: 3 };
        let (tg0, tg1) = granule_fields(granule);
        let size = u64::from(64 - bits);
        // Write-back, inner shareable; the other half without walks.
        let half = |tg: u64| size | tg << 6 | 1 << 8 | 1 << 10 | 3 << 12;
        let halves = if self.upper { half(tg1) << 16 | 1 << 14 } else { half(tg0) | 1 << 30 };
        self.cd[0] = halves | 1 << 31 | size_field(output) << 32 | 1 << 41 | 7 << 45 | ASID << 48;
        self.cd[if self.upper { 2 } else { 1 }] = root;
        self.cd[3] = 0xff;
        self.ste[0] |= CD;
        self.ste[1] |= 0xd4;
        let half = if self.upper { "upper" } else { "lower" };
        self.note(format!(
            "stage 1: {half} half, 2^{granule} granule, {bits}-bit input, {output}-bit output, root {root:#x}"
        ));
    }

    /// The STE's part and an empty tree for stage 2 with an input of at least `least` bits.
    fn stage2(&mut self, least: u64) -> Tree {
        loop {
            let granule = if self.shape.has_large_tables() { 12 } else { self.pick(&[12u32, 14, 16]) };
            let bits = (least + self.prng.below(45 - least)) as u32;
            let top = self.prng.below(4) as u32;
            let stride = granule - 3;
            let span = granule + stride * top;
            let (sl0, legal) = match granule {
                12 => ([3, 0, 1, 2][top as usize], top >= 1),
                _ => (top.min(3), top <= 2),
            };
            let output = self.pick(&[32, 36, 40, 42, 44]);
            let extra = if self.shape == Shape::Concatenated { 4 } else { 0 };
            let fits = bits > span + extra.min(1) * stride && bits <= span + stride + extra;
            if !legal || !fits || (bits > output) != (self.shape == Shape::WideStage2) {
                continue;
            }
            // A concatenated root is aligned to its size.
            let root = self.outer_bump.take(granule.max(bits - span + 3));
            self.ste[2] = VMID
                | u64::from(64 - bits) << 32
                | u64::from(sl0) << 38
                | 1 << 40
                | 1 << 42
                | 3 << 44
                | granule_fields(granule).0 << 46
                | size_field(output) << 48
                | 1 << 51
                | 1 << 58;
            self.ste[3] = root;
            self.note(format!(
                "stage 2: 2^{granule} granule, {bits}-bit input, {output}-bit output, root {root:#x} at level {}",
                3 - top
            ));
            return Tree { granule, top, bits, root, table: 3 };
        }
    }

    /// Levels at which a tree may have leaves, up to what fits below its input.
    fn leaf_levels(tree: &Tree) -> u32 {
        let most = if tree.granule == 12 { 2 } else { 1 };
        (0..=most.min(tree.top)).rev().find(|&level| tree.span(level) <= tree.bits).unwrap_or(0)
    }

    /// A few leaves, each in a region of its own, sometimes with a neighbour.
    fn fill(&mut self, attributes: u64) {
        let tree = self.tree;
        let most = Self::leaf_levels(&tree);
        let regions = 1u64 << (tree.bits - tree.span(most)).min(20);
        let first = self.prng.below(regions);
        // The spot in the rest of the input, the same for all.
        let above = self.prng.next_u64() & ((1 << (tree.bits - tree.span(most))) - 1) & !(regions - 1);
        let mut count = 0;
        for at in 0..(1 + self.prng.below(3)).min(regions) {
            let level = self.prng.below(u64::from(most) + 1) as u32;
            let region = (above | ((first + at) % regions)) << tree.span(most);
            let within = self.prng.next_u64() & ((1 << tree.span(most)) - 1);
            let base = (region | within) >> tree.span(level) << tree.span(level);
            self.add(base, level, attributes, count);
            count += 1;
            let next = base + (1 << tree.span(level));
            if next >> tree.span(most) == base >> tree.span(most) && self.prng.chance(1, 2) {
                self.add(next, level, attributes, count);
                count += 1;
            }
        }
        self.settle();
    }

    /// One leaf with all that is behind it; in the tables as the first stage sees them.
    fn add(&mut self, base: u64, level: u32, attributes: u64, count: u64) {
        let tree = self.tree;
        let span = tree.span(level);
        let offset = 16 * self.prng.below(1 << (span - 4));
        let kind = if level == 0 { 3 } else { 1 };
        let (ipa, output, output_span) = match self.shape {
            _ if self.shape.is_nested() => {
                // Each in its gigabyte, so that second-stage leaves of any size keep out of each other's way.
                let region = 0x8000_0000 + 0x4000_0000 * count;
                let ipa = (region + self.prng.below(0x4000_0000)) >> span << span | offset;
                let level = self.prng.below(u64::from(Self::leaf_levels(&self.outer)) + 1) as u32;
                let level = if self.outer.span(level) > 30 { 0 } else { level };
                let output_span = self.outer.span(level);
                (ipa, self.add_outer(ipa, level), span.min(output_span))
            }
            _ => (0, self.place(span) + offset, span),
        };
        let target = if self.shape.is_nested() { ipa - offset } else { output - offset };
        let leaf = target | attributes | kind;
        let upper = if self.upper { u64::MAX << tree.bits } else { 0 };
        let path = tree.map(&mut self.image, &mut self.bump, base, level, leaf);
        let address = upper | base | offset;
        self.outputs.push(Output { address: output, span: output_span });
        self.note(format!("{address:#x} is at {output:#x} by a leaf {leaf:#x} of 2^{span} bytes"));
        if ipa != 0 {
            self.note(format!("    by way of {ipa:#x}"));
        }
        self.leaves.push(Leaf { address, span, path, ipa });
    }

    /// Changes bits of a word of the tables.
    pub(super) fn flip(&mut self, at: u64, clear: u64, set: u64) {
        let word = self.image.get(at) & !clear | set;
        self.note(format!("the word at {at:#x} becomes {word:#x}"));
        self.image.set(at, word);
    }

    /// One access.
    pub(super) fn access(&mut self, kind: Kind, address: u64) {
        self.steps.push(Step::Access(Access { kind, address }));
    }

    /// A write and a read of each leaf, and now and then of what lies beside it.
    pub(super) fn accesses(&mut self) {
        for leaf in self.leaves.clone() {
            let first = self.pick(&[Kind::Read, Kind::Write]);
            let second = if first == Kind::Read { Kind::Write } else { Kind::Read };
            self.access(first, leaf.address);
            self.access(second, leaf.address);
            if self.prng.chance(1, 3) {
                self.access(first, leaf.address ^ 1 << leaf.span);
            }
        }
    }

    /// Turns translation off, with this in GBPA, and accesses memory.
    pub(super) fn without_translation(&mut self, gbpa: u32) {
        self.steps.push(Step::Register32(CR0, ON & !1));
        self.steps.push(Step::Register32(GBPA, UPDATE | GBPA_RESET | gbpa));
        for kind in [Kind::Read, Kind::Write] {
            let address = self.place(12);
            self.outputs.push(Output { address, span: 12 });
            self.access(kind, address);
        }
    }

    /// A place for a run of leaves: aligned to its size.
    pub(super) fn place_run(&mut self, bytes: u64) -> u64 {
        self.place(bytes.trailing_zeros())
    }

    /// Data may also turn up around here.
    pub(super) fn watch(&mut self, address: u64, bytes: u64) {
        self.outputs.push(Output { address, span: bytes.trailing_zeros() });
    }

    /// A store after the start.
    pub(super) fn store(&mut self, at: u64, word: u64) {
        self.steps.push(Step::Store(at, word));
    }

    pub(super) fn commands(&mut self, commands: &[[u64; 2]]) {
        self.steps.push(Step::Commands(commands.to_vec()));
    }

    /// Where a device's STE is.
    pub(super) fn ste_at(&self, stream: u32) -> u64 {
        match self.streams {
            Streams::Linear | Streams::LinearAgain => STREAMS + 64 * u64::from(stream),
            Streams::TwoLevel(_) => SECOND_LEVEL + 64 * u64::from(stream),
        }
    }

    /// Where the CD is, as its stream says.
    pub(super) const CD: u64 = CD;

    /// Where the L1STD for both devices is, in a table of two levels.
    pub(super) const L1STD: u64 = STREAMS;

    /// Where the CD is in memory.
    pub(super) const fn cd_at(&self) -> u64 {
        self.cd_at
    }

    /// The case: entries in their places, registers, then what was asked for or else an access of everything.
    pub(super) fn finish(mut self, seed: u64, input: &'static str) -> Case {
        if !self.steps.iter().any(|step| matches!(step, Step::Access(_))) {
            self.accesses();
        }
        for stream in [READER, WRITER] {
            let at = self.ste_at(stream);
            self.image.set_all(at, &self.ste);
        }
        if self.cd != [0; 8] {
            let at = self.cd_at;
            self.image.set_all(at, &self.cd);
        }
        let format = match self.streams {
            Streams::Linear | Streams::LinearAgain => 0,
            Streams::TwoLevel(split) => {
                // The devices are among the first 64 streams; the span covers those.
                if self.image.get(STREAMS) == 0 {
                    self.image.set(STREAMS, SECOND_LEVEL | 7);
                }
                1 << 16 | split << 6
            }
        };
        let (streams, steps) = (self.streams, self.steps);
        let order = match streams {
            Streams::Linear => 0,
            Streams::TwoLevel(_) => 1,
            Streams::LinearAgain => 2,
        };
        self.notes.insert(0, format!("stream table {streams:?}"));
        let start = [
            Step::Register64(0x80, STREAMS),
            Step::Register32(0x88, format | STREAM_BITS),
            Step::Register32(CR0, ON),
        ];
        let steps = start.into_iter().chain(steps).collect();
        Case { seed, order, input, notes: self.notes, image: self.image, steps, outputs: self.outputs }
    }
}
