//! The virtio-blk disk, driven by the `virtio-drivers` crate; all its memory goes through a domain of the disk's own.

#![expect(unsafe_code, reason = "virtio-drivers' Hal is an unsafe trait")]

use super::virtio::{PlatformAccess, VirtioConfig};
use crate::dma::{self, Buffer, DmaSpace};
use crate::memory::KernelHal;
use alloc::vec::Vec;
use core::ptr::NonNull;
use log::error;
use portcullis_arch::paging;
use portcullis_hal::{
    Attributes, FrameOrder, Frames, Gather, Iova, IovaRange, Mapping, MmioRegion, OutOfMemory, PAGE_SIZE,
    PhysAddr, PhysRange,
};
use portcullis_pci::{ConfigSpace, Function};
use spin::{Mutex, Once};
use thiserror::Error;
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::transport::pci::PciTransport;
use virtio_drivers::transport::pci::bus::PciRoot;
use virtio_drivers::{BufferDirection, Hal as VirtioHal};

/// Vendor and device id of a modern virtio-blk.
pub(crate) const ID: (u16, u16) = (0x1af4, 0x1042);

/// What `virtio-drivers`, whose `Hal` has no instance, works with: the disk's domain and its live buffers.
struct DiskDma {
    space: DmaSpace,
    live: Mutex<Vec<Live>>,
}

/// Memory that the disk can reach now.
struct Live {
    iova: Iova,
    kind: LiveKind,
}

enum LiveKind {
    /// Rings and other memory of the transport's, by value.
    Owned(Buffer),
    /// Whole pages of the caller's, mapped in place.
    InPlace(IovaRange),
    /// A copy in frames of its own, since the caller's buffer shares its pages with others.
    Bounced(Buffer),
}

static DISK_DMA: Once<DiskDma> = Once::new();

/// Gives the disk its domain; a second call keeps the first.
pub(crate) fn use_space(space: DmaSpace) {
    DISK_DMA.call_once(|| DiskDma { space, live: Mutex::new(Vec::new()) });
}

/// What the disk was last given to write to: the memory behind its address, and the caller's buffer.
static LAST_SHARED: Mutex<Option<(PhysAddr, PhysAddr)>> = Mutex::new(None);

/// The memory that the disk last wrote to, and the buffer it was for.
pub(crate) fn last_shared() -> Option<(PhysAddr, PhysAddr)> {
    *LAST_SHARED.lock()
}

/// How many buffers the disk can reach now.
pub(crate) fn live_buffers() -> usize {
    DISK_DMA.get().map_or(0, |dma| dma.live.lock().len())
}

impl DiskDma {
    fn remember(&self, iova: Iova, kind: LiveKind) -> Result<(), OutOfMemory> {
        let mut live = self.live.lock();
        live.try_reserve(1).map_err(|_| OutOfMemory)?;
        live.push(Live { iova, kind });
        Ok(())
    }

    fn forget(&self, iova: Iova) -> Option<LiveKind> {
        let mut live = self.live.lock();
        let index = live.iter().position(|entry| entry.iova == iova)?;
        Some(live.swap_remove(index).kind)
    }

    fn allocate(&self, pages: usize) -> Result<(PhysAddr, Iova), dma::DmaError> {
        let order = FrameOrder::for_bytes(pages as u64 * PAGE_SIZE).ok_or(OutOfMemory)?;
        let buffer = self.space.buffer(order, Attributes::READ_WRITE)?;
        let (phys, iova) = (buffer.memory().phys(), buffer.range().start());
        self.remember(iova, LiveKind::Owned(buffer))?;
        Ok((phys, iova))
    }

    /// Maps whole pages where they are.
    fn map_in_place(&self, memory: PhysRange, attributes: Attributes) -> Result<Iova, dma::DmaError> {
        let range = self.space.take_iova(memory.len())?;
        let mapping = Mapping { iova: range.start(), memory, attributes };
        let mapped = match self.remember(range.start(), LiveKind::InPlace(range)) {
            // SAFETY: the pages are the caller's buffer alone, which virtio-drivers leaves untouched until `unshare`,
            // and `unshare` returns only after the unmap was synced.
            Ok(()) => unsafe { self.space.domain().map(&[mapping]) },
            Err(error) => Err(error.into()),
        };
        if let Err(error) = mapped {
            self.forget(range.start());
            self.space.give_back_iova(range);
            return Err(error.into());
        }
        dma::count_mapping();
        Ok(range.start())
    }

    fn bounce(&self, buffer: &[u8], direction: BufferDirection) -> Result<Iova, dma::DmaError> {
        let order = FrameOrder::for_bytes(buffer.len() as u64).ok_or(OutOfMemory)?;
        let frames = Frames::zeroed(&KernelHal, order)?;
        if direction != BufferDirection::DeviceToDriver {
            frames.write(0, buffer);
        }
        let copy = self.space.map(frames, attributes(direction))?;
        let iova = copy.range().start();
        self.remember(iova, LiveKind::Bounced(copy))?;
        Ok(iova)
    }
}

const fn attributes(direction: BufferDirection) -> Attributes {
    match direction {
        BufferDirection::DriverToDevice => Attributes::READ,
        // Stage-1 formats have no write-only pages, so the device may read back what it wrote.
        BufferDirection::DeviceToDriver | BufferDirection::Both => Attributes::READ_WRITE,
    }
}

/// The memory services of `virtio-drivers`, on the disk's domain. Address 0 tells it that memory ran out.
pub(crate) struct DiskHal;

// SAFETY: memory comes from the kernel's frames, zeroed and page-aligned, and belongs to the caller until it is given
// back; device registers are mapped as such.
unsafe impl VirtioHal for DiskHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (u64, NonNull<u8>) {
        let allocated = DISK_DMA.get().and_then(|dma| dma.allocate(pages).ok());
        allocated.map_or((0, NonNull::dangling()), |(phys, iova)| (iova.get(), paging::phys_to_virt(phys)))
    }

    unsafe fn dma_dealloc(iova: u64, _memory: NonNull<u8>, _pages: usize) -> i32 {
        let Some(dma) = DISK_DMA.get() else { return -1 };
        match dma.forget(Iova::new(iova)) {
            Some(LiveKind::Owned(buffer)) => match dma.space.unmap(buffer) {
                Ok(_) => 0,
                Err(reason) => {
                    error!("disk memory at {iova:#x} stays quarantined: {reason}");
                    0
                }
            },
            _ => -1,
        }
    }

    unsafe fn mmio_phys_to_virt(address: u64, size: usize) -> NonNull<u8> {
        let range = PhysRange::new(PhysAddr::new(address), size as u64);
        let mapped = range.ok().and_then(|range| paging::map_device(range).ok());
        mapped.unwrap_or_else(|| paging::phys_to_virt(PhysAddr::new(address)))
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> u64 {
        let Some(dma) = DISK_DMA.get() else { return 0 };
        let whole_pages = buffer.cast::<u8>().addr().get().is_multiple_of(PAGE_SIZE as usize)
            && buffer.len().is_multiple_of(PAGE_SIZE as usize);
        let memory = paging::virt_to_phys(buffer.cast::<u8>())
            .filter(|_| whole_pages)
            .and_then(|phys| PhysRange::new(phys, buffer.len() as u64).ok());
        let shared = match memory {
            Some(memory) => dma.map_in_place(memory, attributes(direction)),
            // SAFETY: the caller gives a valid buffer that nobody else accesses during this call.
            None => dma.bounce(unsafe { buffer.as_ref() }, direction),
        };
        match shared {
            Ok(iova) => {
                // The status byte comes after the data, and is shared on its own.
                if direction == BufferDirection::DeviceToDriver && buffer.len() > 1 {
                    let behind = dma.space.domain().iova_to_phys(iova).map(|found| found.phys);
                    *LAST_SHARED.lock() = behind.zip(paging::virt_to_phys(buffer.cast::<u8>()));
                }
                iova.get()
            }
            Err(reason) => {
                // The trait has no way to refuse; at address 0 nothing is mapped, so the request fails harmlessly.
                error!("a disk buffer could not be mapped: {reason}");
                0
            }
        }
    }

    unsafe fn unshare(iova: u64, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        let Some(dma) = DISK_DMA.get() else { return };
        let outcome = match dma.forget(Iova::new(iova)) {
            Some(LiveKind::Bounced(copy)) => dma.space.unmap(copy).map(|frames| {
                if direction != BufferDirection::DriverToDevice {
                    // SAFETY: the caller gives a valid buffer that nobody else accesses during this call.
                    frames.read(0, unsafe { buffer.as_mut() });
                }
            }),
            Some(LiveKind::InPlace(range)) => {
                let mut gather = Gather::new();
                // SAFETY: the range was taken for this buffer alone.
                let unmapped = unsafe { dma.space.domain().unmap(range, &mut gather) };
                match unmapped.map(|_| dma.space.domain().sync(&mut gather)) {
                    Ok(Ok(_)) => {
                        dma.space.give_back_iova(range);
                        Ok(())
                    }
                    // The device may still write to memory that the caller takes for its own again.
                    Ok(Err(reason)) => panic!("the disk's access to {range} could not be revoked: {reason}"),
                    Err(reason) => panic!("the disk's access to {range} could not be revoked: {reason}"),
                }
            }
            _ => Ok(()),
        };
        if let Err(reason) = outcome {
            error!("a disk buffer at {iova:#x} stays quarantined: {reason}");
        }
        dma::count_bytes(buffer.len() as u64);
    }
}

/// The size of a sector, in bytes.
pub(crate) const SECTOR: usize = 512;

/// The disk, with memory from `H`.
pub(crate) struct Disk<H: VirtioHal = DiskHal>(VirtIOBlk<H, PlatformAccess<PciTransport>>);

impl<H: VirtioHal> Disk<H> {
    /// Starts the disk at `function`, which has been given its domain: with [`use_space`], or as `H` says.
    pub(crate) fn new(config: &ConfigSpace<MmioRegion>, function: &Function) -> Result<Self, DiskError> {
        let mut root = PciRoot::new(VirtioConfig::new(config));
        let address = VirtioConfig::address(function);
        let transport = PciTransport::new::<H, _>(&mut root, address).map_err(|_| DiskError::Transport)?;
        Ok(Self(VirtIOBlk::new(PlatformAccess::new(transport)).map_err(DiskError::Device)?))
    }

    /// The capacity, in sectors.
    pub(crate) fn sectors(&self) -> u64 {
        self.0.capacity()
    }

    /// Reads sectors from `first` on.
    pub(crate) fn read(&mut self, first: usize, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.0.read_blocks(first, buffer).map_err(DiskError::Device)
    }

    /// Writes sectors from `first` on.
    pub(crate) fn write(&mut self, first: usize, buffer: &[u8]) -> Result<(), DiskError> {
        self.0.write_blocks(first, buffer).map_err(DiskError::Device)
    }

    /// Returns when what was written is on the medium.
    pub(crate) fn flush(&mut self) -> Result<(), DiskError> {
        self.0.flush().map_err(DiskError::Device)
    }
}

/// Why the disk did not do what it was asked.
#[derive(Clone, Copy, Debug, Error)]
pub(crate) enum DiskError {
    /// The function has not the capabilities of a virtio device.
    #[error("no virtio PCI transport")]
    Transport,
    /// The device or its driver refused.
    #[error("{0}")]
    Device(virtio_drivers::Error),
}
