// SPDX-License-Identifier: GPL-2.0-only

//! Whether the clock can be right.

use crate::date::date;
use crate::date::rfc3339;

use super::Check;

const CHECK: &str = "clock";
const SUBJECT: &str = "the clock";
const REMEDY: &str = "set the clock, as with \"timedatectl set-ntp true\" or \"date --set\", or \
                      replace the battery of the mainboard if it is wrong after each start";

/// The first second of 2025. No backup can have been made by this command before.
const EARLIEST: u64 = 1_735_689_600;

/// Checks the time, in seconds since 1970, against that of the newest restore point.
pub fn check(now: u64, newest: Option<u64>) -> Check {
    let it_says = format!("it says {}", rfc3339(now));
    match newest {
        _ if now < EARLIEST => Check::warning(
            CHECK,
            SUBJECT,
            format!("{it_says}, which cannot be right; restore points would have that time"),
            REMEDY,
        ),
        Some(newest) if now < newest => Check::warning(
            CHECK,
            SUBJECT,
            format!(
                "{it_says}, but the newest restore point is of {}",
                rfc3339(newest)
            ),
            REMEDY,
        ),
        _ => Check::ok(CHECK, SUBJECT, format!("it says {} (UTC)", date(now))),
    }
}
