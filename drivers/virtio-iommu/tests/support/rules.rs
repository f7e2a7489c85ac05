//! What requests do, and where DMA lands, by the specification.

use super::fake::{Fake, State};
use std::collections::BTreeMap;

pub(crate) const OK: u8 = 0;
pub(crate) const UNSUPP: u8 = 2;
pub(crate) const INVAL: u8 = 4;
pub(crate) const RANGE: u8 = 5;
pub(crate) const NOENT: u8 = 6;
pub(crate) const NOMEM: u8 = 8;

/// A request as its bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Req {
    Attach { domain: u32, endpoint: u32, flags: u32 },
    Detach { domain: u32, endpoint: u32 },
    Map { domain: u32, first: u64, last: u64, phys: u64, flags: u32 },
    Unmap { domain: u32, first: u64, last: u64 },
    Probe { endpoint: u32 },
}

#[derive(Default)]
pub(crate) struct FakeDomain {
    pub bypass: bool,
    /// By first address: last address, physical address, flags.
    pub mappings: BTreeMap<u64, (u64, u64, u32)>,
}

impl State {
    fn leave(&mut self, endpoint: u32) {
        if let Some(domain) = self.endpoints.remove(&endpoint)
            && !self.endpoints.values().any(|other| *other == domain)
        {
            self.domains.remove(&domain);
        }
    }

    /// What the specification says of a request (5.13.6).
    pub(super) fn perform(&mut self, req: &Req) -> u8 {
        match *req {
            Req::Attach { domain, endpoint, flags } => {
                if flags & !1 != 0 {
                    return INVAL;
                }
                if endpoint >= 0x100 {
                    return NOENT;
                }
                self.leave(endpoint);
                let bypass = flags & 1 != 0;
                let found = self.domains.entry(domain).or_insert(FakeDomain { bypass, ..Default::default() });
                if found.bypass != bypass {
                    return INVAL;
                }
                self.endpoints.insert(endpoint, domain);
                self.lingering.remove(&endpoint);
                OK
            }
            Req::Detach { domain, endpoint } => {
                if self.endpoints.get(&endpoint) != Some(&domain) {
                    return INVAL;
                }
                self.leave(endpoint);
                OK
            }
            Req::Map { domain, first, last, phys, flags } => {
                let Some(domain) = self.domains.get_mut(&domain) else {
                    return NOENT;
                };
                let below = domain.mappings.range(..=last).next_back();
                if domain.bypass || flags & !7 != 0 || below.is_some_and(|(_, (end, ..))| *end >= first) {
                    return INVAL;
                }
                if (first | phys | last.wrapping_add(1)) & 0xfff != 0 {
                    return RANGE;
                }
                domain.mappings.insert(first, (last, phys, flags));
                OK
            }
            Req::Probe { endpoint } => {
                if endpoint < 0x100 {
                    OK
                } else {
                    NOENT
                }
            }
            Req::Unmap { domain, first, last } => {
                let Some(domain) = self.domains.get_mut(&domain) else {
                    return NOENT;
                };
                let cut = domain.mappings.iter().any(|(start, (end, ..))| {
                    *start <= last && *end >= first && (*start < first || *end > last)
                });
                if cut {
                    return RANGE;
                }
                domain.mappings.retain(|start, (end, ..)| *start < first || *end > last);
                OK
            }
        }
    }
}

impl Fake {
    /// Where a DMA of an endpoint lands, if anywhere. A refused one is reported as the specification says.
    pub(crate) fn dma(&self, endpoint: u32, address: u64, write: bool) -> Option<u64> {
        let refused = {
            let state = self.state();
            match state.endpoints.get(&endpoint) {
                None if state.config[36] == 1 || state.lingering.contains(&endpoint) => return Some(address),
                None => 1,
                Some(domain) => {
                    let domain = &state.domains[domain];
                    if domain.bypass {
                        return Some(address);
                    }
                    let found = domain.mappings.range(..=address).next_back();
                    match found {
                        Some((first, (last, phys, flags)))
                            if address <= *last && flags & if write { 2 } else { 1 } != 0 =>
                        {
                            return Some(phys + (address - first));
                        }
                        _ => 2,
                    }
                }
            }
        };
        let mut event = [0; 24];
        event[0] = refused;
        event[4..8].copy_from_slice(&(0x100 | if write { 2_u32 } else { 1 }).to_le_bytes());
        event[8..12].copy_from_slice(&endpoint.to_le_bytes());
        event[16..].copy_from_slice(&address.to_le_bytes());
        self.event(&event);
        None
    }
}
