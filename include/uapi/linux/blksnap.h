/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * Snapshots of block devices. See Documentation/block/blksnap.rst.
 *
 * The numbers and layouts are those of the blksnap module that was available
 * out of tree, so that its clients keep working. Extensions use numbers from
 * 32 on.
 */
#ifndef _UAPI_LINUX_BLKSNAP_H
#define _UAPI_LINUX_BLKSNAP_H

#include <linux/types.h>
#include <linux/ioctl.h>

#define BLKSNAP_CTL		"blksnap-control"
#define BLKSNAP_FILTER_NAME	"blksnap"
#define BLKSNAP_IMAGE_NAME_LEN	32

struct blksnap_uuid {
	__u8 b[16];
};

/*
 * Commands of the filter, for BLKFILTER_CTL.
 */
enum blksnap_filter_cmd {
	/* Read struct blksnap_cbtinfo. */
	BLKSNAP_FILTER_CBTINFO		= 0,
	/* Read from the change map with struct blksnap_cbtmap. */
	BLKSNAP_FILTER_CBTMAP		= 1,
	/* Mark blocks as changed with struct blksnap_cbtdirty. */
	BLKSNAP_FILTER_CBTDIRTY		= 2,
	/* Add the device to the snapshot in struct blksnap_snapshotadd. */
	BLKSNAP_FILTER_SNAPSHOTADD	= 3,
	/* Read struct blksnap_snapshotinfo. */
	BLKSNAP_FILTER_SNAPSHOTINFO	= 4,
	/* Read the ids of the snapshots in the change map: struct blksnap_cbttakes. */
	BLKSNAP_FILTER_CBTTAKES		= 32,
	/* Keep only what has changed since a snapshot: struct blksnap_select. */
	BLKSNAP_FILTER_SELECT		= 33,
};

/**
 * struct blksnap_cbtinfo - the change tracking of a device
 * @device_capacity: size of the device in bytes
 * @block_size: size in bytes of a block that is tracked
 * @block_count: number of such blocks, which is the length of the change map
 * @generation_id: changes whenever older change maps have lost their meaning
 * @changes_number: number of the newest snapshot in this generation, from 1 on;
 *	0 if there was none
 */
struct blksnap_cbtinfo {
	__u64 device_capacity;
	__u32 block_size;
	__u32 block_count;
	struct blksnap_uuid generation_id;
	__u8 changes_number;
};

/**
 * struct blksnap_cbtmap - a part of the change map
 * @offset: first byte to read
 * @length: number of bytes
 * @buffer: user address they are written to
 *
 * The map has a byte a block, as it was when the newest snapshot was taken. The
 * block has changed since the snapshot numbered K was taken if and only if its
 * byte is greater than K.
 */
struct blksnap_cbtmap {
	__u32 offset;
	__u32 length;
	__u64 buffer;
};

/**
 * struct blksnap_cbttakes - the snapshots that the change map knows
 * @count: number of elements that @takes has room for; returns the number of the
 *	newest snapshot in this generation, at most 254
 * @size: bytes of an element, at least 16; what it is longer than struct
 *	blksnap_uuid is filled with zeroes
 * @takes: user address of an array of struct blksnap_uuid, or 0 to learn @count
 * @generation_id: returns the generation
 * @flags: 0
 *
 * Element K - 1 is the random id of the snapshot numbered K, made when it was
 * taken. It is all zeroes if that take failed after the number was used.
 *
 * A number proves nothing: in a virtual machine that was put back to an earlier
 * state, disk and memory, the same numbers come again for other snapshots. So a
 * backup can build on an earlier one only if the id of that one's snapshot is
 * here, and reads what has changed since the number where it is.
 *
 * All that is returned is of one moment. The structure may grow: a caller's that
 * is longer has zeroes at the end.
 */
struct blksnap_cbttakes {
	__u32 count;
	__u32 size;
	__u64 takes;
	struct blksnap_uuid generation_id;
	__u64 flags;
};

/**
 * struct blksnap_sectors - a range of sectors of 512 bytes
 * @offset: first sector
 * @count: number of sectors
 */
struct blksnap_sectors {
	__u64 offset;
	__u64 count;
};

/**
 * struct blksnap_cbtdirty - ranges to be marked as changed
 * @count: number of ranges
 * @dirty_sectors: user address of an array of struct blksnap_sectors
 */
struct blksnap_cbtdirty {
	__u32 count;
	__u64 dirty_sectors;
};

/**
 * struct blksnap_snapshotadd - the snapshot that a device is added to
 * @id: its id
 */
struct blksnap_snapshotadd {
	struct blksnap_uuid id;
};

/**
 * struct blksnap_select - what is kept of a device in the snapshot it is in
 * @take_id: the id of an earlier snapshot, of struct blksnap_cbttakes
 * @flags: 0
 *
 * For a device that was added to a snapshot, before that is taken. Only blocks that
 * have changed since the earlier snapshot can be read from the image, and nothing is
 * copied for writes to others. Reads that touch another block fail with ENODATA, which
 * the page cache makes EIO of, whether it was written to or not. Which blocks these
 * are is what the change map says when the snapshot is taken. If the map does not have
 * the id any more then, the image has everything. Otherwise it has no partitions, and
 * nothing is read ahead.
 *
 * The structure may grow: a caller's that is longer has zeroes at the end.
 */
struct blksnap_select {
	struct blksnap_uuid take_id;
	__u64 flags;
};

/**
 * struct blksnap_snapshotinfo - the snapshot of a device
 * @error_code: 0, or a negative error number if the snapshot is broken:
 *	-ENOSPC means that the difference storage was full, -ESTALE that the
 *	device has got another content
 * @image: name of the image's disk, as in /dev; empty before the snapshot is
 *	taken
 */
struct blksnap_snapshotinfo {
	__s32 error_code;
	__u8 image[BLKSNAP_IMAGE_NAME_LEN];
};

/*
 * Ioctls of /dev/blksnap-control.
 */
#define BLKSNAP 'V'

/**
 * struct blksnap_version - version of the interface
 * @major: changes when it becomes incompatible
 * @minor: changes when something is added
 * @revision: 0
 * @build: 0
 */
struct blksnap_version {
	__u16 major;
	__u16 minor;
	__u16 revision;
	__u16 build;
};

/**
 * struct blksnap_snapshot_create - a new snapshot
 * @diff_storage_limit_sect: how many sectors the difference storage may use; 0
 *	for all of a block device
 * @diff_storage_filename: user address of the path of a regular file, of a
 *	directory, in which a file without a name is made, or of a block device
 * @id: returns the snapshot's id
 */
struct blksnap_snapshot_create {
	__u64 diff_storage_limit_sect;
	__u64 diff_storage_filename;
	struct blksnap_uuid id;
};

/**
 * struct blksnap_snapshot_collect - the ids of all snapshots
 * @count: number of ids that fit in; returns the number of snapshots
 * @ids: user address of an array of struct blksnap_uuid, or 0
 */
struct blksnap_snapshot_collect {
	__u32 count;
	__u64 ids;
};

enum blksnap_event_codes {
	/* The snapshot is broken: struct blksnap_event_corrupted. */
	BLKSNAP_EVENT_CODE_CORRUPTED	= 0,
	/* No space is left: struct blksnap_event_no_space. */
	BLKSNAP_EVENT_CODE_NO_SPACE	= 1,
	/* Little space is left: struct blksnap_event_low_space. */
	BLKSNAP_EVENT_CODE_LOW_SPACE	= 32,
	/* Sectors could not be saved: struct blksnap_event_lost. */
	BLKSNAP_EVENT_CODE_LOST		= 33,
	/* Writers are held for the storage: struct blksnap_event_slow_storage. */
	BLKSNAP_EVENT_CODE_SLOW_STORAGE	= 34,
};

/**
 * struct blksnap_snapshot_event - an event of a snapshot
 * @id: the snapshot
 * @timeout_ms: how many milliseconds to wait for one
 * @code: returns what has happened, of enum blksnap_event_codes
 * @time_label: returns the time in nanoseconds of CLOCK_MONOTONIC
 * @data: returns the event's data, which depends on @code
 */
struct blksnap_snapshot_event {
	struct blksnap_uuid id;
	__u32 timeout_ms;
	__u32 code;
	__s64 time_label;
	__u8 data[4096 - 32];
};

/**
 * struct blksnap_event_corrupted - data of BLKSNAP_EVENT_CODE_CORRUPTED
 * @dev_id_mj: major number of the device
 * @dev_id_mn: minor number of the device
 * @err_code: a negative error number
 */
struct blksnap_event_corrupted {
	__u32 dev_id_mj;
	__u32 dev_id_mn;
	__s32 err_code;
};

/**
 * struct blksnap_event_no_space - data of BLKSNAP_EVENT_CODE_NO_SPACE
 * @requested_nr_sect: number of sectors that were not to be had
 */
struct blksnap_event_no_space {
	__u64 requested_nr_sect;
};

/**
 * struct blksnap_event_low_space - data of BLKSNAP_EVENT_CODE_LOW_SPACE
 * @left_nr_sect: number of sectors that were left
 */
struct blksnap_event_low_space {
	__u64 left_nr_sect;
};

/**
 * struct blksnap_event_lost - data of BLKSNAP_EVENT_CODE_LOST
 * @dev_id_mj: major number of the device
 * @dev_id_mn: minor number of the device
 * @sector: the first sector that could not be read when it was to be saved
 * @nr_sect: number of sectors. Reads of them from the image fail; the rest of the
 *	image is intact.
 * @err_code: a negative error number
 * @reserved: 0
 */
struct blksnap_event_lost {
	__u32 dev_id_mj;
	__u32 dev_id_mn;
	__u64 sector;
	__u64 nr_sect;
	__s32 err_code;
	__u32 reserved;
};

/**
 * struct blksnap_event_slow_storage - data of BLKSNAP_EVENT_CODE_SLOW_STORAGE
 * @dev_id_mj: major number of the device
 * @dev_id_mn: minor number of the device
 * @held_ms: milliseconds of the last minute for which writers to the device have
 *	waited for the difference storage
 * @limit_ms: the snapshot is given up when @held_ms reaches this
 */
struct blksnap_event_slow_storage {
	__u32 dev_id_mj;
	__u32 dev_id_mn;
	__u32 held_ms;
	__u32 limit_ms;
};

/**
 * struct blksnap_snapshot_create_empty - a new snapshot without storage
 * @id: returns the snapshot's id
 * @flags: 0
 */
struct blksnap_snapshot_create_empty {
	struct blksnap_uuid id;
	__u64 flags;
};

/**
 * struct blksnap_storage_append - more storage for a snapshot
 * @id: the snapshot, taken or not
 * @ranges: user address of an array of struct blksnap_sectors: what of the
 *	device may be overwritten, in the order in which it is used
 * @count: number of ranges, from 1 to 65536; 0 for all of the device
 * @fd: the block device, open for writing; it may be closed afterwards
 * @flags: 0
 */
struct blksnap_storage_append {
	struct blksnap_uuid id;
	__u64 ranges;
	__u32 count;
	__s32 fd;
	__u64 flags;
};

/**
 * struct blksnap_storage_limit - a new limit of the storage that a snapshot was
 *	created with
 * @id: the snapshot, taken or not
 * @limit_sect: how many sectors it may use; 0 for all of a block device
 */
struct blksnap_storage_limit {
	struct blksnap_uuid id;
	__u64 limit_sect;
};

/**
 * struct blksnap_storage_low_space - when to tell that little space is left
 * @id: the snapshot, taken or not
 * @nr_sect: BLKSNAP_EVENT_CODE_LOW_SPACE comes when fewer sectors are left; 0
 *	for never, which is the default
 */
struct blksnap_storage_low_space {
	struct blksnap_uuid id;
	__u64 nr_sect;
};

/**
 * struct blksnap_storage_info - the storage of a snapshot, all of it together, and
 *	the totals of its events
 * @id: the snapshot
 * @total_nr_sect: returns how many sectors may be used
 * @used_nr_sect: returns how many are used
 * @low_space_nr_sect: returns what struct blksnap_storage_low_space has set
 * @lost_nr_sect: returns the number of sectors that could not be saved; reads of them
 *	from the images fail
 * @held_ms: returns the milliseconds for which writers to the devices have waited for
 *	the storage since the take; the first 250 ms of each wait do not count
 * @reserved: returns 0
 */
struct blksnap_storage_info {
	struct blksnap_uuid id;
	__u64 total_nr_sect;
	__u64 used_nr_sect;
	__u64 low_space_nr_sect;
	__u64 lost_nr_sect;
	__u64 held_ms;
	__u64 reserved;
};

/**
 * struct blksnap_snapshot_freeze - a device to freeze while a snapshot is taken
 * @id: the snapshot, not taken yet
 * @fd: a block device, open in any way; it may be closed afterwards
 * @flags: 0
 *
 * The file system on the device is frozen while the snapshot is taken, like
 * those on the devices of the snapshot and their partitions. This is for devices
 * that are stacked on these, such as logical volumes and loop devices. What is
 * not mounted is only written back.
 */
struct blksnap_snapshot_freeze {
	struct blksnap_uuid id;
	__s32 fd;
	__u32 flags;
};

#define IOCTL_BLKSNAP_VERSION			\
	_IOR(BLKSNAP, 0, struct blksnap_version)
#define IOCTL_BLKSNAP_SNAPSHOT_CREATE		\
	_IOWR(BLKSNAP, 1, struct blksnap_snapshot_create)
#define IOCTL_BLKSNAP_SNAPSHOT_DESTROY		\
	_IOW(BLKSNAP, 2, struct blksnap_uuid)
#define IOCTL_BLKSNAP_SNAPSHOT_TAKE		\
	_IOW(BLKSNAP, 3, struct blksnap_uuid)
#define IOCTL_BLKSNAP_SNAPSHOT_COLLECT		\
	_IOR(BLKSNAP, 4, struct blksnap_snapshot_collect)
#define IOCTL_BLKSNAP_SNAPSHOT_WAIT_EVENT	\
	_IOR(BLKSNAP, 5, struct blksnap_snapshot_event)
#define IOCTL_BLKSNAP_SNAPSHOT_CREATE_EMPTY	\
	_IOWR(BLKSNAP, 32, struct blksnap_snapshot_create_empty)
#define IOCTL_BLKSNAP_STORAGE_APPEND		\
	_IOW(BLKSNAP, 33, struct blksnap_storage_append)
#define IOCTL_BLKSNAP_STORAGE_LIMIT		\
	_IOW(BLKSNAP, 34, struct blksnap_storage_limit)
#define IOCTL_BLKSNAP_STORAGE_LOW_SPACE		\
	_IOW(BLKSNAP, 35, struct blksnap_storage_low_space)
#define IOCTL_BLKSNAP_STORAGE_INFO		\
	_IOWR(BLKSNAP, 36, struct blksnap_storage_info)
/* poll(2) tells of the events of that snapshot from then on. */
#define IOCTL_BLKSNAP_SNAPSHOT_WATCH		\
	_IOW(BLKSNAP, 37, struct blksnap_uuid)
/*
 * Snapshots that are created through this file from then on are destroyed when it
 * is closed: when no process has a descriptor of it any more, however they ended.
 */
#define IOCTL_BLKSNAP_SNAPSHOT_OWN		\
	_IO(BLKSNAP, 38)
#define IOCTL_BLKSNAP_SNAPSHOT_FREEZE		\
	_IOW(BLKSNAP, 39, struct blksnap_snapshot_freeze)

#endif /* _UAPI_LINUX_BLKSNAP_H */
