// SPDX-License-Identifier: GPL-2.0-only

//! `/dev/blksnap-control`.

use crate::{
    arg::fill_zeroes,
    compat,
    event::{
        Event,
        Events,
        What, //
    },
    params,
    snapshot::Snapshot,
    storage::Storage, //
};
use core::mem;
use kernel::{
    block::{
        bdev::{
            BlockDevice,
            SectorRange, //
        },
        SECTOR_SHIFT, //
    },
    capability::Capability,
    fs::{
        file::flags,
        File,
        LocalFile, //
    },
    ioctl::{
        _IO,
        _IOR,
        _IOW,
        _IOWR, //
    },
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        poll::{
            PollCondVar,
            PollMask, //
        },
        Arc,
        Mutex,
        SetOnce, //
    },
    time::msecs_to_jiffies,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
    uapi,
    uuid::Uuid, //
};

const TYPE: u32 = uapi::BLKSNAP as u32;
const VERSION: u32 = _IOR::<uapi::blksnap_version>(TYPE, 0);
const CREATE: u32 = _IOWR::<uapi::blksnap_snapshot_create>(TYPE, 1);
const DESTROY: u32 = _IOW::<uapi::blksnap_uuid>(TYPE, 2);
const TAKE: u32 = _IOW::<uapi::blksnap_uuid>(TYPE, 3);
const COLLECT: u32 = _IOR::<uapi::blksnap_snapshot_collect>(TYPE, 4);
const COLLECT_COMPAT: u32 = _IOR::<compat::SnapshotCollect>(TYPE, 4);
const WAIT_EVENT: u32 = _IOR::<uapi::blksnap_snapshot_event>(TYPE, 5);
const CREATE_EMPTY: u32 = _IOWR::<uapi::blksnap_snapshot_create_empty>(TYPE, 32);
const APPEND: u32 = _IOW::<uapi::blksnap_storage_append>(TYPE, 33);
const LIMIT: u32 = _IOW::<uapi::blksnap_storage_limit>(TYPE, 34);
const LOW_SPACE: u32 = _IOW::<uapi::blksnap_storage_low_space>(TYPE, 35);
const INFO: u32 = _IOWR::<uapi::blksnap_storage_info>(TYPE, 36);
const WATCH: u32 = _IOW::<uapi::blksnap_uuid>(TYPE, 37);
const OWN: u32 = _IO(TYPE, 38);
const FREEZE: u32 = _IOW::<uapi::blksnap_snapshot_freeze>(TYPE, 39);

/// The version of the interface: major, minor, revision, build. The out-of-tree module was 2.
const INTERFACE: [u16; 4] = [3, 5, 0, 0];

/// How many ranges of sectors can be appended at once.
const MAX_RANGES: usize = 65536;

/// The control device, opened.
#[pin_data(PinnedDrop)]
pub(crate) struct Control {
    /// What `poll()` tells of.
    watched: SetOnce<Arc<Events>>,
    /// Whether snapshots that are created through this file end with it.
    is_owner: Atomic<bool>,
    /// Those that do.
    #[pin]
    owned: Mutex<KVec<Uuid>>,
}

impl Control {
    pub(crate) const OPTIONS: MiscDeviceOptions = MiscDeviceOptions {
        name: c"blksnap-control",
    };
}

#[vtable]
impl MiscDevice for Control {
    type Ptr = Pin<KBox<Self>>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<Pin<KBox<Self>>> {
        KBox::pin_init(
            pin_init!(Self {
                watched: SetOnce::new(),
                is_owner: Atomic::new(false),
                owned <- new_mutex!(KVec::new(), "blksnap_owned"),
            }),
            GFP_KERNEL,
        )
    }

    fn ioctl(this: Pin<&Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        Capability::SYS_ADMIN.require()?;

        let slice = at(arg, 0, kernel::ioctl::_IOC_SIZE(cmd));
        match cmd {
            VERSION => version(slice),
            CREATE => this.create(arg),
            DESTROY => Snapshot::destroy(read_id(slice)?),
            TAKE => Snapshot::find(read_id(slice)?)?.take(),
            COLLECT | COLLECT_COMPAT => collect(slice),
            WAIT_EVENT => wait_event(arg),
            CREATE_EMPTY => this.create_empty(arg),
            APPEND => append(slice),
            LIMIT => limit(slice),
            LOW_SPACE => low_space(slice),
            INFO => info(slice),
            WATCH => this.watch(slice),
            FREEZE => freeze(slice),
            OWN => {
                this.is_owner.store(true, Relaxed);
                Ok(())
            }
            _ => Err(ENOTTY),
        }?;
        Ok(0)
    }

    fn poll_condvar<'a>(this: Pin<&'a Self>, _file: &'a File) -> Option<&'a PollCondVar> {
        Some(this.get_ref().watched.as_ref()?.changed())
    }

    fn poll(this: Pin<&Self>, _file: &File) -> PollMask {
        this.watched
            .as_ref()
            .map_or(PollMask::ERR, |events| events.poll())
    }
}

impl Control {
    fn watch(&self, arg: UserSlice) -> Result {
        let snapshot = Snapshot::find(read_id(arg)?)?;
        let events = snapshot.storage().events().clone();
        if !self.watched.populate(events) {
            return Err(EBUSY);
        }
        Ok(())
    }

    fn create(&self, arg: usize) -> Result {
        let mut from = at(arg, 0, 16).reader();
        let limit = from
            .read::<u64>()?
            .checked_mul(1 << SECTOR_SHIFT)
            .ok_or(EINVAL)?;
        let path = UserPtr::from_addr(usize::try_from(from.read::<u64>()?)?);

        // A path that is cut off is not the one that was meant.
        const MAX: usize = uapi::PATH_MAX as usize;
        let mut buffer = KVec::from_elem(0, MAX + 1, GFP_KERNEL)?;
        let path = UserSlice::new(path, buffer.len())
            .reader()
            .strcpy_into_buf(&mut buffer)?;
        match path.to_bytes().len() {
            0 => return Err(ENOENT),
            MAX.. => return Err(ENAMETOOLONG),
            _ => {}
        }
        let storage = Storage::open(path, limit, params::storage_step())?;
        self.create_with(storage, at(arg, 16, 16))
    }

    fn create_empty(&self, arg: usize) -> Result {
        if at(arg, 16, 8).reader().read::<u64>()? != 0 {
            return Err(EINVAL);
        }
        self.create_with(Storage::empty()?, at(arg, 0, 16))
    }

    fn create_with(&self, storage: Arc<Storage>, id_arg: UserSlice) -> Result {
        let id = self.create_owned(storage)?;
        id_arg.writer().write_slice(id.as_bytes()).inspect_err(|_| {
            // Nobody would know of it.
            let _ = Snapshot::destroy(id);
        })
    }

    /// Creates a snapshot that ends with this file if that was asked for.
    fn create_owned(&self, storage: Arc<Storage>) -> Result<Uuid> {
        if !self.is_owner.load(Relaxed) {
            return Snapshot::create(storage);
        }
        let mut owned = self.owned.lock();
        // Those that were destroyed by their ids
        owned.retain(|id| Snapshot::find(*id).is_ok());
        owned.reserve(1, GFP_KERNEL)?;
        let id = Snapshot::create(storage)?;
        owned.push(id, GFP_KERNEL)?;
        Ok(id)
    }
}

/// When the last descriptor of the file is closed, or the process that has it ends.
#[pinned_drop]
impl PinnedDrop for Control {
    fn drop(self: Pin<&mut Self>) {
        let owned = mem::take(&mut *self.owned.lock());
        for id in owned {
            // It may have been destroyed by its id.
            let _ = Snapshot::destroy(id);
        }
    }
}

/// A part of the argument at user address `arg`.
fn at(arg: usize, offset: usize, len: usize) -> UserSlice {
    UserSlice::new(UserPtr::from_addr(arg).wrapping_byte_add(offset), len)
}

fn read_id(arg: UserSlice) -> Result<Uuid> {
    Ok(Uuid::from_bytes(arg.reader().read()?))
}

fn version(arg: UserSlice) -> Result {
    let mut to = arg.writer();
    for number in INTERFACE {
        to.write(&number)?;
    }
    Ok(())
}

fn append(arg: UserSlice) -> Result {
    let mut from = arg.reader();
    let id = Uuid::from_bytes(from.read()?);
    let ranges = UserPtr::from_addr(usize::try_from(from.read::<u64>()?)?);
    let count = from.read::<u32>()? as usize;
    let fd = from.read::<u32>()?;
    if from.read::<u64>()? != 0 {
        return Err(EINVAL);
    }
    if count > MAX_RANGES {
        return Err(E2BIG);
    }

    let snapshot = Snapshot::find(id)?;
    let file = LocalFile::fget(fd)?;
    if file.flags() & flags::O_ACCMODE == flags::O_RDONLY {
        return Err(EBADF);
    }
    let bdev = BlockDevice::of_file(&file).ok_or(ENOTBLK)?;
    let mut from = UserSlice::new(ranges, count * size_of::<uapi::blksnap_sectors>()).reader();
    let mut sectors = KVVec::with_capacity(count, GFP_KERNEL)?;
    for _ in 0..count {
        let range = SectorRange {
            start: from.read()?,
            len: from.read()?,
        };
        sectors.push(range, GFP_KERNEL)?;
    }
    snapshot.extend(bdev, &sectors)
}

fn freeze(arg: UserSlice) -> Result {
    let mut from = arg.reader();
    let id = Uuid::from_bytes(from.read()?);
    let fd = from.read::<u32>()?;
    if from.read::<u32>()? != 0 {
        return Err(EINVAL);
    }
    let snapshot = Snapshot::find(id)?;
    let file = LocalFile::fget(fd)?;
    snapshot.freeze(BlockDevice::of_file(&file).ok_or(ENOTBLK)?)
}

/// Reads the id of a snapshot and a number of sectors, which is returned in bytes.
fn read_space(arg: UserSlice) -> Result<(Arc<Snapshot>, u64)> {
    let mut from = arg.reader();
    let id = Uuid::from_bytes(from.read()?);
    let bytes = from.read::<u64>()?.checked_mul(1 << SECTOR_SHIFT);
    Ok((Snapshot::find(id)?, bytes.ok_or(EINVAL)?))
}

fn limit(arg: UserSlice) -> Result {
    let (snapshot, bytes) = read_space(arg)?;
    snapshot.storage().set_limit(bytes)
}

fn low_space(arg: UserSlice) -> Result {
    let (snapshot, bytes) = read_space(arg)?;
    snapshot.storage().set_low_space(bytes);
    Ok(())
}

fn info(arg: UserSlice) -> Result {
    let (mut from, mut to) = arg.reader_writer();
    let id = Uuid::from_bytes(from.read()?);
    let snapshot = Snapshot::find(id)?;
    let space = snapshot.storage().space();
    let (lost, held) = snapshot.storage().events().figures();
    to.write_slice(id.as_bytes())?;
    for bytes in [space.total, space.used, space.low] {
        to.write(&(bytes >> SECTOR_SHIFT))?;
    }
    to.write(&lost)?;
    to.write(&held)?;
    to.write(&0u64)
}

fn collect(arg: UserSlice) -> Result {
    let (mut from, mut to) = arg.reader_writer();
    let (room, buffer) = compat::read_array(&mut from)?;

    let ids = Snapshot::ids()?;
    to.write(&(ids.len() as u32))?;
    if buffer.as_const_ptr().is_null() {
        return Ok(());
    }
    if room < ids.len() {
        return Err(ENODATA);
    }
    let len = ids.len() * size_of::<uapi::blksnap_uuid>();
    let mut to = UserSlice::new(buffer, len).writer();
    for id in &ids {
        to.write_slice(id.as_bytes())?;
    }
    Ok(())
}

fn wait_event(arg: usize) -> Result {
    const RETURNED: usize = mem::offset_of!(uapi::blksnap_snapshot_event, code);

    let mut from = at(arg, 0, RETURNED).reader();
    let id = Uuid::from_bytes(from.read()?);
    let timeout = from.read::<u32>()?;

    let events = Snapshot::find(id)?.storage().events().clone();
    let event = events.wait(msecs_to_jiffies(timeout))?;
    let len = size_of::<uapi::blksnap_snapshot_event>() - RETURNED;
    write_event(&event, at(arg, RETURNED, len)).inspect_err(|_| events.put_back(event))
}

fn write_event(event: &Event, arg: UserSlice) -> Result {
    let time = event.time.as_nanos();
    let mut to = arg.writer();
    match event.what {
        What::Corrupted(dev, error) => {
            to.write(&uapi::blksnap_event_codes_BLKSNAP_EVENT_CODE_CORRUPTED)?;
            to.write(&time)?;
            to.write(&dev.major())?;
            to.write(&dev.minor())?;
            to.write(&error.to_errno())?;
        }
        What::NoSpace(sectors) => {
            to.write(&uapi::blksnap_event_codes_BLKSNAP_EVENT_CODE_NO_SPACE)?;
            to.write(&time)?;
            to.write(&sectors)?;
        }
        What::LowSpace(sectors) => {
            to.write(&uapi::blksnap_event_codes_BLKSNAP_EVENT_CODE_LOW_SPACE)?;
            to.write(&time)?;
            to.write(&sectors)?;
        }
        What::Lost(dev, sectors, error) => {
            to.write(&uapi::blksnap_event_codes_BLKSNAP_EVENT_CODE_LOST)?;
            to.write(&time)?;
            to.write(&dev.major())?;
            to.write(&dev.minor())?;
            to.write(&sectors.start)?;
            to.write(&sectors.len)?;
            to.write(&error.to_errno())?;
        }
        What::SlowStorage(dev, held, limit) => {
            to.write(&uapi::blksnap_event_codes_BLKSNAP_EVENT_CODE_SLOW_STORAGE)?;
            to.write(&time)?;
            to.write(&dev.major())?;
            to.write(&dev.minor())?;
            to.write(&held)?;
            to.write(&limit)?;
        }
    }
    // Nothing of an earlier event stays behind it.
    fill_zeroes(to)
}
