// SPDX-License-Identifier: GPL-2.0-only

//! The driver's control device: snapshots as a whole.

use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use serde::Serialize;
use serde::Serializer;

use crate::abi;
use crate::device::DeviceNumber;
use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;
use crate::size::Sectors;
use crate::sys;
use crate::Uuid;

/// Version of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriverVersion {
    pub major: u16,
    pub minor: u16,
    pub revision: u16,
    pub build: u16,
}

impl fmt::Display for DriverVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            major,
            minor,
            revision,
            build,
        } = self;
        write!(f, "{major}.{minor}.{revision}.{build}")
    }
}

impl Serialize for DriverVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Something that happened to a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When it happened, in nanoseconds of CLOCK_MONOTONIC.
    pub time_label: i64,
    pub kind: EventKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// The images cannot be trusted any more.
    Corrupted {
        /// The origin where it showed.
        device: DeviceNumber,
        /// A negative errno.
        error_code: i32,
    },
    /// The difference storage has no space for this much.
    NoSpace { requested: Sectors },
    /// The difference storage has less left than the threshold that was set.
    LowSpace { left: Sectors },
    /// Sectors of a device could not be read before they were overwritten. Reads of them from
    /// the image fail; the rest of it is intact.
    Lost {
        device: DeviceNumber,
        /// Where they begin.
        sector: Sectors,
        length: Sectors,
        /// A negative errno.
        error_code: i32,
    },
    /// Writers to a device were held for the difference storage in the last minute, in
    /// milliseconds. The snapshot is given up when that reaches `limit_ms`.
    SlowStorage {
        device: DeviceNumber,
        held_ms: u32,
        limit_ms: u32,
    },
    /// A code that this library does not know.
    Other { code: u32, data: Vec<u8> },
}

impl Event {
    fn from_abi(event: &abi::SnapshotEvent) -> Self {
        let word = |at: usize| -> [u8; 4] { std::array::from_fn(|i| event.data[at + i]) };
        let sectors = |at: usize| {
            Sectors(u64::from_ne_bytes(std::array::from_fn(|i| {
                event.data[at + i]
            })))
        };
        let device = || DeviceNumber {
            major: u32::from_ne_bytes(word(0)),
            minor: u32::from_ne_bytes(word(4)),
        };
        let kind = match event.code {
            abi::EVENT_CORRUPTED => EventKind::Corrupted {
                device: device(),
                error_code: i32::from_ne_bytes(word(8)),
            },
            abi::EVENT_NO_SPACE => EventKind::NoSpace {
                requested: sectors(0),
            },
            abi::EVENT_LOW_SPACE => EventKind::LowSpace { left: sectors(0) },
            abi::EVENT_LOST => EventKind::Lost {
                device: device(),
                sector: sectors(8),
                length: sectors(16),
                error_code: i32::from_ne_bytes(word(24)),
            },
            abi::EVENT_SLOW_STORAGE => EventKind::SlowStorage {
                device: device(),
                held_ms: u32::from_ne_bytes(word(8)),
                limit_ms: u32::from_ne_bytes(word(12)),
            },
            code => EventKind::Other {
                code,
                data: event.data.to_vec(),
            },
        };
        Self {
            time_label: event.time_label,
            kind,
        }
    }
}

/// The storage of a snapshot, all of it together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StorageInfo {
    /// How much may be used.
    #[serde(rename = "total_sectors")]
    pub total: Sectors,
    #[serde(rename = "used_sectors")]
    pub used: Sectors,
    /// With less than this left, [`EventKind::LowSpace`] comes; 0 for never.
    #[serde(rename = "low_space_sectors")]
    pub low_space: Sectors,
    /// How much of the devices is missing from the images, as it could not be read.
    #[serde(rename = "lost_sectors")]
    pub lost: Sectors,
    /// For how many milliseconds writers to the devices have waited for the storage, without the
    /// first 250 ms of each wait.
    pub held_ms: u64,
}

impl StorageInfo {
    pub const fn left(&self) -> Sectors {
        Sectors(self.total.0.saturating_sub(self.used.0))
    }
}

/// The opened control device.
#[derive(Debug)]
pub struct Control {
    file: File,
}

/// To be polled after [`Control::watch`].
impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
impl From<std::os::fd::OwnedFd> for Control {
    fn from(fd: std::os::fd::OwnedFd) -> Self {
        Self { file: fd.into() }
    }
}

impl Control {
    pub fn open() -> Result<Self> {
        Self::open_at(Path::new(abi::CONTROL_PATH))
    }

    /// Opens the control device by another name.
    pub(crate) fn open_at(path: &Path) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|error| Error::from_io(Operation::OpenControl, &error).on(path))?;
        Ok(Self { file })
    }

    pub fn version(&self) -> Result<DriverVersion> {
        let version = sys::version(self.file.as_fd())
            .map_err(|errno| Error::from_errno(Operation::Version, errno))?;
        Ok(DriverVersion {
            major: version.major,
            minor: version.minor,
            revision: version.revision,
            build: version.build,
        })
    }

    /// Creates a snapshot without devices. Its difference storage is the
    /// file or block device `store`, or an unnamed file in the directory
    /// `store`, and takes at most `limit`.
    pub fn create(&self, store: &Path, limit: Sectors) -> Result<Uuid> {
        let refused = |errno| Error::from_errno(Operation::Create, errno).on(store);
        let path = CString::new(store.as_os_str().as_bytes()).map_err(|_| refused(Errno::NOENT))?;
        sys::snapshot_create(self.file.as_fd(), &path, limit.0)
            .map(Uuid::from)
            .map_err(refused)
    }

    /// Creates a snapshot without devices and without storage, which is for
    /// [`Self::append_storage`].
    pub fn create_empty(&self) -> Result<Uuid> {
        sys::snapshot_create_empty(self.file.as_fd())
            .map(Uuid::from)
            .map_err(|errno| Error::from_errno(Operation::CreateEmpty, errno))
    }

    /// Appends `ranges` of a block device to the storage of a snapshot, taken
    /// or not; without ranges all of the device. What is there is overwritten.
    ///
    /// The device is open for writing, and not exclusively: the driver claims
    /// it for itself. It may be closed afterwards.
    pub fn append_storage(
        &self,
        id: Uuid,
        device: impl AsFd,
        ranges: &[abi::SectorRange],
    ) -> Result<()> {
        sys::storage_append(self.file.as_fd(), id.into(), device.as_fd(), ranges)
            .map_err(|errno| Error::from_errno(Operation::AppendStorage, errno).of(id))
    }

    /// Has the file system on a block device frozen while a snapshot is taken. This is for
    /// devices that are stacked on those of the snapshot; see [`Stack::above`].
    ///
    /// The device may be closed afterwards.
    ///
    /// [`Stack::above`]: crate::stack::Stack::above
    pub fn freeze(&self, id: Uuid, device: impl AsFd) -> Result<()> {
        sys::snapshot_freeze(self.file.as_fd(), id.into(), device.as_fd())
            .map_err(|errno| Error::from_errno(Operation::Freeze, errno).of(id))
    }

    /// Changes the limit of the storage that a snapshot was created with.
    pub fn set_limit(&self, id: Uuid, limit: Sectors) -> Result<()> {
        sys::storage_limit(self.file.as_fd(), id.into(), limit.0)
            .map_err(|errno| Error::from_errno(Operation::SetLimit, errno).of(id))
    }

    /// Asks for [`EventKind::LowSpace`] when less than `threshold` is left,
    /// once until there is more again; 0 for never.
    pub fn set_low_space(&self, id: Uuid, threshold: Sectors) -> Result<()> {
        sys::storage_low_space(self.file.as_fd(), id.into(), threshold.0)
            .map_err(|errno| Error::from_errno(Operation::SetLowSpace, errno).of(id))
    }

    pub fn storage_info(&self, id: Uuid) -> Result<StorageInfo> {
        let info = sys::storage_info(self.file.as_fd(), id.into())
            .map_err(|errno| Error::from_errno(Operation::StorageInfo, errno).of(id))?;
        Ok(StorageInfo {
            total: Sectors(info.total_nr_sect),
            used: Sectors(info.used_nr_sect),
            low_space: Sectors(info.low_space_nr_sect),
            lost: Sectors(info.lost_nr_sect),
            held_ms: info.held_ms,
        })
    }

    /// Makes poll() on this control device tell of a snapshot: POLLIN when an
    /// event is waiting, POLLHUP when it is destroyed.
    pub fn watch(&self, id: Uuid) -> Result<()> {
        sys::snapshot_watch(self.file.as_fd(), id.into())
            .map_err(|errno| Error::from_errno(Operation::Watch, errno).of(id))
    }

    /// Snapshots that are created through this from now on are destroyed when it is closed:
    /// when no process has a descriptor of it any more, however they ended.
    pub fn own(&self) -> Result<()> {
        sys::snapshot_own(self.file.as_fd())
            .map_err(|errno| Error::from_errno(Operation::Own, errno))
    }

    /// Destroys a snapshot, in whatever state it is. Images in use stay, but
    /// cannot be read any more.
    pub fn destroy(&self, id: Uuid) -> Result<()> {
        sys::snapshot_destroy(self.file.as_fd(), id.into())
            .map_err(|errno| Error::from_errno(Operation::Destroy, errno).of(id))
    }

    /// Takes the snapshot: the images of all its devices show this moment.
    pub fn take(&self, id: Uuid) -> Result<()> {
        sys::snapshot_take(self.file.as_fd(), id.into())
            .map_err(|errno| Error::from_errno(Operation::Take, errno).of(id))
    }

    /// The snapshots there are.
    pub fn collect(&self) -> Result<Vec<Uuid>> {
        let fd = self.file.as_fd();
        let refused = |errno| Error::from_errno(Operation::Collect, errno);

        let (result, mut count) = sys::snapshot_collect(fd, &mut []);
        result.map_err(refused)?;
        // Others may create snapshots between the question and the answer.
        while count > 0 {
            let mut ids = vec![abi::Id::default(); count as usize];
            let (result, found) = sys::snapshot_collect(fd, &mut ids);
            match result {
                Ok(()) => {
                    ids.truncate(found as usize);
                    return Ok(ids.into_iter().map(Uuid::from).collect());
                }
                Err(Errno::NODATA) if found > count => count = found,
                Err(errno) => return Err(refused(errno)),
            }
        }
        Ok(Vec::new())
    }

    /// Waits for an event of a snapshot; `None` when the time is over.
    ///
    /// A signal ends it with an error whose errno is EINTR.
    pub fn wait_event(&self, id: Uuid, timeout: Duration) -> Result<Option<Event>> {
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        match sys::snapshot_wait_event(self.file.as_fd(), id.into(), timeout_ms) {
            Ok(event) => Ok(Some(Event::from_abi(&event))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::from_errno(Operation::WaitEvent, errno).of(id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(code: u32, start: &[u8]) -> Event {
        let mut data = [0; abi::EVENT_DATA_LENGTH];
        data[..start.len()].copy_from_slice(start);
        Event::from_abi(&abi::SnapshotEvent {
            id: abi::Id::default(),
            timeout_ms: 0,
            code,
            time_label: 7,
            data,
        })
    }

    #[test]
    fn events_are_decoded() {
        let mut data = Vec::new();
        data.extend(8u32.to_ne_bytes());
        data.extend(16u32.to_ne_bytes());
        data.extend((-28i32).to_ne_bytes());
        assert_eq!(
            event(abi::EVENT_CORRUPTED, &data).kind,
            EventKind::Corrupted {
                device: DeviceNumber {
                    major: 8,
                    minor: 16
                },
                error_code: -28,
            }
        );
        assert_eq!(
            event(abi::EVENT_NO_SPACE, &4096u64.to_ne_bytes()),
            Event {
                time_label: 7,
                kind: EventKind::NoSpace {
                    requested: Sectors(4096)
                },
            }
        );
        let mut data = Vec::new();
        data.extend(8u32.to_ne_bytes());
        data.extend(1u32.to_ne_bytes());
        data.extend((1u64 << 33).to_ne_bytes());
        data.extend(8u64.to_ne_bytes());
        data.extend((-61i32).to_ne_bytes());
        assert_eq!(
            event(abi::EVENT_LOST, &data).kind,
            EventKind::Lost {
                device: DeviceNumber { major: 8, minor: 1 },
                sector: Sectors(1 << 33),
                length: Sectors(8),
                error_code: -61,
            }
        );
        assert_eq!(
            event(abi::EVENT_LOW_SPACE, &(1u64 << 40).to_ne_bytes()).kind,
            EventKind::LowSpace {
                left: Sectors(1 << 40)
            }
        );
        let data = [8u32, 1, 5000, 30_000].map(u32::to_ne_bytes).concat();
        assert_eq!(
            event(abi::EVENT_SLOW_STORAGE, &data).kind,
            EventKind::SlowStorage {
                device: DeviceNumber { major: 8, minor: 1 },
                held_ms: 5000,
                limit_ms: 30_000,
            }
        );
        assert!(matches!(
            event(99, b"x").kind,
            EventKind::Other { code: 99, .. }
        ));
    }

    #[test]
    fn storage_is_json_in_sectors() {
        let info = StorageInfo {
            total: Sectors(8),
            used: Sectors(3),
            low_space: Sectors(4),
            lost: Sectors(16),
            held_ms: 5,
        };
        assert_eq!(info.left(), Sectors(5));
        assert_eq!(
            serde_json::to_value(info).unwrap(),
            serde_json::json!({
                "total_sectors": 8,
                "used_sectors": 3,
                "low_space_sectors": 4,
                "lost_sectors": 16,
                "held_ms": 5,
            })
        );
    }

    #[test]
    fn version_is_text_in_json() {
        let version = DriverVersion {
            major: 2,
            minor: 0,
            revision: 1,
            build: 3,
        };
        assert_eq!(serde_json::to_string(&version).unwrap(), "\"2.0.1.3\"");
    }
}
