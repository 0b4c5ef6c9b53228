// SPDX-License-Identifier: GPL-2.0-only

//! What can be a difference storage, and how much it may take.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::abi::SECTOR_SIZE;
use crate::device;
use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;
use crate::explain::OTHER_STORE;
use crate::size::Bytes;
use crate::size::Sectors;
use crate::size::StorageRange;
use crate::stack::Stack;

/// How much of the start of a block device or a range is looked at for data.
const LOOK_AT: u64 = 1 << 20;

/// Refuses a file or block device that holds data, since the snapshot would
/// overwrite it.
///
/// A file must have no data in it, as one from `fallocate` or `truncate`; a
/// block device must begin with 1 MiB of zeroes.
pub fn refuse_data(store: &Path) -> Result<()> {
    let refused = |error: io::Error| Error::from_io(Operation::Create, &error).on(store);

    let kind = std::fs::metadata(store).map_err(refused)?.file_type();
    if !(kind.is_file() || kind.is_block_device()) {
        return Ok(());
    }
    let mut file = File::open(store).map_err(refused)?;
    let holds_data = if kind.is_file() {
        match rustix::fs::seek(file.as_fd(), rustix::fs::SeekFrom::Data(0)) {
            Ok(_) => true,
            // No data after the start.
            Err(Errno::NXIO) => false,
            Err(errno) => return Err(refused(errno.into())),
        }
    } else {
        begins_with_data(&mut file, 0, LOOK_AT).map_err(refused)?
    };
    if !holds_data {
        return Ok(());
    }
    Err(
        Error::new(Operation::Create, "it holds data, which would be lost")
            .on(store)
            .remedied_by("name a directory or something empty, or say --overwrite"),
    )
}

/// Refuses a store that lies on one of the devices, since each copy that is written there would
/// have to be copied first. The driver looks for that, too, but cannot see through what changes
/// the data on its way, as encryption does.
pub fn refuse_sources(store: &Path, devices: &[PathBuf], stack: &Stack) -> Result<()> {
    let below = match device::check(store) {
        Ok(number) => stack.below_device(number),
        Err(_) => stack.below_file(store),
    };
    for path in devices {
        if below.devices.contains(&device::check(path)?) {
            let reason = format!("the store {} lies on it", store.display());
            return Err(Error::new(Operation::Create, reason)
                .on(path)
                .remedied_by(OTHER_STORE));
        }
    }
    Ok(())
}

/// Refuses ranges of a block device, or all of it if there are none, that do
/// not begin with 1 MiB of zeroes. `path` is for the error.
pub fn refuse_data_in(mut device: &File, path: &Path, ranges: &[StorageRange]) -> Result<()> {
    let refused = |error: io::Error| Error::from_io(Operation::OpenDevice, &error).on(path);

    let starts: Vec<(u64, u64)> = match ranges {
        [] => vec![(0, LOOK_AT)],
        ranges => ranges
            .iter()
            .map(|range| (range.offset(), range.length().min(LOOK_AT)))
            .collect(),
    };
    for (offset, length) in starts {
        if begins_with_data(&mut device, offset, length).map_err(refused)? {
            let reason = format!("it holds data at byte {offset}, which would be lost");
            return Err(Error::new(Operation::AppendStorage, reason)
                .on(path)
                .remedied_by("name a device or range that is empty, or say --overwrite"));
        }
    }
    Ok(())
}

fn begins_with_data(file: &mut (impl Read + Seek), offset: u64, length: u64) -> io::Result<bool> {
    let mut start = Vec::new();
    file.seek(SeekFrom::Start(offset))?;
    file.take(length).read_to_end(&mut start)?;
    Ok(start.iter().any(|byte| *byte != 0))
}

/// Opens a block device as [`Control::append_storage`] needs it.
///
/// [`Control::append_storage`]: crate::Control::append_storage
pub fn open_device(path: &Path) -> Result<File> {
    device::check(path)?;
    File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| Error::from_io(Operation::OpenDevice, &error).on(path))
}

/// The limit to create a snapshot with: `wanted`, or by default
///
/// * all of a block device,
/// * half the free space of the filesystem of a file or directory, plus what
///   the file holds already, so that a snapshot alone can never fill it.
pub fn limit(store: &Path, wanted: Option<Bytes>) -> Result<Sectors> {
    let refused = |error: io::Error| Error::from_io(Operation::Create, &error).on(store);

    // Before the kernel is asked, so that a wrong path is the first to show.
    let metadata = std::fs::metadata(store).map_err(refused)?;
    let kind = metadata.file_type();
    if !(kind.is_dir() || kind.is_file() || kind.is_block_device()) {
        return Err(Error::from_errno(Operation::Create, Errno::INVAL).on(store));
    }
    if let Some(wanted) = wanted {
        return Ok(wanted.sectors());
    }
    if let Some(size) = device_size(store)? {
        return Ok(size);
    }

    let free = free(store).map_err(|errno| refused(errno.into()))?.0;
    let held = if kind.is_file() {
        metadata.blocks() * SECTOR_SIZE
    } else {
        0
    };
    let sectors = Bytes(held + free / 2).sectors();
    if sectors.0 == 0 {
        return Err(Error::from_errno(Operation::Create, Errno::NOSPC).on(store));
    }
    Ok(sectors)
}

/// The size of a block device; `None` for anything else.
pub fn device_size(store: &Path) -> Result<Option<Sectors>> {
    let size = || {
        if !std::fs::metadata(store)?.file_type().is_block_device() {
            return Ok(None);
        }
        let size = File::open(store)?.seek(SeekFrom::End(0))?;
        Ok(Some(Bytes(size).sectors()))
    };
    size().map_err(|error: io::Error| Error::from_io(Operation::Create, &error).on(store))
}

/// What the filesystem of a file or directory has free.
pub fn free(store: &Path) -> rustix::io::Result<Bytes> {
    let fs = rustix::fs::statvfs(store)?;
    Ok(Bytes(fs.f_bavail.saturating_mul(fs.f_frsize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_limit_is_kept() {
        let temp = tempfile::tempdir().unwrap();
        let limit = limit(temp.path(), Some(Bytes(1 << 20))).unwrap();
        assert_eq!(limit, Sectors(2048));
    }

    #[test]
    fn default_is_half_of_what_is_free() {
        let temp = tempfile::tempdir().unwrap();
        let fs = rustix::fs::statvfs(temp.path()).unwrap();
        let free = (fs.f_bavail * fs.f_frsize / 512) as f64;
        let limit = limit(temp.path(), None).unwrap().0 as f64;
        // Others write to the filesystem meanwhile.
        assert!((0.4..0.6).contains(&(limit / free)), "{limit} of {free}");
    }

    #[test]
    fn data_is_not_overwritten() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("store");
        refuse_data(temp.path()).unwrap();

        let file = File::create(&path).unwrap();
        refuse_data(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        refuse_data(&path).unwrap();

        std::fs::write(&path, "the only copy").unwrap();
        let error = refuse_data(&path).unwrap_err();
        assert!(error.to_string().contains("holds data"), "{error}");
        assert!(error.remedy().unwrap().contains("--overwrite"));
    }

    #[test]
    fn ranges_with_data_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("device");
        let file = File::create(&path).unwrap();
        file.set_len(4 << 20).unwrap();
        std::os::unix::fs::FileExt::write_at(&file, b"x", (2 << 20) + 5000).unwrap();

        let refuse = |texts: &[&str]| {
            let ranges: Vec<_> = texts.iter().map(|text| text.parse().unwrap()).collect();
            refuse_data_in(&File::open(&path).unwrap(), &path, &ranges)
        };
        refuse(&[]).unwrap();
        refuse(&["0:2M", "2M:4K", "3M:1M"]).unwrap();
        for texts in [&["2M:8K"][..], &["0:1M", "1032K:2M"]] {
            let error = refuse(texts).unwrap_err();
            assert!(error.to_string().contains("holds data at"), "{error}");
            assert!(error.remedy().unwrap().contains("--overwrite"));
        }
    }

    #[test]
    fn what_cannot_be_a_storage_is_refused() {
        for path in ["/nonexistent/store", "/dev/null"] {
            let error = limit(Path::new(path), Some(Bytes(512))).unwrap_err();
            assert_eq!(error.operation(), Operation::Create);
            assert!(error.to_string().contains(path), "{error}");
            assert!(error.remedy().is_some(), "{error}");
        }
    }
}
