// SPDX-License-Identifier: GPL-2.0-only

//! Images of devices as qcow2 files.
//!
//! An image holds the clusters in which it differs from its base, and is read
//! here without the base: which image holds a cluster is known from the
//! digests (see [`super::view`]). Others follow the name of the base that is in
//! the file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;

use imago::qcow2::Qcow2;
use imago::qcow2::Qcow2CreateBuilder;
use imago::storage::StorageOpenOptions;
use imago::DenyImplicitOpenGate;
use imago::FormatAccess;
use imago::FormatCreateBuilder;
use imago::FormatDriverBuilder;
use imago::ShallowMapping;
use imago::Storage;

use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;

use super::store;
use super::sums::damaged;

/// Bytes of a cluster, the unit in which images hold data.
pub const CLUSTER: u64 = 64 << 10;

type Qcow = Qcow2<imago::file::File>;

/// Past the page cache where the filesystem can do that.
fn storage(path: &Path, writable: bool) -> std::io::Result<imago::file::File> {
    let open = |direct| {
        let options = StorageOpenOptions::new().filename(path);
        imago::file::File::open(options.write(writable).direct(direct))
    };
    open(true).or_else(|_| open(false))
}

/// An image that is being written.
pub struct Writer {
    image: FormatAccess<imago::file::File>,
    path: PathBuf,
}

/// What there is to know of an image that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Digest of all of the file that is not data.
    pub metadata: String,
}

impl Writer {
    /// Creates the image of a device of `size` bytes. `base` is the path of the
    /// base, relative to that of the image.
    pub fn create(path: &Path, size: u64, base: Option<&str>) -> Result<Self> {
        let refused = |error| Error::from_io(Operation::WriteBackup, &error).on(path);

        store::create_file(path)?;
        let mut builder = Qcow2CreateBuilder::new(storage(path, true).map_err(refused)?).size(size);
        if let Some(base) = base {
            builder = builder.backing(base.to_owned(), "qcow2".to_owned());
        }
        let image = builder
            .create_open(DenyImplicitOpenGate::default(), |file| {
                // Whole clusters are written, so nothing of the base is needed.
                Ok(Qcow::builder(file).backing(None).write(true))
            })
            .map_err(refused)?;
        Ok(Self {
            image: FormatAccess::new(image),
            path: path.to_owned(),
        })
    }

    /// Writes whole clusters, or all up to the end of the device.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.image
            .write(bytes, offset)
            .map_err(|error| Error::from_io(Operation::WriteBackup, &error).on(&self.path))
    }

    /// Makes whole clusters read as zeroes whatever the base has.
    pub fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        self.image
            .write_zeroes(offset, length)
            .map_err(|error| Error::from_io(Operation::WriteBackup, &error).on(&self.path))
    }

    /// Makes it durable.
    pub fn finish(self) -> Result<Written> {
        let refused = |error| Error::from_io(Operation::WriteBackup, &error).on(&self.path);

        self.image.flush().map_err(refused)?;
        self.image.sync().map_err(refused)?;
        let metadata = metadata_sum(&self.image, &self.path)?;
        let path = self.path.clone();
        drop(self.image);
        let file = File::open(&path)
            .map_err(|error| Error::from_io(Operation::WriteBackup, &error).on(&path))?;
        file.sync_all()
            .map_err(|error| Error::from_io(Operation::WriteBackup, &error).on(&path))?;
        Ok(Written {
            file_bytes: store::length(&file, &path)?,
            metadata,
        })
    }
}

/// An image that is there.
pub struct Reader {
    image: FormatAccess<imago::file::File>,
    path: PathBuf,
}

impl Reader {
    /// Opens an image of a device of `size` bytes.
    ///
    /// An error of [`Operation::CheckBackup`] if it is missing or not what the
    /// arguments say.
    pub fn open(path: &Path, size: u64, base: Option<&str>, file_bytes: u64) -> Result<Self> {
        let file = File::open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => damaged(path, "it is missing"),
            _ => Error::from_io(Operation::ReadBackup, &error).on(path),
        })?;
        let length = store::length(&file, path)?;
        if length != file_bytes {
            return Err(damaged(
                path,
                format!("it has {length} bytes, but {file_bytes} were written"),
            ));
        }
        let refused = |error| unreadable(path, &error);
        let image = Qcow::builder(storage(path, false).map_err(refused)?)
            .backing(None)
            .open(DenyImplicitOpenGate::default())
            .map_err(refused)?;
        if image.implicit_backing_file().map(String::as_str) != base {
            return Err(damaged(path, "it names another base"));
        }
        let image = FormatAccess::new(image);
        if image.size() != size {
            return Err(damaged(path, "it is of a device of another size"));
        }
        Ok(Self {
            image,
            path: path.to_owned(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.image
            .read(bytes, offset)
            .map_err(|error| unreadable(&self.path, &error))
    }

    /// Digest of all of the file that is not data.
    pub fn metadata_sum(&self) -> Result<String> {
        metadata_sum(&self.image, &self.path)
    }
}

/// Either the filesystem said so, or the file makes no sense.
fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    match error.raw_os_error() {
        Some(_) => Error::from_io(Operation::ReadBackup, error).on(path),
        None => damaged(path, error.to_string()),
    }
}

/// The digest of a file without the data that its tables refer to, so that all
/// of it is covered by this and the digests of the data.
fn metadata_sum(image: &FormatAccess<imago::file::File>, path: &Path) -> Result<String> {
    let refused = |error| unreadable(path, &error);
    let mut data = Vec::new();
    let mut at = 0;
    while at < image.size() {
        let (mapping, length) = image
            .get_shallow_mapping(at, image.size() - at)
            .map_err(refused)?;
        if length == 0 {
            return Err(damaged(path, "its tables end too early"));
        }
        if let ShallowMapping::Raw { offset, .. } = mapping {
            data.push((offset, length));
        }
        at += length;
    }
    data.sort_unstable();

    let file = File::open(path).map_err(refused)?;
    let end = store::length(&file, path)?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; CLUSTER as usize];
    let mut at = 0;
    for (start, length) in data.into_iter().chain([(end, 0)]) {
        if start > end || end - start < length {
            return Err(damaged(path, "it is too short"));
        }
        hasher.update(&at.min(start).to_le_bytes());
        hasher.update(&start.to_le_bytes());
        while at < start {
            let count = CLUSTER.min(start - at) as usize;
            file.read_exact_at(&mut piece[..count], at)
                .map_err(refused)?;
            hasher.update(&piece[..count]);
            at += count as u64;
        }
        at = at.max(start + length);
    }
    Ok(hasher.finalize().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 5 * CLUSTER + 512;

    fn write(path: &Path, base: Option<&str>) -> Written {
        let mut image = Writer::create(path, SIZE, base).unwrap();
        image
            .write(CLUSTER, &vec![1; 2 * CLUSTER as usize])
            .unwrap();
        image.write(5 * CLUSTER, &[2; 512]).unwrap();
        image.zero(3 * CLUSTER, CLUSTER).unwrap();
        image.finish().unwrap()
    }

    #[test]
    fn content_is_read_back() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.qcow2");
        let written = write(&path, Some("../b.qcow2"));
        let open = |size, base| Reader::open(&path, size, base, written.file_bytes);
        let image = open(SIZE, Some("../b.qcow2")).unwrap();
        assert_eq!(image.metadata_sum().unwrap(), written.metadata);
        let mut bytes = vec![9; SIZE as usize];
        image.read(0, &mut bytes).unwrap();
        let expected = [(1, 0), (2, 1), (2, 0)]
            .iter()
            .flat_map(|&(count, byte)| vec![byte; count * CLUSTER as usize])
            .chain([2; 512]);
        assert!(bytes.into_iter().eq(expected));

        for (size, base) in [
            (SIZE, None),
            (SIZE, Some("b")),
            (SIZE + 512, Some("../b.qcow2")),
        ] {
            let error = open(size, base).err().unwrap();
            assert_eq!(error.operation(), Operation::CheckBackup);
        }
    }

    #[test]
    fn every_byte_that_is_no_data_counts() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.qcow2");
        let written = write(&path, None);
        let good = std::fs::read(&path).unwrap();
        let data: usize = good.iter().filter(|&&byte| byte == 1).count();
        assert!(data >= 2 * CLUSTER as usize);
        for at in (0..good.len()).step_by(997) {
            if good[at] == 1 || good[at] == 2 {
                continue;
            }
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&path, &bad).unwrap();
            let sum = Reader::open(&path, SIZE, None, written.file_bytes)
                .and_then(|image| image.metadata_sum());
            assert!(sum.is_err() || sum.unwrap() != written.metadata, "{at}");
        }
    }
}
