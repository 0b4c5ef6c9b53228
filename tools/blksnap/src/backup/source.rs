// SPDX-License-Identifier: GPL-2.0-only

//! Reading the image of a device, without pushing others out of the page cache
//! and not faster than wanted.

use std::fs::File;
use std::io;
use std::io::Seek;
use std::io::SeekFrom;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;

use rustix::fs::fadvise;
use rustix::fs::Advice;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;

/// What direct I/O wants memory to be aligned to.
const ALIGNMENT: usize = 4096;

/// Memory for direct I/O.
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    pub fn new(length: usize) -> Self {
        let bytes = vec![0; length + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { bytes, start }
    }

    /// Its first `length` bytes.
    pub fn first(&mut self, length: usize) -> &mut [u8] {
        &mut self.bytes[self.start..][..length]
    }
}

/// The image of a device.
pub struct Source {
    file: File,
    direct: bool,
    #[cfg(test)]
    path: std::path::PathBuf,
    size: u64,
}

impl Source {
    pub fn open(path: &Path) -> Result<Self> {
        let refused = |error: io::Error| Error::from_io(Operation::BackUp, &error).on(path);
        let open = |flags: OFlags| {
            File::options()
                .read(true)
                .custom_flags(flags.bits() as i32)
                .open(path)
        };
        let (mut file, direct) = match open(OFlags::DIRECT) {
            Ok(file) => (file, true),
            Err(error) if is(&error, Errno::INVAL) => {
                (open(OFlags::empty()).map_err(refused)?, false)
            }
            Err(error) => return Err(refused(error)),
        };
        let size = file.seek(SeekFrom::End(0)).map_err(refused)?;
        Ok(Self {
            file,
            direct,
            #[cfg(test)]
            path: path.to_owned(),
            size,
        })
    }

    /// Bytes of the device.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of a logical block, which an image has from its device.
    pub fn logical_block_size(&self) -> Option<u32> {
        rustix::fs::ioctl_blksszget(&self.file).ok()
    }

    /// Fills `bytes`, which are of a [`Buffer`].
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        #[cfg(test)]
        bad::fail(&self.path, offset, bytes.len() as u64)?;
        self.file.read_exact_at(bytes, offset)?;
        if !self.direct {
            let length = NonZeroU64::new(bytes.len() as u64);
            fadvise(&self.file, offset, length, Advice::DontNeed)?;
        }
        Ok(())
    }
}

/// Sectors of images that cannot be read, for tests of one thread.
#[cfg(test)]
pub(super) mod bad {
    use super::*;
    use crate::backup::changes::Extent;
    use std::cell::RefCell;
    use std::collections::HashMap;
    use std::path::PathBuf;

    /// With the number of reads that have failed.
    type Sectors = HashMap<PathBuf, (Vec<(Extent, Errno)>, usize)>;

    thread_local! {
        static SECTORS: RefCell<Sectors> = RefCell::default();
    }

    /// What reading from the image fails with from now on.
    pub fn set(image: &Path, sectors: &[(Extent, Errno)]) {
        let sectors = (sectors.to_vec(), 0);
        SECTORS.with_borrow_mut(|all| all.insert(image.to_owned(), sectors));
    }

    /// How many reads have failed since.
    pub fn failures(image: &Path) -> usize {
        SECTORS.with_borrow(|all| all.get(image).map_or(0, |(_, failures)| *failures))
    }

    pub fn fail(image: &Path, offset: u64, length: u64) -> io::Result<()> {
        SECTORS.with_borrow_mut(|all| {
            let Some((sectors, failures)) = all.get_mut(image) else {
                return Ok(());
            };
            let mut sectors = sectors.iter();
            match sectors.find(|(bad, _)| bad.offset < offset + length && offset < bad.end()) {
                Some((_, errno)) => {
                    *failures += 1;
                    Err((*errno).into())
                }
                None => Ok(()),
            }
        })
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// Keeps reads to so many bytes a second, or does nothing.
///
/// What was not read in time may be made up for within a second, so that short
/// delays do not count.
pub struct Throttle {
    rate: Option<u64>,
    /// When the bytes that were let pass are due.
    due: Instant,
}

/// How long one is kept waiting at a time.
const NAP: Duration = Duration::from_millis(100);

impl Throttle {
    /// `rate` is in bytes a second, and not 0.
    pub fn new(rate: Option<u64>) -> Self {
        Self {
            rate,
            due: Instant::now(),
        }
    }

    /// How much may be read at a time so that it takes no longer than a second.
    pub fn piece(&self, wanted: u64, unit: u64) -> u64 {
        let rate = self.rate.unwrap_or(u64::MAX);
        wanted.min(rate / unit * unit).max(unit)
    }

    /// Lets `bytes` pass, and waits as long as that takes. `keep_on` is asked
    /// meanwhile.
    pub fn pass(&mut self, bytes: u64, keep_on: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.pass_at(bytes, Instant::now());
        loop {
            let rest = self.due.saturating_duration_since(Instant::now());
            if rest.is_zero() || self.rate.is_none() {
                return Ok(());
            }
            keep_on()?;
            sleep(rest.min(NAP));
        }
    }

    fn pass_at(&mut self, bytes: u64, now: Instant) {
        let Some(rate) = self.rate else {
            return;
        };
        let earliest = now.checked_sub(Duration::from_secs(1)).unwrap_or(now);
        self.due = self.due.max(earliest) + Duration::from_secs_f64(bytes as f64 / rate as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned() {
        let mut buffer = Buffer::new(65536);
        assert_eq!(buffer.first(65536).as_ptr().align_offset(ALIGNMENT), 0);
        assert_eq!(buffer.first(512).len(), 512);
    }

    #[test]
    fn a_rate_is_kept() {
        let start = Instant::now();
        let mut throttle = Throttle::new(Some(1000));
        throttle.due = start;
        let due = |throttle: &Throttle| (throttle.due - start).as_secs_f64().round();
        for second in 1..=10 {
            throttle.pass_at(1000, start);
            assert_eq!(due(&throttle), f64::from(second));
        }
        // A pause of 100 seconds gains one of them.
        throttle.pass_at(1000, start + Duration::from_secs(110));
        assert_eq!(due(&throttle), 110.0);
        assert_eq!(throttle.piece(1 << 20, 100), 1000);
        assert_eq!(throttle.piece(1 << 20, 65536), 65536);
        assert_eq!(Throttle::new(None).piece(1 << 20, 65536), 1 << 20);
    }

    #[test]
    fn a_wait_can_be_stopped() {
        let mut throttle = Throttle::new(Some(1));
        let start = Instant::now();
        let error = throttle.pass(1 << 20, &mut || Err(Error::new(Operation::BackUp, "stop")));
        assert!(error.is_err());
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn images_are_read() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("image");
        let content: Vec<u8> = (0..1_000_000u32 / 4 * 4).map(|i| (i / 7) as u8).collect();
        let content = &content[..content.len() / 512 * 512];
        std::fs::write(&path, content).unwrap();
        let source = Source::open(&path).unwrap();
        assert_eq!(source.size(), content.len() as u64);
        let mut buffer = Buffer::new(8192);
        let bytes = buffer.first(8192);
        source.read(4096, bytes).unwrap();
        assert_eq!(bytes, &content[4096..][..8192]);
    }
}
