//! Lists that grow fallibly and to a bound.

use crate::FirmwareError;
use alloc::{string::String, vec::Vec};

/// The most entries any list of a topology may have. It bounds the work of the quadratic overlap checks;
/// the largest servers stay some two orders of magnitude below it.
pub(crate) const LIMIT: usize = 8 * 1024;

/// Appends `item`, or reports that memory or the bound is exhausted.
pub(crate) fn push<T>(list: &mut Vec<T>, item: T) -> Result<(), FirmwareError> {
    if list.len() >= LIMIT {
        return Err(FirmwareError::TooManyEntries { limit: LIMIT });
    }
    portcullis_hal::list::push(list, item).map_err(|_| FirmwareError::OutOfMemory)
}

/// A copy of `items`.
pub(crate) fn copy<T: Clone>(items: &[T]) -> Result<Vec<T>, FirmwareError> {
    let mut list = Vec::new();
    list.try_reserve_exact(items.len()).map_err(|_| FirmwareError::OutOfMemory)?;
    list.extend_from_slice(items);
    Ok(list)
}

/// A copy of `text`.
pub(crate) fn text(text: &str) -> Result<String, FirmwareError> {
    String::from_utf8(copy(text.as_bytes())?).map_err(|_| FirmwareError::OutOfMemory)
}

/// The text before the first `mark`, an ASCII character, and what follows that.
pub(crate) fn split(text: &str, mark: u8) -> (&str, Option<&str>) {
    let found = text.bytes().position(|byte| byte == mark);
    let parts = found.and_then(|at| Some((text.get(..at)?, text.get(at + 1..)?)));
    parts.map_or((text, None), |(before, after)| (before, Some(after)))
}
