// SPDX-License-Identifier: GPL-2.0-only

//! Block device filters: drivers that see the bios of a block device before the device does.
//!
//! A driver implements [`Filter`] and keeps a [`Registration`] of it. User space attaches it to a
//! device by its name; each device has an instance of its own.
//!
//! # Examples
//!
//! A filter that counts writes:
//!
//! ```
//! use kernel::{
//!     block::{
//!         bdev::{BlockDevice, SectorRange},
//!         filter::{Filter, FilteredBio, Verdict},
//!     },
//!     prelude::*,
//!     sync::{atomic::{Atomic, Relaxed}, Arc, ArcBorrow},
//!     uaccess::UserSlice,
//! };
//!
//! struct Counter {
//!     writes: Atomic<u64>,
//! }
//!
//! #[vtable]
//! impl Filter for Counter {
//!     const NAME: &'static CStr = c"doctest-counter";
//!
//!     fn attach(_bdev: &BlockDevice, _options: UserSlice) -> Result<Arc<Self>> {
//!         Ok(Arc::new(Counter { writes: Atomic::new(0) }, GFP_KERNEL)?)
//!     }
//!
//!     fn submit_bio<'a>(
//!         this: ArcBorrow<'_, Self>,
//!         bio: FilteredBio<'a>,
//!         _range: SectorRange,
//!     ) -> Verdict<'a> {
//!         if bio.op().changes_media() {
//!             this.writes.add(1, Relaxed);
//!         }
//!         bio.pass()
//!     }
//! }
//! ```
//!
//! C header: [`include/linux/blk-filter.h`](srctree/include/linux/blk-filter.h)

use super::{
    bdev::{
        BlockDevice,
        SectorRange, //
    },
    bio::{
        Bio,
        OwnedBio, //
    },
};
use crate::{
    bindings, container_of,
    error::{
        from_result,
        to_result,
        VTABLE_DEFAULT_ERROR, //
    },
    module::this_module,
    prelude::*,
    str::CStrExt as _,
    sync::{
        Arc,
        ArcBorrow, //
    },
    types::Opaque,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};
use core::{
    marker::PhantomData,
    ops::Deref, //
};

/// A bio that a filter has to decide on.
pub struct FilteredBio<'a> {
    bio: *mut bindings::bio,
    // Invariant in 'a, so that a verdict on one bio cannot be given on another one.
    _call: PhantomData<fn(&'a ()) -> &'a ()>,
}

/// What a filter has decided on the [`FilteredBio`] with the same lifetime.
pub struct Verdict<'a> {
    taken: bool,
    _call: PhantomData<fn(&'a ()) -> &'a ()>,
}

impl<'a> FilteredBio<'a> {
    /// Lets the bio go on to the device.
    #[inline]
    pub fn pass(self) -> Verdict<'a> {
        Verdict {
            taken: false,
            _call: PhantomData,
        }
    }

    /// Takes the bio over, to be ended or, later, given back by [`OwnedBio::resubmit`].
    #[inline]
    pub fn take(self) -> (OwnedBio, Verdict<'a>) {
        // SAFETY: The verdict that is returned here is the only one that there will be for this
        // bio, and it says that the block layer has given the bio away.
        let bio = unsafe { OwnedBio::from_raw(self.bio) };
        let verdict = Verdict {
            taken: true,
            _call: PhantomData,
        };
        (bio, verdict)
    }
}

impl Deref for FilteredBio<'_> {
    type Target = Bio;

    #[inline]
    fn deref(&self) -> &Bio {
        // SAFETY: The bio is valid during the call of the filter that `self` is made for.
        unsafe { Bio::from_raw(self.bio) }
    }
}

/// A filter on one block device.
#[vtable]
pub trait Filter: Send + Sync + Sized + 'static {
    /// What user space calls the filter. Not empty, at most 31 bytes.
    const NAME: &'static CStr;

    /// The filter is to be attached to `bdev`, with options from user space.
    ///
    /// May sleep, but must not open or close a device of the disk.
    fn attach(bdev: &BlockDevice, options: UserSlice) -> Result<Arc<Self>>;

    /// User space wants the filter off. An error refuses it; after success nothing may begin that
    /// could not stand the detach.
    ///
    /// May sleep, but must not open or close a device of the disk.
    fn may_detach(_this: ArcBorrow<'_, Self>) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The filter has left its device; [`Self::submit_bio`] is not running nor called any more.
    /// The bios it has taken it must still end or resubmit. `gone` says that the device is going
    /// away.
    ///
    /// May sleep, but must not wait for I/O, nor open or close a device of the disk.
    fn detached(_this: ArcBorrow<'_, Self>, _gone: bool) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// A command from user space, with the opened device that it was sent to.
    ///
    /// May sleep. Several may run at once, and while the filter is being detached.
    fn ctl(_this: ArcBorrow<'_, Self>, _bdev: &BlockDevice, _cmd: u32, _arg: UserSlice) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// A bio that touches the sectors of `range`, which are cut to the filter's device.
    ///
    /// Must not sleep, nor submit I/O: the caller holds the RCU read lock and the queue's usage
    /// counter. A bio may come again, whole or in pieces.
    fn submit_bio<'a>(
        this: ArcBorrow<'_, Self>,
        bio: FilteredBio<'a>,
        range: SectorRange,
    ) -> Verdict<'a>;
}

/// A filter's instance as C sees it.
#[repr(C)]
struct Instance<T: Filter> {
    filter: Opaque<bindings::blk_filter>,
    data: Arc<T>,
}

impl<T: Filter> Instance<T> {
    /// # Safety
    ///
    /// `filter` was returned by [`Self::attach`] and is not freed during `'a`.
    unsafe fn from_raw<'a>(filter: *mut bindings::blk_filter) -> &'a Self {
        // SAFETY: The caller promises that the filter is part of an instance that stays.
        unsafe { &*container_of!(Opaque::cast_from(filter), Self, filter) }
    }

    unsafe extern "C" fn attach(
        bdev: *mut bindings::block_device,
        opt: *mut c_void,
        optlen: u32,
    ) -> *mut bindings::blk_filter {
        // SAFETY: The block layer gives a valid device.
        let device = unsafe { BlockDevice::from_raw(bdev) };
        let options = UserSlice::new(UserPtr::from_ptr(opt), optlen as usize);
        let instance = T::attach(device, options).and_then(|data| {
            Ok(KBox::new(
                Self {
                    filter: Opaque::zeroed(),
                    data,
                },
                GFP_KERNEL,
            )?)
        });
        match instance {
            // SAFETY: The instance was just allocated.
            Ok(instance) => unsafe { (*KBox::into_raw(instance)).filter.get() },
            Err(e) => e.to_ptr(),
        }
    }

    unsafe extern "C" fn may_detach(filter: *mut bindings::blk_filter) -> c_int {
        // SAFETY: The block layer gives a filter that `attach` has made, with a reference to it.
        let this = unsafe { Self::from_raw(filter) };
        if T::HAS_MAY_DETACH {
            from_result(|| T::may_detach(this.data.as_arc_borrow()).map(|()| 0))
        } else {
            0
        }
    }

    unsafe extern "C" fn detached(filter: *mut bindings::blk_filter, gone: bool) {
        if T::HAS_DETACHED {
            // SAFETY: As in `may_detach`.
            let this = unsafe { Self::from_raw(filter) };
            T::detached(this.data.as_arc_borrow(), gone);
        }
    }

    unsafe extern "C" fn ctl(
        filter: *mut bindings::blk_filter,
        cmd: c_uint,
        opt: *mut c_void,
        optlen: u32,
    ) -> c_int {
        if !T::HAS_CTL {
            return ENOTTY.to_errno();
        }
        // SAFETY: As in `may_detach`.
        let this = unsafe { Self::from_raw(filter) };
        // SAFETY: The ioctl came through an opened file of the filter's device.
        let bdev = unsafe { BlockDevice::from_raw((*filter).bdev) };
        let arg = UserSlice::new(UserPtr::from_ptr(opt), optlen as usize);
        from_result(|| T::ctl(this.data.as_arc_borrow(), bdev, cmd, arg).map(|()| 0))
    }

    unsafe extern "C" fn submit_bio(
        filter: *mut bindings::blk_filter,
        bio: *mut bindings::bio,
        sector: bindings::sector_t,
        nr_sectors: bindings::sector_t,
    ) -> bindings::blk_filter_verdict {
        // SAFETY: The RCU read lock, which the block layer holds, keeps the filter.
        let this = unsafe { Self::from_raw(filter) };
        let range = SectorRange {
            start: sector,
            len: nr_sectors,
        };
        let bio = FilteredBio {
            bio,
            _call: PhantomData,
        };
        if T::submit_bio(this.data.as_arc_borrow(), bio, range).taken {
            bindings::blk_filter_verdict_BLK_FILTER_TAKEN
        } else {
            bindings::blk_filter_verdict_BLK_FILTER_PASS
        }
    }

    unsafe extern "C" fn free(filter: *mut bindings::blk_filter) {
        // SAFETY: `attach` has made the filter as part of an instance.
        let this = unsafe { container_of!(Opaque::cast_from(filter), Self, filter) };
        // SAFETY: `attach` has made the instance with `KBox`, and this was the last reference.
        drop(unsafe { KBox::from_raw(this.cast_mut()) });
    }
}

/// A filter driver that user space can attach.
///
/// # Invariants
///
/// `ops` is registered with the block layer until `self` is dropped.
#[pin_data(PinnedDrop)]
pub struct Registration<T: Filter> {
    #[pin]
    ops: Opaque<bindings::blk_filter_ops>,
    _filter: PhantomData<T>,
}

// SAFETY: A filter driver may be unregistered on any thread.
unsafe impl<T: Filter> Send for Registration<T> {}
// SAFETY: `&Registration` gives access to nothing.
unsafe impl<T: Filter> Sync for Registration<T> {}

impl<T: Filter> Registration<T> {
    /// Registers the filter driver. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the name is empty or too long, [`EEXIST`] if another driver has it.
    pub fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // INVARIANT: On success the operations are registered.
            ops <- Opaque::try_ffi_init(|slot: *mut bindings::blk_filter_ops| {
                let ops = bindings::blk_filter_ops {
                    name: T::NAME.as_char_ptr(),
                    owner: this_module::<T::OwnerModule>().as_ptr(),
                    attach: Some(Instance::<T>::attach),
                    may_detach: Some(Instance::<T>::may_detach),
                    detached: Some(Instance::<T>::detached),
                    ctl: Some(Instance::<T>::ctl),
                    submit_bio: Some(Instance::<T>::submit_bio),
                    free: Some(Instance::<T>::free),
                    ..pin_init::zeroed()
                };
                // SAFETY: `slot` is valid for writes.
                unsafe { slot.write(ops) };
                // SAFETY: The operations are pinned and live until they are unregistered in `drop`.
                to_result(unsafe { bindings::blk_filter_register(slot) })
            }),
            _filter: PhantomData,
        })
    }
}

#[pinned_drop]
impl<T: Filter> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant they are registered. The module is not unloaded while a
        // filter is attached, since each holds a reference to it.
        unsafe { bindings::blk_filter_unregister(self.ops.get()) };
    }
}
