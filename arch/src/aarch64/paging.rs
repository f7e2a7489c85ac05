//! The kernel's own translation: the image, a direct map of RAM, and device registers (Arm ARM, D8).
//!
//! The top half (TTBR1) holds both: the direct map of physical memory from `DIRECT_MAP` up, and the image in the
//! last 2 GiB. The bottom half (TTBR0) is off once boot code is done, and on while a CPU runs in a user address space.

#![expect(unsafe_code, reason = "translation tables")]

use super::device_tree::{DeviceTree, covering_pages};
use super::lock::InterruptLock;
use crate::{MemoryMap, UserTables};
use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{MAIR_EL1, ReadWriteable, Readable, TCR_EL1, TTBR0_EL1, Writeable};
use core::arch::asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use portcullis_hal::{PhysAddr, PhysRange};
use thiserror::Error;

/// What the image's virtual addresses are above its physical ones; the linker script has the same number.
pub(super) const KERNEL_OFFSET: u64 = 0xffff_ffff_4000_0000;

/// Where the direct map begins: the bottom of the top half.
const DIRECT_MAP: u64 = 0xffff_0000_0000_0000;

/// Physical addresses that the direct map can hold: all of the top half but its last entry of 512 GiB, where the
/// image lies.
const DIRECT_MAP_SIZE: u64 = 511 << 39;

const ENTRIES: usize = 512;

/// Table pages for what is mapped after boot. RAM takes blocks of 1 GiB and 2 MiB, so a few go a long way.
const POOL_PAGES: usize = 96;

/// The low bits that make an entry a table or a block, and a page on the last level.
const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 2;
const OUTPUT: u64 = 0x0000_ffff_ffff_f000;

/// MAIR_EL2: the memory types that leaves index. Normal write-back, normal non-cacheable, Device-nGnRE and
/// Device-nGnRnE. User address spaces are under the same, so their tables are made for it.
pub const MAIR: u64 = MAIR_EL1::Attr0_Normal_Outer::WriteBack_NonTransient_ReadWriteAlloc.value
    | MAIR_EL1::Attr0_Normal_Inner::WriteBack_NonTransient_ReadWriteAlloc.value
    | MAIR_EL1::Attr1_Normal_Outer::NonCacheable.value
    | MAIR_EL1::Attr1_Normal_Inner::NonCacheable.value
    | MAIR_EL1::Attr2_Device::nonGathering_nonReordering_EarlyWriteAck.value
    | MAIR_EL1::Attr3_Device::nonGathering_nonReordering_noEarlyWriteAck.value;

/// The attribute bits of a leaf (Arm ARM, D8, "Translation table descriptor formats"): everything but the output address and the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attributes(u64);

impl Attributes {
    /// The type bits of an entry that points to a table.
    pub(super) const TABLE: u64 = VALID | TABLE_OR_PAGE;

    const ACCESSED: u64 = 1 << 10;
    const INNER_SHAREABLE: u64 = 3 << 8;
    const READ_ONLY_BIT: u64 = 1 << 7;
    const PRIVILEGED_NO_EXECUTE: u64 = 1 << 53;
    const USER_NO_EXECUTE: u64 = 1 << 54;

    /// Index 0 of `MAIR`: normal, write-back.
    const MEMORY: u64 = Self::INNER_SHAREABLE | Self::ACCESSED | Self::USER_NO_EXECUTE;

    /// Code.
    pub(super) const TEXT: Self = Self(Self::MEMORY | Self::READ_ONLY_BIT);
    /// Constants.
    pub(super) const READ_ONLY: Self = Self(Self::MEMORY | Self::READ_ONLY_BIT | Self::PRIVILEGED_NO_EXECUTE);
    /// Data.
    pub(super) const READ_WRITE: Self = Self(Self::MEMORY | Self::PRIVILEGED_NO_EXECUTE);
    /// Registers: index 3 of `MAIR`, Device-nGnRnE.
    const DEVICE: Self = Self(3 << 2 | Self::ACCESSED | Self::PRIVILEGED_NO_EXECUTE | Self::USER_NO_EXECUTE);

    /// A block entry with these attributes and output address 0.
    pub(super) const fn block(self) -> u64 {
        self.0 | VALID
    }

    const fn leaf(self, output: u64, level: Level) -> u64 {
        match level {
            Level::Page => output | self.0 | VALID | TABLE_OR_PAGE,
            _ => output | self.0 | VALID,
        }
    }
}

/// The levels of the walk, named by what one entry maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Table512G,
    Block1G,
    Block2M,
    Page,
}

impl Level {
    const fn shift(self) -> u32 {
        match self {
            Self::Table512G => 39,
            Self::Block1G => 30,
            Self::Block2M => 21,
            Self::Page => 12,
        }
    }

    const fn size(self) -> u64 {
        1 << self.shift()
    }

    const fn next(self) -> Self {
        match self {
            Self::Table512G => Self::Block1G,
            Self::Block1G => Self::Block2M,
            Self::Block2M | Self::Page => Self::Page,
        }
    }

    const fn index(self, virt: u64) -> usize {
        (virt >> self.shift()) as usize & (ENTRIES - 1)
    }
}

/// Why a physical range was not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MapDeviceError {
    /// Part of the range is mapped as something else: registers that are memory, or the other way round.
    #[error("{0} is mapped with other attributes")]
    Conflict(PhysAddr),
    /// The range ends beyond the physical addresses that the direct map or the CPU can reach.
    #[error("{0} lies beyond the direct map")]
    OutOfReach(PhysRange),
    /// No table page is left.
    #[error("no table page left")]
    NoTable,
}

/// A translation table. The walker reads it at any time, so entries are atomics.
#[repr(C, align(4096))]
struct Table([AtomicU64; ENTRIES]);

static POOL: [Table; POOL_PAGES] = [const { Table([const { AtomicU64::new(0) }; ENTRIES]) }; POOL_PAGES];
static POOL_USED: AtomicUsize = AtomicUsize::new(0);

/// The last physical address that was mapped.
static HIGHEST: AtomicU64 = AtomicU64::new(0);
/// The largest `TCR.IPS` that is to be used.
static IPS_LIMIT: AtomicU64 = AtomicU64::new(5);

/// Held while entries are made. Entries are never taken back.
static MAPPER: InterruptLock<Mapper> = InterruptLock::new(Mapper(()));

unsafe extern "C" {
    static kernel_l0: Table;
    static __image_start: u8;
    static __rodata_end: u8;
    static __image_end: u8;
}

/// The physical range from one linker symbol up to another.
fn image_range(start: *const u8, end: *const u8) -> Option<PhysRange> {
    let start = (start as u64).wrapping_sub(KERNEL_OFFSET);
    let end = (end as u64).wrapping_sub(KERNEL_OFFSET);
    PhysRange::new(PhysAddr::new(start), end.checked_sub(start)?).ok()
}

fn image() -> Option<PhysRange> {
    image_range(&raw const __image_start, &raw const __image_end)
}

/// What boot code maps read-only: text and constants, with the padding up to the writable part.
fn read_only_image() -> Option<PhysRange> {
    image_range(&raw const __image_start, &raw const __rodata_end)
}

/// What a mapping may meet that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
    /// The same attributes only.
    Same,
    /// Memory of any kind.
    Memory,
}

impl Met {
    const fn accepts(self, old: u64, new: u64) -> bool {
        match self {
            Self::Same => old & !OUTPUT == new,
            Self::Memory => old & Attributes::MEMORY == Attributes::MEMORY,
        }
    }
}

struct Mapper(());

impl Mapper {
    /// Maps the pages of `range` in the direct map.
    fn map(&mut self, range: PhysRange, attributes: Attributes, met: Met) -> Result<(), MapDeviceError> {
        let range = covering_pages(range);
        if range.last().get() >= reach() {
            return Err(MapDeviceError::OutOfReach(range));
        }
        HIGHEST.fetch_max(range.last().get(), Ordering::Relaxed);
        let end = range.last().get() + 1;
        let mut at = range.start().get();
        while at < end {
            at += self.map_one(at, end, attributes, met)?;
        }
        // The walker must see the entries before anything relies on them; nothing invalid was cached.
        barrier::dsb(barrier::ISHST);
        barrier::isb(barrier::SY);
        Ok(())
    }

    /// Maps at most up to `end` by one leaf and returns how far that reaches from `at`.
    fn map_one(
        &mut self,
        at: u64,
        end: u64,
        attributes: Attributes,
        met: Met,
    ) -> Result<u64, MapDeviceError> {
        let virt = DIRECT_MAP + at;
        // SAFETY: boot code's root table, which lives forever.
        let mut table: &Table = unsafe { &kernel_l0 };
        let mut level = Level::Table512G;
        loop {
            let size = level.size();
            let rest = size - (at & (size - 1));
            let entry = &table.0[level.index(virt)];
            let old = entry.load(Ordering::Acquire);
            if old & VALID == 0 {
                if level != Level::Table512G && rest == size && end - at >= size {
                    entry.store(attributes.leaf(at, level), Ordering::Release);
                    return Ok(size);
                }
                table = self.new_table(entry)?;
            } else if level == Level::Page || old & TABLE_OR_PAGE == 0 {
                if !met.accepts(old, attributes.leaf(0, level)) {
                    return Err(MapDeviceError::Conflict(PhysAddr::new(at)));
                }
                return Ok(rest.min(end - at));
            } else {
                // SAFETY: table entries of the direct map point into the pool, at its address in the image.
                table = unsafe { &*((old & OUTPUT).wrapping_add(KERNEL_OFFSET) as *const Table) };
            }
            level = level.next();
        }
    }

    fn new_table(&mut self, entry: &AtomicU64) -> Result<&'static Table, MapDeviceError> {
        let next = POOL_USED.load(Ordering::Relaxed);
        let table = POOL.get(next).ok_or(MapDeviceError::NoTable)?;
        POOL_USED.store(next + 1, Ordering::Relaxed);
        let phys = (&raw const *table as u64).wrapping_sub(KERNEL_OFFSET);
        // The empty table is visible before it is linked: BSS was cleared long ago, with barriers since.
        entry.store(phys | Attributes::TABLE, Ordering::Release);
        Ok(table)
    }
}

/// Where physical addresses end for the direct map and for this CPU.
fn reach() -> u64 {
    DIRECT_MAP_SIZE.min(1 << output_bits().min(address_bits(IPS_LIMIT.load(Ordering::Relaxed))))
}

/// The number of address bits that a `PARange` or `IPS` field stands for.
pub(super) const fn address_bits(encoding: u64) -> u32 {
    match encoding {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        5 => 48,
        6 => 52,
        _ => 56,
    }
}

/// The physical address width that translations use, in bits: `TCR.IPS`, which entry code sets to the smaller of the
/// CPU's `PARange` and 48 bits.
///
/// An address space that is shared with a device needs a width that its IOMMU respects too.
pub fn output_bits() -> u32 {
    address_bits(TCR_EL1.read(TCR_EL1::IPS))
}

/// Confines translations to physical addresses of `bits` bits, which an IOMMU can reach too: `TCR.IPS` becomes that on
/// each CPU that [`activate`]s a user address space, and nothing beyond is mapped any more.
///
/// # Errors
///
/// If the kernel has something beyond mapped already.
pub fn limit_output_bits(bits: u32) -> Result<(), MapDeviceError> {
    // The largest width that the field can hold and that is no more than wanted.
    let encoding = (0..=5).rev().find(|&encoding| address_bits(encoding) <= bits).unwrap_or(0);
    let highest = PhysAddr::new(HIGHEST.load(Ordering::Relaxed));
    if highest.get() >> address_bits(encoding) != 0 {
        return Err(MapDeviceError::OutOfReach(PhysRange::block(highest, 1)));
    }
    IPS_LIMIT.fetch_min(encoding, Ordering::Relaxed);
    confine();
    Ok(())
}

/// Applies [`limit_output_bits`] to this CPU.
fn confine() {
    let limit = IPS_LIMIT.load(Ordering::Relaxed);
    if TCR_EL1.read(TCR_EL1::IPS) > limit {
        TCR_EL1.modify(TCR_EL1::IPS.val(limit));
        barrier::isb(barrier::SY);
    }
}

/// Makes the kernel part of a user address space: nothing to do, since it has the top half for itself.
///
/// # Safety
///
/// None of its own; on other architectures, see there.
pub unsafe fn adopt(_tables: &UserTables) -> Result<(), MapDeviceError> {
    Ok(())
}

/// Lets this CPU use a user address space in the bottom half.
///
/// # Safety
///
/// The tables stay until [`deactivate`], map for user code only what it may reach, are made for [`MAIR`] and for input
/// addresses of 48 bits, and the ASID is theirs alone.
pub unsafe fn activate(tables: &UserTables) {
    confine();
    TTBR0_EL1.set(tables.root.get() | u64::from(tables.asid.get()) << 48);
    barrier::isb(barrier::SY);
    TCR_EL1.modify(TCR_EL1::EPD0::EnableTTBR0Walks);
    // The tables are visible to the walker before it looks.
    barrier::dsb(barrier::ISHST);
    barrier::isb(barrier::SY);
}

/// Takes the user address space from this CPU. What its TLB still knows is under an ASID that it does not use any more.
pub fn deactivate() {
    TCR_EL1.modify(TCR_EL1::EPD0::DisableTTBR0Walks);
    barrier::isb(barrier::SY);
    TTBR0_EL1.set(0);
    barrier::isb(barrier::SY);
}

/// Ends the identity map that entry code ran in: the bottom half is empty from now on. Called once per CPU.
pub(super) fn drop_identity_map() {
    TCR_EL1.modify(TCR_EL1::EPD0::DisableTTBR0Walks);
    barrier::isb(barrier::SY);
    // SAFETY: drops cached translations of this CPU; all code runs in the top half, whose tables stay.
    unsafe { asm!("tlbi vmalle1", "dsb nsh", "isb", options(nostack, preserves_flags)) };
}

/// Maps data that the loader left in RAM, before the memory map is known.
pub(super) fn map_boot_data(range: PhysRange) -> Result<NonNull<u8>, MapDeviceError> {
    MAPPER.lock().map(range, Attributes::READ_WRITE, Met::Same)?;
    Ok(phys_to_virt(range.start()))
}

/// Builds the direct map of all RAM and returns what of it is free to use.
///
/// The image's text and constants are read-only there too. RAM beyond the direct map's reach is left out.
pub(super) fn map_memory(tree: &DeviceTree) -> Result<MemoryMap, MapDeviceError> {
    let mut memory = tree.mappable();
    if let Ok(beyond) = PhysRange::from_bounds(PhysAddr::new(reach()), PhysAddr::new(u64::MAX)) {
        memory.remove(beyond);
    }
    let mut writable = memory;
    let mut mapper = MAPPER.lock();
    if let Some(read_only) = read_only_image() {
        writable.remove(read_only);
        mapper.map(read_only, Attributes::READ_ONLY, Met::Same)?;
    }
    for range in writable.iter() {
        mapper.map(range, Attributes::READ_WRITE, Met::Same)?;
    }
    drop(mapper);
    tree.remove_reserved(&mut memory);
    if let Some(image) = image() {
        memory.remove(covering_pages(image));
    }
    Ok(memory)
}

/// The address of `phys` in the direct map. It may be used for RAM, and for registers after [`map_device`].
pub fn phys_to_virt(phys: PhysAddr) -> NonNull<u8> {
    // The top bit keeps the address from being null whatever `phys` is.
    let virt = DIRECT_MAP | phys.get();
    // SAFETY: not zero, as DIRECT_MAP is not.
    unsafe { NonNull::new_unchecked(virt as *mut u8) }
}

/// The physical address behind a pointer into the direct map or the kernel's image; `None` for others.
pub fn virt_to_phys<T: ?Sized>(pointer: NonNull<T>) -> Option<PhysAddr> {
    let virt = pointer.addr().get() as u64;
    let in_image = PhysAddr::new(virt.wrapping_sub(KERNEL_OFFSET));
    if image().is_some_and(|image| image.contains(in_image)) {
        return Some(in_image);
    }
    let phys = virt.checked_sub(DIRECT_MAP)?;
    (phys < DIRECT_MAP_SIZE).then_some(PhysAddr::new(phys))
}

/// Maps registers as Device-nGnRnE memory and returns the address of the first. Mapping them again is fine.
///
/// Whole pages are mapped. A range that touches RAM is refused.
pub fn map_device(range: PhysRange) -> Result<NonNull<u8>, MapDeviceError> {
    MAPPER.lock().map(range, Attributes::DEVICE, Met::Same)?;
    Ok(phys_to_virt(range.start()))
}

/// Maps tables that firmware left, inside or outside of RAM, for reading, and returns the address of the first byte.
///
/// What is mapped as memory already stays as it is; a range that touches registers is refused.
pub fn map_firmware(range: PhysRange) -> Result<NonNull<u8>, MapDeviceError> {
    MAPPER.lock().map(range, Attributes::READ_ONLY, Met::Memory)?;
    Ok(phys_to_virt(range.start()))
}
