// SPDX-License-Identifier: GPL-2.0-only

mod backup;
mod doctor;
mod help;
mod hooks;
mod keep;
mod place;
mod restore;
mod run;
mod step;
mod store;

use std::path::PathBuf;

use blksnap::Uuid;
use clap::Parser;

pub use backup::Backup;
pub use doctor::Doctor;
pub use help::command;
pub use help::parse;
pub use hooks::Hooks;
pub use keep::Keep;
pub use place::Lock;
pub use place::MachineOption;
pub use place::Trust;
pub use restore::Restore;
pub use run::Run;
pub use step::Step;
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
  \"blksnap run\" has more, see there.

It needs root, and the driver: \"modprobe blksnap\" loads it. \"blksnap doctor\" tells
whether all is there, and what to do if not.

With --json there is one JSON document on standard output (of \"events\" one
for each event), and every error is a line of JSON on standard error: {\"error\":
{\"message\", \"remedy\", \"operation\", \"path\", \"snapshot\", \"errno\", \"errno_name\",
\"exit_code\"}}. Others are {\"warning\": TEXT} and {\"note\": TEXT}, and every five
seconds of long work {\"progress\": {\"done\", \"total\", \"bytes_per_second\"}}, in bytes.

Examples:
  What is missing for backups here:
    blksnap doctor

  A backup of a disk, in full the first time, and what changed since after that:
    blksnap backup /dev/sda --to /backup --store /var/tmp

  Any other program that reads a disk, while that is written to:
    blksnap run /dev/sda --store /var/tmp -- \\
        sh -c 'dd if=\"$BLKSNAP_IMAGE_1\" bs=1M of=/backup/sda.img'";

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
    /// Tell whether backups work on this machine, and what to do if not
    #[command(long_about = doctor::ABOUT, after_help = doctor::AFTER)]
    Doctor(Doctor),

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

    /// Print the versions of this command and of the driver
    #[command(after_help = "Examples:\n  blksnap version --json")]
    Version,

    /// Run a command on a snapshot, and release that whatever happens
    #[command(alias = "snapshot", long_about = run::ABOUT, after_help = run::AFTER)]
    Run(Run),

    /// Make, use and destroy a snapshot step by step
    #[command(long_about = step::ABOUT, after_help = step::AFTER)]
    Snap {
        #[command(subcommand)]
        step: Step,
    },

    #[command(flatten)]
    Flat(Step),

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
        blksnap list /backup --json | jq .points[-1].point\n  \
        blksnap list /backup --metrics | sponge /var/lib/prometheus/node-exporter/blksnap.prom")]
    List {
        /// The directory of the backup
        #[arg(value_name = "DIR")]
        directory: PathBuf,

        /// Print metrics of each device in the text format of Prometheus
        ///
        /// How many restore points it has, the time and number of the newest one, the time of the
        /// oldest one, and sizes.
        #[arg(long, conflicts_with = "json")]
        metrics: bool,

        #[command(flatten)]
        trust: Trust,
    },

    /// Remove restore points that no rule keeps
    #[command(long_about = keep::ABOUT, after_help = keep::AFTER)]
    Prune {
        /// The directory of the backup
        #[arg(value_name = "DIR")]
        directory: PathBuf,

        #[command(flatten)]
        keep: Keep,

        /// Do nothing until a device has more than M restore points to remove
        ///
        /// So that old ones are merged M at a time, and not one after every backup.
        #[arg(long, value_name = "M", default_value_t = 0)]
        slack: usize,

        /// Show which rules keep which restore points, and which would be removed; change nothing
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
