//! TLB maintenance that CPUs broadcast (IHI 0070, 3.17).

use super::Smmu;
use super::caches::{Key, Scope};
use super::entry::StreamWorld;

/// A TLBI instruction of a CPU, inner shareable, with the DSB behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Broadcast {
    /// VMALLE1IS: stage 1 of a VMID.
    Vmalle1 {
        /// The VMID.
        vmid: u16,
    },
    /// ASIDE1IS.
    Aside1 {
        /// The VMID.
        vmid: u16,
        /// The ASID.
        asid: u16,
    },
    /// VAE1IS or VALE1IS, or their range forms.
    Vae1 {
        /// The VMID.
        vmid: u16,
        /// The ASID.
        asid: u16,
        /// First byte.
        first: u64,
        /// Last byte.
        last: u64,
        /// Last level only.
        leaf: bool,
    },
    /// VAAE1IS.
    Vaae1 {
        /// The VMID.
        vmid: u16,
        /// First byte.
        first: u64,
        /// Last byte.
        last: u64,
        /// Last level only.
        leaf: bool,
    },
    /// IPAS2E1IS: stage 2 by IPA.
    Ipas2e1 {
        /// The VMID.
        vmid: u16,
        /// First byte.
        first: u64,
        /// Last byte.
        last: u64,
        /// Last level only.
        leaf: bool,
    },
    /// VMALLS12E1IS: both stages of a VMID.
    Vmalls12e1 {
        /// The VMID.
        vmid: u16,
    },
    /// ALLE1IS: all of EL1 and EL0.
    Alle1,
    /// ALLE2IS.
    Alle2,
}

impl Smmu {
    /// A broadcast arrives and completes. Nothing happens if the unit takes no part (IDR0.BTM, CR2.PTM).
    pub fn broadcast(&self, operation: Broadcast) {
        let mut state = self.lock();
        if !self.hw.config.btm || state.regs.ignores_broadcasts() {
            self.hw.coverage.count("broadcast", "ignored");
            return;
        }
        self.hw.coverage.count("broadcast", "taken");
        let tlb = &mut state.tlb;
        let of = |wanted: u16| move |key: &Key| key.world == StreamWorld::El1 && key.vmid == wanted;
        // ASID set 1 opts out of what matches by ASID.
        let all = Scope { at_once: true, ..Scope::ALL };
        let shared = Scope { spare_private: true, ..all };
        let count = match operation {
            Broadcast::Vmalle1 { vmid } => tlb.doom1(of(vmid), all),
            Broadcast::Aside1 { vmid, asid } => tlb.doom1(of(vmid), Scope { asid: Some(asid), ..shared }),
            Broadcast::Vae1 { vmid, asid, first, last, leaf } => {
                tlb.doom1(of(vmid), Scope { asid: Some(asid), range: Some((first, last)), leaf, ..shared })
            }
            Broadcast::Vaae1 { vmid, first, last, leaf } => {
                tlb.doom1(of(vmid), Scope { range: Some((first, last)), leaf, ..all })
            }
            Broadcast::Ipas2e1 { vmid, first, last, leaf } => {
                tlb.doom2(of(vmid), Scope { range: Some((first, last)), leaf, ..all })
            }
            Broadcast::Vmalls12e1 { vmid } => tlb.doom1(of(vmid), all) + tlb.doom2(of(vmid), all),
            Broadcast::Alle1 => {
                let guest = |key: &Key| key.world == StreamWorld::El1;
                tlb.doom1(guest, all) + tlb.doom2(guest, all)
            }
            Broadcast::Alle2 => tlb.doom1(|key| key.world != StreamWorld::El1, all),
        };
        self.hw.coverage.count("invalidation", if count == 0 { "covers nothing" } else { "covers entries" });
    }
}
