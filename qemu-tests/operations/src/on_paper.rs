//! Permissions without a device that knows of them.

use portcullis_hal::Pasid;
use portcullis_iommu::{ControlError, DeviceControl, Permissions, Requests};

/// A device that is not told: what it is permitted is only in the unit's tables, to be looked at or measured. It issues no
/// request of these kinds.
pub struct OnPaper;

impl DeviceControl for OnPaper {
    fn offers(&self) -> Permissions {
        Permissions { pasid_bits: Pasid::MAX_BITS as u8, requests: Requests::TRANSLATION | Requests::PAGE }
    }

    fn enable_pasids(&self) -> Result<(), ControlError> {
        Ok(())
    }

    fn disable_pasids(&self) -> Result<(), ControlError> {
        Ok(())
    }

    fn enable_page_requests(&self) -> Result<(), ControlError> {
        Ok(())
    }

    fn stop_page_requests(&self) {}

    fn await_page_answers(&self) -> Result<(), ControlError> {
        Ok(())
    }

    fn enable_translation_requests(&self) -> Result<(), ControlError> {
        Ok(())
    }

    fn disable_translation_requests(&self) -> Result<(), ControlError> {
        Ok(())
    }
}
