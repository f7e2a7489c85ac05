//! The memory of a split virtqueue (virtio 1.2, 2.7) and its index arithmetic.
//!
//! The device reaches the rings by their physical addresses: a virtio-iommu does not translate its own accesses.

use crate::transport::QueueLayout;
use core::sync::atomic::{AtomicU64, Ordering};
use portcullis_hal::{FrameOrder, Frames, Hal, OutOfMemory, PhysAddr, barrier};
use thiserror::Error;

/// The number of descriptors of a queue, a power of two from 1 to 32768.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingSize(u16);

impl RingSize {
    /// The largest size that neither `most` nor the device exceeds; `None` if that is no queue at all.
    pub(crate) fn choose(most: u16, device: u16) -> Option<Self> {
        let least = most.min(device);
        (least > 0).then(|| Self(1 << least.ilog2()))
    }

    /// The number of descriptors.
    pub(crate) const fn get(self) -> u16 {
        self.0
    }

    /// The slot of a free-running index.
    const fn slot(self, index: u16) -> usize {
        (index & (self.0 - 1)) as usize
    }

    /// The byte offset of the available ring: 16 bytes for each descriptor come first.
    const fn available(self) -> usize {
        self.0 as usize * 16
    }

    /// The byte offset of the used ring: flags, index, a slot of two bytes for each descriptor and the event word
    /// come before it, and it starts on a whole word.
    const fn used(self) -> usize {
        self.available() + (6 + 2 * self.0 as usize).next_multiple_of(8)
    }

    /// The bytes of all three parts.
    const fn bytes(self) -> usize {
        self.used() + (6 + 8 * self.0 as usize).next_multiple_of(8)
    }
}

/// Whose bytes a buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The device reads them, and a buffer that it writes follows in the next descriptor.
    DeviceReadsThenNext,
    /// The device writes them.
    DeviceWrites,
}

/// Whether the device interrupts when it has used a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UsedInterrupts {
    /// It does.
    Wanted,
    /// It need not.
    Unwanted,
}

/// A chain that the device has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    /// The first descriptor of the chain, as the device says: any value.
    pub(crate) head: u32,
    /// How many bytes it wrote, as it says: any value.
    pub(crate) len: u32,
}

/// The used index moved further than there are buffers with the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the used index is {found}, more than {outstanding} after {expected}")]
pub(crate) struct UsedIndexLie {
    found: u16,
    expected: u16,
    outstanding: u16,
}

/// Memory that a device may reach until it is reset.
#[derive(Debug)]
pub(crate) struct Held<H: Hal>(Option<Frames<H>>);

impl<H: Hal> Held<H> {
    /// At least `bytes` zeroed bytes.
    pub(crate) fn zeroed(hal: &H, bytes: usize) -> Result<Self, OutOfMemory> {
        let order = FrameOrder::for_bytes(bytes as u64).ok_or(OutOfMemory)?;
        Ok(Self(Some(Frames::zeroed(hal, order)?)))
    }

    pub(crate) fn words(&self) -> &[AtomicU64] {
        self.0.as_ref().map_or(&[], Frames::words)
    }

    /// The address of the byte at `offset`.
    pub(crate) fn phys(&self, offset: usize) -> PhysAddr {
        let base = self.0.as_ref().map_or(PhysAddr::new(0), Frames::phys);
        PhysAddr::new(base.get().saturating_add(offset as u64))
    }

    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        if let Some(frames) = &self.0 {
            frames.write(offset, bytes);
        }
    }

    /// Stores whole words at an offset that is a multiple of eight.
    pub(crate) fn write_words(&self, offset: usize, words: &[u64]) {
        let places = self.words().iter().skip(offset / 8);
        for (place, word) in places.zip(words) {
            place.store(word.to_le(), Ordering::Relaxed);
        }
    }

    pub(crate) fn read_byte(&self, offset: usize) -> u8 {
        (self.word(offset) >> (offset % 8 * 8)) as u8
    }

    pub(crate) fn read(&self, offset: usize, bytes: &mut [u8]) {
        if let Some(frames) = &self.0 {
            frames.read(offset, bytes);
        }
    }

    /// Gives the memory up for good, since the device may still write to it.
    pub(crate) fn leak(&mut self) {
        self.0.take().map(Frames::into_raw);
    }

    fn word(&self, byte: usize) -> u64 {
        self.words().get(byte / 8).map_or(0, |word| u64::from_le(word.load(Ordering::Relaxed)))
    }

    /// The 16 bits at an even offset.
    fn load16(&self, byte: usize) -> u16 {
        (self.word(byte) >> (byte % 8 * 8)) as u16
    }

    /// The 32 bits at an offset that is a multiple of four.
    fn load32(&self, byte: usize) -> u32 {
        (self.word(byte) >> (byte % 8 * 8)) as u32
    }

    fn store64(&self, byte: usize, value: u64) {
        if let Some(word) = self.words().get(byte / 8) {
            word.store(value.to_le(), Ordering::Relaxed);
        }
    }

    /// Stores 16 bits at an even offset. The driver is the only one who writes the word around it.
    fn store16(&self, byte: usize, value: u16) {
        let shift = byte % 8 * 8;
        let kept = self.word(byte) & !(0xffff << shift);
        self.store64(byte, kept | u64::from(value) << shift);
    }
}

/// One split virtqueue. The owner of the value is the only one who drives it.
#[derive(Debug)]
pub(crate) struct Ring<H: Hal> {
    memory: Held<H>,
    size: RingSize,
    /// The byte offset of the used ring.
    used_at: usize,
    /// The next slot of the available ring.
    available: u16,
    /// The available index that the device has been shown.
    published: u16,
    /// The next slot of the used ring.
    used: u16,
}

impl<H: Hal> Ring<H> {
    /// An empty queue of zeroed memory.
    pub(crate) fn new(hal: &H, size: RingSize, interrupts: UsedInterrupts) -> Result<Self, OutOfMemory> {
        const NO_INTERRUPT: u16 = 1;
        let memory = Held::zeroed(hal, size.bytes())?;
        let flags = if interrupts == UsedInterrupts::Unwanted { NO_INTERRUPT } else { 0 };
        memory.store16(size.available(), flags);
        Ok(Self { memory, size, used_at: size.used(), available: 0, published: 0, used: 0 })
    }

    pub(crate) fn layout(&self) -> QueueLayout {
        QueueLayout {
            size: self.size.get(),
            descriptors: self.memory.phys(0),
            available: self.memory.phys(self.size.available()),
            used: self.memory.phys(self.size.used()),
        }
    }

    /// Fills descriptor `index`, which the device does not hold.
    pub(crate) fn describe(&self, index: u16, address: PhysAddr, len: u32, direction: Direction) {
        const NEXT: u64 = 1;
        const WRITE: u64 = 2;
        if index >= self.size.get() {
            return;
        }
        let flags_and_next = match direction {
            Direction::DeviceReadsThenNext => NEXT | u64::from(index.wrapping_add(1)) << 16,
            Direction::DeviceWrites => WRITE,
        };
        let at = usize::from(index) * 16;
        self.memory.write_words(at, &[address.get(), u64::from(len) | flags_and_next << 32]);
    }

    /// Queues the chain that starts at descriptor `head`; the device sees it after [`publish`](Self::publish).
    pub(crate) fn push(&mut self, head: u16) {
        let slot = self.size.slot(self.available);
        self.memory.store16(self.size.available() + 4 + 2 * slot, head);
        self.available = self.available.wrapping_add(1);
    }

    /// Shows the device what was queued. Returns whether it wants to be notified.
    pub(crate) fn publish(&mut self) -> bool {
        const NO_NOTIFY: u16 = 1;
        if self.published == self.available {
            return false;
        }
        barrier::publish_to_device();
        self.memory.store16(self.size.available() + 2, self.available);
        self.published = self.available;
        barrier::before_doorbell();
        // The device looks at the index after it has taken the flag back, so one of the two sees the other.
        barrier::store_then_load();
        self.memory.load16(self.used_at) & NO_NOTIFY == 0
    }

    /// Takes the next used chain, given how many the device holds.
    pub(crate) fn pop(&mut self, outstanding: u16) -> Result<Option<Used>, UsedIndexLie> {
        let found = self.memory.load16(self.used_at + 2);
        let ready = found.wrapping_sub(self.used);
        if ready == 0 {
            return Ok(None);
        }
        if ready > outstanding {
            return Err(UsedIndexLie { found, expected: self.used, outstanding });
        }
        barrier::after_completion();
        let element = self.used_at + 4 + 8 * self.size.slot(self.used);
        self.used = self.used.wrapping_add(1);
        Ok(Some(Used { head: self.memory.load32(element), len: self.memory.load32(element + 4) }))
    }

    /// Gives the memory up for good.
    pub(crate) fn leak(&mut self) {
        self.memory.leak();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_hal::host::HostHal;

    fn sizes() -> impl Iterator<Item = RingSize> {
        (0..16).map(|log2| RingSize(1 << log2))
    }

    #[test]
    fn the_size_is_the_largest_power_of_two_that_both_allow() {
        let choose = |most, device| RingSize::choose(most, device).map(RingSize::get);
        assert_eq!([choose(256, 0), choose(0, 256)], [None, None]);
        assert_eq!([choose(256, 255), choose(1, 256)], [Some(128), Some(1)]);
        assert_eq!([choose(u16::MAX, u16::MAX), choose(64, 256)], [Some(32768), Some(64)]);
    }

    #[test]
    fn the_parts_are_aligned_and_do_not_overlap_at_any_size() {
        for size in sizes() {
            let n = usize::from(size.get());
            assert!(size.available() >= 16 * n && size.available().is_multiple_of(2));
            assert!(size.used() >= size.available() + 6 + 2 * n && size.used().is_multiple_of(4));
            assert!(size.bytes() >= size.used() + 6 + 8 * n);
        }
        // The largest available index and ring of a queue of four: 64 bytes of descriptors, 14 of ring.
        assert_eq!((RingSize(4).available(), RingSize(4).used(), RingSize(4).bytes()), (64, 80, 120));
    }

    /// Plays a device that returns each chain at once, over more than two wraps of the 16-bit index.
    #[test]
    fn every_size_carries_chains_around_every_wrap() {
        let hal = HostHal::new();
        for size in sizes() {
            let mut ring = Ring::new(&hal, size, UsedInterrupts::Wanted).unwrap();
            let mut index = 0_u16;
            for round in 0..140_000_u32 {
                let head = (round % u32::from(size.get())) as u16;
                ring.push(head);
                assert_eq!(ring.pop(1).unwrap(), None, "not used yet");
                assert!(ring.publish() && !ring.publish());
                assert_eq!(ring.memory.load16(size.available() + 2), index.wrapping_add(1));
                assert_eq!(ring.memory.load16(size.available() + 4 + 2 * size.slot(index)), head);
                // An element is eight bytes at four modulo eight: the halves lie in two words.
                let element = size.used() + 4 + 8 * size.slot(index);
                ring.memory.write(element, &u32::from(head).to_le_bytes());
                ring.memory.write(element + 4, &round.to_le_bytes());
                index = index.wrapping_add(1);
                ring.memory.write(size.used() + 2, &index.to_le_bytes());
                let used = Used { head: head.into(), len: round };
                assert_eq!(ring.pop(1), Ok(Some(used)));
            }
        }
    }

    #[test]
    fn a_used_index_beyond_what_the_device_holds_is_a_lie() {
        let hal = HostHal::new();
        for size in sizes() {
            let mut ring = Ring::new(&hal, size, UsedInterrupts::Wanted).unwrap();
            for index in [1, size.get(), u16::MAX] {
                ring.memory.write(size.used() + 2, &index.to_le_bytes());
                assert!(ring.pop(index - 1).is_err(), "{size:?} {index}");
            }
        }
    }

    #[test]
    fn the_device_can_decline_notifications_and_the_driver_interrupts() {
        let hal = HostHal::new();
        let size = RingSize(8);
        let mut ring = Ring::new(&hal, size, UsedInterrupts::Unwanted).unwrap();
        assert_eq!(ring.memory.load16(size.available()), 1);
        ring.memory.write(size.used(), &1_u16.to_le_bytes());
        ring.push(0);
        assert!(!ring.publish());
        assert_eq!(ring.memory.load16(size.available() + 2), 1);
        // The flag stays when the index moves.
        assert_eq!(ring.memory.load16(size.available()), 1);
    }

    #[test]
    fn a_descriptor_reads_as_the_specification_lays_it_out() {
        let hal = HostHal::new();
        let ring = Ring::new(&hal, RingSize(4), UsedInterrupts::Wanted).unwrap();
        ring.describe(2, PhysAddr::new(0x1122_3344_5566_7788), 36, Direction::DeviceReadsThenNext);
        ring.describe(3, PhysAddr::new(0x1000), 4, Direction::DeviceWrites);
        ring.describe(4, PhysAddr::new(u64::MAX), 4, Direction::DeviceWrites);
        let mut bytes = [0; 48];
        ring.memory.read(32, &mut bytes);
        assert_eq!(bytes[..16], [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 36, 0, 0, 0, 1, 0, 3, 0]);
        assert_eq!(bytes[16..32], [0, 0x10, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(bytes[32..], [0; 16], "a descriptor beyond the table is not written");
    }
}
