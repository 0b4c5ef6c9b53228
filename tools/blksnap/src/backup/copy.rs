// SPDX-License-Identifier: GPL-2.0-only

//! Reading the images of devices and writing those of a restore point.

use crate::device::Takes;
use crate::device::Tracking;
use crate::error::Result;
use crate::held::Held;
use crate::held::HeldDevice;
use crate::identity::Disk;
use crate::size::Bytes;
use crate::Uuid;

use super::changes;
use super::changes::Extent;
use super::image;
use super::image::CLUSTER;
use super::manifest::Image;
use super::manifest::MAX_UNREADABLE;
use super::names;
use super::plan::WhyAll;
use super::salvage;
use super::salvage::Attempt;
use super::salvage::Failure;
use super::salvage::Rescue;
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
    /// Which disk it is.
    pub disk: Disk,
    /// The kernel's boot id, if it is known.
    pub boot_id: Option<Uuid>,
    pub tracking: Tracking,
    pub takes: Option<Takes>,
    pub source: Source,
    pub base: Option<Image>,
    /// Why all of it is read; with a base it is compared with that.
    pub why_all: Option<WhyAll>,
    /// Why all is read, if it is full for another reason.
    pub why_read: Option<WhyAll>,
    /// Of whole clusters.
    pub extents: Vec<Extent>,
    /// Bytes that did not change and were read nevertheless.
    pub checked_bytes: u64,
}

/// Where images are written to, and how.
#[derive(Clone, Copy)]
pub struct Config<'a> {
    pub store: &'a Store,
    /// The directory of the restore point.
    pub directory: &'a str,
    /// Its number.
    pub number: u64,
    pub held: &'a Held<'a>,
    /// How many bytes may be read in a second.
    pub bandwidth: Option<Bytes>,
    /// Whether what cannot be read is left out.
    pub salvage: bool,
}

/// Writes images into the directory of a restore point.
pub struct Copier<'a> {
    config: Config<'a>,
    throttle: Throttle,
    buffer: Buffer,
    progress: Progress,
    watch: &'a mut dyn Watch,
}

impl<'a> Copier<'a> {
    /// `total` is what is going to be read, in bytes.
    pub fn new(config: Config<'a>, total: u64, watch: &'a mut dyn Watch) -> Self {
        Self {
            config,
            throttle: Throttle::new(config.bandwidth.map(|rate| rate.0)),
            buffer: Buffer::new(PIECE as usize),
            progress: Progress { done: 0, total },
            watch,
        }
    }

    /// Compares `percent` of what did not change with the base. If something differs, all of
    /// the device is going to be read, and that is a warning.
    pub fn check(&mut self, job: &mut Job, percent: u8) -> Attempt<()> {
        let Some(base) = job.base.as_ref().filter(|_| job.why_all.is_none()) else {
            return Ok(());
        };
        let size = job.source.size();
        let same = sample::others(&job.extents, size);
        let wanted = sample::wanted(changes::total(&same), percent);
        let picked = sample::pick(&same, wanted, &mut fastrand::Rng::new());
        let store = self.config.store;
        let mut before = View::open(store, &store.manifest().chain(&base.name))?;
        self.progress.total += changes::total(&picked);
        for extent in &picked {
            // What cannot be read now did not change, and the base has it.
            let (bytes, bad) = self.read(job, extent.offset, extent.length, true)?;
            job.checked_bytes += extent.length;
            let is_bad = |cluster: &u64| {
                let offset = cluster * CLUSTER;
                bad.iter()
                    .any(|bad| bad.offset < offset + CLUSTER && offset < bad.end())
            };
            let clusters = (extent.offset / CLUSTER..).zip(bytes.chunks(CLUSTER as usize));
            let mut clusters = clusters.filter(|(cluster, _)| !is_bad(cluster));
            let found = clusters.find_map(|(cluster, bytes)| {
                match before.sum(cluster).map(|sum| sum.unwrap_or(sums::ZERO)) {
                    Ok(sum) => (sum != digest(bytes)).then_some(Ok(cluster)),
                    Err(error) => Some(Err(error)),
                }
            });
            let found = found.transpose()?;
            self.tell_of(job, &bad, "did not change, and the last backup has them");
            if let Some(cluster) = found {
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

    /// Reads from the image of a device, at the rate that is allowed. Returns also what
    /// cannot be read and is zeroes; unless `salvage` is set there is no such thing.
    fn read(
        &mut self,
        job: &Job,
        at: u64,
        length: u64,
        salvage: bool,
    ) -> Attempt<(&[u8], Vec<Extent>)> {
        let (progress, watch, held) = (self.progress, &mut *self.watch, self.config.held);
        let keep_on = &mut || watch.keep_on(progress);
        self.throttle.pass(length, keep_on)?;
        let bytes = self.buffer.first(length as usize);
        let mut bad = Vec::new();
        if let Err(error) = job.source.read(at, bytes) {
            let mut rescue = Rescue {
                source: &job.source,
                device: &job.device.device,
                is_wanted: salvage,
                is_sound: &|| held.verify(&job.device),
                keep_on,
            };
            bad = rescue.read(at, bytes, &error)?;
            if bad.is_empty() {
                self.watch.warn(&format!(
                    "{}: of its bytes {at} to {} something could be read at the second try only; \
                     \"dmesg\" may tell why",
                    job.device.device.display(),
                    at + length
                ));
            }
        }
        self.progress.done += length;
        self.watch.keep_on(self.progress)?;
        Ok((bytes, bad))
    }

    /// Warns of what cannot be read.
    fn tell_of(&mut self, job: &Job, bad: &[Extent], what: &str) {
        for bad in bad {
            self.watch.warn(&format!(
                "{}: its bytes {} to {} cannot be read; they {what}",
                job.device.device.display(),
                bad.offset,
                bad.end()
            ));
        }
    }

    /// The files of an image, which is not finished.
    pub fn files(&self, job: &Job) -> [String; 2] {
        names::ENDS.map(|end| format!("{}/{}.{end}", self.config.directory, job.label))
    }

    pub fn copy(&mut self, job: &Job) -> Attempt<Image> {
        let Config { store, number, .. } = self.config;
        let [image, sums] = self.files(job);
        let base = job.base.as_ref().map(|base| base.name.clone());
        let before = match &base {
            Some(base) => Some(View::open(store, &store.manifest().chain(base))?),
            None => None,
        };
        let relative = base.as_deref().map(view::relative);
        let size = job.source.size();
        let (image, image_path) = store.create(&image)?;
        let (sums, sums_path) = store.create(&sums)?;
        let mut target = Target {
            image: image::Writer::new(image, &image_path, size, relative.as_deref()),
            sums: sums::Writer::new(sums, &sums_path)?,
            before,
            data_bytes: 0,
        };
        let mut unreadable = Vec::new();
        for extent in &job.extents {
            let mut at = extent.offset;
            while at < extent.end() {
                let piece = self.throttle.piece(PIECE, CLUSTER);
                let length = piece.min(extent.end() - at);
                let (bytes, bad) = self.read(job, at, length, self.config.salvage)?;
                target.put(at, bytes)?;
                self.tell_of(job, &bad, "are zeroes in the restore point");
                for bad in bad {
                    changes::push(&mut unreadable, bad);
                }
                if unreadable.len() > MAX_UNREADABLE {
                    return Err(Failure::Device(salvage::too_many(&job.device.device)));
                }
                at += length;
            }
        }
        let sums = target.sums.finish()?;
        let written = target.image.finish()?;
        Ok(Image {
            name: format!("{}/{}", names::directory(number), job.label),
            base,
            size,
            logical_block_size: job.source.logical_block_size(),
            generation_id: job.tracking.generation_id,
            boot_id: job.boot_id,
            changes_number: job.tracking.changes_number,
            take_id: job.takes.as_ref().and_then(Takes::newest),
            data_bytes: target.data_bytes,
            file_bytes: written.file_bytes,
            metadata: written.metadata,
            sums,
            unreadable,
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
