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
    list.try_reserve(1).map_err(|_| FirmwareError::OutOfMemory)?;
    list.push(item);
    Ok(())
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
    let mut copy = String::new();
    copy.try_reserve_exact(text.len()).map_err(|_| FirmwareError::OutOfMemory)?;
    copy.push_str(text);
    Ok(copy)
}
