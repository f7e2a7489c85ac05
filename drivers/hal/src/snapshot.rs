//! A value that is read in place, without a lock, while others replace it.
//!
//! Readers count themselves in with one atomic addition, look, and count themselves out. A writer swaps the pointer, and
//! frees what it replaced once no reader can be left that found it. Nobody waits for a reader: what still has some is
//! kept, and freed by a later writer, or with the whole.
//!
//! There are two counts of readers, and a parity says which one the next readers take. To free a value it is enough that
//! each count has been seen at zero at some moment after the value was replaced. When the count in use is not zero while
//! the other one is, the writer turns the parity: so the busy count drains however many readers keep coming, and what is
//! kept is no more than was replaced during the longest stay of a reader, and in the turns that followed.
//!
//! # Order
//!
//! Between all that a reader did before [`read`](Snapshot::read) and its look at the value stands a full fence, and so
//! does one between the change of the value by [`replace`](Snapshot::replace) and all that the writer does after it.
//! That is what an unmap and an attach need of each other:
//!
//! | unmap | attach |
//! |---|---|
//! | clears table entries | adds the unit to the set: `replace` |
//! | reads the set: `read` | publishes the device's entry |
//!
//! Either the unmap sees the unit and has it forget the entries, or the unit, which walks the tables only after the
//! device's entry is published, does not find them any more.

#![expect(unsafe_code, reason = "a value that is shared by count is freed by hand")]

use crate::OutOfMemory;
use crate::word::{Pointer, Word};
use alloc::alloc::{alloc, dealloc};
use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// A value and, once it has been replaced, the link to the next one that waits to be freed. Public only because
/// [`Snapshot`]'s parameters name it.
#[doc(hidden)]
pub struct Node<T> {
    value: T,
    next: Option<NonNull<Node<T>>>,
}

impl<T> Node<T> {
    fn allocate(value: T) -> Result<NonNull<Self>, OutOfMemory> {
        // SAFETY: the layout is that of a link at least, so not empty.
        let node = NonNull::new(unsafe { alloc(Layout::new::<Self>()) }).ok_or(OutOfMemory)?.cast::<Self>();
        // SAFETY: freshly allocated with this very layout.
        unsafe { node.write(Self { value, next: None }) };
        Ok(node)
    }

    /// Drops the value and frees the node.
    ///
    /// # Safety
    ///
    /// The node comes from `allocate`, and this is the last use of it.
    unsafe fn free(node: NonNull<Self>) {
        // SAFETY: as the caller vouches, nobody else reaches the node, and its layout is the one it was allocated with.
        unsafe {
            node.drop_in_place();
            dealloc(node.as_ptr().cast(), Layout::new::<Self>());
        }
    }
}

/// Values that were replaced.
struct Chain<T> {
    first: Option<NonNull<Node<T>>>,
    /// Which of the counts of readers have been seen at zero since the last of these was replaced.
    seen: [bool; 2],
}

impl<T> Chain<T> {
    const EMPTY: Self = Self { first: None, seen: [false; 2] };

    /// Adds a node, which some reader may have found just before.
    ///
    /// # Safety
    ///
    /// The node was replaced, and whoever calls is the only one that has it, but for readers of its value.
    unsafe fn push(&mut self, node: NonNull<Node<T>>) {
        // SAFETY: readers have references to the value only, never to the link.
        unsafe { (&raw mut (*node.as_ptr()).next).write(self.first) };
        *self = Self { first: Some(node), seen: [false; 2] };
    }

    /// Notes which counts were just seen at zero.
    fn see(&mut self, [even, odd]: [bool; 2]) {
        let [seen_even, seen_odd] = &mut self.seen;
        *seen_even |= even;
        *seen_odd |= odd;
    }

    /// Frees all.
    ///
    /// # Safety
    ///
    /// No reader has found any of them.
    unsafe fn free(&mut self) {
        while let Some(node) = self.first {
            // SAFETY: a node of this chain, which nobody else reaches any more.
            unsafe {
                self.first = (&raw const (*node.as_ptr()).next).read();
                Node::free(node);
            }
        }
    }
}

/// What only the writer whose turn it is touches.
struct Retired<T> {
    /// Replaced before the last time that a chain was freed.
    draining: Chain<T>,
    /// Replaced since.
    fresh: Chain<T>,
}

/// A value that many read in place while some replace it.
///
/// The type parameters behind the first are the atomics: the real ones, or those of a model checker.
// One cache line: whoever counts itself in has the pointer with it.
#[repr(align(64))]
pub struct Snapshot<T, W: Word = AtomicU64, P: Pointer<Node<T>> = AtomicPtr<Node<T>>> {
    current: P,
    readers: [W; 2],
    /// Its lowest bit says which of the counts the next readers take.
    parity: W,
    /// Not zero while a writer has its turn.
    writing: W,
    retired: UnsafeCell<Retired<T>>,
    owns: PhantomData<T>,
}

// SAFETY: the snapshot owns its values, which readers on all threads share and any writer may drop; `retired` is
// touched only by the writer that holds `writing`.
unsafe impl<T: Send + Sync, W: Word + Send, P: Pointer<Node<T>> + Send> Send for Snapshot<T, W, P> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync, W: Word, P: Pointer<Node<T>> + Sync> Sync for Snapshot<T, W, P> {}

/// The value as a reader found it. It stays as it is for as long as this is kept.
#[must_use = "the value can be used only as long as this is kept"]
pub struct Reading<'a, T, W: Word = AtomicU64> {
    value: &'a T,
    count: &'a W,
}

impl<'a, T, W: Word> Reading<'a, T, W> {
    /// A part of the value, which stays as it is for as long as this is kept; `None` if there is no such part.
    #[inline]
    pub fn filter_map<U>(
        reading: Self,
        part: impl for<'b> FnOnce(&'b T) -> Option<&'b U>,
    ) -> Option<Reading<'a, U, W>> {
        let value = part(reading.value)?;
        // What was counted in is counted out by the result.
        let Self { count, .. } = *ManuallyDrop::new(reading);
        Some(Reading { value, count })
    }
}

impl<T, W: Word> Deref for Reading<'_, T, W> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.value
    }
}

impl<T, W: Word> Drop for Reading<'_, T, W> {
    #[inline]
    fn drop(&mut self) {
        // Release: the value is freed only by who has seen this.
        self.count.fetch_add(u64::MAX, Ordering::Release);
    }
}

impl<T: fmt::Debug, W: Word> fmt::Debug for Reading<'_, T, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

impl<T, W: Word, P: Pointer<Node<T>>> Snapshot<T, W, P> {
    /// A snapshot of `value`.
    ///
    /// # Errors
    ///
    /// No memory.
    pub fn new(value: T) -> Result<Self, OutOfMemory> {
        let zero = || W::new(0);
        Ok(Self {
            current: P::new(Node::allocate(value)?.as_ptr()),
            readers: [zero(), zero()],
            parity: zero(),
            writing: zero(),
            retired: UnsafeCell::new(Retired { draining: Chain::EMPTY, fresh: Chain::EMPTY }),
            owns: PhantomData,
        })
    }

    /// The value now. A full fence stands between all that the caller did before and the look at it; see the
    /// [module](self).
    ///
    /// Waits for nobody, and nests: it may interrupt any other call.
    #[inline]
    pub fn read(&self) -> Reading<'_, T, W> {
        let [even, odd] = &self.readers;
        let count = if self.parity.load(Ordering::Relaxed) & 1 == 0 { even } else { odd };
        count.fetch_add(1, Ordering::Relaxed);
        W::fence();
        let current = self.current.load(Ordering::Acquire);
        // SAFETY: `current` always points to a node that `allocate` made and that was not freed when it was read. It is
        // freed after it was replaced, and after a writer that had issued its fence behind that saw this very count at
        // zero. Of two fences one comes first. If it is this reader's, the writer sees that it counted itself in, and no
        // zero before it has counted itself out. If it is the writer's, the pointer read here is the one that replaced
        // the node, or a later one. So the node stays as long as the reading does. Its value is never changed.
        let value = unsafe { &(*current).value };
        Reading { value, count }
    }

    /// Replaces the value by what `make` makes of it, and then frees what no reader uses any more. A full fence stands
    /// between the change and all that the caller does afterwards; see the [module](self).
    ///
    /// Writers wait for each other, while `make` runs, but for no reader. Not to be called from an interrupt handler.
    ///
    /// # Errors
    ///
    /// No memory, or the error of `make`; the value is what it was.
    pub fn replace<E: From<OutOfMemory>>(&self, make: impl FnOnce(&T) -> Result<T, E>) -> Result<(), E> {
        while self.writing.swap(1, Ordering::Acquire) != 0 {
            W::pause();
        }
        let old = self.current.load(Ordering::Relaxed);
        // SAFETY: the current node is not freed while this writer has its turn, which only a writer could do.
        let made = make(unsafe { &(*old).value }).and_then(|value| Ok(Node::allocate(value)?));
        let (unused, result) = match made {
            Ok(new) => {
                self.current.store(new.as_ptr(), Ordering::Release);
                W::fence();
                // SAFETY: `old` came from `allocate`, so it is not null; it is replaced, and it is this writer's turn.
                (unsafe { self.retire(NonNull::new_unchecked(old)) }, Ok(()))
            }
            Err(error) => ([Chain::EMPTY, Chain::EMPTY], Err(error)),
        };
        // Not a plain store, of which loom believes that it may come before an attempt that failed.
        self.writing.swap(0, Ordering::Release);
        // SAFETY: `retire` gave out only what no reader has found. It is dropped here, since that may take long.
        unused.into_iter().for_each(|mut chain| unsafe { chain.free() });
        result
    }

    /// Puts a node aside that was replaced, with a fence after it, and takes out what no reader uses any more.
    ///
    /// # Safety
    ///
    /// It is the caller's turn to write, and only readers have the node.
    unsafe fn retire(&self, node: NonNull<Node<T>>) -> [Chain<T>; 2] {
        // SAFETY: it is the caller's turn.
        let Retired { draining, fresh } = unsafe { &mut *self.retired.get() };
        // SAFETY: as the caller vouches.
        unsafe { fresh.push(node) };
        // Acquire: who was counted out has done with the value.
        let idle = self.readers.each_ref().map(|count| count.load(Ordering::Acquire) == 0);
        for chain in [&mut *draining, &mut *fresh] {
            chain.see(idle);
        }
        let mut unused = [Chain::EMPTY, Chain::EMPTY];
        let [older, newer] = &mut unused;
        if draining.seen == [true; 2] {
            *older = core::mem::replace(draining, Chain::EMPTY);
        }
        // Those of one chain are freed at once, so what is replaced from now on must not hold up the others.
        if draining.first.is_none() {
            *draining = core::mem::replace(fresh, Chain::EMPTY);
        }
        if draining.seen == [true; 2] {
            *newer = core::mem::replace(draining, Chain::EMPTY);
        }
        let parity = self.parity.load(Ordering::Relaxed);
        let [even, odd] = idle;
        let (in_use, other) = if parity & 1 == 0 { (even, odd) } else { (odd, even) };
        if !in_use && other {
            self.parity.store(parity ^ 1, Ordering::Relaxed);
        }
        unused
    }
}

impl<T, W: Word, P: Pointer<Node<T>>> Drop for Snapshot<T, W, P> {
    fn drop(&mut self) {
        let Retired { draining, fresh } = self.retired.get_mut();
        let current = self.current.load(Ordering::Acquire);
        // SAFETY: readers borrow the snapshot, so there are none left; the current node came from `allocate`, as did the
        // others, and is in no chain.
        unsafe {
            draining.free();
            fresh.free();
            Node::free(NonNull::new_unchecked(current));
        }
    }
}

impl<T: fmt::Debug, W: Word, P: Pointer<Node<T>>> fmt::Debug for Snapshot<T, W, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Snapshot").field(&&*self.read()).finish()
    }
}
