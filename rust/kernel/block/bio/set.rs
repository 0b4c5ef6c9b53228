// SPDX-License-Identifier: GPL-2.0-only

//! Bios of a driver's own, from a reserve that lets it make progress when memory is short.
//!
//! C header: [`include/linux/bio.h`](srctree/include/linux/bio.h)

use super::{
    status,
    OwnedBio, //
};
use crate::{
    alloc::Flags,
    bindings,
    block::bdev::BdevFile,
    error::to_result,
    page::{
        Pages,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc,
        UniqueArc, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
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
};

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::UniqueArc<super::Pages> {}
    impl Sealed for super::OwnedBio {}
}

/// What a bio of a [`BioSet`] keeps alive until it is done: the pages it reads into, or the bio
/// whose memory it shares.
pub trait Held: sealed::Sealed + Send {}
impl Held for UniqueArc<Pages> {}
impl Held for OwnedBio {}

/// The data of one I/O that was submitted with a [`BioSet`], and what to do when it is done.
pub trait EndIo: Send + Sized + 'static {
    /// What the I/O keeps alive.
    type Held: Held;

    /// The I/O is done. Called in any context, also with interrupts disabled: it must not sleep.
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
/// - `in_flight` is at least the number of bios of the set that are not freed.
#[pin_data(PinnedDrop)]
struct Inner {
    #[pin]
    set: Opaque<bindings::bio_set>,
    in_flight: Atomic<i64>,
    #[pin]
    drop_work: Work<Inner>,
}

impl_has_work! {
    impl HasWork<Self> for Inner { self.drop_work }
}

// SAFETY: A bio set may be used by and freed on any thread.
unsafe impl Send for Inner {}
// SAFETY: Allocation from a bio set is synchronised in C.
unsafe impl Sync for Inner {}

// Not generic and not inline, so that all code of the work item is in the kernel: it may run when
// the module that has used it is gone.
impl Inner {
    #[inline(never)]
    fn new(reserve: u32, front_pad: u32) -> Result<Pin<KBox<Self>>> {
        KBox::try_pin_init(
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
                // INVARIANT: No bio has been allocated.
                in_flight: Atomic::new(0),
                drop_work <- new_work!("BioSet::drop"),
            }? Error),
            GFP_KERNEL,
        )
    }

    #[inline(never)]
    fn drop_later(this: Pin<KBox<Self>>) {
        workqueue::system_long().enqueue(this);
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
        // Rare and short, so not worth a wait queue: owners drop a set after their I/O.
        while self.in_flight.load(Acquire) != 0 {
            fsleep(Delta::from_millis(1));
        }
        // SAFETY: By the type invariants the set is initialised and none of its bios is left.
        unsafe { bindings::bioset_exit(self.set.get()) };
    }
}

/// A set of bios, with room for a `T` at each.
///
/// # Invariants
///
/// - The front pad of the bio set is [`Private::FRONT_PAD`] bytes.
/// - `inner` is there until `self` is dropped.
pub struct BioSet<T: EndIo> {
    inner: Option<Pin<KBox<Inner>>>,
    _data: PhantomData<fn(T)>,
}

impl<T: EndIo> BioSet<T> {
    /// Makes a set that has `reserve` bios allocated ahead.
    ///
    /// May sleep.
    pub fn new(reserve: u32) -> Result<Self> {
        // A bio comes at the alignment of its slab, which is that of a long long.
        const { assert!(align_of::<Private<T>>() <= align_of::<u64>()) };

        let inner = Inner::new(reserve, Private::<T>::FRONT_PAD as u32)?;
        // INVARIANT: The front pad is that.
        Ok(Self {
            inner: Some(inner),
            _data: PhantomData,
        })
    }

    fn inner(&self) -> &Inner {
        // By the type invariant it is there.
        self.inner.as_ref().unwrap()
    }

    extern "C" fn end_io(bio: *mut bindings::bio) {
        // SAFETY: This is the `bi_end_io` of bios of a `BioSet<T>` only, set by `submit`, which has
        // initialised the data and `bi_private`; it is called once.
        let (_bdev, held, data) = unsafe { (*Private::<T>::of(bio)).assume_init_read() };
        // SAFETY: `submit` has stored a pointer to it, and it waits for this bio before it is
        // freed.
        let set = unsafe { &*(*bio).bi_private.cast::<Inner>() };
        // SAFETY: The bio is done.
        let result = unsafe { status(bio) };
        // SAFETY: The reference is that of the allocation; the bio is not used after this.
        unsafe { bindings::bio_put(bio) };
        // INVARIANT: The bio is freed, and the set is not used after this.
        set.in_flight.fetch_sub(1, Release);
        data.end_io(held, result);
    }

    /// # Safety
    ///
    /// `bio` is fresh from an allocation in `self`, for the device in `data`, which also keeps
    /// alive all else that it needs.
    unsafe fn submit(&self, bio: *mut bindings::bio, data: Data<T>) {
        // INVARIANT: There is one more, and it is counted before it can be done.
        let inner = self.inner();
        inner.in_flight.add(1, Relaxed);
        // SAFETY: The bio is from a `BioSet<T>` and not submitted, so it is ours to write to.
        unsafe {
            (*Private::<T>::of(bio)).write(data);
            (*bio).bi_end_io = Some(Self::end_io);
            (*bio).bi_private = core::ptr::from_ref(inner).cast_mut().cast();
            bindings::submit_bio_noacct(bio);
        }
    }
}

impl<T: EndIo<Held = UniqueArc<Pages>>> BioSet<T> {
    /// Reads `len` bytes from `sector` on into the first of `pages`.
    ///
    /// May sleep, but not for the I/O: [`EndIo::end_io`] is called when that is done, at once in
    /// case of an error here. With flags that allow to sleep the allocation cannot fail.
    pub fn read(
        &self,
        bdev: &Arc<BdevFile>,
        sector: u64,
        pages: UniqueArc<Pages>,
        len: usize,
        data: T,
        flags: Flags,
    ) {
        let vecs = len.div_ceil(PAGE_SIZE);
        if len == 0 || len > pages.len() || vecs > bindings::BIO_MAX_VECS as usize {
            return data.end_io(pages, Err(EINVAL));
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
        if bio.is_null() {
            return data.end_io(pages, Err(ENOMEM));
        }

        // SAFETY: The bio is not submitted, so it is ours to write to.
        unsafe { (*bio).bi_iter.bi_sector = sector };
        for (i, page) in pages.iter().take(vecs).enumerate() {
            let n = PAGE_SIZE.min(len - i * PAGE_SIZE);
            // SAFETY: The bio was allocated with a vector for each of the pages, and they are kept
            // until it is done.
            unsafe { bindings::__bio_add_page(bio, page.as_ptr(), n as u32, 0) };
        }
        // SAFETY: The bio is fresh, and `pages` is what it reads into. `UniqueArc` makes sure that
        // nobody looks at them meanwhile.
        unsafe { self.submit(bio, (bdev.clone(), pages, data)) };
    }
}

impl<T: EndIo<Held = OwnedBio>> BioSet<T> {
    /// Submits a copy of `parent`, sharing its memory, to `bdev` at `sector`.
    ///
    /// May sleep, but not for the I/O: [`EndIo::end_io`] is called when that is done, at once in
    /// case of an error here.
    pub fn forward(
        &self,
        bdev: &Arc<BdevFile>,
        sector: u64,
        parent: OwnedBio,
        data: T,
        flags: Flags,
    ) {
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
            return data.end_io(parent, Err(ENOMEM));
        }
        // SAFETY: The bio is not submitted, so it is ours to write to.
        unsafe { (*bio).bi_iter.bi_sector = sector };
        // SAFETY: The bio is fresh, and the parent owns the memory.
        unsafe { self.submit(bio, (bdev.clone(), parent, data)) };
    }
}

impl<T: EndIo> Drop for BioSet<T> {
    fn drop(&mut self) {
        // The last reference to the owner of a set is often that of I/O which is done, in a
        // context that must not sleep, as freeing a set does.
        if let Some(inner) = self.inner.take() {
            Inner::drop_later(inner);
        }
    }
}
