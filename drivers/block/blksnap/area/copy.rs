// SPDX-License-Identifier: GPL-2.0-only

//! Copy-on-write: claims of what is written, and the release of writes whose chunks are saved.

use super::{
    memory::Copy,
    store::Start,
    Area,
    Claim,
    State,
    AS_ROOT,
    LANES, //
};
use crate::{
    ahead::Begun,
    chunk::ChunkRange,
    cow::Look,
    event::What,
    lanes::{
        Key,
        Step, //
    },
    new_claim::NewClaim,
    params,
    taken::{
        Released,
        ReleasedList,
        Taken,
        TakenList, //
    },
    trace, //
};
use core::iter::from_fn;
use kernel::{
    block::{
        bdev::SectorRange,
        bio::{
            plugged,
            Bio,
            EndIo,
            Op, //
        },
        filter::{
            FilteredBio,
            Verdict, //
        },
        SECTOR_SHIFT, //
    },
    page::{
        Pages,
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        rcu,
        Arc,
        ArcBorrow,
        UniqueArc, //
    },
    workqueue::WorkItem, //
};

/// Maximum number of messages about the lost chunks of a device.
const MAX_LOGGED: u64 = 10;

/// Instead of what could not be read.
static ZEROES: [u8; 512] = [0; 512];

impl Area {
    /// Returns whether a write can pass right away. Does not sleep.
    #[inline]
    pub(crate) fn may_pass(&self, range: SectorRange) -> bool {
        let chunks = self.geometry.chunks_of(range);
        if self.status.may_release(chunks) {
            !self.is_marked(chunks) || self.error() != 0
        } else {
            !self.keeps_some(chunks)
        }
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
        let chunks = self.geometry.chunks_of(range);
        bio.op() == Op::Discard
            && params::ignores_discard(bio.is_to_fs(guard))
            && !self.status.may_release(chunks)
            && self.keeps_some(chunks)
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
        let inside = |mark: &Atomic<u64>| chunks.contains(mark.load(Relaxed));
        self.marks.iter().any(inside)
    }

    /// Handles a write that cannot pass right away: claims what it overwrites and holds it until
    /// that is copied. If that needs to sleep, a worker does it. Does not sleep.
    pub(crate) fn intercept<'a>(
        this: ArcBorrow<'_, Self>,
        bio: FilteredBio<'a>,
        range: SectorRange,
    ) -> Verdict<'a> {
        let chunks = this.geometry.chunks_of(range);
        // A PF_MEMALLOC writer could drain the reserves that the worker relies on.
        let flags = GFP_NOWAIT | __GFP_NOMEMALLOC;
        loop {
            // Most writes are claimed as they are: then the lock is taken once.
            let lone = this.never_grows(chunks);
            let copy = lone.then(|| Copy::new(&this, &bio, chunks, flags));
            let mut state = this.state.lock();
            let look = state.cow.look_at(&this.status, chunks);
            if bio.op() == Op::Write && this.follows(&state, &look, chunks) {
                break;
            }
            let run = match look {
                Look::Passes => return bio.pass(),
                Look::Waits(found) => return state.park_behind(found.start, bio),
                Look::Claims(run) => run,
            };
            // A large one keeps the worker busy, not the writer.
            if chunks.end > run.end || !state.cow.has_room(run, 0) {
                break;
            }
            let copy = match copy {
                Some(Ok(copy)) if copy.run == run => copy,
                _ => {
                    let grown = this.grown(&mut state, run);
                    drop(state);
                    let copy = Copy::new(&this, &bio, grown, flags)
                        .or_else(|_| Copy::new(&this, &bio, run, flags));
                    let Ok(copy) = copy else {
                        break;
                    };
                    state = this.state.lock();
                    copy
                }
            };
            let start = copy.run.start;
            // A writer may have been faster.
            if !state.claim(&this, copy.claim, copy.run, true) {
                continue;
            }
            let asked = this.geometry.bytes_of(run);
            state.ahead.costs.ask(asked);
            state.ahead.bytes += this.geometry.bytes_of(copy.run) - asked;
            if bio.op() == Op::Write {
                // It begins one, if anything.
                let _ = this.follow(&mut state, chunks, run.start);
            }
            let verdict = state.park_behind(start, bio);
            drop(state);
            verdict.submit_read(
                copy.read,
                ClaimRead::new(this.into(), start, Kind::Optional),
            );
            return verdict;
        }
        let (write, verdict) = Taken::take(bio);
        let mut state = this.state.lock();
        state.cow.park();
        state.lanes.push_taken(write);
        Self::start_workers(this, &mut state);
        verdict
    }

    /// Starts a worker for each lane that has work and none. The area must not be closed as long as
    /// the caller has the lock. Does not sleep.
    fn start_workers(this: ArcBorrow<'_, Self>, state: &mut State) {
        while let Some(key) = state.lanes.start() {
            if !Self::start_worker(this, key) {
                Self::start_any(this, state, key);
                return;
            }
        }
    }

    /// Starts the worker of a lane. Returns false if there is no memory for it. The area must not
    /// be closed meanwhile. Does not sleep.
    fn start_worker(this: ArcBorrow<'_, Self>, key: Key) -> bool {
        let area: Arc<Self> = this.into();
        if key == Key::AsRoot {
            let _ = this.queues.writers.enqueue::<Arc<Self>, AS_ROOT>(area);
            return true;
        }
        let serve = move || Self::serve(&area, key);
        this.queues.writers.try_spawn(GFP_NOWAIT, serve).is_ok()
    }

    /// Starts one worker for all lanes that have none, one after the other.
    fn start_any(this: ArcBorrow<'_, Self>, state: &mut State, key: Key) {
        state.lanes.not_started(key);
        let area: Arc<Self> = this.into();
        let _ = this.queues.writers.enqueue::<Arc<Self>, LANES>(area);
    }

    /// The work of one lane.
    fn serve(this: &Arc<Self>, key: Key) {
        let mut resubmitted = 0;
        loop {
            let step = {
                let mut state = this.state.lock();
                this.unpark(&mut state, resubmitted);
                state.lanes.next(key)
            };
            resubmitted = match step {
                None => return,
                Some(Step::Resubmit(writes)) => this.resubmit(writes),
                Some(Step::Claim(writes)) => {
                    Self::claim_all(this, key, writes);
                    0
                }
            };
        }
    }

    /// Claims chunks for writes that were taken, as long as there is room for the copies.
    fn claim_all(this: &Arc<Self>, key: Key, mut writes: TakenList) {
        while let Some(write) = writes.pop() {
            let Err(write) = Self::claim_for(this, write) else {
                continue;
            };
            writes.push_front(write);
            let mut state = this.state.lock();
            // All copies may have been stored in the meantime.
            if state.cow.counts().copies == 0 {
                continue;
            }
            state.lanes.stall(key, writes);
            this.begin_hold(&mut state);
            drop(state);
            this.gathered.notify_all();
            return;
        }
    }

    /// Lets writes go whose chunks are saved. Returns how many: they are parked until
    /// [`Self::unpark`].
    fn resubmit(&self, mut writes: ReleasedList) -> usize {
        let resubmit = |write: Released| {
            if let Some(sectors) = self.origin.range_of(&write) {
                trace::released(self.origin.dev(), sectors);
            }
            write.resubmit();
        };
        plugged(|| from_fn(|| writes.pop()).map(resubmit).count())
    }

    /// `count` writes were resubmitted.
    fn unpark(&self, state: &mut State, count: usize) {
        state.cow.unpark(count);
        self.notify_idle(state);
    }

    fn resubmit_one(&self, write: Released) {
        let mut writes = ReleasedList::new();
        writes.push(write);
        let count = self.resubmit(writes);
        self.unpark(&mut self.state.lock(), count);
    }

    /// Releases a write whose chunks are saved.
    fn release(&self, write: Taken) -> Result<Released, Taken> {
        write.release(&self.origin, self.geometry, &self.status)
    }

    /// Claims what `write` is going to overwrite, and lets it wait for the copies or resubmits it.
    /// Gives it back if there is no room for more copies.
    fn claim_for(this: &Arc<Self>, write: Taken) -> Result<(), Taken> {
        // What is not for the device at all is released below.
        let none = SectorRange { start: 0, len: 0 };
        let range = this.origin.range_of(&write).unwrap_or(none);
        let chunks = this.geometry.chunks_of(range);
        let look_at = |state: &State, chunks| state.cow.look_at(&this.status, chunks);
        // From where on it is told to the streams.
        let first = match look_at(&this.state.lock(), chunks) {
            Look::Claims(run) => Some(run.start),
            _ => this.is_marked(chunks).then_some(chunks.start),
        };

        // All of it is read at once, as far as there may be copies.
        let mut rest = chunks;
        while rest.start < rest.end {
            let (run, is_suspect) = {
                let state = this.state.lock();
                match look_at(&state, rest) {
                    Look::Passes => break,
                    Look::Waits(found) => {
                        rest.start = found.end;
                        continue;
                    }
                    Look::Claims(run) if !state.cow.has_room(run, 0) => break,
                    Look::Claims(run) => (run, state.cow.is_suspect(run.start)),
                }
            };
            let copy = match this.prepare(&write, run) {
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
            if state.claim(this, copy.claim, run, false) {
                state.ahead.costs.ask(this.geometry.bytes_of(run));
                drop(state);
                let (read, kind) = if is_suspect {
                    (copy.read.unmerged(), Kind::Alone)
                } else {
                    (copy.read, Kind::Needed)
                };
                read.submit(ClaimRead::new(this.clone(), run.start, kind));
                rest.start = run.end;
            }
        }

        if let Some(first) = first.filter(|_| write.op() == Op::Write) {
            let ahead = this.follow(&mut this.state.lock(), chunks, first);
            if let Some(ahead) = ahead {
                Self::copy_ahead(this, &write, ahead);
            }
        }
        let mut state = this.state.lock();
        match this.release(write) {
            Ok(write) => {
                drop(state);
                this.resubmit_one(write);
                Ok(())
            }
            Err(write) => match look_at(&state, chunks) {
                Look::Waits(found) => {
                    state.wait_for(found.start, write);
                    Ok(())
                }
                // There is no room, or the image is broken since.
                _ => Err(write),
            },
        }
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
        if self.state.lock().cow.counts().copies > 0 {
            return Ok(None);
        }
        let first = ChunkRange {
            end: run.start + 1,
            ..run
        };
        let flags = GFP_NOIO | __GFP_MEMALLOC | __GFP_RETRY_MAYFAIL | __GFP_NOWARN;
        Copy::new(self, bio, first, flags).map(Some)
    }

    /// The old data of a claim was read, or the area has failed. Does not sleep.
    fn copied(this: Arc<Self>, start: u64, pages: UniqueArc<Pages>) {
        // The queues must not go before the workers are started, which takes too long for the lock.
        this.users.fetch_add(1, Relaxed);
        if let Some((key, store)) = Self::save(&this, start, pages) {
            let area = this.as_arc_borrow();
            if let Some(key) = key.filter(|key| !Self::start_worker(area, *key)) {
                Self::start_any(area, &mut this.state.lock(), key);
            }
            Self::start_storing(&this, store);
        }
        this.end_use();
    }

    /// The chunks of a claim are saved: what waits for it is released or looked at again. Returns
    /// what the caller has to start without the lock.
    fn save(this: &Arc<Self>, start: u64, pages: UniqueArc<Pages>) -> Option<(Option<Key>, Start)> {
        let mut state = this.state.lock();
        // It stays claimed until this.
        let (chunks, mut claim) = state.cow.saved(&this.status, start, pages.into())?;
        trace::saved(this.origin.dev(), this.geometry.sectors_of(chunks));
        let now = this.now();
        let costs = &mut state.ahead.costs;
        costs.end(now);
        costs.took(claim.begun, now, this.geometry.bytes_of(chunks));
        while let Some(write) = claim.waiting.pop() {
            match this.release(write) {
                Ok(write) => state.lanes.push_ready(write),
                Err(write) => state.lanes.push_taken(write),
            }
        }
        let key = state.lanes.start();
        // Of other groups, hardly ever
        Self::start_workers(this.as_arc_borrow(), &mut state);
        Some((key, state.stores_to_start()))
    }

    /// A needed read of one chunk, in a request of its own, has failed. Does not sleep.
    fn unreadable(this: Arc<Self>, start: u64, mut pages: UniqueArc<Pages>, error: Error) {
        let lost = this.state.lock().cow.lose(&this.status, start);
        match lost {
            Ok(()) => this.tell_lost(start, error),
            // Ahead of the release of the writes, so that no image read misses it.
            Err(_) => this.fail_io(error),
        }
        // There may be anything in them, and they go to the storage.
        for number in 0..pages.len() >> PAGE_SHIFT {
            for at in (0..PAGE_SIZE).step_by(ZEROES.len()) {
                let _ = pages.copy_from_slice(number, at, &ZEROES);
            }
        }
        Self::copied(this, start, pages);
    }

    fn tell_lost(&self, chunk: u64, error: Error) {
        let dev = self.origin.dev();
        let sectors = self.geometry.sectors_of(ChunkRange {
            start: chunk,
            end: chunk + 1,
        });
        let start = sectors.start;
        trace::lost(dev, sectors, error);
        // A dying disk must not fill the log.
        match self.status.lost() {
            lost if lost < MAX_LOGGED => {
                pr_err!("snapshot of {dev}: sector {start} could not be read: {error:?}\n")
            }
            MAX_LOGGED => pr_err!("snapshot of {dev}: more could not be read, see lost_chunks\n"),
            _ => {}
        }
        self.storage.events().push(What::Lost(dev, sectors, error));
    }

    /// A read of a claim has failed. A worker claims again what the waiting writes need. Does not
    /// sleep.
    fn not_copied(this: Arc<Self>, start: u64, needed: bool) {
        let mut state = this.state.lock();
        if let Some(mut claim) = state.cow.not_read(start, needed) {
            while let Some(write) = claim.waiting.pop() {
                state.lanes.push_taken(write);
            }
            state.ahead.costs.end(this.now());
        }
        // Before the area can be closed, since the queues may go then.
        Self::unstall(this.as_arc_borrow(), &mut state);
        this.notify_idle(&state);
    }

    /// There may be room for more copies, or the area has failed: the workers go on.
    pub(super) fn unstall(this: ArcBorrow<'_, Self>, state: &mut State) {
        this.count_hold(state);
        state.holds.end();
        state.lanes.unstall();
        Self::start_workers(this, state);
    }
}

impl State {
    /// Claims chunks, which are going to be read. Returns false if that is not possible any more.
    pub(super) fn claim(
        &mut self,
        area: &Area,
        new: NewClaim<Claim, Arc<Pages>>,
        chunks: ChunkRange,
        alone: bool,
    ) -> bool {
        let first = !self.cow.has_claims();
        let begun = Begun {
            ns: area.now(),
            alone,
        };
        let claim = Claim {
            waiting: TakenList::new(),
            begun,
        };
        let claimed = self.cow.claim(&area.status, new, chunks, claim);
        if claimed {
            trace::claim(area.origin.dev(), area.geometry.sectors_of(chunks));
            self.ahead.costs.begin(begun.ns, first);
        }
        claimed
    }

    /// Lets a write wait for the claim that starts at `start`.
    fn wait_for(&mut self, start: u64, write: Taken) {
        match self.cow.claimed(start) {
            Some(claim) => claim.waiting.push(write),
            // Saved in the meantime, which the lock does not allow.
            None => self.lanes.push_taken(write),
        }
    }

    /// Takes a write over until the claim that starts at `start` is saved.
    fn park_behind<'a>(&mut self, start: u64, bio: FilteredBio<'a>) -> Verdict<'a> {
        let (write, verdict) = Taken::take(bio);
        self.cow.park();
        self.wait_for(start, write);
        verdict
    }
}

/// What an error of a read means.
pub(super) enum Kind {
    /// Must not wait, or has chunks that are not written yet: the claim is dropped.
    Optional,
    /// Its chunks are suspects.
    Needed,
    /// It is of one suspect, in a request of its own: that is lost.
    Alone,
}

/// A read of the old data of the claim that starts at a chunk.
pub(super) struct ClaimRead {
    area: Arc<Area>,
    start: u64,
    kind: Kind,
}

impl ClaimRead {
    pub(super) fn new(area: Arc<Area>, start: u64, kind: Kind) -> Self {
        Self { area, start, kind }
    }
}

#[vtable]
impl EndIo for ClaimRead {
    type Held = UniqueArc<Pages>;

    fn end_io(self, pages: UniqueArc<Pages>, result: Result) {
        let Self { area, start, kind } = self;
        match (result, kind) {
            (Ok(()), _) => Area::copied(area, start, pages),
            (Err(e), Kind::Alone) => Area::unreadable(area, start, pages, e),
            (Err(_), Kind::Needed) => Area::not_copied(area, start, true),
            (Err(_), Kind::Optional) => Area::not_copied(area, start, false),
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
