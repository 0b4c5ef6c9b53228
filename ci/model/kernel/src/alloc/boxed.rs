// SPDX-License-Identifier: GPL-2.0-only

//! Boxes.

use super::{try_one, AllocError, Flags, KVmalloc, Kmalloc, Vmalloc};
use crate::error::{Error, Result};
use core::{
    marker::PhantomData,
    ops::{Deref, DerefMut},
};
use pin_init::Init;
use std::boxed::Box as StdBox;

/// A value in memory of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Box<T, A>(StdBox<T>, PhantomData<A>);

/// Memory of kmalloc().
pub type KBox<T> = Box<T, Kmalloc>;
/// Memory of vmalloc().
pub type VBox<T> = Box<T, Vmalloc>;
/// Memory of kvmalloc().
pub type KVBox<T> = Box<T, KVmalloc>;

impl<T, A> Box<T, A> {
    /// Allocates memory for `value`.
    pub fn new(value: T, _: Flags) -> Result<Self, AllocError> {
        try_one()?;
        Ok(Self(StdBox::new(value), PhantomData))
    }

    /// Allocates memory and initializes it.
    pub fn init<E>(init: impl Init<T, E>, flags: Flags) -> Result<Self>
    where
        Error: From<E>,
    {
        try_one()?;
        let _ = flags;
        Ok(Self(StdBox::new(init.make()?), PhantomData))
    }

    /// Frees the memory and returns the value.
    pub fn into_inner(this: Self) -> T {
        *this.0
    }
}

impl<T, A> Deref for Box<T, A> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T, A> DerefMut for Box<T, A> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}
