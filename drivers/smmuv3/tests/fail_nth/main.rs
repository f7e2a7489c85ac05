//! Every operation with each of its allocations failing, on the adversarial model. `points.txt` says how many there
//! are; when that changes, the test prints the new table.

use portcullis_hal::Arc;
use portcullis_hal::host::scarce::{Heap, ScarceHal};
use portcullis_iommu::Unit;
use portcullis_model::smmuv3::{Config, Smmu};
use portcullis_pgtable::{VmsaStage1, VmsaStage2};
use portcullis_smmuv3::{InitError, Options, Setup};
use portcullis_suites::fail_nth::{Board, Failed, PATIENCE_NS, Parts, Registers, check};

#[global_allocator]
static HEAP: Heap = Heap;

fn board() -> Board {
    Board::new(Parts {
        unit: |memory, schedule| Smmu::new(Config::full(), memory, schedule),
        bring_up,
        response_pasid: false,
        foreign: VmsaStage2::<12>::new(),
        process: VmsaStage1::<12>::new(),
        input_bits: 40,
    })
}

fn bring_up(hal: ScarceHal, registers: Registers) -> Result<Arc<dyn Unit>, Failed> {
    let options = Options { timeout_ns: PATIENCE_NS, stream_bits: 16, ..Options::default() };
    let driver =
        Setup::new(hal, registers, options).and_then(Setup::enable).map_err(|error| match error {
            InitError::OutOfMemory(_) => Failed::OutOfMemory,
            other => Failed::Otherwise(other.to_string()),
        })?;
    Ok(driver.unit()?)
}

#[test]
fn an_operation_that_lacks_memory_changes_nothing_and_succeeds_when_tried_again() {
    check(board, include_str!("points.txt"));
}
