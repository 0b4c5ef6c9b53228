// SPDX-License-Identifier: GPL-2.0-only

//! The state machine of copy-on-write.
//!
//! It knows where the old data of each chunk is, and says what is to be done about a write, a read
//! that has completed, a store and an image read. It does no I/O, takes no lock and allocates
//! nothing: its caller holds the lock of the area, brings the memory, and does what it says.
//!
//! Chunks are free, then claimed while their old data is being read from the origin, then copied to
//! memory, and at last on the storage. A write waits until all of its chunks are copied.

use crate::{
    batch::{
        Batch,
        Recorded, //
    },
    chunk::{
        ChunkRange,
        Geometry, //
    },
    copy_memory::CopyMemory,
    counts::Counts,
    extent_map::{
        ExtentMap,
        Piece, //
    },
    new_claim::{
        Active,
        ClaimMemory,
        NewClaim, //
    },
    status::Status,
    stored_map::{
        Rooms,
        StoredMap, //
    },
    suspects::Suspects, //
};
use core::cell::Cell;
use core::mem;
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// Number of copies that are recorded at a time, so that the lock is not held for long.
const MAX_RECORDED: usize = 16;

/// What is to be done about a write.
#[derive(Debug, PartialEq)]
pub(crate) enum Look {
    /// Nothing.
    Passes,
    /// It waits for this claim.
    Waits(ChunkRange),
    /// These chunks have to be claimed, first of all.
    Claims(ChunkRange),
}

/// Where the content of some chunks is.
pub(crate) enum Found<D> {
    Origin,
    /// In memory of the chunks from this one on.
    Memory(D, u64),
    /// At this byte of the storage.
    Stored(u64),
}

/// The state of a device's chunks. A claim has a value of the caller's, `C`, such as the writes
/// that wait for it; `D` is memory with old data.
pub(crate) struct Cow<C, D> {
    geometry: Geometry,
    memory: Arc<CopyMemory>,
    /// The number of chunks that are claimed at a time, so that a large write finds the memory for
    /// them beside small ones.
    max_claim: u64,
    /// What is claimed and not stored.
    active: ExtentMap<Active<C, D>>,
    stored: StoredMap,
    /// First chunks of the copies in memory that no store has taken, in order, so that neighbours
    /// can become one extent. Has room for all copies.
    unstored: KVVec<u64>,
    suspects: Suspects,
    counts: Counts,
    /// Found free by [`Self::look_at`], and not claimed since.
    free: Cell<ChunkRange>,
}

impl<C, D: Clone> Cow<C, D> {
    /// Copies that are not stored are in `memory`. May sleep.
    pub(crate) fn new(geometry: Geometry, memory: Arc<CopyMemory>) -> Result<Self> {
        let own = memory.own() / geometry.chunk_bytes();
        let max_copies = memory.most().div_ceil(geometry.chunk_bytes());
        Ok(Self {
            geometry,
            memory,
            max_claim: geometry.max_run().min((own as u64 / 4).max(1)),
            active: ExtentMap::new(),
            stored: StoredMap::new(geometry)?,
            unstored: KVVec::with_capacity(max_copies, GFP_KERNEL)?,
            suspects: Suspects::new(),
            counts: Counts::default(),
            free: Cell::new(ChunkRange::NONE),
        })
    }

    /// The memory for copies.
    pub(crate) fn memory(&self) -> &CopyMemory {
        &self.memory
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Where old data is on the storage.
    pub(crate) fn stored_map(&self) -> &StoredMap {
        &self.stored
    }

    /// Whether old data is being read.
    pub(crate) fn has_claims(&self) -> bool {
        self.counts.claimed_bytes > 0
    }

    /// Whether no write is parked and no copy is left that is not stored.
    pub(crate) fn is_idle(&self) -> bool {
        self.counts.parked == 0 && self.counts.copies == 0
    }

    /// A write was taken.
    pub(crate) fn park(&mut self) {
        self.counts.park();
    }

    /// `count` writes were resubmitted.
    pub(crate) fn unpark(&mut self, count: usize) {
        self.counts.parked -= count;
    }

    /// What is to be done about a write to `chunks`.
    pub(crate) fn look_at(&self, status: &Status, chunks: ChunkRange) -> Look {
        if status.error() != 0 {
            return Look::Passes;
        }
        match self.unsaved(status, chunks) {
            None => Look::Passes,
            Some((_, Piece::Extent(found))) => Look::Waits(found),
            Some((start, Piece::Hole(end))) => {
                self.free.set(ChunkRange { start, end });
                let end = end.min(start + self.max_claim);
                Look::Claims(self.suspects.limit(ChunkRange { start, end }))
            }
        }
    }

    /// Returns whether the chunk may be unreadable, so that it needs a request of its own.
    pub(crate) fn is_suspect(&self, chunk: u64) -> bool {
        self.suspects.contains(chunk)
    }

    /// The first of `chunks` that is not saved. It is in a claim, or free, with those after it that
    /// are free too, as far as one bio can read.
    pub(crate) fn unsaved(&self, status: &Status, chunks: ChunkRange) -> Option<(u64, Piece)> {
        let saved = status.saved();
        let start = saved.first_unsaved(chunks)?;
        let end = chunks.end.min(start + self.geometry.max_run());
        let mut piece = self.active.lookup(ChunkRange { start, end });
        if let Piece::Hole(end) = &mut piece {
            *end = saved
                .first_saved(ChunkRange { start, end: *end })
                .unwrap_or(*end);
        }
        Some((start, piece))
    }

    /// Chunks that are known to be neither saved nor claimed.
    pub(crate) fn found_free(&self) -> ChunkRange {
        self.free.get()
    }

    /// Whether `chunks`, which one bio can read, are neither saved nor claimed.
    fn is_free(&self, status: &Status, chunks: ChunkRange) -> bool {
        let free = self.found_free();
        if free.start <= chunks.start && chunks.end <= free.end {
            return true;
        }
        self.unsaved(status, chunks) == Some((chunks.start, Piece::Hole(chunks.end)))
    }

    /// Whether there is room for a copy of `run` and `more` bytes; always for the only one alone.
    pub(crate) fn has_room(&self, run: ChunkRange, more: usize) -> bool {
        let bytes = self.geometry.bytes_of(run) + more;
        more == 0 && self.counts.copies == 0 || self.memory.has(self.counts.copy_bytes, bytes)
    }

    /// Claims `chunks`, which one bio can read. The caller reads their old data and calls
    /// [`Self::saved`] or [`Self::not_read`].
    ///
    /// Returns false if that is not possible any more: they are not free, there is no room, or the
    /// image is broken.
    pub(crate) fn claim(
        &mut self,
        status: &Status,
        new: NewClaim<C, D>,
        chunks: ChunkRange,
        value: C,
    ) -> bool {
        let bytes = self.geometry.bytes_of(chunks);
        if status.error() != 0
            || !self.is_free(status, chunks)
            || !self.memory.take(self.counts.copy_bytes, bytes)
        {
            return false;
        }
        self.free.set(ChunkRange::NONE);
        status.saved().reserve(new.leaves);
        self.active
            .insert(new.memory, chunks, Active::Claimed(value));
        self.counts.claim(bytes);
        true
    }

    /// The value of the claim that starts at `start`.
    pub(crate) fn claimed(&mut self, start: u64) -> Option<&mut C> {
        match self.active.get_mut(start)? {
            (_, Active::Claimed(value)) => Some(value),
            _ => None,
        }
    }

    /// The old data of the claim that starts at `start` was read, or the image is broken: its
    /// chunks are saved now. Returns them and the claim's value: what waits for it is released if
    /// that is possible now, and else looked at again.
    pub(crate) fn saved(
        &mut self,
        status: &Status,
        start: u64,
        data: D,
    ) -> Option<(ChunkRange, C)> {
        let (chunks, copy @ &mut Active::Claimed(_)) = self.active.get_mut(start)? else {
            return None;
        };
        let Active::Claimed(value) = mem::replace(copy, Active::Read(data)) else {
            return None;
        };
        status.saved().set(chunks);
        self.counts.read(self.geometry.bytes_of(chunks));
        // There is room for all copies, so this cannot fail.
        let at = self.unstored.partition_point(|other| *other < start);
        let _ = self.unstored.insert_within_capacity(at, start);
        Some((chunks, value))
    }

    /// The old data of the claim that starts at `start` could not be read though nothing else was
    /// read with it: its chunks are lost. The caller calls [`Self::saved`].
    ///
    /// # Errors
    ///
    /// [`ENOMEM`]: the image has to fail.
    pub(crate) fn lose(&mut self, status: &Status, start: u64) -> Result {
        let claim = self.active.get_mut(start);
        claim.map_or(Ok(()), |(chunks, _)| status.lose(chunks))
    }

    /// The old data of the claim that starts at `start` could not be read: its chunks are free
    /// again, and suspects from now on if they are `needed`. Returns its value; what waits for it
    /// is to be looked at again.
    pub(crate) fn not_read(&mut self, start: u64, needed: bool) -> Option<C> {
        self.claimed(start)?;
        let (chunks, Active::Claimed(value), _) = self.active.remove(start)? else {
            return None;
        };
        if needed {
            self.suspects.add(chunks);
        }
        let len = self.geometry.bytes_of(chunks);
        self.memory.give(self.counts.copy_bytes, len);
        self.counts.not_read(len);
        Some(value)
    }

    /// The number of copies that no store has taken.
    pub(crate) fn unstored(&self) -> usize {
        self.unstored.len()
    }

    /// Takes copies for one write of at most `max` bytes to the storage, or the first one if that
    /// is larger. The caller calls [`Self::stored`] or [`Self::not_stored`].
    pub(crate) fn take(&mut self, batch: &mut Batch<D>, max: usize) {
        for start in &self.unstored {
            if let Some((chunks, Active::Read(data))) = self.active.get_mut(*start) {
                if !batch.add(chunks, data, self.geometry.bytes_of(chunks), max) {
                    break;
                }
            }
        }
        let mut left = batch.runs().len();
        self.unstored.retain(|_| {
            let taken = left > 0;
            left -= usize::from(taken);
            !taken
        });
        self.counts.unstored_bytes -= batch.len();
    }

    /// A batch is on the storage now, from byte `at` on. The caller calls this again until all of
    /// it is recorded. `over` is called with the memory of each claim.
    ///
    /// # Errors
    ///
    /// [`EFBIG`]: the caller calls [`Self::not_stored`].
    pub(crate) fn stored(
        &mut self,
        batch: &mut Batch<D>,
        at: u64,
        rooms: &mut Rooms,
        mut over: impl FnMut(ClaimMemory<C, D>),
    ) -> Result<Recorded> {
        for _ in 0..MAX_RECORDED {
            let Some((chunks, offset)) = batch.first() else {
                return Ok(Recorded::All);
            };
            if !self.stored.insert(chunks, at + offset as u64, rooms)? {
                self.stored.want(batch.runs(), rooms);
                return Ok(Recorded::NoMemory);
            }
            let (len, _, memory) = self.forget(chunks.start).ok_or(EINVAL)?;
            over(memory);
            self.counts.stored_bytes += len as u64;
            batch.advance(len);
        }
        Ok(Recorded::Some)
    }

    /// What is left of a batch could not be stored. Its old data is lost, so the image is broken.
    pub(crate) fn not_stored(&mut self, batch: &Batch<D>) {
        for chunks in batch.runs() {
            let _ = self.forget(chunks.start);
        }
    }

    /// The image is broken: forgets a copy that no store has taken, if there is one. Returns its
    /// memory, which the caller drops without the lock.
    pub(crate) fn forget_unstored(&mut self) -> Option<D> {
        let start = self.unstored.pop()?;
        let (len, data, _) = self.forget(start)?;
        self.counts.unstored_bytes -= len;
        Some(data)
    }

    fn forget(&mut self, start: u64) -> Option<(usize, D, ClaimMemory<C, D>)> {
        let (chunks, Active::Read(data), memory) = self.active.remove(start)? else {
            return None;
        };
        let len = self.geometry.bytes_of(chunks);
        self.memory.give(self.counts.copy_bytes, len);
        self.counts.forget(len);
        Some((len, data, memory))
    }

    /// Where the content of the first of `chunks` is, which is saved, and up to which chunk that of
    /// those after it is there, too.
    ///
    /// # Errors
    ///
    /// [`EIO`] if it is lost or was forgotten.
    pub(crate) fn find(&self, status: &Status, chunks: ChunkRange) -> Result<(u64, Found<D>)> {
        let (end, place) = match self.active.lookup(chunks) {
            Piece::Extent(found) => match self.active.get(found.start) {
                Some(Active::Read(data)) => (found.end, Found::Memory(data.clone(), found.start)),
                _ => return Err(EIO),
            },
            Piece::Hole(_) => {
                let (at, end) = self.stored.lookup(chunks).ok_or(EIO)?;
                (end, Found::Stored(at))
            }
        };
        let end = end.min(chunks.end);
        let lost = status.first_lost(ChunkRange { end, ..chunks });
        let end = lost.unwrap_or(end);
        if end == chunks.start {
            return Err(EIO);
        }
        Ok((end, place))
    }
}

#[kunit_tests(blksnap_cow)]
mod tests {
    use super::*;

    const SHIFT: u32 = Geometry::MIN_SHIFT;

    fn chunks(start: u64, end: u64) -> ChunkRange {
        ChunkRange { start, end }
    }

    /// Claims that have a number, and old data that is one, of a device of 64 chunks.
    struct Test {
        status: Status,
        cow: Cow<u32, u32>,
    }

    impl Test {
        /// With room for copies of `room` chunks.
        fn new(room: usize) -> Result<Self> {
            let geometry = Geometry::new(SHIFT, 64 << (SHIFT - 9));
            let memory = CopyMemory::new(room << SHIFT, 1);
            Ok(Self {
                status: Status::new(geometry.nr_chunks(), &crate::budget::Budget::new(0)?)?,
                cow: Cow::new(geometry, Arc::new(memory, GFP_KERNEL)?)?,
            })
        }

        fn look_at(&self, start: u64, end: u64) -> Look {
            self.cow.look_at(&self.status, chunks(start, end))
        }

        fn claim(&mut self, start: u64, end: u64, value: u32) -> Result<bool> {
            let run = chunks(start, end);
            let memory = ClaimMemory::new(GFP_KERNEL)?;
            let new = NewClaim::new(memory, &self.status, run, GFP_KERNEL)?;
            Ok(self.cow.claim(&self.status, new, run, value))
        }

        /// What the claim had.
        fn saved(&mut self, start: u64, data: u32) -> Option<u32> {
            Some(self.cow.saved(&self.status, start, data)?.1)
        }

        fn store(&mut self, max: usize, at: u64) -> Result<usize> {
            let mut batch = Batch::new(8, GFP_KERNEL)?;
            self.cow.take(&mut batch, max << SHIFT);
            let count = batch.data().len();
            let mut rooms = Rooms::new(count, GFP_KERNEL)?;
            while let Recorded::Some | Recorded::NoMemory =
                self.cow.stored(&mut batch, at << SHIFT, &mut rooms, drop)?
            {
                rooms.allocate(GFP_KERNEL)?;
            }
            Ok(count)
        }

        /// In which chunk of the storage a chunk is.
        fn stored(&self, chunk: u64) -> Option<u64> {
            Some(self.cow.stored.lookup(chunks(chunk, chunk + 1))?.0 >> SHIFT)
        }
    }

    #[test]
    fn write_waits_until_it_is_saved() -> Result {
        let mut test = Test::new(64)?;
        assert_eq!(test.look_at(4, 6), Look::Claims(chunks(4, 6)));
        assert!(test.claim(4, 6, 7)?);
        assert_eq!(test.look_at(5, 6), Look::Waits(chunks(4, 6)));
        assert_eq!(test.look_at(2, 6), Look::Claims(chunks(2, 4)));
        assert_eq!(test.cow.claimed(4).copied(), Some(7));
        assert!(!test.status.may_release(chunks(4, 6)));
        assert_eq!(test.saved(4, 1), Some(7));
        assert_eq!(test.saved(4, 1), None);
        assert_eq!(test.look_at(4, 6), Look::Passes);
        assert!(test.status.may_release(chunks(4, 6)));
        assert!(!test.status.may_release(chunks(4, 7)));
        // The rest of a write, up to what is saved
        assert_eq!(test.look_at(3, 7), Look::Claims(chunks(3, 4)));
        assert!(test.status.is_overtaken(chunks(0, 5)));
        assert!(!test.status.is_overtaken(chunks(0, 4)));
        Ok(())
    }

    #[test]
    fn only_free_chunks_are_claimed() -> Result {
        let mut test = Test::new(64)?;
        assert!(test.claim(4, 6, 1)?);
        for (start, end) in [(4, 6), (5, 6), (3, 5), (0, 64)] {
            assert!(!test.claim(start, end, 2)?);
        }
        test.saved(4, 1);
        assert!(!test.claim(5, 7, 2)?);
        assert!(test.claim(6, 8, 2)?);
        // What could not be read is free again.
        assert_eq!(test.cow.not_read(6, false), Some(2));
        assert!(test.claim(7, 9, 3)?);
        assert_eq!(test.cow.counts().copies, 2);
        Ok(())
    }

    #[test]
    fn room_is_for_copies_that_are_not_stored() -> Result {
        let mut test = Test::new(4)?;
        // A large write is claimed in parts.
        assert_eq!(test.look_at(0, 8), Look::Claims(chunks(0, 1)));
        // The only copy has room, whatever its size is.
        assert!(test.claim(0, 8, 0)?);
        assert!(!test.claim(8, 9, 0)?);
        test.saved(0, 0);
        assert!(!test.claim(8, 9, 0)?);
        assert_eq!(test.store(1, 0)?, 1);
        assert!(test.cow.is_idle());
        assert!(test.claim(8, 11, 0)?);
        assert!(!test.claim(11, 13, 0)?);
        assert!(test.claim(11, 12, 0)?);
        assert_eq!(test.cow.counts().peak_copy_bytes, 8 << SHIFT);
        Ok(())
    }

    #[test]
    fn neighbours_are_stored_as_one_extent() -> Result {
        let mut test = Test::new(64)?;
        for start in [6, 2, 4] {
            assert!(test.claim(start, start + 2, 0)?);
            test.saved(start, start as u32);
        }
        assert!(matches!(
            test.cow.find(&test.status, chunks(5, 9)),
            Ok((6, Found::Memory(4, 4)))
        ));
        assert_eq!(test.store(4, 10)?, 2);
        assert_eq!((test.cow.stored.count(), test.cow.unstored()), (1, 1));
        assert_eq!(test.store(4, 14)?, 1);
        assert_eq!(test.cow.stored.count(), 1);
        for chunk in 2..8 {
            assert_eq!(test.stored(chunk), Some(chunk + 8));
        }
        assert_eq!(test.stored(8), None);
        assert_eq!(test.cow.counts().stored_bytes, 6 << SHIFT);
        Ok(())
    }

    #[test]
    fn only_what_cannot_be_read_is_lost() -> Result {
        let mut test = Test::new(64)?;
        assert!(test.claim(4, 8, 0)?);
        assert_eq!(test.cow.not_read(4, true), Some(0));
        for start in 4..8 {
            assert_eq!(test.look_at(4, 8), Look::Claims(chunks(start, start + 1)));
            assert!(test.claim(start, start + 1, 0)?);
            if start == 6 {
                test.cow.lose(&test.status, start)?;
            }
            test.saved(start, 0);
        }
        assert_eq!(test.look_at(4, 8), Look::Passes);
        assert_eq!((test.status.lost(), test.status.error()), (1, 0));
        assert_eq!((test.store(4, 10)?, test.cow.stored.count()), (4, 1));
        let find = |start, end| test.cow.find(&test.status, chunks(start, end));
        assert!(matches!(find(4, 8), Ok((6, Found::Stored(at))) if at == 10 << SHIFT));
        assert!(find(6, 8).is_err());
        assert!(matches!(find(7, 8), Ok((8, Found::Stored(at))) if at == 13 << SHIFT));
        Ok(())
    }

    #[test]
    fn broken_image_holds_nothing() -> Result {
        let mut test = Test::new(64)?;
        for start in [0, 1, 2] {
            assert!(test.claim(start, start + 1, 0)?);
        }
        test.saved(0, 0);
        test.saved(1, 1);
        let mut batch = Batch::new(1, GFP_KERNEL)?;
        test.cow.take(&mut batch, 1);
        assert!(test.status.fail(ENOSPC));
        assert!(!test.status.fail(EIO));
        assert_eq!(test.status.error(), ENOSPC.to_errno());
        test.cow.not_stored(&batch);
        assert!(test.cow.forget_unstored().is_some());
        assert!(test.cow.forget_unstored().is_none());
        assert!(test.cow.find(&test.status, chunks(0, 1)).is_err());
        // A read in flight still ends.
        assert!(!test.cow.is_idle());
        assert_eq!(test.look_at(2, 9), Look::Passes);
        assert!(!test.claim(5, 6, 0)?);
        test.saved(2, 2);
        assert!(test.cow.forget_unstored().is_some());
        assert!(test.cow.is_idle());
        let counts = test.cow.counts();
        assert_eq!((counts.copy_bytes, counts.unstored_bytes), (0, 0));
        Ok(())
    }
}
