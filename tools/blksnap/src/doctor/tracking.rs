// SPDX-License-Identifier: GPL-2.0-only

//! What writes to a device past its change tracking.

use std::collections::BTreeSet;

use crate::device::DeviceNumber;

use super::disks::children;
use super::disks::node;
use super::disks::Device;
use super::Check;
use super::Root;

const CHECK: &str = "tracking";

/// Where sysfs has disks that other machines can reach, too.
const SHARED_PLACES: [(&str, &str); 2] = [("session", "iSCSI"), ("rport-", "Fibre Channel")];
/// Transports of NVMe that other machines can be on.
const FABRICS: [&str; 3] = ["tcp", "rdma", "fc"];
/// File systems that several machines mount at a time.
const CLUSTER: [&str; 2] = ["gfs2", "ocfs2"];

/// Checks what the change tracking of a device cannot know.
pub fn check(root: &Root, device: &Device) -> Vec<Check> {
    let below = root.stack.below_device(device.number).devices;
    let mut checks = Vec::new();
    for number in &below {
        checks.extend(loop_file(root, device, *number));
        checks.extend(drbd(root, device, *number));
        checks.extend(shared(root, device, *number));
    }
    checks.extend(cluster(root, device));
    if checks.is_empty() {
        checks.push(Check::ok(
            CHECK,
            &device.subject,
            "nothing is known here that writes to it past the change tracking",
        ));
    }
    checks
}

fn loop_file(root: &Root, device: &Device, number: DeviceNumber) -> Option<Check> {
    let file = root.stack.attribute(number, "loop/backing_file")?;
    let name = node(root, number);
    let is = match number == device.number {
        true => "it is".to_owned(),
        false => format!("it lies on {},", name.display()),
    };
    Some(Check::note(
        CHECK,
        &device.subject,
        format!("{is} a loop device: what is written to {file} directly is not tracked"),
        format!(
            "write to {file} through {} only; where that cannot be said, back up with --compare now \
             and then",
            name.display()
        ),
    ))
}

fn drbd(root: &Root, device: &Device, number: DeviceNumber) -> Option<Check> {
    let name = root.stack.name(number)?;
    if number == root.stack.disk(device.number) || !name.starts_with("drbd") {
        return None;
    }
    let below = root.stack.slaves(number);
    let below = below.first().map(|it| node(root, *it));
    let instead = match below {
        Some(path) => format!(
            "name {} instead, to which the peer's writes come",
            path.display()
        ),
        None => "name the disk below it instead, to which the peer's writes come".to_owned(),
    };
    Some(Check::warning(
        CHECK,
        &device.subject,
        format!(
            "it lies on /dev/{name}: what its peer writes while that is primary is not tracked"
        ),
        format!("{instead}; or back up with --compare after the peer was primary"),
    ))
}

fn shared(root: &Root, device: &Device, number: DeviceNumber) -> Option<Check> {
    let stack = &root.stack;
    let name = stack.name(number)?;
    if stack.has(number, "partition") {
        return None;
    }
    let place = stack.place(number).unwrap_or_default();
    let parts: Vec<_> = place.iter().map(|it| it.to_string_lossy()).collect();
    let of_place = SHARED_PLACES.iter().find(|(prefix, _)| {
        parts.iter().any(|part| {
            let rest = part.strip_prefix(prefix);
            rest.is_some_and(|it| it.starts_with(|c: char| c.is_ascii_digit()))
        })
    });
    let transport = stack.attribute(number, "device/transport");
    let is_fabric = transport.is_some_and(|it| FABRICS.contains(&it.as_str()));
    let kind = match of_place {
        Some((_, kind)) => *kind,
        None if is_fabric => "NVMe over fabrics",
        None if name.starts_with("rbd") => "Ceph RBD",
        None if name.starts_with("nbd") => "NBD",
        None => return None,
    };
    let name = node(root, number);
    Some(Check::note(
        CHECK,
        &device.subject,
        format!(
            "{} is a LUN ({kind}): what another machine, or the array when it puts the LUN back, \
             writes to it is not tracked",
            name.display()
        ),
        "see that no other machine writes to it; after the array has put it back, and else now and \
         then, back up with --compare",
    ))
}

/// A file system on the device that other machines write to.
fn cluster(root: &Root, device: &Device) -> Option<Check> {
    let mut seen = BTreeSet::new();
    let mut left = vec![device.number];
    while let Some(number) = left.pop() {
        if !seen.insert(number) {
            continue;
        }
        left.extend(children(root, number));
        let mounts = root.stack.mounts_on(number);
        if let Some(mount) = mounts.iter().find(|it| CLUSTER.contains(&it.kind.as_str())) {
            return Some(Check::warning(
                CHECK,
                &device.subject,
                format!(
                    "the {} on {} can be mounted by several machines, and what the others write is \
                     not tracked",
                    mount.kind,
                    mount.mount_point.display()
                ),
                "back up with --compare, on one of the machines",
            ));
        }
    }
    None
}
