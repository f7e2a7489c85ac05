//! A reference-counted pointer whose allocation reports failure.
//!
//! `alloc::sync::Arc` ends the program when memory runs out, which a hypervisor's driver must not.

#![expect(unsafe_code, reason = "manual allocation and reference counting")]

use crate::OutOfMemory;
use alloc::alloc::{alloc, dealloc};
use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering, fence};

/// The block that an [`Arc`] points to; public only because [`unsize_arc!`](crate::unsize_arc) names it.
#[doc(hidden)]
#[repr(C)]
pub struct Block<T: ?Sized> {
    count: AtomicUsize,
    value: T,
}

/// Shared ownership of a `T`, counted atomically. There are no weak references.
pub struct Arc<T: ?Sized> {
    block: NonNull<Block<T>>,
    owns: PhantomData<Block<T>>,
}

// SAFETY: as for the standard Arc: sharing hands out &T on several threads and the last one drops T.
unsafe impl<T: ?Sized + Send + Sync> Send for Arc<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Send + Sync> Sync for Arc<T> {}

impl<T> Arc<T> {
    /// Allocates a block for `value`.
    pub fn try_new(value: T) -> Result<Self, OutOfMemory> {
        let layout = Layout::new::<Block<T>>();
        // SAFETY: the layout has at least the size of the counter.
        let block = NonNull::new(unsafe { alloc(layout) }).ok_or(OutOfMemory)?.cast::<Block<T>>();
        // SAFETY: freshly allocated with the layout of `Block<T>`.
        unsafe { block.write(Block { count: AtomicUsize::new(1), value }) };
        Ok(Self { block, owns: PhantomData })
    }
}

impl<T: ?Sized> Arc<T> {
    /// Whether both point to the same value.
    pub fn ptr_eq(a: &Self, b: &Self) -> bool {
        core::ptr::addr_eq(a.block.as_ptr(), b.block.as_ptr())
    }

    /// How many pointers share the value; only a hint while others may clone or drop.
    pub fn count(this: &Self) -> usize {
        this.block().count.load(Ordering::Relaxed)
    }

    fn block(&self) -> &Block<T> {
        // SAFETY: the block lives as long as any Arc to it does.
        unsafe { self.block.as_ref() }
    }

    /// The block; for [`unsize_arc!`](crate::unsize_arc).
    #[doc(hidden)]
    pub fn into_block(this: Self) -> *mut Block<T> {
        let block = this.block.as_ptr();
        core::mem::forget(this);
        block
    }

    /// The pointer that `into_block` took apart.
    ///
    /// # Safety
    ///
    /// `block` comes from `into_block`, possibly unsized, and is used once.
    #[doc(hidden)]
    pub unsafe fn from_block(block: *mut Block<T>) -> Self {
        // SAFETY: a block that came out of an Arc is not null.
        let block = unsafe { NonNull::new_unchecked(block) };
        Self { block, owns: PhantomData }
    }
}

/// Turns an `Arc<T>` into an `Arc<dyn Trait>`: `unsize_arc!(arc => dyn Trait)`.
#[macro_export]
macro_rules! unsize_arc {
    ($arc:expr => $target:ty) => {{
        let sized = $crate::Arc::into_block($arc);
        let block: *mut $crate::arc::Block<$target> = sized;
        #[allow(unsafe_code, reason = "the block is put back into an Arc at once")]
        // SAFETY: the block was taken out of an Arc in the line before and only unsized.
        unsafe {
            $crate::Arc::from_block(block)
        }
    }};
}

impl<T: ?Sized> Clone for Arc<T> {
    fn clone(&self) -> Self {
        let before = self.block().count.fetch_add(1, Ordering::Relaxed);
        if before > isize::MAX as usize {
            // Two thousand billion leaked pointers; the only way on that is not unsound is to stay alive for ever.
            self.block().count.store(usize::MAX / 2, Ordering::Relaxed);
        }
        Self { block: self.block, owns: PhantomData }
    }
}

impl<T: ?Sized> Drop for Arc<T> {
    fn drop(&mut self) {
        if self.block().count.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        fence(Ordering::Acquire);
        // SAFETY: this was the last pointer; the value is dropped once and the block freed with its own layout.
        unsafe {
            let layout = Layout::for_value(self.block.as_ref());
            core::ptr::drop_in_place(&raw mut (*self.block.as_ptr()).value);
            dealloc(self.block.as_ptr().cast(), layout);
        }
    }
}

impl<T: ?Sized> Deref for Arc<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.block().value
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Arc<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;

    struct CountsDrops<'a>(&'a AtomicUsize);

    impl Drop for CountsDrops<'_> {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_last_pointer_drops_the_value_once_on_whatever_thread() {
        let drops = AtomicUsize::new(0);
        let first = Arc::try_new(CountsDrops(&drops)).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let clone = first.clone();
                scope.spawn(move || drop(clone));
            }
        });
        assert_eq!((drops.load(Ordering::SeqCst), Arc::count(&first)), (0, 1));
        drop(first);
        assert_eq!(drops.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn an_unsized_pointer_shares_the_block() {
        trait Speak: Send + Sync {
            fn speak(&self) -> u32;
        }
        struct Loud(Box<u32>);
        impl Speak for Loud {
            fn speak(&self) -> u32 {
                *self.0
            }
        }
        let arc = Arc::try_new(Loud(Box::new(42))).unwrap();
        let unsized_arc: Arc<dyn Speak> = unsize_arc!(arc.clone() => dyn Speak);
        drop(arc);
        assert_eq!(unsized_arc.speak(), 42);
    }
}
