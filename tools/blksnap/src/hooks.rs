// SPDX-License-Identifier: GPL-2.0-only

//! Programs that are run before and after the moment of a snapshot.
//!
//! They bring an application into a state that is good to have in a backup, and let it go on. What
//! runs after the moment runs whatever happened, as soon as anything of what comes before has been
//! started: an application that was stopped must not stay so.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;

use rustix::process::kill_process_group;
use rustix::process::Pid;
use rustix::process::Signal;

use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;
use crate::owner;

/// How long one of them may take if nothing else is said.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// How long one may take to end after SIGTERM, before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// How often they are looked at.
const POLL: Duration = Duration::from_millis(10);

/// What to run. The default is nothing.
#[derive(Debug, Clone)]
pub struct Hooks {
    /// Command lines of a shell, in this order.
    pub before: Vec<OsString>,
    /// The same, after the moment.
    pub after: Vec<OsString>,
    /// A directory, of which each program is run both times, in the order of the names and in the
    /// opposite order, with "before-take" or "after-take" as its argument.
    pub directory: Option<PathBuf>,
    /// How long each may take.
    pub timeout: Duration,
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            before: Vec::new(),
            after: Vec::new(),
            directory: None,
            timeout: TIMEOUT,
        }
    }
}

/// The two times at which they are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Before,
    After,
}

impl When {
    fn name(self) -> &'static str {
        match self {
            Self::Before => "before-take",
            Self::After => "after-take",
        }
    }
}

/// One program with its arguments, and what it is called in messages.
struct Hook {
    name: PathBuf,
    program: PathBuf,
    arguments: Vec<OsString>,
}

/// All that is to be run.
pub(crate) struct Prepared {
    before: Vec<Hook>,
    after: Vec<Hook>,
    timeout: Duration,
}

impl Hooks {
    /// Finds the programs of the directory.
    ///
    /// They run with the rights of the caller. So others may not be able to write to it or to them.
    pub(crate) fn prepare(&self) -> Result<Prepared> {
        let programs = match &self.directory {
            Some(directory) => programs_in(directory)?,
            None => Vec::new(),
        };
        let of_programs = |when| programs.iter().map(move |path| Hook::program(path, when));
        let of_shell = |lines: &[OsString]| lines.iter().map(Hook::shell).collect::<Vec<_>>();
        let mut before = of_shell(&self.before);
        before.extend(of_programs(When::Before));
        // What was stopped last goes on first.
        let mut after: Vec<Hook> = of_programs(When::After).rev().collect();
        after.extend(of_shell(&self.after));
        Ok(Prepared {
            before,
            after,
            timeout: self.timeout,
        })
    }
}

impl Prepared {
    /// Runs `moment` between what is to be run before and after it. The errors that come with the
    /// result are of what ran after it.
    ///
    /// `keep_on` is asked meanwhile, except after the moment; its error ends what is running.
    pub(crate) fn around<T>(
        &self,
        variables: &[(String, OsString)],
        keep_on: &mut dyn FnMut() -> Result<()>,
        moment: impl FnOnce(&mut dyn FnMut() -> Result<()>) -> Result<T>,
    ) -> (Result<T>, Vec<Error>) {
        let run = |hook: &Hook, when, keep_on: &mut dyn FnMut() -> Result<()>| {
            hook.run(when, variables, self.timeout, keep_on)
        };
        let ready = self
            .before
            .iter()
            .try_for_each(|hook| run(hook, When::Before, keep_on));
        let result = ready.and_then(|()| moment(keep_on));
        let mut go_on = || Ok(());
        let errors = self
            .after
            .iter()
            .filter_map(|hook| run(hook, When::After, &mut go_on).err());
        (result, errors.collect())
    }
}

impl Hook {
    fn shell(line: &OsString) -> Self {
        Self {
            name: line.into(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), line.clone()],
        }
    }

    fn program(path: &Path, when: When) -> Self {
        Self {
            name: path.to_owned(),
            program: path.to_owned(),
            arguments: vec![when.name().into()],
        }
    }

    fn error(&self, when: When, reason: impl Into<String>, remedy: &str) -> Error {
        let reason = format!("{} hook: {}", when.name(), reason.into());
        Error::new(Operation::Hook, reason)
            .on(&self.name)
            .remedied_by(remedy)
    }

    fn run(
        &self,
        when: When,
        variables: &[(String, OsString)],
        timeout: Duration,
        keep_on: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let failed = |error: &io::Error| Error::from_io(Operation::Hook, error).on(&self.name);
        keep_on()?;
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .env("BLKSNAP_HOOK", when.name())
            .stdin(Stdio::null())
            // Standard output is for what the command prints.
            .stdout(Stdio::from(io::stderr()))
            // So that all that it has started ends with it.
            .process_group(0)
            .spawn()
            .map_err(|error| failed(&error))?;
        let end = Instant::now() + timeout;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(|error| failed(&error))? {
                break status;
            }
            if let Err(error) = keep_on() {
                stop(&mut child);
                return Err(error);
            }
            if Instant::now() >= end {
                stop(&mut child);
                let reason = format!("it took more than {} s and was ended", timeout.as_secs());
                return Err(self.error(when, reason, "see why, or set a longer --hook-timeout"));
            }
            sleep(POLL);
        };
        if status.success() {
            return Ok(());
        }
        let remedy = match when {
            When::Before => "see what it printed; no snapshot was taken",
            When::After => "see what it printed, and whether what it had to start again goes on",
        };
        Err(self.error(when, ending(status), remedy))
    }
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it has ended with exit code {code}"),
        (None, signal) => format!("signal {} has ended it", signal.unwrap_or_default()),
    }
}

/// Ends a program, and all others of its process group.
fn stop(child: &mut Child) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let tell = |signal| group.map(|group| kill_process_group(group, signal));
    tell(Signal::TERM);
    let end = Instant::now() + GRACE;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < end {
        sleep(POLL);
    }
    tell(Signal::KILL);
    let _ = child.wait();
}

/// The executable files in a directory, by name; hidden ones and those that editors and packages
/// leave are none.
fn programs_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error: &io::Error| Error::from_io(Operation::Hook, error).on(directory);
    only_ours(directory)?;
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(|error| failed(&error))? {
        let entry = entry.map_err(|error| failed(&error))?;
        if !is_name(&entry.file_name()) {
            continue;
        }
        let path = entry.path();
        let metadata = fs::metadata(&path)
            .map_err(|error| Error::from_io(Operation::Hook, &error).on(&path))?;
        if metadata.is_file() && metadata.mode() & 0o111 != 0 {
            only_ours(&path)?;
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// As of run-parts: letters, digits, "-" and "_", here also a dot inside.
fn is_name(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else {
        return false;
    };
    let is_left = [".dpkg-", ".rpm", ".bak", ".orig", ".swp"];
    name.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !name.starts_with('.')
        && !is_left.iter().any(|part| name.contains(part))
}

/// Fails if others than the caller and root could have made it what it is.
fn only_ours(path: &Path) -> Result<()> {
    let metadata =
        fs::metadata(path).map_err(|error| Error::from_io(Operation::Hook, &error).on(path))?;
    let Some(reason) = owner::distrust(metadata.uid(), metadata.mode()) else {
        return Ok(());
    };
    let shown = path.display();
    let remedy = format!("if it is right, run \"chown root {shown}\" and \"chmod go-w {shown}\"");
    Err(Error::new(Operation::Hook, reason)
        .on(path)
        .remedied_by(remedy))
}

#[cfg(test)]
mod tests;
