//! Changing the sizes of leaves while devices use them, and collecting what the unit noted in them.

use crate::ensure;
use crate::mappings::{LARGE, LENT, PAGE, range};
use crate::op::{Place, Sync};
use crate::oracle::{Piece, Space};
use crate::world::{Break, Outcomes, World};
use portcullis_hal::{Gather, HarvestError, IovaRange, Mapping, NoTables, Progress, ResizeError, Usage};
use portcullis_iommu::{Abilities, Domain, DomainKind};
use portcullis_model::core::{Mode, Outcome, Request};
use std::ops::ControlFlow;

/// The first and the last address.
fn bounds(leaf: &Mapping) -> (u64, u64) {
    (leaf.iova.get(), leaf.iova.get() + (leaf.memory.len() - 1))
}

/// How many leaves there are in a range.
fn leaf_count(domain: &dyn Domain, whole: IovaRange) -> usize {
    let mut leaves = 0;
    let _ = domain.visit(whole, &mut |_| {
        leaves += 1;
        ControlFlow::Continue(())
    });
    leaves
}

impl World {
    pub(crate) fn resize(
        &mut self,
        nonce: u64,
        slot: u8,
        (pick, shape, place): (u8, u8, Place),
        (how, sync): (u8, Sync),
    ) -> Outcomes {
        let at = self.index(slot);
        let Some(space) = self.slots[at].as_ref().map(|slot| slot.space) else { return Ok(()) };
        let Some((first, last, middle)) = self.choose(space, (pick, shape, place)) else { return Ok(()) };
        for address in [first, last & !7, middle] {
            self.touch(address);
        }
        let joins = how % 8 >= 6;
        let (first, last) = match self.large_block(space, nonce).filter(|_| joins && nonce & 0x70 != 0) {
            Some(block) => (block, block + (LARGE - 1)),
            None if joins => (first & !(LARGE - 1), (last | (LARGE - 1)).min(self.spaces[space].last)),
            None => (first, last),
        };
        // What is lent is taken back for itself.
        if joins && first < LENT + LARGE && last >= LENT {
            return Ok(());
        }
        let whole = range(first, last - first + 1);
        let much = self.spaces[space].mapped_bytes(first, last) > 16 * LARGE;
        let largest = if much || how & 8 != 0 { LARGE } else { PAGE };
        let before = self.begin(nonce, self.requests(space, &[middle, first, last & !7], nonce));
        let mut own = Gather::new();
        let Some(slot) = &mut self.slots[at] else { return Ok(()) };
        let gather = if sync == Sync::Strict { &mut own } else { &mut slot.gather };
        let domain = slot.domain.clone();
        let mut leaves = leaf_count(&*domain, whole);
        let result = match how % 8 {
            0..3 => domain.split_ends(whole, gather),
            3..6 => domain.split(whole, largest, gather),
            6 => domain.join(whole, gather),
            // There is something to join then.
            _ => match domain.split(whole, largest, gather) {
                Ok(Progress::Done) => {
                    leaves = leaf_count(&*domain, whole);
                    domain.join(whole, gather)
                }
                other => other,
            },
        };
        let own_tables = domain.info().kind == DomainKind::Paging;
        match result {
            Ok(Progress::Done) => ensure!(own_tables, "sizes changed without tables"),
            Ok(Progress::SyncAndRepeat) => return Err("sizes change in one step".into()),
            Err(ResizeError::NoTables(NoTables)) if !own_tables => return self.end(before, Break::None),
            Err(ResizeError::OutOfMemory(_)) if self.short => self.count("resize", "out of memory"),
            Err(error) => return Err(format!("resize of {whole}: {error}")),
        }
        if sync == Sync::Strict
            && let Err(error) = domain.sync(&mut own).map(drop)
        {
            self.failed(&error)?;
        }
        if result.is_ok() {
            let now = self.leaves(at, &whole)?;
            let reaches_out = |leaf: &Mapping| bounds(leaf).0 < first || bounds(leaf).1 > last;
            match how % 8 {
                0..3 => {
                    ensure!(!now.iter().any(reaches_out), "a leaf reaches out of {whole}: {now:x?}");
                    self.count("resize", "ends");
                }
                3..6 => {
                    let wrong = now.iter().find(|leaf| leaf.memory.len() > largest);
                    ensure!(wrong.is_none(), "larger than {largest:#x}: {wrong:x?}");
                    self.count("resize", "split");
                }
                _ if now.len() < leaves => self.count("resize", "join"),
                _ => {}
            }
        }
        self.end(before, Break::None)
    }

    /// Where pages of a domain can be one large leaf, if anywhere.
    fn large_block(&self, space: usize, nonce: u64) -> Option<u64> {
        let fits = |piece: &Piece| {
            let block = piece.iova.checked_next_multiple_of(LARGE)?;
            let phys = piece.phys + (block - piece.iova);
            (phys.is_multiple_of(LARGE) && piece.covers(block, LARGE)).then_some(block)
        };
        let all: Vec<u64> = self.spaces[space].live.iter().filter_map(fits).collect();
        all.get(nonce as usize % all.len().max(1)).copied()
    }

    /// The leaves in a range, which have to be what is mapped there; none of a domain without tables of its own.
    fn leaves(&self, at: usize, whole: &IovaRange) -> Result<Vec<Mapping>, String> {
        let Some(slot) = &self.slots[at] else { return Ok(Vec::new()) };
        let (mut leaves, mut bytes) = (Vec::new(), 0);
        let told = slot.domain.visit(*whole, &mut |leaf| {
            leaves.push(leaf);
            ControlFlow::Continue(())
        });
        let own_tables = slot.domain.info().kind == DomainKind::Paging;
        ensure!(told.is_ok() == own_tables, "a visit ended with {told:?}");
        if !own_tables {
            return Ok(leaves);
        }
        let space = &self.spaces[slot.space];
        let (first, last) = (whole.start().get(), whole.last().get());
        for leaf in &leaves {
            space.agrees(leaf)?;
            let (low, high) = bounds(leaf);
            bytes += high.min(last) - low.max(first) + 1;
        }
        let mapped = space.mapped_bytes(first, last);
        ensure!(bytes == mapped, "{bytes:#x} bytes are shown in {whole}, mapped are {mapped:#x}");
        Ok(leaves)
    }

    /// Collects what the unit noted, and does it again after further writes: what the unit has cached of leaves whose
    /// marks were collected must not keep these from being marked anew.
    pub(crate) fn harvest(&mut self, nonce: u64, slot: u8, how: u8, sync: Sync) -> Outcomes {
        self.harvest_once(nonce, slot, how, sync, Mode::Any)?;
        self.harvest_once(nonce, slot, how, sync, Mode::Hostile)
    }

    fn harvest_once(&mut self, nonce: u64, slot: u8, how: u8, sync: Sync, mode: Mode) -> Outcomes {
        let at = self.index(slot);
        let Some(space) = self.slots[at].as_ref().map(|slot| slot.space) else { return Ok(()) };
        let points = self.points.clone();
        for request in self.requests(space, &points, nonce) {
            let write = Request { access: portcullis_model::core::Access::Write, ..request };
            if self.allowed(&write).faults == 0 {
                self.issue(&write, mode)?;
            }
        }
        let last = self.spaces[space].last;
        let whole = if how & 1 == 0 { range(0, last + 1) } else { range(0, LARGE * u64::from(how)) };
        let wanted = if how & 2 == 0 { Usage::DIRTY } else { Usage::all() };
        let (mut own, mut found) = (Gather::new(), Vec::new());
        let Some(slot) = &mut self.slots[at] else { return Ok(()) };
        let gather = if sync == Sync::Strict { &mut own } else { &mut slot.gather };
        let result = slot.domain.harvest(whole, wanted, gather, &mut |leaf, usage| found.push((leaf, usage)));
        let synced = if sync == Sync::Strict { slot.domain.sync(&mut own).map(drop) } else { Ok(()) };
        let kind = slot.domain.info().kind;
        let tracks = self.spaces[space].abilities.contains(Abilities::TRACKING);
        match result {
            Ok(()) => ensure!(tracks, "a harvest without marks"),
            Err(HarvestError::Untracked) if !tracks && kind == DomainKind::Paging => {
                self.count("harvest", "untracked");
            }
            Err(HarvestError::NoTables(NoTables)) if kind != DomainKind::Paging => {}
            Err(error) => return Err(format!("harvest of {whole}: {error}")),
        }
        for (leaf, usage) in &found {
            self.spaces[space].agrees(leaf)?;
            ensure!(!usage.is_empty() && wanted.contains(*usage), "{leaf:x?} has the marks {usage:?}");
        }
        let dirty =
            || found.iter().filter(|(_, usage)| usage.contains(Usage::DIRTY)).map(|(leaf, _)| bounds(leaf));
        let is_noted = |address: &u64| dirty().any(|(low, high)| (low..=high).contains(address));
        let (first, last) = (whole.start().get(), whole.last().get());
        let space = &mut self.spaces[space];
        if tracks {
            let missed = space.written.range(first..=last).find(|address| !is_noted(address));
            ensure!(missed.is_none(), "a write to {missed:x?} was not noted");
        }
        let writes = space.written.len();
        space.written.retain(|address| !is_noted(address));
        let noted = writes - space.written.len();
        dirty().for_each(|leaf| space.harvested(leaf, sync == Sync::Strict && synced.is_err()));
        if sync == Sync::Strict && synced.is_ok() {
            dirty().for_each(|leaf| space.settled(leaf));
        }
        (0..noted).for_each(|_| self.count("harvest", "write"));
        if let Err(error) = synced {
            self.failed(&error)?;
        }
        Ok(())
    }

    /// A device wrote, as the unit said.
    pub(crate) fn note_write(&mut self, request: &Request, outcome: &Outcome) {
        let requester = |device: &&crate::world::Device| u32::from(device.sid) == request.requester;
        let device = self.devices.iter().find(requester);
        let space = device.and_then(|device| device.attached.at(request.pasid.unwrap_or(0)));
        if let (Outcome::Done(phys), portcullis_model::core::Access::Write, Some(space)) =
            (outcome, request.access, space)
        {
            self.spaces[space].note_write(request.address, *phys);
        }
    }
}

impl Space {
    /// Both ends of a leaf lead where they should.
    fn agrees(&self, leaf: &Mapping) -> Outcomes {
        let (low, high) = bounds(leaf);
        for (address, phys) in [(low, leaf.memory.start()), (high, leaf.memory.last())] {
            let piece = self.live.iter().find(|piece| piece.touches(address, address));
            let fits = piece.is_some_and(|piece| {
                (piece.phys + (address - piece.iova), piece.access) == (phys.get(), leaf.attributes.access)
            });
            ensure!(fits, "{leaf:x?} is shown, mapped at {address:#x} is {piece:x?}");
        }
        Ok(())
    }
}
