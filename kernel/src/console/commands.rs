//! The commands.

#![expect(unsafe_code, reason = "maps memory that the console keeps for ever")]

use super::Next;
use super::pages;
use super::pasids;
use super::processes;
use super::state::{State, length, number, range};
use crate::devices::edu::{Completion, Direction};
use crate::report::text;
use crate::report::words;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use portcullis_hal::{Access, Attributes, Gather, IdentityAccess, Iova, Mapping, MemoryKind};
use portcullis_iommu::{DomainSpec, PagingSpec, ReservedKind, Stage, UnitId};

/// A command: its name, its arguments, what it does.
struct Command {
    name: &'static str,
    arguments: &'static str,
    purpose: &'static str,
    run: fn(&mut State, &[&str]) -> Result<Next, String>,
}

const COMMANDS: &[Command] = &[
    Command { name: "help", arguments: "", purpose: "lists the commands", run: help },
    Command { name: "units", arguments: "", purpose: "lists the IOMMUs and what they can do", run: units },
    Command {
        name: "devices",
        arguments: "",
        purpose: "lists the devices with unit, group and domain",
        run: devices,
    },
    Command { name: "groups", arguments: "", purpose: "lists the isolation groups", run: groups },
    Command { name: "domains", arguments: "", purpose: "lists the console's domains", run: domains },
    Command {
        name: "domain",
        arguments: "new paging|identity|blocked [stage1|stage2] [UNIT]",
        purpose: "makes a domain",
        run: domain,
    },
    Command { name: "frames", arguments: "", purpose: "lists the console's frames", run: frames },
    Command { name: "frame", arguments: "LEN", purpose: "allocates frames", run: frame },
    Command { name: "fill", arguments: "FRAME BYTE", purpose: "fills frames with a byte", run: fill },
    Command { name: "peek", arguments: "FRAME OFFSET LEN", purpose: "shows up to 64 bytes", run: peek },
    Command {
        name: "map",
        arguments: "DOMAIN IOVA alloc|FRAME|DEVICE/barN LEN r|w|rw",
        purpose: "maps memory",
        run: map,
    },
    Command {
        name: "unmap",
        arguments: "DOMAIN IOVA LEN",
        purpose: "unmaps and waits for the hardware",
        run: unmap,
    },
    Command {
        name: "attach",
        arguments: "DEVICE DOMAIN",
        purpose: "attaches, replacing what was there",
        run: attach,
    },
    Command { name: "detach", arguments: "DEVICE", purpose: "detaches: denied and recorded", run: detach },
    Command {
        name: "permit",
        arguments: "DEVICE PASID-BITS [ats]",
        purpose: "permits PASIDs and ATS in the unit's tables; the device is not told",
        run: pasids::permit,
    },
    Command {
        name: "enable",
        arguments: "DEVICE PASID-BITS [ats] [pri]",
        purpose: "switches PASIDs, ATS and page requests on, in the unit and in the device, which may master the bus then",
        run: pasids::enable,
    },
    Command { name: "disable", arguments: "DEVICE", purpose: "switches all that off", run: pasids::disable },
    Command {
        name: "attach-pasid",
        arguments: "DEVICE PASID DOMAIN",
        purpose: "attaches a PASID, replacing what was there",
        run: pasids::attach,
    },
    Command {
        name: "detach-pasid",
        arguments: "DEVICE PASID",
        purpose: "detaches a PASID",
        run: pasids::detach,
    },
    Command {
        name: "pager",
        arguments: "DEVICE PASID DOMAIN IOVA LEN r|rw [later]",
        purpose: "maps pages when the device asks for them; `later` leaves the answer to you",
        run: pages::pager,
    },
    Command {
        name: "no-pager",
        arguments: "DEVICE PASID",
        purpose: "ends that; what was asked is refused",
        run: pages::no_pager,
    },
    Command {
        name: "answer",
        arguments: "success|invalid|failure",
        purpose: "answers what waits for it, the newest first",
        run: pages::answer,
    },
    Command {
        name: "page-faults",
        arguments: "DEVICE",
        purpose: "shows what became of a device's page requests",
        run: pages::page_faults,
    },
    Command {
        name: "process",
        arguments: "new LEN|fork PROCESS",
        purpose: "makes a process with a heap, or a copy of one",
        run: processes::process,
    },
    Command {
        name: "load",
        arguments: "PROCESS ADDRESS",
        purpose: "has it read a word",
        run: processes::load,
    },
    Command {
        name: "store",
        arguments: "PROCESS ADDRESS VALUE",
        purpose: "has it write a word",
        run: processes::store,
    },
    Command {
        name: "protect",
        arguments: "PROCESS ADDRESS LEN r|rw",
        purpose: "changes what it may do with pages",
        run: processes::protect,
    },
    Command {
        name: "release",
        arguments: "PROCESS ADDRESS LEN",
        purpose: "takes pages away from it",
        run: processes::release,
    },
    Command { name: "exit", arguments: "PROCESS", purpose: "ends its address space", run: processes::exit },
    Command {
        name: "bind",
        arguments: "DEVICE PROCESS",
        purpose: "lets a device work in its address space",
        run: processes::bind,
    },
    Command { name: "unbind", arguments: "BOND", purpose: "ends that", run: processes::unbind },
    Command {
        name: "dma",
        arguments: "DEVICE read|write IOVA LEN",
        purpose: "lets a DMA engine try",
        run: dma,
    },
    Command {
        name: "walk",
        arguments: "DOMAIN IOVA",
        purpose: "translates by the tables in memory",
        run: walk,
    },
    Command {
        name: "dump",
        arguments: "ste|cd|context|pasid|all DEVICE",
        purpose: "shows table entries, decoded and raw",
        run: dump,
    },
    Command {
        name: "dump-pasid",
        arguments: "DEVICE PASID",
        purpose: "shows a PASID's table entry, decoded and raw",
        run: pasids::dump,
    },
    Command { name: "regs", arguments: "UNIT", purpose: "shows a unit's registers", run: registers },
    Command { name: "faults", arguments: "", purpose: "takes the faults out of the log", run: faults },
    Command { name: "stats", arguments: "", purpose: "shows the units' counters", run: stats },
    Command { name: "poweroff", arguments: "", purpose: "ends the machine", run: |_, _| Ok(Next::PowerOff) },
];

/// Runs one line; an empty one is fine.
pub(super) fn run(state: &mut State, line: &str) -> Result<Next, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let Some((name, arguments)) = words.split_first() else {
        return Ok(Next::Continue);
    };
    let command = COMMANDS.iter().find(|command| command.name == *name);
    let command = command.ok_or_else(|| format!("no command `{name}`, try `help`"))?;
    (command.run)(state, arguments)
}

pub(super) fn usage<T>(name: &str) -> Result<T, String> {
    let arguments =
        COMMANDS.iter().find(|command| command.name == name).map_or("", |command| command.arguments);
    Err(format!("usage: {name} {arguments}"))
}

fn help(_state: &mut State, _arguments: &[&str]) -> Result<Next, String> {
    for command in COMMANDS {
        let call = format!("{} {}", command.name, command.arguments);
        text(format_args!("{call:<62} {}", command.purpose));
    }
    Ok(Next::Continue)
}

fn units(state: &mut State, _arguments: &[&str]) -> Result<Next, String> {
    state.machine.iommu.for_each_unit(|id, unit| {
        let info = unit.info();
        text(format_args!(
            "unit: {id} kind={} stages={} page-sizes={:#x} input-bits={} output-bits={} pasid-bits={} identity={} \
             entries={} tables={}",
            info.backend,
            bits(&info.stages),
            info.page_sizes,
            info.input_bits,
            info.output_bits,
            info.pasid_bits,
            info.identity,
            info.entry_coherency,
            info.table_coherency
        ));
    });
    Ok(Next::Continue)
}

/// The names of set flags, joined by `+`.
fn bits<F: bitflags::Flags>(flags: &F) -> String {
    let names: Vec<&str> = flags.iter_names().map(|(name, _)| name).collect();
    names.join("+")
}

fn devices(state: &mut State, _arguments: &[&str]) -> Result<Next, String> {
    state.machine.iommu.for_each_device(|device| {
        let domain = device.domain().map_or_else(|| "-".to_string(), |domain| state.domain_name(&domain));
        let what = state.machine.what_is(device.id());
        text(format_args!(
            "device: {} unit={} group={} domain={domain} is={what}",
            device.id(),
            device.unit(),
            device.group().0
        ));
        for region in device.reserved() {
            let kind = match region.kind {
                ReservedKind::Direct(_) => "direct",
                ReservedKind::Msi(_) => "msi",
                ReservedKind::Excluded => "excluded",
            };
            text(format_args!("reserved: {} {kind}", region.range));
        }
    });
    Ok(Next::Continue)
}

fn groups(state: &mut State, _arguments: &[&str]) -> Result<Next, String> {
    let mut members: Vec<(u32, String)> = Vec::new();
    state.machine.iommu.for_each_device(|device| members.push((device.group().0, device.id().to_string())));
    members.sort();
    for group in members.chunk_by(|a, b| a.0 == b.0) {
        let names: Vec<&str> = group.iter().map(|(_, name)| name.as_str()).collect();
        text(format_args!("group: {} devices={}", group.first().map_or(0, |(id, _)| *id), names.join(",")));
    }
    Ok(Next::Continue)
}

fn domains(state: &mut State, _arguments: &[&str]) -> Result<Next, String> {
    for (index, domain) in state.domains.iter().enumerate() {
        let info = domain.info();
        let stage = info.stage.map_or_else(|| "-".to_string(), |stage| stage.to_string().replace(' ', ""));
        let mut tags = String::new();
        domain.describe(&mut tags).map_err(words)?;
        text(format_args!(
            "domain: d{index} kind={} stage={stage} aperture={} page-sizes={:#x} {tags}",
            info.kind,
            domain.aperture(),
            domain.page_sizes(),
            tags = tags.lines().collect::<Vec<_>>().join(", "),
        ));
    }
    Ok(Next::Continue)
}

fn domain(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
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

fn frames(state: &mut State, _arguments: &[&str]) -> Result<Next, String> {
    for (name, frames) in state.frames() {
        text(format_args!("frame: {name} phys={} len={:#x}", frames.phys(), frames.order().bytes()));
    }
    Ok(Next::Continue)
}

fn frame(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [len] = arguments else { return usage("frame") };
    let name = state.allocate(length(len)?)?;
    text(format_args!("frame: {name} phys={}", state.frame(&name)?.phys()));
    Ok(Next::Continue)
}

fn fill(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
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

fn peek(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
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

fn map(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
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

fn unmap(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
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

fn attach(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [device, domain] = arguments else {
        return usage("attach");
    };
    let device = state.device(device)?;
    let transition = state.machine.iommu.attach(&device, state.domain(domain)?).map_err(words)?;
    text(format_args!("attached: {transition}"));
    Ok(Next::Continue)
}

fn detach(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [device] = arguments else {
        return usage("detach");
    };
    let device = state.device(device)?;
    state.machine.iommu.detach(&device).map_err(words)?;
    Ok(Next::Continue)
}

fn dma(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
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

fn walk(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [domain, iova] = arguments else {
        return usage("walk");
    };
    let iova = Iova::new(number(iova)?);
    match state.domain(domain)?.iova_to_phys(iova) {
        Some(found) => text(format_args!(
            "walk: {iova} phys={} access={} memory={} entry={:#x}",
            found.phys, found.attributes.access, found.attributes.memory, found.size
        )),
        None => text(format_args!("walk: {iova} not mapped")),
    }
    Ok(Next::Continue)
}

fn dump(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [what @ ("ste" | "cd" | "context" | "pasid" | "all"), name] = arguments else {
        return usage("dump");
    };
    let device = state.device(name)?;
    let unit = state.machine.iommu.unit(device.unit()).ok_or("no unit")?;
    let mut found = false;
    for endpoint in device.endpoints() {
        let mut out = String::new();
        unit.describe_entry(*endpoint, &mut out).map_err(words)?;
        for line in out.lines().filter(|line| *what == "all" || line.to_ascii_lowercase().starts_with(what)) {
            text(format_args!("{line}"));
            found = true;
        }
    }
    if found { Ok(Next::Continue) } else { Err(format!("this unit has no {what} for {name}")) }
}

fn registers(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [name] = arguments else { return usage("regs") };
    let id = state.unit(name)?;
    let unit = state.machine.iommu.unit(id).ok_or("no unit")?;
    let mut out = String::new();
    unit.describe_registers(&mut out).map_err(words)?;
    out.lines().for_each(|line| text(format_args!("{line}")));
    Ok(Next::Continue)
}

fn faults(state: &mut State, _arguments: &[&str]) -> Result<Next, String> {
    crate::machine::service_polled_units();
    while let Some(fault) = state.machine.iommu.next_fault() {
        text(format_args!("fault: {fault}"));
        let raw: Vec<String> = fault.record.raw.iter().map(|word| format!("{word:#018x}")).collect();
        text(format_args!("raw: {}", raw.join(" ")));
    }
    let (dropped, overflows) = (state.machine.iommu.faults_dropped(), state.machine.iommu.overflows());
    text(format_args!("faults: dropped={dropped} overflows={overflows}"));
    Ok(Next::Continue)
}

fn stats(state: &mut State, _arguments: &[&str]) -> Result<Next, String> {
    state.machine.iommu.for_each_unit(|id, unit| {
        let stats = unit.stats();
        text(format_args!(
            "stats: {id} domains={} attaches={} faults={} overflows={} invalidations={} syncs={} doorbells={} errors={}",
            stats.domains,
            stats.attaches,
            stats.faults,
            stats.overflows,
            stats.invalidations,
            stats.syncs,
            stats.doorbells,
            stats.queue_errors
        ));
    });
    let (mappings, bytes) = crate::dma::counts();
    text(format_args!("stats: mappings={mappings} dma-bytes={bytes}"));
    Ok(Next::Continue)
}
