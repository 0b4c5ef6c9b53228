// SPDX-License-Identifier: GPL-2.0-only

//! The arguments of "blksnap doctor".

use std::path::PathBuf;

pub(super) const ABOUT: &str = "\
Tell whether backups will work on this machine, and what to do if not

Changes nothing, and needs neither root nor the driver: it says what it could not check without
them. It checks the kernel, the driver, privileges, each DEV and what lies on it, whether DEV
can have the filter, what writes past its change tracking, its name, where --store and --target
can be, memory, limits and the clock.

What is on a network file system is not looked at, since a server that does not answer would
keep it waiting.";

pub(super) const AFTER: &str = "\
Each check is a line, and \"what to do\" a second one:
  ok       it is as it should be
  note     something to know, or that could not be checked
  warning  backups work, but not in all cases
  problem  backups do not work

Exit code 1 if there is a problem. With --json: {\"checks\": [{\"check\", \"level\",
\"subject\", \"message\", \"remedy\"}]}; remedy is null where nothing is to be done.

Examples:
  blksnap doctor
  blksnap doctor /dev/sda --store /var/tmp --target /backup
  blksnap doctor --json | jq -r '.checks[] | select(.level == \"problem\").remedy'";

#[derive(Debug, clap::Args)]
pub struct Doctor {
    /// Disks, partitions or other block devices; by default all disks
    #[arg(value_name = "DEV")]
    pub devices: Vec<PathBuf>,

    /// Check this directory for restore points, as "backup --to"
    #[arg(long, value_name = "DIR")]
    pub target: Option<PathBuf>,

    /// Check this directory, file or block device for what is overwritten, as with "backup"
    #[arg(long, value_name = "PATH")]
    pub store: Option<PathBuf>,
}
