// SPDX-License-Identifier: GPL-2.0-only

//! The size of a page.

/// The binary logarithm of [`PAGE_SIZE`].
///
/// With loom a page is small, so that few bits fill a leaf of the map of saved chunks.
pub const PAGE_SHIFT: usize = if cfg!(loom) { 6 } else { 12 };

/// The bytes of a page.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
