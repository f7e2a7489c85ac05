//! What the boot loader told us, in one shape for both architectures.

use portcullis_hal::{PhysAddr, PhysRange};

/// Where the firmware's description of the machine lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// The ACPI root pointer (RSDP), if the loader knew it.
    Acpi(Option<PhysAddr>),
    /// A flattened device tree.
    DeviceTree(PhysRange),
}

/// Most ranges of RAM that the memory map holds; further ones are left unused.
const MEMORY_RANGES: usize = 32;

/// The usable RAM: without the kernel's image, the device tree and what firmware keeps.
#[derive(Clone, Copy, Debug)]
pub struct MemoryMap {
    ranges: [Option<PhysRange>; MEMORY_RANGES],
}

impl MemoryMap {
    /// A map without memory.
    pub const fn new() -> Self {
        Self { ranges: [None; MEMORY_RANGES] }
    }

    /// Adds usable RAM; ignored when the map is full.
    pub fn add(&mut self, range: PhysRange) {
        if let Some(slot) = self.ranges.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(range);
        }
    }

    /// Takes `hole` out of the usable RAM.
    pub fn remove(&mut self, hole: PhysRange) {
        let old = core::mem::take(self);
        for range in old.iter() {
            if !range.overlaps(&hole) {
                self.add(range);
                continue;
            }
            if range.start() < hole.start() {
                let below = hole.start().get() - range.start().get();
                self.add(PhysRange::new(range.start(), below).unwrap_or(range));
            }
            if hole.last() < range.last() {
                let above = range.last().get() - hole.last().get();
                let start = PhysAddr::new(hole.last().get() + 1);
                self.add(PhysRange::new(start, above).unwrap_or(range));
            }
        }
    }

    /// The ranges of usable RAM.
    pub fn iter(&self) -> impl Iterator<Item = PhysRange> {
        self.ranges.iter().flatten().copied()
    }
}

impl Default for MemoryMap {
    fn default() -> Self {
        Self::new()
    }
}

/// What `kernel_main` gets.
#[derive(Clone, Copy, Debug)]
pub struct BootInfo {
    /// The usable RAM.
    pub memory: MemoryMap,
    /// Where the firmware tables are.
    pub firmware: Firmware,
    /// The command line given to the kernel (QEMU's `-append`); empty if none.
    pub command_line: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len: u64) -> PhysRange {
        PhysRange::new(PhysAddr::new(start), len).unwrap()
    }

    #[test]
    fn a_hole_splits_a_range_in_two() {
        let mut map = MemoryMap::new();
        map.add(range(0x1000, 0x9000));
        map.remove(range(0x3000, 0x1000));
        assert!(map.iter().eq([range(0x1000, 0x2000), range(0x4000, 0x6000)]));
        map.remove(range(0, 0x10_0000));
        assert_eq!(map.iter().count(), 0);
    }
}
