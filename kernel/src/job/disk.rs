//! A disk behind a root port: every byte of it through a domain of its own.

use super::Outcome;
use crate::devices::disk::{self, Disk, SECTOR};
use crate::dma::DmaSpace;
use crate::machine::Machine;
use crate::memory::KernelHal;
use crate::report::Report;
use crate::report::words;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write;
use portcullis_hal::{Hal, PAGE_SIZE, PhysAddr};
use portcullis_iommu::{AttachError, EnableError, Permissions, Requests};
use portcullis_pci::FunctionControl;
use sha2::{Digest, Sha256};

/// Bytes per request: whole pages, mapped in place.
const CHUNK: usize = 256 * 1024;

/// Where the kernel writes, in sectors, and how many.
pub(super) const WRITE_FIRST: usize = 2048;
const WRITE_COUNT: usize = 65;

pub(super) fn run(machine: &Machine, report: &mut Report) {
    report.section("A disk");
    let Some(function) = machine.function(disk::ID) else {
        report.fail("disk.found", format_args!("no virtio-blk on the bus"));
        return;
    };
    let bus = function.function.id.bus();
    let outcome =
        if bus == 0 { Err("on bus 0") } else { Ok(format!("{} behind a bridge", function.device.id())) };
    report.check("disk.found", outcome);
    match open(machine) {
        Ok(mut disk) => {
            if let Some(outcome) = enable_ats(machine) {
                report.check("disk.ats", outcome);
            }
            let hash = read_all(&mut disk, report);
            report.check("disk.read", hash);
            let written = write(&mut disk, report);
            report.check("disk.write", written);
            let bounced = read_across_pages(&mut disk);
            report.check("disk.bounce", bounced);
            report.check("disk.revoked", nothing_left());
        }
        Err(reason) => {
            report.fail("disk.start", format_args!("{reason}"));
        }
    }
}

fn open(machine: &Machine) -> Result<Disk, String> {
    let function = machine.function(disk::ID).ok_or("gone")?;
    let space = DmaSpace::attached(machine.iommu, &function.device, None).map_err(words)?;
    if let Some(now) = space.domain().iova_to_phys(space.domain().aperture().last()) {
        return Err(format!("the fresh domain maps {:?}", now.phys));
    }
    disk::use_space(space);
    machine.enable_bus_master(function.index);
    Disk::new(&machine.config, &function.function).map_err(words)
}

/// Lets the disk cache translations, where its unit permits that: from here on it has to be told of every unmap.
fn enable_ats(machine: &Machine) -> Option<Outcome> {
    let function = machine.function(disk::ID)?;
    let control = FunctionControl {
        hal: &KernelHal,
        config: &machine.config,
        function: &function.function,
        page_requests: 1,
    };
    let wanted = Permissions { pasid_bits: 0, requests: Requests::TRANSLATION };
    match machine.iommu.enable(&function.device, &control, &wanted) {
        Ok(()) => Some(Ok("switched on, behind the unit's permission".to_string())),
        Err(EnableError::Unit(AttachError::Incompatible { .. })) => None,
        Err(error) => Some(Err(words(error))),
    }
}

fn read_all(disk: &mut Disk, report: &mut Report) -> Outcome {
    let start = KernelHal.now_ns();
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(CHUNK).map_err(words)?;
    buffer.resize(CHUNK, 0);
    let mut hash = Sha256::new();
    let sectors = disk.sectors() as usize;
    let mut first = 0;
    while first < sectors {
        let count = (CHUNK / SECTOR).min(sectors - first);
        let Some(part) = buffer.get_mut(..count * SECTOR) else {
            break;
        };
        disk.read(first, part).map_err(|error| format!("sector {first}: {error}"))?;
        hash.update(&*part);
        first += count;
    }
    report.data("disk.sha256", format_args!("{}", hex(&hash.finalize())?));
    let milliseconds = (KernelHal.now_ns() - start) / 1_000_000;
    Ok(format!("{} sectors in {milliseconds} ms", sectors))
}

fn write(disk: &mut Disk, report: &mut Report) -> Outcome {
    let bytes: Vec<u8> = (0..WRITE_COUNT * SECTOR).map(written).collect();
    disk.write(WRITE_FIRST, &bytes).map_err(words)?;
    disk.flush().map_err(words)?;
    let mut back = alloc::vec![0; bytes.len()];
    disk.read(WRITE_FIRST, &mut back).map_err(words)?;
    if back != bytes {
        return Err("what was read back differs".to_string());
    }
    let hash = hex(&Sha256::digest(&bytes))?;
    report.data("disk.written", format_args!("sector={WRITE_FIRST} count={WRITE_COUNT} sha256={hash}"));
    Ok(format!("{WRITE_COUNT} sectors from {WRITE_FIRST}"))
}

/// What the kernel writes from [`WRITE_FIRST`] on.
pub(super) fn written(index: usize) -> u8 {
    (index as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3]
}

/// A buffer that shares its pages with other data: the device must only see a copy.
fn read_across_pages(disk: &mut Disk) -> Outcome {
    let mut neighbourhood = Vec::new();
    neighbourhood.resize(3 * 4096, 0xaa_u8);
    let offset = 4096 - 256 - neighbourhood.as_ptr().addr() % 4096 % 256;
    let part = neighbourhood.get_mut(offset..offset + SECTOR).ok_or("no room")?;
    disk.read(WRITE_FIRST, part).map_err(words)?;
    let (behind, buffer) = disk::last_shared().ok_or("nothing was shared")?;
    let first = PhysAddr::new(buffer.get() - offset as u64).align_down(PAGE_SIZE).get();
    let pages = first..buffer.get() - offset as u64 + neighbourhood.len() as u64;
    if pages.contains(&behind.get()) {
        return Err(format!("the disk was given {behind}, in a page of the buffer at {buffer}"));
    }
    let mut expected = [0; SECTOR];
    disk.read(WRITE_FIRST, &mut expected).map_err(words)?;
    if neighbourhood.get(offset..offset + SECTOR) != Some(&expected) {
        return Err("the copy differs".to_string());
    }
    let untouched = neighbourhood
        .iter()
        .enumerate()
        .all(|(i, &byte)| (offset..offset + SECTOR).contains(&i) || byte == 0xaa);
    if untouched {
        Ok(format!("a sector for {buffer}, by a copy at {behind}"))
    } else {
        Err("neighbours changed".to_string())
    }
}

/// Between requests the disk reaches its rings and nothing else.
fn nothing_left() -> Outcome {
    match disk::live_buffers() {
        0 => Err("not even the rings are mapped".to_string()),
        // virtio-drivers allocates a ring in two parts: what the driver writes and what the device writes.
        1 | 2 => Ok("only the rings are still mapped".to_string()),
        more => Err(format!("{more} buffers are still mapped")),
    }
}

fn hex(bytes: &[u8]) -> Result<String, String> {
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").map_err(words)?;
    }
    Ok(text)
}
