// SPDX-License-Identifier: GPL-2.0-only

//! Which devices can have a filter, see Documentation/block/blkfilter.rst.

use crate::abi::FILTER_NAME;
use crate::device::DeviceNumber;

use super::disks::node;
use super::disks::Device;
use super::Check;
use super::Level;
use super::Root;

const CHECK: &str = "filter";

/// Why a device cannot have the filter, and what to do.
struct Refusal {
    reason: String,
    remedy: String,
    /// How bad that is where the device was not named: a disk that nobody backs up does no harm.
    otherwise: Level,
}

/// Checks that the filter can be attached to a device, and that it can be in a snapshot.
pub fn check(root: &Root, device: &Device, page_size: u64) -> Vec<Check> {
    let disk = root.stack.disk(device.number);
    let refusal = path_of_multipath(root, device)
        .or_else(|| zoned(root, disk))
        .or_else(|| dax(root, disk))
        .or_else(|| bio_based(root, disk))
        .or_else(|| other_filter(root, device))
        .or_else(|| large_blocks(root, disk, page_size));
    let check = match refusal {
        Some(it) => {
            let worst = match device.is_named {
                true => Level::Problem,
                false => it.otherwise,
            };
            Check::problem(CHECK, &device.subject, it.reason, it.remedy).at_most(worst)
        }
        None => {
            let is_attached = root.sysfs.filter_of(device.number).is_some();
            let text = match is_attached {
                true => "it has the filter, and its changes are tracked",
                false => "it can have the filter",
            };
            Check::ok(CHECK, &device.subject, text)
        }
    };
    vec![check]
}

fn path_of_multipath(root: &Root, device: &Device) -> Option<Refusal> {
    let above = root.stack.multipath_above(device.number)?;
    let name = above.file_name().unwrap_or_default().to_string_lossy();
    Some(Refusal {
        reason: format!(
            "it is a path of the multipath device /dev/mapper/{name}, and what is written by way \
             of that cannot be seen here"
        ),
        remedy: format!("name /dev/mapper/{name} instead"),
        otherwise: Level::Note,
    })
}

fn zoned(root: &Root, disk: DeviceNumber) -> Option<Refusal> {
    let model = root.stack.attribute(disk, "queue/zoned")?;
    (model != "none").then(|| Refusal {
        reason: format!("it is a zoned device ({model}), which cannot have filters"),
        remedy: on_top(root, disk),
        otherwise: Level::Warning,
    })
}

fn dax(root: &Root, disk: DeviceNumber) -> Option<Refusal> {
    let is_dax = root.stack.attribute(disk, "queue/dax").as_deref() == Some("1");
    is_dax.then(|| Refusal {
        reason: "it is memory that file systems access directly (DAX), past filters".to_owned(),
        remedy: "back up its file systems with another tool; a namespace in sector mode \
                 (\"ndctl create-namespace --mode=sector\", which erases it) can have a filter"
            .to_owned(),
        otherwise: Level::Warning,
    })
}

/// Drivers that handle bios themselves, but for those that tell when writes are done.
fn bio_based(root: &Root, disk: DeviceNumber) -> Option<Refusal> {
    let stack = &root.stack;
    let name = stack.name(disk)?;
    let is_sync = ["ram", "zram"].iter().any(|it| name.starts_with(it))
        || (name.starts_with("pmem") && name.ends_with('s'));
    if is_sync || ["mq", "dm", "md"].iter().any(|it| stack.has(disk, it)) {
        return None;
    }
    let below: Vec<String> = stack
        .slaves(disk)
        .into_iter()
        .map(|it| node(root, it).display().to_string())
        .collect();
    let below = below.join(" or ");
    let (kind, remedy) = if name.starts_with("drbd") && !below.is_empty() {
        (
            "a DRBD device",
            format!("name {below}, which it is made of"),
        )
    } else if name.starts_with("bcache") && !below.is_empty() {
        (
            "a bcache device",
            format!(
                "{}; or name its backing device ({below}), if the cache is never dirty, as with \
                 \"echo writethrough >/sys/block/{name}/bcache/cache_mode\"",
                on_top(root, disk)
            ),
        )
    } else if name.starts_with("nvme") {
        (
            "an NVMe multipath device",
            format!(
                "start the kernel with nvme_core.multipath=N if there is one path only, or {}",
                on_top(root, disk)
            ),
        )
    } else {
        ("a device without request queue", on_top(root, disk))
    };
    Some(Refusal {
        reason: format!(
            "it is {kind}, whose writes in flight nobody counts: it cannot have filters"
        ),
        remedy,
        otherwise: Level::Warning,
    })
}

/// What is stacked on a device can have the filter.
fn on_top(root: &Root, disk: DeviceNumber) -> String {
    let above: Vec<String> = root
        .stack
        .holders(disk)
        .into_iter()
        .filter(|it| root.stack.has(*it, "dm") || root.stack.has(*it, "md"))
        .map(|it| node(root, it).display().to_string())
        .collect();
    match above.is_empty() {
        true => "back up its file systems with another tool, or put them on logical volumes of \
                 LVM, which can have filters"
            .to_owned(),
        false => format!("name what is stacked on it: {}", above.join(", ")),
    }
}

fn other_filter(root: &Root, device: &Device) -> Option<Refusal> {
    let filter = root.sysfs.filter_of(device.number)?;
    (filter != FILTER_NAME).then(|| Refusal {
        reason: format!("the filter \"{filter}\" is attached, and a device has one at a time"),
        remedy: format!("detach \"{filter}\" with its own tool first"),
        otherwise: Level::Warning,
    })
}

fn large_blocks(root: &Root, disk: DeviceNumber, page_size: u64) -> Option<Refusal> {
    let text = root.stack.attribute(disk, "queue/logical_block_size")?;
    let size: u64 = text.parse().ok()?;
    (size > page_size).then(|| Refusal {
        reason: format!(
            "its logical blocks have {size} bytes, more than a page of memory ({page_size}), so \
             that it cannot be in a snapshot"
        ),
        remedy: "format it with blocks of 4096 bytes, as with \"nvme format --block-size=4096\", \
                 which erases it; or back up its file systems with another tool"
            .to_owned(),
        otherwise: Level::Warning,
    })
}
