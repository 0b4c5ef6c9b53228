// SPDX-License-Identifier: GPL-2.0-only

//! Tells whether backups will work on a machine, and what to do where they will not.
//!
//! Nothing is changed, no lock is taken, and no file is touched that is on a server, which need
//! not answer. Each check is a function of a [`Root`] and of what the running system says, so that
//! tests give it a made-up `/sys`, `/proc` and `/dev`.

pub mod caller;
pub mod clock;
pub mod disks;
pub mod driver;
pub mod filter;
pub mod kernel;
pub mod memory;
pub mod module;
pub mod naming;
pub mod root;
pub mod space;
pub mod storage;
pub mod system;
pub mod target;
pub mod tracking;

use std::path::PathBuf;

use serde::Serialize;

use crate::error::Error;

use disks::Device;
pub use root::Root;
pub use system::System;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Ok,
    /// Something to know, or that could not be checked.
    Note,
    /// Backups work, but not in all cases.
    Warning,
    /// Backups do not work.
    Problem,
}

impl Level {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// What one check has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked, such as `module`. These names do not change.
    pub check: &'static str,
    pub level: Level,
    /// The device, path or part of the kernel concerned.
    pub subject: String,
    pub message: String,
    /// What to do. A warning or problem always has it.
    pub remedy: Option<String>,
}

impl Check {
    fn new(
        check: &'static str,
        level: Level,
        subject: impl Into<String>,
        message: impl Into<String>,
        remedy: Option<String>,
    ) -> Self {
        Self {
            check,
            level,
            subject: subject.into(),
            message: message.into(),
            remedy,
        }
    }

    fn ok(check: &'static str, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, subject, message, None)
    }

    fn note(
        check: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(check, Level::Note, subject, message, Some(remedy.into()))
    }

    fn warning(
        check: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(check, Level::Warning, subject, message, Some(remedy.into()))
    }

    fn problem(
        check: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(check, Level::Problem, subject, message, Some(remedy.into()))
    }

    /// What another command would fail with.
    fn error(check: &'static str, subject: impl Into<String>, error: &Error) -> Self {
        let remedy = error.remedy();
        let remedy = remedy.unwrap_or_else(|| "look into the kernel's log with \"dmesg\"".into());
        Self::problem(check, subject, error.reason(), remedy)
    }

    /// The same, not as bad.
    fn at_most(mut self, level: Level) -> Self {
        self.level = self.level.min(level);
        self
    }
}

/// What is to be backed up, and where to.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// All disks if there are none.
    pub devices: Vec<PathBuf>,
    pub target: Option<PathBuf>,
    pub store: Option<PathBuf>,
}

/// All checks.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub checks: Vec<Check>,
}

impl Report {
    pub fn worst(&self) -> Level {
        let levels = self.checks.iter().map(|it| it.level);
        levels.max().unwrap_or(Level::Ok)
    }
}

/// Runs all checks.
pub fn examine(root: &Root, request: &Request, system: &dyn System) -> Report {
    let config = kernel::Config::read(root);
    let mut checks = vec![
        caller::capabilities(root),
        kernel::check(root, &config),
        module::check(root, &config),
        driver::check(root, system),
    ];

    let (devices, missing) = disks::selected(root, &request.devices);
    checks.extend(missing);
    for device in &devices {
        checks.push(disks::describe(root, device));
        checks.extend(filter::check(root, device, system.page_size()));
        checks.extend(tracking::check(root, device));
        checks.push(naming::check(root, device));
    }
    checks.extend(memory::check(root, &devices));
    checks.push(caller::open_files(root));

    // All disks of several are not meant: the storage and the backups are on one of them.
    let chosen: Vec<Device> = match devices.len() {
        1 => devices,
        _ => devices.into_iter().filter(|it| it.is_named).collect(),
    };
    match &request.store {
        Some(path) => checks.extend(storage::check(root, path, &chosen, system)),
        None => checks.extend(storage::places(root, &chosen, system)),
    }
    let mut newest = None;
    if let Some(path) = &request.target {
        let (found, point) = target::check(root, path, &chosen, system);
        checks.extend(found);
        newest = point;
    }
    checks.push(clock::check(system.now(), newest));
    Report { checks }
}

#[cfg(test)]
mod tests;
