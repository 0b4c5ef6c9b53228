// SPDX-License-Identifier: GPL-2.0-only

//! Block device filters: drivers that see the bios of a block device before the device does.
//!
//! A driver implements [`Filter`] and keeps a [`Registration`] of it. User space attaches it to a
//! device by its name; each device has an instance of its own.
//!
//! For each bio that touches the device [`Filter::submit_bio`] gets a [`FilteredBio`] and has to
//! give a [`Verdict`] on it:
//!
//! - [`FilteredBio::pass`]: it goes on to the device.
//! - [`FilteredBio::take`]: it becomes an [`OwnedBio`] of the driver, which ends it or, later and
//!   from where it may sleep, gives it back by [`OwnedBio::resubmit`].
//!
//! See Documentation/block/blkfilter.rst and the sample samples/rust/rust_block_filter.rs.
//!
//! # Examples
//!
//! A filter that counts writes and refuses to discard:
//!
//! ```
//! use kernel::{
//!     block::{
//!         bdev::{BlockDevice, SectorRange},
//!         bio::Op,
//!         filter::{Filter, FilteredBio, Registration, Verdict},
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
//!         match bio.op() {
//!             Op::Discard => {
//!                 let (bio, verdict) = bio.take();
//!                 bio.end(Err(EOPNOTSUPP));
//!                 return verdict;
//!             }
//!             Op::Write => this.writes.add(1, Relaxed),
//!             _ => {}
//!         }
//!         bio.pass()
//!     }
//! }
//!
//! // As long as this is there user space can attach the filter.
//! let _registration = Registration::<Counter>::new()?;
//! # Ok::<(), Error>(())
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
        BioRead,
        EndIo,
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
    page::Pages,
    prelude::*,
    str::as_char_ptr_in_const_context,
    sync::{
        rcu,
        Arc,
        ArcBorrow,
        UniqueArc, //
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

/// A bio that a filter has to decide on, by turning it into a [`Verdict`].
///
/// # Invariants
///
/// - `bio` points to a bio that is valid and not completed, and whose `bi_next` is not in use.
/// - `own` points to the list of the filter's own bios, which is valid and used by no other task
///   during `'a`.
/// - `'a` is that of one call of [`Filter::submit_bio`], which `bio` was made for, and this is the
///   only object with it until it is turned into a verdict. The block layer gives the bio away if
///   that says so.
pub struct FilteredBio<'a> {
    bio: *mut bindings::bio,
    own: *mut bindings::bio_list,
    // Invariant in 'a, so that a verdict on one bio cannot be given on another one.
    _call: PhantomData<fn(&'a ()) -> &'a ()>,
}

/// What a filter has decided on the [`FilteredBio`] with the same lifetime.
///
/// # Invariants
///
/// - `taken` says whether the bio was made an [`OwnedBio`].
/// - `nowait` is the bio's `REQ_NOWAIT`, and `own` is that of [`FilteredBio`].
/// - It stays in the task that the call of [`Filter::submit_bio`] with the lifetime `'a` runs in.
#[must_use]
pub struct Verdict<'a> {
    taken: bool,
    nowait: bindings::blk_opf_t,
    own: *mut bindings::bio_list,
    // Invariant in 'a, as the bio, and not to be sent to other tasks.
    _call: PhantomData<*mut &'a ()>,
}

impl<'a> FilteredBio<'a> {
    #[inline]
    fn verdict(&self, taken: bool) -> Verdict<'a> {
        // SAFETY: By the type invariants the bio is valid.
        let flags = unsafe { (*self.bio).bi_opf };
        // INVARIANT: The callers do with the bio what they say. It is made in the call with that
        // lifetime, and no type with a raw pointer is `Send`.
        Verdict {
            taken,
            nowait: flags & (1 << bindings::req_flag_bits___REQ_NOWAIT),
            own: self.own,
            _call: PhantomData,
        }
    }

    /// Returns whether a file system is mounted from the device that the bio was submitted to, the
    /// filter's one or another one of its disk. A bio of the file system comes from nobody between:
    /// a driver that is stacked on the device would hold it itself.
    #[inline]
    pub fn is_to_fs(&self, _rcu: &rcu::Guard) -> bool {
        // SAFETY: By the type invariants the bio is valid, and it was submitted to a device, which
        // is valid as long as the bio is not completed.
        let holder = unsafe { &raw const (*(*self.bio).bi_bdev).bd_holder_ops };
        // SAFETY: The field is valid. It is written under a lock, and read once here.
        let ops = unsafe { holder.read_volatile() };
        // SAFETY: The operations are constant. If they are those of a module, that is not freed
        // before the end of the RCU critical section. Only file systems can be frozen.
        !ops.is_null() && unsafe { (*ops).freeze.is_some() }
    }

    /// Lets the bio go on, to the next filter that it concerns and to the device.
    #[inline]
    pub fn pass(self) -> Verdict<'a> {
        self.verdict(false)
    }

    /// Takes the bio over, to be ended or, later, given back by [`OwnedBio::resubmit`].
    ///
    /// It may be ended and dropped right away, also by another task before the hook has returned.
    /// It must not be resubmitted in the hook, since that may sleep.
    #[inline]
    pub fn take(self) -> (OwnedBio, Verdict<'a>) {
        let verdict = self.verdict(true);
        // SAFETY: By the type invariants the bio is valid, and no other task has it yet.
        unsafe { bindings::blk_filter_take_bio(self.bio) };
        // SAFETY: By the type invariants the bio is valid, and the verdict that is returned here
        // is the only one that there can be for it. It says that the block layer has given the bio
        // away.
        let bio = unsafe { OwnedBio::from_raw(self.bio) };
        (bio, verdict)
    }
}

impl Verdict<'_> {
    /// Submits a read of the filter's own. It goes to its device when [`Filter::submit_bio`] has
    /// returned, in the same task, and is throttled as any other bio. Does not sleep.
    ///
    /// If the submitter of the filtered bio does not want to wait, the read does not wait either:
    /// [`EndIo::end_io`] gets [`EAGAIN`] if it would have to, for example for a request.
    pub fn submit_read<T: EndIo<Held = UniqueArc<Pages>>>(&self, read: BioRead<'_, T>, data: T) {
        let read = read.into_bio(data);
        // SAFETY: The read is ours as long as it is not submitted.
        unsafe { (*read).bi_opf |= self.nowait };
        // SAFETY: The bio is complete and in no list; its end frees it. By the type invariants this
        // is the task of the call that the list is for, and the call has not returned, as it
        // returns this verdict.
        unsafe { bindings::bio_list_add(self.own, read) };
    }
}

impl Deref for FilteredBio<'_> {
    type Target = Bio;

    #[inline]
    fn deref(&self) -> &Bio {
        // SAFETY: By the type invariants the bio is valid, and nobody completes it before `self`,
        // which is borrowed, is turned into a verdict.
        unsafe { Bio::from_raw(self.bio) }
    }
}

/// A filter on one block device.
///
/// [`Self::attach`], [`Self::may_detach`] and [`Self::gone`] are called with the disk's
/// `open_mutex` held, so one at a time. [`Self::ctl`], [`Self::truncated`] and [`Self::submit_bio`]
/// may run at the same time as all others but `attach`, and several of each.
///
/// When the filter has left its device only a `ctl` may still run, and the bios it has taken it
/// must still end or resubmit. The instance is dropped in process context, unless the driver keeps
/// references of its own; that must not wait for I/O.
#[vtable]
pub trait Filter: Send + Sync + Sized + 'static {
    /// What user space calls the filter. Not empty, at most 31 bytes.
    const NAME: &'static CStr;

    /// The filter is to be attached to `bdev`, with options from user space: those of the ioctl
    /// `BLKFILTER_ATTACH`, whose length the caller has chosen. An error refuses it and is what the
    /// ioctl returns.
    ///
    /// May sleep, but must not open or close a device of the disk.
    fn attach(bdev: &BlockDevice, options: UserSlice) -> Result<Arc<Self>>;

    /// User space wants the filter off. An error refuses it and is what the ioctl
    /// `BLKFILTER_DETACH` returns; after success nothing may begin that could not stand the
    /// detach. Without this method it is never refused.
    ///
    /// May sleep, but must not open or close a device of the disk.
    fn may_detach(_this: ArcBorrow<'_, Self>) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The device is going away, and the filter will leave it when this has returned. Bios that are
    /// on their way may still come to [`Self::submit_bio`] and reach the media.
    ///
    /// May sleep, but must not wait for I/O, nor open or close a device of the disk.
    fn gone(_this: ArcBorrow<'_, Self>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The content of the device from sector `nr_sectors` on is about to be lost without bios, or
    /// has just been, which is told too: the device or its whole disk becomes smaller, or with 0
    /// gets another medium or is written by requests that were not made from bios for it. A
    /// partition that loses its end with the disk keeps its size. Writes to what is cut off do not
    /// come to [`Self::submit_bio`].
    ///
    /// Must not sleep: the caller holds the RCU read lock. Several may run at once.
    fn truncated(_this: ArcBorrow<'_, Self>, _nr_sectors: u64) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// A command from user space, by the ioctl `BLKFILTER_CTL`, with the opened device that it was
    /// sent to. The caller has chosen the length of `arg`, so it is to be checked. An error is what
    /// the ioctl returns; [`ENOTTY`] is for a command that the filter does not know, and what
    /// it returns without this method.
    ///
    /// Process context without locks; may sleep. Several may run at once, and while the filter is
    /// being detached or after that.
    fn ctl(_this: ArcBorrow<'_, Self>, _bdev: &BlockDevice, _cmd: u32, _arg: UserSlice) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// A bio that touches the sectors of `range`, which count from the start of the filter's
    /// device and are cut to it. The bio itself may be for the whole disk or for another partition.
    ///
    /// Process context, but must not sleep, nor submit I/O but by [`Verdict::submit_read`]: the
    /// caller holds the RCU read lock, and what stopping the device waits for. A bio may come
    /// again, whole or in pieces: when it was resubmitted, and what remains of it when it was split
    /// to the limits of the device.
    fn submit_bio<'a>(
        this: ArcBorrow<'_, Self>,
        bio: FilteredBio<'a>,
        range: SectorRange,
    ) -> Verdict<'a>;
}

/// A filter's instance as C sees it.
///
/// # Invariants
///
/// An instance is in a [`KBox`] that is owned by the block layer from [`Self::attach`] to
/// [`Self::free`]. `filter` is the block layer's.
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

    /// # Safety
    ///
    /// `bdev` points to a block device, which stays during the call.
    unsafe extern "C" fn attach(
        bdev: *mut bindings::block_device,
        opt: *mut c_void,
        optlen: u32,
    ) -> *mut bindings::blk_filter {
        // SAFETY: The block layer gives a valid device, which was opened for the ioctl and stays
        // during this call; `T::attach` cannot keep the reference for longer.
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
            // INVARIANT: From here on the block layer owns the box.
            // SAFETY: The instance was just allocated.
            Ok(instance) => unsafe { (*KBox::into_raw(instance)).filter.get() },
            Err(e) => e.to_ptr(),
        }
    }

    /// # Safety
    ///
    /// `filter` was returned by [`Self::attach`] and is not freed.
    unsafe extern "C" fn may_detach(filter: *mut bindings::blk_filter) -> c_int {
        // SAFETY: The block layer gives a filter that `attach` has made, with a reference to it.
        let this = unsafe { Self::from_raw(filter) };
        if T::HAS_MAY_DETACH {
            from_result(|| T::may_detach(this.data.as_arc_borrow()).map(|()| 0))
        } else {
            0
        }
    }

    /// # Safety
    ///
    /// `filter` was returned by [`Self::attach`] and is not freed.
    unsafe extern "C" fn gone(filter: *mut bindings::blk_filter) {
        if T::HAS_GONE {
            // SAFETY: As in `may_detach`.
            let this = unsafe { Self::from_raw(filter) };
            T::gone(this.data.as_arc_borrow());
        }
    }

    /// # Safety
    ///
    /// `filter` was returned by [`Self::attach`] and is not freed.
    unsafe extern "C" fn truncated(
        filter: *mut bindings::blk_filter,
        nr_sectors: bindings::sector_t,
    ) {
        if T::HAS_TRUNCATED {
            // SAFETY: As in `may_detach`; the RCU read lock, which the block layer holds, keeps it.
            let this = unsafe { Self::from_raw(filter) };
            T::truncated(this.data.as_arc_borrow(), nr_sectors);
        }
    }

    /// # Safety
    ///
    /// `filter` was returned by [`Self::attach`] and is not freed. Its device is open.
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

    /// # Safety
    ///
    /// `filter` was returned by [`Self::attach`] and is not freed. `bio` points to a bio that is
    /// valid, not completed and in no list. If the filter says that it was taken it is not the
    /// caller's any more. `own` points to a list that only this call uses, and whose bios are
    /// submitted when it has returned.
    unsafe extern "C" fn submit_bio(
        filter: *mut bindings::blk_filter,
        bio: *mut bindings::bio,
        sector: bindings::sector_t,
        nr_sectors: bindings::sector_t,
        own: *mut bindings::bio_list,
    ) -> bool {
        // SAFETY: `attach` has made the filter, and the RCU read lock, which the block layer
        // holds, keeps it during this call.
        let this = unsafe { Self::from_raw(filter) };
        let range = SectorRange {
            start: sector,
            len: nr_sectors,
        };
        // INVARIANT: The block layer gives a valid bio that is in no list, and does not use it
        // before this returns, nor afterwards if that is to say that it was taken. The list is this
        // call's. `T::submit_bio` is generic over the lifetime, so it cannot tell it from those of
        // other calls.
        let bio = FilteredBio {
            bio,
            own,
            _call: PhantomData,
        };
        T::submit_bio(this.data.as_arc_borrow(), bio, range).taken
    }

    /// # Safety
    ///
    /// `filter` was returned by [`Self::attach`]. It is not used afterwards.
    unsafe extern "C" fn free(filter: *mut bindings::blk_filter) {
        // SAFETY: `attach` has made the filter as part of an instance.
        let this = unsafe { container_of!(Opaque::cast_from(filter), Self, filter) };
        // SAFETY: `attach` has made the instance with `KBox`, and this was the last reference.
        drop(unsafe { KBox::from_raw(this.cast_mut()) });
    }
}

/// A filter driver that user space can attach, until this is dropped.
///
/// Where the filter is attached at that time, it stays until it is detached; the module stays as
/// long.
///
/// # Invariants
///
/// `OPS` is registered with the block layer.
pub struct Registration<T: Filter>(PhantomData<T>);

impl<T: Filter> Registration<T> {
    // A constant, since it is used as long as a filter is attached anywhere.
    const OPS: bindings::blk_filter_ops = bindings::blk_filter_ops {
        name: as_char_ptr_in_const_context(T::NAME),
        owner: this_module::<T::OwnerModule>().as_ptr(),
        attach: Some(Instance::<T>::attach),
        may_detach: Some(Instance::<T>::may_detach),
        gone: Some(Instance::<T>::gone),
        truncated: Some(Instance::<T>::truncated),
        ctl: Some(Instance::<T>::ctl),
        submit_bio: Some(Instance::<T>::submit_bio),
        free: Some(Instance::<T>::free),
    };

    /// Registers the filter driver. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the name is empty or too long, [`EEXIST`] if another driver has it,
    /// [`ENOMEM`].
    pub fn new() -> Result<Self> {
        // SAFETY: The operations are constant, and their functions are there as long as the
        // module, to which each filter that is attached has a reference.
        to_result(unsafe { bindings::blk_filter_register(&const { Self::OPS }) })?;
        // INVARIANT: They are registered.
        Ok(Self(PhantomData))
    }
}

impl<T: Filter> Drop for Registration<T> {
    /// May sleep.
    fn drop(&mut self) {
        // SAFETY: By the type invariant they are registered.
        unsafe { bindings::blk_filter_unregister(&const { Self::OPS }) };
    }
}

#[cfg(CONFIG_RUST_BLOCK_KUNIT_TEST)]
#[kunit_tests(rust_block_filter)]
mod tests {
    use super::{
        super::{
            bdev::BdevFile,
            bio::{
                BioList,
                Op, //
            },
            tests::{
                memory_disk,
                TestBio, //
            },
        },
        *,
    };
    use crate::{
        new_spinlock_irq,
        sync::{
            atomic::{
                Atomic,
                Relaxed, //
            },
            SpinLockIrq, //
        }, //
    };

    static DROPPED: Atomic<u32> = Atomic::new(0);

    /// Takes writes, and ends discards.
    #[pin_data(PinnedDrop)]
    struct Probe {
        #[pin]
        taken: SpinLockIrq<BioList>,
        sectors: Atomic<u64>,
        gone: Atomic<bool>,
    }

    #[pinned_drop]
    impl PinnedDrop for Probe {
        fn drop(self: Pin<&mut Self>) {
            DROPPED.add(1, Relaxed);
        }
    }

    #[vtable]
    impl Filter for Probe {
        const NAME: &'static CStr = c"rust-kunit-probe";

        fn attach(_bdev: &BlockDevice, options: UserSlice) -> Result<Arc<Self>> {
            if !options.is_empty() {
                return Err(E2BIG);
            }
            Arc::pin_init(
                pin_init!(Self {
                    taken <- new_spinlock_irq!(BioList::new()),
                    sectors: Atomic::new(0),
                    gone: Atomic::new(false),
                }),
                GFP_KERNEL,
            )
        }

        fn gone(this: ArcBorrow<'_, Self>) {
            this.gone.store(true, Relaxed);
        }

        fn submit_bio<'a>(
            this: ArcBorrow<'_, Self>,
            bio: FilteredBio<'a>,
            range: SectorRange,
        ) -> Verdict<'a> {
            this.sectors.add(range.len, Relaxed);
            match bio.op() {
                Op::Write => {
                    let (bio, verdict) = bio.take();
                    this.taken.lock().push(bio);
                    verdict
                }
                Op::Discard => bio.take().1,
                _ => bio.pass(),
            }
        }
    }

    /// A filter that does nothing, with a name of its own.
    macro_rules! named {
        ($type:ident, $name:expr) => {
            struct $type;

            #[vtable]
            impl Filter for $type {
                const NAME: &'static CStr = $name;

                fn attach(_bdev: &BlockDevice, _options: UserSlice) -> Result<Arc<Self>> {
                    Ok(Arc::new($type, GFP_KERNEL)?)
                }

                fn submit_bio<'a>(
                    _this: ArcBorrow<'_, Self>,
                    bio: FilteredBio<'a>,
                    _range: SectorRange,
                ) -> Verdict<'a> {
                    bio.pass()
                }
            }
        };
    }

    named!(Nameless, c"");
    named!(Longest, c"rust-kunit-name-of-31-bytes----");
    named!(TooLong, c"rust-kunit-name-of-32-bytes-----");
    named!(Twin, c"rust-kunit-name-of-31-bytes----");

    #[test]
    fn names_are_checked() -> Result {
        assert_eq!(Registration::<Nameless>::new().err(), Some(EINVAL));
        assert_eq!(Registration::<TooLong>::new().err(), Some(EINVAL));
        let first = Registration::<Longest>::new()?;
        assert_eq!(Registration::<Longest>::new().err(), Some(EEXIST));
        assert_eq!(Registration::<Twin>::new().err(), Some(EEXIST));
        drop(first);
        let _twin = Registration::<Twin>::new()?;
        Ok(())
    }

    /// What the block layer does, to a filter that it has not got.
    #[test]
    fn calls_reach_the_filter() -> Result {
        type Probed = Instance<Probe>;

        let (disk, _store) = memory_disk()?;
        let bdev = BdevFile::open(disk.dev())?;
        let read = TestBio::without_data(bindings::req_op_REQ_OP_READ, 0, 8)?;
        let write = TestBio::without_data(bindings::req_op_REQ_OP_WRITE, 0, 8)?;
        let discard = TestBio::without_data(bindings::req_op_REQ_OP_DISCARD, 0, 8)?;
        let zeroes = TestBio::without_data(bindings::req_op_REQ_OP_WRITE_ZEROES, 0, 8)?;
        let dropped = DROPPED.load(Relaxed);

        // SAFETY: The device is valid.
        let refused = unsafe { Probed::attach(bdev.as_raw(), core::ptr::null_mut(), 1) };
        assert_eq!(crate::error::from_err_ptr(refused).err(), Some(E2BIG));

        // SAFETY: As above.
        let filter = unsafe { Probed::attach(bdev.as_raw(), core::ptr::null_mut(), 0) };
        let filter = crate::error::from_err_ptr(filter)?;
        // SAFETY: `attach` has made the filter, and it is not freed yet.
        let this = unsafe { Probed::from_raw(filter) }.data.clone();

        let submit = |bio: &TestBio, sector, sectors| {
            let mut own = bindings::bio_list::default();
            // SAFETY: The filter and the bio are valid, the bio is not completed and in no list,
            // and it is submitted once. The list is empty, and stays so.
            unsafe { Probed::submit_bio(filter, bio.as_raw(), sector, sectors, &mut own) }
        };
        assert!(!submit(&read, 1, 2));
        assert!(submit(&write, 3, 4));
        assert!(submit(&discard, 7, 1));
        assert!(!submit(&zeroes, 8, 1));
        assert_eq!(this.sectors.load(Relaxed), 8);
        // The one that was dropped in the hook has ended.
        assert_eq!(read.ended(), (0, 0));
        assert_eq!(write.ended(), (0, 0));
        assert_eq!(zeroes.ended(), (0, 0));
        assert_eq!(discard.ended(), (1, EIO.to_errno()));

        // What it has not got.
        // SAFETY: The filter is valid, and so is its device.
        let result = unsafe {
            (*filter).bdev = bdev.as_raw();
            Probed::ctl(filter, 0, core::ptr::null_mut(), 0)
        };
        assert_eq!(result, ENOTTY.to_errno());
        // SAFETY: The filter is valid.
        let result = unsafe { Probed::may_detach(filter) };
        assert_eq!(result, 0);
        // SAFETY: As above.
        unsafe { Probed::gone(filter) };
        assert!(this.gone.load(Relaxed));

        // It may still own bios when the block layer has forgotten it.
        // SAFETY: This is the last use of the filter.
        unsafe { Probed::free(filter) };
        assert_eq!(DROPPED.load(Relaxed), dropped);
        assert_eq!(write.ended(), (0, 0));
        drop(this);
        assert_eq!(DROPPED.load(Relaxed), dropped + 1);
        assert_eq!(write.ended(), (1, EIO.to_errno()));
        Ok(())
    }
}
