// SPDX-License-Identifier: GPL-2.0-only

//! Allocating without I/O.
//!
//! C header: [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h)

use crate::{
    bindings,
    ffi::c_uint, //
};

/// Calls `f` with all allocations of the current task being `GFP_NOIO`, also those of code that
/// does not know that it is on the way of I/O, like a file system.
///
/// Process context; `f` may sleep. Scopes nest.
///
/// # Examples
///
/// ```
/// let n = kernel::noio::scope(|| KBox::new(42, GFP_KERNEL).map(|n| *n))?;
/// assert_eq!(n, 42);
/// # Ok::<(), Error>(())
/// ```
pub fn scope<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: Always safe in the context of a task.
    let flags: c_uint = unsafe { bindings::memalloc_noio_save() };
    let result = f();
    // SAFETY: The flags are from the call above, in the same task, and scopes nest.
    unsafe { bindings::memalloc_noio_restore(flags) };
    result
}
