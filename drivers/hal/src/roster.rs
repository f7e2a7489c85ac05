//! A list that only grows, read without a lock or a count while others add to it.
//!
//! What was added stays where it is until the whole list is dropped, so whoever reads needs to tell nobody.
//!
//! # Order
//!
//! Between all that a reader did before [`read`](Roster::read) and its look at the list stands a full fence, and so does
//! one between an [`add`](Roster::add) and all that its caller does afterwards. That is what an unmap and an attach need
//! of each other, as [`snapshot`](crate::snapshot) says, whose values can be replaced, and cost their readers two counts.

#![expect(unsafe_code, reason = "nodes that many read, and that are freed with the list")]

use crate::OutOfMemory;
use crate::word::{Pointer, Word};
use alloc::alloc::{alloc, dealloc};
use core::alloc::Layout;
use core::fmt;
use core::iter::FusedIterator;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// An item and the one that was added before it. Public only because [`Roster`]'s parameters name it.
#[doc(hidden)]
pub struct Node<T> {
    item: T,
    older: *mut Node<T>,
}

/// A list that only grows.
///
/// The type parameters behind the first are the atomics: the real ones, or those of a model checker.
pub struct Roster<T, W: Word = AtomicU64, P: Pointer<Node<T>> = AtomicPtr<Node<T>>> {
    newest: P,
    owns: PhantomData<(T, fn() -> W)>,
}

// SAFETY: the roster owns its items, which readers on all threads share.
unsafe impl<T: Send + Sync, W: Word, P: Pointer<Node<T>> + Send> Send for Roster<T, W, P> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync, W: Word, P: Pointer<Node<T>> + Sync> Sync for Roster<T, W, P> {}

impl<T, W: Word, P: Pointer<Node<T>>> Roster<T, W, P> {
    /// An empty list.
    pub fn new() -> Self {
        Self { newest: P::new(core::ptr::null_mut()), owns: PhantomData }
    }

    /// Adds an item. A full fence stands between this and all that the caller does afterwards; see the [module](self).
    ///
    /// # Errors
    ///
    /// No memory.
    pub fn add(&self, item: T) -> Result<(), OutOfMemory> {
        // SAFETY: the layout is that of a pointer at least, so not empty.
        let node = NonNull::new(unsafe { alloc(Layout::new::<Node<T>>()) }).ok_or(OutOfMemory)?;
        let node = node.cast::<Node<T>>().as_ptr();
        let mut older = self.newest.load(Ordering::Relaxed);
        // SAFETY: freshly allocated with this very layout.
        unsafe { node.write(Node { item, older }) };
        // Who fails makes room for somebody who did not.
        while let Err(now) = self.newest.compare_exchange(older, node, Ordering::AcqRel, Ordering::Relaxed) {
            older = now;
            // SAFETY: nobody else has the node yet.
            unsafe { (&raw mut (*node).older).write(older) };
        }
        W::fence();
        Ok(())
    }

    /// The items now, the newest first. A full fence stands between all that the caller did before and the look at
    /// them; see the [module](self).
    #[inline]
    pub fn read(&self) -> Items<'_, T> {
        W::fence();
        Items { next: self.newest.load(Ordering::Acquire), borrowed: PhantomData }
    }
}

impl<T, W: Word, P: Pointer<Node<T>>> Default for Roster<T, W, P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, W: Word, P: Pointer<Node<T>>> Drop for Roster<T, W, P> {
    fn drop(&mut self) {
        let mut next = self.newest.load(Ordering::Acquire);
        while let Some(node) = NonNull::new(next) {
            // SAFETY: readers borrow the roster, so nobody else reaches the node, which `add` allocated with this layout.
            unsafe {
                next = node.as_ref().older;
                node.drop_in_place();
                dealloc(node.as_ptr().cast(), Layout::new::<Node<T>>());
            }
        }
    }
}

impl<T: fmt::Debug, W: Word, P: Pointer<Node<T>>> fmt::Debug for Roster<T, W, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.read()).finish()
    }
}

/// The items of a [`Roster`] as a reader found them, the newest first.
pub struct Items<'a, T> {
    next: *mut Node<T>,
    borrowed: PhantomData<&'a T>,
}

impl<T> Clone for Items<'_, T> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

impl<'a, T> Items<'a, T> {
    #[inline]
    fn node(&self) -> Option<&'a Node<T>> {
        // SAFETY: a node that was added, and with it those before it, stays as it is until the roster is dropped, which
        // is borrowed.
        unsafe { self.next.as_ref() }
    }

    /// The item, if there is exactly one.
    #[inline]
    pub fn only(&self) -> Option<&'a T> {
        self.node().filter(|node| node.older.is_null()).map(|node| &node.item)
    }
}

impl<'a, T> Iterator for Items<'a, T> {
    type Item = &'a T;

    #[inline]
    fn next(&mut self) -> Option<&'a T> {
        let node = self.node()?;
        self.next = node.older;
        Some(&node.item)
    }
}

impl<T> FusedIterator for Items<'_, T> {}
