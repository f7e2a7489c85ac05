//! A process without memory.

use crate::units::memory::Memory;
use portcullis_hal::{
    Arc, FaultOutcome, FrameOrder, Hal, Mm, MmFault, MmNotifier, OutOfMemory, PAGE_SIZE, SubscribeError,
    TableFormat, TableRoot, TableWrites, unsize_arc,
};

/// Its tables are empty, and its faults are resolved at once.
struct Process(TableRoot);

/// Makes one whose tables have this format.
pub(crate) fn process(memory: Memory, format: TableFormat) -> Result<Arc<dyn Mm>, OutOfMemory> {
    let root = memory.alloc_frames(FrameOrder::SINGLE)?;
    let root = TableRoot {
        format,
        root,
        input_bits: 47,
        output_bits: 39,
        page_sizes: PAGE_SIZE,
        writes: TableWrites::Cleaned,
    };
    Ok(unsize_arc!(Arc::try_new(Process(root))? => dyn Mm))
}

#[expect(unsafe_code, reason = "an address space whose tables nobody walks")]
// SAFETY: the root stays for ever, and nothing is ever removed from it.
unsafe impl Mm for Process {
    fn root(&self) -> TableRoot {
        self.0
    }

    fn subscribe(&self, _notifier: Arc<dyn MmNotifier>) -> Result<(), SubscribeError> {
        Ok(())
    }

    fn unsubscribe(&self, _notifier: &Arc<dyn MmNotifier>) {}

    fn handle_fault(&self, _fault: MmFault) -> FaultOutcome {
        FaultOutcome::Resolved
    }
}
