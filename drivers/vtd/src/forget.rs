//! What hardware has to forget when entries change: batches of descriptors, device TLBs included.

use crate::features::Features;
use crate::invalidate::{Descriptor, RID_PASID, Tag, context_changed, everything, pasid_entry_changed};
use portcullis_hal::IovaRange;
use portcullis_iommu::{Permissions, Requests};

/// The most descriptors that the change of an entry takes, and some more.
const FEW: usize = 8;

/// Descriptors that are submitted together, `N` at most. The queue orders those of different caches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch<const N: usize = FEW> {
    descriptors: [Descriptor; N],
    count: usize,
}

impl<const N: usize> Batch<N> {
    pub(crate) fn new() -> Self {
        Self { descriptors: [Descriptor::default(); N], count: 0 }
    }

    /// Adds a descriptor, if there is [`room`](Self::room).
    pub(crate) fn push(&mut self, descriptor: Descriptor) {
        if let Some(place) = self.descriptors.get_mut(self.count) {
            *place = descriptor;
            self.count += 1;
        }
    }

    /// These descriptors, as far as there is room.
    pub(crate) fn of(descriptors: impl IntoIterator<Item = Descriptor>) -> Self {
        Self::new().with(descriptors)
    }

    fn with(mut self, descriptors: impl IntoIterator<Item = Descriptor>) -> Self {
        descriptors.into_iter().for_each(|descriptor| self.push(descriptor));
        self
    }

    pub(crate) fn room(&self) -> usize {
        N - self.count
    }

    pub(crate) fn descriptors(&self) -> &[Descriptor] {
        self.descriptors.get(..self.count).unwrap_or(&self.descriptors)
    }
}

/// Whose translations a device TLB holds: a source-id, and the PASID of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Requester {
    pub(crate) sid: u16,
    pub(crate) pasid: u32,
}

impl Requester {
    /// Drops the translations of `range`, or all, from the device's TLB.
    pub(crate) fn invalidation(self, features: &Features, range: Option<IovaRange>) -> Descriptor {
        match self.pasid {
            RID_PASID => Descriptor::device_tlb(features, self.sid, range),
            pasid => Descriptor::pasid_device_tlb(features, self.sid, pasid, range),
        }
    }
}

/// Drops everything from a device's TLB, as far as the device may fill it.
fn device_emptied(
    features: &Features,
    sid: u16,
    permissions: &Permissions,
) -> impl Iterator<Item = Descriptor> + use<> {
    let asks = permissions.requests.contains(Requests::TRANSLATION);
    let plain = asks.then(|| Descriptor::device_tlb(features, sid, None));
    let tagged = asks && permissions.pasid_bits > 0;
    plain.into_iter().chain(tagged.then(|| Descriptor::all_pasids_device_tlb(features, sid)))
}

/// The device of an endpoint's PASID, if it may hold translations.
pub(crate) fn device_of(sid: u16, pasid: u32, permissions: &Permissions) -> Option<Requester> {
    permissions.requests.contains(Requests::TRANSLATION).then_some(Requester { sid, pasid })
}

/// A live PASID entry was changed: the cached entry, what it translated, and what the device has of that.
pub(crate) fn entry_changed(features: &Features, old: Tag, device: Option<Requester>) -> Batch {
    let device = device.map(|device| device.invalidation(features, None));
    Batch::new().with(pasid_entry_changed(features, old)).with(device)
}

/// A PASID entry that was not present is present now, which matters in caching mode.
pub(crate) fn entry_appeared(features: &Features, new: Tag) -> Batch {
    Batch::new().with(pasid_entry_changed(features, new))
}

/// An endpoint's context entry is present now, which matters in caching mode.
pub(crate) fn endpoint_appeared(features: &Features, sid: u16, new: Tag) -> Batch {
    Batch::new().with(context_changed(features, sid, new))
}

/// An endpoint's context entry was taken away, and with it the PASID entries that make the translations with the tag given
/// alone, or with several.
pub(crate) fn endpoint_gone(
    features: &Features,
    sid: u16,
    only: Option<Tag>,
    permissions: &Permissions,
) -> Batch {
    let forget = match only {
        Some(tag) => Batch::new().with(context_changed(features, sid, tag)),
        None => Batch::new().with([
            Descriptor::context_cache_device(sid),
            Descriptor::pasid_cache_global(),
            Descriptor::iotlb_global(features),
        ]),
    };
    forget.with(device_emptied(features, sid, permissions))
}

/// A live context entry leads to other tables, with the same PASID entries, or permits something else. `permissions` are
/// those whose translations are withdrawn.
pub(crate) fn permissions_changed(features: &Features, sid: u16, withdrawn: &Permissions) -> Batch {
    // Entries of the directory are cached with the PASID entries that they lead to.
    Batch::new()
        .with([Descriptor::context_cache_device(sid), Descriptor::pasid_cache_global()])
        .with(device_emptied(features, sid, withdrawn))
}

/// A device does not ask for translations any more.
pub(crate) fn device_silenced(features: &Features, sid: u16, withdrawn: &Permissions) -> Batch {
    Batch::new().with(device_emptied(features, sid, withdrawn))
}

/// Everything that the unit has, and all of these descriptors that are about devices.
pub(crate) fn all_of(features: &Features, batch: &[Descriptor]) -> Batch {
    let devices = batch.iter().copied().filter(|descriptor| descriptor.is_for_device());
    Batch::new().with(everything(features)).with(devices)
}

/// Everything of the unit, and of one device.
pub(crate) fn unit_and_device(features: &Features, sid: u16, permissions: &Permissions) -> Batch {
    Batch::new().with(everything(features)).with(device_emptied(features, sid, permissions))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invalidate::{Cache, TagKind};
    use portcullis_hal::{DomainId, Iova};

    /// QEMU 11.1 with device TLBs.
    fn features() -> Features {
        Features::decode(0x81d2_008c_222f_0606, 0x0000_8d9a_20f0_0f4e, 48).unwrap()
    }

    const EVERYTHING: Permissions = Permissions { pasid_bits: 20, requests: Requests::TRANSLATION };

    fn tag(pasid: u32) -> Tag {
        Tag { kind: TagKind::FirstStage, did: DomainId::new(0x12), pasid }
    }

    fn caches(batch: &Batch) -> std::vec::Vec<Cache> {
        batch.descriptors().iter().map(|descriptor| descriptor.cache()).collect()
    }

    #[test]
    fn devices_come_after_all_caches_that_they_could_be_filled_from() {
        use Cache::{Contexts, Devices, Pasids, Translations};
        let features = features();
        let device = device_of(0x310, 7, &EVERYTHING);
        assert_eq!(caches(&entry_changed(&features, tag(7), device)), [Pasids, Translations, Devices]);
        assert_eq!(caches(&entry_changed(&features, tag(7), None)), [Pasids, Translations]);
        let gone = endpoint_gone(&features, 0x310, None, &EVERYTHING);
        assert_eq!(caches(&gone), [Contexts, Pasids, Translations, Devices, Devices]);
        let one = endpoint_gone(&features, 0x310, Some(tag(7)), &Permissions::NONE);
        assert_eq!(caches(&one), [Contexts, Pasids, Translations, Translations]);
        let most = endpoint_gone(&features, 0x310, Some(tag(7)), &EVERYTHING);
        assert_eq!(caches(&most), [Contexts, Pasids, Translations, Translations, Devices, Devices]);
        assert!(most.room() > 0, "nothing was left out");
    }

    #[test]
    fn a_device_forgets_the_smallest_block_that_holds_a_range() {
        let features = features();
        let words = |first: u64, pages: u64| {
            let range = IovaRange::new(Iova::new(first), pages << 12).unwrap();
            let [_, high] = Requester { sid: 1, pasid: 0 }.invalidation(&features, Some(range)).0;
            high
        };
        assert_eq!(words(0x5000, 1), 0x5000);
        assert_eq!(words(0x4000, 2), 0x4001);
        // Pages 5 and 6 lie in the block of eight at 0.. no smaller one holds both.
        assert_eq!(words(0x5000, 2), 0x5001);
        assert_eq!(words(0x7000, 2), 0x7001);
        assert_eq!(words(0x20_0000, 512), 0x2f_f001);
        assert_eq!(words(0, 1 << 51), 0x7fff_ffff_ffff_f001 >> 1 & !0xfff | 1);
        let [low, high] = Descriptor::all_pasids_device_tlb(&features, 0x310).0;
        assert_eq!((low, high), (0x0310_0018, 0x7fff_ffff_ffff_f801));
        let [low, high] = Requester { sid: 0x310, pasid: 0x5_4321 }.invalidation(&features, None).0;
        assert_eq!((low, high), (0x0005_4321_0310_0018, 0x7fff_ffff_ffff_f800));
        let [low, high] = Requester { sid: 0x310, pasid: 0 }.invalidation(&features, None).0;
        assert_eq!((low, high), (0x0310_0001_0003, 0x7fff_ffff_ffff_f001));
    }
}
