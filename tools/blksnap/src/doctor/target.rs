// SPDX-License-Identifier: GPL-2.0-only

//! Whether restore points can be written to a directory.

use std::path::Path;

use rustix::io::Errno;

use crate::backup::directory::Directory;
use crate::backup::lock::writer_seen;
use crate::backup::names::WRITER;
use crate::backup::store::Store;
use crate::error::Error;
use crate::error::Operation;
use crate::Bytes;

use super::disks::nodes_of_disks;
use super::disks::Device;
use super::root::Found;
use super::space;
use super::space::Used;
use super::Check;
use super::Root;
use super::System;

const CHECK: &str = "target";
const LOCK: &str = "lock";

/// One part of so many of what is in use should be free for a next restore point.
const PART: u64 = 20;

/// Checks the directory of a backup, and returns the time of its newest restore point.
pub fn check(
    root: &Root,
    path: &Path,
    devices: &[Device],
    system: &dyn System,
) -> (Vec<Check>, Option<u64>) {
    let subject = path.display().to_string();
    let refused = |errno| {
        let error = Error::from_errno(Operation::BackUp, errno).on(path);
        (vec![Check::error(CHECK, &subject, &error)], None)
    };
    let (there, is_new) = match root.find(path) {
        Ok(found) => (found, false),
        Err(Errno::NOENT) => match root.find(parent(path)) {
            Ok(found) => (found, true),
            Err(errno) => return refused(errno),
        },
        Err(errno) => return refused(errno),
    };
    let found = match there {
        Found::Local(found) => found,
        Found::Remote(mount) => {
            let text = format!(
                "it is on {} ({}), and not checked: a server that does not answer would keep \
                 this waiting",
                mount.kind,
                mount.source.display()
            );
            let point = mount.mount_point.display();
            let remedy =
                format!("see with \"timeout 10 df -h {point}\" that it answers and has space");
            return (vec![Check::note(CHECK, &subject, text, remedy)], None);
        }
    };
    if let Some(check) = on_a_device(root, &subject, &found, devices) {
        return (vec![check], None);
    }
    let real = root.join(&found);
    let mut checks = Vec::new();
    if !is_new {
        if let Err(error) =
            Directory::open(&real).and_then(|it| it.can_be_listed(Operation::BackUp))
        {
            return (vec![Check::error(CHECK, &subject, &error)], None);
        }
    }
    checks.push(writable(root, &subject, &found, is_new, system));
    checks.extend(other_disks(root, &subject, &found, devices));
    let mut newest = None;
    let mut has_points = false;
    if !is_new {
        checks.push(lock(&subject, &real));
        match points(&real) {
            Ok(times) => {
                has_points = !times.is_empty();
                newest = times.into_iter().max();
            }
            Err(error) => {
                checks.push(Check::error(CHECK, &subject, &error));
                return (checks, None);
            }
        }
    }
    let used = space::used(root, devices, system);
    let free = system.space(&real).map(|it| it.free);
    checks.extend(free.map(|free| enough(&subject, free, used, has_points)));
    (checks, newest)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A backup on its own device would be lost with it.
fn on_a_device(root: &Root, subject: &str, found: &Path, devices: &[Device]) -> Option<Check> {
    let mount = root.stack.mount_of(found)?;
    let below = root.stack.below_mount(mount).devices;
    let device = devices.iter().find(|it| below.contains(&it.number))?;
    Some(Check::problem(
        CHECK,
        subject,
        format!("it lies on {}, and would be lost with that", device.subject),
        "name a directory on another disk",
    ))
}

/// Of which disks backups can be there, if none are named.
fn other_disks(root: &Root, subject: &str, found: &Path, devices: &[Device]) -> Option<Check> {
    let mount = root.stack.mount_of(found)?;
    let disks = nodes_of_disks(root, &root.stack.below_mount(mount).devices);
    let is_of_interest = devices.is_empty() && !disks.is_empty();
    let text = format!("it can have backups of disks other than {disks}");
    is_of_interest.then(|| Check::ok(CHECK, subject, text))
}

fn writable(root: &Root, subject: &str, found: &Path, is_new: bool, system: &dyn System) -> Check {
    let mount = root.stack.mount_of(found);
    let result = match mount {
        Some(mount) if mount.is_read_only => Err(Errno::ROFS),
        _ => system.can_write(&root.join(found)),
    };
    let on = mount.map(|it| format!(" on {}", it.kind));
    let on = on.unwrap_or_default();
    match result {
        Ok(()) if is_new => Check::ok(
            CHECK,
            subject,
            format!("it can be created{on}, in {}", found.display()),
        ),
        Ok(()) => Check::ok(CHECK, subject, format!("it can be written to{on}")),
        Err(errno) => {
            let error = Error::from_errno(Operation::WriteBackup, errno);
            Check::error(CHECK, subject, &error)
        }
    }
}

/// Whether another process has the backup locked.
fn lock(subject: &str, real: &Path) -> Check {
    let open = |name: &str| {
        let directory = Directory::open(real).ok()?;
        directory.read(Operation::OpenBackup, name).ok()
    };
    let holder = open(WRITER).and_then(|file| writer_seen(&file, open(WRITER).as_ref()));
    match holder {
        Some(holder) => Check::warning(
            LOCK,
            subject,
            format!("it is locked by {holder}"),
            "wait until that has ended, or say --lock-wait SECONDS to have it waited for",
        ),
        None => Check::ok(LOCK, subject, "no process on this machine has it locked"),
    }
}

/// The times of its restore points; none if there is no backup yet.
fn points(real: &Path) -> Result<Vec<u64>, Error> {
    match Store::look(real) {
        Ok(store) => Ok(store.manifest().points.iter().map(|it| it.time).collect()),
        // An empty directory; one with restore points and no manifest is another error.
        Err(error) if error.errno() == Some(Errno::NOENT) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Whether there is space for the next restore point.
fn enough(subject: &str, free: Bytes, used: Used, has_points: bool) -> Check {
    let mut remedy = "free some space, or name a directory on a larger file system".to_owned();
    if has_points {
        remedy += &format!(
            "; \"blksnap prune {subject} --keep N\" removes old restore points, if there is space \
             to merge them"
        );
    }
    let (known, most) = (used.known, used.known.saturating_add(used.unknown));
    if free.0 == 0 {
        return Check::problem(CHECK, subject, "there is no space left", remedy);
    }
    if has_points {
        return match free.0 < most / PART {
            true => Check::warning(
                CHECK,
                subject,
                format!("{free} are free, which changes of a few days can fill"),
                remedy,
            ),
            false => Check::ok(CHECK, subject, format!("{free} are free")),
        };
    }
    if free.0 < known {
        let text = format!(
            "{free} are free, and the first backup has the {} that are in use on the devices",
            Bytes(known)
        );
        Check::problem(CHECK, subject, text, remedy)
    } else if free.0 < most {
        let text = format!(
            "{free} are free, and the first backup can take up to {}, as not all of the devices is \
             mounted",
            Bytes(most)
        );
        Check::warning(CHECK, subject, text, remedy)
    } else if most == 0 {
        Check::ok(CHECK, subject, format!("{free} are free"))
    } else {
        let text = format!(
            "{free} are free, and {} are in use on the devices",
            Bytes(most)
        );
        Check::ok(CHECK, subject, text)
    }
}
