//! An index over a flattened device tree: nodes with their parents, cell counts and phandles.
//!
//! dtoolkit validates the whole blob once; after that its iterators cannot fail. The index adds what it
//! leaves to the user: a bound on nesting (its walks over siblings cost time in proportion to it), phandles,
//! and the place of everything for errors.

use super::cells::Cells;
use crate::{FirmwareError, Location, Table, list};
use alloc::vec::Vec;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node as _, Property as _};
use portcullis_hal::list::{push, sort_by_key};
use portcullis_hal::{PhysAddr, PhysRange};

/// Deepest nesting that is followed; real trees stay below 10.
const MAX_DEPTH: usize = 32;
/// Most nodes; the largest real trees have some 5000.
const MAX_NODES: usize = 64 * 1024;
/// Offset of `totalsize` in the header.
const TOTAL_SIZE: usize = 4;

/// A device tree with its index.
pub(super) struct Tree<'a> {
    blob: &'a [u8],
    nodes: Vec<Entry<'a>>,
    /// Sorted; the first node with a phandle counts.
    phandles: Vec<(u32, usize)>,
}

struct Entry<'a> {
    node: FdtNode<'a>,
    parent: Option<usize>,
    cells: CellCounts,
}

/// `#address-cells` and `#size-cells` that a node sets for its children.
#[derive(Clone, Copy)]
pub(super) struct CellCounts {
    pub(super) address: usize,
    pub(super) size: usize,
}

impl<'a> Tree<'a> {
    /// Indexes the tree at the start of `bytes`, which may be longer.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, FirmwareError> {
        let at = Location { table: Table::DeviceTree, offset: 0 };
        let size = bytes.get(TOTAL_SIZE..).and_then(|rest| rest.first_chunk());
        let size = size.map_or(0, |&size| u32::from_be_bytes(size)) as usize;
        let available = bytes.len();
        let blob = bytes.get(..size).ok_or(FirmwareError::Truncated { at, needed: size, available })?;
        let fdt = Fdt::new(blob)?;
        let mut tree = Self { blob, nodes: Vec::new(), phandles: Vec::new() };
        tree.add_nodes(fdt)?;
        tree.add_phandles()?;
        Ok(tree)
    }

    fn add_nodes(&mut self, fdt: Fdt<'a>) -> Result<(), FirmwareError> {
        let root = fdt.root();
        let root_index = self.add_node(root, None)?;
        let mut open = Vec::new();
        list::push(&mut open, (root_index, root.children()))?;
        while let Some((parent, children)) = open.last_mut() {
            let Some(child) = children.next() else {
                open.pop();
                continue;
            };
            let index = self.add_node(child, Some(*parent))?;
            if open.len() == MAX_DEPTH {
                return Err(FirmwareError::TooDeep { at: self.place(child.name()), limit: MAX_DEPTH });
            }
            list::push(&mut open, (index, child.children()))?;
        }
        Ok(())
    }

    fn add_node(&mut self, node: FdtNode<'a>, parent: Option<usize>) -> Result<usize, FirmwareError> {
        let index = self.nodes.len();
        if index == MAX_NODES {
            return Err(FirmwareError::TooManyEntries { limit: MAX_NODES });
        }
        let count = |name, default| match value_of(&node, name) {
            None => Ok(default),
            Some(value) => match value.first_chunk() {
                // Counts above four have no meaning; with this limit sums of them cannot overflow.
                Some(&count) if value.len() == 4 && u32::from_be_bytes(count) <= 4 => {
                    Ok(u32::from_be_bytes(count) as usize)
                }
                _ => Err(FirmwareError::BadLength { at: self.place_of(value), length: value.len() }),
            },
        };
        let cells = CellCounts { address: count("#address-cells", 2)?, size: count("#size-cells", 1)? };
        push(&mut self.nodes, Entry { node, parent, cells }).map_err(|_| FirmwareError::OutOfMemory)?;
        Ok(index)
    }

    fn add_phandles(&mut self) -> Result<(), FirmwareError> {
        let mut phandles = Vec::new();
        for node in self.nodes() {
            if let Some(phandle) = node.number("phandle")? {
                push(&mut phandles, (phandle, node.index)).map_err(|_| FirmwareError::OutOfMemory)?;
            }
        }
        // The index keeps equal phandles in tree order without a buffer, unlike a stable sort.
        sort_by_key(&mut phandles, |entry| *entry);
        phandles.dedup_by_key(|(phandle, _)| *phandle);
        self.phandles = phandles;
        Ok(())
    }

    /// All nodes, parents before children.
    pub(super) fn nodes(&self) -> impl Iterator<Item = Node<'_, 'a>> {
        (0..self.nodes.len()).filter_map(|index| self.node(index))
    }

    pub(super) fn node(&self, index: usize) -> Option<Node<'_, 'a>> {
        let entry = self.nodes.get(index)?;
        Some(Node { tree: self, entry, index })
    }

    /// The node with this phandle.
    pub(super) fn by_phandle(&self, phandle: u32) -> Option<Node<'_, 'a>> {
        let position = self.phandles.binary_search_by_key(&phandle, |(known, _)| *known).ok()?;
        self.node(self.phandles.get(position)?.1)
    }

    /// The node that a reference points to, or an error that names the reference.
    pub(super) fn reference(&self, at: Location, phandle: u32) -> Result<Node<'_, 'a>, FirmwareError> {
        self.by_phandle(phandle).ok_or(FirmwareError::BadReference { at, target: phandle })
    }

    /// The node at an absolute path. A component without unit address matches one with.
    pub(super) fn by_path(&self, path: &str) -> Option<Node<'_, 'a>> {
        let mut node = self.node(0)?;
        let mut rest = path.strip_prefix('/');
        while let Some(path) = rest {
            let (name, after) = list::split(path, b'/');
            if !name.is_empty() {
                node = node.children().find(|child| child.is_named(name))?;
            }
            rest = after;
        }
        Some(node)
    }

    fn place(&self, text: &str) -> Location {
        self.place_of(text.as_bytes())
    }

    /// The place of bytes of the blob.
    fn place_of(&self, bytes: &[u8]) -> Location {
        let offset = bytes.as_ptr().addr().saturating_sub(self.blob.as_ptr().addr());
        Location { table: Table::DeviceTree, offset }
    }
}

/// The value of a property of a node.
fn value_of<'a>(node: &FdtNode<'a>, name: &str) -> Option<&'a [u8]> {
    node.property(name)?.value_as().ok()
}

/// One node.
#[derive(Clone, Copy)]
pub(super) struct Node<'t, 'a> {
    tree: &'t Tree<'a>,
    entry: &'t Entry<'a>,
    index: usize,
}

impl<'t, 'a> Node<'t, 'a> {
    pub(super) fn name(&self) -> &'a str {
        self.entry.node.name()
    }

    /// The place of the node's name.
    pub(super) fn here(&self) -> Location {
        self.tree.place(self.name())
    }

    /// The node's position among all.
    pub(super) const fn index(&self) -> usize {
        self.index
    }

    pub(super) fn parent(&self) -> Option<Self> {
        self.tree.node(self.entry.parent?)
    }

    /// Cell counts for the node's children.
    pub(super) const fn cells_below(&self) -> CellCounts {
        self.entry.cells
    }

    /// Cell counts for the node's own `reg`.
    pub(super) fn cells(&self) -> CellCounts {
        self.parent().map_or(CellCounts { address: 2, size: 1 }, |parent| parent.cells_below())
    }

    pub(super) fn children(&self) -> impl Iterator<Item = Self> + use<'t, 'a> {
        let (tree, index) = (self.tree, self.index);
        let later = index + 1..tree.nodes.len();
        later.filter_map(|index| tree.node(index)).filter(move |node| node.entry.parent == Some(index))
    }

    fn is_named(&self, name: &str) -> bool {
        let own = self.name();
        own == name || (!name.contains('@') && list::split(own, b'@').0 == name)
    }

    pub(super) fn property(&self, name: &str) -> Option<&'a [u8]> {
        value_of(&self.entry.node, name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.property(name).is_some()
    }

    /// The value of a property as cells.
    pub(super) fn list(&self, name: &str) -> Result<Option<Cells<'a>>, FirmwareError> {
        self.property(name).map(|value| Cells::new(value, self.tree.place_of(value))).transpose()
    }

    /// The value of a property of one cell.
    pub(super) fn number(&self, name: &str) -> Result<Option<u32>, FirmwareError> {
        let Some(mut cells) = self.list(name)? else {
            return Ok(None);
        };
        let value = cells.number()?;
        cells.end()?;
        Ok(Some(value))
    }

    /// The strings of a property; ends at the first that is not one.
    pub(super) fn strings(&self, name: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let value = self.property(name).unwrap_or(&[]);
        let value = value.strip_suffix(b"\0").unwrap_or(value);
        let parts = (!value.is_empty()).then(|| value.split(|&byte| byte == 0));
        parts.into_iter().flatten().map_while(|text| core::str::from_utf8(text).ok())
    }

    /// The first string of a property.
    pub(super) fn string(&self, name: &str) -> Option<&'a str> {
        self.strings(name).next()
    }

    pub(super) fn is_compatible(&self, with: &[&str]) -> bool {
        self.strings("compatible").any(|own| with.contains(&own))
    }

    /// Whether `status` lets the device be used.
    pub(super) fn is_enabled(&self) -> bool {
        self.string("status").is_none_or(|status| matches!(status, "okay" | "ok"))
    }

    /// The node's registers as the CPU sees them. Entries that no `ranges` make visible are left out.
    pub(super) fn registers(&self) -> Result<Vec<PhysRange>, FirmwareError> {
        let mut registers = Vec::new();
        let counts = self.cells();
        let Some(mut reg) = self.list("reg")? else {
            return Ok(registers);
        };
        if counts.address == 0 || counts.address > 2 {
            return Ok(registers);
        }
        while !reg.is_empty() {
            let at = reg.here();
            let (address, size) = (reg.take(counts.address)?, reg.take(counts.size)?);
            if size == 0 {
                continue;
            }
            let range = PhysRange::new(PhysAddr::new(address), size)
                .map_err(|error| FirmwareError::BadRange { at, error })?;
            if let Some(range) = self.translate(range)? {
                crate::list::push(&mut registers, range)?;
            }
        }
        Ok(registers)
    }

    /// The first of the node's registers; an error if there are none.
    pub(super) fn first_registers(&self) -> Result<PhysRange, FirmwareError> {
        let missing = FirmwareError::BadLength { at: self.here(), length: 0 };
        self.registers()?.first().copied().ok_or(missing)
    }

    /// An address range of the node's bus as the CPU sees it, through the `ranges` of all buses above.
    pub(super) fn translate(&self, range: PhysRange) -> Result<Option<PhysRange>, FirmwareError> {
        let mut range = range;
        let mut bus = self.parent();
        while let Some(node) = bus {
            let Some(above) = node.parent() else { break };
            let Some(translated) = node.translate_once(range, above.cells_below())? else {
                return Ok(None);
            };
            range = translated;
            bus = Some(above);
        }
        Ok(Some(range))
    }

    /// Through this node's own `ranges`.
    fn translate_once(
        &self,
        range: PhysRange,
        above: CellCounts,
    ) -> Result<Option<PhysRange>, FirmwareError> {
        let Some(mut windows) = self.list("ranges")? else {
            return Ok(None);
        };
        if windows.is_empty() {
            return Ok(Some(range));
        }
        let below = self.entry.cells;
        if below.address == 0 || below.address > 2 {
            return Ok(None);
        }
        while !windows.is_empty() {
            let child = windows.take(below.address)?;
            let parent = windows.take(above.address)?;
            let size = windows.take(below.size)?;
            let Ok(window) = PhysRange::new(PhysAddr::new(child), size) else {
                continue;
            };
            if window.covers(&range) {
                let offset = range.start().get() - child;
                let start = PhysAddr::new(parent).checked_add(offset);
                return Ok(start.and_then(|start| PhysRange::new(start, range.len()).ok()));
            }
        }
        Ok(None)
    }
}
