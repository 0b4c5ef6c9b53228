// SPDX-License-Identifier: GPL-2.0-only

//! What is run before and after the moment of a snapshot.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use blksnap::hooks;

use super::place::seconds;

#[derive(Debug, clap::Args)]
pub struct Hooks {
    /// Run this, by a shell, right before the snapshot is taken
    ///
    /// For an application that has to write something first, or to stop. Can be given several
    /// times. It has BLKSNAP_HOOK (before-take or after-take), BLKSNAP_ID, BLKSNAP_COUNT and
    /// BLKSNAP_DEVICE_1, _2 and so on in its environment. If it fails no snapshot is taken.
    #[arg(long, value_name = "COMMAND")]
    pub before_take: Vec<OsString>,

    /// Run this, by a shell, right after the snapshot was taken, or was not
    ///
    /// It runs as soon as anything ran before the snapshot, even if that or the snapshot has
    /// failed or a signal came. If it fails, the exit code is 1, and the snapshot is used
    /// nevertheless.
    #[arg(long, value_name = "COMMAND")]
    pub after_take: Vec<OsString>,

    /// Run each program in this directory both times
    ///
    /// With before-take as the argument, in the order of the names, and with after-take, in the
    /// opposite order. Nobody but root may be able to write there.
    #[arg(long, value_name = "DIR")]
    pub hooks: Option<PathBuf>,

    /// How long each of these may take, before it is ended
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "60")]
    pub hook_timeout: Duration,
}

impl From<Hooks> for hooks::Hooks {
    fn from(args: Hooks) -> Self {
        Self {
            before: args.before_take,
            after: args.after_take,
            directory: args.hooks,
            timeout: args.hook_timeout,
        }
    }
}
