//! What a back end brings, and the devices as the common layer switches them.

use super::Counts;
use portcullis_hal::{Arc, Hal};
use portcullis_iommu::{ControlError, Device, DeviceControl, Iommu, Permissions, Requests};
use portcullis_model::core::{Outcome, Request, Response};
use portcullis_model::device::Device as Model;
use portcullis_pgtable::{Config, Format};
use std::collections::BTreeSet;

/// How many devices use PASIDs and ask for pages; one more can do neither.
pub(crate) const ASKING: usize = 2;

/// A device, and the model behind it.
#[derive(Debug)]
pub struct Function {
    /// What it is to the common layer.
    pub device: Arc<Device>,
    /// What it does.
    pub model: std::sync::Arc<Model>,
    /// What its requests can be.
    pub requests: Requests,
    /// The width of its PASIDs.
    pub pasid_bits: u8,
    /// How many page requests it may have outstanding.
    pub credits: u32,
}

impl Function {
    /// Whether its faults are stalled.
    pub(crate) fn stalls(&self) -> bool {
        self.requests.contains(Requests::STALL)
    }
}

/// A machine with one unit, the first of the common layer, and devices behind it.
pub trait Machine {
    /// The kernel's services.
    type Hal: Hal;
    /// The format of the processes' tables.
    type Format: Format + Send + Sync + 'static;

    /// The kernel's services.
    fn hal(&self) -> &Self::Hal;

    /// The common layer, which has the unit and the devices.
    fn iommu(&self) -> &Iommu<Self::Hal>;

    /// Two devices that use PASIDs and ask for pages, or whose faults are stalled, and one that can do neither.
    fn functions(&self) -> &[Function; ASKING + 1];

    /// What the processes' tables are like.
    fn tables(&self) -> (Self::Format, Config);

    /// An operation begins. Its seed decides what hardware does meanwhile; it may fetch ahead for these requests.
    fn begin(&self, seed: u64, watched: &[Request]);

    /// The operation is over.
    fn end(&self);

    /// The hardware is well-behaved from now on.
    fn calm(&self);

    /// All that a request may end with.
    fn reachable(&self, request: Request) -> BTreeSet<Outcome>;

    /// Answers to stalled transactions of a device since the last call: tags, and what became of them.
    fn take_resumed(&self, _requester: u32) -> Vec<(u16, Response)> {
        Vec::new()
    }

    /// Who waits for an answer: requesters and PASIDs.
    fn unanswered(&self) -> Vec<(u32, Option<u32>)>;

    /// What the driver did wrong since the last call.
    fn take_wrong(&self) -> Vec<String>;

    /// Adds what the hardware alone can tell of the run.
    fn count(&self, _counts: &mut Counts) {}
}

/// The model of a device, as the common layer switches it.
pub(crate) struct Switch<'a>(pub(crate) &'a Function);

impl DeviceControl for Switch<'_> {
    fn offers(&self) -> Permissions {
        Permissions { pasid_bits: self.0.pasid_bits, requests: self.0.requests }
    }
    fn enable_pasids(&self) -> Result<(), ControlError> {
        self.0.model.set_pasid(Some(self.0.pasid_bits));
        Ok(())
    }
    fn disable_pasids(&self) -> Result<(), ControlError> {
        self.0.model.set_pasid(None);
        Ok(())
    }
    fn enable_page_requests(&self) -> Result<(), ControlError> {
        self.0.model.set_pri(Some(self.0.credits));
        Ok(())
    }
    fn stop_page_requests(&self) {}
    fn await_page_answers(&self) -> Result<(), ControlError> {
        for _ in 0..1000 {
            self.0.model.step();
            if self.0.model.unanswered() == 0 {
                self.0.model.set_pri(None);
                return Ok(());
            }
        }
        panic!("{} groups of a device have no answer", self.0.model.unanswered());
    }
    fn enable_translation_requests(&self) -> Result<(), ControlError> {
        self.0.model.set_ats(true);
        Ok(())
    }
    fn disable_translation_requests(&self) -> Result<(), ControlError> {
        self.0.model.set_ats(false);
        Ok(())
    }
}
