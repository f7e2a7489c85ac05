//! A device's entries and tables, before they become a case: good as they are made, and open to damage.

use portcullis_model::core::Prng;

use super::super::case::{Bump, Case, Image, Output, Path, Step, Tree};
use super::super::machine::{Access, Kind, READER, WRITER};
use super::{ROOT, Stage};

/// What a PASID table entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// The stage that the machine has.
    Tables,
    PassThrough,
}

/// One mapping.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    /// The address that devices use: somewhere in what the leaf maps.
    pub(super) address: u64,
    /// log2 of what it maps.
    pub(super) span: u32,
    /// Entries from the top down.
    pub(super) path: Path,
}

pub(super) const DOMAIN: u64 = 0x21;

const CONTEXTS: u64 = 0x1000_1000;
const DIRECTORY: u64 = 0x1000_2000;
const PASIDS: u64 = 0x1000_3000;
const TABLES: u64 = 0x1100_0000;
/// Where data may go; the end of memory below 4 GiB.
const DATA: (u64, u64) = (0x2000_0000, 0x8000_0000);

/// First stage: present, writable, for users, accessed.
const TABLE1: u64 = 0x27;
/// The same, and dirty.
const LEAF1: u64 = 0x67;
/// Second stage: readable and writable.
const SECOND: u64 = 3;
/// A leaf above the lowest level.
pub(super) const PAGE_SIZE: u64 = 1 << 7;

/// A device under construction: both devices have the same entries.
pub(super) struct Draft {
    pub(super) prng: Prng,
    pub(super) stage: Stage,
    pub(super) root: [u64; 2],
    pub(super) context: [u64; 4],
    pub(super) directory: u64,
    pub(super) pasid: [u64; 8],
    pub(super) image: Image,
    pub(super) leaves: Vec<Leaf>,
    pub(super) tree: Tree,
    upper: bool,
    notes: Vec<String>,
    steps: Vec<Step>,
    outputs: Vec<Output>,
    bump: Bump,
}

impl Draft {
    /// Good entries with random geometry and a few mappings.
    pub(super) fn new(seed: u64, stage: Stage, shape: Shape) -> Self {
        let mut draft = Self {
            prng: Prng::new(seed),
            stage,
            root: [CONTEXTS | 1, 0],
            context: [DIRECTORY | 1, 0, 0, 0],
            directory: PASIDS | 1,
            pasid: [0; 8],
            image: Image::default(),
            leaves: Vec::new(),
            tree: Tree { granule: 12, top: 3, bits: 48, root: 0, table: 0 },
            upper: false,
            notes: Vec::new(),
            steps: Vec::new(),
            outputs: Vec::new(),
            bump: Bump(TABLES),
        };
        match shape {
            Shape::PassThrough => draft.pass_through(),
            Shape::Tables => draft.tables(),
        }
        draft
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.prng.below(from.len() as u64) as usize]
    }

    fn pass_through(&mut self) {
        self.pasid = [4 << 6 | 2 << 2 | 1, DOMAIN, 0, 0, 0, 0, 0, 0];
        for _ in 0..2 {
            let address = self.place(12) + 16 * self.prng.below(256);
            self.outputs.push(Output { address, span: 12 });
            self.leaves.push(Leaf { address, span: 12, path: vec![] });
        }
    }

    /// A random aligned place for data.
    fn place(&mut self, span: u32) -> u64 {
        let first = DATA.0.div_ceil(1 << span);
        (first + self.prng.below((DATA.1 >> span) - first)) << span
    }

    fn tables(&mut self) {
        let root = self.bump.take(12);
        let levels = match self.stage {
            Stage::First => {
                self.upper = self.prng.chance(1, 3);
                self.pasid = [1 << 6 | 2 << 2 | 1, DOMAIN, root, 0, 0, 0, 0, 0];
                4
            }
            Stage::Second => {
                let levels = self.pick(&[3, 4]);
                let width = u64::from(levels) - 2;
                self.pasid = [root | 2 << 6 | width << 2 | 1, DOMAIN, 0, 0, 0, 0, 0, 0];
                levels
            }
        };
        let bits = 12 + 9 * levels;
        let table = if self.stage == Stage::First { TABLE1 } else { SECOND };
        self.tree = Tree { granule: 12, top: levels - 1, bits, root, table };
        self.notes.push(format!("{:?} stage of {levels} levels, top table {root:#x}", self.stage));
        self.fill();
    }

    /// A few leaves of different sizes, each in a gigabyte of its own, sometimes with a neighbour.
    fn fill(&mut self) {
        let gigabytes = 1 << (self.tree.bits - 30 - u32::from(self.stage == Stage::First));
        let first = self.prng.below(gigabytes);
        // There is always a page with tables above it, and a large page.
        let mut levels: Vec<u32> = (0..1 + self.prng.below(2)).map(|_| self.prng.below(3) as u32).collect();
        if !levels.contains(&0) {
            levels.push(0);
        }
        if levels.iter().all(|level| *level == 0) {
            levels.push(1);
        }
        for (at, level) in (0..).zip(levels) {
            let region = ((first + at) % gigabytes) << 30;
            let span = self.tree.span(level);
            let base = (region | self.prng.below(1 << 30)) >> span << span;
            self.add(base, level);
            let next = base + (1 << span);
            if next >> 30 == base >> 30 && self.prng.chance(1, 2) {
                self.add(next, level);
            }
        }
    }

    fn add(&mut self, base: u64, level: u32) {
        let span = self.tree.span(level);
        let offset = 16 * self.prng.below(1 << (span - 4));
        let page = self.place(span);
        let rights = if self.stage == Stage::First { LEAF1 } else { SECOND };
        let leaf = page | rights | if level == 0 { 0 } else { PAGE_SIZE };
        // The upper half of a first-stage space is sign-extended.
        let base = if self.upper { base | u64::MAX << (self.tree.bits - 1) } else { base };
        let path = self.tree.map(&mut self.image, &mut self.bump, base, level, leaf);
        let address = base | offset;
        self.outputs.push(Output { address: page + offset, span });
        self.notes
            .push(format!("{address:#x} is at {:#x} by a leaf {leaf:#x} of 2^{span} bytes", page + offset));
        self.leaves.push(Leaf { address, span, path });
    }

    /// Changes bits of a word of the tables.
    pub(super) fn flip(&mut self, at: u64, clear: u64, set: u64) {
        let word = self.image.get(at) & !clear | set;
        self.notes.push(format!("the word at {at:#x} becomes {word:#x}"));
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

    /// A store after the start.
    pub(super) fn store(&mut self, at: u64, word: u64) {
        self.steps.push(Step::Store(at, word));
    }

    pub(super) fn commands(&mut self, commands: &[[u64; 2]]) {
        self.steps.push(Step::Commands(commands.to_vec()));
    }

    /// Where a device's context entry is.
    pub(super) const fn context_at(device: u32) -> u64 {
        CONTEXTS + 32 * device as u64
    }

    /// Where the PASID table entry is.
    pub(super) const PASID: u64 = PASIDS;

    /// The case: entries in their places, then what was asked for or else an access of everything.
    pub(super) fn finish(mut self, seed: u64, input: &'static str) -> Case {
        if !self.steps.iter().any(|step| matches!(step, Step::Access(_))) {
            self.accesses();
        }
        self.image.set_all(ROOT, &self.root);
        for device in [READER, WRITER] {
            self.image.set_all(Self::context_at(device), &self.context);
        }
        self.image.set(DIRECTORY, self.directory);
        self.image.set_all(PASIDS, &self.pasid);
        let Self { notes, image, steps, outputs, .. } = self;
        Case { seed, order: 0, input, notes, image, steps, outputs }
    }
}
