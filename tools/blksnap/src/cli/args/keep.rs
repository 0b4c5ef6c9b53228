// SPDX-License-Identifier: GPL-2.0-only

//! Which restore points stay.

use blksnap::backup::retention::Rules;
use blksnap::backup::retention::Span;

pub const ABOUT: &str = "\
Remove restore points that no rule keeps

A restore point stays if at least one --keep option keeps it. Each of them is applied to each disk
of each machine apart, whatever the disk was called; a restore point of several devices stays if
any of them needs it. At least one of them must be 1 or more. The newest restore point always stays.

Hours, days, weeks from Monday on, months and years are those of the local time here (TZ, else
/etc/localtime), and of each the newest restore point is kept. Those without a restore point do not
count. Restore points are in the order of their numbers. One with a time that is after now or
out of order, since a clock was wrong, stays and takes the place of none; this is not so if
--keep-last is the only rule. \"blksnap forget\" removes it.

What the others need of those that go is merged into them: about as much is written as they hold
then, and the space for that must be there. If it is interrupted, all is as it was. Nothing may
read the backup meanwhile.

Where several machines have their backups in DIR, those of the others stay.";

pub const AFTER: &str = "\
Reasons why a restore point stays:
  last, hourly, daily, weekly, monthly, yearly, within
           the option --keep of that name
  clock    its time is after now or out of order
  machine  it is of another machine than the one that is pruned
  slack    it would go if --slack were less

Examples:
  blksnap prune /backup --keep 7 --dry-run
  blksnap prune /backup --keep 30 --slack 7
  blksnap prune /backup --keep-daily 7 --keep-weekly 4 --keep-monthly 12
  blksnap prune /backup --keep-within 14d --keep-yearly 5 --machine db1";

/// Rules of retention.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Keep {
    /// Keep the newest N restore points, whatever their times are; in short --keep N
    #[arg(
        long,
        visible_alias = "keep",
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true
    )]
    keep_last: usize,

    /// Keep the newest restore point of each of the last N hours that have one
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_hourly: usize,

    /// Keep the newest restore point of each of the last N days that have one
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_daily: usize,

    /// Keep the newest restore point of each of the last N weeks that have one
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_weekly: usize,

    /// Keep the newest restore point of each of the last N months that have one
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_monthly: usize,

    /// Keep the newest restore point of each of the last N years that have one
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_yearly: usize,

    /// Keep all restore points within DURATION before the newest one, such as 14d or 1y6m
    ///
    /// Whole numbers, each followed by its unit: y (years), m (months), w (weeks), d (days of
    /// 24 hours) or h (hours), in this order. Months and years are those of the calendar: 1m
    /// before March 31 is the last day of February.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "0d",
        hide_default_value = true
    )]
    keep_within: Span,
}

impl From<Keep> for Rules {
    fn from(keep: Keep) -> Self {
        Self {
            last: keep.keep_last,
            hourly: keep.keep_hourly,
            daily: keep.keep_daily,
            weekly: keep.keep_weekly,
            monthly: keep.keep_monthly,
            yearly: keep.keep_yearly,
            within: keep.keep_within,
        }
    }
}
