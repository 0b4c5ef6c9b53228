// SPDX-License-Identifier: GPL-2.0-only

//! Copy-on-write: claims of what is written, and the release of writes whose chunks are saved.

use super::{
    Area,
    Claim,
    Old,
    State,
    AS_ROOT,
    LANES, //
};
use crate::{
    ahead::Begun,
    chunk::ChunkRange,
    extent_map::{
        NewExtent,
        Piece, //
    },
    lanes::{
        Key,
        Step, //
    },
    params,
    saved_map::NewLeaves, //
};
use kernel::{
    alloc::Flags,
    block::{
        bdev::SectorRange,
        bio::{
            Bio,
            BioList,
            BioRead,
            EndIo,
            Op,
            OwnedBio, //
        },
        filter::{
            FilteredBio,
            Verdict, //
        },
        SECTOR_SHIFT, //
    },
    page::Pages,
    prelude::*,
    sync::{
        atomic::Relaxed,
        rcu,
        Arc,
        ArcBorrow,
        UniqueArc, //
    },
    workqueue::WorkItem, //
};

impl Area {
    /// Returns whether a write can pass right away. Does not sleep.
    #[inline]
    pub(crate) fn may_pass(&self, range: SectorRange) -> bool {
        let chunks = self.geometry.chunks_of(range);
        self.may_release(chunks) && (!self.is_marked(chunks) || self.error() != 0)
    }

    /// Returns whether a write to `chunks` can go to the origin: all of them are saved, or the
    /// image is broken.
    #[inline]
    fn may_release(&self, chunks: ChunkRange) -> bool {
        self.saved.first_unsaved(chunks).is_none() || self.error() != 0
    }

    /// Returns whether an operation is to be ignored: a discard, which is advice, of chunks that
    /// would have to be saved for it.
    ///
    /// A file system does not care what discarded blocks contain. RAID does: its members have to
    /// agree. Does not sleep.
    #[inline]
    pub(crate) fn ignores(
        &self,
        guard: &rcu::Guard,
        bio: &FilteredBio<'_>,
        range: SectorRange,
    ) -> bool {
        bio.op() == Op::Discard
            && params::ignores_discard(bio.is_to_fs(guard))
            && !self.may_release(self.geometry.chunks_of(range))
    }

    /// Completes a discard that is ignored. Does not sleep.
    pub(crate) fn ignore<'a>(&self, bio: FilteredBio<'a>, range: SectorRange) -> Verdict<'a> {
        let bytes = range.len << SECTOR_SHIFT;
        self.ignored_bytes.fetch_add(bytes, Relaxed);
        let (bio, verdict) = bio.take();
        bio.end(Ok(()));
        verdict
    }

    /// Returns whether a write to `chunks` triggers copies ahead of a stream.
    #[inline]
    pub(super) fn is_marked(&self, chunks: ChunkRange) -> bool {
        let inside = |mark: u64| chunks.start <= mark && mark < chunks.end;
        self.marks.iter().any(|mark| inside(mark.load(Relaxed)))
    }

    /// Handles a write that cannot pass right away: claims what it overwrites and holds it until
    /// that is copied. If that needs to sleep, a worker does it. Does not sleep.
    pub(crate) fn intercept<'a>(
        this: ArcBorrow<'_, Self>,
        bio: FilteredBio<'a>,
        range: SectorRange,
    ) -> Verdict<'a> {
        let chunks = this.geometry.chunks_of(range);
        let mut prepared: Option<Copy<'_>> = None;
        loop {
            let mut state = this.state.lock();
            let look = this.look_at(&state, chunks);
            if bio.op() == Op::Write && this.follows(&state, &look, chunks) {
                break;
            }
            let run = match look {
                Look::Passes => return bio.pass(),
                Look::Waits(found) => return state.park_behind(found.start, bio),
                Look::Claims(run) => run,
            };
            // A large one keeps the worker busy, not the writer.
            if chunks.end > run.end || state.is_full(&this, run) {
                break;
            }
            // That `run` is free, and that there is room for it, has just been found.
            let fits = |copy: &mut Copy<'_>| {
                copy.run == run
                    || copy.run.contains(run)
                        && this.is_free(&state, copy.run)
                        && !state.is_full(&this, copy.run)
            };
            if let Some(copy) = prepared.take_if(fits) {
                let start = copy.run.start;
                state.claim(&this, copy.claim, copy.run, true);
                let asked = this.geometry.bytes_of(run);
                state.costs.ask(asked);
                state.ahead_bytes += this.geometry.bytes_of(copy.run) - asked;
                if bio.op() == Op::Write {
                    // It begins one, if anything.
                    let _ = this.follow(&mut state, chunks, run.start);
                }
                let verdict = state.park_behind(start, bio);
                drop(state);
                verdict.submit_read(copy.read, ClaimRead::Optional(this.into(), start));
                return verdict;
            }
            let grown = this.grown(&mut state, run);
            drop(state);
            // A PF_MEMALLOC writer could drain the reserves that the worker relies on.
            let flags = GFP_NOWAIT | __GFP_NOMEMALLOC;
            prepared = Copy::new(&this, &bio, grown, flags)
                .or_else(|_| Copy::new(&this, &bio, run, flags))
                .ok();
            if prepared.is_none() {
                break;
            }
        }
        let (bio, verdict) = bio.take();
        let mut state = this.state.lock();
        state.park();
        state.lanes.push_taken(bio);
        Self::start_workers(this, &mut state);
        verdict
    }

    /// Starts a worker for each lane that has work and none. The area must not be closed as long as
    /// the caller has the lock. Does not sleep.
    fn start_workers(this: ArcBorrow<'_, Self>, state: &mut State) {
        while let Some(key) = state.lanes.start() {
            let area: Arc<Self> = this.into();
            if key == Key::AsRoot {
                let _ = this.queues.writers.enqueue::<Arc<Self>, AS_ROOT>(area);
                continue;
            }
            let serve = move || Self::serve(&area, key);
            if this.queues.writers.try_spawn(GFP_NOWAIT, serve).is_err() {
                // This one serves all lanes without a worker, one after the other.
                state.lanes.not_started(key);
                let area: Arc<Self> = this.into();
                let _ = this.queues.writers.enqueue::<Arc<Self>, LANES>(area);
                return;
            }
        }
    }

    /// The work of one lane.
    fn serve(this: &Arc<Self>, key: Key) {
        let next = || this.state.lock().lanes.next(key);
        while let Some(step) = next() {
            match step {
                Step::Resubmit(bios) => this.resubmit(bios),
                Step::Claim(bios) => Self::claim_all(this, key, bios),
            }
        }
    }

    /// Claims chunks for writes that were taken, as long as there is room for the copies.
    fn claim_all(this: &Arc<Self>, key: Key, mut bios: BioList) {
        while let Some(bio) = bios.pop() {
            let Err(bio) = Self::claim_for(this, bio) else {
                continue;
            };
            bios.push_front(bio);
            let mut state = this.state.lock();
            // All copies may have been stored in the meantime.
            if state.copies == 0 {
                continue;
            }
            state.lanes.stall(key, bios);
            state.starved = true;
            drop(state);
            this.gathered.notify_all();
            return;
        }
    }

    /// Lets writes go whose chunks are saved.
    fn resubmit(&self, mut bios: BioList) {
        let mut count = 0;
        while let Some(bio) = bios.pop() {
            bio.resubmit();
            count += 1;
        }
        let mut state = self.state.lock();
        state.parked -= count;
        self.done(&mut state, count);
    }

    /// What is to be done about a write to `chunks`.
    fn look_at(&self, state: &State, chunks: ChunkRange) -> Look {
        if self.error() != 0 {
            return Look::Passes;
        }
        match self.unsaved(state, chunks) {
            None => Look::Passes,
            Some((_, Piece::Extent(found))) => Look::Waits(found),
            Some((start, Piece::Hole(end))) => Look::Claims(ChunkRange {
                start,
                end: end.min(start + self.max_claim),
            }),
        }
    }

    /// The first of `chunks` that is not saved. It is in a claim, or free, with those after it that
    /// are free too, as far as one bio can read.
    pub(super) fn unsaved(&self, state: &State, chunks: ChunkRange) -> Option<(u64, Piece)> {
        let start = self.saved.first_unsaved(chunks)?;
        let end = chunks.end.min(start + self.geometry.max_run());
        let mut piece = state.claims.lookup(ChunkRange { start, end });
        if let Piece::Hole(end) = &mut piece {
            *end = self
                .saved
                .first_saved(ChunkRange { start, end: *end })
                .unwrap_or(*end);
        }
        Some((start, piece))
    }

    /// Whether `chunks`, which one bio can read, are neither saved nor claimed.
    pub(super) fn is_free(&self, state: &State, chunks: ChunkRange) -> bool {
        match self.unsaved(state, chunks) {
            Some((start, Piece::Hole(end))) => ChunkRange { start, end } == chunks,
            _ => false,
        }
    }

    /// Claims what `bio` is going to overwrite, and lets it wait for the copies or resubmits it.
    /// Gives it back if there is no room for more copies.
    fn claim_for(this: &Arc<Self>, bio: OwnedBio) -> Result<(), OwnedBio> {
        let Some(range) = this.origin.range_of(&bio) else {
            this.resubmit_one(bio);
            return Ok(());
        };
        let chunks = this.geometry.chunks_of(range);
        // From where on it is told to the streams.
        let first = match this.look_at(&this.state.lock(), chunks) {
            Look::Claims(run) => Some(run.start),
            _ => this.is_marked(chunks).then_some(chunks.start),
        };

        // All of it is read at once, as far as there may be copies.
        let mut rest = chunks;
        while rest.start < rest.end {
            let run = {
                let state = this.state.lock();
                match this.look_at(&state, rest) {
                    Look::Passes => break,
                    Look::Waits(found) => {
                        rest.start = found.end;
                        continue;
                    }
                    Look::Claims(run) if state.is_full(this, run) => break,
                    Look::Claims(run) => run,
                }
            };
            let copy = match this.prepare(&bio, run) {
                Ok(Some(copy)) => copy,
                Ok(None) => break,
                Err(e) => {
                    this.fail_io(e);
                    break;
                }
            };
            let run = copy.run;
            let mut state = this.state.lock();
            // A writer may have been faster.
            if this.is_free(&state, run) && !state.is_full(this, run) {
                state.claim(this, copy.claim, run, false);
                state.costs.ask(this.geometry.bytes_of(run));
                drop(state);
                copy.read.submit(ClaimRead::Needed(this.clone(), run.start));
                rest.start = run.end;
            }
        }

        if let Some(first) = first.filter(|_| bio.op() == Op::Write) {
            let ahead = this.follow(&mut this.state.lock(), chunks, first);
            if let Some(ahead) = ahead {
                Self::copy_ahead(this, &bio, ahead);
            }
        }
        let mut state = this.state.lock();
        match this.look_at(&state, chunks) {
            Look::Passes => {
                drop(state);
                this.resubmit_one(bio);
                Ok(())
            }
            Look::Waits(found) => {
                state.wait_for(found.start, bio);
                Ok(())
            }
            Look::Claims(_) => Err(bio),
        }
    }

    fn resubmit_one(&self, bio: OwnedBio) {
        let mut bios = BioList::new();
        bios.push(bio);
        self.resubmit(bios);
    }

    /// Allocates what is needed to copy the chunks of a run, or the first one of them. None if
    /// there is no memory for that until others are stored.
    ///
    /// Reclaim may need the write that waits for this, so it must not depend on reclaim.
    fn prepare(&self, bio: &Bio, run: ChunkRange) -> Result<Option<Copy<'_>>> {
        match Copy::new(self, bio, run, GFP_NOIO | __GFP_NORETRY | __GFP_NOWARN) {
            Err(e) if e == ENOMEM => {}
            other => return other.map(Some),
        }
        if self.state.lock().copies > 0 {
            return Ok(None);
        }
        let first = ChunkRange {
            end: run.start + 1,
            ..run
        };
        let flags = GFP_NOIO | __GFP_MEMALLOC | __GFP_RETRY_MAYFAIL | __GFP_NOWARN;
        Copy::new(self, bio, first, flags).map(Some)
    }

    /// Returns whether a held write can go to the origin.
    fn is_saved(&self, bio: &Bio) -> bool {
        let range = self.origin.range_of(bio);
        range.is_none_or(|range| self.may_release(self.geometry.chunks_of(range)))
    }

    /// The old data of a claim was read, or the area has failed. Does not sleep.
    fn copied(this: Arc<Self>, start: u64, pages: UniqueArc<Pages>) {
        let mut state = this.state.lock();
        // It stays claimed until this.
        let Some((chunks, mut claim)) = state.claims.remove(start) else {
            return;
        };
        let now = this.now();
        state.costs.end(now);
        state
            .costs
            .took(claim.begun, now, this.geometry.bytes_of(chunks));
        let old = Old::Memory(pages.into());
        state.map.insert(claim.extent, chunks, old);
        this.saved.set(chunks);
        while let Some(bio) = claim.waiting.pop() {
            if this.is_saved(&bio) {
                state.lanes.push_ready(bio);
            } else {
                state.lanes.push_taken(bio);
            }
        }
        state.read_bytes += this.geometry.bytes_of(chunks);
        // There is room for all copies, so this cannot fail.
        let at = state.read.binary_search(&start).unwrap_or_else(|at| at);
        let _ = state.read.insert_within_capacity(at, start);
        // Before what was read can be stored and the area be closed, since the queues may go then.
        Self::start_workers(this.as_arc_borrow(), &mut state);
        Self::start_storing(&this, &mut state);
    }

    /// An optional read of a claim has failed. A worker claims again what the waiting writes need.
    /// Does not sleep.
    fn not_copied(this: Arc<Self>, start: u64) {
        let mut state = this.state.lock();
        if let Some((chunks, mut claim)) = state.claims.remove(start) {
            while let Some(bio) = claim.waiting.pop() {
                state.lanes.push_taken(bio);
            }
            state.costs.end(this.now());
            state.copies -= 1;
            state.copy_bytes -= this.geometry.bytes_of(chunks);
        }
        // Before the area can be closed, since the queues may go then.
        Self::unstall(this.as_arc_borrow(), &mut state);
        this.done(&mut state, 1);
    }

    /// There may be room for more copies, or the area has failed: the workers go on.
    pub(super) fn unstall(this: ArcBorrow<'_, Self>, state: &mut State) {
        state.starved = false;
        state.lanes.unstall();
        Self::start_workers(this, state);
    }
}

impl State {
    /// Claims free chunks, which are going to be read.
    pub(super) fn claim(&mut self, area: &Area, claim: NewClaim, chunks: ChunkRange, alone: bool) {
        let NewClaim {
            claim,
            extent,
            leaves,
        } = claim;
        let waiting = BioList::new();
        area.saved.reserve(leaves);
        let begun = Begun {
            ns: area.now(),
            alone,
        };
        self.costs.begin(begun.ns, self.claims.count() == 0);
        let value = Claim {
            waiting,
            extent,
            begun,
        };
        self.claims.insert(claim, chunks, value);
        self.copies += 1;
        self.copy_bytes += area.geometry.bytes_of(chunks);
        self.peak_copy_bytes = self.peak_copy_bytes.max(self.copy_bytes);
        self.active += 1;
    }

    /// Lets a write wait for the claim that starts at `start`.
    fn wait_for(&mut self, start: u64, bio: OwnedBio) {
        match self.claims.get_mut(start) {
            Some((_, claim)) => claim.waiting.push(bio),
            // Saved in the meantime, which the lock does not allow.
            None => self.lanes.push_taken(bio),
        }
    }

    /// Takes a write over until the claim that starts at `start` is saved.
    fn park_behind<'a>(&mut self, start: u64, bio: FilteredBio<'a>) -> Verdict<'a> {
        let (bio, verdict) = bio.take();
        self.park();
        self.wait_for(start, bio);
        verdict
    }

    /// There is one more write that was taken.
    fn park(&mut self) {
        self.parked += 1;
        self.peak_parked = self.peak_parked.max(self.parked);
        self.active += 1;
    }

    /// Whether there is no room for a copy of `run` now.
    fn is_full(&self, area: &Area, run: ChunkRange) -> bool {
        let bytes = area.geometry.bytes_of(run);
        self.copies > 0 && self.copy_bytes + bytes > area.max_copy_bytes
    }
}

/// What is to be done about a write.
pub(super) enum Look {
    /// Nothing.
    Passes,
    /// It waits for this claim.
    Waits(ChunkRange),
    /// These chunks have to be claimed, first of all.
    Claims(ChunkRange),
}

/// Memory for a claim, for the extent that it becomes, and for the bits of its chunks.
pub(super) struct NewClaim {
    claim: NewExtent<Claim>,
    extent: NewExtent<Old>,
    leaves: NewLeaves,
}

/// All that is needed to claim chunks and read them, allocated ahead.
pub(super) struct Copy<'a> {
    run: ChunkRange,
    pub(super) claim: NewClaim,
    pub(super) read: BioRead<'a, ClaimRead>,
}

impl<'a> Copy<'a> {
    pub(super) fn new(area: &'a Area, bio: &Bio, run: ChunkRange, flags: Flags) -> Result<Self> {
        Ok(Self {
            run,
            claim: NewClaim {
                claim: NewExtent::new(flags)?,
                extent: NewExtent::new(flags)?,
                leaves: area.saved.prepare(run, flags)?,
            },
            read: area.read_of(&area.reads, run, flags)?.on_behalf_of(bio),
        })
    }
}

/// A read of the old data of the claim that starts at this chunk.
pub(super) enum ClaimRead {
    /// Must not wait, or has chunks that are not written yet: an error only drops the claim.
    Optional(Arc<Area>, u64),
    /// An error breaks the image.
    Needed(Arc<Area>, u64),
}

#[vtable]
impl EndIo for ClaimRead {
    type Held = UniqueArc<Pages>;

    fn end_io(self, pages: UniqueArc<Pages>, result: Result) {
        match self {
            ClaimRead::Optional(area, start) if result.is_err() => Area::not_copied(area, start),
            ClaimRead::Optional(area, start) => Area::copied(area, start, pages),
            ClaimRead::Needed(area, start) => {
                // Ahead of the release of the writes, so that no image read misses it.
                if let Err(e) = result {
                    area.fail_io(e);
                }
                Area::copied(area, start, pages)
            }
        }
    }
}

impl WorkItem<LANES> for Area {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let start = || this.state.lock().lanes.start();
        while let Some(key) = start() {
            Self::serve(&this, key);
        }
    }
}

impl WorkItem<AS_ROOT> for Area {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        Self::serve(&this, Key::AsRoot);
    }
}
