// SPDX-License-Identifier: GPL-2.0-only

//! Writing restore points back.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Seek;
use std::io::SeekFrom;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::fallocate;
use rustix::fs::FallocateFlags;
use rustix::fs::OFlags;
use serde::Serialize;

use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;
use crate::size::Bytes;

use super::changes::Extent;
use super::image::CLUSTER;
use super::sink::Sink;
use super::source::Buffer;
use super::store;
use super::store::Store;
use super::verify::RUN;
use super::view::View;
use super::Progress;
use super::Watch;

/// What became of a device.
#[derive(Debug, Serialize)]
pub struct Report {
    pub device: String,
    #[serde(serialize_with = "crate::lossy::path")]
    pub target: PathBuf,
    /// Bytes of the device.
    pub size: u64,
    /// Bytes of data that were written.
    pub data_bytes: u64,
    /// What is not as it was, since its checksum is wrong.
    pub damaged: Vec<Extent>,
    /// The target is smaller, so that the end is missing.
    pub truncated: bool,
}

/// The same onto a file as if it were a device: what was in it is not known.
#[cfg(test)]
pub(super) fn restore_over(store: &Store, image: &str, path: &Path, watch: &mut dyn Watch) {
    let view = View::open(store, &store.manifest().chain(image)).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    let mut target = Target {
        size: file.metadata().unwrap().len(),
        sink: Sink::new(file, path, Operation::Restore),
        is_zero: false,
        is_new: false,
    };
    write(view, "", &mut target, watch).unwrap();
}

/// A device or file that is being written to.
struct Target {
    sink: Sink,
    size: u64,
    /// Whether it read as zeroes before.
    is_zero: bool,
    /// To be removed if it is not completed.
    is_new: bool,
}

fn is_device_name(path: &Path) -> bool {
    path.starts_with("/dev") && !path.starts_with("/dev/shm")
}

/// Writes an image, together with what it is based on, to a block device or a
/// file, and checks it at that.
///
/// What was in the target is lost. A block device that is smaller or in use and
/// a file that is not empty are refused, unless `force` is set. A larger block
/// device keeps what it has after the end.
pub fn restore(
    store: &Store,
    device: &str,
    image: &str,
    target: &Path,
    force: bool,
    watch: &mut dyn Watch,
) -> Result<Report> {
    let chain = store.manifest().chain(image);
    let view = View::open(store, &chain)?;
    let mut target = Target::open(target, view.size(), force)?;
    let result = write(view, device, &mut target, watch);
    if result.is_err() && target.is_new {
        // The error that led here is the one to tell.
        let _ = fs::remove_file(target.sink.path());
    }
    result
}

fn write(
    mut view: View,
    device: &str,
    target: &mut Target,
    watch: &mut dyn Watch,
) -> Result<Report> {
    let size = view.size();
    let mut report = Report {
        device: device.to_owned(),
        target: target.sink.path().to_owned(),
        size,
        data_bytes: 0,
        damaged: Vec::new(),
        truncated: target.size < size,
    };
    let mut at = 0;
    let mut buffer = Buffer::new(RUN * CLUSTER as usize);
    while let Some(run) = view.next(RUN)? {
        let (offset, length) = view.range(&run);
        watch.keep_on(Progress {
            done: offset,
            total: size,
        })?;
        if run.is_zero() {
            // Together with what follows.
            continue;
        }
        let bytes = buffer.first(length as usize);
        let damaged = view.read(&run, bytes)?;
        report.damaged.extend(damaged.iter().map(|cluster| Extent {
            offset: cluster * CLUSTER,
            length: CLUSTER.min(size - cluster * CLUSTER),
        }));
        target.zero(at, offset, watch)?;
        target.write(offset, bytes)?;
        report.data_bytes += length;
        at = offset + length;
    }
    target.zero(at, size, watch)?;
    target.finish()?;
    watch.keep_on(Progress {
        done: size,
        total: size,
    })?;
    Ok(report)
}

impl Target {
    fn open(path: &Path, size: u64, force: bool) -> Result<Self> {
        let failed = |error: io::Error| Error::from_io(Operation::Restore, &error).on(path);
        let refused = |reason: String, remedy: &str| {
            Err(Error::new(Operation::Restore, reason)
                .on(path)
                .remedied_by(remedy))
        };
        let target = |file, size, is_zero, is_new| Self {
            sink: Sink::new(file, path, Operation::Restore),
            size,
            is_zero,
            is_new,
        };
        let mut options = File::options();
        options.write(true).mode(0o600);
        let kind = match fs::metadata(path) {
            Ok(metadata) => metadata.file_type(),
            // Not a file in memory where a device was meant.
            Err(error) if is_device_name(path) => return Err(failed(error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = options.create_new(true).open(path).map_err(failed)?;
                let sized = file.set_len(size).map_err(failed);
                if sized.is_err() {
                    let _ = fs::remove_file(path);
                }
                sized?;
                return Ok(target(file, size, true, true));
            }
            Err(error) => return Err(failed(error)),
        };
        if kind.is_file() {
            let file = options.open(path).map_err(failed)?;
            let length = file.metadata().map_err(failed)?.len();
            if length > 0 && !force {
                return refused(
                    "the file is not empty".to_owned(),
                    "name a file that does not exist, or say --force if its content may be lost",
                );
            }
            file.set_len(0)
                .and_then(|()| file.set_len(size))
                .map_err(failed)?;
            return Ok(target(file, size, true, false));
        }
        if !kind.is_block_device() {
            return refused(
                "it is neither a block device nor a file".to_owned(),
                "name a block device, or a file that does not exist",
            );
        }
        if !force {
            // The kernel refuses what is mounted or part of something else.
            options.custom_flags(OFlags::EXCL.bits() as i32);
        }
        let mut file = options.open(path).map_err(failed)?;
        let room = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if room < size && !force {
            return refused(
                format!(
                    "it has {} bytes, and the restore point {size} ({})",
                    room,
                    Bytes(size)
                ),
                "name a device that is as large, or say --force if the end may be lost",
            );
        }
        Ok(target(file, room, false, false))
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let room = self.size.saturating_sub(offset).min(bytes.len() as u64);
        self.sink.write(offset, &bytes[..room as usize])
    }

    /// Makes all from `start` to `end` read as zeroes.
    fn zero(&mut self, start: u64, end: u64, watch: &mut dyn Watch) -> Result<()> {
        let end = end.min(self.size);
        if self.is_zero || start >= end {
            return Ok(());
        }
        // The kernel knows the fastest way, if the device has one.
        const PIECE: u64 = 1 << 30;
        const BYTES: &[u8] = &[0; 1 << 20];
        let mut at = start;
        while at < end {
            watch.keep_on(Progress {
                done: at,
                total: self.size,
            })?;
            let length = PIECE.min(end - at);
            if fallocate(self.sink.file(), FallocateFlags::ZERO_RANGE, at, length).is_ok() {
                at += length;
                continue;
            }
            let length = (end - at).min(BYTES.len() as u64);
            self.write(at, &BYTES[..length as usize])?;
            at += length;
        }
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        self.sink.sync()?;
        if self.is_new {
            store::sync_directory(store::parent(self.sink.path()))?;
        }
        Ok(())
    }
}
