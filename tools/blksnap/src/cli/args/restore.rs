// SPDX-License-Identifier: GPL-2.0-only

//! The arguments of "blksnap restore".

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::OsStringValueParser;
use clap::builder::TypedValueParser;

use super::Lock;
use super::MachineOption;
use super::Trust;

pub(super) const ABOUT: &str = "\
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

pub(super) const AFTER: &str = "\
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

fn not_empty(text: OsString) -> Result<OsString, String> {
    match text.is_empty() {
        true => Err("the name is empty".to_owned()),
        false => Ok(text),
    }
}
