//! Commands on PASIDs and permissions.

use super::Next;
use super::commands::usage;
use super::state::{State, number};
use crate::machine::{Machine, PciDevice};
use crate::memory::KernelHal;
use crate::report::{text, words};
use alloc::format;
use alloc::string::String;
use portcullis_hal::{MmioRegion, Pasid};
use portcullis_iommu::{Device, Permissions, Requests};
use portcullis_operations::ON_PAPER;
use portcullis_pci::FunctionControl;

/// How many page requests a device may have outstanding.
const PAGE_REQUESTS: u32 = 32;

pub(super) fn permit(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let (name, bits, requests) = match arguments {
        [name, bits] => (name, bits, Requests::empty()),
        [name, bits, "ats"] => (name, bits, Requests::TRANSLATION),
        _ => return usage("permit"),
    };
    let pasid_bits = u8::try_from(number(bits)?).map_err(words)?;
    let wanted = Permissions { pasid_bits, requests };
    let device = state.device(name)?;
    if device.permissions() != Permissions::NONE {
        state.machine.iommu.disable(&device, &ON_PAPER).map_err(words)?;
    }
    if wanted != Permissions::NONE {
        state.machine.iommu.enable(&device, &ON_PAPER, &wanted).map_err(words)?;
    }
    text(format_args!("permitted: pasid-bits={pasid_bits} ats={}", !requests.is_empty()));
    Ok(Next::Continue)
}

pub(super) fn enable(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let Some(([name, bits], requests)) = arguments.split_first_chunk() else {
        return usage("enable");
    };
    let mut wanted =
        Permissions { pasid_bits: u8::try_from(number(bits)?).map_err(words)?, requests: Requests::empty() };
    for word in requests {
        wanted.requests |= match *word {
            "ats" => Requests::TRANSLATION,
            "pri" => Requests::PAGE,
            _ => return usage("enable"),
        };
    }
    let device = state.device(name)?;
    let function = function(state.machine, &device)?;
    state.machine.iommu.enable(&device, &control(state.machine, function), &wanted).map_err(words)?;
    state.machine.enable_bus_master(function.index);
    Ok(Next::Continue)
}

pub(super) fn disable(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [name] = arguments else { return usage("disable") };
    let device = state.device(name)?;
    let function = function(state.machine, &device)?;
    state.machine.iommu.disable(&device, &control(state.machine, function)).map_err(words)?;
    Ok(Next::Continue)
}

pub(super) fn function<'a>(machine: &'a Machine, device: &Device) -> Result<&'a PciDevice, String> {
    let function = machine.function_of(device.id()).ok_or("not a PCI device")?;
    if machine.is_retired(function.index) {
        return Err("its registers were given away".into());
    }
    Ok(function)
}

pub(super) fn control<'a>(
    machine: &'a Machine,
    function: &'a PciDevice,
) -> FunctionControl<'a, KernelHal, MmioRegion> {
    FunctionControl {
        hal: &KernelHal,
        config: &machine.config,
        function: &function.function,
        page_requests: PAGE_REQUESTS,
    }
}

pub(super) fn attach(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [device, number, domain] = arguments else {
        return usage("attach-pasid");
    };
    let (device, pasid) = (state.device(device)?, pasid(number)?);
    let transition =
        state.machine.iommu.attach_pasid(&device, pasid, state.domain(domain)?).map_err(words)?;
    text(format_args!("attached: {transition}"));
    Ok(Next::Continue)
}

pub(super) fn detach(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [device, number] = arguments else {
        return usage("detach-pasid");
    };
    state.machine.iommu.detach_pasid(&*state.device(device)?, pasid(number)?).map_err(words)?;
    Ok(Next::Continue)
}

pub(super) fn dump(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [name, number] = arguments else {
        return usage("dump-pasid");
    };
    let (device, pasid) = (state.device(name)?, pasid(number)?);
    let unit = state.machine.iommu.unit(device.unit()).ok_or("no unit")?;
    let mut out = String::new();
    for endpoint in device.endpoints() {
        unit.describe_pasid(*endpoint, pasid, &mut out).map_err(words)?;
    }
    if out.is_empty() {
        return Err(format!("this unit has no entry for pasid {pasid} of {name}"));
    }
    out.lines().for_each(|line| text(format_args!("{line}")));
    Ok(Next::Continue)
}

pub(super) fn pasid(text: &str) -> Result<Pasid, String> {
    let number = u32::try_from(number(text)?).map_err(words)?;
    Pasid::new(number).map_err(words)
}
