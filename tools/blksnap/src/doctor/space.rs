// SPDX-License-Identifier: GPL-2.0-only

//! How much of devices is in use, which a first backup stores.

use std::collections::BTreeSet;

use crate::device::DeviceNumber;
use crate::mounts::Mount;

use super::disks::children;
use super::disks::Device;
use super::root::Found;
use super::system::Space;
use super::Root;
use super::System;

/// Bytes in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// What mounted file systems say.
    pub known: u64,
    /// The size of what is not mounted, of which any part can be in use.
    pub unknown: u64,
}

impl Used {
    fn add(&mut self, other: Self) {
        self.known = self.known.saturating_add(other.known);
        self.unknown = self.unknown.saturating_add(other.unknown);
    }
}

/// The space of a mounted file system, if the way to its mount point has no other one that hides
/// it or need not answer.
pub fn of_mount(root: &Root, mount: &Mount, system: &dyn System) -> Option<Space> {
    let Ok(Found::Local(point)) = root.find(&mount.mount_point) else {
        return None;
    };
    let is_seen = root.stack.mount_of(&point) == Some(mount);
    is_seen.then(|| system.space(&root.join(&point))).flatten()
}

/// How much of all devices is in use.
pub fn used(root: &Root, devices: &[Device], system: &dyn System) -> Used {
    let mut seen = BTreeSet::new();
    let mut all = Used::default();
    for device in devices {
        all.add(used_of(root, device.number, system, &mut seen));
    }
    all
}

fn used_of(
    root: &Root,
    number: DeviceNumber,
    system: &dyn System,
    seen: &mut BTreeSet<DeviceNumber>,
) -> Used {
    // What several disks have together, as an array, counts once.
    if !seen.insert(number) {
        return Used::default();
    }
    let size = root.stack.size(number);
    let mounts = root.stack.mounts_on(number);
    let space = mounts.iter().find_map(|it| of_mount(root, it, system));
    if let Some(space) = space {
        return Used {
            known: space.used.0,
            unknown: 0,
        };
    }
    let below = children(root, number);
    if below.is_empty() {
        return Used {
            known: 0,
            unknown: size,
        };
    }
    let mut all = Used::default();
    for child in below {
        all.add(used_of(root, child, system, seen));
    }
    all
}
