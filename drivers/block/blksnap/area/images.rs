// SPDX-License-Identifier: GPL-2.0-only

//! Image reads.
//!
//! What an image read covers may be in several places: on the origin, in memory and on the storage.
//! It is split where the place changes, and the pieces are read at once. A piece from the origin
//! is looked at again when it is done: if one of its chunks was saved meanwhile, a worker reads it
//! once more. The worker also reads what the storage has no device for.

use super::{
    Area,
    IMAGE, //
};
use crate::{
    chunk::ChunkRange,
    cow::Found,
    debug, //
};
use kernel::{
    block::{
        bdev::{
            BdevFile,
            SectorRange, //
        },
        bio::{
            EndIo,
            Op,
            OwnedBio, //
        },
        SECTOR_SHIFT, //
    },
    new_spinlock_irq,
    page::{
        Pages,
        PAGE_SHIFT, //
    },
    prelude::*,
    sync::{
        atomic::{
            Full,
            Relaxed, //
        },
        Arc,
        ArcBorrow,
        Completion,
        SpinLockIrq,
        UniqueArc, //
    },
    workqueue::WorkItem, //
};

impl Area {
    /// A bio for the image. May sleep for memory.
    pub(crate) fn read_image(this: ArcBorrow<'_, Self>, bio: OwnedBio) {
        if bio.op() != Op::Read || this.check().is_err() {
            return bio.end(Err(EIO));
        }
        let range = SectorRange {
            start: bio.sector(),
            len: bio.sectors(),
        };
        if !this.keeps_all(range) {
            return bio.end(Err(ENODATA));
        }
        this.users.fetch_add(1, Relaxed);
        if Self::read_piece(this, bio).is_err() {
            this.end_use();
        }
    }

    /// Submits the read of the first piece, for which it is counted, and the rest to the image
    /// again. The error is that with which all of it has ended.
    fn read_piece(this: ArcBorrow<'_, Self>, mut bio: OwnedBio) -> Result {
        let start = bio.sector();
        let chunks = this.geometry.chunks_of(SectorRange {
            start,
            len: bio.sectors(),
        });
        let (end, found) = match this.find(chunks) {
            Ok(found) => found,
            Err(e) => {
                bio.end(Err(e));
                return Err(e);
            }
        };
        let mut sectors = (this.geometry.byte_of(end) >> SECTOR_SHIFT) - start;
        // Where the bio begins in its first chunk.
        let offset = (start << SECTOR_SHIFT) - this.geometry.byte_of(chunks.start);
        let device = match &found {
            Found::Stored(at) => this
                .storage
                .device(at + offset)
                .map(|(device, sector, len)| {
                    sectors = sectors.min(len >> SECTOR_SHIFT);
                    (device, sector)
                }),
            _ => None,
        };
        if sectors < bio.sectors() {
            bio = bio.split(sectors)?;
        }
        match (found, device) {
            (Found::Origin, _) => {
                let chunks = ChunkRange { end, ..chunks };
                let read = ImageRead::Origin(this.into(), chunks);
                this.forwards
                    .forward(&this.origin, start, bio, read, GFP_NOIO);
            }
            (Found::Memory(pages, first), _) => {
                let at = (start << SECTOR_SHIFT) - this.geometry.byte_of(first);
                let result = bio.copy_from_pages(0, &pages, at as usize, bio.size());
                this.end_image(bio, result);
            }
            (Found::Stored(_), Some((device, sector))) if this.can_read_from(device) => {
                let read = ImageRead::Stored(this.into());
                this.forwards.forward(device, sector, bio, read, GFP_NOIO);
            }
            (Found::Stored(_), _) => Self::put_off(this.into(), bio),
        }
        Ok(())
    }

    /// Where the content of the first of `chunks` is, and up to which chunk that of those after it
    /// is there, too.
    fn find(&self, chunks: ChunkRange) -> Result<(u64, Found<Arc<Pages>>)> {
        match self.status.on_origin(chunks) {
            Some(end) => Ok((end, Found::Origin)),
            None => self.state.lock().cow.find(&self.status, chunks),
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
        self.end_use();
    }

    /// What was counted in `users` has ended.
    pub(super) fn end_use(&self) {
        if self.users.fetch_sub(1, Full) == 1 && self.error() != 0 {
            // Under the lock, so that who closes the area does not miss it.
            let _state = self.state.lock();
            self.idle.notify_all();
        }
    }

    /// An image read from the origin is done. Does not sleep.
    fn forwarded(this: Arc<Self>, chunks: ChunkRange, bio: OwnedBio, result: Result) {
        if this.status.is_overtaken(chunks) && !debug::trusts_reads() {
            this.repeated.fetch_add(1, Relaxed);
            Self::put_off(this, bio);
        } else {
            this.end_image(bio, result);
        }
    }

    /// Serves the image reads that were put off.
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
            let mut chunks = geometry.chunks_of(SectorRange {
                start: at >> SECTOR_SHIFT,
                len: (end - at) >> SECTOR_SHIFT,
            });
            chunks.end = chunks.end.min(chunks.start + geometry.max_run());
            let (piece_end, found) = this.find(chunks)?;
            chunks.end = piece_end;
            let to = end.min(geometry.byte_of(chunks.end));
            let mut copy = |pages: &Pages, first| {
                bio.copy_from_pages(
                    (at - start) as usize,
                    pages,
                    (at - geometry.byte_of(first)) as usize,
                    (to - at) as usize,
                )
            };
            match found {
                Found::Memory(pages, first) => copy(&pages, first)?,
                Found::Stored(place) => {
                    let len = geometry.bytes_of(chunks);
                    let mut pages = Pages::alloc(len >> PAGE_SHIFT, GFP_NOIO)?;
                    this.storage.read(place, &mut pages, len)?;
                    copy(&pages, chunks.start)?;
                }
                Found::Origin => {
                    let pages = this.read_origin(chunks)?;
                    // What was saved meanwhile is in memory or stored at the next look.
                    if this.status.is_overtaken(chunks) {
                        continue;
                    }
                    copy(&pages, chunks.start)?;
                }
            }
            at = to;
        }
        Ok(())
    }

    /// Reads chunks from the origin, and waits for it.
    fn read_origin(&self, chunks: ChunkRange) -> Result<UniqueArc<Pages>> {
        let waiter = Arc::pin_init(Waiter::new(), GFP_NOIO)?;
        self.read_of(&self.repeats, chunks, GFP_NOIO)?
            .submit(RepeatedRead(waiter.clone()));
        waiter.done.wait_for_completion();
        let (pages, result) = waiter.result.lock().take().ok_or(EIO)?;
        result.map(|()| pages)
    }
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

/// A read from the origin that a worker waits for.
pub(super) struct RepeatedRead(Arc<Waiter>);

#[vtable]
impl EndIo for RepeatedRead {
    type Held = UniqueArc<Pages>;

    fn end_io(self, pages: UniqueArc<Pages>, result: Result) {
        *self.0.result.lock() = Some((pages, result));
        self.0.done.complete_all();
    }
}

/// An image read that goes to a device as it is.
pub(super) enum ImageRead {
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

impl WorkItem<IMAGE> for Area {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        Self::read_images(&this);
    }
}
