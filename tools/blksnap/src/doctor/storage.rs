// SPDX-License-Identifier: GPL-2.0-only

//! Where the difference storage can be.

use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::io::Errno;

use crate::device::DeviceNumber;
use crate::error::Error;
use crate::error::Operation;
use crate::explain::OTHER_STORE;
use crate::mounts::Mount;
use crate::storage::refuse_data;
use crate::Bytes;

use super::disks::nodes_of_disks;
use super::disks::Device;
use super::root::Found;
use super::space;
use super::Check;
use super::Root;
use super::System;

const CHECK: &str = "storage";

/// File systems that files of the storage work on: they have files without a name.
const GOOD: [&str; 7] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs"];
/// File systems that have none.
const BAD: [&str; 11] = [
    "vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "hfsplus", "iso9660", "udf", "squashfs",
    "erofs",
];

/// 1/20 of the devices' size should be free for what is overwritten meanwhile.
const PART: u64 = 20;
/// Less than this is too little for any disk that is in use.
const LEAST: u64 = 256 << 20;

/// The devices of which one lies below something.
fn on_them<'a>(below: &BTreeSet<DeviceNumber>, devices: &'a [Device]) -> Option<&'a Device> {
    devices.iter().find(|it| below.contains(&it.number))
}

/// Finds file systems for the storage of snapshots of `devices`, or tells of which disks each can
/// have it if there are none.
pub fn places(root: &Root, devices: &[Device], system: &dyn System) -> Vec<Check> {
    let mut seen = BTreeSet::new();
    let mut checks = Vec::new();
    for mount in root.stack.mounts() {
        if !GOOD.contains(&mount.kind.as_str()) || mount.is_read_only {
            continue;
        }
        let below = root.stack.below_mount(mount).devices;
        let is_first = seen.insert(below.clone());
        if !is_first || on_them(&below, devices).is_some() {
            continue;
        }
        let Some(space) = space::of_mount(root, mount, system) else {
            continue;
        };
        if space.free.0 < LEAST {
            continue;
        }
        let disks = nodes_of_disks(root, &below);
        let suits = match (devices.is_empty(), disks.is_empty()) {
            (true, false) => format!("for disks other than {disks}"),
            _ => "on none of the devices".to_owned(),
        };
        let point = mount.mount_point.display().to_string();
        let text = format!(
            "--store can name a directory here: {} with {} free, {suits}",
            mount.kind, space.free
        );
        checks.push(Check::ok(CHECK, point, text));
    }
    if checks.is_empty() {
        checks.push(Check::warning(
            CHECK,
            "--store",
            "no local file system that is on another disk has space for the storage",
            "add a disk, or keep a partition without content on another one, and name it with \
             --store; tmpfs, as /dev/shm, does for small amounts",
        ));
    }
    checks
}

/// Checks the storage that is named.
pub fn check(root: &Root, path: &Path, devices: &[Device], system: &dyn System) -> Vec<Check> {
    let subject = path.display().to_string();
    let refused = |errno| {
        let error = Error::from_errno(Operation::Create, errno).on(path);
        vec![Check::error(CHECK, &subject, &error)]
    };
    let found = match root.find(path) {
        Ok(Found::Local(found)) => found,
        Ok(Found::Remote(mount)) => {
            return vec![Check::problem(
                CHECK,
                &subject,
                format!(
                    "it is on {}, which cannot hold the difference storage",
                    mount.kind
                ),
                "name a directory on a local file system, such as ext4, xfs or btrfs",
            )]
        }
        Err(errno) => return refused(errno),
    };
    if let Ok(number) = root.device(&found) {
        return vec![device(root, &subject, number, devices)];
    }
    let real = root.join(&found);
    let kind = match std::fs::metadata(&real) {
        Ok(metadata) => metadata.file_type(),
        Err(error) => return refused(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
    };
    if kind.is_block_device() || !(kind.is_dir() || kind.is_file()) {
        return refused(Errno::INVAL);
    }
    let Some(mount) = root.stack.mount_of(&found) else {
        return refused(Errno::INVAL);
    };
    let below = root.stack.below_mount(mount).devices;
    if let Some(device) = on_them(&below, devices) {
        let reason = format!("it lies on {}, which is to be backed up", device.subject);
        return vec![Check::problem(CHECK, &subject, reason, OTHER_STORE)];
    }
    let mut checks = vec![file_system(&subject, mount, kind.is_dir())];
    let disks = nodes_of_disks(root, &below);
    if devices.is_empty() && !disks.is_empty() {
        checks.push(Check::ok(
            CHECK,
            &subject,
            format!("it can be the storage for disks other than {disks}"),
        ));
    }
    if kind.is_file() {
        if let Err(error) = refuse_data(&real) {
            checks.push(Check::error(CHECK, &subject, &error));
        }
    }
    let size = devices.iter().map(|it| root.stack.size(it.number)).sum();
    let space = system.space(&real).map(|it| it.free);
    checks.extend(space.map(|free| enough(&subject, free, size)));
    checks
}

/// A block device as the storage.
fn device(root: &Root, subject: &str, number: DeviceNumber, devices: &[Device]) -> Check {
    let below = root.stack.below_device(number).devices;
    let users = root.stack.users(number);
    if let Some(device) = on_them(&below, devices) {
        let reason = format!("it lies on {}, which is to be backed up", device.subject);
        Check::problem(CHECK, subject, reason, OTHER_STORE)
    } else if let Some(user) = users.first() {
        let reason = format!("it is in use: {user}");
        let remedy = "name a directory, or a block device that nothing else uses";
        Check::problem(CHECK, subject, reason, remedy)
    } else if root.stack.is_write_protected(number) {
        let remedy = "name a device that can be written to; \"lsblk -o NAME,RO\" shows which can";
        Check::problem(CHECK, subject, "it is read-only", remedy)
    } else {
        let size = devices.iter().map(|it| root.stack.size(it.number)).sum();
        enough(subject, Bytes(root.stack.size(number)), size)
    }
}

/// Whether a file of the storage can be on a file system.
fn file_system(subject: &str, mount: &Mount, is_directory: bool) -> Check {
    let kind = mount.kind.as_str();
    let point = mount.mount_point.display();
    let other = "name a directory on a local file system, such as ext4, xfs or btrfs";
    if mount.is_read_only {
        let error = Error::from_errno(Operation::Create, Errno::ROFS);
        Check::error(CHECK, subject, &error)
    } else if GOOD.contains(&kind) {
        Check::ok(
            CHECK,
            subject,
            format!("it is on {kind}, mounted on {point}"),
        )
    } else if kind == "tmpfs" {
        Check::warning(
            CHECK,
            subject,
            "it is on tmpfs: what the snapshot saves takes memory or swap",
            format!("give a --limit that leaves enough memory, or {other}"),
        )
    } else if BAD.contains(&kind) && is_directory {
        Check::problem(
            CHECK,
            subject,
            format!("it is on {kind}, which has no files without a name"),
            other,
        )
    } else {
        Check::warning(
            CHECK,
            subject,
            format!("it is on {kind}, on which the storage was not tried"),
            other,
        )
    }
}

/// Whether there is space for what is overwritten during a backup. It is a guess.
fn enough(subject: &str, free: Bytes, size: u64) -> Check {
    let remedy = "free some space, or name a directory on a larger file system on another disk";
    let wanted = Bytes((size / PART).max(LEAST));
    if free.0 == 0 {
        Check::problem(CHECK, subject, "there is no space left", remedy)
    } else if free < wanted {
        Check::warning(
            CHECK,
            subject,
            format!(
                "{free} are free, less than {wanted}: if more than that is overwritten during a \
                 backup, the snapshot is given up"
            ),
            remedy,
        )
    } else {
        Check::ok(CHECK, subject, format!("{free} are free"))
    }
}
