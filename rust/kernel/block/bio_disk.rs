// SPDX-License-Identifier: GPL-2.0-only

//! Disks whose driver takes bios, not requests.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::{
    bio::OwnedBio,
    mq::gen_disk::GenDiskBuilder, //
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
    type Data: ForeignOwnable + Send + Sync;

    /// A bio for the disk, which was checked to lie inside.
    ///
    /// May sleep for memory, but not for I/O: what the driver submits here may only start when
    /// this returns. Bios that are larger than the limits of a disk below are split there.
    fn submit_bio(data: <Self::Data as ForeignOwnable>::Borrowed<'_>, bio: OwnedBio);
}

/// The properties of a [`BioDisk`].
pub struct Options {
    /// The size in sectors of 512 bytes.
    pub nr_sectors: u64,
    /// The smallest unit in bytes that the disk can address: a power of two from 512 on, at most
    /// the size of a page.
    pub logical_block_size: u32,
    /// The smallest unit in bytes that the disk can write without reading.
    pub physical_block_size: u32,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// A bio-based disk that user space can see. Dropping it removes it; who has it open gets errors.
///
/// # Invariants
///
/// - The pointer is to a disk that was added, and is removed and put by this object only.
/// - `private_data` of the disk is a `T::Data` turned foreign.
pub struct BioDisk<T: Operations> {
    disk: NonNull<bindings::gendisk>,
    _data: PhantomData<T::Data>,
}

// SAFETY: A disk may be removed on any thread, and its data is `Send`.
unsafe impl<T: Operations> Send for BioDisk<T> {}
// SAFETY: `&BioDisk` gives access to the name only, which does not change.
unsafe impl<T: Operations> Sync for BioDisk<T> {}

impl<T: Operations> BioDisk<T> {
    const FOPS: bindings::block_device_operations = bindings::block_device_operations {
        submit_bio: Some(Self::submit_bio),
        owner: this_module::<T::OwnerModule>().as_ptr(),
        ..pin_init::zeroed()
    };

    unsafe extern "C" fn submit_bio(bio: *mut bindings::bio) {
        // SAFETY: The block layer gives a valid bio of one of our disks, whose `private_data` is
        // set and stays until no bio is in here.
        let data = unsafe { T::Data::borrow((*(*(*bio).bi_bdev).bd_disk).private_data) };
        // SAFETY: The block layer hands the bio over.
        T::submit_bio(data, unsafe { OwnedBio::from_raw(bio) });
    }

    /// Makes a disk and adds it. Its partitions are read, so it must be able to serve bios.
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the name is too long or a block size is not possible, [`EEXIST`] if the name
    /// is in use, and others of adding a disk.
    pub fn new(name: fmt::Arguments<'_>, options: &Options, data: T::Data) -> Result<Self> {
        GenDiskBuilder::validate_block_size(options.logical_block_size)?;
        let mut limits = bindings::queue_limits {
            logical_block_size: options.logical_block_size,
            physical_block_size: options.physical_block_size,
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

        // SAFETY: The disk is not added yet, so we have it to ourselves.
        let raw = unsafe { &mut **disk };
        NullTerminatedFormatter::new(&mut raw.disk_name)
            .ok_or(EINVAL)?
            .write_fmt(name)?;
        raw.fops = &const { Self::FOPS };
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
        // SAFETY: The disk is complete: operations, data, name and size.
        to_result(unsafe {
            bindings::device_add_disk(core::ptr::null_mut(), *disk, core::ptr::null_mut())
        })?;

        data.dismiss();
        // INVARIANT: The disk was added, and its data is what `into_foreign` gave.
        Ok(Self {
            disk: NonNull::new(disk.dismiss()).ok_or(EINVAL)?,
            _data: PhantomData,
        })
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
