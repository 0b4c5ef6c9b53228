// SPDX-License-Identifier: GPL-2.0-only

//! Writing much to a file or device without filling the page cache with it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::fadvise;
use rustix::fs::Advice;

use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;

/// After so many bytes what was written is brought to the medium and dropped
/// from the page cache.
const DIRTY: u64 = 64 << 20;

/// A file or device that is written to.
pub struct Sink {
    file: File,
    path: PathBuf,
    operation: Operation,
    dirty: u64,
}

impl Sink {
    /// Errors are those of `operation` on `path`.
    pub fn new(file: File, path: &Path, operation: Operation) -> Self {
        Self {
            file,
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
