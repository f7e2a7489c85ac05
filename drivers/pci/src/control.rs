//! A function's capabilities, as the IOMMU layer switches them.

use crate::config::ConfigSpace;
use crate::function::Function;
use crate::spec::PasidFeatures;
use crate::translation::{SmallestTranslationUnit, TranslationError};
use portcullis_hal::{Hal, Mmio};
use portcullis_iommu::{ControlError, DeviceControl, PAGE_REQUEST_CAPACITY, Permissions, Requests};

/// How long a function may take to have its page requests answered, in nanoseconds.
const ANSWERS_TIMEOUT_NS: u64 = 1_000_000_000;

/// Switches PASIDs, page requests and ATS of one function.
pub struct FunctionControl<'a, H: Hal, M: Mmio> {
    /// The time.
    pub hal: &'a H,
    /// Its segment's configuration space.
    pub config: &'a ConfigSpace<M>,
    /// The function, as it was enumerated.
    pub function: &'a Function,
    /// How many page requests it may have outstanding, at least 1; never more than it, and the queue for them, can keep.
    pub page_requests: u32,
}

impl<H: Hal, M: Mmio> DeviceControl for FunctionControl<'_, H, M> {
    fn offers(&self) -> Permissions {
        let mut requests = Requests::empty();
        requests.set(Requests::TRANSLATION, self.function.ats.is_some());
        requests.set(Requests::PAGE, self.function.pri.is_some());
        let with_pasid = self.function.pri.as_ref().is_some_and(|pri| pri.response_needs_pasid);
        requests.set(Requests::PASID_IN_ANSWERS, with_pasid);
        Permissions { pasid_bits: self.function.pasid.map_or(0, |pasid| pasid.width), requests }
    }

    fn enable_pasids(&self) -> Result<(), ControlError> {
        let pasid = self.function.pasid.as_ref().ok_or(ControlError::Refused)?;
        pasid.enable(self.config, self.function.ats.as_ref(), PasidFeatures::empty()).map_err(refused)
    }

    fn disable_pasids(&self) -> Result<(), ControlError> {
        let Some(pasid) = &self.function.pasid else { return Ok(()) };
        pasid.disable(self.config, self.function.ats.as_ref()).map_err(refused)
    }

    fn enable_page_requests(&self) -> Result<(), ControlError> {
        let pri = self.function.pri.as_ref().ok_or(ControlError::Refused)?;
        let room = pri.capacity.min(PAGE_REQUEST_CAPACITY as u32);
        pri.enable(self.config, self.page_requests.min(room)).map_err(refused)
    }

    fn stop_page_requests(&self) {
        if let Some(pri) = &self.function.pri {
            pri.disable(self.config);
        }
    }

    fn await_page_answers(&self) -> Result<(), ControlError> {
        let Some(pri) = &self.function.pri else { return Ok(()) };
        Ok(pri.wait_stopped(self.hal, self.config, ANSWERS_TIMEOUT_NS)?)
    }

    fn enable_translation_requests(&self) -> Result<(), ControlError> {
        let ats = self.function.ats.as_ref().ok_or(ControlError::Refused)?;
        ats.enable(self.config, SmallestTranslationUnit::PAGE_4K).map_err(refused)
    }

    fn disable_translation_requests(&self) -> Result<(), ControlError> {
        if let Some(ats) = &self.function.ats {
            ats.disable(self.config);
        }
        Ok(())
    }
}

fn refused(error: TranslationError) -> ControlError {
    log::warn!("PCI: {error}");
    ControlError::Refused
}
