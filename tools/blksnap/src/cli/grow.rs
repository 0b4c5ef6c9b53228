// SPDX-License-Identifier: GPL-2.0-only

//! How the storage of a snapshot grows: what was asked for, and the process
//! of its own that does it for "blksnap snap create".

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::thread;

use blksnap::error::Operation;
use blksnap::grow;
use blksnap::grow::Growth;
use blksnap::grow::News;
use blksnap::grow::Obstacle;
use blksnap::grow::Watched;
use blksnap::Control;
use blksnap::Error;
use blksnap::Result;
use blksnap::Sectors;
use blksnap::Uuid;
use rustix::io::Errno;

use super::output::Output;

/// What the options say of the storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub limit: Sectors,
    pub low_space: Option<Sectors>,
    pub growth: Option<Growth>,
}

impl Plan {
    /// As options of [`Subcommand::Grow`].
    ///
    /// [`Subcommand::Grow`]: super::args::Subcommand::Grow
    pub fn options(&self, store: &Path) -> Vec<OsString> {
        let mut path = OsString::from("--store=");
        path.push(store);
        let mut options = vec![path, format!("--sectors={}", self.limit.0).into()];
        if let Some(threshold) = self.low_space {
            options.push(format!("--low-space={}", threshold.0).into());
        }
        if let Some(growth) = self.growth {
            options.push(format!("--step={}", growth.step.0).into());
            options.extend(growth.max.map(|max| format!("--max={}", max.0).into()));
        }
        options
    }

    /// Before anything else is done with the snapshot, so that a driver that
    /// is too old for this is noticed.
    pub fn set_threshold(&self, id: Uuid) -> Result<()> {
        match self.low_space {
            Some(threshold) => Control::open()?.set_low_space(id, threshold),
            None => Ok(()),
        }
    }
}

/// This very program in another role, even if an update has replaced the file.
pub fn role(name: &str, subcommand: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(name).arg(subcommand);
    command
}

/// Starts a process that lets the storage grow as long as the snapshot exists.
pub fn start_process(id: Uuid, store: &Path, plan: &Plan) -> Result<()> {
    let failed = |error| Error::from_io(Operation::Grow, &error);
    let store = std::path::absolute(store).map_err(failed)?;
    grow::close_on_exec()?;
    role("blksnap-grow", "grow")
        .args(plan.options(&store))
        .arg(id.to_string())
        // A shell waits for all that have its pipe.
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Not to keep a filesystem from being unmounted.
        .current_dir("/")
        // Away from the signals of the terminal.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    Ok(())
}

/// What such a process does. Nobody sees its output.
pub fn grow(id: Uuid, store: &Path, plan: &Plan) -> Result<u8> {
    let Some(growth) = plan.growth else {
        return Ok(0);
    };
    let tell = |news: &News| news.log(id);
    match Watched::open(id, store)
        .and_then(|storage| grow::serve(&storage, plan.limit, growth, &tell))
    {
        // It is destroyed already.
        Err(error) if error.errno() == Some(Errno::SRCH) => Ok(0),
        Err(error) => {
            tell(&News::Stuck {
                limit: plan.limit,
                obstacle: Obstacle::Error(error.clone()),
            });
            Err(error)
        }
        Ok(()) => Ok(0),
    }
}

/// Lets the storage grow in a thread, which ends with the snapshot or with
/// this process.
pub fn start_thread(
    id: Uuid,
    store: &Path,
    limit: Sectors,
    growth: Growth,
    output: Output,
) -> Result<()> {
    let storage = Watched::open(id, store)?;
    let tell = move |news: &News| {
        news.log(id);
        if news.is_trouble() {
            output.warning(&news.to_string());
        } else {
            output.note(&news.to_string());
        }
    };
    thread::Builder::new()
        .spawn(move || grow::run(&storage, limit, growth, &tell))
        .map_err(|error| Error::from_io(Operation::Grow, &error))?;
    Ok(())
}
