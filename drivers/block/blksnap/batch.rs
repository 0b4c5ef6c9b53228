// SPDX-License-Identifier: GPL-2.0-only

//! Copies that are stored with one write.

use crate::chunk::ChunkRange;
use kernel::{
    alloc::Flags,
    prelude::*, //
};

/// The chunks of the copies, and their memory `D`.
pub(crate) struct Batch<D> {
    runs: KVec<ChunkRange>,
    data: KVec<D>,
    /// In bytes.
    len: usize,
    /// How many copies, and how many bytes, were recorded as stored.
    recorded: usize,
    recorded_len: usize,
}

impl<D: Clone> Batch<D> {
    /// Of at most `count` copies. Sleeps if `flags` do.
    pub(crate) fn new(count: usize, flags: Flags) -> Result<Self> {
        Ok(Self {
            runs: KVec::with_capacity(count, flags)?,
            data: KVec::with_capacity(count, flags)?,
            len: 0,
            recorded: 0,
            recorded_len: 0,
        })
    }

    /// Adds a copy of `len` bytes. Returns false if it is one too many, or more than `max` bytes
    /// with the others.
    pub(crate) fn add(&mut self, run: ChunkRange, data: &D, len: usize, max: usize) -> bool {
        let is_full = self.len > 0 && self.len + len > max;
        if is_full || self.runs.push_within_capacity(run).is_err() {
            return false;
        }
        let _ = self.data.push_within_capacity(data.clone());
        self.len += len;
        true
    }

    /// Those that were not recorded as stored.
    pub(crate) fn runs(&self) -> &[ChunkRange] {
        &self.runs[self.recorded..]
    }

    /// The first of them, and where it is in the batch, in bytes.
    pub(crate) fn first(&self) -> Option<(ChunkRange, usize)> {
        Some((*self.runs().first()?, self.recorded_len))
    }

    /// The first of them, of `len` bytes, was recorded.
    pub(crate) fn advance(&mut self, len: usize) {
        self.recorded += 1;
        self.recorded_len += len;
    }

    pub(crate) fn data(&self) -> &[D] {
        &self.data
    }

    pub(crate) fn into_data(self) -> KVec<D> {
        self.data
    }

    /// The number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// How much of a batch is recorded.
pub(crate) enum Recorded {
    All,
    Some,
    /// Some, the caller calls [`Rooms::allocate`](crate::stored_map::Rooms::allocate).
    NoMemory,
}
