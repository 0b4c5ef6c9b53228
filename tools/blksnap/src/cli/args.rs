// SPDX-License-Identifier: GPL-2.0-only

mod backup;
mod place;
mod restore;
mod snapshot;
mod store;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use blksnap::StorageRange;
use blksnap::Uuid;
use clap::Parser;

pub use backup::Backup;
pub use place::Lock;
pub use place::MachineOption;
pub use place::Trust;
pub use restore::Restore;
pub use snapshot::Snapshot;
pub use store::PlanOptions;
pub use store::Store;

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  it failed; standard error says why and what to do
  2  the command line makes no sense
  3  a snapshot is corrupted, its images cannot be trusted
  4  a backup is damaged
  5  writes went past the change tracking; the restore point is right nevertheless
  6  something else has the backup locked; standard error says what
  7  something could not be read; the restore point, or the target, has zeroes for it
  128 + N  ended by signal N
  \"blksnap snapshot\" has more, see there.

It needs root, and the driver: \"modprobe blksnap\" loads it.

With --json there is one JSON document on standard output (of \"events\" one
for each event), and every error is a line of JSON on standard error: {\"error\":
{\"message\", \"remedy\", \"operation\", \"path\", \"snapshot\", \"errno\", \"errno_name\",
\"exit_code\"}}. Others are {\"warning\": TEXT} and {\"note\": TEXT}.

Examples:
  Back up a mounted disk while it is written to:
    blksnap snapshot /dev/sda --store /var/tmp -- \\
        sh -c 'dd if=\"$BLKSNAP_IMAGE_1\" bs=1M of=/backup/sda.img'

  The same by single steps:
    blksnap attach /dev/sda
    id=$(blksnap create --store /var/tmp /dev/sda)
    blksnap take \"$id\"
    dd if=\"$(blksnap image /dev/sda)\" bs=1M of=/backup/sda.img
    blksnap destroy \"$id\"";

/// Snapshots and change tracking of block devices, at run time and without
/// device-mapper
#[derive(Debug, Parser)]
#[command(name = "blksnap", version, after_help = AFTER_HELP)]
pub struct Args {
    /// Print JSON for machines
    #[arg(long, global = true)]
    pub json: bool,

    #[command(subcommand)]
    pub command: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
pub enum Subcommand {
    /// Attach the filter to block devices, which starts change tracking
    ///
    /// A device that has it already stays as it is; that is no error. The
    /// tracking goes on until the filter is detached, the device goes away or
    /// the machine stops.
    #[command(after_help = "Examples:\n  \
        blksnap attach /dev/sda /dev/vg0/home\n  \
        blksnap attach --json /dev/sda1")]
    Attach {
        /// Disks, partitions or other block devices
        #[arg(value_name = "DEV", required = true)]
        devices: Vec<PathBuf>,
    },

    /// Detach the filter, which ends change tracking
    ///
    /// What was tracked is lost: the next backup reads all of the device, and stores
    /// what differs from its last one. Refused while the device is in a snapshot.
    #[command(after_help = "Examples:\n  blksnap detach /dev/sda")]
    Detach {
        /// Block devices that have the filter
        #[arg(value_name = "DEV", required = true)]
        devices: Vec<PathBuf>,
    },

    /// Show snapshots, and the devices that have a filter
    ///
    /// For each snapshot how full its storage is, and with how much left an
    /// event comes; an older driver does not tell that. The kernel does not
    /// tell to which of several snapshots a device belongs; the devices of a
    /// snapshot are listed if it is the only one. A device that cannot be asked is
    /// shown as unknown, with the reason.
    /// Exit code 3 if a snapshot is corrupted.
    #[command(after_help = "Examples:\n  \
        blksnap status\n  \
        blksnap status --json /dev/sda | jq .devices[0].tracking")]
    Status {
        /// Show these devices only
        #[arg(value_name = "DEV")]
        devices: Vec<PathBuf>,
    },

    /// Create a snapshot, and add devices to it; prints its id
    ///
    /// Nothing is frozen before "blksnap take". The devices must have the
    /// filter attached. If one cannot be added, the id cannot be printed or a signal
    /// comes before, the snapshot is destroyed again.
    #[command(after_help = "Examples:\n  \
        blksnap create --store /var/tmp --limit 10G\n  \
        blksnap create --store /var/tmp --grow 2G --max 50G /dev/sda\n  \
        id=$(blksnap create --store /dev/sdz /dev/sda /dev/sdb)")]
    Create {
        #[command(flatten)]
        store: Store,

        /// Block devices to add at once
        #[arg(value_name = "DEV")]
        devices: Vec<PathBuf>,
    },

    /// Add devices to a snapshot that is not taken yet
    #[command(after_help = "Examples:\n  \
        blksnap add 5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11 /dev/sda /dev/sdb")]
    Add {
        /// The snapshot, as "blksnap create" printed it
        #[arg(value_name = "ID")]
        id: Uuid,

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
        blksnap append 5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11 /dev/sdz\n  \
        blksnap append 5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11 /dev/sdy \\\n      \
        --range 1G:10G --range 20G:512M")]
    Append {
        /// The snapshot, as "blksnap create" printed it
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
        blksnap take 5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11")]
    Take {
        /// The snapshot, as "blksnap create" printed it
        #[arg(value_name = "ID")]
        id: Uuid,
    },

    /// Print the image disks of devices, or of a snapshot
    ///
    /// One path a line, in the order of the devices. Images are read-only
    /// disks. Exit code 3 if the snapshot is corrupted.
    #[command(after_help = "Examples:\n  \
        dd if=\"$(blksnap image /dev/sda)\" bs=1M of=/backup/sda.img\n  \
        blksnap image 5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11")]
    Image {
        /// Devices, or one snapshot if there is no other
        #[arg(value_name = "ID|DEV", required = true)]
        targets: Vec<PathBuf>,
    },

    /// Print what happened to a snapshot
    ///
    /// One line an event, oldest first: the time in UTC, the kind and figures. The
    /// kinds are low-space (see "create --low-space"), no-space, corrupted and
    /// device-gone. Every event is reported once, to the first reader. Exit
    /// code 3 if one said that the snapshot is corrupted, which all kinds but
    /// low-space do.
    #[command(
        after_help = "With --json every event is an object in a line of its own.\n\n\
        Examples:\n  \
        blksnap events 5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11\n  \
        blksnap events --timeout 60 5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11\n  \
        blksnap events --follow --json 5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11 | jq .kind"
    )]
    Events {
        /// The snapshot, as "blksnap create" printed it
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
        blksnap destroy 5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11\n  \
        blksnap destroy --force 5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11")]
    Destroy {
        /// The snapshot, as "blksnap create" printed it
        #[arg(value_name = "ID")]
        id: Uuid,

        /// Even if an image is in use; reading there fails from then on
        ///
        /// Or if that cannot be found out, which is only a warning then.
        #[arg(long)]
        force: bool,
    },

    /// Print the versions of this command and of the driver
    #[command(after_help = "Examples:\n  blksnap version --json")]
    Version,

    /// Run a command while a snapshot is held, and release it whatever happens
    #[command(long_about = snapshot::ABOUT, after_help = snapshot::AFTER)]
    Snapshot(Snapshot),

    /// Back up devices into a directory, in full or what changed since
    #[command(long_about = backup::ABOUT, after_help = backup::AFTER)]
    Backup(Backup),

    /// Write a restore point back to devices or files
    #[command(long_about = restore::ABOUT, after_help = restore::AFTER)]
    Restore(Restore),

    /// Check that restore points are what was backed up
    ///
    /// Reads all data and compares checksums. Tells which restore points are
    /// affected by what is damaged or missing; exit code 4 if any is. What could not be
    /// read now, such as for a lack of permission, is said to be not checked; exit code 1 if
    /// nothing is damaged. What "backup --salvage" could not read is listed; exit code 7 if that
    /// is all there is.
    #[command(after_help = "Examples:\n  \
        blksnap verify /backup\n  \
        blksnap verify /backup --point 3 --json")]
    Verify {
        /// The directory of the backup
        #[arg(value_name = "DIR")]
        directory: PathBuf,

        /// Only this restore point
        #[arg(long, value_name = "N")]
        point: Option<u64>,

        #[command(flatten)]
        trust: Trust,

        #[command(flatten)]
        lock: Lock,
    },

    /// List restore points
    #[command(after_help = "Examples:\n  \
        blksnap list /backup\n  \
        blksnap list /backup --json | jq .points[-1].point")]
    List {
        /// The directory of the backup
        #[arg(value_name = "DIR")]
        directory: PathBuf,

        #[command(flatten)]
        trust: Trust,
    },

    /// Remove old restore points
    ///
    /// Of every disk the newest N stay, whatever it was called. What they need of older ones
    /// is merged into the oldest that stays, for which about the size of a full backup is
    /// written; the space for that must be there. If it is interrupted, all is
    /// as it was. Nothing may read the backup meanwhile.
    ///
    /// Where several machines have their backups in DIR, those of the others stay.
    #[command(after_help = "Examples:\n  \
        blksnap prune /backup --keep 7 --dry-run\n  \
        blksnap prune /backup --keep 30 --slack 7\n  \
        blksnap prune /backup --keep 7 --machine db1")]
    Prune {
        /// The directory of the backup
        #[arg(value_name = "DIR")]
        directory: PathBuf,

        /// How many restore points stay of every device, at least 1
        #[arg(long, value_name = "N")]
        keep: NonZeroUsize,

        /// Do nothing until a device has more than M restore points too many
        ///
        /// So that old ones are merged M at a time, and not one after every backup.
        #[arg(long, value_name = "M", default_value_t = 0)]
        slack: usize,

        /// Show which restore points would be removed, and change nothing
        #[arg(long)]
        dry_run: bool,

        #[command(flatten)]
        machine: MachineOption,

        #[command(flatten)]
        trust: Trust,

        #[command(flatten)]
        lock: Lock,
    },

    /// Remove restore points that are named
    ///
    /// The others stay as they were: what they need of those that go is merged into
    /// them, as with "prune".
    #[command(after_help = "Examples:\n  \
        blksnap forget /backup 3\n  \
        blksnap forget /backup 3 5 8 --dry-run")]
    Forget {
        /// The directory of the backup
        #[arg(value_name = "DIR")]
        directory: PathBuf,

        /// The restore points
        #[arg(value_name = "N", required = true)]
        points: Vec<u64>,

        /// Show what would be removed, and change nothing
        #[arg(long)]
        dry_run: bool,

        #[command(flatten)]
        trust: Trust,

        #[command(flatten)]
        lock: Lock,
    },

    /// Make the manifest of a backup again, if it is lost
    ///
    /// From what the directory of each restore point has of it. Restore points of which
    /// files are missing or damaged are left out and told, with exit code 4; "verify" then
    /// reads the data of the others. Where the manifest is right, only what is missing of it in
    /// these directories is written again.
    #[command(after_help = "Examples:\n  \
        blksnap rebuild /backup && blksnap verify /backup")]
    Rebuild {
        /// The directory of the backup
        #[arg(value_name = "DIR")]
        directory: PathBuf,

        #[command(flatten)]
        trust: Trust,

        #[command(flatten)]
        lock: Lock,
    },

    /// Print what changed on a device between two snapshots, as JSON
    ///
    /// In bytes, as of the newest snapshot, which may be released already. A
    /// backup program notes "take_id" while it holds a snapshot, and passes it
    /// the next time with --take. If the change tracking does not know it then,
    /// everything has to be read.
    ///
    /// A number does not prove which snapshot it was: a virtual machine that was
    /// put back to an earlier state counts on from there.
    #[command(after_help = "Output:\n  \
        {\"device\", \"generation_id\", \"changes_number\", \"take_id\", \"since\",\n  \
        \"block_size\", \"size\", \"changed_bytes\",\n  \
        \"extents\": [{\"offset\", \"length\"}]}\n\n\
        Examples:\n  \
        blksnap changed /dev/sda\n  \
        blksnap changed /dev/sda \\\n      \
        --take 5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11 | jq .extents")]
    Changed {
        /// A block device that has the filter
        #[arg(value_name = "DEV")]
        device: PathBuf,

        /// After the snapshot with this number; 0 for since tracking began
        ///
        /// By default the one before the newest.
        #[arg(long, value_name = "N")]
        since: Option<u8>,

        /// After the snapshot with this take_id; fail if it is not known
        #[arg(long, value_name = "ID", conflicts_with_all = ["since", "generation"])]
        take: Option<Uuid>,

        /// Fail if the numbers are not of this generation
        #[arg(long, value_name = "ID")]
        generation: Option<Uuid>,
    },

    /// Print completions for a shell
    #[command(after_help = "Examples:\n  \
        blksnap completions bash >/usr/share/bash-completion/completions/blksnap")]
    Completions {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: clap_complete::Shell,
    },

    /// Write man pages into a directory
    #[command(after_help = "Examples:\n  blksnap man /usr/local/share/man/man8")]
    Man {
        /// Where to; it must be there
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },

    /// The process that creates a snapshot
    #[command(hide = true)]
    Guard {
        store: PathBuf,

        #[arg(long)]
        sectors: u64,
    },

    /// The process that lets the storage of a snapshot grow
    #[command(hide = true)]
    Grow {
        id: Uuid,

        #[arg(long)]
        store: PathBuf,

        #[command(flatten)]
        plan: PlanOptions,
    },
}

#[cfg(test)]
mod tests;
