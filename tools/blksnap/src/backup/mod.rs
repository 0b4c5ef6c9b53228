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
pub mod copy;
pub mod directory;
pub mod forgotten;
#[doc(hidden)]
pub mod fuzz;
pub mod grounds;
pub mod image;
pub mod lock;
pub mod manifest;
pub mod member;
pub mod name;
pub mod names;
pub mod plan;
pub mod prune;
pub mod readback;
pub mod rebuild;
pub mod restore;
pub mod retention;
pub mod salvage;
pub mod sample;
pub mod sink;
pub mod source;
pub mod spot;
pub mod store;
pub mod stream;
pub mod subject;
pub mod sums;
pub mod target;
pub mod verify;
pub mod view;
pub mod zero;

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use rustix::io::Errno;
use serde::Serialize;

use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;
use crate::held::Held;
use crate::held::HeldDevice;
use crate::hooks::Hooks;
use crate::identity::Disk;
use crate::identity::Machine;
use crate::kernel::Kernel;
use crate::size::Bytes;
use crate::size::Sectors;
use crate::Uuid;

use changes::Extent;
use copy::Copier;
use copy::Job;
use directory::Place;
use image::CLUSTER;
use manifest::Image;
use manifest::Manifest;
use manifest::Point;
use manifest::PointDevice;
use manifest::Todo;
use plan::Base;
use plan::Known;
use plan::Mode;
use plan::WhyAll;
use salvage::Failure;
use source::Source;
use store::Store;
use subject::Subject;
use view::View;

/// What to back up, and where to.
#[derive(Debug, Clone)]
pub struct Request {
    pub devices: Vec<PathBuf>,
    pub store: PathBuf,
    pub limit: Sectors,
    /// What runs before and after the moment of the snapshot.
    pub hooks: Hooks,
    /// The directory of the backup.
    pub to: PathBuf,
    /// Use it even if other users can write to it.
    pub is_trusted: bool,
    /// Whether it must have a backup already.
    pub existing: bool,
    /// Whether it may have restore points of other machines only.
    pub is_shared: bool,
    pub mode: Mode,
    /// How many bytes may be read in a second.
    pub bandwidth: Option<Bytes>,
    /// How many per cent of what did not change are read to check the change tracking.
    pub spot_check: u8,
    /// Whether sectors that cannot be read are left out, and not an error.
    pub salvage: bool,
    /// How long the directory's locks are waited for.
    pub lock_wait: Duration,
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
    /// Something that the user should see to, though it stops nothing.
    fn warn(&mut self, warning: &str) {
        self.tell(warning);
    }
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
    /// Why devices are not in it, and what went wrong when all was done.
    pub errors: Vec<Error>,
}

#[derive(Debug, Serialize)]
pub struct DeviceReport {
    pub device: String,
    /// The restore point that this one is based on; none if it is full.
    pub base: Option<u64>,
    /// Why it is full.
    pub full: Option<WhyAll>,
    /// Why all was read and compared with the base.
    pub compared: Option<WhyAll>,
    /// Bytes of the device.
    pub size: u64,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Bytes that did not change and were read to check the change tracking.
    pub checked_bytes: u64,
    /// Bytes of data that were written.
    pub data_bytes: u64,
    pub generation_id: Uuid,
    pub changes_number: u8,
    pub take_id: Option<Uuid>,
    /// Name of the image in the directory.
    pub image: String,
    /// What could not be read, and is zeroes in the restore point.
    pub unreadable: Vec<Extent>,
}

/// Takes a snapshot of all devices and makes a restore point of it.
///
/// If it fails or is stopped, existing restore points stay as they are, and the
/// snapshot is released.
pub fn run(kernel: &dyn Kernel, request: &Request, watch: &mut dyn Watch) -> Result<Report> {
    let place = Place::new(&request.to, request.is_trusted).waiting(request.lock_wait);
    let store = Store::open_to_change_watched(place, !request.existing, watch);
    let mut store = store.map_err(|error| {
        if request.existing && error.errno() == Some(Errno::NOENT) {
            error.remedied_by(
                "mount the filesystem that it is on, or make the first backup without --existing",
            )
        } else {
            error
        }
    })?;
    let here = kernel.machine();
    if !request.is_shared {
        refuse_other_machines(&store, &here)?;
    }
    tell_of_unknown_machine(&store, &here, watch);
    run_in(&mut store, kernel, request, watch)
}

/// Refuses a directory in which another machine has its restore points, and this one none.
fn refuse_other_machines(store: &Store, here: &Machine) -> Result<()> {
    let machines = store.manifest().machines();
    let Some(newest) = machines.first() else {
        return Ok(());
    };
    if machines.iter().any(|machine| machine.is(here)) {
        return Ok(());
    }
    let names = Machine::names(&[newest, here]);
    let reason = format!(
        "its restore points are of {}, and this is {}",
        names[0], names[1]
    );
    Err(Error::new(Operation::WriteBackup, reason)
        .on(store.directory())
        .remedied_by(
            "name a directory for this machine alone; or say --shared to have both in one, which \
             are counted and pruned on their own",
        ))
}

/// Says that the restore points there are of no known machine. The next one has this machine,
/// so that it is said once.
fn tell_of_unknown_machine(store: &Store, here: &Machine, watch: &mut dyn Watch) {
    let manifest = store.manifest();
    let is_unknown = manifest.machines().is_empty() && !manifest.points.is_empty();
    if is_unknown && *here != Machine::default() {
        watch.tell(&format!(
            "the restore points in {} do not say of which machine they are; they are taken to be \
             of this one, {here}",
            store.directory().display()
        ));
    }
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
    store.warn(watch);
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
    let (store_path, hooks) = (&request.store, &request.hooks);
    let held = Held::take(
        kernel,
        devices,
        store_path,
        limit,
        false,
        hooks,
        &mut keep_on,
    )?;
    let time = now();
    let machine = Some(kernel.machine()).filter(|it| *it != Machine::default());

    let mut jobs = Vec::new();
    let mut labels = HashSet::new();
    for device in held.devices() {
        let mut job = prepare(store, kernel, device, machine.as_ref(), request.mode)?;
        let label = job.label.clone();
        for again in 2.. {
            if labels.insert(job.label.clone()) {
                break;
            }
            job.label = format!("{label}-{again}");
        }
        if let Some(why) = &job.why_all {
            let device = device.device.display();
            watch.tell(&match &job.base {
                Some(base) => format!(
                    "all of {device} is read and compared with restore point {}, as {why}",
                    Manifest::number_of(&base.name)
                ),
                None => match &job.why_read {
                    None => format!("{device} is backed up in full, as {why}"),
                    Some(read) => format!(
                        "all of {device} is read, as {read}; it is backed up in full, as {why}"
                    ),
                },
            });
        }
        jobs.push(job);
    }

    let directory = store.create_partial(number)?;
    let total = jobs.iter().map(|job| changes::total(&job.extents)).sum();
    let config = copy::Config {
        store,
        directory: &directory,
        number,
        held: &held,
        bandwidth: request.bandwidth,
        salvage: request.salvage,
    };
    let mut copier = Copier::new(config, total, watch);
    let mut copied = Vec::new();
    let mut errors = Vec::new();
    for mut job in jobs {
        let checked = copier.check(&mut job, request.spot_check);
        match checked.and_then(|()| copier.copy(&job)) {
            Ok(image) => copied.push((job, image)),
            // The others are as good without it.
            Err(Failure::Device(error)) => {
                errors.push(error);
                for file in copier.files(&job) {
                    store.discard(&file)?;
                }
            }
            Err(Failure::All(error)) => return Err(error),
        }
    }
    for (job, _) in &copied {
        confirm(kernel, &held, job)?;
    }
    if copied.is_empty() && !errors.is_empty() {
        let first = errors.remove(0);
        for error in errors {
            watch.warn(&error.to_string());
        }
        return Err(first);
    }
    // Before the rest, which may take a while.
    errors.extend_from_slice(held.hook_errors());
    errors.extend(held.release());

    let mut manifest = store.manifest().clone();
    let mut reports = Vec::new();
    let mut point = Point {
        number,
        time,
        machine,
        devices: Vec::new(),
    };
    for (job, image) in copied {
        let device = job.name;
        let (full, compared) = match job.base {
            Some(_) => (None, job.why_all),
            None => (job.why_all, None),
        };
        point.devices.push(PointDevice {
            device: device.clone(),
            disk: Some(job.disk).filter(|disk| *disk != Disk::default()),
            image: image.name.clone(),
        });
        reports.push(DeviceReport {
            device,
            base: image.base.as_deref().map(Manifest::number_of),
            full,
            compared,
            size: image.size,
            read_bytes: changes::total(&job.extents),
            checked_bytes: job.checked_bytes,
            data_bytes: image.data_bytes,
            generation_id: image.generation_id,
            changes_number: image.changes_number,
            take_id: image.take_id,
            image: image.name.clone(),
            unreadable: image.unreadable.clone(),
        });
        manifest.images.push(image);
    }
    manifest.points.push(point);
    manifest.next = number + 1;
    let part = format!("{directory}/{}", names::PART);
    store.write_part(&part, &manifest.part(number))?;
    let name = names::directory(number);
    let mut rename = vec![(names::partial(&name), name)];
    rename.extend(store.write_missing_parts(&mut manifest, watch));
    manifest.todo = Todo {
        rename,
        remove: Vec::new(),
    };
    if let Err(error) = store.publish(manifest) {
        if store.manifest().point(number).is_none() {
            return Err(error);
        }
        // It is there, and the next run does what is left.
        errors.push(error);
    }
    Ok(Report {
        point: number,
        time,
        directory: request.to.clone(),
        devices: reports,
        errors,
    })
}

/// Looks at a device and decides what is to be read.
fn prepare(
    store: &Store,
    kernel: &dyn Kernel,
    device: &HeldDevice,
    machine: Option<&Machine>,
    mode: Mode,
) -> Result<Job> {
    // For a restore in place, which may be begun in another directory.
    let path = std::path::absolute(&device.device)
        .map_err(|error| Error::from_io(Operation::BackUp, &error).on(&device.device))?;
    let name = name::encode(&path);
    let tracking = kernel
        .tracking(&device.path)
        .map_err(|error| error.on(&device.device))?;
    let takes = kernel
        .takes(&device.path)
        .map_err(|error| error.on(&device.device))?;
    let source = Source::open(&device.node)?;
    if source.size() > image::MAX_SIZE {
        let reason = format!("it is larger than {}", Bytes(image::MAX_SIZE));
        return Err(Error::new(Operation::BackUp, reason)
            .on(&device.device)
            .remedied_by("back up its partitions or logical volumes one by one"));
    }
    let known = Known {
        tracking: &tracking,
        takes: takes.as_ref(),
        boot_id: kernel.boot_id(),
    };
    let disk = kernel.disk(device);
    let subject = Subject {
        machine,
        device: &name,
        disk: Some(&disk),
    };
    let changes = changes_since(store, kernel, device, subject, known, &source, mode)?;
    let all = Extent {
        offset: 0,
        length: source.size(),
    };
    let mut why_read = None;
    let (base, changed, why_all) = match changes {
        Ok((base, changed)) => (Some(base), changed, None),
        Err(why) => match plan::compared(store.manifest(), subject, source.size(), &why, mode) {
            Ok(base) => match usable(store, base)? {
                Ok(base) => (Some(base), vec![all], Some(why)),
                Err(damaged) => (None, vec![all], Some(damaged)),
            },
            Err(full) => {
                why_read = Some(why).filter(|why| *why != full);
                (None, vec![all], Some(full))
            }
        },
    };
    Ok(Job {
        device: device.clone(),
        label: names::label(&name),
        disk,
        name,
        extents: changes::aligned(&changed, CLUSTER, source.size()),
        boot_id: known.boot_id,
        tracking,
        takes,
        source,
        why_read,
        why_all,
        base,
        checked_bytes: 0,
    })
}

/// The base, and what changed since; or why everything is to be read.
///
/// Only what is known to be so makes a full backup. An error of the moment, such as a file
/// that cannot be opened now, is one.
fn changes_since(
    store: &Store,
    kernel: &dyn Kernel,
    device: &HeldDevice,
    subject: Subject<'_>,
    known: Known<'_>,
    source: &Source,
    mode: Mode,
) -> Result<std::result::Result<(Image, Vec<Extent>), WhyAll>> {
    let tracking = known.tracking;
    let Base { image: base, since } = match plan::base(store.manifest(), subject, known, mode) {
        Ok(base) => base,
        Err(why) => return Ok(Err(why)),
    };
    if source.size() != base.size {
        return Ok(Err(WhyAll::Resized));
    }
    let mut map = vec![0; tracking.block_count as usize];
    kernel
        .read_map(&device.path, &mut map)
        .map_err(|error| or_full(error.on(&device.device)))?;
    if let Some(reason) = changes::distrust(&map, tracking) {
        return Ok(Err(WhyAll::Map(reason)));
    }
    // What could not be read then is no content to go by, whether it was written to or not.
    let changed = changes::changed(&map, since, tracking);
    let changed = changes::union(&changed, &base.unreadable);
    Ok(usable(store, base)?.map(|base| (base, changed)))
}

/// An image that another one can be based on, or why it cannot: better now than when half of
/// that is written.
fn usable(store: &Store, base: &Image) -> Result<std::result::Result<Image, WhyAll>> {
    match View::open(store, &store.manifest().chain(&base.name)) {
        Ok(_) => Ok(Ok(base.clone())),
        Err(error) if error.operation() == Operation::CheckBackup => {
            Ok(Err(WhyAll::Base(error.to_string())))
        }
        Err(error) => Err(or_full(error)),
    }
}

/// Says what can be done in any case if nothing better is known.
fn or_full(error: Error) -> Error {
    match error.remedy() {
        Some(_) => error,
        None => error.remedied_by(
            "try again; if it stays like that, --full makes a restore point that needs no other",
        ),
    }
}

/// Confirms that what was read is what the snapshot had.
fn confirm(kernel: &dyn Kernel, held: &Held<'_>, job: &Job) -> Result<()> {
    held.verify(&job.device)?;
    let named = |error: Error| error.on(&job.device.device);
    let path = &job.device.path;
    let same = kernel.tracking(path).map_err(named)? == job.tracking
        && kernel.takes(path).map_err(named)? == job.takes;
    if same {
        return Ok(());
    }
    Err(Error::new(
        Operation::Verify,
        "its change tracking did not stay the same",
    )
    .on(&job.device.device)
    .remedied_by("make the backup again, without other snapshots of it meanwhile"))
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests;
