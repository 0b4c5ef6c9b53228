// SPDX-License-Identifier: GPL-2.0-only

//! Numbers and layouts that the kernel publishes.
//!
//! Tail padding is spelled out as fields: no uninitialised byte ever reaches
//! the kernel, and a 32-bit build has the layout of a 64-bit one. Pointers
//! are `u64` for the same reason.

use rustix::ioctl::opcode;
use rustix::ioctl::Opcode;

/// Bytes of a filter's name, with the terminating NUL.
pub const FILTER_NAME_LENGTH: usize = 32;

/// Bytes of an image's disk name, with the terminating NUL.
pub const IMAGE_NAME_LENGTH: usize = 32;

/// The name under which the driver registers its filter.
pub const FILTER_NAME: &str = "blksnap";

/// The driver's control device.
pub const CONTROL_PATH: &str = "/dev/blksnap-control";

/// Bytes in a sector, the unit of every length in sectors.
pub const SECTOR_SIZE: u64 = 512;

const BLK_GROUP: u8 = 0x12;
const CONTROL_GROUP: u8 = b'V';

/// Attaches a filter to a block device.
pub const BLKFILTER_ATTACH: Opcode = opcode::read_write::<FilterAttach>(BLK_GROUP, 142);
/// Detaches a filter from a block device.
pub const BLKFILTER_DETACH: Opcode = opcode::read_write::<FilterDetach>(BLK_GROUP, 143);
/// Hands a command to the filter of a block device.
pub const BLKFILTER_CTL: Opcode = opcode::read_write::<FilterCtl>(BLK_GROUP, 144);

/// Version of the driver.
pub const VERSION: Opcode = opcode::read::<Version>(CONTROL_GROUP, 0);
/// Creates a snapshot without devices.
pub const SNAPSHOT_CREATE: Opcode = opcode::read_write::<SnapshotCreate>(CONTROL_GROUP, 1);
/// Destroys a snapshot, taken or not.
pub const SNAPSHOT_DESTROY: Opcode = opcode::write::<Id>(CONTROL_GROUP, 2);
/// Takes a snapshot of all devices that were added.
pub const SNAPSHOT_TAKE: Opcode = opcode::write::<Id>(CONTROL_GROUP, 3);
/// Lists the snapshots.
pub const SNAPSHOT_COLLECT: Opcode = opcode::read::<SnapshotCollect>(CONTROL_GROUP, 4);
/// Waits for an event of a snapshot.
pub const SNAPSHOT_WAIT_EVENT: Opcode = opcode::read::<SnapshotEvent>(CONTROL_GROUP, 5);
/// Creates a snapshot without devices and without storage.
pub const SNAPSHOT_CREATE_EMPTY: Opcode =
    opcode::read_write::<SnapshotCreateEmpty>(CONTROL_GROUP, 32);
/// Appends ranges of a block device to the storage of a snapshot.
pub const STORAGE_APPEND: Opcode = opcode::write::<StorageAppend>(CONTROL_GROUP, 33);
/// Changes the limit of the storage that a snapshot was created with.
pub const STORAGE_LIMIT: Opcode = opcode::write::<StorageLimit>(CONTROL_GROUP, 34);
/// Sets when [`EVENT_LOW_SPACE`] comes.
pub const STORAGE_LOW_SPACE: Opcode = opcode::write::<StorageLowSpace>(CONTROL_GROUP, 35);
/// Tells how full the storage of a snapshot is.
pub const STORAGE_INFO: Opcode = opcode::read_write::<StorageInfo>(CONTROL_GROUP, 36);
/// Makes poll() on the control device tell of the events of a snapshot.
pub const SNAPSHOT_WATCH: Opcode = opcode::write::<Id>(CONTROL_GROUP, 37);
/// Makes snapshots that are created through this file from then on end when it is closed.
pub const SNAPSHOT_OWN: Opcode = opcode::none(CONTROL_GROUP, 38);
pub const SNAPSHOT_FREEZE: Opcode = opcode::write::<SnapshotFreeze>(CONTROL_GROUP, 39);

/// Commands of the filter "blksnap" within [`BLKFILTER_CTL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Command {
    /// State of the change tracking, see [`CbtInfo`].
    CbtInfo = 0,
    /// Reads the map frozen by the newest take, see [`CbtMap`].
    CbtMap = 1,
    /// Marks ranges as changed, see [`CbtDirty`].
    CbtDirty = 2,
    /// Adds the device to a snapshot, see [`Id`].
    SnapshotAdd = 3,
    /// State of the device's snapshot, see [`SnapshotInfo`].
    SnapshotInfo = 4,
    /// Ids of the takes that the map knows, see [`CbtTakes`].
    CbtTakes = 32,
    /// Has only what changed since an earlier snapshot in the next one, see [`Select`].
    Select = 33,
}

/// The event code of a snapshot that turned corrupted.
pub const EVENT_CORRUPTED: u32 = 0;
/// The event code of a difference storage without space.
pub const EVENT_NO_SPACE: u32 = 1;
/// The event code of a difference storage with little space left.
pub const EVENT_LOW_SPACE: u32 = 32;
/// The event code of sectors that could not be saved.
pub const EVENT_LOST: u32 = 33;
pub const EVENT_SLOW_STORAGE: u32 = 34;

/// Bytes of an event's data.
pub const EVENT_DATA_LENGTH: usize = 4064;

/// A snapshot's or a generation's identifier as the kernel stores it.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Id {
    pub bytes: [u8; 16],
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct FilterAttach {
    pub name: [u8; FILTER_NAME_LENGTH],
    pub opt: u64,
    pub optlen: u32,
    pub pad: u32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct FilterDetach {
    pub name: [u8; FILTER_NAME_LENGTH],
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct FilterCtl {
    pub name: [u8; FILTER_NAME_LENGTH],
    pub cmd: u32,
    pub optlen: u32,
    pub opt: u64,
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct CbtInfo {
    /// Bytes of the device.
    pub device_capacity: u64,
    /// Bytes of a tracking block.
    pub block_size: u32,
    pub block_count: u32,
    pub generation_id: Id,
    pub changes_number: u8,
    pub pad: [u8; 7],
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct CbtMap {
    /// Bytes, so blocks, from the start of the map.
    pub offset: u32,
    pub length: u32,
    pub buffer: u64,
}

/// The largest number of a take.
pub const MAX_TAKES: usize = 254;

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct CbtTakes {
    /// In: ids there is room for. Out: number of the newest take.
    pub count: u32,
    /// Bytes of an id.
    pub size: u32,
    /// Address of an array of [`Id`]: of take 1 first, zeroes of one that failed.
    pub takes: u64,
    pub generation_id: Id,
    pub flags: u64,
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Select {
    pub take_id: Id,
    pub flags: u64,
}

/// A range of sectors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SectorRange {
    pub offset: u64,
    pub count: u64,
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct CbtDirty {
    pub count: u32,
    pub pad: u32,
    /// Address of an array of [`SectorRange`].
    pub dirty_sectors: u64,
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct SnapshotInfo {
    /// 0, or a negative errno if the snapshot is corrupted.
    pub error_code: i32,
    /// Disk name of the image, empty before the take.
    pub image: [u8; IMAGE_NAME_LENGTH],
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Version {
    pub major: u16,
    pub minor: u16,
    pub revision: u16,
    pub build: u16,
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct SnapshotCreate {
    pub diff_storage_limit_sect: u64,
    /// Address of a path terminated by NUL.
    pub diff_storage_filename: u64,
    pub id: Id,
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct SnapshotCollect {
    /// In: identifiers there is room for. Out: identifiers there are.
    pub count: u32,
    pub pad: u32,
    /// Address of an array of [`Id`], or 0 to ask for the count only.
    pub ids: u64,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct SnapshotEvent {
    pub id: Id,
    pub timeout_ms: u32,
    pub code: u32,
    /// When it happened, in nanoseconds of CLOCK_MONOTONIC.
    pub time_label: i64,
    pub data: [u8; EVENT_DATA_LENGTH],
}

/// Start of the data of [`EVENT_CORRUPTED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct EventCorrupted {
    pub major: u32,
    pub minor: u32,
    pub err_code: i32,
}

/// Start of the data of [`EVENT_NO_SPACE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct EventNoSpace {
    pub requested_nr_sect: u64,
}

/// Start of the data of [`EVENT_LOST`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct EventLost {
    pub major: u32,
    pub minor: u32,
    pub sector: u64,
    pub nr_sect: u64,
    pub err_code: i32,
    pub reserved: u32,
}

/// Start of the data of [`EVENT_SLOW_STORAGE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct EventSlowStorage {
    pub major: u32,
    pub minor: u32,
    pub held_ms: u32,
    pub limit_ms: u32,
}

/// Start of the data of [`EVENT_LOW_SPACE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct EventLowSpace {
    pub left_nr_sect: u64,
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct SnapshotCreateEmpty {
    pub id: Id,
    pub flags: u64,
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct StorageAppend {
    pub id: Id,
    /// Address of an array of [`SectorRange`].
    pub ranges: u64,
    /// 0 for all of the device.
    pub count: u32,
    pub fd: i32,
    pub flags: u64,
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct StorageLimit {
    pub id: Id,
    pub limit_sect: u64,
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct StorageLowSpace {
    pub id: Id,
    pub nr_sect: u64,
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct StorageInfo {
    pub id: Id,
    pub total_nr_sect: u64,
    pub used_nr_sect: u64,
    pub low_space_nr_sect: u64,
    pub lost_nr_sect: u64,
    pub held_ms: u64,
    pub reserved: u64,
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct SnapshotFreeze {
    pub id: Id,
    pub fd: i32,
    pub flags: u32,
}

/// `name` as the kernel takes it: padded with NULs, the last byte a NUL.
pub const fn padded_name(name: &str) -> [u8; FILTER_NAME_LENGTH] {
    let bytes = name.as_bytes();
    assert!(bytes.len() < FILTER_NAME_LENGTH);
    let mut padded = [0; FILTER_NAME_LENGTH];
    let mut i = 0;
    while i < bytes.len() {
        padded[i] = bytes[i];
        i += 1;
    }
    padded
}

// A wrong size would show as ENOTTY at run time; here it does not compile.
const _: () = {
    assert!(size_of::<FilterAttach>() == 48);
    assert!(size_of::<FilterDetach>() == 32);
    assert!(size_of::<FilterCtl>() == 48);
    assert!(size_of::<CbtInfo>() == 40);
    assert!(size_of::<CbtMap>() == 16);
    assert!(size_of::<CbtDirty>() == 16);
    assert!(size_of::<CbtTakes>() == 40);
    assert!(size_of::<Select>() == 24);
    assert!(size_of::<SectorRange>() == 16);
    assert!(size_of::<Id>() == 16);
    assert!(size_of::<SnapshotInfo>() == 36);
    assert!(size_of::<Version>() == 8);
    assert!(size_of::<SnapshotCreate>() == 32);
    assert!(size_of::<SnapshotCollect>() == 16);
    assert!(size_of::<SnapshotEvent>() == 4096);
    assert!(size_of::<SnapshotCreateEmpty>() == 24);
    assert!(size_of::<StorageAppend>() == 40);
    assert!(size_of::<StorageLimit>() == 24);
    assert!(size_of::<StorageLowSpace>() == 24);
    assert!(size_of::<StorageInfo>() == 64);
    assert!(size_of::<SnapshotFreeze>() == 24);
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    // The direction bits differ on the architectures not listed.
    #[cfg(any(
        target_arch = "x86_64",
        target_arch = "x86",
        target_arch = "aarch64",
        target_arch = "arm",
        target_arch = "riscv64",
        target_arch = "s390x"
    ))]
    #[test]
    fn numbers_are_the_published_ones() {
        assert_eq!(BLKFILTER_ATTACH, 0xc030_128e);
        assert_eq!(BLKFILTER_DETACH, 0xc020_128f);
        assert_eq!(BLKFILTER_CTL, 0xc030_1290);
        assert_eq!(VERSION, 0x8008_5600);
        assert_eq!(SNAPSHOT_CREATE, 0xc020_5601);
        assert_eq!(SNAPSHOT_DESTROY, 0x4010_5602);
        assert_eq!(SNAPSHOT_TAKE, 0x4010_5603);
        assert_eq!(SNAPSHOT_COLLECT, 0x8010_5604);
        assert_eq!(SNAPSHOT_WAIT_EVENT, 0x9000_5605);
        assert_eq!(SNAPSHOT_CREATE_EMPTY, 0xc018_5620);
        assert_eq!(STORAGE_APPEND, 0x4028_5621);
        assert_eq!(STORAGE_LIMIT, 0x4018_5622);
        assert_eq!(STORAGE_LOW_SPACE, 0x4018_5623);
        assert_eq!(STORAGE_INFO, 0xc040_5624);
        assert_eq!(SNAPSHOT_WATCH, 0x4010_5625);
        assert_eq!(SNAPSHOT_OWN, 0x5626);
        assert_eq!(SNAPSHOT_FREEZE, 0x4018_5627);
    }

    #[test]
    fn commands_are_the_published_ones() {
        assert_eq!(Command::CbtInfo as u32, 0);
        assert_eq!(Command::CbtMap as u32, 1);
        assert_eq!(Command::CbtDirty as u32, 2);
        assert_eq!(Command::SnapshotAdd as u32, 3);
        assert_eq!(Command::SnapshotInfo as u32, 4);
        assert_eq!(Command::CbtTakes as u32, 32);
        assert_eq!(Command::Select as u32, 33);
    }

    #[test]
    fn fields_lie_where_the_kernel_has_them() {
        assert_eq!(offset_of!(FilterAttach, opt), 32);
        assert_eq!(offset_of!(FilterAttach, optlen), 40);
        assert_eq!(offset_of!(FilterCtl, cmd), 32);
        assert_eq!(offset_of!(FilterCtl, optlen), 36);
        assert_eq!(offset_of!(FilterCtl, opt), 40);
        assert_eq!(offset_of!(CbtInfo, block_size), 8);
        assert_eq!(offset_of!(CbtInfo, block_count), 12);
        assert_eq!(offset_of!(CbtInfo, generation_id), 16);
        assert_eq!(offset_of!(CbtInfo, changes_number), 32);
        assert_eq!(offset_of!(CbtMap, length), 4);
        assert_eq!(offset_of!(CbtMap, buffer), 8);
        assert_eq!(offset_of!(CbtTakes, size), 4);
        assert_eq!(offset_of!(CbtTakes, takes), 8);
        assert_eq!(offset_of!(CbtTakes, generation_id), 16);
        assert_eq!(offset_of!(CbtTakes, flags), 32);
        assert_eq!(offset_of!(Select, flags), 16);
        assert_eq!(offset_of!(CbtDirty, dirty_sectors), 8);
        assert_eq!(offset_of!(SnapshotInfo, image), 4);
        assert_eq!(offset_of!(SnapshotCreate, diff_storage_filename), 8);
        assert_eq!(offset_of!(SnapshotCreate, id), 16);
        assert_eq!(offset_of!(SnapshotCollect, ids), 8);
        assert_eq!(offset_of!(SnapshotEvent, timeout_ms), 16);
        assert_eq!(offset_of!(SnapshotEvent, code), 20);
        assert_eq!(offset_of!(SnapshotEvent, time_label), 24);
        assert_eq!(offset_of!(SnapshotEvent, data), 32);
        assert_eq!(offset_of!(EventCorrupted, err_code), 8);
        assert_eq!(offset_of!(EventLost, sector), 8);
        assert_eq!(offset_of!(EventLost, nr_sect), 16);
        assert_eq!(offset_of!(EventLost, err_code), 24);
        assert_eq!(offset_of!(EventSlowStorage, held_ms), 8);
        assert_eq!(offset_of!(EventSlowStorage, limit_ms), 12);
        assert_eq!(offset_of!(SnapshotCreateEmpty, flags), 16);
        assert_eq!(offset_of!(StorageAppend, ranges), 16);
        assert_eq!(offset_of!(StorageAppend, count), 24);
        assert_eq!(offset_of!(StorageAppend, fd), 28);
        assert_eq!(offset_of!(StorageAppend, flags), 32);
        assert_eq!(offset_of!(StorageLimit, limit_sect), 16);
        assert_eq!(offset_of!(SnapshotFreeze, fd), 16);
        assert_eq!(offset_of!(SnapshotFreeze, flags), 20);
        assert_eq!(offset_of!(StorageLowSpace, nr_sect), 16);
        assert_eq!(offset_of!(StorageInfo, total_nr_sect), 16);
        assert_eq!(offset_of!(StorageInfo, used_nr_sect), 24);
        assert_eq!(offset_of!(StorageInfo, lost_nr_sect), 40);
        assert_eq!(offset_of!(StorageInfo, held_ms), 48);
        assert_eq!(offset_of!(StorageInfo, low_space_nr_sect), 32);
        assert_eq!(offset_of!(StorageInfo, reserved), 56);
    }

    #[test]
    fn filter_name_is_padded() {
        let name = padded_name(FILTER_NAME);
        assert_eq!(&name[..8], b"blksnap\0");
        assert!(name[8..].iter().all(|&byte| byte == 0));
    }
}
