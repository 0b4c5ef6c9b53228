// SPDX-License-Identifier: GPL-2.0

//! Memory cgroups.
//!
//! C header: [`include/linux/memcontrol.h`](srctree/include/linux/memcontrol.h)

use crate::{
    bindings,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    },
    types::Opaque, //
};
use core::ptr::{
    self,
    NonNull, //
};

/// A memory cgroup, a `struct mem_cgroup`.
///
/// A task that allocates memory for another one, later and in its own cgroup, keeps a reference to
/// the cgroup of the other one and allocates within [`MemCgroup::charge`]. A cgroup that user space
/// has removed meanwhile can still be charged: its parent is.
///
/// # Invariants
///
/// A value of this type is always reference-counted.
///
/// # Examples
///
/// ```
/// use kernel::{alloc::flags::*, mm::memcg::MemCgroup};
///
/// let group = MemCgroup::current();
/// // Later, in a worker.
/// let number = MemCgroup::charge(group.as_deref(), || KBox::new(42, GFP_KERNEL_ACCOUNT))?;
/// assert_eq!(*number, 42);
/// # Ok::<(), Error>(())
/// ```
#[repr(transparent)]
pub struct MemCgroup(Opaque<bindings::mem_cgroup>);

// SAFETY: References can be dropped by any thread.
unsafe impl Send for MemCgroup {}

// SAFETY: There are no methods but those that count references and let the memory controller, which
// has locks of its own, charge it.
unsafe impl Sync for MemCgroup {}

// SAFETY: By the type invariants.
unsafe impl AlwaysRefCounted for MemCgroup {
    #[inline]
    fn inc_ref(&self) {
        // SAFETY: `self` is a valid `struct mem_cgroup`. This does not fail, as somebody has a
        // reference already.
        unsafe { bindings::mem_cgroup_tryget(self.0.get()) };
    }

    #[inline]
    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller gives up a reference. The type is transparent.
        unsafe { bindings::mem_cgroup_put(obj.cast().as_ptr()) };
    }
}

impl MemCgroup {
    /// Returns the memory cgroup that allocations of the calling task are charged to: the one of
    /// [`Self::charge`] in it, or else its own. [`None`] if there are none, as the kernel was
    /// compiled or booted without the memory controller.
    ///
    /// # Context
    ///
    /// Process context.
    pub fn current() -> Option<ARef<Self>> {
        // SAFETY: The function can be called without an address space; then it looks for those of
        // the current task.
        let memcg = unsafe { bindings::get_mem_cgroup_from_mm(ptr::null_mut()) };
        let memcg = NonNull::new(memcg.cast::<Self>())?;
        // SAFETY: If it is not null, then the function has returned a reference to it. The type is
        // transparent.
        Some(unsafe { ARef::from_raw(memcg) })
    }

    /// Calls `f`, and has all that it allocates with [`__GFP_ACCOUNT`] charged to `group`; without
    /// one, to the cgroup of the current task. Calls may be nested.
    ///
    /// What is allocated can be freed anywhere: it is known to whom it was charged. An allocation
    /// fails with [`ENOMEM`] as others do where the cgroup has no room and its flags allow that;
    /// with flags that let the memory controller kill a task, as those of [`GFP_KERNEL_ACCOUNT`]
    /// do, it is a task of `group`.
    ///
    /// # Context
    ///
    /// Any.
    ///
    /// [`__GFP_ACCOUNT`]: crate::alloc::flags::__GFP_ACCOUNT
    /// [`GFP_KERNEL_ACCOUNT`]: crate::alloc::flags::GFP_KERNEL_ACCOUNT
    /// [`ENOMEM`]: crate::error::code::ENOMEM
    #[inline]
    pub fn charge<R>(group: Option<&Self>, f: impl FnOnce() -> R) -> R {
        let group = group.map_or(ptr::null_mut(), |group| group.0.get());
        // SAFETY: It is null, or somebody holds a reference until `f` returns.
        let outer = unsafe { bindings::set_active_memcg(group) };
        let result = f();
        // SAFETY: It is null, or the caller of the outer scope, which has not ended, holds a
        // reference to it.
        unsafe { bindings::set_active_memcg(outer) };
        result
    }
}

#[macros::kunit_tests(rust_memcg)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_nested() {
        let Some(own) = MemCgroup::current() else {
            return;
        };
        let is_own = |group: Option<ARef<MemCgroup>>| group.is_some_and(|g| ptr::eq(&*g, &*own));
        let clone = own.clone();
        MemCgroup::charge(Some(&clone), || {
            assert!(is_own(MemCgroup::current()));
            MemCgroup::charge(None, || assert!(is_own(MemCgroup::current())));
            assert!(is_own(MemCgroup::current()));
        });
        assert!(is_own(MemCgroup::current()));
    }
}
