// SPDX-License-Identifier: GPL-2.0-only

//! What is known of runs of chunks: extents, sorted by chunk, without overlaps.

use crate::chunk::ChunkRange;
use kernel::{
    alloc::Flags,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode,
        RBTreeNodeReservation, //
    }, //
};

/// A place that the data of a run of chunks is at.
pub(crate) trait Place {
    /// Whether `next` is where this place goes on after `chunks` chunks, so that both are one.
    fn continues(&self, chunks: u64, next: &Self) -> bool;
}

/// The value of an extent; the key is its first chunk.
pub(crate) struct Extent<P> {
    len: u64,
    place: P,
}

/// Memory for an extent, allocated before the map is locked.
pub(crate) struct NewExtent<P>(RBTreeNodeReservation<u64, Extent<P>>);

impl<P> NewExtent<P> {
    pub(crate) fn new(flags: Flags) -> Result<Self> {
        Ok(Self(RBTreeNodeReservation::new(flags)?))
    }

    fn fill(self, chunks: ChunkRange, place: P) -> RBTreeNode<u64, Extent<P>> {
        let extent = Extent {
            len: chunks.len(),
            place,
        };
        self.0.into_node(chunks.start, extent)
    }
}

/// What [`ExtentMap::lookup`] finds.
pub(crate) enum Piece {
    /// Chunks that are in no extent, up to this one.
    Hole(u64),
    /// The chunks of an extent.
    Extent(ChunkRange),
}

/// Extents of a device.
pub(crate) struct ExtentMap<P> {
    tree: RBTree<u64, Extent<P>>,
    count: usize,
}

impl<P> ExtentMap<P> {
    pub(crate) fn new() -> Self {
        Self {
            tree: RBTree::new(),
            count: 0,
        }
    }

    /// The first extent that ends after `chunk`.
    fn next(&self, chunk: u64) -> Option<ChunkRange> {
        let copy = |(start, extent): (&u64, &Extent<P>)| (*start, extent.len);
        let (before, from) = match self.tree.cursor_lower_bound(&chunk) {
            Some(cursor) => (cursor.peek_prev().map(copy), Some(copy(cursor.current()))),
            None => (self.tree.cursor_back().map(|c| copy(c.current())), None),
        };
        let (start, len) = before.filter(|(start, len)| start + len > chunk).or(from)?;
        Some(ChunkRange {
            start,
            end: start + len,
        })
    }

    /// What is at the first of `chunks`: the extent, whole, or how far the hole goes.
    pub(crate) fn lookup(&self, chunks: ChunkRange) -> Piece {
        match self.next(chunks.start) {
            Some(found) if found.start <= chunks.start => Piece::Extent(found),
            Some(found) => Piece::Hole(found.start.min(chunks.end)),
            None => Piece::Hole(chunks.end),
        }
    }

    /// Adds an extent, whose chunks are in no other.
    pub(crate) fn insert(&mut self, extent: NewExtent<P>, chunks: ChunkRange, place: P) {
        self.tree.insert(extent.fill(chunks, place));
        self.count += 1;
    }

    /// The number of extents.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The place of the extent that starts at `start`.
    pub(crate) fn get(&self, start: u64) -> Option<&P> {
        Some(&self.tree.get(&start)?.place)
    }

    /// The extent that starts at `start`.
    pub(crate) fn get_mut(&mut self, start: u64) -> Option<(ChunkRange, &mut P)> {
        let extent = self.tree.get_mut(&start)?;
        let chunks = ChunkRange {
            start,
            end: start + extent.len,
        };
        Some((chunks, &mut extent.place))
    }

    /// Removes the extent that starts at `start`.
    pub(crate) fn remove(&mut self, start: u64) -> Option<(ChunkRange, P)> {
        let extent = self.tree.remove(&start)?;
        self.count -= 1;
        let chunks = ChunkRange {
            start,
            end: start + extent.len,
        };
        Some((chunks, extent.place))
    }
}

impl<P: Place> ExtentMap<P> {
    /// Makes one of the extent that starts at `start` and its neighbours, where their places allow.
    pub(crate) fn merge(&mut self, start: u64) {
        let Some(mut cursor) = self.tree.cursor_lower_bound_mut(&start) else {
            return;
        };
        let (key, extent) = cursor.current();
        let (key, len) = (*key, extent.len);
        if key != start {
            return;
        }
        let next_len = match cursor.peek_next() {
            Some((next, extent_next))
                if *next == start + len && extent.place.continues(len, &extent_next.place) =>
            {
                Some(extent_next.len)
            }
            _ => None,
        };
        if let Some(next_len) = next_len {
            cursor.remove_next();
            self.count -= 1;
            cursor.current_mut().1.len = len + next_len;
        }

        let (_, extent) = cursor.current();
        let len = extent.len;
        let joins = match cursor.peek_prev() {
            Some((prev, extent_prev)) => {
                *prev + extent_prev.len == start
                    && extent_prev.place.continues(extent_prev.len, &extent.place)
            }
            None => false,
        };
        if joins {
            if let Some((_, extent_prev)) = cursor.peek_prev_mut() {
                extent_prev.len += len;
                cursor.remove_current();
                self.count -= 1;
            }
        }
    }
}

#[kunit_tests(blksnap_extent_map)]
mod tests {
    use super::*;

    /// The chunk that the data of an extent is of, as if they were moved by an offset.
    #[derive(Debug, PartialEq)]
    struct At(u64);

    impl Place for At {
        fn continues(&self, chunks: u64, next: &Self) -> bool {
            self.0 + chunks == next.0
        }
    }

    fn chunks(start: u64, end: u64) -> ChunkRange {
        ChunkRange { start, end }
    }

    fn add(map: &mut ExtentMap<At>, start: u64, end: u64, at: u64) -> Result {
        map.insert(NewExtent::new(GFP_KERNEL)?, chunks(start, end), At(at));
        map.merge(start);
        Ok(())
    }

    /// Whether one of `chunks` is in an extent.
    fn overlaps(map: &ExtentMap<At>, chunks: ChunkRange) -> bool {
        !matches!(map.lookup(chunks), Piece::Hole(end) if end == chunks.end)
    }

    fn find(map: &ExtentMap<At>, chunk: u64) -> Option<(u64, u64, u64)> {
        match map.lookup(chunks(chunk, chunk + 1)) {
            Piece::Extent(found) => Some((found.start, found.end, map.get(found.start)?.0)),
            Piece::Hole(_) => None,
        }
    }

    fn count(map: &ExtentMap<At>) -> usize {
        assert_eq!(map.tree.keys().count(), map.count());
        map.count()
    }

    #[test]
    fn lookup() -> Result {
        let mut map = ExtentMap::new();
        assert!(!overlaps(&map, chunks(0, u64::MAX)));
        add(&mut map, 10, 20, 100)?;
        add(&mut map, 30, 31, 500)?;
        assert_eq!(find(&map, 9), None);
        assert_eq!(find(&map, 10), Some((10, 20, 100)));
        assert_eq!(find(&map, 19), Some((10, 20, 100)));
        assert_eq!(find(&map, 20), None);
        assert_eq!(find(&map, 30), Some((30, 31, 500)));
        assert_eq!(find(&map, 31), None);
        assert!(matches!(map.lookup(chunks(0, 15)), Piece::Hole(10)));
        assert!(matches!(map.lookup(chunks(0, 5)), Piece::Hole(5)));
        assert!(matches!(map.lookup(chunks(20, 50)), Piece::Hole(30)));
        assert!(matches!(map.lookup(chunks(31, 50)), Piece::Hole(50)));
        assert!(overlaps(&map, chunks(0, 11)));
        assert!(!overlaps(&map, chunks(0, 10)));
        assert!(overlaps(&map, chunks(19, 30)));
        assert!(!overlaps(&map, chunks(20, 30)));
        assert!(overlaps(&map, chunks(0, 40)));
        Ok(())
    }

    #[test]
    fn merges_in_both_spaces_only() -> Result {
        let mut map = ExtentMap::new();
        add(&mut map, 10, 20, 100)?;
        add(&mut map, 20, 25, 300)?;
        assert_eq!(count(&map), 2);
        add(&mut map, 25, 30, 305)?;
        assert_eq!(count(&map), 2);
        assert_eq!(find(&map, 29), Some((20, 30, 300)));
        // Joins what is before it and after it.
        add(&mut map, 40, 50, 1000)?;
        add(&mut map, 60, 70, 1020)?;
        add(&mut map, 50, 60, 1010)?;
        assert_eq!(count(&map), 3);
        assert_eq!(find(&map, 65), Some((40, 70, 1000)));
        // A neighbour by place only is none.
        add(&mut map, 200, 201, 1030)?;
        assert_eq!(count(&map), 4);
        Ok(())
    }

    #[test]
    fn sequential_is_one_extent() -> Result {
        let mut map = ExtentMap::new();
        for i in 0..1000 {
            add(&mut map, i, i + 1, i + 7)?;
        }
        assert_eq!(count(&map), 1);
        assert_eq!(find(&map, 999), Some((0, 1000, 7)));
        assert_eq!(map.remove(0), Some((chunks(0, 1000), At(7))));
        assert_eq!(count(&map), 0);
        Ok(())
    }

    #[test]
    fn agrees_with_a_model() -> Result {
        const N: usize = 512;
        let mut model = KVec::from_elem(None, N, GFP_KERNEL)?;
        let mut map = ExtentMap::new();
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
            let found = find(&map, i as u64).map(|(start, _, at)| at + i as u64 - start);
            assert_eq!(found, *expected);
        }
        Ok(())
    }
}
