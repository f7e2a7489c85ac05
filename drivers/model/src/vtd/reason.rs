//! Fault reasons of scalable mode (specification, "Non-recoverable fault reasons and encodings").

/// The root-table address register holds a reserved mode or address.
pub const ROOT_ADDRESS: u8 = 0x30;
/// A request with PASID while the root-table address names legacy mode.
pub const LEGACY_WITH_PASID: u8 = 0x31;
/// The root entry could not be read.
pub const ROOT_ACCESS: u8 = 0x38;
/// The root entry is not present.
pub const ROOT_NOT_PRESENT: u8 = 0x39;
/// A reserved field of the root entry is set.
pub const ROOT_RESERVED: u8 = 0x3a;
/// The context entry could not be read.
pub const CONTEXT_ACCESS: u8 = 0x40;
/// The context entry is not present.
pub const CONTEXT_NOT_PRESENT: u8 = 0x41;
/// A reserved field of the context entry is set.
pub const CONTEXT_RESERVED: u8 = 0x42;
/// The context entry asks for what the unit does not have.
pub const CONTEXT_INVALID: u8 = 0x43;
/// An ATS request while the context entry has DTE=0.
pub const NO_DEVICE_TLB: u8 = 0x44;
/// A request with PASID while the context entry has PASIDE=0.
pub const NO_PASID: u8 = 0x45;
/// The PASID, of the request or from RID_PASID, is beyond the PASID directory.
pub const PASID_TOO_LARGE: u8 = 0x46;
/// A page request while the context entry has PRE=0.
pub const NO_PAGE_REQUESTS: u8 = 0x47;
/// A request with the PASID that RID_PASID keeps for requests without.
pub const PASID_IS_RID_PASID: u8 = 0x48;
/// The PASID directory entry could not be read.
pub const DIRECTORY_ACCESS: u8 = 0x50;
/// The PASID directory entry is not present.
pub const DIRECTORY_NOT_PRESENT: u8 = 0x51;
/// A reserved field of the PASID directory entry is set.
pub const DIRECTORY_RESERVED: u8 = 0x52;
/// The PASID table entry could not be read.
pub const PASID_ACCESS: u8 = 0x58;
/// The PASID table entry is not present.
pub const PASID_NOT_PRESENT: u8 = 0x59;
/// A reserved field of the PASID table entry is set.
pub const PASID_RESERVED: u8 = 0x5a;
/// The PASID table entry asks for what the unit does not have.
pub const PASID_INVALID: u8 = 0x5b;
/// An execute request while the PASID table entry has ERE=0.
pub const NO_EXECUTE_REQUESTS: u8 = 0x5c;
/// A supervisor request while the PASID table entry has SRE=0.
pub const NO_SUPERVISOR_REQUESTS: u8 = 0x5d;
/// A first-stage entry could not be read.
pub const FIRST_STAGE_ACCESS: u8 = 0x70;
/// A first-stage entry is not present.
pub const FIRST_STAGE_NOT_PRESENT: u8 = 0x71;
/// A reserved field of a first-stage entry is set.
pub const FIRST_STAGE_RESERVED: u8 = 0x72;
/// The top first-stage entry could not be read.
pub const FIRST_STAGE_TOP_ACCESS: u8 = 0x73;
/// Nested: the address of a first-stage table is beyond the second stage's width.
pub const NESTED_TABLE_TOO_LARGE: u8 = 0x74;
/// Nested: the second stage does not let the top first-stage table be read.
pub const NESTED_TOP_READ: u8 = 0x75;
/// Nested: the second stage does not let a first-stage table be read.
pub const NESTED_TABLE_READ: u8 = 0x76;
/// Nested: the second stage does not let accessed or dirty flags of the first stage be written.
pub const NESTED_TABLE_WRITE: u8 = 0x77;
/// A second-stage entry could not be read.
pub const SECOND_STAGE_ACCESS: u8 = 0x78;
/// A second-stage entry grants nothing: it is not present.
pub const SECOND_STAGE_NOT_PRESENT: u8 = 0x79;
/// A reserved field of a second-stage entry is set.
pub const SECOND_STAGE_RESERVED: u8 = 0x7a;
/// The second-stage pointer of the PASID table entry is beyond the host's width.
pub const SECOND_STAGE_POINTER: u8 = 0x7b;
/// Flags of a second-stage entry need an update, but its walk is not coherent.
pub const SECOND_STAGE_FLAGS: u8 = 0x7c;
/// Flags of a second-stage entry could not be updated atomically.
pub const SECOND_STAGE_FLAGS_ACCESS: u8 = 0x7d;
/// The address is not canonical.
pub const NOT_CANONICAL: u8 = 0x80;
/// A user request to a supervisor page.
pub const SUPERVISOR_PAGE: u8 = 0x81;
/// An execute request to a page that forbids it.
pub const NO_EXECUTE: u8 = 0x82;
/// The address is beyond the width of the second stage or of the host.
pub const ADDRESS_TOO_LARGE: u8 = 0x83;
/// Nested: the first stage's output is beyond the second stage's width.
pub const NESTED_OUTPUT_TOO_LARGE: u8 = 0x84;
/// A write without write permission.
pub const NO_WRITE: u8 = 0x85;
/// A read without read permission.
pub const NO_READ: u8 = 0x86;
/// The result is in the interrupt range, or a read asks for that range.
pub const INTERRUPT_ADDRESS: u8 = 0x87;
/// Flags of a first-stage entry need an update, but its walk is not coherent.
pub const FIRST_STAGE_FLAGS: u8 = 0x90;
/// Flags of a first-stage entry could not be updated atomically.
pub const FIRST_STAGE_FLAGS_ACCESS: u8 = 0x91;

/// A short name for coverage tables.
#[must_use]
pub const fn name(reason: u8) -> &'static str {
    match reason {
        ROOT_ADDRESS => "30 root address",
        LEGACY_WITH_PASID => "31 legacy with PASID",
        ROOT_ACCESS => "38 root access",
        ROOT_NOT_PRESENT => "39 root not present",
        ROOT_RESERVED => "3a root reserved",
        CONTEXT_ACCESS => "40 context access",
        CONTEXT_NOT_PRESENT => "41 context not present",
        CONTEXT_RESERVED => "42 context reserved",
        CONTEXT_INVALID => "43 context invalid",
        NO_DEVICE_TLB => "44 DTE clear",
        NO_PASID => "45 PASIDE clear",
        PASID_TOO_LARGE => "46 PASID too large",
        NO_PAGE_REQUESTS => "47 PRE clear",
        PASID_IS_RID_PASID => "48 PASID is RID_PASID",
        DIRECTORY_ACCESS => "50 directory access",
        DIRECTORY_NOT_PRESENT => "51 directory not present",
        DIRECTORY_RESERVED => "52 directory reserved",
        PASID_ACCESS => "58 PASID entry access",
        PASID_NOT_PRESENT => "59 PASID entry not present",
        PASID_RESERVED => "5a PASID entry reserved",
        PASID_INVALID => "5b PASID entry invalid",
        NO_EXECUTE_REQUESTS => "5c ERE clear",
        NO_SUPERVISOR_REQUESTS => "5d SRE clear",
        FIRST_STAGE_ACCESS => "70 first-stage access",
        FIRST_STAGE_NOT_PRESENT => "71 first-stage not present",
        FIRST_STAGE_RESERVED => "72 first-stage reserved",
        FIRST_STAGE_TOP_ACCESS => "73 first-stage top access",
        NESTED_TABLE_TOO_LARGE => "74 nested table beyond width",
        NESTED_TOP_READ => "75 nested top table read",
        NESTED_TABLE_READ => "76 nested table read",
        NESTED_TABLE_WRITE => "77 nested table write",
        SECOND_STAGE_ACCESS => "78 second-stage access",
        SECOND_STAGE_NOT_PRESENT => "79 second-stage not present",
        SECOND_STAGE_RESERVED => "7a second-stage reserved",
        SECOND_STAGE_POINTER => "7b second-stage pointer",
        SECOND_STAGE_FLAGS => "7c second-stage flags",
        SECOND_STAGE_FLAGS_ACCESS => "7d second-stage flags access",
        NOT_CANONICAL => "80 not canonical",
        SUPERVISOR_PAGE => "81 supervisor page",
        NO_EXECUTE => "82 no execute",
        ADDRESS_TOO_LARGE => "83 address too large",
        NESTED_OUTPUT_TOO_LARGE => "84 nested output too large",
        NO_WRITE => "85 no write",
        NO_READ => "86 no read",
        INTERRUPT_ADDRESS => "87 interrupt address",
        FIRST_STAGE_FLAGS => "90 first-stage flags",
        FIRST_STAGE_FLAGS_ACCESS => "91 first-stage flags access",
        _ => "other",
    }
}
