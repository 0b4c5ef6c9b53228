// SPDX-License-Identifier: GPL-2.0-only

//! Memory that can be short.

mod boxed;
mod vec;

pub use boxed::{Box, KBox, KVBox, VBox};
pub use vec::{InsertError, KVVec, KVec, PushError, VVec, Vec};

use core::cell::Cell;

/// There was no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocError;

/// How to allocate. It makes no difference here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(u32);

impl core::ops::BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Flags(self.0 | other.0)
    }
}

/// The flags.
pub mod flags {
    use super::Flags;

    /// May sleep.
    pub const GFP_KERNEL: Flags = Flags(1);
    /// May sleep, but not for I/O.
    pub const GFP_NOIO: Flags = Flags(2);
    /// Must not sleep.
    pub const GFP_NOWAIT: Flags = Flags(4);
    /// Must not sleep, and may use reserves.
    pub const GFP_ATOMIC: Flags = Flags(8);
    /// Charged to a memory cgroup, of which there are none here.
    pub const __GFP_ACCOUNT: Flags = Flags(32);
    /// May sleep, and charged to a memory cgroup.
    pub const GFP_KERNEL_ACCOUNT: Flags = Flags(33);
    /// Without a warning if there is no memory.
    pub const __GFP_NOWARN: Flags = Flags(16);
    /// Without the reserves.
    pub const __GFP_NOMEMALLOC: Flags = Flags(64);
}

// Which allocator memory is from, so that the types differ as they do in the kernel.
/// Allocates physically contiguous memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kmalloc;
/// Allocates virtually contiguous memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vmalloc;
/// Allocates one or the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KVmalloc;

thread_local! {
    /// Number of allocations that succeed before the others fail.
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Takes an allocation into account, which fails if it is to.
pub(crate) fn try_one() -> Result<(), AllocError> {
    match LEFT.get() {
        Some(0) => Err(AllocError),
        Some(n) => {
            LEFT.set(Some(n - 1));
            Ok(())
        }
        None => Ok(()),
    }
}

/// Lets allocations of this thread fail as long as it exists.
#[must_use]
pub struct Failing(());

impl Drop for Failing {
    fn drop(&mut self) {
        LEFT.set(None);
    }
}

/// For tests: lets allocations of this thread fail after the next `count` ones, until what it
/// returns is dropped.
pub fn fail_after(count: usize) -> Failing {
    LEFT.set(Some(count));
    Failing(())
}
