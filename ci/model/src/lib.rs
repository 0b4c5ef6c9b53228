// SPDX-License-Identifier: GPL-2.0-only

//! The logic of the driver, whose files are compiled unchanged, and tests of it on the host.
//!
//! The KUnit suites in the files are unit tests here. Those in `properties` compare with naive
//! models; `tests/loom.rs` is about the memory model.

// Most of the driver's callers are not here.
#![allow(dead_code)]

#[path = "../../../drivers/block/blksnap/ahead.rs"]
mod ahead;
#[path = "../../../drivers/block/blksnap/batch.rs"]
mod batch;
#[path = "../../../drivers/block/blksnap/budget.rs"]
mod budget;
// loom's atomics cannot be static.
#[cfg(not(loom))]
#[path = "../../../drivers/block/blksnap/change_map.rs"]
mod change_map;
#[path = "../../../drivers/block/blksnap/chunk.rs"]
mod chunk;
#[path = "../../../drivers/block/blksnap/copy_memory.rs"]
mod copy_memory;
#[path = "../../../drivers/block/blksnap/counts.rs"]
mod counts;
#[path = "../../../drivers/block/blksnap/cow.rs"]
mod cow;
#[path = "../../../drivers/block/blksnap/extent_map.rs"]
mod extent_map;
#[path = "../../../drivers/block/blksnap/lanes.rs"]
mod lanes;
#[path = "../../../drivers/block/blksnap/log.rs"]
mod log;
#[path = "../../../drivers/block/blksnap/mark.rs"]
mod mark;
#[path = "../../../drivers/block/blksnap/marks.rs"]
mod marks;
#[path = "../../../drivers/block/blksnap/new_claim.rs"]
mod new_claim;
#[path = "../../../drivers/block/blksnap/saved_map.rs"]
mod saved_map;
#[path = "../../../drivers/block/blksnap/status.rs"]
mod status;
#[path = "../../../drivers/block/blksnap/stored_map.rs"]
mod stored_map;
#[path = "../../../drivers/block/blksnap/suspects.rs"]
mod suspects;
#[path = "../../../drivers/block/blksnap/taken.rs"]
mod taken;

#[cfg(all(test, not(loom)))]
mod properties;

#[cfg(not(loom))]
pub mod check;
#[cfg(not(loom))]
mod world;
