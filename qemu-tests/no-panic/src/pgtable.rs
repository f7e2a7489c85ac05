//! `portcullis-pgtable`, in every format.

use crate::embedder::{Kernel, debug, show};
use core::hint::black_box;
use core::ops::ControlFlow;
use portcullis_hal::{Attributes, Gather, Iova, IovaRange, Mapping, PhysAddr, PhysRange, TableWrites, Usage};
use portcullis_pgtable::{
    AccessedDirty, BbmLevel, Config, Format, Levels, PageTable, VmsaStage1, VmsaStage1Lpa2, VmsaStage2,
    VmsaStage2Lpa2, VtdSecondStage, X86,
};

#[inline(never)]
pub(crate) fn probe() {
    let (level, marks) = (black_box(BbmLevel::Level1), black_box(AccessedDirty::Hardware));
    macro_rules! each {
        ($($format:ty),+) => {
            $(format(<$format>::new().with_break_before_make(level).with_accessed_dirty(marks));)+
        };
    }
    each!(VmsaStage1<12>, VmsaStage1<14>, VmsaStage1<16>, VmsaStage1Lpa2<12>, VmsaStage1Lpa2<14>);
    each!(VmsaStage2<12>, VmsaStage2<14>, VmsaStage2<16>, VmsaStage2Lpa2<12>, VmsaStage2Lpa2<14>);
    format(X86::new(black_box(Levels::Four), black_box(AccessedDirty::Hardware)));
    format(VtdSecondStage::new(black_box(Levels::Four)).with_accessed_dirty(marks));
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
    let all = table.aperture();
    for result in [
        table.split_ends(all, &mut gather),
        table.split(all, black_box(0x1000), &mut gather),
        table.join(all, &mut gather),
    ] {
        match result {
            Ok(progress) => debug(&progress),
            Err(error) => show(&error),
        }
    }
    black_box(table.visit(all, |mapping| {
        debug(&mapping);
        ControlFlow::Break(())
    }));
    if let Err(error) = table.harvest(all, black_box(Usage::DIRTY), &mut gather, |mapping, usage| {
        debug(&(mapping, usage));
    }) {
        show(&error);
    }
    black_box((table.root(), table.aperture(), table.page_sizes(), table.translate(iova)));
    black_box(table.trim(&mut gather));
    debug(&table.root());
    if black_box(false) {
        table.quarantine();
    }
}
