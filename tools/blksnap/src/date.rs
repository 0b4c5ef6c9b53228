// SPDX-License-Identifier: GPL-2.0-only

//! Days of the calendar, and the time of day.

/// The day in UTC, from seconds since 1970.
pub fn date(seconds: u64) -> String {
    // Years that begin in March end with the leap day; 400 of them have 146097 days,
    // and 1970 is 719468 days after the March of year 0.
    let days = seconds / 86400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    format!("{:04}-{month:02}-{day:02}", era * 400 + year + later)
}

/// The day and the time of day in UTC, as RFC 3339 has it, from seconds since 1970.
pub fn rfc3339(seconds: u64) -> String {
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{}T{hour:02}:{minute:02}:{second:02}Z", date(seconds))
}
