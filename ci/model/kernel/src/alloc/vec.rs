// SPDX-License-Identifier: GPL-2.0-only

//! Vectors.

use super::{try_one, AllocError, Flags, KVmalloc, Kmalloc, Vmalloc};
use crate::error::{code::EINVAL, Error};
use core::{
    fmt,
    marker::PhantomData,
    ops::{Deref, DerefMut},
};
use std::vec::Vec as StdVec;

/// A growing array.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Vec<T, A>(StdVec<T>, PhantomData<A>);

/// Memory of kmalloc().
pub type KVec<T> = Vec<T, Kmalloc>;
/// Memory of vmalloc().
pub type VVec<T> = Vec<T, Vmalloc>;
/// Memory of kvmalloc().
pub type KVVec<T> = Vec<T, KVmalloc>;

/// There was no room; with the element.
#[derive(Debug, PartialEq, Eq)]
pub struct PushError<T>(pub T);

/// There was no room, or no such index; with the element.
#[derive(Debug, PartialEq, Eq)]
pub enum InsertError<T> {
    /// The index is beyond the end.
    IndexOutOfBounds(T),
    /// There was no room.
    OutOfCapacity(T),
}

impl<T> From<PushError<T>> for Error {
    fn from(_: PushError<T>) -> Self {
        EINVAL
    }
}

impl<T> From<InsertError<T>> for Error {
    fn from(_: InsertError<T>) -> Self {
        EINVAL
    }
}

impl<T, A> Vec<T, A> {
    /// Returns an empty vector without memory.
    pub const fn new() -> Self {
        Self(StdVec::new(), PhantomData)
    }

    /// Returns an empty vector with room for `capacity` elements.
    pub fn with_capacity(capacity: usize, flags: Flags) -> Result<Self, AllocError> {
        let mut vec = Self::new();
        vec.reserve(capacity, flags)?;
        Ok(vec)
    }

    /// Returns the number of elements that fit.
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Makes room for `additional` more elements.
    pub fn reserve(&mut self, additional: usize, _: Flags) -> Result<(), AllocError> {
        if self.0.len() + additional > self.0.capacity() {
            try_one()?;
            if self.0.capacity() == 0 {
                self.0.reserve_exact(additional);
            } else {
                self.0.reserve(additional);
            }
        }
        Ok(())
    }

    /// Appends an element.
    pub fn push(&mut self, value: T, flags: Flags) -> Result<(), AllocError> {
        self.reserve(1, flags)?;
        self.0.push(value);
        Ok(())
    }

    /// Appends an element if there is room.
    pub fn push_within_capacity(&mut self, value: T) -> Result<(), PushError<T>> {
        if self.0.len() == self.0.capacity() {
            return Err(PushError(value));
        }
        self.0.push(value);
        Ok(())
    }

    /// Inserts an element at `index` if there is room.
    pub fn insert_within_capacity(&mut self, index: usize, value: T) -> Result<(), InsertError<T>> {
        if index > self.0.len() {
            return Err(InsertError::IndexOutOfBounds(value));
        }
        if self.0.len() == self.0.capacity() {
            return Err(InsertError::OutOfCapacity(value));
        }
        self.0.insert(index, value);
        Ok(())
    }

    /// Removes and returns the last element.
    pub fn pop(&mut self) -> Option<T> {
        self.0.pop()
    }

    /// Removes and returns the element at `index`.
    pub fn remove(&mut self, index: usize) -> Result<T, Error> {
        if index < self.0.len() {
            Ok(self.0.remove(index))
        } else {
            Err(EINVAL)
        }
    }

    /// Removes all elements.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Removes the elements from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }

    /// Removes the elements for which `keep` returns false.
    pub fn retain(&mut self, keep: impl FnMut(&mut T) -> bool) {
        self.0.retain_mut(keep);
    }
}

impl<T: Clone, A> Vec<T, A> {
    /// Returns a vector of `len` copies of `value`.
    pub fn from_elem(value: T, len: usize, flags: Flags) -> Result<Self, AllocError> {
        let mut vec = Self::with_capacity(len, flags)?;
        vec.0.resize(len, value);
        Ok(vec)
    }

    /// Appends copies of the elements of `other`.
    pub fn extend_from_slice(&mut self, other: &[T], flags: Flags) -> Result<(), AllocError> {
        self.reserve(other.len(), flags)?;
        self.0.extend_from_slice(other);
        Ok(())
    }
}

impl<T, A> Default for Vec<T, A> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: fmt::Debug, A> fmt::Debug for Vec<T, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T, A> Deref for Vec<T, A> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T, A> DerefMut for Vec<T, A> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

impl<T, A> IntoIterator for Vec<T, A> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a, T, A> IntoIterator for &'a Vec<T, A> {
    type Item = &'a T;
    type IntoIter = core::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<'a, T, A> IntoIterator for &'a mut Vec<T, A> {
    type Item = &'a mut T;
    type IntoIter = core::slice::IterMut<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter_mut()
    }
}
