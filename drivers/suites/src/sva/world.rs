//! Processes and bonds; random operations on them; and what devices may reach after each.

use super::Counts;
use super::machine::{ASKING, Function, Machine, Switch};
use super::process::{Change, Pool, Process};
use portcullis_hal::{Access, Arc, PAGE_SIZE, Pasid, unsize_arc};
use portcullis_iommu::{
    BindError, Bond, Device, DomainSpec, ExitHandler, FaultGroup, Feature, Handled, PageFaultHandler,
    PageFaultWork, PageResponse, PageRights, PagingSpec, PinnedRange, Stage, UnitId,
};
use portcullis_model::core::{Access as Does, Mode, Outcome, Prng, Request, Response};
use portcullis_model::device::{Attempt, Job};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Mutex;

/// Where processes have their pages: around a boundary of tables.
const BASE: u64 = 0x4000_0000 - 6 * PAGE_SIZE;
const PAGES: u64 = 12;

/// Notes that it was told.
struct Told(Mutex<u64>);

impl ExitHandler for Told {
    fn exit(&self, _: &Device, _: Option<Pasid>) {
        *self.0.lock().unwrap() += 1;
    }
}

/// Keeps groups, for late answers.
#[derive(Default)]
struct Keeper(Mutex<Vec<FaultGroup>>);

impl PageFaultHandler for Keeper {
    fn handle(&self, group: FaultGroup) -> Handled {
        self.0.lock().unwrap().push(group);
        Handled::Later
    }
}

type Space<M> = Process<<M as Machine>::Hal, <M as Machine>::Format>;

struct Bonded<'a, M: Machine> {
    bond: Bond<'a, M::Hal>,
    device: usize,
    process: Arc<Space<M>>,
}

/// A device that stalls makes an access. Says whether it was stalled.
fn ask_stalling(function: &Function, job: Job) -> bool {
    let tried = function.model.access(job, Mode::Any);
    matches!(tried, Attempt::Answered(Response { outcome: Outcome::Stalled(_), .. }))
}

pub(crate) struct World<'a, M: Machine> {
    machine: &'a M,
    prng: Prng,
    pool: Pool,
    processes: Vec<Arc<Space<M>>>,
    bonds: Vec<Bonded<'a, M>>,
    pinned: Option<Bonded<'a, M>>,
    /// PASIDs that nobody should be able to use any more, unless they were taken again.
    recent: VecDeque<u32>,
    keeper: Arc<Keeper>,
    told: Arc<Told>,
    /// What became of stalled accesses when devices were last served: device, tag, response.
    ended: Vec<(usize, u16, Response)>,
    counts: &'a mut Counts,
}

impl<'a, M: Machine> World<'a, M> {
    pub(crate) fn new(machine: &'a M, seed: u64, counts: &'a mut Counts) -> Self {
        let mut world = Self {
            machine,
            prng: Prng::new(seed ^ 0x5a5a),
            pool: Pool::default(),
            processes: Vec::new(),
            bonds: Vec::new(),
            pinned: None,
            recent: VecDeque::new(),
            keeper: Arc::try_new(Keeper::default()).expect("memory"),
            told: Arc::try_new(Told(Mutex::new(0))).expect("memory"),
            ended: Vec::new(),
            counts,
        };
        (0..ASKING).for_each(|device| world.enable(device));
        world
    }

    fn below(&mut self, limit: usize) -> usize {
        self.prng.below(limit as u64) as usize
    }

    fn address(&mut self) -> u64 {
        BASE + self.prng.below(PAGES) * PAGE_SIZE
    }

    fn enable(&mut self, device: usize) {
        let process = self.new_process();
        let root = portcullis_hal::Mm::root(&*process);
        let function = &self.machine.functions()[device];
        let (control, named) = (Switch(function), &function.device);
        self.machine.iommu().enable_feature(named, &control, Feature::Sva, &root).expect("everything");
        let keeper = unsize_arc!(self.keeper.clone() => dyn PageFaultHandler);
        let set = self.machine.iommu().set_page_fault_handler(named, None, keeper, PageRights::empty());
        set.expect("page requests");
        if function.stalls() && device == 0 {
            // Without PASIDs too. The other one's stream ends with its last PASID.
            let spec = PagingSpec { stage: Some(Stage::Stage1), ..PagingSpec::default() };
            let domain = self.machine.iommu().new_domain(named, &DomainSpec::Paging(spec)).expect("a domain");
            self.machine.iommu().attach(named, &domain).expect("an attachment");
        }
    }

    fn new_process(&self) -> Arc<Space<M>> {
        let (format, config) = self.machine.tables();
        Process::new(self.machine.hal(), &self.pool, format, config)
    }

    fn some_process(&mut self) -> Option<Arc<Space<M>>> {
        let at = self.below(self.processes.len().max(1));
        self.processes.get(at).cloned()
    }

    /// Does something, and looks whether all is well.
    pub(crate) fn step(&mut self) {
        let seed = self.prng.next_u64();
        let watched: Vec<_> = (0..4).map(|_| self.some_job()).collect();
        let requests: Vec<_> = watched
            .iter()
            .map(|(device, job)| {
                let requester = self.machine.functions()[*device].model.requester();
                let request = Request { access: job.access, ..Request::read(requester, job.address) };
                job.pasid.map_or(request, |pasid| request.with_pasid(pasid))
            })
            .collect();
        self.machine.begin(seed, &requests);
        self.act();
        self.machine.end();
        self.check();
    }

    fn some_job(&mut self) -> (usize, Job) {
        let address = self.address();
        let job = if self.below(2) == 0 { Job::read(address) } else { Job::write(address) };
        let known = self.bonds.len();
        match self.below(8) {
            0 => (self.below(ASKING), job.with_pasid(1 + self.prng.below(12) as u32)),
            _ if known > 0 => {
                let at = self.below(known);
                let pasid = self.bonds[at].bond.pasid().expect("a PASID");
                (self.bonds[at].device, job.with_pasid(pasid.get()))
            }
            _ => (self.below(ASKING), job.with_pasid(1)),
        }
    }

    fn act(&mut self) {
        match self.below(100) {
            0..=7 => self.start(),
            8..=21 => self.bind(),
            22..=27 => self.unbind(),
            28..=30 => self.exit(),
            31..=34 => self.fork(),
            35..=40 => self.change(Change::Protect),
            41..=46 => self.change(Change::Unmap),
            47..=54 => self.reserve(),
            55..=76 => self.touch(),
            77..=79 => self.flood(),
            80..=82 => self.ask_without_pasid(),
            83..=85 => self.answer_late(),
            86..=87 => self.restart(),
            88..=90 => self.pin(),
            91..=93 => {
                self.counts.add("interrupt");
                let _more = self.machine.iommu().handle_interrupt(UnitId(0));
            }
            _ => self.serve(),
        }
    }

    fn start(&mut self) {
        if self.processes.len() < 5 {
            let process = self.new_process();
            for page in 0..PAGES {
                if self.below(3) > 0 {
                    process.reserve(BASE + page * PAGE_SIZE, self.prng.chance(2, 3));
                }
            }
            self.processes.push(process);
            self.counts.add("start");
        }
    }

    fn bind(&mut self) {
        let Some(process) = self.some_process() else { return };
        let device = self.below(ASKING);
        let named = &self.machine.functions()[device].device;
        let told = unsize_arc!(self.told.clone() => dyn ExitHandler);
        match self.machine.iommu().bind(named, &Process::mm(&process), PageRights::empty(), told) {
            Ok(bond) => {
                let same = self.bonds.iter().find(|other| Arc::ptr_eq(&other.process, &process));
                assert!(same.is_none_or(|other| other.bond.pasid() == bond.pasid()), "two PASIDs");
                let taken = |other: &&Bonded<'_, M>| {
                    other.bond.pasid() == bond.pasid() && !Arc::ptr_eq(&other.process, &process)
                };
                assert!(!self.bonds.iter().any(|other| taken(&other)), "{:?} is taken", bond.pasid());
                self.counts.add(if same.is_some() { "bind again" } else { "bind" });
                self.bonds.push(Bonded { bond, device, process });
            }
            Err(BindError::Exited) => {
                assert!(process.has_ended());
                self.counts.add("bind refused");
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn unbind(&mut self) {
        if self.bonds.is_empty() {
            return;
        }
        let at = self.below(self.bonds.len());
        let Bonded { bond, device, process } = self.bonds.swap_remove(at);
        let pasid = bond.pasid().expect("a PASID");
        if self.machine.unanswered().iter().any(|group| group.1 == Some(pasid.get())) {
            self.counts.add("unbind with requests");
        }
        bond.unbind().expect("an answer");
        self.counts.add("unbind");
        self.recent.push_back(pasid.get());
        if self.recent.len() > 4 {
            self.recent.pop_front();
        }
        if !self.bonds.iter().any(|other| other.device == device && Arc::ptr_eq(&other.process, &process)) {
            let sid = self.machine.functions()[device].model.requester();
            let open = self.machine.unanswered();
            let left = open.contains(&(sid, Some(pasid.get())));
            assert!(!left, "a request with {pasid} of {sid:#x} has no answer: {open:x?}");
        }
    }

    fn exit(&mut self) {
        if self.processes.is_empty() {
            return;
        }
        let at = self.below(self.processes.len());
        let process = self.processes.swap_remove(at);
        if process.has_ended() {
            return;
        }
        let mut users = self.bonds.iter().filter(|bonded| Arc::ptr_eq(&bonded.process, &process)).count();
        let pinned = self.pinned.iter().any(|bonded| Arc::ptr_eq(&bonded.process, &process));
        users += usize::from(pinned);
        let before = *self.told.0.lock().unwrap();
        process.end().expect("an answer");
        assert_eq!(*self.told.0.lock().unwrap(), before + users as u64, "every driver is told");
        self.counts.add(if users > 0 { "exit before unbind" } else { "exit" });
        // A process that nobody can touch, but that can be bound in vain.
        if self.below(4) == 0 {
            self.processes.push(process);
        }
    }

    fn fork(&mut self) {
        let Some(process) = self.some_process().filter(|process| !process.has_ended()) else { return };
        if self.processes.len() < 6 {
            let (format, config) = self.machine.tables();
            self.processes.push(process.fork(format, config));
            self.counts.add("fork");
        }
    }

    fn change(&mut self, change: Change) {
        let Some(process) = self.some_process().filter(|process| !process.has_ended()) else { return };
        let first = self.prng.below(PAGES);
        let count = 1 + self.prng.below((PAGES - first).min(4));
        let there = process.change(BASE + first * PAGE_SIZE, count, change);
        self.counts.add(match (change, there) {
            (Change::Unmap, true) => "unmap",
            (Change::Protect, true) => "protect",
            (_, false) => "change of nothing",
        });
    }

    fn reserve(&mut self) {
        let address = self.address();
        if let Some(process) = self.some_process().filter(|process| !process.has_ended()) {
            process.reserve(address, self.prng.chance(2, 3));
            self.counts.add("reserve");
        }
    }

    /// A device touches a page. If it is not there, the device asks for it, or is stalled, and gets its answer now or some
    /// time later. What was lost in a flood it has to ask for again.
    fn touch(&mut self) {
        let (device, job) = self.some_job();
        let wants = if job.access == Does::Write { Access::WRITE } else { Access::READ };
        let allowed =
            self.process_of(device, job.pasid).is_some_and(|process| process.allows(job.address, wants));
        for attempt in 0.. {
            let mode = if attempt == 0 { Mode::Any } else { Mode::Fresh };
            assert!(attempt <= 8, "{job:x?} was answered, again and again, and does not work");
            let model = &self.machine.functions()[device].model;
            // Tags come again.
            self.machine.take_resumed(model.requester());
            let tried = model.access(job, mode);
            let (held, resumed) = match tried {
                Attempt::Requested { group } => {
                    if !self.is_served() {
                        return;
                    }
                    (self.machine.functions()[device].model.has_asked(group), None)
                }
                Attempt::Answered(Response { outcome: Outcome::Stalled(_), tag: Some(tag) }) => {
                    if !self.is_served() {
                        return;
                    }
                    let resumed = self.resumed(device, tag);
                    (resumed.is_none(), resumed.and_then(Outcome::output))
                }
                Attempt::Answered(answer) if answer.outcome.output().is_some() => {
                    assert!(attempt == 0 || allowed);
                    return self.counts.add(if attempt == 0 { "access" } else { "fault resolved" });
                }
                Attempt::NoCredit => return self.counts.add("no credit"),
                other => {
                    assert!(attempt == 0, "{job:x?}: {other:?}");
                    return self.counts.add("access refused");
                }
            };
            if let Some(reached) = resumed {
                let expected =
                    self.process_of(device, job.pasid).and_then(|it| it.reaches(job.address, wants));
                assert_eq!(Some(reached), expected, "device {device}, {job:x?}");
                return self.counts.add("fault resolved");
            }
            if held {
                return self.counts.add("fault held back");
            }
            if !allowed {
                return self.counts.add("fault refused");
            }
        }
    }

    /// A fault was met; most often it is seen to at once.
    fn is_served(&mut self) -> bool {
        self.counts.add("fault");
        if self.below(4) == 0 {
            return false;
        }
        self.serve();
        true
    }

    /// What became of a stalled access of a device in the end, if it was answered.
    fn resumed(&mut self, device: usize, mut tag: u16) -> Option<Outcome> {
        for &(whose, which, response) in &self.ended {
            if (whose, which) != (device, tag) {
                continue;
            }
            match response.tag {
                // Stalled once more.
                Some(again) => tag = again,
                None => return Some(response.outcome),
            }
        }
        None
    }

    fn flood(&mut self) {
        let (device, job) = self.some_job();
        let function = &self.machine.functions()[device];
        let limit = if self.below(2) == 0 { 40 } else { 290 };
        let mut asked = 0;
        for page in 0..limit {
            let jobs = (0..1 + page % 3).map(|at| Job { address: BASE + at * PAGE_SIZE, ..job });
            if function.stalls() {
                let stalls = |job| ask_stalling(function, job);
                asked += jobs.map(stalls).map(u64::from).sum::<u64>();
            } else {
                asked += u64::from(function.model.request_pages(&jobs.collect::<Vec<_>>()).is_some());
            }
        }
        self.counts.many("flood", asked);
        self.counts.add(if limit > 256 { "flood beyond the queue" } else { "flood within the queue" });
    }

    fn ask_without_pasid(&mut self) {
        let device = self.below(ASKING);
        let job = Job::read(self.address());
        let function = &self.machine.functions()[device];
        let asked = match function.stalls() {
            true => ask_stalling(function, job),
            false => function.model.request_pages(&[job]).is_some(),
        };
        if asked {
            self.counts.add("request without a PASID");
        }
    }

    fn answer_late(&mut self) {
        let group = {
            let mut kept = self.keeper.0.lock().unwrap();
            if kept.is_empty() {
                return;
            }
            let at = self.prng.below(kept.len() as u64) as usize;
            kept.swap_remove(at)
        };
        if self.below(3) == 0 {
            drop(group);
            self.counts.add("group dropped");
        } else {
            group.answer(PageResponse::Success);
            self.counts.add("late answer");
        }
    }

    /// All features of a device off and on.
    fn restart(&mut self) {
        let device = self.below(ASKING);
        let (theirs, others) =
            std::mem::take(&mut self.bonds).into_iter().partition(|it| it.device == device);
        self.bonds = others;
        let theirs: Vec<Bonded<'_, M>> = theirs;
        theirs.into_iter().for_each(|bonded| bonded.bond.unbind().expect("an answer"));
        let function = &self.machine.functions()[device];
        let (control, named) = (Switch(function), &function.device);
        self.machine.iommu().disable_feature(named, &control, Feature::Sva).expect("an answer");
        assert_eq!(function.model.unanswered(), 0);
        let sid = function.model.requester();
        assert!(self.machine.unanswered().iter().all(|open| open.0 != sid), "a stall has no answer");
        self.enable(device);
        self.counts.add("disable and enable");
    }

    fn pin(&mut self) {
        if let Some(bonded) = self.pinned.take() {
            bonded.bond.unbind().expect("an answer");
            self.counts.add("unpin");
            return;
        }
        let Some(process) = self.some_process() else { return };
        let first = self.address();
        let range = PinnedRange { first, last: first + PAGE_SIZE - 1, access: Access::WRITE };
        let told = unsize_arc!(self.told.clone() => dyn ExitHandler);
        let named = &self.machine.functions()[ASKING].device;
        match self.machine.iommu().attach_pinned(named, &Process::mm(&process), &[range], told) {
            Ok(bond) => {
                assert!(process.reaches(first, Access::WRITE).is_some());
                self.pinned = Some(Bonded { bond, device: ASKING, process });
                self.counts.add("pin");
            }
            Err(BindError::Pin(_)) => {
                assert!(!process.allows(first, Access::WRITE));
                self.counts.add("pin refused");
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// An interrupt, a thread, and the devices take their messages.
    fn serve(&mut self) {
        self.ended.clear();
        for _ in 0..4 {
            let _more = self.machine.iommu().handle_interrupt(UnitId(0));
            let mut rounds = 0;
            while self.machine.iommu().handle_page_faults() == PageFaultWork::More && rounds < 50 {
                rounds += 1;
            }
            for (device, Function { model, .. }) in self.machine.functions().iter().enumerate() {
                model.step();
                model.take_answers();
                let ended = self.machine.take_resumed(model.requester());
                self.ended.extend(ended.into_iter().map(|(tag, response)| (device, tag, response)));
            }
        }
        while self.machine.iommu().next_fault().is_some() {}
        self.counts.add("serve");
    }

    fn process_of(&self, device: usize, pasid: Option<u32>) -> Option<&Arc<Space<M>>> {
        let mut all = self.bonds.iter().chain(&self.pinned);
        let found = all.find(|it| it.device == device && it.bond.pasid().map(Pasid::get) == pasid)?;
        Some(&found.process).filter(|process| !process.has_ended())
    }

    /// Whether the process that a bond stands for is gone.
    fn is_cut(&self, device: usize, pasid: Option<u32>) -> bool {
        let mut all = self.bonds.iter();
        all.any(|it| {
            it.device == device && it.bond.pasid().map(Pasid::get) == pasid && it.process.has_ended()
        })
    }

    /// Devices reach what their processes may, and nothing else.
    fn check(&mut self) {
        let machine = self.machine;
        let bound = self.bonds.iter().filter_map(|it| it.bond.pasid()).map(Pasid::get);
        let pasids: BTreeSet<u32> = bound.chain(self.recent.iter().copied()).chain([1]).collect();
        let offset = self.prng.below(3);
        let (mut reached_all, mut silent) = (0, 0);
        for (device, Function { model, .. }) in machine.functions().iter().enumerate() {
            let all = pasids.iter().copied().map(Some).filter(|_| device < ASKING);
            for pasid in all.chain([None]) {
                let process = self.process_of(device, pasid);
                let cut = self.is_cut(device, pasid);
                for page in (offset..PAGES).step_by(3) {
                    let address = BASE + page * PAGE_SIZE;
                    for (job, access) in
                        [(Job::read(address), Access::READ), (Job::write(address), Access::WRITE)]
                    {
                        let job = Job { pasid, ..job };
                        let expected = process.and_then(|process| process.reaches(address, access));
                        for outcome in model.reachable(job, |request| machine.reachable(request)) {
                            let told = matches!(outcome, Outcome::Fault(_) | Outcome::Stalled(_));
                            assert!(!(cut && told), "a device that was cut off is reported: {job:x?}");
                            silent += u64::from(cut);
                            if let Outcome::Done(reached) = outcome {
                                assert_eq!(Some(reached), expected, "device {device}, {job:x?}");
                                reached_all += 1;
                            }
                        }
                    }
                }
            }
            assert_eq!(model.take_violations(), []);
        }
        assert_eq!(machine.take_wrong(), [""; 0]);
        self.counts.many("reached", reached_all);
        self.counts.many("cut off in silence", silent);
    }

    /// Everything ends: nothing is left unanswered, and no memory.
    pub(crate) fn finish(mut self) {
        self.machine.calm();
        self.bonds.drain(..).for_each(|bonded| bonded.bond.unbind().expect("an answer"));
        if let Some(bonded) = self.pinned.take() {
            bonded.bond.unbind().expect("an answer");
        }
        for device in 0..ASKING {
            let function = &self.machine.functions()[device];
            let (control, named) = (Switch(function), &function.device);
            self.machine.iommu().disable_feature(named, &control, Feature::Sva).expect("an answer");
            let stats = named.page_fault_stats().expect("page requests");
            assert_eq!((stats.owed, stats.undelivered), (0, 0));
            self.counts.many("refused for lack of room", stats.flooded);
            self.counts.many("requests dropped", stats.dropped);
            self.counts.many("refused as unknown", stats.unknown);
        }
        self.keeper.0.lock().unwrap().clear();
        self.processes.clear();
        self.check();
        assert_eq!(self.machine.unanswered(), []);
        let space = self.machine.iommu().system_pasids().lock();
        assert!((1..64).all(|pasid| Pasid::new(pasid).is_ok_and(|pasid| space.owner(pasid).is_none())));
    }
}
