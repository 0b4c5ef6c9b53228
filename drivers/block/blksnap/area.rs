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
//! the origin has its old data. An image read from the origin is checked when it completes: if
//! one of its chunks was saved meanwhile it is repeated.
//!
//! In a region that is written often more is copied at a time: the chunks around the written one,
//! if a longer read costs little. The chunks after sequential writes are copied ahead of them, in
//! claims of their own.
//!
//! Copy-on-write is in `copy`, copies of more than that in `ahead`, moving copies to the storage in
//! `store`, image reads in `images`.
//!
//! On any error the area fails for good: writes pass, image reads return an error. A store that
//! does not complete while origin writes wait for it is an error, too.
//!
//! # Locking
//!
//! `state` is a leaf lock, also taken where bios complete. The saved bits are set under it, and
//! read without it: neither a write to saved chunks nor an image read of others takes a lock.

mod ahead;
mod copy;
mod images;
mod store;

use self::{
    copy::ClaimRead,
    images::{
        ImageRead,
        RepeatedRead, //
    }, //
};
use crate::{
    ahead::{
        Begun,
        Costs,
        Streams,
        NO_MARK,
        STREAMS, //
    },
    chunk::{
        ChunkRange,
        Geometry, //
    },
    event::What,
    extent_map::{
        ExtentMap,
        NewExtent,
        Place, //
    },
    lanes::Lanes,
    params,
    saved_map::SavedMap,
    storage::Storage, //
};
use kernel::{
    alloc::Flags,
    block::{
        bdev::BdevFile,
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
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        barrier::smp_mb,
        Arc,
        CondVar,
        SpinLockIrq,
        UniqueArc, //
    },
    time::{
        Instant,
        Monotonic, //
    },
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
    waiting: BioList,
    /// Memory for the extent that it becomes.
    extent: NewExtent<Old>,
    begun: Begun,
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
    /// The bytes in `read`: those that no worker has taken.
    read_bytes: usize,
    /// Number of bytes that were stored.
    stored_bytes: u64,
    streams: Streams,
    costs: Costs,
    /// Number of bytes that were claimed ahead of writes.
    ahead_bytes: usize,
    /// Bytes of the storage that copies ahead can still use.
    ahead_room: u64,
    /// Writes that were taken and not released yet.
    parked: usize,
    /// The most there were of these at a time.
    peak_copy_bytes: usize,
    peak_parked: usize,
    /// Workers that store copies, and whether one of them waits for more.
    storing: usize,
    gathering: bool,
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
    /// Chunks a write to which triggers copies ahead of a stream, even if they are saved.
    marks: [Atomic<u64>; STREAMS],
    /// 0, or the negative error number of the failure.
    error: Atomic<i32>,
    /// Image reads that have to end before the area can be closed.
    reading: Atomic<usize>,
    /// Image reads that were repeated.
    repeated: Atomic<u64>,
    /// Bytes of discards that were ignored.
    ignored_bytes: Atomic<u64>,
    storage: Arc<Storage>,
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
        let rotational = config.origin.is_rotational();
        let shares_disk = config.storage.shares_disk(&config.origin);
        let lanes = Lanes::new()?;
        let reads = BioSet::new(Self::RESERVE)?;
        let forwards = BioSet::new(Self::RESERVE)?;
        let repeats = BioSet::new(Self::RESERVE)?;
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
                    streams: Streams::new(),
                    costs: Costs::new(rotational, shares_disk),
                    ahead_bytes: 0,
                    ahead_room,
                    parked: 0,
                    peak_copy_bytes: 0,
                    peak_parked: 0,
                    storing: 0,
                    gathering: false,
                    starved: false,
                    images: BioList::new(),
                    active: 0,
                }, "blksnap_area"),
                gathered <- new_condvar!("blksnap_area_gathered"),
                idle <- new_condvar!("blksnap_area_idle"),
                marks: [const { Atomic::new(NO_MARK) }; STREAMS],
                error: Atomic::new(0),
                reading: Atomic::new(0),
                repeated: Atomic::new(0),
                ignored_bytes: Atomic::new(0),
                storage: config.storage,
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

    /// The time for `Costs`, in ns.
    fn now(&self) -> u64 {
        Instant::<Monotonic>::now().as_nanos().max(0) as u64
    }

    fn done(&self, state: &mut State, count: usize) {
        state.active -= count;
        if state.active == 0 {
            self.idle.notify_all();
        }
    }

    /// A read of chunks from the origin, ready to be submitted. Sleeps only if `flags` allow it.
    fn read_of<'a, T: EndIo<Held = UniqueArc<Pages>>>(
        &'a self,
        set: &'a BioSet<T>,
        run: ChunkRange,
        flags: Flags,
    ) -> Result<BioRead<'a, T>> {
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
        set.prepare_read(&self.origin, sectors.start, pages, len, flags)
    }

    /// Writes the figures for debugfs. May sleep.
    pub(crate) fn write_figures(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        let extents = state.map.count();
        let (copy_bytes, peak_copy_bytes) = (state.copy_bytes, state.peak_copy_bytes);
        let (parked, peak_parked) = (state.parked, state.peak_parked);
        let (stored_bytes, ahead_bytes) = (state.stored_bytes, state.ahead_bytes);
        let costs = state.costs.of(1 << 20);
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
        let (read_ns, mib_ns) = costs.unwrap_or_default();
        writeln!(f, "read_ns {read_ns}")?;
        writeln!(f, "read_mib_ns {mib_ns}")?;
        writeln!(f, "parked_writes {parked}")?;
        writeln!(f, "parked_writes_peak {peak_parked}")?;
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

const _: () = assert!(size_of::<Old>() <= 16);
