// SPDX-License-Identifier: GPL-2.0-only

//! The barrier of a take: no device has I/O on its way.
//!
//! What is stacked on another device has to be stopped before that one, or its I/O is stuck there.
//! Which device is stacked on which is not known here. So it is tried: all at once, then those that
//! did not come to rest ahead of the others, and so on. Between two trials I/O goes on.

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

/// The first trial gets this part of the time, and each one after it twice as much as the last.
const FIRST_TRIAL: i64 = 64;

/// For so long a driver that is just suspending or resuming is left alone.
const BUSY: Delta = Delta::from_millis(10);

/// Things in groups, of which one comes after the other.
struct Groups<T> {
    things: KVec<T>,
    /// Of each thing, in falling order. Those with the same rank are a group.
    ranks: KVec<u32>,
}

impl<T> Groups<T> {
    /// One group.
    fn new(things: KVec<T>) -> Result<Self> {
        let ranks = KVec::from_elem(0, things.len(), GFP_KERNEL)?;
        Ok(Self { things, ranks })
    }

    /// From now on the thing that is at `index` comes before those that it was in a group with.
    fn raise(&mut self, index: usize) {
        let Some(rank) = self.ranks.get(index).map(|rank| rank + 1) else {
            return;
        };
        let to = self.ranks.iter().position(|r| *r < rank).unwrap_or(index);
        if let Some(things) = self.things.get_mut(to..=index) {
            things.rotate_right(1);
        }
        // The others have the rank that this one had.
        if let Some(raised) = self.ranks.get_mut(to) {
            *raised = rank;
        }
    }
}

/// Quiesces `devices` group by group, at most `patience` milliseconds for each, and runs `f`.
fn try_once(
    devices: &[&BlockDevice],
    ranks: &[u32],
    patience: u32,
    f: &mut impl FnMut(),
) -> Result<(), Late> {
    let Some(rank) = ranks.first() else {
        f();
        return Ok(());
    };
    let count = ranks.iter().take_while(|r| *r == rank).count();
    let (group, others) = devices.split_at(count);
    let _quiesced = Quiesced::new(group, msecs_to_jiffies(patience))?;
    // There are no more groups than trials.
    try_once(others, &ranks[count..], patience, f).map_err(|late| Late {
        device: late.device + count,
        ..late
    })
}

/// What is needed to stop the I/O of devices.
pub(crate) struct Barrier<'a>(Groups<&'a BlockDevice>);

impl<'a> Barrier<'a> {
    /// May sleep.
    pub(crate) fn new(devices: KVec<&'a BlockDevice>) -> Result<Self> {
        Ok(Self(Groups::new(devices)?))
    }

    /// Runs `f` while no I/O goes on to any of the devices; see [`Quiesced`] for what it must not
    /// do. May sleep, for twice `timeout` at the most. Does not allocate.
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
            let late = match try_once(things, ranks, trial as u32, &mut f) {
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
    fn one_goes_ahead_of_its_group() -> Result {
        let mut groups = groups(&['a', 'b', 'c'])?;
        groups.raise(1);
        assert_eq!(groups.things[..], ['b', 'a', 'c']);
        assert_eq!(groups.ranks[..], [1, 0, 0]);
        // Two may be ahead of the rest.
        groups.raise(2);
        assert_eq!(groups.ranks[..], [1, 1, 0]);
        assert_eq!(groups.things[2], 'a');
        Ok(())
    }

    #[test]
    fn stacks_are_found() -> Result {
        // Each one is stacked on those after it. All but the last are late if they are in a group
        // with one of these, or behind it.
        let stack = ['w', 'x', 'y', 'z'];
        let mut groups = groups(&['z', 'x', 'w', 'y'])?;
        let mut trials = 0;
        loop {
            trials += 1;
            let depth = |thing: char| stack.iter().position(|s| *s == thing);
            let late = (0..stack.len()).find(|at| {
                (0..stack.len()).any(|other| {
                    groups.ranks[other] >= groups.ranks[*at]
                        && depth(groups.things[other]) > depth(groups.things[*at])
                })
            });
            match late {
                Some(at) => groups.raise(at),
                None => break,
            }
        }
        assert_eq!(groups.things[..], stack);
        assert!(trials <= 7);
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
