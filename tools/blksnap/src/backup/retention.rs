// SPDX-License-Identifier: GPL-2.0-only

//! Rules of retention: which restore points stay.
//!
//! Each rule is applied to each disk of each machine apart, and a restore point stays if any rule
//! keeps it for any of its devices. Restore points are in the order of their numbers. Their times
//! only say to which hour, day, week, month or year they belong.
//!
//! A clock can be wrong. A restore point with a time after now or out of order could take the place
//! of another one, or stand for a period that it is not of. So the rules by time skip it,
//! and it stays until it is removed by its number. The newest time that is in order, and not the
//! clock, is what a duration counts from, so that a pause without backups removes nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::date::civil;
use crate::date::days;
use crate::date::days_of_month;
use crate::date::DAY;
use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;
use crate::zone::Zone;

use super::manifest::Point;
use super::subject::series;

const HOUR: i64 = 3600;

/// How many restore points stay of each device. A rule of 0 keeps none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules {
    /// The newest restore points, whatever their times are.
    pub last: usize,
    /// Hours of which the newest restore point stays.
    pub hourly: usize,
    /// Days of which the newest restore point stays.
    pub daily: usize,
    /// Weeks, from Monday on, of which the newest restore point stays.
    pub weekly: usize,
    /// Months of which the newest restore point stays.
    pub monthly: usize,
    /// Years of which the newest restore point stays.
    pub yearly: usize,
    /// All restore points that are no older than that before the newest one.
    pub within: Span,
}

/// A length of time, which is `14d`, `12h`, `3w`, `2m` for months, `1y`, or several of them such as
/// `1y6m`.
///
/// Months and years are those of the calendar. A day is 24 hours.
///
/// ```
/// use blksnap::backup::retention::Span;
///
/// assert_eq!("2w".parse::<Span>(), "14d".parse());
/// assert!("30min".parse::<Span>().is_err());
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    months: i64,
    seconds: i64,
}

/// The text is not a length of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseSpanError;

/// Why a restore point stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// It is one of the newest.
    Last,
    /// It is the newest of its hour.
    Hourly,
    /// It is the newest of its day.
    Daily,
    /// It is the newest of its week.
    Weekly,
    /// It is the newest of its month.
    Monthly,
    /// It is the newest of its year.
    Yearly,
    /// It is not old enough.
    Within,
    /// Its time is after now or out of order.
    Clock,
    /// It is of a machine that is not pruned.
    Machine,
    /// No more would go than `Policy::slack` lets stay.
    Slack,
}

/// Rules, and what they depend on.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    pub rules: Rules,
    /// No restore point goes as long as no device has more than that to remove.
    pub slack: usize,
    /// Seconds since 1970.
    pub now: u64,
    /// Where periods begin and end.
    pub zone: Zone,
}

impl Rules {
    /// Returns an error if no rule keeps any restore point.
    pub fn check(&self) -> Result<()> {
        if *self != Self::default() {
            return Ok(());
        }
        let reason = "no rule keeps a restore point: all options --keep are missing or 0";
        Err(Error::new(Operation::Arguments, reason).remedied_by(
            "say at least one with 1 or more, such as --keep 7 or --keep-daily 7 --keep-weekly 4",
        ))
    }

    /// Returns whether a rule depends on the times of restore points.
    pub fn are_by_time(&self) -> bool {
        let newest = Self {
            last: self.last,
            ..Self::default()
        };
        *self != newest
    }
}

impl Span {
    /// Returns the instant that is so long before `time`.
    ///
    /// In a month that has no such day, it is the last day of the month.
    fn before(self, time: i64, zone: &Zone) -> i64 {
        let mut time = time;
        if self.months > 0 {
            let offset = i64::from(zone.offset(time));
            let local = time + offset;
            let (year, month, day) = civil(local.div_euclid(DAY));
            let months = year * 12 + month - 1 - self.months;
            let (year, month) = (months.div_euclid(12), months.rem_euclid(12) + 1);
            let day = days(year, month, day.min(days_of_month(year, month)));
            let local = day * DAY + local.rem_euclid(DAY);
            time = local - i64::from(zone.offset(local - offset));
        }
        time - self.seconds
    }
}

impl fmt::Display for ParseSpanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a duration is a whole number followed by y (years), m (months), w (weeks), d (days) \
             or h (hours), such as 14d, or several of them in this order, such as 1y6m",
        )
    }
}

impl std::error::Error for ParseSpanError {}

impl FromStr for Span {
    type Err = ParseSpanError;

    fn from_str(text: &str) -> std::result::Result<Self, ParseSpanError> {
        let mut span = Self::default();
        let mut units = "ymwdh".chars();
        let mut rest = text;
        while !rest.is_empty() || text.is_empty() {
            let end = rest
                .find(|c: char| !c.is_ascii_digit())
                .ok_or(ParseSpanError)?;
            // Numbers of 32 bits cannot overflow a sum of 64 bits.
            let number: u32 = rest[..end].parse().map_err(|_| ParseSpanError)?;
            let number = i64::from(number);
            let unit = rest[end..].chars().next().ok_or(ParseSpanError)?;
            // A unit that was passed is not found again.
            units.find(|it| *it == unit).ok_or(ParseSpanError)?;
            match unit {
                'y' => span.months += 12 * number,
                'm' => span.months += number,
                'w' => span.seconds += 7 * DAY * number,
                'd' => span.seconds += DAY * number,
                _ => span.seconds += HOUR * number,
            }
            rest = &rest[end + 1..];
        }
        Ok(span)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Last => "last",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
            Self::Within => "within",
            Self::Clock => "clock",
            Self::Machine => "machine",
            Self::Slack => "slack",
        })
    }
}

/// The period of a length to which an instant belongs, from its local time in seconds and the
/// offset of that.
type Period = fn(i64, i64) -> (i64, i64);

/// The hour that is repeated when summer ends is another one, by its offset.
fn hour(local: i64, offset: i64) -> (i64, i64) {
    (local.div_euclid(HOUR), offset)
}

fn day(local: i64, _offset: i64) -> (i64, i64) {
    (local.div_euclid(DAY), 0)
}

/// A week of ISO 8601, which begins on Monday. 1970-01-01 was a Thursday.
fn week(local: i64, _offset: i64) -> (i64, i64) {
    ((local.div_euclid(DAY) + 3).div_euclid(7), 0)
}

fn month(local: i64, _offset: i64) -> (i64, i64) {
    let (year, month, _) = civil(local.div_euclid(DAY));
    (year, month)
}

fn year(local: i64, _offset: i64) -> (i64, i64) {
    (civil(local.div_euclid(DAY)).0, 0)
}

impl Policy {
    /// Returns why each of these restore points stays; those without a reason go.
    ///
    /// They are in the order of their numbers.
    pub fn reasons(&self, points: &[&Point]) -> Vec<BTreeSet<Reason>> {
        let mut reasons = vec![BTreeSet::new(); points.len()];
        let series = series(points.iter().map(|point| point.subjects()));
        for device in &series {
            let times: Vec<i64> = device.iter().map(|&at| seconds(points[at].time)).collect();
            for (at, found) in device.iter().zip(self.reasons_of_one(&times)) {
                reasons[*at].extend(found);
            }
        }
        let removed =
            |device: &Vec<usize>| device.iter().filter(|&&at| reasons[at].is_empty()).count();
        if series.iter().map(removed).max().unwrap_or(0) <= self.slack {
            for reasons in reasons.iter_mut().filter(|it| it.is_empty()) {
                reasons.insert(Reason::Slack);
            }
        }
        reasons
    }

    /// Returns why each restore point of one device stays, from their times.
    fn reasons_of_one(&self, times: &[i64]) -> Vec<BTreeSet<Reason>> {
        let rules = &self.rules;
        let mut reasons = vec![BTreeSet::new(); times.len()];
        for reasons in reasons.iter_mut().rev().take(rules.last) {
            reasons.insert(Reason::Last);
        }
        if !rules.are_by_time() {
            return reasons;
        }
        let in_order = in_order(times, seconds(self.now));
        for (reasons, is_in_order) in reasons.iter_mut().zip(&in_order) {
            if !is_in_order {
                reasons.insert(Reason::Clock);
            }
        }
        let valid = || (0..times.len()).rev().filter(|&at| in_order[at]);
        let periods: [(Reason, usize, Period); 5] = [
            (Reason::Hourly, rules.hourly, hour),
            (Reason::Daily, rules.daily, day),
            (Reason::Weekly, rules.weekly, week),
            (Reason::Monthly, rules.monthly, month),
            (Reason::Yearly, rules.yearly, year),
        ];
        for (reason, count, period) in periods {
            let mut seen = BTreeSet::new();
            for at in valid() {
                if seen.len() >= count {
                    break;
                }
                let offset = i64::from(self.zone.offset(times[at]));
                if seen.insert(period(times[at] + offset, offset)) {
                    reasons[at].insert(reason);
                }
            }
        }
        let newest = valid().next().filter(|_| rules.within != Span::default());
        if let Some(newest) = newest {
            let start = rules.within.before(times[newest], &self.zone);
            for at in valid().filter(|&at| times[at] >= start) {
                reasons[at].insert(Reason::Within);
            }
        }
        reasons
    }
}

/// No restore point is later than the year 9999.
fn seconds(time: u64) -> i64 {
    time.try_into().unwrap_or(i64::MAX)
}

/// Returns which times are no later than `now` and in order.
///
/// Of times that contradict each other, as few as possible are taken to be wrong: the others are a
/// longest sequence that does not decrease.
fn in_order(times: &[i64], now: i64) -> Vec<bool> {
    // The last elements of the best sequences: that with N + 1 elements is at N, and ends
    // with the least time that is possible.
    let mut ends: Vec<usize> = Vec::new();
    let mut before = vec![None; times.len()];
    for (at, time) in times.iter().enumerate().filter(|(_, time)| **time <= now) {
        let length = ends.partition_point(|&end| times[end] <= *time);
        before[at] = length.checked_sub(1).map(|last| ends[last]);
        match ends.get_mut(length) {
            Some(end) => *end = at,
            None => ends.push(at),
        }
    }
    let mut in_order = vec![false; times.len()];
    let mut next = ends.last().copied();
    while let Some(at) = next {
        in_order[at] = true;
        next = before[at];
    }
    in_order
}

#[cfg(test)]
mod tests;
