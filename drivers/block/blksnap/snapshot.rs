// SPDX-License-Identifier: GPL-2.0-only

//! Snapshots: devices whose content is kept as it was at one moment.
//!
//! # Locking
//!
//! The list in [`Snapshots`] is locked only to look one up. A snapshot's `devices` is held while it
//! is taken, with file systems and queues frozen; the locks of its devices' trackers nest inside
//! of it. It must not be taken where a device is removed, so there the tracker speaks to the area
//! only.

use crate::{
    area::{
        Area,
        Config,
        Queues, //
    },
    barrier::Barrier,
    chunk::Geometry,
    deadline::Deadline,
    debug::{
        AreaFile,
        Directory, //
    },
    freeze::Freezer,
    image::{
        self,
        Image, //
    },
    links::Links,
    params,
    storage::Storage,
    tracker::Tracker, //
};
use core::cmp::Reverse;
use kernel::{
    block::bdev::{
        BdevFile,
        BlockDevice,
        SectorRange, //
    },
    new_mutex,
    noio,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        rcu::{
            self,
            RcuArc, //
        },
        Arc,
        Mutex, //
    },
    time::{
        Delta,
        Instant,
        Monotonic, //
    },
    uapi,
    uuid::Uuid, //
};

/// All snapshots, while the module is there.
static SNAPSHOTS: RcuArc<Snapshots> = RcuArc::empty();

/// The snapshots that exist.
#[pin_data]
pub(crate) struct Snapshots {
    #[pin]
    list: Mutex<KVec<Arc<Snapshot>>>,
    links: Arc<Links>,
    debug: Directory,
    freezer: Arc<Freezer>,
}

impl Snapshots {
    /// Makes snapshots possible until the guard is dropped. May sleep.
    pub(crate) fn enable() -> Result<SnapshotsGuard> {
        let links = Arc::pin_init(Links::new(), GFP_KERNEL)?;
        let debug = Directory::new()?;
        let freezer = Arc::new(Freezer::new()?, GFP_KERNEL)?;
        let snapshots = Arc::pin_init(
            pin_init!(Self {
                list <- new_mutex!(KVec::new(), "blksnap_snapshots"),
                links,
                debug,
                freezer,
            }),
            GFP_KERNEL,
        )?;
        SNAPSHOTS.replace(Some(snapshots));
        Ok(SnapshotsGuard)
    }

    fn get() -> Result<Arc<Self>> {
        Ok(SNAPSHOTS.get(&rcu::read_lock()).ok_or(ENODEV)?.into())
    }
}

/// Destroys all snapshots when it is dropped.
pub(crate) struct SnapshotsGuard;

impl Drop for SnapshotsGuard {
    fn drop(&mut self) {
        let Some(snapshots) = SNAPSHOTS.replace(None) else {
            return;
        };
        let pop = || snapshots.list.lock().pop();
        while let Some(snapshot) = pop() {
            snapshot.end();
        }
    }
}

/// The name of an image's disk, padded with zeroes.
pub(crate) type ImageName = [u8; uapi::BLKSNAP_IMAGE_NAME_LEN as usize];

/// A device of a snapshot.
struct Device {
    tracker: Arc<Tracker>,
    origin: Arc<BdevFile>,
    // In the order in which they go: the image uses the area.
    figures: Option<AreaFile>,
    image: Option<Image>,
    area: Option<Arc<Area>>,
}

impl Device {
    /// Undoes what a take has done, and what it had begun.
    fn undo_take(&mut self) {
        // Ahead of the first write that is not waited for, or images would show it.
        if let Some(area) = &self.area {
            area.shut();
        }
        self.tracker.stop();
        self.figures = None;
        self.image = None;
        if let Some(area) = &self.area {
            Area::close(area);
        }
    }
}

enum State {
    /// Devices can be added.
    New,
    Taken,
    Destroyed,
}

impl State {
    /// Fails unless devices can be added.
    fn check_new(&self) -> Result {
        match self {
            State::New => Ok(()),
            State::Taken => Err(EBUSY),
            State::Destroyed => Err(ESRCH),
        }
    }
}

struct Devices {
    list: KVec<Device>,
    /// Devices that are frozen by a take, but not saved.
    frozen: KVec<Arc<BdevFile>>,
    state: State,
}

/// A snapshot.
#[pin_data]
pub(crate) struct Snapshot {
    id: Uuid,
    storage: Arc<Storage>,
    links: Arc<Links>,
    debug: Directory,
    freezer: Arc<Freezer>,
    queues: Arc<Queues>,
    #[pin]
    devices: Mutex<Devices>,
}

impl Snapshot {
    /// Makes a snapshot without devices and returns its id. May sleep.
    pub(crate) fn create(storage: Arc<Storage>) -> Result<Uuid> {
        let snapshots = Snapshots::get()?;
        let queues = Arc::new(Queues::new()?, GFP_KERNEL)?;
        let id = Uuid::random();
        let links = snapshots.links.clone();
        let debug = snapshots.debug.clone();
        let freezer = snapshots.freezer.clone();
        let snapshot = Arc::pin_init(
            pin_init!(Self {
                id,
                storage,
                links,
                debug,
                freezer,
                queues,
                devices <- new_mutex!(Devices {
                    list: KVec::new(),
                    frozen: KVec::new(),
                    state: State::New,
                }, "blksnap_devices"),
            }),
            GFP_KERNEL,
        )?;
        snapshots.list.lock().push(snapshot, GFP_KERNEL)?;
        Ok(id)
    }

    /// The snapshot with the given id.
    ///
    /// # Errors
    ///
    /// [`ESRCH`] if there is none.
    pub(crate) fn find(id: Uuid) -> Result<Arc<Self>> {
        let snapshots = Snapshots::get()?;
        let list = snapshots.list.lock();
        list.iter()
            .find(|snapshot| snapshot.id == id)
            .cloned()
            .ok_or(ESRCH)
    }

    /// The ids of all snapshots.
    pub(crate) fn ids() -> Result<KVec<Uuid>> {
        let snapshots = Snapshots::get()?;
        let list = snapshots.list.lock();
        let mut ids = KVec::with_capacity(list.len(), GFP_KERNEL)?;
        for snapshot in list.iter() {
            ids.push(snapshot.id, GFP_KERNEL)?;
        }
        Ok(ids)
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Adds sectors of a device to the difference storage; without ranges, all of it. May sleep.
    ///
    /// # Errors
    ///
    /// Those of [`Links::extend`].
    pub(crate) fn extend(&self, bdev: &BlockDevice, sectors: &[SectorRange]) -> Result {
        self.links.extend(&self.storage, bdev, sectors)
    }

    /// Adds the device that `tracker` is the filter of. May sleep.
    ///
    /// # Errors
    ///
    /// Those of [`Tracker::join`] and [`Links::add`], [`EBUSY`] if it was taken, and [`EOPNOTSUPP`]
    /// if the device has blocks that are larger than a page.
    pub(crate) fn add(&self, tracker: Arc<Tracker>, bdev: &BlockDevice) -> Result {
        let origin = open(bdev)?;
        if origin.logical_block_size() as usize > PAGE_SIZE {
            return Err(EOPNOTSUPP);
        }
        let mut devices = self.devices.lock();
        if devices
            .list
            .iter()
            .any(|d| Arc::ptr_eq(&d.tracker, &tracker))
        {
            return Err(EALREADY);
        }
        devices.state.check_new()?;
        devices.list.reserve(1, GFP_KERNEL)?;
        self.links.add(&origin, &tracker, &self.storage)?;
        tracker
            .join(self.id)
            .inspect_err(|_| self.links.remove(&origin))?;
        let device = Device {
            tracker,
            origin,
            figures: None,
            image: None,
            area: None,
        };
        // There is room for it.
        let _ = devices.list.push_within_capacity(device);
        Ok(())
    }

    /// Adds a device that is only frozen while the snapshot is taken. May sleep.
    ///
    /// # Errors
    ///
    /// [`EALREADY`] if it was added, [`EBUSY`] if the snapshot was taken, [`ESRCH`] if it was
    /// destroyed, those of opening the device, and [`ENOMEM`].
    pub(crate) fn freeze(&self, bdev: &BlockDevice) -> Result {
        let device = open(bdev)?;
        let mut devices = self.devices.lock();
        devices.state.check_new()?;
        if devices.frozen.iter().any(|it| core::ptr::eq(&***it, bdev)) {
            return Err(EALREADY);
        }
        Ok(devices.frozen.push(device, GFP_KERNEL)?)
    }

    /// Takes the snapshot of all devices at one moment. May sleep for long, while file systems
    /// write their data.
    ///
    /// # Errors
    ///
    /// [`ENODATA`] without devices, [`ENOSPC`] without storage, [`EALREADY`] if it was taken,
    /// [`EBUSY`] while a write of a probe is in flight, and others of freezing and of making the
    /// images; then no device is in a snapshot that was taken.
    pub(crate) fn take(&self) -> Result {
        let mut guard = self.devices.lock();
        let devices = &mut *guard;
        match devices.state {
            State::New if devices.list.is_empty() => return Err(ENODATA),
            State::New if self.storage.space().total == 0 => return Err(ENOSPC),
            // A probe of an interrupted add is still writing.
            State::New if self.storage.is_on_trial() => return Err(EBUSY),
            State::New => {}
            State::Taken => return Err(EALREADY),
            State::Destroyed => return Err(ESRCH),
        }
        let result = self.take_all(&mut devices.list, &devices.frozen);
        match result {
            Ok(()) => {
                for device in &devices.list {
                    device.tracker.identify_take();
                }
                devices.state = State::Taken;
            }
            Err(_) => {
                for device in &mut devices.list {
                    device.undo_take();
                    device.area = None;
                }
                // What was saved meanwhile is of no use, nor is what there was to be told.
                self.storage.reset();
            }
        }
        result
    }

    fn take_all(&self, devices: &mut KVec<Device>, also_frozen: &[Arc<BdevFile>]) -> Result {
        // Whatever can fail for lack of something comes first.
        let max_copy_bytes = params::max_copy_bytes() / devices.len();
        for device in devices.iter_mut() {
            let origin = device.origin.clone();
            let nr_sectors = origin.nr_sectors();
            device.tracker.prepare(nr_sectors)?;
            device.area = Some(Area::new(Config {
                origin,
                geometry: Geometry::new(params::chunk_shift(), nr_sectors),
                max_copy_bytes,
                storage: self.storage.clone(),
                queues: self.queues.clone(),
            })?);
        }
        let mut bdevs: KVec<&BlockDevice> = KVec::with_capacity(devices.len(), GFP_KERNEL)?;
        for device in devices.iter() {
            bdevs.push(&device.origin, GFP_KERNEL)?;
        }

        let with_fs = Self::may_have_fs(devices, also_frozen)?;
        let mut frozen = KVec::with_capacity(with_fs.len(), GFP_KERNEL)?;
        // Or the first one would be frozen while the others write, perhaps by way of a snapshot
        // whose storage is on it.
        for device in &with_fs {
            device.sync();
        }
        let barrier = Barrier::new(bdevs)?;
        let mut frozen_for = Delta::ZERO;
        // Reclaim could wait for what is frozen.
        let result: Result = noio::scope(|| {
            let deadline = Deadline::after(params::freeze_timeout());
            for device in &with_fs {
                let fs = self.freezer.freeze(device.clone(), deadline)?;
                // There is room for it.
                let _ = frozen.push_within_capacity(fs);
            }
            let begin = Instant::<Monotonic>::now();
            barrier.run(params::freeze_timeout(), || {
                for device in devices.iter() {
                    if let Some(area) = &device.area {
                        device.tracker.take(area.clone());
                    }
                }
            })?;
            frozen_for = begin.elapsed();
            Ok(())
        });
        let thawed = noio::scope(|| self.freezer.thaw(frozen));
        // A partition that a worker closed last would stay open for a moment after the take.
        drop(with_fs);
        result.and(thawed)?;

        for device in devices.iter_mut() {
            if let Some(area) = &device.area {
                let image = image::new(area)?;
                device.figures = Some(self.debug.add(image.name(), area, frozen_for)?);
                device.image = Some(image);
            }
        }
        Ok(())
    }

    /// The devices, their partitions, and those that are only frozen, in the order in which the
    /// file systems on them are to be frozen.
    fn may_have_fs(
        devices: &[Device],
        also_frozen: &[Arc<BdevFile>],
    ) -> Result<KVec<Arc<BdevFile>>> {
        let mut files = KVec::new();
        for device in also_frozen {
            files.push(device.clone(), GFP_KERNEL)?;
        }
        for device in devices {
            files.push(device.origin.clone(), GFP_KERNEL)?;
            if device.origin.is_partition() {
                continue;
            }
            let mut number = 0;
            while let Some(next) = device.origin.next_partition(number) {
                number = next;
                let partition = device.origin.partition(number)?;
                files.push(Arc::new(partition, GFP_KERNEL)?, GFP_KERNEL)?;
            }
        }
        // Freeze the file system of a loop device before the one with its backing file. The loop
        // device was set up later, so its diskseq is larger.
        files.sort_unstable_by_key(|device| Reverse(device.disk_seq()));
        Ok(files)
    }

    /// The error and the image of a device.
    pub(crate) fn image_of(&self, tracker: &Tracker) -> Result<(i32, ImageName)> {
        let devices = self.devices.lock();
        let device = devices
            .list
            .iter()
            .find(|device| core::ptr::eq(&*device.tracker, tracker))
            .ok_or(ESRCH)?;
        let mut name = ImageName::default();
        if let Some(image) = &device.image {
            let bytes = image.name().to_bytes();
            // A disk's name is shorter than that.
            name.get_mut(..bytes.len())
                .ok_or(EOVERFLOW)?
                .copy_from_slice(bytes);
        }
        Ok((device.area.as_ref().map_or(0, |area| area.error()), name))
    }

    /// Destroys the snapshot: its devices leave it, and its images are gone. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if there is none with that id.
    pub(crate) fn destroy(id: Uuid) -> Result {
        let snapshot = {
            let snapshots = Snapshots::get()?;
            let mut list = snapshots.list.lock();
            let at = list.iter().position(|s| s.id == id).ok_or(ENODEV)?;
            list.remove(at).map_err(|_| ENODEV)?
        };
        snapshot.end();
        Ok(())
    }

    fn end(&self) {
        self.storage.events().close();
        let mut devices = self.devices.lock();
        devices.state = State::Destroyed;
        for device in &mut devices.list {
            device.undo_take();
            self.links.remove(&device.origin);
            device.tracker.leave();
        }
        // Work and bios that have just ended may still hold the areas, which are large. Then they,
        // the devices and the storage would be closed a moment later only, and where bios end.
        self.queues.flush();
        rcu::synchronize_rcu();
        devices.list.clear();
        devices.frozen.clear();
    }
}

/// Opens a device that the caller has open.
fn open(bdev: &BlockDevice) -> Result<Arc<BdevFile>> {
    let file = BdevFile::open(bdev.dev())?;
    // It was removed, and another one has its number now.
    if !core::ptr::eq(&*file, bdev) {
        return Err(ENODEV);
    }
    Ok(Arc::new(file, GFP_KERNEL)?)
}
