// SPDX-License-Identifier: GPL-2.0-only

//! What belongs to a backup, so that no restore writes to it: its files by their
//! inodes, whatever they are called, and the devices that they lie on.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::openat;
use rustix::fs::Mode;
use rustix::fs::OFlags;

use crate::device::DeviceNumber;
use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;
use crate::stack::file_id;
use crate::stack::Below;
use crate::stack::FileId;
use crate::stack::Stack;

/// How deep the directories of a backup are.
const DEPTH: usize = 2;

/// A backup directory, all in it, and what it lies on.
pub struct Grounds {
    directory: PathBuf,
    nodes: HashSet<FileId>,
    below: Below,
}

impl Grounds {
    pub fn of(directory: &Path, stack: &Stack) -> Result<Self> {
        let mut nodes = HashSet::new();
        collect(directory, DEPTH, &mut nodes)
            .map_err(|error| Error::from_io(Operation::OpenBackup, &error).on(directory))?;
        Ok(Self {
            directory: directory.to_owned(),
            nodes,
            below: stack.below_file(directory),
        })
    }

    /// Refuses a file of the backup, whatever leads there, and one that the backup
    /// lies on by way of a loop device.
    pub fn refuse_file(&self, id: FileId, path: &Path) -> Result<()> {
        if self.nodes.contains(&id) {
            return Err(self.inside(path));
        }
        if self.below.files.contains(&id) {
            return Err(self.under(path));
        }
        Ok(())
    }

    /// Refuses a file in this directory if that is in the backup directory.
    pub fn refuse_in(&self, directory: &OwnedFd, path: &Path) -> Result<()> {
        let is_inside = self
            .is_inside(directory)
            .map_err(|error| Error::from_io(Operation::Restore, &error).on(path))?;
        match is_inside {
            true => Err(self.inside(path)),
            false => Ok(()),
        }
    }

    fn is_inside(&self, directory: &OwnedFd) -> io::Result<bool> {
        let id = |fd: &OwnedFd| {
            let stat = rustix::fs::fstat(fd)?;
            io::Result::Ok((stat.st_dev, stat.st_ino))
        };
        let mut at = directory.try_clone()?;
        let mut last = None;
        loop {
            let here = id(&at)?;
            if self.nodes.contains(&here) {
                return Ok(true);
            }
            // The parent of the root is the root.
            if last == Some(here) {
                return Ok(false);
            }
            last = Some(here);
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            at = openat(at.as_fd(), "..", flags, Mode::empty())?;
        }
    }

    /// Refuses a device that the backup lies on, and a loop device on a file of it.
    pub fn refuse_device(&self, number: DeviceNumber, path: &Path, stack: &Stack) -> Result<()> {
        if self.below.devices.contains(&number) {
            return Err(self.under(path));
        }
        let below = stack.below_device(number);
        match below.files.iter().any(|id| self.nodes.contains(id)) {
            true => Err(self.inside(path)),
            false => Ok(()),
        }
    }

    fn inside(&self, path: &Path) -> Error {
        let reason = format!(
            "it is in the backup directory {}, or a file of that",
            self.directory.display()
        );
        Error::new(Operation::Restore, reason)
            .on(path)
            .remedied_by("name a target that is no part of the backup")
    }

    fn under(&self, path: &Path) -> Error {
        let reason = format!("the backup in {} lies on it", self.directory.display());
        Error::new(Operation::Restore, reason)
            .on(path)
            .remedied_by("name another target, or copy the backup to another disk first")
    }
}

/// Refuses to back up a device to a directory that lies on it: each restore point would have
/// those before it, and all would be lost with the device. The directory need not be there yet.
pub fn refuse_sources(directory: &Path, devices: &[PathBuf], stack: &Stack) -> Result<()> {
    let directory = std::path::absolute(directory)
        .map_err(|error| Error::from_io(Operation::WriteBackup, &error).on(directory))?;
    let there = directory.ancestors().find(|path| path.exists());
    let below = there.map(|path| stack.below_file(path)).unwrap_or_default();
    for device in devices {
        if below.devices.contains(&crate::device::check(device)?) {
            let reason = format!("the backup in {} would lie on it", directory.display());
            return Err(Error::new(Operation::BackUp, reason)
                .on(device)
                .remedied_by("name a directory on another disk with --to"));
        }
    }
    Ok(())
}

fn collect(path: &Path, depth: usize, nodes: &mut HashSet<FileId>) -> io::Result<()> {
    nodes.insert(file_id(&fs::metadata(path)?));
    if depth == 0 {
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), depth - 1, nodes)?;
        } else if let Ok(metadata) = fs::metadata(entry.path()) {
            // Where a link leads to, too.
            nodes.insert(file_id(&metadata));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(path: &Path) -> OwnedFd {
        fs::File::open(path).unwrap().into()
    }

    #[test]
    fn files_of_a_backup_are_known_by_whatever_name() {
        let temp = tempfile::tempdir().unwrap();
        let backup = temp.path().join("backup");
        fs::create_dir_all(backup.join("000001/deep/deeper")).unwrap();
        fs::create_dir(temp.path().join("other")).unwrap();
        fs::write(backup.join("000001/a.qcow2"), "").unwrap();
        let link = temp.path().join("other/link");
        fs::hard_link(backup.join("000001/a.qcow2"), &link).unwrap();
        let grounds = Grounds::of(&backup, &Stack::default()).unwrap();

        let id = file_id(&fs::metadata(&link).unwrap());
        assert!(grounds.refuse_file(id, &link).is_err());
        for inside in ["backup", "backup/000001", "backup/000001/deep/deeper"] {
            let directory = directory(&temp.path().join(inside));
            let error = grounds.refuse_in(&directory, &link).unwrap_err();
            assert!(error.to_string().contains("backup directory"), "{error}");
        }
        for outside in ["", "other"] {
            let directory = directory(&temp.path().join(outside));
            grounds.refuse_in(&directory, &link).unwrap();
        }
    }

    #[test]
    fn the_device_below_a_backup_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let stack = Stack::default();
        let grounds = Grounds::of(temp.path(), &stack).unwrap();
        let below = stack.below_file(temp.path());
        for number in below.devices {
            let path = Path::new("/dev/x");
            let error = grounds.refuse_device(number, path, &stack).unwrap_err();
            assert!(error.to_string().contains("lies on it"), "{error}");
        }
    }
}
