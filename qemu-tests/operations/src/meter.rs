//! What is read before and after an operation.

use crate::cost::{Events, Samples, median};
use alloc::string::String;
use portcullis_hal::{Arc, Hal, count};
use portcullis_iommu::{Device, Iommu, Unit};

/// What tells the time, in any unit.
#[derive(Clone, Copy, Debug)]
pub struct Clock<C> {
    read: C,
    /// What reading it twice takes.
    overhead: u64,
}

impl<C: Fn() -> u64> Clock<C> {
    /// Finds out what reading the clock takes, and takes that off from then on.
    pub fn new(read: C) -> Self {
        const SAMPLES: usize = 101;
        let clock = Self { read, overhead: 0 };
        let overhead = median((0..SAMPLES).map(|_| clock.time(|| ()).0).collect());
        Self { overhead, ..clock }
    }

    /// What is taken off.
    pub fn overhead(&self) -> u64 {
        self.overhead
    }

    /// How long an operation takes.
    #[inline]
    pub fn time<R>(&self, operation: impl FnOnce() -> R) -> (u64, R) {
        let start = (self.read)();
        let result = operation();
        ((self.read)().wrapping_sub(start).saturating_sub(self.overhead), result)
    }
}

/// A clock, and the accounts of the unit that an operation is about.
pub struct Meter<C> {
    unit: Arc<dyn Unit>,
    clock: Clock<C>,
}

impl<C: Fn() -> u64> Meter<C> {
    /// For the unit of `device`.
    pub fn new<H: Hal>(iommu: &Iommu<H>, device: &Device, clock: Clock<C>) -> Result<Self, String> {
        Ok(Self { unit: iommu.unit(device.unit()).ok_or("no unit")?, clock })
    }

    /// The unit.
    pub fn unit(&self) -> &Arc<dyn Unit> {
        &self.unit
    }

    /// Performs an operation, and says what it took besides what came of it.
    #[inline]
    pub fn measure<R>(&self, operation: impl FnOnce() -> R) -> (u64, Events, R) {
        let (stats, counts) = (self.unit.stats(), count::counts());
        let (time, result) = self.clock.time(operation);
        let counts = count::counts().zip(counts).map(|(now, before)| now.since(&before));
        (time, Events::between(&stats, &self.unit.stats(), counts), result)
    }
}

impl Samples {
    /// Performs an operation and adds what it costs.
    #[inline]
    pub(crate) fn of<C: Fn() -> u64, R>(&mut self, meter: &Meter<C>, operation: impl FnOnce() -> R) -> R {
        let (time, events, result) = meter.measure(operation);
        self.add(time, events);
        result
    }
}
