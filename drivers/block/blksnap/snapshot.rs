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
    budget::Budget,
    chunk::Geometry,
    copy_memory::CopyMemory,
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
    trace,
    tracker::Tracker, //
};
use core::{
    cmp::Reverse,
    mem, //
};
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
        Completion,
        Mutex, //
    },
    time::{
        msecs_to_jiffies,
        Delta,
        Instant,
        Monotonic, //
    },
    uuid::Uuid,
    workqueue::{
        impl_has_work,
        new_work,
        OwnedQueue,
        Work,
        WorkItem, //
    }, //
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
    /// Runs what remains of snapshots to its end. Dropping it waits for that.
    ends: OwnedQueue,
}

impl Snapshots {
    /// Makes snapshots possible until the guard is dropped. May sleep.
    pub(crate) fn enable() -> Result<SnapshotsGuard> {
        let links = Arc::pin_init(Links::new(), GFP_KERNEL)?;
        let debug = Directory::new()?;
        let freezer = Arc::new(Freezer::new()?, GFP_KERNEL)?;
        let ends = OwnedQueue::new_mem_reclaim(c"blksnap_ends")?;
        let snapshots = Arc::pin_init(
            pin_init!(Self {
                list <- new_mutex!(KVec::new(), "blksnap_snapshots"),
                links,
                debug,
                freezer,
                ends,
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
            snapshot.end(&snapshots.ends);
        }
    }
}

/// A device of a snapshot.
struct Device {
    tracker: Arc<Tracker>,
    origin: Arc<BdevFile>,
    /// The snapshot since which blocks must have changed that the image has.
    since: Option<Uuid>,
    // In the order in which they go: the image uses the area.
    figures: Option<AreaFile>,
    image: Option<Image>,
    area: Option<Arc<Area>>,
}

impl Device {
    /// Ends the image, without waiting for the device or the storage.
    fn end_image(&mut self) {
        // Ahead of the first write that is not waited for, or images would show it.
        if let Some(area) = &self.area {
            area.shut();
        }
        self.tracker.stop();
        self.figures = None;
        self.image = None;
    }

    /// Waits for the I/O of the area.
    fn close(&mut self) {
        if let Some(area) = self.area.take() {
            Area::close(&area);
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
    map_memory: Arc<Budget>,
    links: Arc<Links>,
    debug: Directory,
    freezer: Arc<Freezer>,
    queues: Arc<Queues>,
    #[pin]
    devices: Mutex<Devices>,
    #[pin]
    end_work: Work<Snapshot>,
    ended: Arc<Completion>,
}

impl_has_work! {
    impl HasWork<Self> for Snapshot { self.end_work }
}

/// Milliseconds for which a destroy waits for I/O.
const END_TIMEOUT: u32 = 1000;

impl Snapshot {
    /// Makes a snapshot without devices and returns its id. May sleep.
    pub(crate) fn create(storage: Arc<Storage>) -> Result<Uuid> {
        let snapshots = Snapshots::get()?;
        let map_memory = Budget::new(params::max_map_bytes())?;
        let queues = Arc::new(Queues::new()?, GFP_KERNEL)?;
        let id = Uuid::random();
        let links = snapshots.links.clone();
        let debug = snapshots.debug.clone();
        let freezer = snapshots.freezer.clone();
        let ended = Arc::pin_init(Completion::new(), GFP_KERNEL)?;
        let snapshot = Arc::pin_init(
            pin_init!(Self {
                id,
                storage,
                map_memory,
                links,
                debug,
                freezer,
                queues,
                devices <- new_mutex!(Devices {
                    list: KVec::new(),
                    frozen: KVec::new(),
                    state: State::New,
                }, "blksnap_devices"),
                end_work <- new_work!("blksnap_end"),
                ended,
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

    /// Breaks the images of all snapshots. Waits for takes in progress. May sleep.
    pub(crate) fn fail_all(error: Error) {
        let Ok(snapshots) = Snapshots::get() else {
            return;
        };
        // From the end, so that none is missed if others go meanwhile.
        let mut at = snapshots.list.lock().len();
        while at > 0 {
            at -= 1;
            let found = snapshots.list.lock().get(at).cloned();
            let Some(snapshot) = found else {
                continue;
            };
            for device in &snapshot.devices.lock().list {
                if let Some(area) = &device.area {
                    area.fail_io(error);
                }
            }
        }
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
            since: None,
            figures: None,
            image: None,
            area: None,
        };
        // There is room for it.
        let _ = devices.list.push_within_capacity(device);
        Ok(())
    }

    /// The image of the device that `tracker` is the filter of will have only what has changed
    /// since the snapshot with the id `since`. May sleep.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if the snapshot was taken, [`ESRCH`] if it does not have the device.
    pub(crate) fn select(&self, tracker: &Tracker, since: Uuid) -> Result {
        let mut devices = self.devices.lock();
        devices.state.check_new()?;
        let device = devices
            .list
            .iter_mut()
            .find(|device| core::ptr::eq(&*device.tracker, tracker))
            .ok_or(ESRCH)?;
        device.since = Some(since);
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
        trace::take(self.id, devices.list.len(), result);
        match result {
            Ok(_) => {
                for device in &devices.list {
                    device.tracker.identify_take();
                }
                devices.state = State::Taken;
            }
            Err(_) => {
                for device in &mut devices.list {
                    device.end_image();
                    device.close();
                }
                // What was saved meanwhile is of no use, nor is what there was to be told.
                self.storage.reset();
            }
        }
        result.map(|_| ())
    }

    /// Returns how long the queues were frozen.
    fn take_all(&self, devices: &mut KVec<Device>, also_frozen: &[Arc<BdevFile>]) -> Result<Delta> {
        // Whatever can fail for lack of something comes first.
        let copy_memory = CopyMemory::new(params::max_copy_bytes(), devices.len());
        let copy_memory = Arc::new(copy_memory, GFP_KERNEL)?;
        for device in devices.iter_mut() {
            let origin = device.origin.clone();
            let nr_sectors = origin.nr_sectors();
            device.tracker.prepare(nr_sectors)?;
            let tracker = &device.tracker;
            device.area = Some(Area::new(Config {
                origin,
                geometry: Geometry::new(params::chunk_shift(), nr_sectors),
                selection: device.since.and_then(|id| tracker.select(&id)),
                copy_memory: copy_memory.clone(),
                storage: self.storage.clone(),
                map_memory: self.map_memory.clone(),
                queues: self.queues.clone(),
            })?);
        }
        let mut bdevs: KVec<&BlockDevice> = KVec::with_capacity(devices.len(), GFP_KERNEL)?;
        for device in devices.iter() {
            bdevs.push(&device.origin, GFP_KERNEL)?;
        }

        let mut with_fs = Self::may_have_fs(devices, also_frozen)?;
        let mut frozen = KVec::with_capacity(with_fs.len(), GFP_KERNEL)?;
        // Or the first one would be frozen while the others write, perhaps by way of a snapshot
        // whose storage is on it.
        for device in &with_fs {
            self.freezer.sync(device.clone())?;
        }
        let barrier = Barrier::new(bdevs)?;
        let mut frozen_for = Delta::ZERO;
        // Reclaim could wait for what is frozen.
        let result: Result = noio::scope(|| {
            let deadline = Deadline::after(params::freeze_timeout());
            self.freezer.freeze(&mut with_fs, &mut frozen, deadline)?;
            let begin = Instant::<Monotonic>::now();
            barrier.run(deadline, || {
                for device in devices.iter() {
                    if let Some(area) = &device.area {
                        device.tracker.take(area.clone());
                    }
                }
            })?;
            frozen_for = begin.elapsed();
            Ok(())
        });
        let deadline = Deadline::after(params::freeze_timeout());
        let thawed = noio::scope(|| self.freezer.thaw(&mut frozen, deadline));
        // A partition that a worker closed last would stay open for a moment after the take.
        drop(with_fs);
        result.and(thawed)?;

        for device in devices.iter_mut() {
            if let Some(area) = &device.area {
                let image = image::new(area)?;
                area.set_image_name(image.name())?;
                device.figures = Some(self.debug.add(image.name(), area, frozen_for)?);
                device.image = Some(image);
            }
        }
        Ok(frozen_for)
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
        // device was set up later, so its diskseq is larger, unless the other device has got
        // another table since.
        files.sort_unstable_by_key(|device| Reverse(device.disk_seq()));
        Ok(files)
    }

    /// Destroys the snapshot: its devices leave it, and its images are gone. The storage and the
    /// devices are closed, too, unless one of them does not answer; then that comes when it does.
    /// May sleep.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if there is none with that id.
    pub(crate) fn destroy(id: Uuid) -> Result {
        let snapshots = Snapshots::get()?;
        let snapshot = {
            let mut list = snapshots.list.lock();
            let at = list.iter().position(|s| s.id == id).ok_or(ENODEV)?;
            list.remove(at).map_err(|_| ENODEV)?
        };
        snapshot.end(&snapshots.ends);
        Ok(())
    }

    fn end(self: Arc<Self>, queue: &OwnedQueue) {
        self.storage.events().close();
        let mut devices = self.devices.lock();
        devices.state = State::Destroyed;
        // All writes go on, whichever device does not answer.
        for device in &mut devices.list {
            device.end_image();
            self.links.remove(&device.origin);
            device.tracker.leave();
        }
        drop(devices);
        // It is queued once.
        let _ = queue.enqueue(self.clone());
        let timeout = msecs_to_jiffies(END_TIMEOUT);
        let in_time = self.ended.wait_for_completion_timeout(timeout);
        if in_time {
            // Files are closed before this returns, which a kernel thread does not do.
            let mut devices = self.devices.lock();
            devices.list.clear();
            devices.frozen.clear();
        } else {
            pr_warn!("a device of a destroyed snapshot, or its storage, does not answer\n");
        }
        trace::destroy(self.id, !in_time);
    }
}

impl WorkItem for Snapshot {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let mut list = mem::take(&mut this.devices.lock().list);
        list.iter_mut().for_each(Device::close);
        // Work and bios that have just ended may still hold the areas, which are large. Then they,
        // the devices and the storage would be closed a moment later only, and where bios end.
        this.queues.flush();
        rcu::synchronize_rcu();
        this.devices.lock().list = list;
        let ended = this.ended.clone();
        // The task that waits drops the last reference.
        drop(this);
        ended.complete_all();
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
