//! What QEMU's machines say about themselves, from the bytes they say it with.

mod common;

use common::{bdf, data, phys};
use portcullis_firmware::acpi::{self, loader};
use portcullis_firmware::*;
use portcullis_hal::{EndpointId, IovaRange, PhysAddr, PhysRange, RequesterId};

/// Runs the table loader on a machine's fw_cfg files, with the tables at an address of our choice, and reads
/// what came out.
fn load(name: &str) -> Topology {
    let script = data(&format!("{name}.loader"));
    let mut rsdp = data(&format!("{name}.rsdp"));
    let mut tables = data(&format!("{name}.tables"));
    let (rsdp_at, tables_at) = (PhysAddr::new(0xf_52a0), PhysAddr::new(0x4_7000));
    let wanted: Vec<_> = loader::allocations(&script).map(|wanted| wanted.unwrap().name).collect();
    assert_eq!(wanted, ["etc/acpi/rsdp", "etc/acpi/tables"]);
    let mut files = [
        loader::LoadedFile { name: "etc/acpi/rsdp", address: rsdp_at, bytes: &mut rsdp },
        loader::LoadedFile { name: "etc/acpi/tables", address: tables_at, bytes: &mut tables },
    ];
    loader::run(&script, &mut files).unwrap();
    let memory = |range: PhysRange| {
        [(rsdp_at, &rsdp), (tables_at, &tables)].into_iter().find_map(|(start, bytes)| {
            let from = range.start().get().checked_sub(start.get())? as usize;
            bytes.get(from..from + range.len() as usize)
        })
    };
    acpi::from_rsdp(&memory, rsdp_at).unwrap()
}

/// Buses behind the bridges of the `q35-vtd` machine, had they been numbered so.
fn root_port(id: RequesterId) -> Option<BusRange> {
    (id == bdf(0, 3, 0)).then_some(BusRange { first: 1, last: 2 })
}

#[test]
fn q35_dmar_covers_listed_devices_and_what_is_behind_listed_bridges() {
    let mut topology = load("q35-vtd");
    let [unit] = topology.units.as_slice() else { panic!("{:?}", topology.units) };
    let UnitKind::Vtd(vtd) = &unit.kind else { panic!("{unit:?}") };
    assert_eq!(vtd.registers, phys(0xfed9_0000, 0x1000));
    assert_eq!((vtd.segment, vtd.coverage), (0, VtdCoverage::Listed));
    assert_eq!(vtd.scopes[0].kind, ScopeKind::IoApic);
    assert_eq!(vtd.scopes.len(), 7);
    let info = topology.dmar.as_ref().unwrap();
    assert_eq!((info.host_address_width, info.flags), (48, DmarFlags::INTERRUPT_REMAPPING));

    // Before bus numbers are final nobody is known.
    assert_eq!(topology.unit_of(bdf(0, 4, 0)), None);
    topology.resolve_scopes(root_port).unwrap();
    let source = |id: RequesterId| topology.unit_of(id).map(|(unit, id)| (unit.get(), id.get()));
    assert_eq!(source(bdf(0, 4, 0)), Some((0, 0x20)));
    assert_eq!(source(bdf(0, 3, 0)), Some((0, 0x18)));
    assert_eq!(source(bdf(1, 0, 0)), Some((0, 0x100)));
    assert_eq!(source(bdf(2, 31, 7)), Some((0, 0x2ff)));
    assert_eq!(source(bdf(3, 0, 0)), None);
    // Plugged in after firmware built the table: not listed.
    assert_eq!(source(bdf(0, 9, 0)), None);
    assert_eq!(topology.ats_support(bdf(1, 0, 0)), AtsSupport::Supported);
    let msi: Vec<_> = topology.reserved_for(bdf(1, 0, 0)).map(|region| (region.range, region.kind)).collect();
    let window = IovaRange::new(portcullis_hal::Iova::new(0xfee0_0000), 0x10_0000).unwrap();
    assert_eq!(msi, [(window, ReservedKind::Msi)]);
    assert_eq!(topology.warnings, []);
}

#[test]
fn q35_platform_tables_give_cpus_interrupt_controllers_and_ecam() {
    let topology = load("q35-vtd");
    let cpu = |id| Cpu { id: CpuId::Apic(id), state: CpuState::Enabled, start: CpuStart::InitSipi };
    assert_eq!(topology.cpus, [cpu(0), cpu(1)]);
    assert_eq!(topology.local_apic, Some(PhysAddr::new(0xfee0_0000)));
    let io_apic = IoApic { id: 0, address: PhysAddr::new(0xfec0_0000), gsi_base: 0 };
    assert_eq!(topology.io_apics, [io_apic]);
    let overrides: Vec<_> =
        topology.interrupt_overrides.iter().map(|o| (o.isa_irq, o.gsi, o.trigger)).collect();
    assert_eq!(overrides[0], (0, 2, None));
    assert_eq!(overrides[1], (5, 5, Some(Trigger::LevelHigh)));
    let [bridge] = topology.host_bridges.as_slice() else { panic!() };
    assert_eq!(bridge.ecam, phys(0xb000_0000, 0x1000_0000));
    assert_eq!((bridge.segment, bridge.buses), (0, BusRange { first: 0, last: 0xff }));
    assert_eq!((topology.psci, topology.gic.is_some()), (None, false));
}

#[test]
fn q35_viot_covers_everything_but_the_iommu_itself() {
    let topology = load("q35-virtio-iommu");
    let [unit] = topology.units.as_slice() else { panic!("{:?}", topology.units) };
    let transport = VirtioTransport::Pci(bdf(0, 2, 0));
    assert_eq!(unit.kind, UnitKind::VirtioIommu(VirtioIommuUnit { transport }));
    let endpoint = |id| topology.unit_of(id).map(|(_, id)| id.get());
    assert_eq!(endpoint(bdf(0, 2, 0)), None);
    assert_eq!(endpoint(bdf(0, 31, 2)), Some(0xfa));
    assert_eq!(endpoint(bdf(1, 0, 0)), None);
    assert_eq!(topology.warnings, []);
}

#[test]
fn virt_iort_gives_the_smmu_its_interrupts_and_the_streams_of_bus_0() {
    let topology = load("virt-smmuv3");
    let [unit] = topology.units.as_slice() else { panic!("{:?}", topology.units) };
    let UnitKind::Smmuv3(smmu) = &unit.kind else { panic!("{unit:?}") };
    assert_eq!(smmu.registers, phys(0x905_0000, 0x2_0000));
    assert_eq!(smmu.walks, WalkCoherency::Coherent);
    let edge = |intid| Some(Interrupt { intid, trigger: Trigger::EdgeRising });
    let interrupts = Smmuv3Interrupts {
        event: edge(106),
        pri: edge(107),
        command_sync: edge(108),
        gerror: edge(109),
        combined: None,
    };
    assert_eq!((smmu.interrupts, smmu.msi), (interrupts, None));
    let stream = |id| topology.unit_of(id).map(|(_, id)| id.get());
    assert_eq!(stream(bdf(0, 31, 7)), Some(0xff));
    // QEMU states only the buses that exist when the table is built; the rest bypasses the SMMU.
    assert_eq!(stream(bdf(1, 0, 0)), None);
    let its = MsiController::Its(ItsId(0));
    let msi = |id| topology.msi_device_id(id);
    assert_eq!(msi(bdf(0, 1, 0)), Some(MsiTarget { controller: its, device_id: 8 }));
    assert_eq!(msi(bdf(255, 31, 7)), Some(MsiTarget { controller: its, device_id: 0xffff }));
    assert_eq!(topology.ats_support(bdf(0, 1, 0)), AtsSupport::NotStated);
    assert_eq!(topology.warnings, []);
}

#[test]
fn virt_madt_fadt_and_spcr_agree_with_the_device_tree() {
    let tables = load("virt-smmuv3");
    let tree = devicetree::parse(&data("virt-smmuv3.dtb")).unwrap();
    assert_eq!(tables.gic, tree.gic);
    assert_eq!(tables.cpus, tree.cpus);
    assert_eq!((tables.psci, tree.psci), (Some(PsciConduit::Smc), Some(PsciConduit::Smc)));
    assert_eq!(tables.consoles, tree.consoles);
    let (acpi, dt) = (&tables.host_bridges[0], &tree.host_bridges[0]);
    assert_eq!((acpi.segment, acpi.buses, acpi.ecam), (dt.segment, dt.buses, dt.ecam));
    assert_eq!(tables.units[0].kind, tree.units[0].kind);
}

#[test]
fn virt_with_two_smmus_sends_each_root_bus_to_its_own() {
    let topology = load("virt-two-smmuv3");
    let bases: Vec<_> = topology
        .units
        .iter()
        .map(|unit| match &unit.kind {
            UnitKind::Smmuv3(smmu) => (smmu.registers.start().get(), smmu.interrupts.event.unwrap().intid),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(bases, [(0xc00_0000, 144), (0xc02_0000, 148)]);
    let stream = |id| topology.unit_of(id).map(|(unit, id)| (unit.get(), id.get()));
    assert_eq!(stream(bdf(0, 1, 0)), Some((0, 8)));
    assert_eq!(stream(bdf(16, 0, 0)), Some((1, 0x1000)));
    assert_eq!(stream(bdf(1, 0, 0)), None);
    assert_eq!(topology.msi_device_id(bdf(16, 0, 0)).unwrap().device_id, 0x1000);
    assert_eq!(topology.msi_device_id(bdf(1, 0, 0)).unwrap().device_id, 0x100);
    assert_eq!(topology.warnings, []);
}

#[test]
fn virt_viot_and_iort_together_give_endpoints_and_msis() {
    let topology = load("virt-virtio-iommu");
    assert_eq!(topology.units.len(), 1);
    let stream = |id| topology.unit_of(id).map(|(_, id)| id.get());
    assert_eq!(stream(bdf(0, 3, 0)), Some(0x18));
    assert_eq!(stream(bdf(0, 2, 0)), None);
    assert_eq!(topology.msi_device_id(bdf(0, 3, 0)).unwrap().device_id, 0x18);
}

#[test]
fn virt_device_tree_describes_the_smmu_the_host_bridge_and_the_gic() {
    let topology = devicetree::parse(&data("virt-smmuv3.dtb")).unwrap();
    let stream = |id| topology.unit_of(id).map(|(unit, id)| (unit.get(), id));
    assert_eq!(stream(bdf(0, 0, 0)), Some((0, EndpointId::new(0))));
    assert_eq!(stream(bdf(255, 31, 7)), Some((0, EndpointId::new(0xffff))));
    assert_eq!(stream(RequesterId::from_bdf(1, 0)), None);
    assert_eq!(
        topology.msi_device_id(bdf(1, 0, 0)),
        Some(MsiTarget { controller: MsiController::Its(ItsId(0)), device_id: 0x100 })
    );
    let [bridge] = topology.host_bridges.as_slice() else { panic!() };
    assert_eq!(bridge.ecam, phys(0x40_1000_0000, 0x1000_0000));
    let window = |space, start, len, bus| PciWindow {
        space,
        cpu: phys(start, len),
        bus,
        prefetch: Prefetch::NonPrefetchable,
    };
    let windows = [
        window(PciSpace::Io, 0x3eff_0000, 0x1_0000, 0),
        window(PciSpace::Memory32, 0x1000_0000, 0x2eff_0000, 0x1000_0000),
        window(PciSpace::Memory64, 0x80_0000_0000, 0x80_0000_0000, 0x80_0000_0000),
    ];
    assert_eq!(bridge.windows, windows);
    let gic = topology.gic.as_ref().unwrap();
    assert_eq!((gic.version, gic.distributor), (3, phys(0x800_0000, 0x1_0000)));
    assert_eq!(gic.redistributors, [phys(0x80a_0000, 0xf6_0000)]);
    assert_eq!(gic.its(ItsId(0)).unwrap().registers, phys(0x808_0000, 0x2_0000));
    let cpu = |id| Cpu { id: CpuId::Mpidr(id), state: CpuState::Enabled, start: CpuStart::Psci };
    assert_eq!(topology.cpus, [cpu(0), cpu(1)]);
    let [console] = topology.consoles.as_slice() else { panic!() };
    assert_eq!(console.registers, phys(0x900_0000, 0x1000));
    assert_eq!(console.interrupt, Some(Interrupt { intid: 33, trigger: Trigger::LevelHigh }));
    assert_eq!(topology.warnings, []);
}

#[test]
fn virt_device_tree_skips_the_virtio_iommu_itself() {
    let topology = devicetree::parse(&data("virt-virtio-iommu.dtb")).unwrap();
    let transport = VirtioTransport::Pci(bdf(0, 2, 0));
    assert_eq!(topology.units[0].kind, UnitKind::VirtioIommu(VirtioIommuUnit { transport }));
    let endpoint = |id| topology.unit_of(id).map(|(_, id)| id.get());
    assert_eq!(endpoint(bdf(0, 1, 7)), Some(0xf));
    assert_eq!(endpoint(bdf(0, 2, 0)), None);
    assert_eq!(endpoint(bdf(0, 2, 1)), Some(0x11));
    assert_eq!(endpoint(bdf(255, 31, 7)), Some(0xffff));
}

#[test]
fn virt_with_gicv2_has_a_v2m_frame_and_no_units() {
    let topology = devicetree::parse(&data("virt-gicv2.dtb")).unwrap();
    let gic = topology.gic.as_ref().unwrap();
    assert_eq!((gic.version, gic.cpu_interface), (2, Some(phys(0x801_0000, 0x1_0000))));
    assert_eq!(gic.v2m_frames, [V2mFrame { registers: phys(0x802_0000, 0x1000), spis: None }]);
    assert_eq!(topology.msi_device_id(bdf(0, 1, 0)).unwrap().controller, MsiController::V2m(0));
    assert_eq!((topology.units.len(), topology.psci), (0, Some(PsciConduit::Hvc)));
}
