//! Changing permissions: what is mapped stays mapped, and only the permissions change.

mod common;

use common::*;
use portcullis_hal::{Access, Attributes, Gather, TableWrites};
use portcullis_pgtable::{AccessedDirty, Config, Format, PageTable, ProtectError, VmsaStage1};
use std::collections::BTreeMap;

const CODE: Attributes = Attributes::memory(Access::READ.union(Access::EXECUTE));

fn without_write(access: Access) -> Access {
    access - Access::WRITE
}

/// What is mapped at each address of a leaf, and what may be done there.
fn accesses(found: &BTreeMap<u64, Leaf>) -> Vec<(u64, u64, Access)> {
    found.iter().map(|(&iova, leaf)| (iova, leaf.phys, leaf.access)).collect()
}

#[test]
fn permissions_change_in_the_range_and_nowhere_else() {
    fn check<F: Format>(format: F, bits: u8) {
        let hal = Behind::default();
        let table =
            PageTable::new(&hal, format, Config { writes: TableWrites::Cleaned, ..config(bits) }).unwrap();
        let singles = leaf_sizes(&table);
        let (page, large) = (singles[0], singles[1]);
        table.map(&[rw(0, 16 * large, 3 * page), rw(large, 8 * large, large)]).unwrap();
        let rights = Access::READ | Access::WRITE;
        let mut gather = Gather::new();
        let changed = table.protect(range(page, page), without_write, &mut gather).unwrap();
        assert_eq!((changed, gather.range()), (page, Some(range(page, page))));
        let expected = |middle| {
            vec![
                (0, 16 * large, rights),
                (page, 16 * large + page, middle),
                (2 * page, 16 * large + 2 * page, rights),
                (large, 8 * large, rights),
            ]
        };
        // As a walker sees them that does not snoop.
        assert_eq!(accesses(&leaves(&hal, &table.root())), expected(Access::READ));
        // Gaps do not matter, leaves of all sizes are changed, and what is so already is no change.
        let mut gather = Gather::new();
        let changed = table.protect(range(0, 2 * large), without_write, &mut gather).unwrap();
        assert_eq!(changed, 2 * page + large);
        assert!(accesses(&leaves(&hal, &table.root())).iter().all(|leaf| leaf.2 == Access::READ));
        let changed = table.protect(range(0, 2 * large), |_| rights, &mut gather).unwrap();
        assert_eq!(changed, 3 * page + large);
        assert_eq!(accesses(&leaves(&hal, &table.root())), expected(rights));
        assert_eq!(table.protect(range(0, 2 * large), |old| old, &mut gather), Ok(0));
    }
    check(X86_4, 48);
    check(STAGE1_4K, 48);
    check(STAGE1_64K, 48);
    check(STAGE1_16K_LPA2, 52);
    check(STAGE2_4K, 40);
    check(SECOND_4, 48);
}

#[test]
fn code_stays_code() {
    let hal = Behind::default();
    let table = PageTable::new(&hal, STAGE1_4K, config(48)).unwrap();
    table.map(&[mapping(0x1000, 0x8000, 0x1000, CODE)]).unwrap();
    let mut gather = Gather::new();
    assert_eq!(table.protect(range(0x1000, 0x1000), without_write, &mut gather), Ok(0));
    assert_eq!(table.protect(range(0x1000, 0x1000), |_| Access::READ, &mut gather), Ok(0x1000));
    let found = table.translate(portcullis_hal::Iova::new(0x1000)).unwrap();
    assert_eq!((found.phys.get(), found.attributes), (0x8000, Attributes::READ));
}

#[test]
fn what_cannot_be_changed_as_a_whole_is_not_changed_at_all() {
    let hal = Behind::default();
    let table = PageTable::new(&hal, X86_4, config(48)).unwrap();
    table.map(&[rw(0x1f_f000, 0x8000, 0x1000), rw(0x20_0000, 0x40_0000, 0x20_0000)]).unwrap();
    let before = accesses(&leaves(hal.host(), &table.root()));
    let mut gather = Gather::new();
    let part = table.protect(range(0x1f_f000, 0x2000), without_write, &mut gather);
    let large = portcullis_hal::Iova::new(0x20_0000);
    assert_eq!(part, Err(ProtectError::Partial { iova: large, size: 0x20_0000 }));
    // x86 has nothing that can be written and not read.
    let write_only = table.protect(range(0x1f_f000, 0x1000), |_| Access::WRITE, &mut gather);
    let page = portcullis_hal::Iova::new(0x1f_f000);
    assert_eq!(write_only, Err(ProtectError::Attributes { iova: page }));
    assert_eq!(accesses(&leaves(hal.host(), &table.root())), before);
    assert_eq!(gather.range(), None);
}

#[test]
fn runs_and_marks_are_respected() {
    let hal = Behind::default();
    let mut gather = Gather::new();
    // Sixteen pages under the contiguous hint, on hardware that wants them absent in between.
    let table = PageTable::new(&hal, VmsaStage1::<12>::new(), config(48)).unwrap();
    table.map(&[rw(0x1_0000, 0x2_0000, 0x1_0000)]).unwrap();
    let refused = table.protect(range(0x1_0000, 0x1_0000), without_write, &mut gather);
    assert_eq!(refused, Err(ProtectError::Run { iova: portcullis_hal::Iova::new(0x1_0000) }));
    let format = VmsaStage1::<12>::new().with_accessed_dirty(AccessedDirty::Hardware);
    let table = PageTable::new(&hal, format, config(48)).unwrap();
    assert_eq!(table.protect(range(0, 0x1000), without_write, &mut gather), Err(ProtectError::Tracked));
}
