// SPDX-License-Identifier: GPL-2.0-only

use super::{chunks, config};
use crate::chunk::Geometry;
use kernel::block::bdev::SectorRange;
use proptest::prelude::*;

/// The largest device in sectors: its bytes are an offset of a file.
const MAX: u64 = 1 << 54;

fn geometry() -> impl Strategy<Value = Geometry> {
    let sectors = prop_oneof![1..10_000u64, MAX - 10_000..=MAX, 1..=MAX];
    (0..40u32, sectors).prop_map(|(shift, sectors)| Geometry::new(shift, sectors))
}

/// A device, and sectors that begin on it.
fn on_device() -> impl Strategy<Value = (Geometry, SectorRange)> {
    let len = prop_oneof![1..10_000u64, 1..=MAX, u64::MAX - 10_000..=u64::MAX];
    // From the start, or back from the end.
    (geometry(), 0..10_000u64, any::<bool>(), len).prop_map(|(geometry, at, back, len)| {
        let last = geometry.nr_sectors() - 1;
        let start = if back {
            last.saturating_sub(at)
        } else {
            at.min(last)
        };
        (geometry, SectorRange { start, len })
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn chunks_cover_sectors((geometry, range) in on_device()) {
        let sectors = (geometry.chunk_bytes() / 512) as u64;
        let found = geometry.chunks_of(range);
        let end = range.start.saturating_add(range.len).min(geometry.nr_sectors());
        // The first and the last sector are in the first and the last chunk.
        prop_assert_eq!(found.start, range.start / sectors);
        prop_assert_eq!(found.end - 1, (end - 1) / sectors);
        prop_assert!(found.end <= geometry.nr_chunks());

        let back = geometry.sectors_of(found);
        prop_assert_eq!(back.start, found.start * sectors);
        prop_assert_eq!(back.start + back.len, (found.end * sectors).min(geometry.nr_sectors()));
        prop_assert!(back.start <= range.start && end <= back.start + back.len);
        prop_assert_eq!(geometry.chunks_of(back), found);

        prop_assert_eq!(geometry.byte_of(found.start), back.start * 512);
    }

    #[test]
    fn sectors_beyond_the_device_are_cut(geometry in geometry(), start: u64, len in 1..=u64::MAX) {
        let found = geometry.chunks_of(SectorRange { start, len });
        prop_assert!(found.start <= found.end && found.end <= geometry.nr_chunks());
        if start >= geometry.nr_sectors() {
            // At most the last chunk, if that is not whole.
            prop_assert!(found.start + 1 >= geometry.nr_chunks());
        }
    }

    #[test]
    fn chunks_are_the_device(geometry in geometry()) {
        let all = geometry.chunks_of(SectorRange { start: 0, len: u64::MAX });
        prop_assert_eq!(all, chunks(0, geometry.nr_chunks()));
        let sectors = geometry.sectors_of(all);
        prop_assert_eq!((sectors.start, sectors.len), (0, geometry.nr_sectors()));
        prop_assert_eq!(geometry.chunk_bytes(), 1 << geometry.chunk_shift());
        prop_assert!((12..=20).contains(&geometry.chunk_shift()));
        prop_assert_eq!(geometry.max_run() * geometry.chunk_bytes() as u64, 1 << 20);
    }

    #[test]
    fn regions_are_aligned((geometry, range) in on_device(), len in 1..600u64) {
        let start = geometry.chunks_of(range).start;
        let some = chunks(start, (start + len).min(geometry.nr_chunks()));
        let run = geometry.max_run();
        let first = some.start / run;
        let region = geometry.region_of(some);
        prop_assert_eq!(region.is_some(), (some.end - 1) / run == first);
        if let Some(region) = region {
            prop_assert!(region.start <= some.start && some.end <= region.end);
            prop_assert_eq!(region.start, first * run);
            prop_assert_eq!(region.end, ((first + 1) * run).min(geometry.nr_chunks()));
            prop_assert!(geometry.bytes_of(region) <= Geometry::MAX_BYTES);
        }
    }
}
