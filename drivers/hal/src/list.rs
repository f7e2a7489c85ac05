//! Lists that report when there is no memory or no such place, where the operations of [`Vec`] and of slices would
//! panic.
//!
//! A `Vec` whose room was reserved does not grow, but the compiler cannot always see that and leaves the way to the
//! panic in. These cannot panic in any build.

use crate::OutOfMemory;
use alloc::vec::Vec;

/// Appends an item.
pub fn push<T>(list: &mut Vec<T>, item: T) -> Result<(), OutOfMemory> {
    list.try_reserve(1).map_err(|_| OutOfMemory)?;
    push_reserved(list, item).map_err(|_| OutOfMemory)
}

/// Appends an item where room was reserved, and hands it back where none is left. Allocates nothing.
pub fn push_reserved<T>(list: &mut Vec<T>, item: T) -> Result<(), T> {
    if list.len() >= list.capacity() {
        return Err(item);
    }
    list.push(item);
    Ok(())
}

/// Inserts an item where room was reserved, and hands it back if none is left or the place is beyond the end.
/// Allocates nothing.
pub fn insert_reserved<T>(list: &mut Vec<T>, index: usize, item: T) -> Result<(), T> {
    if list.len() >= list.capacity() || index > list.len() {
        return Err(item);
    }
    list.insert(index, item);
    Ok(())
}

/// Takes out the item at `index`, if there is one; those after it move down.
pub fn remove<T>(list: &mut Vec<T>, index: usize) -> Option<T> {
    list.get(index)?;
    // Vec::remove checks the index once more, out of line, where the compiler has forgotten that it is right.
    for at in index..list.len() - 1 {
        swap(list, at, at + 1);
    }
    list.pop()
}

/// Sorts by a key, in place; items with equal keys come out in any order.
///
/// A heap sort: the time does not depend on the order of the items, and no key whatever makes it panic.
pub fn sort_by_key<T, K: Ord>(list: &mut [T], mut key: impl FnMut(&T) -> K) {
    for root in (0..list.len() / 2).rev() {
        sift_down(list, root, &mut key);
    }
    for end in (1..list.len()).rev() {
        swap(list, 0, end);
        if let Some(heap) = list.get_mut(..end) {
            sift_down(heap, 0, &mut key);
        }
    }
}

/// Lets the item at `at` sink until none below it has a greater key.
fn sift_down<T, K: Ord>(heap: &mut [T], mut at: usize, key: &mut impl FnMut(&T) -> K) {
    loop {
        let below = at.saturating_mul(2).saturating_add(1);
        let mut greatest = at;
        for child in [below, below.saturating_add(1)] {
            if let (Some(one), Some(other)) = (heap.get(greatest), heap.get(child))
                && key(one) < key(other)
            {
                greatest = child;
            }
        }
        if greatest == at {
            return;
        }
        swap(heap, at, greatest);
        at = greatest;
    }
}

fn swap<T>(list: &mut [T], a: usize, b: usize) {
    if a < list.len() && b < list.len() {
        list.swap(a, b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_grows_that_was_not_reserved() {
        let mut list = Vec::new();
        assert_eq!((push_reserved(&mut list, 1), insert_reserved(&mut list, 0, 2)), (Err(1), Err(2)));
        push(&mut list, 1).unwrap();
        while push_reserved(&mut list, 3).is_ok() {}
        assert_eq!(list.len(), list.capacity());
        assert_eq!(insert_reserved(&mut list, 0, 4), Err(4));
    }

    #[test]
    fn a_place_beyond_the_end_is_refused() {
        let mut list = Vec::with_capacity(4);
        assert_eq!((insert_reserved(&mut list, 1, 5), insert_reserved(&mut list, 0, 5)), (Err(5), Ok(())));
        assert_eq!((insert_reserved(&mut list, 0, 4), insert_reserved(&mut list, 2, 6)), (Ok(()), Ok(())));
        assert_eq!((remove(&mut list, 3), remove(&mut list, 1)), (None, Some(5)));
        assert_eq!(list, [4, 6]);
    }

    #[test]
    fn every_order_of_a_few_items_is_sorted() {
        // Miri takes a thousand times as long.
        let (longest, times) = if cfg!(miri) { (12_usize, 3) } else { (40, 50) };
        let mut state = 1_u32;
        for len in 0..longest {
            for _ in 0..times {
                let mut next = || {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    state >> 16 & 0xf
                };
                let mut list: Vec<(u32, usize)> = (0..len).map(|at| (next(), at)).collect();
                let mut sorted = list.clone();
                sorted.sort_unstable();
                sort_by_key(&mut list, |item| *item);
                assert_eq!(list, sorted);
            }
        }
    }
}
