// SPDX-License-Identifier: GPL-2.0-only

//! Names of devices that stay the same when disks are added or removed.

use std::path::Path;
use std::path::PathBuf;

use crate::lasting::is_lasting;

use super::disks::node;
use super::disks::Device;
use super::Check;
use super::Root;

const CHECK: &str = "name";

/// Beginnings of names in /dev/disk/by-id that say less to people than the others.
const PLAIN_NUMBERS: [&str; 5] = ["wwn-", "nvme-eui.", "nvme-nvme.", "dm-uuid-", "lvm-pv-"];

/// Checks whether the name of a device stays that of the device.
pub fn check(root: &Root, device: &Device) -> Check {
    let lasts = |path: &Path| is_lasting(&root.join(path), &root.join(Path::new("/dev")));
    if device.is_named && lasts(&device.path) {
        return Check::ok(CHECK, &device.subject, "this name stays that of the device");
    }
    match (lasting_name(root, device), device.is_named) {
        (Some(name), false) => Check::ok(
            CHECK,
            &device.subject,
            format!("a name that stays is {}", name.display()),
        ),
        (Some(name), true) => Check::note(
            CHECK,
            &device.subject,
            "this name can be that of another disk after a restart",
            format!("name {} instead", name.display()),
        ),
        (None, _) => Check::note(
            CHECK,
            &device.subject,
            "this name can be that of another disk after a restart, and there is none in \
             /dev/disk/by-id",
            missing(root, device),
        ),
    }
}

/// What to do where there is no lasting name.
fn missing(root: &Root, device: &Device) -> &'static str {
    let disk = root.stack.disk(device.number);
    if root.stack.has(disk, "loop") {
        return "set it up with \"losetup --loop-ref NAME\", and name /dev/disk/by-loop-ref/NAME; \
                backups recognise it by its backing file, too";
    }
    let numbers = ["serial", "device/serial", "wwid", "device/wwid"];
    match numbers
        .iter()
        .any(|it| root.stack.attribute(disk, it).is_some())
    {
        true => {
            "check with \"systemctl status systemd-udevd\" that udev runs, which makes these names"
        }
        false => {
            "give the disk a serial number, as in the settings of a virtual machine; backups \
             recognise it by its partition table, too"
        }
    }
}

/// The name to recommend.
fn lasting_name(root: &Root, device: &Device) -> Option<PathBuf> {
    let mut names = root.sources.names(device.number);
    let is_plain_number = |name: &String| PLAIN_NUMBERS.iter().any(|it| name.starts_with(it));
    names.sort_by_key(|name| (is_plain_number(name), name.clone()));
    let by_id = names.into_iter().next();
    let by_id = by_id.map(|name| Path::new("/dev/disk/by-id").join(name));
    // Names of device-mapper are given by people.
    by_id.or_else(|| {
        let is_mapped = root.stack.attribute(device.number, "dm/name").is_some();
        is_mapped.then(|| node(root, device.number))
    })
}
