// SPDX-License-Identifier: GPL-2.0-only

use super::{chunks, config};
use crate::{
    budget::Budget,
    chunk::ChunkRange,
    saved_map::{NewLeaves, SavedMap},
};
use kernel::{alloc::fail_after, page::PAGE_SIZE, prelude::*, sync::SetOnce};
use proptest::{collection::vec, prelude::*};
use std::ops::Range;

/// Number of chunks whose bits are in a leaf.
const LEAF: usize = PAGE_SIZE * 8;

/// Number of chunks of the largest map.
const MAX: usize = 3 * LEAF + 200;

#[derive(Clone, Debug)]
enum Step {
    /// Allocates memory, which is used later or not at all.
    Prepare(Range<usize>),
    /// Uses the memory that was allocated first.
    Reserve,
    /// Saves chunks.
    Save(Range<usize>),
    /// Runs out of memory after some allocations.
    Fail(Range<usize>, usize),
}

/// Some chunks: near the ends of words and leaves, or anywhere.
fn some() -> impl Strategy<Value = Range<usize>> {
    let near = (0..=MAX / 64, 0..=2usize).prop_map(|(word, more)| word * 64 + more);
    let more = prop_oneof![Just(0), 0..=66usize];
    let leaf = (0..=MAX / LEAF, more).prop_map(|(leaf, more)| leaf * LEAF + more);
    let at = prop_oneof![near, leaf, 0..=MAX];
    let len = prop_oneof![4 => 0..=3usize, 4 => 0..=200usize, 1 => 0..=MAX];
    (at, len, any::<bool>()).prop_map(|(at, len, before)| {
        if before {
            at.saturating_sub(len)..at
        } else {
            at..at + len
        }
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => some().prop_map(Step::Prepare),
        1 => Just(Step::Reserve),
        4 => some().prop_map(Step::Save),
        1 => (some(), 0..4usize).prop_map(|(some, count)| Step::Fail(some, count)),
    ]
}

struct Model {
    saved: Vec<bool>,
    leaves: Vec<bool>,
}

impl Model {
    fn leaves_of(&mut self, range: &Range<usize>) -> &mut [bool] {
        &mut self.leaves[range.start / LEAF..range.end.div_ceil(LEAF)]
    }

    fn check(&self, map: &SavedMap, range: Range<usize>) {
        let part = &self.saved[range.clone()];
        let first = |saved| {
            let at = part.iter().position(|bit| *bit == saved);
            at.map(|at| (range.start + at) as u64)
        };
        let range = to_chunks(&range);
        assert_eq!(map.first_saved(range), first(true));
        assert_eq!(map.first_unsaved(range), first(false));
        let count = part.iter().filter(|bit| **bit).count();
        assert_eq!(map.count(range), count as u64);
    }

    fn check_memory(&self, map: &SavedMap) {
        let leaves = self.leaves.iter().filter(|leaf| **leaf).count();
        let each = size_of::<SetOnce<KBox<[u64; LEAF / 64]>>>();
        assert_eq!(map.memory(), leaves * PAGE_SIZE + self.leaves.len() * each);
    }
}

fn to_chunks(range: &Range<usize>) -> ChunkRange {
    chunks(range.start as u64, range.end as u64)
}

fn cut(range: Range<usize>, max: usize) -> Range<usize> {
    let end = range.end.min(max);
    range.start.min(end)..end
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn agrees_with_a_list(
        nr_chunks in 1..=MAX,
        steps in vec((step(), some()), 1..40),
    ) {
        let map = SavedMap::new(nr_chunks as u64, Budget::new(0).unwrap()).unwrap();
        let mut model = Model {
            saved: vec![false; nr_chunks],
            leaves: vec![false; nr_chunks.div_ceil(LEAF)],
        };
        let mut prepared = Vec::<(Range<usize>, NewLeaves)>::new();
        for (step, look) in steps {
            match step {
                Step::Prepare(range) => {
                    let range = cut(range, nr_chunks);
                    let new = map.prepare(to_chunks(&range), GFP_KERNEL).unwrap();
                    prepared.push((range, new));
                }
                Step::Reserve => {
                    if !prepared.is_empty() {
                        let (range, new) = prepared.remove(0);
                        map.reserve(new);
                        model.leaves_of(&range).fill(true);
                    }
                }
                Step::Save(range) => {
                    let range = cut(range, nr_chunks);
                    map.reserve(map.prepare(to_chunks(&range), GFP_NOWAIT).unwrap());
                    model.leaves_of(&range).fill(true);
                    map.set(to_chunks(&range));
                    model.saved[range.clone()].fill(true);
                    model.check(&map, range);
                }
                Step::Fail(range, count) => {
                    let range = cut(range, nr_chunks);
                    let missing = model.leaves_of(&range).iter().filter(|leaf| !**leaf).count();
                    let _failing = fail_after(count);
                    let result = map.prepare(to_chunks(&range), GFP_NOWAIT);
                    // One for each leaf, and at least one for the list of them.
                    if missing > 0 && count <= missing {
                        prop_assert_eq!(result.err(), Some(ENOMEM));
                    }
                }
            }
            model.check(&map, cut(look, nr_chunks));
            model.check_memory(&map);
        }
        model.check(&map, 0..nr_chunks);
    }

    #[test]
    fn chunks_beyond_the_map_are_refused(nr_chunks in 1..=MAX, range in some()) {
        let map = SavedMap::new(nr_chunks as u64, Budget::new(0).unwrap()).unwrap();
        let leaves = nr_chunks.div_ceil(LEAF) * LEAF;
        let beyond = range.start / LEAF < range.end.div_ceil(LEAF) && range.end > leaves;
        let result = map.prepare(to_chunks(&range), GFP_KERNEL);
        prop_assert_eq!(result.err(), beyond.then_some(EINVAL));
    }
}
