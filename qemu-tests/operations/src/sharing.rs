//! Operations on an address space that a device shares.

use crate::cost::Samples;
use crate::{Clock, Cost, Meter, PAGE, Rounds, TWO_MIB, words};
use alloc::format;
use alloc::string::{String, ToString};
use portcullis_hal::{
    Access, Arc, Asid, FaultOutcome, Hal, Mm, MmFault, MmNotifier, Pasid, PinError, SubscribeError,
    TableRoot, unsize_arc,
};
use portcullis_iommu::{Bond, Device, DomainKind, ExitHandler, Iommu, PageFaultWork, PageRights};
use spin::Mutex;

/// Where pages change, of which devices are told.
const CHANGED: u64 = 0x10_0000_0000;

/// An address space, and a device that has none of it yet.
pub struct Sharing<'a, H: Hal, C> {
    iommu: &'a Iommu<H>,
    device: &'a Arc<Device>,
    mm: Arc<dyn Mm>,
    /// The same.
    observed: Arc<Observed>,
    meter: Meter<C>,
    rounds: Rounds,
}

impl<'a, H: Hal, C: Fn() -> u64> Sharing<'a, H, C> {
    /// Nothing else attaches `device`, or binds it.
    pub fn new(
        iommu: &'a Iommu<H>,
        device: &'a Arc<Device>,
        mm: Arc<dyn Mm>,
        clock: Clock<C>,
        rounds: Rounds,
    ) -> Result<Self, String> {
        let meter = Meter::new(iommu, device, clock)?;
        let observed = Arc::try_new(Observed { mm, notifier: Mutex::new(None) }).map_err(words)?;
        let mm = unsize_arc!(observed.clone() => dyn Mm);
        Ok(Self { iommu, device, mm, observed, meter, rounds })
    }

    /// Measures bonds of a device that is attached as a whole, and what it takes to tell the unit of changed pages. No
    /// page is pinned: that is the kernel's work. Hands each operation's name and cost to `result`.
    pub fn whole(&self, result: &mut dyn FnMut(&str, Cost)) -> Result<String, String> {
        let attach = |on_exit| self.iommu.attach_pinned(self.device, &self.mm, &[], on_exit).map_err(words);
        let shared = || self.device.domain().is_some_and(|domain| domain.info().kind == DomainKind::Shared);
        self.bonds(["pinned.attach", "pinned.detach"], result, attach, |_| shared())?;
        let _bond = attach(nobody()?)?;
        self.invalidations(["notify.page", "notify.2m"], result)?;
        Ok(self.observed.mm.root().format.to_string())
    }

    /// As [`whole`](Self::whole), of a device for which shared virtual addresses are enabled: with a PASID, and
    /// translations that the device keeps.
    pub fn with_pasid(&self, result: &mut dyn FnMut(&str, Cost)) -> Result<String, String> {
        let bind = |on_exit| self.bind(on_exit);
        let bound = |pasid: Option<Pasid>| {
            pasid.is_some_and(|pasid| self.iommu.bound_mm(self.device, pasid).is_some())
        };
        self.bonds(["bind", "unbind"], result, bind, bound)?;
        let bond = bind(nobody()?)?;
        self.invalidations(["notify-ats.page", "notify-ats.2m"], result)?;
        Ok(bond.pasid().map_or_else(String::new, |pasid| format!("pasid {pasid}")))
    }

    /// Measures how a page request is answered, of a device for which shared virtual addresses are enabled: from the first
    /// look at the queue to the answer's submission. `ask` puts a request for a page that is there into the unit's queue.
    pub fn faults(&self, ask: &dyn Fn(Pasid), result: &mut dyn FnMut(&str, Cost)) -> Result<(), String> {
        let bond = self.bind(nobody()?)?;
        let pasid = bond.pasid().ok_or("no PASID")?;
        let answers = || self.meter.unit().stats().answers;
        let mut samples = Samples::new(self.rounds.many);
        for _ in 0..self.rounds.many {
            ask(pasid);
            let before = answers();
            let work = samples.of(&self.meter, || {
                let _more = self.iommu.handle_interrupt(self.device.unit());
                self.iommu.handle_page_faults()
            });
            if work != PageFaultWork::Done || answers() != before + 1 {
                return Err(format!("{} answers to one request", answers() - before));
            }
        }
        result("fault.present", samples.cost());
        bond.unbind().map_err(words)
    }

    fn bind(&self, on_exit: Arc<dyn ExitHandler>) -> Result<Bond<'a, H>, String> {
        self.iommu.bind(self.device, &self.mm, PageRights::empty(), on_exit).map_err(words)
    }

    /// Measures how a bond begins and ends. `holds` says whether there is one.
    fn bonds(
        &self,
        [begin, end]: [&str; 2],
        result: &mut dyn FnMut(&str, Cost),
        bond: impl Fn(Arc<dyn ExitHandler>) -> Result<Bond<'a, H>, String>,
        holds: impl Fn(Option<Pasid>) -> bool,
    ) -> Result<(), String> {
        let (mut begins, mut ends) = (Samples::new(self.rounds.some), Samples::new(self.rounds.some));
        for _ in 0..self.rounds.some {
            let on_exit = nobody()?;
            let bond = begins.of(&self.meter, || bond(on_exit))?;
            let pasid = bond.pasid();
            let begun = holds(pasid);
            ends.of(&self.meter, || bond.unbind()).map_err(words)?;
            if !begun || holds(pasid) {
                return Err(format!("{begin} and {end} did not do what they say"));
            }
        }
        result(begin, begins.cost());
        result(end, ends.cost());
        Ok(())
    }

    /// Measures how devices are told of a page that changed, and of 512.
    fn invalidations(&self, names: [&str; 2], result: &mut dyn FnMut(&str, Cost)) -> Result<(), String> {
        let notifier = self.observed.notifier.lock().clone().ok_or("nobody is to be told")?;
        for (name, len) in names.into_iter().zip([PAGE, TWO_MIB]) {
            let mut samples = Samples::new(self.rounds.many);
            for _ in 0..self.rounds.many {
                samples
                    .of(&self.meter, || notifier.invalidate(CHANGED, CHANGED + len - 1))
                    .map_err(|error| format!("{name}: {error}"))?;
            }
            result(name, samples.cost());
        }
        Ok(())
    }
}

/// A driver that has nothing to stop.
struct Nobody;

impl ExitHandler for Nobody {
    fn exit(&self, _device: &Device, _pasid: Option<Pasid>) {}
}

fn nobody() -> Result<Arc<dyn ExitHandler>, String> {
    Ok(unsize_arc!(Arc::try_new(Nobody).map_err(words)? => dyn ExitHandler))
}

/// An address space whose notifier can be called without a change of its tables.
struct Observed {
    mm: Arc<dyn Mm>,
    notifier: Mutex<Option<Arc<dyn MmNotifier>>>,
}

#[expect(unsafe_code, reason = "stands for an address space that keeps the contract")]
// SAFETY: another implementation does all of it.
unsafe impl Mm for Observed {
    fn root(&self) -> TableRoot {
        self.mm.root()
    }

    fn pinned_asid(&self) -> Option<Asid> {
        self.mm.pinned_asid()
    }

    fn subscribe(&self, notifier: Arc<dyn MmNotifier>) -> Result<(), SubscribeError> {
        self.mm.subscribe(notifier.clone())?;
        *self.notifier.lock() = Some(notifier);
        Ok(())
    }

    fn unsubscribe(&self, notifier: &Arc<dyn MmNotifier>) {
        *self.notifier.lock() = None;
        self.mm.unsubscribe(notifier);
    }

    fn handle_fault(&self, fault: MmFault) -> FaultOutcome {
        self.mm.handle_fault(fault)
    }

    fn pin(&self, first: u64, last: u64, access: Access) -> Result<(), PinError> {
        self.mm.pin(first, last, access)
    }

    fn unpin(&self, first: u64, last: u64) {
        self.mm.unpin(first, last);
    }
}
