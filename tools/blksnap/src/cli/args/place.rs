// SPDX-License-Identifier: GPL-2.0-only

//! Which backups are meant, and how their directory is opened.

use std::path::Path;
use std::time::Duration;

use blksnap::backup::directory::Place;

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

fn name(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("the name is empty".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "a time is a number of seconds, such as 60 or 0.5".to_owned())
}
