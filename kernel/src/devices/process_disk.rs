//! The disk in a process: rings, requests and data are at user addresses, in pages that are pinned for it.
//!
//! Data is what user code has in the last of these pages. The buffer that the driver is called with only says how much.

#![expect(unsafe_code, reason = "virtio-drivers' Hal is an unsafe trait")]

use super::disk::{DiskHal, SECTOR};
use crate::mm::{AddressSpace, PAGE, UserFrame};
use crate::report::words;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ptr::NonNull;
use log::error;
use portcullis_arch::paging;
use portcullis_hal::Arc;
use spin::Mutex;
use virtio_drivers::{BufferDirection, Hal as VirtioHal};

/// Pages of the process that the disk may use: the last one for data, the others for one of the driver's buffers each.
struct Arena {
    first: u64,
    /// The memory, in the order of the addresses.
    pages: Vec<UserFrame>,
    /// Which pages are in use.
    taken: u64,
}

/// What `virtio-drivers`, whose `Hal` has no instance, works with.
static ARENA: Mutex<Option<Arena>> = Mutex::new(None);

/// Lets the disk use `count` pages from `first` on, 64 at most, which have memory and stay pinned until [`close`].
pub(crate) fn open(space: &Arc<AddressSpace>, first: u64, count: u64) -> Result<(), String> {
    let mut pages = Vec::new();
    for index in 0..count.min(64) {
        let page = space.frame_at(first + index * PAGE).ok_or("a page has no memory")?;
        pages.try_reserve(1).map_err(words)?;
        pages.push(page);
    }
    *ARENA.lock() = Some(Arena { first, pages, taken: 0 });
    Ok(())
}

/// Ends what [`open`] began: the disk was reset. Fails if the driver still uses a page.
pub(crate) fn close() -> Result<(), String> {
    match ARENA.lock().take() {
        Some(Arena { taken: 0, .. }) => Ok(()),
        Some(Arena { taken, .. }) => Err(alloc::format!("pages {taken:#x} are in use")),
        None => Err("the disk is in no process".to_string()),
    }
}

impl Arena {
    /// Takes a free page: its address, and where the kernel sees it.
    fn take(&mut self) -> Option<(u64, NonNull<u8>)> {
        let index = self.taken.trailing_ones();
        let (_, pages) = self.pages.split_last()?;
        let page = pages.get(index as usize)?;
        self.taken |= 1 << index;
        Some((self.first + u64::from(index) * PAGE, paging::phys_to_virt(page.frames().phys())))
    }

    /// The address of the page for data.
    fn data(&self) -> u64 {
        self.first + (self.pages.len() as u64).saturating_sub(1) * PAGE
    }

    fn page(&self, address: u64) -> Option<(u64, &UserFrame)> {
        let index = address.checked_sub(self.first)? / PAGE;
        Some((index, self.pages.get(usize::try_from(index).ok()?)?))
    }
}

/// Requests, their states and lists of descriptors are shorter than a sector.
fn is_data(buffer: NonNull<[u8]>) -> bool {
    buffer.len() >= SECTOR
}

/// The memory services of `virtio-drivers`, in the pages of the process. Address 0, which is nobody's, tells that there
/// is none.
pub(crate) struct ProcessHal;

// SAFETY: pages are whole, zeroed before a process touches them, and one user's until they are given back.
unsafe impl VirtioHal for ProcessHal {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (u64, NonNull<u8>) {
        let none = (0, NonNull::dangling());
        // Rings of this size fit a page each.
        if pages != 1 { none } else { ARENA.lock().as_mut().and_then(Arena::take).unwrap_or(none) }
    }

    unsafe fn dma_dealloc(address: u64, _memory: NonNull<u8>, _pages: usize) -> i32 {
        let mut arena = ARENA.lock();
        let Some(arena) = arena.as_mut() else { return -1 };
        match arena.page(address).map(|(index, _)| index) {
            Some(index) => {
                arena.taken &= !(1 << index);
                0
            }
            None => -1,
        }
    }

    unsafe fn mmio_phys_to_virt(address: u64, size: usize) -> NonNull<u8> {
        // SAFETY: registers are the same whoever uses them; the caller keeps the contract, which is this one's.
        unsafe { DiskHal::mmio_phys_to_virt(address, size) }
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> u64 {
        let mut arena = ARENA.lock();
        let fitting = arena.as_mut().filter(|_| buffer.len() <= PAGE as usize);
        if let Some(arena) = fitting.as_ref().filter(|_| is_data(buffer)) {
            return arena.data();
        }
        let Some((address, _)) = fitting.and_then(Arena::take) else {
            error!("a buffer of {} bytes finds no page in the process", buffer.len());
            return 0;
        };
        if direction != BufferDirection::DeviceToDriver
            && let Some((_, page)) = arena.as_ref().and_then(|arena| arena.page(address))
        {
            // SAFETY: the caller gives a valid buffer that nobody else accesses during this call.
            page.frames().write(0, unsafe { buffer.as_ref() });
        }
        address
    }

    unsafe fn unshare(address: u64, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        let mut arena = ARENA.lock();
        let Some(arena) = arena.as_mut().filter(|_| !is_data(buffer)) else { return };
        let Some((index, page)) = arena.page(address) else { return };
        if direction != BufferDirection::DriverToDevice {
            // SAFETY: the caller gives a valid buffer that nobody else accesses during this call.
            page.frames().read(0, unsafe { buffer.as_mut() });
        }
        arena.taken &= !(1 << index);
    }
}
