// SPDX-License-Identifier: GPL-2.0-only

//! Images of devices as qcow2 files.
//!
//! As much of the format as a backup needs: version 3, clusters of 64 KiB,
//! written once from the start of the device to its end, without compression and
//! snapshots. Data and L2 tables lie in the file as they come; the L1 table and
//! the refcounts, all of which are 1, are behind them.
//!
//! An image holds the clusters in which it differs from its base, and is read
//! here without the base: which image holds a cluster is known from the
//! digests (see [`super::view`]). Others follow the name of the base that is in
//! the file.
//!
//! The format is specified in docs/interop/qcow2.txt of QEMU.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::fadvise;
use rustix::fs::Advice;
use rustix::io::Errno;

use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;

use super::sink::Sink;
use super::store;
use super::sums::damaged;

/// Bytes of a cluster, the unit in which images hold data.
pub const CLUSTER: u64 = 1 << CLUSTER_BITS;

const CLUSTER_BITS: u32 = 16;
const MAGIC: u32 = 0x5146_49fb;
const VERSION: u32 = 3;
/// Refcounts have 1 << this many bits.
const REFCOUNT_ORDER: u32 = 4;
/// Bytes of the fields of the header.
const HEADER: usize = 104;
/// The header extension with the format of the base.
const BASE_FORMAT: u32 = 0xe279_2aca;

/// Entries of an L2 table, which fills a cluster.
const L2_ENTRIES: u64 = CLUSTER / 8;
/// Refcounts in a cluster.
const REFCOUNTS: u64 = CLUSTER / 2;

/// In an entry: the refcount of the cluster is 1.
const COPIED: u64 = 1 << 63;
/// In an entry of an L2 table: the cluster reads as zeroes.
const ZERO: u64 = 1;
/// The bits of an entry that are the offset in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// What a disk loses at once, as a rule: what remains of a cluster is read in such pieces.
const PIECE: usize = 4096;
/// Stands for entries in a piece that cannot be read; no image has it.
const UNREADABLE: u64 = u64::MAX;

/// An image that is being written, from the start of the device to its end.
pub struct Writer {
    sink: Sink,
    size: u64,
    base: Option<String>,
    l1: Vec<u64>,
    /// The L2 table of entry number `l2_index` of the L1 table.
    l2: Vec<u64>,
    l2_index: u64,
    /// The first cluster of the file that is free.
    free: u64,
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
    /// base, relative to that of the image, of at most 1023 bytes.
    pub fn create(path: &Path, size: u64, base: Option<&str>) -> Result<Self> {
        let l1_entries = size.div_ceil(CLUSTER * L2_ENTRIES).max(1);
        Ok(Self {
            sink: Sink::new(store::create_file(path)?, path, Operation::WriteBackup),
            size,
            base: base.map(str::to_owned),
            l1: vec![0; l1_entries as usize],
            l2: vec![0; L2_ENTRIES as usize],
            l2_index: 0,
            // The header has the first.
            free: 1,
        })
    }

    /// Writes whole clusters, or all up to the end of the device.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut cluster = offset / CLUSTER;
        let mut rest = bytes;
        while !rest.is_empty() {
            self.go_to(cluster)?;
            // What one table refers to lies together.
            let room = (L2_ENTRIES - cluster % L2_ENTRIES) * CLUSTER;
            let (here, after) = rest.split_at(rest.len().min(room as usize));
            self.sink.write(self.free * CLUSTER, here)?;
            // The end of the last cluster stays a hole.
            for _ in 0..(here.len() as u64).div_ceil(CLUSTER) {
                self.l2[(cluster % L2_ENTRIES) as usize] = COPIED | (self.free * CLUSTER);
                self.free += 1;
                cluster += 1;
            }
            rest = after;
        }
        Ok(())
    }

    /// Makes whole clusters read as zeroes whatever the base has.
    pub fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        let start = offset / CLUSTER;
        for cluster in start..start + length.div_ceil(CLUSTER) {
            self.go_to(cluster)?;
            self.l2[(cluster % L2_ENTRIES) as usize] = ZERO;
        }
        Ok(())
    }

    /// Has the table of a cluster at hand.
    fn go_to(&mut self, cluster: u64) -> Result<()> {
        let index = cluster / L2_ENTRIES;
        assert!(
            index >= self.l2_index,
            "images are written from start to end"
        );
        if index != self.l2_index {
            self.put_l2()?;
            self.l2_index = index;
        }
        Ok(())
    }

    fn put_l2(&mut self) -> Result<()> {
        if self.l2.iter().any(|entry| *entry != 0) {
            self.l1[self.l2_index as usize] = COPIED | (self.free * CLUSTER);
            self.sink
                .write(self.free * CLUSTER, &big_endian(&self.l2))?;
            self.free += 1;
            self.l2.fill(0);
        }
        Ok(())
    }

    /// Makes it durable.
    pub fn finish(mut self) -> Result<Written> {
        self.put_l2()?;
        let l1_offset = self.append(&big_endian(&self.l1.clone()))?;
        let (table_clusters, blocks) = refcount_clusters(self.free);
        let table_offset = self.free * CLUSTER;
        let first_block = self.free + table_clusters;
        let end = first_block + blocks;
        let table: Vec<u64> = (first_block..end).map(|block| block * CLUSTER).collect();
        self.append(&big_endian(&table))?;
        for block in 0..blocks {
            let count = REFCOUNTS.min(end - block * REFCOUNTS);
            self.append(&[0, 1].repeat(count as usize))?;
        }
        let header = self.header(l1_offset, table_offset, table_clusters);
        self.sink.write(0, &header)?;
        // The last cluster may have been started only.
        let file_bytes = end * CLUSTER;
        self.sink
            .file()
            .set_len(file_bytes)
            .map_err(|error| self.sink.failed(&error))?;
        self.sink.sync()?;
        let base = self.base.as_deref();
        let image = Reader::open(self.sink.path(), self.size, base, file_bytes)?;
        Ok(Written {
            file_bytes,
            metadata: image.metadata_sum()?,
        })
    }

    /// Writes a table behind all that there is; returns where.
    fn append(&mut self, bytes: &[u8]) -> Result<u64> {
        let offset = self.free * CLUSTER;
        self.sink.write(offset, bytes)?;
        self.free += (bytes.len() as u64).div_ceil(CLUSTER);
        Ok(offset)
    }

    fn header(&self, l1_offset: u64, table_offset: u64, table_clusters: u64) -> Vec<u8> {
        let base = self.base.as_deref().unwrap_or_default().as_bytes();
        let mut extensions = Vec::new();
        if !base.is_empty() {
            extensions.extend(BASE_FORMAT.to_be_bytes());
            extensions.extend(5u32.to_be_bytes());
            extensions.extend(b"qcow2\0\0\0");
        }
        // The end of the extensions.
        extensions.extend([0; 8]);
        let base_offset = match base {
            [] => 0,
            _ => (HEADER + extensions.len()) as u64,
        };

        let mut header = Vec::new();
        header.extend(MAGIC.to_be_bytes());
        header.extend(VERSION.to_be_bytes());
        header.extend(base_offset.to_be_bytes());
        header.extend((base.len() as u32).to_be_bytes());
        header.extend(CLUSTER_BITS.to_be_bytes());
        header.extend(self.size.to_be_bytes());
        // Not encrypted
        header.extend(0u32.to_be_bytes());
        header.extend((self.l1.len() as u32).to_be_bytes());
        header.extend(l1_offset.to_be_bytes());
        header.extend(table_offset.to_be_bytes());
        header.extend((table_clusters as u32).to_be_bytes());
        // No snapshots, of which the number and a table are told
        header.extend([0; 12]);
        // No features, of three kinds
        header.extend([0; 24]);
        header.extend(REFCOUNT_ORDER.to_be_bytes());
        header.extend((HEADER as u32).to_be_bytes());
        assert_eq!(header.len(), HEADER);
        header.extend(extensions);
        header.extend(base);
        header
    }
}

/// How many clusters the refcount table and its blocks take, if so many come
/// before them. They have refcounts themselves.
fn refcount_clusters(before: u64) -> (u64, u64) {
    let (mut table, mut blocks) = (1, 1);
    loop {
        let total = before + table + blocks;
        let needed = total.div_ceil(REFCOUNTS);
        let needed_table = (needed * 8).div_ceil(CLUSTER);
        if (needed_table, needed) == (table, blocks) {
            return (table, blocks);
        }
        (table, blocks) = (needed_table, needed);
    }
}

fn big_endian(entries: &[u64]) -> Vec<u8> {
    entries
        .iter()
        .flat_map(|entry| entry.to_be_bytes())
        .collect()
}

fn parse_table(table: &[u8]) -> Vec<u64> {
    let entry = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("chunks of 8"));
    table.chunks_exact(8).map(entry).collect()
}

/// Whether an error is one of the content of a file, or of the place where it is: not
/// one that every read may have, as of a network that is gone.
fn means_damage(error: &Error) -> bool {
    const ERRNOS: [Errno; 4] = [Errno::IO, Errno::ILSEQ, Errno::BADMSG, Errno::NODATA];
    error.operation() == Operation::CheckBackup
        || error.errno().is_none_or(|errno| ERRNOS.contains(&errno))
}

/// An image that is there.
pub struct Reader {
    file: File,
    path: PathBuf,
    size: u64,
    file_bytes: u64,
    l1: Vec<u64>,
    /// The L2 table that was looked into last, or why it cannot be read, and its
    /// entry in the L1 table.
    l2: Option<(usize, Result<Vec<u64>>)>,
}

/// The fields of a header, one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&mut self) -> u32 {
        let (field, rest) = self.0.split_at(4);
        self.0 = rest;
        u32::from_be_bytes(field.try_into().expect("split at 4"))
    }

    fn u64(&mut self) -> u64 {
        u64::from(self.u32()) << 32 | u64::from(self.u32())
    }
}

impl Reader {
    /// Opens an image of a device of `size` bytes.
    ///
    /// An error of [`Operation::CheckBackup`] if it is missing or not what the
    /// arguments say.
    pub fn open(path: &Path, size: u64, base: Option<&str>, file_bytes: u64) -> Result<Self> {
        let file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => damaged(path, "it is missing"),
            _ => Error::from_io(Operation::ReadBackup, &error).on(path),
        })?;
        let length = store::length(&file, path)?;
        if length != file_bytes {
            return Err(damaged(
                path,
                format!("it has {length} bytes, but {file_bytes} were written"),
            ));
        }
        let mut image = Self {
            file,
            path: path.to_owned(),
            size,
            file_bytes,
            l1: Vec::new(),
            l2: None,
        };
        image.l1 = image.read_header(base.unwrap_or_default())?;
        Ok(image)
    }

    /// Checks the header; returns the L1 table.
    fn read_header(&self, base: &str) -> Result<Vec<u64>> {
        let mut bytes = [0; HEADER];
        self.read_file(0, &mut bytes)?;
        let mut fields = Fields(&bytes);
        if (fields.u32(), fields.u32()) != (MAGIC, VERSION) {
            return Err(damaged(&self.path, "it is no qcow2 image of version 3"));
        }
        let (base_offset, base_length) = (fields.u64(), fields.u32());
        let cluster_bits = fields.u32();
        if fields.u64() != self.size {
            return Err(damaged(&self.path, "it is of a device of another size"));
        }
        let encryption = fields.u32();
        let (l1_entries, l1_offset) = (u64::from(fields.u32()), fields.u64());
        let _refcounts = (fields.u64(), fields.u32());
        let (snapshots, _) = (fields.u32(), fields.u64());
        let incompatible = fields.u64();
        if cluster_bits != CLUSTER_BITS || encryption != 0 || snapshots != 0 || incompatible != 0 {
            return Err(damaged(&self.path, "it is not as this command writes them"));
        }
        let mut name = vec![0; base.len()];
        if base_length as usize == base.len() {
            self.read_file(base_offset, &mut name)?;
        }
        if name != base.as_bytes() || base_length as usize != base.len() {
            return Err(damaged(&self.path, "it names another base"));
        }
        if l1_entries != self.size.div_ceil(CLUSTER * L2_ENTRIES).max(1) {
            return Err(damaged(&self.path, "its L1 table has another size"));
        }
        self.read_table(l1_offset, l1_entries)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn read_table(&self, offset: u64, entries: u64) -> Result<Vec<u64>> {
        let mut bytes = vec![0; entries as usize * 8];
        self.read_file(offset, &mut bytes)?;
        Ok(parse_table(&bytes))
    }

    fn read_file(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let length = bytes.len() as u64;
        if offset > self.file_bytes || self.file_bytes - offset < length {
            return Err(damaged(&self.path, "it refers to what is past its end"));
        }
        let failed = |error| Error::from_io(Operation::ReadBackup, &error).on(&self.path);
        self.file.read_exact_at(bytes, offset).map_err(failed)
    }

    /// The L2 table for entry `index` of the L1 table; none if that is empty.
    fn l2(&self, index: usize) -> Result<Option<Vec<u64>>> {
        match self.l1[index] & OFFSET {
            0 => Ok(None),
            offset => self.read_table(offset, L2_ENTRIES).map(Some),
        }
    }

    /// The same as far as it can be read.
    fn salvage_l2(&self, index: usize) -> Result<Option<Vec<u64>>> {
        self.l2(index).or_else(|error| {
            self.confirm_damage(error)?;
            let mut bytes = vec![0; CLUSTER as usize];
            self.read_pieces(self.l1[index] & OFFSET, &mut bytes, UNREADABLE as u8)?;
            Ok(Some(parse_table(&bytes)))
        })
    }

    /// Reads what can be read, and fills the other pieces with a byte.
    fn read_pieces(&self, offset: u64, bytes: &mut [u8], filler: u8) -> Result<()> {
        for (at, piece) in (offset..).step_by(PIECE).zip(bytes.chunks_mut(PIECE)) {
            if let Err(error) = self.read_file(at, piece) {
                self.confirm_damage(error)?;
                piece.fill(filler);
            }
        }
        Ok(())
    }

    /// Hands an error back unless it means that a part of the file is damaged: not
    /// that none of it can be read any more, as if its disk was unplugged.
    fn confirm_damage(&self, error: Error) -> Result<()> {
        if !means_damage(&error) {
            return Err(error);
        }
        if error.errno().is_none() {
            return Ok(());
        }
        // Not from the cache; all of it goes, as parts of large folios stay in there.
        let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
        self.read_file(0, &mut [0; HEADER]).map_err(|_| error)
    }

    /// Reads one cluster, which this image itself holds, as far as that can be done;
    /// the rest of it becomes zeroes.
    pub fn salvage(&mut self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let Err(error) = self.read(offset, bytes) else {
            return Ok(());
        };
        self.confirm_damage(error)?;
        bytes.fill(0);
        match self.run_at(offset / CLUSTER, 1) {
            Ok((Some(place), _)) => self.read_pieces(place, bytes, 0),
            Ok((None, _)) => Ok(()),
            Err(error) => self.confirm_damage(error),
        }
    }

    /// Reads whole clusters, or all up to the end of the device, that this
    /// image itself holds. Others are zeroes.
    pub fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let mut cluster = offset / CLUSTER;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (place, clusters) = self.run_at(cluster, rest.len() as u64)?;
            let count = rest.len().min((clusters * CLUSTER) as usize);
            let (here, after) = rest.split_at_mut(count);
            match place {
                None => here.fill(0),
                Some(place) => {
                    self.read_file(place, here)?;
                    // Only advice; nobody needs it again soon.
                    let length = NonZeroU64::new(count as u64);
                    let _ = fadvise(&self.file, place, length, Advice::DontNeed);
                }
            }
            cluster += clusters;
            rest = after;
        }
        Ok(())
    }

    /// Where the data of a cluster is, and how many clusters, of at most
    /// `length` bytes, follow each other there. None for zeroes.
    fn run_at(&mut self, cluster: u64, length: u64) -> Result<(Option<u64>, u64)> {
        let index = (cluster / L2_ENTRIES) as usize;
        if self.l2.as_ref().is_none_or(|(at, _)| *at != index) {
            let zeroes = || vec![0; L2_ENTRIES as usize];
            let table = self.salvage_l2(index);
            let table = table.map(|table| table.unwrap_or_else(zeroes));
            self.l2 = Some((index, table));
        }
        let table = match &self.l2 {
            Some((_, Err(error))) => return Err(error.clone()),
            Some((_, Ok(table))) => table.as_slice(),
            None => &[],
        };
        let entries = &table[(cluster % L2_ENTRIES) as usize..];
        let place = self.data(entries[0])?;
        let mut count = 1;
        while count * CLUSTER < length {
            let next = match entries.get(count as usize) {
                Some(entry) => self.data(*entry)?,
                None => break,
            };
            if next != place.map(|place| place + count * CLUSTER) {
                break;
            }
            count += 1;
        }
        Ok((place, count))
    }

    /// Where the data of an entry is; none if it is zero or in the base.
    fn data(&self, entry: u64) -> Result<Option<u64>> {
        let offset = entry & OFFSET;
        if entry == UNREADABLE {
            return Err(damaged(&self.path, "a part of its tables cannot be read"));
        }
        if entry & !(OFFSET | COPIED | ZERO) != 0 || offset % CLUSTER != 0 {
            return Err(damaged(&self.path, "an entry of its tables makes no sense"));
        }
        Ok((entry & ZERO == 0 && offset != 0).then_some(offset))
    }

    /// Digest of all of the file that is not data, so that all of it is covered
    /// by this and the digests of the data.
    pub fn metadata_sum(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        for (start, end) in self.data_ranges()? {
            if start < at {
                return Err(damaged(&self.path, "two clusters of it are in one place"));
            }
            self.add(at, start, &mut hasher)?;
            at = end;
        }
        self.add(at, self.file_bytes, &mut hasher)?;
        Ok(hasher.finalize().to_string())
    }

    /// From where to where there is data in the file, in ascending order.
    fn data_ranges(&self) -> Result<Vec<(u64, u64)>> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for index in 0..self.l1.len() {
            let Some(table) = self.l2(index)? else {
                continue;
            };
            for (cluster, entry) in (index as u64 * L2_ENTRIES..).zip(table) {
                let Some(start) = self.data(entry)? else {
                    continue;
                };
                // Of the last one the end is no data.
                let length = CLUSTER.min(self.size.saturating_sub(cluster * CLUSTER));
                match ranges.last_mut() {
                    Some((_, end)) if *end == start => *end += length,
                    _ => ranges.push((start, start + length)),
                }
            }
        }
        ranges.sort_unstable();
        Ok(ranges)
    }

    fn add(&self, start: u64, end: u64, hasher: &mut blake3::Hasher) -> Result<()> {
        hasher.update(&start.to_le_bytes());
        hasher.update(&end.to_le_bytes());
        let mut piece = vec![0; CLUSTER as usize];
        for at in (start..end).step_by(CLUSTER as usize) {
            let piece = &mut piece[..CLUSTER.min(end - at) as usize];
            self.read_file(at, piece)?;
            hasher.update(piece);
        }
        Ok(())
    }
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
        let mut image = open(SIZE, Some("../b.qcow2")).unwrap();
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

    /// Without data of that size.
    #[test]
    fn a_large_device_has_several_tables() {
        const TIB: u64 = 1 << 40;
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.qcow2");
        let size = 70 * TIB + 512;
        let table = L2_ENTRIES * CLUSTER;
        let mut image = Writer::create(&path, size, None).unwrap();
        // Across the end of a table, and far behind it.
        let bytes: Vec<u8> = (0..4 * CLUSTER)
            .map(|at| (at / CLUSTER) as u8 + 1)
            .collect();
        image.write(table - 2 * CLUSTER, &bytes).unwrap();
        image.zero(5 * table - CLUSTER, 2 * CLUSTER).unwrap();
        image.write(70 * TIB, &[7; 512]).unwrap();
        let written = image.finish().unwrap();
        let mut image = Reader::open(&path, size, None, written.file_bytes).unwrap();
        let mut found = vec![9; bytes.len() + 2 * CLUSTER as usize];
        image.read(table - 3 * CLUSTER, &mut found).unwrap();
        let (before, rest) = found.split_at(CLUSTER as usize);
        assert!(before.iter().all(|byte| *byte == 0));
        assert!(rest[..bytes.len()] == bytes);
        assert!(rest[bytes.len()..].iter().all(|byte| *byte == 0));
        let mut found = [0; 512];
        image.read(70 * TIB, &mut found).unwrap();
        assert_eq!(found, [7; 512]);
        check_with_qemu(&path);
    }

    #[test]
    fn what_can_be_read_is_salvaged() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.qcow2");
        let written = write(&path, None);
        let open = || Reader::open(&path, SIZE, None, written.file_bytes).unwrap();
        let cut = |length| {
            let file = File::options().write(true).open(&path).unwrap();
            file.set_len(length).unwrap();
        };
        let mut bytes = vec![9; CLUSTER as usize];

        // Only the first piece of the L2 table is left, which has all that there is.
        let mut image = open();
        cut((image.l1[0] & OFFSET) + PIECE as u64);
        image.read(CLUSTER, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 1));
        let (_, table) = image.l2.as_ref().unwrap();
        let (_, lost) = table.as_ref().unwrap().split_at(PIECE / 8);
        assert_eq!(lost, vec![UNREADABLE; L2_ENTRIES as usize - PIECE / 8]);
        let error = image.data(UNREADABLE).unwrap_err();
        assert_eq!(error.operation(), Operation::CheckBackup);

        // The same of the cluster, which is the first after the header.
        cut(CLUSTER + PIECE as u64);
        image.read(CLUSTER, &mut bytes).unwrap_err();
        image.salvage(CLUSTER, &mut bytes).unwrap();
        let (left, lost) = bytes.split_at(PIECE);
        assert!(left.iter().all(|byte| *byte == 1) && lost.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_backup_that_is_gone_is_not_damaged() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.qcow2");
        let written = write(&path, None);
        let mut image = Reader::open(&path, SIZE, None, written.file_bytes).unwrap();
        let confirmed = |image: &Reader, errno| {
            image.confirm_damage(Error::from_errno(Operation::ReadBackup, errno))
        };
        for errno in [Errno::IO, Errno::ILSEQ, Errno::BADMSG, Errno::NODATA] {
            assert!(confirmed(&image, errno).is_ok(), "{errno}");
        }
        for errno in [Errno::STALE, Errno::NOMEM, Errno::NXIO, Errno::TIMEDOUT] {
            let error = confirmed(&image, errno).unwrap_err();
            assert_eq!(error.errno(), Some(errno));
        }
        // All of which fails with EIO, as nothing is mapped there.
        image.file = File::open("/proc/self/mem").unwrap();
        let mut bytes = vec![9; CLUSTER as usize];
        let error = image.salvage(CLUSTER, &mut bytes).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::IO));
        assert!(confirmed(&image, Errno::IO).is_err());
    }

    fn check_with_qemu(path: &Path) {
        let check = std::process::Command::new("qemu-img")
            .arg("check")
            .arg(path)
            .output();
        if let Ok(output) = check {
            assert!(output.status.success(), "{output:?}");
        }
    }

    #[test]
    fn refcounts_count_themselves() {
        for before in [
            1,
            2,
            1000,
            32_765,
            32_766,
            32_767,
            65_532,
            65_533,
            1 << 28,
            (1 << 28) + 7,
        ] {
            let (table, blocks) = refcount_clusters(before);
            let total = before + table + blocks;
            assert!(blocks * REFCOUNTS >= total);
            assert!((blocks - 1) * REFCOUNTS < total);
            assert_eq!(table, (blocks * 8).div_ceil(CLUSTER));
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
