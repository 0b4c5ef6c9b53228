// SPDX-License-Identifier: GPL-2.0-only

//! The difference storage: a log that old data is appended to.
//!
//! It is shared by the devices of a snapshot. [`Log`] decides where data goes; [`Storage`] does
//! the I/O.

use kernel::{
    block::bdev::{
        BdevFile,
        BlockDevice, //
    },
    fs::direct::{
        DirectFile,
        Kind, //
    },
    new_mutex,
    noio,
    page::Pages,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    }, //
};

/// What a storage has of space, in bytes.
#[derive(Debug, PartialEq, Eq)]
struct Log {
    /// Where the next data goes.
    next: u64,
    /// Up to where the file is allocated.
    allocated: u64,
    /// What it may not exceed.
    limit: u64,
    /// By how much the file grows at a time.
    step: u64,
}

impl Log {
    /// Appends `len` bytes and returns where they go.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if they would exceed the limit.
    fn append(&mut self, len: u64) -> Result<u64> {
        let at = self.next;
        let end = at.checked_add(len).ok_or(ENOSPC)?;
        if end > self.limit {
            return Err(ENOSPC);
        }
        self.next = end;
        Ok(at)
    }

    /// The start and length of what must be allocated so that half a step is free.
    fn growth(&self) -> Option<(u64, u64)> {
        let wanted = self.next.saturating_add(self.step / 2).min(self.limit);
        if self.allocated >= wanted {
            return None;
        }
        let end = self
            .allocated
            .max(self.next)
            .saturating_add(self.step)
            .min(self.limit);
        Some((self.allocated, end - self.allocated))
    }
}

/// The difference storage of a snapshot.
#[pin_data]
pub(crate) struct Storage {
    file: DirectFile,
    /// The block device that it is, if it is one.
    device: Option<Arc<BdevFile>>,
    #[pin]
    log: Mutex<Log>,
}

impl Storage {
    /// Opens the storage at `path`. It may use up to `limit` bytes; 0 is for a whole block device.
    /// A file grows by `step` bytes at a time. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] for a limit of 0 without a block device, and what opening gives.
    pub(crate) fn open(path: &CStr, limit: u64, step: u64) -> Result<impl PinInit<Self>> {
        let file = DirectFile::open(path)?;
        let size = file.size();
        let device = match (file.kind(), file.bdev()) {
            (Kind::BlockDevice, Some(bdev)) => {
                Some(Arc::new(BdevFile::open(bdev.dev())?, GFP_KERNEL)?)
            }
            _ => None,
        };
        let (limit, allocated) = match (file.kind(), limit) {
            (Kind::BlockDevice, 0) => (size, size),
            (Kind::BlockDevice, limit) => (limit.min(size), size),
            (_, 0) => return Err(EINVAL),
            (_, limit) => (limit, 0),
        };
        Ok(pin_init!(Self {
            file: file,
            device: device,
            log <- new_mutex!(Log {
                next: 0,
                allocated,
                limit,
                step,
            }, "blksnap_log"),
        }))
    }

    /// The block device that it is on, if there is one.
    pub(crate) fn bdev(&self) -> Option<&BlockDevice> {
        self.file.bdev()
    }

    /// The block device that it is, if it is one, to read from.
    pub(crate) fn device(&self) -> Option<&Arc<BdevFile>> {
        self.device.as_ref()
    }

    /// Appends the first `len` bytes of `pages` to the log, waits until they are written, and
    /// returns where they are. May sleep, but allocates without I/O.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if there is no space, or what the file says.
    pub(crate) fn append(&self, pages: &[&Pages], len: usize) -> Result<u64> {
        noio::scope(|| {
            let at = {
                let mut log = self.log.lock();
                let at = log.append(len as u64)?;
                self.grow(&mut log)?;
                at
            };
            self.file.write(at, pages, len)?;
            Ok(at)
        })
    }

    /// Allocates what the log is going to need.
    ///
    /// # Errors
    ///
    /// What the file says, if there is no room even for what was appended.
    fn grow(&self, log: &mut Log) -> Result {
        let Some((start, len)) = log.growth() else {
            return Ok(());
        };
        if self.file.allocate(start, len).is_ok() {
            log.allocated = start + len;
        } else if log.next > start {
            self.file.allocate(start, log.next - start)?;
            log.allocated = log.next;
        }
        Ok(())
    }

    /// Reads `len` bytes at `at` into `pages`, and waits for it. May sleep.
    pub(crate) fn read(&self, at: u64, pages: &mut Pages, len: usize) -> Result {
        noio::scope(|| self.file.read(at, pages, len))
    }

    /// How many bytes more it may use.
    pub(crate) fn room(&self) -> usize {
        let log = self.log.lock();
        usize::try_from(log.limit - log.next).unwrap_or(usize::MAX)
    }
}

#[kunit_tests(blksnap_storage_log)]
mod tests {
    use super::*;

    fn log(limit: u64, step: u64) -> Log {
        Log {
            next: 0,
            allocated: 0,
            limit,
            step,
        }
    }

    #[test]
    fn appends_up_to_the_limit() {
        let mut log = log(100, 40);
        assert_eq!(log.append(60), Ok(0));
        assert_eq!(log.append(41), Err(ENOSPC));
        assert_eq!(log.append(u64::MAX), Err(ENOSPC));
        // What did not fit has taken nothing.
        assert_eq!(log.append(40), Ok(60));
        assert_eq!(log.append(1), Err(ENOSPC));
    }

    #[test]
    fn grows_ahead() -> Result {
        let mut log = log(100, 40);
        assert_eq!(log.growth(), Some((0, 40)));
        log.allocated = 40;
        assert_eq!(log.growth(), None);
        log.append(20)?;
        assert_eq!(log.growth(), None);
        log.append(1)?;
        assert_eq!(log.growth(), Some((40, 40)));
        log.allocated = 80;
        log.append(70)?;
        assert_eq!(log.growth(), Some((80, 20)));
        log.allocated = 100;
        assert_eq!(log.growth(), None);
        Ok(())
    }

    #[test]
    fn growth_covers_a_large_append() -> Result {
        let mut log = log(1000, 10);
        log.append(500)?;
        assert_eq!(log.growth(), Some((0, 510)));
        Ok(())
    }
}
