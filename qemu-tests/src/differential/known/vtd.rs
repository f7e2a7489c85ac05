//! QEMU's VT-d in scalable mode. Sections are those of the VT-d specification, revision 4.1.

use super::Difference::Outcome;
use super::Verdict::{Fault, Lands, Silent};
use super::{Known, Verdict};

/// What becomes of accesses to a good device: they land, or an entry of the first or second stage is not present.
const GOOD: &[Verdict] = &[Lands, Fault(0x71), Fault(0x05), Fault(0x06)];

/// With tables of either stage.
pub(in super::super) const VTD: &[Known] = &[
    Known {
        inputs: &["root entry not present"],
        difference: Outcome(&[Fault(0x39)], &[Fault(0x01)]),
        qemu: "The reason is that of legacy mode, 1h.",
        architecture: "39h.",
        section: "7.1.3",
    },
    Known {
        inputs: &["root entry, reserved bits", "root entry out of range"],
        difference: Outcome(&[Fault(0x3a)], &[Fault(0x0a)]),
        qemu: "The reason is that of legacy mode, Ah.",
        architecture: "3Ah.",
        section: "7.1.3",
    },
    Known {
        inputs: &[
            "context entry not present",
            "context entry changed, by device",
            "context entry changed, global",
        ],
        difference: Outcome(&[Fault(0x41)], &[Fault(0x02)]),
        qemu: "The reason is that of legacy mode, 2h.",
        architecture: "41h.",
        section: "7.1.3",
    },
    Known {
        inputs: &[
            "context entry, reserved bits",
            "context entry out of range",
            "context entry, upper reserved bits",
            "context entry, third and fourth word",
        ],
        difference: Outcome(&[Fault(0x42)], &[Fault(0x0b)]),
        qemu: "The reason is that of legacy mode, Bh.",
        architecture: "42h.",
        section: "7.1.3",
    },
    Known {
        inputs: &["context entry, RID_PASID without RPS"],
        difference: Outcome(&[Fault(0x42)], GOOD),
        qemu: "RID_PASID is ignored.",
        architecture: "The field is reserved if ECAP.RPS is clear.",
        section: "9.4",
    },
    Known {
        inputs: &["directory entry, reserved bits"],
        difference: Outcome(&[Fault(0x52)], GOOD),
        qemu: "Reserved bits are not looked at.",
        architecture: "They are a fault.",
        section: "9.5",
    },
    Known {
        inputs: &["directory entry out of range"],
        difference: Outcome(&[Fault(0x52)], &[Fault(0x58)]),
        qemu: "The PASID table is looked for there.",
        architecture: "Address bits beyond the host's width are reserved.",
        section: "9.5",
    },
    Known {
        inputs: &["PASID entry zero"],
        difference: Outcome(&[Fault(0x59)], &[Fault(0x5b)]),
        qemu: "PGTT is looked at before the present bit.",
        architecture: "An entry that is not present has no other fields.",
        section: "9.6",
    },
    Known {
        inputs: &[
            "PASID entry, reserved bits",
            "PASID entry, upper reserved bits",
            "PASID entry, SNP and memory types",
            "PASID entry, fourth word and above",
        ],
        difference: Outcome(&[Fault(0x5a)], GOOD),
        qemu: "Reserved bits, and those of features that it lacks, are not looked at.",
        architecture: "They are a fault.",
        section: "9.6",
    },
    Known {
        inputs: &[
            "PASID entry taken away, by PASID",
            "PASID entry taken away, by domain",
            "PASID entry taken away, global",
        ],
        difference: Outcome(&[Fault(0x59)], GOOD),
        qemu: "The present bit counts only when the context entry is fetched; the other fields are used at once.",
        architecture: "After a PASID-cache and an IOTLB invalidation the entry is gone.",
        section: "6.5.3.3",
    },
    Known {
        inputs: &["pass-through, input out of range"],
        difference: Outcome(&[Fault(0x83)], &[Silent]),
        qemu: "With pass-through any address goes through; nothing is there.",
        architecture: "An address beyond the host's width is a fault.",
        section: "3.10",
    },
];

/// With first-stage tables.
pub(in super::super) const FIRST: &[Known] = &[
    Known {
        inputs: &[
            "PASID entry to pass-through, by PASID",
            "PASID entry to pass-through, nothing invalidated",
        ],
        difference: Outcome(&[Fault(0x83)], &[Silent]),
        qemu: "With pass-through any address goes through; nothing is there.",
        architecture: "An address beyond the host's width is a fault.",
        section: "3.10",
    },
    Known {
        inputs: &["AW smaller than the address"],
        difference: Outcome(GOOD, &[Fault(0x80)]),
        qemu: "AW limits canonical addresses.",
        architecture: "AW is for the second stage.",
        section: "9.6",
    },
    Known {
        inputs: &["first-stage reserved bits"],
        difference: Outcome(&[Fault(0x5a)], GOOD),
        qemu: "Reserved bits are not looked at.",
        architecture: "They are a fault.",
        section: "9.6",
    },
    Known {
        inputs: &["first-stage pointer out of range"],
        difference: Outcome(&[Fault(0x5a)], &[Fault(0x73)]),
        qemu: "The table is looked for there.",
        architecture: "Address bits beyond the host's width are reserved.",
        section: "9.6",
    },
    Known {
        inputs: &["leaf not accessed", "table not accessed", "leaf not dirty"],
        difference: Outcome(&[Fault(0x90)], &[Lands]),
        qemu: "Flags are set.",
        architecture: "Without page-walk coherency flags cannot be set, and have to be.",
        section: "3.6.2",
    },
    Known {
        inputs: &["XD without NXE"],
        difference: Outcome(&[Fault(0x72)], &[Lands]),
        qemu: "XD is not looked at.",
        architecture: "XD is reserved if NXE is clear.",
        section: "9.7",
    },
    Known {
        inputs: &["table for supervisors", "table for supervisors, leaf not present", "table not writable"],
        difference: Outcome(&[Fault(0x71)], &[Fault(0x81), Fault(0x85)]),
        qemu: "U/S and R/W are looked at before the entry below is found.",
        architecture: "Rights count when the walk is over.",
        section: "3.6.1",
    },
];

/// With second-stage tables.
pub(in super::super) const SECOND: &[Known] = &[
    Known {
        inputs: &[],
        difference: Outcome(&[Fault(0x79)], &[Fault(0x05), Fault(0x06)]),
        qemu: "An entry that is not present has the reason of a missing right, that of legacy mode.",
        architecture: "79h.",
        section: "7.1.3",
    },
    Known {
        inputs: &[],
        difference: Outcome(&[Fault(0x85)], &[Fault(0x05)]),
        qemu: "The reason is that of legacy mode, 5h.",
        architecture: "85h.",
        section: "7.1.3",
    },
    Known {
        inputs: &["leaf not readable", "table not readable"],
        difference: Outcome(&[Fault(0x86)], &[Fault(0x06)]),
        qemu: "The reason is that of legacy mode, 6h.",
        architecture: "86h.",
        section: "7.1.3",
    },
    Known {
        inputs: &[
            "leaf out of range",
            "table out of range",
            "large page not aligned",
            "leaf in the top table",
            "TM",
            "TM in a table",
            "SNP in a table",
        ],
        difference: Outcome(&[Fault(0x7a)], &[Fault(0x0c)]),
        qemu: "The reason is that of legacy mode, Ch.",
        architecture: "7Ah.",
        section: "7.1.3",
    },
    Known {
        inputs: &["input out of range", "input far out of range"],
        difference: Outcome(&[Fault(0x83)], &[Fault(0x04)]),
        qemu: "The reason is that of legacy mode, 4h.",
        architecture: "83h.",
        section: "7.1.3",
    },
    Known {
        inputs: &["second-stage pointer out of range"],
        difference: Outcome(&[Fault(0x5a)], &[Fault(0x03)]),
        qemu: "The table is looked for there; the reason is that of legacy mode.",
        architecture: "Address bits beyond the host's width are reserved.",
        section: "9.6",
    },
    Known {
        inputs: &["SSADE without SSADS"],
        difference: Outcome(&[Fault(0x5a)], GOOD),
        qemu: "SSADE is ignored.",
        architecture: "It is reserved if ECAP.SSADS is clear.",
        section: "9.6",
    },
];
