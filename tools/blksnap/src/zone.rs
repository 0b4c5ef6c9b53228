// SPDX-License-Identifier: GPL-2.0-only

//! Time zones: how far local time is from UTC at an instant.
//!
//! The files of the time zone database (TZif, RFC 9636) list all changes of the past. Later ones
//! follow a rule in the form of the TZ variable of POSIX, which the file has, too.

use std::fs::File;
use std::io;
use std::io::Read;
use std::path::Component;
use std::path::Path;
use std::str::FromStr;

use crate::date::civil;
use crate::date::days;
use crate::date::DAY;

/// Where the zones are found by their names.
const DATABASE: &str = "/usr/share/zoneinfo";
/// The zone of this machine; if it is missing, that is UTC.
const LOCAL: &str = "/etc/localtime";
/// Upper limit of a file; those of the database have a few KiB.
const MAX_FILE: u64 = 1 << 20;

/// A time zone.
///
/// ```
/// use blksnap::zone::Zone;
///
/// let berlin: Zone = "CET-1CEST,M3.5.0,M10.5.0/3".parse().unwrap();
/// assert_eq!(berlin.offset(1_709_510_400), 3600);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Zone {
    /// Instants in ascending order, and the offset from each of them on.
    changes: Vec<(i64, i32)>,
    /// The offset before the first change.
    first: i32,
    /// What follows the last change. Without a rule its offset stays.
    rule: Option<Rule>,
}

/// A zone in the form of POSIX. Offsets are seconds east of UTC.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    standard: i32,
    summer: Option<Summer>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Summer {
    offset: i32,
    start: Change,
    end: Change,
}

/// A moment of each year, in the local time before it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Change {
    day: DayOfYear,
    /// Seconds after the day begins; can be negative or more than a day.
    time: i32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum DayOfYear {
    /// From 1 on, without leap days.
    Julian(i64),
    /// From 0 on, with leap days.
    Zero(i64),
    /// A weekday, from Sunday as 0, of a week of a month; week 5 is the last one.
    Weekday { month: i64, week: i64, weekday: i64 },
}

impl Zone {
    /// Returns the zone of this process: that of the variable TZ, or of the machine.
    ///
    /// The error is a reason in words. A zone that is not known is no UTC, as it is for the C library.
    pub fn here() -> Result<Self, String> {
        match std::env::var_os("TZ") {
            Some(name) => Self::named(&name.to_string_lossy()),
            None => match read(Path::new(LOCAL)) {
                Ok(bytes) => Self::from_tzif(&bytes)
                    .ok_or_else(|| format!("{LOCAL} is no file of a time zone")),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
                Err(error) => Err(format!("{LOCAL} cannot be read: {error}")),
            },
        }
    }

    /// Returns the zone that has this name as a value of TZ.
    pub fn named(name: &str) -> Result<Self, String> {
        let unknown = || format!("the time zone of the variable TZ, \"{name}\", is not known");
        let name = name.strip_prefix(':').unwrap_or(name);
        if matches!(name, "" | "UTC" | "GMT") {
            return Ok(Self::default());
        }
        let path = Path::new(DATABASE).join(name);
        let is_within = path.components().all(|it| it != Component::ParentDir);
        let zone = match is_within.then(|| read(&path)) {
            Some(Ok(bytes)) => Self::from_tzif(&bytes),
            _ => None,
        };
        zone.or_else(|| name.parse().ok()).ok_or_else(unknown)
    }

    /// Returns the zone of a file of the time zone database, or `None` if it is malformed.
    pub fn from_tzif(bytes: &[u8]) -> Option<Self> {
        let mut bytes = Bytes(bytes);
        let header = Header::read(&mut bytes)?;
        if header.version == 0 {
            return header.zone(&mut bytes, 4);
        }
        // Times of 32 bits, for programs from before 2005.
        bytes.take(header.size(4)?)?;
        let mut zone = Header::read(&mut bytes)?.zone(&mut bytes, 8)?;
        let rule = bytes.0.strip_prefix(b"\n")?.strip_suffix(b"\n")?;
        if !rule.is_empty() {
            zone.rule = Some(std::str::from_utf8(rule).ok()?.parse().ok()?);
        }
        Some(zone)
    }

    /// Returns how many seconds local time is ahead of UTC at an instant in seconds since 1970.
    pub fn offset(&self, time: i64) -> i32 {
        let past = self.changes.partition_point(|(from, _)| *from <= time);
        match (&self.rule, past) {
            (Some(rule), _) if past == self.changes.len() => rule.offset(time),
            (_, 0) => self.first,
            _ => self.changes[past - 1].1,
        }
    }
}

impl FromStr for Zone {
    type Err = ();

    /// Takes what POSIX has for TZ, such as `CET-1CEST,M3.5.0,M10.5.0/3`.
    fn from_str(text: &str) -> Result<Self, ()> {
        Ok(Self {
            rule: Some(text.parse()?),
            ..Self::default()
        })
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What of a file is not read yet.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// Takes a big-endian number.
    fn number(&mut self, size: usize) -> Option<i64> {
        let bytes = self.take(size)?;
        let sign = bytes.first().map_or(0, |byte| i64::from(*byte as i8 >> 7));
        Some(
            bytes
                .iter()
                .fold(sign, |sum, byte| sum << 8 | i64::from(*byte)),
        )
    }
}

/// The header of one of the parts of a file, which says how many things there are of each kind.
struct Header {
    version: u8,
    indicators: usize,
    leaps: usize,
    times: usize,
    types: usize,
    names: usize,
}

impl Header {
    fn read(bytes: &mut Bytes<'_>) -> Option<Self> {
        let start = bytes.take(20)?;
        let version = *start.strip_prefix(b"TZif")?.first()?;
        let mut count = || usize::try_from(bytes.number(4)?).ok();
        let (universal, standard) = (count()?, count()?);
        Some(Self {
            version,
            indicators: universal.checked_add(standard)?,
            leaps: count()?,
            times: count()?,
            types: count()?,
            names: count()?,
        })
    }

    /// The number of bytes that follow, with times of `size` bytes.
    fn size(&self, size: usize) -> Option<usize> {
        let leaps = self.leaps.checked_mul(size + 4)?;
        let times = self.times.checked_mul(size + 1)?;
        let types = self.types.checked_mul(6)?;
        let rest = self.names.checked_add(self.indicators)?;
        leaps
            .checked_add(times)?
            .checked_add(types)?
            .checked_add(rest)
    }

    fn zone(&self, bytes: &mut Bytes<'_>, size: usize) -> Option<Zone> {
        let mut data = Bytes(bytes.take(self.size(size)?)?);
        let mut times = Bytes(data.take(self.times * size)?);
        let indices = data.take(self.times)?;
        let mut types = Bytes(data.take(self.types * 6)?);
        let mut offsets = Vec::new();
        for _ in 0..self.types {
            offsets.push(i32::try_from(types.number(4)?).ok()?);
            types.take(2)?;
        }
        let mut changes = Vec::new();
        for index in indices {
            changes.push((times.number(size)?, *offsets.get(usize::from(*index))?));
        }
        Some(Zone {
            first: *offsets.first()?,
            changes: changes.is_sorted().then_some(changes)?,
            rule: None,
        })
    }
}

impl Rule {
    fn offset(&self, time: i64) -> i32 {
        let Some(summer) = &self.summer else {
            return self.standard;
        };
        let (year, ..) = civil((time + i64::from(self.standard)).div_euclid(DAY));
        let start = summer.start.in_year(year) - i64::from(self.standard);
        let end = summer.end.in_year(year) - i64::from(summer.offset);
        let is_summer = match start < end {
            true => (start..end).contains(&time),
            // In the south the year begins with summer.
            false => !(end..start).contains(&time),
        };
        match is_summer {
            true => summer.offset,
            false => self.standard,
        }
    }
}

impl Change {
    /// Seconds from 1970 on, of the local time.
    fn in_year(&self, year: i64) -> i64 {
        let day = match self.day {
            DayOfYear::Julian(day) => {
                let is_after_leap_day = day > 59 && days(year, 3, 1) - days(year, 2, 28) == 2;
                days(year, 1, day) + i64::from(is_after_leap_day)
            }
            DayOfYear::Zero(day) => days(year, 1, 1 + day),
            DayOfYear::Weekday {
                month,
                week,
                weekday,
            } => {
                let first = days(year, month, 1);
                // 1970-01-01 was a Thursday.
                let ahead = (weekday - (first + 4)).rem_euclid(7);
                let day = first + ahead + 7 * (week - 1);
                let next_month = first + crate::date::days_of_month(year, month);
                match day < next_month {
                    true => day,
                    false => day - 7,
                }
            }
        };
        day * DAY + i64::from(self.time)
    }
}

/// What of a text is not read yet.
struct Text<'a>(&'a str);

impl Text<'_> {
    fn skip(&mut self, prefix: char) -> bool {
        let rest = self.0.strip_prefix(prefix);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    /// Skips the short name of a kind of time, such as `CET` or `<+03>`.
    fn name(&mut self) -> Option<()> {
        let is_quoted = self.skip('<');
        let is_part = |c: char| c.is_ascii_alphabetic() || is_quoted && "+-0123456789".contains(c);
        let end = self.0.find(|c| !is_part(c)).unwrap_or(self.0.len());
        self.0 = &self.0[end..];
        (end >= 3 && (!is_quoted || self.skip('>'))).then_some(())
    }

    fn number(&mut self, range: std::ops::RangeInclusive<i32>) -> Option<i32> {
        let end = self.0.find(|c: char| !c.is_ascii_digit());
        let (digits, rest) = self.0.split_at(end.unwrap_or(self.0.len()));
        self.0 = rest;
        digits.parse().ok().filter(|number| range.contains(number))
    }

    /// Reads hours, and perhaps minutes and seconds, with or without a sign.
    fn time(&mut self, max_hours: i32) -> Option<i32> {
        let sign = match self.skip('-') {
            true => -1,
            false => {
                self.skip('+');
                1
            }
        };
        let mut seconds = self.number(0..=max_hours)? * 3600;
        if self.skip(':') {
            seconds += self.number(0..=59)? * 60;
            if self.skip(':') {
                seconds += self.number(0..=59)?;
            }
        }
        Some(sign * seconds)
    }

    fn change(&mut self) -> Option<Change> {
        let day = if self.skip('M') {
            let month = self.number(1..=12)?;
            let week = self.skip('.').then(|| self.number(1..=5))??;
            let weekday = self.skip('.').then(|| self.number(0..=6))??;
            DayOfYear::Weekday {
                month: month.into(),
                week: week.into(),
                weekday: weekday.into(),
            }
        } else if self.skip('J') {
            DayOfYear::Julian(self.number(1..=365)?.into())
        } else {
            DayOfYear::Zero(self.number(0..=365)?.into())
        };
        let time = match self.skip('/') {
            true => self.time(167)?,
            false => 2 * 3600,
        };
        Some(Change { day, time })
    }

    fn rule(&mut self) -> Option<Rule> {
        self.name()?;
        // POSIX counts what is west of Greenwich as positive.
        let standard = -self.time(24)?;
        if self.0.is_empty() {
            return Some(Rule {
                standard,
                summer: None,
            });
        }
        self.name()?;
        let offset = match self.0.starts_with(',') {
            true => standard + 3600,
            false => -self.time(24)?,
        };
        let start = self.skip(',').then(|| self.change())??;
        let end = self.skip(',').then(|| self.change())??;
        let summer = Some(Summer { offset, start, end });
        Some(Rule { standard, summer })
    }
}

impl FromStr for Rule {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut text = Text(text);
        text.rule().filter(|_| text.0.is_empty()).ok_or(())
    }
}

#[cfg(test)]
mod tests;
