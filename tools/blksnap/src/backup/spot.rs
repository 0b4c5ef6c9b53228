// SPDX-License-Identifier: GPL-2.0-only

//! Where a restore goes, as its name leads there: found without opening it, so that
//! nothing happens to it, and opened by what was found.

use std::ffi::OsString;
use std::fs;
use std::fs::File;
use std::fs::Metadata;
use std::io;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::accessat;
use rustix::fs::open;
use rustix::fs::openat;
use rustix::fs::Access;
use rustix::fs::AtFlags;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::device::DeviceNumber;
use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;
use crate::stack::file_id;
use crate::stack::FileId;
use crate::stack::Stack;

use super::grounds::Grounds;
use super::store;

/// The name of standard output.
pub const STANDARD_OUTPUT: &str = "-";

/// What a name leads to.
pub enum Place {
    /// Nothing yet: a name in this directory.
    New {
        parent: OwnedFd,
        name: OsString,
    },
    /// A regular file; all that exists is open as a path only.
    File(OwnedFd, Metadata),
    Device(OwnedFd, DeviceNumber),
    /// A FIFO that is opened when there is something to write.
    Fifo(OwnedFd, Metadata),
    /// Standard output, and whether that is a pipe.
    Output {
        file: File,
        is_pipe: bool,
    },
}

/// What is the same by whatever name.
#[derive(PartialEq, Eq)]
enum Identity {
    New(FileId, OsString),
    Node(FileId),
    Device(DeviceNumber),
}

/// A target that was found.
pub struct Spot {
    pub path: PathBuf,
    pub place: Place,
}

impl Spot {
    pub fn find(path: &Path) -> Result<Self> {
        let place = match path.as_os_str() == STANDARD_OUTPUT {
            true => standard_output()?,
            false => at(path)?,
        };
        Ok(Self {
            path: path.to_owned(),
            place,
        })
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok(match &self.place {
            Place::New { parent, name } => {
                let parent = File::from(parent.try_clone()?).metadata()?;
                Identity::New(file_id(&parent), name.clone())
            }
            Place::File(_, metadata) | Place::Fifo(_, metadata) => {
                Identity::Node(file_id(metadata))
            }
            Place::Device(_, number) => Identity::Device(*number),
            Place::Output { file, .. } => Identity::Node(file_id(&file.metadata()?)),
        })
    }

    /// Refuses a second target that is the same as this one, or a partition of it.
    pub fn refuse_as(&self, other: &Self, stack: &Stack) -> Result<()> {
        let failed = |error: io::Error| Error::from_io(Operation::Restore, &error).on(&self.path);
        let lies_on = |above: &Self, below: &Self| match (&above.place, &below.place) {
            (Place::Device(_, above), Place::Device(_, below)) => {
                stack.below_device(*above).devices.contains(below)
                    || stack.share_a_file(*above, *below)
            }
            (Place::Device(_, above), Place::File(_, below)) => {
                stack.below_device(*above).files.contains(&file_id(below))
            }
            _ => false,
        };
        let what = if self.identity().map_err(failed)? == other.identity().map_err(failed)? {
            "are the same"
        } else if lies_on(self, other) || lies_on(other, self) {
            "overlap, as one lies on the other"
        } else {
            return Ok(());
        };
        let reason = format!(
            "{} and {} {what}",
            self.path.display(),
            other.path.display()
        );
        Err(Error::new(Operation::Arguments, reason).remedied_by("name every target once"))
    }

    /// Refuses what belongs to a backup.
    pub fn refuse_within(&self, grounds: &Grounds, stack: &Stack) -> Result<()> {
        let path = &self.path;
        match &self.place {
            Place::New { parent, .. } => grounds.refuse_in(parent, path),
            Place::Device(_, number) => grounds.refuse_device(*number, path, stack),
            Place::Output { file, .. } => {
                let metadata = file
                    .metadata()
                    .map_err(|error| Error::from_io(Operation::Restore, &error).on(path))?;
                grounds.refuse_file(file_id(&metadata), path)
            }
            Place::File(_, metadata) | Place::Fifo(_, metadata) => {
                grounds.refuse_file(file_id(metadata), path)?;
                let parent = fs::canonicalize(path).ok();
                match parent.as_deref().map(store::parent).and_then(directory) {
                    Some(parent) => grounds.refuse_in(&parent, path),
                    None => Ok(()),
                }
            }
        }
    }
}

fn directory(path: &Path) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).ok()
}

/// Opens what a descriptor stands for, which has no data of its own.
pub fn reopen(handle: &OwnedFd, flags: OFlags) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(flags.bits() as i32)
        .open(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

/// Creates a file that is not there.
pub fn create(parent: &OwnedFd, name: &OsString) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(parent.as_fd(), name, flags, Mode::RUSR | Mode::WUSR)?;
    Ok(file.into())
}

fn refused(path: &Path, reason: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::new(Operation::Restore, reason)
        .on(path)
        .remedied_by(remedy)
}

fn at(path: &Path) -> Result<Place> {
    let failed = |error: io::Error| Error::from_io(Operation::Restore, &error).on(path);
    let handle = match open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(handle) => handle,
        Err(Errno::NOENT) => return new(path),
        Err(errno) => return Err(failed(errno.into())),
    };
    let metadata = File::from(handle.try_clone().map_err(failed)?)
        .metadata()
        .map_err(failed)?;
    let kind = metadata.file_type();
    if kind.is_file() {
        return Ok(Place::File(handle, metadata));
    }
    if kind.is_block_device() {
        return Ok(Place::Device(
            handle,
            DeviceNumber::from_raw(metadata.rdev()),
        ));
    }
    if kind.is_fifo() {
        return Ok(Place::Fifo(handle, metadata));
    }
    let what = if kind.is_dir() {
        "a directory"
    } else if kind.is_char_device() {
        "a character device"
    } else {
        "a socket"
    };
    Err(refused(
        path,
        format!("it is {what}, neither a block device nor a file"),
        "name a block device, a FIFO, a file that does not exist, or \"-\" for standard output",
    ))
}

/// Whether a name is one among the devices, by whatever way it leads there.
fn is_device_name(path: &Path) -> bool {
    fs::canonicalize(store::parent(path))
        .is_ok_and(|parent| parent.starts_with("/dev") && !parent.starts_with("/dev/shm"))
}

/// A name that leads to nothing.
fn new(path: &Path) -> Result<Place> {
    let failed = |errno: Errno| Error::from_errno(Operation::Restore, errno).on(path);
    // Not a file in memory where a device was meant.
    if is_device_name(path) {
        return Err(failed(Errno::NOENT));
    }
    if let Ok(to) = fs::read_link(path) {
        let reason = format!("it is a link to {}, which does not exist", to.display());
        return Err(refused(path, reason, "name the file itself"));
    }
    let (Some(name), false) = (
        path.file_name(),
        path.as_os_str().as_encoded_bytes().ends_with(b"/"),
    ) else {
        return Err(failed(Errno::NOENT));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = open(store::parent(path), flags, Mode::empty()).map_err(failed)?;
    // It is created when all others are right, too.
    let access = Access::WRITE_OK | Access::EXEC_OK;
    accessat(&parent, ".", access, AtFlags::EACCESS).map_err(failed)?;
    Ok(Place::New {
        parent,
        name: name.to_owned(),
    })
}

fn standard_output() -> Result<Place> {
    let path = Path::new(STANDARD_OUTPUT);
    let failed = |error: io::Error| Error::from_io(Operation::Restore, &error).on(path);
    let stdout = io::stdout();
    if stdout.is_terminal() {
        return Err(refused(
            path,
            "standard output is a terminal",
            "send it to a program or a file, as with \"| zstd >disk.zst\"",
        ));
    }
    let file = File::from(stdout.as_fd().try_clone_to_owned().map_err(failed)?);
    let kind = file.metadata().map_err(failed)?.file_type();
    if kind.is_block_device() {
        return Err(refused(
            path,
            "standard output is a block device",
            "name the device as the target, so that what is on it is looked at first",
        ));
    }
    Ok(Place::Output {
        file,
        is_pipe: kind.is_fifo(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_found_out() {
        let up = "../".repeat(50);
        for (path, is_device) in [
            ("/dev/no-such-disk", true),
            (&format!("{up}dev/no-such-disk"), true),
            ("/tmp/../dev/no-such-disk", true),
            ("/dev/shm/disk.img", false),
            ("/tmp/disk.img", false),
            ("disk.img", false),
        ] {
            assert_eq!(is_device_name(Path::new(path)), is_device, "{path}");
        }
    }

    #[test]
    fn what_is_no_target_is_named_and_not_opened() {
        let temp = tempfile::tempdir().unwrap();
        let link = temp.path().join("link");
        std::os::unix::fs::symlink("nothing", &link).unwrap();
        let socket = temp.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let name = temp.path().join("name/");
        for (path, wanted) in [
            (Path::new("/"), "a directory"),
            (Path::new("/dev/tty"), "a character device"),
            (Path::new("/dev/null"), "a character device"),
            (&socket, "a socket"),
            (&link, "a link to nothing"),
            (&name, "does not exist"),
        ] {
            let error = Spot::find(path).err().unwrap();
            assert!(error.to_string().contains(wanted), "{path:?}: {error}");
            assert!(error.remedy().is_some(), "{path:?}");
        }
    }
}
