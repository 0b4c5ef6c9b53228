// SPDX-License-Identifier: GPL-2.0-only

//! What changed on a device, from its change map.

use serde::Deserialize;
use serde::Serialize;

use crate::device::Tracking;

/// A range of bytes, not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    pub offset: u64,
    pub length: u64,
}

impl Extent {
    pub const fn end(&self) -> u64 {
        self.offset + self.length
    }
}

/// Why a map says nothing, if it does not fit to its device.
pub fn distrust(map: &[u8], tracking: &Tracking) -> Option<String> {
    let covered = u64::from(tracking.block_size) * map.len() as u64;
    if map.len() != tracking.block_count as usize || covered < tracking.device_capacity {
        return Some(format!(
            "the change map has {} blocks of {} bytes for a device of {} bytes",
            map.len(),
            tracking.block_size,
            tracking.device_capacity
        ));
    }
    // The map is frozen by the newest take, and has none of a later one.
    let highest = map.iter().max().copied().unwrap_or(0);
    (highest > tracking.changes_number).then(|| {
        format!(
            "the change map names snapshot {highest}, but the newest one is {}",
            tracking.changes_number
        )
    })
}

/// The extents that changed after take number `since`, in ascending order,
/// with unchanged bytes between any two of them.
pub fn changed(map: &[u8], since: u8, tracking: &Tracking) -> Vec<Extent> {
    let block = u64::from(tracking.block_size);
    let mut extents: Vec<Extent> = Vec::new();
    for (index, _) in map.iter().enumerate().filter(|(_, &byte)| byte > since) {
        let offset = index as u64 * block;
        if offset >= tracking.device_capacity {
            break;
        }
        let length = block.min(tracking.device_capacity - offset);
        push(&mut extents, Extent { offset, length });
    }
    extents
}

/// The same extents, grown to multiples of `unit` within `size` bytes.
pub fn aligned(extents: &[Extent], unit: u64, size: u64) -> Vec<Extent> {
    let mut grown = Vec::new();
    for extent in extents {
        let offset = extent.offset / unit * unit;
        let end = extent.end().next_multiple_of(unit).min(size);
        let length = end - offset;
        push(&mut grown, Extent { offset, length });
    }
    grown
}

/// What is in one of two lists in ascending order, or in both.
pub fn union(some: &[Extent], others: &[Extent]) -> Vec<Extent> {
    let mut all = [some, others].concat();
    all.sort_by_key(|extent| extent.offset);
    let mut united = Vec::new();
    for extent in all {
        push(&mut united, extent);
    }
    united
}

/// Appends an extent that begins in the last one or after it.
pub(super) fn push(extents: &mut Vec<Extent>, extent: Extent) {
    match extents.last_mut() {
        Some(last) if last.end() >= extent.offset => {
            last.length = last.end().max(extent.end()) - last.offset;
        }
        _ => extents.push(extent),
    }
}

/// The bytes of all extents together.
pub fn total(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| extent.length).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Uuid;

    fn tracking(block_size: u32, device_capacity: u64, changes_number: u8) -> Tracking {
        Tracking {
            device_capacity,
            block_size,
            block_count: device_capacity.div_ceil(block_size.into()) as u32,
            generation_id: Uuid::from_bytes([1; 16]),
            changes_number,
        }
    }

    fn extents(list: &[(u64, u64)]) -> Vec<Extent> {
        list.iter()
            .map(|&(offset, length)| Extent { offset, length })
            .collect()
    }

    #[test]
    fn changed_means_greater_than_since() {
        // Four blocks and a started one.
        let tracking = tracking(1000, 4100, 5);
        let map = [3, 4, 5, 0, 4];
        let since = |number| changed(&map, number, &tracking);
        assert_eq!(since(0), extents(&[(0, 3000), (4000, 100)]));
        assert_eq!(since(3), extents(&[(1000, 2000), (4000, 100)]));
        assert_eq!(since(4), extents(&[(2000, 1000)]));
        assert_eq!(since(5), []);
        assert_eq!(since(255), []);
        assert_eq!(total(&since(3)), 2100);
    }

    #[test]
    fn extents_grow_to_whole_units() {
        let small = extents(&[(512, 512), (2048, 512), (4000, 100)]);
        assert_eq!(
            aligned(&small, 1024, 4100),
            extents(&[(0, 1024), (2048, 2052)])
        );
        assert_eq!(
            aligned(&small, 512, 4100),
            extents(&[(512, 512), (2048, 512), (3584, 516)])
        );
        assert_eq!(aligned(&small, 65536, 4100), extents(&[(0, 4100)]));
        assert_eq!(aligned(&[], 65536, 4100), []);
    }

    #[test]
    fn what_is_in_one_list_is_in_both() {
        let some = extents(&[(0, 512), (4096, 512), (8192, 1024)]);
        let others = extents(&[(512, 512), (4096, 1024), (6000, 1)]);
        let both = extents(&[(0, 1024), (4096, 1024), (6000, 1), (8192, 1024)]);
        assert_eq!(union(&some, &others), both);
        assert_eq!(union(&others, &some), both);
        assert_eq!(union(&some, &[]), some);
        assert_eq!(union(&[], &[]), []);
    }

    #[test]
    fn every_block_is_found_whatever_the_units() {
        // A generator of numbers that are different enough.
        let mut state = 1u32;
        let mut random = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 16
        };
        for _ in 0..200 {
            let block_size = 512 << (random() % 6);
            let capacity = u64::from(random() % 500 + 1) * 512;
            let tracking = tracking(block_size, capacity, 9);
            let map: Vec<u8> = (0..tracking.block_count)
                .map(|_| (random() % 10) as u8)
                .collect();
            let unit = 512 << (random() % 6);
            let since = (random() % 10) as u8;
            let found = aligned(&changed(&map, since, &tracking), unit, capacity);
            for (at, next) in found.iter().zip(found.iter().skip(1)) {
                assert!(at.end() < next.offset);
            }
            for byte in (0..capacity).step_by(512) {
                let is_changed = map[(byte / u64::from(block_size)) as usize] > since;
                let is_found = found.iter().any(|e| e.offset <= byte && byte < e.end());
                assert!(is_found || !is_changed);
                // A unit may have more than was changed, but is found for a reason.
                let start = byte / unit * unit;
                let reason = (start..(start + unit).min(capacity))
                    .step_by(512)
                    .any(|byte| map[(byte / u64::from(block_size)) as usize] > since);
                assert_eq!(is_found, reason);
            }
        }
    }

    #[test]
    fn maps_that_do_not_fit_are_not_trusted() {
        let tracking = tracking(1000, 4100, 5);
        assert_eq!(distrust(&[5, 0, 0, 0, 1], &tracking), None);
        assert!(distrust(&[5, 0, 0, 0], &tracking).is_some());
        assert!(distrust(&[6, 0, 0, 0, 1], &tracking)
            .unwrap()
            .contains("snapshot 6"));
        let short = Tracking {
            block_count: 4,
            ..tracking
        };
        assert!(distrust(&[5, 0, 0, 0], &short).is_some());
    }
}
