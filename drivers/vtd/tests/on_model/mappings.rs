//! Domains and what is mapped in them.

#![expect(unsafe_code, reason = "mappings of memory that only its addresses are looked at")]

use crate::ensure;
use crate::op::{Place, Sync};
use crate::oracle::{Content, Piece};
use crate::world::{Break, Foreign, Outcomes, Slot, World};
use portcullis_hal::host;
use portcullis_hal::{
    Access, Attributes, Gather, Iova, IovaRange, MapError, Mapping, PhysAddr, PhysRange, ResizeError,
    SharedTable, UnmapError,
};
use portcullis_iommu::{Abilities, DomainError, DomainKind, DomainSpec, PagingSpec, Stage, Unit};
use portcullis_model::core::Request;
use portcullis_model::vtd::Feature;
use portcullis_pgtable::{AccessedDirty, Config, PageTable, VtdSecondStage, X86};

pub(crate) const PAGE: u64 = 0x1000;
pub(crate) const LARGE: u64 = 0x20_0000;
const HUGE: u64 = 1 << 30;

/// Where memory is mapped by value, out of the way of the other windows.
pub(crate) const LENT: u64 = 0x2000_0000;

/// Sizes of mappings, in pages.
const SIZES: [u64; 12] = [1, 1, 1, 2, 3, 5, 8, 16, 512, 513, 1024, HUGE / PAGE];

pub(crate) fn range(first: u64, len: u64) -> IovaRange {
    IovaRange::new(Iova::new(first), len).expect("test ranges do not wrap")
}

impl World {
    pub(crate) fn new_domain(&mut self, slot: u8, kind: u8) -> Outcomes {
        let at = self.index(slot);
        if self.slots[at].is_some() {
            self.drop_domain(0, slot)?;
        }
        let tracks = kind >> 4 & 3 == 0;
        let abilities = if tracks { Abilities::all() } else { Abilities::empty() };
        let paging = |stage, input_bits| {
            DomainSpec::Paging(PagingSpec { stage, input_bits, abilities, ..PagingSpec::default() })
        };
        let has = |feature| self.config.has(feature);
        // Without a stage named, it is the first if there is one.
        let marked = |feature| !tracks || has(Feature::PageWalkCoherent) && has(feature);
        let first = has(Feature::FirstStage) && marked(Feature::FirstStage);
        let second = has(Feature::SecondStage) && marked(Feature::SecondStageDirty);
        let either = if has(Feature::FirstStage) { first } else { second };
        let mut foreign = None;
        let (spec, possible) = match kind % 16 {
            0..3 => (paging(None, None), either),
            3..6 => (paging(Some(Stage::Stage1), None), first),
            6..9 => (paging(Some(Stage::Stage2), None), second),
            9 => (paging(Some(Stage::Stage2), Some(39)), second),
            10 => (paging(Some(Stage::Stage1), Some(50)), first && has(Feature::FirstStage5Level)),
            11 => (DomainSpec::Identity(host::IDENTITY), has(Feature::PassThrough)),
            12 => (DomainSpec::Blocked, true),
            _ => match self.shared(kind & 1 != 0) {
                Some((table, spec)) => {
                    foreign = Some(table);
                    (spec, true)
                }
                None => return Ok(()),
            },
        };
        let domain = match self.driver.new_domain(&spec) {
            Ok(domain) => domain,
            Err(DomainError::OutOfMemory(_)) if self.short => return Ok(()),
            Err(DomainError::Unsupported { .. }) if !possible => return Ok(()),
            Err(error) => return Err(format!("{spec:?} was refused: {error}")),
        };
        ensure!(possible, "{spec:?} was made on a unit that cannot do it");
        let info = domain.info();
        let (content, name) = match info.kind {
            DomainKind::Blocked => (Content::Nothing, "blocked"),
            DomainKind::Identity => (Content::Everything, "identity"),
            DomainKind::Shared => (Content::Mappings, "shared"),
            DomainKind::Paging if info.stage == Some(Stage::Stage1) => (Content::Mappings, "first stage"),
            DomainKind::Paging => (Content::Mappings, "second stage"),
        };
        self.count("domain", name);
        let last = domain.aperture().last().get();
        let tagged_by_pasid = info.stage != Some(Stage::Stage2);
        let width = self.config.host_width;
        let mut space = crate::oracle::Space::new(content, tagged_by_pasid, last, width);
        if info.kind == DomainKind::Paging {
            space.abilities = abilities;
        }
        self.spaces.push(space);
        self.foreign.push(foreign);
        self.slots[at] = Some(Slot {
            space: self.spaces.len() - 1,
            domain,
            gather: Gather::new(),
            owned: Vec::new(),
            unsynced: Vec::new(),
        });
        Ok(())
    }

    /// Tables of somebody else.
    fn shared(&self, first: bool) -> Option<(Foreign, DomainSpec)> {
        let features = self.driver.features();
        let stage = if first { Stage::Stage1 } else { Stage::Stage2 };
        let levels = features.levels_for(stage, None)?;
        let config = Config {
            input_bits: features.input_bits(stage, levels),
            output_bits: features.host_address_bits(),
            page_sizes: features.page_sizes(stage),
            writes: features.table_writes(),
        };
        let host = &self.bench.host;
        let (foreign, root) = if first {
            let table = PageTable::new(host, X86::new(levels, AccessedDirty::Preset), config).ok()?;
            let root = table.root();
            (Foreign::First(table), root)
        } else {
            let table = PageTable::new(host, VtdSecondStage::new(levels), config).ok()?;
            let root = table.root();
            (Foreign::Second(table), root)
        };
        // SAFETY: the tables stay until no device is attached, their entries lead to no memory that is used, and what is
        // taken out of them is synced through the domain.
        Some((foreign, DomainSpec::Shared(unsafe { SharedTable::new(root) })))
    }

    pub(crate) fn drop_domain(&mut self, nonce: u64, slot: u8) -> Outcomes {
        let at = self.index(slot);
        while self.slots[at].as_ref().is_some_and(|slot| !slot.owned.is_empty()) {
            self.reclaim(nonce, slot, 0, Sync::Strict)?;
        }
        self.sync(nonce, slot)?;
        if let Some(slot) = self.slots[at].take() {
            drop(slot.domain);
            self.release_foreign(slot.space);
        }
        Ok(())
    }

    /// Frees tables that were shared, when nothing uses them any more.
    pub(crate) fn release_foreign(&mut self, space: usize) {
        let held = self.slots.iter().flatten().any(|slot| slot.space == space);
        let used = self.spaces[space].quarantined || !self.spaces[space].users.is_empty();
        if !held && !used {
            self.foreign[space] = None;
        }
    }

    /// The first address of a place that is `len` bytes long.
    fn start(&self, space: usize, place: Place, len: u64) -> Option<u64> {
        let last = self.spaces[space].last;
        let offset = u64::from(place.offset % 12) * PAGE;
        let start = match place.window % 8 {
            _ if len >= HUGE => [HUGE * 2, HUGE * 3, HUGE * 4][usize::from(place.offset) % 3],
            0 => offset,
            1 => LARGE - 2 * PAGE + offset,
            2 => HUGE - 3 * PAGE + offset,
            3 | 4 => LARGE * (1 + u64::from(place.offset % 6)),
            5 => HUGE * 2 + offset,
            6 => (last + 1).checked_sub(len + offset)?,
            _ => (1 << 38) - 2 * LARGE + offset,
        };
        (start.checked_add(len)? <= last + 1).then_some(start)
    }

    /// The size of a place in bytes.
    fn size(&self, place: Place) -> u64 {
        let size = SIZES[usize::from(place.size) % SIZES.len()] * PAGE;
        let sizes = self.slots.iter().flatten().map(|slot| slot.domain.page_sizes()).fold(0, |a, b| a | b);
        if size == HUGE && (sizes & LARGE == 0 || place.offset & 0x10 == 0) { 16 * PAGE } else { size }
    }

    /// Requests at addresses of those who are attached to a domain.
    pub(crate) fn requests(&self, space: usize, addresses: &[u64], nonce: u64) -> Vec<Request> {
        let users: Vec<(usize, u32)> = self.spaces[space].users.iter().copied().collect();
        let mut requests = Vec::new();
        for (n, &address) in addresses.iter().enumerate() {
            if let Some(&user) = users.get((nonce as usize).wrapping_add(n) % users.len().max(1)) {
                requests.push(self.request_of(user, address, nonce >> (8 + n) & 1 != 0));
            }
        }
        requests
    }

    fn phys(&mut self, len: u64, aligned: bool) -> Option<u64> {
        let align = if aligned && len >= HUGE {
            HUGE
        } else if aligned && len >= LARGE {
            LARGE
        } else {
            PAGE
        };
        let skip = if aligned { 0 } else { PAGE };
        let phys = (self.next_phys + skip).next_multiple_of(align) + skip;
        if (phys + len - 1) >> self.config.host_width != 0 {
            return None;
        }
        self.next_phys = phys + len;
        Some(phys)
    }

    pub(crate) fn map(
        &mut self,
        nonce: u64,
        slot: u8,
        place: Place,
        (pieces, step, access, aligned): (u8, u8, u8, bool),
    ) -> Outcomes {
        let at = self.index(slot);
        let Some(space) = self.slots[at].as_ref().map(|slot| slot.space) else { return Ok(()) };
        let len = self.size(place);
        let Some(start) = self.start(space, place, len) else { return Ok(()) };
        let access = match access % 8 {
            0 | 1 => Access::READ,
            2 => Access::WRITE,
            3 => Access::READ | Access::EXECUTE,
            _ => Access::READ | Access::WRITE,
        };
        // Pieces one after the other, with a gap, or the other way round.
        let steps = [len as i64, (len + PAGE) as i64, -(len as i64), PAGE as i64];
        let mut list = Vec::new();
        for n in 0..i64::from(pieces) {
            let Some(phys) = self.phys(len, aligned) else { return Ok(()) };
            let iova = start.wrapping_add_signed(n * steps[usize::from(step) % 4]);
            let in_range = iova.checked_add(len).is_some_and(|end| end <= self.spaces[space].last + 1);
            if in_range && (len < HUGE || n == 0) {
                list.push(Piece { iova, len, phys, access });
            }
        }
        let overlap = list.iter().enumerate().any(|(n, piece)| {
            let earlier = |other: &Piece| other.touches(piece.iova, piece.last());
            self.spaces[space].overlaps(piece) || list[..n].iter().any(earlier)
        });
        for piece in &list {
            self.touch(piece.iova);
            self.touch(piece.last() & !7);
        }
        let looked: Vec<u64> = list.iter().flat_map(|piece| [piece.iova, piece.last() & !7]).collect();
        let before = self.begin(nonce, self.requests(space, &looked, nonce));
        let result = self.map_pieces(at, &list);
        let paging = self.spaces[space].content == Content::Mappings;
        match result {
            Ok(()) => {
                ensure!(paging && !overlap, "mapped over something: {list:x?}");
                self.spaces[space].map(&list, true);
                self.count("map", if len >= LARGE { "large" } else { "small" });
            }
            Err(MapError::NotPaging) if !paging => {}
            Err(MapError::Overlap { .. }) if overlap => self.count("map", "overlap"),
            Err(MapError::OutOfMemory(_)) if self.short => self.count("map", "out of memory"),
            Err(MapError::Attributes) if access != Access::READ | Access::WRITE && access != Access::READ => {
                self.count("map", "attributes");
            }
            Err(MapError::Sync(error)) => {
                self.failed(&error)?;
                self.spaces[space].map(&list, false);
            }
            Err(error) => return Err(format!("map of {list:x?}: {error}")),
        }
        self.end(before, Break::None)
    }

    fn map_pieces(&mut self, at: usize, list: &[Piece]) -> Result<(), MapError> {
        let mapping = |piece: &Piece| Mapping {
            iova: Iova::new(piece.iova),
            memory: PhysRange::new(PhysAddr::new(piece.phys), piece.len).expect("test ranges do not wrap"),
            attributes: Attributes::memory(piece.access),
        };
        let list: Vec<Mapping> = list.iter().map(mapping).collect();
        let Some(slot) = &mut self.slots[at] else { return Ok(()) };
        match &self.foreign[slot.space] {
            // SAFETY: the memory behind the mappings is nobody's.
            None => return unsafe { slot.domain.map(&list) },
            Some(Foreign::First(table)) => table.map(&list)?,
            Some(Foreign::Second(table)) => table.map(&list)?,
        }
        let tells = self.config.has(Feature::CachingMode) || self.config.has(Feature::WriteBufferFlush);
        if tells {
            let _proof = slot.domain.sync(&mut Gather::new())?;
        }
        Ok(())
    }

    /// What an operation is about: a mapping, a part of one, what is around it, or a place. The first and the last
    /// address, and one in between.
    pub(crate) fn choose(
        &self,
        space: usize,
        (pick, shape, place): (u8, u8, Place),
    ) -> Option<(u64, u64, u64)> {
        let has_lent = self.spaces[space].live.iter().any(|piece| piece.touches(LENT, LENT + LARGE));
        let live: Vec<Piece> = self.spaces[space]
            .live
            .iter()
            .filter(|piece| !piece.touches(LENT, LENT + LARGE))
            .copied()
            .collect();
        let piece = live.get(usize::from(pick) % live.len().max(1)).copied();
        let around = |piece: Piece, size: u64| {
            let first = piece.iova & !(size - 1);
            (first, (piece.last() | (size - 1)) - first + 1)
        };
        let chosen = match (shape % 10, piece) {
            (0..4, Some(piece)) => Some((piece.iova, piece.len)),
            (4, Some(piece)) => Some((piece.iova, PAGE)),
            (5, Some(piece)) => Some((piece.last() & !(PAGE - 1), PAGE)),
            (6, Some(piece)) if piece.len > 2 * PAGE => Some((piece.iova + PAGE, piece.len - 2 * PAGE)),
            (7, Some(piece)) => Some(around(piece, LARGE)),
            (8, Some(piece)) if !has_lent || piece.iova >= HUGE => Some(around(piece, HUGE)),
            _ => None,
        };
        let (first, len) = match chosen {
            Some((first, len)) if first + (len - 1) <= self.spaces[space].last => (first, len),
            _ => {
                let len = self.size(place);
                let start = self.start(space, place, len)?;
                (start, len)
            }
        };
        let last = first + (len - 1);
        let middle = piece.map_or(first, |piece| piece.iova.clamp(first, last));
        Some((first, last, middle))
    }

    pub(crate) fn unmap(
        &mut self,
        nonce: u64,
        slot: u8,
        (pick, shape, place): (u8, u8, Place),
        sync: Sync,
    ) -> Outcomes {
        let at = self.index(slot);
        let Some(space) = self.slots[at].as_ref().map(|slot| slot.space) else { return Ok(()) };
        if self.spaces[space].content != Content::Mappings {
            return Ok(());
        }
        let Some((first, last, middle)) = self.choose(space, (pick, shape, place)) else { return Ok(()) };
        let len = last - first + 1;
        for address in [first, last & !7, middle] {
            self.touch(address);
        }
        let before = self.begin(nonce, self.requests(space, &[middle, first, last & !7], nonce));
        let mark = self.spaces[space].mark();
        let mut own = Gather::new();
        let Some(slot) = &mut self.slots[at] else { return Ok(()) };
        let gather = if sync == Sync::Strict { &mut own } else { &mut slot.gather };
        let splits = nonce & 0x300 == 0 && self.foreign[space].is_none();
        if splits {
            match slot.domain.split_ends(range(first, len), gather) {
                Ok(_) => {}
                Err(ResizeError::OutOfMemory(_)) if self.short => {
                    return self.end(before, Break::None);
                }
                Err(error) => return Err(format!("split for an unmap: {error}")),
            }
        }
        let result = match &self.foreign[space] {
            None => host::unmap(&*slot.domain, range(first, len), gather),
            Some(Foreign::First(table)) => table.unmap(range(first, len), gather),
            Some(Foreign::Second(table)) => table.unmap(range(first, len), gather),
        };
        match result {
            Ok(bytes) => {
                let expected = self.spaces[space].mapped_bytes(first, last);
                ensure!(
                    bytes == expected,
                    "unmapped {bytes:#x} bytes of {first:#x}..={last:#x}, not {expected:#x}"
                );
                self.spaces[space].unmap(first, last);
                if sync == Sync::Strict {
                    let result = match &self.foreign[space] {
                        None => slot.domain.sync(&mut own).map(drop),
                        // Its owner does not tell what it took out, and frees its tables itself.
                        Some(_) => slot.domain.sync(&mut Gather::new()).map(|_proof| {
                            // SAFETY: the domain was synced after the unmap, and the frames are this host's.
                            let _own = unsafe { own.finish(&self.bench.host) };
                        }),
                    };
                    self.spaces[space].synced(mark, result.is_ok());
                    if let Err(error) = result {
                        self.failed(&error)?;
                    }
                }
            }
            Err(UnmapError::Partial { iova, size }) if !splits => {
                let leaf = IovaRange::block(iova, size);
                let partly = !range(first, len).covers(&leaf) && range(first, len).overlaps(&leaf);
                ensure!(
                    size > PAGE && partly,
                    "a leaf at {iova} of {size:#x} is not partly in {first:#x} {len:#x}"
                );
                ensure!(self.spaces[space].is_mapped(iova.get()), "{iova} is not mapped");
                self.count("unmap", "partial");
            }
            Err(error) => return Err(format!("unmap of {first:#x} {len:#x}: {error}")),
        }
        self.end(before, Break::None)
    }
}
