//! A case: what memory holds, and what is done then.

use std::collections::BTreeMap;
use std::fmt;

use super::machine::Access;

/// One thing that is done, on both sides in the same way.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A 32-bit register is written.
    Register32(u64, u32),
    /// A 64-bit register is written.
    Register64(u64, u64),
    /// A word is stored.
    Store(u64, u64),
    /// Commands are queued, and waited for.
    Commands(Vec<[u64; 2]>),
    /// A device does an access, and the results are compared.
    Access(Access),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Register32(register, value) => write!(f, "register {register:#x} = {value:#x}"),
            Self::Register64(register, value) => write!(f, "register {register:#x} = {value:#x}"),
            Self::Store(address, word) => write!(f, "memory {address:#x} = {word:#x}"),
            Self::Commands(commands) => write!(f, "commands {commands:x?}"),
            Self::Access(access) => write!(f, "{:?} at {:#x}", access.kind, access.address),
        }
    }
}

/// A case.
#[derive(Clone, Debug, Default)]
pub(super) struct Case {
    /// The seed that makes it.
    pub(super) seed: u64,
    /// Cases with smaller numbers run first: not every state of a unit can be left again.
    pub(super) order: u8,
    /// What it is about; the table of known differences goes by this.
    pub(super) input: &'static str,
    /// What the words below mean.
    pub(super) notes: Vec<String>,
    /// Memory at the start; what is not there is zero.
    pub(super) image: Image,
    /// What is done then.
    pub(super) steps: Vec<Step>,
    /// Where data may turn up.
    pub(super) outputs: Vec<Output>,
}

impl Case {
    /// The words of memory that it writes.
    pub(super) fn touched(&self) -> impl Iterator<Item = u64> {
        let stored = self.steps.iter().filter_map(|step| match step {
            Step::Store(address, _) => Some(*address),
            _ => None,
        });
        self.image.0.keys().copied().chain(stored)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} (seed {}):", self.input, self.seed)?;
        for note in &self.notes {
            writeln!(f, "    {note}")?;
        }
        for (address, word) in &self.image.0 {
            writeln!(f, "    memory {address:#x} = {word:#x}")?;
        }
        for step in &self.steps {
            writeln!(f, "    {step}")?;
        }
        Ok(())
    }
}

/// Where a leaf puts data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    pub(super) address: u64,
    /// log2 of what is contiguous there.
    pub(super) span: u32,
}

impl Output {
    /// Where an input address ends up, if it does so by this leaf.
    pub(super) const fn of(self, input: u64) -> u64 {
        let low = (1 << self.span) - 1;
        self.address & !low | input & low
    }
}

/// Words in memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Image(pub(super) BTreeMap<u64, u64>);

impl Image {
    pub(super) fn set(&mut self, address: u64, word: u64) {
        self.0.insert(address, word);
    }

    pub(super) fn get(&self, address: u64) -> u64 {
        self.0.get(&address).copied().unwrap_or(0)
    }

    pub(super) fn set_all(&mut self, address: u64, words: &[u64]) {
        for (at, word) in (address..).step_by(8).zip(words) {
            self.set(at, *word);
        }
    }
}

/// Memory that is handed out, never taken back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bump(pub(super) u64);

impl Bump {
    /// A block of `1 << bits` bytes, aligned to its size.
    pub(super) fn take(&mut self, bits: u32) -> u64 {
        let size = 1u64 << bits;
        let block = self.0.next_multiple_of(size);
        self.0 = block + size;
        block
    }
}

/// One tree of translation tables under construction. Levels are counted from the bottom: 0 has the pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tree {
    /// log2 of a page, and of a table.
    pub(super) granule: u32,
    /// The level of the root.
    pub(super) top: u32,
    /// Input bits that the root resolves and those below it; the rest is not looked at.
    pub(super) bits: u32,
    pub(super) root: u64,
    /// What an entry that points to a table says beside the address.
    pub(super) table: u64,
}

/// The entries on the way to a leaf: their addresses, from the root down.
pub(super) type Path = Vec<u64>;

impl Tree {
    /// log2 of what an entry of a level maps.
    pub(super) const fn span(&self, level: u32) -> u32 {
        self.granule + (self.granule - 3) * level
    }

    /// Writes a leaf at `level` for an input address, and the tables on the way that are missing.
    pub(super) fn map(&self, image: &mut Image, bump: &mut Bump, input: u64, level: u32, leaf: u64) -> Path {
        let input = if self.bits < 64 { input & ((1 << self.bits) - 1) } else { input };
        let mut table = self.root;
        let mut path = Vec::new();
        for at in (level..=self.top).rev() {
            let index = input >> self.span(at);
            let index = if at == self.top { index } else { index & ((1 << (self.granule - 3)) - 1) };
            let slot = table + 8 * index;
            path.push(slot);
            if at == level {
                image.set(slot, leaf);
            } else if image.get(slot) == 0 {
                table = bump.take(self.granule);
                image.set(slot, table | self.table);
            } else {
                table = image.get(slot) & 0x0000_ffff_ffff_f000 & !((1 << self.granule) - 1);
            }
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_tables_and_strangers_do_not() {
        let mut image = Image::default();
        let mut bump = Bump(0x1_0000);
        let tree = Tree { granule: 12, top: 2, bits: 39, root: bump.take(12), table: 3 };
        let first = tree.map(&mut image, &mut bump, 0x4020_1000, 0, 0xaaaa_a003);
        assert_eq!(first, [0x1_0008, 0x1_1008, 0x1_2008]);
        assert_eq!((image.get(0x1_0008), image.get(0x1_1008)), (0x1_1003, 0x1_2003));
        let second = tree.map(&mut image, &mut bump, 0x4020_2000, 0, 0xbbbb_b003);
        assert_eq!(second, [0x1_0008, 0x1_1008, 0x1_2010]);
        let block = tree.map(&mut image, &mut bump, 0x8000_0000, 2, 0xcccc_0001);
        assert_eq!(block, [0x1_0010]);
        assert_eq!(image.0.len(), 5);
    }

    #[test]
    fn an_output_keeps_the_low_bits_of_its_input() {
        let output = Output { address: 0x4567_8000, span: 21 };
        assert_eq!(output.of(0x9999_1230), 0x4560_0000 + (0x9999_1230 & 0x1f_ffff));
    }
}
