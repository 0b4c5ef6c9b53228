// SPDX-License-Identifier: GPL-2.0-only

//! The barrier of a take: no device has I/O in flight.
//!
//! A stacked device must be quiesced before the device below it, or its I/O blocks there. The
//! driver does not know the stacking, so it finds a working order by trial: all devices at once,
//! then the one that timed out and those behind it, which were not waited for, before the others,
//! and so on. I/O continues between two trials.

use kernel::{
    block::bdev::{
        BlockDevice,
        Late,
        Quiesced, //
    },
    prelude::*,
    time::{
        delay::fsleep,
        msecs_to_jiffies,
        Delta,
        Instant,
        Monotonic, //
    }, //
};

/// Fraction of the timeout that the first trial gets; each further trial gets twice as much.
const FIRST_TRIAL: i64 = 64;

/// Delay before the next trial if a driver was being suspended or resumed.
const BUSY: Delta = Delta::from_millis(10);

/// Items in an ordered list of groups.
struct Groups<T> {
    things: KVec<T>,
    /// Rank of each item, in descending order. Items of the same rank are a group.
    ranks: KVec<u32>,
}

impl<T> Groups<T> {
    /// One group.
    fn new(things: KVec<T>) -> Result<Self> {
        let ranks = KVec::from_elem(0, things.len(), GFP_KERNEL)?;
        Ok(Self { things, ranks })
    }

    /// Moves the item at `index` and those behind it in its group ahead of the others of the group,
    /// or if it is the first of them, it alone.
    fn raise(&mut self, index: usize) {
        let Some(rank) = self.ranks.get(index).copied() else {
            return;
        };
        let group = |r: &u32| *r == rank;
        let start = self.ranks.iter().position(group).unwrap_or(index);
        let end = self.ranks.iter().rposition(group).unwrap_or(index) + 1;
        let (end, count) = if index == start {
            (start + 1, 1)
        } else {
            (end, end - index)
        };
        if let Some(things) = self.things.get_mut(start..end) {
            things.rotate_right(count);
        }
        if let Some(raised) = self.ranks.get_mut(start..start + count) {
            raised.fill(rank + 1);
        }
    }
}

/// Quiesces `devices` group by group, within `patience` milliseconds after `begin`, and runs `f`.
fn try_once(
    devices: &[&BlockDevice],
    ranks: &[u32],
    begin: Instant<Monotonic>,
    patience: i64,
    f: &mut impl FnMut(),
) -> Result<(), Late> {
    let Some(rank) = ranks.first() else {
        f();
        return Ok(());
    };
    let count = ranks.iter().take_while(|r| *r == rank).count();
    let (group, others) = devices.split_at(count);
    let left = patience.saturating_sub(begin.elapsed().as_millis()).max(1);
    let _quiesced = Quiesced::new(group, msecs_to_jiffies(left as u32))?;
    // There are no more groups than trials.
    try_once(others, &ranks[count..], begin, patience, f).map_err(|late| Late {
        device: late.device + count,
        ..late
    })
}

/// The devices of a barrier, and the order in which they are quiesced.
pub(crate) struct Barrier<'a>(Groups<&'a BlockDevice>);

impl<'a> Barrier<'a> {
    /// May sleep.
    pub(crate) fn new(devices: KVec<&'a BlockDevice>) -> Result<Self> {
        Ok(Self(Groups::new(devices)?))
    }

    /// Runs `f` while no I/O goes on to any of the devices; see [`Quiesced`] for what it must not
    /// do. May sleep, for hardly longer than `timeout`. Does not allocate.
    ///
    /// # Errors
    ///
    /// Those of [`Late`] for one of the devices; `f` has not run then.
    pub(crate) fn run(mut self, timeout: Delta, mut f: impl FnMut()) -> Result {
        let begin = Instant::<Monotonic>::now();
        let mut patience = timeout.as_millis() / FIRST_TRIAL;
        loop {
            let left = timeout.as_millis() - begin.elapsed().as_millis();
            let trial = patience.clamp(1, left.max(1));
            let Groups { things, ranks } = &self.0;
            let now = Instant::<Monotonic>::now();
            let late = match try_once(things, ranks, now, trial, &mut f) {
                Ok(()) => return Ok(()),
                Err(late) => late,
            };
            if begin.elapsed() >= timeout {
                return Err(late.error);
            }
            match late.error {
                ETIMEDOUT => {
                    self.0.raise(late.device);
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

    fn groups(things: &[char]) -> Result<Groups<char>> {
        let mut all = KVec::new();
        all.extend_from_slice(things, GFP_KERNEL)?;
        Groups::new(all)
    }

    #[test]
    fn the_rest_of_a_group_goes_ahead() -> Result {
        let mut groups = groups(&['a', 'b', 'c', 'd'])?;
        groups.raise(2);
        assert_eq!(groups.things[..], ['c', 'd', 'a', 'b']);
        assert_eq!(groups.ranks[..], [1, 1, 0, 0]);
        // It alone, to the end of the group ahead of its own.
        groups.raise(2);
        assert_eq!(groups.things[..], ['c', 'd', 'a', 'b']);
        assert_eq!(groups.ranks[..], [1, 1, 1, 0]);
        Ok(())
    }

    /// How many trials it takes; each character is stacked on those after it in the alphabet.
    fn trials(order: &[char]) -> Result<usize> {
        let mut groups = groups(order)?;
        let mut trials = 0;
        loop {
            trials += 1;
            // One is late if it is in a group with one of those, or behind it.
            let late = (0..order.len()).find(|at| {
                (0..order.len()).any(|other| {
                    groups.ranks[other] >= groups.ranks[*at]
                        && groups.things[other] > groups.things[*at]
                })
            });
            match late {
                Some(at) => groups.raise(at),
                None => break,
            }
        }
        assert!(groups.things.is_sorted());
        Ok(trials)
    }

    #[test]
    fn stacks_are_found() -> Result {
        assert!(trials(&['d', 'b', 'a', 'c'])? <= 6);
        // The common ones, from the bottom and from the top
        assert!(trials(&['e', 'd', 'c', 'b', 'a'])? <= 6);
        assert!(trials(&['a', 'b', 'c', 'd', 'e'])? <= 6);
        Ok(())
    }

    #[test]
    fn the_first_stays_the_first() -> Result {
        let mut groups = groups(&['a', 'b'])?;
        groups.raise(0);
        groups.raise(0);
        groups.raise(7);
        assert_eq!(groups.things[..], ['a', 'b']);
        assert_eq!(groups.ranks[..], [2, 0]);
        Ok(())
    }
}
