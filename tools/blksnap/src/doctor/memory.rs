// SPDX-License-Identifier: GPL-2.0-only

//! Whether there is memory for change maps and snapshots.

use crate::Bytes;

use super::disks::Device;
use super::Check;
use super::Root;

const CHECK: &str = "memory";
const SUBJECT: &str = "memory";
const MIB: u64 = 1 << 20;

/// Limits of the driver, as in Documentation/block/blksnap.rst.
const MAX_BLOCKS: u64 = 1 << 27;
/// Each block has a byte in the map that is written and one in the map that is read.
const BYTES_OF_BLOCK: u64 = 2;

/// Bytes of the change maps of a device.
pub fn of_maps(root: &Root, size: u64) -> u64 {
    let shift = |name, default: u64| parameter(root, name, default).clamp(9, 30);
    let smallest = shift("tracking_block_minimum_shift", 16);
    let largest = shift("tracking_block_maximum_shift", 26).max(smallest);
    let wanted = parameter(root, "tracking_block_maximum_count", 1 << 21).clamp(1, MAX_BLOCKS);
    let blocks = |shift: u64| size.div_ceil(1 << shift);
    let is_enough = |shift: &u64| {
        blocks(*shift) <= MAX_BLOCKS && (blocks(*shift) <= wanted || *shift >= largest)
    };
    let found = (smallest..63).find(is_enough);
    found.map_or(0, blocks) * BYTES_OF_BLOCK
}

fn parameter(root: &Root, name: &str, default: u64) -> u64 {
    let text = root.text(&format!("/sys/module/blksnap/parameters/{name}"));
    let value = text.ok().and_then(|text| text.trim().parse().ok());
    value.unwrap_or(default)
}

/// Checks that the memory for a snapshot of all devices is there.
pub fn check(root: &Root, devices: &[Device]) -> Option<Check> {
    if devices.is_empty() {
        return None;
    }
    let maps: u64 = devices
        .iter()
        .map(|it| of_maps(root, root.stack.size(it.number)))
        .sum();
    let copies = parameter(root, "copy_memory", 32).clamp(1, 1024) * MIB;
    let info = root.text("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| -> Option<u64> {
        let line = info.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().next()?.parse().ok()
    };
    let (Some(total), Some(available)) = (kib("MemTotal:"), kib("MemAvailable:")) else {
        return Some(Check::note(
            CHECK,
            SUBJECT,
            "how much there is cannot be read from /proc/meminfo",
            "check that proc is mounted at /proc",
        ));
    };
    let (total, available) = (total.saturating_mul(1024), available.saturating_mul(1024));
    let saved = match parameter(root, "map_memory", 0) {
        0 => (total / 32).min(1024 * MIB),
        mib => mib.min(MIB).saturating_mul(MIB),
    };
    let needs = format!(
        "change maps of these devices take {}, a snapshot up to {} for copies and {} for what it \
         has saved",
        Bytes(maps),
        Bytes(copies),
        Bytes(saved)
    );
    let is_enough = maps.saturating_add(copies).saturating_add(saved) <= available;
    Some(match is_enough {
        true => Check::ok(
            CHECK,
            SUBJECT,
            format!("{needs}; {} are free", Bytes(available)),
        ),
        false => Check::warning(
            CHECK,
            SUBJECT,
            format!("{needs}, but {} are free", Bytes(available)),
            "end what takes much memory before a backup, or set smaller limits with the module \
             parameters copy_memory and map_memory (see modprobe.d)",
        ),
    })
}
