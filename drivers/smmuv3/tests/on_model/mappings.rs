//! Mapping, unmapping, syncing, and what has to come of it.

use crate::plan::{Op, Trouble};
use crate::sizes::Done;
use crate::space::{GATHERS, Kind, STRICT, Segment, Space, expressible, mapping};
use crate::world::{Finding, World};
use portcullis_hal::{Access, Iova, IovaRange, MapError, MemoryKind, OutOfMemory, UnmapError};
use portcullis_iommu::{Abilities, Stage};
use portcullis_model::core::Prng;

impl World {
    pub(crate) fn map(&mut self, op: &Op, prng: &mut Prng) -> Result<(), Finding> {
        let Some(at) = self.paging(op.with[0]) else { return self.new_domain(op, prng) };
        let space = &self.spaces[at];
        let stage = space.kind.stage().unwrap_or(Stage::Stage1);
        let mut next = place(space, prng);
        let (mut pieces, mut list) = (Vec::<(u64, Segment)>::new(), Vec::new());
        let mut good = true;
        for _ in 0..[1, 1, 1, 2, 3][prng.below(5) as usize] {
            let root = space.handle.as_ref().and_then(|domain| domain.info().root);
            let (len, phys) = memory(space, next, root.map_or(48, |root| root.output_bits), prng);
            let access = access(prng);
            let kinds = [MemoryKind::WriteBack, MemoryKind::NonCacheable, MemoryKind::Device];
            let memory = kinds[prng.below(6).saturating_sub(3) as usize];
            let segment = Segment { len, phys, access };
            let last = next.saturating_add(len - 1);
            let clash = |piece: &(u64, Segment)| piece.0 <= last && piece.0 + (piece.1.len - 1) >= next;
            good &= expressible(stage, access, memory) && last <= space.last;
            good &= !space.overlaps(next, last) && !pieces.iter().any(clash);
            pieces.push((next, segment));
            list.extend(mapping(next, &segment, memory));
            next = match prng.below(3) {
                0 => last.wrapping_add(1),
                1 => last.wrapping_add(1 + space.page() * prng.below(4)),
                _ => place(space, prng),
            };
        }
        let addresses: Vec<u64> = pieces.iter().flat_map(|(iova, s)| [*iova, iova + (s.len - 1)]).collect();
        let mut probes = Vec::new();
        if good {
            let before = self.probes(at, &addresses);
            pieces.iter().for_each(|(iova, segment)| self.spaces[at].insert(*iova, *segment));
            let after = self.probes(at, &addresses);
            probes = before
                .into_iter()
                .zip(after)
                .map(|(mut probe, after)| {
                    probe.allowed = probe.allowed.or(&after.allowed);
                    probe
                })
                .collect();
        }
        self.kernel.0.watch(probes);
        let result = self.spaces[at].map(&list).unwrap_or(Ok(()));
        self.kernel.0.unwatch();
        self.log.push(format!("map in d{at} {pieces:x?} -> {result:?}"));
        let armed = matches!(op.trouble, Trouble::OutOfMemory(_));
        for &(iova, segment) in &pieces {
            for address in [iova.wrapping_sub(1), iova, iova + (segment.len - 1), iova + segment.len] {
                self.touch(at, address);
            }
        }
        match result {
            Ok(()) if good => self.count("mapped"),
            Err(error) if !good => {
                let name = match error {
                    MapError::Overlap { .. } => "refused overlap",
                    MapError::OutOfRange { .. } => "refused range",
                    MapError::Attributes => "refused attributes",
                    MapError::OutOfMemory(_) if armed => "out of memory",
                    _ => return Err(format!("mapping failed with {error:?}")),
                };
                self.count(name);
            }
            Err(MapError::OutOfMemory(OutOfMemory)) if armed => {
                pieces.iter().for_each(|(iova, _)| self.spaces[at].forget(*iova));
                self.count("out of memory");
            }
            result => return Err(format!("mapping {list:x?} ended in {result:?}")),
        }
        self.agree(at, &addresses)
    }

    /// What the domain says of addresses is what was mapped there.
    fn agree(&self, at: usize, addresses: &[u64]) -> Result<(), Finding> {
        let space = &self.spaces[at];
        let (Kind::Tables(_), Some(handle)) = (space.kind, &space.handle) else { return Ok(()) };
        for &address in addresses {
            let told = handle.iova_to_phys(Iova::new(address)).map(|t| (t.phys.get(), t.attributes.access));
            if told != space.at(address) {
                return Err(format!(
                    "d{at} says {told:x?} of {address:#x}, mapped is {:x?}",
                    space.at(address)
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn unmap(&mut self, op: &Op, gather: usize, prng: &mut Prng) -> Result<(), Finding> {
        let Some(at) = self.paging(op.with[0]) else { return Ok(()) };
        let (first, last) = extent(&self.spaces[at], prng);
        self.unmap_range(at, (first, last), op, gather, prng)
    }

    /// Unmaps what is there from a first to a last address.
    pub(crate) fn unmap_range(
        &mut self,
        at: usize,
        (first, last): (u64, u64),
        op: &Op,
        gather: usize,
        prng: &mut Prng,
    ) -> Result<(), Finding> {
        let Ok(range) = IovaRange::from_bounds(Iova::new(first), Iova::new(last)) else { return Ok(()) };
        let inside: Vec<u64> = self.spaces[at]
            .segments()
            .range(first..=last)
            .flat_map(|(iova, segment)| [*iova, (iova + (segment.len - 1)).min(last)])
            .take(8)
            .collect();
        let resizable = self.spaces[at].abilities.contains(Abilities::RESIZE);
        let splits = resizable && prng.chance(2, 3);
        if splits && self.split_for(at, &range, gather, op)? == Done::InPart {
            return self.sync(at, gather);
        }
        let space = &mut self.spaces[at];
        let may_be_partial = |at| space.spans(at) || space.may_be_joined(at);
        let partial = !splits && (may_be_partial(first) || last != space.last && may_be_partial(last + 1));
        let saved = partial.then(|| space.save());
        let used = self.probes(at, &inside);
        self.warm(&used, prng)?;
        let space = &mut self.spaces[at];
        let expected = space.remove(first, last, gather);
        let mut addresses = vec![first, last, first.wrapping_sub(1), last.wrapping_add(1)];
        addresses.extend(&inside);
        let probes = self.probes(at, &inside);
        self.kernel.0.watch(probes);
        let result = self.spaces[at].unmap(range, gather).unwrap_or(Ok(expected));
        self.log.push(format!("unmap d{at} {first:#x}..={last:#x} into {gather} -> {result:x?}"));
        match (result, saved) {
            (Ok(bytes), _) if bytes == expected => {
                self.spaces[at].written.retain(|address| !(first..=last).contains(address));
            }
            (Err(UnmapError::Partial { .. }), Some(saved)) => {
                self.spaces[at].restore(saved);
                self.count("refused partial");
            }
            (result, _) => {
                return Err(format!("unmapping {range} gave {result:x?}, mapped were {expected:#x}"));
            }
        }
        if gather == STRICT {
            self.sync(at, STRICT)?;
        }
        self.kernel.0.unwatch();
        addresses.iter().for_each(|address| self.touch(at, *address));
        addresses.retain(|&address| address <= self.spaces[at].last);
        self.agree(at, &addresses)
    }

    pub(crate) fn sync_one(&mut self, op: &Op) -> Result<(), Finding> {
        let waiting = |space: &Space| space.handle.is_some() && (0..GATHERS).any(|g| space.waits(g));
        let all: Vec<usize> = (0..self.spaces.len()).filter(|&at| waiting(&self.spaces[at])).collect();
        if all.is_empty() {
            return Ok(());
        }
        let at = all[op.with[0] as usize % all.len()];
        let gather = op.with[1] as usize % GATHERS;
        let gather = if self.spaces[at].waits(gather) { gather } else { (gather + 1) % GATHERS };
        self.sync(at, gather)
    }

    /// Has the units forget what a gather holds.
    pub(crate) fn sync(&mut self, at: usize, gather: usize) -> Result<(), Finding> {
        let suspect = self.suspect();
        let space = &mut self.spaces[at];
        let Some(handle) = space.handle.clone() else { return Ok(()) };
        let result = handle.sync(&mut space.gathers[gather]).map(drop);
        self.log.push(format!("sync d{at} {gather} -> {result:?}"));
        let ranges = self.spaces[at].waiting(gather);
        match result {
            Ok(()) => self.spaces[at].synced(gather),
            Err(_) if suspect => {
                self.spaces[at].quarantine(gather);
                self.count("sync failed");
            }
            Err(error) => return Err(format!("sync of d{at} failed: {error}")),
        }
        for (first, last) in ranges.into_iter().take(4) {
            self.touch(at, first);
            self.touch(at, last);
        }
        Ok(())
    }
}

/// Where to map: often the same places, at both ends of tables and of the aperture.
fn place(space: &Space, prng: &mut Prng) -> u64 {
    let (page, block) = (space.page(), space.block());
    let base = match prng.below(12) {
        0..4 => 0,
        4..6 => block,
        6 => 1 << 30,
        7 => block - 4 * page,
        8 => (1 << 30) - 4 * page,
        9 => space.last - (block - 1),
        10 => space.last - (8 * page - 1),
        _ => prng.next_u64() & space.last & !(block - 1),
    };
    base + prng.below(16) * page * prng.below(2)
}

/// How much to map there, and which memory.
fn memory(space: &Space, iova: u64, output_bits: u8, prng: &mut Prng) -> (u64, u64) {
    let (page, block) = (space.page(), space.block());
    let len = match prng.below(20) {
        0..8 => page,
        8..14 => page * (1 + prng.below(20)),
        14..17 => block * (1 + prng.below(2)),
        17 => block - (iova & (block - 1)) + page,
        18 if page == 4096 => 1 << 30,
        _ => page * 2,
    };
    let (low, high) = (1_u64 << 36, (1_u64 << output_bits) - (1 << 31));
    let phys = low + prng.below(high - low);
    // With the same offset in a block as the address, or nearly a block of the next size.
    let phys = match (prng.below(3), len >= block) {
        (0, false) | (_, true) if len > 4 * block || prng.chance(3, 4) => {
            let size = if len >= 1 << 30 { 1 << 30 } else { block };
            phys & !(size - 1) | iova & (size - 1)
        }
        _ if len >= 1 << 26 => phys & !(block - 1) | iova & (block - 1),
        _ => phys & !(page - 1),
    };
    (len, phys)
}

fn access(prng: &mut Prng) -> Access {
    match prng.below(16) {
        0..9 => Access::READ | Access::WRITE,
        9..12 => Access::READ,
        12 => Access::READ | Access::EXECUTE,
        13 => Access::all(),
        14 => Access::WRITE,
        _ => Access::READ | Access::WRITE,
    }
}

/// What to unmap: a mapping, a part of one, several, or whole tables.
pub(crate) fn extent(space: &Space, prng: &mut Prng) -> (u64, u64) {
    let (page, block) = (space.page(), space.block());
    let segments = space.segments();
    let pick = prng.below(segments.len().max(1) as u64) as usize;
    let Some((&iova, segment)) = segments.iter().nth(pick) else {
        let first = place(space, prng) & !(page - 1);
        return (first.min(space.last & !(page - 1)), first.saturating_add(page - 1).min(space.last));
    };
    let end = iova + (segment.len - 1);
    match prng.below(16) {
        0..7 => (iova, end),
        7..9 => {
            let pages = segment.len / page;
            let skip = prng.below(pages.min(40));
            (iova + skip * page, iova + (skip + 1 + prng.below((pages - skip).min(20))) * page - 1)
        }
        9..12 => (iova & !(block - 1), (end | (block - 1)).min(space.last)),
        12 => (iova & !((1 << 30) - 1), (end | ((1 << 30) - 1)).min(space.last)),
        13 => {
            let other = segments.iter().nth(prng.below(segments.len() as u64) as usize);
            let other = other.map_or(end, |(iova, segment)| iova + (segment.len - 1));
            (iova, other.max(end))
        }
        14 => (0, space.last),
        _ => (iova, (iova | (block - 1)).max(end).min(space.last)),
    }
}
