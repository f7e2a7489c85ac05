//! QEMU's SMMUv3. Sections are those of IHI 0070.

use super::Difference::{Field, Outcome};
use super::Known;
use super::Verdict::{Fault, Lands, Silent};

const C_BAD_STREAMID: u8 = 0x02;
const C_BAD_STE: u8 = 0x04;
const F_CD_FETCH: u8 = 0x09;
const F_WALK_EABT: u8 = 0x0b;
const F_TRANSLATION: u8 = 0x10;
const F_ADDR_SIZE: u8 = 0x11;
const F_PERMISSION: u8 = 0x13;

/// What becomes of accesses to a good stream, one that QEMU refuses as a whole.
const ANY: &[super::Verdict] = &[Lands, Fault(F_TRANSLATION), Fault(F_ADDR_SIZE), Fault(F_PERMISSION)];

pub(in super::super) const SMMUV3: &[Known] = &[
    Known {
        inputs: &["stream table linear again"],
        difference: Outcome(ANY, &[Fault(C_BAD_STREAMID)]),
        qemu: "Once STRTAB_BASE_CFG.FMT was 1, the Stream table has two levels until reset.",
        architecture: "FMT can be changed while SMMUEN is 0.",
        section: "6.3.25",
    },
    Known {
        inputs: &["StreamID out of the table"],
        difference: Outcome(&[Fault(C_BAD_STREAMID)], &[Fault(C_BAD_STE)]),
        qemu: "A StreamID beyond L1STD.Span is C_BAD_STE.",
        architecture: "It is C_BAD_STREAMID.",
        section: "7.3.3",
    },
    Known {
        inputs: &["STE.S1CDMax without substreams"],
        difference: Outcome(ANY, &[Fault(C_BAD_STE)]),
        qemu: "S1CDMax must be 0.",
        architecture: "S1CDMax is ignored if SSIDSIZE is 0.",
        section: "5.2, STE.S1CDMax",
    },
    Known {
        inputs: &["STE.S1ContextPtr out of range"],
        difference: Outcome(&[Fault(C_BAD_STE)], &[Fault(F_CD_FETCH)]),
        qemu: "The CD is fetched from the address as it is.",
        architecture: "From SMMUv3.1 on, an S1ContextPtr beyond OAS makes the STE ILLEGAL.",
        section: "3.4.3",
    },
    Known {
        inputs: &["STE.S2HA without HTTU", "STE.S2HD without HTTU"],
        difference: Outcome(&[Fault(C_BAD_STE)], &[Lands, Fault(F_TRANSLATION)]),
        qemu: "S2HA and S2HD are ignored.",
        architecture: "They are ILLEGAL if HTTU is 0.",
        section: "5.2, STE.S2HA",
    },
    Known {
        inputs: &["stage 2: input larger than output"],
        difference: Outcome(ANY, &[Fault(C_BAD_STE)]),
        qemu: "The input may not be larger than S2PS says of the output.",
        architecture: "The limit of S2T0SZ is IAS, which S2PS does not change.",
        section: "5.2, STE.S2T0SZ",
    },
    Known {
        inputs: &["stage 2: root of several tables"],
        difference: Outcome(&[Lands], &[Fault(F_TRANSLATION)]),
        qemu: "Of a concatenated root only the first table is used.",
        architecture: "Up to 16 tables are indexed as one.",
        section: "DDI 0487, D8.2",
    },
    Known {
        inputs: &["nested: tables scattered over pages"],
        difference: Outcome(&[Lands, Fault(F_ADDR_SIZE)], &[Fault(F_TRANSLATION)]),
        qemu: "Stage 2 translates the start of a first-stage table, not the address of the descriptor.",
        architecture: "Each access to a descriptor is translated by its own address.",
        section: "3.4, DDI 0487 D8.2",
    },
    Known {
        inputs: &["nested: tables scattered over pages"],
        difference: Field { word: 1, bits: 7 << 39 },
        qemu: "As above: the fault is in another place,",
        architecture: "or of another class.",
        section: "7.3.13",
    },
    Known {
        inputs: &["nested: tables scattered over pages"],
        difference: Field { word: 3, bits: u64::MAX },
        qemu: "As above: it is at another intermediate address,",
        architecture: "that of the descriptor.",
        section: "7.3.13",
    },
    Known {
        inputs: &["nested: S2PTW, tables in device memory"],
        difference: Outcome(&[Fault(F_PERMISSION)], &[Lands, Fault(F_TRANSLATION), Fault(F_ADDR_SIZE)]),
        qemu: "S2PTW is ignored.",
        architecture: "A stage-1 walk through Device memory is a stage-2 permission fault.",
        section: "5.2, STE.S2PTW",
    },
    Known {
        inputs: &["table out of range"],
        difference: Outcome(&[Fault(F_ADDR_SIZE)], &[Fault(F_WALK_EABT)]),
        qemu: "A table beyond the output size is looked for there.",
        architecture: "It is an address size fault.",
        section: "3.4.3",
    },
    Known {
        inputs: &["bypass, input out of range", "input out of range"],
        difference: Outcome(&[Fault(F_ADDR_SIZE)], &[Silent]),
        qemu: "Without stage 1, an input beyond OAS is refused without a record.",
        architecture: "It is a stage-1 address size fault, and recorded.",
        section: "3.4.1",
    },
    Known {
        inputs: &["AP[1] = 0", "APTable[0] = 1"],
        difference: Outcome(&[Fault(F_PERMISSION)], &[Lands]),
        qemu: "All accesses are privileged.",
        architecture: "A PCIe access without PASID is not.",
        section: "13.1.2",
    },
    Known {
        inputs: &["APTable[1] = 1", "APTable[1] = 1, leaf not valid"],
        difference: Outcome(&[Fault(F_PERMISSION)], &[Lands]),
        qemu: "What a read put into the TLB lets writes through: APTable is not cached.",
        architecture: "APTable[1] forbids writes to all that is below it.",
        section: "DDI 0487, D8.4",
    },
    Known {
        inputs: &["APTable[1] = 1", "APTable[1] = 1, leaf not valid"],
        difference: Outcome(&[Fault(F_TRANSLATION)], &[Fault(F_PERMISSION)]),
        qemu: "APTable is looked at before the entry below is found.",
        architecture: "A translation fault comes before a permission fault.",
        section: "DDI 0487, D8.2",
    },
    Known {
        inputs: &["S2AP: write only", "S2AP: read only"],
        difference: Outcome(&[Fault(F_PERMISSION)], &[Silent]),
        qemu: "A read by a TLB entry that a write made is refused without a record, and so the other way round.",
        architecture: "It is recorded.",
        section: "7.3.16",
    },
    Known {
        inputs: &["nested: output not readable"],
        difference: Outcome(&[Fault(F_PERMISSION)], &[Lands]),
        qemu: "A TLB entry of both stages that a write made lets reads through.",
        architecture: "The permissions of both stages count.",
        section: "3.3",
    },
    Known {
        inputs: &["nested: output not writable"],
        difference: Field { word: 3, bits: !0xfff },
        qemu: "IPA is 0 if the entry was in the TLB.",
        architecture: "IPA is the address that stage 2 refused.",
        section: "7.3.16",
    },
    Known {
        inputs: &[],
        difference: Field { word: 3, bits: 0xfff },
        qemu: "IPA has all bits of the address.",
        architecture: "IPA begins at bit 12; what is below it is RES0.",
        section: "7.3.13",
    },
    Known {
        inputs: &[
            "nested: CD not mapped",
            "nested: CD not readable",
            "nested: CD mapped without access flag",
            "nested: root not mapped",
            "nested: large root not mapped",
            "nested: root not readable",
            "nested: root mapped without access flag",
            "nested: tables scattered over pages",
        ],
        difference: Field { word: 1, bits: 1 << 35 },
        qemu: "RnW says that the access to the CD or to the descriptor was a read.",
        architecture: "RnW is that of the transaction.",
        section: "7.3.13",
    },
    Known {
        inputs: &[
            "nested: root not mapped",
            "nested: large root not mapped",
            "nested: root not readable",
            "nested: root mapped without access flag",
        ],
        difference: Field { word: 3, bits: 0xf000 },
        qemu: "IPA is that of the table.",
        architecture: "IPA is that of the descriptor.",
        section: "7.3.13",
    },
    Known {
        inputs: &["nested: root not readable"],
        difference: Field { word: 1, bits: 1 << 44 },
        qemu: "TTRnW is always 0.",
        architecture: "For a permission fault on a descriptor it says how that was accessed.",
        section: "7.3.16",
    },
];
