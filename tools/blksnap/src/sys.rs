// SPDX-License-Identifier: GPL-2.0-only

//! The system calls; all `unsafe` of the crate is here.
//!
//! Every function but the last four is one ioctl, takes what it needs by reference
//! and returns the kernel's errno untouched. None of them keeps a pointer.

use std::ffi::c_uint;
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::ioctl;
use rustix::ioctl::Opcode;

use crate::abi;
use crate::abi::Command;

type Result<T> = std::result::Result<T, Errno>;

/// Runs the ioctl `OPCODE` with `arg`, which the kernel may read and write.
///
/// # Safety
///
/// `T` is the argument type of `OPCODE`, and every address stored in `arg` is
/// valid for what the ioctl does with it until the call returns.
unsafe fn update<const OPCODE: Opcode, T>(fd: BorrowedFd<'_>, arg: &mut T) -> Result<()> {
    // SAFETY: the caller names the right type; the reference is exclusive and
    // covers the size encoded in the opcode.
    let call = unsafe { ioctl::Updater::<'_, OPCODE, T>::new(arg) };
    // SAFETY: as above, and the caller answers for addresses inside `arg`.
    unsafe { ioctl::ioctl(fd, call) }
}

/// Hands `cmd` with its argument to the filter "blksnap" of a block device.
///
/// # Safety
///
/// `T` is the argument type of `cmd`, and every address stored in `arg` is
/// valid for what the command does with it until the call returns.
unsafe fn control<T>(fd: BorrowedFd<'_>, cmd: Command, arg: &mut T) -> Result<()> {
    let mut ctl = abi::FilterCtl {
        name: abi::padded_name(abi::FILTER_NAME),
        cmd: cmd as u32,
        optlen: size_of::<T>() as u32,
        opt: (&raw mut *arg).expose_provenance() as u64,
    };
    // SAFETY: the type is that of BLKFILTER_CTL; `opt` points to `optlen`
    // bytes borrowed exclusively; the caller answers for what is in them.
    unsafe { update::<{ abi::BLKFILTER_CTL }, _>(fd, &mut ctl) }
}

pub(crate) fn attach(fd: BorrowedFd<'_>) -> Result<()> {
    let mut arg = abi::FilterAttach {
        name: abi::padded_name(abi::FILTER_NAME),
        opt: 0,
        optlen: 0,
        pad: 0,
    };
    // SAFETY: the type is that of BLKFILTER_ATTACH, without options.
    unsafe { update::<{ abi::BLKFILTER_ATTACH }, _>(fd, &mut arg) }
}

pub(crate) fn detach(fd: BorrowedFd<'_>) -> Result<()> {
    let mut arg = abi::FilterDetach {
        name: abi::padded_name(abi::FILTER_NAME),
    };
    // SAFETY: the type is that of BLKFILTER_DETACH, without addresses.
    unsafe { update::<{ abi::BLKFILTER_DETACH }, _>(fd, &mut arg) }
}

pub(crate) fn cbt_info(fd: BorrowedFd<'_>) -> Result<abi::CbtInfo> {
    let mut arg = abi::CbtInfo::default();
    // SAFETY: the type is that of the command, without addresses.
    unsafe { control(fd, Command::CbtInfo, &mut arg)? };
    Ok(arg)
}

/// Fills `map` from the byte `offset` of the frozen map on.
pub(crate) fn cbt_map(fd: BorrowedFd<'_>, offset: u32, map: &mut [u8]) -> Result<()> {
    let mut arg = abi::CbtMap {
        offset,
        length: u32::try_from(map.len()).map_err(|_| Errno::OVERFLOW)?,
        buffer: map.as_mut_ptr().expose_provenance() as u64,
    };
    // SAFETY: the type is that of the command; the kernel writes at most
    // `length` bytes to `map`, which is borrowed exclusively.
    unsafe { control(fd, Command::CbtMap, &mut arg) }
}

/// Fills `ids` with those of all takes of the generation; the argument that is
/// returned has their number.
pub(crate) fn cbt_takes(fd: BorrowedFd<'_>, ids: &mut [abi::Id]) -> Result<abi::CbtTakes> {
    let mut arg = abi::CbtTakes {
        count: u32::try_from(ids.len()).map_err(|_| Errno::OVERFLOW)?,
        size: size_of::<abi::Id>() as u32,
        takes: ids.as_mut_ptr().expose_provenance() as u64,
        ..abi::CbtTakes::default()
    };
    // SAFETY: the type is that of the command; the kernel writes at most
    // `count` ids to `ids`, which is borrowed exclusively.
    unsafe { control(fd, Command::CbtTakes, &mut arg)? };
    Ok(arg)
}

pub(crate) fn cbt_dirty(fd: BorrowedFd<'_>, ranges: &[abi::SectorRange]) -> Result<()> {
    let mut arg = abi::CbtDirty {
        count: u32::try_from(ranges.len()).map_err(|_| Errno::OVERFLOW)?,
        pad: 0,
        dirty_sectors: ranges.as_ptr().expose_provenance() as u64,
    };
    // SAFETY: the type is that of the command; the kernel only reads `count`
    // ranges from `ranges`.
    unsafe { control(fd, Command::CbtDirty, &mut arg) }
}

pub(crate) fn select(fd: BorrowedFd<'_>, take_id: abi::Id) -> Result<()> {
    let mut arg = abi::Select { take_id, flags: 0 };
    // SAFETY: the type is that of the command, without addresses.
    unsafe { control(fd, Command::Select, &mut arg) }
}

pub(crate) fn snapshot_add(fd: BorrowedFd<'_>, mut id: abi::Id) -> Result<()> {
    // SAFETY: the type is that of the command, without addresses.
    unsafe { control(fd, Command::SnapshotAdd, &mut id) }
}

pub(crate) fn snapshot_info(fd: BorrowedFd<'_>) -> Result<abi::SnapshotInfo> {
    let mut arg = abi::SnapshotInfo::default();
    // SAFETY: the type is that of the command, without addresses.
    unsafe { control(fd, Command::SnapshotInfo, &mut arg)? };
    Ok(arg)
}

pub(crate) fn version(fd: BorrowedFd<'_>) -> Result<abi::Version> {
    let mut arg = abi::Version::default();
    // SAFETY: the type is that of VERSION, without addresses.
    unsafe { update::<{ abi::VERSION }, _>(fd, &mut arg)? };
    Ok(arg)
}

pub(crate) fn snapshot_create(
    fd: BorrowedFd<'_>,
    store: &CStr,
    limit_sectors: u64,
) -> Result<abi::Id> {
    let mut arg = abi::SnapshotCreate {
        diff_storage_limit_sect: limit_sectors,
        diff_storage_filename: store.as_ptr().expose_provenance() as u64,
        id: abi::Id::default(),
    };
    // SAFETY: the type is that of SNAPSHOT_CREATE; the kernel only reads the
    // path, up to its NUL.
    unsafe { update::<{ abi::SNAPSHOT_CREATE }, _>(fd, &mut arg)? };
    Ok(arg.id)
}

pub(crate) fn snapshot_destroy(fd: BorrowedFd<'_>, mut id: abi::Id) -> Result<()> {
    // SAFETY: the type is that of SNAPSHOT_DESTROY, without addresses.
    unsafe { update::<{ abi::SNAPSHOT_DESTROY }, _>(fd, &mut id) }
}

pub(crate) fn snapshot_take(fd: BorrowedFd<'_>, mut id: abi::Id) -> Result<()> {
    // SAFETY: the type is that of SNAPSHOT_TAKE, without addresses.
    unsafe { update::<{ abi::SNAPSHOT_TAKE }, _>(fd, &mut id) }
}

/// Fills `ids`; the count is that of all snapshots, also with -ENODATA for
/// too small a slice. An empty slice asks for the count only.
pub(crate) fn snapshot_collect(fd: BorrowedFd<'_>, ids: &mut [abi::Id]) -> (Result<()>, u32) {
    let mut arg = abi::SnapshotCollect {
        count: u32::try_from(ids.len()).unwrap_or(u32::MAX),
        pad: 0,
        ids: if ids.is_empty() {
            0
        } else {
            ids.as_mut_ptr().expose_provenance() as u64
        },
    };
    // SAFETY: the type is that of SNAPSHOT_COLLECT; the kernel writes at most
    // `count` entries to `ids`, which is borrowed exclusively.
    let result = unsafe { update::<{ abi::SNAPSHOT_COLLECT }, _>(fd, &mut arg) };
    (result, arg.count)
}

pub(crate) fn snapshot_wait_event(
    fd: BorrowedFd<'_>,
    id: abi::Id,
    timeout_ms: u32,
) -> Result<Box<abi::SnapshotEvent>> {
    let mut arg = Box::new(abi::SnapshotEvent {
        id,
        timeout_ms,
        code: 0,
        time_label: 0,
        data: [0; abi::EVENT_DATA_LENGTH],
    });
    // SAFETY: the type is that of SNAPSHOT_WAIT_EVENT, without addresses.
    unsafe { update::<{ abi::SNAPSHOT_WAIT_EVENT }, _>(fd, &mut *arg)? };
    Ok(arg)
}

pub(crate) fn snapshot_create_empty(fd: BorrowedFd<'_>) -> Result<abi::Id> {
    let mut arg = abi::SnapshotCreateEmpty::default();
    // SAFETY: the type is that of SNAPSHOT_CREATE_EMPTY, without addresses.
    unsafe { update::<{ abi::SNAPSHOT_CREATE_EMPTY }, _>(fd, &mut arg)? };
    Ok(arg.id)
}

/// Appends `ranges` of `device`, or all of it if there are none.
pub(crate) fn storage_append(
    fd: BorrowedFd<'_>,
    id: abi::Id,
    device: BorrowedFd<'_>,
    ranges: &[abi::SectorRange],
) -> Result<()> {
    let mut arg = abi::StorageAppend {
        id,
        ranges: ranges.as_ptr().expose_provenance() as u64,
        count: u32::try_from(ranges.len()).map_err(|_| Errno::TOOBIG)?,
        fd: device.as_raw_fd(),
        flags: 0,
    };
    // SAFETY: the type is that of STORAGE_APPEND; the kernel only reads
    // `count` ranges from `ranges`, and the descriptor stays open meanwhile.
    unsafe { update::<{ abi::STORAGE_APPEND }, _>(fd, &mut arg) }
}

pub(crate) fn storage_limit(fd: BorrowedFd<'_>, id: abi::Id, limit_sectors: u64) -> Result<()> {
    let mut arg = abi::StorageLimit {
        id,
        limit_sect: limit_sectors,
    };
    // SAFETY: the type is that of STORAGE_LIMIT, without addresses.
    unsafe { update::<{ abi::STORAGE_LIMIT }, _>(fd, &mut arg) }
}

pub(crate) fn snapshot_freeze(
    fd: BorrowedFd<'_>,
    id: abi::Id,
    device: BorrowedFd<'_>,
) -> Result<()> {
    let mut arg = abi::SnapshotFreeze {
        id,
        fd: device.as_raw_fd(),
        flags: 0,
    };
    // SAFETY: the type is that of SNAPSHOT_FREEZE, without addresses.
    unsafe { update::<{ abi::SNAPSHOT_FREEZE }, _>(fd, &mut arg) }
}

pub(crate) fn storage_low_space(fd: BorrowedFd<'_>, id: abi::Id, sectors: u64) -> Result<()> {
    let mut arg = abi::StorageLowSpace {
        id,
        nr_sect: sectors,
    };
    // SAFETY: the type is that of STORAGE_LOW_SPACE, without addresses.
    unsafe { update::<{ abi::STORAGE_LOW_SPACE }, _>(fd, &mut arg) }
}

pub(crate) fn storage_info(fd: BorrowedFd<'_>, id: abi::Id) -> Result<abi::StorageInfo> {
    let mut arg = abi::StorageInfo {
        id,
        ..abi::StorageInfo::default()
    };
    // SAFETY: the type is that of STORAGE_INFO, without addresses.
    unsafe { update::<{ abi::STORAGE_INFO }, _>(fd, &mut arg)? };
    Ok(arg)
}

pub(crate) fn snapshot_own(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: SNAPSHOT_OWN has no argument.
    let call = unsafe { ioctl::NoArg::<{ abi::SNAPSHOT_OWN }>::new() };
    // SAFETY: as above.
    unsafe { ioctl::ioctl(fd, call) }
}

pub(crate) fn snapshot_watch(fd: BorrowedFd<'_>, mut id: abi::Id) -> Result<()> {
    // SAFETY: the type is that of SNAPSHOT_WATCH, without addresses.
    unsafe { update::<{ abi::SNAPSHOT_WATCH }, _>(fd, &mut id) }
}

/// Discards a range of a block device, in bytes.
pub(crate) fn discard(fd: BorrowedFd<'_>, offset: u64, length: u64) -> Result<()> {
    // BLKDISCARD, which has no size in its number.
    const DISCARD: Opcode = ioctl::opcode::none(0x12, 119);
    let mut range = [offset, length];
    // SAFETY: the type is that of the ioctl, without addresses.
    unsafe { update::<DISCARD, _>(fd, &mut range) }
}

/// The number of the block device that a loop device is on, as stat() tells it in whatever mount
/// namespace; 0 if it is on a file.
pub(crate) fn loop_backing_device(fd: BorrowedFd<'_>) -> Result<u64> {
    // LOOP_GET_STATUS64, which has no size in its number, and fills a struct loop_info64.
    const GET_STATUS: Opcode = ioctl::opcode::none(b'L', 5);
    /// Numbers of 8 bytes that have the size of the struct.
    const SIZE: usize = 29;
    /// The place of lo_rdevice.
    const DEVICE: usize = 2;
    let mut info = [0u64; SIZE];
    // SAFETY: the array has the size of the struct and no smaller alignment; any bytes are
    // numbers.
    unsafe { update::<GET_STATUS, _>(fd, &mut info)? };
    Ok(info[DEVICE])
}

/// Lets signals reach this thread.
pub(crate) fn unblock(signals: &[i32]) -> io::Result<()> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the set is borrowed exclusively, and written before anything else.
    if unsafe { libc::sigemptyset(set.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for &signal in signals {
        // SAFETY: the set is borrowed exclusively, and was initialised above.
        if unsafe { libc::sigaddset(set.as_mut_ptr(), signal) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: the set is only read, and the old one not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Keeps what is open, but the standard streams, from programs started by this
/// process.
pub(crate) fn close_on_exec() -> io::Result<()> {
    let (first, last, flags) = (3, c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    // Not the function of that name, which older C libraries do not have.
    // SAFETY: without addresses; no descriptor is closed here.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether this process is the leader of its session. That of rustix may not be
/// asked: the leader has no number here if it is outside a container.
pub(crate) fn leads_session() -> bool {
    // SAFETY: without addresses.
    unsafe { libc::getsid(0) == libc::getpid() }
}

/// Whether a file, which is open here once and for writing, is open elsewhere, in whatever
/// mount namespace. False where the kernel does not tell.
pub(crate) fn is_open_elsewhere(fd: BorrowedFd<'_>) -> bool {
    // Remote file systems grant leases by rules of their own.
    const REMOTE: [u32; 3] = [0x6969, 0xff53_4d42, 0xfe53_4d42];
    match rustix::fs::fstatfs(fd) {
        Ok(stat) if !REMOTE.contains(&(stat.f_type as u32)) => (),
        _ => return false,
    }
    // As <asm-generic/fcntl.h> has it, and the libc crate not.
    const F_SETSIG: libc::c_int = 10;
    let fd = fd.as_raw_fd();
    // Somebody who opens it just now makes the kernel send a signal: one that is ignored by
    // default, unlike SIGIO.
    // SAFETY: without addresses.
    if unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGURG) } != 0 {
        return false;
    }
    // A lease for writing is granted to the only one who has the file open.
    // SAFETY: as above.
    if unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_WRLCK) } != 0 {
        return io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock;
    }
    // SAFETY: as above.
    unsafe { libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) };
    false
}
