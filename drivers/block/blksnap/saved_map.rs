// SPDX-License-Identifier: GPL-2.0-only

//! Which chunks are saved: a bit for each, which is all that a write to a saved chunk looks at.
//!
//! The bits are in leaves of a page, allocated when a chunk of theirs is first claimed. Bits are
//! only ever set, so reading needs no lock.

use crate::chunk::ChunkRange;
use kernel::{
    alloc::Flags,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        SetOnce, //
    }, //
};

const WORD_BITS: u64 = u64::BITS as u64;
const LEAF_WORDS: usize = PAGE_SIZE / size_of::<u64>();
const LEAF_BITS: u64 = LEAF_WORDS as u64 * WORD_BITS;

type Leaf = [Atomic<u64>; LEAF_WORDS];

/// Leaves that were missing, and which ones they are.
pub(crate) struct NewLeaves(KVec<(usize, KBox<Leaf>)>);

/// The bits of a device.
pub(crate) struct SavedMap {
    leaves: VVec<SetOnce<KBox<Leaf>>>,
}

impl SavedMap {
    /// A map of `nr_chunks` chunks, none of which is saved. May sleep.
    pub(crate) fn new(nr_chunks: u64) -> Result<Self> {
        let count = usize::try_from(nr_chunks.div_ceil(LEAF_BITS))?;
        let mut leaves = VVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            leaves.push(SetOnce::new(), GFP_KERNEL)?;
        }
        Ok(Self { leaves })
    }

    /// The bytes of memory that it takes.
    pub(crate) fn memory(&self) -> usize {
        let leaves = self.leaves.iter().filter(|leaf| leaf.as_ref().is_some());
        leaves.count() * size_of::<Leaf>() + self.leaves.len() * size_of::<SetOnce<KBox<Leaf>>>()
    }

    /// Allocates what [`Self::reserve`] needs. May sleep if `flags` do.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], or [`EINVAL`] for chunks that are not in the map.
    pub(crate) fn prepare(&self, chunks: ChunkRange, flags: Flags) -> Result<NewLeaves> {
        let mut new = KVec::new();
        for index in chunks.start / LEAF_BITS..chunks.end.div_ceil(LEAF_BITS) {
            let index = index as usize;
            if self.leaves.get(index).ok_or(EINVAL)?.as_ref().is_none() {
                let leaf = pin_init::init_array_from_fn(|_| Atomic::new(0));
                new.push((index, KBox::init(leaf, flags)?), flags)?;
            }
        }
        Ok(NewLeaves(new))
    }

    /// Makes sure that the bits of the chunks for which `new` was prepared can be set. No other
    /// call is going on: what one that is half-way adds could not be seen yet. Does not sleep.
    pub(crate) fn reserve(&self, new: NewLeaves) {
        for (index, leaf) in new.0 {
            // If somebody else was faster, this one is not needed.
            self.leaves[index].populate(leaf);
        }
    }

    /// Calls `f` with the index of each word that `chunks` have bits in, and the mask of these
    /// bits, until it returns something.
    fn words<R>(chunks: ChunkRange, mut f: impl FnMut(u64, u64) -> Option<R>) -> Option<R> {
        let mut at = chunks.start;
        while at < chunks.end {
            let word = at / WORD_BITS;
            let end = chunks.end.min((word + 1) * WORD_BITS);
            let mask = (u64::MAX >> (WORD_BITS - (end - at))) << (at % WORD_BITS);
            if let Some(result) = f(word, mask) {
                return Some(result);
            }
            at = end;
        }
        None
    }

    fn word(&self, index: u64) -> Option<&Atomic<u64>> {
        let leaf = self.leaves.get((index / LEAF_WORDS as u64) as usize)?;
        Some(&leaf.as_ref()?[(index % LEAF_WORDS as u64) as usize])
    }

    /// Marks `chunks` as saved. They were reserved, and no other call is going on.
    pub(crate) fn set(&self, chunks: ChunkRange) {
        Self::words(chunks, |index, mask| {
            if let Some(word) = self.word(index) {
                word.store(word.load(Relaxed) | mask, Release);
            }
            None::<()>
        });
    }

    /// How many of `chunks` are saved.
    pub(crate) fn count(&self, chunks: ChunkRange) -> u64 {
        let mut count = 0;
        Self::words(chunks, |index, mask| {
            let saved = self.word(index).map_or(0, |word| word.load(Relaxed));
            count += u64::from((saved & mask).count_ones());
            None::<()>
        });
        count
    }

    /// The first of `chunks` whose bit is set in a word of them as `f` sees it.
    #[inline]
    fn first(&self, chunks: ChunkRange, f: impl Fn(u64) -> u64) -> Option<u64> {
        Self::words(chunks, |index, mask| {
            let saved = self.word(index).map_or(0, |word| word.load(Acquire));
            let found = mask & f(saved);
            (found != 0).then(|| index * WORD_BITS + u64::from(found.trailing_zeros()))
        })
    }

    /// The first of `chunks` that is saved.
    #[inline]
    pub(crate) fn first_saved(&self, chunks: ChunkRange) -> Option<u64> {
        self.first(chunks, |saved| saved)
    }

    /// The first of `chunks` that is not saved.
    #[inline]
    pub(crate) fn first_unsaved(&self, chunks: ChunkRange) -> Option<u64> {
        self.first(chunks, |saved| !saved)
    }
}

#[kunit_tests(blksnap_saved_map)]
mod tests {
    use super::*;

    fn chunks(start: u64, end: u64) -> ChunkRange {
        ChunkRange { start, end }
    }

    #[test]
    fn bits() -> Result {
        let map = SavedMap::new(1000)?;
        assert_eq!(map.first_unsaved(chunks(3, 900)), Some(3));
        map.reserve(map.prepare(chunks(3, 200), GFP_KERNEL)?);
        map.set(chunks(3, 200));
        assert_eq!(map.first_unsaved(chunks(3, 200)), None);
        assert_eq!(map.first_unsaved(chunks(2, 200)), Some(2));
        assert_eq!(map.first_unsaved(chunks(64, 201)), Some(200));
        assert_eq!(map.first_unsaved(chunks(5, 5)), None);
        assert_eq!(map.first_saved(chunks(0, 3)), None);
        assert_eq!(map.first_saved(chunks(200, 1000)), None);
        assert_eq!(map.first_saved(chunks(0, 4)), Some(3));
        assert_eq!(map.first_saved(chunks(64, 1000)), Some(64));
        assert_eq!(map.first_saved(chunks(199, 1000)), Some(199));
        assert_eq!(map.first_saved(chunks(5, 5)), None);
        assert_eq!(map.count(chunks(0, 1000)), 197);
        assert_eq!(map.count(chunks(60, 130)), 70);
        assert_eq!(map.count(chunks(199, 201)), 1);
        assert_eq!(map.count(chunks(200, 1000)), 0);
        Ok(())
    }

    #[test]
    fn across_leaves() -> Result {
        let map = SavedMap::new(3 * LEAF_BITS + 1)?;
        let range = chunks(LEAF_BITS - 1, 2 * LEAF_BITS + 1);
        let twice = map.prepare(range, GFP_KERNEL)?;
        map.reserve(map.prepare(range, GFP_KERNEL)?);
        map.set(range);
        map.reserve(twice);
        assert_eq!(map.first_unsaved(range), None);
        assert_eq!(map.first_unsaved(chunks(0, LEAF_BITS)), Some(0));
        assert_eq!(
            map.first_unsaved(chunks(LEAF_BITS, 3 * LEAF_BITS)),
            Some(2 * LEAF_BITS + 1)
        );
        // A leaf that is not there has no saved chunks.
        assert_eq!(
            map.first_unsaved(chunks(3 * LEAF_BITS, 3 * LEAF_BITS + 1)),
            Some(3 * LEAF_BITS)
        );
        assert!(map.prepare(chunks(0, 5 * LEAF_BITS), GFP_KERNEL).is_err());
        Ok(())
    }

    #[test]
    fn every_bit_alone() -> Result {
        for bit in [0, 1, 63, 64, 65, LEAF_BITS - 1, LEAF_BITS] {
            let map = SavedMap::new(2 * LEAF_BITS)?;
            map.reserve(map.prepare(chunks(bit, bit + 1), GFP_KERNEL)?);
            map.set(chunks(bit, bit + 1));
            assert_eq!(map.first_unsaved(chunks(bit, bit + 1)), None);
            assert_eq!(map.first_unsaved(chunks(bit, bit + 2)), Some(bit + 1));
            if bit > 0 {
                assert_eq!(map.first_unsaved(chunks(bit - 1, bit + 1)), Some(bit - 1));
            }
        }
        Ok(())
    }
}
