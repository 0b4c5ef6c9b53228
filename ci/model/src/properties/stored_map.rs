// SPDX-License-Identifier: GPL-2.0-only

use super::{chunks, config};
use crate::{
    chunk::Geometry,
    stored_map::{Rooms, StoredMap},
};
use kernel::{alloc::fail_after, prelude::*};
use proptest::{collection::vec, prelude::*};

/// Number of chunks: more than two regions.
const COUNT: usize = 600;
const SHIFT: u32 = Geometry::MIN_SHIFT;

#[derive(Clone, Copy, Debug)]
enum Where {
    /// A place of its own.
    Apart,
    /// Behind what the chunk before has.
    BehindPrevious,
    /// Ahead of what the chunk after has.
    AheadOfNext,
}

/// Runs that are added after memory was allocated for them together: the first chunk, the length,
/// and the place. And how many allocations succeed in the first attempt.
fn batch() -> impl Strategy<Value = (Vec<(usize, usize, Where)>, usize)> {
    let place = prop_oneof![
        Just(Where::Apart),
        Just(Where::BehindPrevious),
        Just(Where::AheadOfNext)
    ];
    let len = prop_oneof![5 => 1..9usize, 1 => 1..257usize];
    (vec((0..COUNT, len, place), 1..12), 0..40usize)
}

fn choose(model: &[Option<u64>], start: usize, end: usize, place: Where, fresh: &mut u64) -> u64 {
    *fresh += 10_000;
    let previous = start.checked_sub(1).and_then(|at| model[at]);
    match (place, previous, model.get(end).copied().flatten()) {
        (Where::BehindPrevious, Some(at), _) => at + 1,
        (Where::AheadOfNext, _, Some(at)) => at - (end - start) as u64,
        _ => *fresh,
    }
}

fn check(model: &[Option<u64>], map: &StoredMap, look: usize) {
    for at in 0..COUNT {
        let end = (at + look).min(COUNT);
        let found = map.lookup(chunks(at as u64, end as u64));
        let place = |other: usize| model[at].map(|place| place + (other - at) as u64);
        let behind =
            (at..end).take_while(|other| model[*other].is_some() && model[*other] == place(*other));
        let expected = model[at].map(|place| (place << SHIFT, (at + behind.count()) as u64));
        assert_eq!(found, expected, "chunk {at}");
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn agrees_with_an_array(batches in vec((batch(), 1..300usize), 1..20)) {
        let geometry = Geometry::new(SHIFT, (COUNT as u64) << (SHIFT - 9));
        let mut map = StoredMap::new(geometry).unwrap();
        let mut model = [None; COUNT];
        let mut fresh = 0;
        for ((runs, memory), look) in batches {
            let mut added = Vec::new();
            for (start, len, place) in runs {
                let end = (start + len).min(COUNT);
                if model[start..end].iter().all(Option::is_none) {
                    let at = choose(&model, start, end, place, &mut fresh);
                    for (other, place) in (start..end).zip(at..) {
                        model[other] = Some(place);
                    }
                    added.push((chunks(start as u64, end as u64), at << SHIFT));
                }
            }
            added.sort_by_key(|(run, _)| run.start);
            let runs: Vec<_> = added.iter().map(|(run, _)| *run).collect();
            let mut rooms = Rooms::new(added.len(), GFP_KERNEL).unwrap();
            let mut left = &added[..];
            let mut tries = 0;
            while let Some(((run, at), rest)) = left.split_first() {
                if map.insert(*run, *at, &mut rooms).unwrap() {
                    left = rest;
                    continue;
                }
                // What was wanted is enough for all that are left.
                tries += 1;
                prop_assert!(tries <= 2);
                let wanted = &runs[runs.len() - left.len()..];
                map.want(wanted, &mut rooms);
                let short = fail_after(memory);
                let allocated = rooms.allocate(GFP_KERNEL);
                drop(short);
                if allocated.is_err() {
                    // And half of it harms nothing.
                    if map.insert(*run, *at, &mut rooms).unwrap() {
                        left = rest;
                    }
                    map.want(wanted, &mut rooms);
                    rooms.allocate(GFP_KERNEL).unwrap();
                }
            }
            check(&model, &map, look);
        }
    }
}
