//! Tables and registers for human readers, one `name: value` per line.

use crate::attach::Attachments;
use crate::port::Port;
use crate::record::Attachment;
use crate::spec::cd::{CD_MAIR_WORD, Cd0, Cd1};
use crate::spec::registers::{
    self, CmdqCons, Cr0, Cr1, Cr2, EventqIndex, Gbpa, Gerror, Idr0, Idr1, Idr3, Idr5, IrqCtrl, QueueBase,
    StrtabBase, StrtabBaseCfg,
};
use crate::spec::ste::{Ste0, Ste1, Ste2, Ste3};
use crate::update::Entry;
use core::fmt::{self, Debug};
use portcullis_hal::wait::Register;
use portcullis_hal::{Hal, Mmio, Pasid, PhysAddr, StreamId};

impl<H: Hal, M: Mmio + 'static> Attachments<H, M> {
    /// Writes the entry of `stream`, and its context descriptor if it has one.
    pub(crate) fn describe(&self, stream: StreamId, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "stream: {stream}")?;
        let Some(slot) = self.streams.entry(stream) else {
            let why = if self.streams.covers(stream) { "no second-level table" } else { "beyond the table" };
            return writeln!(out, "ste: invalid ({why})");
        };
        if let Some(address) = slot.address() {
            writeln!(out, "ste.address: {address:#x}")?;
        }
        let [word0, word1, word2, word3, ..] = slot.read();
        word(out, "ste.0", word0, &Ste0::from(word0))?;
        word(out, "ste.1", word1, &Ste1::from(word1))?;
        word(out, "ste.2", word2, &Ste2::from(word2))?;
        word(out, "ste.3", word3, &Ste3::from(word3))?;
        let Some(record) = self.find(stream) else {
            return writeln!(out, "domain: none");
        };
        if let Some(contexts) = &record.contexts {
            writeln!(out, "pasids: {} of {} bits", record.pasids.len(), contexts.bits())?;
        }
        match record.plain.attachment() {
            Some(attachment) => describe_attachment(attachment, out),
            None => writeln!(out, "domain: none"),
        }
    }

    /// Writes the context descriptor of a PASID.
    pub(crate) fn describe_pasid(
        &self,
        stream: StreamId,
        pasid: Pasid,
        out: &mut dyn fmt::Write,
    ) -> fmt::Result {
        writeln!(out, "stream: {stream}")?;
        writeln!(out, "pasid: {pasid}")?;
        let record = self.find(stream);
        let contexts = record.and_then(|record| record.contexts.as_ref());
        let Some(slot) = contexts.and_then(|contexts| contexts.entry(pasid.get())) else {
            return writeln!(out, "cd: invalid (no table)");
        };
        describe_context(slot.address(), &slot.read(), out)?;
        let attached = record.and_then(|record| record.pasids.get(record.place(pasid).ok()?));
        match attached {
            Some((_, attachment)) => describe_domain(attachment, out),
            None => writeln!(out, "domain: none"),
        }
    }
}

fn describe_domain<H: Hal, M: Mmio>(attachment: &Attachment<H, M>, out: &mut dyn fmt::Write) -> fmt::Result {
    let info = attachment.domain.info();
    match info.stage {
        Some(stage) => writeln!(out, "domain: {}, {stage}", info.kind)?,
        None => writeln!(out, "domain: {}", info.kind)?,
    }
    match &attachment.target {
        Some(target) => writeln!(out, "tag: {}", target.tag()),
        None => Ok(()),
    }
}

fn describe_attachment<H: Hal, M: Mmio>(
    attachment: &Attachment<H, M>,
    out: &mut dyn fmt::Write,
) -> fmt::Result {
    describe_domain(attachment, out)?;
    match attachment.target.as_ref().and_then(|target| Some((target.descriptor(), target.context()?))) {
        Some((address, context)) => describe_context(address, &context, out),
        None => Ok(()),
    }
}

fn describe_context(address: Option<PhysAddr>, context: &Entry, out: &mut dyn fmt::Write) -> fmt::Result {
    if let Some(address) = address {
        writeln!(out, "cd.address: {address:#x}")?;
    }
    let [word0, word1, ..] = *context;
    word(out, "cd.0", word0, &Cd0::from(word0))?;
    word(out, "cd.1", word1, &Cd1::from(word1))?;
    let mair = context.get(CD_MAIR_WORD).copied().unwrap_or_default();
    writeln!(out, "cd.{CD_MAIR_WORD}: {mair:#018x} MAIR")
}

fn word(out: &mut dyn fmt::Write, name: &str, raw: u64, decoded: &dyn Debug) -> fmt::Result {
    writeln!(out, "{name}: {raw:#018x} {decoded:?}")
}

impl<H: Hal, M: Mmio> Port<H, M> {
    /// Writes all registers that the driver uses.
    pub(crate) fn describe_registers(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.register(out, registers::IDR0, Idr0::from)?;
        self.register(out, registers::IDR1, Idr1::from)?;
        self.register(out, registers::IDR3, Idr3::from)?;
        self.register(out, registers::IDR5, Idr5::from)?;
        self.register(out, registers::IIDR, Plain)?;
        self.register(out, registers::AIDR, Plain)?;
        self.register(out, registers::CR0, Cr0::from)?;
        self.register(out, registers::CR0ACK, Cr0::from)?;
        self.register(out, registers::CR1, Cr1::from)?;
        self.register(out, registers::CR2, Cr2::from)?;
        self.register(out, registers::GBPA, Gbpa::from)?;
        self.register(out, registers::IRQ_CTRL, IrqCtrl::from)?;
        self.register(out, registers::IRQ_CTRLACK, IrqCtrl::from)?;
        self.register(out, registers::GERROR, Gerror::from)?;
        self.register(out, registers::GERRORN, Gerror::from)?;
        self.register64(out, registers::STRTAB_BASE, StrtabBase::from)?;
        self.register(out, registers::STRTAB_BASE_CFG, StrtabBaseCfg::from)?;
        self.register64(out, registers::CMDQ_BASE, QueueBase::from)?;
        self.register(out, registers::CMDQ_PROD, Plain)?;
        self.register(out, registers::CMDQ_CONS, CmdqCons::from)?;
        self.register64(out, registers::EVENTQ_BASE, QueueBase::from)?;
        self.register(out, registers::EVENTQ_PROD, EventqIndex::from)?;
        self.register(out, registers::EVENTQ_CONS, EventqIndex::from)?;
        writeln!(out, "driver: {:?}", self.health())
    }

    fn register<D: Debug>(
        &self,
        out: &mut dyn fmt::Write,
        register: Register,
        decode: impl FnOnce(u32) -> D,
    ) -> fmt::Result {
        let raw = self.block.read(register);
        writeln!(out, "{}: {raw:#010x} {:?}", register.name, decode(raw))
    }

    fn register64<D: Debug>(
        &self,
        out: &mut dyn fmt::Write,
        register: Register,
        decode: impl FnOnce(u64) -> D,
    ) -> fmt::Result {
        let raw = self.block.read64(register);
        writeln!(out, "{}: {raw:#018x} {:?}", register.name, decode(raw))
    }
}

/// A register without fields worth telling apart.
struct Plain(u32);

impl Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
