//! DMA memory for one device: a domain of its own, an allocator of I/O virtual addresses, and buffers by value.

use crate::machine::KernelIommu;
use crate::memory::KernelHal;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use portcullis_hal::{
    Arc, Attributes, FrameOrder, Frames, Iova, IovaRange, MapError, Mapped, OutOfMemory, QuarantineReason,
    Refused,
};
use portcullis_iommu::{
    AttachError, Device, Domain, DomainError, DomainSpec, IovaAllocator, IovaError, PagingSpec, Stage,
    Transition,
};
use spin::Mutex;
use thiserror::Error;

/// Why a device got no DMA memory, or did not give it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum DmaError {
    #[error("no domain: {0}")]
    Domain(#[from] DomainError),
    #[error("not attached: {0}")]
    Attach(#[from] AttachError),
    #[error("not mapped: {0}")]
    Map(#[from] MapError),
    #[error("memory quarantined: {0}")]
    Quarantined(#[from] QuarantineReason),
    #[error(transparent)]
    Iova(#[from] IovaError),
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

impl<M> From<Refused<M>> for DmaError {
    fn from(refused: Refused<M>) -> Self {
        Self::Map(refused.error)
    }
}

/// Mappings made by the kernel's drivers, for the closing table.
static MAPPINGS: AtomicU64 = AtomicU64::new(0);
/// Bytes that devices moved for the kernel's drivers, for the closing table.
static BYTES: AtomicU64 = AtomicU64::new(0);

/// Counts a mapping.
pub(crate) fn count_mapping() {
    MAPPINGS.fetch_add(1, Ordering::Relaxed);
}

/// Counts bytes moved by DMA.
pub(crate) fn count_bytes(bytes: u64) {
    BYTES.fetch_add(bytes, Ordering::Relaxed);
}

/// Mappings made and bytes moved so far.
pub(crate) fn counts() -> (u64, u64) {
    (MAPPINGS.load(Ordering::Relaxed), BYTES.load(Ordering::Relaxed))
}

/// A buffer that the CPU fills and a device reaches at the addresses of its [`range`](Mapped::range).
pub(crate) type Buffer = Mapped<Frames<KernelHal>, dyn Domain>;

/// A domain with its free addresses.
pub(crate) struct DmaSpace {
    domain: Arc<dyn Domain>,
    iovas: Mutex<IovaAllocator>,
}

impl DmaSpace {
    /// A paging domain fit for `device`, which stays as it is.
    pub(crate) fn new(iommu: &KernelIommu, device: &Device, stage: Option<Stage>) -> Result<Self, DmaError> {
        let domain =
            iommu.new_domain(device, &DomainSpec::Paging(PagingSpec { stage, ..PagingSpec::default() }))?;
        let mut reserved = Vec::new();
        reserved.try_reserve(device.reserved().len()).map_err(|_| OutOfMemory)?;
        reserved.extend(device.reserved().iter().map(|region| region.range));
        let iovas = Mutex::new(IovaAllocator::new(domain.aperture(), &reserved)?);
        Ok(Self { domain, iovas })
    }

    /// A paging domain that `device` is attached to.
    pub(crate) fn attached(
        iommu: &KernelIommu,
        device: &Device,
        stage: Option<Stage>,
    ) -> Result<Self, DmaError> {
        let space = Self::new(iommu, device, stage)?;
        space.attach(iommu, device)?;
        Ok(space)
    }

    /// Attaches a device to the domain.
    pub(crate) fn attach(&self, iommu: &KernelIommu, device: &Device) -> Result<Transition, DmaError> {
        Ok(iommu.attach(device, &self.domain)?)
    }

    /// The domain.
    pub(crate) fn domain(&self) -> &Arc<dyn Domain> {
        &self.domain
    }

    /// Takes addresses for `len` bytes, aligned to the length.
    pub(crate) fn take_iova(&self, len: u64) -> Result<IovaRange, DmaError> {
        Ok(self.iovas.lock().take(len, len.next_power_of_two())?)
    }

    /// Gives addresses back whose unmap was synced.
    pub(crate) fn give_back_iova(&self, range: IovaRange) {
        self.iovas.lock().give_back(range);
    }

    /// Allocates and maps `2^order` frames, zeroed.
    pub(crate) fn buffer(&self, order: FrameOrder, attributes: Attributes) -> Result<Buffer, DmaError> {
        self.map(Frames::zeroed(&KernelHal, order)?, attributes)
    }

    /// Maps frames at addresses of the allocator's choice.
    pub(crate) fn map(&self, frames: Frames<KernelHal>, attributes: Attributes) -> Result<Buffer, DmaError> {
        let range = self.take_iova(frames.order().bytes())?;
        self.map_at(range.start(), frames, attributes).inspect_err(|_| self.give_back_iova(range))
    }

    /// Maps frames at an address that the caller chose or took.
    pub(crate) fn map_at(
        &self,
        iova: Iova,
        frames: Frames<KernelHal>,
        attributes: Attributes,
    ) -> Result<Buffer, DmaError> {
        let buffer = Mapped::map(&self.domain, iova, frames, attributes)?;
        count_mapping();
        Ok(buffer)
    }

    /// Takes a buffer back: no device reaches it any more.
    pub(crate) fn unmap(&self, buffer: Buffer) -> Result<Frames<KernelHal>, DmaError> {
        let range = buffer.range();
        let frames = buffer.unmap().map_err(|quarantined| quarantined.reason)?;
        self.give_back_iova(range);
        Ok(frames)
    }
}
