// SPDX-License-Identifier: GPL-2.0-only

//! Where the old data of chunks is on the storage.
//!
//! There can be hundreds of millions of extents, so an extent takes eight bytes. Those of 256
//! chunks, a region, are in a sorted vector of their own: there is not much to be moved when one
//! is added, and its memory can be allocated before the lock is taken.

use crate::chunk::{
    ChunkRange,
    Geometry, //
};
use core::mem;
use kernel::{
    alloc::Flags,
    block::SECTOR_SHIFT,
    prelude::*, //
};

/// Number of chunks in a region.
const REGION: u64 = 256;

/// Number of regions whose vectors are allocated together.
const LEAF: usize = 128;

/// An extent: from the highest bit on the 8 bits of its first chunk in the region, the 8 bits of
/// the number of its chunks less one, and the 48 bits of its first sector on the storage. So
/// extents of a region have the order of their chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packed(u64);

impl Packed {
    const SECTOR_BITS: u32 = 48;

    fn new(start: u64, len: u64, sector: u64) -> Self {
        Self(start << 56 | (len - 1) << Self::SECTOR_BITS | sector)
    }

    /// The first chunk, counted from the start of the region.
    fn start(self) -> u64 {
        self.0 >> 56
    }

    /// The number of chunks.
    fn len(self) -> u64 {
        (self.0 >> Self::SECTOR_BITS & 0xff) + 1
    }

    fn end(self) -> u64 {
        self.start() + self.len()
    }

    fn sector(self) -> u64 {
        self.0 & ((1 << Self::SECTOR_BITS) - 1)
    }
}

type Extents = KVec<Packed>;
type Leaf = [Extents; LEAF];

/// Memory for the extents of one region.
struct Room {
    region: usize,
    /// How many extents there must be room for, and for how many there is.
    wanted: u16,
    has: u16,
    has_leaf: bool,
    extents: Extents,
    leaf: Option<KBox<Leaf>>,
}

/// Memory that [`StoredMap::insert`] needs, and that it has replaced.
pub(crate) struct Rooms(KVVec<Room>);

impl Rooms {
    /// For at most `count` runs of chunks, none of which is longer than a region. May sleep if
    /// `flags` do.
    pub(crate) fn new(count: usize, flags: Flags) -> Result<Self> {
        // A run can touch two regions.
        Ok(Self(KVVec::with_capacity(2 * count, flags)?))
    }

    /// Allocates what was wanted. May sleep if `flags` do.
    pub(crate) fn allocate(&mut self, flags: Flags) -> Result {
        for room in self.0.iter_mut() {
            if room.has < room.wanted {
                let capacity = capacity_for(room.wanted.into());
                room.extents = Extents::with_capacity(capacity, flags)?;
            }
            if !room.has_leaf {
                let leaf = pin_init::init_array_from_fn(|_| Extents::new());
                room.leaf = Some(KBox::init(leaf, flags)?);
            }
        }
        Ok(())
    }
}

/// How many extents a vector gets room for: what is in the sizes that kmalloc() has.
fn capacity_for(count: usize) -> usize {
    const SIZES: [usize; 7] = [1, 2, 4, 8, 12, 16, 24];
    let size = SIZES.into_iter().find(|size| *size >= count);
    size.unwrap_or(count.next_power_of_two())
}

/// The stored extents of a device.
pub(crate) struct StoredMap {
    leaves: VVec<Option<KBox<Leaf>>>,
    /// The binary logarithm of the sectors of a chunk.
    shift: u32,
    count: usize,
    /// Bytes of the leaves and vectors.
    memory: usize,
}

impl StoredMap {
    /// An empty map. May sleep.
    pub(crate) fn new(geometry: Geometry) -> Result<Self> {
        let regions = usize::try_from(geometry.nr_chunks().div_ceil(REGION))?;
        let count = regions.div_ceil(LEAF);
        let mut leaves = VVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..count {
            leaves.push(None, GFP_KERNEL)?;
        }
        Ok(Self {
            leaves,
            shift: geometry.chunk_shift() - SECTOR_SHIFT,
            count: 0,
            memory: count * size_of::<Option<KBox<Leaf>>>(),
        })
    }

    /// The number of extents.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The bytes of memory that it takes.
    pub(crate) fn memory(&self) -> usize {
        self.memory
    }

    fn region(&self, region: usize) -> Option<&Extents> {
        let leaf = self.leaves.get(region / LEAF)?.as_ref()?;
        Some(&leaf[region % LEAF])
    }

    /// The parts of `chunks` in each region: its number, and the chunks counted from its start.
    fn parts(chunks: ChunkRange) -> impl Iterator<Item = (usize, ChunkRange)> {
        (chunks.start / REGION..chunks.end.div_ceil(REGION)).map(move |region| {
            let first = region * REGION;
            let part = ChunkRange {
                start: chunks.start.max(first) - first,
                end: chunks.end.min(first + REGION) - first,
            };
            (region as usize, part)
        })
    }

    /// Where the first of `chunks` is on the storage, in bytes, and up to which of them the others
    /// are behind it there. None if the first is not stored.
    pub(crate) fn lookup(&self, chunks: ChunkRange) -> Option<(u64, u64)> {
        let mut found = None;
        let mut end = chunks.start;
        for (region, part) in Self::parts(chunks) {
            let Some(extents) = self.region(region) else {
                break;
            };
            let after = extents.partition_point(|extent| extent.start() <= part.start);
            let Some(extent) = extents[..after].last().filter(|e| e.end() > part.start) else {
                break;
            };
            let sector = extent.sector() + ((part.start - extent.start()) << self.shift);
            let first = *found.get_or_insert(sector);
            if sector != first + ((end - chunks.start) << self.shift) {
                break;
            }
            end += extent.end().min(part.end) - part.start;
            if extent.end() < part.end {
                break;
            }
        }
        Some((found? << SECTOR_SHIFT, end))
    }

    /// Notes in `rooms` what [`Self::insert`] may need for runs of chunks, which are in order.
    pub(crate) fn want(&self, runs: &[ChunkRange], rooms: &mut Rooms) {
        rooms.0.clear();
        for (region, _) in runs.iter().copied().flat_map(Self::parts) {
            if let Some(room) = rooms.0.last_mut().filter(|room| room.region == region) {
                room.wanted += 1;
                continue;
            }
            let extents = self.region(region);
            // One new leaf is enough for all of its regions.
            let shares = |room: &Room| room.region / LEAF == region / LEAF;
            let has_leaf = extents.is_some() || rooms.0.last().is_some_and(shares);
            let room = Room {
                region,
                wanted: extents.map_or(0, |extents| extents.len() as u16) + 1,
                has: extents.map_or(0, |extents| extents.capacity() as u16),
                has_leaf,
                extents: Extents::new(),
                leaf: None,
            };
            // There is room for two of each run.
            let _ = rooms.0.push_within_capacity(room);
        }
    }

    /// Records that `chunks`, which are in no extent and at most as many as a region has, are on
    /// the storage from byte `at` on. Returns false, and changes nothing, if that takes memory that
    /// is not in `rooms`. Does not sleep.
    ///
    /// # Errors
    ///
    /// [`EFBIG`] if that is more than 128 PiB from the start of the storage.
    pub(crate) fn insert(
        &mut self,
        chunks: ChunkRange,
        at: u64,
        rooms: &mut Rooms,
    ) -> Result<bool> {
        let shift = self.shift;
        let sector_of = |part: ChunkRange, region: usize| {
            let chunk = region as u64 * REGION + part.start;
            (at >> SECTOR_SHIFT) + ((chunk - chunks.start) << shift)
        };
        let last = (at >> SECTOR_SHIFT) + (chunks.len() << self.shift);
        if last > 1 << Packed::SECTOR_BITS {
            return Err(EFBIG);
        }
        // All of it, or nothing
        for (region, part) in Self::parts(chunks) {
            if !self.make_room(region, part, sector_of(part, region), rooms) {
                return Ok(false);
            }
        }
        for (region, part) in Self::parts(chunks) {
            self.add(region, part, sector_of(part, region));
        }
        Ok(true)
    }

    /// Which of the neighbours in the region go on with `part`, which is at `sector`: those that
    /// are at this index less one and at this index.
    fn neighbours(
        &self,
        extents: &[Packed],
        part: ChunkRange,
        sector: u64,
    ) -> (usize, Option<Packed>, Option<Packed>) {
        let at = extents.partition_point(|extent| extent.start() < part.start);
        let prev = extents[..at].last().copied().filter(|prev| {
            prev.end() == part.start && prev.sector() + (prev.len() << self.shift) == sector
        });
        let next = extents.get(at).copied().filter(|next| {
            next.start() == part.end && sector + (part.len() << self.shift) == next.sector()
        });
        (at, prev, next)
    }

    /// Makes room for [`Self::add`] of `part`. Returns false if `rooms` have no memory for it.
    fn make_room(
        &mut self,
        region: usize,
        part: ChunkRange,
        sector: u64,
        rooms: &mut Rooms,
    ) -> bool {
        if let Some(extents) = self.region(region) {
            let has_room = extents.len() < extents.capacity();
            if has_room || !matches!(self.neighbours(extents, part, sector), (_, None, None)) {
                return true;
            }
        }
        let Ok(room) = rooms.0.binary_search_by_key(&region, |room| room.region) else {
            return false;
        };
        let room = &mut rooms.0[room];
        let Some(leaf) = self.leaves.get_mut(region / LEAF) else {
            return false;
        };
        if leaf.is_none() && room.leaf.is_some() {
            *leaf = room.leaf.take();
            self.memory += size_of::<Leaf>();
        }
        let Some(leaf) = leaf else {
            return false;
        };
        let extents = &mut leaf[region % LEAF];
        if room.extents.capacity() <= extents.len() {
            return false;
        }
        // The old vector is freed with the rooms, without the lock.
        let _ = room.extents.extend_from_slice(extents, GFP_NOWAIT);
        mem::swap(extents, &mut room.extents);
        room.extents.clear();
        let grown = extents.capacity() - room.extents.capacity();
        self.memory += grown * size_of::<Packed>();
        true
    }

    /// Adds `part`, for which there is room.
    fn add(&mut self, region: usize, part: ChunkRange, sector: u64) {
        let Some(extents) = self.region(region) else {
            return;
        };
        let (at, prev, next) = self.neighbours(extents, part, sector);
        let Some(Some(leaf)) = self.leaves.get_mut(region / LEAF) else {
            return;
        };
        let extents = &mut leaf[region % LEAF];
        let len = part.len();
        match (prev, next) {
            (Some(prev), Some(next)) => {
                extents[at - 1] =
                    Packed::new(prev.start(), prev.len() + len + next.len(), prev.sector());
                let _ = extents.remove(at);
                self.count -= 1;
            }
            (Some(prev), None) => {
                extents[at - 1] = Packed::new(prev.start(), prev.len() + len, prev.sector());
            }
            (None, Some(next)) => extents[at] = Packed::new(part.start, len + next.len(), sector),
            (None, None) => {
                let _ = extents.insert_within_capacity(at, Packed::new(part.start, len, sector));
                self.count += 1;
            }
        }
    }
}

#[kunit_tests(blksnap_stored_map)]
mod tests {
    use super::*;

    const SHIFT: u32 = Geometry::MIN_SHIFT;

    fn chunks(start: u64, end: u64) -> ChunkRange {
        ChunkRange { start, end }
    }

    /// A map of a device with `nr_chunks` chunks.
    fn map_of(nr_chunks: u64) -> Result<StoredMap> {
        StoredMap::new(Geometry::new(SHIFT, nr_chunks << (SHIFT - SECTOR_SHIFT)))
    }

    /// Adds chunks that are at chunk `at` of the storage.
    fn add(map: &mut StoredMap, start: u64, end: u64, at: u64) -> Result {
        let run = chunks(start, end);
        let mut rooms = Rooms::new(1, GFP_KERNEL)?;
        while !map.insert(run, at << SHIFT, &mut rooms)? {
            map.want(&[run], &mut rooms);
            rooms.allocate(GFP_KERNEL)?;
        }
        Ok(())
    }

    /// Chunk of the storage, and end of the extent.
    fn find(map: &StoredMap, start: u64, end: u64) -> Option<(u64, u64)> {
        let (at, end) = map.lookup(chunks(start, end))?;
        Some((at >> SHIFT, end))
    }

    #[test]
    fn lookup() -> Result {
        let mut map = map_of(1000)?;
        assert_eq!(find(&map, 0, 1000), None);
        add(&mut map, 10, 20, 100)?;
        add(&mut map, 30, 31, 500)?;
        assert_eq!(find(&map, 9, 20), None);
        assert_eq!(find(&map, 10, 1000), Some((100, 20)));
        assert_eq!(find(&map, 19, 20), Some((109, 20)));
        assert_eq!(find(&map, 12, 14), Some((102, 14)));
        assert_eq!(find(&map, 20, 31), None);
        assert_eq!(find(&map, 30, 32), Some((500, 31)));
        assert_eq!(find(&map, 999, 1000), None);
        assert_eq!(map.count(), 2);
        Ok(())
    }

    #[test]
    fn neighbours_are_one_extent() -> Result {
        let mut map = map_of(1000)?;
        add(&mut map, 10, 20, 100)?;
        add(&mut map, 20, 25, 300)?;
        assert_eq!(map.count(), 2);
        add(&mut map, 25, 30, 305)?;
        assert_eq!(map.count(), 2);
        assert_eq!(find(&map, 20, 40), Some((300, 30)));
        // Joins what is before it and after it.
        add(&mut map, 40, 50, 1000)?;
        add(&mut map, 60, 70, 1020)?;
        add(&mut map, 50, 60, 1010)?;
        assert_eq!(map.count(), 3);
        assert_eq!(find(&map, 45, 90), Some((1005, 70)));
        // A neighbour on the storage only is none.
        add(&mut map, 200, 201, 1030)?;
        assert_eq!(map.count(), 4);
        Ok(())
    }

    #[test]
    fn regions_are_read_as_one() -> Result {
        let mut map = map_of(4 * REGION)?;
        for start in (100..900).step_by(200) {
            add(&mut map, start, start + 200, start + 7)?;
        }
        assert_eq!(map.count(), 4);
        assert_eq!(find(&map, 100, 1000), Some((107, 900)));
        assert_eq!(find(&map, 300, 301), Some((307, 301)));
        add(&mut map, 900, 1000, 2000)?;
        assert_eq!(find(&map, 100, 1000), Some((107, 900)));
        assert_eq!(find(&map, 901, 1001), Some((2001, 1000)));
        // A whole region, from its first chunk on
        let mut map = map_of(4 * REGION)?;
        add(&mut map, REGION, 2 * REGION, 0)?;
        assert_eq!(find(&map, REGION, 3 * REGION), Some((0, 2 * REGION)));
        assert_eq!(
            find(&map, 2 * REGION - 1, 3 * REGION),
            Some((REGION - 1, 2 * REGION))
        );
        Ok(())
    }

    #[test]
    fn nothing_is_added_by_halves() -> Result {
        let mut map = map_of(4 * REGION)?;
        let run = chunks(REGION - 1, REGION + 1);
        let mut rooms = Rooms::new(1, GFP_KERNEL)?;
        map.want(&[chunks(REGION - 1, REGION)], &mut rooms);
        rooms.allocate(GFP_KERNEL)?;
        // There is room for its first half.
        assert_eq!(map.insert(run, 0, &mut rooms), Ok(false));
        assert_eq!((map.count(), find(&map, REGION - 1, REGION)), (0, None));
        add(&mut map, REGION - 1, REGION + 1, 0)?;
        assert_eq!(find(&map, REGION - 1, REGION + 1), Some((0, REGION + 1)));
        let far = 1 << 57;
        assert_eq!(map.insert(chunks(0, 1), far, &mut rooms), Err(EFBIG));
        assert_eq!(find(&map, 0, 1), None);
        Ok(())
    }

    #[test]
    fn many_are_added_at_once() -> Result {
        let mut map = map_of(4 * REGION)?;
        let mut rooms = Rooms::new(64, GFP_KERNEL)?;
        let mut runs = KVec::with_capacity(64, GFP_KERNEL)?;
        for n in 0..64 {
            runs.push(chunks(10 * n, 10 * n + 1), GFP_KERNEL)?;
        }
        map.want(&runs, &mut rooms);
        rooms.allocate(GFP_KERNEL)?;
        for run in runs.iter() {
            assert_eq!(map.insert(*run, run.start << SHIFT, &mut rooms), Ok(true));
        }
        assert_eq!(map.count(), 64);
        for run in runs.iter() {
            assert_eq!(find(&map, run.start, run.end), Some((run.start, run.end)));
        }
        Ok(())
    }

    #[test]
    fn agrees_with_a_model() -> Result {
        const N: usize = 3 * REGION as usize;
        let mut model = KVec::from_elem(None, N, GFP_KERNEL)?;
        let mut map = map_of(N as u64)?;
        let mut seed = 1u32;
        let mut random = |n: u32| {
            // A linear congruential generator, with the constants of Numerical Recipes.
            seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
            (seed >> 8) % n
        };
        let mut log = 0;
        for _ in 0..2000 {
            let start = random(N as u32) as usize;
            let end = (start + 1 + random(8) as usize).min(N);
            if model[start..end].iter().any(Option::is_some) {
                continue;
            }
            for i in start..end {
                model[i] = Some(log + (i - start) as u64);
            }
            add(&mut map, start as u64, end as u64, log)?;
            log += (end - start) as u64 + u64::from(random(2));
        }
        for (i, expected) in model.iter().enumerate() {
            let found = find(&map, i as u64, N as u64);
            assert_eq!(found.map(|(at, _)| at), *expected);
            // All that is behind it, and no more
            let runs = |j: &usize| {
                model[*j]
                    .zip(*expected)
                    .is_some_and(|(x, y)| x == y + (j - i) as u64)
            };
            let end = (i..N).take_while(runs).last().map(|j| j as u64 + 1);
            assert_eq!(found.map(|(_, end)| end), end);
        }
        Ok(())
    }

    /// Chunks in random places. 1 TiB of random writes of 4 KiB touches 9.5 % of 10 TiB: the
    /// extents take 2.5 GiB then, and the bits of saved chunks 320 MiB.
    #[test]
    fn memory() -> Result {
        for (per_mille, most) in [(95, 1100), (25, 1400)] {
            let mut map = map_of(1 << 16)?;
            let mut seed = 1u32;
            let mut log = 0;
            for start in 0..1 << 16 {
                seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
                if (seed >> 8) % 1000 < per_mille {
                    // Not next to each other on the storage
                    log += 2;
                    add(&mut map, start, start + 1, log)?;
                }
            }
            let bytes = 100 * map.memory() / map.count();
            let (whole, rest) = (bytes / 100, bytes % 100);
            pr_info!("{per_mille} of 1000 chunks: {whole}.{rest:02} bytes an extent\n");
            assert!(bytes <= most);
        }
        Ok(())
    }
}
