// SPDX-License-Identifier: GPL-2.0-only

//! The block layer, without I/O.

pub mod bdev;
pub mod bio;
pub mod filter;

/// The binary logarithm of the bytes of a sector.
pub const SECTOR_SHIFT: u32 = 9;
