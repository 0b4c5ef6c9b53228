// SPDX-License-Identifier: GPL-2.0-only

//! Block I/O requests: `struct bio`.
//!
//! A [`Bio`] is only ever borrowed. Whoever has to complete it holds an [`OwnedBio`], which is not
//! lost on the way: dropping it ends the bio with an error. [`BioList`] keeps several of them.
//! [`BioSet`] allocates bios for I/O of the driver itself.
//!
//! # Examples
//!
//! Bios that wait for something, for example until a device can be written to:
//!
//! ```
//! use kernel::block::bio::{BioList, Op, OwnedBio};
//!
//! /// Keeps a write, and ends the rest.
//! fn submit(waiting: &mut BioList, bio: OwnedBio) {
//!     match bio.op() {
//!         Op::Write => waiting.push(bio),
//!         Op::Discard => bio.end(Ok(())),
//!         _ => bio.end(Err(EOPNOTSUPP)),
//!     }
//! }
//!
//! /// What waits is ended. If it were just dropped it would be ended with `EIO`.
//! fn give_up(waiting: &mut BioList) {
//!     while let Some(bio) = waiting.pop() {
//!         bio.end(Err(ENODEV));
//!     }
//! }
//!
//! let mut waiting = BioList::new();
//! give_up(&mut waiting);
//! assert!(waiting.is_empty());
//! ```
//!
//! C headers: [`include/linux/bio.h`](srctree/include/linux/bio.h),
//! [`include/linux/blk_types.h`](srctree/include/linux/blk_types.h)

mod set;
mod vec;

pub use self::{
    set::{
        BioRead,
        BioSet,
        EndIo,
        Held, //
    },
    vec::{
        BioSegmentIterator,
        Segment, //
    },
};

use crate::{
    bindings,
    error::{
        to_result,
        Result, //
    },
    page::{
        Pages,
        PAGE_SIZE, //
    },
    prelude::*,
    task::might_sleep,
    types::Opaque, //
};
use core::{
    mem::ManuallyDrop,
    ops::Deref,
    ptr::NonNull, //
};

/// What a [`Bio`] asks the device to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read sectors.
    Read,
    /// Write sectors.
    Write,
    /// Tell the device that the content of sectors is not needed.
    Discard,
    /// Discard sectors so that their content cannot be read back.
    SecureErase,
    /// Write zeroes to sectors. The bio has no data.
    WriteZeroes,
    /// Any other operation: a flush, or one of zoned devices.
    Other,
}

impl Op {
    /// Whether the operation changes what the device's sectors hold. True also for [`Op::Other`],
    /// which may.
    #[inline]
    pub fn changes_media(self) -> bool {
        self != Op::Read
    }
}

/// A block I/O request.
///
/// Wraps the kernel's C `struct bio`. All methods may be called in any context.
///
/// # Invariants
///
/// The wrapped bio is initialised and is not completed as long as the reference lives. Meanwhile
/// nobody changes its operation, position or vectors.
#[repr(transparent)]
pub struct Bio(Opaque<bindings::bio>);

impl Bio {
    /// # Safety
    ///
    /// `ptr` points to an initialised bio, which stays valid and is neither completed nor submitted
    /// during `'a`.
    #[inline]
    pub(crate) unsafe fn from_raw<'a>(ptr: *mut bindings::bio) -> &'a Self {
        // INVARIANT: As the caller promises; who changes a bio is who completes or submits it.
        // SAFETY: `Bio` is transparent, and the caller promises the rest.
        unsafe { &*ptr.cast() }
    }

    #[inline]
    pub(crate) fn as_raw(&self) -> *mut bindings::bio {
        self.0.get()
    }

    /// The operation.
    #[inline]
    pub fn op(&self) -> Op {
        // SAFETY: By the type invariant the bio is valid.
        let opf = unsafe { (*self.as_raw()).bi_opf };
        match opf & bindings::REQ_OP_MASK {
            bindings::req_op_REQ_OP_READ => Op::Read,
            bindings::req_op_REQ_OP_WRITE => Op::Write,
            bindings::req_op_REQ_OP_DISCARD => Op::Discard,
            bindings::req_op_REQ_OP_SECURE_ERASE => Op::SecureErase,
            bindings::req_op_REQ_OP_WRITE_ZEROES => Op::WriteZeroes,
            _ => Op::Other,
        }
    }

    /// The first sector (of 512 bytes), counted from the start of the disk: drivers and filters
    /// see a bio for a partition after the block layer has remapped it.
    #[inline]
    pub fn sector(&self) -> u64 {
        // SAFETY: By the type invariant the bio is valid.
        unsafe { (*self.as_raw()).bi_iter.bi_sector }
    }

    /// The length in bytes, less than 4 GiB.
    #[inline]
    pub fn size(&self) -> usize {
        // SAFETY: By the type invariant the bio is valid.
        unsafe { (*self.as_raw()).bi_iter.bi_size as usize }
    }

    /// The length in sectors of 512 bytes, 0 for a flush without data.
    #[inline]
    pub fn sectors(&self) -> u64 {
        (self.size() >> super::SECTOR_SHIFT) as u64
    }

    /// The control group whose limits can delay the bio. None if it must not be delayed, as others
    /// may be waiting for it: metadata of file systems, and swap.
    #[inline]
    pub fn cgroup(&self) -> Option<Cgroup> {
        const ISSUED_AS_ROOT: bindings::blk_opf_t =
            1 << bindings::req_flag_bits___REQ_META | 1 << bindings::req_flag_bits___REQ_SWAP;

        // SAFETY: By the type invariant the bio is valid.
        if unsafe { (*self.as_raw()).bi_opf } & ISSUED_AS_ROOT != 0 {
            return None;
        }
        // SAFETY: As above.
        Some(Cgroup(
            unsafe { bindings::bio_blkcg_css(self.as_raw()) }.addr(),
        ))
    }

    /// The memory that the bio's data is in, piece by piece. Empty for operations without data.
    pub fn segments(&self) -> BioSegmentIterator<'_> {
        BioSegmentIterator::new(self)
    }
}

/// Identifies a control group, as seen by the I/O controllers.
///
/// Two bios that are not completed have the same value if and only if they are accounted to the
/// same group. A value can be used again for another group once there is no bio of the former one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Cgroup(usize);

/// A [`Bio`] that has to be completed by its owner.
///
/// Dropping it ends it with [`EIO`], in any context. If it is leaked, who has submitted it waits
/// for ever.
///
/// # Invariants
///
/// The pointer is to a valid bio that is not completed, and this object has the only right to
/// change, complete or submit it. `bi_next` is not in use by others. Of the rest of a bio of which
/// dm has submitted a part, the task that polls for that may change `bi_private` and a flag in
/// `bi_opf`, both of which are dm's.
pub struct OwnedBio(NonNull<bindings::bio>);

// SAFETY: A bio may be completed on any thread.
unsafe impl Send for OwnedBio {}
// SAFETY: All that `&OwnedBio` allows is to read fields that only the owner changes, for which it
// needs a mutable reference or the object.
unsafe impl Sync for OwnedBio {}

impl OwnedBio {
    /// # Safety
    ///
    /// `ptr` points to a valid bio that is not completed and in no list, and the caller hands over
    /// the right to complete it.
    #[inline]
    pub(crate) unsafe fn from_raw(ptr: *mut bindings::bio) -> Self {
        // INVARIANT: As the caller promises.
        // SAFETY: A valid bio is not at the null pointer.
        Self(unsafe { NonNull::new_unchecked(ptr) })
    }

    #[inline]
    pub(crate) fn into_raw(self) -> *mut bindings::bio {
        ManuallyDrop::new(self).0.as_ptr()
    }

    /// Completes the bio, with success or with an error. The submitter gets what of the block
    /// layer's errors is nearest to it, [`EIO`] if there is nothing like it.
    ///
    /// May be called in any context. The callback of the submitter may run before this returns.
    #[inline]
    pub fn end(self, result: Result) {
        let bio = self.into_raw();
        if let Err(e) = result {
            // SAFETY: By the type invariant the bio is valid and ours.
            unsafe { (*bio).bi_status = e.to_blk_status() };
        }
        // SAFETY: By the type invariant the bio is valid and ours to complete; `into_raw` has
        // given that up.
        unsafe { bindings::bio_endio(bio) };
    }

    /// Gives a bio that a filter has taken back to its device, through the device's filters.
    ///
    /// May sleep, among others until a frozen queue goes on, so it cannot be called in the hook
    /// that has taken it. The bio may end before this returns. A bio that a driver got for its own
    /// disk comes back to that driver.
    #[cfg(CONFIG_BLK_FILTER)]
    #[inline]
    pub fn resubmit(self) {
        // SAFETY: By the type invariant the bio is valid and ours to submit; `into_raw` has given
        // that up.
        unsafe { bindings::blk_filter_resubmit_bio(self.into_raw()) };
    }

    /// Splits off the first `sectors` of a bio that a driver has got for its disk, and returns them
    /// as a bio of their own. The rest is submitted to the disk again. For the submitter the bio
    /// ends when both have ended, with the error of one of them if there is one.
    ///
    /// For [`Operations::submit_bio`]: there the rest comes after this bio was served, when
    /// `submit_bio` has returned and what it has submitted has begun. So the pieces of a large bio
    /// may be in flight at once, and memory for them is not short for lack of progress. Elsewhere
    /// the rest comes before this returns. May sleep for memory, which is not allocated with I/O.
    ///
    /// # Errors
    ///
    /// Those that the bio has ended with: [`EINVAL`] if `sectors` is 0 or not less than the bio
    /// has, or it is neither a read nor a write, or an atomic write.
    ///
    /// [`Operations::submit_bio`]: super::bio_disk::Operations::submit_bio
    pub fn split(self, sectors: u64) -> Result<OwnedBio> {
        might_sleep();
        if sectors == 0 || sectors >= self.sectors() || !matches!(self.op(), Op::Read | Op::Write) {
            self.end(Err(EINVAL));
            return Err(EINVAL);
        }
        let bio = self.into_raw();
        // SAFETY: The bio is valid and ours, `into_raw` has given that up, and its submitter keeps
        // the disk until it has ended. `sectors` is less than the bio has, so it fits.
        let first = unsafe {
            bindings::bio_submit_split_bioset(
                bio,
                sectors as u32,
                &raw mut (*(*(*bio).bi_bdev).bd_disk).bio_split,
            )
        };
        if first.is_null() {
            return Err(EINVAL);
        }
        // SAFETY: It is fresh, in no list, and ours to complete, which the rest waits for.
        Ok(unsafe { OwnedBio::from_raw(first) })
    }

    /// Copies `len` bytes that start `from` bytes into `pages` to the data of a bio that reads,
    /// `at` bytes from its start.
    ///
    /// May be called in any context.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the bio is not [`Op::Read`] or either range is not inside; then nothing was
    /// copied.
    pub fn copy_from_pages(&mut self, at: usize, pages: &Pages, from: usize, len: usize) -> Result {
        // The memory of others is not ours to change: it may be mapped by user space, or be the
        // zero page.
        if self.op() != Op::Read {
            return Err(EINVAL);
        }
        let at_end = at.checked_add(len).ok_or(EINVAL)?;
        if at_end > self.size() || from.checked_add(len).ok_or(EINVAL)? > pages.len() {
            return Err(EINVAL);
        }

        let mut pos = 0;
        for segment in self.segments() {
            let start = at.max(pos);
            let end = at_end.min(pos + segment.len());
            let mut done = start;
            while done < end {
                let source = from + (done - at);
                let n = (end - done).min(PAGE_SIZE - source % PAGE_SIZE);
                // SAFETY: The bio reads and we own it, so until it is completed its memory is ours
                // to fill, and we are borrowed mutably.
                unsafe {
                    segment.copy_from_page(
                        done - pos,
                        &pages[source / PAGE_SIZE],
                        source % PAGE_SIZE,
                        n,
                    )
                };
                done += n;
            }
            pos += segment.len();
        }
        Ok(())
    }
}

impl Deref for OwnedBio {
    type Target = Bio;

    #[inline]
    fn deref(&self) -> &Bio {
        // SAFETY: By the type invariant the bio is valid, and it is completed or submitted only by
        // consuming `self`, which is borrowed.
        unsafe { Bio::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for OwnedBio {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the bio is valid and ours; `self` is not used after this.
        unsafe { OwnedBio::from_raw(self.0.as_ptr()) }.end(Err(EIO));
    }
}

/// Calls `f`, and gives what it submits to the drivers in batches: at the end, when they are large,
/// or when the task sleeps. Without effect in the call of another one.
///
/// May sleep if `f` does, and to submit.
///
/// # Examples
///
/// ```
/// use kernel::block::bio::{plugged, BioList};
///
/// /// Ends all of them.
/// fn end_all(bios: &mut BioList) -> usize {
///     plugged(|| {
///         let mut count = 0;
///         while let Some(bio) = bios.pop() {
///             bio.end(Ok(()));
///             count += 1;
///         }
///         count
///     })
/// }
///
/// assert_eq!(end_all(&mut BioList::new()), 0);
/// ```
pub fn plugged<R>(f: impl FnOnce() -> R) -> R {
    let plug = Opaque::<bindings::blk_plug>::uninit();
    // SAFETY: It is valid for writes, and stays in its place until it is finished below, by the
    // same task: nothing unwinds in the kernel.
    unsafe { bindings::blk_start_plug(plug.get()) };
    let result = f();
    // SAFETY: It was started above.
    unsafe { bindings::blk_finish_plug(plug.get()) };
    result
}

/// A first-in, first-out list of bios.
///
/// It links the bios themselves, so that adding one cannot fail. Bios that are in the list when it
/// is dropped end with [`EIO`]. All methods may be called in any context.
///
/// # Invariants
///
/// `head` and `tail` are the ends of a list of bios, linked by `bi_next`, which is null in the last
/// one. This object owns them in the sense of [`OwnedBio`]. Both are null if it is empty.
pub struct BioList {
    head: *mut bindings::bio,
    tail: *mut bindings::bio,
}

// SAFETY: As for `OwnedBio`.
unsafe impl Send for BioList {}
// SAFETY: `&BioList` gives no access to the bios.
unsafe impl Sync for BioList {}

impl BioList {
    /// An empty list.
    pub const fn new() -> Self {
        // INVARIANT: The list is empty.
        Self {
            head: core::ptr::null_mut(),
            tail: core::ptr::null_mut(),
        }
    }

    /// Whether there is no bio in the list.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    /// Adds a bio at the end.
    #[inline]
    pub fn push(&mut self, bio: OwnedBio) {
        let bio = bio.into_raw();
        // SAFETY: The bio is valid and ours.
        unsafe { (*bio).bi_next = core::ptr::null_mut() };
        // INVARIANT: `bio` was owned by the caller and is the last of the list now.
        if self.tail.is_null() {
            self.head = bio;
        } else {
            // SAFETY: By the type invariant the last bio is valid and ours.
            unsafe { (*self.tail).bi_next = bio };
        }
        self.tail = bio;
    }

    /// Adds a bio at the front.
    #[inline]
    pub fn push_front(&mut self, bio: OwnedBio) {
        let bio = bio.into_raw();
        // INVARIANT: `bio` was owned by the caller and is the first of the list now.
        // SAFETY: The bio is valid and ours.
        unsafe { (*bio).bi_next = self.head };
        self.head = bio;
        if self.tail.is_null() {
            self.tail = bio;
        }
    }

    /// Removes the first bio, if there is one.
    #[inline]
    pub fn pop(&mut self) -> Option<OwnedBio> {
        if self.head.is_null() {
            return None;
        }
        let bio = self.head;
        // SAFETY: By the type invariant the bio is valid and ours.
        self.head = unsafe { (*bio).bi_next };
        if self.head.is_null() {
            self.tail = core::ptr::null_mut();
        }
        // SAFETY: As above.
        unsafe { (*bio).bi_next = core::ptr::null_mut() };
        // SAFETY: By the type invariant the bio was ours, and it has left the list.
        Some(unsafe { OwnedBio::from_raw(bio) })
    }

    /// Moves all bios of `other` to the end of this list.
    #[inline]
    pub fn append(&mut self, other: &mut BioList) {
        if other.is_empty() {
            return;
        }
        // INVARIANT: What `other` owned is linked to the end of this list, and `other` is empty.
        if self.tail.is_null() {
            self.head = other.head;
        } else {
            // SAFETY: By the type invariant the last bio is valid and ours.
            unsafe { (*self.tail).bi_next = other.head };
        }
        self.tail = other.tail;
        other.head = core::ptr::null_mut();
        other.tail = core::ptr::null_mut();
    }

    /// Takes all bios out, for instance to look at them without a lock that the list is under.
    #[inline]
    pub fn take(&mut self) -> BioList {
        core::mem::take(self)
    }
}

impl Default for BioList {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for BioList {
    fn drop(&mut self) {
        while let Some(bio) = self.pop() {
            drop(bio);
        }
    }
}

/// The status of a completed bio.
///
/// # Safety
///
/// `bio` points to a valid bio whose I/O is done.
unsafe fn status(bio: *mut bindings::bio) -> Result {
    // SAFETY: The caller promises a valid bio.
    to_result(unsafe { bindings::blk_status_to_errno((*bio).bi_status) })
}
