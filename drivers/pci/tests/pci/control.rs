//! A function's three capabilities, switched as the IOMMU layer does.

use crate::fabric::{Fabric, Node};
use portcullis_hal::host::HostHal;
use portcullis_iommu::{ControlError, DeviceControl, Permissions, Requests};
use portcullis_pci::{ConfigSpace, Function, FunctionControl, enumerate};

const ATS: u16 = 0x104;
const PASID: u16 = 0x10c;
const PRI: u16 = 0x114;

/// ATS, a PASID capability of 20 bits and a stopped page-request interface with room for 16.
fn full() -> (ConfigSpace<Fabric>, Function) {
    let node = Node::endpoint(1, 0)
        .extended(0x0f, &[0x60])
        .extended(0x1b, &[0x1406])
        .extended(0x13, &[0x0100_0000, 16, 0])
        .writable(usize::from(ATS), 0x801f_0000)
        .writable(usize::from(PASID), 0x0007_0000)
        .writable(usize::from(PRI), 1)
        .writable(usize::from(PRI) + 8, u32::MAX);
    let config = Fabric::config(vec![node]);
    let function = enumerate(&config).unwrap().remove(0);
    (config, function)
}

#[test]
fn each_step_switches_its_capability_and_no_other() {
    let (config, function) = full();
    let hal = HostHal::new();
    let control = FunctionControl { hal: &hal, config: &config, function: &function, page_requests: 64 };
    let words = || [ATS, PASID, PRI, PRI + 8].map(|at| config.read32(function.id, at));
    let requests = Requests::TRANSLATION | Requests::PAGE;
    assert_eq!(control.offers(), Permissions { pasid_bits: 20, requests });

    control.enable_pasids().unwrap();
    assert_eq!(words(), [0x60, 0x0001_1406, 0x0100_0000, 0]);
    control.enable_page_requests().unwrap();
    assert_eq!(words(), [0x60, 0x0001_1406, 0x0100_0001, 16]);
    control.enable_translation_requests().unwrap();
    assert_eq!(words(), [0x8000_0060, 0x0001_1406, 0x0100_0001, 16]);
    // PASIDs must not change under ATS.
    assert_eq!(control.disable_pasids(), Err(ControlError::Refused));

    control.stop_page_requests();
    control.await_page_answers().unwrap();
    control.disable_translation_requests().unwrap();
    control.disable_pasids().unwrap();
    assert_eq!(words(), [0x60, 0x1406, 0x0100_0000, 16]);
}

#[test]
fn a_function_without_the_capabilities_offers_nothing_and_needs_no_switching_off() {
    let config = Fabric::config(vec![Node::endpoint(1, 0)]);
    let function = enumerate(&config).unwrap().remove(0);
    let hal = HostHal::new();
    let control = FunctionControl { hal: &hal, config: &config, function: &function, page_requests: 1 };
    assert_eq!(control.offers(), Permissions::NONE);
    let on = [control.enable_pasids(), control.enable_page_requests(), control.enable_translation_requests()];
    assert_eq!(on, [Err(ControlError::Refused); 3]);
    control.stop_page_requests();
    let off =
        [control.disable_pasids(), control.await_page_answers(), control.disable_translation_requests()];
    assert_eq!(off, [Ok(()); 3]);
}

#[test]
fn a_function_that_needs_pasids_in_answers_says_so() {
    let node = Node::endpoint(1, 0).extended(0x13, &[0x8100_0000, 16, 0]);
    let config = Fabric::config(vec![node]);
    let function = enumerate(&config).unwrap().remove(0);
    let hal = HostHal::new();
    let control = FunctionControl { hal: &hal, config: &config, function: &function, page_requests: 1 };
    assert_eq!(control.offers().requests, Requests::PAGE | Requests::PASID_IN_ANSWERS);
}
