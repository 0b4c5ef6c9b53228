// SPDX-License-Identifier: GPL-2.0-only

//! Memory barriers.

use core::sync::atomic::Ordering;
#[cfg(loom)]
use loom::sync::atomic::fence;
#[cfg(not(loom))]
use std::sync::atomic::fence;

pub use super::atomic::Full;

/// Orders loads.
pub struct Read;
/// Orders stores.
pub struct Write;

/// A barrier.
pub trait MemoryBarrier {
    /// What it is in the language.
    const ORDER: Ordering;
}

// The kernel's smp_rmb() orders loads with later loads and nothing else. An acquire fence is the
// weakest one that does so; it also orders loads with later stores. A sequentially consistent fence
// would order stores with later loads, and hide that a full barrier is missing.
impl MemoryBarrier for Read {
    const ORDER: Ordering = Ordering::Acquire;
}

// Likewise: a release fence also orders loads with later stores.
impl MemoryBarrier for Write {
    const ORDER: Ordering = Ordering::Release;
}

impl MemoryBarrier for Full {
    const ORDER: Ordering = Ordering::SeqCst;
}

/// A barrier between processors.
pub fn smp_mb<T: MemoryBarrier>(_: T) {
    fence(T::ORDER);
}
