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
use std::io::BufWriter;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;

use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;

use super::member;
use super::member::Member;
use super::member::Stamp;

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
    /// `file` is new.
    pub fn new(file: File, path: &Path) -> Result<Self> {
        let mut writer = Self {
            file: BufWriter::new(file),
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
///
/// The file is open only while some of them are read, since a chain may have more images
/// than a process may have open files.
pub struct Sums {
    member: Member,
    stamp: Stamp,
    /// How many clusters the device has.
    clusters: u64,
    buffer: Vec<u8>,
    /// What of the buffer was taken already.
    taken: usize,
    /// Where in the file the rest of the entries is.
    rest: u64,
    next: Option<Entry>,
}

impl Sums {
    /// Opens a file whose digest is `digest`, of a device with `clusters`. At most `memory`
    /// bytes of it are kept.
    ///
    /// An error of [`Operation::CheckBackup`] if it is missing or another.
    pub fn open(member: &Member, digest: &str, clusters: u64, memory: usize) -> Result<Self> {
        Self::new(member.open()?, member, digest, clusters, memory)
    }

    /// The same of a file that is open; `member` opens it again.
    pub(super) fn new(
        mut file: File,
        member: &Member,
        digest: &str,
        clusters: u64,
        memory: usize,
    ) -> Result<Self> {
        let path = member.path();
        let stamp = member::stamp(&file, path)?;
        let entries = stamp.length.checked_sub(MAGIC.len() as u64);
        if entries.is_none_or(|it| it % ENTRY as u64 != 0 || it / ENTRY as u64 > clusters) {
            let reason = format!("it has {} bytes, which cannot be", stamp.length);
            return Err(damaged(path, reason));
        }
        let mut hasher = blake3::Hasher::new();
        hasher
            .update_reader((&mut file).take(stamp.length))
            .map_err(|error| Error::from_io(Operation::ReadBackup, &error).on(path))?;
        if hasher.finalize().to_string() != digest {
            return Err(damaged(path, "its checksum is wrong"));
        }
        let mut magic = [0; MAGIC.len()];
        read_at(&file, path, 0, &mut magic)?;
        if magic != *MAGIC {
            return Err(damaged(
                path,
                "it is no file of digests that this version knows",
            ));
        }
        let mut sums = Self {
            member: member.clone(),
            stamp,
            clusters,
            buffer: vec![0; (memory / ENTRY).max(1) * ENTRY],
            taken: 0,
            rest: MAGIC.len() as u64,
            next: None,
        };
        sums.fill(&file)?;
        sums.step()?;
        Ok(sums)
    }

    /// The lowest entry that was not taken yet.
    pub fn peek(&self) -> Option<Entry> {
        self.next
    }

    /// Drops that entry.
    pub fn step(&mut self) -> Result<()> {
        if self.taken == self.buffer.len() && self.rest < self.stamp.length {
            let file = self.member.open()?;
            if member::stamp(&file, self.member.path())? != self.stamp {
                let reason = "it was changed while it was read";
                return Err(Error::new(Operation::ReadBackup, reason)
                    .on(self.member.path())
                    .remedied_by("try again when nothing else changes the backup"));
            }
            self.fill(&file)?;
        }
        let Some(bytes) = self.buffer[self.taken..].first_chunk::<ENTRY>() else {
            self.next = None;
            return Ok(());
        };
        let (number, sum) = bytes.split_at(8);
        let entry = Entry {
            cluster: u64::from_le_bytes(number.try_into().expect("split at 8")),
            sum: sum.try_into().expect("32 bytes are left"),
        };
        self.taken += ENTRY;
        if self.next.is_some_and(|last| last.cluster >= entry.cluster) {
            return Err(damaged(self.member.path(), "its entries are not in order"));
        }
        if entry.cluster >= self.clusters {
            let reason = "an entry is of a cluster past the end of the device";
            return Err(damaged(self.member.path(), reason));
        }
        self.next = Some(entry);
        Ok(())
    }

    /// Reads entries into the buffer, of which all were taken.
    fn fill(&mut self, file: &File) -> Result<()> {
        let length = (self.stamp.length - self.rest).min(self.buffer.len() as u64);
        self.buffer.truncate(length as usize);
        read_at(file, self.member.path(), self.rest, &mut self.buffer)?;
        self.rest += length;
        self.taken = 0;
        Ok(())
    }
}

fn read_at(file: &File, path: &Path, offset: u64, bytes: &mut [u8]) -> Result<()> {
    file.read_exact_at(bytes, offset)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged(path, "it is too short"),
            _ => Error::from_io(Operation::ReadBackup, &error).on(path),
        })
}

/// A file of a backup is not what was written.
pub fn damaged(path: &Path, reason: impl Into<String>) -> Error {
    Error::new(Operation::CheckBackup, reason)
        .on(path)
        .remedied_by(
            "\"blksnap verify DIR\" names the damaged restore points; the others can be restored",
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::member::tests::member;

    /// Entries of a device with `clusters`, with memory for one entry.
    fn open(path: &Path, digest: &str, clusters: u64) -> Result<Sums> {
        Sums::open(&member(path), digest, clusters, 1)
    }

    fn written(path: &Path, clusters: &[u64]) -> String {
        let mut writer = Writer::new(File::create(path).unwrap(), path).unwrap();
        for cluster in clusters {
            let entry = Entry {
                cluster: *cluster,
                sum: ZERO,
            };
            writer.push(entry).unwrap();
        }
        writer.finish().unwrap()
    }

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
        let mut writer = Writer::new(File::create(&path).unwrap(), &path).unwrap();
        for entry in &wanted {
            writer.push(*entry).unwrap();
        }
        let digest = writer.finish().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 16 + 3 * 40);
        assert_eq!(entries(&mut open(&path, &digest, 2 << 40).unwrap()), wanted);
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.sums");
        let mut writer = Writer::new(File::create(&path).unwrap(), &path).unwrap();
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
            let error = open(&path, &digest, 2).err().unwrap();
            assert_eq!(error.operation(), Operation::CheckBackup);
        }
        std::fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(open(&path, &digest, 2).is_err());
        std::fs::remove_file(&path).unwrap();
        let error = open(&path, &digest, 2).err().unwrap();
        assert!(error.to_string().contains("missing"), "{error}");
    }

    #[test]
    fn entries_are_of_the_device_and_in_order() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.sums");
        let found = |clusters: &[u64]| -> Result<()> {
            let mut sums = open(&path, &written(&path, clusters), 4)?;
            while sums.peek().is_some() {
                sums.step()?;
            }
            Ok(())
        };
        found(&[]).unwrap();
        found(&[0, 1, 2, 3]).unwrap();
        // Of which the last one would be past the end of all numbers of bytes.
        for bad in [&[4][..], &[1, 1], &[2, 1], &[0, u64::MAX], &[0, 1, 2, 3, 4]] {
            let error = found(bad).unwrap_err();
            assert_eq!(error.operation(), Operation::CheckBackup, "{bad:?}");
        }
    }

    #[test]
    fn what_is_changed_while_it_is_read_is_not_believed() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.sums");
        let digest = written(&path, &[0, 1]);
        let mut sums = open(&path, &digest, 2).unwrap();
        std::fs::remove_file(&path).unwrap();
        written(&path, &[0, 1]);
        let error = sums.step().unwrap_err();
        assert_eq!(error.operation(), Operation::ReadBackup);
        assert!(error.to_string().contains("changed"), "{error}");
    }
}
