// SPDX-License-Identifier: GPL-2.0-only

//! Locks.

#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard};
use std::sync::PoisonError;
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard};

/// A spinlock. Here it blocks.
#[derive(Debug)]
pub struct SpinLock<T>(Mutex<T>);

/// A spinlock that is taken in interrupts, too.
pub type SpinLockIrq<T> = SpinLock<T>;

/// Unlocks when dropped.
pub type Guard<'a, T> = MutexGuard<'a, T>;

impl<T> SpinLock<T> {
    /// Returns a lock that is free.
    pub fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Takes the lock.
    pub fn lock(&self) -> Guard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns an initializer of a lock.
#[macro_export]
macro_rules! new_spinlock {
    ($value:expr $(, $name:literal)? $(,)?) => {
        $crate::sync::SpinLock::new($value)
    };
}

/// Returns an initializer of a lock.
#[macro_export]
macro_rules! new_spinlock_irq {
    ($value:expr $(, $name:literal)? $(,)?) => {
        $crate::sync::SpinLock::new($value)
    };
}
