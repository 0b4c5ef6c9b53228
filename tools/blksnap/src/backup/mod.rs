// SPDX-License-Identifier: GPL-2.0-only

//! Backups of devices into a directory, full ones and what changed since.
//!
//! A restore point is the content of devices at one moment, that of a snapshot.
//! For each device it has a qcow2 image ([`image`]), which holds everything, or
//! what changed since another image, its base ([`plan`] decides, [`changes`]
//! knows what changed). Beside it lie the digests of its content ([`sums`]), by
//! which it is read and verified ([`view`]). The manifest ([`manifest`]) says
//! what there is; [`store`] changes from one to the next so that nothing is lost
//! whenever it is interrupted.

pub mod changes;
pub mod image;
pub mod manifest;
pub mod plan;
pub mod prune;
pub mod restore;
pub mod source;
pub mod store;
pub mod sums;
pub mod verify;
pub mod view;

use std::collections::HashSet;
use std::path::Path;
use std::path::PathBuf;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use serde::Serialize;

use crate::device::Tracking;
use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;
use crate::held::Held;
use crate::held::HeldDevice;
use crate::kernel::Kernel;
use crate::size::Bytes;
use crate::size::Sectors;
use crate::Uuid;

use changes::Extent;
use image::CLUSTER;
use manifest::Image;
use manifest::Manifest;
use manifest::Point;
use manifest::PointDevice;
use manifest::Todo;
use plan::Mode;
use plan::WhyFull;
use source::Buffer;
use source::Source;
use source::Throttle;
use store::Store;
use sums::Entry;
use sums::Sum;
use view::View;

/// How many bytes are read at a time.
const PIECE: u64 = 4 << 20;

/// What to back up, and where to.
#[derive(Debug, Clone)]
pub struct Request {
    pub devices: Vec<PathBuf>,
    pub store: PathBuf,
    pub limit: Sectors,
    /// The directory of the backup.
    pub to: PathBuf,
    pub mode: Mode,
    /// How many bytes may be read in a second.
    pub bandwidth: Option<Bytes>,
}

/// How far some work has come, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
}

/// Whoever looks at the work while it is done.
pub trait Watch {
    /// Called often; an error stops the work and undoes it.
    fn keep_on(&mut self, progress: Progress) -> Result<()>;
    /// Something that the user should know, and is no error.
    fn tell(&mut self, note: &str);
}

/// What became of a backup.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The number of the restore point.
    pub point: u64,
    /// Seconds since 1970, UTC.
    pub time: u64,
    #[serde(serialize_with = "crate::lossy::path")]
    pub directory: PathBuf,
    pub devices: Vec<DeviceReport>,
    /// What went wrong when all was done.
    pub errors: Vec<Error>,
}

#[derive(Debug, Serialize)]
pub struct DeviceReport {
    pub device: String,
    /// The restore point that this one is based on; none if it is full.
    pub base: Option<u64>,
    /// Why it is full.
    pub full: Option<WhyFull>,
    /// Bytes of the device.
    pub size: u64,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Bytes of data that were written.
    pub data_bytes: u64,
    pub generation_id: Uuid,
    pub changes_number: u8,
    /// Name of the image in the directory.
    pub image: String,
}

/// A device whose image is to be read.
struct Job {
    device: HeldDevice,
    /// As the manifest names it.
    name: String,
    label: String,
    tracking: Tracking,
    source: Source,
    base: Option<Image>,
    why_full: Option<WhyFull>,
    /// Of whole clusters.
    extents: Vec<Extent>,
}

/// Takes a snapshot of all devices and makes a restore point of it.
///
/// Whatever goes wrong or whoever stops it: the restore points there were stay
/// as they were, and the snapshot is released.
pub fn run(kernel: &dyn Kernel, request: &Request, watch: &mut dyn Watch) -> Result<Report> {
    let mut store = Store::open_to_change(&request.to, true)?;
    run_in(&mut store, kernel, request, watch)
}

fn run_in(
    store: &mut Store,
    kernel: &dyn Kernel,
    request: &Request,
    watch: &mut dyn Watch,
) -> Result<Report> {
    let number = store.next_number()?;
    let result = make(store, kernel, request, number, watch);
    if result.is_err() && store.manifest().point(number).is_none() {
        // The error that led here is the one to tell.
        let _ = store.remove_partial();
    }
    result
}

fn make(
    store: &mut Store,
    kernel: &dyn Kernel,
    request: &Request,
    number: u64,
    watch: &mut dyn Watch,
) -> Result<Report> {
    let mut keep_on = || watch.keep_on(Progress { done: 0, total: 0 });
    let (devices, limit) = (&request.devices, request.limit);
    let held = Held::take(kernel, devices, &request.store, limit, false, &mut keep_on)?;
    let time = now();

    let mut jobs = Vec::new();
    let mut labels = HashSet::new();
    for device in held.devices() {
        let mut job = prepare(store, kernel, device, request.mode)?;
        let label = job.label.clone();
        for again in 2.. {
            if labels.insert(job.label.clone()) {
                break;
            }
            job.label = format!("{label}-{again}");
        }
        if let Some(why) = &job.why_full {
            let device = device.device.display();
            watch.tell(&format!("{device} is backed up in full, as {why}"));
        }
        jobs.push(job);
    }

    let directory = store.create_partial(number)?;
    let mut work = Work {
        store,
        directory: &directory,
        number,
        throttle: Throttle::new(request.bandwidth.map(|rate| rate.0)),
        buffer: Buffer::new(PIECE as usize),
        progress: Progress {
            done: 0,
            total: jobs.iter().map(|job| changes::total(&job.extents)).sum(),
        },
        watch,
    };
    let mut images = Vec::new();
    for job in &jobs {
        // A snapshot that broke is the reason, not that it cannot be read.
        let image = work
            .copy(job)
            .map_err(|error| match held.verify(&job.device) {
                Err(broken) if error.operation() == Operation::BackUp => broken,
                _ => error,
            })?;
        images.push(image);
    }
    for job in &jobs {
        confirm(kernel, &held, job)?;
    }
    // Before the rest, which may take a while.
    let errors = held.release();

    let mut manifest = store.manifest().clone();
    let mut reports = Vec::new();
    let mut point = Point {
        number,
        time,
        devices: Vec::new(),
    };
    for (job, image) in jobs.into_iter().zip(images) {
        let device = job.name;
        point.devices.push(PointDevice {
            device: device.clone(),
            image: image.name.clone(),
        });
        reports.push(DeviceReport {
            device,
            base: image.base.as_deref().map(Manifest::number_of),
            full: job.why_full,
            size: image.size,
            read_bytes: changes::total(&job.extents),
            data_bytes: image.data_bytes,
            generation_id: image.generation_id,
            changes_number: image.changes_number,
            image: image.name.clone(),
        });
        manifest.images.push(image);
    }
    manifest.points.push(point);
    manifest.next = number + 1;
    let name = manifest::directory(number);
    manifest.todo = Todo {
        rename: vec![(store::partial(&name), name)],
        remove: Vec::new(),
    };
    store.publish(manifest)?;
    Ok(Report {
        point: number,
        time,
        directory: request.to.clone(),
        devices: reports,
        errors,
    })
}

/// Looks at a device and decides what is to be read.
fn prepare(store: &Store, kernel: &dyn Kernel, device: &HeldDevice, mode: Mode) -> Result<Job> {
    let name = device.device.display().to_string();
    let tracking = kernel.tracking(&device.device)?;
    let source = Source::open(&device.node)?;
    let (base, changed) = match changes_since(store, kernel, device, &tracking, &source, mode) {
        Ok((base, changed)) => (Ok(base), changed),
        Err(why) => (
            Err(why),
            vec![Extent {
                offset: 0,
                length: source.size(),
            }],
        ),
    };
    Ok(Job {
        device: device.clone(),
        label: manifest::label(&name),
        name,
        extents: changes::aligned(&changed, CLUSTER, source.size()),
        tracking,
        source,
        why_full: base.as_ref().err().cloned(),
        base: base.ok(),
    })
}

/// The base, and what changed since; or why everything is to be read.
fn changes_since(
    store: &Store,
    kernel: &dyn Kernel,
    device: &HeldDevice,
    tracking: &Tracking,
    source: &Source,
    mode: Mode,
) -> std::result::Result<(Image, Vec<Extent>), WhyFull> {
    let base = plan::base(
        store.manifest(),
        &device.device.display().to_string(),
        tracking,
        mode,
    )?;
    if source.size() != base.size {
        return Err(WhyFull::Resized);
    }
    let mut map = vec![0; tracking.block_count as usize];
    kernel
        .read_map(&device.device, &mut map)
        .map_err(|error| WhyFull::Map(error.to_string()))?;
    if let Some(reason) = changes::distrust(&map, tracking) {
        return Err(WhyFull::Map(reason));
    }
    // Better now than when half of it is written.
    View::open(store, &store.manifest().chain(&base.name))
        .map_err(|error| WhyFull::Base(error.to_string()))?;
    let changed = changes::changed(&map, base.changes_number, tracking);
    Ok((base.clone(), changed))
}

/// Confirms that what was read is what the snapshot had.
fn confirm(kernel: &dyn Kernel, held: &Held<'_>, job: &Job) -> Result<()> {
    held.verify(&job.device)?;
    if kernel.tracking(&job.device.device)? == job.tracking {
        return Ok(());
    }
    Err(Error::new(
        Operation::Verify,
        "its change tracking did not stay the same",
    )
    .on(&job.device.device)
    .remedied_by("make the backup anew, without other snapshots of it meanwhile"))
}

/// Images that are being written into the directory of a restore point.
struct Work<'a> {
    store: &'a Store,
    directory: &'a Path,
    number: u64,
    throttle: Throttle,
    buffer: Buffer,
    progress: Progress,
    watch: &'a mut dyn Watch,
}

impl Work<'_> {
    fn copy(&mut self, job: &Job) -> Result<Image> {
        let file = |end| self.directory.join(format!("{}.{end}", job.label));
        let base = job.base.as_ref().map(|base| base.name.clone());
        let before = match &base {
            Some(base) => Some(View::open(self.store, &self.store.manifest().chain(base))?),
            None => None,
        };
        let relative = base.as_deref().map(view::relative);
        let size = job.source.size();
        let mut target = Target {
            image: image::Writer::create(&file("qcow2"), size, relative.as_deref())?,
            sums: sums::Writer::create(&file("sums"))?,
            before,
            data_bytes: 0,
        };
        for extent in &job.extents {
            let mut at = extent.offset;
            while at < extent.end() {
                let piece = self.throttle.piece(PIECE, CLUSTER);
                let length = piece.min(extent.end() - at);
                let (progress, watch) = (self.progress, &mut *self.watch);
                self.throttle
                    .pass(length, &mut || watch.keep_on(progress))?;
                let bytes = self.buffer.first(length as usize);
                job.source.read(at, bytes)?;
                target.put(at, bytes)?;
                at += length;
                self.progress.done += length;
                self.watch.keep_on(self.progress)?;
            }
        }
        let sums = target.sums.finish()?;
        let written = target.image.finish()?;
        Ok(Image {
            name: format!("{}/{}", manifest::directory(self.number), job.label),
            base,
            size,
            generation_id: job.tracking.generation_id,
            changes_number: job.tracking.changes_number,
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
        let sum = if is_zero(bytes) {
            sums::ZERO
        } else {
            *blake3::hash(bytes).as_bytes()
        };
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

/// Without an early end within a piece, so that many bytes are looked at at once.
fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(4096)
        .all(|piece| piece.iter().fold(0, |any, byte| any | byte) == 0)
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests;
