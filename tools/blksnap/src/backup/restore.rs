// SPDX-License-Identifier: GPL-2.0-only

//! Writing restore points back.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Seek;
use std::io::SeekFrom;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
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
use super::view::Run;
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
    /// What is not as it was, since its checksum is wrong, or since of it something
    /// cannot be read and is zeroes now.
    pub damaged: Vec<Extent>,
    /// The target is smaller, so that the end is missing.
    pub truncated: bool,
}

impl Report {
    fn add(&mut self, cluster: u64) {
        let offset = cluster * CLUSTER;
        let length = CLUSTER.min(self.size - offset);
        match self.damaged.last_mut() {
            Some(last) if last.end() == offset => last.length += length,
            _ => self.damaged.push(Extent { offset, length }),
        }
    }
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
        is_file: false,
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
    /// To be emptied before.
    is_file: bool,
    /// To be removed if it is not completed.
    is_new: bool,
}

impl Drop for Target {
    fn drop(&mut self) {
        if self.is_new {
            // The error that led here is the one to tell.
            let _ = fs::remove_file(self.sink.path());
        }
    }
}

/// Whether a name is one among the devices, by whatever way it leads there.
fn is_device_name(path: &Path) -> bool {
    fs::canonicalize(store::parent(path))
        .is_ok_and(|parent| parent.starts_with("/dev") && !parent.starts_with("/dev/shm"))
}

/// What a file or block device is the same as, whatever it is called.
fn identity(metadata: &fs::Metadata) -> (bool, u64, u64) {
    match metadata.file_type().is_block_device() {
        true => (true, metadata.rdev(), 0),
        false => (false, metadata.dev(), metadata.ino()),
    }
}

/// An image that can be read, and a target that can be written to.
pub struct Restore<'a> {
    store: &'a Store,
    device: &'a str,
    image: &'a str,
    target: Target,
}

impl<'a> Restore<'a> {
    /// Looks at an image, together with what it is based on, and opens a block
    /// device or a file for it. Nothing is lost yet.
    ///
    /// A block device that is smaller or in use and a file that is not empty are
    /// refused, unless `force` is set; and what is the target of `others`.
    pub fn open(
        store: &'a Store,
        device: &'a str,
        image: &'a str,
        target: &Path,
        force: bool,
        others: &[Restore<'_>],
    ) -> Result<Self> {
        // Opened again when its turn comes: many images are many open files.
        let size = View::open(store, &store.manifest().chain(image))?.size();
        for other in others {
            other.refuse_as(target)?;
        }
        Ok(Self {
            store,
            device,
            image,
            target: Target::open(target, size, force)?,
        })
    }

    /// Refuses to write to this target once more.
    fn refuse_as(&self, path: &Path) -> Result<()> {
        let mine = self.target.sink.file().metadata().map(|it| identity(&it));
        let other = fs::metadata(path).map(|it| identity(&it));
        if mine.ok() != other.ok() {
            return Ok(());
        }
        let reason = format!(
            "{} and {} are the same",
            self.target.sink.path().display(),
            path.display()
        );
        Err(Error::new(Operation::Arguments, reason).remedied_by("name every target once"))
    }

    /// Writes the image, and checks it at that. What was in the target is lost; a
    /// larger block device keeps what it has after the end.
    pub fn run(mut self, watch: &mut dyn Watch) -> Result<Report> {
        let view = View::open(self.store, &self.store.manifest().chain(self.image))?;
        watch.keep_on(Progress {
            done: 0,
            total: view.size(),
        })?;
        self.target.empty(view.size())?;
        let report = write(view, self.device, &mut self.target, watch)?;
        self.target.is_new = false;
        Ok(report)
    }
}

/// Reads a run that could not be read as a whole; returns the clusters that are
/// not what was written. What of them cannot be read becomes zeroes, unless it is as if
/// the backup was gone: the rest of the target would be zeroes, too.
fn salvage(
    view: &mut View,
    run: &Run,
    bytes: &mut [u8],
    keep_on: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<u64>> {
    let mut damaged = Vec::new();
    for (cluster, bytes) in run.clusters().zip(bytes.chunks_mut(CLUSTER as usize)) {
        keep_on()?;
        damaged.extend(view.salvage(&cluster, bytes)?);
    }
    Ok(damaged)
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
    let mut told = None;
    let mut buffer = Buffer::new(RUN * CLUSTER as usize);
    while let Some(run) = view.next(RUN)? {
        let (offset, length) = view.range(&run);
        let progress = Progress {
            done: offset,
            total: size,
        };
        watch.keep_on(progress)?;
        if run.is_zero() {
            // Together with what follows.
            continue;
        }
        let bytes = buffer.first(length as usize);
        let damaged = match view.read(&run, bytes) {
            Ok(damaged) => damaged,
            Err(error) => {
                let damaged = salvage(&mut view, &run, bytes, &mut || watch.keep_on(progress))?;
                let note = format!("{error}; what cannot be read is zeroes now");
                if told.as_ref() != Some(&note) {
                    watch.tell(&note);
                    told = Some(note);
                }
                damaged
            }
        };
        for cluster in damaged {
            report.add(cluster);
        }
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
        let target = |file, size, is_file, is_new| Self {
            sink: Sink::new(file, path, Operation::Restore),
            size,
            is_zero: is_file,
            is_file,
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

    /// Makes a file read as zeroes.
    fn empty(&self, size: u64) -> Result<()> {
        if !self.is_file {
            return Ok(());
        }
        let file = self.sink.file();
        file.set_len(0)
            .and_then(|()| file.set_len(size))
            .map_err(|error| self.sink.failed(&error))
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
}
