//! `portcullis-pgtable`, in every format.

use crate::embedder::{Kernel, debug, show};
use core::hint::black_box;
use portcullis_hal::{Attributes, Gather, Iova, IovaRange, Mapping, PhysAddr, PhysRange, TableWrites};
use portcullis_pgtable::{
    AccessedDirty, Config, Format, Levels, PageTable, VmsaStage1, VmsaStage2, VtdSecondStage, X86,
};

#[inline(never)]
pub(crate) fn probe() {
    format(VmsaStage1::<12>::new());
    format(VmsaStage1::<14>::new());
    format(VmsaStage1::<16>::new());
    format(VmsaStage2::<12>::new());
    format(VmsaStage2::<14>::new());
    format(VmsaStage2::<16>::new());
    format(X86::new(black_box(Levels::Four), black_box(AccessedDirty::Hardware)));
    format(VtdSecondStage::new(black_box(Levels::Four)));
    black_box(black_box(Levels::Three).get());
}

#[inline(never)]
fn format<F: Format>(format: F) {
    let config = black_box(Config {
        input_bits: 48,
        output_bits: 48,
        page_sizes: u64::MAX,
        writes: TableWrites::Cleaned,
    });
    let mut table = match PageTable::new(&Kernel, format, config) {
        Ok(table) => table,
        Err(error) => return show(&error),
    };
    let iova = black_box(Iova::new(0));
    let Ok(memory) = PhysRange::new(black_box(PhysAddr::new(0)), black_box(0x1000)) else { return };
    let mapping = Mapping { iova, memory, attributes: black_box(Attributes::READ) };
    if let Err(error) = table.map(&[mapping]) {
        show(&error);
    }
    let list = [mapping; 4];
    if let Err(error) = table.map(black_box(&list[..])) {
        show(&error);
    }
    let mut gather = Gather::new();
    if let Ok(range) = IovaRange::new(iova, black_box(0x1000)) {
        match table.unmap(range, &mut gather) {
            Ok(bytes) => drop(black_box(bytes)),
            Err(error) => show(&error),
        }
    }
    black_box((table.root(), table.aperture(), table.page_sizes(), table.translate(iova)));
    black_box(table.trim(&mut gather));
    debug(&table.root());
    if black_box(false) {
        table.quarantine();
    }
}
