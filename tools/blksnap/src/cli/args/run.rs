// SPDX-License-Identifier: GPL-2.0-only

//! The arguments of "blksnap run".

use std::ffi::OsString;
use std::path::PathBuf;

use super::Hooks;
use super::Store;

pub(super) const ABOUT: &str = "\
Run a command on a snapshot, and release that whatever happens

Attaches the filter where it is missing, takes one snapshot of all DEVs, waits
for the images and runs COMMAND. The snapshot is destroyed when COMMAND ends,
when it crashes, when blksnap gets SIGINT, SIGTERM, SIGHUP or SIGQUIT (handed
on to COMMAND first, whose end is waited for), when a step fails, and also when
blksnap is killed with SIGKILL: the driver sees to that.

The filter stays attached, since detaching would lose the change tracking that
the next incremental backup needs. Only if the snapshot does not come about, it
is detached again from the devices that had none before.

When COMMAND has ended, the snapshot is checked. If its storage overflowed or
something else spoilt it, the exit code is 3 even if COMMAND succeeded: what it
read cannot be trusted.";

pub(super) const AFTER: &str = "\
Environment of COMMAND:
  BLKSNAP_ID        the snapshot
  BLKSNAP_COUNT     how many DEVs there are
  BLKSNAP_IMAGE_1   image of the first DEV, such as /dev/NAME; _2 and so on
  BLKSNAP_DEVICE_1  the first DEV as it was named; _2 and so on
  BLKSNAP_IMAGES    all images in the order of the DEVs, one a line

Exit codes:
  that of COMMAND, or 128 + N if signal N ended it or came before it was run
  126  COMMAND could not be run
  127  COMMAND was not found
  1, 2 and 3 as of every \"blksnap\"; 3 whatever COMMAND said

With --json the standard output of COMMAND goes to standard error, and the
report is printed when all is over.

Examples:
  blksnap run /dev/sda --store /var/tmp --limit 10G -- \\
      sh -c 'dd if=\"$BLKSNAP_IMAGE_1\" bs=1M | zstd > /backup/sda.zst'
  blksnap run /dev/sda --store /var/tmp --grow 2G --max 50G -- backup
  blksnap run /dev/sda2 /dev/sdb --store /dev/sdz -- sh -c '
      # ext4; xfs wants -o ro,norecovery,nouuid
      mount -o ro \"$BLKSNAP_IMAGE_1\" /mnt || exit
      rsync -a /mnt/ /backup/; status=$?
      umount /mnt; exit $status'";

#[derive(Debug, clap::Args)]
pub struct Run {
    /// Disks, partitions or other block devices
    #[arg(value_name = "DEV", required = true)]
    pub devices: Vec<PathBuf>,

    #[command(flatten)]
    pub store: Store,

    #[command(flatten)]
    pub hooks: Hooks,

    /// In the end detach the filter from devices that had none before
    #[arg(long)]
    pub detach: bool,

    /// What to run while the snapshot is held
    #[arg(value_name = "COMMAND", last = true, required = true)]
    pub command: Vec<OsString>,
}
