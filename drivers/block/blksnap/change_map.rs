// SPDX-License-Identifier: GPL-2.0-only

//! Change tracking: since which snapshot each block of a device has changed.
//!
//! There are two maps with a byte a block. The live one gets, for each write, the number of the
//! newest snapshot plus one; the frozen one is what it was when that snapshot was taken, and is
//! what backup software reads. Since the numbers only grow, a block has changed since snapshot K
//! if and only if its byte in the frozen map is greater than K.
//!
//! When the numbers are used up, the maps start again under a new generation id, so that nobody
//! can take a small number for "no change".

use kernel::{
    block::{
        bdev::SectorRange,
        SECTOR_SHIFT, //
    },
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    uuid::Uuid, //
};

/// The highest number of a snapshot: the next one is the highest that a byte can hold.
const MAX_NUMBER: u32 = 254;

/// The limits of a map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The binary logarithm of the smallest block in bytes.
    pub(crate) min_shift: u32,
    /// The binary logarithm of the largest block in bytes.
    pub(crate) max_shift: u32,
    /// The number of blocks that is not exceeded as long as the largest block is not reached.
    pub(crate) max_count: u64,
}

impl Limits {
    /// The smallest block, as a binary logarithm, with which a device keeps to the limits.
    fn shift_for(&self, nr_sectors: u64) -> u32 {
        let min = self.min_shift.clamp(SECTOR_SHIFT, 30);
        let max = self.max_shift.clamp(min, 30);
        (min..max)
            .find(|shift| nr_sectors.div_ceil(1 << (shift - SECTOR_SHIFT)) <= self.max_count)
            .unwrap_or(max)
    }
}

/// The maps of a device of a given size.
pub(crate) struct ChangeMap {
    nr_sectors: u64,
    shift: u32,
    live: VVec<Atomic<i8>>,
    frozen: VVec<Atomic<i8>>,
    /// The number of the newest snapshot, or 0.
    number: Atomic<u32>,
    generation: Uuid,
    /// A write was not tracked, so nobody may rely on what the live map says.
    lost: Atomic<u32>,
}

impl ChangeMap {
    /// Empty maps of a new generation, for a device of `nr_sectors`. May sleep.
    pub(crate) fn new(limits: &Limits, nr_sectors: u64) -> Result<Self> {
        let shift = limits.shift_for(nr_sectors);
        let count = usize::try_from(nr_sectors.div_ceil(1 << (shift - SECTOR_SHIFT)))?;
        // CBTINFO has 32 bits for it.
        u32::try_from(count)?;
        let zeroed = || -> Result<VVec<Atomic<i8>>> {
            let mut map = VVec::with_capacity(count, GFP_KERNEL)?;
            for _ in 0..count {
                map.push(Atomic::new(0), GFP_KERNEL)?;
            }
            Ok(map)
        };
        Ok(Self {
            nr_sectors,
            shift,
            live: zeroed()?,
            frozen: zeroed()?,
            number: Atomic::new(0),
            generation: Uuid::random(),
            lost: Atomic::new(0),
        })
    }

    /// The size of the device in sectors that the maps are for.
    pub(crate) fn nr_sectors(&self) -> u64 {
        self.nr_sectors
    }

    /// The size of a block in bytes.
    pub(crate) fn block_bytes(&self) -> u32 {
        1 << self.shift
    }

    /// The number of blocks.
    pub(crate) fn nr_blocks(&self) -> usize {
        self.live.len()
    }

    /// The id of the generation, new with the maps.
    pub(crate) fn generation(&self) -> Uuid {
        self.generation
    }

    /// The number of the newest snapshot, or 0.
    pub(crate) fn number(&self) -> u8 {
        self.number.load(Relaxed) as u8
    }

    /// The blocks that sectors touch, or None if some are past the end.
    fn blocks(&self, range: SectorRange) -> Option<core::ops::Range<usize>> {
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
        let Some(blocks) = self.blocks(range) else {
            self.lose();
            return;
        };
        let mark = (self.number.load(Relaxed) + 1) as u8 as i8;
        for byte in &self.live[blocks] {
            // Spares the cache line where a block is written again and again.
            if byte.load(Relaxed) != mark {
                byte.store(mark, Relaxed);
            }
        }
    }

    /// Content was lost without writes, so nobody may rely on what the live map says. Does not
    /// sleep.
    pub(crate) fn lose(&self) {
        self.lost.store(1, Relaxed);
    }

    /// Marks blocks as changed in both maps, so that the next backup reads them. Not called while
    /// [`Self::freeze`] runs.
    ///
    /// # Errors
    ///
    /// [`ERANGE`] for sectors past the end.
    pub(crate) fn mark_dirty(&self, range: SectorRange) -> Result {
        let blocks = self.blocks(range).ok_or(ERANGE)?;
        let number = self.number.load(Relaxed);
        for block in blocks {
            self.live[block].store((number + 1) as u8 as i8, Relaxed);
            self.frozen[block].store(number as u8 as i8, Relaxed);
        }
        Ok(())
    }

    /// Whether all changes were tracked.
    pub(crate) fn is_complete(&self) -> bool {
        self.lost.load(Relaxed) == 0
    }

    /// Whether the maps can go on with one more snapshot of a device of `nr_sectors`. If not, new
    /// ones are needed, with a new generation.
    pub(crate) fn can_freeze(&self, nr_sectors: u64) -> bool {
        self.nr_sectors == nr_sectors
            && self.is_complete()
            && self.number.load(Relaxed) < MAX_NUMBER
    }

    /// A snapshot is taken: the frozen map becomes what the live one is, and the number goes up.
    /// Nothing is written to the device meanwhile. Does not sleep.
    pub(crate) fn freeze(&self) {
        for (frozen, live) in self.frozen.iter().zip(self.live.iter()) {
            frozen.store(live.load(Relaxed), Relaxed);
        }
        self.number.add(1, Relaxed);
    }

    /// Copies the frozen map from block `at` on.
    pub(crate) fn read_frozen(&self, at: usize, buffer: &mut [u8]) -> usize {
        let from = self.frozen.get(at..).unwrap_or(&[]);
        for (byte, frozen) in buffer.iter_mut().zip(from) {
            *byte = frozen.load(Relaxed) as u8;
        }
        buffer.len().min(from.len())
    }
}

#[kunit_tests(blksnap_change_map)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        min_shift: 16,
        max_shift: 26,
        max_count: 1 << 21,
    };

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
        assert_eq!(LIMITS.shift_for(u64::MAX / 2), 26);
        let wild = Limits {
            min_shift: 99,
            max_shift: 3,
            max_count: 0,
        };
        assert_eq!(wild.shift_for(1 << 20), 30);
    }

    #[test]
    fn marks() -> Result {
        // Ten blocks and one sector.
        let map = ChangeMap::new(&LIMITS, 1281)?;
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
    fn dirty_is_in_both_maps() -> Result {
        let map = ChangeMap::new(&LIMITS, 1280)?;
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
        let map = ChangeMap::new(&LIMITS, 1280)?;
        for n in 0..MAX_NUMBER {
            assert!(map.can_freeze(1280));
            assert_eq!(u32::from(map.number()), n);
            map.mark(range(0, 1));
            map.freeze();
            assert_eq!(u32::from(frozen(&map)?[0]), n + 1);
        }
        map.mark(range(0, 1));
        assert!(!map.can_freeze(1280));

        let map = ChangeMap::new(&LIMITS, 1280)?;
        assert!(!map.can_freeze(1281));
        map.mark(range(1280, 1));
        assert!(!map.can_freeze(1280));
        Ok(())
    }

    #[test]
    fn reads_are_cut() -> Result {
        let map = ChangeMap::new(&LIMITS, 1280)?;
        let mut bytes = [7; 4];
        assert_eq!(map.read_frozen(8, &mut bytes), 2);
        assert_eq!(bytes, [0, 0, 7, 7]);
        assert_eq!(map.read_frozen(10, &mut bytes), 0);
        assert_eq!(map.read_frozen(usize::MAX, &mut bytes), 0);
        Ok(())
    }
}
