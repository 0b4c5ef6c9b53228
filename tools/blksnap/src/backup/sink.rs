// SPDX-License-Identifier: GPL-2.0-only

//! Writing much to a file or device without filling the page cache with it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::fadvise;
use rustix::fs::Advice;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;

/// After so many bytes what was written is brought to the medium and dropped
/// from the page cache.
const DIRTY: u64 = 64 << 20;

/// What direct I/O wants memory, offsets and lengths to be aligned to.
const ALIGNMENT: u64 = 4096;

/// A file or device that is written to.
pub struct Sink {
    file: File,
    /// The same past the page cache, for what is aligned.
    direct: Option<File>,
    path: PathBuf,
    operation: Operation,
    dirty: u64,
}

impl Sink {
    /// Errors are those of `operation` on `path`.
    pub fn new(file: File, path: &Path, operation: Operation) -> Self {
        // Not every filesystem does that. By the descriptor, since the name may be of something
        // else meanwhile.
        let direct = File::options()
            .write(true)
            .custom_flags(OFlags::DIRECT.bits() as i32)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Self {
            file,
            direct: direct.ok(),
            path: path.to_owned(),
            operation,
            dirty: 0,
        }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let is_aligned = (offset | bytes.len() as u64) % ALIGNMENT == 0
            && bytes.as_ptr().align_offset(ALIGNMENT as usize) == 0;
        if let Some(direct) = self.direct.as_ref().filter(|_| is_aligned) {
            match direct.write_all_at(bytes, offset) {
                // It wants more than this, or cannot do it here; the other way tells.
                Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                    self.direct = None;
                }
                result => return result.map_err(|error| self.failed(&error)),
            }
        }
        self.file
            .write_all_at(bytes, offset)
            .map_err(|error| self.failed(&error))?;
        self.dirty += bytes.len() as u64;
        if self.dirty >= DIRTY {
            self.dirty = 0;
            self.file.sync_data().map_err(|error| self.failed(&error))?;
            self.drop_cache();
        }
        Ok(())
    }

    /// Makes all of it durable.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|error| self.failed(&error))?;
        self.drop_cache();
        Ok(())
    }

    fn drop_cache(&self) {
        // Only advice.
        let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
    }

    pub fn failed(&self, error: &io::Error) -> Error {
        Error::from_io(self.operation, error).on(&self.path)
    }
}
