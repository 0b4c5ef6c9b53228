// SPDX-License-Identifier: GPL-2.0-only

//! The digests of what an image holds, in a file beside it.
//!
//! The file begins with 16 bytes of its own. An entry for each cluster that the image
//! itself holds follows, in ascending order: the cluster's number as 8 bytes,
//! little endian, and the BLAKE3 digest of its content, 32 bytes. All bytes of
//! the digest of a cluster that reads as zeroes are zero. The digest of the
//! whole file is in the manifest.

use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::BufWriter;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;

use super::store;

const MAGIC: &[u8; 16] = b"blksnap sums 1\n\0";

/// Bytes of an entry.
const ENTRY: usize = 40;

/// The digest of a cluster's content.
pub type Sum = [u8; 32];

/// Stands for a cluster of zeroes.
pub const ZERO: Sum = [0; 32];

/// A cluster and the digest of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub cluster: u64,
    pub sum: Sum,
}

/// Writes a file of digests.
pub struct Writer {
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    path: PathBuf,
}

impl Writer {
    pub fn create(path: &Path) -> Result<Self> {
        let mut writer = Self {
            file: BufWriter::new(store::create_file(path)?),
            hasher: blake3::Hasher::new(),
            path: path.to_owned(),
        };
        writer.put(MAGIC)?;
        Ok(writer)
    }

    pub fn push(&mut self, entry: Entry) -> Result<()> {
        self.put(&entry.cluster.to_le_bytes())?;
        self.put(&entry.sum)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.file
            .write_all(bytes)
            .map_err(|error| refused(&self.path, &error))
    }

    /// Makes it durable; returns the digest of the whole file.
    pub fn finish(mut self) -> Result<String> {
        self.file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all())
            .map_err(|error| refused(&self.path, &error))?;
        Ok(self.hasher.finalize().to_string())
    }
}

fn refused(path: &Path, error: &io::Error) -> Error {
    Error::from_io(Operation::WriteBackup, error).on(path)
}

/// The entries of a file, from the lowest cluster on.
pub struct Sums {
    file: BufReader<File>,
    next: Option<Entry>,
    path: PathBuf,
}

impl Sums {
    /// Opens a file whose digest is `digest`.
    ///
    /// An error of [`Operation::CheckBackup`] if it is missing or another.
    pub fn open(path: &Path, digest: &str) -> Result<Self> {
        let mut file = open(path)?;
        let mut hasher = blake3::Hasher::new();
        hasher
            .update_reader(&mut file)
            .map_err(|error| Error::from_io(Operation::ReadBackup, &error).on(path))?;
        if hasher.finalize().to_string() != digest {
            return Err(damaged(path, "its checksum is wrong"));
        }
        let mut sums = Self {
            file: BufReader::with_capacity(64 << 10, open(path)?),
            next: None,
            path: path.to_owned(),
        };
        let mut magic = [0; MAGIC.len()];
        sums.read(&mut magic)?;
        if magic != *MAGIC {
            return Err(damaged(
                path,
                "it is no file of digests that this version knows",
            ));
        }
        sums.step()?;
        Ok(sums)
    }

    /// The lowest entry that was not taken yet.
    pub fn peek(&self) -> Option<Entry> {
        self.next
    }

    /// Drops that entry.
    pub fn step(&mut self) -> Result<()> {
        let at_end = self
            .file
            .fill_buf()
            .map_err(|error| Error::from_io(Operation::ReadBackup, &error).on(&self.path))?
            .is_empty();
        if at_end {
            self.next = None;
            return Ok(());
        }
        let mut bytes = [0; ENTRY];
        self.read(&mut bytes)?;
        let (number, sum) = bytes.split_at(8);
        let entry = Entry {
            cluster: u64::from_le_bytes(number.try_into().expect("split at 8")),
            sum: sum.try_into().expect("32 bytes are left"),
        };
        if self.next.is_some_and(|last| last.cluster >= entry.cluster) {
            return Err(damaged(&self.path, "its entries are not in order"));
        }
        self.next = Some(entry);
        Ok(())
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.file
            .read_exact(bytes)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => damaged(&self.path, "it is too short"),
                _ => Error::from_io(Operation::ReadBackup, &error).on(&self.path),
            })
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => damaged(path, "it is missing"),
        _ => Error::from_io(Operation::ReadBackup, &error).on(path),
    })
}

/// A file of a backup is not what was written.
pub fn damaged(path: &Path, reason: impl Into<String>) -> Error {
    Error::new(Operation::CheckBackup, reason)
        .on(path)
        .remedied_by("\"blksnap verify DIR\" tells which restore points are affected")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(sums: &mut Sums) -> Vec<Entry> {
        let mut found = Vec::new();
        while let Some(entry) = sums.peek() {
            found.push(entry);
            sums.step().unwrap();
        }
        found
    }

    #[test]
    fn entries_are_read_back() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.sums");
        let wanted: Vec<_> = [(0, 7), (3, 0), (1 << 40, 9)]
            .map(|(cluster, byte)| Entry {
                cluster,
                sum: [byte; 32],
            })
            .into();
        let mut writer = Writer::create(&path).unwrap();
        for entry in &wanted {
            writer.push(*entry).unwrap();
        }
        let digest = writer.finish().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 16 + 3 * 40);
        assert_eq!(entries(&mut Sums::open(&path, &digest).unwrap()), wanted);
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.sums");
        let mut writer = Writer::create(&path).unwrap();
        writer
            .push(Entry {
                cluster: 1,
                sum: ZERO,
            })
            .unwrap();
        let digest = writer.finish().unwrap();
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, bad).unwrap();
            let error = Sums::open(&path, &digest).err().unwrap();
            assert_eq!(error.operation(), Operation::CheckBackup);
        }
        std::fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(Sums::open(&path, &digest).is_err());
        std::fs::remove_file(&path).unwrap();
        let error = Sums::open(&path, &digest).err().unwrap();
        assert!(error.to_string().contains("missing"), "{error}");
    }
}
