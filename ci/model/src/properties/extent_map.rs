// SPDX-License-Identifier: GPL-2.0-only

use super::{chunks, config};
use crate::extent_map::{ExtentMap, NewExtent, Piece};
use kernel::prelude::*;
use proptest::{collection::vec, prelude::*};

/// Number of chunks.
const COUNT: usize = 64;

#[derive(Clone, Debug)]
enum Step {
    Add(usize, usize),
    /// Changes the value of the run that begins at a chunk.
    Change(usize),
    Remove(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let chunk = || 0..COUNT;
    prop_oneof![
        6 => (chunk(), 1..8usize).prop_map(|(at, len)| Step::Add(at, len)),
        2 => chunk().prop_map(Step::Change),
        2 => chunk().prop_map(Step::Remove),
    ]
}

/// The first chunk, the end and the value of the run that each chunk is in.
type Model = [Option<(usize, usize, u32)>; COUNT];

fn check(model: &Model, map: &ExtentMap<u32>, look: usize) {
    for at in 0..COUNT {
        let end = (at + look).min(COUNT);
        match (map.lookup(chunks(at as u64, end as u64)), model[at]) {
            (Piece::Extent(found), Some((start, end, value))) => {
                assert_eq!(found, chunks(start as u64, end as u64));
                assert_eq!(map.get(found.start), Some(&value));
            }
            (Piece::Hole(hole), None) => {
                let taken = (at..end).find(|at| model[*at].is_some());
                assert_eq!(hole, taken.unwrap_or(end) as u64);
            }
            (_, found) => panic!("chunk {at} should be in {found:?}"),
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn agrees_with_an_array(steps in vec((step(), 1..20usize), 1..60)) {
        let mut map = ExtentMap::new();
        let mut model: Model = [None; COUNT];
        for (value, (step, look)) in (0..).zip(steps) {
            match step {
                Step::Add(start, len) => {
                    let end = (start + len).min(COUNT);
                    if model[start..end].iter().any(Option::is_some) {
                        continue;
                    }
                    let new = NewExtent::new(GFP_KERNEL).unwrap();
                    map.insert(new, chunks(start as u64, end as u64), value);
                    model[start..end].fill(Some((start, end, value)));
                }
                Step::Change(at) => match (map.get_mut(at as u64), model[at]) {
                    (Some((found, old)), Some((start, end, before))) => {
                        prop_assert_eq!(start, at);
                        prop_assert_eq!(found, chunks(start as u64, end as u64));
                        prop_assert_eq!(std::mem::replace(old, value), before);
                        model[start..end].fill(Some((start, end, value)));
                    }
                    (found, expected) => {
                        prop_assert!(found.is_none());
                        prop_assert!(expected.is_none_or(|(start, _, _)| start != at));
                    }
                },
                Step::Remove(at) => match (map.remove(at as u64), model[at]) {
                    (Some((removed, old, _)), Some((start, end, value))) => {
                        prop_assert_eq!(start, at);
                        prop_assert_eq!(removed, chunks(start as u64, end as u64));
                        prop_assert_eq!(old, value);
                        model[start..end].fill(None);
                    }
                    (removed, expected) => {
                        prop_assert!(removed.is_none());
                        prop_assert!(expected.is_none_or(|(start, _, _)| start != at));
                    }
                },
            }
            check(&model, &map, look);
        }
    }
}
