// SPDX-License-Identifier: GPL-2.0-only

//! A file of a backup that is opened whenever it is needed.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::io::Errno;

use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;

use super::directory::Directory;
use super::sums::damaged;

#[derive(Debug, Clone)]
pub struct Member {
    directory: Arc<Directory>,
    name: String,
    /// What it is called when another process has finished what the manifest says.
    later: Option<String>,
    path: PathBuf,
}

impl Member {
    pub fn new(directory: &Arc<Directory>, name: &str) -> Self {
        Self {
            directory: Arc::clone(directory),
            name: name.to_owned(),
            later: None,
            path: directory.path_of(name),
        }
    }

    /// A file that is to be renamed, which may be done at any time.
    pub fn renamed(directory: &Arc<Directory>, name: &str, later: &str) -> Self {
        Self {
            later: Some(later.to_owned()),
            ..Self::new(directory, name)
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it to read.
    ///
    /// An error of [`Operation::CheckBackup`] if it is missing or no file, and only then:
    /// any other one says nothing about the backup.
    pub fn open(&self) -> Result<File> {
        let read = |name: &str| self.directory.read(Operation::ReadBackup, name);
        let error = match (read(&self.name), &self.later) {
            (Err(error), Some(later)) if error.errno() == Some(Errno::NOENT) => match read(later) {
                Err(error) => error,
                result => return result,
            },
            (Err(error), _) => error,
            (result, _) => return result,
        };
        match error.errno() {
            // Nothing is missing in a directory that cannot be read itself.
            Some(Errno::NOENT) => {
                self.directory.can_be_listed(Operation::ReadBackup)?;
                Err(damaged(&self.path, "it is missing"))
            }
            Some(Errno::NOTDIR) => Err(damaged(&self.path, "what it should be in is no directory")),
            _ => Err(error),
        }
    }
}

/// The bytes of a file.
pub fn length(file: &File, path: &Path) -> Result<u64> {
    Ok(stamp(file, path)?.length)
}

/// What changes with the content of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    pub length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

pub fn stamp(file: &File, path: &Path) -> Result<Stamp> {
    let metadata = file
        .metadata()
        .map_err(|error| Error::from_io(Operation::ReadBackup, &error).on(path))?;
    Ok(Stamp {
        length: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A file in a directory of its own.
    pub fn member(path: &Path) -> Member {
        let directory = Arc::new(Directory::open(path.parent().unwrap()).unwrap());
        Member::new(&directory, path.file_name().unwrap().to_str().unwrap())
    }

    #[test]
    fn only_what_is_not_there_is_missing() {
        let temp = tempfile::tempdir().unwrap();
        let directory = Arc::new(Directory::open(temp.path()).unwrap());
        let open = |name| Member::new(&directory, name).open().unwrap_err();
        std::fs::write(temp.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("file", temp.path().join("link")).unwrap();
        for name in ["none", "000001/none", "file/none"] {
            assert_eq!(open(name).operation(), Operation::CheckBackup, "{name}");
        }
        let error = open("link");
        assert_eq!(error.operation(), Operation::ReadBackup);
        assert!(error.remedy().unwrap().contains("link"), "{error}");
        for errno in [Errno::MFILE, Errno::IO, Errno::STALE, Errno::ACCESS] {
            *directory.fails.lock().unwrap() =
                Some((Operation::ReadBackup, "none".to_owned(), errno));
            let error = open("none");
            assert_eq!(
                (error.operation(), error.errno()),
                (Operation::ReadBackup, Some(errno))
            );
        }
    }
}
