// SPDX-License-Identifier: GPL-2.0-only

//! Notification that the virtual machine was forked.
//!
//! A hypervisor can resume a virtual machine from a saved state more than once, or go back to an
//! earlier one. What was unique or in sequence before, as nonces or counters, then occurs again in
//! another copy. Hypervisors with a VM generation ID tell the kernel; it reseeds its random number
//! generator, and calls the [`Handler`]s that are registered here.
//!
//! The notification comes a moment after the copy has begun to run. Without `CONFIG_VMGENID`, and
//! with hypervisors that do not tell, it never comes.
//!
//! C header: [`include/linux/random.h`](srctree/include/linux/random.h)

use crate::{
    bindings,
    error::to_result,
    prelude::*,
    types::Opaque, //
};

/// What is to be called when the virtual machine was forked.
pub trait Handler: Send + Sync {
    /// The virtual machine was forked, and the random number generator was reseeded. May sleep.
    fn vm_forked(&self);
}

/// A [`Handler`] that is called until this is dropped.
///
/// # Examples
///
/// ```
/// use kernel::{
///     prelude::*,
///     sync::atomic::{Atomic, Relaxed},
///     vmfork, //
/// };
///
/// struct Forks(Atomic<u32>);
///
/// impl vmfork::Handler for Forks {
///     fn vm_forked(&self) {
///         self.0.add(1, Relaxed);
///     }
/// }
///
/// let forks = KBox::pin_init(
///     vmfork::Registration::new(Forks(Atomic::new(0))),
///     GFP_KERNEL, //
/// )?;
/// assert_eq!(forks.handler().0.load(Relaxed), 0);
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// `nb` is registered, with [`Self::call`] for its function.
#[pin_data(PinnedDrop)]
pub struct Registration<T: Handler> {
    #[pin]
    nb: Opaque<bindings::notifier_block>,
    handler: T,
}

// SAFETY: The notifier block is used by C only, whose functions can be called in any task.
unsafe impl<T: Handler> Send for Registration<T> {}
// SAFETY: There is nothing in a shared reference but the handler, which is `Sync`.
unsafe impl<T: Handler> Sync for Registration<T> {}

impl<T: Handler> Registration<T> {
    /// Registers a handler. May sleep.
    pub fn new(handler: T) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            handler,
            // INVARIANT: It is registered if this succeeds.
            nb <- Opaque::try_ffi_init(|nb: *mut bindings::notifier_block| {
                // SAFETY: The pointer is valid for writes.
                unsafe {
                    nb.write(bindings::notifier_block {
                        notifier_call: Some(Self::call),
                        next: core::ptr::null_mut(),
                        priority: 0,
                    })
                };
                // SAFETY: It is initialized, and pinned until `drop` unregisters it. The handler
                // was initialized before it.
                to_result(unsafe { bindings::register_random_vmfork_notifier(nb) })
            }),
        })
    }

    /// The handler.
    pub fn handler(&self) -> &T {
        &self.handler
    }

    /// # Safety
    ///
    /// `nb` is that of a registration.
    unsafe extern "C" fn call(
        nb: *mut bindings::notifier_block,
        _action: usize,
        _data: *mut c_void,
    ) -> c_int {
        // SAFETY: The notifier block is part of a registration, which stays during the call, since
        // unregistering waits for it.
        let this = unsafe { &*crate::container_of!(Opaque::cast_from(nb), Self, nb) };
        this.handler.vm_forked();
        bindings::NOTIFY_DONE as c_int
    }
}

#[pinned_drop]
impl<T: Handler> PinnedDrop for Registration<T> {
    /// May sleep.
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant it is registered.
        unsafe { bindings::unregister_random_vmfork_notifier(self.nb.get()) };
    }
}
