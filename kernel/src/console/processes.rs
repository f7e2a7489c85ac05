//! Commands on processes, and on devices that work in their address spaces.

use super::Next;
use super::commands::usage;
use super::pasids;
use super::state::{State, length, number};
use crate::machine::KernelIommu;
use crate::memory::KernelHal;
use crate::mm::PageRange;
use crate::report::{text, words};
use crate::user::{Order, Program, Thread};
use alloc::format;
use alloc::string::{String, ToString};
use portcullis_hal::{Access, Arc, Mm, Pasid, unsize_arc};
use portcullis_iommu::{Bond, Device, ExitHandler, Feature, PageFaultWork, PageRights};

/// Where a process has its memory.
const HEAP: u64 = 0x10_0000_0000;

/// How often page requests are looked after at an exit: others may ask for ever.
const ROUNDS: u32 = 64;

/// A bond of the console's.
pub(super) type DeviceBond = Bond<'static, KernelHal>;

/// The devices are driven by whoever types, who is told. What they have asked for until then is answered here, as a
/// driver would wait for it before it calls its device stopped.
struct Announce {
    iommu: &'static KernelIommu,
}

impl ExitHandler for Announce {
    fn exit(&self, device: &Device, pasid: Option<Pasid>) {
        let _more = self.iommu.handle_interrupt(device.unit());
        for _ in 0..ROUNDS {
            if self.iommu.handle_page_faults() == PageFaultWork::Done {
                break;
            }
        }
        match pasid {
            Some(pasid) => text(format_args!("exit: device {} pasid {pasid}", device.id())),
            None => text(format_args!("exit: device {}", device.id())),
        }
    }
}

/// Makes a process that does as it is told, or a copy of one.
pub(super) fn process(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let thread = match arguments {
        ["new", len] => {
            let thread = Thread::new(Program::Servant, 0).map_err(words)?;
            let heap = PageRange::new(HEAP, length(len)?).map_err(words)?;
            thread.space().map(heap, Access::READ | Access::WRITE).map_err(words)?;
            thread
        }
        ["fork", name] => state.process(name)?.fork().map_err(words)?,
        _ => return usage("process"),
    };
    state.processes.try_reserve(1).map_err(words)?;
    state.processes.push(thread);
    text(format_args!("process: p{} heap={HEAP:#x}", state.processes.len() - 1));
    Ok(Next::Continue)
}

/// Has a process read a word, without privilege.
pub(super) fn load(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [name, address] = arguments else { return usage("load") };
    let value = state.process_mut(name)?.execute(Order::Load(number(address)?)).map_err(words)?;
    text(format_args!("value: {value:#x}"));
    Ok(Next::Continue)
}

/// Has a process write a word, without privilege.
pub(super) fn store(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [name, address, value] = arguments else { return usage("store") };
    let order = Order::Store(number(address)?, number(value)?);
    state.process_mut(name)?.execute(order).map_err(words)?;
    Ok(Next::Continue)
}

/// Changes what a process may do with pages.
pub(super) fn protect(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [name, address, len, access] = arguments else { return usage("protect") };
    let range = PageRange::new(number(address)?, length(len)?).map_err(words)?;
    let access = match *access {
        "r" => Access::READ,
        "rw" => Access::READ | Access::WRITE,
        _ => return usage("protect"),
    };
    state.process(name)?.space().protect(range, access).map_err(words)?;
    Ok(Next::Continue)
}

/// Takes pages away from a process.
pub(super) fn release(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [name, address, len] = arguments else { return usage("release") };
    let range = PageRange::new(number(address)?, length(len)?).map_err(words)?;
    let resident = state.process(name)?.space().unmap(range).map_err(words)?;
    text(format_args!("released: {resident} pages with memory"));
    Ok(Next::Continue)
}

/// Ends a process.
pub(super) fn exit(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [name] = arguments else { return usage("exit") };
    let resident = state.process(name)?.space().end().map_err(words)?;
    text(format_args!("exit: {name} had {resident} pages with memory"));
    Ok(Next::Continue)
}

/// Binds a device to a process's address space; what that needs is enabled.
pub(super) fn bind(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [device, process] = arguments else { return usage("bind") };
    let device = state.device(device)?;
    let function = pasids::function(state.machine, &device)?;
    let space = state.process(process)?.space().clone();
    let iommu: &'static KernelIommu = state.machine.iommu;
    let control = pasids::control(state.machine, function);
    iommu.enable_feature(&device, &control, Feature::Sva, &space.root()).map_err(words)?;
    state.machine.enable_bus_master(function.index);
    let on_exit = unsize_arc!(Arc::try_new(Announce { iommu }).map_err(words)? => dyn ExitHandler);
    let mm = unsize_arc!(space => dyn Mm);
    state.bonds.try_reserve(1).map_err(words)?;
    let bond = iommu.bind(&device, &mm, PageRights::empty(), on_exit).map_err(words)?;
    let pasid = bond.pasid().map_or_else(|| "none".to_string(), |pasid| format!("{pasid}"));
    state.bonds.push(Some(bond));
    text(format_args!("bond: b{} pasid={pasid}", state.bonds.len() - 1));
    Ok(Next::Continue)
}

/// Ends a bond.
pub(super) fn unbind(state: &mut State, arguments: &[&str]) -> Result<Next, String> {
    let [name] = arguments else { return usage("unbind") };
    let bond: DeviceBond = state.take_bond(name)?;
    bond.unbind().map_err(words)?;
    Ok(Next::Continue)
}
