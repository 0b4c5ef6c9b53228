// SPDX-License-Identifier: GPL-2.0-only

//! The filter on a device: it tracks changes, and while the device is in a snapshot that was taken
//! it hands writes over to the difference area.

use crate::{
    area::Area,
    change_map::{
        ChangeMap,
        Limits, //
    },
    event::What,
    params,
    snapshot::Snapshot, //
};
use kernel::{
    block::{
        bdev::{
            BlockDevice,
            DevT,
            SectorRange, //
        },
        filter::{
            Filter,
            FilteredBio,
            Verdict, //
        },
        SECTOR_SHIFT, //
    },
    new_mutex,
    prelude::*,
    sync::{
        rcu::{
            self,
            RcuArc, //
        },
        Arc,
        ArcBorrow,
        Mutex, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    },
    uapi,
    uuid::Uuid, //
};

/// The snapshot that a device is in.
enum Member {
    /// None.
    No,
    /// None, and it is too late for one, since the filter is being detached.
    Never,
    /// This one.
    Of(Uuid),
}

/// The filter on a device.
#[pin_data]
pub(crate) struct Tracker {
    dev: DevT,
    limits: Limits,
    map: RcuArc<ChangeMap>,
    area: RcuArc<Area>,
    #[pin]
    member: Mutex<Member>,
}

impl Tracker {
    /// The device's number.
    pub(crate) fn dev(&self) -> DevT {
        self.dev
    }

    fn with_map<R>(&self, f: impl FnOnce(&ChangeMap) -> R) -> Result<R> {
        let guard = rcu::read_lock();
        // There always is one.
        let map = self.map.get(&guard).ok_or(ENODEV)?;
        Ok(f(&map))
    }

    /// The change map, with a reference.
    fn map(&self) -> Result<Arc<ChangeMap>> {
        let guard = rcu::read_lock();
        Ok(self.map.get(&guard).ok_or(ENODEV)?.into())
    }

    /// The device joins a snapshot.
    ///
    /// # Errors
    ///
    /// [`EALREADY`] if it is in that one, [`EBUSY`] if in another, [`ENODEV`] if the filter is
    /// being detached.
    pub(crate) fn join(&self, id: Uuid) -> Result {
        let mut member = self.member.lock();
        match &*member {
            Member::No => {
                *member = Member::Of(id);
                Ok(())
            }
            Member::Never => Err(ENODEV),
            Member::Of(other) if *other == id => Err(EALREADY),
            Member::Of(_) => Err(EBUSY),
        }
    }

    /// Writes pass from now on, whether the snapshot was taken or not. May sleep.
    pub(crate) fn stop(&self) {
        drop(self.area.replace(None));
    }

    /// The device leaves its snapshot.
    pub(crate) fn leave(&self) {
        *self.member.lock() = Member::No;
    }

    /// Gets ready for a snapshot of a device of `nr_sectors`: the change map must be able to go on.
    /// May sleep.
    pub(crate) fn prepare(&self, nr_sectors: u64) -> Result {
        if !self.with_map(|map| map.can_freeze(nr_sectors))? {
            let map = ChangeMap::new(&self.limits, nr_sectors)?;
            self.map.replace(Some(Arc::new(map, GFP_KERNEL)?));
            pr_info!("change tracking of {} starts again\n", self.dev);
        }
        Ok(())
    }

    /// The snapshot is taken: from now on writes go by way of `area`. Nothing is written to the
    /// device meanwhile.
    pub(crate) fn take(&self, area: Arc<Area>) {
        // This cannot fail, and there was no area.
        let _ = self.with_map(ChangeMap::freeze);
        self.area.replace(Some(area));
    }

    fn cbt_info(&self, arg: UserSlice) -> Result {
        let map = self.map()?;
        let mut to = arg.writer();
        to.write(&(map.nr_sectors() << SECTOR_SHIFT))?;
        to.write(&map.block_bytes())?;
        to.write(&(map.nr_blocks() as u32))?;
        to.write_slice(map.generation().as_bytes())?;
        to.write(&map.number())?;
        to.write_slice(&[0; 7])
    }

    fn cbt_map(&self, arg: UserSlice) -> Result {
        const PIECE: usize = 1024;

        let mut from = arg.reader();
        let offset = from.read::<u32>()? as usize;
        let length = from.read::<u32>()? as usize;
        let buffer = from.read::<u64>()?;

        let map = self.map()?;
        let number = map.number();
        let end = offset.checked_add(length).ok_or(ENODATA)?;
        if end > map.nr_blocks() {
            return Err(ENODATA);
        }
        let mut to = UserSlice::new(UserPtr::from_addr(usize::try_from(buffer)?), length).writer();
        let mut at = offset;
        let mut bytes = [0; PIECE];
        while at < end {
            let count = map.read_frozen(at, &mut bytes[..PIECE.min(end - at)]);
            to.write_slice(&bytes[..count])?;
            at += count;
        }
        // A snapshot was taken meanwhile: this is of both.
        if self.with_map(|map| map.number())? != number {
            return Err(EAGAIN);
        }
        Ok(())
    }

    fn cbt_dirty(&self, arg: UserSlice) -> Result {
        let mut from = arg.reader();
        let count = from.read::<u32>()? as usize;
        let _padding = from.read::<u32>()?;
        let ranges = from.read::<u64>()?;

        let len = count
            .checked_mul(core::mem::size_of::<uapi::blksnap_sectors>())
            .ok_or(EINVAL)?;
        let mut ranges = UserSlice::new(UserPtr::from_addr(usize::try_from(ranges)?), len).reader();
        let map = self.map()?;
        for _ in 0..count {
            let range = SectorRange {
                start: ranges.read()?,
                len: ranges.read()?,
            };
            map.mark_dirty(range)?;
            if kernel::current!().signal_pending() {
                return Err(EINTR);
            }
        }
        Ok(())
    }

    fn snapshot_info(&self, arg: UserSlice) -> Result {
        let id = match &*self.member.lock() {
            Member::Of(id) => *id,
            _ => return Err(ESRCH),
        };
        let (error, image) = Snapshot::find(id)?.image_of(self.dev)?;
        let mut to = arg.writer();
        to.write(&error)?;
        to.write_slice(&image)
    }
}

/// Succeeds if the argument of a command has the length that is its own.
fn expect<T>(arg: &UserSlice) -> Result {
    if arg.len() == core::mem::size_of::<T>() {
        Ok(())
    } else {
        Err(EINVAL)
    }
}

#[vtable]
impl Filter for Tracker {
    const NAME: &'static CStr = c"blksnap";

    fn attach(bdev: &BlockDevice, options: UserSlice) -> Result<Arc<Self>> {
        if !options.is_empty() {
            return Err(EINVAL);
        }
        let limits = params::change_map_limits();
        let map = ChangeMap::new(&limits, bdev.nr_sectors())?;
        let map = Arc::new(map, GFP_KERNEL)?;
        let dev = bdev.dev();
        Arc::pin_init(
            pin_init!(Self {
                dev,
                limits,
                map: RcuArc::new(Some(map)),
                area: RcuArc::new(None),
                member <- new_mutex!(Member::No, "blksnap_member"),
            }),
            GFP_KERNEL,
        )
    }

    fn may_detach(this: ArcBorrow<'_, Self>) -> Result {
        let mut member = this.member.lock();
        if matches!(*member, Member::Of(_)) {
            return Err(EBUSY);
        }
        *member = Member::Never;
        Ok(())
    }

    fn detached(this: ArcBorrow<'_, Self>, gone: bool) {
        let guard = rcu::read_lock();
        if let Some(area) = this.area.get(&guard).filter(|_| gone) {
            area.fail(ENODEV, What::Corrupted(this.dev, ENODEV));
        }
    }

    fn ctl(this: ArcBorrow<'_, Self>, bdev: &BlockDevice, cmd: u32, arg: UserSlice) -> Result {
        match cmd {
            uapi::blksnap_filter_cmd_BLKSNAP_FILTER_CBTINFO => {
                expect::<uapi::blksnap_cbtinfo>(&arg)?;
                this.cbt_info(arg)
            }
            uapi::blksnap_filter_cmd_BLKSNAP_FILTER_CBTMAP => {
                expect::<uapi::blksnap_cbtmap>(&arg)?;
                this.cbt_map(arg)
            }
            uapi::blksnap_filter_cmd_BLKSNAP_FILTER_CBTDIRTY => {
                expect::<uapi::blksnap_cbtdirty>(&arg)?;
                this.cbt_dirty(arg)
            }
            uapi::blksnap_filter_cmd_BLKSNAP_FILTER_SNAPSHOTADD => {
                expect::<uapi::blksnap_snapshotadd>(&arg)?;
                let id = Uuid::from_bytes(arg.reader().read()?);
                Snapshot::find(id)?.add(this.into(), bdev)
            }
            uapi::blksnap_filter_cmd_BLKSNAP_FILTER_SNAPSHOTINFO => {
                expect::<uapi::blksnap_snapshotinfo>(&arg)?;
                this.snapshot_info(arg)
            }
            _ => Err(ENOTTY),
        }
    }

    #[inline]
    fn submit_bio<'a>(
        this: ArcBorrow<'_, Self>,
        bio: FilteredBio<'a>,
        range: SectorRange,
    ) -> Verdict<'a> {
        if !bio.op().changes_media() {
            return bio.pass();
        }
        let guard = rcu::read_lock();
        if let Some(map) = this.map.get(&guard) {
            map.mark(range);
        }
        match this.area.get(&guard) {
            Some(area) if !area.may_pass(range) => {
                let (bio, verdict) = bio.take();
                Area::park(area, bio);
                verdict
            }
            _ => bio.pass(),
        }
    }
}
