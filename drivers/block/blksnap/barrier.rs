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
    /// Whether each item is the first of its group.
    first: KVec<bool>,
}

impl<T> Groups<T> {
    /// One group.
    fn new(things: KVec<T>) -> Result<Self> {
        let mut first = KVec::from_elem(false, things.len(), GFP_KERNEL)?;
        if let Some(first) = first.first_mut() {
            *first = true;
        }
        Ok(Self { things, first })
    }

    /// Splits the group with the item at `index`: that and those behind it go ahead of the others.
    /// If it is the first one, it alone does; if there are no others, it goes ahead of the group
    /// before.
    fn raise(&mut self, index: usize) {
        if index >= self.things.len() {
            return;
        }
        let start_of =
            |first: &[bool], at: usize| first[..=at].iter().rposition(|first| *first).unwrap_or(0);
        let mut start = start_of(&self.first, index);
        let behind = self.first[start + 1..].iter().position(|first| *first);
        let end = behind.map_or(self.first.len(), |len| start + 1 + len);
        let mut count = end - index;
        if index == start {
            count = 1;
            if end == start + 1 && start > 0 {
                start = start_of(&self.first, start - 1);
            }
        }
        if index > start {
            self.things[start..end].rotate_right(count);
        }
        self.first[start..end].fill(false);
        self.first[start] = true;
        if let Some(first) = self.first.get_mut(start + count) {
            *first = true;
        }
    }
}

/// Quiesces `devices` group by group, within `patience` milliseconds after `begin`, and runs `f`.
fn try_once(
    devices: &[&BlockDevice],
    first: &[bool],
    begin: Instant<Monotonic>,
    patience: i64,
    f: &mut impl FnMut(),
) -> Result<(), Late> {
    let Some((_, rest)) = first.split_first() else {
        f();
        return Ok(());
    };
    let count = 1 + rest.iter().take_while(|first| !**first).count();
    let (group, others) = devices.split_at(count);
    let left = patience.saturating_sub(begin.elapsed().as_millis()).max(1);
    let _quiesced = Quiesced::new(group, msecs_to_jiffies(left as u32))?;
    // There are no more groups than trials.
    try_once(others, &first[count..], begin, patience, f).map_err(|late| Late {
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
            let Groups { things, first } = &self.0;
            let now = Instant::<Monotonic>::now();
            let late = match try_once(things, first, now, trial, &mut f) {
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
        assert_eq!(groups.first[..], [true, false, true, false]);
        // The first one, alone
        groups.raise(2);
        assert_eq!(groups.things[..], ['c', 'd', 'a', 'b']);
        assert_eq!(groups.first[..], [true, false, true, true]);
        // Ahead of the group before
        groups.raise(2);
        assert_eq!(groups.things[..], ['a', 'c', 'd', 'b']);
        assert_eq!(groups.first[..], [true, true, false, true]);
        Ok(())
    }

    /// How many trials it takes; each character is stacked on those after it in the alphabet.
    fn trials(order: &[char]) -> Result<usize> {
        let mut groups = groups(order)?;
        let mut trials = 0;
        loop {
            trials += 1;
            let group = |at: usize| groups.first[..=at].iter().filter(|first| **first).count();
            // One is late if it is in a group with one of those, or behind it.
            let late = (0..order.len()).find(|at| {
                (0..order.len()).any(|other| {
                    group(other) <= group(*at) && groups.things[other] > groups.things[*at]
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
        // From the bottom and from the top, one for each level
        assert_eq!(trials(&['f', 'e', 'd', 'c', 'b', 'a'])?, 6);
        assert_eq!(trials(&['a', 'b', 'c', 'd', 'e', 'f'])?, 6);
        assert_eq!(trials(&['d', 'b', 'a', 'c'])?, 5);
        // The worst order of four
        assert_eq!(trials(&['c', 'b', 'a', 'd'])?, 7);
        Ok(())
    }

    #[test]
    fn one_alone_stays() -> Result {
        let mut groups = groups(&['a', 'b'])?;
        groups.raise(0);
        groups.raise(0);
        groups.raise(7);
        assert_eq!(groups.things[..], ['a', 'b']);
        assert_eq!(groups.first[..], [true, true]);
        Ok(())
    }
}
