//! The rings, as the device has them: descriptors are followed, requests decoded by hand, from bytes, and answered.

#![expect(unsafe_code, reason = "the other side of the driver's memory")]

use super::fake::{Answer, Fake};
use super::rules::Req;
use portcullis_hal::{Hal, PhysAddr};
use portcullis_virtio_iommu::QueueLayout;
use std::sync::atomic::{AtomicU16, Ordering};

#[derive(Default)]
pub(super) struct Queue {
    pub layout: Option<QueueLayout>,
    pub taken: u16,
    pub used: u16,
}

impl Fake {
    fn read<const N: usize>(&self, phys: u64) -> [u8; N] {
        assert!(self.hal.is_allocated(PhysAddr::new(phys), N as u64), "{phys:#x} is not the driver's memory");
        // SAFETY: the bytes are allocated; volatile, as the driver may write them.
        unsafe { self.hal.phys_to_virt(PhysAddr::new(phys)).cast::<[u8; N]>().read_volatile() }
    }

    fn write(&self, phys: u64, bytes: &[u8]) {
        assert!(self.hal.is_allocated(PhysAddr::new(phys), bytes.len() as u64));
        for (at, byte) in bytes.iter().enumerate() {
            // SAFETY: the bytes are allocated; volatile, as the driver may read them.
            unsafe { self.hal.phys_to_virt(PhysAddr::new(phys + at as u64)).write_volatile(*byte) };
        }
    }

    /// A descriptor: address, length, flags, next.
    fn descriptor(&self, layout: &QueueLayout, index: u16) -> (u64, u32, u16, u16) {
        assert!(index < layout.size);
        let bytes: [u8; 16] = self.read(layout.descriptors.get() + 16 * u64::from(index));
        (
            u64::from_le_bytes(bytes[..8].try_into().unwrap()),
            u32::from_le_bytes(bytes[8..12].try_into().unwrap()),
            u16::from_le_bytes(bytes[12..14].try_into().unwrap()),
            u16::from_le_bytes(bytes[14..].try_into().unwrap()),
        )
    }

    /// The next chain that the driver made available.
    fn pop(&self, queue: &mut Queue) -> Option<u16> {
        let layout = queue.layout?;
        let index = self.index(layout.available).load(Ordering::Acquire);
        if index == queue.taken {
            return None;
        }
        let slot = u64::from(queue.taken % layout.size);
        queue.taken = queue.taken.wrapping_add(1);
        Some(u16::from_le_bytes(self.read(layout.available.get() + 4 + 2 * slot)))
    }

    fn push(&self, queue: &mut Queue, head: u32, len: u32) {
        let layout = queue.layout.unwrap();
        let at = layout.used.get() + 4 + 8 * u64::from(queue.used % layout.size);
        self.write(at, &head.to_le_bytes());
        self.write(at + 4, &len.to_le_bytes());
        queue.used = queue.used.wrapping_add(1);
        self.index(layout.used).store(queue.used, Ordering::Release);
    }

    /// The running index of a ring. The other side looks at it at any time: it is read and written whole.
    fn index(&self, ring: PhysAddr) -> &AtomicU16 {
        let phys = PhysAddr::new(ring.get() + 2);
        assert!(self.hal.is_allocated(phys, 2) && phys.is_aligned(2));
        // SAFETY: the two bytes are allocated for as long as the device has the ring, and aligned.
        unsafe { self.hal.phys_to_virt(phys).cast::<AtomicU16>().as_ref() }
    }

    fn decode(&self, layout: &QueueLayout, head: u16) -> Req {
        let (address, len, flags, next) = self.descriptor(layout, head);
        assert_eq!(flags, 1, "the first descriptor is read by the device and has a next");
        let (_, tail, flags, _) = self.descriptor(layout, next);
        let head: [u8; 8] = self.read(address);
        assert_eq!(flags, 2, "the last descriptor is the device's to write");
        assert!(tail == 4 || (head[0] == 5 && tail > 4), "the last descriptor ends with the tail");
        assert_eq!(head[1..4], [0; 3]);
        let word = |at: u64| u32::from_le_bytes(self.read(address + at));
        let long = |at: u64| u64::from_le_bytes(self.read(address + at));
        let (kind, domain) = (head[0], word(4));
        match (kind, len) {
            (1, 20) => {
                assert_eq!(word(16), 0);
                Req::Attach { domain, endpoint: word(8), flags: word(12) }
            }
            (2, 20) => {
                assert_eq!((word(12), word(16)), (0, 0));
                Req::Detach { domain, endpoint: word(8) }
            }
            (3, 36) => Req::Map { domain, first: long(8), last: long(16), phys: long(24), flags: word(32) },
            (4, 28) => {
                assert_eq!(word(24), 0);
                Req::Unmap { domain, first: long(8), last: long(16) }
            }
            (5, 72) => {
                assert!((8..72).step_by(4).all(|at| word(at) == 0));
                Req::Probe { endpoint: word(4) }
            }
            other => panic!("request type and length {other:?}"),
        }
    }

    /// Serves what is in the request queue.
    pub(super) fn serve(&self) {
        let mut state = self.state();
        let state = &mut *state;
        let mut heads: Vec<u16> = std::iter::from_fn(|| self.pop(&mut state.queues[0])).collect();
        if let Some(dice) = &mut state.disorder {
            for left in 1..heads.len() {
                heads.swap(left, dice.below(left as u64 + 1) as usize);
            }
        }
        for head in heads {
            let req = self.decode(&state.queues[0].layout.unwrap(), head);
            state.requests.push(req);
            let (answer, room) = self.room(&state.queues[0], head);
            if let Req::Probe { .. } = req {
                self.write(answer, &state.properties[..state.properties.len().min(room as usize - 4)]);
            }
            let queue = &mut state.queues[0];
            match (state.script)(&req) {
                Answer::Right => {
                    let status = state.perform(&req);
                    self.answer(&mut state.queues[0], head, status, room);
                }
                Answer::Status(status) => self.answer(queue, head, status, room),
                Answer::Length(len) => {
                    let status = state.perform(&req);
                    self.answer(&mut state.queues[0], head, status, len);
                }
                Answer::Chain(chain) => self.push(queue, chain, 4),
                Answer::Jump(by) => {
                    queue.used = queue.used.wrapping_add(by);
                    self.index(queue.layout.unwrap().used).store(queue.used, Ordering::Release);
                }
                Answer::Never => {}
                Answer::Held => state.held.push((head, req)),
            }
        }
    }

    /// What the device writes of a request: address and length.
    fn room(&self, queue: &Queue, head: u16) -> (u64, u32) {
        let layout = queue.layout.unwrap();
        let (_, _, _, next) = self.descriptor(&layout, head);
        let (address, len, ..) = self.descriptor(&layout, next);
        (address, len)
    }

    fn answer(&self, queue: &mut Queue, head: u16, status: u8, len: u32) {
        let (address, room) = self.room(queue, head);
        self.write(address + u64::from(room) - 4, &[status, 0, 0, 0]);
        self.push(queue, head.into(), len);
    }

    /// Performs and answers the requests that were held, latest first.
    pub(crate) fn release(&self) {
        let mut state = self.state();
        while let Some((head, req)) = state.held.pop() {
            let status = state.perform(&req);
            self.answer(&mut state.queues[0], head, status, 4);
        }
    }

    /// Puts an event of these bytes into the next buffer, if there is one.
    pub(crate) fn event(&self, bytes: &[u8]) -> bool {
        let mut state = self.state();
        let Some(head) = self.pop(&mut state.queues[1]) else {
            return false;
        };
        let (address, len, flags, _) = self.descriptor(&state.queues[1].layout.unwrap(), head);
        assert!(flags == 2 && len >= 24);
        self.write(address, &bytes[..bytes.len().min(len as usize)]);
        self.push(&mut state.queues[1], head.into(), bytes.len() as u32);
        true
    }

    /// Says that a buffer of the event queue was used, whether or not there is such a one.
    pub(crate) fn stray_event(&self, head: u32) {
        let mut state = self.state();
        self.push(&mut state.queues[1], head, 24);
    }
}
