//! Fault reasons (section 7.1.3 and its table of encodings).

use core::ops::RangeInclusive;

/// A fault reason, FRCD_REG.FR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FaultCode(pub u8);

impl FaultCode {
    /// The codes of interrupt requests (5.1.4.1), known or not.
    pub const INTERRUPT: RangeInclusive<Self> = Self(0x20)..=Self(0x2f);
}

macro_rules! codes {
    ($($(#[$doc:meta])* $const:ident = $code:literal, $name:literal;)*) => {
        impl FaultCode {
            $($(#[$doc])* pub const $const: Self = Self($code);)*

            /// All codes that the architecture defines and this table knows.
            pub const ALL: &'static [Self] = &[$(Self::$const),*];

            /// The label of the condition in the manual, or `"reserved"`. Interrupt requests have no labels there.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$const => $name,)*
                    _ => "reserved",
                }
            }
        }
    };
}

codes! {
    /// Root entry not present.
    ROOT_NOT_PRESENT = 0x01, "LRT.2";
    /// Context entry not present.
    CONTEXT_NOT_PRESENT = 0x02, "LCT.2";
    /// Context entry wrongly programmed.
    CONTEXT_INVALID = 0x03, "LCT.4";
    /// Address beyond the width that the unit or the context entry allows.
    ADDRESS_BEYOND_WIDTH = 0x04, "LGN.1";
    /// No write permission in a second-stage entry.
    NO_WRITE = 0x05, "LGN.2";
    /// No read permission in a second-stage entry.
    NO_READ = 0x06, "LGN.3";
    /// A second-stage table could not be read.
    TABLE_ACCESS = 0x07, "LSS.1";
    /// The root table could not be read.
    ROOT_ACCESS = 0x08, "LRT.1";
    /// A context table could not be read.
    CONTEXT_ACCESS = 0x09, "LCT.1";
    /// Reserved bits set in a root entry.
    ROOT_RESERVED = 0x0a, "LRT.3";
    /// Reserved bits set in a context entry.
    CONTEXT_RESERVED = 0x0b, "LCT.3";
    /// Reserved bits set in a second-stage entry.
    TABLE_RESERVED = 0x0c, "LSS.2";
    /// Translation requests or translated requests are not allowed by the context entry.
    TRANSLATION_BLOCKED = 0x0d, "LCT.5";
    /// The output address is in the interrupt range.
    OUTPUT_INTERRUPT = 0x0e, "LGN.4";

    /// Interrupt request: reserved bits set.
    INTERRUPT_RESERVED = 0x20, "interrupt 20h";
    /// Interrupt index beyond the table.
    INTERRUPT_INDEX = 0x21, "interrupt 21h";
    /// Interrupt entry not present.
    INTERRUPT_NOT_PRESENT = 0x22, "interrupt 22h";
    /// The interrupt-remapping table could not be read.
    INTERRUPT_ACCESS = 0x23, "interrupt 23h";
    /// Reserved bits set in an interrupt entry.
    INTERRUPT_ENTRY_RESERVED = 0x24, "interrupt 24h";
    /// A compatibility-format interrupt was blocked.
    INTERRUPT_COMPATIBILITY = 0x25, "interrupt 25h";
    /// The source-id of an interrupt request was refused.
    INTERRUPT_SOURCE = 0x26, "interrupt 26h";

    /// Root table address wrongly programmed.
    SM_ROOT_ADDRESS = 0x30, "RTA.1";
    /// The table mode does not allow requests with PASID.
    SM_MODE_PASID = 0x31, "RTA.2";
    /// The table mode does not allow page requests.
    SM_MODE_PAGE_REQUEST = 0x32, "RTA.3";
    /// The root table could not be read.
    SM_ROOT_ACCESS = 0x38, "SRT.1";
    /// Root entry not present.
    SM_ROOT_NOT_PRESENT = 0x39, "SRT.2";
    /// Reserved bits set in a root entry.
    SM_ROOT_RESERVED = 0x3a, "SRT.3";
    /// A context table could not be read.
    SM_CONTEXT_ACCESS = 0x40, "SCT.1";
    /// Context entry not present.
    SM_CONTEXT_NOT_PRESENT = 0x41, "SCT.2";
    /// Reserved bits set in a context entry.
    SM_CONTEXT_RESERVED = 0x42, "SCT.3";
    /// Context entry wrongly programmed.
    SM_CONTEXT_INVALID = 0x43, "SCT.4";
    /// Translation requests are not enabled in the context entry (DTE).
    SM_NO_DEVICE_TLB = 0x44, "SCT.5";
    /// Requests with PASID are not enabled in the context entry (PASIDE).
    SM_NO_PASID = 0x45, "SCT.6";
    /// The PASID is beyond the directory.
    SM_PASID_BEYOND = 0x46, "SCT.7";
    /// Page requests are not enabled in the context entry (PRE).
    SM_NO_PAGE_REQUEST = 0x47, "SCT.8";
    /// A request with PASID has the one that RID_PASID keeps for requests without.
    SM_PASID_IS_RID_PASID = 0x48, "SCT.9";
    /// The PASID directory could not be read.
    SM_DIRECTORY_ACCESS = 0x50, "SPD.1";
    /// PASID directory entry not present.
    SM_DIRECTORY_NOT_PRESENT = 0x51, "SPD.2";
    /// Reserved bits set in a PASID directory entry.
    SM_DIRECTORY_RESERVED = 0x52, "SPD.3";
    /// The PASID table could not be read.
    SM_PASID_ACCESS = 0x58, "SPT.1";
    /// PASID entry not present.
    SM_PASID_NOT_PRESENT = 0x59, "SPT.2";
    /// Reserved bits set in a PASID entry.
    SM_PASID_RESERVED = 0x5a, "SPT.3";
    /// PASID entry wrongly programmed.
    SM_PASID_INVALID = 0x5b, "SPT.4";
    /// Requests to execute are not enabled in the PASID entry.
    SM_NO_EXECUTE_REQUESTS = 0x5c, "SPT.5";
    /// Requests with privilege are not enabled in the PASID entry.
    SM_NO_PRIVILEGED_REQUESTS = 0x5d, "SPT.6";
    /// A first-stage table could not be read.
    SM_FIRST_ACCESS = 0x70, "SFS.1";
    /// First-stage entry not present.
    SM_FIRST_NOT_PRESENT = 0x71, "SFS.2";
    /// Reserved bits set in a first-stage entry.
    SM_FIRST_RESERVED = 0x72, "SFS.3";
    /// The first-stage root table could not be read.
    SM_FIRST_ROOT_ACCESS = 0x73, "SFS.4";
    /// Nested: the address of a first-stage table is beyond the second stage's width.
    SM_NESTED_BEYOND = 0x74, "SFS.5";
    /// Nested: the second stage denies reading the first-stage root table.
    SM_NESTED_ROOT_READ = 0x75, "SFS.6";
    /// Nested: the second stage denies reading a first-stage table.
    SM_NESTED_READ = 0x76, "SFS.7";
    /// Nested: the second stage denies writing a first-stage table.
    SM_NESTED_WRITE = 0x77, "SFS.8";
    /// A second-stage table could not be read.
    SM_SECOND_ACCESS = 0x78, "SSS.1";
    /// No permission in a second-stage entry.
    SM_SECOND_PERMISSION = 0x79, "SSS.2";
    /// Reserved bits set in a second-stage entry.
    SM_SECOND_RESERVED = 0x7a, "SSS.3";
    /// The second-stage root table could not be read.
    SM_SECOND_ROOT_ACCESS = 0x7b, "SSS.4";
    /// A second-stage accessed or dirty bit had to be set while page walks do not snoop.
    SM_SECOND_UPDATE_NO_SNOOP = 0x7c, "SSS.5";
    /// A second-stage accessed or dirty bit could not be set atomically.
    SM_SECOND_UPDATE = 0x7d, "SSS.6";
    /// First stage: the address is not canonical.
    SM_NOT_CANONICAL = 0x80, "SGN.1";
    /// First stage: a request without privilege met a supervisor page.
    SM_USER = 0x81, "SGN.2";
    /// No permission to execute.
    SM_NO_EXECUTE = 0x82, "SGN.3";
    /// The address is beyond what the unit supports.
    SM_ADDRESS_BEYOND_UNIT = 0x83, "SGN.4";
    /// The address is beyond the second stage's width.
    SM_ADDRESS_BEYOND_WIDTH = 0x84, "SGN.5";
    /// No write permission.
    SM_NO_WRITE = 0x85, "SGN.6";
    /// No read permission.
    SM_NO_READ = 0x86, "SGN.7";
    /// The output address is in the interrupt range.
    SM_OUTPUT_INTERRUPT = 0x87, "SGN.8";
    /// A first-stage accessed bit could not be set in no-snoop memory.
    SM_FIRST_UPDATE_NO_SNOOP = 0x90, "SFS.9";
    /// A first-stage accessed or dirty bit could not be set atomically.
    SM_FIRST_UPDATE = 0x91, "SFS.10";
}
