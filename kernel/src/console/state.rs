//! What the console made: domains, frames, processes and bonds, by name.

use super::processes::DeviceBond;
use crate::machine::Machine;
use crate::memory::KernelHal;
use crate::report::words;
use crate::user::Thread;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use portcullis_hal::{Arc, FrameOrder, Frames, InterruptMask, Iova, IovaRange, PhysRange};
use portcullis_iommu::{Device, Domain, UnitId};

/// Bytes of frames that the console may allocate in all.
const FRAME_BUDGET: u64 = 256 << 20;

/// Everything the console made. Frames are kept until power-off, so that no mapping outlives its memory.
pub(super) struct State {
    pub(super) machine: &'static Machine,
    pub(super) domains: Vec<Arc<dyn Domain>>,
    pub(super) processes: Vec<Thread>,
    /// `None` where they have ended.
    pub(super) bonds: Vec<Option<DeviceBond>>,
    /// The interrupt mask to restore, while page requests are left where they are.
    pub(super) held: Option<InterruptMask>,
    frames: Vec<Frames<KernelHal>>,
    allocated: u64,
}

impl State {
    pub(super) const fn new(machine: &'static Machine) -> Self {
        Self {
            machine,
            domains: Vec::new(),
            processes: Vec::new(),
            bonds: Vec::new(),
            held: None,
            frames: Vec::new(),
            allocated: 0,
        }
    }

    /// The domain called `d0`, `d1` ...
    pub(super) fn domain(&self, name: &str) -> Result<&Arc<dyn Domain>, String> {
        let index = number(name.strip_prefix('d').ok_or("domains are called d0, d1 ...")?)?;
        self.domains.get(index as usize).ok_or_else(|| format!("no domain {name}"))
    }

    /// The name of a domain, if the console made it.
    pub(super) fn domain_name(&self, domain: &Arc<dyn Domain>) -> String {
        let found = self.domains.iter().position(|known| Arc::ptr_eq(known, domain));
        found.map_or_else(|| "(another)".to_string(), |index| format!("d{index}"))
    }

    /// The frames called `f0`, `f1` ...
    pub(super) fn frame(&self, name: &str) -> Result<&Frames<KernelHal>, String> {
        let index = number(name.strip_prefix('f').ok_or("frames are called f0, f1 ...")?)?;
        self.frames.get(index as usize).ok_or_else(|| format!("no frame {name}"))
    }

    /// The process called `p0`, `p1` ...
    pub(super) fn process(&self, name: &str) -> Result<&Thread, String> {
        self.processes.get(process_index(name)?).ok_or_else(|| format!("no process {name}"))
    }

    /// As [`process`](Self::process), to run it.
    pub(super) fn process_mut(&mut self, name: &str) -> Result<&mut Thread, String> {
        self.processes.get_mut(process_index(name)?).ok_or_else(|| format!("no process {name}"))
    }

    /// Takes the bond called `b0`, `b1` ... out.
    pub(super) fn take_bond(&mut self, name: &str) -> Result<DeviceBond, String> {
        let index = number(name.strip_prefix('b').ok_or("bonds are called b0, b1 ...")?)?;
        let bond = self.bonds.get_mut(index as usize).and_then(Option::take);
        bond.ok_or_else(|| format!("no bond {name}"))
    }

    /// All frames with their names.
    pub(super) fn frames(&self) -> impl Iterator<Item = (String, &Frames<KernelHal>)> {
        self.frames.iter().enumerate().map(|(index, frames)| (format!("f{index}"), frames))
    }

    /// Allocates frames and returns their name.
    pub(super) fn allocate(&mut self, len: u64) -> Result<String, String> {
        let order = FrameOrder::for_bytes(len).ok_or("too large")?;
        if self.allocated + order.bytes() > FRAME_BUDGET {
            return Err("the console's memory is used up".to_string());
        }
        let frames = Frames::zeroed(&KernelHal, order).map_err(words)?;
        self.frames.try_reserve(1).map_err(words)?;
        self.frames.push(frames);
        self.allocated += order.bytes();
        Ok(format!("f{}", self.frames.len() - 1))
    }

    /// The device with this name, in full (`0000:00:04.0`) or without the segment (`00:04.0`).
    pub(super) fn device(&self, name: &str) -> Result<Arc<Device>, String> {
        let full = format!("0000:{name}");
        let mut found = None;
        self.machine.iommu.for_each_device(|device| {
            let id = device.id().to_string();
            if id == name || id == full {
                found = Some(device.clone());
            }
        });
        found.ok_or_else(|| format!("no device {name}"))
    }

    /// The unit with this number, with or without `iommu` before it.
    pub(super) fn unit(&self, name: &str) -> Result<UnitId, String> {
        let index = number(name.strip_prefix("iommu").unwrap_or(name))?;
        let id = UnitId(u16::try_from(index).map_err(|_| format!("no unit {name}"))?);
        self.machine.iommu.unit(id).map(|_| id).ok_or_else(|| format!("no unit {name}"))
    }

    /// Memory by the name of a frame, or a device's window as `DEVICE/barN`.
    pub(super) fn memory(&self, name: &str, len: u64) -> Result<PhysRange, String> {
        let range = match name.split_once("/bar") {
            Some((device, bar)) => {
                let device = self.device(device)?;
                self.machine.window(&device, u8::try_from(number(bar)?).map_err(|_| "no such window")?)?
            }
            None => self.frame(name)?.range(),
        };
        if len > range.len() {
            return Err(format!("{name} has only {:#x} bytes", range.len()));
        }
        PhysRange::new(range.start(), len).map_err(words)
    }
}

fn process_index(name: &str) -> Result<usize, String> {
    let index = number(name.strip_prefix('p').ok_or("processes are called p0, p1 ...")?)?;
    usize::try_from(index).map_err(words)
}

/// A number, decimal or hexadecimal with `0x`.
pub(super) fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("`{text}` is no number"))
}

/// A length: a number, with `K`, `M` or `G` for the binary multiples.
pub(super) fn length(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.chars().last() {
        Some('K') => (text.trim_end_matches('K'), 10),
        Some('M') => (text.trim_end_matches('M'), 20),
        Some('G') => (text.trim_end_matches('G'), 30),
        _ => (text, 0),
    };
    let value = number(digits)?;
    if value == 0 || value > u64::MAX >> shift {
        Err(format!("`{text}` is no length"))
    } else {
        Ok(value << shift)
    }
}

/// A range of I/O virtual addresses.
pub(super) fn range(iova: &str, len: &str) -> Result<IovaRange, String> {
    IovaRange::new(Iova::new(number(iova)?), length(len)?).map_err(words)
}
