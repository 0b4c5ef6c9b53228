// SPDX-License-Identifier: GPL-2.0-only

//! Which chunks are saved: a bit for each, which is all that a write to a saved chunk looks at.
//!
//! The bits are in leaves of a page, allocated when a chunk of theirs is first claimed. Bits are
//! only ever set, so reading needs no lock.

use crate::{
    budget::Budget,
    chunk::ChunkRange, //
};
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
        Arc,
        SetOnce, //
    }, //
};

const WORD_BITS: u64 = u64::BITS as u64;
const LEAF_WORDS: usize = PAGE_SIZE / size_of::<u64>();
const LEAF_BITS: u64 = LEAF_WORDS as u64 * WORD_BITS;

type Leaf = [Atomic<u64>; LEAF_WORDS];

/// Leaves that were missing, and which ones they are. Hardly ever any.
pub(crate) struct NewLeaves(Option<KVec<(usize, KBox<Leaf>)>>);

/// The bits of a device.
pub(crate) struct SavedMap {
    leaves: VVec<SetOnce<KBox<Leaf>>>,
    /// Number of leaves that are there.
    count: Atomic<usize>,
    budget: Arc<Budget>,
}

impl SavedMap {
    /// A map of `nr_chunks` chunks, none of which is saved. Its memory is accounted as that of
    /// `budget`. May sleep.
    pub(crate) fn new(nr_chunks: u64, budget: Arc<Budget>) -> Result<Self> {
        let count = usize::try_from(nr_chunks.div_ceil(LEAF_BITS))?;
        let mut leaves = budget.account(|| VVec::with_capacity(count, GFP_KERNEL_ACCOUNT))?;
        for _ in 0..count {
            leaves.push(SetOnce::new(), GFP_KERNEL)?;
        }
        Ok(Self {
            leaves,
            count: Atomic::new(0),
            budget,
        })
    }

    /// The bytes of memory that it takes.
    pub(crate) fn memory(&self) -> usize {
        let leaves = self.count.load(Relaxed) * size_of::<Leaf>();
        leaves + self.leaves.len() * size_of::<SetOnce<KBox<Leaf>>>()
    }

    /// Allocates what [`Self::reserve`] needs. May sleep if `flags` do.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], or [`EINVAL`] for chunks that are not in the map.
    pub(crate) fn prepare(&self, chunks: ChunkRange, flags: Flags) -> Result<NewLeaves> {
        let mut new = None;
        for index in chunks.start / LEAF_BITS..chunks.end.div_ceil(LEAF_BITS) {
            let index = index as usize;
            if self.leaves.get(index).ok_or(EINVAL)?.as_ref().is_none() {
                let leaf = pin_init::init_array_from_fn(|_| Atomic::new(0));
                let new = new.get_or_insert_with(KVec::new);
                let leaf = || KBox::init(leaf, flags | __GFP_ACCOUNT);
                new.push((index, self.budget.account(leaf)?), flags)?;
            }
        }
        Ok(NewLeaves(new))
    }

    /// Makes sure that the bits of the chunks for which `new` was prepared can be set. No other
    /// call is going on: what one that is half-way adds could not be seen yet. Does not sleep.
    pub(crate) fn reserve(&self, new: NewLeaves) {
        for (index, leaf) in new.0.into_iter().flatten() {
            // If somebody else was faster, this one is not needed.
            if self.leaves[index].populate(leaf) {
                self.count.add(1, Relaxed);
            }
        }
    }

    fn leaf(&self, index: u64) -> Option<&Leaf> {
        Some(&**self.leaves.get(index as usize)?.as_ref()?)
    }

    /// Calls `f` with the number of the first chunk of each word that `chunks` have bits in, the
    /// word, if it is there, and the mask of these bits, until it returns something.
    #[inline]
    fn words<R>(
        &self,
        chunks: ChunkRange,
        mut f: impl FnMut(u64, Option<&Atomic<u64>>, u64) -> Option<R>,
    ) -> Option<R> {
        let mut start = chunks.start;
        let mut leaf = self.leaf(start / LEAF_BITS);
        while start < chunks.end {
            let first = start / WORD_BITS * WORD_BITS;
            let mut mask = u64::MAX << (start - first);
            if chunks.end - first < WORD_BITS {
                mask &= (1 << (chunks.end - first)) - 1;
            }
            let word = leaf.map(|leaf| &leaf[(first % LEAF_BITS / WORD_BITS) as usize]);
            if let Some(result) = f(first, word, mask) {
                return Some(result);
            }
            start = first + WORD_BITS;
            if start % LEAF_BITS == 0 {
                leaf = self.leaf(start / LEAF_BITS);
            }
        }
        None
    }

    /// Marks `chunks` as saved. They were reserved, and no other call is going on.
    pub(crate) fn set(&self, chunks: ChunkRange) {
        self.words(chunks, |_, word, mask| {
            if let Some(word) = word {
                word.store(word.load(Relaxed) | mask, Release);
            }
            None::<()>
        });
    }

    /// How many of `chunks` are saved.
    pub(crate) fn count(&self, chunks: ChunkRange) -> u64 {
        let mut count = 0;
        self.words(chunks, |_, word, mask| {
            let saved = mask & word.map_or(0, |word| word.load(Relaxed));
            // Most words have none, and not every processor has an instruction for it.
            if saved != 0 {
                count += u64::from(saved.count_ones());
            }
            None::<()>
        });
        count
    }

    /// The first of `chunks` whose bit is set in a word of them as `f` sees it.
    #[inline]
    fn first(&self, chunks: ChunkRange, f: impl Fn(u64) -> u64) -> Option<u64> {
        self.words(chunks, |first, word, mask| {
            let saved = word.map_or(0, |word| word.load(Acquire));
            let found = mask & f(saved);
            (found != 0).then(|| first + u64::from(found.trailing_zeros()))
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
        let map = SavedMap::new(1000, Budget::new(0)?)?;
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
        let map = SavedMap::new(3 * LEAF_BITS + 1, Budget::new(0)?)?;
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
            let map = SavedMap::new(2 * LEAF_BITS, Budget::new(0)?)?;
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
