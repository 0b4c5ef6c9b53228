// SPDX-License-Identifier: GPL-2.0-only

//! Comparison with naive models, on random input.
//!
//! PROPTEST_CASES sets the number of cases of each test.

mod ahead;
mod change_map;
mod chunk;
mod extent_map;
mod lanes;
mod log;
mod saved_map;
mod stored_map;

use crate::chunk::ChunkRange;
use proptest::test_runner::Config;

/// Failures are printed, and not kept in files.
fn config() -> Config {
    Config {
        failure_persistence: None,
        ..Config::default()
    }
}

fn chunks(start: u64, end: u64) -> ChunkRange {
    ChunkRange { start, end }
}
