//! The cache of translations in a device.

use super::Job;
use crate::core::{Access, AtcInvalidation, Grant, Privilege, Versions};

/// Tags of a grant: PASID, privilege, first byte, last byte.
type Key = (Option<u32>, bool, u64, u64);

#[derive(Debug, Default)]
pub(super) struct Atc {
    grants: Versions<Key, Grant>,
}

/// Where a job ends up under a grant, if the grant allows it.
pub(super) const fn target(job: &Job, grant: &Grant) -> Option<u64> {
    let allowed = match job.access {
        Access::Read => grant.read,
        Access::Write => grant.write,
        Access::Execute => grant.execute,
    };
    if allowed && !grant.untranslated_only {
        Some(grant.address | job.address & (grant.size - 1))
    } else {
        None
    }
}

impl Atc {
    pub(super) fn clear(&mut self) {
        self.grants.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.grants.len()
    }

    pub(super) fn insert(&mut self, job: &Job, grant: Grant) {
        let pasid = if grant.global { None } else { job.pasid };
        let first = job.address & !(grant.size - 1);
        let privileged = job.privilege == Privilege::Supervisor;
        self.grants.observe(&(pasid, privileged, first, first | (grant.size - 1)), grant);
    }

    pub(super) fn targets(&self, job: &Job) -> Vec<u64> {
        let privileged = job.privilege == Privilege::Supervisor;
        self.grants
            .iter()
            .filter(|((pasid, level, first, last), grant)| {
                (*pasid == job.pasid || grant.global && pasid.is_none())
                    && *level == privileged
                    && (*first..=*last).contains(&job.address)
            })
            .filter_map(|(_, grant)| target(job, grant))
            .collect()
    }

    /// A confirmed invalidation: entries of its PASID, of all PASIDs if it is global, or without one.
    pub(super) fn drop_covered(&mut self, invalidation: &AtcInvalidation) {
        self.grants.remove(|&(pasid, _, first, last), _| {
            let tag = pasid == invalidation.pasid || invalidation.global && pasid.is_some();
            tag && first <= invalidation.last && last >= invalidation.address
        });
    }
}
