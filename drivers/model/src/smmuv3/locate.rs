//! Finding the STE and the CD of a transaction (IHI 0070, 3.3.2 and 3.21.3).

use super::caches::L1CdKey;
use super::context::{self, Cd};
use super::entry::{self, Context, Stage1, Ste, Translating};
use super::run::{Class, Fault, Hw, Run, code};
use super::state::State;
use crate::core::{Torn, View};

/// How many mixes of an entry's words are looked at; more than that only a runaway test makes.
const MIXES: usize = 1024;

/// A structure that hardware may use, and whether only an invalidated version of it says so.
type Options<T> = Vec<(Result<T, Fault>, bool)>;

/// Adds what is not there yet; number 0 stays what memory says.
fn add<T: PartialEq>(options: &mut Options<T>, option: Result<T, Fault>, doomed: bool) {
    match options.iter_mut().find(|(known, _)| *known == option) {
        Some((_, known)) => *known &= doomed,
        None => options.push((option, doomed)),
    }
}

fn choose<T>(run: &mut Run<'_>, mut options: Options<T>, name: &'static str) -> Result<T, Fault> {
    let picked = run.pick(options.len());
    if picked != 0 {
        run.used.push(name);
    }
    let (option, doomed) = options.swap_remove(picked);
    run.doomed_config |= doomed;
    option
}

impl State {
    pub(super) fn context<'a>(&self, hw: &'a Hw) -> Context<'a> {
        Context { config: &hw.config, atschk: self.regs.atschk(), e2h: self.regs.e2h() }
    }

    /// The STE of a stream.
    pub(super) fn ste(&mut self, hw: &Hw, run: &mut Run<'_>, sid: u32) -> Result<Ste, Fault> {
        let table = self.regs.stream_table(&hw.config);
        if u64::from(sid) >> table.log2 != 0 {
            return Err(Fault::config(code::C_BAD_STREAMID));
        }
        let mut options = Vec::new();
        match table.split {
            None => {
                let at = (Ok(table.base + 64 * u64::from(sid)), false);
                self.fetch_ste(hw, run, sid, at, table.view, &mut options);
            }
            Some(split) => {
                let index = u64::from(sid) >> split;
                let key = (sid >> split << split, 1u64 << split);
                let address = table.base + 8 * index;
                let mut descriptors = Vec::new();
                let found = hw.memory.read64_as(table.view, address);
                if let (Some(descriptor), true) = (found, run.fill) {
                    self.configs.l1stds.observe(&key, descriptor);
                }
                add(&mut descriptors, found.ok_or(Fault::fetch(code::F_STE_FETCH, address)), false);
                if !run.fresh() {
                    for (&descriptor, doomed) in self.configs.l1stds.marked(&key) {
                        add(&mut descriptors, Ok(descriptor), doomed);
                    }
                }
                for (descriptor, doomed) in descriptors {
                    let at = descriptor.and_then(|descriptor| second_level(descriptor, sid, split));
                    self.fetch_ste(hw, run, sid, (at, doomed), table.view, &mut options);
                }
            }
        }
        if !run.fresh() {
            let context = self.context(hw);
            for (_, torn) in self.configs.stes.range((sid, 0)..=(sid, u64::MAX)) {
                for (words, doomed) in mixes(hw, torn) {
                    add(&mut options, Ok(entry::decode(&words, context)), doomed);
                }
            }
        }
        choose(run, options, "STE")
    }

    fn fetch_ste(
        &mut self,
        hw: &Hw,
        run: &Run<'_>,
        sid: u32,
        (at, doomed): (Result<u64, Fault>, bool),
        view: View,
        options: &mut Options<Ste>,
    ) {
        let found = at.and_then(|address| {
            let words = hw.entry(view, address).ok_or(Fault::fetch(code::F_STE_FETCH, address))?;
            if run.fill {
                let torn = self.configs.stes.entry((sid, address)).or_default();
                if doomed {
                    torn.observe_doomed(&words)
                } else {
                    torn.observe(&words)
                }
                self.watch_ste(hw, sid, &words);
            }
            Ok(entry::decode(&words, self.context(hw)))
        });
        add(options, found, doomed);
    }

    /// Coverage of what entries turn into, and reserved bits in live ones.
    fn watch_ste(&mut self, hw: &Hw, sid: u32, words: &[u64; 8]) {
        let known = self.seen_stes.get(&sid);
        if known.is_some_and(|(seen, _)| seen == words) {
            return;
        }
        let name = entry::decode(words, self.context(hw)).name();
        let before = known.map_or("unseen", |&(_, name)| name);
        hw.coverage.transition("ste", before, name);
        self.seen_stes.insert(sid, (*words, name));
        if let Some((word, bits)) = entry::reserved(words) {
            hw.violations.report(
                "ste-reserved",
                format_args!("stream {sid:#x}: word {word} has reserved bits {bits:#x}"),
            );
        }
    }

    /// The CD with an index in a stream's table.
    pub(super) fn cd(
        &mut self,
        hw: &Hw,
        run: &mut Run<'_>,
        sid: u32,
        t: &Translating,
        s1: &Stage1,
        index: u32,
    ) -> Result<Cd, Fault> {
        let mut options = Vec::new();
        let addresses = match s1.two_level_shift {
            None => vec![(Ok(s1.pointer + 64 * u64::from(index)), false)],
            Some(shift) => self.second_level_cds(hw, run, sid, t, s1, (index, shift)),
        };
        let decode = |words: &[u64; 8]| {
            context::decode(words, t.world, s1.stalls_off, &hw.config).ok_or(Fault::config(code::C_BAD_CD))
        };
        for (address, doomed) in addresses {
            let doomed = doomed || run.doomed_config;
            let found = address.and_then(|address| {
                let physical = self.config_address(hw, run, t, address)?;
                let words = hw.entry(s1.view, physical).ok_or(Fault::fetch(code::F_CD_FETCH, physical))?;
                if run.fill {
                    let torn = self.configs.cds.entry((sid, index, address)).or_default();
                    if doomed {
                        torn.observe_doomed(&words)
                    } else {
                        torn.observe(&words)
                    }
                    self.watch_cd(hw, sid, index, &words, decode(&words).is_ok());
                }
                decode(&words)
            });
            add(&mut options, found, doomed);
        }
        if !run.fresh() {
            let range = (sid, index, 0)..=(sid, index, u64::MAX);
            for (_, torn) in self.configs.cds.range(range) {
                for (words, doomed) in mixes(hw, torn) {
                    add(&mut options, decode(&words), doomed);
                }
            }
        }
        choose(run, options, "CD")
    }

    fn watch_cd(&mut self, hw: &Hw, sid: u32, index: u32, words: &[u64; 8], valid: bool) {
        let name = match (valid, words[0] >> 14 & 1) {
            (false, _) => "invalid",
            (true, 0) => "tables",
            (true, _) => "no walks",
        };
        let before = self.seen_cds.insert((sid, index), (*words, name));
        if let Some((seen, before)) = before {
            if seen != *words {
                hw.coverage.transition("cd", before, name);
            }
        } else {
            hw.coverage.transition("cd", "unseen", name);
        }
    }

    /// Addresses at which the CD can be, by the level-1 descriptors in memory and in the cache.
    fn second_level_cds(
        &mut self,
        hw: &Hw,
        run: &mut Run<'_>,
        sid: u32,
        t: &Translating,
        s1: &Stage1,
        (index, shift): (u32, u8),
    ) -> Options<u64> {
        let key: L1CdKey = (sid, index >> shift << shift, shift);
        let at = s1.pointer + 8 * u64::from(index >> shift);
        let mut descriptors = Vec::new();
        let found = self.config_address(hw, run, t, at).and_then(|physical| {
            hw.memory.read64_as(s1.view, physical).ok_or(Fault::fetch(code::F_CD_FETCH, physical))
        });
        if let (Ok(descriptor), true) = (found, run.fill) {
            let l1cds = &mut self.configs.l1cds;
            if run.doomed_config {
                l1cds.observe_doomed(&key, descriptor);
            } else {
                l1cds.observe(&key, descriptor);
            }
        }
        add(&mut descriptors, found, run.doomed_config);
        if !run.fresh() {
            for (&descriptor, doomed) in self.configs.l1cds.marked(&key) {
                add(&mut descriptors, Ok(descriptor), doomed);
            }
        }
        let low = if shift == 10 { 16 } else { 12 };
        let oas = hw.config.oas;
        let mut addresses = Vec::new();
        for (descriptor, doomed) in descriptors {
            let address = descriptor.and_then(|descriptor| {
                let pointer = descriptor & 0x00ff_ffff_ffff_f000;
                if descriptor & 1 == 0 || pointer >> oas != 0 {
                    return Err(Fault::config(code::C_BAD_SUBSTREAMID));
                }
                Ok((pointer >> low << low) + 64 * u64::from(index & ((1 << shift) - 1)))
            });
            add(&mut addresses, address, doomed);
        }
        addresses
    }

    /// CDs and their level-1 descriptors lie in IPA space if there is a stage 2.
    fn config_address(
        &mut self,
        hw: &Hw,
        run: &mut Run<'_>,
        t: &Translating,
        address: u64,
    ) -> Result<u64, Fault> {
        match &t.stage2 {
            None => Ok(address),
            Some(s2) => self.stage2_for_table(hw, run, s2, t.vmid, address, Class::Cd).map(|(at, _)| at),
        }
    }
}

/// Where an L1STD says that an STE is.
fn second_level(descriptor: u64, sid: u32, split: u8) -> Result<u64, Fault> {
    let span = descriptor & 0x1f;
    let index = u64::from(sid) & ((1 << split) - 1);
    if span == 0 || span > 11 || span > u64::from(split) + 1 || index >> (span - 1) != 0 {
        return Err(Fault::config(code::C_BAD_STREAMID));
    }
    let low = 6 + span - 1;
    let base = (descriptor & 0x00ff_ffff_ffff_ffc0) >> low << low;
    Ok(base + 64 * index)
}

fn mixes(hw: &Hw, torn: &Torn<u64, 8>) -> Vec<([u64; 8], bool)> {
    let count = torn.count();
    if count > 1 {
        hw.coverage.count("oracle", "torn entry considered");
    }
    if count > MIXES {
        hw.coverage.count("oracle", "torn entry truncated");
    }
    torn.marked(MIXES)
}
