/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * Ioctls of block device filters, for every opened block device.
 *
 * All of them need CAP_SYS_ADMIN in the initial user namespace; the mode in
 * which the device was opened does not matter.
 */
#ifndef _UAPI_LINUX_BLK_FILTER_H
#define _UAPI_LINUX_BLK_FILTER_H

#include <linux/types.h>
#include <linux/ioctl.h>

/* Length of a filter's name in bytes, with the terminating NUL. */
#define BLKFILTER_NAME_LENGTH	32

/**
 * struct blkfilter_attach - argument of BLKFILTER_ATTACH
 * @name: the filter, terminated by NUL
 * @opt: user address of options that the filter defines, or 0
 * @optlen: length of the options in bytes
 */
struct blkfilter_attach {
	__u8 name[BLKFILTER_NAME_LENGTH];
	__u64 opt;
	__u32 optlen;
};

/**
 * struct blkfilter_detach - argument of BLKFILTER_DETACH
 * @name: the filter, terminated by NUL
 */
struct blkfilter_detach {
	__u8 name[BLKFILTER_NAME_LENGTH];
};

/**
 * struct blkfilter_ctl - argument of BLKFILTER_CTL
 * @name: the filter, terminated by NUL
 * @cmd: a command that the filter defines
 * @optlen: length in bytes of what @opt points to
 * @opt: user address of the command's argument
 */
struct blkfilter_ctl {
	__u8 name[BLKFILTER_NAME_LENGTH];
	__u32 cmd;
	__u32 optlen;
	__u64 opt;
};

/*
 * Number 142 also stands in BLKTRACESETUP2 and BLKREPORTZONEV2. The size of
 * the argument is a part of the command, so the three values differ.
 */
#define BLKFILTER_ATTACH	_IOWR(0x12, 142, struct blkfilter_attach)
#define BLKFILTER_DETACH	_IOWR(0x12, 143, struct blkfilter_detach)
#define BLKFILTER_CTL		_IOWR(0x12, 144, struct blkfilter_ctl)

#endif /* _UAPI_LINUX_BLK_FILTER_H */
