//! Changing the sizes of leaves while devices use them, and collecting what the unit noted in them.

use crate::mappings::extent;
use crate::plan::{Op, Trouble};
use crate::regressions::{ENDPOINT, SID, bench};
use crate::setups::Unit;
use crate::space::{Driver, GATHERS, Kind, STRICT, Segment, Space, mapping};
use crate::world::{Finding, World, request};
use portcullis_hal::host::unmap;
use portcullis_hal::{
    Access, Arc, Gather, HarvestError, Iova, IovaRange, Mapping, MemoryKind, NoTables, Progress, ResizeError,
    Usage,
};
use portcullis_iommu::{Abilities, Domain, DomainSpec, PagingSpec, Stage, Unit as _};
use portcullis_model::core::{Mode, Outcome, Prng};
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// How sizes change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// Nothing reaches out of the range.
    Ends,
    /// Nothing in the range is larger.
    Split(u64),
    Join,
}

/// The first and the last address.
fn bounds(mapping: &Mapping) -> (u64, u64) {
    (mapping.iova.get(), mapping.iova.get() + (mapping.memory.len() - 1))
}

impl World {
    /// A domain whose tables the driver keeps and the user still holds.
    fn own(&self, number: u64) -> Option<usize> {
        let own = |at: &usize| {
            let space = &self.spaces[*at];
            space.handle.is_some() && matches!(space.kind, Kind::Tables(_)) && !space.segments().is_empty()
        };
        let all: Vec<usize> = (0..self.spaces.len()).filter(own).collect();
        (!all.is_empty()).then(|| all[number as usize % all.len()])
    }

    pub(crate) fn resize(&mut self, op: &Op, prng: &mut Prng) -> Result<(), Finding> {
        // Few units take steps.
        let steps = self.units.iter().any(|unit| unit.model.config().bbml == 1);
        (0..if steps { 4 } else { 1 }).try_for_each(|_| self.resize_one(op, prng))
    }

    fn resize_one(&mut self, op: &Op, prng: &mut Prng) -> Result<(), Finding> {
        let Some(at) = self.own(op.with[0]) else { return Ok(()) };
        let (page, block) = (self.spaces[at].page(), self.spaces[at].block());
        let large = self.spaces[at].segments().iter().filter(|(_, segment)| segment.len >= block);
        let large = large.map(|(iova, segment)| (*iova, iova + (segment.len - 1))).next_back();
        let (first, last) = match large {
            Some(segment) if prng.chance(1, 2) => segment,
            _ => extent(&self.spaces[at], prng),
        };
        let Ok(range) = IovaRange::from_bounds(Iova::new(first), Iova::new(last)) else { return Ok(()) };
        let much = self.spaces[at].bytes(first, last) > 16 * block;
        let change = match prng.below(8) {
            0..3 => Change::Ends,
            3..6 if much => Change::Split(block),
            3..6 => Change::Split([1, page, block][prng.below(3) as usize]),
            _ => Change::Join,
        };
        let gather = [STRICT, STRICT, op.with[1] as usize % GATHERS][prng.below(3) as usize];
        let mut inside = self.spaces[at].samples(first, last);
        inside.truncate(8);
        let used = self.probes(at, &inside);
        self.warm(&used, prng)?;
        let suspect = self.suspect();
        self.kernel.0.watch(if suspect { Vec::new() } else { used });
        let mut done = self.change_sizes(at, &range, change, gather, op)?;
        // What was split is joined again, now and then.
        if done == Done::Wholly && matches!(change, Change::Split(_)) && prng.chance(1, 2) {
            let around = (first & !(block - 1), (last | (block - 1)).min(self.spaces[at].last));
            let joined = IovaRange::from_bounds(Iova::new(around.0), Iova::new(around.1)).unwrap_or(range);
            let before = self.leaves(at, &joined)?.len();
            self.change_sizes(at, &joined, Change::Join, gather, op)?;
            if self.leaves(at, &joined)?.len() < before {
                self.count("joins");
            }
            // Their sizes are mixed now.
            done = Done::InPart;
        }
        if gather == STRICT {
            self.sync(at, STRICT)?;
        }
        if let Some(text) = self.kernel.0.unwatch() {
            return Err(format!("a translation was missing while sizes changed: {text}"));
        }
        inside.iter().for_each(|address| self.touch(at, *address));
        let leaves = self.leaves(at, &range)?;
        match change {
            _ if done == Done::InPart => {}
            Change::Ends => {
                let sticks_out = |leaf: &&Mapping| bounds(leaf).0 < first || bounds(leaf).1 > last;
                if let Some(leaf) = leaves.iter().find(sticks_out) {
                    return Err(format!("{leaf:x?} still reaches out of {range}"));
                }
                self.count("ends split");
            }
            Change::Split(largest) => {
                if let Some(leaf) = leaves.iter().find(|leaf| leaf.memory.len() > largest.max(page)) {
                    return Err(format!("{leaf:x?} is still larger than {largest:#x}"));
                }
                self.count("split");
            }
            Change::Join => {}
        }
        // The unit may hold as something larger what is unmapped now.
        let page = self.spaces[at].page();
        let small = leaves.iter().find(|leaf| leaf.memory.len() == page && bounds(leaf).0 >= first);
        if let (Some(leaf), true) = (small, gather != STRICT && change != Change::Join && prng.chance(1, 2)) {
            self.count("unmapped beside a change of sizes");
            self.unmap_range(at, bounds(leaf), op, STRICT, prng)?;
        }
        Ok(())
    }

    /// Has sizes changed, with as many syncs as it takes.
    fn change_sizes(
        &mut self,
        at: usize,
        range: &IovaRange,
        change: Change,
        gather: usize,
        op: &Op,
    ) -> Result<Done, Finding> {
        let Some(handle) = self.spaces[at].handle.clone() else { return Ok(Done::InPart) };
        let able = self.spaces[at].abilities.contains(Abilities::RESIZE);
        for _ in 0..64 {
            let suspect = self.suspect();
            let (list, range) = (&mut self.spaces[at].gathers[gather], *range);
            let result = match change {
                Change::Ends => handle.split_ends(range, list),
                Change::Split(largest) => handle.split(range, largest, list),
                Change::Join => handle.join(range, list),
            };
            self.log.push(format!("{change:x?} d{at} {range} into {gather} -> {result:x?}"));
            self.spaces[at].resized(gather);
            match result {
                Ok(Progress::Done) => return Ok(Done::Wholly),
                // A unit that may not have heard of the first step does not get the second.
                Ok(Progress::SyncAndRepeat) if suspect => return Ok(Done::InPart),
                Ok(Progress::SyncAndRepeat) => {
                    self.count("resized in steps");
                    self.sync(at, gather)?;
                    if self.suspect() {
                        return Ok(Done::InPart);
                    }
                }
                Err(ResizeError::BreakBeforeMake { .. }) if !able => {
                    self.count("refused break before make");
                    return Ok(Done::InPart);
                }
                Err(ResizeError::OutOfMemory(_)) if matches!(op.trouble, Trouble::OutOfMemory(_)) => {
                    self.count("out of memory");
                    return Ok(Done::InPart);
                }
                result => return Err(format!("{change:x?} of {range} in d{at} ended in {result:x?}")),
            }
        }
        Err(format!("{change:x?} of {range} in d{at} has no end"))
    }

    /// Makes way for the unmap of a range.
    pub(crate) fn split_for(
        &mut self,
        at: usize,
        range: &IovaRange,
        gather: usize,
        op: &Op,
    ) -> Result<Done, Finding> {
        let done = self.change_sizes(at, range, Change::Ends, gather, op)?;
        self.count("split for an unmap");
        Ok(done)
    }

    /// The leaves in a range, which have to be what is mapped there.
    fn leaves(&self, at: usize, range: &IovaRange) -> Result<Vec<Mapping>, Finding> {
        let space = &self.spaces[at];
        let Some(handle) = &space.handle else { return Ok(Vec::new()) };
        let mut leaves = Vec::new();
        let told = handle.visit(*range, &mut |leaf| {
            leaves.push(leaf);
            ControlFlow::Continue(())
        });
        if told == Err(NoTables) {
            return Err(format!("d{at} has no tables"));
        }
        let (first, last) = (range.start().get(), range.last().get());
        let mut bytes = 0;
        for leaf in &leaves {
            let (low, high) = bounds(leaf);
            self.is_mapped(at, leaf)?;
            bytes += high.min(last) - low.max(first) + 1;
        }
        match space.bytes(first, last) {
            mapped if mapped == bytes => Ok(leaves),
            mapped => Err(format!("d{at} shows {bytes:#x} bytes in {range}, mapped are {mapped:#x}")),
        }
    }

    /// Both ends of a leaf lead where they should.
    fn is_mapped(&self, at: usize, leaf: &Mapping) -> Result<(), Finding> {
        let (low, high) = bounds(leaf);
        let (phys, access) = (leaf.memory.start().get(), leaf.attributes.access);
        for (address, phys) in [(low, phys), (high, leaf.memory.last().get())] {
            if self.spaces[at].at(address) != Some((phys, access)) {
                let mapped = self.spaces[at].at(address);
                return Err(format!("d{at} shows {leaf:x?}, mapped at {address:#x} is {mapped:x?}"));
            }
        }
        Ok(())
    }

    pub(crate) fn harvest(&mut self, op: &Op, prng: &mut Prng) -> Result<(), Finding> {
        let Some(at) = self.own(op.with[0]) else { return Ok(()) };
        let (first, last) = match prng.below(3) {
            0 => (0, self.spaces[at].last),
            _ => extent(&self.spaces[at], prng),
        };
        let Ok(range) = IovaRange::from_bounds(Iova::new(first), Iova::new(last)) else { return Ok(()) };
        let inside = self.spaces[at].samples(first, last);
        let writes: Vec<_> =
            self.probes(at, &inside).into_iter().filter(|probe| probe.allowed.arrives()).collect();
        self.warm(&writes, prng)?;
        let gather = [STRICT, STRICT, op.with[1] as usize % GATHERS][prng.below(3) as usize];
        let Some(handle) = self.spaces[at].handle.clone() else { return Ok(()) };
        let wanted = if prng.chance(2, 3) { Usage::DIRTY } else { Usage::all() };
        let mut found = Vec::new();
        let result =
            handle.harvest(range, wanted, &mut self.spaces[at].gathers[gather], &mut |leaf, usage| {
                found.push((leaf, usage));
            });
        self.log.push(format!("harvest d{at} {range} {wanted:?} into {gather} -> {result:?}, {found:x?}"));
        let tracks = self.spaces[at].abilities.contains(Abilities::TRACKING);
        match result {
            Ok(()) if tracks => {}
            Err(HarvestError::Untracked) if !tracks => {
                self.count("refused untracked");
                return Ok(());
            }
            result => return Err(format!("the harvest of {range} in d{at} ended in {result:?}")),
        }
        for (leaf, usage) in &found {
            self.is_mapped(at, leaf)?;
            if usage.is_empty() || !wanted.contains(*usage) {
                return Err(format!("{leaf:x?} is said to be {usage:?} of {wanted:?}"));
            }
        }
        let dirty =
            || found.iter().filter(|(_, usage)| usage.contains(Usage::DIRTY)).map(|(leaf, _)| bounds(leaf));
        let is_in = |address: &u64, (low, high): (u64, u64)| (low..=high).contains(address);
        let space = &mut self.spaces[at];
        let mut missed =
            space.written.range(first..=last).filter(|address| !dirty().any(|leaf| is_in(address, leaf)));
        if let Some(address) = missed.next() {
            return Err(format!("a write to {address:#x} of d{at} was not noted"));
        }
        let (written, leaves) = (space.written.range(first..=last).count(), dirty().count());
        space.written.retain(|address| !dirty().any(|leaf| is_in(address, leaf)));
        dirty().for_each(|(low, high)| space.harvested(low, high, gather));
        for (name, count) in [("harvested writes", written), ("harvested leaves", leaves)] {
            *self.counts.entry(name.into()).or_default() += count as u64;
        }
        if gather == STRICT {
            self.sync(at, STRICT)?;
        }
        found.iter().take(4).for_each(|(leaf, _)| self.touch(at, leaf.iova.get()));
        Ok(())
    }

    /// A device wrote by a domain, as the unit said.
    pub(crate) fn note_write(&mut self, at: usize, address: u64, phys: u64) {
        let space = &mut self.spaces[at];
        let current =
            space.at(address).is_some_and(|(to, access)| to == phys && access.contains(Access::WRITE));
        if space.abilities.contains(Abilities::TRACKING) && current && space.is_settled(address) {
            space.written.insert(address);
        }
    }
}

/// How far a change of sizes came.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    Wholly,
    InPart,
}

/// What a domain is asked to be able to do: what the unit offers or less, seldom more.
pub(crate) fn abilities(offered: Abilities, prng: &mut Prng) -> Abilities {
    match prng.below(24) {
        0 => Abilities::all(),
        1..8 => Abilities::empty(),
        8..12 => offered & Abilities::RESIZE,
        12..16 => offered & Abilities::TRACKING,
        _ => offered,
    }
}

impl Space {
    /// Whether two neighbouring addresses may be in one leaf.
    pub(crate) fn may_be_joined(&self, address: u64) -> bool {
        let before = address.checked_sub(1).and_then(|before| self.at(before));
        let follows = |(phys, access): (u64, Access)| self.at(address) == Some((phys + 1, access));
        self.abilities.contains(Abilities::RESIZE) && before.is_some_and(follows)
    }

    /// How many bytes are mapped in a range.
    fn bytes(&self, first: u64, last: u64) -> u64 {
        let part = |(&at, segment): (&u64, &crate::space::Segment)| {
            let end = at + (segment.len - 1);
            if end < first { 0 } else { end.min(last) - at.max(first) + 1 }
        };
        self.segments().range(..=last).map(part).sum()
    }

    /// Mapped addresses in a range.
    fn samples(&self, first: u64, last: u64) -> Vec<u64> {
        let segments = self.segments().range(..=last).rev().take(4);
        let ends = segments.flat_map(|(at, segment)| [*at, at + (segment.len - 1)]);
        ends.map(|address| address.clamp(first, last)).filter(|&address| self.at(address).is_some()).collect()
    }
}

/// A domain with 2 MiB mapped from 0 on, as one leaf, to which the unit's stream is attached.
fn one_leaf(driver: &Driver, stage: Stage) -> Arc<dyn Domain> {
    let spec = PagingSpec { stage: Some(stage), abilities: Abilities::RESIZE, ..PagingSpec::default() };
    let domain = driver.new_domain(&DomainSpec::Paging(spec)).unwrap();
    driver.attach(&ENDPOINT, &domain).unwrap();
    let mut space = Space::new(Kind::Tables(stage), Some(domain.clone()), None);
    let segment = Segment { len: LEAF, phys: 1 << 36, access: Access::READ };
    space.map(&[mapping(0, &segment, MemoryKind::WriteBack).unwrap()]).unwrap().unwrap();
    space.insert(0, segment);
    domain
}

const LEAF: u64 = 2 << 20;
const PAGE: u64 = 4096;

/// Unmaps a page with a gather of its own; what the unit may make of an access there afterwards.
fn revoke(domain: &Arc<dyn Domain>, unit: &Unit, page: u64) -> BTreeSet<Outcome> {
    let mut gather = Gather::new();
    let range = IovaRange::new(Iova::new(page), PAGE).unwrap();
    assert_eq!(unmap(&**domain, range, &mut gather), Ok(PAGE));
    let _proof = domain.sync(&mut gather).unwrap();
    unit.model.reachable(request(SID, page, Access::READ))
}

/// The level hint of the page's invalidation would spare the leaf that the unit has cached.
#[test]
fn a_page_is_unreachable_after_its_unmap_though_the_split_of_its_leaf_is_not_synced() {
    for stage in [Stage::Stage1, Stage::Stage2] {
        let (_kernel, unit, driver) = bench();
        let domain = one_leaf(&driver, stage);
        let all = IovaRange::new(Iova::new(0), LEAF).unwrap();
        assert_eq!(
            unit.model.dma(request(SID, 5 * PAGE, Access::READ), Mode::Any).outcome.output(),
            Some((1 << 36) + 5 * PAGE)
        );
        let mut splitting = Gather::new();
        assert_eq!(domain.split(all, PAGE, &mut splitting), Ok(Progress::Done));
        let outcomes = revoke(&domain, &unit, 5 * PAGE);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Fault(_))), "{outcomes:x?}");
        let _proof = domain.sync(&mut splitting).unwrap();
    }
}

/// An invalidation of leaves alone would spare the way to the table of the pages that were joined, which is not freed yet.
#[test]
fn a_page_is_unreachable_after_its_unmap_though_a_join_is_not_synced() {
    for stage in [Stage::Stage1, Stage::Stage2] {
        let (_kernel, unit, driver) = bench();
        let domain = one_leaf(&driver, stage);
        let all = IovaRange::new(Iova::new(0), LEAF).unwrap();
        let mut gather = Gather::new();
        assert_eq!(domain.split(all, PAGE, &mut gather), Ok(Progress::Done));
        let _proof = domain.sync(&mut gather).unwrap();
        // The unit knows the way to the table now.
        assert!(unit.model.dma(request(SID, PAGE, Access::READ), Mode::Any).outcome.output().is_some());
        let mut joining = Gather::new();
        assert_eq!(domain.join(all, &mut joining), Ok(Progress::Done));
        assert_eq!(domain.split(all, PAGE, &mut gather), Ok(Progress::Done));
        let _proof = domain.sync(&mut gather).unwrap();
        let outcomes = revoke(&domain, &unit, 5 * PAGE);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Fault(_))), "{outcomes:x?}");
        let _proof = domain.sync(&mut joining).unwrap();
    }
}
