//! Commands on domains, frames, mappings and attachments, and DMA.

#![expect(unsafe_code, reason = "maps memory that the console keeps for ever")]

use super::Next;
use super::commands::usage;
use super::state::{State, length, number, range};
use crate::devices::edu::{Completion, Direction};
use crate::report::{text, words};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use portcullis_hal::{Access, Attributes, Gather, IdentityAccess, Iova, Mapping, MemoryKind};
use portcullis_iommu::{DomainSpec, PagingSpec, ReservedKind, Stage, UnitId};

pub(super) fn domain(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let ["new", kind, rest @ ..] = arguments else {
        return usage("domain");
    };
    let mut stage = None;
    let mut unit = UnitId(0);
    for word in rest {
        match *word {
            "stage1" => stage = Some(Stage::Stage1),
            "stage2" => stage = Some(Stage::Stage2),
            name => unit = state.unit(name)?,
        }
    }
    let spec = match *kind {
        "paging" => DomainSpec::Paging(PagingSpec { stage, ..PagingSpec::default() }),
        // SAFETY: `dma` refuses what is not the console's own memory, and no other device moves data meanwhile.
        "identity" => DomainSpec::Identity(unsafe { IdentityAccess::new() }),
        "blocked" => DomainSpec::Blocked,
        _ => return usage("domain"),
    };
    let unit = state.machine.iommu.unit(unit).ok_or("no unit")?;
    let domain = unit.new_domain(&spec).map_err(words)?;
    state.domains.try_reserve(1).map_err(words)?;
    state.domains.push(domain);
    text(format_args!("domain: d{}", state.domains.len() - 1));
    Ok(Next::Continue)
}

pub(super) fn frames(state: &mut State, _arguments: &[&str]) -> Result<Next, String> {
    for (name, frames) in state.frames() {
        text(format_args!("frame: {name} phys={} len={:#x}", frames.phys(), frames.order().bytes()));
    }
    Ok(Next::Continue)
}

pub(super) fn frame(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [len] = arguments else { return usage("frame") };
    let name = state.allocate(length(len)?)?;
    text(format_args!("frame: {name} phys={}", state.frame(&name)?.phys()));
    Ok(Next::Continue)
}

pub(super) fn fill(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [name, byte] = arguments else {
        return usage("fill");
    };
    let byte = u8::try_from(number(byte)?).map_err(|_| "a byte is 0 to 255")?;
    let frames = state.frame(name)?;
    let page = [byte; 4096];
    for offset in (0..frames.order().bytes() as usize).step_by(page.len()) {
        frames.write(offset, &page);
    }
    Ok(Next::Continue)
}

pub(super) fn peek(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [name, offset, len] = arguments else {
        return usage("peek");
    };
    let (offset, len) = (number(offset)?, number(len)?);
    let frames = state.frame(name)?;
    if len > 64 || offset.checked_add(len).is_none_or(|end| end > frames.order().bytes()) {
        return Err("outside the frame, or more than 64 bytes".to_string());
    }
    let mut bytes = alloc::vec![0; len as usize];
    frames.read(offset as usize, &mut bytes);
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    text(format_args!("bytes: {}", hex.join(" ")));
    Ok(Next::Continue)
}

pub(super) fn map(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [domain, iova, memory, len, access] = arguments else {
        return usage("map");
    };
    let domain = state.domain(domain)?.clone();
    let len = length(len)?;
    let iova = Iova::new(number(iova)?);
    let access = match *access {
        "r" => Access::READ,
        "w" => Access::WRITE,
        "rw" => Access::READ | Access::WRITE,
        _ => return usage("map"),
    };
    let name = if *memory == "alloc" { state.allocate(len)? } else { memory.to_string() };
    let kind = if name.contains('/') { MemoryKind::Device } else { MemoryKind::WriteBack };
    let memory = state.memory(&name, len)?;
    let mapping = Mapping { iova, memory, attributes: Attributes { access, memory: kind } };
    // SAFETY: the console's frames are never freed and hold nothing but bytes; the windows that `memory` gives are
    // those of devices that cannot master the bus any more.
    unsafe { domain.map(&[mapping]) }.map_err(words)?;
    text(format_args!("mapped: {name} phys={} at {iova} len={len:#x} access={access}", memory.start()));
    Ok(Next::Continue)
}

pub(super) fn unmap(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [domain, iova, len] = arguments else {
        return usage("unmap");
    };
    let range = range(iova, len)?;
    let domain = state.domain(domain)?;
    let mut gather = Gather::new();
    // SAFETY: all mappings are the console's own, or reserved regions, whose memory nobody waits for.
    let bytes = unsafe { domain.unmap(range, &mut gather) }.map_err(words)?;
    domain.sync(&mut gather).map_err(words).map(drop)?;
    text(format_args!("unmapped: {bytes:#x} bytes"));
    Ok(Next::Continue)
}

pub(super) fn attach(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [device, domain] = arguments else {
        return usage("attach");
    };
    let device = state.device(device)?;
    let transition = state.machine.iommu.attach(&device, state.domain(domain)?).map_err(words)?;
    text(format_args!("attached: {transition}"));
    Ok(Next::Continue)
}

pub(super) fn detach(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [device] = arguments else {
        return usage("detach");
    };
    let device = state.device(device)?;
    state.machine.iommu.detach(&device).map_err(words)?;
    Ok(Next::Continue)
}

pub(super) fn dma(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [name, way, iova, len] = arguments else {
        return usage("dma");
    };
    let direction = match *way {
        "read" => Direction::FromMemory,
        "write" => Direction::ToMemory,
        _ => return usage("dma"),
    };
    let device = state.device(name)?;
    let range = range(iova, len)?;
    if range.len() > crate::devices::edu::BUFFER_SIZE {
        return Err("at most 4096 bytes".to_string());
    }
    // A write to the interrupt window is an interrupt, which could be any.
    let excluded = |region: &portcullis_iommu::ReservedRegion| {
        region.range.overlaps(&range) && !matches!(region.kind, ReservedKind::Direct(_))
    };
    if device.reserved().iter().any(excluded) {
        return Err("that address is reserved".to_string());
    }
    // Pass-through reaches the kernel's own memory.
    if let Some(domain) = device.domain()
        && domain.info().kind == portcullis_iommu::DomainKind::Identity
        && !state.frames().any(|(_, frames)| {
            let (start, last) =
                (Iova::new(frames.range().start().get()), Iova::new(frames.range().last().get()));
            start <= range.start() && range.last() <= last
        })
    {
        return Err("with pass-through, only the console's own frames".to_string());
    }
    let is_retired =
        |index| if state.machine.is_retired(index) { Err("its registers were given away") } else { Ok(()) };
    if let Some(rig) = state.machine.edus.iter().find(|rig| rig.device.id() == device.id()) {
        is_retired(rig.function)?;
        state.machine.enable_bus_master(rig.function);
        rig.edu.transfer(direction, range.start(), range.len(), Completion::Poll).map_err(words)?;
        text(format_args!("dma: done, the device does not tell whether memory was reached"));
        return Ok(Next::Continue);
    }
    if let Some(rig) = state.machine.test_devices.iter().find(|rig| rig.device.id() == device.id()) {
        if direction == Direction::FromMemory {
            return Err("this device only writes".to_string());
        }
        is_retired(rig.function)?;
        state.machine.enable_bus_master(rig.function);
        let target = device.domain().and_then(|domain| domain.iova_to_phys(range.start()));
        let phys = target.map_or(portcullis_hal::PhysAddr::new(range.start().get()), |found| found.phys);
        text(format_args!("dma: {}", rig.test.write(range.start(), range.len() as u32, phys)));
        return Ok(Next::Continue);
    }
    Err(format!("{name} is no DMA engine"))
}
