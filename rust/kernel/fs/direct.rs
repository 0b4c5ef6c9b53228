// SPDX-License-Identifier: GPL-2.0-only

//! A file or block device that a driver keeps its own data in.
//!
//! # Examples
//!
//! ```
//! use kernel::{
//!     fs::direct::DirectFile,
//!     page::{Pages, PAGE_SIZE},
//! };
//!
//! /// Keeps a page in an unnamed file in `directory`, and gets it back. Only in a kernel thread.
//! /// May sleep.
//! fn keep(directory: &CStr, page: &Pages) -> Result<Pages> {
//!     let file = DirectFile::open(directory)?;
//!     file.allocate(0, PAGE_SIZE as u64)?;
//!     file.write(0, &[page], 0, PAGE_SIZE)?;
//!
//!     let mut again = Pages::alloc(1, GFP_KERNEL)?;
//!     file.read(0, &mut again, 0, PAGE_SIZE)?;
//!     Ok(again)
//! }
//! ```
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use crate::{
    bindings,
    block::bdev::BlockDevice,
    error::{
        from_err_ptr,
        to_result, //
    },
    page::{
        Pages,
        PAGE_SIZE, //
    },
    prelude::*,
    str::CStrExt as _,
    sync::atomic::{
        Atomic,
        Full, //
    },
    task::{
        Kuid,
        Task, //
    },
};
use core::{
    mem::MaybeUninit,
    ptr::NonNull, //
};

/// A file that a driver reads and writes past the page cache, where its file system can.
///
/// While a file is open here, nobody else can write to it, truncate it or swap to it. Nobody had it
/// open for reading before, as far as the kernel counts that (with `CONFIG_FILE_LOCKING` or
/// `CONFIG_IMA`), and only its owner, who is the user that has opened it here, and those who may
/// read all files can open it so. A block device is only kept from those who want it exclusively
/// too, like file systems.
///
/// Where writes go by way of the page cache, they are not delayed for what other devices have to
/// write back, as those may be waiting for this file.
///
/// It is closed when this is dropped, which may be in any context; what has to sleep for that is
/// left to the kernel. Where I/O is done on the way of other I/O, use
/// [`noio::scope`](crate::noio::scope) around it.
///
/// # Invariants
///
/// - `file` is open for reading and writing, and this object owns a reference to it.
/// - If `is_bdev` is false, the inode's `i_writecount` was changed from 1, the reference of `file`,
///   to -1.
pub struct DirectFile {
    file: NonNull<bindings::file>,
    /// This is a block device, opened exclusively, and no regular file.
    is_bdev: bool,
    /// What is written goes by way of the page cache.
    cached: bool,
    /// Its address says who holds a block device that was opened here.
    _holder: Option<KBox<u8>>,
}

// SAFETY: A file may be used and closed on any thread.
unsafe impl Send for DirectFile {}
// SAFETY: Reading and writing at given positions is synchronised by the file system.
unsafe impl Sync for DirectFile {}

impl DirectFile {
    /// Opens what is at `path`, with the rights of the calling task: a regular file, a block
    /// device, or a directory, in which a file without a name is made.
    ///
    /// A regular file is made readable for its owner only, and stays so. May sleep.
    ///
    /// # Errors
    ///
    /// - [`ETXTBSY`] if somebody has the file open or executes it,
    /// - [`EPERM`] if the file is another user's,
    /// - [`EBUSY`] if the block device is in use,
    /// - [`EINVAL`] if it is something else,
    /// - [`ESRCH`] if the task is exiting, and may have no root directory any more,
    /// - and others of opening a file.
    pub fn open(path: &CStr) -> Result<Self> {
        const FLAGS: c_int = (bindings::O_RDWR | bindings::O_LARGEFILE | bindings::O_EXCL) as c_int;

        // SAFETY: The current task is valid, and its flags can always be read.
        if unsafe { (*Task::current_raw()).flags } & bindings::PF_EXITING != 0 {
            return Err(ESRCH);
        }
        let open = |flags: c_int| {
            // SAFETY: The path is a valid string.
            from_err_ptr(unsafe { bindings::filp_open(path.as_char_ptr(), FLAGS | flags, 0o600) })
        };
        // A file system that does not know direct I/O says EINVAL.
        let open_direct = |flags: c_int| match open(flags | bindings::O_DIRECT as c_int) {
            Err(e) if e == EINVAL => open(flags),
            other => other,
        };

        let file = match open_direct(0) {
            // O_TMPFILE without O_EXCL would let it be given a name later.
            Err(e) if e == EISDIR => open_direct(bindings::O_TMPFILE as c_int)?,
            other => other?,
        };
        // SAFETY: It is not an error, and `filp_open` does not return null.
        let file = unsafe { NonNull::new_unchecked(file) };
        // SAFETY: The file is open.
        let mode = u32::from(unsafe { (*bindings::file_inode(file.as_ptr())).i_mode });
        let made = match mode & bindings::S_IFMT {
            bindings::S_IFBLK => Ok(true),
            // SAFETY: The file is a regular one that is open for writing.
            bindings::S_IFREG => unsafe { Self::claim(file.as_ptr()) }.map(|()| false),
            _ => Err(EINVAL),
        };
        match made {
            // INVARIANT: The file is open for both, and `claim` has done the rest.
            Ok(is_bdev) => Ok(Self {
                file,
                is_bdev,
                // SAFETY: The file is open.
                cached: unsafe { Self::is_cached(file.as_ptr()) },
                _holder: None,
            }),
            Err(e) => {
                // SAFETY: The reference is that of opening.
                unsafe { bindings::fput(file.as_ptr()) };
                Err(e)
            }
        }
    }

    /// Opens a block device, exclusively. May sleep. Takes the disk's `open_mutex`.
    ///
    /// # Errors
    ///
    /// - [`EBUSY`] if the device is in use,
    /// - [`ENXIO`] if it is gone, or what its driver says.
    pub fn open_bdev(bdev: &BlockDevice) -> Result<Self> {
        let holder = KBox::new(0, GFP_KERNEL)?;
        // SAFETY: Of the holder only the address is used, and no holder operations are given.
        let file = from_err_ptr(unsafe {
            bindings::bdev_file_open_by_dev(
                bdev.dev().as_raw(),
                bindings::BLK_OPEN_READ | bindings::BLK_OPEN_WRITE,
                core::ptr::from_ref(&*holder).cast_mut().cast(),
                core::ptr::null(),
            )
        })?;
        // SAFETY: Nobody else has the file yet. A block device can do direct I/O.
        unsafe {
            (*file).f_flags |= bindings::O_DIRECT;
            (*file).f_iocb_flags |= bindings::IOCB_DIRECT;
        }
        // INVARIANT: The file is open for both, and the reference is that of opening.
        let this = Self {
            // SAFETY: It is not an error, and `bdev_file_open_by_dev` does not return null.
            file: unsafe { NonNull::new_unchecked(file) },
            is_bdev: true,
            cached: false,
            _holder: Some(holder),
        };
        let opened = this.bdev().ok_or(ENXIO)?;
        // It was removed, and another one has its number now.
        if !core::ptr::eq(opened, bdev) {
            return Err(ENXIO);
        }
        Ok(this)
    }

    /// Whether I/O goes by way of the page cache: the file system knows no direct I/O, or says that
    /// it cannot do it for this file, as ext4 where it journals data.
    ///
    /// # Safety
    ///
    /// The file is open.
    unsafe fn is_cached(file: *mut bindings::file) -> bool {
        let mut stat = bindings::kstat::default();
        // SAFETY: The file is open, so its flags and its path are valid.
        let (flags, result) = unsafe {
            (
                (*file).f_flags,
                bindings::vfs_getattr(
                    &raw const (*file).__bindgen_anon_1.f_path,
                    &mut stat,
                    bindings::STATX_DIOALIGN,
                    0,
                ),
            )
        };
        let told = result == 0 && stat.result_mask & bindings::STATX_DIOALIGN != 0;
        flags & bindings::O_DIRECT == 0 || told && stat.dio_offset_align == 0
    }

    /// The number of writers of a file, or, if negative, of those who deny writing.
    ///
    /// # Safety
    ///
    /// The file is open during `'a`.
    unsafe fn write_count<'a>(file: *mut bindings::file) -> &'a Atomic<i32> {
        // SAFETY: The inode of an open file is valid, and C code changes the counter by atomic
        // operations only.
        unsafe { Atomic::from_ptr(&raw mut (*bindings::file_inode(file)).i_writecount.counter) }
    }

    /// How many times a file is open for reading only, as far as the kernel counts that.
    ///
    /// # Safety
    ///
    /// The file is open.
    unsafe fn read_count(file: *mut bindings::file) -> i32 {
        #[cfg(any(CONFIG_IMA, CONFIG_FILE_LOCKING))]
        {
            // SAFETY: The inode of an open file is valid, and C code changes the counter by atomic
            // operations only.
            let count: &Atomic<i32> = unsafe {
                Atomic::from_ptr(&raw mut (*bindings::file_inode(file)).i_readcount.counter)
            };
            count.load(crate::sync::atomic::Relaxed)
        }
        #[cfg(not(any(CONFIG_IMA, CONFIG_FILE_LOCKING)))]
        {
            let _ = file;
            0
        }
    }

    /// Shuts out everybody else, like `deny_write_access()` but with a writer: ourselves.
    ///
    /// # Safety
    ///
    /// The file is a regular one that is open for writing.
    unsafe fn claim(file: *mut bindings::file) -> Result {
        // SAFETY: The inode of an open file is valid.
        let owner = Kuid::from_raw(unsafe { (*bindings::file_inode(file)).i_uid });
        if owner != Kuid::current_euid() {
            return Err(EPERM);
        }
        // SAFETY: The file is open.
        let count = unsafe { Self::write_count(file) };
        count.cmpxchg(1, -1, Full).map_err(|_| ETXTBSY)?;
        // SAFETY: As above.
        let mode = unsafe { (*bindings::file_inode(file)).i_mode };
        // SAFETY: The file is open.
        let result = to_result(unsafe { bindings::vfs_fchmod(file, 0o600) }).and_then(|()| {
            // Who has it open already is not stopped by the mode.
            // SAFETY: The file is open.
            match unsafe { Self::read_count(file) } {
                0 => Ok(()),
                _ => Err(ETXTBSY),
            }
        });
        if result.is_err() {
            // SAFETY: The file is open.
            unsafe { bindings::vfs_fchmod(file, mode) };
            count.fetch_add(2, Full);
        }
        result
    }

    /// The size in bytes, of the file or of the device, at this moment. May be called in any
    /// context.
    pub fn size(&self) -> u64 {
        // SAFETY: By the type invariant the file is open.
        unsafe { bindings::i_size_read((*(*self.file.as_ptr()).f_mapping).host) as u64 }
    }

    /// The block device that this is, if it is one. May be called in any context.
    pub fn bdev(&self) -> Option<&BlockDevice> {
        if !self.is_bdev {
            return None;
        }
        // SAFETY: By the type invariant it is open, and it is a block device, which stays as long
        // as it is open.
        Some(unsafe { BlockDevice::from_raw(bindings::file_bdev(self.file.as_ptr())) })
    }

    /// Writes back what was written, down to the medium, and waits for it. May sleep.
    ///
    /// # Errors
    ///
    /// What the file system or device says.
    pub fn sync(&self) -> Result {
        // SAFETY: By the type invariant the file is open.
        to_result(unsafe { bindings::vfs_fsync(self.file.as_ptr(), 0) })
    }

    /// Makes sure that the file has `len` bytes from byte `start` on, allocated on its file system
    /// where that can be. May sleep. Nothing is done to a block device, nor in memory (tmpfs),
    /// where it would take the memory right away. On error nothing past the end of the file stays
    /// allocated.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`], [`EINVAL`] if `len` is 0 or there are no such bytes in a file, and others of the
    /// file system.
    pub fn allocate(&self, start: u64, len: u64) -> Result {
        // SAFETY: By the type invariant the file is open, which keeps its file system.
        let magic = unsafe { (*(*bindings::file_inode(self.file.as_ptr())).i_sb).s_magic };
        if self.is_bdev || magic == bindings::TMPFS_MAGIC as c_ulong {
            return Ok(());
        }
        let fallocate = |mode: u32, start: u64, end: u64| {
            let (start, len) = (start as i64, end.wrapping_sub(start) as i64);
            // SAFETY: By the type invariant the file is open for writing.
            to_result(unsafe {
                bindings::vfs_fallocate(self.file.as_ptr(), mode as c_int, start, len)
            })
        };
        let size = self.size();
        let end = start.wrapping_add(len);
        match fallocate(0, start, end) {
            // Then writing extends it.
            Err(e) if e == EOPNOTSUPP => Ok(()),
            Err(e) => {
                // Some of it may be allocated.
                let mode = bindings::FALLOC_FL_PUNCH_HOLE | bindings::FALLOC_FL_KEEP_SIZE;
                let _ = fallocate(mode, start.max(size), end);
                Err(e)
            }
            Ok(()) => Ok(()),
        }
    }

    /// Returns the number of bytes that the file system has left for users without privileges.
    /// [`None`] for a block device, and if the file system does not say. May sleep.
    pub fn available(&self) -> Option<u64> {
        if self.is_bdev {
            return None;
        }
        let mut stat = bindings::kstatfs::default();
        // SAFETY: By the type invariant the file is open, so its path is valid.
        let result = to_result(unsafe {
            let path = &raw const (*self.file.as_ptr()).__bindgen_anon_1.f_path;
            bindings::vfs_statfs(path, &mut stat)
        });
        if result.is_err() || stat.f_blocks == 0 {
            return None;
        }
        Some(stat.f_bavail.saturating_mul(stat.f_frsize as u64))
    }

    /// Writes `len` bytes of `pages`, from their byte `skip` on, at byte `pos`, and waits for it.
    /// Only in a kernel thread, like that of a work item. May sleep.
    ///
    /// `pos`, `skip` and `len` are multiples of what the file system or device wants for direct
    /// I/O, at most a page; so is the logical block size of the device.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there are fewer bytes or this is not a kernel thread, [`EFBIG`] if `pos` is
    /// larger than [`i64::MAX`], [`EIO`] if not all were written, [`ENOMEM`], and others of the
    /// file system or device.
    pub fn write(&self, pos: u64, pages: &[&Pages], skip: usize, len: usize) -> Result {
        self.transfer(pos, pages, skip, len, true)
    }

    /// Reads `len` bytes from byte `pos` on into `pages`, from their byte `skip` on, and waits for
    /// it. Only in a kernel thread, like that of a work item. May sleep.
    ///
    /// # Errors
    ///
    /// As for [`Self::write`].
    pub fn read(&self, pos: u64, pages: &mut Pages, skip: usize, len: usize) -> Result {
        self.transfer(pos, &[&*pages], skip, len, false)
    }

    fn transfer(&self, pos: u64, pages: &[&Pages], skip: usize, len: usize, write: bool) -> Result {
        // Some file systems, like NFS, do not wait for their I/O any more when the task is killed.
        // SAFETY: The current task is valid, and its flags can always be read.
        if unsafe { (*Task::current_raw()).flags } & bindings::PF_KTHREAD == 0 {
            crate::pr_warn_once!("direct I/O of a driver not in a kernel thread\n");
            return Err(EINVAL);
        }
        if skip.checked_add(len).ok_or(EINVAL)? > pages.iter().map(|p| p.len()).sum() {
            return Err(EINVAL);
        }
        // Whole pages that are skipped need no vectors.
        let first = skip / PAGE_SIZE;
        let skip = skip % PAGE_SIZE;
        let total = skip + len;
        let mut vecs =
            KVec::<bindings::bio_vec>::with_capacity(total.div_ceil(PAGE_SIZE), GFP_NOIO)?;
        let mut left = total;
        let mut next = None;
        for page in pages.iter().flat_map(|p| p.iter()).skip(first) {
            if left == 0 {
                break;
            }
            let n = left.min(PAGE_SIZE);
            left -= n;
            // Pages that are next to each other in memory share a vector, if it can count from one
            // `struct page` to the next: where a section of memory ends they may be far apart.
            let ptr = page.as_ptr();
            // SAFETY: The page is valid.
            let pfn = unsafe { bindings::page_to_pfn(ptr) };
            let joins = next.replace((pfn + 1, ptr.wrapping_add(1))) == Some((pfn, ptr));
            if let Some(vec) = vecs.last_mut().filter(|_| joins) {
                vec.bv_len += n as u32;
                continue;
            }
            vecs.push(
                bindings::bio_vec {
                    bv_page: ptr,
                    bv_len: n as u32,
                    bv_offset: 0,
                },
                GFP_NOIO,
            )?;
        }

        let mut iter = MaybeUninit::<bindings::iov_iter>::uninit();
        let iter = iter.as_mut_ptr();
        let mut pos = i64::try_from(pos).map_err(|_| EFBIG)?;
        let file = self.file.as_ptr();
        // Or else nobody would be told of errors, which come when the cache is written.
        let flags = if self.cached { bindings::RWF_DSYNC } else { 0 };
        let direction = if write {
            bindings::ITER_SOURCE
        } else {
            bindings::ITER_DEST
        };
        // SAFETY: The vectors are valid and have `total` bytes; they live as long as the iterator.
        unsafe {
            bindings::iov_iter_bvec(iter, direction, vecs.as_ptr(), vecs.len(), total);
            bindings::iov_iter_advance(iter, skip);
        }

        let mut left = len;
        while left > 0 {
            // SAFETY: The vectors describe pages that are borrowed during this function, and each
            // call waits for the I/O, since this is a kernel thread, which nobody kills; where it
            // writes to them the caller has borrowed them mutably. By the type invariant the file
            // is open for both.
            let done = with_local_throttle(|| unsafe {
                if write {
                    bindings::vfs_iter_write(file, iter, &mut pos, flags)
                } else {
                    bindings::vfs_iter_read(file, iter, &mut pos, 0)
                }
            });
            // A transfer that stops on the way says why when it is asked to go on.
            match usize::try_from(done) {
                Ok(0) => return Err(EIO),
                Ok(done) => left -= done.min(left),
                Err(_) => return Err(Error::from_errno(done as c_int)),
            }
        }
        Ok(())
    }
}

/// Calls `f` with writes of the current task throttled only for the dirty pages of the device that
/// they go to. Scopes nest.
fn with_local_throttle<R>(f: impl FnOnce() -> R) -> R {
    // SAFETY: The current task is valid, and only it changes these flags.
    let flags = || unsafe { &mut (*Task::current_raw()).flags };
    let was = *flags() & bindings::PF_LOCAL_THROTTLE;
    *flags() |= bindings::PF_LOCAL_THROTTLE;
    let result = f();
    *flags() = *flags() & !bindings::PF_LOCAL_THROTTLE | was;
    result
}

impl Drop for DirectFile {
    fn drop(&mut self) {
        if !self.is_bdev {
            // SAFETY: By the type invariant the file is open, and the count is lower by 2 than it
            // would be without `claim`.
            unsafe { Self::write_count(self.file.as_ptr()) }.fetch_add(2, Full);
        }
        // SAFETY: By the type invariant the reference is ours.
        unsafe { bindings::fput(self.file.as_ptr()) };
    }
}

#[cfg(CONFIG_RUST_BLOCK_KUNIT_TEST)]
#[kunit_tests(rust_direct_file)]
mod tests {
    use super::*;

    /// Opens with the root directory of the first task of user space, since that of kernel threads,
    /// which run the tests, is empty. While the kernel boots it is in memory.
    fn open(path: &CStr) -> Result<DirectFile> {
        // SAFETY: This is a kernel thread, and it gets back what it had.
        let fs = unsafe { bindings::__override_init_fs() };
        let result = DirectFile::open(path);
        // SAFETY: This is what was returned above.
        unsafe { bindings::__revert_init_fs(fs) };
        result
    }

    /// An unnamed file. Skips the test where there can be none.
    fn unnamed() -> Option<DirectFile> {
        let result = open(c"/");
        if let Err(e) = &result {
            pr_info!("no file to test with: {:?}\n", e);
            // SAFETY: This is called by tests.
            unsafe {
                (*bindings::kunit_get_current_test()).status = bindings::kunit_status_KUNIT_SKIPPED
            };
        }
        result.ok()
    }

    fn filled(count: usize, value: u8) -> Result<Pages> {
        let pages = Pages::alloc(count, GFP_KERNEL)?;
        for page in pages.iter() {
            for at in 0..PAGE_SIZE {
                // SAFETY: The byte is valid, and nobody else has the page.
                unsafe { page.write_raw(&value, at, 1)? };
            }
        }
        Ok(pages)
    }

    /// Whether all bytes of a page are `value`.
    fn is_filled(page: &crate::page::Page, value: u8) -> bool {
        (0..PAGE_SIZE).all(|at| {
            let mut byte = !value;
            // SAFETY: The byte is valid, and nobody writes to the page.
            unsafe { page.read_raw(&mut byte, at, 1) }.is_ok() && byte == value
        })
    }

    #[test]
    fn gives_back_what_was_written() -> Result {
        let Some(file) = unnamed() else {
            return Ok(());
        };
        assert!(file.bdev().is_none());
        assert_eq!(file.size(), 0);

        // Two buffers, and the second not as a whole.
        let (first, second) = (filled(1, 1)?, filled(3, 2)?);
        let page = PAGE_SIZE as u64;
        file.write(page, &[&first, &second], 0, 3 * PAGE_SIZE)?;
        assert_eq!(file.size(), 4 * page);

        let mut pages = filled(5, 9)?;
        file.read(0, &mut pages, 0, 4 * PAGE_SIZE)?;
        for (i, value) in [0, 1, 2, 2, 9].into_iter().enumerate() {
            assert!(is_filled(&pages[i], value));
        }
        Ok(())
    }

    #[test]
    fn says_what_is_not_there() -> Result {
        let Some(file) = unnamed() else {
            return Ok(());
        };
        let mut pages = filled(1, 9)?;
        assert_eq!(file.write(0, &[&pages], 0, PAGE_SIZE + 1), Err(EINVAL));
        assert_eq!(file.read(0, &mut pages, 0, PAGE_SIZE + 1), Err(EINVAL));
        assert_eq!(file.write(u64::MAX, &[&pages], 0, PAGE_SIZE), Err(EFBIG));
        assert_eq!(file.size(), 0);
        // Past the end there is nothing to be read.
        assert_eq!(file.read(0, &mut pages, 0, PAGE_SIZE), Err(EIO));
        // Nothing is done for nothing.
        assert_eq!(file.write(0, &[], 0, 0), Ok(()));
        Ok(())
    }

    #[test]
    fn allocates_no_more_than_there_can_be() -> Result {
        let Some(file) = unnamed() else {
            return Ok(());
        };
        let before = file.available();
        assert!(file.allocate(1 << 62, 1 << 62).is_err());
        assert!(file.allocate(0, u64::MAX).is_err());
        // In memory there is no limit, but for the one that it was given.
        assert_eq!(file.available().is_some(), before.is_some());
        Ok(())
    }

    #[test]
    fn opens_only_what_is_there() {
        assert_eq!(open(c"/no-such-file-for-kunit").err(), Some(ENOENT));
    }

    /// As it is in the drop of what an exiting task had.
    #[test]
    fn opens_nothing_while_exiting() {
        let task = Task::current_raw();
        // SAFETY: The current task is valid, and only it changes its flags.
        unsafe { (*task).flags |= bindings::PF_EXITING };
        let result = DirectFile::open(c"/");
        // SAFETY: As above.
        unsafe { (*task).flags &= !bindings::PF_EXITING };
        assert_eq!(result.err(), Some(ESRCH));
    }
}
