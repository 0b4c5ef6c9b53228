// SPDX-License-Identifier: GPL-2.0-only

//! What a claim needs, allocated before the lock is taken.

use crate::{
    chunk::ChunkRange,
    extent_map::NewExtent,
    saved_map::NewLeaves,
    status::Status, //
};
use kernel::{
    alloc::Flags,
    prelude::*, //
};

/// Chunks whose old data is not on the storage.
pub(crate) enum Active<C, D> {
    /// It is being read from the origin.
    Claimed(C),
    /// It is in memory.
    Read(D),
}

/// Memory for a claim, or of one that is over.
pub(crate) type ClaimMemory<C, D> = NewExtent<Active<C, D>>;

/// Memory for a claim, and for the bits of its chunks.
pub(crate) struct NewClaim<C, D> {
    pub(crate) memory: ClaimMemory<C, D>,
    pub(crate) leaves: NewLeaves,
}

impl<C, D> NewClaim<C, D> {
    /// Sleeps if `flags` do.
    pub(crate) fn new(
        memory: ClaimMemory<C, D>,
        status: &Status,
        chunks: ChunkRange,
        flags: Flags,
    ) -> Result<Self> {
        Ok(Self {
            memory,
            leaves: status.saved().prepare(chunks, flags)?,
        })
    }
}
