// SPDX-License-Identifier: GPL-2.0-only

//! Which disks there are, and what lies on them, in the words of lsblk.

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::device::DeviceNumber;
use crate::error::Error;
use crate::error::Operation;
use crate::Bytes;

use super::Check;
use super::Root;

const CHECK: &str = "disk";

/// Names of what is listed only if it is named: disks in memory, drives for optical discs and
/// floppies, and images of snapshots.
const LEFT_OUT: [&str; 5] = ["ram", "zram", "sr", "fd", "blksnap-image"];

/// A block device that is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub number: DeviceNumber,
    /// What it is called in messages: as it was named, or by its node.
    pub subject: String,
    /// As it was named on the command line.
    pub path: PathBuf,
    pub is_named: bool,
}

/// The devices that are named, or all disks; and what is wrong with names.
pub fn selected(root: &Root, named: &[PathBuf]) -> (Vec<Device>, Vec<Check>) {
    if named.is_empty() {
        return all(root);
    }
    let mut found: Vec<Device> = Vec::new();
    let mut checks = Vec::new();
    for path in named {
        let subject = path.display().to_string();
        match root.device(path) {
            Ok(number) if root.stack.name(number).is_none() => checks.push(Check::problem(
                CHECK,
                subject,
                format!("there is no /sys/dev/block/{number} of it"),
                "check with \"findmnt /sys\" that sysfs is mounted, and run the command on the \
                 host",
            )),
            Ok(number) => found.push(Device {
                number,
                subject,
                path: path.clone(),
                is_named: true,
            }),
            Err(Errno::REMOTE) => checks.push(Check::problem(
                CHECK,
                subject,
                "this name is on a network file system, and was not looked at",
                "name the device by its node in /dev; \"lsblk -p\" lists the block devices",
            )),
            Err(errno) => {
                let error = Error::from_errno(Operation::OpenDevice, errno).on(path);
                checks.push(Check::error(CHECK, subject, &error));
            }
        }
    }
    (found, checks)
}

fn all(root: &Root) -> (Vec<Device>, Vec<Check>) {
    let disks = root.stack.disks();
    let wanted = disks.iter().filter(|(name, it)| is_listed(root, name, *it));
    let devices: Vec<Device> = wanted
        .map(|(_, number)| {
            let path = node(root, *number);
            Device {
                number: *number,
                subject: path.display().to_string(),
                path,
                is_named: false,
            }
        })
        .collect();
    let mut checks = Vec::new();
    if devices.is_empty() {
        checks.push(Check::warning(
            CHECK,
            "/sys/block",
            "no disk can be seen",
            "run the command on the host, not in a container, and compare with \"lsblk\"",
        ));
    }
    (devices, checks)
}

/// Whether lsblk has it at the left, without what has nothing to back up.
fn is_listed(root: &Root, name: &str, number: DeviceNumber) -> bool {
    let stack = &root.stack;
    let says = |attribute, text: &str| stack.attribute(number, attribute).as_deref() == Some(text);
    let is_left_out = LEFT_OUT.iter().any(|it| {
        let rest = name.strip_prefix(it);
        rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    });
    // Packages that are mounted from files, as those of snap.
    let is_package = name.starts_with("loop") && says("ro", "1");
    let is_stacked = !stack.slaves(number).is_empty()
        && !is_multipath(root, number)
        && !["bcache", "drbd"].iter().any(|it| name.starts_with(it));
    stack.size(number) > 0 && !is_left_out && !is_package && !is_stacked && !says("hidden", "1")
}

pub fn is_multipath(root: &Root, number: DeviceNumber) -> bool {
    let uuid = root.stack.attribute(number, "dm/uuid");
    uuid.is_some_and(|uuid| uuid.starts_with("mpath-"))
}

/// The disks among some devices, by their nodes.
pub fn nodes_of_disks(root: &Root, numbers: &BTreeSet<DeviceNumber>) -> String {
    let stack = &root.stack;
    let is_disk = |it: &&DeviceNumber| stack.disk(**it) == **it && stack.slaves(**it).is_empty();
    let disks = numbers.iter().filter(is_disk);
    let nodes: Vec<String> = disks
        .map(|it| node(root, *it).display().to_string())
        .collect();
    nodes.join(", ")
}

/// The node of a block device that people use.
pub fn node(root: &Root, number: DeviceNumber) -> PathBuf {
    match root.stack.attribute(number, "dm/name") {
        Some(name) => Path::new("/dev/mapper").join(name),
        None => {
            let name = root.stack.name(number).unwrap_or_default();
            Path::new("/dev").join(name.replace('!', "/"))
        }
    }
}

/// Says what a device is, and what lies on it.
pub fn describe(root: &Root, device: &Device) -> Check {
    let size = root.stack.size(device.number);
    if size == 0 {
        return Check::warning(
            CHECK,
            &device.subject,
            "it has no medium, or is not set up",
            format!("check it with \"lsblk {}\"", device.subject),
        );
    }
    let mut text = format!("{} of {}", kind(root, device.number), Bytes(size));
    if let Some(identity) = root.stack.identity(device.number) {
        text += &format!(", {identity}");
    }
    let mut parts = Vec::new();
    let mut seen = BTreeSet::from([device.number]);
    parts.extend(content(root, device.number));
    add_children(root, device.number, &mut seen, &mut parts);
    match parts.is_empty() {
        true => text += ": nothing is on it that is known here",
        false => text += &format!(": {}", parts.join("; ")),
    }
    Check::ok(CHECK, &device.subject, text)
}

/// The partitions of a block device, and what is stacked on it.
pub fn children(root: &Root, number: DeviceNumber) -> Vec<DeviceNumber> {
    let name = root.stack.name(number).unwrap_or_default();
    let mut found: Vec<DeviceNumber> = root.sysfs.numbers_of_disk(&name);
    found.sort();
    found.extend(root.stack.holders(number));
    found.retain(|it| *it != number);
    found
}

fn add_children(
    root: &Root,
    number: DeviceNumber,
    seen: &mut BTreeSet<DeviceNumber>,
    parts: &mut Vec<String>,
) {
    for child in children(root, number) {
        if !seen.insert(child) {
            continue;
        }
        let name = node(root, child);
        let name = name.file_name().unwrap_or_default().to_string_lossy();
        let mut words = vec![format!("{name} {}", kind(root, child))];
        words.extend(content(root, child));
        parts.push(words.join(" "));
        add_children(root, child, seen, parts);
    }
}

/// The type of a block device.
fn kind(root: &Root, number: DeviceNumber) -> String {
    let stack = &root.stack;
    let uuid = stack.attribute(number, "dm/uuid").unwrap_or_default();
    let target = uuid.split('-').next().unwrap_or_default().to_lowercase();
    if stack.has(number, "partition") || target.starts_with("part") {
        "part".to_owned()
    } else if stack.has(number, "dm") {
        match target.is_empty() {
            true => "dm".to_owned(),
            false => target,
        }
    } else if let Some(level) = stack.attribute(number, "md/level") {
        level
    } else if stack.has(number, "loop") {
        "loop".to_owned()
    } else {
        "disk".to_owned()
    }
}

/// What a block device holds itself, and where that is mounted.
fn content(root: &Root, number: DeviceNumber) -> Option<String> {
    let mounts = root.stack.mounts_on(number);
    if root.stack.is_swap(number) {
        return Some("swap on [SWAP]".to_owned());
    }
    match mounts.first() {
        Some(first) => {
            let points: Vec<String> = mounts
                .iter()
                .map(|it| it.mount_point.display().to_string())
                .collect();
            Some(format!("{} on {}", first.kind, points.join(", ")))
        }
        None => file_system(root, number),
    }
}

/// The kind of what a block device holds, from what is stacked on it or what udev has found.
fn file_system(root: &Root, number: DeviceNumber) -> Option<String> {
    let udev = root.text(&format!("/run/udev/data/b{number}"));
    let known = udev.ok().and_then(|text| {
        let kind = text
            .lines()
            .find_map(|it| it.strip_prefix("E:ID_FS_TYPE="))?;
        Some(kind.to_owned()).filter(|it| !it.is_empty())
    });
    known.or_else(|| {
        root.stack.holders(number).into_iter().find_map(|holder| {
            let uuid = root.stack.attribute(holder, "dm/uuid").unwrap_or_default();
            let kind = if uuid.starts_with("LVM-") {
                "LVM2_member"
            } else if uuid.starts_with("CRYPT-LUKS") {
                "crypto_LUKS"
            } else if uuid.starts_with("mpath-") {
                "mpath_member"
            } else if root.stack.has(holder, "md") {
                "linux_raid_member"
            } else {
                return None;
            };
            Some(kind.to_owned())
        })
    })
}
