//! Registers and table entries in words, one `name: value` per line.

use crate::endpoint::Endpoint;
use crate::invalidate::RID_PASID;
use crate::spec::entries::{Context0, Context1, Directory, Pasid0, Pasid1, Pasid2, RootHalf};
use crate::spec::registers::{
    CAP, ECAP, FEADDR, FECTL, FEDATA, FEUADDR, FSTS, FaultStatus, GSTS, Global, ICS, IECTL, IQA, IQERCD, IQH,
    IQT, PEADDR, PECTL, PEDATA, PEUADDR, PMEN, PQA, PQH, PQT, PRS, RTADDR, RootAddress, VER,
};
use crate::tables::words;
use crate::unit::{Inner, context_place};
use core::fmt::{self, Write};
use portcullis_hal::{EndpointId, Hal, Mmio};

impl<H: Hal, M: Mmio + 'static> Inner<H, M> {
    pub(crate) fn describe_registers(&self, out: &mut dyn Write) -> fmt::Result {
        let registers = &self.registers;
        for register in [VER, GSTS, FSTS, FECTL, FEDATA, FEADDR, FEUADDR, PMEN, ICS, IECTL] {
            writeln!(out, "{}: {:#010x}", register.name, registers.read32(register))?;
        }
        for register in [CAP, ECAP, RTADDR, IQH, IQT, IQA, IQERCD] {
            writeln!(out, "{}: {:#018x}", register.name, registers.read64(register))?;
        }
        if self.page_requests.is_some() {
            for register in [PRS, PECTL, PEDATA, PEADDR, PEUADDR] {
                writeln!(out, "{}: {:#010x}", register.name, registers.read32(register))?;
            }
            for register in [PQH, PQT, PQA] {
                writeln!(out, "{}: {:#018x}", register.name, registers.read64(register))?;
            }
        }
        writeln!(out, "CAP fields: {:?}", self.features.cap)?;
        writeln!(out, "ECAP fields: {:?}", self.features.ecap)?;
        writeln!(out, "GSTS fields: {:?}", Global::from_bits(registers.read32(GSTS)))?;
        writeln!(out, "FSTS fields: {:?}", FaultStatus::from_bits(registers.read32(FSTS)))?;
        writeln!(out, "RTADDR fields: {:?}", RootAddress::from_bits(registers.read64(RTADDR)))?;
        let queue = match (self.is_faulted(), self.has_queue_error()) {
            (true, _) => "out of order",
            (false, true) => "stopped at an error",
            (false, false) => "in order",
        };
        writeln!(out, "invalidation queue: {queue}")
    }

    pub(crate) fn describe_entry(&self, endpoint: EndpointId, out: &mut dyn Write) -> fmt::Result {
        let Ok(sid) = u16::try_from(endpoint.get()) else {
            return writeln!(out, "endpoint: {endpoint} is no source-id");
        };
        let state = self.state.lock();
        let (table, _) = context_place(sid);
        let root = words(self.root.load(usize::from(sid >> 8)));
        writeln!(out, "root entry: {:#018x} {:#018x}", root[0], root[1])?;
        let half = RootHalf::from_bits(if table & 1 == 0 { root[0] } else { root[1] });
        writeln!(out, "root fields: {half:?}")?;
        let Some((contexts, number)) = state.context(sid) else {
            return writeln!(out, "context entry: none, the endpoint was never attached");
        };
        let [first, second] = contexts.entry::<2>(number).map(words);
        writeln!(
            out,
            "context entry: {:#018x} {:#018x} {:#018x} {:#018x}",
            first[0], first[1], second[0], second[1]
        )?;
        writeln!(
            out,
            "context fields: {:?} {:?}",
            Context0::from_bits(first[0]),
            Context1::from_bits(first[1])
        )?;
        let Some(endpoint) = state.endpoint(sid) else {
            return writeln!(out, "PASID directory: none, the endpoint was never attached");
        };
        writeln!(out, "permissions: {:?}", endpoint.permissions)?;
        describe_pasid(endpoint, RID_PASID, out)
    }

    pub(crate) fn describe_pasid(
        &self,
        endpoint: EndpointId,
        pasid: u32,
        out: &mut dyn Write,
    ) -> fmt::Result {
        let state = self.state.lock();
        match u16::try_from(endpoint.get()).ok().and_then(|sid| state.endpoint(sid)) {
            Some(endpoint) => describe_pasid(endpoint, pasid, out),
            None => writeln!(out, "PASID directory: none, nothing was ever permitted to the endpoint"),
        }
    }
}

/// The entries that lead to what a PASID reaches, if the context entry is present.
fn describe_pasid<H: Hal>(endpoint: &Endpoint<H>, pasid: u32, out: &mut dyn Write) -> fmt::Result {
    let directory = endpoint.pasids.directory_entry(pasid);
    writeln!(out, "PASID directory entry: {directory:#018x}")?;
    writeln!(out, "PASID directory fields: {:?}", Directory::from_bits(directory))?;
    let entry = endpoint.pasids.entry(pasid).map(words);
    write!(out, "PASID entry:")?;
    for word in entry.as_flattened() {
        write!(out, " {word:#018x}")?;
    }
    writeln!(out)?;
    let [[low, high], [first, _], ..] = entry;
    writeln!(
        out,
        "PASID fields: {:?} {:?} {:?}",
        Pasid0::from_bits(low),
        Pasid1::from_bits(high),
        Pasid2::from_bits(first)
    )?;
    match endpoint.attachment(pasid) {
        Some(attachment) => {
            writeln!(out, "domain: {}, id {}", attachment.domain.info().kind, attachment.tag.did)
        }
        None => writeln!(out, "domain: none"),
    }
}
