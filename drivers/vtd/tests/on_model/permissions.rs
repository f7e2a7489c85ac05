//! Permissions: the unit is told before the device, and after it when they are withdrawn.

use crate::asking::{ASKS, CREDITS};
use crate::ensure;
use crate::oracle::Attached;
use crate::world::{Break, Device, Outcomes, World};
use portcullis_iommu::{AttachError, Missing, Permissions, Requests, Transition, Unit};
use portcullis_model::vtd::Feature;

impl World {
    /// Whether the unit can let devices ask for pages.
    pub(crate) fn takes_pages(&self) -> bool {
        let needed = [Feature::PageRequests, Feature::PageRequestDrain, Feature::DeviceTlb];
        needed.iter().all(|&feature| self.config.has(feature))
    }

    pub(crate) fn permit(&mut self, nonce: u64, device: u8, count: u8, bits: u8, requests: u8) -> Outcomes {
        let devices = self.several(device, count);
        let endpoints = self.endpoints(&devices);
        let pasid_bits = match self.devices[devices[0]].cut.last() {
            // Too few for a PASID that was silenced.
            Some(cut) if nonce & 0xc00 != 0 => cut.ilog2() as u8,
            _ => [0, 2, 6, 7, 10, 14, 20, 20][usize::from(bits % 8)],
        };
        let requests = match requests % 16 {
            0 => Requests::PAGE,
            1..6 => Requests::empty(),
            6..10 => Requests::TRANSLATION,
            _ => ASKS,
        };
        let permissions = Permissions { pasid_bits, requests };
        let mut missing = Missing::empty();
        missing.set(Missing::PASID, u32::from(pasid_bits) > self.config.pasid_bits());
        let asks = requests.contains(Requests::TRANSLATION);
        missing.set(Missing::ATS, asks && !self.config.has(Feature::DeviceTlb));
        missing.set(Missing::PRI, requests.contains(Requests::PAGE) && !self.takes_pages());
        let tagged = |device: &usize| match &self.devices[*device].attached {
            Attached::To(domains) => {
                domains.keys().copied().filter(|&pasid| pasid >> pasid_bits != 0).collect()
            }
            Attached::Unknown(_) => Vec::new(),
        };
        let in_use: Vec<u32> = devices.iter().flat_map(tagged).filter(|&pasid| pasid != 0).collect();
        // A device is quiet before it loses its permission; one in four is not.
        let rude = nonce & 0x300 == 0;
        let asks_pages = requests.contains(ASKS);
        if missing.is_empty() && in_use.is_empty() && !asks_pages && !rude {
            self.drain(nonce, &devices, |_| true)?;
        }
        if missing.is_empty() && in_use.is_empty() && !asks && !rude {
            devices.iter().for_each(|&device| self.devices[device].function.set_ats(false));
        }
        let before =
            self.begin(nonce, self.probes(&devices, self.some_pasid(devices[0], nonce), None, nonce));
        let mut change = Break::None;
        match self.driver.permit(&endpoints, &permissions) {
            Ok(transition) => {
                ensure!(missing.is_empty(), "{permissions:?} permitted, although the unit lacks {missing}");
                ensure!(in_use.is_empty(), "withdrawn while PASIDs {in_use:x?} are attached");
                ensure!(transition == Transition::Hitless, "a context entry takes one store");
                for device in devices {
                    let function = &self.devices[device].function;
                    let left = function.atc_len();
                    if !asks && function.has_ats() {
                        ensure!(left == 0, "{left} translations are left in a device that may have none");
                        self.count("permit", "a device that asked on");
                    }
                    self.devices[device].permissions = permissions;
                    let is_beyond = |pasid: &u32| pasid >> pasid_bits != 0;
                    if self.devices[device].cut.extract_if(.., is_beyond).count() > 0 {
                        self.count("permit", "silence ended");
                    }
                    self.hear_answers()?;
                    let Device { function, asking, .. } = &mut self.devices[device];
                    function.set_ats(false);
                    function.set_pasid((pasid_bits > 0).then_some(pasid_bits));
                    function.set_ats(asks);
                    // One that has not all its answers goes on as it was; to be enabled is a reset.
                    if asking.is_settled() {
                        function.set_pri(asks_pages.then_some(CREDITS));
                        if asks_pages {
                            asking.reset();
                        }
                    }
                }
                let what = match (pasid_bits > 0, asks) {
                    _ if asks_pages => "page requests",
                    (false, false) => "nothing",
                    (true, false) => "PASIDs",
                    (false, true) => "translation requests",
                    (true, true) => "PASIDs and translation requests",
                };
                self.count("permit", what);
                change = if asks { Break::None } else { Break::Possible };
            }
            Err(AttachError::Incompatible { missing: named }) => {
                ensure!(named == missing, "{named} is missing, and not {missing}");
                self.count("permit", "not offered");
            }
            Err(AttachError::PasidInUse(pasid)) => {
                ensure!(in_use.contains(&pasid.get()), "{pasid} is not in use");
                self.count("permit", "in use");
            }
            Err(AttachError::OutOfMemory(_)) if self.short => self.count("permit", "out of memory"),
            Err(AttachError::NoFreeId) => ensure!(self.may_lack_ids(), "no id is free"),
            Err(AttachError::Faulted) if self.faulted => {}
            Err(AttachError::Timeout(timeout)) => {
                change = Break::Possible;
                self.timed_out(&timeout)?;
                for device in devices {
                    // It may have been permitted, or not yet withdrawn.
                    let either = &mut self.devices[device].permissions;
                    either.requests |= requests;
                    either.pasid_bits = either.pasid_bits.max(pasid_bits);
                    self.unknown(device, None);
                }
            }
            Err(error) => return Err(format!("permit: {error}")),
        }
        self.end(before, change)
    }
}
