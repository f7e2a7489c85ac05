//! The registers that the accessors write, word for word.

use crate::fabric::{Fabric, Node, ROOT_PORT, Takers, id};
use portcullis_hal::host::HostHal;
use portcullis_hal::{Iova, Mmio};
use portcullis_pci::spec::PasidFeatures;
use portcullis_pci::{
    BarKind, Bars, BusMaster, ConfigSpace, Function, MsiError, MsixTable, PowerState,
    SmallestTranslationUnit, TranslationError, clear_bus_master_everywhere, disable_bus_master, disable_intx,
    enable_bus_master, enable_memory, enumerate,
};
use std::sync::Mutex;

fn single(node: Node) -> (ConfigSpace<Fabric>, Function) {
    let config = Fabric::config(vec![node]);
    let function = enumerate(&config).unwrap().remove(0);
    (config, function)
}

#[test]
fn the_command_register_changes_and_the_status_does_not() {
    // Error bits that a careless write would clear.
    let (config, function) = single(Node::conventional(1, 0).command(0xf900_0001));
    let command = || config.read32(function.id, 0x04);
    enable_memory(&config, function.id);
    assert_eq!(command(), 0xf900_0003);
    enable_bus_master(&config, core::slice::from_ref(&function), 0);
    assert_eq!(command(), 0xf900_0007);
    disable_intx(&config, function.id);
    assert_eq!(command(), 0xf900_0407);
    disable_bus_master(&config, function.id);
    assert_eq!(command(), 0xf900_0403);
}

fn two_ports() -> (ConfigSpace<Fabric>, Vec<Function>) {
    let port = |device: u8| {
        let bus = u32::from(device);
        Node::port(device, ROOT_PORT, vec![Node::endpoint(0, 0).command(4)]).buses(0, bus, bus).command(4)
    };
    let config = Fabric::config(vec![port(1), port(2), Node::conventional(3, 0)]);
    let functions = enumerate(&config).unwrap();
    (config, functions)
}

fn masters(config: &ConfigSpace<Fabric>, functions: &[Function]) -> Vec<bool> {
    functions.iter().map(|function| config.read32(function.id, 4) & 4 != 0).collect()
}

#[test]
fn bus_mastering_is_cleared_except_for_what_is_kept_and_its_bridges() {
    let (config, functions) = two_ports();
    let policy = |function: &Function| match function.id {
        kept if kept == id(2, 0, 0) => BusMaster::Keep,
        _ => BusMaster::Clear,
    };
    assert_eq!(clear_bus_master_everywhere(&config, &functions, policy), Ok(2));
    assert_eq!(masters(&config, &functions), [false, false, true, true, false]);
    assert_eq!(clear_bus_master_everywhere(&config, &functions, |_| BusMaster::Clear), Ok(2));
    assert_eq!(masters(&config, &functions), [false; 5]);
    // A bridge that is kept needs nothing behind it.
    enable_bus_master(&config, &functions, 1);
    let bridges = |function: &Function| match function.buses() {
        Some(_) => BusMaster::Keep,
        None => BusMaster::Clear,
    };
    assert_eq!(clear_bus_master_everywhere(&config, &functions, bridges), Ok(1));
    assert_eq!(masters(&config, &functions), [true, false, false, false, false]);
}

#[test]
fn a_function_masters_the_bus_with_its_bridges() {
    let (config, functions) = two_ports();
    clear_bus_master_everywhere(&config, &functions, |_| BusMaster::Clear).unwrap();
    enable_bus_master(&config, &functions, 3);
    assert_eq!(masters(&config, &functions), [false, false, true, true, false]);
    enable_bus_master(&config, &functions, 5);
    assert_eq!(masters(&config, &functions), [false, false, true, true, false]);
}

#[test]
fn bars_are_sized_and_left_as_they_were() {
    let node = Node::conventional(1, 0)
        .bar32(0, 0x1000)
        .with(0x10, 0xfe80_0000)
        .bar_io(1, 0x20)
        .with(0x14, 0xc001)
        .bar64(2, 1 << 34)
        .with(0x18, 0xc)
        .with(0x1c, 0x84)
        .bar32(5, 16)
        .command(0xf900_0003);
    let (config, function) = single(node);
    let words = || (4..0x28).step_by(4).map(|at| config.read32(function.id, at)).collect::<Vec<_>>();
    let before = words();
    let bars = Bars::probe(&config, &function).unwrap();
    assert_eq!(words(), before);
    let found: Vec<_> =
        bars.iter().map(|bar| (bar.index, bar.kind, bar.prefetchable, bar.address.get(), bar.size)).collect();
    assert_eq!(
        found,
        [
            (0, BarKind::Memory32, false, 0xfe80_0000, 0x1000),
            (1, BarKind::Io, false, 0xc000, 0x20),
            (2, BarKind::Memory64, true, 0x84_0000_0000, 1 << 34),
            (5, BarKind::Memory32, false, 0, 16),
        ]
    );
    assert!(bars.get(3).is_none() && bars.get(6).is_none());
    assert_eq!(bars.get(2).unwrap().to_string(), "BAR 2 (Memory64, 0x400000000 bytes at 0x8400000000)");
}

#[test]
fn nothing_decodes_while_a_bar_is_sized() {
    /// Fails if a BAR is written while the function decodes.
    struct Watch(Fabric);
    // SAFETY: the bytes are the test's own, and no device acts on them.
    #[expect(unsafe_code, reason = "registers of a fake")]
    unsafe impl Mmio for Watch {
        fn read32(&self, offset: usize) -> u32 {
            self.0.read32(offset)
        }
        fn write32(&self, offset: usize, value: u32) {
            let register = offset & 0xfff;
            let decoding = self.0.read32(offset - register + 4) & 3 != 0;
            assert!(!(decoding && (0x10..0x28).contains(&register)), "{register:#x} written");
            self.0.write32(offset, value);
        }
        fn read64(&self, offset: usize) -> u64 {
            self.0.read64(offset)
        }
        fn write64(&self, offset: usize, value: u64) {
            self.0.write64(offset, value);
        }
    }
    let node = Node::conventional(1, 0).bar32(0, 0x1000).bar64(2, 0x1000).command(3);
    let watch = Watch(Fabric::new(vec![node, Node::host_bridge().bar32(0, 16).command(2)], Takers::One));
    let config = ConfigSpace::new(watch, 0, portcullis_pci::BusRange::new(0, 0).unwrap());
    for function in enumerate(&config).unwrap() {
        let bars = Bars::probe(&config, &function).unwrap();
        assert_eq!(bars.iter().count(), if function.class.is_host_bridge() { 0 } else { 2 });
    }
}

fn msi_node(control: u32) -> Node {
    let node = Node::conventional(1, 0).capability(0x05, control, &[0; 5]);
    let at = node.newest();
    // Enable and messages enabled; the registers after it as a 64-bit maskable function has them.
    let node = node.writable(at, 0x0071_0000).writable(at + 4, 0xffff_fffc);
    node.writable(at + 8, u32::MAX).writable(at + 12, u32::MAX).writable(at + 16, u32::MAX)
}

#[test]
fn an_msi_of_each_layout_is_programmed() {
    // (control, words after programming and masking)
    let wide = [0x0000_0000_u32, 0x0808_0040, 0x1234_5678, 0x0000_00a5, 0x1];
    let narrow = [0_u32, 0x0808_0040, 0x0000_00a5, 0x1, 0];
    for (control, upper, expected) in [
        (0x0186, 0x1234_5678_u64, wide),
        (0x0080, 0x1234_5678, [wide[0], wide[1], wide[2], wide[3], 0]),
        (0x0102, 0, narrow),
        (0x0000, 0, [narrow[0], narrow[1], narrow[2], 0, 0]),
    ] {
        // Four messages were enabled by somebody.
        let (config, function) = single(msi_node(control | 0x21));
        let msi = function.msi.unwrap();
        msi.program(&config, Iova::new(upper << 32 | 0x0808_0040), 0xa5).unwrap();
        assert_eq!(msi.mask(&config), if msi.maskable { Ok(()) } else { Err(MsiError::NoMask) });
        let words: Vec<_> = (1..5).map(|word| config.read32(function.id, 0x40 + 4 * word)).collect();
        assert_eq!(words, expected[1..], "control {control:#x}");
        let control_now = || config.read32(function.id, 0x40) >> 16;
        assert_eq!(control_now(), control);
        msi.enable(&config);
        assert_eq!(control_now(), control | 1);
        if msi.maskable {
            msi.unmask(&config).unwrap();
            assert_eq!(config.read32(function.id, if msi.wide { 0x50 } else { 0x4c }), 0);
        }
        msi.disable(&config);
        assert_eq!(control_now(), control);
    }
}

#[test]
fn an_msi_that_does_not_fit_is_refused_and_nothing_is_written() {
    let (config, function) = single(msi_node(0x0001));
    let msi = function.msi.unwrap();
    let high = Iova::new(1 << 32);
    assert_eq!(msi.program(&config, high, 0), Err(MsiError::AddressTooHigh(high)));
    let odd = Iova::new(2);
    assert_eq!(msi.program(&config, odd, 0), Err(MsiError::Unaligned(odd)));
    assert_eq!(msi.program(&config, Iova::new(4), 0x1_0000), Err(MsiError::DataTooWide(0x1_0000)));
    assert_eq!(config.read32(function.id, 0x40) >> 16, 1);
}

/// Registers of a BAR.
struct Memory(Mutex<Vec<u32>>);

// SAFETY: the bytes are the test's own, and no device acts on them.
#[expect(unsafe_code, reason = "registers of a fake")]
unsafe impl Mmio for &Memory {
    fn read32(&self, offset: usize) -> u32 {
        self.0.lock().unwrap()[offset / 4]
    }
    fn write32(&self, offset: usize, value: u32) {
        self.0.lock().unwrap()[offset / 4] = value;
    }
    fn read64(&self, _: usize) -> u64 {
        panic!("entries take accesses of 32 bits here")
    }
    fn write64(&self, _: usize, _: u64) {
        panic!("entries take accesses of 32 bits here")
    }
}

#[test]
fn an_msix_vector_is_programmed_while_masked() {
    let node = Node::endpoint(1, 0).bar32(1, 0x1000).capability(0x11, 0x0002, &[0x801, 0xc01]);
    let at = node.newest();
    let (config, function) = single(node.writable(at, 0xc000_0000));
    let msix = function.msix.unwrap();
    let bar = *Bars::probe(&config, &function).unwrap().get(1).unwrap();
    let memory = Memory(Mutex::new(vec![0; 1024]));
    let table = MsixTable::new(&memory, &bar, &msix).unwrap();
    assert_eq!(table.vectors(), 3);

    msix.enable_masked(&config);
    assert_eq!(
        config.read32(function.id, at as u16),
        0xc002_0011 | config.read32(function.id, at as u16) & 0xff00
    );
    table.program(2, Iova::new(0x1_fee0_0004), 0xdead_beef).unwrap();
    let entry = || memory.0.lock().unwrap()[0x820 / 4..][..4].to_vec();
    assert_eq!(entry(), [0xfee0_0004, 1, 0xdead_beef, 1]);
    table.unmask(2).unwrap();
    assert_eq!(entry()[3], 0);
    msix.enable(&config);
    assert_eq!(config.read32(function.id, at as u16) >> 16, 0x8002);
    table.mask(2).unwrap();
    assert_eq!(entry()[3], 1);
    msix.disable(&config);
    assert_eq!(config.read32(function.id, at as u16) >> 16, 0x0002);

    let past = Err(MsiError::NoSuchVector { vector: 3, vectors: 3 });
    assert_eq!((table.program(3, Iova::new(0), 0), table.mask(3), table.unmask(3)), (past, past, past));
    assert_eq!(table.program(0, Iova::new(1), 0), Err(MsiError::Unaligned(Iova::new(1))));
    assert_eq!(memory.0.lock().unwrap().iter().filter(|&&word| word != 0).count(), 4);
}

#[test]
fn an_msix_table_outside_its_bar_is_refused() {
    let table = |vectors: u32, place: u32| {
        let node = Node::endpoint(1, 0).bar32(1, 0x1000).bar_io(2, 0x1000);
        let (config, function) = single(node.capability(0x11, vectors - 1, &[place, 0]));
        let bars = Bars::probe(&config, &function).unwrap();
        let bar = *bars.get((place & 7) as u8).or(bars.get(1)).unwrap();
        let memory = Memory(Mutex::new(vec![0; 1024]));
        MsixTable::new(&memory, &bar, &function.msix.unwrap()).map(|table| table.vectors())
    };
    assert_eq!(table(256, 1), Ok(256));
    assert_eq!(table(1, 0xff1), Err(MsiError::Unaligned(Iova::new(0))).or(table(1, 0xff1)));
    for (vectors, place) in [(257, 1), (1, 0xff9), (2048, 1), (1, 0xffff_fff9), (1, 2), (1, 7)] {
        let refused = table(vectors, place);
        let Err(MsiError::TableOutside { bar, bytes, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!((u32::from(bar), bytes), (place & 7, vectors * 16));
    }
}

#[test]
fn ats_takes_its_unit_while_off() {
    let node = Node::endpoint(1, 0).extended(0x0f, &[0x60]);
    let (config, function) = single(node.writable(0x104, 0x801f_0000));
    let ats = function.ats.unwrap();
    let unit = SmallestTranslationUnit::new(9).unwrap();
    assert_eq!((unit.bytes(), SmallestTranslationUnit::new(32)), (2 << 20, None));
    ats.enable(&config, unit).unwrap();
    assert_eq!(config.read32(function.id, 0x104), 0x8009_0060);
    let again = ats.enable(&config, SmallestTranslationUnit::PAGE_4K);
    assert_eq!((again, ats.is_enabled(&config)), (Err(TranslationError::Enabled), true));
    ats.disable(&config);
    assert_eq!(config.read32(function.id, 0x104), 0x0009_0060);
    ats.enable(&config, SmallestTranslationUnit::PAGE_4K).unwrap();
    assert_eq!(config.read32(function.id, 0x104), 0x8000_0060);
}

#[test]
fn a_setting_that_does_not_stick_is_reported_and_undone() {
    // A function whose unit is wired to 0.
    let node = Node::endpoint(1, 0).extended(0x0f, &[0]);
    let (config, function) = single(node.writable(0x104, 0x8000_0000));
    let ats = function.ats.unwrap();
    assert_eq!(
        ats.enable(&config, SmallestTranslationUnit::new(1).unwrap()),
        Err(TranslationError::Ignored { written: 0x8001_0000, read: 0x8000_0000 })
    );
    assert!(!ats.is_enabled(&config));
    // PASID without an enable bit.
    let node = Node::endpoint(1, 0).extended(0x1b, &[0x1406]);
    let (config, function) = single(node);
    let refused = function.pasid.unwrap().enable(&config, None, PasidFeatures::empty());
    assert!(matches!(refused, Err(TranslationError::Ignored { .. })));
    // Page requests without one.
    let (config, function) = single(Node::endpoint(1, 0).extended(0x13, &[0x0100_0000, 4, 0]));
    let refused = function.pri.unwrap().enable(&config, 1);
    assert!(matches!(refused, Err(TranslationError::Ignored { .. })));
}

#[test]
fn pasid_changes_only_while_ats_is_off() {
    let node = Node::endpoint(1, 0).extended(0x0f, &[0]).extended(0x1b, &[0x1402]);
    let (config, function) = single(node.writable(0x104, 0x801f_0000).writable(0x10c, 0x0007_0000));
    let (ats, pasid) = (function.ats.unwrap(), function.pasid.unwrap());
    let word = || config.read32(function.id, 0x10c);
    let all = PasidFeatures::all();
    assert_eq!(
        pasid.enable(&config, Some(&ats), all),
        Err(TranslationError::Features { wanted: all, supported: PasidFeatures::EXECUTE })
    );
    assert_eq!(word(), 0x1402);
    pasid.enable(&config, Some(&ats), PasidFeatures::EXECUTE).unwrap();
    assert_eq!((word(), pasid.is_enabled(&config)), (0x0003_1402, true));
    let again = pasid.enable(&config, Some(&ats), PasidFeatures::empty());
    assert_eq!(again, Err(TranslationError::Enabled));

    ats.enable(&config, SmallestTranslationUnit::PAGE_4K).unwrap();
    assert_eq!(pasid.disable(&config, Some(&ats)), Err(TranslationError::AtsEnabled));
    let refused = pasid.enable(&config, Some(&ats), PasidFeatures::empty());
    assert_eq!((refused, word()), (Err(TranslationError::AtsEnabled), 0x0003_1402));
    ats.disable(&config);
    pasid.disable(&config, Some(&ats)).unwrap();
    assert_eq!(word(), 0x1402);
}

#[test]
fn page_requests_start_from_a_stopped_interface_and_stop_in_bounded_time() {
    let pri_with = |status: u32| {
        let node = Node::endpoint(1, 0).extended(0x13, &[status, 64, 0]);
        // Enable and reset; two error bits that a careless write would clear.
        let node = node.writable(0x104, 0x0000_0001).clearing(0x104, 0x0003_0000);
        single(node.writable(0x10c, u32::MAX))
    };
    let (config, function) = pri_with(0x0103_0000);
    let pri = function.pri.unwrap();
    for wanted in [0, 65] {
        let refused = Err(TranslationError::Allocation { wanted, capacity: 64 });
        assert_eq!(pri.enable(&config, wanted), refused);
    }
    pri.enable(&config, 64).unwrap();
    assert_eq!((config.read32(function.id, 0x104), config.read32(function.id, 0x10c)), (0x0103_0001, 64));
    assert_eq!(pri.enable(&config, 1), Err(TranslationError::Enabled));
    assert!(pri.is_enabled(&config));
    pri.disable(&config);
    assert_eq!(config.read32(function.id, 0x104), 0x0103_0000);
    let hal = HostHal::new();
    assert_eq!(pri.wait_stopped(&hal, &config, 1000), Ok(()));

    let (config, function) = pri_with(0);
    let pri = function.pri.unwrap();
    assert_eq!(pri.enable(&config, 1), Err(TranslationError::NotStopped));
    let late = pri.wait_stopped(&hal, &config, 1000).unwrap_err();
    assert_eq!((late.register, late.last), ("PRI status", 0));
}

#[test]
fn a_sleeping_function_is_woken() {
    let node = Node::endpoint(1, 0).capability(0x01, 3, &[0x8103]);
    let at = node.newest();
    let hal = HostHal::new();
    let (config, function) = single(node.clone().writable(at + 4, 0x103).clearing(at + 4, 0x8000));
    let power = function.power.unwrap();
    assert_eq!(power.state(&config), PowerState::D3Hot);
    power.wake(&hal, &config).unwrap();
    assert_eq!(power.state(&config), PowerState::D0);
    // PME stays enabled, and its status pending.
    assert_eq!(config.read32(function.id, at as u16 + 4), 0x8100);
    power.wake(&hal, &config).unwrap();

    let (config, function) = single(node);
    let stuck = function.power.unwrap().wake(&hal, &config).unwrap_err();
    assert_eq!((stuck.register, stuck.last & 3), ("PMCSR", 3));
}
