//! CPUs, PSCI and consoles.

use super::interrupts::interrupts;
use super::tree::{Node, Tree};
use crate::{
    Console, ConsoleKind, Cpu, CpuId, CpuStart, CpuState, FirmwareError, PsciConduit, Topology, list,
};
use portcullis_hal::PhysAddr;

const PSCI: &[&str] = &["arm,psci", "arm,psci-0.2", "arm,psci-1.0"];
const PL011: &[&str] = &["arm,pl011"];

/// Adds CPUs and the way PSCI is called.
pub(super) fn read_cpus(tree: &Tree<'_>, topology: &mut Topology) -> Result<(), FirmwareError> {
    let psci = tree.nodes().find(|node| node.is_enabled() && node.is_compatible(PSCI));
    topology.psci = match psci.and_then(|node| Some((node, node.string("method")?))) {
        Some((_, "smc")) => Some(PsciConduit::Smc),
        Some((_, "hvc")) => Some(PsciConduit::Hvc),
        Some((node, _)) => {
            return Err(FirmwareError::BadValue { at: node.here(), value: 0 });
        }
        None => None,
    };
    let Some(parent) = tree.by_path("/cpus") else {
        return Ok(());
    };
    for node in parent.children().filter(|node| node.string("device_type") == Some("cpu")) {
        // A disabled CPU is quiescent, one that failed is none (Devicetree Specification 3.8.1).
        let state = match node.string("status") {
            None | Some("okay" | "ok") => CpuState::Enabled,
            Some("disabled") => CpuState::OnlineCapable,
            Some(_) => continue,
        };
        let Some(mut reg) = node.list("reg")? else {
            return Err(FirmwareError::BadLength { at: node.here(), length: 0 });
        };
        let id = CpuId::Mpidr(reg.take(node.cells().address)?);
        list::push(&mut topology.cpus, Cpu { id, state, start: start_method(&node)? })?;
    }
    Ok(())
}

fn start_method(node: &Node<'_, '_>) -> Result<CpuStart, FirmwareError> {
    match node.string("enable-method") {
        Some("psci") => Ok(CpuStart::Psci),
        Some("spin-table") => match node.list("cpu-release-addr")? {
            Some(mut address) => Ok(CpuStart::SpinTable(PhysAddr::new(address.take(2)?))),
            None => Ok(CpuStart::Unknown),
        },
        _ => Ok(CpuStart::Unknown),
    }
}

/// Adds PL011s, the one that `/chosen` names as standard output first.
pub(super) fn read_consoles(tree: &Tree<'_>, topology: &mut Topology) -> Result<(), FirmwareError> {
    let chosen = standard_output(tree).map(|node| node.index());
    for node in tree.nodes().filter(|node| node.is_enabled() && node.is_compatible(PL011)) {
        let console = Console {
            kind: ConsoleKind::Pl011,
            registers: node.first_registers()?,
            interrupt: interrupts(tree, &node)?.first().copied().flatten(),
        };
        list::push(&mut topology.consoles, console)?;
        if chosen == Some(node.index()) {
            topology.consoles.rotate_right(1);
        }
    }
    Ok(())
}

/// `stdout-path`: a path or an alias, with options after a colon.
fn standard_output<'t, 'a>(tree: &'t Tree<'a>) -> Option<Node<'t, 'a>> {
    let path = tree.by_path("/chosen")?.string("stdout-path")?;
    let (path, _) = list::split(path, b':');
    if path.starts_with('/') {
        return tree.by_path(path);
    }
    tree.by_path(tree.by_path("/aliases")?.string(path)?)
}
