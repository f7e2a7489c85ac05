//! The commands.

use super::state::State;
use super::{Next, look, mappings, pages, pasids, processes};
use crate::report::text;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// A command: its name, its arguments, what it does.
struct Command {
    name: &'static str,
    arguments: &'static str,
    purpose: &'static str,
    run: fn(&mut State, &[&str]) -> Result<Next, String>,
}

const COMMANDS: &[Command] = &[
    Command { name: "help", arguments: "", purpose: "lists the commands", run: help },
    Command {
        name: "units",
        arguments: "",
        purpose: "lists the IOMMUs and what they can do",
        run: look::units,
    },
    Command {
        name: "devices",
        arguments: "",
        purpose: "lists the devices with unit, group and domain",
        run: look::devices,
    },
    Command { name: "groups", arguments: "", purpose: "lists the isolation groups", run: look::groups },
    Command { name: "domains", arguments: "", purpose: "lists the console's domains", run: look::domains },
    Command {
        name: "domain",
        arguments: "new paging|identity|blocked [stage1|stage2] [UNIT]",
        purpose: "makes a domain",
        run: mappings::domain,
    },
    Command { name: "frames", arguments: "", purpose: "lists the console's frames", run: mappings::frames },
    Command { name: "frame", arguments: "LEN", purpose: "allocates frames", run: mappings::frame },
    Command {
        name: "fill",
        arguments: "FRAME BYTE",
        purpose: "fills frames with a byte",
        run: mappings::fill,
    },
    Command {
        name: "peek",
        arguments: "FRAME OFFSET LEN",
        purpose: "shows up to 64 bytes",
        run: mappings::peek,
    },
    Command {
        name: "map",
        arguments: "DOMAIN IOVA alloc|FRAME|DEVICE/barN LEN r|w|rw",
        purpose: "maps memory",
        run: mappings::map,
    },
    Command {
        name: "unmap",
        arguments: "DOMAIN IOVA LEN",
        purpose: "unmaps and waits for the hardware",
        run: mappings::unmap,
    },
    Command {
        name: "attach",
        arguments: "DEVICE DOMAIN",
        purpose: "attaches, replacing what was there",
        run: mappings::attach,
    },
    Command {
        name: "detach",
        arguments: "DEVICE",
        purpose: "detaches: denied and recorded",
        run: mappings::detach,
    },
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
        name: "hold",
        arguments: "",
        purpose: "masks interrupts: page requests stay in the queue, up to `serve`",
        run: pages::hold,
    },
    Command {
        name: "serve",
        arguments: "DEVICE",
        purpose: "serves page requests of the device's unit now, and tells what it takes",
        run: pages::serve,
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
        run: mappings::dma,
    },
    Command {
        name: "walk",
        arguments: "DOMAIN IOVA",
        purpose: "translates by the tables in memory",
        run: look::walk,
    },
    Command {
        name: "dump",
        arguments: "ste|cd|context|pasid|all DEVICE",
        purpose: "shows table entries, decoded and raw",
        run: look::dump,
    },
    Command {
        name: "dump-pasid",
        arguments: "DEVICE PASID",
        purpose: "shows a PASID's table entry, decoded and raw",
        run: pasids::dump,
    },
    Command { name: "regs", arguments: "UNIT", purpose: "shows a unit's registers", run: look::registers },
    Command { name: "faults", arguments: "", purpose: "takes the faults out of the log", run: look::faults },
    Command { name: "stats", arguments: "", purpose: "shows the units' counters", run: look::stats },
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
