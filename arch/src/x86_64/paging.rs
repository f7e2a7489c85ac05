//! The kernel's address space: the image, and the direct map with RAM, device windows and firmware tables.

#![expect(unsafe_code, reason = "builds the CPU's page tables")]

use super::cpu;
use crate::{MemoryMap, UserTables};
use core::cell::UnsafeCell;
use core::ptr::NonNull;
use portcullis_hal::{PAGE_SIZE, PhysAddr, PhysRange};
use spin::Mutex;
use thiserror::Error;
use x86_64::registers::control::{Cr3, Cr3Flags, Cr4, Cr4Flags};
use x86_64::structures::paging::mapper::{MapToError, MappedFrame, TranslateResult};
use x86_64::structures::paging::page_table::PageTableEntry;
use x86_64::structures::paging::{
    FrameAllocator, Mapper, OffsetPageTable, Page, PageSize, PageTable, PageTableFlags, PhysFrame, Size1GiB,
    Size2MiB, Size4KiB, Translate,
};
use x86_64::{PhysAddr as X86PhysAddr, VirtAddr};

/// Where physical address 0 is in the direct map.
const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// The size of the direct map: all of the top half but the last 512 GiB, where the image is.
const DIRECT_MAP_SIZE: u64 = 255 << 39;
/// Entries of a table.
const ENTRIES: usize = 512;
/// From physical to linked addresses of the image.
pub(super) const KERNEL_OFFSET: u64 = 0xffff_ffff_8000_0000;

const READ_ONLY: PageTableFlags =
    PageTableFlags::PRESENT.union(PageTableFlags::NO_EXECUTE).union(PageTableFlags::GLOBAL);
const READ_WRITE: PageTableFlags = READ_ONLY.union(PageTableFlags::WRITABLE);
const EXECUTE: PageTableFlags = PageTableFlags::PRESENT.union(PageTableFlags::GLOBAL);
/// PCD and PWT choose entry 3 of the PAT, which is strong uncacheable out of reset (SDM vol. 3, 13.12.4).
const CACHE_BITS: PageTableFlags = PageTableFlags::NO_CACHE.union(PageTableFlags::WRITE_THROUGH);
const DEVICE: PageTableFlags = READ_WRITE.union(CACHE_BITS);
const TABLE: PageTableFlags = PageTableFlags::PRESENT.union(PageTableFlags::WRITABLE);

/// Why a range cannot be mapped for the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MapDeviceError {
    /// The CPU has no such physical address, or the direct map does not reach it.
    #[error("{0} is beyond the reach of the direct map")]
    OutOfReach(PhysRange),
    /// A part of the range is mapped with another memory type: RAM asked for as device, or the reverse.
    #[error("{0} is mapped with another memory type")]
    Conflict(PhysAddr),
    /// The pool of page tables is used up.
    #[error("no page table left")]
    NoTable,
    /// It would need an entry of the root table, of which user address spaces have copies already.
    #[error("{0} is too far from what is mapped to be added now")]
    Late(PhysAddr),
}

unsafe extern "C" {
    static __image_start: u8;
    static __rodata_start: u8;
    static __data_start: u8;
    static __image_end: u8;
    static boot_stack_guard: u8;
}

/// Frames for page tables, in the image since tables are needed before there is an allocator. With 1 GiB pages a
/// few are enough for any amount of RAM; without, each maps 1 GiB.
const POOL_FRAMES: usize = 128;

#[repr(C, align(4096))]
struct Pool(UnsafeCell<[[u8; PAGE_SIZE as usize]; POOL_FRAMES]>);

// SAFETY: only handed out frame by frame, by the one `PoolFrames` in `TABLES`.
unsafe impl Sync for Pool {}

static POOL: Pool = Pool(UnsafeCell::new([[0; PAGE_SIZE as usize]; POOL_FRAMES]));

/// The frames of `POOL` not handed out yet; there is one value of it.
struct PoolFrames {
    next: usize,
}

// SAFETY: each frame is part of a static that nothing else uses, and is handed out once.
unsafe impl FrameAllocator<Size4KiB> for PoolFrames {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        if self.next == POOL_FRAMES {
            return None;
        }
        let base = linked_to_phys(POOL.0.get() as u64);
        let frame = X86PhysAddr::new(base + self.next as u64 * PAGE_SIZE);
        self.next += 1;
        PhysFrame::from_start_address(frame).ok()
    }
}

struct Tables {
    mapper: OffsetPageTable<'static>,
    root: PhysFrame,
    pool: PoolFrames,
    gigabyte_pages: bool,
    /// User address spaces have a copy of the upper half of the root.
    copied: bool,
}

static TABLES: Mutex<Option<Tables>> = Mutex::new(None);

/// The pointer at which the CPU sees `phys`.
///
/// What is mapped there: RAM from the start, devices after [`map_device`], and firmware tables outside RAM after
/// [`map_firmware`]. An address beyond the direct map, of which these map nothing, gives a pointer to somewhere else.
#[inline]
pub fn phys_to_virt(phys: PhysAddr) -> NonNull<u8> {
    let address = DIRECT_MAP | phys.get();
    // The address is not zero, whatever `phys` is.
    NonNull::new(core::ptr::with_exposed_provenance_mut(address as usize)).unwrap_or(NonNull::dangling())
}

/// The physical address behind a pointer into the direct map or the image; `None` for others.
pub fn virt_to_phys<T: ?Sized>(ptr: NonNull<T>) -> Option<PhysAddr> {
    let address = ptr.addr().get() as u64;
    let image = linked(&raw const __image_start)..linked(&raw const __image_end);
    if image.contains(&address) {
        return Some(PhysAddr::new(linked_to_phys(address)));
    }
    let offset = address.checked_sub(DIRECT_MAP)?;
    (offset < DIRECT_MAP_SIZE).then_some(PhysAddr::new(offset))
}

/// Maps device registers uncached and returns the pointer to the first. Idempotent.
///
/// Whole pages are mapped. A range that shares a page with RAM is refused.
pub fn map_device(range: PhysRange) -> Result<NonNull<u8>, MapDeviceError> {
    map_outside_ram(range, DEVICE)
}

/// Makes a firmware table readable and returns the pointer to it. Idempotent.
///
/// Firmware keeps its tables in memory that it does not report as RAM; those that lie in RAM are mapped already.
pub fn map_firmware(range: PhysRange) -> Result<NonNull<u8>, MapDeviceError> {
    map_outside_ram(range, READ_ONLY)
}

fn map_outside_ram(range: PhysRange, flags: PageTableFlags) -> Result<NonNull<u8>, MapDeviceError> {
    let reach = DIRECT_MAP_SIZE.min(1_u64.checked_shl(cpu::physical_bits()).unwrap_or(u64::MAX));
    if range.last().get() >= reach {
        return Err(MapDeviceError::OutOfReach(range));
    }
    let pages = enclosing_pages(range);
    with_tables(|tables| tables.map_direct(pages, flags)).unwrap_or(Err(MapDeviceError::NoTable))?;
    Ok(phys_to_virt(range.start()))
}

/// Runs `action` on the kernel's tables, once [`init`] has built them, with interrupts masked.
fn with_tables<R>(action: impl FnOnce(&mut Tables) -> R) -> Option<R> {
    let mask = cpu::mask_interrupts();
    let result = TABLES.lock().as_mut().map(action);
    cpu::restore_interrupts(mask);
    result
}

/// Builds the kernel's tables, goes over to them and returns the RAM that the direct map holds.
///
/// RAM for which the pool of tables does not suffice is left out.
///
/// # Safety
///
/// Called once, on the boot CPU, on the boot tables, with the RAM that the firmware reports.
pub(super) unsafe fn init(ram: &MemoryMap) -> Result<MemoryMap, MapDeviceError> {
    let mut pool = PoolFrames { next: 0 };
    let root = pool.allocate_frame().ok_or(MapDeviceError::NoTable)?;
    let table = phys_to_virt(PhysAddr::new(root.start_address().as_u64())).cast::<PageTable>();
    // SAFETY: the frame was just taken from the pool, is zero, and is in reach of the boot tables' direct map.
    let mapper = unsafe { OffsetPageTable::new(&mut *table.as_ptr(), VirtAddr::new(DIRECT_MAP)) };
    let mut tables = Tables { mapper, root, pool, gigabyte_pages: cpu::has_gigabyte_pages(), copied: false };
    tables.map_image()?;
    let mut mapped = MemoryMap::new();
    for range in ram.iter() {
        if let Some(range) = whole_pages(range).filter(|range| range.last().get() < DIRECT_MAP_SIZE)
            && tables.map_ram(range).is_ok()
        {
            mapped.add(range);
        }
    }
    *TABLES.lock() = Some(tables);
    // SAFETY: the new tables map the image, this stack and the direct map at the same addresses.
    unsafe { Cr3::write(root, Cr3Flags::empty()) };
    keep_global_entries();
    Ok(mapped)
}

/// The root of the kernel's tables, in the first 4 GiB.
pub(super) fn root() -> Option<PhysAddr> {
    with_tables(|tables| PhysAddr::new(tables.root.start_address().as_u64()))
}

/// Makes the kernel part of a user address space: copies the upper half of the kernel's root to the root of `tables`.
///
/// # Errors
///
/// Before the kernel's own tables stand.
///
/// # Safety
///
/// The root is a frame of the direct map whose upper half nobody else uses.
pub unsafe fn adopt(tables: &UserTables) -> Result<(), MapDeviceError> {
    let target = phys_to_virt(tables.root).cast::<PageTable>();
    with_tables(|kernel| {
        kernel.copied = true;
        let half = ENTRIES / 2;
        // SAFETY: a frame in the direct map, as the caller says, which nobody else reaches in this half.
        let upper = unsafe { target.cast::<PageTableEntry>().add(half) };
        for (index, entry) in kernel.mapper.level_4_table().iter().skip(half).enumerate() {
            // SAFETY: 256 entries from the middle of the table.
            unsafe { upper.add(index).write_volatile(entry.clone()) };
        }
    })
    .ok_or(MapDeviceError::NoTable)?;
    cpu::clean_cache(target.cast(), PAGE_SIZE as usize);
    Ok(())
}

/// Lets this CPU use a user address space in the bottom half.
///
/// # Safety
///
/// The tables were [`adopt`]ed, stay until [`deactivate`], and map for user code only what it may reach.
pub unsafe fn activate(tables: &UserTables) {
    let frame = PhysFrame::containing_address(X86PhysAddr::new_truncate(tables.root.get()));
    // SAFETY: the upper half is the kernel's, as the caller says.
    unsafe { Cr3::write(frame, Cr3Flags::empty()) };
}

/// Takes the user address space from this CPU, with all that its TLB knows of it.
pub fn deactivate() {
    if let Some(root) = root() {
        let frame = PhysFrame::containing_address(X86PhysAddr::new_truncate(root.get()));
        // SAFETY: the kernel's own tables.
        unsafe { Cr3::write(frame, Cr3Flags::empty()) };
    }
}

/// The widest physical address that the CPU's tables can hold, in bits.
pub fn output_bits() -> u32 {
    cpu::physical_bits()
}

/// Confines translations to physical addresses of `bits` bits, which an IOMMU can reach too. Here only the tables' owner
/// can do that: the CPU has no such setting.
pub fn limit_output_bits(_bits: u32) -> Result<(), MapDeviceError> {
    Ok(())
}

/// Whether the direct map holds `phys`.
pub(super) fn is_mapped(phys: PhysAddr) -> bool {
    let virt = VirtAddr::from_ptr(phys_to_virt(phys).as_ptr());
    with_tables(|tables| tables.mapper.translate_addr(virt)).flatten().is_some()
}

/// Lets entries marked global outlive a change of the tables in the lower half. On the kernel's tables, so that
/// nothing of the boot tables is in the TLB as global.
pub(super) fn keep_global_entries() {
    // SAFETY: only says what a write to CR3 flushes.
    unsafe { Cr4::update(|cr4| cr4.insert(Cr4Flags::PAGE_GLOBAL)) };
}

/// The image's place in physical memory.
pub(super) fn image() -> Result<PhysRange, portcullis_hal::AddressError> {
    image_part(&raw const __image_start, &raw const __image_end)
}

impl Tables {
    /// Maps the image at its linked address, each part with its own permissions, but not the page below the boot
    /// CPU's stack.
    fn map_image(&mut self) -> Result<(), MapDeviceError> {
        let text = linked(&raw const __image_start);
        let constants = linked(&raw const __rodata_start);
        let data = linked(&raw const __data_start);
        let guard = linked(&raw const boot_stack_guard);
        let end = linked(&raw const __image_end);
        for (from, to, flags) in [
            (text, constants, EXECUTE),
            (constants, data, READ_ONLY),
            (data, guard, READ_WRITE),
            (guard + PAGE_SIZE, end, READ_WRITE),
        ] {
            self.map(from, linked_to_phys(from), to - from, flags)?;
        }
        Ok(())
    }

    /// Maps RAM in the direct map, the image's text and constants read-only.
    fn map_ram(&mut self, range: PhysRange) -> Result<(), MapDeviceError> {
        let protected = image_part(&raw const __image_start, &raw const __data_start);
        let Some(protected) = protected.ok().filter(|protected| range.overlaps(protected)) else {
            return self.map_direct(range, READ_WRITE);
        };
        let mut writable = MemoryMap::new();
        writable.add(range);
        writable.remove(protected);
        self.map_direct(protected, READ_ONLY)?;
        writable.iter().try_for_each(|part| self.map_direct(part, READ_WRITE))
    }

    fn map_direct(&mut self, range: PhysRange, flags: PageTableFlags) -> Result<(), MapDeviceError> {
        let start = range.start().get();
        self.map(DIRECT_MAP + start, start, range.len(), flags)
    }

    /// Maps whole pages from `virt` to `phys`, the largest that fit. What is mapped already stays if it has the same
    /// memory type.
    fn map(&mut self, virt: u64, phys: u64, len: u64, flags: PageTableFlags) -> Result<(), MapDeviceError> {
        let mut done = 0;
        while done < len {
            let (virt, phys) = (VirtAddr::new(virt + done), X86PhysAddr::new(phys + done));
            if self.copied && self.mapper.level_4_table()[virt.p4_index()].is_unused() {
                return Err(MapDeviceError::Late(PhysAddr::new(phys.as_u64())));
            }
            done += match self.mapper.translate(virt) {
                TranslateResult::NotMapped => self.map_largest(virt, phys, len - done, flags)?,
                TranslateResult::Mapped { frame, offset, flags: found }
                    if found & CACHE_BITS == flags & CACHE_BITS =>
                {
                    frame_size(&frame) - offset
                }
                _ => return Err(MapDeviceError::Conflict(PhysAddr::new(phys.as_u64()))),
            };
        }
        Ok(())
    }

    /// Maps one page at an unmapped address and returns its size.
    fn map_largest(
        &mut self,
        virt: VirtAddr,
        phys: X86PhysAddr,
        len: u64,
        flags: PageTableFlags,
    ) -> Result<u64, MapDeviceError> {
        let fits = |size| len >= size && virt.is_aligned(size) && phys.is_aligned(size);
        if self.gigabyte_pages && fits(Size1GiB::SIZE) && self.map_page::<Size1GiB>(virt, phys, flags)? {
            return Ok(Size1GiB::SIZE);
        }
        if fits(Size2MiB::SIZE) && self.map_page::<Size2MiB>(virt, phys, flags)? {
            return Ok(Size2MiB::SIZE);
        }
        if self.map_page::<Size4KiB>(virt, phys, flags)? {
            return Ok(Size4KiB::SIZE);
        }
        Err(MapDeviceError::Conflict(PhysAddr::new(phys.as_u64())))
    }

    /// Maps one page of size `S`; `Ok(false)` if there is a table in its place.
    fn map_page<S: PageSize>(
        &mut self,
        virt: VirtAddr,
        phys: X86PhysAddr,
        flags: PageTableFlags,
    ) -> Result<bool, MapDeviceError>
    where
        OffsetPageTable<'static>: Mapper<S>,
    {
        let page = Page::<S>::containing_address(virt);
        let frame = PhysFrame::containing_address(phys);
        // SAFETY: callers map RAM, the image or devices at the addresses reserved for them, which were not mapped.
        match unsafe { self.mapper.map_to_with_table_flags(page, frame, flags, TABLE, &mut self.pool) } {
            Ok(fresh) => {
                // Not-present entries are not cached (SDM vol. 3, 5.10.2.3), so there is nothing to flush.
                fresh.ignore();
                Ok(true)
            }
            Err(MapToError::FrameAllocationFailed) => Err(MapDeviceError::NoTable),
            Err(MapToError::PageAlreadyMapped(_) | MapToError::ParentEntryHugePage) => Ok(false),
        }
    }
}

fn frame_size(frame: &MappedFrame) -> u64 {
    match frame {
        MappedFrame::Size4KiB(_) => Size4KiB::SIZE,
        MappedFrame::Size2MiB(_) => Size2MiB::SIZE,
        MappedFrame::Size1GiB(_) => Size1GiB::SIZE,
    }
}

/// All pages that `range` touches.
pub(super) fn enclosing_pages(range: PhysRange) -> PhysRange {
    range.hull(&PhysRange::block(range.start(), PAGE_SIZE)).hull(&PhysRange::block(range.last(), PAGE_SIZE))
}

/// The whole pages inside `range`.
fn whole_pages(range: PhysRange) -> Option<PhysRange> {
    let first = range.start().checked_add(PAGE_SIZE - 1)?.align_down(PAGE_SIZE);
    let end = range.last().checked_add(1)?.align_down(PAGE_SIZE);
    PhysRange::new(first, end.get().checked_sub(first.get())?).ok()
}

fn image_part(from: *const u8, to: *const u8) -> Result<PhysRange, portcullis_hal::AddressError> {
    let start = linked_to_phys(linked(from));
    PhysRange::new(PhysAddr::new(start), linked_to_phys(linked(to)).saturating_sub(start))
}

/// The address of a linker symbol.
fn linked(symbol: *const u8) -> u64 {
    symbol.addr() as u64
}

/// The physical address of something in the image.
pub(super) fn linked_to_phys(address: u64) -> u64 {
    address.wrapping_sub(KERNEL_OFFSET)
}
