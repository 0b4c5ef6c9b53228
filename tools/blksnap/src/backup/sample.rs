// SPDX-License-Identifier: GPL-2.0-only

//! Random samples of what did not change, for a check of the change tracking.
//!
//! What is written past the filter, as the backing file of a loop device or a shared
//! LUN, is in no change map. A sample of the blocks that did not change finds it if
//! it is much, and sooner or later also if it is little.

use fastrand::Rng;

use super::changes::Extent;
use super::image::CLUSTER;

/// The least that is sampled, in bytes, if there is as much.
pub const LEAST: u64 = 16 << 20;
/// Bytes that are read at one place.
const PIECE: u64 = 4 * CLUSTER;

/// How much of `total` bytes is sampled at `percent`, which is 0 for nothing.
pub fn wanted(total: u64, percent: u8) -> u64 {
    match percent {
        0 => 0,
        _ => (total / 100 * u64::from(percent)).max(LEAST).min(total),
    }
}

/// What lies between the extents, which are in ascending order, up to `size`.
pub fn others(extents: &[Extent], size: u64) -> Vec<Extent> {
    let mut at = 0;
    let mut found = Vec::new();
    let end = Extent {
        offset: size,
        length: 0,
    };
    for extent in extents.iter().chain([&end]) {
        if extent.offset > at {
            found.push(Extent {
                offset: at,
                length: extent.offset - at,
            });
        }
        at = extent.end();
    }
    found
}

/// Picks at least `wanted` bytes of the extents, or all of them, in ascending order: one
/// piece at a random place in each of as many equal parts as there must be pieces.
///
/// Extents are of whole clusters, but for the end of the last one, and so is what is picked.
pub fn pick(extents: &[Extent], wanted: u64, random: &mut Rng) -> Vec<Extent> {
    let clusters: u64 = extents.iter().map(|it| it.length.div_ceil(CLUSTER)).sum();
    let piece = PIECE / CLUSTER;
    let parts = wanted.div_ceil(PIECE).min(clusters.div_ceil(piece));
    let mut picked = Vec::new();
    for part in 0..parts {
        let bound =
            |part: u64| (u128::from(clusters) * u128::from(part) / u128::from(parts)) as u64;
        let (start, end) = (bound(part), bound(part + 1));
        let length = piece.min(end - start);
        let first = start + random.u64(0..=end - start - length);
        put(extents, first, length, &mut picked);
    }
    picked
}

/// Appends `length` clusters, counted through all extents, from number `first` on.
fn put(extents: &[Extent], first: u64, length: u64, picked: &mut Vec<Extent>) {
    let mut before = 0;
    for extent in extents {
        let clusters = extent.length.div_ceil(CLUSTER);
        let start = first.max(before);
        let end = (first + length).min(before + clusters);
        if start < end {
            let offset = extent.offset + (start - before) * CLUSTER;
            let end = (extent.offset + (end - before) * CLUSTER).min(extent.end());
            picked.push(Extent {
                offset,
                length: end - offset,
            });
        }
        before += clusters;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::changes::total;

    fn extent(first: u64, clusters: u64) -> Extent {
        Extent {
            offset: first * CLUSTER,
            length: clusters * CLUSTER,
        }
    }

    #[test]
    fn a_part_is_wanted_but_not_too_little() {
        assert_eq!(wanted(1 << 40, 0), 0);
        assert_eq!(wanted(1 << 20, 1), 1 << 20);
        assert_eq!(wanted(1 << 30, 1), LEAST);
        assert_eq!(wanted(1 << 40, 1), (1 << 40) / 100);
        assert_eq!(wanted(1 << 40, 100), (1 << 40) / 100 * 100);
    }

    #[test]
    fn what_did_not_change_is_the_rest() {
        let size = 10 * CLUSTER + 512;
        let end = Extent {
            offset: 10 * CLUSTER,
            length: 512,
        };
        assert_eq!(
            others(&[], size),
            [Extent {
                offset: 0,
                length: size
            }]
        );
        assert_eq!(others(&[extent(0, 10), end], size), []);
        let rest = others(&[extent(1, 2), extent(5, 5)], size);
        assert_eq!(rest, [extent(0, 1), extent(3, 2), end]);
    }

    #[test]
    fn samples_lie_in_the_extents_and_are_as_much_as_is_wanted() {
        let last = Extent {
            offset: 900 * CLUSTER,
            length: 3 * CLUSTER + 512,
        };
        let extents = [extent(0, 1), extent(3, 40), extent(50, 700), last];
        for seed in 0..50 {
            for wanted in [0, 1, CLUSTER, 20 * CLUSTER, 300 * CLUSTER, u64::MAX / 2] {
                let picked = pick(&extents, wanted, &mut Rng::with_seed(seed));
                let all = total(&extents);
                assert!(total(&picked) + 3 * PIECE >= wanted.min(all), "{picked:?}");
                assert!(total(&picked) <= wanted.saturating_add(PIECE).min(all));
                let mut at = 0;
                for it in &picked {
                    assert!(it.offset >= at && it.length > 0);
                    assert_eq!(it.offset % CLUSTER, 0);
                    assert!(extents
                        .iter()
                        .any(|e| e.offset <= it.offset && it.end() <= e.end()));
                    at = it.end();
                }
            }
        }
        assert_eq!(pick(&[], 1 << 30, &mut Rng::with_seed(1)), []);
    }

    #[test]
    fn every_cluster_is_sampled_sooner_or_later() {
        let extents = [extent(7, 100), extent(200, 3)];
        let mut seen = std::collections::HashSet::new();
        let random = &mut Rng::with_seed(1);
        for _ in 0..2000 {
            for it in pick(&extents, CLUSTER, random) {
                seen.extend((it.offset..it.end()).step_by(CLUSTER as usize));
            }
        }
        assert_eq!(seen.len(), 103);
    }
}
