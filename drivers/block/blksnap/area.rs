// SPDX-License-Identifier: GPL-2.0-only

//! The difference area: what keeps the content that one device had when its snapshot was taken.
//!
//! The chunks of a write that are not saved are claimed, which makes an extent of them, and their
//! old data is read from the origin: submitted in the filter, or by a worker if the write is large,
//! memory is short or there are too many copies. The write is taken. When the read is done the
//! chunks are saved, and a worker resubmits the write. The data goes from memory to the difference
//! storage afterwards, gathered into large writes. So chunks are a [`Claim`] first, then an extent
//! whose old data is in memory, [`Old::Memory`], and at last on the storage, [`Old::Stored`].
//!
//! Reads are accounted to the control group of the write, but not delayed by its limits: writes of
//! other groups may wait for the same chunks, or for memory.
//!
//! A write is released only when all of its chunks are saved. So as long as a chunk is not saved,
//! the origin has its old data. An image read from the origin is looked at again when it is done:
//! if one of its chunks was saved meanwhile it is done over.
//!
//! Where a region of the device is written again and again, more is copied at a time: what is
//! around the chunk that is written, ahead of the writes to it.
//!
//! If anything goes wrong the area fails for good: writes pass, image reads give an error. That
//! there is no end to a write to the storage, while others wait for it to the origin, is wrong too.
//!
//! # Locking
//!
//! `state` is a leaf lock, taken also where bios end. The saved bits are set under it, and read
//! without it: neither a write to saved chunks nor an image read of others takes a lock.

use crate::{
    chunk::{
        ChunkRange,
        Geometry, //
    },
    debug,
    event::What,
    extent_map::{
        ExtentMap,
        NewExtent,
        Piece,
        Place, //
    },
    lanes::{
        Key,
        Lanes,
        Step, //
    },
    params,
    saved_map::{
        NewLeaves,
        SavedMap, //
    },
    storage::Storage, //
};
use kernel::{
    alloc::Flags,
    block::{
        bdev::{
            BdevFile,
            SectorRange, //
        },
        bio::{
            Bio,
            BioList,
            BioRead,
            BioSet,
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
    fmt,
    impl_has_hr_timer,
    new_condvar,
    new_spinlock_irq,
    page::{
        Pages,
        PAGE_SHIFT, //
    },
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        barrier::{
            smp_mb,
            Read, //
        },
        Arc,
        ArcBorrow,
        Completion,
        CondVar,
        SpinLockIrq,
        UniqueArc, //
    },
    time::{
        hrtimer::{
            HrTimer,
            HrTimerCallback,
            HrTimerCallbackContext,
            HrTimerPointer,
            HrTimerRestart,
            RelativeMode, //
        },
        msecs_to_jiffies,
        Monotonic, //
    },
    workqueue::{
        impl_has_work,
        new_work,
        OwnedQueue,
        Work,
        WorkItem, //
    }, //
};

/// A write to the storage begins when so many bytes of copies are gathered, or after so many
/// milliseconds.
const GATHER_BYTES: usize = 256 << 10;
const GATHER_MSECS: u32 = 10;

/// So many bytes it takes at the most, if they came while the last one was under way.
const STORE_BYTES: usize = 1 << 20;

/// So many chunks of a region must be saved, at least, before more than what is written is copied.
const REGION_TOUCHES: u64 = 4;

/// The most that is copied then at a time, and what it is aligned to.
const GROWN_BYTES: u64 = 256 << 10;

/// Chunks whose old data is being read from the origin.
struct Claim {
    /// Writes that wait for it.
    waiting: BioList,
    /// Memory for the extent that it becomes.
    extent: NewExtent<Old>,
}

/// Where the old data of an extent is.
enum Old {
    /// In memory.
    Memory(Arc<Pages>),
    /// At this byte of the storage. A chunk has as many bytes as `chunk_shift` says.
    Stored { at: u64, chunk_shift: u32 },
}

impl Place for Old {
    fn continues(&self, chunks: u64, next: &Self) -> bool {
        match (self, next) {
            (Old::Stored { at, chunk_shift }, Old::Stored { at: next, .. }) => {
                at + (chunks << chunk_shift) == *next
            }
            _ => false,
        }
    }
}

struct State {
    /// What is claimed and not saved.
    claims: ExtentMap<Claim>,
    /// What is saved.
    map: ExtentMap<Old>,
    /// Writes that were taken and are not behind a claim.
    lanes: Lanes,
    /// First chunks of the extents in memory that are to be stored, in order, so that neighbours
    /// can become one extent. Has room for all copies.
    read: KVVec<u64>,
    /// Extents that are claimed and not stored, and the bytes in them.
    copies: usize,
    copy_bytes: usize,
    /// The bytes in `read`.
    read_bytes: usize,
    /// The bytes that were stored so far.
    stored_bytes: u64,
    /// The bytes that were claimed ahead of writes so far.
    ahead_bytes: usize,
    /// How many bytes may be in memory for more to be claimed ahead of writes.
    ahead_room: u64,
    /// Writes that were taken and not released yet.
    parked: usize,
    /// The most there were of these at a time.
    peak_copy_bytes: usize,
    peak_parked: usize,
    /// The worker that stores copies is at work, or waits for more of them.
    storing: bool,
    /// Writes wait until there are fewer copies.
    starved: bool,
    /// Image reads that need more than the origin.
    images: BioList,
    /// Writes and copies that have to end before the area can be closed.
    active: usize,
}

/// The difference area of a device.
#[pin_data]
pub(crate) struct Area {
    origin: Arc<BdevFile>,
    geometry: Geometry,
    max_copy_bytes: usize,
    /// The number of chunks that are claimed at a time, so that a large write finds the memory for
    /// them beside small ones.
    max_claim: u64,
    saved: SavedMap,
    #[pin]
    state: SpinLockIrq<State>,
    #[pin]
    gathered: CondVar,
    #[pin]
    idle: CondVar,
    /// 0, or the negative error number of the failure.
    error: Atomic<i32>,
    /// Image reads that have to end before the area can be closed.
    reading: Atomic<usize>,
    /// Image reads that were done over.
    repeated: Atomic<u64>,
    storage: Arc<Storage>,
    queues: Arc<Queues>,
    reads: BioSet<OriginRead>,
    forwards: BioSet<ImageRead>,
    #[pin]
    lanes_work: Work<Area, LANES>,
    #[pin]
    as_root_work: Work<Area, AS_ROOT>,
    #[pin]
    store_work: Work<Area, STORE>,
    #[pin]
    image_work: Work<Area, IMAGE>,
    /// Runs while the storage is written.
    #[pin]
    store_timer: HrTimer<Area>,
}

const LANES: u64 = 0;
const AS_ROOT: u64 = 1;
const STORE: u64 = 2;
const IMAGE: u64 = 3;

impl_has_work! {
    impl HasWork<Self, 0> for Area { self.lanes_work }
    impl HasWork<Self, 1> for Area { self.as_root_work }
    impl HasWork<Self, 2> for Area { self.store_work }
    impl HasWork<Self, 3> for Area { self.image_work }
}

impl_has_hr_timer! {
    impl HasHrTimer<Self> for Area {
        mode: RelativeMode<Monotonic>, field: self.store_timer
    }
}

/// The workqueues of a snapshot.
pub(crate) struct Queues {
    /// For what writers wait for.
    writers: OwnedQueue,
    stores: OwnedQueue,
    /// Apart, since image reads may wait for memory that is free only when copies are stored.
    images: OwnedQueue,
}

impl Queues {
    /// May sleep.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            writers: OwnedQueue::new_mem_reclaim_highpri(c"blksnap_writers")?,
            stores: OwnedQueue::new_mem_reclaim(c"blksnap_stores")?,
            images: OwnedQueue::new_mem_reclaim(c"blksnap_images")?,
        })
    }

    /// Waits until the work that is queued now is done. May sleep.
    pub(crate) fn flush(&self) {
        self.images.flush();
        // Ahead of the writers, whose work it queues.
        self.stores.flush();
        self.writers.flush();
    }
}

/// What an [`Area`] needs.
pub(crate) struct Config {
    pub(crate) origin: Arc<BdevFile>,
    pub(crate) geometry: Geometry,
    pub(crate) max_copy_bytes: usize,
    pub(crate) storage: Arc<Storage>,
    pub(crate) queues: Arc<Queues>,
}

impl Area {
    /// Bios that are allocated ahead, for progress when memory is short.
    const RESERVE: u32 = 16;

    /// May sleep.
    pub(crate) fn new(config: Config) -> Result<Arc<Self>> {
        let geometry = config.geometry;
        let max_copy_bytes = config.max_copy_bytes.max(geometry.chunk_bytes());
        let max_copies = max_copy_bytes / geometry.chunk_bytes();
        let max_claim = geometry.max_run().min((max_copies as u64 / 4).max(1));
        let saved = SavedMap::new(geometry.nr_chunks())?;
        let read = KVVec::with_capacity(max_copies, GFP_KERNEL)?;
        let ahead_room = params::ahead_room(&config.storage.space());
        let lanes = Lanes::new()?;
        let reads = BioSet::new(Self::RESERVE)?;
        let forwards = BioSet::new(Self::RESERVE)?;
        Arc::pin_init(
            pin_init!(Self {
                origin: config.origin,
                geometry,
                max_copy_bytes,
                max_claim,
                saved,
                state <- new_spinlock_irq!(State {
                    claims: ExtentMap::new(),
                    map: ExtentMap::new(),
                    lanes,
                    read,
                    copies: 0,
                    copy_bytes: 0,
                    read_bytes: 0,
                    stored_bytes: 0,
                    ahead_bytes: 0,
                    ahead_room,
                    parked: 0,
                    peak_copy_bytes: 0,
                    peak_parked: 0,
                    storing: false,
                    starved: false,
                    images: BioList::new(),
                    active: 0,
                }, "blksnap_area"),
                gathered <- new_condvar!("blksnap_area_gathered"),
                idle <- new_condvar!("blksnap_area_idle"),
                error: Atomic::new(0),
                reading: Atomic::new(0),
                repeated: Atomic::new(0),
                storage: config.storage,
                queues: config.queues,
                reads,
                forwards,
                lanes_work <- new_work!("blksnap_lanes"),
                as_root_work <- new_work!("blksnap_as_root"),
                store_work <- new_work!("blksnap_store"),
                image_work <- new_work!("blksnap_image"),
                store_timer <- HrTimer::new(),
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(crate) fn origin(&self) -> &BdevFile {
        &self.origin
    }

    /// 0, or a negative error number if the image is broken.
    pub(crate) fn error(&self) -> i32 {
        self.error.load(Acquire)
    }

    fn check(&self) -> Result {
        match self.error() {
            0 => Ok(()),
            _ => Err(EIO),
        }
    }

    /// The image is broken from now on. Says so to the owner the first time. May be called in any
    /// context.
    pub(crate) fn fail(&self, error: Error, what: What) {
        if self.error.cmpxchg(0, error.to_errno(), Release).is_ok() {
            pr_err!("snapshot of {} is broken: {:?}\n", self.origin.dev(), error);
            self.storage.events().push(what);
        }
    }

    /// Ends the image: it can only be closed from now on. Does not sleep.
    pub(crate) fn shut(&self) {
        let _ = self.error.cmpxchg(0, ESHUTDOWN.to_errno(), Release);
    }

    fn fail_io(&self, error: Error) {
        self.fail(error, What::Corrupted(self.origin.dev(), error));
    }

    fn done(&self, state: &mut State, count: usize) {
        state.active -= count;
        if state.active == 0 {
            self.idle.notify_all();
        }
    }

    /// Whether a write may go to the origin right away. Does not sleep.
    #[inline]
    pub(crate) fn may_pass(&self, range: SectorRange) -> bool {
        let chunks = self.geometry.chunks_of(range);
        self.saved.first_unsaved(chunks).is_none() || self.error() != 0
    }

    /// Decides on a write that may not pass right away: claims what it overwrites and lets it wait
    /// for the copy. What cannot be had without sleeping is left to a worker. Does not sleep.
    pub(crate) fn intercept<'a>(
        this: ArcBorrow<'_, Self>,
        bio: FilteredBio<'a>,
        range: SectorRange,
    ) -> Verdict<'a> {
        let chunks = this.geometry.chunks_of(range);
        let mut prepared: Option<Copy<'_>> = None;
        loop {
            let mut state = this.state.lock();
            let run = match this.look_at(&state, chunks) {
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
                state.claim(&this, copy.claim, copy.run);
                state.ahead_bytes += this.geometry.bytes_of(copy.run) - this.geometry.bytes_of(run);
                let verdict = state.park_behind(start, bio);
                drop(state);
                verdict.submit_read(copy.read, OriginRead::Writer(this.into(), start));
                return verdict;
            }
            let grown = this.grown(&state, run);
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
    fn unsaved(&self, state: &State, chunks: ChunkRange) -> Option<(u64, Piece)> {
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
    fn is_free(&self, state: &State, chunks: ChunkRange) -> bool {
        match self.unsaved(state, chunks) {
            Some((start, Piece::Hole(end))) => ChunkRange { start, end } == chunks,
            _ => false,
        }
    }

    /// What to copy when `run` is written, which can be claimed: more than that if its region is
    /// written again and again, as long as that takes neither the memory nor the storage that
    /// writes may need. The more writes wait, the less it takes to be such a region: then it is the
    /// number of copies that limits them, not the time of one.
    fn grown(&self, state: &State, run: ChunkRange) -> ChunkRange {
        let Some(region) = self.geometry.region_of(run) else {
            return run;
        };
        let enough = (region.len() / 2 / (state.parked as u64 + 1)).max(REGION_TOUCHES);
        if self.saved.count(region) < enough {
            return run;
        }
        let unit = (GROWN_BYTES >> self.geometry.chunk_shift()).max(1);
        let start = run.start / unit * unit;
        let mut rest = ChunkRange {
            start,
            end: (start + unit).clamp(run.end, region.end),
        };
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
        let bytes = state.copy_bytes + self.geometry.bytes_of(hole);
        if bytes as u64 > state.ahead_room || bytes > self.max_copy_bytes / 8 * 7 {
            return run;
        }
        hole
    }

    /// Claims what `bio` is going to overwrite, and lets it wait for the copies or resubmits it.
    /// Gives it back if there is no room for more copies.
    fn claim_for(this: &Arc<Self>, bio: OwnedBio) -> Result<(), OwnedBio> {
        let Some(range) = this.origin.range_of(&bio) else {
            this.resubmit_one(bio);
            return Ok(());
        };
        let chunks = this.geometry.chunks_of(range);

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
                state.claim(this, copy.claim, run);
                drop(state);
                copy.read
                    .submit(OriginRead::Worker(this.clone(), run.start));
                rest.start = run.end;
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

    /// A read of chunks, ready to be submitted. Sleeps only if `flags` allow it.
    fn read_of(&self, run: ChunkRange, flags: Flags) -> Result<BioRead<'_, OriginRead>> {
        let bytes = self.geometry.bytes_of(run);
        let sectors = self.geometry.sectors_of(run);
        let len = (sectors.len << SECTOR_SHIFT) as usize;
        // What the last chunk has past the end of the device goes to the storage, too.
        let page_flags = if len < bytes {
            flags | __GFP_ZERO
        } else {
            flags
        };
        let pages = UniqueArc::new(Pages::alloc(bytes >> PAGE_SHIFT, page_flags)?, flags)?;
        self.reads
            .prepare_read(&self.origin, sectors.start, pages, len, flags)
    }

    /// Whether all that `bio` is going to overwrite is saved.
    fn is_saved(&self, bio: &Bio) -> bool {
        self.origin
            .range_of(bio)
            .is_none_or(|range| self.may_pass(range))
    }

    /// The old data of a claim was read, or the area has failed. Does not sleep.
    fn copied(this: Arc<Self>, start: u64, pages: UniqueArc<Pages>) {
        let mut state = this.state.lock();
        // It stays claimed until this.
        let Some((chunks, mut claim)) = state.claims.remove(start) else {
            return;
        };
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
        let storing = core::mem::replace(&mut state.storing, true);
        let enough = state.read_bytes >= GATHER_BYTES;
        // Before what was read can be stored and the area be closed, since the queues may go then.
        Self::start_workers(this.as_arc_borrow(), &mut state);
        drop(state);
        if !storing {
            let _ = this.queues.stores.enqueue::<Arc<Self>, STORE>(this.clone());
        } else if enough {
            this.gathered.notify_all();
        }
    }

    /// The old data of a claim could not be read without waiting, which its writer must not, or
    /// there was an error, which may be that of a chunk that nobody writes: a worker claims again
    /// what the waiting writes need. Does not sleep.
    fn not_copied(this: Arc<Self>, start: u64) {
        let mut state = this.state.lock();
        if let Some((chunks, mut claim)) = state.claims.remove(start) {
            while let Some(bio) = claim.waiting.pop() {
                state.lanes.push_taken(bio);
            }
            state.copies -= 1;
            state.copy_bytes -= this.geometry.bytes_of(chunks);
        }
        // Before the area can be closed, since the queues may go then.
        Self::unstall(this.as_arc_borrow(), &mut state);
        this.done(&mut state, 1);
    }

    /// There may be room for more copies, or the area has failed: the workers go on.
    fn unstall(this: ArcBorrow<'_, Self>, state: &mut State) {
        state.starved = false;
        state.lanes.unstall();
        Self::start_workers(this, state);
    }

    /// Moves what is in memory to the storage.
    fn store_all(this: &Arc<Self>) {
        loop {
            let mut state = this.state.lock();
            if state.read_bytes < GATHER_BYTES && !state.starved && this.error() == 0 {
                let _ = this
                    .gathered
                    .wait_interruptible_timeout(&mut state, msecs_to_jiffies(GATHER_MSECS));
            }
            if state.read.is_empty() {
                state.storing = false;
                return;
            }
            drop(state);
            let timer = this.clone().start(params::storage_timeout());
            let stored = this.store_batch();
            drop(timer);
            if let Err(e) = stored {
                if this.error() == 0 {
                    this.fail_io(e);
                }
                this.forget_copies();
            }
            let mut state = this.state.lock();
            if state.starved {
                Self::unstall(this.as_arc_borrow(), &mut state);
            }
        }
    }

    fn store_batch(&self) -> Result {
        self.check()?;
        let count = self.state.lock().read.len();
        // Where pages are larger than 4 KiB, a chunk can be more than that.
        let count = count.min((STORE_BYTES / self.geometry.chunk_bytes()).max(1));
        let mut starts = KVec::with_capacity(count, GFP_NOIO)?;
        let mut pages: KVec<Arc<Pages>> = KVec::with_capacity(count, GFP_NOIO)?;
        let mut len = 0;
        let max = STORE_BYTES.min(self.storage.room(Geometry::MAX_BYTES));
        {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            for start in state.read.iter().take(count) {
                if let Some((_, Old::Memory(old))) = state.map.get_mut(*start) {
                    if len > 0 && len + old.len() > max {
                        break;
                    }
                    len += old.len();
                    let _ = starts.push_within_capacity(*start);
                    let _ = pages.push_within_capacity(old.clone());
                }
            }
        }

        let mut refs = KVec::with_capacity(pages.len(), GFP_NOIO)?;
        for pages in &pages {
            refs.push(&**pages, GFP_NOIO)?;
        }
        let mut at = self.storage.append(&refs, len).inspect_err(|e| {
            if *e == ENOSPC {
                self.fail(*e, What::NoSpace((len >> SECTOR_SHIFT) as u64));
            }
        })?;

        let ahead_room = params::ahead_room(&self.storage.space());
        let mut state = self.state.lock();
        state.ahead_room = ahead_room;
        // They are in the same order.
        let mut gone = starts.iter().peekable();
        state
            .read
            .retain(|start| gone.next_if_eq(&&*start).is_none());
        for (start, pages) in starts.iter().zip(&pages) {
            if let Some((_, place)) = state.map.get_mut(*start) {
                *place = Old::Stored {
                    at,
                    chunk_shift: self.geometry.chunk_shift(),
                };
            }
            at += pages.len() as u64;
            state.map.merge(*start);
        }
        state.copies -= starts.len();
        state.copy_bytes -= len;
        state.read_bytes -= len;
        state.stored_bytes += len as u64;
        self.done(&mut state, starts.len());
        Ok(())
    }

    /// The area has failed: gives the memory of the copies back.
    fn forget_copies(&self) {
        loop {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            let Some(start) = state.read.pop() else {
                return;
            };
            let old = state.map.remove(start);
            if let Some((_, Old::Memory(pages))) = &old {
                state.copies -= 1;
                state.copy_bytes -= pages.len();
                state.read_bytes -= pages.len();
            }
            self.done(state, 1);
            drop(guard);
            drop(old);
        }
    }

    /// A bio for the image. May sleep for memory.
    pub(crate) fn read_image(this: ArcBorrow<'_, Self>, mut bio: OwnedBio) {
        if bio.op() != Op::Read || this.check().is_err() {
            return bio.end(Err(EIO));
        }
        let chunks = this.geometry.chunks_of(SectorRange {
            start: bio.sector(),
            len: bio.sectors(),
        });
        this.reading.fetch_add(1, Relaxed);
        if this.saved.first_saved(chunks).is_none() {
            let read = ImageRead::Origin(this.into(), chunks);
            let sector = bio.sector();
            return this
                .forwards
                .forward(&this.origin, sector, bio, read, GFP_NOIO);
        }
        let found = {
            let state = this.state.lock();
            match state.map.lookup(chunks) {
                Piece::Extent(found) if found.end >= chunks.end => {
                    state.map.get(found.start).map(|old| match old {
                        Old::Memory(pages) => (found, Found::Memory(pages.clone())),
                        Old::Stored { at, .. } => (found, Found::Stored(*at)),
                    })
                }
                _ => None,
            }
        };
        // The bio's place in what was found, in bytes
        let offset =
            |found: ChunkRange| (bio.sector() << SECTOR_SHIFT) - this.geometry.byte_of(found.start);
        let stored = match &found {
            Some((found, Found::Stored(at))) => {
                this.storage.device(at + offset(*found), bio.size() as u64)
            }
            _ => None,
        };
        match (found, stored) {
            (Some((found, Found::Memory(pages))), _) => {
                let result = bio.copy_from_pages(0, &pages, offset(found) as usize, bio.size());
                this.end_image(bio, result);
            }
            (_, Some((device, sector))) if this.can_read_from(device) => {
                let read = ImageRead::Stored(this.into());
                this.forwards.forward(device, sector, bio, read, GFP_NOIO);
            }
            _ => Self::put_off(this.into(), bio),
        }
    }

    /// What the memory of an image read must be aligned to.
    pub(crate) fn dma_alignment(&self) -> u32 {
        self.origin.dma_alignment().max(1 << SECTOR_SHIFT)
    }

    /// Whether image reads can go to a device of the storage as they are.
    fn can_read_from(&self, device: &BdevFile) -> bool {
        device.logical_block_size() <= self.origin.logical_block_size()
            && device.dma_alignment() <= self.dma_alignment()
    }

    /// Leaves an image read to a worker. Does not sleep.
    fn put_off(this: Arc<Self>, bio: OwnedBio) {
        let images = &this.queues.images;
        let area = this.clone();
        // With the lock, or another worker could serve it first, and the area be closed.
        let mut state = this.state.lock();
        state.images.push(bio);
        // Several at once, as long as there is memory for that.
        let spawned = images.try_spawn(GFP_NOWAIT, move || Self::read_images(&area));
        if spawned.is_err() {
            let _ = images.enqueue::<Arc<Self>, IMAGE>(this.clone());
        }
    }

    fn end_image(&self, bio: OwnedBio, result: Result) {
        bio.end(result.and_then(|()| self.check()));
        if self.reading.fetch_sub(1, Full) == 1 && self.error() != 0 {
            // Under the lock, so that who closes the area does not miss it.
            let _state = self.state.lock();
            self.idle.notify_all();
        }
    }

    /// Whether a read of `chunks` from the origin, which is done, may have got new data.
    fn is_overtaken(&self, chunks: ChunkRange) -> bool {
        // The bits are set before a write is released. So if that was early enough for the read to
        // get what it wrote, they are seen here. In an area that has failed they are not set any
        // more, but there the error is seen.
        smp_mb(Read);
        self.error() == 0 && self.saved.first_saved(chunks).is_some()
    }

    /// An image read from the origin is done. Does not sleep.
    fn forwarded(this: Arc<Self>, chunks: ChunkRange, bio: OwnedBio, result: Result) {
        if this.is_overtaken(chunks) && !debug::trusts_reads() {
            this.repeated.fetch_add(1, Relaxed);
            Self::put_off(this, bio);
        } else {
            this.end_image(bio, result);
        }
    }

    /// Serves the image reads that need more than the origin.
    fn read_images(this: &Arc<Self>) {
        loop {
            let bio = this.state.lock().images.pop();
            let Some(mut bio) = bio else {
                return;
            };
            let result = Self::read_pieces(this, &mut bio);
            this.end_image(bio, result);
        }
    }

    fn read_pieces(this: &Arc<Self>, bio: &mut OwnedBio) -> Result {
        let geometry = this.geometry;
        let start = bio.sector() << SECTOR_SHIFT;
        let end = start + bio.size() as u64;
        let mut at = start;

        while at < end {
            this.check()?;
            let mut rest = geometry.chunks_of(SectorRange {
                start: at >> SECTOR_SHIFT,
                len: (end - at) >> SECTOR_SHIFT,
            });
            rest.end = rest.end.min(rest.start + geometry.max_run());
            // Under the lock only what is needed to go on without it.
            let (chunks, old) = {
                let state = this.state.lock();
                match state.map.lookup(rest) {
                    Piece::Hole(end) => (ChunkRange { end, ..rest }, Found::Origin),
                    Piece::Extent(found) => match state.map.get(found.start).ok_or(EIO)? {
                        Old::Memory(pages) => (found, Found::Memory(pages.clone())),
                        Old::Stored { at, .. } => (
                            ChunkRange {
                                start: rest.start,
                                end: found.end.min(rest.end),
                            },
                            Found::Stored(*at + geometry.byte_of(rest.start - found.start)),
                        ),
                    },
                }
            };
            let first = geometry.byte_of(chunks.start);
            let to = end.min(geometry.byte_of(chunks.end));
            let mut copy = |pages: &Pages| {
                bio.copy_from_pages(
                    (at - start) as usize,
                    pages,
                    (at - first) as usize,
                    (to - at) as usize,
                )
            };
            match old {
                Found::Memory(pages) => copy(&pages)?,
                Found::Stored(place) => {
                    let len = geometry.bytes_of(chunks);
                    let mut pages = Pages::alloc(len >> PAGE_SHIFT, GFP_NOIO)?;
                    this.storage.read(place, &mut pages, len)?;
                    copy(&pages)?;
                }
                Found::Origin => {
                    let pages = this.read_origin(chunks)?;
                    // What was saved meanwhile is in memory or stored at the next look.
                    if this.is_overtaken(chunks) {
                        continue;
                    }
                    copy(&pages)?;
                }
            }
            at = to;
        }
        Ok(())
    }

    /// Reads chunks from the origin, and waits for it.
    fn read_origin(&self, chunks: ChunkRange) -> Result<UniqueArc<Pages>> {
        let waiter = Arc::pin_init(Waiter::new(), GFP_NOIO)?;
        self.read_of(chunks, GFP_NOIO)?
            .submit(OriginRead::Wait(waiter.clone()));
        waiter.done.wait_for_completion();
        let (pages, result) = waiter.result.lock().take().ok_or(EIO)?;
        result.map(|()| pages)
    }

    /// Writes the figures for debugfs. May sleep.
    pub(crate) fn write_figures(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        let extents = state.map.count();
        let (copy_bytes, peak_copy_bytes) = (state.copy_bytes, state.peak_copy_bytes);
        let (parked, peak_parked) = (state.parked, state.peak_parked);
        let (stored_bytes, ahead_bytes) = (state.stored_bytes, state.ahead_bytes);
        drop(state);

        f.write_fmt(fmt!("origin {}\n", self.origin.dev()))?;
        writeln!(f, "error {}", self.error())?;
        writeln!(f, "chunk_bytes {}", self.geometry.chunk_bytes())?;
        writeln!(f, "extents {extents}")?;
        writeln!(f, "saved_map_bytes {}", self.saved.memory())?;
        writeln!(f, "copy_bytes {copy_bytes}")?;
        writeln!(f, "copy_bytes_peak {peak_copy_bytes}")?;
        writeln!(f, "stored_bytes {stored_bytes}")?;
        writeln!(f, "copied_ahead_bytes {ahead_bytes}")?;
        writeln!(f, "parked_writes {parked}")?;
        writeln!(f, "parked_writes_peak {peak_parked}")?;
        writeln!(f, "image_reads_repeated {}", self.repeated.load(Relaxed))
    }

    /// Ends the area: no writes are parked any more and the image gives errors. The device's filter
    /// and the image's disk have no use of it any more. May sleep.
    pub(crate) fn close(this: &Arc<Self>) {
        this.shut();
        // With the full order in `end_image`: it sees that, or its read is seen to have ended.
        smp_mb(Full);
        this.gathered.notify_all();
        let mut state = this.state.lock();
        Self::unstall(this.as_arc_borrow(), &mut state);
        while state.active > 0 || this.reading.load(Relaxed) > 0 {
            this.idle.wait(&mut state);
        }
    }
}

impl State {
    /// Claims free chunks, which are going to be read.
    fn claim(&mut self, area: &Area, claim: NewClaim, chunks: ChunkRange) {
        let NewClaim {
            claim,
            extent,
            leaves,
        } = claim;
        let waiting = BioList::new();
        area.saved.reserve(leaves);
        self.claims.insert(claim, chunks, Claim { waiting, extent });
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
enum Look {
    /// Nothing.
    Passes,
    /// It waits for this claim.
    Waits(ChunkRange),
    /// These chunks have to be claimed, first of all.
    Claims(ChunkRange),
}

/// Memory for a claim, for the extent that it becomes, and for the bits of its chunks.
struct NewClaim {
    claim: NewExtent<Claim>,
    extent: NewExtent<Old>,
    leaves: NewLeaves,
}

/// All that is needed to claim chunks and read them, allocated ahead.
struct Copy<'a> {
    run: ChunkRange,
    claim: NewClaim,
    read: BioRead<'a, OriginRead>,
}

impl<'a> Copy<'a> {
    fn new(area: &'a Area, bio: &Bio, run: ChunkRange, flags: Flags) -> Result<Self> {
        Ok(Self {
            run,
            claim: NewClaim {
                claim: NewExtent::new(flags)?,
                extent: NewExtent::new(flags)?,
                leaves: area.saved.prepare(run, flags)?,
            },
            read: area.read_of(run, flags)?.on_behalf_of(bio),
        })
    }
}

/// Where a piece of an image read was found.
enum Found {
    Origin,
    Memory(Arc<Pages>),
    Stored(u64),
}

/// Somebody who waits for a read.
#[pin_data]
struct Waiter {
    #[pin]
    done: Completion,
    #[pin]
    result: SpinLockIrq<Option<(UniqueArc<Pages>, Result)>>,
}

impl Waiter {
    fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            done <- Completion::new(),
            result <- new_spinlock_irq!(None, "blksnap_waiter"),
        })
    }
}

/// A read from the origin into memory of ours.
enum OriginRead {
    /// Of the claim that starts at this chunk, submitted by the task that writes.
    Writer(Arc<Area>, u64),
    /// The same, submitted by a worker.
    Worker(Arc<Area>, u64),
    Wait(Arc<Waiter>),
}

#[vtable]
impl EndIo for OriginRead {
    type Held = UniqueArc<Pages>;

    fn end_io(self, pages: UniqueArc<Pages>, result: Result) {
        match self {
            OriginRead::Writer(area, start) if result.is_err() => Area::not_copied(area, start),
            OriginRead::Writer(area, start) => Area::copied(area, start, pages),
            OriginRead::Worker(area, start) => {
                // Ahead of the release of the writes, so that no image read misses it.
                if let Err(e) = result {
                    area.fail_io(e);
                }
                Area::copied(area, start, pages)
            }
            OriginRead::Wait(waiter) => {
                *waiter.result.lock() = Some((pages, result));
                waiter.done.complete_all();
            }
        }
    }
}

/// An image read that goes to a device as it is.
enum ImageRead {
    /// To the origin, for these chunks.
    Origin(Arc<Area>, ChunkRange),
    /// To the storage.
    Stored(Arc<Area>),
}

#[vtable]
impl EndIo for ImageRead {
    type Held = OwnedBio;

    fn end_io(self, bio: OwnedBio, result: Result) {
        match self {
            ImageRead::Origin(area, chunks) => Area::forwarded(area, chunks, bio, result),
            ImageRead::Stored(area) => area.end_image(bio, result),
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

impl WorkItem<STORE> for Area {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        Self::store_all(&this);
    }
}

impl HrTimerCallback for Area {
    type Pointer<'a> = Arc<Self>;

    /// A write to the storage takes long.
    fn run(
        this: ArcBorrow<'_, Self>,
        mut timer: HrTimerCallbackContext<'_, Self>,
    ) -> HrTimerRestart {
        if !this.state.lock().starved {
            timer.forward_now(params::storage_timeout());
            return HrTimerRestart::Restart;
        }
        this.fail_io(ETIMEDOUT);
        Self::unstall(this, &mut this.state.lock());
        HrTimerRestart::NoRestart
    }
}

impl WorkItem<IMAGE> for Area {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        Self::read_images(&this);
    }
}

const _: () = assert!(size_of::<Old>() <= 16);
