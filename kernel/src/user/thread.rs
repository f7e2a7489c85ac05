//! Threads of user code: run in their address space until they end, by themselves or because of what they did.

use super::program::{EXIT, NEXT, Order, Program};
use crate::memory::KernelHal;
use crate::mm::{AddressSpace, MmError, PAGE, PageRange};
use core::fmt;
use portcullis_arch::user::Context;
use portcullis_arch::{Call, Exception, Exit, PageFault};
use portcullis_hal::{Access, Arc, FaultOutcome, Hal, Mm, MmFault};

/// How long user code may run without a result, in nanoseconds.
const TIMEOUT_NS: u64 = 60_000_000_000;

/// Why a thread ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself, with a result.
    Exit(u64),
    /// By an access that its address space does not allow, or that could not be resolved.
    Fault(PageFault, FaultOutcome),
    /// By an instruction that user code may not execute.
    Exception(Exception),
    /// By a call that does not exist.
    UnknownCall(u64),
    /// It ran for too long.
    Late,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(result) => write!(f, "exit with {result:#x}"),
            Self::Fault(PageFault { address, access, .. }, outcome) => {
                let outcome = match outcome {
                    FaultOutcome::Resolved => "resolved",
                    FaultOutcome::Denied => "denied",
                    FaultOutcome::Failed => "not resolved",
                };
                write!(f, "{access} at {address:#x} {outcome}")
            }
            Self::Exception(exception) => write!(f, "{exception}"),
            Self::UnknownCall(number) => write!(f, "call {number:#x} does not exist"),
            Self::Late => f.write_str("no result in time"),
        }
    }
}

/// A thread of user code.
#[derive(Clone)]
pub(crate) struct Thread {
    space: Arc<AddressSpace>,
    context: Context,
}

impl Thread {
    /// Where programs are.
    const CODE: u64 = 0x40_0000;
    /// The end of the stack.
    const STACK: u64 = 0x7f_f000_0000;
    /// The size of the stack, in bytes.
    const STACK_SIZE: u64 = 16 * PAGE;

    /// A thread that runs `program`, in an address space with the program and a stack.
    pub(crate) fn new(program: Program, argument: u64) -> Result<Self, MmError> {
        let space = AddressSpace::new()?;
        space.map_program(PageRange::new(Self::CODE, PAGE)?, program.code())?;
        let stack = PageRange::new(Self::STACK - Self::STACK_SIZE, Self::STACK_SIZE)?;
        space.map(stack, Access::READ | Access::WRITE)?;
        Ok(Self { space, context: Context::new(Self::CODE, Self::STACK, argument) })
    }

    /// The address space.
    pub(crate) fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// The same thread in a copy of its address space.
    pub(crate) fn fork(&self) -> Result<Self, MmError> {
        Ok(Self { space: self.space.fork()?, context: self.context.clone() })
    }

    /// Another thread in the same address space, which executes orders with its own registers.
    pub(crate) fn sibling(&self) -> Self {
        let stack = Self::STACK - Self::STACK_SIZE / 2;
        Self { space: self.space.clone(), context: Context::new(Self::CODE, stack, 0) }
    }

    /// Runs the thread on this CPU until it ends.
    pub(crate) fn run(&mut self) -> Ended {
        match self.next_call() {
            Ok(Call { number: EXIT, arguments: [result, _] }) => Ended::Exit(result),
            Ok(Call { number, .. }) => Ended::UnknownCall(number),
            Err(ended) => ended,
        }
    }

    /// Lets a [`Program::Servant`] execute an order, and returns the result.
    pub(crate) fn execute(&mut self, order: Order) -> Result<u64, Ended> {
        // Up to where it asks.
        if self.context.instruction() == Self::CODE {
            self.result_of_last()?;
        }
        self.context.set_results(order.encode());
        self.result_of_last()
    }

    fn result_of_last(&mut self) -> Result<u64, Ended> {
        match self.next_call()? {
            Call { number: NEXT, arguments: [result, _] } => Ok(result),
            Call { number: EXIT, arguments: [result, _] } => Err(Ended::Exit(result)),
            Call { number, .. } => Err(Ended::UnknownCall(number)),
        }
    }

    /// Runs until the thread calls the kernel. Its faults are resolved here, as those of devices are elsewhere.
    fn next_call(&mut self) -> Result<Call, Ended> {
        let start = KernelHal.now_ns();
        let _active = self.space.activate();
        loop {
            match self.context.run() {
                Exit::Call(call) => return Ok(call),
                Exit::PageFault(fault) => {
                    let PageFault { address, access, .. } = fault;
                    let outcome = self.space.handle_fault(MmFault { address, access });
                    if outcome != FaultOutcome::Resolved {
                        return Err(Ended::Fault(fault, outcome));
                    }
                }
                Exit::Interrupt => {}
                Exit::Exception(exception) => return Err(Ended::Exception(exception)),
            }
            if KernelHal.now_ns().saturating_sub(start) > TIMEOUT_NS {
                return Err(Ended::Late);
            }
        }
    }
}
