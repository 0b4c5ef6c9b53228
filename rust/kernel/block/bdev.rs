// SPDX-License-Identifier: GPL-2.0-only

//! Block devices: `struct block_device`, a whole disk or a partition.
//!
//! A driver borrows a [`BlockDevice`] from who gives it one, or opens it and keeps a [`BdevFile`].
//!
//! # Examples
//!
//! ```
//! use kernel::block::{
//!     bdev::{BdevFile, BlockDevice},
//!     SECTOR_SHIFT,
//! };
//!
//! fn describe(bdev: &BlockDevice) {
//!     pr_info!("{}: {} bytes\n", bdev.dev(), bdev.nr_sectors() << SECTOR_SHIFT);
//! }
//!
//! /// Describes a device and, if it is a whole disk, its partitions. May sleep.
//! fn describe_all(bdev: &BlockDevice) -> Result {
//!     describe(bdev);
//!     let mut number = 0;
//!     while let Some(next) = bdev.next_partition(number) {
//!         number = next;
//!         let partition: BdevFile = bdev.partition(number)?;
//!         describe(&partition);
//!     }
//!     Ok(())
//! }
//! ```
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
    fs::{
        file::flags::O_PATH,
        LocalFile, //
    },
    prelude::*,
    sync::Arc,
    types::Opaque, //
};
use core::{
    ops::Deref,
    ptr::NonNull, //
};

#[cfg(CONFIG_BLK_FILTER)]
mod quiesce;

#[cfg(CONFIG_BLK_FILTER)]
pub use self::quiesce::Quiesce;

/// Sectors of 512 bytes, counted from the start of a device.
///
/// Where one is given to a driver it is not empty, and its end is at most [`u64::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectorRange {
    /// The first sector.
    pub start: u64,
    /// The number of sectors.
    pub len: u64,
}

impl SectorRange {
    /// The sectors that are in `outer` too, counted from the start of that, if there are any.
    fn within(self, outer: SectorRange) -> Option<SectorRange> {
        let start = self.start.max(outer.start);
        let end = self
            .start
            .saturating_add(self.len)
            .min(outer.start.saturating_add(outer.len));
        (start < end).then(|| SectorRange {
            start: start - outer.start,
            len: end - start,
        })
    }
}

/// A device number. It is written as `major:minor`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DevT(bindings::dev_t);

impl DevT {
    /// The number as C has it, for example in tracepoints.
    #[inline]
    pub fn as_raw(self) -> bindings::dev_t {
        self.0
    }

    /// The major number, below 4096.
    pub fn major(self) -> u32 {
        self.0 >> bindings::MINORBITS
    }

    /// The minor number, below 2<sup>20</sup>.
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
/// Wraps the kernel's C `struct block_device`. Its methods may be called in any context, unless
/// they say otherwise.
///
/// # Invariants
///
/// The block device is initialised and part of a `struct gendisk`. It is open or belongs to its
/// driver, and stays as long as the reference lives.
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
    #[inline]
    pub(crate) unsafe fn from_raw<'a>(ptr: *mut bindings::block_device) -> &'a Self {
        // INVARIANT: As the caller promises.
        // SAFETY: `BlockDevice` is transparent, and the caller promises the rest.
        unsafe { &*ptr.cast() }
    }

    /// The device that `file` is, if it is one.
    pub fn of_file(file: &LocalFile) -> Option<&Self> {
        // SAFETY: The file is open, and so its inode is valid.
        let mode = u32::from(unsafe { (*bindings::file_inode(file.as_ptr())).i_mode });
        // With O_PATH only the name is open.
        if file.flags() & O_PATH != 0 || mode & bindings::S_IFMT != bindings::S_IFBLK {
            return None;
        }
        // SAFETY: It is an opened block device, which stays as long as the file.
        Some(unsafe { Self::from_raw(bindings::file_bdev(file.as_ptr())) })
    }

    #[inline]
    pub(crate) fn as_raw(&self) -> *mut bindings::block_device {
        self.0.get()
    }

    #[inline]
    fn disk(&self) -> *mut bindings::gendisk {
        // SAFETY: `bd_disk` is set before the device can be found and never changes.
        unsafe { (*self.as_raw()).bd_disk }
    }

    /// The device number.
    #[inline]
    pub fn dev(&self) -> DevT {
        // SAFETY: `bd_dev` is set before the device can be found and never changes.
        DevT(unsafe { (*self.as_raw()).bd_dev })
    }

    /// Writes what file systems on the device have not written yet, or if there are none what the
    /// page cache has of the device, and waits for that. May sleep for long.
    pub fn sync(&self) {
        // SAFETY: The device is valid by the type invariant.
        unsafe { bindings::bdev_sync(self.as_raw()) }
    }

    /// The size in sectors of 512 bytes. It may change at any time.
    #[inline]
    pub fn nr_sectors(&self) -> u64 {
        // SAFETY: The device is valid by the type invariant.
        unsafe { bindings::bdev_nr_sectors(self.as_raw()) }
    }

    /// The sectors of this device that `bio` touches, if any, counted from the start of this
    /// device. The bio is for the device's disk and has been remapped from a partition, as filters
    /// see it.
    pub fn range_of(&self, bio: &Bio) -> Option<SectorRange> {
        let range = SectorRange {
            start: bio.sector(),
            len: bio.sectors(),
        };
        range.within(SectorRange {
            // SAFETY: The device is valid by the type invariant. The start of a partition is set
            // before it can be found and never changes.
            start: unsafe { (*self.as_raw()).bd_start_sect },
            len: self.nr_sectors(),
        })
    }

    /// The smallest unit in bytes that the device can address: a power of two from 512 on.
    #[inline]
    pub fn logical_block_size(&self) -> u32 {
        // SAFETY: The device is valid by the type invariant.
        unsafe { bindings::bdev_logical_block_size(self.as_raw()) }
    }

    /// The smallest unit in bytes that the device can write without reading: a power of two, at
    /// least the logical block size.
    #[inline]
    pub fn physical_block_size(&self) -> u32 {
        // SAFETY: The device is valid by the type invariant.
        unsafe { bindings::bdev_physical_block_size(self.as_raw()) }
    }

    /// What the memory of bios for the device must be aligned to, in bytes: a power of two.
    #[inline]
    pub fn dma_alignment(&self) -> u32 {
        // SAFETY: The device is valid by the type invariant.
        unsafe { bindings::bdev_dma_alignment(self.as_raw()) + 1 }
    }

    /// Whether user space cannot write to it. The kernel can, with a warning.
    #[inline]
    pub fn is_read_only(&self) -> bool {
        // SAFETY: The device is valid by the type invariant.
        unsafe { bindings::bdev_read_only(self.as_raw()) }
    }

    /// Returns whether the disk is rotational: an I/O elsewhere takes much longer than the one
    /// behind the last one.
    #[inline]
    pub fn is_rotational(&self) -> bool {
        // SAFETY: The device is valid by the type invariant.
        unsafe { bindings::bdev_rot(self.as_raw()) }
    }

    /// Whether this and `other` are the same disk, or partitions of it.
    #[inline]
    pub fn has_disk_of(&self, other: &Self) -> bool {
        self.disk() == other.disk()
    }

    /// Whether this is a partition, not a whole disk.
    #[inline]
    pub fn is_partition(&self) -> bool {
        // SAFETY: The device is valid by the type invariant.
        unsafe { bindings::bdev_is_partition(self.as_raw()) }
    }

    /// Whether this and `other` have sectors of the disk in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        let range = |bdev: &Self| {
            // SAFETY: The device is valid by the type invariant. The start never changes.
            let start = unsafe { (*bdev.as_raw()).bd_start_sect };
            (start, start + bdev.nr_sectors())
        };
        let ((start, end), (other_start, other_end)) = (range(self), range(other));
        self.has_disk_of(other) && start < other_end && other_start < end
    }

    /// The disk's sequence number: a disk gets a larger one than all others have when it is made,
    /// and when it gets another content.
    #[inline]
    pub fn disk_seq(&self) -> u64 {
        // SAFETY: The device is valid by the type invariant, and so is its disk. Others may change
        // the number meanwhile, so it is read once.
        unsafe { (&raw const (*self.disk()).diskseq).read_volatile() }
    }

    /// Opens partition `number` of the disk that this device is on for reading. Number 0 is the
    /// whole disk.
    ///
    /// May sleep. Takes the disk's `open_mutex`.
    ///
    /// # Errors
    ///
    /// [`ENXIO`] if there is none, or what opening it gives.
    pub fn partition(&self, number: u8) -> Result<BdevFile> {
        // SAFETY: The disk is valid as long as its block devices are.
        let dev = unsafe { bindings::part_devt(self.disk(), number) };
        let file = BdevFile::open(DevT(dev))?;
        // The partition may be gone, and its number another disk's.
        if file.disk() != self.disk() {
            return Err(ENXIO);
        }
        Ok(file)
    }

    /// The number of the first partition after number `previous` of the disk that this device is
    /// on. Partitions may come and go at any time.
    pub fn next_partition(&self, previous: u8) -> Option<u8> {
        let mut index = c_ulong::from(previous);
        // SAFETY: The table is that of a valid disk and has a lock of its own; only the index is
        // used of what is found.
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

/// A block device opened for reading. It is closed when this is dropped, which may be in any
/// context; what has to sleep for that is left to the kernel.
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
    /// May sleep. Takes the disk's `open_mutex`.
    ///
    /// # Errors
    ///
    /// [`ENXIO`] if there is no such device, or what its driver says.
    pub fn open(dev: DevT) -> Result<Self> {
        // SAFETY: No holder and no holder operations are given, which needs none to be valid.
        let file = from_err_ptr(unsafe {
            bindings::bdev_file_open_by_dev(
                dev.as_raw(),
                bindings::BLK_OPEN_READ,
                core::ptr::null_mut(),
                core::ptr::null(),
            )
        })?;
        // INVARIANT: The reference is that of opening.
        // SAFETY: It is not an error, and `bdev_file_open_by_dev` does not return null.
        Ok(Self(unsafe { NonNull::new_unchecked(file) }))
    }
}

impl Deref for BdevFile {
    type Target = BlockDevice;

    #[inline]
    fn deref(&self) -> &BlockDevice {
        // SAFETY: By the type invariant the file is an opened block device, which stays until it
        // is closed.
        unsafe { BlockDevice::from_raw(bindings::file_bdev(self.0.as_ptr())) }
    }
}

impl Drop for BdevFile {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours, and it is not used after this.
        unsafe { bindings::fput(self.0.as_ptr()) };
    }
}

/// A device whose file system is frozen. Dropping it lets the file system go on; that may sleep.
///
/// # Invariants
///
/// If `is_frozen`, the device's file system was frozen for this object, once, and not thawed for
/// it.
pub struct FrozenFs {
    device: Arc<BdevFile>,
    is_frozen: bool,
}

impl FrozenFs {
    /// Freezes the file system on the device, if there is one: its data are written and it stays
    /// consistent on the media until the guard is dropped. Who writes to it waits until then. If
    /// there is none, what the page cache has of the device is written.
    ///
    /// A whole disk does not freeze the file systems of its partitions; see
    /// [`BlockDevice::partition`]. May sleep for long, while data are written. It may be frozen
    /// several times, and goes on when all guards are dropped.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if something on the device forbids it, or what the file system says.
    pub fn new(device: Arc<BdevFile>) -> Result<Self> {
        // SAFETY: The device is valid and open.
        to_result(unsafe { bindings::bdev_freeze(device.as_raw()) })?;
        // INVARIANT: It was frozen just now.
        Ok(FrozenFs {
            device,
            is_frozen: true,
        })
    }

    /// Lets the file system go on, as dropping does. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if it was not frozen any more: somebody else has thawed it, as the ioctl `FITHAW`
    /// does, and it might have been written to since. That cannot be told where it was frozen again
    /// meanwhile, or where somebody else has it frozen, too. Or what the file system says.
    pub fn thaw(mut self) -> Result {
        self.thaw_once()
    }

    /// Thaws it if it is frozen.
    fn thaw_once(&mut self) -> Result {
        // INVARIANT: It is thawed below, if it ever can be.
        if !core::mem::take(&mut self.is_frozen) {
            return Ok(());
        }
        // SAFETY: By the type invariant it was frozen for us, and this is its one thaw.
        to_result(unsafe { bindings::bdev_thaw(self.device.as_raw()) })
    }
}

impl Drop for FrozenFs {
    fn drop(&mut self) {
        // An error changes nothing for the owner.
        let _ = self.thaw_once();
    }
}

#[cfg(CONFIG_RUST_BLOCK_KUNIT_TEST)]
#[kunit_tests(rust_block_bdev)]
mod tests {
    use super::*;
    use crate::str::CString;

    fn range(start: u64, len: u64) -> SectorRange {
        SectorRange { start, len }
    }

    #[test]
    fn range_within_another() {
        // A partition from sector 100 to 199.
        let outer = range(100, 100);
        assert_eq!(range(0, 100).within(outer), None);
        assert_eq!(range(200, 1).within(outer), None);
        assert_eq!(range(0, 101).within(outer), Some(range(0, 1)));
        assert_eq!(range(199, 50).within(outer), Some(range(99, 1)));
        assert_eq!(range(120, 10).within(outer), Some(range(20, 10)));
        assert_eq!(range(100, 100).within(outer), Some(range(0, 100)));
        assert_eq!(range(0, 1000).within(outer), Some(range(0, 100)));
    }

    #[test]
    fn empty_ranges_have_nothing_in_common() {
        let outer = range(100, 100);
        assert_eq!(range(150, 0).within(outer), None);
        assert_eq!(range(150, 10).within(range(0, 0)), None);
        assert_eq!(range(0, 0).within(range(0, 0)), None);
    }

    #[test]
    fn ranges_at_the_end_of_the_numbers() {
        let all = range(0, u64::MAX);
        assert_eq!(
            range(u64::MAX - 1, 1).within(all),
            Some(range(u64::MAX - 1, 1))
        );
        assert_eq!(range(u64::MAX, 1).within(all), None);
        // Their ends are beyond what can be counted.
        assert_eq!(
            range(u64::MAX - 1, 5).within(all),
            Some(range(u64::MAX - 1, 1))
        );
        assert_eq!(
            range(10, u64::MAX).within(range(5, u64::MAX)),
            Some(range(5, u64::MAX - 10))
        );
        assert_eq!(
            range(u64::MAX, u64::MAX).within(range(u64::MAX, u64::MAX)),
            None
        );
    }

    #[test]
    fn device_number_has_two_parts() -> Result {
        let dev = DevT((8 << bindings::MINORBITS) | 17);
        assert_eq!((dev.major(), dev.minor()), (8, 17));
        assert_eq!(&*CString::try_from_fmt(fmt!("{dev}"))?, c"8:17");
        let last = DevT(u32::MAX);
        assert_eq!((last.major(), last.minor()), (4095, (1 << 20) - 1));
        assert_eq!(BdevFile::open(last).err(), Some(ENXIO));
        Ok(())
    }
}
