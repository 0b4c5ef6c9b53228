// SPDX-License-Identifier: GPL-2.0-only

//! The arguments of "blksnap backup".

use std::path::PathBuf;

use blksnap::Bytes;

use super::Hooks;
use super::Lock;
use super::Store;
use super::Trust;

pub(super) const ABOUT: &str = "\
Back up devices into a directory, in full or what changed since

Takes one snapshot of all DEVs and makes a restore point of it: for each DEV a
qcow2 image in DIR. The first one of a DEV has everything, the next ones what
changed since. If the change tracking cannot say what changed, all of DEV is read,
and what differs from its last backup is stored: after a restart, after the machine was
put back to an earlier state, after the filter was detached, after DEV was resized or
got another content, or after 254 snapshots. The next one is full if a file of the last
backup is damaged or missing, or after 200 that are based on each other, of which
\"blksnap prune\" makes fewer. A note says which. A file that cannot be read just now is
an error.

Disks are recognised by their change tracking and by their numbers (of LVM, of the
maker, of the partition table), not by their names. A restore point has the machine, too: of
another one DIR is refused, unless --shared is said. A DEV may be left out or added at
any time. Zeroes take no space.

Whatever interrupts it, the restore points there are stay as they were; what it
has left is removed by the next run. If the snapshot is corrupted, the exit
code is 3 and there is no new restore point. If a DEV cannot be read, the others
are kept, and the exit code is 1; --salvage keeps what of it can be read.

Another backup and prune exclude this one, a verify or restore does not.

Reading goes past the page cache. On a terminal it shows how far it is.";

pub(super) const AFTER: &str = "\
With --json the report has point, time, directory, devices and errors; of each
device device, base (the restore point that it is based on), full (why it is
full), size, read_bytes, data_bytes, generation_id, changes_number, take_id,
image and unreadable (offset and length of what is zeroes, in bytes).

Examples:
  blksnap backup /dev/sda /dev/sdb --to /backup --store /var/tmp
  blksnap backup /dev/sda --to /backup --store /var/tmp --grow 2G \\
      --bandwidth 50M
  blksnap backup /dev/sda --to /backup --store /var/tmp --full
  blksnap backup /dev/sda --to /backup --store /var/tmp --existing";

#[derive(Debug, clap::Args)]
pub struct Backup {
    /// Disks, partitions or other block devices
    #[arg(value_name = "DEV", required = true)]
    pub devices: Vec<PathBuf>,

    /// The directory of the backup; it is created if it is not there
    ///
    /// On another disk than each DEV: a backup on DEV itself would be lost with it.
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,

    /// Refuse to begin a backup: DIR must have one already
    ///
    /// For what runs on its own. If the filesystem with DIR is not mounted, nothing
    /// is written to the directory below it.
    #[arg(long)]
    pub existing: bool,

    /// Use DIR even if all restore points there are of another machine
    ///
    /// Each machine's are counted and pruned on their own from then on.
    #[arg(long)]
    pub shared: bool,

    #[command(flatten)]
    pub trust: Trust,

    #[command(flatten)]
    pub lock: Lock,

    #[command(flatten)]
    pub store: Store,

    #[command(flatten)]
    pub hooks: Hooks,

    /// Read and store everything
    #[arg(long, conflicts_with_all = ["differential", "compare"])]
    pub full: bool,

    /// Read what changed since the last full backup
    #[arg(long, conflicts_with = "compare")]
    pub differential: bool,

    /// Read everything and store what differs from the last backup
    ///
    /// Whatever the change tracking says: it finds what was written past it.
    #[arg(long)]
    pub compare: bool,

    /// Check so much of what did not change, at least 16 MiB; 0 for nothing
    ///
    /// Random blocks are compared with the last backup. If one differs, something writes
    /// past the change tracking: all is read and compared then, and the exit code is 5.
    #[arg(long, value_name = "PERCENT", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(0..=100))]
    pub spot_check: u8,

    /// Read no more than this in a second, such as 50M
    ///
    /// In bytes, or with K, M, G, T or P for powers of 1024.
    #[arg(long, value_name = "RATE")]
    pub bandwidth: Option<Bytes>,

    /// Leave out sectors that cannot be read, and keep the rest
    ///
    /// The restore point has zeroes for them. They are named by device and offset, also by
    /// "list", "verify" and "restore", and the exit code is 7. The next backup reads them again.
    #[arg(long)]
    pub salvage: bool,
}
