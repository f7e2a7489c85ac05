//! Golden words, for tests of layouts.

/// Builds a word from its fields and reads the fields out of the raw word: type, raw bits, then for each field its getter,
/// its setter and its value.
///
/// # Panics
///
/// What was built are other bits, or a field reads as something else.
#[macro_export]
macro_rules! golden {
    ($word:ident, $raw:expr; $($get:ident $with:ident $value:expr;)*) => {{
        let (built, decoded) = ($word::new()$(.$with($value))*, $word::from_bits($raw));
        let (is, wanted) = (built.into_bits(), decoded.into_bits());
        assert_eq!(is, wanted, "{built:?} is {is:#x}, not {wanted:#x}");
        $(let value = $value; assert_eq!(decoded.$get(), value, stringify!($get));)*
    }};
}
