//! Byte-level builders of firmware data. They know the layouts by offset only, from the specifications, and
//! share nothing with the parsers under test.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use portcullis_firmware::{FirmwareError, Topology, acpi};
use portcullis_hal::{PhysAddr, PhysRange, RequesterId};

/// Reads a fixture.
pub fn data(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A requester of segment 0.
pub fn bdf(bus: u8, device: u8, function: u8) -> RequesterId {
    RequesterId::new(0, bus, device, function).unwrap()
}

pub fn phys(start: u64, len: u64) -> PhysRange {
    PhysRange::new(PhysAddr::new(start), len).unwrap()
}

/// Concatenates little-endian pieces.
#[macro_export]
macro_rules! bytes {
    ($($piece:expr),* $(,)?) => {{
        let mut bytes: Vec<u8> = Vec::new();
        $(bytes.extend_from_slice(&$piece.to_bytes());)*
        bytes
    }};
}

/// What [`bytes!`] takes.
pub trait ToBytes {
    fn to_bytes(&self) -> Vec<u8>;
}
impl ToBytes for u8 {
    fn to_bytes(&self) -> Vec<u8> {
        vec![*self]
    }
}
impl ToBytes for u16 {
    fn to_bytes(&self) -> Vec<u8> {
        self.to_le_bytes().to_vec()
    }
}
impl ToBytes for u32 {
    fn to_bytes(&self) -> Vec<u8> {
        self.to_le_bytes().to_vec()
    }
}
impl ToBytes for u64 {
    fn to_bytes(&self) -> Vec<u8> {
        self.to_le_bytes().to_vec()
    }
}
impl ToBytes for Vec<u8> {
    fn to_bytes(&self) -> Vec<u8> {
        self.clone()
    }
}
impl ToBytes for &str {
    fn to_bytes(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }
}

/// A table with header and right checksum.
pub fn table(signature: &str, revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = bytes![signature, 36 + body.len() as u32, revision, 0u8, "OEMIDX", "OEMTABLE", 1u32];
    table.extend_from_slice(&bytes!["TEST", 1u32]);
    table.extend_from_slice(body);
    fix_checksum(&mut table);
    table
}

/// Makes a table add up to zero again.
pub fn fix_checksum(table: &mut [u8]) {
    if table.len() > 9 {
        table[9] = 0;
        table[9] = table.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    }
}

/// Parses one table.
pub fn parse(table: &[u8]) -> Result<Topology, FirmwareError> {
    acpi::from_tables(&[table])
}

pub mod dmar {
    use super::ToBytes;

    pub fn table(structures: &[Vec<u8>]) -> Vec<u8> {
        let body = bytes![38u8, 1u8, vec![0; 10], structures.concat()];
        super::table("DMAR", 1, &body)
    }

    fn structure(kind: u16, body: &[u8], scopes: &[Vec<u8>]) -> Vec<u8> {
        let scopes = scopes.concat();
        bytes![kind, (4 + body.len() + scopes.len()) as u16, body.to_vec(), scopes]
    }

    pub fn drhd(flags: u8, segment: u16, base: u64, scopes: &[Vec<u8>]) -> Vec<u8> {
        structure(0, &bytes![flags, 0u8, segment, base], scopes)
    }
    pub fn rmrr(segment: u16, base: u64, limit: u64, scopes: &[Vec<u8>]) -> Vec<u8> {
        structure(1, &bytes![0u16, segment, base, limit], scopes)
    }
    pub fn atsr(flags: u8, segment: u16, scopes: &[Vec<u8>]) -> Vec<u8> {
        structure(2, &bytes![flags, 0u8, segment], scopes)
    }
    pub fn rhsa(base: u64, domain: u32) -> Vec<u8> {
        structure(3, &bytes![0u32, base, domain], &[])
    }
    pub fn andd(number: u8, name: &str) -> Vec<u8> {
        structure(4, &bytes![vec![0; 3], number, name, 0u8], &[])
    }
    pub fn satc(flags: u8, segment: u16, scopes: &[Vec<u8>]) -> Vec<u8> {
        structure(5, &bytes![flags, 0u8, segment], scopes)
    }
    pub fn sidp(segment: u16, scopes: &[Vec<u8>]) -> Vec<u8> {
        structure(6, &bytes![0u16, segment], scopes)
    }
    /// A device scope; the path is (device, function) per step.
    pub fn scope(kind: u8, id: u8, bus: u8, path: &[(u8, u8)]) -> Vec<u8> {
        let steps: Vec<u8> = path.iter().flat_map(|step| [step.0, step.1]).collect();
        bytes![kind, (6 + steps.len()) as u8, 0u16, id, bus, steps]
    }
    pub fn endpoint(bus: u8, path: &[(u8, u8)]) -> Vec<u8> {
        scope(1, 0, bus, path)
    }
    pub fn bridge(bus: u8, path: &[(u8, u8)]) -> Vec<u8> {
        scope(2, 0, bus, path)
    }
}

pub mod iort {
    use super::ToBytes;

    /// An id mapping; the output is the index of a node.
    #[derive(Clone, Copy)]
    pub struct Map {
        pub input: u32,
        pub count: u32,
        pub output: u32,
        pub to: usize,
        pub single: bool,
    }

    pub fn map(input: u32, count: u32, output: u32, to: usize) -> Map {
        Map { input, count, output, to, single: false }
    }
    pub fn single(output: u32, to: usize) -> Map {
        Map { input: 0, count: 1, output, to, single: true }
    }

    pub struct Node {
        pub kind: u8,
        pub revision: u8,
        pub body: Vec<u8>,
        pub maps: Vec<Map>,
    }

    impl Node {
        fn padded(&self) -> Vec<u8> {
            let mut body = self.body.clone();
            body.resize(body.len().next_multiple_of(4), 0);
            body
        }
        fn len(&self) -> usize {
            16 + self.padded().len() + 20 * self.maps.len()
        }
    }

    pub fn its_group(ids: &[u32]) -> Node {
        let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        Node { kind: 0, revision: 1, body: bytes![(ids.len() / 4) as u32, ids], maps: vec![] }
    }
    pub fn named(name: &str, maps: Vec<Map>) -> Node {
        let body = bytes![0u32, 1u32, 0u32, 48u8, name, 0u8];
        Node { kind: 1, revision: 4, body, maps }
    }
    pub fn root(segment: u32, ats: u32, maps: Vec<Map>) -> Node {
        let body = bytes![1u32, 0u32, ats, segment, 64u8, vec![0; 3]];
        Node { kind: 2, revision: 3, body, maps }
    }
    pub fn smmuv2() -> Node {
        Node { kind: 3, revision: 3, body: vec![0; 60], maps: vec![] }
    }
    /// GSIVs: event, PRI, global error, sync.
    pub fn smmuv3(base: u64, flags: u32, gsivs: [u32; 4], own_map: u32, maps: Vec<Map>) -> Node {
        let [event, pri, gerror, sync] = gsivs;
        let head = bytes![base, flags, 0u32, 0u64, 0u32];
        let body = bytes![head, event, pri, gerror, sync, 7u32, own_map];
        Node { kind: 4, revision: 5, body, maps }
    }
    pub fn pmcg(to: usize) -> Node {
        Node { kind: 5, revision: 2, body: vec![0; 24], maps: vec![single(0, to)] }
    }
    pub fn rmr(flags: u32, ranges: &[(u64, u64)], maps: Vec<Map>) -> Node {
        let list: Vec<u8> = ranges.iter().flat_map(|r| bytes![r.0, r.1, 0u32]).collect();
        let body = bytes![flags, ranges.len() as u32, 28u32, list];
        Node { kind: 6, revision: 3, body, maps }
    }

    pub fn table(nodes: &[Node]) -> Vec<u8> {
        let mut offsets = vec![48];
        for node in nodes {
            offsets.push(offsets.last().unwrap() + node.len());
        }
        let mut body = bytes![nodes.len() as u32, 48u32, 0u32];
        for (index, node) in nodes.iter().enumerate() {
            let inner = node.padded();
            let at = if node.maps.is_empty() { 0 } else { 16 + inner.len() as u32 };
            let head = bytes![node.kind, node.len() as u16, node.revision, index as u32];
            body.extend(bytes![head, node.maps.len() as u32, at, inner]);
            for map in &node.maps {
                let (to, flags) = (offsets[map.to] as u32, u32::from(map.single));
                body.extend(bytes![map.input, map.count - 1, map.output, to, flags]);
            }
        }
        super::table("IORT", 5, &body)
    }
}

pub mod fdt {
    /// A node of a hand-made tree.
    #[derive(Clone, Default)]
    pub struct Node {
        name: String,
        properties: Vec<(String, Vec<u8>)>,
        children: Vec<Node>,
    }

    pub fn node(name: &str) -> Node {
        Node { name: name.into(), ..Node::default() }
    }

    impl Node {
        /// Sets a property, in place of an earlier one of that name.
        pub fn raw(mut self, name: &str, value: &[u8]) -> Self {
            self.properties.retain(|(known, _)| known != name);
            self.properties.push((name.into(), value.to_vec()));
            self
        }
        pub fn cells(self, name: &str, cells: &[u32]) -> Self {
            let value: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
            self.raw(name, &value)
        }
        pub fn text(self, name: &str, text: &str) -> Self {
            self.raw(name, format!("{text}\0").as_bytes())
        }
        pub fn flag(self, name: &str) -> Self {
            self.raw(name, &[])
        }
        pub fn child(mut self, child: Node) -> Self {
            self.children.push(child);
            self
        }

        fn write(&self, structure: &mut Vec<u8>, strings: &mut Vec<u8>) {
            structure.extend(1u32.to_be_bytes());
            structure.extend(self.name.bytes().chain([0]));
            structure.resize(structure.len().next_multiple_of(4), 0);
            for (name, value) in &self.properties {
                let offset = strings.len() as u32;
                strings.extend(name.bytes().chain([0]));
                structure.extend([3, value.len() as u32, offset].iter().flat_map(|cell| cell.to_be_bytes()));
                structure.extend(value);
                structure.resize(structure.len().next_multiple_of(4), 0);
            }
            for child in &self.children {
                child.write(structure, strings);
            }
            structure.extend(2u32.to_be_bytes());
        }

        /// The blob with this node as its root.
        pub fn blob(&self) -> Vec<u8> {
            let (mut structure, mut strings) = (Vec::new(), Vec::new());
            self.write(&mut structure, &mut strings);
            structure.extend(9u32.to_be_bytes());
            let (structure_at, strings_at) = (56, 56 + structure.len() as u32);
            let total = strings_at + strings.len() as u32;
            let sizes = [strings.len() as u32, structure.len() as u32];
            let head = [0xd00d_feed, total, structure_at, strings_at, 40, 17, 16, 0, sizes[0], sizes[1]];
            let mut blob: Vec<u8> = head.iter().flat_map(|cell: &u32| cell.to_be_bytes()).collect();
            blob.extend([0; 16]);
            blob.extend(structure);
            blob.extend(strings);
            blob
        }
    }
}
