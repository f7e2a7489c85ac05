//! The three capabilities by which a device works with an IOMMU: PASID, page requests and ATS.
//!
//! The registers have rules of their own, which are checked here. The order among the three and the IOMMU's
//! tables is up to the caller: PASID, then page requests, then ATS; off in reverse, with the page requests
//! answered and the device's translation cache invalidated in between.

use crate::capability::CapabilityError;
use crate::config::{ConfigSpace, Place};
use crate::spec::{AtsRegister, CONTROL_WORD, PasidFeatures, PasidRegister, PriRegister, pri};
use portcullis_hal::wait::{self, Timeout};
use portcullis_hal::{Hal, Mmio};
use thiserror::Error;

/// A capability refuses a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TranslationError {
    /// The capability is on already, and the step is only allowed while it is off.
    #[error("already enabled")]
    Enabled,
    /// PASID must not change while ATS is on (7.8.9.3).
    #[error("ATS is enabled")]
    AtsEnabled,
    /// The function lacks one of the PASID features asked for.
    #[error("the function has {supported:?} of {wanted:?}")]
    Features {
        /// What was asked for.
        wanted: PasidFeatures,
        /// What there is.
        supported: PasidFeatures,
    },
    /// Requests of an earlier time are still outstanding.
    #[error("page requests are still outstanding")]
    NotStopped,
    /// More page requests than the function can keep, or none.
    #[error("{wanted} outstanding page requests do not fit 1 to {capacity}")]
    Allocation {
        /// What was asked for.
        wanted: u32,
        /// What there is.
        capacity: u32,
    },
    /// The function did not take the setting: it stopped answering or has no such bit.
    #[error("the register reads {read:#010x} after {written:#010x} was written")]
    Ignored {
        /// What was written.
        written: u32,
        /// What was read back.
        read: u32,
    },
}

/// The smallest range that a device caches a translation of: 4 KiB times a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmallestTranslationUnit(u8);

impl SmallestTranslationUnit {
    /// 4 KiB.
    pub const PAGE_4K: Self = Self(0);

    /// `4 KiB << log2`, with `log2` from 0 to 31.
    pub const fn new(log2: u8) -> Option<Self> {
        if log2 < 32 { Some(Self(log2)) } else { None }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        4096 << self.0
    }
}

/// Address translation services (10.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtsCapability {
    place: Place,
    /// How many invalidations the function can queue, 1 to 32.
    pub queue_depth: u8,
    /// Untranslated addresses are always aligned to 4 KiB.
    pub page_aligned: bool,
    /// An invalidation may cover all PASIDs at once.
    pub global_invalidate: bool,
}

impl AtsCapability {
    pub(crate) fn read<M: Mmio>(config: &ConfigSpace<M>, place: Place) -> Result<Self, CapabilityError> {
        let place = place.holding(CONTROL_WORD + 4)?;
        let register = AtsRegister::from_bits(config.read_at(place, CONTROL_WORD));
        Ok(Self {
            place,
            queue_depth: if register.queue_depth() == 0 { 32 } else { register.queue_depth() },
            page_aligned: register.page_aligned(),
            global_invalidate: register.global_invalidate(),
        })
    }

    fn register<M: Mmio>(&self, config: &ConfigSpace<M>) -> AtsRegister {
        AtsRegister::from_bits(config.read_at(self.place, CONTROL_WORD))
    }

    /// Whether ATS is on.
    pub fn is_enabled<M: Mmio>(&self, config: &ConfigSpace<M>) -> bool {
        self.register(config).enable()
    }

    /// Sets the smallest translation unit, which may change only while ATS is off, and turns ATS on.
    ///
    /// # Errors
    ///
    /// [`Enabled`](TranslationError::Enabled), and [`Ignored`](TranslationError::Ignored) if the function does
    /// not take the setting; ATS is then off.
    pub fn enable<M: Mmio>(
        &self,
        config: &ConfigSpace<M>,
        unit: SmallestTranslationUnit,
    ) -> Result<(), TranslationError> {
        let register = self.register(config);
        if register.enable() {
            return Err(TranslationError::Enabled);
        }
        let value = register.with_stu(unit.0).with_enable(true).into_bits();
        config.write_at(self.place, CONTROL_WORD, value);
        self.settled(config, value).inspect_err(|_| self.disable(config))
    }

    fn settled<M: Mmio>(&self, config: &ConfigSpace<M>, written: u32) -> Result<(), TranslationError> {
        taken(written, config.read_at(self.place, CONTROL_WORD))
    }

    /// Turns ATS off. The function answers invalidations that are under way; the caller invalidates its cache
    /// afterwards.
    pub fn disable<M: Mmio>(&self, config: &ConfigSpace<M>) {
        let value = self.register(config).with_enable(false).into_bits();
        config.write_at(self.place, CONTROL_WORD, value);
    }
}

/// Process address-space identifiers (7.8.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasidCapability {
    place: Place,
    /// The width of the PASIDs the function can use, in bits: 0 to 20.
    pub width: u8,
    /// What its requests may ask for.
    pub features: PasidFeatures,
}

impl PasidCapability {
    pub(crate) fn read<M: Mmio>(config: &ConfigSpace<M>, place: Place) -> Result<Self, CapabilityError> {
        let place = place.holding(CONTROL_WORD + 4)?;
        let register = PasidRegister::from_bits(config.read_at(place, CONTROL_WORD));
        Ok(Self {
            place,
            // Wider ones do not exist (6.20): the value is the device's mistake.
            width: register.width().min(portcullis_hal::Pasid::MAX_BITS as u8),
            features: PasidFeatures::from_bits_truncate(register.supported()),
        })
    }

    fn register<M: Mmio>(&self, config: &ConfigSpace<M>) -> PasidRegister {
        PasidRegister::from_bits(config.read_at(self.place, CONTROL_WORD))
    }

    /// Whether PASIDs are on.
    pub fn is_enabled<M: Mmio>(&self, config: &ConfigSpace<M>) -> bool {
        self.register(config).enable()
    }

    /// Turns PASIDs on, with `features`. `ats` is the function's ATS capability, if it has one: it has to be off.
    ///
    /// # Errors
    ///
    /// [`AtsEnabled`](TranslationError::AtsEnabled), [`Enabled`](TranslationError::Enabled),
    /// [`Features`](TranslationError::Features) and [`Ignored`](TranslationError::Ignored); PASIDs are then as
    /// they were.
    pub fn enable<M: Mmio>(
        &self,
        config: &ConfigSpace<M>,
        ats: Option<&AtsCapability>,
        features: PasidFeatures,
    ) -> Result<(), TranslationError> {
        let register = self.changeable(config, ats)?;
        if register.enable() {
            return Err(TranslationError::Enabled);
        }
        if !self.features.contains(features) {
            return Err(TranslationError::Features { wanted: features, supported: self.features });
        }
        let value = register
            .with_enable(true)
            .with_execute(features.contains(PasidFeatures::EXECUTE))
            .with_privileged(features.contains(PasidFeatures::PRIVILEGED))
            .into_bits();
        config.write_at(self.place, CONTROL_WORD, value);
        let settled = taken(value, config.read_at(self.place, CONTROL_WORD));
        settled.inspect_err(|_| config.write_at(self.place, CONTROL_WORD, register.into_bits()))
    }

    /// Turns PASIDs and their features off. `ats` is as for [`enable`](Self::enable).
    ///
    /// # Errors
    ///
    /// [`AtsEnabled`](TranslationError::AtsEnabled).
    pub fn disable<M: Mmio>(
        &self,
        config: &ConfigSpace<M>,
        ats: Option<&AtsCapability>,
    ) -> Result<(), TranslationError> {
        let register = self.changeable(config, ats)?;
        let value = register.with_enable(false).with_execute(false).with_privileged(false);
        config.write_at(self.place, CONTROL_WORD, value.into_bits());
        Ok(())
    }

    fn changeable<M: Mmio>(
        &self,
        config: &ConfigSpace<M>,
        ats: Option<&AtsCapability>,
    ) -> Result<PasidRegister, TranslationError> {
        if ats.is_some_and(|ats| ats.is_enabled(config)) {
            return Err(TranslationError::AtsEnabled);
        }
        Ok(self.register(config))
    }
}

/// The page request interface (10.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PriCapability {
    place: Place,
    /// How many requests the function can have outstanding.
    pub capacity: u32,
    /// A response to a request with a PASID has to carry it too.
    pub response_needs_pasid: bool,
}

impl PriCapability {
    pub(crate) fn read<M: Mmio>(config: &ConfigSpace<M>, place: Place) -> Result<Self, CapabilityError> {
        let place = place.holding(pri::ALLOCATION + 4)?;
        let register = PriRegister::from_bits(config.read_at(place, pri::REGISTER));
        Ok(Self {
            place,
            capacity: config.read_at(place, pri::CAPACITY),
            response_needs_pasid: register.response_pasid(),
        })
    }

    fn register<M: Mmio>(&self, config: &ConfigSpace<M>) -> PriRegister {
        PriRegister::from_bits(config.read_at(self.place, pri::REGISTER))
    }

    /// Whether the function may make page requests.
    pub fn is_enabled<M: Mmio>(&self, config: &ConfigSpace<M>) -> bool {
        self.register(config).enable()
    }

    /// Resets the interface and lets the function make page requests, `outstanding` at a time.
    ///
    /// # Errors
    ///
    /// [`Enabled`](TranslationError::Enabled), [`NotStopped`](TranslationError::NotStopped) while requests of an
    /// earlier time are outstanding, [`Allocation`](TranslationError::Allocation), and
    /// [`Ignored`](TranslationError::Ignored); the interface is then off.
    pub fn enable<M: Mmio>(&self, config: &ConfigSpace<M>, outstanding: u32) -> Result<(), TranslationError> {
        let register = self.register(config);
        if register.enable() {
            return Err(TranslationError::Enabled);
        }
        if !register.stopped() {
            return Err(TranslationError::NotStopped);
        }
        if outstanding == 0 || outstanding > self.capacity {
            return Err(TranslationError::Allocation { wanted: outstanding, capacity: self.capacity });
        }
        let reset = PriRegister::new().with_reset(true).into_bits();
        config.write_at(self.place, pri::REGISTER, reset);
        config.write_at(self.place, pri::ALLOCATION, outstanding);
        let value = PriRegister::new().with_enable(true).into_bits();
        config.write_at(self.place, pri::REGISTER, value);
        // The status half and the reset bit read back as they like; only enable matters.
        let read = self.register(config);
        if read.into_bits() == u32::MAX || !read.enable() {
            return Err(TranslationError::Ignored { written: value, read: read.into_bits() });
        }
        Ok(())
    }

    /// Lets the function make no new page requests. Those outstanding still have to be answered;
    /// [`wait_stopped`](Self::wait_stopped) tells when they are.
    pub fn disable<M: Mmio>(&self, config: &ConfigSpace<M>) {
        config.write_at(self.place, pri::REGISTER, PriRegister::new().into_bits());
    }

    /// Waits until no page request is outstanding, for `timeout_ns` nanoseconds at most.
    ///
    /// # Errors
    ///
    /// One is still outstanding when the time is up.
    pub fn wait_stopped<H: Hal, M: Mmio>(
        &self,
        hal: &H,
        config: &ConfigSpace<M>,
        timeout_ns: u64,
    ) -> Result<(), Timeout> {
        let stopped = u64::from(PriRegister::new().with_stopped(true).into_bits());
        wait::until(hal, "PRI status", stopped, stopped, timeout_ns, || {
            u64::from(self.register(config).into_bits())
        })
        .map(drop)
    }
}

/// Checks that a register holds what was written.
fn taken(written: u32, read: u32) -> Result<(), TranslationError> {
    if read == written { Ok(()) } else { Err(TranslationError::Ignored { written, read }) }
}
