// SPDX-License-Identifier: GPL-2.0-only

//! The single steps of a snapshot, "blksnap snap".

use std::path::PathBuf;
use std::time::Duration;

use blksnap::StorageRange;
use blksnap::Uuid;

use super::place;
use super::Store;

pub(super) const ABOUT: &str = "\
Make, use and destroy a snapshot step by step

What \"blksnap run\" does around a command, one step at a time: for scripts that hold a
snapshot for as long as they like. Such a snapshot stays until it is destroyed or the
machine stops.

The names of the steps work without \"snap\", too.";

pub(super) const AFTER: &str = "\
Examples:
  blksnap attach /dev/sda
  id=$(blksnap snap create --store /var/tmp /dev/sda)
  blksnap snap take \"$id\"
  dd if=\"$(blksnap snap image /dev/sda)\" bs=1M of=/backup/sda.img
  blksnap snap destroy \"$id\"";

#[derive(Debug, clap::Subcommand)]
pub enum Step {
    /// Create a snapshot, and add devices to it; prints its id
    ///
    /// Nothing is frozen before "blksnap snap take". The devices must have the
    /// filter attached. If one cannot be added, the id cannot be printed or a signal
    /// comes before, the snapshot is destroyed again.
    #[command(after_help = "Examples:\n  \
        blksnap snap create --store /var/tmp --limit 10G\n  \
        blksnap snap create --store /var/tmp --grow 2G --max 50G /dev/sda\n  \
        id=$(blksnap snap create --store /dev/sdz /dev/sda /dev/sdb)")]
    Create {
        #[command(flatten)]
        store: Store,

        /// Block devices to add at once
        #[arg(value_name = "DEV")]
        devices: Vec<PathBuf>,
    },

    /// Add devices to a snapshot that is not taken yet
    #[command(after_help = "Examples:\n  \
        blksnap snap add 5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11 /dev/sda /dev/sdb\n  \
        last=$(blksnap changed --json /dev/sda | jq -r .take_id)\n  \
        blksnap snap add \"$id\" /dev/sda --changed-since \"$last\"")]
    Add {
        /// The snapshot, as "blksnap snap create" printed it
        #[arg(value_name = "ID")]
        id: Uuid,

        /// Only what has changed since this earlier snapshot of the device
        ///
        /// As "take_id" of "blksnap changed --json", while that one was held. Nothing is copied
        /// for writes to what has not changed, and reading it from the image is an error.
        #[arg(long, value_name = "TAKE")]
        changed_since: Option<Uuid>,

        /// Block devices that have the filter
        #[arg(value_name = "DEV", required = true)]
        devices: Vec<PathBuf>,
    },

    /// Append a block device, or ranges of it, to the storage of a snapshot
    ///
    /// Before it is taken or while it is held, as often as is needed. What is
    /// there is overwritten in the end. The device must not be used by anything
    /// else, and must not lie on a device of the snapshot.
    #[command(after_help = "Examples:\n  \
        blksnap snap append 5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11 /dev/sdz\n  \
        blksnap snap append 5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11 /dev/sdy \\\n      \
        --range 1G:10G --range 20G:512M")]
    Append {
        /// The snapshot, as "blksnap snap create" printed it
        #[arg(value_name = "ID")]
        id: Uuid,

        /// A disk, partition or other block device
        #[arg(value_name = "DEV")]
        device: PathBuf,

        /// Only this part, such as 1G:512M; in the order in which it is used
        ///
        /// In bytes, or with K, M, G, T or P for powers of 1024; multiples of
        /// 4096. Can be given several times. By default all of the device.
        #[arg(long = "range", value_name = "OFFSET:LENGTH")]
        ranges: Vec<StorageRange>,

        /// Even if there is data
        #[arg(long)]
        overwrite: bool,
    },

    /// Take a snapshot: all its images show this one moment
    ///
    /// Filesystems on the devices are frozen meanwhile, so that their images
    /// are clean; also those on their partitions, and on what was stacked on them
    /// when they were added: logical volumes, opened LUKS devices, MD arrays, loop
    /// devices. If that fails for one device, nothing is taken at all.
    #[command(after_help = "Examples:\n  \
        blksnap snap take 5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11")]
    Take {
        /// The snapshot, as "blksnap snap create" printed it
        #[arg(value_name = "ID")]
        id: Uuid,
    },

    /// Print the image disks of devices, or of a snapshot
    ///
    /// One path a line, in the order of the devices. Images are read-only
    /// disks. Exit code 3 if the snapshot is corrupted.
    #[command(after_help = "Examples:\n  \
        dd if=\"$(blksnap snap image /dev/sda)\" bs=1M of=/backup/sda.img\n  \
        blksnap snap image 5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11")]
    Image {
        /// Devices, or one snapshot if there is no other
        #[arg(value_name = "ID|DEV", required = true)]
        targets: Vec<PathBuf>,
    },

    /// Print what happened to a snapshot
    ///
    /// One line an event, oldest first: the time in UTC, the kind and figures. The
    /// kinds are low-space (see "snap create --low-space"), lost (sectors could not be
    /// read before they were overwritten), no-space, corrupted and device-gone.
    /// Every event is reported once, to the first reader. Exit code 3 if one said
    /// that the snapshot is corrupted, which all kinds but low-space and lost do.
    #[command(
        after_help = "With --json every event is an object in a line of its own.\n\n\
        Examples:\n  \
        blksnap snap events 5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11\n  \
        blksnap snap events --timeout 60 5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11\n  \
        blksnap snap events --follow --json 5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11 | jq .kind"
    )]
    Events {
        /// The snapshot, as "blksnap snap create" printed it
        #[arg(value_name = "ID")]
        id: Uuid,

        /// Go on until the snapshot is destroyed
        #[arg(long)]
        follow: bool,

        /// Wait so long for an event if there is none; with --follow, in all
        ///
        /// That none came is no error.
        #[arg(long, value_name = "SECONDS", value_parser = place::seconds)]
        timeout: Option<Duration>,
    },

    /// Destroy a snapshot and its images, taken or not
    ///
    /// The filter stays attached and the change tracking goes on. Refused while an
    /// image is mounted, also in another mount namespace, or while a loop,
    /// device-mapper or MD device is on top of it.
    #[command(after_help = "Examples:\n  \
        blksnap snap destroy 5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11\n  \
        blksnap snap destroy --force 5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11")]
    Destroy {
        /// The snapshot, as "blksnap snap create" printed it
        #[arg(value_name = "ID")]
        id: Uuid,

        /// Even if an image is in use; reading there fails from then on
        ///
        /// Or if that cannot be found out, which is only a warning then.
        #[arg(long)]
        force: bool,
    },
}
