//! What endpoints may do beyond untranslated accesses without a PASID.

use crate::attach::{Attachments, stream};
use crate::change::{Unconfirmed, worse};
use crate::command::{Command, Scope};
use crate::context::ContextTable;
use crate::entry::{Shape, silent_descriptor, stalling};
use crate::features::Features;
use crate::port::{Health, Port};
use crate::record::{Plain, Record, UNATTACHED, stalls, translates};
use alloc::vec::Vec;
use portcullis_hal::{EndpointId, Hal, Mmio, OutOfMemory, Pasid, StreamId, barrier, list};
use portcullis_iommu::{AttachError, Missing, Permissions, Requests, Transition};

impl Features {
    /// What the unit lacks for `permissions`, whatever is attached.
    fn missing_to_permit(&self, permissions: &Permissions) -> Missing {
        let mut missing = Missing::empty();
        missing.set(Missing::PASID, permissions.pasid_bits > self.pasid_bits());
        missing.set(Missing::ATS, translates(permissions) && !self.ats);
        let asks = permissions.requests.contains(Requests::PAGE);
        missing.set(Missing::PRI, asks && self.page_request_queue_log2.is_none());
        let stalls = permissions.requests.contains(Requests::STALL);
        missing.set(Missing::STALL, stalls && !self.can_stall());
        missing
    }
}

impl<H: Hal, M: Mmio + 'static> Attachments<H, M> {
    /// Sets what the endpoints may do; see [`Unit::permit`](portcullis_iommu::Unit::permit).
    pub(crate) fn permit(
        &mut self,
        port: &Port<H, M>,
        endpoints: &[EndpointId],
        permissions: &Permissions,
    ) -> Result<Transition, AttachError> {
        self.check(endpoints)?;
        self.agree_to(port, endpoints, permissions)?;
        if endpoints.iter().all(|&endpoint| self.permissions(stream(endpoint)) == *permissions) {
            return Ok(Transition::Hitless);
        }
        if port.health() == Health::Faulted {
            return Err(AttachError::Faulted);
        }
        let mut tables = self.larger_tables(port, endpoints, permissions)?;
        self.make_room_for_all(port, endpoints, permissions)?;
        let new = endpoints.iter().filter(|&&endpoint| self.find(stream(endpoint)).is_none()).count();
        self.records.try_reserve(new).map_err(|_| OutOfMemory)?;
        // From here on only the hardware can fail.
        let mut transition = Transition::Hitless;
        for &endpoint in endpoints {
            let stream = stream(endpoint);
            let table = tables.iter().position(|table| table.0 == stream);
            let table = table.and_then(|at| list::remove(&mut tables, at)).map(|(_, table)| table);
            match self.set_permissions(port, stream, permissions, table) {
                Ok(how) => transition = worse(transition, how),
                Err(error) => return Err(self.give_up(port, endpoints, error)),
            }
        }
        Ok(transition)
    }

    /// Refuses what the hardware, or what is attached, does not go with.
    fn agree_to(
        &self,
        port: &Port<H, M>,
        endpoints: &[EndpointId],
        permissions: &Permissions,
    ) -> Result<(), AttachError> {
        let mut missing = port.features.missing_to_permit(permissions);
        for &endpoint in endpoints {
            let Some(record) = self.find(stream(endpoint)) else { continue };
            missing |= record.plain.missing(permissions);
            if let Some((pasid, _)) = record
                .pasids
                .iter()
                .find(|(pasid, attached)| attached.target.is_some() && !permissions.allow(*pasid))
            {
                return Err(AttachError::PasidInUse(*pasid));
            }
        }
        match missing.is_empty() {
            true => Ok(()),
            false => Err(AttachError::Incompatible { missing }),
        }
    }

    /// Tables for streams that have none or too small a one, with the descriptors that they have.
    fn larger_tables(
        &self,
        port: &Port<H, M>,
        endpoints: &[EndpointId],
        permissions: &Permissions,
    ) -> Result<Vec<(StreamId, ContextTable<H>)>, AttachError> {
        let mut tables = Vec::new();
        for &endpoint in endpoints {
            let record = self.find(stream(endpoint));
            let table = record.and_then(|record| record.contexts.as_ref());
            let enough = match table {
                Some(table) => permissions.pasid_bits <= table.bits(),
                None => permissions.pasid_bits == 0 && !stalls(permissions),
            };
            if enough {
                continue;
            }
            let mut larger = ContextTable::new(port.hal(), &port.features, permissions.pasid_bits)?;
            // Stalls are withdrawn before the table takes its place, and granted after it.
            let stalls = record.is_some_and(|record| record.stalls()) && stalls(permissions);
            let plain = record.map(|record| (0, record.plain.target()));
            let pasids = record.into_iter().flat_map(|record| &record.pasids);
            let pasids = pasids.map(|(pasid, attached)| (pasid.get(), attached.target.as_ref()));
            for (substream, target) in plain.into_iter().chain(pasids) {
                let context = match target {
                    Some(target) => target.context().map(|it| if stalls { stalling(it) } else { it }),
                    // A PASID that was blocked.
                    None => (substream != 0).then(|| silent_descriptor(&port.features)),
                };
                let Some(context) = context else { continue };
                larger.prepare(&port.features, substream)?;
                if let Some(slot) = larger.entry(substream) {
                    slot.write(&context);
                }
            }
            list::push(&mut tables, (stream(endpoint), larger))?;
        }
        Ok(tables)
    }

    /// Makes room for the endpoints among those who cache translations of their domains.
    fn make_room_for_all(
        &self,
        port: &Port<H, M>,
        endpoints: &[EndpointId],
        permissions: &Permissions,
    ) -> Result<(), OutOfMemory> {
        let silent = |record: &&Record<H, M>| translates(permissions) && !translates(&record.permissions);
        let records = || endpoints.iter().filter_map(|&it| self.find(stream(it))).filter(silent);
        let most = records().map(|record| record.users().count()).sum();
        let mut users = records().flat_map(Record::users);
        users.try_for_each(|(_, target)| target.reserve_caches(port.hal(), most))
    }

    /// Changes what a stream may do, step by step: less translation requests and stalls, PASIDs, more stalls and
    /// translation requests. There is room for its record.
    fn set_permissions(
        &mut self,
        port: &Port<H, M>,
        stream: StreamId,
        permissions: &Permissions,
        table: Option<ContextTable<H>>,
    ) -> Result<Transition, Unconfirmed> {
        // A blocked stream that was permitted nothing has an entry and no record.
        let now = self.streams.entry(stream).map(|slot| slot.read());
        let blocked = now == Some(Shape::Abort.entry());
        let plain = if blocked { Plain::Blocked } else { Plain::Unattached };
        let Some(record) = self.record(stream, plain) else { return Ok(Transition::Hitless) };
        let mut transition = Transition::Hitless;
        let before = record.permissions;
        if translates(&before) && !translates(permissions) {
            if self.takes_requests(stream) {
                port.silence(&Command::atc_inv_all(stream))?;
            }
            let fewer = before.requests.difference(Requests::TRANSLATION);
            transition = self.set_requests(port, stream, fewer)?;
            if let Some(record) = self.find(stream) {
                record.users().for_each(|(who, target)| target.remove_cache(port.hal(), who));
            }
        }
        if stalls(&before) && !stalls(permissions) {
            let requests = self.permissions(stream).requests.difference(Requests::STALL);
            transition = worse(transition, self.set_stalls(port, stream, requests)?);
            transition = worse(transition, self.set_requests(port, stream, requests)?);
        }
        let without = permissions.pasid_bits == 0 && !stalls(permissions);
        let superfluous = without && self.find(stream).is_some_and(|record| record.contexts.is_some());
        if before.pasid_bits != permissions.pasid_bits || table.is_some() || superfluous {
            let Some(record) = self.find_mut(stream) else { return Ok(transition) };
            record.permissions.pasid_bits = permissions.pasid_bits;
            // Of those that are blocked, some may not be used any more anyhow.
            while let Some(at) = record.pasids.iter().position(|(pasid, _)| !permissions.allow(*pasid)) {
                let Some((pasid, _)) = list::remove(&mut record.pasids, at) else { break };
                if let Some(slot) = record.contexts.as_ref().and_then(|table| table.entry(pasid.get())) {
                    slot.write(&UNATTACHED);
                }
            }
            let old = match table {
                Some(table) => record.contexts.replace(table),
                None if without => record.contexts.take(),
                None => None,
            };
            let entry = record.entry(&port.features);
            match self.update(port, stream, &entry) {
                Ok(how) => transition = worse(transition, how),
                Err(error) => {
                    core::mem::forget(old);
                    return Err(error);
                }
            }
        }
        if stalls(permissions) && !stalls(&before) {
            let requests = self.permissions(stream).requests | Requests::STALL;
            // The entry first: it must not forbid what a descriptor asks for (5.4, S).
            transition = worse(transition, self.set_requests(port, stream, requests)?);
            transition = worse(transition, self.set_stalls(port, stream, requests)?);
        }
        if translates(permissions) && !translates(&before) {
            if let Some(record) = self.find(stream) {
                record.users().for_each(|(who, target)| target.add_cache(port.hal(), who));
            }
            // The domains' unmappers see the device before it can cache anything.
            barrier::store_then_load();
            transition = worse(transition, self.set_requests(port, stream, permissions.requests)?);
        }
        if self.permissions(stream).requests != permissions.requests {
            transition = worse(transition, self.set_requests(port, stream, permissions.requests)?);
        }
        if let Ok(place) = self.place(stream)
            && self.records.get(place).is_some_and(Record::is_idle)
        {
            list::remove(&mut self.records, place);
        }
        Ok(transition)
    }

    /// Brings the stream's context descriptors to what `requests` say of stalls.
    fn set_stalls(
        &mut self,
        port: &Port<H, M>,
        stream: StreamId,
        requests: Requests,
    ) -> Result<Transition, Unconfirmed> {
        let Some(record) = self.find_mut(stream) else { return Ok(Transition::Hitless) };
        record.permissions.requests = requests;
        let record = &*record;
        let mut transition = Transition::Hitless;
        for (who, target) in record.users() {
            let substream = who.pasid.map_or(0, Pasid::get);
            let slot = record.contexts.as_ref().and_then(|contexts| contexts.entry(substream));
            if let (Some(slot), Some(context)) = (slot, record.context_of(target)) {
                let how = port.bring_context(stream, substream, &slot, &context, Scope::Leaf)?;
                transition = worse(transition, how);
            }
        }
        Ok(transition)
    }

    fn set_requests(
        &mut self,
        port: &Port<H, M>,
        stream: StreamId,
        requests: Requests,
    ) -> Result<Transition, Unconfirmed> {
        let Some(record) = self.find_mut(stream) else { return Ok(Transition::Hitless) };
        record.permissions.requests = requests;
        let entry = record.entry(&port.features);
        self.update(port, stream, &entry)
    }
}
