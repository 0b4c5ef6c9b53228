// SPDX-License-Identifier: GPL-2.0-only

//! Reading the images of devices and writing those of a restore point.

use crate::device::Takes;
use crate::device::Tracking;
use crate::error::Result;
use crate::held::HeldDevice;
use crate::size::Bytes;

use super::changes;
use super::changes::Extent;
use super::image;
use super::image::CLUSTER;
use super::manifest::Image;
use super::names;
use super::plan::WhyAll;
use super::sample;
use super::source::Buffer;
use super::source::Source;
use super::source::Throttle;
use super::store::Store;
use super::sums;
use super::sums::Entry;
use super::sums::Sum;
use super::view;
use super::view::View;
use super::Progress;
use super::Watch;

/// How many bytes are read at a time.
const PIECE: u64 = 4 << 20;

/// A device whose image is to be read.
pub struct Job {
    pub device: HeldDevice,
    /// As the manifest names it.
    pub name: String,
    /// What its files are called.
    pub label: String,
    pub tracking: Tracking,
    pub takes: Option<Takes>,
    pub source: Source,
    pub base: Option<Image>,
    /// Why all of it is read; with a base it is compared with that.
    pub why_all: Option<WhyAll>,
    /// Of whole clusters.
    pub extents: Vec<Extent>,
    /// Bytes that did not change and were read nevertheless.
    pub checked_bytes: u64,
}

/// Writes images into the directory of a restore point.
pub struct Copier<'a> {
    store: &'a Store,
    directory: &'a str,
    number: u64,
    throttle: Throttle,
    buffer: Buffer,
    progress: Progress,
    watch: &'a mut dyn Watch,
}

impl<'a> Copier<'a> {
    /// `total` is what is going to be read, in bytes.
    pub fn new(
        store: &'a Store,
        directory: &'a str,
        number: u64,
        bandwidth: Option<Bytes>,
        total: u64,
        watch: &'a mut dyn Watch,
    ) -> Self {
        Self {
            store,
            directory,
            number,
            throttle: Throttle::new(bandwidth.map(|rate| rate.0)),
            buffer: Buffer::new(PIECE as usize),
            progress: Progress { done: 0, total },
            watch,
        }
    }

    /// Compares `percent` of what did not change with the base. If something differs, all of
    /// the device is going to be read, and that is a warning.
    pub fn check(&mut self, job: &mut Job, percent: u8) -> Result<()> {
        let Some(base) = job.base.as_ref().filter(|_| job.why_all.is_none()) else {
            return Ok(());
        };
        let size = job.source.size();
        let same = sample::others(&job.extents, size);
        let wanted = sample::wanted(changes::total(&same), percent);
        let picked = sample::pick(&same, wanted, &mut fastrand::Rng::new());
        let mut before = View::open(self.store, &self.store.manifest().chain(&base.name))?;
        self.progress.total += changes::total(&picked);
        for extent in &picked {
            let bytes = self.read(job, extent.offset, extent.length)?;
            job.checked_bytes += extent.length;
            let mut clusters = (extent.offset / CLUSTER..).zip(bytes.chunks(CLUSTER as usize));
            let found = clusters.find_map(|(cluster, bytes)| {
                match before.sum(cluster).map(|sum| sum.unwrap_or(sums::ZERO)) {
                    Ok(sum) => (sum != digest(bytes)).then_some(Ok(cluster)),
                    Err(error) => Some(Err(error)),
                }
            });
            if let Some(cluster) = found.transpose()? {
                job.why_all = Some(WhyAll::Missed(cluster * CLUSTER));
                job.extents = vec![Extent {
                    offset: 0,
                    length: size,
                }];
                self.progress.total += changes::total(&same);
                self.watch.warn(&format!(
                    "{}: bytes from {} on are not what was backed up, and the change tracking has \
                     not seen that: something writes past it. All is read and compared now",
                    job.device.device.display(),
                    cluster * CLUSTER
                ));
                break;
            }
        }
        Ok(())
    }

    /// Reads from the image of a device, at the rate that is allowed.
    fn read(&mut self, job: &Job, at: u64, length: u64) -> Result<&[u8]> {
        let (progress, watch) = (self.progress, &mut *self.watch);
        self.throttle
            .pass(length, &mut || watch.keep_on(progress))?;
        let bytes = self.buffer.first(length as usize);
        job.source.read(at, bytes)?;
        self.progress.done += length;
        self.watch.keep_on(self.progress)?;
        Ok(bytes)
    }

    pub fn copy(&mut self, job: &Job) -> Result<Image> {
        let create = |end| {
            let name = format!("{}/{}.{end}", self.directory, job.label);
            self.store.create(&name)
        };
        let base = job.base.as_ref().map(|base| base.name.clone());
        let before = match &base {
            Some(base) => Some(View::open(self.store, &self.store.manifest().chain(base))?),
            None => None,
        };
        let relative = base.as_deref().map(view::relative);
        let size = job.source.size();
        let (image, image_path) = create("qcow2")?;
        let (sums, sums_path) = create("sums")?;
        let mut target = Target {
            image: image::Writer::new(image, &image_path, size, relative.as_deref()),
            sums: sums::Writer::new(sums, &sums_path)?,
            before,
            data_bytes: 0,
        };
        for extent in &job.extents {
            let mut at = extent.offset;
            while at < extent.end() {
                let piece = self.throttle.piece(PIECE, CLUSTER);
                let length = piece.min(extent.end() - at);
                target.put(at, self.read(job, at, length)?)?;
                at += length;
            }
        }
        let sums = target.sums.finish()?;
        let written = target.image.finish()?;
        Ok(Image {
            name: format!("{}/{}", names::directory(self.number), job.label),
            base,
            size,
            logical_block_size: job.source.logical_block_size(),
            generation_id: job.tracking.generation_id,
            changes_number: job.tracking.changes_number,
            take_id: job.takes.as_ref().and_then(Takes::newest),
            data_bytes: target.data_bytes,
            file_bytes: written.file_bytes,
            metadata: written.metadata,
            sums,
        })
    }
}

/// An image, its digests, and what is known of the base.
struct Target {
    image: image::Writer,
    sums: sums::Writer,
    before: Option<View>,
    data_bytes: u64,
}

/// What becomes of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The base has the same.
    Left,
    Zeroed,
    Written,
}

impl Target {
    /// Takes over whole clusters, or all up to the end of the device.
    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        // Neighbours with one fate are handled together.
        let mut start = 0;
        let mut fate = Fate::Left;
        for (index, cluster) in bytes.chunks(CLUSTER as usize).enumerate() {
            let at = index * CLUSTER as usize;
            let next = self.decide(offset / CLUSTER + index as u64, cluster)?;
            if next != fate {
                self.settle(fate, offset + start as u64, &bytes[start..at])?;
                (start, fate) = (at, next);
            }
        }
        self.settle(fate, offset + start as u64, &bytes[start..])
    }

    fn decide(&mut self, cluster: u64, bytes: &[u8]) -> Result<Fate> {
        let sum = digest(bytes);
        let before: Sum = match &mut self.before {
            Some(before) => before.sum(cluster)?.unwrap_or(sums::ZERO),
            None => sums::ZERO,
        };
        if sum == before {
            return Ok(Fate::Left);
        }
        self.sums.push(Entry { cluster, sum })?;
        Ok(if sum == sums::ZERO {
            Fate::Zeroed
        } else {
            Fate::Written
        })
    }

    fn settle(&mut self, fate: Fate, offset: u64, bytes: &[u8]) -> Result<()> {
        match fate {
            _ if bytes.is_empty() => Ok(()),
            Fate::Left => Ok(()),
            Fate::Zeroed => self.image.zero(offset, bytes.len() as u64),
            Fate::Written => {
                self.data_bytes += bytes.len() as u64;
                self.image.write(offset, bytes)
            }
        }
    }
}

/// What the digests have for a cluster.
fn digest(bytes: &[u8]) -> Sum {
    match is_zero(bytes) {
        true => sums::ZERO,
        false => *blake3::hash(bytes).as_bytes(),
    }
}

/// Without an early end within a piece, so that many bytes are looked at at once.
fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(4096)
        .all(|piece| piece.iter().fold(0, |any, byte| any | byte) == 0)
}
