// SPDX-License-Identifier: GPL-2.0-only

//! Bios of a driver's own, from a reserve that lets it make progress when memory is short.
//!
//! The code that runs when a bio is done is that of a module, which must stay until then. So each
//! bio has a reference to it. That is put by code of the kernel, [`Inner::end_io`], since the
//! module may go as soon as it is.
//!
//! C header: [`include/linux/bio.h`](srctree/include/linux/bio.h)

use super::{
    status,
    Bio,
    Op,
    OwnedBio, //
};
use crate::{
    alloc::Flags,
    bindings,
    block::{
        bdev::BdevFile,
        SECTOR_SIZE, //
    },
    error::to_result,
    module::this_module,
    page::{
        Pages,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        Arc,
        UniqueArc, //
    },
    task::might_sleep,
    types::Opaque,
    workqueue::{
        self,
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    },
};
use core::{
    marker::PhantomData,
    mem::{
        align_of,
        offset_of,
        MaybeUninit, //
    },
    ptr::NonNull, //
};

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::UniqueArc<super::Pages> {}
    impl Sealed for super::OwnedBio {}
}

/// What a bio of a [`BioSet`] keeps alive until it is done: the pages it reads into, or the bio
/// whose memory it shares. Only these can be held.
pub trait Held: sealed::Sealed + Send {}
impl Held for UniqueArc<Pages> {}
impl Held for OwnedBio {}

/// The data of one I/O that was submitted with a [`BioSet`], and what to do when it is done.
#[vtable]
pub trait EndIo: Send + Sized + 'static {
    /// What the I/O keeps alive.
    type Held: Held;

    /// The I/O is done, or was refused. It is called exactly once for each, and `held` comes back.
    ///
    /// Called in any context, also with interrupts disabled: it must not sleep, so it must not
    /// submit or resubmit I/O either, which is for a work item. It may drop what it gets, and the
    /// last reference to the [`BioSet`].
    fn end_io(self, held: Self::Held, result: Result);
}

/// What an I/O has: the device, kept open, what is kept alive besides, and the driver's data.
type Data<T> = (Arc<BdevFile>, <T as EndIo>::Held, T);

/// What stands in front of each bio.
#[repr(C)]
struct Private<T: EndIo> {
    data: MaybeUninit<Data<T>>,
    bio: bindings::bio,
}

impl<T: EndIo> Private<T> {
    const FRONT_PAD: usize = offset_of!(Self, bio);

    /// # Safety
    ///
    /// `bio` was allocated from a `BioSet<T>`.
    unsafe fn of(bio: *mut bindings::bio) -> *mut MaybeUninit<Data<T>> {
        // SAFETY: The set has `FRONT_PAD` bytes in front of each bio, and `data` is at offset 0.
        unsafe { bio.byte_sub(Self::FRONT_PAD) }.cast()
    }
}

/// What a [`BioSet`] consists of, apart from the type.
///
/// # Invariants
///
/// - The bio set is initialised.
/// - It is in a [`KBox`], owned by the caller that brings `users` to 0. `users` counts the
///   [`BioSet`], and each bio from [`Self::enter`] until [`Self::leave`] or the end of
///   [`Self::end_io`]. There is a reference to `owner` for each of these bios.
/// - `finish` may be called for each of these bios, once, when it is done. It is code of `owner`.
#[pin_data(PinnedDrop)]
struct Inner {
    #[pin]
    set: Opaque<bindings::bio_set>,
    users: Atomic<i64>,
    owner: &'static ThisModule,
    finish: unsafe fn(*mut bindings::bio),
    #[pin]
    drop_work: Work<Inner>,
}

impl_has_work! {
    impl HasWork<Self> for Inner { self.drop_work }
}

// SAFETY: A bio set may be used by and freed on any thread.
unsafe impl Send for Inner {}
// SAFETY: Allocation from a bio set is synchronised in C; the rest is atomic or does not change.
unsafe impl Sync for Inner {}

// Not generic and not inline, so that all code of the work item and the end of a bio are in the
// kernel: they may run when the module that has used them is gone.
impl Inner {
    /// # Safety
    ///
    /// `finish` is code of `owner`, and may be called once for each bio that is submitted, when it
    /// is done.
    #[inline(never)]
    unsafe fn new(
        reserve: u32,
        front_pad: u32,
        owner: &'static ThisModule,
        finish: unsafe fn(*mut bindings::bio),
    ) -> Result<NonNull<Self>> {
        let inner = KBox::try_pin_init(
            try_pin_init!(Self {
                // INVARIANT: The set is initialised here.
                set <- Opaque::try_ffi_init(|slot: *mut bindings::bio_set| {
                    // SAFETY: `slot` is valid for writes, and zeroes are what `bioset_init` wants.
                    unsafe { slot.write_bytes(0, 1) };
                    // SAFETY: `slot` points to a zeroed bio set that stays where it is.
                    to_result(unsafe {
                        bindings::bioset_init(
                            slot,
                            reserve,
                            front_pad,
                            bindings::BIOSET_NEED_BVECS as c_int,
                        )
                    })
                }),
                // INVARIANT: The caller's; no bio has been submitted.
                users: Atomic::new(1),
                owner,
                // INVARIANT: As the caller promises.
                finish,
                drop_work <- new_work!("BioSet::drop"),
            }? Error),
            GFP_KERNEL,
        )?;
        // SAFETY: It is not moved: `put` pins it again.
        let inner = unsafe { Pin::into_inner_unchecked(inner) };
        // SAFETY: A box is not at the null pointer.
        Ok(unsafe { NonNull::new_unchecked(KBox::into_raw(inner)) })
    }

    /// Makes sure that the module stays until a bio that is going to be submitted is done. Fails if
    /// it is being loaded, since it is freed in spite of references if its init fails, or unloaded.
    #[inline(never)]
    fn enter(&self) -> bool {
        let owner = self.owner.as_ptr();
        // SAFETY: The module is there, since this is called by it; without one it is null.
        if unsafe {
            !owner.is_null() && bindings::module_is_coming(owner)
                || !bindings::try_module_get(owner)
        } {
            return false;
        }
        // INVARIANT: There is one reference more, and the bio is counted before it is submitted.
        self.users.add(1, Relaxed);
        true
    }

    /// Gives up what `users` counts. The last one frees the set, in a work item: freeing may sleep,
    /// and this may be called where I/O is done.
    ///
    /// # Safety
    ///
    /// `this` was counted for the caller, who does not use it afterwards.
    #[inline(never)]
    unsafe fn put(this: NonNull<Self>) {
        // SAFETY: It is there as long as it is counted for the caller.
        if unsafe { this.as_ref() }.users.fetch_sub(1, Full) != 1 {
            return;
        }
        // SAFETY: By the type invariants it is ours now, and was never moved.
        let this = unsafe { Pin::new_unchecked(KBox::from_raw(this.as_ptr())) };
        workqueue::system_long().enqueue(this);
    }

    /// Takes back what [`Self::enter`] did for a bio that is not submitted after all. The module
    /// stays, since this is called by it.
    ///
    /// # Safety
    ///
    /// [`Self::enter`] was called for the bio, which is freed.
    #[inline(never)]
    unsafe fn leave(&self) {
        let owner = self.owner;
        // SAFETY: `enter` has counted the bio.
        unsafe { Self::put(self.into()) };
        // SAFETY: `enter` has got this reference.
        unsafe { bindings::module_put(owner.as_ptr()) };
    }

    /// Makes a bio ready to be submitted.
    ///
    /// # Safety
    ///
    /// `bio` is from this set and not submitted, `finish` may be called for it when it is done, and
    /// [`Self::enter`] was called for it.
    #[inline(never)]
    unsafe fn complete(&self, bio: *mut bindings::bio) {
        // SAFETY: The bio is not submitted, so it is ours to write to.
        unsafe {
            (*bio).bi_end_io = Some(Self::end_io);
            (*bio).bi_private = core::ptr::from_ref(self).cast_mut().cast();
        }
    }

    #[inline(never)]
    extern "C" fn end_io(bio: *mut bindings::bio) {
        // SAFETY: `complete` has stored a pointer to the set, which is counted for this bio.
        let set = unsafe { &*(*bio).bi_private.cast::<Inner>() };
        let owner = set.owner;
        // SAFETY: By the type invariants the module is there, and this is called once for each bio
        // that was submitted.
        unsafe { (set.finish)(bio) };
        // SAFETY: The bio was counted by `enter`, and is freed.
        unsafe { Self::put(set.into()) };
        // SAFETY: `enter` has got this reference for the bio.
        unsafe { bindings::module_put(owner.as_ptr()) };
    }
}

impl WorkItem for Inner {
    type Pointer = Pin<KBox<Self>>;

    fn run(this: Pin<KBox<Self>>) {
        drop(this);
    }
}

#[pinned_drop]
impl PinnedDrop for Inner {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants the set is initialised, and all of its bios are freed,
        // since none is counted.
        unsafe { bindings::bioset_exit(self.set.get()) };
    }
}

/// A set of bios, with room for a `T` at each.
///
/// `T` says what is done with them: with `Held = UniqueArc<Pages>` they are for [`Self::read`],
/// with `Held = OwnedBio` for [`Self::forward`].
///
/// A set may be dropped in any context, also while its bios are in flight; they end as usual. Code
/// of a module that has I/O in flight cannot be unloaded. While it is being loaded or unloaded no
/// I/O can be submitted.
///
/// # Examples
///
/// Reads the start of a device, and waits for it:
///
/// ```
/// use kernel::{
///     block::{
///         bdev::BdevFile,
///         bio::{BioSet, EndIo},
///     },
///     new_spinlock_irq,
///     page::{Pages, PAGE_SIZE},
///     sync::{Arc, Completion, SpinLockIrq, UniqueArc},
/// };
///
/// #[pin_data]
/// struct Waiter {
///     #[pin]
///     done: Completion,
///     #[pin]
///     result: SpinLockIrq<Option<Result<UniqueArc<Pages>>>>,
/// }
///
/// struct Read(Arc<Waiter>);
///
/// #[vtable]
/// impl EndIo for Read {
///     type Held = UniqueArc<Pages>;
///
///     fn end_io(self, pages: UniqueArc<Pages>, result: Result) {
///         *self.0.result.lock() = Some(result.map(|()| pages));
///         self.0.done.complete_all();
///     }
/// }
///
/// /// Returns the first page of what the device holds. May sleep.
/// fn first_page(set: &BioSet<Read>, bdev: &Arc<BdevFile>) -> Result<UniqueArc<Pages>> {
///     let waiter = Arc::pin_init(
///         pin_init!(Waiter {
///             done <- Completion::new(),
///             result <- new_spinlock_irq!(None),
///         }),
///         GFP_KERNEL,
///     )?;
///     let pages = UniqueArc::new(Pages::alloc(1, GFP_KERNEL)?, GFP_KERNEL)?;
///     set.read(bdev, 0, pages, PAGE_SIZE, Read(waiter.clone()), GFP_KERNEL);
///     waiter.done.wait_for_completion();
///     let result = waiter.result.lock().take();
///     result.unwrap_or(Err(EIO))
/// }
///
/// let _set = BioSet::<Read>::new(4)?;
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// - The front pad of the bio set is `Private::<T>::FRONT_PAD` bytes.
/// - `inner` is counted for this object.
pub struct BioSet<T: EndIo> {
    inner: NonNull<Inner>,
    _data: PhantomData<fn(T)>,
}

// SAFETY: A set may be used by and dropped on any thread, as `Inner` is `Send` and `Sync`.
unsafe impl<T: EndIo> Send for BioSet<T> {}
// SAFETY: As above.
unsafe impl<T: EndIo> Sync for BioSet<T> {}

impl<T: EndIo> BioSet<T> {
    /// Makes a set that has `reserve` bios allocated ahead, and at least one.
    ///
    /// So many can be in flight however short memory is. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the reserve is larger than [`i32::MAX`], [`ENOMEM`].
    pub fn new(reserve: u32) -> Result<Self> {
        // A bio comes at the alignment of its slab, which is that of a long long.
        const { assert!(align_of::<Private<T>>() <= align_of::<u64>()) };

        if i32::try_from(reserve).is_err() {
            return Err(EINVAL);
        }
        let owner = this_module::<T::OwnerModule>();
        // SAFETY: The code of `T` is that of its module, and bios are submitted as `complete` makes
        // them only, so that `finish` may be called.
        let inner =
            unsafe { Inner::new(reserve, Private::<T>::FRONT_PAD as u32, owner, Self::finish)? };
        // INVARIANT: The front pad is that, and `new` has counted it for us.
        Ok(Self {
            inner,
            _data: PhantomData,
        })
    }

    fn inner(&self) -> &Inner {
        // SAFETY: By the type invariant it is there as long as `self`.
        unsafe { self.inner.as_ref() }
    }

    /// # Safety
    ///
    /// `bio` was made ready by [`Self::complete`] and is done. To be called once.
    unsafe fn finish(bio: *mut bindings::bio) {
        // SAFETY: `complete` has initialised the data, and this is the only time that it is read.
        let (_bdev, held, data) = unsafe { (*Private::<T>::of(bio)).assume_init_read() };
        // SAFETY: The bio is done.
        let result = unsafe { status(bio) };
        // SAFETY: The reference is that of the allocation; the bio is not used after this.
        unsafe { bindings::bio_put(bio) };
        data.end_io(held, result);
    }

    /// # Safety
    ///
    /// `bio` is fresh from an allocation in `self`, for the device in `data`, which also keeps
    /// alive all else that it needs.
    /// [`Inner::enter`] was called for it.
    unsafe fn complete(&self, bio: *mut bindings::bio, data: Data<T>) {
        // SAFETY: The bio is from a `BioSet<T>` and not submitted, so it is ours to write to.
        unsafe { (*Private::<T>::of(bio)).write(data) };
        // SAFETY: The bio is from this set, and is what `finish` wants now.
        unsafe { self.inner().complete(bio) };
    }
}

/// A read that is ready to be submitted, made by [`BioSet::prepare_read`].
///
/// # Invariants
///
/// `bio` was allocated from `set` for `bdev` and is not submitted. It reads into `pages`, which
/// are there until it is.
pub struct BioRead<'a, T: EndIo<Held = UniqueArc<Pages>>> {
    set: &'a BioSet<T>,
    bio: NonNull<bindings::bio>,
    bdev: Arc<BdevFile>,
    pages: Option<UniqueArc<Pages>>,
}

impl<T: EndIo<Held = UniqueArc<Pages>>> BioRead<'_, T> {
    /// The bio, complete: its end frees it and all that belongs to it.
    pub(crate) fn into_bio(mut self, data: T) -> *mut bindings::bio {
        let bio = self.bio.as_ptr();
        // By the type invariants they are there.
        if let Some(pages) = self.pages.take() {
            // SAFETY: By the type invariants the bio is fresh, and `pages` is what it reads into;
            // `UniqueArc` makes sure that nobody looks at them meanwhile. `prepare_read` has
            // called `enter`.
            unsafe { self.set.complete(bio, (self.bdev.clone(), pages, data)) };
        }
        bio
    }

    /// Gives the read the priority of `bio` and accounts it to the control group of `bio`. It is
    /// never delayed by a limit of the group, since other groups may be waiting for it, too. The
    /// group pays for it later.
    pub fn on_behalf_of(self, bio: &Bio) -> Self {
        // SAFETY: By the type invariants the read is not submitted; `bio` is a valid bio.
        unsafe {
            (*self.bio.as_ptr()).bi_ioprio = (*bio.as_raw()).bi_ioprio;
            // See bio_issue_as_root_blkg().
            (*self.bio.as_ptr()).bi_opf |= 1 << bindings::req_flag_bits___REQ_META;
            bindings::bio_clone_blkg_association(self.bio.as_ptr(), bio.as_raw());
        }
        self
    }

    /// Sets `REQ_NOMERGE`: no queue merges the read with others. All bios of a request get its
    /// error, so a bad sector under one of them would fail the others, too.
    pub fn unmerged(self) -> Self {
        // SAFETY: By the type invariants the read is not submitted.
        unsafe { (*self.bio.as_ptr()).bi_opf |= 1 << bindings::req_flag_bits___REQ_NOMERGE };
        self
    }

    /// Submits the read. [`EndIo::end_io`] is called when it is done, possibly before this returns.
    /// May sleep, but not for the I/O, unless too much of that is on its way for the device.
    pub fn submit(self, data: T) {
        might_sleep();
        let bio = self.into_bio(data);
        // SAFETY: The bio is complete.
        unsafe { bindings::submit_bio_noacct(bio) };
    }
}

impl<T: EndIo<Held = UniqueArc<Pages>>> Drop for BioRead<'_, T> {
    fn drop(&mut self) {
        if self.pages.is_some() {
            // SAFETY: By the type invariants the bio is ours, and `prepare_read` has called
            // `enter`.
            unsafe {
                bindings::bio_put(self.bio.as_ptr());
                self.set.inner().leave();
            }
        }
    }
}

impl<T: EndIo<Held = UniqueArc<Pages>>> BioSet<T> {
    /// Allocates a read into `pages`, and enters the set for it.
    fn alloc_read(
        &self,
        bdev: &BdevFile,
        sector: u64,
        pages: &Pages,
        len: usize,
        flags: Flags,
    ) -> Result<NonNull<bindings::bio>> {
        let vecs = len.div_ceil(PAGE_SIZE);
        if len == 0
            || len % SECTOR_SIZE as usize != 0
            || len > pages.len()
            || vecs > bindings::BIO_MAX_VECS as usize
        {
            return Err(EINVAL);
        }
        if !self.inner().enter() {
            return Err(ENODEV);
        }

        // SAFETY: The device and, by the type invariant, the set are valid.
        let bio = unsafe {
            bindings::bio_alloc_bioset(
                bdev.as_raw(),
                vecs as u16,
                bindings::req_op_REQ_OP_READ,
                flags.as_raw(),
                self.inner().set.get(),
            )
        };
        let Some(bio) = NonNull::new(bio) else {
            // SAFETY: `enter` was called above; there is no bio.
            unsafe { self.inner().leave() };
            return Err(ENOMEM);
        };

        // SAFETY: The bio is not submitted, so it is ours to write to.
        unsafe { (*bio.as_ptr()).bi_iter.bi_sector = sector };
        for (i, page) in pages.iter().take(vecs).enumerate() {
            let n = PAGE_SIZE.min(len - i * PAGE_SIZE);
            // What it returns is looked at below, by the size.
            // SAFETY: The bio was allocated with a vector for each of the pages, and the callers
            // keep them until it is done.
            let _ = unsafe { bindings::bio_add_page(bio.as_ptr(), page.as_ptr(), n as u32, 0) };
        }
        // SAFETY: As above.
        if unsafe { (*bio.as_ptr()).bi_iter.bi_size } as usize == len {
            return Ok(bio);
        }
        // Not for lack of vectors, but some pages cannot be in one bio, like those of devices.
        // SAFETY: The bio was not submitted; `enter` was called for it.
        unsafe {
            bindings::bio_put(bio.as_ptr());
            self.inner().leave();
        }
        Err(EINVAL)
    }

    /// Makes a read as [`Self::read`] does, to be submitted later or never. Sleeps only if `flags`
    /// allow it.
    ///
    /// # Errors
    ///
    /// [`EINVAL`], [`ENOMEM`] and [`ENODEV`] as for [`Self::read`].
    pub fn prepare_read(
        &self,
        bdev: &Arc<BdevFile>,
        sector: u64,
        pages: UniqueArc<Pages>,
        len: usize,
        flags: Flags,
    ) -> Result<BioRead<'_, T>> {
        let bio = self.alloc_read(bdev, sector, &pages, len, flags)?;
        // INVARIANT: It was made so.
        Ok(BioRead {
            set: self,
            bio,
            bdev: bdev.clone(),
            pages: Some(pages),
        })
    }

    /// Reads `len` bytes from `sector` (of 512 bytes, counted from the start of `bdev`) on into the
    /// first of `pages`. `len` is a multiple of the device's logical block size and at most 256
    /// pages.
    ///
    /// [`EndIo::end_io`] is called when that is done, possibly before this returns. May sleep, but
    /// not for the I/O, unless too much of that is on its way for the device.
    /// With flags that allow to sleep the allocation cannot fail, but may wait for bios of the set
    /// to be done. Where a driver is given bios, [`GFP_NOIO`] is what it needs, and no more than
    /// one bio of a set at a time.
    ///
    /// What pages hold is undefined after an error.
    ///
    /// # Errors
    ///
    /// `end_io` gets
    ///
    /// - [`EINVAL`] if `len` is 0, no multiple of 512, or larger than `pages` or than it may be,
    /// - [`ENOMEM`] if there is no memory,
    /// - [`ENODEV`] if the driver's module is being loaded or unloaded,
    /// - or what the device says, [`EIO`] also for sectors that it does not have.
    pub fn read(
        &self,
        bdev: &Arc<BdevFile>,
        sector: u64,
        pages: UniqueArc<Pages>,
        len: usize,
        data: T,
        flags: Flags,
    ) {
        might_sleep();
        match self.alloc_read(bdev, sector, &pages, len, flags) {
            // SAFETY: The bio is fresh, and `pages` is what it reads into. `UniqueArc` makes sure
            // that nobody looks at them meanwhile. The bio is complete then.
            Ok(bio) => unsafe {
                self.complete(bio.as_ptr(), (bdev.clone(), pages, data));
                bindings::submit_bio_noacct(bio.as_ptr());
            },
            Err(e) => data.end_io(pages, Err(e)),
        }
    }
}

impl<T: EndIo<Held = OwnedBio>> BioSet<T> {
    /// Submits a copy of `parent`, sharing its memory, to `bdev` at `sector` (of 512 bytes, counted
    /// from the start of `bdev`).
    ///
    /// [`EndIo::end_io`] is called when that is done, possibly before this returns; `parent` has to
    /// be ended then. For sleeping and `flags` see [`Self::read`].
    ///
    /// # Errors
    ///
    /// `end_io` gets
    ///
    /// - [`ENOMEM`] if there is no memory,
    /// - [`ENODEV`] if the driver's module is being loaded or unloaded,
    /// - [`EBADF`] if `parent` is no read: `bdev` was not opened for more,
    /// - or what the device says, [`EIO`] also for sectors that it does not have.
    pub fn forward(
        &self,
        bdev: &Arc<BdevFile>,
        sector: u64,
        parent: OwnedBio,
        data: T,
        flags: Flags,
    ) {
        might_sleep();
        if parent.op() != Op::Read {
            return data.end_io(parent, Err(EBADF));
        }
        if !self.inner().enter() {
            return data.end_io(parent, Err(ENODEV));
        }
        // SAFETY: The device, the parent and, by the type invariant, the set are valid. The parent
        // is not completed before the clone is done, since the clone holds it.
        let bio = unsafe {
            bindings::bio_alloc_clone(
                bdev.as_raw(),
                parent.as_raw(),
                flags.as_raw(),
                self.inner().set.get(),
            )
        };
        if bio.is_null() {
            // SAFETY: `enter` was called above; there is no bio.
            unsafe { self.inner().leave() };
            return data.end_io(parent, Err(ENOMEM));
        }
        // SAFETY: The bio is not submitted, so it is ours to write to.
        unsafe {
            (*bio).bi_iter.bi_sector = sector;
            // If the parent was remapped from the same partition, the clone counts as that too, but
            // its sector was neither checked nor remapped.
            (*bio).bi_flags &= !(1u16 << bindings::BIO_REMAPPED);
            // Who polls for the parent does not know of this bio.
            (*bio).bi_opf &= !(1 << bindings::req_flag_bits___REQ_POLLED);
        }
        // SAFETY: The bio is fresh, and the parent owns the memory. The bio is complete then.
        unsafe {
            self.complete(bio, (bdev.clone(), parent, data));
            bindings::submit_bio_noacct(bio);
        }
    }
}

impl<T: EndIo> Drop for BioSet<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant it is counted for us.
        unsafe { Inner::put(self.inner) };
    }
}
