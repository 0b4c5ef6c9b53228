// SPDX-License-Identifier: GPL-2.0-only

//! A qcow2 image.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| blksnap::backup::fuzz::image(bytes));
