//! Page-table walks: second stage (specification 3.7), first stage (3.6), nested (3.8).

use super::caches::{Caches, Rights, Stage, WalkEntry, WalkKey, base, span};
use super::chooser::Choices;
use super::config::Feature;
use super::entry::{PasidEntry, Pgtt};
use super::env::Eyes;
use super::reason;
use crate::core::{Privilege, View};

/// Bits 51:12, the address field of page-table entries.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What a run may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Nothing: the oracle asks.
    Explore,
    /// The caches: hardware fetches ahead.
    Prefetch,
    /// The caches and the accessed and dirty flags: a transaction is performed.
    Perform,
}

/// What the walk is for, as far as the dirty flag goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Intent {
    Look,
    /// A write with this privilege: sets the dirty flag where it is allowed.
    Write(Privilege),
}

impl Intent {
    /// Whether the dirty flag has to be set. A write that the stage does not allow is refused and sets none.
    fn dirties(self, stage: Stage, rights: Rights, entry: &PasidEntry) -> bool {
        let Self::Write(privilege) = self else { return false };
        let supervisor = privilege == Privilege::Supervisor;
        match stage {
            Stage::Second => rights.second_write,
            _ => (rights.write || supervisor && !entry.write_protect) && (rights.user || supervisor),
        }
    }
}

/// The result of a walk: the page around the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    pub(super) output: u64,
    pub(super) shift: u32,
    pub(super) rights: Rights,
    /// All accessed flags on the way are set, or there are none.
    pub(super) accessed: bool,
    /// The dirty flags are set, or there are none.
    pub(super) dirty: bool,
}

/// An entry visited, for flag updates and for the paging-structure caches.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// Where the entry is: a host physical address.
    address: u64,
    /// Where its stage says it is: a guest address in a nested walk.
    slot: u64,
    value: u64,
    level: u32,
    leaf: bool,
    /// A nested walk's right to write the entry's flags.
    writable: bool,
    pointer: WalkEntry,
}

/// One table walk's fixed part.
struct Tables {
    stage: Stage,
    domain: u16,
    pasid: u32,
    top: u32,
    root: u64,
    view: View,
    /// Accessed and dirty bits, if the stage has them on.
    flags: Option<(u64, u64)>,
}

pub(super) struct Walker<'a> {
    pub(super) eyes: Eyes<'a>,
    pub(super) caches: &'a mut Caches,
    pub(super) choices: &'a mut Choices,
    pub(super) purpose: Purpose,
    /// A flag update lost a race with software: the run has to be made again.
    pub(super) again: bool,
    /// A stale alternative was taken.
    pub(super) stale: Option<&'static str>,
}

impl Walker<'_> {
    fn walk_view(&self, entry: &PasidEntry) -> View {
        if entry.walk_snoop { View::Coherent } else { View::Uncached }
    }

    /// Width of second-stage input addresses.
    fn second_width(&self, entry: &PasidEntry) -> u32 {
        (12 + 9 * entry.second_levels).min(self.eyes.env.config.guest_width())
    }

    /// Walks all stages of an entry for an input address.
    pub(super) fn translate(
        &mut self,
        entry: &PasidEntry,
        pasid: u32,
        address: u64,
        intent: Intent,
    ) -> Result<Leaf, u8> {
        match entry.pgtt {
            Pgtt::SecondStage if address >> self.second_width(entry) != 0 => Err(reason::ADDRESS_TOO_LARGE),
            Pgtt::SecondStage => self.second_stage(entry, address, intent),
            _ => {
                let bits = 12 + 9 * entry.first_levels;
                if ((address << (64 - bits)) as i64 >> (64 - bits)) as u64 != address {
                    return Err(reason::NOT_CANONICAL);
                }
                self.first_stage(entry, pasid, address, intent)
            }
        }
    }

    fn second_stage(&mut self, entry: &PasidEntry, address: u64, intent: Intent) -> Result<Leaf, u8> {
        let config = self.eyes.env.config;
        if entry.second_pointer & config.reserved_address() != 0 {
            return Err(reason::SECOND_STAGE_POINTER);
        }
        let tables = Tables {
            stage: Stage::Second,
            domain: entry.domain,
            pasid: 0,
            top: entry.second_levels,
            root: entry.second_pointer,
            view: self.walk_view(entry),
            flags: entry.second_flags.then_some((1 << 8, 1 << 9)),
        };
        self.walk(entry, &tables, address, intent)
    }

    fn first_stage(
        &mut self,
        entry: &PasidEntry,
        pasid: u32,
        address: u64,
        intent: Intent,
    ) -> Result<Leaf, u8> {
        let nested = entry.pgtt == Pgtt::Nested;
        let tables = Tables {
            stage: if nested { Stage::Guest } else { Stage::First },
            domain: entry.domain,
            pasid,
            top: entry.first_levels,
            root: entry.first_pointer,
            view: self.walk_view(entry),
            flags: Some((1 << 5, 1 << 6)),
        };
        let first = self.walk(entry, &tables, address, intent)?;
        if !nested {
            return Ok(first);
        }
        let guest = first.output | address & ((1 << first.shift) - 1);
        if guest >> self.second_width(entry) != 0 {
            return Err(reason::NESTED_OUTPUT_TOO_LARGE);
        }
        let second = self.second_stage(entry, guest, intent)?;
        let shift = first.shift.min(second.shift);
        let within = guest & ((1 << second.shift) - 1);
        Ok(Leaf {
            output: base(second.output | within, shift),
            shift,
            rights: first.rights.and(second.rights),
            accessed: first.accessed && second.accessed,
            dirty: first.dirty && second.dirty,
        })
    }

    /// Walks one stage: from the root in memory, or from a table pointer that hardware may still hold.
    fn walk(
        &mut self,
        entry: &PasidEntry,
        tables: &Tables,
        address: u64,
        intent: Intent,
    ) -> Result<Leaf, u8> {
        let mut steps = Vec::new();
        let fresh = self.descend(entry, tables, tables.top, tables.root, Rights::ALL, address, &mut steps);
        let key = |level| WalkKey {
            domain: tables.domain,
            stage: tables.stage,
            pasid: tables.pasid,
            level,
            base: base(address, span(level)),
        };
        // A cached pointer that memory agrees with is no alternative.
        let mut held = Vec::new();
        for level in 2..=tables.top {
            if self.eyes.lagging {
                // Stores become visible in their order: behind a younger pointer there are no older entries.
                break;
            }
            let now = steps.iter().find(|step| step.level == level && !step.leaf).map(|step| step.pointer);
            held.extend(self.caches.walks.get(&key(level)).filter(|v| Some(**v) != now).map(|v| (level, *v)));
        }
        let choice = self.choices.choose(1 + held.len());
        let result = match choice.checked_sub(1).and_then(|at| held.get(at)) {
            None => fresh,
            Some(&(level, pointer)) => {
                self.stale = Some("paging structure");
                steps.clear();
                let WalkEntry { table, rights } = pointer;
                self.descend(entry, tables, level - 1, table, rights, address, &mut steps)
            }
        };
        let (output, shift, rights) = match result {
            Ok(leaf) => leaf,
            Err(reason) => {
                self.remember(tables, &steps, &key);
                return Err(reason);
            }
        };
        let dirties = intent.dirties(tables.stage, rights, entry);
        let (accessed, dirty) = self.update_flags(entry, tables, &mut steps, dirties)?;
        self.remember(tables, &steps, &key);
        Ok(Leaf { output, shift, rights, accessed, dirty })
    }

    /// Goes down from the table of a level to the leaf. Gives the page, its size and the rights on the way.
    #[expect(clippy::too_many_arguments, reason = "a walk's state, spelled out once")]
    fn descend(
        &mut self,
        entry: &PasidEntry,
        tables: &Tables,
        top: u32,
        mut table: u64,
        mut rights: Rights,
        address: u64,
        steps: &mut Vec<Step>,
    ) -> Result<(u64, u32, Rights), u8> {
        for level in (1..=top).rev() {
            let slot = table + (address >> span(level) & 0x1ff) * 8;
            let is_top = level == tables.top;
            let (at, writable) = match tables.stage {
                Stage::Guest => self.guest_table(entry, slot, is_top)?,
                _ => (slot, true),
            };
            let value = self.eyes.read64(tables.view, at).ok_or(match tables.stage {
                Stage::Second => reason::SECOND_STAGE_ACCESS,
                _ if is_top => reason::FIRST_STAGE_TOP_ACCESS,
                _ => reason::FIRST_STAGE_ACCESS,
            })?;
            let (leaf, own) = match tables.stage {
                Stage::Second => self.second_entry(value, level)?,
                _ => self.first_entry(entry, value, level)?,
            };
            rights = rights.and(own);
            table = value & ADDRESS;
            let pointer = WalkEntry { table, rights };
            steps.push(Step { address: at, slot, value, level, leaf, writable, pointer });
            if leaf {
                return Ok((base(table, span(level)), span(level), rights));
            }
        }
        // The loop ends at level 1, whose entries are leaves.
        Err(reason::SECOND_STAGE_RESERVED)
    }

    /// Translates the guest address of a first-stage entry; also says whether the entry may be written.
    fn guest_table(&mut self, entry: &PasidEntry, slot: u64, is_top: bool) -> Result<(u64, bool), u8> {
        if slot >> self.second_width(entry) != 0 {
            return Err(reason::NESTED_TABLE_TOO_LARGE);
        }
        let leaf = self.second_stage(entry, slot, Intent::Look)?;
        if !leaf.rights.read {
            return Err(if is_top { reason::NESTED_TOP_READ } else { reason::NESTED_TABLE_READ });
        }
        Ok((leaf.output | slot & ((1 << leaf.shift) - 1), leaf.rights.second_write))
    }

    /// Whether a second-stage entry is a leaf, and what it grants.
    fn second_entry(&self, value: u64, level: u32) -> Result<(bool, Rights), u8> {
        let config = self.eyes.env.config;
        if value & 3 == 0 {
            return Err(reason::SECOND_STAGE_NOT_PRESENT);
        }
        let leaf = level == 1 || value >> 7 & 1 != 0;
        let unaligned = leaf && value & ADDRESS & ((1 << span(level)) - 1) != 0;
        // Bit 62 was TM, and is reserved since revision 3.2; only leaves have SNP, bit 11.
        let reserved = ADDRESS & config.reserved_address() | 1 << 62 | if leaf { 0 } else { 1 << 11 };
        if leaf && !config.second_stage_leaf(level) || unaligned || value & reserved != 0 {
            return Err(reason::SECOND_STAGE_RESERVED);
        }
        Ok((leaf, Rights { read: value & 1 != 0, second_write: value & 2 != 0, ..Rights::ALL }))
    }

    /// Whether a first-stage entry is a leaf, and what it grants.
    fn first_entry(&self, entry: &PasidEntry, value: u64, level: u32) -> Result<(bool, Rights), u8> {
        let config = self.eyes.env.config;
        if value & 1 == 0 {
            return Err(reason::FIRST_STAGE_NOT_PRESENT);
        }
        let page_size = value >> 7 & 1 != 0;
        let leaf = level == 1 || page_size && level <= 3;
        // Bit 12 of a large page is its PAT bit.
        let unaligned = leaf && level > 1 && value & ADDRESS & !(1 << 12) & ((1 << span(level)) - 1) != 0;
        let no_execute = value >> 63 != 0;
        // Guest addresses of nested tables are checked against the second stage instead.
        let too_large = entry.pgtt != Pgtt::Nested && value & ADDRESS & config.reserved_address() != 0;
        if page_size && level > 3
            || leaf && level == 3 && !config.has(Feature::FirstStageGib)
            || unaligned
            || no_execute && !entry.no_execute
            || too_large
        {
            return Err(reason::FIRST_STAGE_RESERVED);
        }
        let rights = Rights {
            write: value >> 1 & 1 != 0,
            user: value >> 2 & 1 != 0,
            execute: !no_execute,
            ..Rights::ALL
        };
        Ok((leaf, rights))
    }

    /// Sets accessed and dirty flags where they are on; gives whether all are set now.
    fn update_flags(
        &mut self,
        entry: &PasidEntry,
        tables: &Tables,
        steps: &mut [Step],
        dirties: bool,
    ) -> Result<(bool, bool), u8> {
        let Some((accessed, dirty)) = tables.flags else { return Ok((true, true)) };
        for step in steps.iter_mut() {
            let wanted = accessed | if step.leaf && dirties { dirty } else { 0 };
            if step.value & wanted == wanted {
                continue;
            }
            if tables.view == View::Uncached {
                return Err(match tables.stage {
                    Stage::Second => reason::SECOND_STAGE_FLAGS,
                    _ => reason::FIRST_STAGE_FLAGS,
                });
            }
            if !step.writable {
                return Err(reason::NESTED_TABLE_WRITE);
            }
            if self.purpose == Purpose::Perform {
                if tables.stage == Stage::Guest && entry.second_flags {
                    // Writing the guest's flags makes the page that holds them dirty in the second stage.
                    let choices = std::mem::take(self.choices);
                    self.second_stage(entry, step.slot, Intent::Write(Privilege::Supervisor))?;
                    *self.choices = choices;
                }
                let new = step.value | wanted;
                let before = self.eyes.env.memory.compare_exchange64(step.address, step.value, new);
                let before = before.ok_or(match tables.stage {
                    Stage::Second => reason::SECOND_STAGE_FLAGS_ACCESS,
                    _ => reason::FIRST_STAGE_FLAGS_ACCESS,
                })?;
                self.again |= before != step.value;
                step.value = new;
                self.eyes.env.coverage.count("flags", if wanted & dirty != 0 { "dirty" } else { "accessed" });
            }
        }
        let all = |bit| steps.iter().all(|step| step.value & bit != 0);
        Ok((all(accessed), steps.iter().filter(|step| step.leaf).all(|step| step.value & dirty != 0)))
    }

    /// Table pointers that hardware may keep from this walk: those whose accessed flag is set or not in use.
    fn remember(&mut self, tables: &Tables, steps: &[Step], key: &impl Fn(u32) -> WalkKey) {
        if self.purpose == Purpose::Explore || self.again {
            return;
        }
        for step in steps.iter().filter(|step| !step.leaf) {
            if tables.flags.is_some_and(|(accessed, _)| step.value & accessed == 0) {
                break;
            }
            self.caches.walks.observe(&key(step.level), step.pointer);
        }
    }
}
