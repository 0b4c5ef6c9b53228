// SPDX-License-Identifier: GPL-2.0-only

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use blksnap::backup::directory::Place;
use blksnap::error::Operation;
use blksnap::grow::Growth;
use blksnap::stack::Stack;
use blksnap::storage;
use blksnap::Bytes;
use blksnap::Error;
use blksnap::Sectors;
use blksnap::StorageRange;
use blksnap::Uuid;
use clap::builder::OsStringValueParser;
use clap::builder::TypedValueParser;
use clap::Parser;

use super::grow::Plan;

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  it failed; standard error says why and what to do
  2  the command line makes no sense
  3  a snapshot is corrupted, its images cannot be trusted
  4  a backup is damaged
  5  writes went past the change tracking; the restore point is right nevertheless
  6  something else has the backup locked; standard error says what
  7  sectors could not be read; the restore point has zeroes for them
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
    /// are clean. If that fails for one device, nothing is taken at all.
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
        #[arg(long, value_name = "SECONDS", value_parser = seconds)]
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
    #[command(long_about = SNAPSHOT_ABOUT, after_help = SNAPSHOT_AFTER)]
    Snapshot(Snapshot),

    /// Back up devices into a directory, in full or what changed since
    #[command(long_about = BACKUP_ABOUT, after_help = BACKUP_AFTER)]
    Backup(Backup),

    /// Write a restore point back to devices or files
    #[command(long_about = RESTORE_ABOUT, after_help = RESTORE_AFTER)]
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

/// A [`Plan`] on the way to another process, in sectors.
#[derive(Debug, clap::Args)]
pub struct PlanOptions {
    #[arg(long)]
    sectors: u64,

    #[arg(long)]
    low_space: Option<u64>,

    #[arg(long)]
    step: Option<u64>,

    #[arg(long, requires = "step")]
    max: Option<u64>,
}

impl From<PlanOptions> for Plan {
    fn from(options: PlanOptions) -> Self {
        Self {
            limit: Sectors(options.sectors),
            low_space: options.low_space.map(Sectors),
            growth: options.step.map(|step| Growth {
                step: Sectors(step),
                max: options.max.map(Sectors),
            }),
        }
    }
}

/// How a directory of backups is looked at.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Trust {
    /// Use DIR even if other users can write to it or own it
    ///
    /// By default it is refused, since these users would control what is restored. For
    /// filesystems that do not keep owners and modes.
    #[arg(long = "trust-directory")]
    is_trusted: bool,
}

impl Trust {
    pub fn place(self, path: &Path) -> Place<'_> {
        Place::new(path, self.is_trusted)
    }
}

/// Whose restore points are meant.
#[derive(Debug, Clone, clap::Args)]
pub struct MachineOption {
    /// Of this machine: the name of its host, its machine id, or the UUID of its hardware
    ///
    /// By default of the only one in the backup, or of this one.
    #[arg(long, value_name = "HOST", value_parser = name)]
    pub machine: Option<String>,
}

/// What becomes of a backup that something else has locked.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Lock {
    /// If something else has DIR locked, wait so long for it
    ///
    /// By default it is an error at once, with exit code 6. Standard error says what is waited for.
    #[arg(long = "lock-wait", value_name = "SECONDS", value_parser = seconds,
          default_value = "0", hide_default_value = true)]
    pub wait: Duration,
}

fn not_empty(text: OsString) -> Result<OsString, String> {
    match text.is_empty() {
        true => Err("the name is empty".to_owned()),
        false => Ok(text),
    }
}

fn name(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("the name is empty".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "a time is a number of seconds, such as 60 or 0.5".to_owned())
}

#[derive(Debug, clap::Args)]
pub struct Store {
    /// Where to keep what is overwritten: a directory, a file or a block device
    ///
    /// In a directory an unnamed file is made that vanishes with the snapshot.
    /// It must not lie on a device of the snapshot.
    #[arg(long, value_name = "PATH")]
    pub store: PathBuf,

    /// Use a file or block device as the store though it holds data
    #[arg(long)]
    pub overwrite: bool,

    /// How much it may take, such as 512M or 10G
    ///
    /// In bytes, or with K, M, G, T or P for powers of 1024. When it is used
    /// up, the snapshot is corrupted and the origins go on unharmed. By default
    /// half the free space of the filesystem, or all of the block device; with
    /// --grow its STEP.
    #[arg(long, value_name = "SIZE")]
    pub limit: Option<Bytes>,

    /// Tell with an event when less than this is left
    ///
    /// "blksnap events" prints it. By default never; with --grow half its STEP.
    #[arg(long, value_name = "SIZE")]
    pub low_space: Option<Bytes>,

    /// Raise the limit by so much whenever less than --low-space is left
    ///
    /// A process "blksnap-grow" does that as long as the snapshot exists ("snapshot"
    /// and "backup" do it themselves). It never takes more than a block device has,
    /// and leaves as much as STEP of a filesystem free. What it does is in the
    /// kernel's log.
    #[arg(long, value_name = "STEP")]
    pub grow: Option<Bytes>,

    /// Never raise the limit above this
    #[arg(long, value_name = "SIZE", requires = "grow")]
    pub max: Option<Bytes>,
}

impl Store {
    /// Checks the store, and says how to create the snapshot of `devices`.
    pub fn plan(&self, devices: &[PathBuf]) -> blksnap::Result<Plan> {
        storage::refuse_sources(&self.store, devices, &Stack::default())?;
        if !self.overwrite {
            storage::refuse_data(&self.store)?;
        }
        let Some(step) = self.grow else {
            return Ok(Plan {
                limit: storage::limit(&self.store, self.limit)?,
                low_space: self.low_space.map(Bytes::sectors),
                growth: None,
            });
        };
        let first = self.max.map_or(step, |max| step.min(max));
        let limit = self.limit.unwrap_or(first);
        if self.max.is_some_and(|max| limit > max) {
            return Err(
                Error::new(Operation::Arguments, "--limit is larger than --max")
                    .remedied_by("give a --limit to begin with that can grow up to --max"),
            );
        }
        let mut limit = storage::limit(&self.store, Some(limit))?;
        let mut max = self.max.map(Bytes::sectors);
        if let Some(size) = storage::device_size(&self.store)? {
            limit = limit.min(size);
            max = Some(max.map_or(size, |max| max.min(size)));
        }
        let step = step.sectors();
        let low_space = self.low_space.map(Bytes::sectors);
        Ok(Plan {
            limit,
            // 0 is for never.
            low_space: low_space.or(Some(Sectors((step.0 / 2).max(1)))),
            growth: Some(Growth { step, max }),
        })
    }
}

const SNAPSHOT_ABOUT: &str = "\
Run a command while a snapshot is held, and release it whatever happens

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

const SNAPSHOT_AFTER: &str = "\
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
  blksnap snapshot /dev/sda --store /var/tmp --limit 10G -- \\
      sh -c 'dd if=\"$BLKSNAP_IMAGE_1\" bs=1M | zstd > /backup/sda.zst'
  blksnap snapshot /dev/sda --store /var/tmp --grow 2G --max 50G -- backup
  blksnap snapshot /dev/sda2 /dev/sdb --store /dev/sdz -- sh -c '
      mount -o ro,norecovery \"$BLKSNAP_IMAGE_1\" /mnt || exit
      rsync -a /mnt/ /backup/; status=$?
      umount /mnt; exit $status'";

#[derive(Debug, clap::Args)]
pub struct Snapshot {
    /// Disks, partitions or other block devices
    #[arg(value_name = "DEV", required = true)]
    pub devices: Vec<PathBuf>,

    #[command(flatten)]
    pub store: Store,

    /// In the end detach the filter from devices that had none before
    #[arg(long)]
    pub detach: bool,

    /// What to run while the snapshot is held
    #[arg(value_name = "COMMAND", last = true, required = true)]
    pub command: Vec<OsString>,
}

const BACKUP_ABOUT: &str = "\
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

const BACKUP_AFTER: &str = "\
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

const RESTORE_ABOUT: &str = "\
Write a restore point back to devices or files

What was on the target is lost. So a target is refused, before any of them is
written to, if it is mounted or in use otherwise, holds something (a file that
is not empty; a block device on which blkid finds a file system, a partition
table or the like, or that does not begin and end with 1 MiB of zeroes), is
smaller, or has logical blocks of another size than the device had. There is an
option for each of them; none is for two. Nothing ever goes into the backup
directory or to a device that it lies on.

On a terminal it shows what goes where, and asks. Of a larger device the rest
stays as it is. What is zero takes no space on a file or a thin device.

All data is checked against its checksums: exit code 4 if some is not what was
backed up, of which the ranges are told. What cannot be read is written as
zeroes, and is among them; a backup of which nothing can be read any more ends
it, and so does an image that was cut off, of which --salvage restores what is
left. Exit code 7 if something could not be read when it was backed up, which
is zeroes, or with --salvage. With --check also the target is read: exit code 1 if it does not have what
was written.

A disk and a partition of it cannot be restored by one command.";

const RESTORE_AFTER: &str = "\
Targets:
  TARGET      if the restore point has one device
  DEV=TARGET  for the device DEV, as \"blksnap list\" shows it; without
              --point from the newest restore point that has it. If DEV could
              end at several \"=\", the longest that there is counts.
  ./TARGET    what begins with \"./\" or \"../\" has no DEV, even with a \"=\"
  -           standard output, as in DEV=-. To it and to a FIFO everything is
              written in order, zeroes too; the report is on standard error.

Examples:
  blksnap restore /backup disk.img
  blksnap restore /backup --point 3 /dev/sda=/dev/sdb --dry-run
  blksnap restore /backup --point 3 /dev/sda=/dev/sdb --overwrite --check
  blksnap restore /backup /dev/sda=a.img /dev/sdb=b.img
  blksnap restore /backup - | zstd >disk.zst
  blksnap restore /backup --in-place --overwrite";

#[derive(Debug, clap::Args)]
pub struct Restore {
    /// The directory of the backup
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,

    #[command(flatten)]
    pub trust: Trust,

    #[command(flatten)]
    pub lock: Lock,

    /// Where to: a block device, a file, a FIFO, or "-" for standard output
    ///
    /// With the name of the device in the backup before it, which may be left
    /// out if there is only one.
    #[arg(
        value_name = "[DEV=]TARGET",
        value_parser = OsStringValueParser::new().try_map(not_empty),
        required_unless_present = "in_place",
        conflicts_with = "in_place"
    )]
    pub targets: Vec<OsString>,

    /// The restore point; by default the newest that has the device
    #[arg(long, value_name = "N", conflicts_with = "machine")]
    pub point: Option<u64>,

    #[command(flatten)]
    pub machine: MachineOption,

    /// Every device to where it came from
    ///
    /// By their names in the backup. Refused if another disk is there now, by its serial
    /// number or the like, or by its partition table; or if that is not known and the name is
    /// one that moves from disk to disk, such as /dev/sda, unlike those in /dev/disk/by-id.
    #[arg(long)]
    pub in_place: bool,

    /// Show what goes where, and write nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Do not ask, on a terminal
    #[arg(short, long)]
    pub yes: bool,

    /// Read the target afterwards, and compare it with the checksums
    ///
    /// Past the page cache where that is possible. Exit code 1 if it differs.
    #[arg(long)]
    pub check: bool,

    /// Even if the target holds something, which is lost
    #[arg(long)]
    pub overwrite: bool,

    /// Even if the target is mounted or in use otherwise
    #[arg(long)]
    pub in_use: bool,

    /// Even if the target is smaller; the end is missing then
    #[arg(long)]
    pub truncate: bool,

    /// Even if the target has logical blocks of another size
    ///
    /// Partition tables count in logical blocks, and are not found then.
    #[arg(long)]
    pub other_block_size: bool,

    /// Restore what is left of a damaged backup
    ///
    /// Also of images that were cut off. The rest is zeroes; its ranges are told, and the exit
    /// code is 7.
    #[arg(long)]
    pub salvage: bool,

    /// With --in-place, even if a name is or may be that of another disk now
    #[arg(long, conflicts_with = "targets")]
    pub moved_name: bool,

    /// Replaced by the options above
    #[arg(long, hide = true)]
    pub force: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        for command in Args::command().get_subcommands() {
            if command.is_hide_set() {
                continue;
            }
            let help = command.get_after_help().map(ToString::to_string);
            assert!(
                help.is_some_and(|help| help.contains("Examples:")),
                "{}",
                command.get_name()
            );
        }
    }

    fn plan(store: &Path, options: &[&str]) -> blksnap::Result<Plan> {
        let store = store.to_str().unwrap();
        let args = [&["blksnap", "create", "--store", store], options].concat();
        match Args::try_parse_from(args).unwrap().command {
            Subcommand::Create { store, .. } => store.plan(&[]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn growing_begins_with_a_step() {
        let temp = tempfile::tempdir().unwrap();
        let plan = |options: &[&str]| plan(temp.path(), options).unwrap();
        let growing = |limit, low_space, max| Plan {
            limit: Sectors(limit),
            low_space: Some(Sectors(low_space)),
            growth: Some(Growth {
                step: Sectors(2048),
                max,
            }),
        };
        assert_eq!(plan(&["--grow=1M"]), growing(2048, 1024, None));
        assert_eq!(
            plan(&["--grow=1M", "--max=512K", "--low-space=4K"]),
            growing(1024, 8, Some(Sectors(1024)))
        );
        assert_eq!(
            plan(&["--grow=1M", "--limit=4M", "--max=4M"]),
            growing(8192, 1024, Some(Sectors(8192)))
        );
        assert_eq!(plan(&["--grow=512"]).low_space, Some(Sectors(1)));

        let fixed = plan(&["--limit=1M", "--low-space=4K"]);
        assert_eq!(fixed.low_space, Some(Sectors(8)));
        assert_eq!(fixed.growth, None);
        assert_eq!(plan(&["--limit=1M"]).low_space, None);
    }

    #[test]
    fn a_limit_above_the_maximum_makes_no_sense() {
        let temp = tempfile::tempdir().unwrap();
        let error = plan(temp.path(), &["--grow=1M", "--limit=3M", "--max=2M"]).unwrap_err();
        assert_eq!(error.exit().code(), 2);
        assert!(error.to_string().contains("--max"), "{error}");
    }

    #[test]
    fn plans_reach_other_processes() {
        for growth in [
            None,
            Some(Growth {
                step: Sectors(4),
                max: None,
            }),
            Some(Growth {
                step: Sectors(4),
                max: Some(Sectors(9)),
            }),
        ] {
            let plan = Plan {
                limit: Sectors(7),
                low_space: growth.map(|_| Sectors(2)),
                growth,
            };
            let mut args: Vec<OsString> = vec!["blksnap".into(), "grow".into()];
            args.extend(plan.options("/a store".as_ref()));
            args.push(Uuid::from_bytes([1; 16]).to_string().into());
            match Args::try_parse_from(args).unwrap().command {
                Subcommand::Grow {
                    store,
                    plan: options,
                    ..
                } => {
                    assert_eq!(store, Path::new("/a store"));
                    assert_eq!(Plan::from(options), plan);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn times_are_seconds() {
        assert_eq!(seconds("60"), Ok(Duration::from_secs(60)));
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "-1", "1m", "nan", "inf"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn locks_are_not_waited_for_unless_that_is_said() {
        let wait = |options: &[&str]| {
            let args = [&["blksnap", "verify", "/b"], options].concat();
            match Args::try_parse_from(args).unwrap().command {
                Subcommand::Verify { lock, .. } => lock.wait,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(wait(&[]), Duration::ZERO);
        assert_eq!(wait(&["--lock-wait", "90"]), Duration::from_secs(90));
    }

    #[test]
    fn options_of_the_command_are_left_to_it() {
        let args = Args::try_parse_from([
            "blksnap", "snapshot", "/dev/a", "/dev/b", "--store", "/s", "--limit", "1G", "--",
            "ls", "--json", "--", "-l",
        ])
        .unwrap();
        assert!(!args.json);
        let Subcommand::Snapshot(snapshot) = args.command else {
            panic!();
        };
        assert_eq!(snapshot.devices.len(), 2);
        assert_eq!(snapshot.store.limit, Some(Bytes(1 << 30)));
        assert_eq!(snapshot.command, ["ls", "--json", "--", "-l"]);
    }
}
