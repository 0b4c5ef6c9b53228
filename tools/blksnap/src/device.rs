// SPDX-License-Identifier: GPL-2.0-only

//! A block device and what the filter on it can do.

use std::fmt;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::Serialize;
use serde::Serializer;

use crate::abi;
use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;
use crate::sys;
use crate::Uuid;

/// Major and minor number of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

impl DeviceNumber {
    /// From the number in a node's metadata.
    pub fn from_raw(raw: u64) -> Self {
        Self {
            major: rustix::fs::major(raw),
            minor: rustix::fs::minor(raw),
        }
    }

    /// From "8:16", the form in sysfs and mountinfo.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        })
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl Serialize for DeviceNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Checks that `path` is a block device, without opening it.
pub fn check(path: &Path) -> Result<DeviceNumber> {
    let metadata = std::fs::metadata(path)
        .map_err(|error| Error::from_io(Operation::OpenDevice, &error).on(path))?;
    let kind = metadata.file_type();
    if kind.is_block_device() {
        return Ok(DeviceNumber::from_raw(metadata.rdev()));
    }
    let error = Error::from_errno(Operation::OpenDevice, Errno::NOTBLK).on(path);
    Err(if kind.is_dir() {
        error.remedied_by(format!(
            "name the device that the filesystem lies on; \"findmnt --target {}\" shows it",
            path.display()
        ))
    } else {
        error
    })
}

/// State of a device's change tracking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tracking {
    /// Bytes of the device.
    pub device_capacity: u64,
    /// Bytes that one byte of the map stands for.
    pub block_size: u32,
    /// Bytes of the map.
    pub block_count: u32,
    /// Changes when the numbers start anew: the maps of two generations
    /// cannot be compared.
    pub generation_id: Uuid,
    /// Number of the newest take, 0 before any. In the frozen map a block
    /// changed since take K if and only if its byte is greater than K.
    pub changes_number: u8,
}

/// The takes that a device's change tracking knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Takes {
    pub generation_id: Uuid,
    /// Random ids, made at each take: that of take number 1 first, none of a
    /// take that failed. A number alone does not identify a take, as a virtual
    /// machine that was put back counts on from there.
    pub ids: Vec<Option<Uuid>>,
}

impl Takes {
    /// The number of the take with this id, if it is known.
    pub fn number_of(&self, id: Uuid) -> Option<u8> {
        let index = self.ids.iter().position(|known| *known == Some(id))?;
        u8::try_from(index + 1).ok()
    }

    /// The id of the newest take.
    pub fn newest(&self) -> Option<Uuid> {
        self.ids.last().copied().flatten()
    }

    /// Whether they are those of this state of the tracking.
    pub fn fit(&self, tracking: &Tracking) -> bool {
        self.generation_id == tracking.generation_id
            && self.ids.len() == usize::from(tracking.changes_number)
    }
}

/// State of the snapshot that a device is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotState {
    /// 0, or a negative errno if the snapshot is corrupted.
    pub error_code: i32,
    /// Disk name of the image; none before the take.
    pub image: Option<String>,
}

impl SnapshotState {
    /// Why the snapshot is corrupted, if it is.
    pub fn corruption(&self) -> Option<Errno> {
        match self.error_code {
            0 => None,
            code @ -4095..=-1 => Some(Errno::from_raw_os_error(-code)),
            // No errno, so that the kernel speaks another language than we do.
            _ => Some(Errno::IO),
        }
    }
}

impl From<abi::SnapshotInfo> for SnapshotState {
    fn from(info: abi::SnapshotInfo) -> Self {
        let end = info.image.iter().position(|&byte| byte == 0);
        let name = &info.image[..end.unwrap_or(info.image.len())];
        Self {
            error_code: info.error_code,
            image: (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned()),
        }
    }
}

/// Whether attaching changed anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attachment {
    /// The filter is attached from now on.
    New,
    /// The filter was attached before; its tracking goes on.
    Already,
}

/// An opened block device.
#[derive(Debug)]
pub struct Device {
    file: File,
    path: PathBuf,
}

impl Device {
    /// Opens the block device at `path` read-only, which is all that the
    /// filter's ioctls need.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, OFlags::empty())
    }

    /// The same also of a drive without a medium. That is for asking the filter
    /// and detaching it: an image of nothing is of no use.
    pub fn open_empty(path: &Path) -> Result<Self> {
        Self::open_with(path, OFlags::NONBLOCK)
    }

    fn open_with(path: &Path, flags: OFlags) -> Result<Self> {
        check(path)?;
        let file = File::options()
            .read(true)
            .custom_flags(flags.bits() as i32)
            .open(path)
            .map_err(|error| Error::from_io(Operation::OpenDevice, &error).on(path))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn error(&self, operation: Operation, errno: Errno) -> Error {
        Error::from_errno(operation, errno).on(&self.path)
    }

    /// Attaches the filter, which starts change tracking.
    pub fn attach(&self) -> Result<Attachment> {
        match sys::attach(self.file.as_fd()) {
            Ok(()) => Ok(Attachment::New),
            Err(Errno::ALREADY) => Ok(Attachment::Already),
            Err(errno) => Err(self.error(Operation::Attach, errno)),
        }
    }

    /// Detaches the filter, which ends change tracking and loses its map.
    pub fn detach(&self) -> Result<()> {
        sys::detach(self.file.as_fd()).map_err(|errno| self.error(Operation::Detach, errno))
    }

    pub fn tracking(&self) -> Result<Tracking> {
        let info = sys::cbt_info(self.file.as_fd())
            .map_err(|errno| self.error(Operation::CbtInfo, errno))?;
        Ok(Tracking {
            device_capacity: info.device_capacity,
            block_size: info.block_size,
            block_count: info.block_count,
            generation_id: info.generation_id.into(),
            changes_number: info.changes_number,
        })
    }

    /// The takes that the tracking knows, or `None` if the driver is from before
    /// takes had ids.
    pub fn takes(&self) -> Result<Option<Takes>> {
        let mut ids = [abi::Id::default(); abi::MAX_TAKES];
        let info = match sys::cbt_takes(self.file.as_fd(), &mut ids) {
            Ok(info) => info,
            Err(Errno::NOTTY) => return Ok(None),
            Err(errno) => return Err(self.error(Operation::CbtTakes, errno)),
        };
        let ids = ids.iter().take(info.count as usize);
        Ok(Some(Takes {
            generation_id: info.generation_id.into(),
            ids: ids
                .map(|id| (id.bytes != [0; 16]).then(|| Uuid::from(*id)))
                .collect(),
        }))
    }

    /// Fills `map` with the map frozen by the newest take, from the block
    /// `offset` on.
    pub fn read_map(&self, offset: u32, map: &mut [u8]) -> Result<()> {
        sys::cbt_map(self.file.as_fd(), offset, map)
            .map_err(|errno| self.error(Operation::CbtMap, errno))
    }

    /// Marks ranges as changed before the newest take and after it.
    pub fn mark_changed(&self, ranges: &[abi::SectorRange]) -> Result<()> {
        sys::cbt_dirty(self.file.as_fd(), ranges)
            .map_err(|errno| self.error(Operation::CbtDirty, errno))
    }

    /// Adds the device to a snapshot that is not taken yet.
    pub fn add_to_snapshot(&self, id: Uuid) -> Result<()> {
        sys::snapshot_add(self.file.as_fd(), id.into())
            .map_err(|errno| self.error(Operation::SnapshotAdd, errno).of(id))
    }

    /// Has only those blocks in the image of the snapshot `id`, which the device was added to and
    /// which is not taken yet, that have changed since the take `since`. Writes to others are not
    /// copied. Reads that touch one of these fail with `ENODATA`, or `EIO` by way of the page
    /// cache.
    ///
    /// If the change tracking has begun again when the snapshot is taken, the image has
    /// everything.
    ///
    /// # Errors
    ///
    /// `ESTALE` if the change tracking does not know that take; then all is as before.
    pub fn select_changed_since(&self, id: Uuid, since: Uuid) -> Result<()> {
        sys::select(self.file.as_fd(), since.into())
            .map_err(|errno| self.error(Operation::Select, errno).of(id))
    }

    pub fn snapshot_state(&self) -> Result<SnapshotState> {
        sys::snapshot_info(self.file.as_fd())
            .map(SnapshotState::from)
            .map_err(|errno| self.error(Operation::SnapshotInfo, errno))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_block_device_is_refused_by_name() {
        for path in ["/dev/null", "/etc/passwd", "/nonexistent", "/"] {
            let error = check(Path::new(path)).unwrap_err();
            assert!(
                error.to_string().contains(&format!("open {path}:")),
                "{error}"
            );
            assert!(error.remedy().is_some(), "{error}");
        }
        let error = check(Path::new("/dev/null")).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NOTBLK));
    }

    #[test]
    fn numbers_are_read_from_text() {
        let number = DeviceNumber {
            major: 259,
            minor: 3,
        };
        assert_eq!(DeviceNumber::parse("259:3\n"), Some(number));
        assert_eq!(number.to_string(), "259:3");
        assert_eq!(DeviceNumber::parse("259"), None);
    }

    #[test]
    fn takes_are_known_by_their_ids() {
        let id = |byte| Uuid::from_bytes([byte; 16]);
        let takes = Takes {
            generation_id: id(1),
            ids: vec![Some(id(2)), None, Some(id(3))],
        };
        assert_eq!(takes.number_of(id(2)), Some(1));
        assert_eq!(takes.number_of(id(3)), Some(3));
        assert_eq!(takes.number_of(id(1)), None);
        assert_eq!(takes.number_of(id(0)), None);
        assert_eq!(takes.newest(), Some(id(3)));
        let tracking = Tracking {
            device_capacity: 512,
            block_size: 512,
            block_count: 1,
            generation_id: id(1),
            changes_number: 3,
        };
        assert!(takes.fit(&tracking));
        let other = Tracking {
            generation_id: id(9),
            ..tracking
        };
        assert!(!takes.fit(&other));
        let later = Tracking {
            changes_number: 4,
            ..tracking
        };
        assert!(!takes.fit(&later));
    }

    #[test]
    fn image_name_ends_at_the_first_nul() {
        let mut info = abi::SnapshotInfo::default();
        assert_eq!(SnapshotState::from(info).image, None);
        info.image[..4].copy_from_slice(b"img0");
        assert_eq!(SnapshotState::from(info).image.unwrap(), "img0");
        info.image = [b'x'; abi::IMAGE_NAME_LENGTH];
        assert_eq!(SnapshotState::from(info).image.unwrap().len(), 32);
    }

    #[test]
    fn any_error_code_means_corrupted() {
        let state = |error_code| SnapshotState {
            error_code,
            image: None,
        };
        assert_eq!(state(0).corruption(), None);
        assert_eq!(state(-28).corruption(), Some(Errno::NOSPC));
        assert_eq!(state(i32::MIN).corruption(), Some(Errno::IO));
        assert_eq!(state(1).corruption(), Some(Errno::IO));
    }
}
