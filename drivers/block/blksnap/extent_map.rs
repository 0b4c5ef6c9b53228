// SPDX-License-Identifier: GPL-2.0-only

//! What is known of runs of chunks, sorted, without overlaps.

use crate::chunk::ChunkRange;
use kernel::{
    alloc::Flags,
    prelude::*,
    rbtree::{
        Entry,
        RBTree,
        RBTreeNode,
        RBTreeNodeReservation, //
    }, //
};

/// What is known of an extent; the key is its first chunk.
pub(crate) struct Extent<P> {
    len: u64,
    /// None as long as it is being removed.
    value: Option<P>,
}

/// Memory for an extent, allocated before the map is locked.
pub(crate) struct NewExtent<P>(RBTreeNodeReservation<u64, Extent<P>>);

impl<P> NewExtent<P> {
    /// Sleeps if `flags` do.
    pub(crate) fn new(flags: Flags) -> Result<Self> {
        Ok(Self(RBTreeNodeReservation::new(flags)?))
    }

    fn fill(self, chunks: ChunkRange, value: P) -> RBTreeNode<u64, Extent<P>> {
        let extent = Extent {
            len: chunks.len(),
            value: Some(value),
        };
        self.0.into_node(chunks.start, extent)
    }
}

/// What [`ExtentMap::lookup`] finds.
#[derive(PartialEq, Eq)]
pub(crate) enum Piece {
    /// Chunks that are in no extent, up to this one.
    Hole(u64),
    /// The chunks of an extent.
    Extent(ChunkRange),
}

/// Extents of a device.
pub(crate) struct ExtentMap<P> {
    tree: RBTree<u64, Extent<P>>,
}

impl<P> ExtentMap<P> {
    pub(crate) fn new() -> Self {
        Self {
            tree: RBTree::new(),
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
    pub(crate) fn insert(&mut self, extent: NewExtent<P>, chunks: ChunkRange, value: P) {
        self.tree.insert(extent.fill(chunks, value));
    }

    /// The value of the extent that starts at `start`.
    pub(crate) fn get(&self, start: u64) -> Option<&P> {
        self.tree.get(&start)?.value.as_ref()
    }

    /// The extent that starts at `start`.
    pub(crate) fn get_mut(&mut self, start: u64) -> Option<(ChunkRange, &mut P)> {
        let extent = self.tree.get_mut(&start)?;
        let chunks = ChunkRange {
            start,
            end: start + extent.len,
        };
        Some((chunks, extent.value.as_mut()?))
    }

    /// Removes the extent that starts at `start`. Another one can have its memory.
    pub(crate) fn remove(&mut self, start: u64) -> Option<(ChunkRange, P, NewExtent<P>)> {
        let Entry::Occupied(mut entry) = self.tree.entry(start) else {
            return None;
        };
        let extent = entry.get_mut();
        let chunks = ChunkRange {
            start,
            end: start + extent.len,
        };
        let value = extent.value.take()?;
        let memory = NewExtent(entry.remove_node().into_reservation());
        Some((chunks, value, memory))
    }
}

#[kunit_tests(blksnap_extent_map)]
mod tests {
    use super::*;

    fn chunks(start: u64, end: u64) -> ChunkRange {
        ChunkRange { start, end }
    }

    fn add(map: &mut ExtentMap<u32>, start: u64, end: u64, value: u32) -> Result {
        map.insert(NewExtent::new(GFP_KERNEL)?, chunks(start, end), value);
        Ok(())
    }

    /// Whether one of `chunks` is in an extent.
    fn overlaps(map: &ExtentMap<u32>, chunks: ChunkRange) -> bool {
        !matches!(map.lookup(chunks), Piece::Hole(end) if end == chunks.end)
    }

    fn find(map: &ExtentMap<u32>, chunk: u64) -> Option<(u64, u64, u32)> {
        match map.lookup(chunks(chunk, chunk + 1)) {
            Piece::Extent(found) => Some((found.start, found.end, *map.get(found.start)?)),
            Piece::Hole(_) => None,
        }
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
        assert_eq!(map.tree.keys().count(), 2);
        Ok(())
    }

    #[test]
    fn neighbours_stay_apart() -> Result {
        let mut map = ExtentMap::new();
        for start in [20, 0, 10] {
            add(&mut map, start, start + 10, start as u32)?;
        }
        assert_eq!(map.tree.keys().count(), 3);
        assert_eq!(find(&map, 19), Some((10, 20, 10)));
        let (found, value) = map.get_mut(10).ok_or(EINVAL)?;
        assert_eq!(found, chunks(10, 20));
        *value = 7;
        assert!(map.get_mut(11).is_none());
        let Some((removed, 7, memory)) = map.remove(10) else {
            return Err(EINVAL);
        };
        assert_eq!(removed, chunks(10, 20));
        assert!(map.remove(10).is_none());
        map.insert(memory, chunks(11, 12), 8);
        assert!(matches!(map.remove(11), Some((_, 8, _))));
        assert!(matches!(map.lookup(chunks(10, 30)), Piece::Hole(20)));
        assert_eq!(map.tree.keys().count(), 2);
        Ok(())
    }
}
