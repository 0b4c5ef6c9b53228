// SPDX-License-Identifier: GPL-2.0-only

//! Memory for copies: new, or of copies that are stored.

use super::{
    copy::ClaimRead,
    store::STORE_BYTES,
    Area,
    Claim, //
};
use crate::{
    batch::Batch,
    chunk::ChunkRange,
    new_claim::{
        ClaimMemory,
        NewClaim, //
    }, //
};
use core::pin::Pin;
use kernel::{
    alloc::Flags,
    block::bio::{
        Bio,
        BioRead, //
    },
    page::Pages,
    prelude::*,
    sync::{
        Arc,
        UniqueArc, //
    }, //
};

/// Memory of the claims whose copies a store has recorded.
pub(super) type OldClaims = KVec<ClaimMemory<Claim, Arc<Pages>>>;

/// Memory for a claim of one chunk, and for its old data.
type Spare = (ClaimMemory<Claim, Arc<Pages>>, UniqueArc<Pages>);

/// Memory of copies of one chunk that are stored. The next ones take it: that costs a fraction of
/// what allocating does, and works when memory is short.
pub(super) struct Spares(KVec<Spare>);

impl Spares {
    /// For copies of `chunk_bytes`, of a device that has `own` bytes for copies: a quarter of that
    /// is kept, and no more than one store gives back. May sleep.
    pub(super) fn new(own: usize, chunk_bytes: usize) -> Result<Self> {
        let count = STORE_BYTES.min(own / 4) / chunk_bytes;
        Ok(Self(KVec::with_capacity(count, GFP_KERNEL)?))
    }
}

/// All that is needed to claim chunks and read them, allocated ahead.
pub(super) struct Copy<'a> {
    pub(super) run: ChunkRange,
    pub(super) claim: NewClaim<Claim, Arc<Pages>>,
    pub(super) read: BioRead<'a, ClaimRead>,
}

impl<'a> Copy<'a> {
    /// Sleeps if `flags` do.
    pub(super) fn new(area: &'a Area, bio: &Bio, run: ChunkRange, flags: Flags) -> Result<Self> {
        let (memory, pages) = match area.spare_for(run) {
            Some(spare) => spare,
            None => (ClaimMemory::new(flags)?, area.pages_for(run, flags)?),
        };
        Ok(Self {
            run,
            claim: NewClaim::new(memory, &area.status, run, flags)?,
            read: area
                .read_into(&area.reads, run, pages, flags)?
                .on_behalf_of(bio),
        })
    }
}

impl Area {
    /// What is kept for a copy of `run`. The last chunk of a device may need pages with zeroes.
    fn spare_for(&self, run: ChunkRange) -> Option<Spare> {
        if run.len() != 1 || run.end == self.geometry.nr_chunks() {
            return None;
        }
        self.spares.lock().0.pop()
    }

    /// Keeps the memory of copies that are stored, as far as there is room. Does not sleep.
    pub(super) fn keep(&self, claims: OldClaims, batch: Batch<Arc<Pages>>) {
        for (memory, pages) in claims.into_iter().zip(batch.into_data()) {
            if pages.len() != self.geometry.chunk_bytes() {
                continue;
            }
            // An image read may have them, too.
            let Some(pages) = Arc::into_unique_or_drop(pages) else {
                continue;
            };
            let spare = (memory, Pin::into_inner(pages));
            let kept = self.spares.lock().0.push_within_capacity(spare);
            if kept.is_err() {
                return;
            }
        }
    }
}
