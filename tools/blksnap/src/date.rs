// SPDX-License-Identifier: GPL-2.0-only

//! Days of the calendar, and the time of day.

/// Seconds of a day.
pub const DAY: i64 = 86400;

/// Year, month and day of the month, from days since 1970-01-01 in the Gregorian calendar.
pub fn civil(days: i64) -> (i64, i64, i64) {
    // Years that begin in March end with the leap day; 400 of them have 146097 days,
    // and 1970 is 719468 days after the March of year 0.
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year + later, month, day)
}

/// Days since 1970-01-01 of a year, month from 1 to 12, and day of the month.
pub fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = match month < 3 {
        true => (year - 1, month + 9),
        false => (year, month - 3),
    };
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    let day = 365 * year + year / 4 - year / 100 + (153 * month + 2) / 5 + day - 1;
    era * 146_097 + day - 719_468
}

/// The number of days of a month from 1 to 12.
pub fn days_of_month(year: i64, month: i64) -> i64 {
    let (next_year, next_month) = match month {
        12 => (year + 1, 1),
        _ => (year, month + 1),
    };
    days(next_year, next_month, 1) - days(year, month, 1)
}

/// The day in UTC, from seconds since 1970.
pub fn date(seconds: u64) -> String {
    let text = rfc3339(seconds);
    text.split_once('T').map_or("", |(day, _)| day).to_owned()
}

/// The day and the time of day in UTC, as RFC 3339 has it, from seconds since 1970.
pub fn rfc3339(seconds: u64) -> String {
    format!("{}Z", date_and_time(seconds.try_into().unwrap_or(i64::MAX)))
}

/// The day and the time of day in a zone that is `offset` seconds east of UTC, as RFC 3339 has it.
pub fn rfc3339_at(seconds: i64, offset: i32) -> String {
    let text = date_and_time(seconds.saturating_add(offset.into()));
    let minutes = offset.unsigned_abs() / 60;
    match offset {
        0 => format!("{text}Z"),
        _ => {
            let sign = if offset < 0 { '-' } else { '+' };
            format!("{text}{sign}{:02}:{:02}", minutes / 60, minutes % 60)
        }
    }
}

fn date_and_time(seconds: i64) -> String {
    let (year, month, day) = civil(seconds.div_euclid(DAY));
    let of_day = seconds.rem_euclid(DAY);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_follow_one_another() {
        let (mut year, mut month, mut day) = (1600, 1, 1);
        let first = days(year, month, day);
        assert_eq!(first, -135_140);
        for number in first..first + 801 * 366 {
            assert_eq!(civil(number), (year, month, day));
            assert_eq!(days(year, month, day), number);
            let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 if is_leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            assert_eq!(days_of_month(year, month), length);
            day += 1;
            if day > length {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }

    #[test]
    fn times_have_their_offset() {
        assert_eq!(rfc3339(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(rfc3339_at(951_827_696, 0), "2000-02-29T12:34:56Z");
        assert_eq!(rfc3339_at(951_827_696, 45900), "2000-03-01T01:19:56+12:45");
        assert_eq!(rfc3339_at(951_827_696, -12600), "2000-02-29T09:04:56-03:30");
        assert_eq!(rfc3339_at(0, -1800), "1969-12-31T23:30:00-00:30");
    }
}
