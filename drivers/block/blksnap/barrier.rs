// SPDX-License-Identifier: GPL-2.0-only

//! The barrier of a take: no device has I/O in flight.
//!
//! A stacked device must be quiesced before the device below it, or its I/O blocks there and it is
//! late. The driver does not know the stacking, so it finds a working order by trial: all devices
//! at once, then the late ones before the others, and so on. Devices that are only slow are waited
//! for together. I/O continues between two trials.

use crate::deadline::Deadline;
use kernel::{
    block::bdev::{
        BlockDevice,
        Late,
        Quiesced, //
    },
    prelude::*,
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// Fraction of the timeout that the first trial gets; each further trial gets twice as much.
const FIRST_TRIAL: i64 = 64;

/// Delay before the next trial if a driver was being suspended or resumed.
const BUSY: Delta = Delta::from_millis(10);

/// Items in an ordered list of groups.
struct Groups<T> {
    items: KVec<T>,
    /// Whether each item is the first of its group.
    first: KVec<bool>,
}

impl<T> Groups<T> {
    /// Makes one group of all.
    fn new(items: KVec<T>) -> Result<Self> {
        let mut first = KVec::from_elem(false, items.len(), GFP_KERNEL)?;
        if let Some(first) = first.first_mut() {
            *first = true;
        }
        Ok(Self { items, first })
    }

    /// Regroups after the first `late` items of the group at `start` were late.
    ///
    /// The others of the group come after them. If an earlier group was in the way, the next trial
    /// shows that: they join the group before.
    fn regroup(&mut self, start: usize, late: usize) {
        if let Some(first) = self.first.get_mut(start + late) {
            *first = true;
        }
        if start > 0 {
            self.first[start] = false;
        }
    }
}

/// Quiesces `devices` group by group and runs `f`. On error returns the start of the group that has
/// failed, too.
fn try_once(
    devices: &mut [&BlockDevice],
    first: &[bool],
    deadline: Deadline,
    f: &mut impl FnMut(),
) -> Result<(), (usize, Late)> {
    let Some((_, rest)) = first.split_first() else {
        f();
        return Ok(());
    };
    let count = 1 + rest.iter().take_while(|first| !**first).count();
    let (group, others) = devices.split_at_mut(count);
    let _quiesced = Quiesced::new(group, deadline.left().max(1)).map_err(|late| (0, late))?;
    // There are no more groups than trials.
    try_once(others, &first[count..], deadline, f).map_err(|(start, late)| (start + count, late))
}

/// The devices of a barrier, and the order in which they are quiesced.
pub(crate) struct Barrier<'a>(Groups<&'a BlockDevice>);

impl<'a> Barrier<'a> {
    /// May sleep.
    pub(crate) fn new(devices: KVec<&'a BlockDevice>) -> Result<Self> {
        // A disk is quiesced once, even if there are several partitions of it.
        let mut disks: KVec<&BlockDevice> = KVec::with_capacity(devices.len(), GFP_KERNEL)?;
        for device in devices {
            if !disks.iter().any(|disk| disk.has_disk_of(device)) {
                disks.push(device, GFP_KERNEL)?;
            }
        }
        Ok(Self(Groups::new(disks)?))
    }

    /// Runs `f` while no I/O is in flight to any of the devices; see [`Quiesced`] for what it must
    /// not do. May sleep, for hardly longer than `timeout`. Does not allocate.
    ///
    /// # Errors
    ///
    /// Those of [`Late`]; `f` has not run then.
    pub(crate) fn run(mut self, timeout: Delta, mut f: impl FnMut()) -> Result {
        let deadline = Deadline::after(timeout);
        let mut patience = timeout.as_millis() / FIRST_TRIAL;
        loop {
            let millis = patience.min(deadline.left_millis().into());
            let trial = Deadline::after(Delta::from_millis(millis));
            let Groups { items, first } = &mut self.0;
            let (start, late) = match try_once(items, first, trial, &mut f) {
                Ok(()) => return Ok(()),
                Err(failed) => failed,
            };
            if deadline.left_millis() == 0 {
                return Err(late.error);
            }
            match late.error {
                ETIMEDOUT => {
                    self.0.regroup(start, late.count);
                    patience *= 2;
                }
                EBUSY => fsleep(BUSY),
                error => return Err(error),
            }
        }
    }
}

#[kunit_tests(blksnap_barrier)]
mod tests {
    use super::*;

    fn groups(items: &[char]) -> Result<Groups<char>> {
        let mut all = KVec::new();
        all.extend_from_slice(items, GFP_KERNEL)?;
        Groups::new(all)
    }

    #[test]
    fn late_ones_go_ahead() -> Result {
        let mut groups = groups(&['a', 'b', 'c', 'd'])?;
        groups.regroup(0, 2);
        assert_eq!(groups.first[..], [true, false, true, false]);
        groups.regroup(0, 1);
        assert_eq!(groups.first[..], [true, true, true, false]);
        // Of a later group: together with those before
        groups.regroup(2, 1);
        assert_eq!(groups.first[..], [true, true, false, true]);
        Ok(())
    }

    #[test]
    fn slow_ones_stay_together() -> Result {
        let mut groups = groups(&['a', 'b', 'c'])?;
        groups.regroup(0, 3);
        assert_eq!(groups.first[..], [true, false, false]);
        groups.regroup(0, 1);
        groups.regroup(1, 2);
        assert_eq!(groups.first[..], [true, false, false]);
        Ok(())
    }

    /// Returns the number of trials; each character is stacked on those after it in the alphabet.
    fn trials(groups: &mut Groups<char>) -> usize {
        let mut trials = 0;
        loop {
            trials += 1;
            let mut failed = None;
            let mut start = 0;
            while start < groups.items.len() && failed.is_none() {
                let rest = &groups.first[start + 1..];
                let end = start + 1 + rest.iter().take_while(|first| !**first).count();
                // An item is late if one below it is in its group or an earlier one.
                let lowest = groups.items[..end].iter().copied().max();
                let mut late = 0;
                for at in start..end {
                    if Some(groups.items[at]) < lowest {
                        groups.items.swap(at, start + late);
                        late += 1;
                    }
                }
                if late > 0 {
                    failed = Some((start, late));
                }
                start = end;
            }
            match failed {
                Some((start, late)) => groups.regroup(start, late),
                None => return trials,
            }
        }
    }

    #[test]
    fn stacks_are_found() -> Result {
        // One trial for each level, whatever the order is
        for order in [
            ['f', 'e', 'd', 'c', 'b', 'a'],
            ['a', 'b', 'c', 'd', 'e', 'f'],
            ['d', 'b', 'a', 'c', 'f', 'e'],
        ] {
            let mut groups = groups(&order)?;
            assert_eq!(trials(&mut groups), 6);
            assert!(groups.items.is_sorted());
        }
        // From the worst order of groups
        let mut groups = groups(&['d', 'c', 'b', 'a'])?;
        groups.first.fill(true);
        assert!(trials(&mut groups) <= 12);
        assert!(groups.items.is_sorted());
        Ok(())
    }
}
