// SPDX-License-Identifier: GPL-2.0-only

//! Disks whose driver takes bios, not requests.
//!
//! A driver implements [`Operations`]; each [`BioDisk`] has data of its own, which the driver gets
//! with every bio.
//!
//! # Examples
//!
//! A read-only disk with what is in memory:
//!
//! ```
//! use kernel::{
//!     block::{
//!         bdev::BdevFile,
//!         bio::{Op, OwnedBio},
//!         bio_disk::{BioDisk, Operations, Options},
//!         SECTOR_SHIFT,
//!     },
//!     page::{Pages, PAGE_SIZE},
//!     sync::{Arc, ArcBorrow},
//! };
//!
//! struct MemoryDisk;
//!
//! #[vtable]
//! impl Operations for MemoryDisk {
//!     type Data = Arc<Pages>;
//!
//!     fn submit_bio(pages: ArcBorrow<'_, Pages>, mut bio: OwnedBio) {
//!         let at = (bio.sector() << SECTOR_SHIFT) as usize;
//!         let len = bio.size();
//!         let result = match bio.op() {
//!             Op::Read => bio.copy_from_pages(0, &pages, at, len),
//!             _ => Err(EIO),
//!         };
//!         bio.end(result);
//!     }
//! }
//!
//! let pages = Arc::new(Pages::alloc(8, GFP_KERNEL | __GFP_ZERO)?, GFP_KERNEL)?;
//! let options = Options {
//!     nr_sectors: (pages.len() >> SECTOR_SHIFT) as u64,
//!     logical_block_size: 512,
//!     physical_block_size: PAGE_SIZE as u32,
//!     dma_alignment: 512,
//!     read_only: true,
//!     sparse: false,
//! };
//! let disk = BioDisk::<MemoryDisk>::new(fmt!("rust-doctest"), &options, pages)?;
//! assert_eq!(disk.name(), c"rust-doctest");
//!
//! let bdev = BdevFile::open(disk.dev())?;
//! assert_eq!(bdev.nr_sectors(), options.nr_sectors);
//! # Ok::<(), Error>(())
//! ```
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{
    bdev::{
        BlockDevice,
        DevT, //
    },
    bio::OwnedBio,
    mq::gen_disk::GenDiskBuilder,
    SECTOR_SHIFT, //
};
use crate::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    fmt::{
        self,
        Write, //
    },
    module::this_module,
    page::PAGE_SIZE,
    prelude::*,
    static_lock_class,
    str::{
        CStrExt as _,
        NullTerminatedFormatter, //
    },
    types::{
        ForeignOwnable,
        ScopeGuard, //
    },
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

/// A driver of bio-based disks.
#[vtable]
pub trait Operations: Sized {
    /// The driver's data of a disk.
    type Data: ForeignOwnable + Send + Sync + 'static;

    /// A bio for the disk, which was checked to lie inside. The driver ends it, here or later.
    ///
    /// Process context, for several bios at once. May sleep for memory, with [`GFP_NOIO`], but not
    /// for I/O: what the driver submits here may only start when this returns. The caller holds the
    /// queue's usage counter, so the disk must not be dropped here. Bios that are larger than the
    /// limits of a disk below are split there.
    ///
    /// A flush comes as a bio of [`Op::Other`] or [`Op::Write`] without sectors only to disks with
    /// a write cache, which these have not.
    ///
    /// [`Op::Other`]: super::bio::Op::Other
    /// [`Op::Write`]: super::bio::Op::Write
    fn submit_bio(data: <Self::Data as ForeignOwnable>::Borrowed<'_>, bio: OwnedBio);
}

/// The properties of a [`BioDisk`].
pub struct Options {
    /// The size in sectors of 512 bytes, so less than 2<sup>54</sup>.
    pub nr_sectors: u64,
    /// The smallest unit in bytes that the disk can address: a power of two from 512 on, at most
    /// the size of a page.
    pub logical_block_size: u32,
    /// The smallest unit in bytes that the disk can write without reading: a power of two.
    pub physical_block_size: u32,
    /// What the memory of bios must be aligned to, in bytes: a power of two, at most the size of a
    /// page.
    pub dma_alignment: u32,
    /// Whether user space cannot write. The kernel can, with a warning, so the driver has to refuse
    /// writes.
    pub read_only: bool,
    /// Whether some of the sectors cannot be read. The disk has no partitions then, and nothing is
    /// read ahead, so that it does not make reads of others fail.
    pub sparse: bool,
}

/// A bio-based disk that user space can see. Dropping it removes it; who has it open gets errors.
///
/// Removing waits until no bio is in [`Operations::submit_bio`], but not for bios that the driver
/// has kept. It may sleep, and must not be done by who has the disk open in the same task with I/O
/// under way, nor in `submit_bio`. A module whose init has succeeded cannot be unloaded as long as
/// a disk is open.
///
/// # Invariants
///
/// - The pointer is to a disk that was added, and is removed and put by this object only.
/// - `private_data` of the disk is a `T::Data` turned foreign, and does not change.
pub struct BioDisk<T: Operations> {
    disk: NonNull<bindings::gendisk>,
    _data: PhantomData<T::Data>,
}

// SAFETY: A disk may be removed on any thread, and its data is `Send`.
unsafe impl<T: Operations> Send for BioDisk<T> {}
// SAFETY: `&BioDisk` gives access to the name and number only, which do not change.
unsafe impl<T: Operations> Sync for BioDisk<T> {}

impl<T: Operations> BioDisk<T> {
    const FOPS: bindings::block_device_operations = bindings::block_device_operations {
        submit_bio: Some(Self::submit_bio),
        owner: this_module::<T::OwnerModule>().as_ptr(),
        ..pin_init::zeroed()
    };

    /// # Safety
    ///
    /// `bio` points to a bio that is valid, not completed and in no list, for a disk of this
    /// driver. It is not the caller's any more.
    unsafe extern "C" fn submit_bio(bio: *mut bindings::bio) {
        // SAFETY: The block layer gives a valid bio of one of our disks, whose `private_data` is
        // from `into_foreign` and stays until `del_gendisk` has waited for us to return.
        let data = unsafe { T::Data::borrow((*(*(*bio).bi_bdev).bd_disk).private_data) };
        // SAFETY: The block layer hands the bio over, which is valid and in no list.
        T::submit_bio(data, unsafe { OwnedBio::from_raw(bio) });
    }

    /// Makes a disk and adds it. Its partitions are read, unless it is sparse, so it must be able
    /// to serve bios before this returns.
    ///
    /// The name has at most 31 bytes, and must not be in use. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the name is too long, a block size or the alignment is not possible or the
    /// size is too large, and others of adding a disk.
    pub fn new(name: fmt::Arguments<'_>, options: &Options, data: T::Data) -> Result<Self> {
        GenDiskBuilder::validate_block_size(options.logical_block_size)?;
        if options.nr_sectors > i64::MAX as u64 >> SECTOR_SHIFT
            || !options.dma_alignment.is_power_of_two()
            || options.dma_alignment as usize > PAGE_SIZE
        {
            return Err(EINVAL);
        }
        let mut limits = bindings::queue_limits {
            logical_block_size: options.logical_block_size,
            physical_block_size: options.physical_block_size,
            // As a mask, of which 0 would be the default.
            dma_alignment: options.dma_alignment.max(2) - 1,
            ..pin_init::zeroed()
        };
        // SAFETY: The limits are valid, and the lock class is static.
        let disk = from_err_ptr(unsafe {
            bindings::__blk_alloc_disk(
                &mut limits,
                bindings::NUMA_NO_NODE,
                static_lock_class!().as_ptr(),
            )
        })?;
        let mut disk = ScopeGuard::new_with_data(disk, |disk| {
            // SAFETY: The disk was allocated above and is not added.
            unsafe { bindings::put_disk(disk) };
        });

        // SAFETY: The disk is valid and not added yet, so we have it to ourselves.
        let raw = unsafe { &mut **disk };
        NullTerminatedFormatter::new(&mut raw.disk_name)
            .ok_or(EINVAL)?
            .write_fmt(name)?;
        raw.fops = &const { Self::FOPS };
        if options.sparse {
            raw.flags |= bindings::GENHD_FL_NO_PART as i32;
        }
        raw.private_data = data.into_foreign();
        let data = ScopeGuard::new_with_data(raw.private_data, |data| {
            // SAFETY: This is from `into_foreign` above, and the disk is not in use.
            drop(unsafe { T::Data::from_foreign(data) });
        });

        // SAFETY: The disk is valid and not added yet.
        unsafe {
            bindings::set_capacity(*disk, options.nr_sectors);
            bindings::set_disk_ro(*disk, options.read_only);
        }
        // SAFETY: The disk is complete: operations, data, name and size. They stay until it is
        // removed; if it is not added no bio is in `submit_bio` when this returns.
        to_result(unsafe {
            bindings::device_add_disk(core::ptr::null_mut(), *disk, core::ptr::null_mut())
        })?;

        if options.sparse {
            // Only now, since adding the disk sets it.
            // SAFETY: The disk is valid, and has its `bdi` until it is put. Users can set this at
            // any time, too, and who reads it does so once.
            unsafe { (*(**disk).bdi).ra_pages = 0 };
        }
        data.dismiss();
        // INVARIANT: The disk was added, and its data is what `into_foreign` gave.
        Ok(Self {
            disk: NonNull::new(disk.dismiss()).ok_or(EINVAL)?,
            _data: PhantomData,
        })
    }

    /// The device number.
    pub fn dev(&self) -> DevT {
        // SAFETY: By the type invariant the disk is valid, and so is its `part0`.
        unsafe { BlockDevice::from_raw((*self.disk.as_ptr()).part0) }.dev()
    }

    /// The name, as in `/dev`.
    pub fn name(&self) -> &CStr {
        // SAFETY: The name is terminated and does not change while the disk is there.
        unsafe { CStr::from_char_ptr((*self.disk.as_ptr()).disk_name.as_ptr()) }
    }
}

impl<T: Operations> Drop for BioDisk<T> {
    fn drop(&mut self) {
        let disk = self.disk.as_ptr();
        // SAFETY: By the type invariant the disk was added, and is removed only here.
        unsafe { bindings::del_gendisk(disk) };
        // SAFETY: The disk is valid until it is put.
        let data = unsafe { (*disk).private_data };
        // SAFETY: The reference is that of the allocation. Openers have theirs.
        unsafe { bindings::put_disk(disk) };
        // SAFETY: By the type invariant this is a `T::Data` turned foreign. `del_gendisk` has
        // waited until no bio was in `submit_bio`, and lets none in any more.
        drop(unsafe { T::Data::from_foreign(data) });
    }
}
