// SPDX-License-Identifier: GPL-2.0-only

//! The difference storage: a log that old data is appended to.
//!
//! It is shared by the devices of a snapshot, and made of parts, each of which is a file or ranges
//! of a block device; more can be added at any time. [`Logs`] says where data goes, and [`Storage`]
//! does the I/O.

use crate::{
    event::{
        Events,
        What, //
    },
    log::{
        Log,
        Logs,
        Ranges, //
    },
    token::{
        Prober,
        Seen, //
    }, //
};
use kernel::{
    block::{
        bdev::{
            BdevFile,
            BlockDevice,
            SectorRange, //
        },
        SECTOR_SHIFT, //
    },
    fs::direct::DirectFile,
    new_mutex,
    noio,
    page::{
        Pages,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Release, //
        },
        Arc,
        Mutex,
        SetOnce, //
    }, //
};

/// A place in the storage is the number of the part, followed by this many bits for the byte in it.
const PART_SHIFT: u32 = 48;

/// The most that is used of a part. The end of one is not where the next one begins.
const PART_BYTES: u64 = (1 << PART_SHIFT) - PAGE_SIZE as u64;

/// How many parts there may be.
const MAX_PARTS: usize = 1024;

/// Upper limit of the places of a device that are probed before it is used.
const MAX_SPOTS: u64 = 64;

/// What data is kept on.
struct Medium {
    file: DirectFile,
    /// The block device that it is, if it is one, to read from.
    device: Option<Arc<BdevFile>>,
}

impl Medium {
    /// [`EROFS`] is for a block device that cannot be written to, [`EOPNOTSUPP`] for one with
    /// blocks that are larger than a page.
    fn new(file: DirectFile) -> Result<Arc<Self>> {
        let device = match file.bdev() {
            Some(bdev) if bdev.is_read_only() => return Err(EROFS),
            Some(bdev) if bdev.logical_block_size() as usize > PAGE_SIZE => {
                return Err(EOPNOTSUPP);
            }
            Some(bdev) => Some(Arc::new(BdevFile::open(bdev.dev())?, GFP_KERNEL)?),
            None => None,
        };
        Ok(Arc::new(Self { file, device }, GFP_KERNEL)?)
    }

    /// Whether it is that device.
    fn is(&self, bdev: &BlockDevice) -> bool {
        let device = self.device.as_ref();
        device.is_some_and(|device| core::ptr::eq(&***device, bdev))
    }
}

/// An unused part of a medium, of up to a page.
pub(crate) struct Spot {
    medium: Arc<Medium>,
    pos: u64,
    len: usize,
}

impl Spot {
    /// Writes the first page of `pages` to each of `spots` and then restores the old content, so
    /// that a device that is refused keeps it. Skips spots that cannot be read or written. Only in
    /// a kernel thread. May sleep.
    pub(crate) fn try_out(spots: &[Self], pages: &Pages) {
        let Ok(mut old) = KVec::with_capacity(spots.len(), GFP_KERNEL) else {
            return;
        };
        for (n, spot) in spots.iter().enumerate() {
            // There is room for it.
            let _ = old.push_within_capacity(spot.exchange(pages));
            // A lower layer may have cached it.
            let next = spots.get(n + 1);
            if next.is_none_or(|next| !Arc::ptr_eq(&next.medium, &spot.medium)) {
                let _ = spot.medium.file.sync();
            }
        }
        for (spot, old) in spots.iter().zip(&old) {
            if let Some(old) = old {
                let _ = spot.medium.file.write(spot.pos, &[old], 0, spot.len);
            }
        }
    }

    /// Writes a page, and returns the old content of a device.
    fn exchange(&self, pages: &Pages) -> Option<Pages> {
        let file = &self.medium.file;
        let old = if self.medium.device.is_some() {
            let mut old = Pages::alloc(1, GFP_KERNEL).ok()?;
            file.read(self.pos, &mut old, 0, self.len).ok()?;
            Some(old)
        } else {
            None
        };
        let _ = file.write(self.pos, &[pages], 0, self.len);
        old
    }
}

/// What was handed over at once.
pub(crate) struct Part {
    medium: Arc<Medium>,
    ranges: Ranges,
}

impl Part {
    /// What a limit of the part means; 0 is for all of a block device.
    fn allowed(&self, limit: u64) -> Result<u64> {
        match limit {
            0 if self.medium.device.is_none() => Err(EINVAL),
            0 => Ok(self.ranges.len()),
            limit => Ok(limit.min(self.ranges.len())),
        }
    }

    /// The spot at byte `at`.
    fn spot(&self, at: u64) -> Result<Spot> {
        let (pos, run) = self.ranges.locate(at).ok_or(EIO)?;
        Ok(Spot {
            medium: self.medium.clone(),
            pos,
            len: run.min(PAGE_SIZE as u64) as usize,
        })
    }

    /// Adds spots spread over the first `limit` bytes, all of which are unused: parts of a device
    /// can lie on different disks. A file has only one spot, as others would make it sparse.
    pub(crate) fn spots(&self, limit: u64, spots: &mut KVec<Spot>) -> Result {
        let page = PAGE_SIZE as u64;
        let step = match self.medium.device {
            Some(_) => (limit / MAX_SPOTS).next_multiple_of(page).max(page),
            None => u64::MAX,
        };
        let mut at = 0_u64;
        // Less than a page is never used.
        while at.saturating_add(page) <= limit {
            spots.push(self.spot(at)?, GFP_KERNEL)?;
            at = at.saturating_add(step);
        }
        Ok(())
    }

    /// The number of bytes of its ranges.
    pub(crate) fn len(&self) -> u64 {
        self.ranges.len()
    }

    /// Allocates what the log is going to need.
    ///
    /// # Errors
    ///
    /// What the file says, if there is no room even for what was appended.
    fn grow(&self, log: &mut Log) -> Result {
        let Some((start, len)) = log.growth() else {
            return Ok(());
        };
        let file = &self.medium.file;
        if file.allocate(start, len).is_ok() {
            log.allocated = start + len;
        } else if log.next > start {
            file.allocate(start, log.next - start)?;
            log.allocated = log.next;
        }
        Ok(())
    }

    /// Calls `io` for each run of the `len` bytes from byte `at` on, with its place on the medium,
    /// how many bytes are ahead of it, and its length.
    fn each_run(
        &self,
        at: u64,
        len: usize,
        mut io: impl FnMut(u64, usize, usize) -> Result,
    ) -> Result {
        let mut done = 0;
        while done < len {
            let (pos, run) = self.ranges.locate(at + done as u64).ok_or(EIO)?;
            let run = usize::try_from(run).unwrap_or(usize::MAX).min(len - done);
            io(pos, done, run)?;
            done += run;
        }
        Ok(())
    }
}

/// How much a storage has, in bytes.
pub(crate) struct Space {
    pub(crate) total: u64,
    pub(crate) used: u64,
    pub(crate) low: u64,
}

/// Writes to spots of a storage can be in flight while this exists: the storage must not be used,
/// and no other probe can start.
pub(crate) struct Trial(Arc<Storage>);

impl Trial {
    /// # Errors
    ///
    /// [`EBUSY`] if there is one.
    pub(crate) fn begin(storage: &Arc<Storage>) -> Result<Self> {
        match storage.on_trial.xchg(true, Full) {
            true => Err(EBUSY),
            false => Ok(Self(storage.clone())),
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // Pairs with the acquire in is_on_trial().
        self.0.on_trial.store(false, Release);
    }
}

/// The difference storage of a snapshot.
#[pin_data]
pub(crate) struct Storage {
    /// As many as there are in `logs`, from the first one on.
    parts: KVec<SetOnce<KBox<Part>>>,
    #[pin]
    logs: Mutex<Logs>,
    /// Whoever extends it has this.
    #[pin]
    extending: Mutex<()>,
    /// The first part is what the snapshot was created with.
    has_limit: bool,
    /// A [`Trial`] exists.
    on_trial: Atomic<bool>,
    events: Arc<Events>,
}

impl Storage {
    fn new(has_limit: bool) -> Result<Arc<Self>> {
        let mut parts = KVec::with_capacity(MAX_PARTS, GFP_KERNEL)?;
        for _ in 0..MAX_PARTS {
            parts.push(SetOnce::new(), GFP_KERNEL)?;
        }
        let events = Arc::pin_init(Events::new()?, GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                parts,
                logs <- new_mutex!(Logs::new(), "blksnap_logs"),
                extending <- new_mutex!((), "blksnap_extending"),
                has_limit,
                on_trial: Atomic::new(false),
                events,
            }),
            GFP_KERNEL,
        )
    }

    /// Without any space. May sleep.
    pub(crate) fn empty() -> Result<Arc<Self>> {
        Self::new(false)
    }

    /// Opens the storage at `path`. It may use up to `limit` bytes; 0 is for a whole block device.
    /// A file grows by `step` bytes at a time. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] for a limit of 0 without a block device, and what opening gives.
    pub(crate) fn open(path: &CStr, limit: u64, step: u64) -> Result<Arc<Self>> {
        let storage = Self::new(true)?;
        let medium = Medium::new(DirectFile::open(path)?)?;
        let (size, allocated) = match medium.device {
            Some(_) => (medium.file.size().min(PART_BYTES), PART_BYTES),
            None => (PART_BYTES, 0),
        };
        let mut ranges = Ranges::new();
        ranges.push(0, size)?;
        let part = Part { medium, ranges };
        let log = Log::new(allocated, part.allowed(limit)?, step);
        storage.add(&mut storage.logs.lock(), part, log)?;
        Ok(storage)
    }

    /// Adds sectors of a device, or all of it if there are no ranges, unless `agree` objects. What
    /// it returns is kept while they are added. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if a range is empty, not aligned to the device's blocks, past its end, or has
    /// sectors of another one that the storage has; [`E2BIG`] if there are too many parts; and what
    /// opening the device, or `agree`, gives.
    pub(crate) fn extend<T>(
        &self,
        bdev: &BlockDevice,
        sectors: &[SectorRange],
        agree: impl FnOnce(&Part) -> Result<T>,
    ) -> Result {
        let _extending = self.extending.lock();
        let medium = match self.parts().find(|part| part.medium.is(bdev)) {
            Some(part) => part.medium.clone(),
            None => Medium::new(DirectFile::open_bdev(bdev)?)?,
        };
        let size = medium.file.size();
        let mut ranges = Ranges::new();
        for range in sectors {
            let end = range.start.checked_add(range.len).ok_or(EINVAL)?;
            let bits = (range.start | range.len) << SECTOR_SHIFT;
            if range.len == 0
                || end > size >> SECTOR_SHIFT
                || bits % u64::from(bdev.logical_block_size()) != 0
            {
                return Err(EINVAL);
            }
            ranges.push(range.start << SECTOR_SHIFT, range.len << SECTOR_SHIFT)?;
            // Before their sum can overflow.
            if ranges.len() > PART_BYTES {
                return Err(EINVAL);
            }
        }
        if sectors.is_empty() {
            ranges.push(0, size.min(PART_BYTES))?;
        }
        let others = self.parts().filter(|part| part.medium.is(bdev));
        let all = others.map(|part| &part.ranges);
        if ranges.overlap(all)? {
            return Err(EINVAL);
        }
        let log = Log::new(PART_BYTES, ranges.len(), 0);
        let part = Part { medium, ranges };
        let _agreed = agree(&part)?;
        // Reclaim could wait for a write that is waiting for this lock.
        noio::scope(|| {
            let mut logs = self.logs.lock();
            self.add(&mut logs, part, log)?;
            self.tell(logs.low());
            Ok(())
        })
    }

    fn add(&self, logs: &mut Logs, part: Part, log: Log) -> Result {
        let slot = self.parts.get(logs.list.len()).ok_or(E2BIG)?;
        let part = KBox::new(part, GFP_KERNEL)?;
        logs.list.push(log, GFP_KERNEL)?;
        slot.populate(part);
        Ok(())
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().map_while(|slot| Some(&**slot.as_ref()?))
    }

    /// The part that a place is in, and the byte in it.
    fn find(&self, place: u64) -> Result<(&Part, u64)> {
        let part = self.part((place >> PART_SHIFT) as usize)?;
        Ok((part, place % (1 << PART_SHIFT)))
    }

    fn part(&self, number: usize) -> Result<&Part> {
        let slot = self.parts.get(number).ok_or(EIO)?;
        Ok(slot.as_ref().ok_or(EIO)?)
    }

    /// Forgets what was appended and told. Nobody else uses the storage now but to extend it.
    pub(crate) fn reset(&self) {
        self.logs.lock().reset();
        self.events.clear();
    }

    /// Returns whether one of its media is `bdev` or overlaps it.
    pub(crate) fn is_on(&self, bdev: &BlockDevice) -> bool {
        self.parts().any(|part| {
            let device = part.medium.device.as_ref();
            device.is_some_and(|device| device.overlaps(bdev))
        })
    }

    /// Returns whether one of its media is on the disk of `bdev`, as far as that can be seen.
    pub(crate) fn shares_disk(&self, bdev: &BlockDevice) -> bool {
        self.parts().any(|part| {
            let device = part.medium.device.as_ref();
            device.is_some_and(|device| device.has_disk_of(bdev))
        })
    }

    /// Returns the trackers that writes to the storage reach. Its snapshot is not taken, and cannot
    /// be taken during the call. May sleep.
    ///
    /// # Errors
    ///
    /// Those of [`Prober::seen_from`].
    pub(crate) fn unused_seen_by(self: &Arc<Self>, prober: &Prober) -> Result<Seen> {
        let mut spots = KVec::new();
        for (part, log) in self.parts().zip(&self.logs.lock().list) {
            part.spots(log.limit, &mut spots)?;
        }
        prober.seen_from(self, spots)
    }

    /// Returns the trackers that further writes to a storage in use reach. May sleep.
    ///
    /// # Errors
    ///
    /// Those of [`Prober::seen_from`].
    pub(crate) fn seen_by(self: &Arc<Self>, prober: &Prober) -> Result<Seen> {
        let page = PAGE_SIZE as u64;
        let mut spots = KVec::new();
        let mut places = KVec::new();
        // Reclaim could wait for a write that is waiting for this lock.
        noio::scope(|| -> Result {
            let mut logs = self.logs.lock();
            for (number, log) in logs.list.iter_mut().enumerate() {
                // A full part gets no more writes.
                if log.room() < page {
                    continue;
                }
                let spot = self.part(number)?.spot(log.next)?;
                spots.push(spot, GFP_KERNEL)?;
                places.push((number, log.next), GFP_KERNEL)?;
                log.next += page;
            }
            Ok(())
        })?;
        // On error writes can still be in flight, so the places stay reserved.
        let seen = prober.seen_from(self, spots)?;
        let mut logs = self.logs.lock();
        for (number, at) in places {
            // Unless data was appended after it.
            if let Some(log) = logs.list.get_mut(number).filter(|l| l.next == at + page) {
                log.next = at;
            }
        }
        Ok(seen)
    }

    /// Returns whether writes of a probe can be in flight.
    pub(crate) fn is_on_trial(&self) -> bool {
        self.on_trial.load(Acquire)
    }

    /// What is to be told about the snapshot.
    pub(crate) fn events(&self) -> &Arc<Events> {
        &self.events
    }

    fn tell(&self, low: Option<u64>) {
        if let Some(left) = low {
            self.events.push(What::LowSpace(left >> SECTOR_SHIFT));
        }
    }

    /// Reserves space in the log, and returns where. How many bytes is what `choose` returns, which
    /// is told how many there are in one piece: at least `len`, unless space is at its end. Nothing
    /// is reserved if that is 0. May sleep, but allocates without I/O.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if there is no space, or what the file says.
    pub(crate) fn reserve(&self, len: usize, choose: impl FnOnce(usize) -> usize) -> Result<u64> {
        noio::scope(|| {
            let mut logs = self.logs.lock();
            for (part, log) in self.parts().zip(&mut logs.list) {
                log.available = part.medium.file.available().unwrap_or(u64::MAX);
            }
            let room = logs.room_for(len as u64);
            let len = choose(usize::try_from(room).unwrap_or(usize::MAX)) as u64;
            let (number, log) = logs.append(len)?;
            let at = log.next - len;
            self.part(number)?.grow(log)?;
            self.tell(logs.low());
            Ok(((number as u64) << PART_SHIFT) + at)
        })
    }

    /// Writes the first `len` bytes of `pages` to `at`, which was reserved, and waits for it. May
    /// sleep, but allocates without I/O.
    ///
    /// # Errors
    ///
    /// What the file says.
    pub(crate) fn write(&self, at: u64, pages: &[&Pages], len: usize) -> Result {
        let (part, at) = self.find(at)?;
        noio::scope(|| {
            part.each_run(at, len, |pos, skip, len| {
                let result = part.medium.file.write(pos, pages, skip, len);
                match (result, &part.medium.device) {
                    // The device is shorter than it was, or gone.
                    (Err(e), Some(_)) if e == ENOSPC => Err(EIO),
                    (result, _) => result,
                }
            })
        })
    }

    /// Reads `len` bytes at `at` into `pages`, and waits for it. May sleep.
    pub(crate) fn read(&self, at: u64, pages: &mut Pages, len: usize) -> Result {
        let (part, at) = self.find(at)?;
        noio::scope(|| {
            part.each_run(at, len, |pos, skip, len| {
                part.medium.file.read(pos, pages, skip, len)
            })
        })
    }

    /// The block device and its sector that byte `at` can be read from as it is, and how many bytes
    /// from there on, if there is one.
    pub(crate) fn device(&self, at: u64) -> Option<(&Arc<BdevFile>, u64, u64)> {
        let (part, at) = self.find(at).ok()?;
        let device = part.medium.device.as_ref()?;
        let (pos, run) = part.ranges.locate(at)?;
        Some((device, pos >> SECTOR_SHIFT, run))
    }

    /// How much there is.
    pub(crate) fn space(&self) -> Space {
        let logs = self.logs.lock();
        Space {
            total: logs.total(),
            used: logs.used(),
            low: logs.low_space,
        }
    }

    /// Sets the threshold of the low-space event.
    pub(crate) fn set_low_space(&self, bytes: u64) {
        let mut logs = self.logs.lock();
        logs.low_space = bytes;
        logs.told = false;
        self.tell(logs.low());
    }

    /// Changes the limit of what the snapshot was created with, as for [`Self::open`].
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there is none, or more is used already.
    pub(crate) fn set_limit(&self, limit: u64) -> Result {
        if !self.has_limit {
            return Err(EINVAL);
        }
        let limit = self.part(0)?.allowed(limit)?;
        let mut logs = self.logs.lock();
        let log = logs.list.first_mut().ok_or(EINVAL)?;
        if limit < log.next {
            return Err(EINVAL);
        }
        log.limit = limit;
        self.tell(logs.low());
        Ok(())
    }
}
