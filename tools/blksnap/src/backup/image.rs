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

use super::member;
use super::member::Member;
use super::sink::Sink;
use super::sums::damaged;

/// Bytes of a cluster, the unit in which images hold data.
pub const CLUSTER: u64 = 1 << CLUSTER_BITS;

/// Upper limit of the size of a device, 2 PiB: the L1 table of a larger one would have more
/// than the 32 MiB that QEMU reads.
pub const MAX_SIZE: u64 = 1 << 51;

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
    /// The image of a device of `size` bytes, at most [`MAX_SIZE`], in a new file that can
    /// be read and written. `base` is the path of the base, relative to that of the
    /// image, of at most 1023 bytes.
    pub fn new(file: File, path: &Path, size: u64, base: Option<&str>) -> Self {
        Self {
            sink: Sink::new(file, path, Operation::WriteBackup),
            size,
            base: base.map(str::to_owned),
            l1: vec![0; l1_entries(size) as usize],
            l2: vec![0; L2_ENTRIES as usize],
            l2_index: 0,
            // The header has the first.
            free: 1,
        }
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
        let file = self.sink.file().try_clone();
        let file = file.map_err(|error| self.sink.failed(&error))?;
        let image = Reader::new(file, self.sink.path(), self.size, base, file_bytes)?;
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

/// Entries of the L1 table of a device.
fn l1_entries(size: u64) -> u64 {
    size.div_ceil(CLUSTER * L2_ENTRIES).max(1)
}

/// Bytes of a file whose data and L2 tables take `clusters`.
fn file_bytes(size: u64, clusters: u64) -> u64 {
    let before = 1 + clusters + (l1_entries(size) * 8).div_ceil(CLUSTER);
    let (table, blocks) = refcount_clusters(before);
    (before + table + blocks) * CLUSTER
}

/// Upper limit of the bytes of an image's file.
pub fn max_file_bytes(size: u64) -> u64 {
    file_bytes(size, size.div_ceil(CLUSTER) + l1_entries(size))
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
/// one that every read may have, as of a network that is gone, and not that others can write
/// to it, which is set right without a change of the content.
pub(super) fn means_damage(error: &Error) -> bool {
    const ERRNOS: [Errno; 4] = [Errno::IO, Errno::ILSEQ, Errno::BADMSG, Errno::NODATA];
    match error.errno() {
        _ if error.operation() == Operation::CheckBackup => true,
        Some(errno) => ERRNOS.contains(&errno),
        None => error.operation() != Operation::OpenBackup,
    }
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

/// Where in the file of an image the data of its clusters is, as [`Writer`] lays them out: known
/// without its tables, which are lost if it was cut off.
#[derive(Debug)]
pub struct Places {
    /// The first cluster of the file that is free.
    free: u64,
    /// The entry of the L1 table that the last cluster belonged to.
    table: Option<u64>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            // The header has the first.
            free: 1,
            table: None,
        }
    }
}

impl Places {
    /// The offset of the data of the next cluster that the image holds, in ascending order; none
    /// if it is zeroes.
    pub fn next(&mut self, cluster: u64, is_zero: bool) -> Option<u64> {
        let table = cluster / L2_ENTRIES;
        if self.table.is_some_and(|it| it != table) {
            // The table lies behind what it refers to.
            self.free += 1;
        }
        self.table = Some(table);
        if is_zero {
            return None;
        }
        self.free += 1;
        Some((self.free - 1) * CLUSTER)
    }
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
    pub fn open(member: &Member, size: u64, base: Option<&str>, file_bytes: u64) -> Result<Self> {
        Self::new(member.open()?, member.path(), size, base, file_bytes)
    }

    /// The same of a file that is open.
    pub fn new(
        file: File,
        path: &Path,
        size: u64,
        base: Option<&str>,
        file_bytes: u64,
    ) -> Result<Self> {
        let length = member::length(&file, path)?;
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
        if l1_entries != self::l1_entries(self.size) {
            return Err(damaged(&self.path, "its L1 table has another size"));
        }
        self.read_table(l1_offset, l1_entries)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn read_table(&self, offset: u64, entries: u64) -> Result<Vec<u64>> {
        // Before there is memory for it.
        self.check_range(offset, entries * 8)?;
        let mut bytes = vec![0; entries as usize * 8];
        self.read_file(offset, &mut bytes)?;
        Ok(parse_table(&bytes))
    }

    fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        if offset > self.file_bytes || self.file_bytes - offset < length {
            return Err(damaged(&self.path, "it refers to what is past its end"));
        }
        Ok(())
    }

    fn read_file(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.check_range(offset, bytes.len() as u64)?;
        self.file
            .read_exact_at(bytes, offset)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => damaged(&self.path, "it was cut off"),
                _ => Error::from_io(Operation::ReadBackup, &error).on(&self.path),
            })
    }

    /// The L2 table for entry `index` of the L1 table; none if that is empty.
    fn l2(&self, index: usize) -> Result<Option<Vec<u64>>> {
        let entry = self.l1[index];
        let offset = entry & OFFSET;
        if entry & !(OFFSET | COPIED) != 0 || offset % CLUSTER != 0 {
            return Err(damaged(
                &self.path,
                "an entry of its L1 table makes no sense",
            ));
        }
        match offset {
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

    /// From where to where there is data in the file. All of it and the tables lie in
    /// the order of the device, so that neither takes more memory than the file has reason for.
    fn data_ranges(&self) -> Result<Vec<(u64, u64)>> {
        let twice = || damaged(&self.path, "two clusters of it are in one place");
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let (mut data_end, mut table_end, mut clusters) = (CLUSTER, CLUSTER, 0);
        for index in 0..self.l1.len() {
            let Some(table) = self.l2(index)? else {
                continue;
            };
            let at = self.l1[index] & OFFSET;
            if at < table_end {
                return Err(twice());
            }
            table_end = at + CLUSTER;
            clusters += 1;
            for (cluster, entry) in (index as u64 * L2_ENTRIES..).zip(table) {
                let Some(start) = self.data(entry)? else {
                    continue;
                };
                if start < data_end {
                    return Err(twice());
                }
                if cluster >= self.size.div_ceil(CLUSTER) {
                    let reason = "it has a cluster past the end of the device";
                    return Err(damaged(&self.path, reason));
                }
                data_end = start + CLUSTER;
                clusters += 1;
                // Of the last one the end is no data.
                let length = CLUSTER.min(self.size.saturating_sub(cluster * CLUSTER));
                match ranges.last_mut() {
                    Some((_, end)) if *end == start => *end += length,
                    _ => ranges.push((start, start + length)),
                }
            }
        }
        // The rest of the file is tables, and there are no more of them than it needs.
        if self.file_bytes != file_bytes(self.size, clusters) {
            return Err(damaged(&self.path, "its length does not fit its tables"));
        }
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
mod tests;
