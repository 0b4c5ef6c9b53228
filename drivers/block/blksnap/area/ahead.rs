// SPDX-License-Identifier: GPL-2.0-only

//! Copies of more than is about to be overwritten.

use super::{
    copy::{
        ClaimRead,
        Copy,
        Look, //
    },
    Area,
    State, //
};
use crate::{
    chunk::ChunkRange,
    extent_map::Piece, //
};
use kernel::{
    block::bio::Bio,
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc, //
    }, //
};

/// So many chunks of a region must be saved, at least, before more than what is written is copied.
const REGION_TOUCHES: u64 = 4;

/// The most that is copied then at a time, and what it is aligned to.
const GROWN_BYTES: u64 = 256 << 10;

/// The most that is copied ahead of writes in sequence at a time, also in writes as long as that
/// which is the reason.
const STREAM_BYTES: usize = 4 << 20;
const STREAM_WRITES: u64 = 64;

impl Area {
    /// What to copy when `run` is written, which can be claimed: more than that if its region was
    /// written so often that it is worth it, as long as that takes neither the memory nor the
    /// storage that writes may need.
    pub(super) fn grown(&self, state: &mut State, run: ChunkRange) -> ChunkRange {
        let Some(region) = self.geometry.region_of(run) else {
            return run;
        };
        if self.saved.count(region) < REGION_TOUCHES {
            return run;
        }
        let len = (GROWN_BYTES >> self.geometry.chunk_shift()).max(1);
        let start = run.start / len * len;
        let unit = ChunkRange {
            start,
            end: (start + len).clamp(run.end, region.end),
        };
        let mut rest = unit;
        let hole = loop {
            match self.unsaved(state, rest) {
                None => return run,
                Some((start, Piece::Hole(end))) if end > run.start => {
                    break ChunkRange { start, end };
                }
                Some((_, Piece::Hole(end))) => rest.start = end,
                Some((_, Piece::Extent(found))) => rest.start = found.end,
            }
        };
        if hole == run || !self.has_room_ahead(state, hole) {
            return run;
        }
        let touched = self.saved.count(unit);
        let asked = self.geometry.bytes_of(run) as u64;
        let rest = self.geometry.bytes_of(hole) as u64 - asked;
        if state.costs.is_worth(touched, asked, rest) {
            hole
        } else {
            run
        }
    }

    /// Whether more may be in memory than what must be copied, and on the storage.
    fn has_room_ahead(&self, state: &State, run: ChunkRange) -> bool {
        let bytes = state.copy_bytes + self.geometry.bytes_of(run);
        bytes as u64 <= state.ahead_room && bytes <= self.max_copy_bytes / 8 * 7
    }

    /// Whether a write to `chunks` belongs to a stream that wants more copied ahead.
    pub(super) fn follows(&self, state: &State, look: &Look, chunks: ChunkRange) -> bool {
        self.error() == 0 && self.is_marked(chunks)
            || matches!(look, Look::Claims(run) if state.streams.follows(ChunkRange {
                start: run.start,
                ..chunks
            }))
    }

    /// There is a write to `chunks`, of which `first` is the first that is claimed for it, or has a
    /// mark. Returns what is to be copied ahead of those after it.
    pub(super) fn follow(
        &self,
        state: &mut State,
        chunks: ChunkRange,
        first: u64,
    ) -> Option<ChunkRange> {
        let most =
            (STREAM_BYTES.min(self.max_copy_bytes / 8) >> self.geometry.chunk_shift()) as u64;
        let limit = most.min(chunks.len() * STREAM_WRITES);
        let chunks = ChunkRange {
            start: first,
            ..chunks
        };
        let ahead = state.streams.follow(chunks, limit);
        for (mark, new) in self.marks.iter().zip(state.streams.marks()) {
            mark.store(new, Relaxed);
        }
        ahead
    }

    /// Copies chunks that are going to be written, as far as there is room.
    pub(super) fn copy_ahead(this: &Arc<Self>, bio: &Bio, ahead: ChunkRange) {
        let unit = (GROWN_BYTES >> this.geometry.chunk_shift()).max(1);
        let mut rest = ChunkRange {
            end: ahead.end.min(this.geometry.nr_chunks()),
            ..ahead
        };
        while rest.start < rest.end {
            let run = {
                let state = this.state.lock();
                match this.unsaved(&state, rest) {
                    None => return,
                    Some((_, Piece::Extent(found))) => {
                        rest.start = found.end;
                        continue;
                    }
                    Some((start, Piece::Hole(end))) => ChunkRange {
                        start,
                        end: end.min(start + unit),
                    },
                }
            };
            let copy = Copy::new(this, bio, run, GFP_NOWAIT | __GFP_NOMEMALLOC | __GFP_NOWARN);
            let mut state = this.state.lock();
            let Some(copy) = copy.ok().filter(|_| this.has_room_ahead(&state, run)) else {
                state.streams.stopped(ahead, rest.start);
                return;
            };
            // A writer may have been faster.
            if this.error() == 0 && this.is_free(&state, run) {
                state.claim(this, copy.claim, run, false);
                state.ahead_bytes += this.geometry.bytes_of(run);
                drop(state);
                copy.read.submit(ClaimRead::Writer(this.clone(), run.start));
            }
            rest.start = run.end;
        }
    }
}
