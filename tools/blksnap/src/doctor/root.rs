// SPDX-License-Identifier: GPL-2.0-only

//! The directory below which all is looked at: `/`, or a made-up one.

use std::ffi::OsString;
use std::fs;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::device::DeviceNumber;
use crate::identity::Sources;
use crate::mounts::Mount;
use crate::stack::node_number;
use crate::stack::NumberOf;
use crate::stack::Stack;
use crate::sysfs::Sysfs;

/// Upper limit of a file that is read.
const MAX_BYTES: u64 = 64 << 20;
/// How many symbolic links are followed, as in the kernel.
const MAX_LINKS: usize = 40;

/// What a path leads to.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// A file here, by its path without links.
    Local(PathBuf),
    /// It is on a file system that need not answer, and was not looked at.
    Remote(Mount),
}

/// A view of all files below a directory.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    number_of: NumberOf,
    pub stack: Stack,
    pub sysfs: Sysfs,
    pub sources: Sources,
}

impl Default for Root {
    fn default() -> Self {
        Self::at(Path::new("/"), node_number)
    }
}

impl Root {
    /// What is below `path`, where `number_of` returns the number of a block device's node.
    pub(crate) fn at(path: &Path, number_of: NumberOf) -> Self {
        Self {
            path: path.to_owned(),
            number_of,
            stack: Stack::at(path, number_of),
            sysfs: Sysfs::at(path),
            sources: Sources::at(path, number_of),
        }
    }

    /// Where a path really is.
    pub fn join(&self, path: &Path) -> PathBuf {
        self.path.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Follows a path link by link, and stops at a file system that need not answer.
    pub fn find(&self, path: &Path) -> Result<Found, Errno> {
        let path = std::path::absolute(path).map_err(|_| Errno::INVAL)?;
        let mut at = PathBuf::from("/");
        let mut rest = parts(&path);
        let mut links = 0;
        while let Some(part) = rest.pop() {
            if part == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&part);
            // The command itself is on what is mounted as the root.
            let is_remote = |it: &&Mount| it.is_remote() && it.mount_point != Path::new("/");
            if let Some(mount) = self.stack.mount_of(&next).filter(is_remote) {
                return Ok(Found::Remote(mount.clone()));
            }
            let real = self.join(&next);
            let failed = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
            if !fs::symlink_metadata(&real).map_err(failed)?.is_symlink() {
                at = next;
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP);
            }
            let link = fs::read_link(&real).map_err(failed)?;
            if link.is_absolute() {
                at = PathBuf::from("/");
            }
            rest.extend(parts(&link));
        }
        Ok(Found::Local(at))
    }

    /// Opens a regular file that is here.
    pub fn open(&self, path: &str) -> Result<File, Errno> {
        let failed = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let Found::Local(path) = self.find(Path::new(path))? else {
            return Err(Errno::REMOTE);
        };
        // Opening a FIFO would wait for a writer.
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let mut options = File::options();
        options.read(true).custom_flags(flags.bits() as i32);
        let file = options.open(self.join(&path)).map_err(failed)?;
        match file.metadata().map_err(failed)?.is_file() {
            true => Ok(file),
            false => Err(Errno::INVAL),
        }
    }

    pub fn bytes(&self, path: &str) -> Result<Vec<u8>, Errno> {
        let mut bytes = Vec::new();
        let read = self.open(path)?.take(MAX_BYTES).read_to_end(&mut bytes);
        read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        Ok(bytes)
    }

    pub fn text(&self, path: &str) -> Result<String, Errno> {
        let bytes = self.bytes(path)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Whether something is there.
    pub fn exists(&self, path: &str) -> bool {
        matches!(self.find(Path::new(path)), Ok(Found::Local(_)))
    }

    /// The names in a directory, sorted; none if it cannot be read.
    pub fn names(&self, path: &str) -> Vec<String> {
        let Ok(Found::Local(path)) = self.find(Path::new(path)) else {
            return Vec::new();
        };
        let entries = fs::read_dir(self.join(&path)).into_iter().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// The number of the block device that a path leads to.
    pub fn device(&self, path: &Path) -> Result<DeviceNumber, Errno> {
        match self.find(path)? {
            Found::Local(path) => (self.number_of)(&self.join(&path)).ok_or(Errno::NOTBLK),
            Found::Remote(_) => Err(Errno::REMOTE),
        }
    }

    /// The release of the running kernel.
    pub fn release(&self) -> String {
        let text = self.text("/proc/sys/kernel/osrelease");
        text.unwrap_or_default().trim().to_owned()
    }
}

/// The parts of a path, the first one last.
fn parts(path: &Path) -> Vec<OsString> {
    let part = |it: Component<'_>| match it {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    let mut parts: Vec<OsString> = path.components().filter_map(part).collect();
    parts.reverse();
    parts
}
