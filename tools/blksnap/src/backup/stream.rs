// SPDX-License-Identifier: GPL-2.0-only

//! Writing to what has no offsets, such as a pipe: everything in order.

use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use rustix::event::poll;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;

/// How long a reader is waited for at a time.
const NAP: Duration = Duration::from_millis(100);

/// Where the bytes go.
pub struct Stream {
    file: File,
    path: PathBuf,
    /// Bytes written so far.
    at: u64,
}

impl Stream {
    /// `file` was opened by somebody else; if it is a pipe, a writer that waits for
    /// its reader can be stopped.
    pub fn new(file: File, path: &Path, is_pipe: bool) -> Self {
        let file = match is_pipe.then(|| without_waiting(&file)) {
            Some(Ok(own)) => own,
            _ => file,
        };
        Self {
            file,
            path: path.to_owned(),
            at: 0,
        }
    }

    /// Opens a FIFO, of which `handle` is a descriptor, when it has a reader.
    pub fn open(
        handle: &impl AsRawFd,
        path: &Path,
        keep_on: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Self> {
        loop {
            match without_waiting(handle) {
                // Nobody reads it yet.
                Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => {
                    keep_on()?;
                    sleep(NAP);
                }
                Err(error) => return Err(Error::from_io(Operation::Restore, &error).on(path)),
                Ok(file) => {
                    return Ok(Self {
                        file,
                        path: path.to_owned(),
                        at: 0,
                    })
                }
            }
        }
    }

    /// Writes what follows, which begins at `offset`.
    pub fn write(
        &mut self,
        offset: u64,
        mut bytes: &[u8],
        keep_on: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        assert_eq!(offset, self.at, "all is written in order");
        self.at += bytes.len() as u64;
        while !bytes.is_empty() {
            match (&self.file).write(bytes) {
                Ok(0) => return Err(self.failed(&io::ErrorKind::WriteZero.into())),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => keep_on()?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    keep_on()?;
                    self.wait()?;
                }
                Err(error) => return Err(self.failed(&error)),
            }
        }
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        let timeout = Timespec::try_from(NAP).expect("it is short");
        let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(self.failed(&errno.into())),
        }
    }

    /// Tells what writing could not.
    pub fn finish(&self) -> Result<()> {
        match rustix::fs::fsync(self.file.as_fd()) {
            // What has no medium has nothing to do.
            Ok(()) | Err(Errno::INVAL | Errno::ROFS | Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(self.failed(&errno.into())),
        }
    }

    fn failed(&self, error: &io::Error) -> Error {
        Error::from_io(Operation::Restore, error).on(&self.path)
    }
}

/// A descriptor of one's own for a pipe, on which writing does not wait.
fn without_waiting(handle: &impl AsRawFd) -> io::Result<File> {
    File::options()
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    #[test]
    fn a_pipe_without_a_reader_and_a_full_one_can_be_stopped() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let handle: OwnedFd = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap();
        let mut calls = 0;
        let mut stop = || {
            calls += 1;
            match calls {
                1 | 2 => Ok(()),
                _ => Err(Error::new(Operation::Restore, "stop")),
            }
        };
        let error = Stream::open(&handle, &path, &mut stop).err().unwrap();
        assert_eq!(error.reason(), "stop");

        let _reader = File::options().read(true).write(true).open(&path).unwrap();
        let mut stream = Stream::open(&handle, &path, &mut || Ok(())).unwrap();
        let error = stream.write(0, &[1; 1 << 20], &mut stop).unwrap_err();
        assert_eq!(error.reason(), "stop");
    }
}
