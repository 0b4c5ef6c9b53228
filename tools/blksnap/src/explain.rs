// SPDX-License-Identifier: GPL-2.0-only

//! What an errno means for each operation, and what to do about it.

use rustix::io::Errno;

use crate::error::Operation;

/// Words for an errno.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Explanation {
    /// Why the kernel refused, or `None` if there is no better text than the
    /// system's own.
    pub reason: Option<&'static str>,
    /// What to do about it.
    pub remedy: Option<&'static str>,
}

const fn because(reason: &'static str, remedy: &'static str) -> Explanation {
    Explanation {
        reason: Some(reason),
        remedy: Some(remedy),
    }
}

const STATUS: &str = "run \"blksnap status\" for the snapshots there are";
const LOAD: &str = "load the driver with \"modprobe blksnap\"";
const ATTACH_FIRST: &str = "attach it first with \"blksnap attach DEV\", or try again";
const UNUSED_DEVICE: &str =
    "name a block device that nothing uses; \"lsblk DEV\" shows where it is mounted and what is \
     on top of it";
pub(crate) const OTHER_STORE: &str =
    "choose a storage path on a disk that no snapshotted device lies on, directly or through \
     a partition, file system, loop device, device-mapper or MD";

/// Explains why `operation` failed with `errno`.
///
/// What holds for one operation only comes first, then what an errno means
/// everywhere.
pub fn explain(operation: Operation, errno: Errno) -> Explanation {
    use Operation::*;

    match (operation, errno) {
        (OpenControl, Errno::NOENT | Errno::NXIO | Errno::NODEV) => {
            because("the blksnap driver is not loaded", LOAD)
        }
        (OpenControl | OpenDevice, Errno::ACCESS | Errno::PERM) => because(
            "permission denied",
            "run the command as root, not in a container that withholds the device",
        ),
        (OpenDevice, Errno::NOENT) => because(
            "there is no such device",
            "check the name; \"lsblk -p\" lists the block devices",
        ),
        // Only storage is opened for writing.
        (OpenDevice, Errno::BUSY) => because(
            "it is in use, and a device that is mounted cannot be opened for writing here",
            UNUSED_DEVICE,
        ),
        (OpenDevice, Errno::ROFS) => because(
            "it is read-only",
            "name a device that can be written to; \"lsblk -o NAME,RO\" shows which can",
        ),
        (OpenDevice, Errno::NXIO | Errno::NODEV) => because(
            "the node exists, but the device behind it is gone",
            "check the name; \"lsblk -p\" lists the block devices",
        ),
        (OpenDevice, Errno::NOMEDIUM) => {
            because("there is no medium in the drive", "insert one and try again")
        }
        (OpenDevice, Errno::MEDIUMTYPE) => because(
            "it cannot be read now, as a DRBD device that is secondary",
            "try again when it can be, such as on the node where it is primary",
        ),
        (OpenDevice | Attach, Errno::NOTBLK) => because(
            "it is not a block device",
            "name a disk, partition or other block device; for a disk image file set up a \
             loop device with losetup",
        ),

        (Attach, Errno::ALREADY) => because(
            "the filter is attached already",
            "nothing is to be done; \"blksnap status\" shows the tracking",
        ),
        (Attach, Errno::BUSY) => because(
            "another filter is attached",
            "its name is in the device's attribute \"filter\" in sysfs; detach that filter with \
             its own tool first",
        ),
        (Attach, Errno::OPNOTSUPP) => because(
            "devices of this kind cannot be filtered: zoned ones, those with direct access (DAX), \
             and bcache, DRBD, NVMe multipath and images of snapshots",
            "snapshot what is stacked on it, as an LVM volume, or what it is made of",
        ),
        (Attach, Errno::NOENT) => because("the blksnap driver is not loaded", LOAD),
        (Detach, Errno::NOENT) => because(
            "the filter is not attached",
            "nothing is to be done; \"blksnap status\" lists the devices that have it",
        ),
        (Detach, Errno::BUSY) => because(
            "the device is in a snapshot",
            "destroy the snapshot first with \"blksnap snap destroy ID\"",
        ),
        (SnapshotAdd | AppendStorage, Errno::TIMEDOUT) => because(
            "writes to the storage, to see where they come to, did not end in 30 seconds",
            "look into the kernel's log with \"dmesg\" for a device that does not answer, or \
             choose another storage",
        ),
        (Take, Errno::AGAIN) => because(
            "a file system that was frozen for the snapshot was thawed by another program, such as \
             fsfreeze -u, before the snapshot was taken",
            "try again when that program does not run",
        ),
        (Take, Errno::TIMEDOUT) => because(
            "writes that were on their way to a device did not end in the module's \
             freeze_timeout, which is 5 seconds by default",
            "try again when less is written, and look into the kernel's log with \"dmesg\" for \
             a device that does not answer",
        ),

        (Select, Errno::STALE) => because(
            "its change tracking does not know a snapshot with that id: the machine was restarted, \
             the filter was detached, or the id is of another device",
            "leave --changed-since out, so that the snapshot has everything",
        ),
        (Select, Errno::BUSY) => because(
            "the snapshot is taken already",
            "say it before \"blksnap snap take\"",
        ),
        (Select, Errno::NOTTY) => because(
            "the driver is too old for that",
            "leave --changed-since out, so that the snapshot has everything",
        ),
        (
            CbtInfo | CbtTakes | CbtMap | CbtDirty | SnapshotAdd | Select | SnapshotInfo,
            Errno::NOENT,
        ) => because(
            "the filter is not attached",
            ATTACH_FIRST,
        ),
        (CbtMap, Errno::NODATA) => because(
            "the range lies past the end of the map",
            "read at most as many bytes as the tracking has blocks",
        ),
        (CbtMap, Errno::AGAIN) => because(
            "a snapshot of the device was taken meanwhile",
            "try again while a snapshot is held",
        ),
        (CbtDirty, Errno::INVAL | Errno::NODATA | Errno::OVERFLOW) => because(
            "a range lies past the end of the device",
            "give ranges in sectors of 512 bytes that lie within the device",
        ),
        (SnapshotInfo, Errno::SRCH | Errno::NODATA) => because(
            "the device is in no snapshot",
            "add it to one with \"blksnap snap add ID DEV\"",
        ),

        (SnapshotAdd, Errno::ALREADY) => because(
            "the device is in that snapshot already",
            "nothing is to be done; name every device once",
        ),
        (SnapshotAdd, Errno::BUSY) => because(
            "the device is in another snapshot, or this one is taken already",
            "\"blksnap status\" shows the snapshots: \"blksnap snap destroy ID\", or the end of the COMMAND \
             that holds it, releases its devices; add devices before \"blksnap snap take\"",
        ),
        (SnapshotAdd | AppendStorage, Errno::OPNOTSUPP) => because(
            "its logical blocks are larger than a page of memory",
            "name a device of which \"blockdev --getss DEV\" shows at most what \"getconf PAGESIZE\" \
             does",
        ),
        (SnapshotAdd | Take | Create | AppendStorage, Errno::DEADLK) => because(
            "the difference storage lies on a device of the snapshot, or on one that is saved \
             there by way of other snapshots",
            OTHER_STORE,
        ),

        (Take, Errno::NODATA) => because(
            "the snapshot has no devices",
            "add some first with \"blksnap snap add ID DEV\"",
        ),
        (Take, Errno::ALREADY) => because(
            "it is taken already",
            "create a new snapshot to get a newer state",
        ),
        (Take, Errno::BUSY) => because(
            "a filesystem on one of the devices cannot be frozen now, as btrfs while one of its \
             devices is removed or replaced",
            "try again when that is done",
        ),
        (Take, Errno::NOSPC) => because(
            "the snapshot has no storage",
            "append some first with \"blksnap snap append ID DEV\"",
        ),
        (Take, Errno::NODEV) => because(
            "a device of the snapshot is gone",
            "destroy the snapshot and create a new one without that device",
        ),

        (Create, Errno::TXTBSY) => because(
            "someone else has the file open",
            "name a directory, or a file that nothing else uses",
        ),
        (Create, Errno::PERM) => because(
            "the file belongs to another user, or the capability CAP_SYS_ADMIN is missing",
            "name a directory or a file of your own, and run the command as root in the initial \
             user namespace",
        ),
        (Create, Errno::NOENT) => because(
            "the path does not exist",
            "name a directory, an existing file or a block device",
        ),
        (Create, Errno::BUSY) => because(
            "the storage is in use, mounted or part of another device",
            "name a directory, a file or a block device that nothing else uses",
        ),
        (Create, Errno::NOSPC | Errno::DQUOT) => because(
            "there is no space for the difference storage",
            "free some space, or name a path on a larger filesystem",
        ),
        (Create, Errno::ROFS) => because(
            "the filesystem is mounted read-only",
            "name a path on a writable filesystem",
        ),
        (Create, Errno::OPNOTSUPP | Errno::NOTBLK | Errno::INVAL | Errno::NODEV) => because(
            "this kind of file cannot hold the difference storage",
            "name a directory or a regular file on a local filesystem such as ext4, xfs, btrfs \
             or tmpfs, or a block device",
        ),

        (AppendStorage, Errno::BUSY) => because(
            "the device is in use, mounted, part of another device or the storage of another \
             snapshot",
            UNUSED_DEVICE,
        ),
        (AppendStorage, Errno::INVAL) => because(
            "a range is empty, not aligned to the blocks of the device, past its end or in the \
             storage of the snapshot already",
            "give each range once, in multiples of 4096 bytes, or of what \"blockdev --getss DEV\" \
             shows if that is more, and within what \"blockdev --getsize64 DEV\" shows",
        ),
        (AppendStorage, Errno::NOTBLK) => because(
            "it is not a block device",
            "name a disk, partition or other block device; for a file set up a loop device with \
             losetup",
        ),
        (AppendStorage, Errno::BADF) => because(
            "it is not open for writing",
            "open the device for reading and writing before it is appended",
        ),
        (AppendStorage, Errno::TOOBIG) => because(
            "there are too many ranges, or storage was appended too often",
            "append larger ranges: 65536 at a time are possible, and 1024 times, of which the \
             storage that the snapshot was created with is one",
        ),
        (SetLimit, Errno::INVAL) => because(
            "the limit is lower than what is used, or the snapshot was created without storage",
            "\"blksnap status\" shows what is used; a snapshot created without storage grows by \
             \"blksnap snap append ID DEV\" only",
        ),
        (
            CreateEmpty | AppendStorage | SetLimit | SetLowSpace | StorageInfo | Watch,
            Errno::NOTTY,
        ) => because(
            "the driver is too old for this",
            "install a newer driver, or do without low-space events, growing and appending",
        ),
        (Own, Errno::NOTTY) => because(
            "the driver is too old for this",
            "install a newer driver; until then \"blksnap snap create\", \"take\" and \"destroy\" work, \
             whose snapshot nothing destroys but \"blksnap snap destroy ID\"",
        ),

        (WaitEvent, Errno::NOENT) => Explanation {
            reason: Some("nothing happened in time"),
            remedy: None,
        },

        // COMMAND is not the kernel's business.
        (Run, Errno::NOENT) => because(
            "there is no such command",
            "check its spelling and the PATH; it follows \"--\"",
        ),
        (Run, Errno::ACCESS) => because("it is not executable", "check its mode"),
        // Nor is where results go to.
        (Run | Print, _) => Explanation::default(),

        (OpenBackup, Errno::NOENT) => because(
            "there is no backup",
            "check the path; \"blksnap backup DEV --to DIR\" makes one",
        ),
        (WriteBackup | Restore, Errno::FBIG) => because(
            "a file must not become as large as that there",
            "name a directory on a filesystem with larger files, which vfat limits to 4 GiB, or \
             raise the limit that \"ulimit -f\" shows",
        ),
        (WriteBackup, Errno::NOSPC | Errno::DQUOT) => because(
            "there is no space left; the restore points there are stay as they were",
            "free some space, or remove old restore points with \"blksnap prune DIR --keep N\"",
        ),
        (OpenBackup | WriteBackup, Errno::ROFS) => because(
            "the filesystem is mounted read-only",
            "look into the kernel's log with \"dmesg\", as an error can be the reason; mount it \
             writable, or name a directory on another one",
        ),
        (ReadBackup, Errno::NOENT) => because(
            "a file of the backup is missing",
            "\"blksnap verify DIR\" names the damaged restore points; the others can be restored",
        ),
        (BackUp | ReadBackup | WriteBackup | Restore | CheckTarget | OpenBackup, Errno::IO) => because(
            "the device or filesystem reported an I/O error",
            "look into the kernel's log with \"dmesg\"",
        ),
        (BackUp | ReadBackup | WriteBackup | OpenBackup | Restore, Errno::MFILE) => because(
            "this process may not open more files",
            "raise the limit, as with \"ulimit -n 1024\" or LimitNOFILE= of a systemd unit",
        ),
        (BackUp | ReadBackup | WriteBackup | OpenBackup | Restore, Errno::NFILE) => because(
            "the machine may not open more files",
            "end what has many of them open, or raise the sysctl fs.file-max",
        ),
        (BackUp | ReadBackup | WriteBackup | OpenBackup | Restore, Errno::NOMEM) => because(
            "the kernel has too little free memory",
            "free some memory and try again",
        ),
        (
            ReadBackup | WriteBackup | OpenBackup,
            Errno::STALE
            | Errno::TIMEDOUT
            | Errno::NOTCONN
            | Errno::CONNRESET
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::NETUNREACH,
        ) => because(
            "the server or disk that it is on cannot be reached now",
            "mount its filesystem again, and try again",
        ),
        (ReadBackup | WriteBackup | OpenBackup, Errno::LOOP | Errno::XDEV) => because(
            "there is a symbolic link where a file or directory of the backup should be, and links \
             are not followed there",
            "put what the link leads to in its place; the directory itself can be named by a link",
        ),
        (WriteBackup, Errno::EXIST) => because(
            "something of that name is in the way",
            "look at it and remove it; \"lsattr\" shows whether it is immutable",
        ),
        (WriteBackup, Errno::PERM) => because(
            "the file is immutable or belongs to another user, or the filesystem forbids it",
            "\"lsattr\" shows whether it is immutable, and \"chattr -i\" ends that",
        ),
        (Restore, Errno::BUSY) => because(
            "it is mounted or in use otherwise",
            "unmount it, or say --in-use if its content may change under what uses it",
        ),
        (Restore, Errno::TXTBSY) => because(
            "it is in use as swap space or as a program that runs",
            "end that use, or name another target",
        ),
        (Restore, Errno::ROFS) => because(
            "it is read-only, or on a filesystem that is mounted read-only",
            "name a target that can be written to; \"lsblk -o NAME,RO\" shows which disks can",
        ),
        (Restore, Errno::EXIST) => because(
            "a file of that name was created meanwhile",
            "look at what it is, and restore again",
        ),
        (Restore, Errno::PIPE) => because(
            "what reads it has ended before the end",
            "look at why it ended, and restore again",
        ),
        (Restore, Errno::NOSPC | Errno::DQUOT) => because(
            "there is no space left",
            "free some space, or name a target on a larger filesystem",
        ),
        (
            OpenBackup | ReadBackup | WriteBackup | Restore | Document,
            Errno::ACCESS | Errno::PERM,
        ) => because(
            "permission denied",
            "run the command as the user who may read and write there, which mostly is root",
        ),
        (Document | Restore | WriteBackup | BackUp, Errno::NOENT) => because(
            "the path does not exist",
            "check its spelling, or make the directory that it is in; \"lsblk -p\" lists the block \
             devices",
        ),
        (OpenBackup | ReadBackup | WriteBackup | BackUp, Errno::NOTDIR) => because(
            "the path, or a part of it, is not a directory",
            "name a directory",
        ),
        (Document | Restore | CheckTarget | WriteBackup | BackUp | OpenBackup | ReadBackup, _) => {
            Explanation::default()
        }

        (_, Errno::PERM) => because(
            "the capability CAP_SYS_ADMIN is missing",
            "run the command as root in the initial user namespace, not in an unprivileged \
             container",
        ),
        (_, Errno::NOTTY) if operation.is_ioctl_of_device() => because(
            "the kernel has no block-device filters",
            "boot a kernel built with CONFIG_BLK_FILTER",
        ),
        // Some block drivers, such as loop, say so instead of ENOTTY.
        (_, Errno::INVAL) if operation.is_ioctl_of_device() => because(
            "the kernel does not know the request",
            "boot a kernel built with CONFIG_BLK_FILTER, and install the driver and the command \
             of one version",
        ),
        (_, Errno::NOTTY) => because(
            "the driver does not know the request",
            "install the driver and the command of one version",
        ),
        (_, Errno::SRCH) => because("there is no such snapshot", STATUS),
        (Destroy, Errno::NODEV) => because("there is no such snapshot", STATUS),
        (_, Errno::NODEV | Errno::NXIO) => because(
            "the device is gone",
            "check with \"lsblk\" whether it was removed or its partition deleted",
        ),
        (_, Errno::NOSPC) => because(
            "the difference storage is full",
            "make the snapshot anew with a larger --limit or more free space",
        ),
        (_, Errno::NOMEM) => because(
            "the kernel has too little free memory",
            "free some memory and try again",
        ),
        (_, Errno::INTR) => because("a signal interrupted it", "try again"),
        (_, Errno::IO) => because(
            "the device or the difference storage reported an I/O error",
            "look into the kernel's log with \"dmesg\"",
        ),
        _ => Explanation::default(),
    }
}

/// Explains why a snapshot with this error is corrupted.
pub fn explain_corruption(errno: Errno) -> Explanation {
    match errno {
        Errno::NOSPC => because(
            "the difference storage overflowed",
            "discard the backup and make it anew with --grow, a larger --limit or more free \
             space at the storage path",
        ),
        Errno::TIMEDOUT => because(
            "the difference storage was too slow, or did not answer, while writers waited",
            "discard the backup and make it anew with a faster storage, on none of the devices \
             directly or through others; the module parameter \"hold_writers\" says how many \
             seconds of each minute writers wait (default 30)",
        ),
        Errno::NODEV => because(
            "the device is gone",
            "discard the backup; check with \"lsblk\" whether the device was removed or its \
             partition deleted",
        ),
        Errno::STALE => because(
            "the device has got another content under the snapshot: another medium, another \
             backing file or offset of a loop device, or another device-mapper table; or it is \
             a path of a multipath device and was written by way of that",
            "discard the backup and make it anew; it will read all of the device",
        ),
        Errno::DQUOT => because(
            "what is known of saved data takes more memory than it may",
            "discard the backup; the module parameter \"map_memory\" is the number of MiB that it \
             may take (default 0, for 1/32 of the memory and not more than 1024)",
        ),
        Errno::NOMEM => because(
            "memory for what is known of saved data was short on the machine, or in the control \
             group that created the snapshot",
            "discard the backup; look into the kernel's log with \"dmesg\"; where the group has a \
             limit, which is MemoryMax= of a systemd unit, raise it",
        ),
        Errno::CANCELED => because(
            "the machine has hibernated, and what was written for that is not known to the snapshot",
            "discard the backup and make another one; it will read all of the device",
        ),
        _ => because(
            "the snapshot is corrupted",
            "discard the backup; look into the kernel's log with \"dmesg\"",
        ),
    }
}

impl Operation {
    const fn is_ioctl_of_device(self) -> bool {
        matches!(
            self,
            Self::Attach
                | Self::Detach
                | Self::CbtInfo
                | Self::CbtTakes
                | Self::CbtMap
                | Self::CbtDirty
                | Self::SnapshotAdd
                | Self::Select
                | Self::SnapshotInfo
        )
    }
}

/// The symbol of an errno, such as "EBUSY".
pub fn errno_name(errno: Errno) -> String {
    let name = match errno {
        Errno::PERM => "EPERM",
        Errno::NOENT => "ENOENT",
        Errno::SRCH => "ESRCH",
        Errno::INTR => "EINTR",
        Errno::IO => "EIO",
        Errno::NXIO => "ENXIO",
        Errno::TOOBIG => "E2BIG",
        Errno::BADF => "EBADF",
        Errno::NOMEM => "ENOMEM",
        Errno::ACCESS => "EACCES",
        Errno::NOTBLK => "ENOTBLK",
        Errno::BUSY => "EBUSY",
        Errno::NODEV => "ENODEV",
        Errno::NOTDIR => "ENOTDIR",
        Errno::ISDIR => "EISDIR",
        Errno::INVAL => "EINVAL",
        Errno::NOTTY => "ENOTTY",
        Errno::TXTBSY => "ETXTBSY",
        Errno::NOSPC => "ENOSPC",
        Errno::FBIG => "EFBIG",
        Errno::AGAIN => "EAGAIN",
        Errno::EXIST => "EEXIST",
        Errno::ROFS => "EROFS",
        Errno::PIPE => "EPIPE",
        Errno::DEADLK => "EDEADLK",
        Errno::NODATA => "ENODATA",
        Errno::OVERFLOW => "EOVERFLOW",
        Errno::OPNOTSUPP => "EOPNOTSUPP",
        Errno::ALREADY => "EALREADY",
        Errno::DQUOT => "EDQUOT",
        Errno::TIMEDOUT => "ETIMEDOUT",
        Errno::STALE => "ESTALE",
        Errno::CANCELED => "ECANCELED",
        Errno::NOMEDIUM => "ENOMEDIUM",
        Errno::MEDIUMTYPE => "EMEDIUMTYPE",
        Errno::NFILE => "ENFILE",
        Errno::MFILE => "EMFILE",
        Errno::XDEV => "EXDEV",
        Errno::LOOP => "ELOOP",
        Errno::NOTCONN => "ENOTCONN",
        Errno::CONNRESET => "ECONNRESET",
        Errno::HOSTDOWN => "EHOSTDOWN",
        Errno::HOSTUNREACH => "EHOSTUNREACH",
        Errno::NETUNREACH => "ENETUNREACH",
        other => return format!("errno {}", other.raw_os_error()),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(operation: Operation, errno: Errno) -> &'static str {
        explain(operation, errno).reason.unwrap_or_default()
    }

    #[test]
    fn published_refusals_have_a_remedy() {
        use Operation::*;
        for (operation, errno) in [
            (Attach, Errno::ALREADY),
            (Attach, Errno::BUSY),
            (Attach, Errno::OPNOTSUPP),
            (Attach, Errno::NOENT),
            (Attach, Errno::PERM),
            (Attach, Errno::NOTTY),
            (Attach, Errno::INVAL),
            (Attach, Errno::NODEV),
            (Detach, Errno::BUSY),
            (Detach, Errno::NOENT),
            (CbtInfo, Errno::NOENT),
            (CbtTakes, Errno::NOENT),
            (CbtMap, Errno::NODATA),
            (CbtMap, Errno::AGAIN),
            (SnapshotAdd, Errno::SRCH),
            (SnapshotAdd, Errno::ALREADY),
            (SnapshotAdd, Errno::BUSY),
            (SnapshotAdd, Errno::OPNOTSUPP),
            (SnapshotAdd, Errno::DEADLK),
            (SnapshotAdd, Errno::TIMEDOUT),
            (Select, Errno::STALE),
            (Select, Errno::NOTTY),
            (Select, Errno::SRCH),
            (Select, Errno::BUSY),
            (SnapshotInfo, Errno::NOSPC),
            (Create, Errno::TXTBSY),
            (Create, Errno::NOSPC),
            (Create, Errno::PERM),
            (Take, Errno::NODATA),
            (Take, Errno::ALREADY),
            (Take, Errno::AGAIN),
            (Take, Errno::TIMEDOUT),
            (Take, Errno::SRCH),
            (Take, Errno::DEADLK),
            (Take, Errno::IO),
            (Destroy, Errno::NODEV),
            (Take, Errno::NOSPC),
            (WaitEvent, Errno::SRCH),
            (WaitEvent, Errno::INTR),
            (CreateEmpty, Errno::NOTTY),
            (AppendStorage, Errno::NOTTY),
            (AppendStorage, Errno::BUSY),
            (AppendStorage, Errno::INVAL),
            (AppendStorage, Errno::NOTBLK),
            (AppendStorage, Errno::BADF),
            (AppendStorage, Errno::OPNOTSUPP),
            (AppendStorage, Errno::DEADLK),
            (AppendStorage, Errno::TOOBIG),
            (AppendStorage, Errno::SRCH),
            (AppendStorage, Errno::NODEV),
            (SetLimit, Errno::NOTTY),
            (SetLimit, Errno::INVAL),
            (SetLimit, Errno::SRCH),
            (SetLowSpace, Errno::NOTTY),
            (SetLowSpace, Errno::SRCH),
            (StorageInfo, Errno::NOTTY),
            (StorageInfo, Errno::SRCH),
            (Watch, Errno::NOTTY),
            (Watch, Errno::SRCH),
            (OpenDevice, Errno::BUSY),
            (OpenDevice, Errno::ROFS),
            (OpenDevice, Errno::NOMEDIUM),
            (OpenDevice, Errno::MEDIUMTYPE),
            (OpenControl, Errno::NOENT),
            (OpenBackup, Errno::NOENT),
            (WriteBackup, Errno::NOSPC),
            (OpenBackup, Errno::ROFS),
            (WriteBackup, Errno::FBIG),
            (Restore, Errno::FBIG),
            (ReadBackup, Errno::NOENT),
            (ReadBackup, Errno::MFILE),
            (OpenBackup, Errno::NFILE),
            (WriteBackup, Errno::NOMEM),
            (ReadBackup, Errno::STALE),
            (ReadBackup, Errno::TIMEDOUT),
            (ReadBackup, Errno::IO),
            (ReadBackup, Errno::ACCESS),
            (ReadBackup, Errno::PERM),
            (ReadBackup, Errno::LOOP),
            (WriteBackup, Errno::EXIST),
            (WriteBackup, Errno::PERM),
            (Restore, Errno::BUSY),
            (Restore, Errno::TXTBSY),
            (Restore, Errno::ROFS),
            (Restore, Errno::EXIST),
            (Restore, Errno::PIPE),
            (OpenDevice, Errno::NOENT),
            (OpenDevice, Errno::NOTBLK),
            (OpenDevice, Errno::ACCESS),
        ] {
            let words = explain(operation, errno);
            assert!(words.reason.is_some(), "{operation:?} {errno:?}");
            assert!(words.remedy.is_some(), "{operation:?} {errno:?}");
        }
    }

    #[test]
    fn one_errno_means_different_things() {
        assert!(reason(Operation::Attach, Errno::BUSY).contains("another filter"));
        assert!(reason(Operation::SnapshotAdd, Errno::BUSY).contains("another snapshot"));
        assert!(reason(Operation::Detach, Errno::BUSY).contains("in a snapshot"));
        assert!(reason(Operation::Attach, Errno::NOENT).contains("not loaded"));
        assert!(reason(Operation::Detach, Errno::NOENT).contains("not attached"));
        assert!(reason(Operation::Destroy, Errno::NODEV).contains("no such snapshot"));
        assert!(reason(Operation::Attach, Errno::NODEV).contains("gone"));
        assert!(reason(Operation::Take, Errno::NOSPC).contains("no storage"));
        assert!(reason(Operation::AppendStorage, Errno::BUSY).contains("in use"));
        assert!(reason(Operation::SetLimit, Errno::INVAL).contains("lower"));
        assert!(reason(Operation::Watch, Errno::NOTTY).contains("too old"));
        assert!(reason(Operation::Collect, Errno::NOTTY).contains("does not know"));
        assert!(reason(Operation::SnapshotAdd, Errno::NOENT).contains("not attached"));
        assert!(reason(Operation::SnapshotAdd, Errno::TIMEDOUT).contains("30 seconds"));
        assert!(reason(Operation::Take, Errno::TIMEDOUT).contains("freeze_timeout"));
        assert_eq!(reason(Operation::Print, Errno::NOSPC), "");
    }

    #[test]
    fn remedies_name_the_command_that_helps() {
        let remedy = |operation, errno| explain(operation, errno).remedy.unwrap();
        assert!(remedy(Operation::OpenControl, Errno::NOENT).contains("modprobe blksnap"));
        assert!(remedy(Operation::Attach, Errno::NOTTY).contains("CONFIG_BLK_FILTER"));
        assert!(remedy(Operation::Own, Errno::NOTTY).contains("blksnap snap create"));
        assert!(remedy(Operation::Attach, Errno::PERM).contains("initial user namespace"));
        assert!(remedy(Operation::Take, Errno::SRCH).contains("blksnap status"));
    }

    #[test]
    fn corruption_has_its_remedy() {
        let words = |errno| {
            let words = explain_corruption(errno);
            (words.reason.unwrap(), words.remedy.unwrap())
        };
        assert!(words(Errno::NOSPC).1.contains("--grow"));
        assert!(words(Errno::TIMEDOUT).1.contains("hold_writers"));
        assert!(words(Errno::NODEV).0.contains("gone"));
        assert!(words(Errno::DQUOT).1.contains("map_memory"));
        assert!(words(Errno::NOMEM).1.contains("MemoryMax"));
        assert!(words(Errno::CANCELED).0.contains("hibernated"));
        assert!(words(Errno::IO).1.contains("dmesg"));
    }

    #[test]
    fn errno_has_its_symbol() {
        assert_eq!(errno_name(Errno::DEADLK), "EDEADLK");
        assert_eq!(errno_name(Errno::XFULL), "errno 54");
    }
}
