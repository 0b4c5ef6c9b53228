// SPDX-License-Identifier: GPL-2.0-only

//! What writes and image reads look at without a lock: which chunks are saved, which of these are
//! lost, and whether the image is broken.

use crate::{
    budget::Budget,
    chunk::ChunkRange,
    saved_map::SavedMap, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        barrier::{
            smp_mb,
            Read, //
        },
        Arc, //
    }, //
};

/// The status of an image.
pub(crate) struct Status {
    saved: SavedMap,
    /// Chunks whose old data could not be read. For a write they are saved.
    lost: SavedMap,
    /// Number of these.
    lost_count: Atomic<u64>,
    /// 0, or the negative error number of the failure.
    error: Atomic<i32>,
}

impl Status {
    /// Of an image with `nr_chunks` chunks, none of which is saved. Its memory is accounted as that
    /// of `budget`. May sleep.
    pub(crate) fn new(nr_chunks: u64, budget: &Arc<Budget>) -> Result<Self> {
        Ok(Self {
            saved: SavedMap::new(nr_chunks, budget.clone())?,
            lost: SavedMap::new(nr_chunks, budget.clone())?,
            lost_count: Atomic::new(0),
            error: Atomic::new(0),
        })
    }

    #[inline]
    pub(crate) fn saved(&self) -> &SavedMap {
        &self.saved
    }

    /// A chunk is lost. To be called ahead of [`Cow::saved`](crate::cow::Cow::saved), by one task
    /// at a time. Does not sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`]
    pub(crate) fn lose(&self, chunk: ChunkRange) -> Result {
        self.lost.reserve(self.lost.prepare(chunk, GFP_ATOMIC)?);
        self.lost.set(chunk);
        self.lost_count.fetch_add(chunk.len(), Relaxed);
        Ok(())
    }

    /// How many chunks are lost.
    pub(crate) fn lost(&self) -> u64 {
        self.lost_count.load(Relaxed)
    }

    /// The first of `chunks`, which are saved, that is lost.
    pub(crate) fn first_lost(&self, chunks: ChunkRange) -> Option<u64> {
        if self.lost() == 0 {
            return None;
        }
        self.lost.first_saved(chunks)
    }

    /// 0, or a negative error number if the image is broken.
    #[inline]
    pub(crate) fn error(&self) -> i32 {
        self.error.load(Acquire)
    }

    /// The image is broken from now on. Returns false if it was broken already.
    pub(crate) fn fail(&self, error: Error) -> bool {
        self.error.cmpxchg(0, error.to_errno(), Release).is_ok()
    }

    /// Returns whether a write to `chunks` can go to the origin: all of them are saved, or the
    /// image is broken.
    #[inline]
    pub(crate) fn may_release(&self, chunks: ChunkRange) -> bool {
        self.saved.first_unsaved(chunks).is_none() || self.error() != 0
    }

    /// Up to which chunk the content of `chunks` is on the origin, since they are not saved. None
    /// if the first one is.
    pub(crate) fn on_origin(&self, chunks: ChunkRange) -> Option<u64> {
        let end = self.saved.first_saved(chunks).unwrap_or(chunks.end);
        (end > chunks.start).then_some(end)
    }

    /// Returns whether a read of `chunks` from the origin, which is done, may have got new data.
    pub(crate) fn is_overtaken(&self, chunks: ChunkRange) -> bool {
        // The bits are set before a write is released; the lock with which they are set, and with
        // which the worker gets the write, keeps that order. So if the write was early enough for
        // the read to get its data, they are seen here. In an image that is broken they are not set
        // any more, but there the error is seen.
        smp_mb(Read);
        self.error() == 0 && self.saved.first_saved(chunks).is_some()
    }
}
