// SPDX-License-Identifier: GPL-2.0-only

//! Module parameters, and what is derived from them.

use crate::{
    change_map::Limits,
    module_parameters,
    storage::Space, //
};
use kernel::{
    block::SECTOR_SHIFT,
    page::{
        total_pages,
        PAGE_SHIFT, //
    },
    time::Delta, //
};

/// The limits of change maps.
pub(crate) fn change_map_limits() -> Limits {
    Limits {
        min_shift: module_parameters::tracking_block_minimum_shift.value(),
        max_shift: module_parameters::tracking_block_maximum_shift.value(),
        max_count: u64::from(module_parameters::tracking_block_maximum_count.value()),
        max_bytes: max_bytes(module_parameters::tracking_memory.value()),
    }
}

/// How many bytes of a snapshot may be in memory, because they were read and not stored yet.
pub(crate) fn max_copy_bytes() -> usize {
    (module_parameters::copy_memory.value().clamp(1, 1 << 10) as usize) << 20
}

/// What `mib` says in bytes; 0 is 1/32 of the memory, and not more than 1 GiB.
fn max_bytes(mib: u32) -> usize {
    const MAX: usize = 1 << 20;

    match mib as usize {
        0 => (total_pages() / 32).min(1 << (30 - PAGE_SHIFT)) << PAGE_SHIFT,
        mib => mib.min(MAX) << 20,
    }
}

/// How many bytes the maps of a snapshot may take.
pub(crate) fn max_map_bytes() -> usize {
    max_bytes(module_parameters::map_memory.value())
}

/// How many bytes of a storage are left for copies ahead of writes.
pub(crate) fn ahead_room(space: &Space) -> u64 {
    let percent = module_parameters::copy_ahead.value().min(100);
    (space.total / 100 * u64::from(percent)).saturating_sub(space.used)
}

/// Returns whether a discard of chunks that are not saved is ignored; `of_fs` if a file system is
/// mounted from its device.
pub(crate) fn ignores_discard(of_fs: bool) -> bool {
    match module_parameters::ignore_discards.value() {
        0 => false,
        1 => of_fs,
        _ => true,
    }
}

/// The binary logarithm of a chunk's size in bytes.
pub(crate) fn chunk_shift() -> u32 {
    module_parameters::chunk_minimum_shift.value()
}

/// By how many bytes a file with a difference storage grows at a time.
pub(crate) fn storage_step() -> u64 {
    u64::from(module_parameters::diff_storage_minimum.value()) << SECTOR_SHIFT
}

/// Upper limit of the time from when a take freezes file systems until it thaws them.
pub(crate) fn freeze_timeout() -> Delta {
    let seconds = module_parameters::freeze_timeout.value().clamp(1, 30);
    Delta::from_secs(seconds.into())
}

/// Milliseconds of each minute for which writers are held for the difference storage at most.
pub(crate) fn hold_writers_ms() -> u32 {
    module_parameters::hold_writers.value().clamp(1, 60) * 1000
}
