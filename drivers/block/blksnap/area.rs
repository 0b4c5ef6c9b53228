// SPDX-License-Identifier: GPL-2.0-only

//! The difference area: what keeps the content that one device had when its snapshot was taken.
//!
//! The chunks of a write that are not saved are claimed, which makes an extent of them, and their
//! old data is read from the origin: submitted in the filter, or by a worker if the write is large,
//! memory is short or there are too many copies. The write is taken. When the read is done the
//! chunks are saved, and a worker resubmits the write. The data goes from memory to the difference
//! storage afterwards, gathered into large writes. What is where, and what follows from it, [`Cow`]
//! knows; here is what does it.
//!
//! Reads are accounted to the control group of the write, but not delayed by its limits: writes of
//! other groups may wait for the same chunks, or for memory.
//!
//! A write is released only when all of its chunks are saved. So as long as a chunk is not saved,
//! the origin has its old data. An image read from the origin is checked when it completes: if
//! one of its chunks was saved meanwhile it is repeated.
//!
//! In a region that is written often more is copied at a time: the chunks around the written one,
//! if a longer read costs little. The chunks after sequential writes are copied ahead of them, in
//! claims of their own.
//!
//! Copy-on-write is in `copy`, copies of more than that in `ahead`, their memory in `memory`,
//! moving copies to the storage in `store`, image reads in `images`.
//!
//! On any error the area fails for good: writes pass, image reads return an error. A store that
//! does not complete while origin writes wait for it is an error, too.
//!
//! # Locking
//!
//! `state` is a leaf lock, also taken where bios complete. The saved bits are set under it, and
//! read without it: neither a write to saved chunks nor an image read of others takes a lock.
//! `spares` is another leaf lock, and never taken with the first one.

mod ahead;
mod copy;
mod images;
mod memory;
mod store;

use self::{
    copy::ClaimRead,
    images::{
        ImageRead,
        RepeatedRead, //
    },
    memory::Spares,
    store::Limits, //
};
use crate::{
    ahead::{
        Begun,
        Costs,
        Streams,
        NO_MARK,
        STREAMS, //
    },
    budget::{
        Budget,
        Charge,
        Level, //
    },
    change_map::Selection,
    chunk::{
        ChunkRange,
        Geometry, //
    },
    copy_memory::CopyMemory,
    cow::Cow,
    event::What,
    holds::{
        Held,
        Holds, //
    },
    lanes::Lanes,
    params,
    status::Status,
    storage::Storage,
    taken::TakenList,
    trace, //
};
use kernel::{
    alloc::Flags,
    block::{
        bdev::{
            BdevFile,
            SectorRange, //
        },
        bio::{
            BioList,
            BioRead,
            BioSet,
            EndIo, //
        },
        SECTOR_SHIFT, //
    },
    fmt,
    new_condvar,
    new_spinlock_irq,
    page::{
        Pages,
        PAGE_SHIFT, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        barrier::smp_mb,
        Arc,
        CondVar,
        SetOnce,
        SpinLockIrq,
        UniqueArc, //
    },
    time::{
        Instant,
        Monotonic, //
    },
    uapi,
    workqueue::{
        impl_has_work,
        new_work,
        OwnedQueue,
        Work, //
    }, //
};

/// Chunks whose old data is being read from the origin.
struct Claim {
    /// Writes that wait for it.
    waiting: TakenList,
    begun: Begun,
}

struct State {
    cow: Cow<Claim, Arc<Pages>>,
    /// Writes that were taken and are not behind a claim.
    lanes: Lanes,
    ahead: Ahead,
    stores: Stores,
    /// The memory of the maps, as it was counted last.
    maps: Charge,
    holds: Holds,
    /// Image reads that need more than the origin.
    images: BioList,
}

/// Copying ahead of writes.
struct Ahead {
    streams: Streams,
    costs: Costs,
    /// Bytes that were claimed so.
    bytes: usize,
    /// Bytes of the storage that it can still use.
    room: u64,
}

/// Workers that store copies.
struct Stores {
    running: usize,
    /// One of them waits for more copies.
    gathering: bool,
    limits: Limits,
}

/// The name of an image's disk, padded with zeroes.
pub(crate) type ImageName = [u8; uapi::BLKSNAP_IMAGE_NAME_LEN as usize];

/// The difference area of a device.
#[pin_data]
pub(crate) struct Area {
    origin: Arc<BdevFile>,
    geometry: Geometry,
    /// What the image has of the device, if not all.
    selection: Option<Selection>,
    image_name: SetOnce<ImageName>,
    status: Status,
    #[pin]
    state: SpinLockIrq<State>,
    #[pin]
    spares: SpinLockIrq<Spares>,
    #[pin]
    gathered: CondVar,
    #[pin]
    idle: CondVar,
    /// Chunks a write to which triggers copies ahead of a stream, even if they are saved.
    marks: [Atomic<u64>; STREAMS],
    /// Image reads and others that have to end before the area can be closed.
    users: Atomic<usize>,
    /// Image reads that were repeated.
    repeated: Atomic<u64>,
    /// Bytes of discards that were ignored.
    ignored_bytes: Atomic<u64>,
    storage: Arc<Storage>,
    map_memory: Arc<Budget>,
    queues: Arc<Queues>,
    reads: BioSet<ClaimRead>,
    forwards: BioSet<ImageRead>,
    repeats: BioSet<RepeatedRead>,
    #[pin]
    lanes_work: Work<Area, LANES>,
    #[pin]
    as_root_work: Work<Area, AS_ROOT>,
    #[pin]
    store_work: Work<Area, STORE>,
    #[pin]
    image_work: Work<Area, IMAGE>,
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
    pub(crate) selection: Option<Selection>,
    pub(crate) copy_memory: Arc<CopyMemory>,
    pub(crate) storage: Arc<Storage>,
    pub(crate) map_memory: Arc<Budget>,
    pub(crate) queues: Arc<Queues>,
}

impl Area {
    /// Bios that are allocated ahead, for progress when memory is short.
    const RESERVE: u32 = 16;

    /// May sleep.
    pub(crate) fn new(config: Config) -> Result<Arc<Self>> {
        let geometry = config.geometry;
        let status = Status::new(geometry.nr_chunks(), &config.map_memory)?;
        let cow = config
            .map_memory
            .account(|| Cow::new(geometry, config.copy_memory))?;
        let rotational = config.origin.is_rotational();
        let shares_disk = config.storage.shares_disk(&config.origin);
        let ahead = Ahead {
            streams: Streams::new(),
            costs: Costs::new(rotational, shares_disk),
            bytes: 0,
            room: params::ahead_room(&config.storage.space()),
        };
        let limits = Limits::new(cow.memory().most(), shares_disk, rotational);
        let spares = Spares::new(cow.memory().own(), geometry.chunk_bytes())?;
        let lanes = Lanes::new()?;
        let reads = BioSet::new(Self::RESERVE)?;
        let forwards = BioSet::new(Self::RESERVE)?;
        let repeats = BioSet::new(Self::RESERVE)?;
        Arc::pin_init(
            pin_init!(Self {
                origin: config.origin,
                geometry,
                selection: config.selection,
                image_name: SetOnce::new(),
                status,
                state <- new_spinlock_irq!(State {
                    cow,
                    lanes,
                    ahead,
                    stores: Stores {
                        running: 0,
                        gathering: false,
                        limits,
                    },
                    maps: Charge::default(),
                    holds: Holds::new(),
                    images: BioList::new(),
                }, "blksnap_area"),
                spares <- new_spinlock_irq!(spares, "blksnap_spares"),
                gathered <- new_condvar!("blksnap_area_gathered"),
                idle <- new_condvar!("blksnap_area_idle"),
                marks: [const { Atomic::new(NO_MARK) }; STREAMS],
                users: Atomic::new(0),
                repeated: Atomic::new(0),
                ignored_bytes: Atomic::new(0),
                storage: config.storage,
                map_memory: config.map_memory,
                queues: config.queues,
                reads,
                forwards,
                repeats,
                lanes_work <- new_work!("blksnap_lanes"),
                as_root_work <- new_work!("blksnap_as_root"),
                store_work <- new_work!("blksnap_store"),
                image_work <- new_work!("blksnap_image"),
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

    /// Whether the image has something of `chunks`. Does not sleep.
    #[inline]
    pub(crate) fn keeps_some(&self, chunks: ChunkRange) -> bool {
        self.selection
            .as_ref()
            .is_none_or(|selection| selection.has_some(self.geometry.sectors_of(chunks)))
    }

    /// The chunks around `run` which are all in `within`, and of which the image has something.
    fn kept_around(&self, run: ChunkRange, within: ChunkRange) -> ChunkRange {
        let is_kept = |&chunk: &u64| {
            self.keeps_some(ChunkRange {
                start: chunk,
                end: chunk + 1,
            })
        };
        if !self.is_selective() {
            return within;
        }
        ChunkRange {
            start: run.start - (within.start..run.start).rev().take_while(is_kept).count() as u64,
            end: run.end + (run.end..within.end).take_while(is_kept).count() as u64,
        }
    }

    /// Whether the image has all of `range`.
    fn keeps_all(&self, range: SectorRange) -> bool {
        self.selection
            .as_ref()
            .is_none_or(|selection| selection.has_all(range))
    }

    /// Whether there are blocks that the image does not have.
    pub(crate) fn is_selective(&self) -> bool {
        self.selection.is_some()
    }

    /// The name of the image's disk, or zeroes if there is none yet.
    pub(crate) fn image_name(&self) -> ImageName {
        self.image_name.as_ref().copied().unwrap_or_default()
    }

    /// There is an image with that name now.
    ///
    /// # Errors
    ///
    /// [`EOVERFLOW`], but a disk's name is shorter than that.
    pub(crate) fn set_image_name(&self, name: &CStr) -> Result {
        let bytes = name.to_bytes();
        let mut padded = ImageName::default();
        padded
            .get_mut(..bytes.len())
            .ok_or(EOVERFLOW)?
            .copy_from_slice(bytes);
        self.image_name.populate(padded);
        Ok(())
    }

    /// 0, or a negative error number if the image is broken.
    pub(crate) fn error(&self) -> i32 {
        self.status.error()
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
        if self.status.fail(error) {
            trace::broken(self.origin.dev(), error);
            pr_err!("snapshot of {} is broken: {:?}\n", self.origin.dev(), error);
            self.storage.events().push(what);
        }
    }

    /// Ends the image: it can only be closed from now on. Does not sleep.
    pub(crate) fn shut(&self) {
        let _ = self.status.fail(ESHUTDOWN);
    }

    pub(crate) fn fail_io(&self, error: Error) {
        self.fail(error, What::Corrupted(self.origin.dev(), error));
    }

    /// The time for `Costs` and `Holds`, in ns.
    fn now(&self) -> u64 {
        Instant::<Monotonic>::now().as_nanos().max(0) as u64
    }

    /// To be called when a write was resubmitted or a copy is done with.
    fn notify_idle(&self, state: &State) {
        if state.cow.is_idle() {
            self.idle.notify_all();
        }
    }

    /// Counts the memory of the maps. Gives the snapshot up if it is too much.
    fn count_maps(&self, state: &mut State) {
        let bytes = state.cow.stored_map().memory() + self.status.saved().memory();
        if self.map_memory.charge(&mut state.maps, bytes) == Level::Over {
            self.fail_io(EDQUOT);
        }
    }

    /// Writers are stalled: their wait counts from now on if it is for the storage.
    fn begin_hold(&self, state: &mut State) {
        if state.is_held_for_storage() {
            state.holds.begin(self.now());
        }
    }

    /// Counts how long writers were held for the storage until now.
    fn count_hold(&self, state: &mut State) {
        self.storage
            .events()
            .add_held(state.holds.count(self.now()));
    }

    /// Gives the snapshot up if its storage is too slow for the writers, or tells that it is slow.
    fn judge_storage(&self, state: &mut State) {
        self.count_hold(state);
        let limit = params::hold_writers_ms();
        match state.holds.judge(limit) {
            Held::Shortly => {}
            Held::Long(held) => {
                let dev = self.origin.dev();
                pr_warn!("snapshot of {dev}: its storage is slow, writers have waited {held} ms\n");
                self.storage
                    .events()
                    .push(What::SlowStorage(dev, held, limit));
            }
            Held::TooLong => self.fail_io(ETIMEDOUT),
        }
    }

    /// A read of chunks from the origin, ready to be submitted. Sleeps only if `flags` allow it.
    fn read_of<'a, T: EndIo<Held = UniqueArc<Pages>>>(
        &'a self,
        set: &'a BioSet<T>,
        run: ChunkRange,
        flags: Flags,
    ) -> Result<BioRead<'a, T>> {
        self.read_into(set, run, self.pages_for(run, flags)?, flags)
    }

    /// The same, into pages of [`Self::pages_for`].
    fn read_into<'a, T: EndIo<Held = UniqueArc<Pages>>>(
        &'a self,
        set: &'a BioSet<T>,
        run: ChunkRange,
        pages: UniqueArc<Pages>,
        flags: Flags,
    ) -> Result<BioRead<'a, T>> {
        let sectors = self.geometry.sectors_of(run);
        let len = (sectors.len << SECTOR_SHIFT) as usize;
        set.prepare_read(&self.origin, sectors.start, pages, len, flags)
    }

    /// Pages for the content of chunks. Sleeps only if `flags` allow it.
    fn pages_for(&self, run: ChunkRange, flags: Flags) -> Result<UniqueArc<Pages>> {
        let bytes = self.geometry.bytes_of(run);
        let len = (self.geometry.sectors_of(run).len << SECTOR_SHIFT) as usize;
        // What the last chunk has past the end of the device goes to the storage, too.
        let page_flags = if len < bytes {
            flags | __GFP_ZERO
        } else {
            flags
        };
        let pages = Pages::alloc(bytes >> PAGE_SHIFT, page_flags)?;
        Ok(UniqueArc::new(pages, flags)?)
    }

    /// Writes the figures for debugfs. May sleep.
    pub(crate) fn write_figures(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut state = self.state.lock();
        let extents = state.cow.stored_map().count();
        let extent_bytes = state.cow.stored_map().memory();
        let counts = state.cow.counts();
        let ahead_bytes = state.ahead.bytes;
        let costs = state.ahead.costs.of(1 << 20);
        self.count_hold(&mut state);
        let held = state.holds.last_minute();
        drop(state);

        f.write_fmt(fmt!("origin {}\n", self.origin.dev()))?;
        writeln!(f, "error {}", self.error())?;
        writeln!(f, "chunk_bytes {}", self.geometry.chunk_bytes())?;
        writeln!(f, "extents {extents}")?;
        writeln!(f, "extent_bytes {extent_bytes}")?;
        writeln!(f, "lost_chunks {}", self.status.lost())?;
        writeln!(f, "saved_map_bytes {}", self.status.saved().memory())?;
        writeln!(f, "copy_bytes {}", counts.copy_bytes)?;
        writeln!(f, "copy_bytes_peak {}", counts.peak_copy_bytes)?;
        writeln!(f, "stored_bytes {}", counts.stored_bytes)?;
        writeln!(f, "copied_ahead_bytes {ahead_bytes}")?;
        let (read_ns, mib_ns) = costs.unwrap_or_default();
        writeln!(f, "read_ns {read_ns}")?;
        writeln!(f, "read_mib_ns {mib_ns}")?;
        writeln!(f, "parked_writes {}", counts.parked)?;
        writeln!(f, "parked_writes_peak {}", counts.peak_parked)?;
        writeln!(f, "held_ms {held}")?;
        writeln!(f, "image_reads_repeated {}", self.repeated.load(Relaxed))?;
        writeln!(
            f,
            "ignored_discard_bytes {}",
            self.ignored_bytes.load(Relaxed)
        )
    }

    /// Ends the area: no writes are parked any more and the image gives errors. The device's filter
    /// and the image's disk have no use of it any more. May sleep.
    pub(crate) fn close(this: &Arc<Self>) {
        this.shut();
        // With the full order in `end_use`: it sees that, or its read is seen to have ended.
        smp_mb(Full);
        this.gathered.notify_all();
        let mut state = this.state.lock();
        Self::unstall(this.as_arc_borrow(), &mut state);
        while !state.cow.is_idle() || this.users.load(Relaxed) > 0 {
            this.idle.wait(&mut state);
        }
    }
}
