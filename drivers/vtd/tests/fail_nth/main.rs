//! Every operation with each of its allocations failing, on the adversarial model. `points.txt` says how many there
//! are; when that changes, the test prints the new table.

use portcullis_hal::Arc;
use portcullis_hal::host::scarce::{Heap, ScarceHal, unfailing};
use portcullis_iommu::Unit;
use portcullis_model::vtd::{Config, Vtd};
use portcullis_pgtable::{AccessedDirty, Levels, VtdSecondStage, X86};
use portcullis_suites::fail_nth::{Board, Failed, PATIENCE_NS, Parts, Registers, check};
use portcullis_vtd::{InitError, Options, Setup};

#[global_allocator]
static HEAP: Heap = Heap;

fn board() -> Board {
    Board::new(Parts {
        unit: |memory, schedule| Vtd::new(Config::full(), memory, schedule),
        bring_up,
        response_pasid: true,
        foreign: VtdSecondStage::new(Levels::Four),
        process: X86::new(Levels::Four, AccessedDirty::Preset),
        input_bits: 48,
    })
}

fn bring_up(hal: ScarceHal, registers: Registers) -> Result<Arc<dyn Unit>, Failed> {
    let options = Options { timeout_ns: PATIENCE_NS, ..Options::new(48) };
    let driver =
        Setup::new(hal, registers, options).and_then(Setup::enable).map_err(|error| match error {
            InitError::OutOfMemory(_) => Failed::OutOfMemory,
            other => Failed::Otherwise(other.to_string()),
        })?;
    // A unit that is on keeps its tables, whether there is a handle or not.
    Ok(unfailing(|| driver.unit())?)
}

#[test]
fn an_operation_that_lacks_memory_changes_nothing_and_succeeds_when_tried_again() {
    check(board, include_str!("points.txt"));
}
