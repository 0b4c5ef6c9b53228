// SPDX-License-Identifier: GPL-2.0-only

//! A value that is set at most once.

#[cfg(not(loom))]
mod imp {
    use std::sync::OnceLock;

    /// A value that is set at most once.
    #[derive(Debug)]
    pub struct SetOnce<T>(OnceLock<T>);

    impl<T> SetOnce<T> {
        /// Returns one without a value.
        pub const fn new() -> Self {
            Self(OnceLock::new())
        }

        /// Returns the value.
        pub fn as_ref(&self) -> Option<&T> {
            self.0.get()
        }

        /// Sets the value. Returns whether there was none.
        pub fn populate(&self, value: T) -> bool {
            self.0.set(value).is_ok()
        }
    }
}

#[cfg(loom)]
mod imp {
    use crate::sync::atomic::{Acquire, Atomic, Relaxed, Release};
    use loom::cell::UnsafeCell;

    const EMPTY: u32 = 0;
    const BUSY: u32 = 1;
    const READY: u32 = 2;

    /// A value that is set at most once.
    ///
    /// With the orders of the kernel's, so that loom checks what they give to readers.
    ///
    /// # Invariants
    ///
    /// `value` is not changed once `state` is `READY`; before, only by who has made it `BUSY`.
    pub struct SetOnce<T> {
        state: Atomic<u32>,
        value: UnsafeCell<Option<T>>,
    }

    // SAFETY: By the type invariants threads share the value only when it does not change any more,
    // and one that reads it was ordered after the change.
    unsafe impl<T: Send + Sync> Sync for SetOnce<T> {}

    impl<T> SetOnce<T> {
        /// Returns one without a value.
        pub fn new() -> Self {
            Self {
                state: Atomic::new(EMPTY),
                value: UnsafeCell::new(None),
            }
        }

        /// Returns the value.
        pub fn as_ref(&self) -> Option<&T> {
            if self.state.load(Acquire) != READY {
                return None;
            }
            // SAFETY: By the type invariants nobody changes it.
            self.value.with(|value| unsafe { (*value).as_ref() })
        }

        /// Sets the value. Returns whether there was none.
        pub fn populate(&self, value: T) -> bool {
            if self.state.cmpxchg(EMPTY, BUSY, Relaxed).is_err() {
                return false;
            }
            // SAFETY: By the type invariants nobody else uses it.
            self.value.with_mut(|place| unsafe { *place = Some(value) });
            self.state.store(READY, Release);
            true
        }
    }
}

pub use imp::SetOnce;

impl<T> SetOnce<T> {
    /// Returns a copy of the value.
    pub fn copy(&self) -> Option<T>
    where
        T: Copy,
    {
        self.as_ref().copied()
    }
}

impl<T> Default for SetOnce<T> {
    fn default() -> Self {
        Self::new()
    }
}
