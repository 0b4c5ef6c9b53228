// SPDX-License-Identifier: GPL-2.0-only

//! Change tracking: since which snapshot each block of a device has changed.
//!
//! Each write marks its blocks with the number of the newest snapshot plus one. What backup
//! software reads is what the marks were when that snapshot was taken. Since the numbers only
//! grow, a block has changed since snapshot K if and only if that mark is greater than K.
//!
//! When the numbers are used up, the maps start again under a new generation id, so that nobody
//! can take a small number for "no change".
//!
//! A number does not identify a snapshot: a virtual machine that was put back to an earlier state,
//! disk and memory, counts on from there. So each snapshot has a random id, too.

use crate::marks::Marks;
use core::ops::Range;
use kernel::{
    block::{
        bdev::SectorRange,
        SECTOR_SHIFT, //
    },
    mm::memcg::MemCgroup,
    new_spinlock,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        SpinLock, //
    },
    time::{
        Instant,
        RealTime, //
    },
    uuid::Uuid, //
};

/// How often all generations have ended.
static ENDED: Atomic<u64> = Atomic::new(0);

/// Ends the generations of all maps: the next snapshot of each device begins another one. What
/// was frozen stays readable until then. Does not sleep.
pub(crate) fn end_generations() {
    ENDED.add(1, Relaxed);
}

/// The highest number of a snapshot: the next one is the highest that a byte can hold.
const MAX_NUMBER: u32 = 254;

/// In place of the id of a take that failed.
const NO_ID: Uuid = Uuid::from_bytes([0; 16]);

/// A random id for a take.
///
/// A virtual machine that is put back gets back the state of its random number generator, too, and
/// that could repeat what it has given before. The time in nanoseconds makes a difference then.
fn take_id() -> Uuid {
    // Version and variant are in the bytes ahead of these.
    const TIME: usize = 9;

    let mut bytes = *Uuid::random().as_bytes();
    let time = Instant::<RealTime>::now().as_nanos().to_le_bytes();
    for (byte, time) in bytes[TIME..].iter_mut().zip(time) {
        *byte ^= time;
    }
    Uuid::from_bytes(bytes)
}

/// The bytes that the marks of all devices take.
static MARK_BYTES: Atomic<usize> = Atomic::new(0);

/// Upper limit of the number of blocks, whatever the parameters say: 24 MiB of memory for a device
/// that nothing is written to.
const MAX_BLOCKS: u64 = 1 << 28;

/// The limits of a map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The binary logarithm of the smallest block in bytes.
    pub(crate) min_shift: u32,
    /// The binary logarithm of the largest block in bytes.
    pub(crate) max_shift: u32,
    /// The number of blocks that is not exceeded as long as the largest block is not reached.
    /// [`MAX_BLOCKS`] never is.
    pub(crate) max_count: u64,
    /// How many bytes the marks of all devices may take. If there were more, blocks are marked
    /// together.
    pub(crate) max_bytes: usize,
}

impl Limits {
    /// The smallest block, as a binary logarithm, with which a device keeps to the limits.
    fn shift_for(&self, nr_sectors: u64) -> u32 {
        let min = self.min_shift.clamp(SECTOR_SHIFT, 30);
        let max = self.max_shift.clamp(min, 30);
        let nr_blocks = |shift: u32| nr_sectors.div_ceil(1 << (shift - SECTOR_SHIFT));
        let max_count = |shift| {
            if shift < max {
                self.max_count
            } else {
                MAX_BLOCKS
            }
        };
        (min..30)
            .find(|&shift| nr_blocks(shift) <= max_count(shift).min(MAX_BLOCKS))
            .unwrap_or(30)
    }
}

/// The change map of a device of a given size.
#[pin_data]
pub(crate) struct ChangeMap {
    nr_sectors: u64,
    shift: u32,
    #[pin]
    marks: Marks,
    /// The number of the newest snapshot, or 0.
    number: Atomic<u32>,
    generation: Uuid,
    /// [`ENDED`] when the generation began.
    ended: u64,
    /// Ids of the takes, from number 1 on; has room for `MAX_TAKES`. The lock protects `number`
    /// against changes, too.
    #[pin]
    takes: SpinLock<KVec<Uuid>>,
    /// A write was not tracked, so nobody may rely on the marks.
    lost: Atomic<u32>,
}

impl ChangeMap {
    /// How many snapshots there are in a generation at most.
    pub(crate) const MAX_TAKES: usize = MAX_NUMBER as usize;

    /// An empty map of a new generation, for a device of `nr_sectors`. Its memory is charged to
    /// `cgroup`. May sleep.
    pub(crate) fn new(
        limits: &Limits,
        nr_sectors: u64,
        cgroup: Option<ARef<MemCgroup>>,
    ) -> Result<Arc<Self>> {
        let shift = limits.shift_for(nr_sectors);
        let nr_blocks = usize::try_from(nr_sectors.div_ceil(1 << (shift - SECTOR_SHIFT)))?;
        // CBTINFO has 32 bits for it.
        u32::try_from(nr_blocks)?;
        let marks = Marks::new(nr_blocks, &MARK_BYTES, limits.max_bytes, cgroup)?;
        let takes = KVec::with_capacity(Self::MAX_TAKES, GFP_KERNEL)?;
        // Ahead of the id, which could come to a copy of the virtual machine, too.
        let ended = ENDED.load(Relaxed);
        Arc::pin_init(
            pin_init!(Self {
                nr_sectors,
                shift,
                marks <- marks,
                number: Atomic::new(0),
                generation: Uuid::random(),
                ended,
                takes <- new_spinlock!(takes, "blksnap_takes"),
                lost: Atomic::new(0),
            }),
            GFP_KERNEL,
        )
    }

    /// The size of the device in sectors that the map is for.
    pub(crate) fn nr_sectors(&self) -> u64 {
        self.nr_sectors
    }

    /// The size of a block in bytes.
    pub(crate) fn block_bytes(&self) -> u32 {
        1 << self.shift
    }

    /// The number of blocks.
    pub(crate) fn nr_blocks(&self) -> usize {
        self.marks.nr_blocks()
    }

    /// The id of the generation, new with the map.
    pub(crate) fn generation(&self) -> Uuid {
        self.generation
    }

    /// The number of the newest snapshot, or 0.
    pub(crate) fn number(&self) -> u8 {
        self.number.load(Relaxed) as u8
    }

    /// The blocks that sectors touch, or None if some are past the end.
    fn blocks(&self, range: SectorRange) -> Option<Range<usize>> {
        let end = range.start.checked_add(range.len)?;
        if end > self.nr_sectors {
            return None;
        }
        let shift = self.shift - SECTOR_SHIFT;
        Some((range.start >> shift) as usize..end.div_ceil(1 << shift) as usize)
    }

    /// The device is about to be written to. Does not sleep. Not called while
    /// [`Self::freeze`] runs.
    #[inline]
    pub(crate) fn mark(&self, range: SectorRange) {
        if self.mark_inside(range).is_err() {
            self.lose();
        }
    }

    /// As [`Self::mark`], of sectors that may be past the end.
    ///
    /// # Errors
    ///
    /// [`ERANGE`] if some are.
    #[inline]
    pub(crate) fn mark_inside(&self, range: SectorRange) -> Result {
        let blocks = self.blocks(range).ok_or(ERANGE)?;
        let mark = (self.number.load(Relaxed) + 1) as u8;
        self.marks.set(blocks, mark);
        Ok(())
    }

    /// Content was lost without writes, so nobody may rely on the marks. Does not sleep.
    pub(crate) fn lose(&self) {
        self.lost.store(1, Relaxed);
    }

    /// Marks blocks as changed before the newest snapshot and after it, so that the next backup
    /// reads them, whichever it is. Does not sleep. Not called while [`Self::freeze`] runs.
    ///
    /// # Errors
    ///
    /// [`ERANGE`] for sectors past the end.
    pub(crate) fn mark_dirty(&self, range: SectorRange) -> Result {
        let blocks = self.blocks(range).ok_or(ERANGE)?;
        let mark = (self.number.load(Relaxed) + 1) as u8;
        self.marks.set_dirty(blocks, mark);
        Ok(())
    }

    /// Whether all changes were tracked.
    pub(crate) fn is_complete(&self) -> bool {
        self.lost.load(Relaxed) == 0
    }

    /// Whether the map can go on with one more snapshot of a device of `nr_sectors`. If not, a new
    /// one is needed, with a new generation.
    pub(crate) fn can_freeze(&self, nr_sectors: u64) -> bool {
        self.nr_sectors == nr_sectors
            && self.is_complete()
            && self.ended == ENDED.load(Relaxed)
            && self.number.load(Relaxed) < MAX_NUMBER
    }

    /// A snapshot is taken: the number goes up, so that other marks are those of the newest
    /// snapshot. Nothing is written to the device meanwhile. Does not sleep.
    pub(crate) fn freeze(&self) {
        let _takes = self.takes.lock();
        self.number.add(1, Relaxed);
    }

    /// Gives the newest snapshot its id, since its take has succeeded. Does not sleep.
    ///
    /// The id is made only now: one from before the map was frozen could come to two snapshots,
    /// if a virtual machine is copied in between.
    pub(crate) fn identify_newest(&self) {
        let id = take_id();
        let mut takes = self.takes.lock();
        // There is room for it.
        while takes.len() + 1 < self.number().into() && takes.push_within_capacity(NO_ID).is_ok() {}
        if takes.len() < self.number().into() {
            let _ = takes.push_within_capacity(id);
        }
    }

    /// The number of the snapshot with the given id.
    ///
    /// # Errors
    ///
    /// [`ESTALE`] if there is none in this generation.
    pub(crate) fn number_of(&self, id: &Uuid) -> Result<u8> {
        let takes = self.takes.lock();
        let at = takes.iter().position(|it| it == id && *it != NO_ID);
        Ok(at.ok_or(ESTALE)? as u8 + 1)
    }

    /// Appends the ids of all snapshots in the order of their numbers, from 1 on; zeroes for takes
    /// that have failed. They are of one moment.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if `ids` has no room for them; [`Self::MAX_TAKES`] is enough.
    pub(crate) fn read_takes(&self, ids: &mut KVec<Uuid>) -> Result {
        let takes = self.takes.lock();
        for number in 0..self.number().into() {
            let id = takes.get(number).copied().unwrap_or(NO_ID);
            ids.push_within_capacity(id).map_err(|_| ENOSPC)?;
        }
        Ok(())
    }

    /// Copies the marks of the newest snapshot from block `at` on. If a snapshot is taken
    /// meanwhile, what it copies means nothing.
    pub(crate) fn read_frozen(&self, at: usize, buffer: &mut [u8]) -> usize {
        self.marks.read(at, self.number(), buffer)
    }
}

/// The blocks of a device that have changed from an earlier snapshot to the newest one.
///
/// They stay the same as long as no other snapshot is taken, and [`ChangeMap::mark_dirty`] is not
/// called.
pub(crate) struct Selection {
    map: Arc<ChangeMap>,
    since: u8,
}

impl Selection {
    /// What will have changed since the snapshot with the given id, once the next one is taken;
    /// nothing before.
    ///
    /// # Errors
    ///
    /// Those of [`ChangeMap::number_of`].
    pub(crate) fn since(id: &Uuid, map: Arc<ChangeMap>) -> Result<Self> {
        let since = map.number_of(id)?;
        Ok(Self { map, since })
    }

    /// Whether some of the blocks that `range` touches are selected. What is past the end is.
    #[inline]
    pub(crate) fn has_some(&self, range: SectorRange) -> bool {
        self.any(range, |changed| changed)
    }

    /// Whether all blocks that `range` touches are selected.
    pub(crate) fn has_all(&self, range: SectorRange) -> bool {
        !self.any(range, |changed| !changed)
    }

    #[inline]
    fn any(&self, range: SectorRange, f: impl Fn(bool) -> bool) -> bool {
        let number = self.map.number();
        self.map.blocks(range).is_none_or(|blocks| {
            self.map
                .marks
                .any(blocks, number, |mark| f(mark > self.since))
        })
    }
}

#[kunit_tests(blksnap_change_map)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        min_shift: 16,
        max_shift: 26,
        max_count: 1 << 21,
        max_bytes: usize::MAX / 2,
    };

    fn new(nr_sectors: u64) -> Result<Arc<ChangeMap>> {
        ChangeMap::new(&LIMITS, nr_sectors, None)
    }

    fn range(start: u64, len: u64) -> SectorRange {
        SectorRange { start, len }
    }

    fn frozen(map: &ChangeMap) -> Result<KVec<u8>> {
        let mut bytes = KVec::from_elem(0, map.nr_blocks(), GFP_KERNEL)?;
        assert_eq!(map.read_frozen(0, &mut bytes), map.nr_blocks());
        Ok(bytes)
    }

    #[test]
    fn block_size() {
        assert_eq!(LIMITS.shift_for(1), 16);
        // 128 GiB is what fits in 2^21 blocks of 64 KiB.
        assert_eq!(LIMITS.shift_for(1 << 28), 16);
        assert_eq!(LIMITS.shift_for((1 << 28) + 1), 17);
        // 16 PiB is what fits in 2^28 blocks of 64 MiB.
        assert_eq!(LIMITS.shift_for(1 << 45), 26);
        assert_eq!(LIMITS.shift_for((1 << 45) + 1), 27);
        assert_eq!(LIMITS.shift_for(u64::MAX / 2), 30);
        let wild = Limits {
            min_shift: 99,
            max_shift: 3,
            max_count: 0,
            ..LIMITS
        };
        assert_eq!(wild.shift_for(1 << 20), 30);
        let fine = Limits {
            min_shift: 0,
            max_shift: 0,
            max_count: u64::MAX,
            ..LIMITS
        };
        assert_eq!(fine.shift_for(1 << 28), 9);
        assert_eq!(fine.shift_for(1 << 31), 12);
    }

    #[test]
    fn marks() -> Result {
        // Ten blocks and one sector.
        let map = new(1281)?;
        assert_eq!(map.nr_blocks(), 11);
        assert_eq!(map.number(), 0);
        map.mark(range(127, 2));
        assert!(frozen(&map)?.iter().all(|b| *b == 0));
        map.freeze();
        assert_eq!(map.number(), 1);
        assert_eq!(frozen(&map)?[..3], [1, 1, 0]);
        map.mark(range(1280, 1));
        map.freeze();
        assert_eq!(frozen(&map)?[..3], [1, 1, 0]);
        assert_eq!(frozen(&map)?[10], 2);
        Ok(())
    }

    #[test]
    fn dirty_is_before_and_after_a_take() -> Result {
        let map = new(1280)?;
        map.freeze();
        map.mark_dirty(range(0, 128))?;
        assert_eq!(frozen(&map)?[0], 1);
        map.freeze();
        assert_eq!(frozen(&map)?[0], 2);
        assert!(map.mark_dirty(range(1279, 2)).is_err());
        assert!(map.mark_dirty(range(u64::MAX, 2)).is_err());
        Ok(())
    }

    #[test]
    fn generation_ends() -> Result {
        let map = new(1280)?;
        for n in 0..MAX_NUMBER {
            assert!(map.can_freeze(1280));
            assert_eq!(u32::from(map.number()), n);
            map.mark(range(0, 1));
            map.freeze();
            assert_eq!(u32::from(frozen(&map)?[0]), n + 1);
        }
        map.mark(range(0, 1));
        assert!(!map.can_freeze(1280));

        let map = new(1280)?;
        assert!(!map.can_freeze(1281));
        map.mark(range(1280, 1));
        assert!(!map.can_freeze(1280));
        Ok(())
    }

    fn takes(map: &ChangeMap) -> Result<KVec<Uuid>> {
        let mut ids = KVec::with_capacity(ChangeMap::MAX_TAKES, GFP_KERNEL)?;
        map.read_takes(&mut ids)?;
        Ok(ids)
    }

    #[test]
    fn selection() -> Result {
        let map = new(1281)?;
        map.mark(range(0, 1));
        map.freeze();
        map.identify_newest();
        map.mark(range(256, 256));
        // A take that fails
        map.freeze();
        assert_eq!(map.number_of(&NO_ID).err(), Some(ESTALE));
        assert_eq!(map.number_of(&Uuid::random()).err(), Some(ESTALE));
        let id = takes(&map)?[0];
        assert_eq!(map.number_of(&id)?, 1);
        let selection = Selection::since(&id, map.clone())?;
        map.mark(range(1280, 1));
        map.freeze();
        // What is written from now on changes nothing.
        map.mark(range(0, 1281));
        assert!(selection.has_all(range(256, 256)));
        assert!(selection.has_all(range(1280, 1)));
        assert!(!selection.has_all(range(255, 2)));
        assert!(!selection.has_all(range(511, 2)));
        assert!(selection.has_some(range(255, 2)));
        assert!(selection.has_some(range(0, 1281)));
        assert!(!selection.has_some(range(0, 256)));
        assert!(!selection.has_some(range(512, 768)));
        assert!(selection.has_some(range(1281, 1)));
        Ok(())
    }

    #[test]
    fn takes_have_ids() -> Result {
        let map = new(1280)?;
        // There is none that could get one.
        map.identify_newest();
        assert!(takes(&map)?.is_empty());

        map.freeze();
        assert_eq!(takes(&map)?[..], [NO_ID]);
        map.identify_newest();
        let first = takes(&map)?[0];
        assert_ne!(first, NO_ID);
        // Version 4, and the variant of RFC 9562.
        assert_eq!(first.as_bytes()[6] >> 4, 4);
        assert_eq!(first.as_bytes()[8] >> 6, 2);
        map.identify_newest();
        assert_eq!(takes(&map)?[..], [first]);

        // Two takes that fail
        map.freeze();
        map.freeze();
        map.freeze();
        map.identify_newest();
        let ids = takes(&map)?;
        assert_eq!(ids[..3], [first, NO_ID, NO_ID]);
        assert_ne!(ids[3], NO_ID);
        assert_ne!(ids[3], first);
        assert_eq!(ids.len(), 4);

        let mut full = KVec::with_capacity(3, GFP_KERNEL)?;
        while full.push_within_capacity(NO_ID).is_ok() {}
        assert_eq!(map.read_takes(&mut full).err(), Some(ENOSPC));

        let other = new(1280)?;
        assert!(takes(&other)?.is_empty());
        Ok(())
    }

    #[test]
    fn all_takes_have_ids() -> Result {
        let map = new(1280)?;
        for n in 1..=ChangeMap::MAX_TAKES {
            map.freeze();
            map.identify_newest();
            let ids = takes(&map)?;
            assert_eq!(ids.len(), n);
            assert!(!ids[..n - 1].contains(&ids[n - 1]));
            assert_ne!(ids[n - 1], NO_ID);
        }
        Ok(())
    }

    #[test]
    fn all_generations_end() -> Result {
        let map = new(1280)?;
        map.mark(range(0, 1));
        map.freeze();
        map.identify_newest();
        let ids = takes(&map)?;
        end_generations();
        assert!(!map.can_freeze(1280));
        // Nothing was missed up to the snapshot, which can be read.
        assert!(map.is_complete());
        assert_eq!(frozen(&map)?[0], 1);
        assert_eq!(takes(&map)?[..], ids[..]);

        let next = new(1280)?;
        assert!(next.can_freeze(1280));
        assert_ne!(next.generation(), map.generation());
        end_generations();
        assert!(!next.can_freeze(1280));
        Ok(())
    }

    #[test]
    fn reads_are_cut() -> Result {
        let map = new(1280)?;
        let mut bytes = [7; 4];
        assert_eq!(map.read_frozen(8, &mut bytes), 2);
        assert_eq!(bytes, [0, 0, 7, 7]);
        assert_eq!(map.read_frozen(10, &mut bytes), 0);
        assert_eq!(map.read_frozen(usize::MAX, &mut bytes), 0);
        Ok(())
    }
}
