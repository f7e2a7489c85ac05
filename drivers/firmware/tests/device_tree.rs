//! Device trees: what QEMU's do not have.

mod common;

use common::fdt::{Node, node};
use common::{bdf, phys};
use portcullis_firmware::*;
use portcullis_hal::{PhysAddr, RequesterId};

const GIC: u32 = 1;
const SMMU: u32 = 2;
const ITS: u32 = 3;
const DEVICE: u32 = 4;

fn gic() -> Node {
    node("intc@8000000")
        .text("compatible", "arm,gic-v3")
        .cells("reg", &[0, 0x800_0000, 0, 0x1_0000, 0, 0x80a_0000, 0, 0x10_0000, 0, 0x90a_0000, 0, 0x10_0000])
        .cells("#redistributor-regions", &[2])
        .cells("#interrupt-cells", &[3])
        .cells("phandle", &[GIC])
        .cells("#address-cells", &[2])
        .cells("#size-cells", &[2])
        .flag("ranges")
        .child(
            node("its@8080000")
                .text("compatible", "arm,gic-v3-its")
                .cells("reg", &[0, 0x808_0000, 0, 0x2_0000])
                .cells("#msi-cells", &[1])
                .cells("phandle", &[ITS]),
        )
}

fn smmu() -> Node {
    node("iommu@9050000")
        .text("compatible", "arm,smmu-v3")
        .cells("reg", &[0, 0x905_0000, 0, 0x2_0000])
        .cells("#iommu-cells", &[1])
        .cells("phandle", &[SMMU])
}

fn root() -> Node {
    node("").cells("#address-cells", &[2]).cells("#size-cells", &[2]).cells("interrupt-parent", &[GIC])
}

fn pcie(name: &str) -> Node {
    node(name)
        .text("compatible", "pci-host-ecam-generic")
        .text("device_type", "pci")
        .cells("reg", &[0x40, 0x1000_0000, 0, 0x1000_0000])
        .cells("#address-cells", &[3])
        .cells("#size-cells", &[2])
}

fn parse(root: &Node) -> Topology {
    devicetree::parse(&root.blob()).unwrap()
}

fn error(root: &Node) -> FirmwareError {
    devicetree::parse(&root.blob()).unwrap_err()
}

#[test]
fn a_platform_device_has_all_its_streams_in_order() {
    let device = node("dma@1000")
        .raw("compatible", b"vendor,dma-2\0vendor,dma\0")
        .cells("reg", &[0, 0x1000, 0, 0x100])
        .cells("iommus", &[SMMU, 0x100, SMMU, 0x180, SMMU, 0x140])
        .cells("msi-parent", &[ITS, 0x55])
        .flag("dma-coherent");
    let topology = parse(&root().child(gic()).child(smmu()).child(device));
    let [device] = topology.platform_devices.as_slice() else { panic!() };
    assert_eq!((device.name.as_str(), device.compatible.len()), ("dma@1000", 2));
    assert_eq!(device.registers, [phys(0x1000, 0x100)]);
    let streams: Vec<_> = device.streams.iter().map(|s| (s.unit.get(), s.first.get())).collect();
    assert_eq!(streams, [(0, 0x100), (0, 0x180), (0, 0x140)]);
    assert_eq!(device.msi, Some(MsiTarget { controller: MsiController::Its(ItsId(0)), device_id: 0x55 }));
    assert_eq!(device.dma, DmaCoherency::Coherent);
    assert_eq!(topology.gic.unwrap().redistributors.len(), 2);
}

#[test]
fn interrupts_are_taken_by_name_and_may_be_absent() {
    let specifiers = [0, 10, 1, 0, 11, 4, 2, 3, 1];
    let unit = smmu().raw("interrupt-names", b"gerror\0eventq\0combined\0").cells("interrupts", &specifiers);
    let topology = parse(&root().child(gic()).child(unit));
    let UnitKind::Smmuv3(smmu) = &topology.units[0].kind else { panic!() };
    let interrupts = smmu.interrupts;
    assert_eq!(interrupts.gerror, Some(Interrupt { intid: 42, trigger: Trigger::EdgeRising }));
    assert_eq!(interrupts.event, Some(Interrupt { intid: 43, trigger: Trigger::LevelHigh }));
    assert_eq!(interrupts.combined, Some(Interrupt { intid: 4099, trigger: Trigger::EdgeRising }));
    assert_eq!((interrupts.pri, interrupts.command_sync), (None, None));
    assert_eq!((smmu.walks, smmu.msi), (WalkCoherency::NonCoherent, None));
}

#[test]
fn coherency_is_inherited_and_the_nearest_statement_counts() {
    let walks = |unit: Node| {
        let topology = parse(&root().flag("dma-coherent").child(gic()).child(unit));
        match &topology.units[0].kind {
            UnitKind::Smmuv3(smmu) => smmu.walks,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(walks(smmu()), WalkCoherency::Coherent);
    assert_eq!(walks(smmu().flag("dma-noncoherent")), WalkCoherency::NonCoherent);
}

#[test]
fn extended_interrupts_name_their_own_controller() {
    let unit = smmu()
        .raw("interrupt-names", b"eventq\0gerror\0")
        .cells("interrupts-extended", &[9, 77, GIC, 0, 1, 1])
        .cells("msi-parent", &[ITS, 0xff]);
    let other = node("pic").cells("phandle", &[9]).cells("#interrupt-cells", &[1]);
    let topology = parse(&root().child(gic()).child(unit).child(other));
    let UnitKind::Smmuv3(smmu) = &topology.units[0].kind else { panic!() };
    assert_eq!(smmu.interrupts.event, None);
    assert_eq!(smmu.interrupts.gerror.unwrap().intid, 33);
    assert_eq!(smmu.msi.unwrap().device_id, 0xff);
}

#[test]
fn registers_are_translated_through_every_bus() {
    let unit = smmu().cells("reg", &[0x5_0000, 0x2_0000]);
    let inner = node("bus@1").cells("#address-cells", &[1]).cells("#size-cells", &[1]);
    let inner = inner.cells("ranges", &[0, 0x10_0000, 0x4_0000, 0x4_0000, 0x20_0000, 0x10_0000]);
    let outer = node("soc").cells("#address-cells", &[1]).cells("#size-cells", &[1]);
    let outer = outer.cells("ranges", &[0x20_0000, 0x8, 0, 0x100_0000]);
    let tree = |inner: Node| root().child(gic()).child(outer.clone().child(inner));
    let topology = parse(&tree(inner.clone().child(unit.clone())));
    let UnitKind::Smmuv3(found) = &topology.units[0].kind else { panic!() };
    assert_eq!(found.registers, phys(0x8_0001_0000, 0x2_0000));
    // Outside every window, and behind a bus without any, the registers cannot be reached.
    let outside = unit.cells("reg", &[0x20_0000, 0x2_0000]);
    assert!(matches!(error(&tree(inner.child(outside))), FirmwareError::BadLength { .. }));
    let no_ranges = node("bus@1").cells("#address-cells", &[2]).cells("#size-cells", &[2]).child(smmu());
    assert!(matches!(error(&tree(no_ranges)), FirmwareError::BadLength { .. }));
}

#[test]
fn masks_of_both_maps_are_applied() {
    let host = pcie("pcie@0")
        .cells("iommu-map", &[0, SMMU, 0x1000, 0x100])
        .cells("iommu-map-mask", &[0xf8])
        .cells("msi-map", &[0, ITS, 0x2000, 0x1_0000])
        .cells("msi-map-mask", &[0xff00]);
    let topology = parse(&root().child(gic()).child(smmu()).child(host));
    let (_, stream) = topology.unit_of(bdf(3, 2, 5)).unwrap();
    assert_eq!(stream.get(), 0x1010);
    assert_eq!(topology.msi_device_id(bdf(3, 2, 5)).unwrap().device_id, 0x2300);
}

#[test]
fn segments_are_numbered_without_collision() {
    let hosts = root()
        .child(gic())
        .child(smmu())
        .child(pcie("pcie@0").cells("iommu-map", &[0, SMMU, 0, 0x1_0000]))
        .child(pcie("pcie@1").cells("linux,pci-domain", &[0]).cells("msi-parent", &[ITS, 0]))
        .child(pcie("pcie@2"));
    let topology = parse(&hosts);
    let mut segments: Vec<_> = topology.host_bridges.iter().map(|bridge| bridge.segment).collect();
    segments.sort_unstable();
    assert_eq!(segments, [0, 1, 2]);
    let unit_of = |segment| topology.unit_of(RequesterId::from_bdf(segment, 8));
    assert!(unit_of(0).is_none() && unit_of(1).is_some() && unit_of(2).is_none());
    assert_eq!(topology.msi_device_id(RequesterId::from_bdf(0, 8)).unwrap().device_id, 8);
}

#[test]
fn a_bridge_has_no_more_buses_than_registers() {
    let host = pcie("pcie@0").cells("bus-range", &[0x10, 0xff]).cells("reg", &[0x40, 0, 0, 0x20_0000]);
    let topology = parse(&root().child(host));
    let bridge = &topology.host_bridges[0];
    assert_eq!(bridge.buses, BusRange { first: 0x10, last: 0x11 });
    assert_eq!(bridge.ecam, phys(0x40_0000_0000, 0x20_0000));
}

#[test]
fn windows_say_their_space_and_prefetching() {
    let ranges = [
        [0x0100_0000, 0, 0, 0, 0x3eff_0000, 0, 0x1_0000],
        [0x4200_0000, 0, 0x1000_0000, 0, 0x5000_0000, 0, 0x100_0000],
        [0x4300_0000, 0x80, 0, 0x80, 0, 1, 0],
        [0x0000_0000, 0, 0, 0, 0x1000, 0, 0x1000],
    ];
    let topology = parse(&root().child(pcie("pcie@0").cells("ranges", ranges.as_flattened())));
    let windows: Vec<_> = topology.host_bridges[0]
        .windows
        .iter()
        .map(|window| (window.space, window.cpu.start().get(), window.bus, window.prefetch))
        .collect();
    let expected = [
        (PciSpace::Io, 0x3eff_0000, 0, Prefetch::NonPrefetchable),
        (PciSpace::Memory32, 0x5000_0000, 0x1000_0000, Prefetch::Prefetchable),
        (PciSpace::Memory64, 0x80_0000_0000, 0x80_0000_0000, Prefetch::Prefetchable),
    ];
    assert_eq!(windows, expected);
}

#[test]
fn reserved_memory_is_direct_only_where_it_is_the_same_memory() {
    let device = node("gpu@0").cells("iommus", &[SMMU, 7]).cells("phandle", &[DEVICE]);
    let regions = node("reserved-memory")
        .cells("#address-cells", &[2])
        .cells("#size-cells", &[2])
        .flag("ranges")
        .child(
            node("framebuffer@90000000")
                .cells("reg", &[0, 0x9000_0000, 0, 0x80_0000])
                .cells("iommu-addresses", &[DEVICE, 0, 0x9000_0000, 0, 0x80_0000]),
        )
        .child(node("hole").cells("iommu-addresses", &[DEVICE, 0, 0, 0, 0x1000]))
        .child(node("plain@1000").cells("reg", &[0, 0x1000, 0, 0x1000]));
    let topology = parse(&root().child(gic()).child(smmu()).child(device).child(regions));
    let stream = topology.platform_devices[0].streams[0];
    let regions = topology.reserved_for_stream(stream.unit, stream.first);
    let regions: Vec<_> = regions.map(|region| (region.range.start().get(), region.kind)).collect();
    assert_eq!(regions, [(0x9000_0000, ReservedKind::Direct), (0, ReservedKind::Reserved)]);
}

#[test]
fn disabled_units_cover_nobody() {
    let host = pcie("pcie@0").cells("iommu-map", &[0, SMMU, 0, 0x1_0000]);
    let topology = parse(&root().child(gic()).child(smmu().text("status", "disabled")).child(host));
    assert_eq!((topology.units.len(), topology.unit_of(bdf(0, 1, 0))), (0, None));
    assert!(matches!(topology.warnings[..], [Warning::UnknownTarget { .. }]));
}

#[test]
fn cpus_say_how_they_are_started() {
    let cpu = |name: &str, id: &[u32]| node(name).text("device_type", "cpu").cells("reg", id);
    let cpus = node("cpus")
        .cells("#address-cells", &[2])
        .cells("#size-cells", &[0])
        .child(cpu("cpu@0", &[0, 0]).text("enable-method", "psci"))
        .child(
            cpu("cpu@1", &[1, 0x100])
                .text("enable-method", "spin-table")
                .cells("cpu-release-addr", &[0, 0x8000]),
        )
        .child(cpu("cpu@2", &[0, 2]).text("status", "disabled"))
        .child(cpu("cpu@3", &[0, 3]).text("status", "fail"));
    let psci = node("psci").text("compatible", "arm,psci-1.0").text("method", "hvc");
    let topology = parse(&root().child(cpus).child(psci));
    let cpu = |id, state, start| Cpu { id: CpuId::Mpidr(id), state, start };
    let expected = [
        cpu(0, CpuState::Enabled, CpuStart::Psci),
        cpu(0x1_0000_0100, CpuState::Enabled, CpuStart::SpinTable(PhysAddr::new(0x8000))),
        cpu(2, CpuState::OnlineCapable, CpuStart::Unknown),
    ];
    assert_eq!((topology.cpus.as_slice(), topology.psci), (&expected[..], Some(PsciConduit::Hvc)));
}

#[test]
fn standard_output_comes_first_by_path_or_alias() {
    let uart =
        |name: &str, base| node(name).text("compatible", "arm,pl011").cells("reg", &[0, base, 0, 0x1000]);
    for path in ["/uart@2000:115200n8", "serial1", "/uart@2000"] {
        let tree = root()
            .child(uart("uart@1000", 0x1000))
            .child(uart("uart@2000", 0x2000))
            .child(uart("uart@3000", 0x3000))
            .child(node("aliases").text("serial1", "/uart@2000"))
            .child(node("chosen").text("stdout-path", path));
        let bases: Vec<_> = parse(&tree).consoles.iter().map(|c| c.registers.start().get()).collect();
        assert_eq!(bases, [0x2000, 0x1000, 0x3000], "{path}");
    }
}

#[test]
fn bad_references_lengths_and_values_are_errors() {
    let with = |host: Node| error(&root().child(gic()).child(smmu()).child(host));
    let map = |cells: &[u32]| with(pcie("pcie@0").cells("iommu-map", cells));
    assert!(matches!(map(&[0, 99, 0, 1]), FirmwareError::BadReference { target: 99, .. }));
    assert!(matches!(map(&[0, SMMU, 0]), FirmwareError::Truncated { .. }));
    assert!(matches!(map(&[1, SMMU, 0, 0x1_0000]), FirmwareError::BadValue { .. }));
    assert!(matches!(map(&[0, SMMU, u32::MAX, 2]), FirmwareError::BadValue { .. }));
    let odd = with(pcie("pcie@0").raw("iommu-map", &[0; 15]));
    assert!(matches!(odd, FirmwareError::BadLength { length: 15, .. }));
    let buses = with(pcie("pcie@0").cells("bus-range", &[5, 4]));
    assert!(matches!(buses, FirmwareError::BadValue { .. }));
    let domain = with(pcie("pcie@0").cells("linux,pci-domain", &[0x1_0000]));
    assert!(matches!(domain, FirmwareError::BadValue { value: 0x1_0000, .. }));
    let cells = with(node("bus").cells("#address-cells", &[5]));
    assert!(matches!(cells, FirmwareError::BadLength { .. }));
    let wraps = with(smmu().cells("reg", &[u32::MAX, u32::MAX, 0, 2]));
    assert!(matches!(wraps, FirmwareError::BadRange { .. }));
    let no_cells = with(node("dma").cells("iommus", &[GIC, 0]));
    assert!(matches!(no_cells, FirmwareError::BadReference { .. }));
}

#[test]
fn an_empty_map_entry_is_ignored() {
    let host = pcie("pcie@0").cells("iommu-map", &[0, SMMU, 0, 0, 8, SMMU, 8, 1]);
    let topology = parse(&root().child(gic()).child(smmu()).child(host));
    assert_eq!(topology.requester_map.len(), 1);
    assert!(matches!(topology.warnings[..], [Warning::Ignored { .. }]));
}

#[test]
fn nesting_is_bounded() {
    let nested = |depth: usize| (0..depth).fold(node("leaf"), |inner, _| node("n").child(inner));
    assert!(devicetree::parse(&root().child(nested(28)).blob()).is_ok());
    let error = error(&root().child(nested(40)));
    assert!(matches!(error, FirmwareError::TooDeep { limit: 32, .. }));
}

#[test]
fn a_blob_may_be_followed_by_other_bytes_and_not_be_cut() {
    let mut blob = root().child(gic()).blob();
    let parsed = devicetree::parse(&blob).unwrap();
    let len = blob.len();
    blob.extend([0xee; 100]);
    assert_eq!(devicetree::parse(&blob).unwrap(), parsed);
    let error = devicetree::parse(&blob[..len - 1]).unwrap_err();
    assert!(matches!(error, FirmwareError::Truncated { .. }));
}

#[test]
fn errors_point_at_the_bytes_at_fault() {
    let blob = root().child(gic()).child(pcie("pcie@0").cells("iommu-map", &[0xabcd, 99, 0, 1])).blob();
    let place = blob.windows(4).position(|bytes| bytes == [0, 0, 0xab, 0xcd]).unwrap();
    let error = devicetree::parse(&blob).unwrap_err();
    let at = Location { table: Table::DeviceTree, offset: place };
    assert_eq!(error, FirmwareError::BadReference { at, target: 99 });
}

#[test]
fn a_virtio_iommu_in_a_window_may_come_after_its_endpoints_and_is_told_from_other_windows() {
    let window = |base: u32| {
        node(&format!("virtio_mmio@{base:x}"))
            .text("compatible", "virtio,mmio")
            .cells("reg", &[0, base, 0, 0x200])
            .cells("interrupts", &[0, 0x2f, 1])
    };
    let bridge = pcie("pcie@10000000").cells("iommu-map", &[0, DEVICE, 0, 0x1_0000]);
    let device = node("dma@1000").cells("reg", &[0, 0x1000, 0, 0x100]).cells("iommus", &[DEVICE, 0x1_0000]);
    let unit = window(0xa00_3e00).cells("#iommu-cells", &[1]).cells("phandle", &[DEVICE]);
    let topology =
        parse(&root().child(gic()).child(bridge).child(device).child(window(0xa00_3c00)).child(unit.clone()));
    let interrupt = Some(Interrupt { intid: 79, trigger: Trigger::EdgeRising });
    let transport = VirtioTransport::Mmio { registers: phys(0xa00_3e00, 0x200), interrupt };
    let [found] = topology.units.as_slice() else { panic!("{:?}", topology.units) };
    assert_eq!(found.kind, UnitKind::VirtioIommu(VirtioIommuUnit { transport }));
    let endpoint = |id| topology.unit_of(id).map(|(_, endpoint)| endpoint.get());
    assert_eq!((endpoint(bdf(0, 0, 0)), endpoint(bdf(255, 31, 7))), (Some(0), Some(0xffff)));
    assert_eq!(topology.platform_devices[0].streams[0].first.get(), 0x1_0000);
    // A window without registers is no unit.
    let bare = node("virtio_mmio@0").text("compatible", "virtio,mmio").cells("#iommu-cells", &[1]);
    assert!(matches!(error(&root().child(gic()).child(bare)), FirmwareError::BadLength { .. }));
}
