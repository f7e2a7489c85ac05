//! Interrupts: wired ones through the GICv3, messages through its ITS, and the handlers of both.

#![expect(unsafe_code, reason = "the register blocks that the kernel names")]

use super::cpu;
use super::gic::{self, Distributor, FIRST_SPI, LpiTables, MAX_REGIONS, Redistributor, Region, SPI_END};
use super::its::Its;
pub use super::its::ItsError;
use super::its_spec::FIRST_LPI;
use super::lock::InterruptLock;
use super::paging::MapDeviceError;
use arm_gic::InterruptGroup;
use arm_gic::gicv3::GicCpuInterface;
use core::sync::atomic::{AtomicU64, Ordering};
use portcullis_hal::wait::Timeout;
use portcullis_hal::{Hal, MsiMessage, PhysRange};
use thiserror::Error;

/// What an interrupt calls, with the argument given when it was connected; interrupts are masked.
pub type Handler = fn(usize);

/// How a wired interrupt is signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// By an edge.
    Edge,
    /// By a level, until the handler makes the device release it.
    Level,
}

/// Where the interrupt controller is, from the firmware's description of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    /// The distributor's registers.
    pub distributor: PhysRange,
    /// The regions of redistributors; eight at most.
    pub redistributors: &'a [PhysRange],
    /// The ITS's registers, both frames; without an ITS there are no message-signalled interrupts.
    pub its: Option<PhysRange>,
}

/// Why the interrupt controller was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InitError {
    /// It was started before.
    #[error("the interrupt controller was initialized before")]
    AlreadyInitialized,
    /// It was not started by the boot CPU yet.
    #[error("the interrupt controller is not initialized")]
    NotInitialized,
    /// The registers cannot be mapped.
    #[error(transparent)]
    Map(#[from] MapDeviceError),
    /// No memory for tables.
    #[error("out of memory for interrupt tables")]
    OutOfMemory,
    /// The range is too short for the registers that it should hold.
    #[error("{0} is too short for its registers")]
    TooShort(PhysRange),
    /// More regions of redistributors than the kernel knows.
    #[error("too many regions of redistributors")]
    TooManyRegions,
    /// More CPUs than the kernel knows.
    #[error("too many CPUs")]
    TooManyCpus,
    /// No redistributor has this CPU's affinity.
    #[error("no redistributor for the CPU with affinity {0:#x}")]
    NoRedistributor(u64),
    /// The GIC has an ITS, but not the LPIs that it needs.
    #[error("the GIC does not implement the LPIs that its ITS needs")]
    NoLpis,
    /// The controller did not answer.
    #[error(transparent)]
    Timeout(#[from] Timeout),
    /// The ITS did not carry out a command.
    #[error(transparent)]
    Its(#[from] ItsError),
}

/// Why there is no message-signalled interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MsiError {
    /// The interrupt controller was not started on this CPU.
    #[error("the interrupt controller is not initialized on this CPU")]
    NotInitialized,
    /// The machine has no ITS.
    #[error("no interrupt translation service")]
    NoIts,
    /// All LPIs that the kernel has handlers for are taken.
    #[error("out of interrupt numbers")]
    OutOfInterrupts,
    /// All interrupt translation tables are taken.
    #[error("too many devices with messages")]
    TooManyDevices,
    /// All events of this device are taken.
    #[error("too many events of device {0:#x}")]
    TooManyEvents(u32),
    /// The ITS knows no such device id.
    #[error("device id {0:#x} is beyond the interrupt translation service")]
    UnknownDevice(u32),
    /// The ITS did not carry out a command.
    #[error(transparent)]
    Its(#[from] ItsError),
}

/// Why a wired interrupt was not connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WiredError {
    /// The interrupt controller was not started.
    #[error("the interrupt controller is not initialized")]
    NotInitialized,
    /// The number is not that of a shared interrupt of this GIC.
    #[error("{0} is not a shared peripheral interrupt")]
    NotShared(u32),
    /// The line has a handler.
    #[error("interrupt {0} is connected")]
    Connected(u32),
}

#[derive(Clone, Copy)]
struct Connection {
    handler: Handler,
    argument: usize,
}

/// LPIs that can be in use at a time.
const MAX_LPIS: usize = 512;
const _: () = assert!(MAX_LPIS <= LpiTables::COUNT as usize);

/// The handlers, by interrupt number.
struct Handlers {
    shared: [Option<Connection>; (SPI_END - FIRST_SPI) as usize],
    lpis: [Option<Connection>; MAX_LPIS],
}

struct Controller {
    distributor: Distributor,
    regions: [Option<Region>; MAX_REGIONS],
    messages: Option<(Its, LpiTables)>,
    started: [bool; cpu::MAX_CPUS],
    next_lpi: usize,
}

/// Taken before `HANDLERS` where both are needed.
static CONTROLLER: InterruptLock<Option<Controller>> = InterruptLock::new(None);

/// Apart from the controller, so that an interrupt never waits for a CPU that waits for the ITS.
static HANDLERS: InterruptLock<Handlers> =
    InterruptLock::new(Handlers { shared: [None; (SPI_END - FIRST_SPI) as usize], lpis: [None; MAX_LPIS] });

static COUNT: AtomicU64 = AtomicU64::new(0);

/// Starts the interrupt controller, and its part for the boot CPU. Called once, by the boot CPU; interrupts stay as
/// masked as they are.
///
/// Tables come from `hal` and are kept until power-off. After an error there are no interrupts.
pub fn init<H: Hal>(hal: &H, config: &Config<'_>) -> Result<(), InitError> {
    let mut controller = CONTROLLER.lock();
    if controller.is_some() {
        return Err(InitError::AlreadyInitialized);
    }
    let mut regions = [None; MAX_REGIONS];
    if config.redistributors.len() > MAX_REGIONS {
        return Err(InitError::TooManyRegions);
    }
    let mut cpus = 0_usize;
    for (slot, &range) in regions.iter_mut().zip(config.redistributors) {
        // SAFETY: the kernel names the ranges by what firmware says of the machine, and the controller is started
        // once: the check above holds under the lock.
        let region = unsafe { Region::map(range) }?;
        cpus += region.redistributors().take(cpu::MAX_CPUS).count();
        *slot = Some(region);
    }
    // SAFETY: as for the redistributors.
    let distributor = unsafe { Distributor::start(config.distributor) }?;
    let messages = match config.its {
        Some(range) => {
            let tables = LpiTables::new(hal, cpus.min(cpu::MAX_CPUS))?;
            // SAFETY: as for the redistributors.
            Some((unsafe { Its::start(hal, range) }?, tables))
        }
        None => None,
    };
    let mut started =
        Controller { distributor, regions, messages, started: [false; cpu::MAX_CPUS], next_lpi: 0 };
    started.start_cpu()?;
    *controller = Some(started);
    Ok(())
}

/// Starts the interrupt controller's part for the calling CPU, if that has not been done.
pub fn init_secondary() -> Result<(), InitError> {
    CONTROLLER.lock().as_mut().ok_or(InitError::NotInitialized)?.start_cpu()
}

impl Controller {
    fn start_cpu(&mut self) -> Result<(), InitError> {
        let index = cpu::index();
        let started = self.started.get_mut(index).ok_or(InitError::TooManyCpus)?;
        if *started {
            return Ok(());
        }
        let redistributor = Redistributor::of_this_cpu(&self.regions)?;
        redistributor.start()?;
        if let Some((its, tables)) = &mut self.messages {
            redistributor.enable_lpis(tables, index)?;
            its.add_cpu(index, &redistributor)?;
        }
        gic::start_cpu_interface();
        *started = true;
        Ok(())
    }
}

/// An MSI of the device with this id at the ITS, routed to the calling CPU.
///
/// Each call gives the device one more event. The interrupt may come as soon as the device is told the message.
pub fn allocate_msi(device: u32, handler: Handler, argument: usize) -> Result<MsiMessage, MsiError> {
    let mut controller = CONTROLLER.lock();
    let controller = controller.as_mut().ok_or(MsiError::NotInitialized)?;
    let (its, tables) = controller.messages.as_mut().ok_or(MsiError::NoIts)?;
    let index = controller.next_lpi;
    if index >= MAX_LPIS {
        return Err(MsiError::OutOfInterrupts);
    }
    let lpi = FIRST_LPI + index as u32;
    tables.enable(lpi);
    let event = its.add_event(device, lpi, cpu::index())?;
    if let Some(slot) = HANDLERS.lock().lpis.get_mut(index) {
        *slot = Some(Connection { handler, argument });
    }
    controller.next_lpi += 1;
    Ok(MsiMessage { address: its.translater(), data: event })
}

/// Connects the shared interrupt with GIC number `line` (32 to 1019; a device tree's SPI numbers start at 0) to a
/// handler, and routes it to the calling CPU.
pub fn connect_wired(
    line: u32,
    trigger: Trigger,
    handler: Handler,
    argument: usize,
) -> Result<(), WiredError> {
    let mut controller = CONTROLLER.lock();
    let controller = controller.as_mut().ok_or(WiredError::NotInitialized)?;
    let index = line.checked_sub(FIRST_SPI).ok_or(WiredError::NotShared(line))? as usize;
    {
        let mut handlers = HANDLERS.lock();
        let slot = handlers.shared.get_mut(index).ok_or(WiredError::NotShared(line))?;
        if slot.is_some() {
            return Err(WiredError::Connected(line));
        }
        *slot = Some(Connection { handler, argument });
    }
    let result = controller.distributor.connect(line, trigger, cpu::affinity());
    if result.is_err()
        && let Some(slot) = HANDLERS.lock().shared.get_mut(index)
    {
        *slot = None;
    }
    result
}

/// How many interrupts all CPUs have taken.
pub fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// Runs the handlers of all interrupts that are pending on this CPU; from the IRQ vector.
pub(super) fn handle_pending() {
    while let Some(id) = GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group1) {
        COUNT.fetch_add(1, Ordering::Relaxed);
        let connection = connection(u32::from(id));
        match connection {
            Some(Connection { handler, argument }) => handler(argument),
            None => log::warn!("interrupt {id:?} has no handler"),
        }
        GicCpuInterface::end_interrupt(id, InterruptGroup::Group1);
    }
}

fn connection(id: u32) -> Option<Connection> {
    let handlers = HANDLERS.lock();
    let slot = match id.checked_sub(FIRST_LPI) {
        Some(index) => handlers.lpis.get(index as usize),
        None => handlers.shared.get(id.checked_sub(FIRST_SPI)? as usize),
    };
    *slot?
}
