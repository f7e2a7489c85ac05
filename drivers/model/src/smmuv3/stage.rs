//! The two stages of translation, with everything that caches may add to them.

use super::caches::{Key, Leaf1, Leaf2, Table1, Table2, Tag, Target};
use super::context::{Cd, Half};
use super::entry::{Stage2, StreamWorld, Translating};
use super::run::{Class, Fault, Hw, Report, Run, Update, code};
use super::state::State;
use super::walk::{self, AF, BIT7, Controls, DBM, Descriptor, Format, Granule, Hierarchy, NG, Permissions};
use crate::core::View;

/// A descriptor whose flags an access may have to update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    address: u64,
    descriptor: u64,
    /// The access flag is to be set.
    needs_af: bool,
    /// Writable-clean: a write has to make it dirty.
    clean: bool,
    stage2: bool,
}

impl Slot {
    /// The update that an access brings about, if any.
    pub(super) fn update(&self, write: bool) -> Option<Update> {
        let mut to = self.descriptor;
        if self.needs_af {
            to |= AF;
        }
        if self.clean && write {
            to = if self.stage2 { to | BIT7 } else { to & !BIT7 };
        }
        let name = if self.clean && write { "dirty state" } else { "access flag" };
        (to != self.descriptor).then_some(Update { address: self.address, from: self.descriptor, to, name })
    }
}

/// Result of stage 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found1 {
    pub(super) target: Target,
    pub(super) bits: u8,
    pub(super) permissions: Permissions,
    pub(super) slot: Option<Slot>,
    pub(super) tag: Tag,
    pub(super) granule: Granule,
    pub(super) level: i8,
    /// Found through an entry that an invalidation under way covers.
    pub(super) doomed: bool,
}

/// Result of stage 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found2 {
    pub(super) address: u64,
    pub(super) bits: u8,
    pub(super) permissions: Permissions,
    pub(super) slot: Option<Slot>,
    device: bool,
    /// As for [`Found1`].
    pub(super) doomed: bool,
}

/// A place to walk from.
#[derive(Clone, Copy)]
struct From {
    format: Format,
    view: View,
    table: u64,
    level: i8,
    /// Index bits of this first table.
    index_bits: u8,
    /// The pointer to the table is doomed.
    doomed: bool,
}

const fn low(bits: u8) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

impl From {
    fn slot(&self, table: u64, level: i8, index_bits: u8, address: u64) -> u64 {
        let index = address >> self.format.granule.span(level) & low(index_bits);
        table + 8 * index
    }
}

/// A stage-1 translation's fixed inputs.
#[derive(Clone, Copy)]
struct Walk1<'a> {
    t: &'a Translating,
    cd: &'a Cd,
    half: &'a Half,
    /// The address with its top byte as a sign extension if that byte is ignored.
    va: u64,
}

enum Start1 {
    Root,
    Leaf(Found1),
    Table(Table1, bool),
}

impl State {
    /// Stage 2 for an access of the SMMU itself: to a CD or a stage-1 descriptor.
    pub(super) fn stage2_for_table(
        &mut self,
        hw: &Hw,
        run: &mut Run<'_>,
        s2: &Stage2,
        vmid: u16,
        ipa: u64,
        class: Class,
    ) -> Result<(u64, Found2), Fault> {
        let found = self.stage2(hw, run, s2, vmid, ipa, class, false)?;
        if !found.permissions.read[1] || s2.ptw && found.device {
            return Err(Fault::stage2(code::F_PERMISSION, Report::stage2(s2), class, ipa));
        }
        run.updates.extend(found.slot.and_then(|slot| slot.update(false)));
        Ok((found.address, found))
    }

    /// Stage 2 of an IPA, without a check of permissions.
    #[expect(clippy::too_many_arguments, reason = "a translation has that many inputs")]
    pub(super) fn stage2(
        &mut self,
        hw: &Hw,
        run: &mut Run<'_>,
        s2: &Stage2,
        vmid: u16,
        ipa: u64,
        class: Class,
        write: bool,
    ) -> Result<Found2, Fault> {
        let format = Format { granule: s2.granule, ds: s2.ds, lpa: hw.config.oas == 52 };
        let mut path = Vec::new();
        let root = if ipa >> s2.input_bits == 0 {
            let index_bits = s2.input_bits - s2.granule.span(s2.start);
            let from =
                From { format, view: s2.view, table: s2.table, level: s2.start, index_bits, doomed: false };
            self.walk2(hw, run, s2, vmid, ipa, class, from, &mut path)
        } else {
            Err(Fault::stage2(code::F_TRANSLATION, Report::stage2(s2), class, ipa))
        };
        if run.fresh() {
            return root;
        }
        let leaves = self.tlb.leaves2.at(StreamWorld::El1, vmid, ipa);
        let tables = self.tlb.tables2.at(StreamWorld::El1, vmid, ipa);
        let mut cached = Vec::new();
        for (key, leaf, doomed) in leaves {
            let found = Found2 {
                address: leaf.address + (ipa & low(key.bits)),
                bits: key.bits,
                permissions: leaf.permissions,
                slot: leaf.clean.map(|clean| slot(clean, true)),
                device: leaf.device,
                doomed,
            };
            if write && !self.still_clean(hw, s2.view, leaf.clean)
                || root == Ok(Found2 { doomed: false, ..found })
            {
                continue;
            }
            cached.push(Ok(found));
        }
        let tables = tables.into_iter().filter(|(key, table, _)| !path.contains(&(*key, *table)));
        cached.extend(tables.map(|(_, table, doomed)| Err((table, doomed))));
        match run.pick(cached.len() + 1) {
            0 => root,
            picked => match cached[picked - 1] {
                Ok(found) => {
                    run.used.push("stage-2 leaf");
                    Ok(found)
                }
                Err((table, doomed)) => {
                    run.used.push("stage-2 table pointer");
                    let index_bits = table.format.granule.stride();
                    let from = From {
                        format: table.format,
                        view: s2.view,
                        table: table.next,
                        level: table.level,
                        index_bits,
                        doomed,
                    };
                    self.walk2(hw, run, s2, vmid, ipa, class, from, &mut path)
                }
            },
        }
    }

    /// A write through a cached writable-clean entry has to find the descriptor unchanged; else the walk begins
    /// anew.
    fn still_clean(&self, hw: &Hw, view: View, clean: Option<(u64, u64)>) -> bool {
        clean.is_none_or(|(address, descriptor)| hw.memory.read64_as(view, address) == Some(descriptor))
    }

    #[expect(clippy::too_many_arguments, reason = "a walk has that many inputs")]
    fn walk2(
        &mut self,
        hw: &Hw,
        run: &Run<'_>,
        s2: &Stage2,
        vmid: u16,
        ipa: u64,
        class: Class,
        from: From,
        path: &mut Vec<(Key, Table2)>,
    ) -> Result<Found2, Fault> {
        let fault = |code| Fault::stage2(code, Report::stage2(s2), class, ipa);
        let format = from.format;
        let (mut table, mut level, mut index_bits) = (from.table, from.level, from.index_bits);
        loop {
            let at = from.slot(table, level, index_bits, ipa);
            let descriptor = hw.memory.read64_as(from.view, at).ok_or(Fault::walk_abort(true, class, at))?;
            match format.decode(descriptor, level) {
                Descriptor::Invalid => return Err(fault(code::F_TRANSLATION)),
                Descriptor::Table(next) if next >> s2.output_bits != 0 => {
                    return Err(fault(code::F_ADDR_SIZE));
                }
                Descriptor::Table(next) => {
                    let key = Key::new(StreamWorld::El1, vmid, format.granule.span(level), ipa);
                    level += 1;
                    let entry = Table2 { format, level, next };
                    if run.fill {
                        self.tlb.tables2.observe(&key, entry, from.doomed);
                    }
                    path.push((key, entry));
                    (table, index_bits) = (next, format.granule.stride());
                }
                Descriptor::Leaf { address, span, reach } => {
                    if address >> s2.output_bits != 0 {
                        return Err(fault(code::F_ADDR_SIZE));
                    }
                    let accessed = descriptor & AF != 0;
                    if !accessed && !s2.ha && !s2.affd {
                        return Err(fault(code::F_ACCESS));
                    }
                    let clean = s2.hd && descriptor & DBM != 0 && descriptor & BIT7 == 0;
                    let needs_af = !accessed && s2.ha;
                    let permissions = walk::stage2(descriptor, hw.config.xnx, clean);
                    let device = walk::stage2_is_device(descriptor);
                    let exact = address + (ipa & low(span));
                    if run.fill && !needs_af {
                        let key = Key::new(StreamWorld::El1, vmid, reach, ipa);
                        let address = exact.wrapping_sub(ipa & low(reach));
                        let clean = clean.then_some((at, descriptor));
                        let granule = format.granule;
                        let leaf = Leaf2 { granule, level, address, permissions, device, clean };
                        self.tlb.leaves2.observe(&key, leaf, from.doomed);
                    }
                    let slot = (clean || needs_af).then_some(Slot {
                        address: at,
                        descriptor,
                        needs_af,
                        clean,
                        stage2: true,
                    });
                    let doomed = from.doomed;
                    return Ok(Found2 { address: exact, bits: reach, permissions, slot, device, doomed });
                }
            }
        }
    }

    /// Stage 1 of a virtual address, without a check of permissions.
    pub(super) fn stage1(
        &mut self,
        hw: &Hw,
        run: &mut Run<'_>,
        t: &Translating,
        cd: &Cd,
        va: u64,
        write: bool,
    ) -> Result<Found1, Fault> {
        let upper = t.world != StreamWorld::El2 && va >> 55 & 1 == 1;
        let va = if cd.tbi[usize::from(upper)] { ((va << 8) as i64 >> 8) as u64 } else { va };
        let half = if upper { cd.high.as_ref() } else { cd.low.as_ref() };
        let nested = t.stage2.is_some();
        let mut path = Vec::new();
        // Without a stage 2 the walk makes no choices of its own, so it can be done first, and cached pointers
        // that it goes through anyway need not be tried.
        let mut root = None;
        if !nested || run.fresh() {
            root = Some(self.root1(hw, run, t, cd, half, va, &mut path));
        }
        if let (Some(root), true) = (root, run.fresh()) {
            return root;
        }
        let matches = |tag: Tag| match tag.asid {
            Some(asid) => asid == cd.asid,
            None => tag.private == cd.private,
        };
        let mut starts = vec![Start1::Root];
        let leaves = self.tlb.leaves1.at(t.world, t.vmid, va);
        let view = half.map_or(View::Coherent, |half| half.view);
        for (key, leaf, doomed) in leaves.into_iter().filter(|(_, leaf, _)| matches(leaf.tag)) {
            let offset = va & low(key.bits);
            let found = Found1 {
                target: match leaf.target {
                    Target::Intermediate(base) => Target::Intermediate(base.wrapping_add(offset)),
                    Target::Physical(base, p) => Target::Physical(base.wrapping_add(offset), p),
                },
                bits: key.bits,
                permissions: leaf.permissions,
                slot: leaf.clean.map(|clean| slot(clean, false)),
                tag: leaf.tag,
                granule: leaf.granule,
                level: leaf.level,
                doomed,
            };
            if root != Some(Ok(Found1 { doomed: false, ..found }))
                && (!write || self.still_clean(hw, view, leaf.clean))
            {
                starts.push(Start1::Leaf(found));
            }
        }
        if half.is_some() {
            let tables = self.tlb.tables1.at(t.world, t.vmid, va).into_iter();
            let tables =
                tables.filter(|(key, table, _)| matches(table.tag) && !path.contains(&(*key, *table)));
            starts.extend(tables.map(|(_, table, doomed)| Start1::Table(table, doomed)));
        }
        let picked = run.pick(starts.len());
        match (starts.swap_remove(picked), half) {
            (Start1::Leaf(found), _) => {
                let combined = nested && matches!(found.target, Target::Physical(..));
                run.used.push(if combined { "leaf of both stages" } else { "stage-1 leaf" });
                Ok(found)
            }
            (Start1::Table(table, doomed), Some(half)) => {
                let resolved = nested && table.physical;
                run.used.push(if resolved {
                    "table pointer of both stages"
                } else {
                    "stage-1 table pointer"
                });
                let from = From {
                    format: table.format,
                    view: half.view,
                    table: table.next,
                    level: table.level,
                    index_bits: table.format.granule.stride(),
                    doomed,
                };
                let walk = Walk1 { t, cd, half, va };
                self.walk1(hw, run, walk, from, table.physical, table.hierarchy, &mut path)
            }
            (Start1::Table(..) | Start1::Root, _) => match root {
                Some(root) => root,
                None => self.root1(hw, run, t, cd, half, va, &mut path),
            },
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a walk has that many inputs")]
    fn root1(
        &mut self,
        hw: &Hw,
        run: &mut Run<'_>,
        t: &Translating,
        cd: &Cd,
        half: Option<&Half>,
        va: u64,
        path: &mut Vec<(Key, Table1)>,
    ) -> Result<Found1, Fault> {
        let out = Fault::stage1(code::F_TRANSLATION, Report::new(cd.stall, cd.record));
        let half = half.ok_or(out)?;
        let upper = t.world != StreamWorld::El2 && va >> 55 & 1 == 1;
        let top = if upper { u64::MAX >> half.input_bits } else { 0 };
        if va >> half.input_bits != top {
            return Err(out);
        }
        let format = Format { granule: half.granule, ds: half.ds, lpa: hw.config.oas == 52 };
        let index_bits = half.input_bits - half.granule.span(half.start);
        let from =
            From { format, view: half.view, table: half.table, level: half.start, index_bits, doomed: false };
        let walk = Walk1 { t, cd, half, va };
        self.walk1(hw, run, walk, from, t.stage2.is_none(), Hierarchy::default(), path)
    }

    #[expect(clippy::too_many_arguments, reason = "a walk has that many inputs")]
    fn walk1(
        &mut self,
        hw: &Hw,
        run: &mut Run<'_>,
        walk: Walk1<'_>,
        from: From,
        mut physical: bool,
        mut hierarchy: Hierarchy,
        path: &mut Vec<(Key, Table1)>,
    ) -> Result<Found1, Fault> {
        let Walk1 { t, cd, half, va } = walk;
        let report = Report::new(cd.stall, cd.record);
        let format = from.format;
        let own = Tag { asid: Some(cd.asid), private: cd.private };
        let mut doomed = from.doomed;
        let (mut table, mut level, mut index_bits) = (from.table, from.level, from.index_bits);
        loop {
            let mut at = from.slot(table, level, index_bits, va);
            let mut table_writable = true;
            if let (Some(s2), false) = (&t.stage2, physical) {
                let offset = at - table;
                let (pa, found) = self.stage2_for_table(hw, run, s2, t.vmid, at, Class::Table)?;
                table_writable = found.permissions.write[1];
                doomed |= found.doomed && self.tlb.both_doomed(t.vmid);
                // Walk caches may hold the pointer with stage 2 applied, for tables below the first.
                if run.fill && index_bits == format.granule.stride() && found.bits >= format.granule.bits() {
                    let key = Key::new(t.world, t.vmid, format.granule.span(level - 1), va);
                    let next = pa - offset;
                    let entry = Table1 { tag: own, format, level, next, physical: true, hierarchy };
                    self.tlb.tables1.observe(&key, entry, doomed);
                }
                at = pa;
            }
            let descriptor =
                hw.memory.read64_as(from.view, at).ok_or(Fault::walk_abort(false, Class::Table, at))?;
            match format.decode(descriptor, level) {
                Descriptor::Invalid => return Err(Fault::stage1(code::F_TRANSLATION, report)),
                Descriptor::Table(next) if next >> cd.output_bits != 0 => {
                    return Err(Fault::stage1(code::F_ADDR_SIZE, report));
                }
                Descriptor::Table(next) => {
                    if !half.hierarchy_off {
                        hierarchy = hierarchy.and(descriptor);
                    }
                    let key = Key::new(t.world, t.vmid, format.granule.span(level), va);
                    level += 1;
                    physical = t.stage2.is_none();
                    let entry = Table1 { tag: own, format, level, next, physical, hierarchy };
                    if run.fill {
                        self.tlb.tables1.observe(&key, entry, doomed);
                    }
                    path.push((key, entry));
                    (table, index_bits) = (next, format.granule.stride());
                }
                Descriptor::Leaf { address, span, reach } => {
                    if address >> cd.output_bits != 0 {
                        return Err(Fault::stage1(code::F_ADDR_SIZE, report));
                    }
                    let accessed = descriptor & AF != 0;
                    if !accessed && !cd.ha && !cd.affd {
                        return Err(Fault::stage1(code::F_ACCESS, report));
                    }
                    let clean = cd.hd && descriptor & DBM != 0 && descriptor & BIT7 != 0;
                    let needs_af = !accessed && cd.ha;
                    if let (Some(s2), true, false) = (&t.stage2, needs_af, table_writable) {
                        let denied = Fault::stage2(code::F_PERMISSION, Report::stage2(s2), Class::Table, at);
                        return Err(Fault { table_read: false, ..denied });
                    }
                    let controls =
                        Controls { wxn: cd.wxn, pan: cd.pan, two_levels: t.world != StreamWorld::El2 };
                    let permissions = walk::stage1(descriptor, hierarchy, controls, clean);
                    let global = descriptor & NG == 0 && t.world != StreamWorld::El2;
                    let tag = Tag { asid: if global { None } else { own.asid }, ..own };
                    let exact = address + (va & low(span));
                    let target = |address| match t.stage2 {
                        Some(_) => Target::Intermediate(address),
                        None => Target::Physical(address, Permissions::ALL),
                    };
                    let granule = format.granule;
                    if run.fill && !needs_af {
                        let key = Key::new(t.world, t.vmid, reach, va);
                        let target = target(exact.wrapping_sub(va & low(reach)));
                        let clean = clean.then_some((at, descriptor));
                        let leaf = Leaf1 { tag, granule, level, target, permissions, clean };
                        self.tlb.leaves1.observe(&key, leaf, doomed);
                    }
                    let slot = (clean || needs_af).then_some(Slot {
                        address: at,
                        descriptor,
                        needs_af,
                        clean,
                        stage2: false,
                    });
                    let target = target(exact);
                    return Ok(Found1 {
                        target,
                        bits: reach,
                        permissions,
                        slot,
                        tag,
                        granule,
                        level,
                        doomed,
                    });
                }
            }
        }
    }

    /// One TLB entry for both stages.
    pub(super) fn combine(&mut self, t: &Translating, va: u64, s1: &Found1, s2: &Found2) {
        if s1.slot.is_some() || s2.slot.is_some() {
            return;
        }
        let bits = s1.bits.min(s2.bits);
        let key = Key::new(t.world, t.vmid, bits, va);
        let base = s2.address.wrapping_sub(va & low(bits));
        let target = Target::Physical(base, s2.permissions);
        let (tag, granule, level, permissions) = (s1.tag, s1.granule, s1.level, s1.permissions);
        let doomed = s1.doomed || s2.doomed && self.tlb.both_doomed(t.vmid);
        self.tlb.leaves1.observe(
            &key,
            Leaf1 { tag, granule, level, target, permissions, clean: None },
            doomed,
        );
    }
}

const fn slot((address, descriptor): (u64, u64), stage2: bool) -> Slot {
    Slot { address, descriptor, needs_af: false, clean: true, stage2 }
}
