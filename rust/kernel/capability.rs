// SPDX-License-Identifier: GPL-2.0-only

//! Capabilities of tasks.
//!
//! C header: [`include/linux/capability.h`](srctree/include/linux/capability.h)

use crate::{
    bindings,
    error::{
        code::EPERM,
        Result, //
    },
    ffi::c_int, //
};

/// A capability, relative to the initial user namespace.
///
/// # Examples
///
/// ```
/// use kernel::capability::Capability;
///
/// fn administer() -> Result {
///     Capability::SYS_ADMIN.require()?;
///     // Only administrators come here, and the kernel itself.
///     Ok(())
/// }
///
/// administer()?;
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability(c_int);

impl Capability {
    /// Administration of the system.
    pub const SYS_ADMIN: Self = Self(bindings::CAP_SYS_ADMIN as c_int);

    /// Succeeds if the current task has the capability in the initial user namespace.
    ///
    /// Marks the task as having used it. Process context. Does not sleep, unless auditing does.
    ///
    /// # Errors
    ///
    /// [`EPERM`] if it has not.
    pub fn require(self) -> Result {
        // SAFETY: Always safe in the context of a task.
        if unsafe { bindings::capable(self.0) } {
            Ok(())
        } else {
            Err(EPERM)
        }
    }
}
