// SPDX-License-Identifier: GPL-2.0-only

use super::config;
use crate::change_map::{ChangeMap, Limits, Selection};
use crate::marks::LEAF_BLOCKS;
use kernel::{
    alloc::{flags::GFP_KERNEL, KVec},
    block::bdev::SectorRange,
};
use proptest::{collection::vec, prelude::*};

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64),
    Dirty(u64, u64),
    /// Before that, what has changed since one of the snapshots is selected.
    Take(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let start = || prop_oneof![20 => 0..1500u64, 1 => any::<u64>()];
    let len = || prop_oneof![4 => 1..8u64, 1 => 1..200u64, 1 => 1..1500u64];
    prop_oneof![
        6 => (start(), len()).prop_map(|(start, len)| Step::Write(start, len)),
        1 => (start(), len()).prop_map(|(start, len)| Step::Dirty(start, len)),
        2 => any::<usize>().prop_map(Step::Take),
    ]
}

proptest! {
    #![proptest_config(config())]

    /// A block has changed since a snapshot if one of its sectors was written between that and the
    /// newest one.
    #[test]
    fn agrees_with_all_that_was_written(
        nr_sectors in 1..1500u64,
        min_shift in 9..12u32,
        max_count in 1..1500u64,
        // Whether there is memory for all leaves
        memory in any::<bool>(),
        steps in vec(step(), 1..60),
    ) {
        let max_bytes = if memory { usize::MAX / 2 } else { 0 };
        let limits = Limits { min_shift, max_shift: 14, max_count, max_bytes };
        let map = ChangeMap::new(&limits, nr_sectors, None).unwrap();
        let block = u64::from(map.block_bytes() / 512);
        prop_assert_eq!(map.nr_blocks() as u64, nr_sectors.div_ceil(block));
        // The sectors that have one mark
        let together = if memory { block } else { LEAF_BLOCKS as u64 * block } as usize;
        // The sectors that were written after each of the snapshots, and before the first one.
        let mut written = vec![vec![false; nr_sectors as usize]];
        let mut complete = true;
        let mut selected = None;
        for step in steps {
            match step {
                Step::Write(start, len) | Step::Dirty(start, len) => {
                    let inside = start.checked_add(len).is_some_and(|end| end <= nr_sectors);
                    let dirty = matches!(step, Step::Dirty(..));
                    let range = SectorRange { start, len };
                    if dirty {
                        // It could select more.
                        selected = None;
                        prop_assert_eq!(map.mark_dirty(range).is_ok(), inside);
                    } else {
                        map.mark(range);
                        complete &= inside;
                    }
                    if inside {
                        // What is made dirty has changed before the newest snapshot, too.
                        let epochs = if dirty { 2 } else { 1 };
                        for written in written.iter_mut().rev().take(epochs) {
                            written[start as usize..(start + len) as usize].fill(true);
                        }
                    }
                }
                Step::Take(since) => {
                    let mut ids = KVec::with_capacity(ChangeMap::MAX_TAKES, GFP_KERNEL).unwrap();
                    map.read_takes(&mut ids).unwrap();
                    let since = since % ids.len().max(1);
                    let selection = ids.get(since).map(|id| Selection::since(id, map.clone()).unwrap());
                    map.freeze();
                    map.identify_newest();
                    written.push(vec![false; nr_sectors as usize]);
                    selected = selection.map(|selection| (selection, since + 1));
                }
            }
            let newest = written.len() - 1;
            prop_assert_eq!(usize::from(map.number()), newest);
            prop_assert_eq!(map.is_complete(), complete);
            let mut frozen = vec![0; map.nr_blocks()];
            prop_assert_eq!(map.read_frozen(0, &mut frozen), frozen.len());
            for (number, byte) in frozen.iter().enumerate() {
                let start = number * block as usize / together * together;
                let sectors = start..(start + together).min(nr_sectors as usize);
                let last = (0..newest)
                    .rev()
                    .find(|epoch| written[*epoch][sectors.clone()].contains(&true));
                // So it is greater than the numbers of those after which it has changed.
                prop_assert_eq!(usize::from(*byte), last.map_or(0, |epoch| epoch + 1));
                if let Some((selection, since)) = &selected {
                    let start = number as u64 * block;
                    let len = block.min(nr_sectors - start);
                    let has = usize::from(*byte) > *since;
                    prop_assert_eq!(selection.has_some(SectorRange { start, len: 1 }), has);
                    prop_assert_eq!(selection.has_all(SectorRange { start, len }), has);
                }
            }
            if let Some((selection, since)) = &selected {
                let has = |byte: &u8| usize::from(*byte) > *since;
                let all = SectorRange { start: 0, len: nr_sectors };
                prop_assert_eq!(selection.has_some(all), frozen.iter().any(has));
                prop_assert_eq!(selection.has_all(all), frozen.iter().all(has));
            }
        }
    }
}
