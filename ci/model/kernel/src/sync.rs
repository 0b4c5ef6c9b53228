// SPDX-License-Identifier: GPL-2.0-only

//! Synchronisation.

pub mod aref;
pub mod atomic;
pub mod barrier;
mod lock;
mod set_once;

pub use crate::{new_spinlock, new_spinlock_irq};
pub use lock::{Guard, SpinLock, SpinLockIrq};
pub use set_once::SetOnce;

use crate::{
    alloc::{try_one, AllocError, Flags},
    error::{Error, Result},
};
use core::ops::Deref;
#[cfg(loom)]
use loom::sync::Arc as Inner;
use pin_init::Init;
#[cfg(not(loom))]
use std::sync::Arc as Inner;

/// A shared value.
pub struct Arc<T>(Inner<T>);

impl<T> Arc<T> {
    /// Allocates memory for `value`.
    pub fn new(value: T, _: Flags) -> Result<Self, AllocError> {
        try_one()?;
        Ok(Self(Inner::new(value)))
    }

    /// Allocates memory and initializes it.
    pub fn pin_init<E>(init: impl Init<T, E>, _: Flags) -> Result<Self>
    where
        Error: From<E>,
    {
        try_one()?;
        Ok(Self(Inner::new(init.make()?)))
    }

    /// Returns whether both are the same object.
    pub fn ptr_eq(this: &Self, other: &Self) -> bool {
        Inner::ptr_eq(&this.0, &other.0)
    }
}

impl<T> Clone for Arc<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Arc<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
