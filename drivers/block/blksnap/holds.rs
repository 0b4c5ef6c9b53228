// SPDX-License-Identifier: GPL-2.0-only

//! Accounts how long the writers of a device are held for the difference storage.

use kernel::prelude::*;

/// Milliseconds at the start of a hold that are not counted. The stores in flight, 4 MiB at most,
/// take as long on a storage that does 16 MiB/s.
const GRACE: u64 = 250;

const MS_NS: u64 = 1_000_000;

/// The owner gets an event at this fraction of the limit.
const EVENT_FRACTION: u32 = 6;

/// A minute in milliseconds.
const MINUTE: u32 = 60_000;

/// Verdict on how long writers were held in the last minute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Held {
    Shortly,
    /// The milliseconds to report. Returned at most once a minute.
    Long(u32),
    /// The limit is reached: the snapshot must be given up.
    TooLong,
}

/// How long writers were held in each of the last 60 seconds. Times are in ns of a monotonic clock.
pub(crate) struct Holds {
    /// Start of the hold in progress, as far as it is not counted yet.
    since: Option<u64>,
    /// Milliseconds, indexed by the second modulo 60.
    seconds: [u32; 60],
    /// The newest second in `seconds`.
    last: u64,
    /// The second before which no further event is due.
    quiet: u64,
}

impl Holds {
    pub(crate) fn new() -> Self {
        Self {
            since: None,
            seconds: [0; 60],
            last: 0,
            quiet: 0,
        }
    }

    /// Starts a hold, unless one is in progress.
    pub(crate) fn begin(&mut self, now: u64) {
        self.since.get_or_insert(now + GRACE * MS_NS);
    }

    /// Ends the hold in progress, which is counted up to now.
    pub(crate) fn end(&mut self) {
        self.since = None;
    }

    /// Counts the hold in progress up to `now`. Returns the milliseconds that this adds.
    pub(crate) fn count(&mut self, now: u64) -> u64 {
        let second = now / (1000 * MS_NS);
        let passed = second.saturating_sub(self.last).min(60);
        for past in 0..passed {
            self.seconds[((second - past) % 60) as usize] = 0;
        }
        self.last = second;
        let Some(since) = &mut self.since else {
            return 0;
        };
        let held = now.saturating_sub(*since) / MS_NS;
        *since += held * MS_NS;
        // The sum of them must fit, too.
        let here = &mut self.seconds[(second % 60) as usize];
        *here = u64::from(*here).saturating_add(held).min(MINUTE.into()) as u32;
        held
    }

    /// Returns the milliseconds for which writers were held in the minute before the last count.
    pub(crate) fn last_minute(&self) -> u32 {
        self.seconds.iter().sum::<u32>().min(MINUTE)
    }

    /// Returns the verdict if writers may be held for `limit` milliseconds of a minute.
    pub(crate) fn judge(&mut self, limit: u32) -> Held {
        let held = self.last_minute();
        if held >= limit {
            return Held::TooLong;
        }
        if held < limit / EVENT_FRACTION || self.last < self.quiet {
            return Held::Shortly;
        }
        self.quiet = self.last + 60;
        Held::Long(held)
    }
}

#[kunit_tests(blksnap_holds)]
mod tests {
    use super::*;

    /// Writers are held from `from` to `to`, in milliseconds.
    fn hold(holds: &mut Holds, from: u64, to: u64) -> u64 {
        holds.begin(from * MS_NS);
        let held = holds.count(to * MS_NS);
        holds.end();
        held
    }

    #[test]
    fn what_is_short_is_not_counted() {
        let mut holds = Holds::new();
        for ms in (0..100_000).step_by(110) {
            assert_eq!(hold(&mut holds, ms, ms + GRACE), 0);
        }
        assert_eq!(holds.last_minute(), 0);
        assert_eq!(holds.judge(1000), Held::Shortly);
    }

    #[test]
    fn owner_is_told_once_a_minute() {
        let mut holds = Holds::new();
        assert_eq!(hold(&mut holds, 1000, 2000), 750);
        assert_eq!(holds.judge(6000), Held::Shortly);
        hold(&mut holds, 3000, 3500);
        assert_eq!(holds.judge(6000), Held::Long(1000));
        hold(&mut holds, 4000, 6000);
        assert_eq!(holds.judge(6000), Held::Shortly);
        hold(&mut holds, 62_000, 64_000);
        assert_eq!(holds.judge(6000), Held::Long(3500));
    }

    #[test]
    fn limit_is_that_of_a_minute() {
        let mut holds = Holds::new();
        // Half of each second but the grace
        for second in 0..300 {
            let begin = second * 1000;
            assert_eq!(hold(&mut holds, begin, begin + 500 + GRACE), 500);
            assert_eq!(holds.last_minute(), (second as u32 + 1).min(60) * 500);
        }
        assert_eq!(holds.judge(30_000), Held::TooLong);
        assert_eq!(holds.judge(30_001), Held::Long(30_000));
        assert_eq!(holds.count(301_000 * MS_NS), 0);
        assert_eq!(holds.last_minute(), 29_000);
        holds.count(400_000 * MS_NS);
        assert_eq!(holds.last_minute(), 0);
    }

    #[test]
    fn hold_that_goes_on_is_counted() {
        let mut holds = Holds::new();
        holds.begin(5000 * MS_NS);
        holds.begin(7000 * MS_NS);
        assert_eq!(holds.count((6999 + GRACE) * MS_NS), 1999);
        assert_eq!(holds.judge(2000), Held::Long(1999));
        assert_eq!(holds.count((7000 + GRACE) * MS_NS), 1);
        assert_eq!(holds.judge(2000), Held::TooLong);
        holds.end();
        assert_eq!(holds.count(9000 * MS_NS), 0);
        // Suspended for long, or a clock that is far
        holds.begin(9000 * MS_NS);
        holds.count(u64::MAX / 2);
        holds.count(u64::MAX - 1);
        assert_eq!(holds.last_minute(), MINUTE);
    }
}
