//! The contract of I/O address spaces, kept by requests: the only unsafe code that concerns DMA.

#![expect(unsafe_code, reason = "mappings are memory that devices reach")]

use crate::domain::VirtioDomain;
use crate::space::Space;
use crate::transport::Transport;
use portcullis_hal::{
    Gather, GatherBusy, Hal, IoSpace, Iova, IovaRange, MapError, Mapping, PhysAddr, QueuedMaps,
    SendMapsError, SyncError, SyncProof, Translated, UnmapError,
};

// SAFETY: the device gives an endpoint nothing but what MAP requests of its domain made. Every mapping is in the
// domain's intervals before its MAP request is queued and leaves them, in the same critical section, with the
// queueing of the UNMAP request that covers it; of a MAP and an UNMAP request that overlap, the second is not queued until
// the first is answered.
// `sync` gives a proof only when the device has answered all requests for the domain up to the gather's last, and
// none ever failed. Blocked domains hold no mappings, and identity domains map nothing of the caller's.
unsafe impl<H: Hal, T: Transport> IoSpace for VirtioDomain<H, T> {
    fn aperture(&self) -> IovaRange {
        self.link.limits.aperture
    }

    fn page_sizes(&self) -> u64 {
        self.space().map_or(self.link.limits.page_sizes, Space::page_sizes)
    }

    unsafe fn map(&self, list: &[Mapping]) -> Result<(), MapError> {
        self.space().ok_or(MapError::NotPaging)?.map(list)
    }

    unsafe fn map_queued(&self, list: &[Mapping], queue: &mut QueuedMaps) -> Result<(), MapError> {
        self.space().ok_or(MapError::NotPaging)?.map_queued(list, queue)
    }

    fn send_maps(&self, queue: &mut QueuedMaps) -> Result<(), SendMapsError> {
        match self.space() {
            Some(space) => space.send_maps(queue),
            None if queue.is_empty() => Ok(()),
            None => Err(GatherBusy.into()),
        }
    }

    unsafe fn unmap(&self, range: IovaRange, gather: &mut Gather) -> Result<u64, UnmapError> {
        self.space().ok_or(UnmapError::NotPaging)?.unmap(range, gather)
    }

    fn sync(&self, gather: &mut Gather) -> Result<SyncProof, SyncError> {
        let done = match self.space() {
            Some(space) => space.wait_unmapped(gather),
            None => gather.claim(self.key).map_err(SyncError::from),
        };
        match done {
            // SAFETY: the device has confirmed the unmaps of this gather; it holds no table frames, as there are no
            // tables.
            Ok(()) => Ok(unsafe { gather.finish(&self.link.hal) }),
            // The gather belongs to another domain, which still has to sync it.
            Err(error @ SyncError::Gather(_)) => Err(error),
            Err(error) => {
                gather.quarantine();
                Err(error)
            }
        }
    }

    fn iova_to_phys(&self, iova: Iova) -> Option<Translated> {
        match &self.kind {
            crate::domain::Kind::Paging(space) => space.iova_to_phys(iova),
            crate::domain::Kind::Identity => Some(Translated {
                phys: PhysAddr::new(iova.get()),
                attributes: portcullis_hal::Attributes::READ_WRITE,
                size: self.link.limits.granule(),
            }),
            // Nobody holds one of those; they are made for an attachment.
            crate::domain::Kind::Direct(_) | crate::domain::Kind::Blocked => None,
        }
    }
}
