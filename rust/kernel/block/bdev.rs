// SPDX-License-Identifier: GPL-2.0-only

//! Block devices: `struct block_device`, a whole disk or a partition.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use super::bio::Bio;
use crate::{
    bindings,
    error::{
        from_err_ptr,
        to_result,
        Result, //
    },
    ffi::c_ulong,
    fmt,
    prelude::*,
    types::Opaque, //
};
use core::{
    ops::Deref,
    ptr::NonNull, //
};

/// Sectors of 512 bytes, counted from the start of a device. Not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectorRange {
    /// The first sector.
    pub start: u64,
    /// The number of sectors.
    pub len: u64,
}

/// A device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DevT(bindings::dev_t);

impl DevT {
    /// The major number.
    pub fn major(self) -> u32 {
        self.0 >> bindings::MINORBITS
    }

    /// The minor number.
    pub fn minor(self) -> u32 {
        self.0 & ((1 << bindings::MINORBITS) - 1)
    }
}

impl fmt::Display for DevT {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major(), self.minor())
    }
}

/// A block device.
///
/// Wraps the kernel's C `struct block_device`.
///
/// # Invariants
///
/// The block device is initialised and part of a `struct gendisk`.
#[repr(transparent)]
pub struct BlockDevice(Opaque<bindings::block_device>);

// SAFETY: All that `&BlockDevice` allows may be done on any thread at any time.
unsafe impl Send for BlockDevice {}
// SAFETY: As above.
unsafe impl Sync for BlockDevice {}

impl BlockDevice {
    /// # Safety
    ///
    /// `ptr` points to a block device of a disk, which stays during `'a`.
    pub(crate) unsafe fn from_raw<'a>(ptr: *mut bindings::block_device) -> &'a Self {
        // SAFETY: `BlockDevice` is transparent, and the caller promises the rest.
        unsafe { &*ptr.cast() }
    }

    pub(crate) fn as_raw(&self) -> *mut bindings::block_device {
        self.0.get()
    }

    fn disk(&self) -> *mut bindings::gendisk {
        // SAFETY: `bd_disk` is set before the device can be found and never changes.
        unsafe { (*self.as_raw()).bd_disk }
    }

    /// The device number.
    pub fn dev(&self) -> DevT {
        // SAFETY: `bd_dev` is set before the device can be found and never changes.
        DevT(unsafe { (*self.as_raw()).bd_dev })
    }

    /// The size in sectors of 512 bytes. It may change at any time.
    pub fn nr_sectors(&self) -> u64 {
        // SAFETY: The device is valid by the type invariant.
        unsafe { bindings::bdev_nr_sectors(self.as_raw()) }
    }

    /// The sectors of this device that `bio` touches, if any. The bio is for the device's disk and
    /// has been remapped from a partition, as filters see it.
    pub fn range_of(&self, bio: &Bio) -> Option<SectorRange> {
        // SAFETY: The device is valid by the type invariant.
        let first = unsafe { (*self.as_raw()).bd_start_sect };
        let start = bio.sector().max(first);
        let end = (bio.sector() + bio.sectors()).min(first + self.nr_sectors());
        (start < end).then(|| SectorRange {
            start: start - first,
            len: end - start,
        })
    }

    /// The smallest unit in bytes that the device can address.
    pub fn logical_block_size(&self) -> u32 {
        // SAFETY: The device is valid by the type invariant.
        unsafe { bindings::bdev_logical_block_size(self.as_raw()) }
    }

    /// The smallest unit in bytes that the device can write without reading.
    pub fn physical_block_size(&self) -> u32 {
        // SAFETY: The device is valid by the type invariant.
        unsafe { bindings::bdev_physical_block_size(self.as_raw()) }
    }

    /// Whether this is a partition, not a whole disk.
    pub fn is_partition(&self) -> bool {
        // SAFETY: The device is valid by the type invariant.
        unsafe { bindings::bdev_is_partition(self.as_raw()) }
    }

    /// Whether the driver of the disk takes bios, not requests, as those that stack devices do.
    pub fn is_bio_based(&self) -> bool {
        // SAFETY: The queue of a disk is valid as long as the disk.
        unsafe { (*(*self.disk()).queue).mq_ops.is_null() }
    }

    /// Whether both are on the same disk and have sectors in common.
    pub fn overlaps(&self, other: &BlockDevice) -> bool {
        let range = |bdev: &BlockDevice| {
            // SAFETY: The device is valid by the type invariant.
            let start = unsafe { (*bdev.as_raw()).bd_start_sect };
            (start, start + bdev.nr_sectors())
        };
        let (start, end) = range(self);
        let (other_start, other_end) = range(other);
        self.disk() == other.disk() && start < other_end && other_start < end
    }

    /// Opens partition `number` of the disk for reading. Number 0 is the whole disk.
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// [`ENXIO`] if there is none, or what opening it gives.
    ///
    /// [`ENXIO`]: crate::error::code::ENXIO
    pub fn partition(&self, number: u8) -> Result<BdevFile> {
        // SAFETY: The disk is valid as long as its block devices are.
        let dev = unsafe { bindings::part_devt(self.disk(), number) };
        BdevFile::open(DevT(dev))
    }

    /// The numbers of the disk's partitions, in order from the one after `previous`.
    pub fn next_partition(&self, previous: u8) -> Option<u8> {
        let mut index = c_ulong::from(previous);
        // SAFETY: The table is that of a valid disk; only the index is used of what is found.
        let part = unsafe {
            bindings::xa_find_after(
                &raw mut (*self.disk()).part_tbl,
                &mut index,
                c_ulong::MAX,
                bindings::XA_PRESENT,
            )
        };
        if part.is_null() {
            None
        } else {
            index.try_into().ok()
        }
    }
}

/// A block device opened for reading.
///
/// # Invariants
///
/// The pointer is to a file of an opened block device, and this object owns a reference to it.
pub struct BdevFile(NonNull<bindings::file>);

// SAFETY: A file may be used and closed on any thread.
unsafe impl Send for BdevFile {}
// SAFETY: `&BdevFile` gives access to the block device only, which is `Sync`.
unsafe impl Sync for BdevFile {}

impl BdevFile {
    /// Opens the block device with the given number for reading, not exclusively.
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// [`ENXIO`] if there is no such device, or what its driver says.
    ///
    /// [`ENXIO`]: crate::error::code::ENXIO
    pub fn open(dev: DevT) -> Result<Self> {
        // SAFETY: No holder and no holder operations are given, which needs none to be valid.
        let file = from_err_ptr(unsafe {
            bindings::bdev_file_open_by_dev(
                dev.0,
                bindings::BLK_OPEN_READ,
                core::ptr::null_mut(),
                core::ptr::null(),
            )
        })?;
        // INVARIANT: The reference is that of opening.
        // SAFETY: It is not an error, and `bdev_file_open_by_dev` does not return null.
        Ok(Self(unsafe { NonNull::new_unchecked(file) }))
    }

    /// Freezes the file system on the device, if there is one: its data are written and it stays
    /// consistent on the media until the guard is dropped.
    ///
    /// A whole disk does not freeze the file systems of its partitions; see
    /// [`BlockDevice::partition`]. May sleep for long, while data are written.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if something on the device forbids it, or what the file system says.
    pub fn freeze_fs(self) -> Result<FrozenFs> {
        // SAFETY: The device is valid and open.
        to_result(unsafe { bindings::bdev_freeze(self.as_raw()) })?;
        // INVARIANT: It was frozen just now.
        Ok(FrozenFs(self))
    }
}

impl Deref for BdevFile {
    type Target = BlockDevice;

    fn deref(&self) -> &BlockDevice {
        // SAFETY: By the type invariant the file is an opened block device, which stays until it
        // is closed.
        unsafe { BlockDevice::from_raw(bindings::file_bdev(self.0.as_ptr())) }
    }
}

impl Drop for BdevFile {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours.
        unsafe { bindings::fput(self.0.as_ptr()) };
    }
}

/// A device whose file system is frozen. Dropping it lets the file system go on; that may sleep.
///
/// # Invariants
///
/// The device's file system was frozen for this object, once.
pub struct FrozenFs(BdevFile);

impl Drop for FrozenFs {
    fn drop(&mut self) {
        // SAFETY: By the type invariant it was frozen, and this is its thaw. An error means that
        // there is no file system to be thawed any more.
        unsafe { bindings::bdev_thaw(self.0.as_raw()) };
    }
}

/// Runs `f` while no I/O goes on to any of `devices`.
///
/// They are frozen from the last to the first, those with bio-based drivers before the others: so
/// that devices which are stacked on others come before these.
///
/// When `f` runs, every write that has passed the filters of the devices' disks is on the media,
/// and new I/O waits outside. So `f` must not wait for I/O to them, and its allocations are
/// `GFP_NOIO`. May sleep.
///
/// # Errors
///
/// [`EINTR`] if the task was killed while writes were waited for, [`ETIMEDOUT`] if they took too
/// long, [`ENOMEM`]; `f` has not run then.
#[cfg(CONFIG_BLK_FILTER)]
pub fn with_frozen<R>(devices: &[&BlockDevice], f: impl FnOnce() -> R) -> Result<R> {
    let mut frozen = KVec::with_capacity(devices.len(), GFP_KERNEL)?;
    let mut result = Ok(());

    let bio_based = devices.iter().rev().filter(|bdev| bdev.is_bio_based());
    let others = devices.iter().rev().filter(|bdev| !bdev.is_bio_based());
    for bdev in Iterator::chain(bio_based, others) {
        let mut flags = 0;
        // SAFETY: The device is valid by its type invariant.
        result = to_result(unsafe { bindings::blk_filter_freeze(bdev.as_raw(), &mut flags) });
        if result.is_err() {
            break;
        }
        // There is room for all of them, so this cannot fail.
        let _ = frozen.push_within_capacity((*bdev, flags));
    }
    let result = result.map(|()| f());
    while let Some((bdev, flags)) = frozen.pop() {
        // SAFETY: The device was frozen above, by this task, and it is the last that was.
        unsafe { bindings::blk_filter_unfreeze(bdev.as_raw(), flags) };
    }
    result
}
