//! The closing table: what the units did.

use crate::dma;
use crate::machine::Machine;
use crate::memory;
use crate::report::{self, Report};
use portcullis_arch::interrupts;

pub(super) fn run(machine: &Machine, report: &mut Report) {
    report.section("Summary");
    report::text(format_args!(
        "  {:<8} {:<12} {:>8} {:>8} {:>7} {:>9} {:>14} {:>8} {:>9} {:>7}",
        "unit",
        "kind",
        "domains",
        "attaches",
        "faults",
        "overflows",
        "invalidations",
        "syncs",
        "doorbells",
        "errors"
    ));
    let (mut faults, mut errors) = (0, 0);
    machine.iommu.for_each_unit(|id, unit| {
        let stats = unit.stats();
        faults += stats.faults;
        errors += stats.queue_errors;
        report::text(format_args!(
            "  {:<8} {:<12} {:>8} {:>8} {:>7} {:>9} {:>14} {:>8} {:>9} {:>7}",
            id,
            unit.info().backend,
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
    let (mappings, bytes) = dma::counts();
    let (used, total) = memory::usage();
    report::text(format_args!(
        "  {mappings} mappings, {bytes} bytes of DMA, {} interrupts, {} of {} KiB in use",
        interrupts::count(),
        used / 1024,
        total / 1024
    ));
    let outcome =
        if faults > 0 { Ok("counted by the hardware's own records") } else { Err("no fault was counted") };
    report.check("summary.faults", outcome);
    let outcome = if errors == 0 { Ok("none") } else { Err("a command queue stopped at an error") };
    report.check("summary.queue-errors", outcome);
}
