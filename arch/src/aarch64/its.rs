//! The Interrupt Translation Service: turns a device's write of an event into an LPI (Arm IHI 0069, chapter 5).
//!
//! Tables are flat and are allocated once, when the ITS is started; giving a device its first event takes a slice
//! of a pool made then. Commands are issued by one caller at a time, each waits for its completion.

#![expect(unsafe_code, reason = "the command queue and the register block")]

use super::gic::{self, Redistributor};
use super::interrupts::{InitError, MsiError};
use super::its_spec::{
    CACHE_NONE, CACHE_WRITE_BACK, Command, CommandBase, INNER_SHAREABLE, ItsType, NON_SHAREABLE,
    TABLE_COLLECTIONS, TABLE_DEVICES, TableBase, Target, gits,
};
use super::{cpu, paging, time};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use portcullis_hal::wait::Timeout;
use portcullis_hal::{Hal, Mmio, MmioRegion, PhysAddr, PhysRange, barrier};
use thiserror::Error;

/// How long a batch of commands, or turning the ITS off, may take.
const TIMEOUT_NS: u64 = 100_000_000;

/// The command queue: its base is aligned to 64 KiB, which it then fills.
const QUEUE_BYTES: u64 = 0x1_0000;
const QUEUE_WORDS: usize = (QUEUE_BYTES / 8) as usize;

/// Devices that can have events, and events of each; the ITS takes powers of two.
const MAX_DEVICES: usize = 64;
const EVENT_BITS: u8 = 5;
const MAX_EVENTS: u32 = 1 << EVENT_BITS;

/// Device ids for which the device table has room: four PCI segments' worth, if the ITS knows so many.
const MAX_DEVICE_BITS: u32 = 18;

/// Interrupt translation tables are aligned to this.
const ITT_ALIGN: u64 = 256;

/// Why the ITS did not carry out a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ItsError {
    /// It stopped at a command that it cannot read or does not accept.
    #[error("the ITS stalled at command {0:#x}")]
    Stalled(u64),
    /// It did not get to the end of the queue.
    #[error(transparent)]
    Timeout(#[from] Timeout),
}

/// A device with events.
#[derive(Clone, Copy)]
struct Device {
    id: u32,
    events: u32,
}

pub(super) struct Its {
    registers: MmioRegion,
    kind: ItsType,
    translater: PhysAddr,
    queue: NonNull<AtomicU64>,
    /// The offset in bytes at which the next command goes.
    tail: u64,
    /// What the queue stopped at.
    failure: Option<ItsError>,
    device_limit: u64,
    table_pool: PhysAddr,
    table_bytes: u64,
    devices: [Option<Device>; MAX_DEVICES],
    targets: [Option<Target>; cpu::MAX_CPUS],
}

// SAFETY: the queue's memory belongs to this value.
unsafe impl Send for Its {}

impl Its {
    /// Starts the ITS behind `range`, with tables and queue, and no device mapped.
    ///
    /// # Safety
    ///
    /// The range holds an ITS, and nobody else drives it.
    pub(super) unsafe fn start<H: Hal>(hal: &H, range: PhysRange) -> Result<Self, InitError> {
        if range.len() < gits::FRAMES {
            return Err(InitError::TooShort(range));
        }
        let base = paging::map_device(range)?;
        // SAFETY: mapped above and long enough; the caller vouches for the rest.
        let registers = unsafe { MmioRegion::new(base, gits::FRAMES as usize) };
        let kind = ItsType::from_bits(registers.read64(gits::TYPER));
        if !kind.physical() || kind.id_bits() + 1 < EVENT_BITS {
            return Err(InitError::NoLpis);
        }
        registers.write32(gits::CTLR, 0);
        time::wait_until(
            "GITS_CTLR",
            gits::CTLR_QUIESCENT.into(),
            gits::CTLR_QUIESCENT.into(),
            TIMEOUT_NS,
            || u64::from(registers.read32(gits::CTLR)),
        )?;

        let device_limit = make_tables(hal, &registers, kind)?;
        let (queue_base, queue) = gic::allocate(hal, QUEUE_BYTES)?;
        let value = CommandBase::new()
            .with_valid(true)
            .with_address(queue_base.get() >> 12)
            .with_pages((QUEUE_BYTES / 4096 - 1) as u8)
            .with_inner_cache(CACHE_WRITE_BACK)
            .with_shareability(INNER_SHAREABLE);
        registers.write64(gits::CBASER, value.into_bits());
        let accepted = CommandBase::from_bits(registers.read64(gits::CBASER));
        if accepted.shareability() == NON_SHAREABLE {
            let value = value.with_inner_cache(CACHE_NONE).with_shareability(NON_SHAREABLE);
            registers.write64(gits::CBASER, value.into_bits());
        }
        registers.write64(gits::CWRITER, 0);

        let table_bytes = ((u64::from(kind.itt_entry_size()) + 1) << EVENT_BITS).next_multiple_of(ITT_ALIGN);
        let (table_pool, _) = gic::allocate(hal, table_bytes * MAX_DEVICES as u64)?;
        barrier::before_doorbell();
        registers.write32(gits::CTLR, gits::CTLR_ENABLED);
        let translater = range.start().checked_add(gits::TRANSLATER).ok_or(InitError::TooShort(range))?;
        Ok(Self {
            registers,
            kind,
            translater,
            queue: queue.cast(),
            tail: 0,
            failure: None,
            device_limit,
            table_pool,
            table_bytes,
            devices: [None; MAX_DEVICES],
            targets: [None; cpu::MAX_CPUS],
        })
    }

    /// Where devices write their events.
    pub(super) fn translater(&self) -> PhysAddr {
        self.translater
    }

    /// Makes `cpu`'s collection end at its redistributor. The collection's number is the CPU's index.
    pub(super) fn add_cpu(&mut self, cpu: usize, redistributor: &Redistributor) -> Result<(), InitError> {
        let target = redistributor.target(self.kind.physical_target_addresses());
        let collection = u16::try_from(cpu).map_err(|_| InitError::TooManyCpus)?;
        let slot = self.targets.get_mut(cpu).ok_or(InitError::TooManyCpus)?;
        *slot = Some(target);
        self.run(&[
            Command::map_collection(collection, target),
            Command::invalidate_all(collection),
            Command::sync(target),
        ])?;
        Ok(())
    }

    /// Makes the next free event of `device` the LPI `lpi`, for `cpu`, and returns the event's number.
    pub(super) fn add_event(&mut self, device: u32, lpi: u32, cpu: usize) -> Result<u32, MsiError> {
        let target = self.targets.get(cpu).copied().flatten().ok_or(MsiError::NotInitialized)?;
        let collection = u16::try_from(cpu).map_err(|_| MsiError::NotInitialized)?;
        if u64::from(device) >= self.device_limit {
            return Err(MsiError::UnknownDevice(device));
        }
        let slot = self.slot(device)?;
        let event = match self.devices[slot] {
            Some(Device { events, .. }) if events == MAX_EVENTS => {
                return Err(MsiError::TooManyEvents(device));
            }
            Some(Device { events, .. }) => events,
            None => {
                let table = PhysAddr::new(self.table_pool.get() + slot as u64 * self.table_bytes);
                self.run(&[Command::map_device(device, EVENT_BITS, table), Command::sync(target)])?;
                self.devices[slot] = Some(Device { id: device, events: 0 });
                0
            }
        };
        self.run(&[
            Command::map_event(device, event, lpi, collection),
            Command::invalidate(device, event),
            Command::sync(target),
        ])?;
        self.devices[slot] = Some(Device { id: device, events: event + 1 });
        Ok(event)
    }

    /// The slot that the device has or can have.
    fn slot(&self, device: u32) -> Result<usize, MsiError> {
        let of =
            |wanted: Option<u32>| self.devices.iter().position(|slot| slot.map(|slot| slot.id) == wanted);
        of(Some(device)).or_else(|| of(None)).ok_or(MsiError::TooManyDevices)
    }

    /// Issues commands and waits until the ITS has carried them out. After a failure it takes no more.
    fn run(&mut self, commands: &[Command]) -> Result<(), ItsError> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let result = self.submit(commands);
        self.failure = result.err();
        result
    }

    fn submit(&mut self, commands: &[Command]) -> Result<(), ItsError> {
        // Earlier commands were waited for, so the queue is empty and has room.
        for command in commands {
            self.push(*command);
        }
        barrier::before_doorbell();
        self.registers.write64(gits::CWRITER, self.tail);
        let tail = self.tail;
        let mask = (QUEUE_BYTES - 1) & !(Command::SIZE - 1);
        let mut stalled = None;
        let done = time::wait_until("GITS_CREADR", mask, tail, TIMEOUT_NS, || {
            let head = self.registers.read64(gits::CREADR);
            if head & gits::CREADR_STALLED != 0 {
                // It will not move: end the wait.
                stalled = Some(head);
                return tail;
            }
            head
        });
        if let Some(head) = stalled {
            return Err(ItsError::Stalled(self.word((head & mask) as usize / 8).load(Ordering::Relaxed)));
        }
        done?;
        Ok(())
    }

    fn push(&mut self, command: Command) {
        let first = (self.tail / 8) as usize;
        for (index, word) in command.0.into_iter().enumerate() {
            self.word(first + index).store(word.to_le(), Ordering::Relaxed);
        }
        cpu::clean_cache(NonNull::from(self.word(first)).cast(), Command::SIZE as usize);
        self.tail = (self.tail + Command::SIZE) % QUEUE_BYTES;
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        // SAFETY: the queue has that many words and belongs to self; the ITS only reads it.
        unsafe { self.queue.add(index % QUEUE_WORDS).as_ref() }
    }
}

/// Gives the ITS its device and collection tables; returns how many device ids there are.
fn make_tables<H: Hal>(hal: &H, registers: &MmioRegion, kind: ItsType) -> Result<u64, InitError> {
    let mut devices = 0;
    for index in 0..gits::BASERS {
        let register = gits::BASER + index * 8;
        let table = TableBase::from_bits(registers.read64(register));
        let entry = u64::from(table.entry_size()) + 1;
        match table.kind() {
            TABLE_DEVICES => {
                let bits = (u32::from(kind.device_bits()) + 1).min(MAX_DEVICE_BITS);
                let bytes = make_table(hal, registers, register, entry << bits)?;
                devices = (bytes / entry).min(1 << bits);
            }
            TABLE_COLLECTIONS => {
                make_table(hal, registers, register, entry * cpu::MAX_CPUS as u64)?;
            }
            _ => registers.write64(register, 0),
        }
    }
    Ok(devices)
}

/// Allocates a table of about `bytes` and installs it; returns its real size.
fn make_table<H: Hal>(
    hal: &H,
    registers: &MmioRegion,
    register: usize,
    bytes: u64,
) -> Result<u64, InitError> {
    // An ITS may know one page size only, which it then reads back.
    let probe = TableBase::new().with_page_size(PAGES_64K);
    registers.write64(register, probe.into_bits());
    let page_size = TableBase::from_bits(registers.read64(register)).page_size();
    let page = match page_size {
        0 => 0x1000,
        1 => 0x4000,
        PAGES_64K => 0x1_0000,
        _ => return Err(InitError::NoLpis),
    };
    let pages = bytes.div_ceil(page).clamp(1, MAX_TABLE_PAGES);
    // The allocation is naturally aligned, as 64 KiB pages need it.
    let (base, _) = gic::allocate(hal, (pages * page).max(0x1_0000))?;
    let value = TableBase::new()
        .with_valid(true)
        .with_page_size(page_size)
        .with_pages((pages - 1) as u8)
        .with_address(base.get() >> 12)
        .with_inner_cache(CACHE_WRITE_BACK)
        .with_shareability(INNER_SHAREABLE);
    registers.write64(register, value.into_bits());
    let accepted = TableBase::from_bits(registers.read64(register));
    if accepted.shareability() == NON_SHAREABLE {
        let value = value.with_inner_cache(CACHE_NONE).with_shareability(NON_SHAREABLE);
        registers.write64(register, value.into_bits());
    }
    Ok(pages * page)
}

const PAGES_64K: u8 = 2;
const MAX_TABLE_PAGES: u64 = 256;
