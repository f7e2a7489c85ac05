//! What a device needs for shared virtual addresses, and who lacks it.

use crate::{
    AttachError, Device, DeviceControl, EnableError, FaultModels, Iommu, Missing, Permissions, Requests,
};
use portcullis_hal::{Hal, Pasid, TableRoot, TableWrites};
use thiserror::Error;

/// What can be enabled for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Feature {
    /// I/O page faults: page requests, with ATS, or stalls. Those of requests without a PASID go to the handler that
    /// [`Iommu::set_page_fault_handler`] sets for `None`.
    PageFaults,
    /// Shared virtual addresses: page faults, and PASIDs.
    Sva,
}

/// Why a device cannot have a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FeatureError {
    /// The device lacks something.
    #[error("the device lacks {missing}")]
    Device {
        /// What it lacks.
        missing: Missing,
    },
    /// The unit lacks something.
    #[error("the unit lacks {missing}")]
    Unit {
        /// What it lacks.
        missing: Missing,
    },
    /// The unit does not snoop caches, in which the address space leaves what it writes.
    #[error("the unit's walks are not coherent, and the address space does not clean its tables to memory")]
    TablesNotCleaned,
    /// Other features are enabled, or are needed by one that is.
    #[error("another feature of the device is enabled")]
    Enabled,
    /// It could not be switched.
    #[error(transparent)]
    Switch(#[from] EnableError),
}

/// How a device's faults are recovered, or who lacks what for it.
fn page_faults(offers: Requests, models: FaultModels) -> Result<Requests, FeatureError> {
    // Page requests are about translations that the device asked for.
    let asks = Requests::TRANSLATION | Requests::PAGE;
    if offers.contains(asks) && models.contains(FaultModels::PRI) {
        return Ok(asks);
    }
    if offers.contains(Requests::STALL) && models.contains(FaultModels::STALL) {
        return Ok(Requests::STALL);
    }
    Err(match (offers.contains(Requests::PAGE), offers.contains(Requests::STALL)) {
        (true, _) if !offers.contains(asks) => FeatureError::Device { missing: Missing::ATS },
        (true, _) => FeatureError::Unit { missing: Missing::PRI },
        (false, true) => FeatureError::Unit { missing: Missing::STALL },
        (false, false) => FeatureError::Device { missing: Missing::PRI | Missing::STALL },
    })
}

impl<H: Hal> Iommu<H> {
    /// What enables a feature of a device for an address space with tables like `root`: the answer of device, unit and
    /// address space together. Page requests are preferred to stalls.
    ///
    /// # Errors
    ///
    /// What is missing, by name.
    pub fn has_feature(
        &self,
        device: &Device,
        control: &dyn DeviceControl,
        feature: Feature,
        root: &TableRoot,
    ) -> Result<Permissions, FeatureError> {
        let faulted = EnableError::Unit(AttachError::Faulted);
        let unit = self.unit(device.unit()).ok_or(FeatureError::Switch(faulted))?;
        let (info, offers) = (unit.info(), control.offers());
        let requests = page_faults(offers.requests, info.fault_models)?;
        let mut pasid_bits = 0;
        if feature == Feature::Sva {
            let missing = Missing::PASID;
            if offers.pasid_bits == 0 {
                return Err(FeatureError::Device { missing });
            }
            if info.pasid_bits == 0 {
                return Err(FeatureError::Unit { missing });
            }
            pasid_bits = offers.pasid_bits.min(info.pasid_bits).min(Pasid::MAX_BITS as u8);
            match unit.missing_for(root) {
                missing if missing.is_empty() => {}
                Missing::COHERENT_WALKS if root.writes == TableWrites::Cached => {
                    return Err(FeatureError::TablesNotCleaned);
                }
                missing => return Err(FeatureError::Unit { missing }),
            }
        }
        Ok(Permissions { pasid_bits, requests })
    }

    /// Enables a feature of a device, for address spaces with tables like `root`.
    ///
    /// # Errors
    ///
    /// What is missing, by name; [`FeatureError::Enabled`] if other permissions are on, which are to be switched off
    /// first. Nothing is enabled then.
    pub fn enable_feature(
        &self,
        device: &Device,
        control: &dyn DeviceControl,
        feature: Feature,
        root: &TableRoot,
    ) -> Result<(), FeatureError> {
        let wanted = self.has_feature(device, control, feature, root)?;
        match self.enable(device, control, &wanted) {
            Err(EnableError::Enabled) if device.is_enabled(feature) => Ok(()),
            Err(EnableError::Enabled) => Err(FeatureError::Enabled),
            result => Ok(result?),
        }
    }

    /// Disables a feature of a device. With page faults goes all that the device was permitted.
    ///
    /// # Errors
    ///
    /// [`FeatureError::Enabled`] for page faults while shared virtual addresses need them; otherwise as
    /// [`disable`](Self::disable).
    pub fn disable_feature(
        &self,
        device: &Device,
        control: &dyn DeviceControl,
        feature: Feature,
    ) -> Result<(), FeatureError> {
        if !device.is_enabled(feature) {
            return Ok(());
        }
        if feature == Feature::PageFaults && device.is_enabled(Feature::Sva) {
            return Err(FeatureError::Enabled);
        }
        Ok(self.disable(device, control)?)
    }
}

impl Device {
    /// Whether a feature is enabled.
    pub fn is_enabled(&self, feature: Feature) -> bool {
        let Permissions { pasid_bits, requests } = self.permissions();
        let asks = requests.contains(Requests::TRANSLATION | Requests::PAGE);
        let faults = asks || requests.contains(Requests::STALL);
        match feature {
            Feature::PageFaults => faults,
            Feature::Sva => faults && pasid_bits > 0,
        }
    }

    /// The greatest PASID that it may use.
    pub(crate) fn max_pasid(&self) -> Option<Pasid> {
        let bits = u32::from(self.permissions().pasid_bits).min(Pasid::MAX_BITS);
        Pasid::new((1 << bits) - 1).ok()
    }
}
