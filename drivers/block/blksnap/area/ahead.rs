// SPDX-License-Identifier: GPL-2.0-only

//! Claims of more than is about to be overwritten.

use super::{
    copy::{
        ClaimRead,
        Kind, //
    },
    memory::Copy,
    Area,
    State, //
};
use crate::{
    ahead::UNIT_BYTES,
    budget::Level,
    chunk::ChunkRange,
    cow::Look,
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

/// Number of saved chunks in a region from which more than what is written is copied.
const REGION_TOUCHES: u64 = 4;

/// Upper limit of what is copied ahead of sequential writes at a time.
const WINDOW_BYTES: usize = 4 << 20;

/// The same as a multiple of the write that triggers it.
const WINDOW_WRITES: u64 = 64;

impl Area {
    /// Number of chunks in a unit.
    fn unit(&self) -> u64 {
        (UNIT_BYTES >> self.geometry.chunk_shift()).max(1)
    }

    /// Returns whether [`Self::grown`] gives a short `run` back whatever the state is.
    pub(super) fn never_grows(&self, run: ChunkRange) -> bool {
        let region = self.geometry.region_of(run);
        run.len() <= self.unit() && region.is_some_and(|region| self.is_untouched(region))
    }

    /// Returns whether no more is copied of a region than what is written.
    fn is_untouched(&self, region: ChunkRange) -> bool {
        self.map_memory.level() == Level::Low && self.status.saved().count(region) < REGION_TOUCHES
    }

    /// Returns what to claim for a write to `run`, which can be claimed: more than `run` if its
    /// region is written often and a longer read is worth it, unless that takes memory or storage
    /// that writes can need.
    pub(super) fn grown(&self, state: &mut State, run: ChunkRange) -> ChunkRange {
        let Some(region) = self.geometry.region_of(run) else {
            return run;
        };
        if self.is_untouched(region) {
            return run;
        }
        // Coarse copies take less memory in the maps.
        let coarse = self.map_memory.level() != Level::Low;
        let len = self.unit();
        let start = run.start / len * len;
        let unit = ChunkRange {
            start,
            end: (start + len).clamp(run.end, region.end),
        };
        let mut rest = unit;
        let hole = loop {
            match state.cow.unsaved(&self.status, rest) {
                None => return run,
                Some((start, Piece::Hole(end))) if end > run.start => {
                    break ChunkRange { start, end };
                }
                Some((_, Piece::Hole(end))) => rest.start = end,
                Some((_, Piece::Extent(found))) => rest.start = found.end,
            }
        };
        let hole = self.kept_around(run, hole);
        if hole == run || !self.has_room_ahead(state, hole) {
            return run;
        }
        if coarse {
            return hole;
        }
        let touched = self.status.saved().count(unit);
        let asked = self.geometry.bytes_of(run) as u64;
        let rest = self.geometry.bytes_of(hole) as u64 - asked;
        if state.ahead.costs.take_rest(touched, asked, rest) {
            hole
        } else {
            run
        }
    }

    /// Returns whether there is room for copies ahead, in memory and in the storage. An eighth of
    /// the memory is for other writes.
    fn has_room_ahead(&self, state: &State, run: ChunkRange) -> bool {
        let bytes = state.cow.counts().copy_bytes + self.geometry.bytes_of(run);
        let spare = state.cow.memory().most() / 8;
        bytes as u64 <= state.ahead.room && state.cow.has_room(run, spare)
    }

    /// Returns whether a write to `chunks` triggers copies ahead of a stream.
    pub(super) fn follows(&self, state: &State, look: &Look, chunks: ChunkRange) -> bool {
        self.error() == 0 && self.is_marked(chunks)
            || matches!(look, Look::Claims(run) if state.ahead.streams.follows(ChunkRange {
                start: run.start,
                ..chunks
            }))
    }

    /// Adds a write to `chunks` to the streams; `first` is its first chunk that is claimed or has a
    /// mark. Returns the chunks to copy ahead.
    pub(super) fn follow(
        &self,
        state: &mut State,
        chunks: ChunkRange,
        first: u64,
    ) -> Option<ChunkRange> {
        let most = WINDOW_BYTES.min(state.cow.memory().most() / 8) >> self.geometry.chunk_shift();
        let limit = chunks.len().saturating_mul(WINDOW_WRITES).min(most as u64);
        let chunks = ChunkRange {
            start: first,
            ..chunks
        };
        let ahead = state.ahead.streams.follow(chunks, limit);
        for (mark, new) in self.marks.iter().zip(state.ahead.streams.marks()) {
            // Each write reads them, so their cache line is left alone as long as possible.
            if mark.load(Relaxed) != new {
                mark.store(new, Relaxed);
            }
        }
        ahead
    }

    /// Claims chunks ahead of a stream, on behalf of its write `bio`, as far as there is room.
    pub(super) fn copy_ahead(this: &Arc<Self>, bio: &Bio, ahead: ChunkRange) {
        let mut rest = ChunkRange {
            end: ahead.end.min(this.geometry.nr_chunks()),
            ..ahead
        };
        while rest.start < rest.end {
            let run = {
                let state = this.state.lock();
                match state.cow.unsaved(&this.status, rest) {
                    None => return,
                    Some((_, Piece::Extent(found))) => {
                        rest.start = found.end;
                        continue;
                    }
                    Some((start, Piece::Hole(end))) => ChunkRange {
                        start,
                        end: end.min(start + this.unit()),
                    },
                }
            };
            // What the image does not have is saved for nobody.
            let first = ChunkRange {
                end: run.start + 1,
                ..run
            };
            if !this.keeps_some(first) {
                rest.start = first.end;
                continue;
            }
            let run = this.kept_around(first, run);
            let copy = Copy::new(this, bio, run, GFP_NOWAIT | __GFP_NOMEMALLOC | __GFP_NOWARN);
            let mut state = this.state.lock();
            let Some(copy) = copy.ok().filter(|_| this.has_room_ahead(&state, run)) else {
                state.ahead.streams.stopped(ahead, rest.start);
                return;
            };
            // A write may have claimed it meanwhile.
            if state.claim(this, copy.claim, run, false) {
                state.ahead.bytes += this.geometry.bytes_of(run);
                drop(state);
                copy.read
                    .submit(ClaimRead::new(this.clone(), run.start, Kind::Optional));
            }
            rest.start = run.end;
        }
    }
}
