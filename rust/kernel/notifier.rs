// SPDX-License-Identifier: GPL-2.0-only

//! Notifier chains: who wants to know of an event of the kernel is called when it happens.
//!
//! C header: [`include/linux/notifier.h`](srctree/include/linux/notifier.h)

use crate::{
    bindings,
    error::to_result,
    prelude::*,
    types::Opaque, //
};
use core::marker::PhantomData;

/// A notifier chain of the kernel.
///
/// # Safety
///
/// [`Self::REGISTER`] and [`Self::UNREGISTER`] are those of a blocking notifier chain: a notifier
/// is called in process context, between the two, and the latter waits for calls that have begun.
/// They can be called in any task, and the latter ignores what was not registered since the kernel
/// has no such chain.
pub unsafe trait Chain {
    /// What the chain tells of.
    type Event;

    /// Adds a notifier.
    const REGISTER: unsafe extern "C" fn(*mut bindings::notifier_block) -> c_int;

    /// Removes a notifier.
    const UNREGISTER: unsafe extern "C" fn(*mut bindings::notifier_block) -> c_int;

    /// Returns the event that has this number on the C side, unless nobody wants to know of it.
    fn event(number: usize) -> Option<Self::Event>;
}

/// What is to be called.
pub trait Handler<C: Chain>: Send + Sync {
    /// It has happened. May sleep.
    fn notify(&self, event: C::Event);
}

/// A [`Handler`] that is called until this is dropped.
///
/// # Examples
///
/// ```
/// use kernel::{
///     notifier::{self, VmFork},
///     prelude::*,
///     sync::atomic::{Atomic, Relaxed}, //
/// };
///
/// struct Forks(Atomic<u32>);
///
/// impl notifier::Handler<VmFork> for Forks {
///     fn notify(&self, _event: ()) {
///         self.0.add(1, Relaxed);
///     }
/// }
///
/// let forks = KBox::pin_init(
///     notifier::Registration::<VmFork, _>::new(Forks(Atomic::new(0))),
///     GFP_KERNEL, //
/// )?;
/// assert_eq!(forks.handler().0.load(Relaxed), 0);
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// `nb` is registered in the chain, with [`Self::call`] for its function.
#[pin_data(PinnedDrop)]
pub struct Registration<C: Chain, T: Handler<C>> {
    #[pin]
    nb: Opaque<bindings::notifier_block>,
    handler: T,
    _chain: PhantomData<fn() -> C>,
}

// SAFETY: The notifier block is used by C only, whose functions can be called in any task.
unsafe impl<C: Chain, T: Handler<C>> Send for Registration<C, T> {}
// SAFETY: There is nothing in a shared reference but the handler, which is `Sync`.
unsafe impl<C: Chain, T: Handler<C>> Sync for Registration<C, T> {}

impl<C: Chain, T: Handler<C>> Registration<C, T> {
    /// Registers a handler. May sleep.
    pub fn new(handler: T) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            handler,
            _chain: PhantomData,
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
                to_result(unsafe { C::REGISTER(nb) })
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
        number: usize,
        _data: *mut c_void,
    ) -> c_int {
        // SAFETY: The notifier block is part of a registration, which stays during the call, since
        // unregistering waits for it.
        let this = unsafe { &*crate::container_of!(Opaque::cast_from(nb), Self, nb) };
        if let Some(event) = C::event(number) {
            this.handler.notify(event);
        }
        bindings::NOTIFY_DONE as c_int
    }
}

#[pinned_drop]
impl<C: Chain, T: Handler<C>> PinnedDrop for Registration<C, T> {
    /// May sleep.
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant it is registered.
        unsafe { C::UNREGISTER(self.nb.get()) };
    }
}

/// Tells that the virtual machine was forked.
///
/// A hypervisor can resume a virtual machine from a saved state more than once, or go back to an
/// earlier one. What was unique or in sequence before, as nonces or counters, then occurs again in
/// another copy. Hypervisors with a VM generation ID tell the kernel; it reseeds its random number
/// generator, and then tells of the fork.
///
/// That is a moment after the copy has begun to run. Without `CONFIG_VMGENID`, and with
/// hypervisors that do not tell, it never comes.
///
/// C header: [`include/linux/random.h`](srctree/include/linux/random.h)
pub struct VmFork;

// SAFETY: `vmfork_chain` is a blocking notifier chain.
unsafe impl Chain for VmFork {
    type Event = ();

    const REGISTER: unsafe extern "C" fn(*mut bindings::notifier_block) -> c_int =
        bindings::register_random_vmfork_notifier;
    const UNREGISTER: unsafe extern "C" fn(*mut bindings::notifier_block) -> c_int =
        bindings::unregister_random_vmfork_notifier;

    fn event(_number: usize) -> Option<()> {
        Some(())
    }
}

/// Tells of hibernation.
///
/// The machine goes on with the memory that it had at some moment between the two events. What
/// the kernel has done after that moment, as writing that memory to a disk, it does not know.
///
/// C header: [`include/linux/suspend.h`](srctree/include/linux/suspend.h)
pub struct Hibernation;

/// What [`Hibernation`] tells of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum HibernationEvent {
    /// The machine is going to hibernate. Tasks of user space still run.
    Prepare,
    /// The machine goes on, after it has hibernated or since it could not. Tasks of user space run
    /// already.
    Post,
}

// SAFETY: `pm_chain_head` is a blocking notifier chain.
unsafe impl Chain for Hibernation {
    type Event = HibernationEvent;

    const REGISTER: unsafe extern "C" fn(*mut bindings::notifier_block) -> c_int =
        bindings::register_pm_notifier;
    const UNREGISTER: unsafe extern "C" fn(*mut bindings::notifier_block) -> c_int =
        bindings::unregister_pm_notifier;

    fn event(number: usize) -> Option<HibernationEvent> {
        match number as u32 {
            bindings::PM_HIBERNATION_PREPARE => Some(HibernationEvent::Prepare),
            bindings::PM_POST_HIBERNATION => Some(HibernationEvent::Post),
            _ => None,
        }
    }
}
