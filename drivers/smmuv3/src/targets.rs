//! Where a domain's translations may be cached: on each unit that it is attached to, under a tag of that unit.

use crate::atc::{Cached, Caches, Told, UnitThenDevices};
use crate::cmdq::{Ticket, Tried};
use crate::command::{Command, Tag};
use crate::descriptors::Place;
use crate::domain::{Attempt, SmmuDomain};
use crate::entry::{Stage2, context_descriptor, stage_2};
use crate::invalidate::{Prepared, Unmapped, invalidation};
use crate::port::Port;
use crate::update::Entry;
use core::sync::atomic::{AtomicU64, Ordering};
use portcullis_hal::roster::{Items, Roster};
use portcullis_hal::{
    Arc, Asid, Granule, Hal, IovaRange, Mmio, OutOfMemory, PhysAddr, SyncError, TableFormat, TableRoot, Vmid,
};
use portcullis_iommu::Stage;
use portcullis_pgtable::AccessedDirty;
use spin::Mutex;

/// One unit that a domain is, or was, attached to.
///
/// It stays in the domain's set for the next time. While nobody uses it, it has no tag.
pub(crate) struct Target<H: Hal, M: Mmio> {
    pub(crate) port: Arc<Port<H, M>>,
    stage: Stage,
    granule: Granule,
    root: TableRoot,
    marks: AccessedDirty,
    prepared: Prepared,
    /// The bits of the tag (63:32) under which the unit caches the domain's translations, and how many streams and PASIDs
    /// use it (31:0): in one word, as nobody may see one with another's time of the other. Without users, the unit has
    /// forgotten the tag.
    state: AtomicU64,
    /// The bits of the tag while one command may be all that it takes to forget something: while somebody uses it, and no
    /// device caches what it translates. 0 otherwise.
    quick: AtomicU64,
    /// Those of the users that cache translations themselves. Changed with the lock of the unit held.
    caches: Caches,
    /// Touched with the lock of the unit held.
    translation: Mutex<Option<Translation>>,
}

/// How the unit comes to a domain's tables.
#[derive(Clone, Copy)]
pub(crate) enum Translation {
    /// By a context descriptor: the one that streams without PASIDs share.
    Stage1(Descriptor),
    /// By the stream table entry.
    Stage2(Stage2),
}

/// Where a context descriptor is.
#[derive(Clone, Copy)]
pub(crate) struct Descriptor {
    pub(crate) place: Place,
    pub(crate) address: PhysAddr,
}

/// What was submitted of an invalidation.
#[must_use = "nothing is forgotten for certain before this was waited for"]
pub(crate) struct Submitted {
    ticket: Ticket,
    told: Told,
}

/// The bits of a target's state that are its tag's.
const TAG: u64 = !0 << 32;

impl<H: Hal, M: Mmio> Target<H, M> {
    /// A target without a tag, for a domain whose tables have this root.
    pub(crate) fn new(port: Arc<Port<H, M>>, domain: &SmmuDomain<H, M>, root: &TableRoot) -> Self {
        let granule = domain.granule();
        let stage = match root.format {
            TableFormat::VmsaStage1 { .. } | TableFormat::VmsaStage1Lpa2 { .. } => Stage::Stage1,
            _ => Stage::Stage2,
        };
        Self {
            prepared: Prepared::new(stage, granule, port.features.ranges, domain.least_scope()),
            port,
            stage,
            granule,
            root: *root,
            marks: domain.marks(),
            state: AtomicU64::new(0),
            quick: AtomicU64::new(0),
            caches: Caches::new(),
            translation: Mutex::new(None),
        }
    }

    /// Gives the target a tag, which nobody uses yet.
    pub(crate) fn arm(&self, tag: Tag, translation: Translation) {
        *self.translation.lock() = Some(translation);
        self.state.store(tag.bits(), Ordering::SeqCst);
    }

    /// Takes the tag away, which nobody uses any more.
    pub(crate) fn disarm(&self) -> Option<Translation> {
        self.translation.lock().take()
    }

    /// The tag that somebody uses, and how many do.
    pub(crate) fn in_use(&self) -> Option<(Tag, u32)> {
        let state = self.state.load(Ordering::SeqCst);
        let users = state as u32;
        (users > 0).then_some((Tag::from_bits(self.stage, state), users))
    }

    /// The tag, if the target has one.
    pub(crate) fn tag(&self) -> Tag {
        Tag::from_bits(self.stage, self.state.load(Ordering::SeqCst))
    }

    /// The fields of a stream table entry, for a domain of stage 2.
    pub(crate) fn stage_2(&self) -> Option<Stage2> {
        match &*self.translation.lock() {
            Some(Translation::Stage2(stage_2)) => Some(*stage_2),
            _ => None,
        }
    }

    /// The shared context descriptor's address.
    pub(crate) fn descriptor(&self) -> Option<PhysAddr> {
        match &*self.translation.lock() {
            Some(Translation::Stage1(descriptor)) => Some(descriptor.address),
            _ => None,
        }
    }

    /// The context descriptor, if the target has a tag.
    pub(crate) fn context(&self) -> Option<Entry> {
        match (self.descriptor(), self.tag()) {
            (Some(_), Tag::Asid(asid)) => self.context_under(asid),
            _ => None,
        }
    }

    /// The context descriptor under an ASID, for a domain of stage 1.
    pub(crate) fn context_under(&self, asid: Asid) -> Option<Entry> {
        match self.root.format {
            TableFormat::VmsaStage1 { granule, mair } | TableFormat::VmsaStage1Lpa2 { granule, mair } => {
                let features = &self.port.features;
                Some(context_descriptor(&self.root, granule, mair, asid, self.marks, features))
            }
            _ => None,
        }
    }

    /// The fields of a stream table entry under a VMID, for a domain of stage 2.
    pub(crate) fn stage_2_under(&self, vmid: Vmid) -> Option<Stage2> {
        stage_2(&self.root, vmid, self.marks, &self.port.features)
    }

    pub(crate) fn stage(&self) -> Stage {
        self.stage
    }

    /// Makes the unit forget what was unmapped, if that is one command and no device caches translations itself. The
    /// caller has read the target from the set, after its stores to the tables.
    #[inline(always)]
    pub(crate) fn forget_at_once(&self, what: &Unmapped) -> Attempt<'_, H, M> {
        let tag = self.quick.load(Ordering::SeqCst);
        if tag == 0 {
            return Attempt::Untried;
        }
        let Some(command) = self.prepared.single(tag, what) else { return Attempt::Untried };
        match self.port.attempt(command) {
            // Devices may have come meanwhile, and have filled their caches from the TLB.
            Tried::Done if self.caches.is_empty() => Attempt::Confirmed,
            tried => Attempt::Begun(self, tried),
        }
    }

    /// Has the commands for the unit on their way, that make it forget what was unmapped; everything, if that is not known.
    /// `None` if there is nothing to wait for. The same batch tells the devices that cache translations themselves.
    pub(crate) fn submit(&self, what: Option<Unmapped>) -> Result<Option<Submitted>, SyncError> {
        let Some((tag, _)) = self.in_use() else { return Ok(None) };
        let port = &self.port;
        let (devices, told) = self.caches.first(port.hal(), what.map(|what| what.range));
        if what.is_none()
            && devices.is_none()
            && let Some(ticket) = port.submit_one(Command::tlbi_tag(tag))
        {
            return Ok(Some(Submitted { ticket, told }));
        }
        let unit = invalidation(tag, self.granule, port.features.ranges, what);
        let ticket = match devices {
            Some(devices) => port.submit_with_devices(UnitThenDevices::new(unit, devices))?,
            None => port.submit(unit)?,
        };
        Ok(Some(Submitted { ticket, told }))
    }

    /// Returns when the unit has forgotten what was submitted, and then the devices, in this range if it is known.
    pub(crate) fn complete(&self, submitted: &Submitted, range: Option<IovaRange>) -> Result<(), SyncError> {
        self.port.complete_one_of_many(&submitted.ticket)?;
        self.caches.go_on(&self.port, range, submitted.told)
    }

    /// Returns when the unit has forgotten what was submitted for it alone, and then the devices.
    pub(crate) fn complete_unit(&self, ticket: &Ticket, range: Option<IovaRange>) -> Result<(), SyncError> {
        self.port.complete_one_of_many(ticket)?;
        // Devices only now: they fill their caches from the TLB.
        self.forget_caches(range)
    }

    /// Makes the devices that cache translations themselves forget a range; everything, if it is not known. The unit has.
    pub(crate) fn forget_caches(&self, range: Option<IovaRange>) -> Result<(), SyncError> {
        self.caches.invalidate(&self.port, range)
    }

    /// Counts a user in, before its entry is published.
    pub(crate) fn add_user(&self) {
        self.state.fetch_add(1, Ordering::SeqCst);
        self.choose_way();
    }

    /// Counts a user in among those who cache what they use, before its entry is published. There is room.
    pub(crate) fn add_cache(&self, hal: &H, who: Cached) {
        self.caches.add(hal, who);
        self.choose_way();
    }

    /// Counts a user out of those who cache, if it is one.
    pub(crate) fn remove_cache(&self, hal: &H, who: Cached) {
        if !self.caches.is_empty() {
            self.caches.remove(hal, who);
            self.choose_way();
        }
    }

    /// Makes room for `more` users among those who cache.
    pub(crate) fn reserve_caches(&self, hal: &H, more: usize) -> Result<(), OutOfMemory> {
        self.caches.reserve(hal, more)
    }

    /// Notes whether one command may be enough, with the lock of the unit held. Who reads that too early sends a command
    /// too many.
    fn choose_way(&self) {
        let state = self.state.load(Ordering::SeqCst);
        let quick = state as u32 != 0 && self.caches.is_empty();
        self.quick.store(if quick { state & TAG } else { 0 }, Ordering::SeqCst);
    }

    /// How many use the tag.
    pub(crate) fn users(&self) -> u32 {
        self.state.load(Ordering::SeqCst) as u32
    }

    /// Counts a user out. If it is the last one, the unit has forgotten the tag and the context descriptor.
    pub(crate) fn remove_user(&self) {
        self.state.fetch_sub(1, Ordering::SeqCst);
        self.choose_way();
    }
}

/// A domain's targets. There will be no fewer: one that nobody uses waits for its next time.
///
/// Unmap stores its table entries, then reads the list; attach adds the target and its user, then publishes the entry;
/// with a full fence in between on both sides, one of the two sees the other.
pub(crate) struct Targets<H: Hal, M: Mmio>(Roster<Arc<Target<H, M>>>);

impl<H: Hal, M: Mmio> Targets<H, M> {
    pub(crate) fn new() -> Self {
        Self(Roster::new())
    }

    /// The targets now; some may have no users. A full fence stands before the look.
    #[inline]
    pub(crate) fn read(&self) -> Items<'_, Arc<Target<H, M>>> {
        self.0.read()
    }

    /// The target on this unit, if the domain was ever attached there.
    pub(crate) fn find(&self, port: &Arc<Port<H, M>>) -> Option<Arc<Target<H, M>>> {
        self.read().find(|target| Arc::ptr_eq(&target.port, port)).cloned()
    }

    /// Adds a target of another unit than the others'. Called with the lock of that unit held.
    pub(crate) fn add(&self, target: &Arc<Target<H, M>>) -> Result<(), OutOfMemory> {
        self.0.add(target.clone())
    }
}
