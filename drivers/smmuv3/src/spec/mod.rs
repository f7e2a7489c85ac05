//! The layouts of the architecture (Arm IHI 0070), types only: registers, stream table entries, context descriptors,
//! commands and event records.
//!
//! Each 64-bit word of a structure is a type of its own, whose fields carry the architectural bit range within that
//! word. Encodings are newtypes with constants, so that reserved values stay representable.

#![forbid(unsafe_code)]

pub mod cd;
pub mod cmd;
pub mod event;
pub mod pri;
pub mod registers;
pub mod ste;

/// Declares an encoding: a newtype with a constant per value that the architecture names.
macro_rules! encoding {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub u8);

        impl $name {
            $($(#[$variant_doc])* pub const $variant: Self = Self($value);)*

            /// The value as it stands in a field.
            pub const fn into_bits(self) -> u8 {
                self.0
            }

            /// The encoding with this value, reserved or not.
            pub const fn from_bits(value: u8) -> Self {
                Self(value)
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.0 {
                    $($value => f.write_str(stringify!($variant)),)*
                    #[allow(unreachable_patterns, reason = "an encoding may name every value of its type")]
                    other => write!(f, "{other:#b}"),
                }
            }
        }
    };
}
pub(crate) use encoding;

/// Checks at compile time that each field of a word covers the bits that the manual gives it, high bit first.
macro_rules! layout {
    ($word:ident { $($offset:ident, $bits:ident: $high:literal, $low:literal;)* }) => {
        const _: () = {
            $(assert!($word::$offset == $low && $word::$bits == $high - $low + 1);)*
        };
    };
}
pub(crate) use layout;

encoding! {
    /// Cacheability of table walks and structure fetches (CD.IR0, CD.OR0, STE.S1CIR, STE.S2IR0 and the like).
    Cacheability {
        /// Non-cacheable.
        NON_CACHEABLE = 0b00,
        /// Write-back, read- and write-allocate.
        WRITE_BACK = 0b01,
        /// Write-through, read-allocate.
        WRITE_THROUGH = 0b10,
        /// Write-back, read-allocate, no write-allocate.
        WRITE_BACK_NO_WRITE_ALLOCATE = 0b11,
    }
}

encoding! {
    /// Shareability of table walks and structure fetches (CD.SH0, STE.S1CSH, STE.S2SH0, CR1.TABLE_SH).
    Shareability {
        /// Non-shareable.
        NON_SHAREABLE = 0b00,
        /// Outer shareable.
        OUTER = 0b10,
        /// Inner shareable.
        INNER = 0b11,
    }
}

encoding! {
    /// A width of physical addresses (IDR5.OAS, CD.IPS, STE.S2PS).
    AddressSize {
        /// 32 bits.
        BITS_32 = 0,
        /// 36 bits.
        BITS_36 = 1,
        /// 40 bits.
        BITS_40 = 2,
        /// 42 bits.
        BITS_42 = 3,
        /// 44 bits.
        BITS_44 = 4,
        /// 48 bits.
        BITS_48 = 5,
        /// 52 bits.
        BITS_52 = 6,
    }
}

impl AddressSize {
    /// The width in bits; reserved and later encodings count as 48, which every unit that has them exceeds.
    pub const fn bits(self) -> u8 {
        match self.0 {
            0 => 32,
            1 => 36,
            2 => 40,
            3 => 42,
            4 => 44,
            6 => 52,
            _ => 48,
        }
    }

    /// The smallest size of at least `bits`, up to 52.
    pub const fn at_least(bits: u8) -> Self {
        match bits {
            0..=32 => Self::BITS_32,
            33..=36 => Self::BITS_36,
            37..=40 => Self::BITS_40,
            41..=42 => Self::BITS_42,
            43..=44 => Self::BITS_44,
            45..=48 => Self::BITS_48,
            _ => Self::BITS_52,
        }
    }
}

encoding! {
    /// A granule as CD.TG0 and STE.S2TG encode it; commands encode it otherwise.
    TableGranule {
        /// 4 KiB.
        SIZE_4K = 0b00,
        /// 64 KiB.
        SIZE_64K = 0b01,
        /// 16 KiB.
        SIZE_16K = 0b10,
    }
}
