// SPDX-License-Identifier: GPL-2.0-only

//! The filter on a device: it tracks changes, and while the device is in a snapshot that was taken
//! it hands writes over to the difference area.

use crate::{
    area::{
        Area,
        ImageName, //
    },
    arg::{
        expect_zeroes,
        fill_zeroes, //
    },
    change_map::{
        ChangeMap,
        Limits,
        Selection, //
    },
    compat,
    event::What,
    params,
    snapshot::Snapshot,
    token, //
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
    mm::memcg::MemCgroup,
    new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::Full,
        barrier::smp_mb,
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

/// What is known of the device under the lock.
struct Device {
    member: Member,
    /// It was removed.
    gone: bool,
}

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
    /// The one of who attached the device, which change maps are charged to.
    cgroup: Option<ARef<MemCgroup>>,
    map: RcuArc<ChangeMap>,
    area: RcuArc<Area>,
    #[pin]
    device: Mutex<Device>,
}

impl Tracker {
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
        let mut device = self.device.lock();
        match &device.member {
            Member::No => {
                device.member = Member::Of(id);
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
        self.device.lock().member = Member::No;
    }

    /// Gets ready for a snapshot of a device of `nr_sectors`: the change map must be able to go on.
    /// May sleep.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if the device was removed, [`ENOMEM`].
    pub(crate) fn prepare(&self, nr_sectors: u64) -> Result {
        if self.device.lock().gone {
            return Err(ENODEV);
        }
        if !self.with_map(|map| map.can_freeze(nr_sectors))? {
            let map = ChangeMap::new(&self.limits, nr_sectors, self.cgroup.clone())?;
            self.map.replace(Some(map));
            pr_info!("change tracking of {} starts again\n", self.dev);
        }
        Ok(())
    }

    /// Succeeds if there is a snapshot with the given id in the generation.
    ///
    /// # Errors
    ///
    /// [`ESTALE`] if there is not.
    pub(crate) fn knows(&self, id: &Uuid) -> Result {
        self.with_map(|map| map.number_of(id)).flatten().map(|_| ())
    }

    /// What will have changed since the snapshot with the given id when the one is taken for which
    /// this is prepared; None if that is not known.
    pub(crate) fn select(&self, id: &Uuid) -> Option<Selection> {
        Selection::since(id, self.map().ok()?).ok()
    }

    /// The snapshot is taken: from now on writes go by way of `area`. Nothing is written to the
    /// device meanwhile.
    pub(crate) fn take(&self, area: Arc<Area>) {
        let device = self.device.lock();
        let _ = self.with_map(ChangeMap::freeze);
        // There was none.
        self.area.replace(Some(area.clone()));
        // `truncated` sees the area, or what it has done is seen here.
        smp_mb(Full);
        if device.gone {
            self.break_off(&area, ENODEV);
        } else if self.with_map(ChangeMap::is_complete) != Ok(true)
            || area.origin().nr_sectors() != area.geometry().nr_sectors()
        {
            // The size has changed since the take was prepared.
            self.break_off(&area, ENXIO);
        }
    }

    /// The take has succeeded, so its snapshot gets an id. Does not sleep.
    pub(crate) fn identify_take(&self) {
        let _ = self.with_map(ChangeMap::identify_newest);
    }

    /// The device does not have its content any more.
    fn break_off(&self, area: &Area, error: Error) {
        area.fail(error, What::Corrupted(self.dev, error));
    }

    fn cbt_info(&self, arg: UserSlice) -> Result {
        let map = self.map()?;
        let mut to = arg.writer();
        to.write(&(map.nr_sectors() << SECTOR_SHIFT))?;
        to.write(&map.block_bytes())?;
        to.write(&(map.nr_blocks() as u32))?;
        to.write_slice(map.generation().as_bytes())?;
        to.write(&map.number())?;
        let padding = to.len();
        to.write_slice(&[0; 8][..padding])
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
            // The map of a large device takes a while.
            if kernel::current!().fatal_signal_pending() {
                return Err(EINTR);
            }
        }
        // A take changes the number with the lock held. If there was one, or a new generation, what
        // was read is of both.
        let _device = self.device.lock();
        if map.number() != number || !Arc::ptr_eq(&map, &self.map()?) {
            return Err(EAGAIN);
        }
        Ok(())
    }

    fn cbt_takes(&self, arg: UserSlice) -> Result {
        const ID: usize = size_of::<uapi::blksnap_uuid>();

        let (mut from, mut to) = arg.reader_writer();
        let room = from.read::<u32>()? as usize;
        let size = from.read::<u32>()?;
        let address = from.read::<u64>()?;
        from.skip(ID)?;
        let element = size as usize;
        if from.read::<u64>()? != 0 || !(ID..=PAGE_SIZE).contains(&element) {
            return Err(EINVAL);
        }
        expect_zeroes(from)?;

        let mut ids = KVec::with_capacity(ChangeMap::MAX_TAKES, GFP_KERNEL)?;
        let map = self.map()?;
        map.read_takes(&mut ids)?;
        to.write(&(ids.len() as u32))?;
        to.write(&size)?;
        to.write(&address)?;
        to.write_slice(map.generation().as_bytes())?;
        if address == 0 {
            return Ok(());
        }
        if room < ids.len() {
            return Err(ENODATA);
        }
        let takes = UserPtr::from_addr(usize::try_from(address)?);
        for (n, id) in ids.iter().enumerate() {
            let mut to = UserSlice::new(takes.wrapping_byte_add(n * element), element).writer();
            to.write_slice(id.as_bytes())?;
            fill_zeroes(to)?;
        }
        Ok(())
    }

    fn cbt_dirty(&self, arg: UserSlice) -> Result {
        let (count, ranges) = compat::read_array(&mut arg.reader())?;
        let len = count
            .checked_mul(size_of::<uapi::blksnap_sectors>())
            .ok_or(EINVAL)?;
        let mut ranges = UserSlice::new(ranges, len).reader();
        for _ in 0..count {
            let range = SectorRange {
                start: ranges.read()?,
                len: ranges.read()?,
            };
            // A take in between would change what it means.
            let device = self.device.lock();
            self.make_dirty(range)?;
            drop(device);
            if kernel::current!().fatal_signal_pending() {
                return Err(EINTR);
            }
        }
        Ok(())
    }

    /// With the lock held, so that there is no take meanwhile.
    fn make_dirty(&self, range: SectorRange) -> Result {
        let guard = rcu::read_lock();
        let map = self.map.get(&guard).ok_or(ENODEV)?;
        match self.area.get(&guard) {
            // What the image has cannot become more. The next one will have it.
            Some(area) if area.is_selective() => map.mark_inside(range),
            _ => map.mark_dirty(range),
        }
    }

    fn select_changed(self: ArcBorrow<'_, Self>, arg: UserSlice) -> Result {
        let mut from = arg.reader();
        let id = Uuid::from_bytes(from.read()?);
        if from.read::<u64>()? != 0 {
            return Err(EINVAL);
        }
        expect_zeroes(from)?;
        let snapshot = match self.device.lock().member {
            Member::Of(snapshot) => snapshot,
            _ => return Err(ESRCH),
        };
        self.knows(&id)?;
        Snapshot::find(snapshot)?.select(&self, id)
    }

    fn snapshot_info(&self, arg: UserSlice) -> Result {
        if !matches!(self.device.lock().member, Member::Of(_)) {
            return Err(ESRCH);
        }
        // Not from the snapshot, which is locked while it is taken.
        let (error, image) = {
            let guard = rcu::read_lock();
            let area = self.area.get(&guard);
            area.map_or((0, ImageName::default()), |area| {
                (area.error(), area.image_name())
            })
        };
        let mut to = arg.writer();
        to.write(&error)?;
        to.write_slice(&image)
    }
}

/// Succeeds if the argument of a command has one of the lengths that it may have.
fn expect(arg: &UserSlice, lengths: &[usize]) -> Result {
    if lengths.contains(&arg.len()) {
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
        let cgroup = MemCgroup::current();
        let map = ChangeMap::new(&limits, bdev.nr_sectors(), cgroup.clone())?;
        let dev = bdev.dev();
        Arc::pin_init(
            pin_init!(Self {
                dev,
                limits,
                cgroup,
                map: RcuArc::new(Some(map)),
                area: RcuArc::new(None),
                device <- new_mutex!(Device {
                    member: Member::No,
                    gone: false,
                }, "blksnap_device"),
            }),
            GFP_KERNEL,
        )
    }

    fn may_detach(this: ArcBorrow<'_, Self>) -> Result {
        let mut device = this.device.lock();
        if matches!(device.member, Member::Of(_)) {
            return Err(EBUSY);
        }
        device.member = Member::Never;
        Ok(())
    }

    fn gone(this: ArcBorrow<'_, Self>) {
        let mut device = this.device.lock();
        device.gone = true;
        // Also when a partition table is read again, though the partition stays.
        pr_info!(
            "change tracking of {} has ended, the device is gone\n",
            this.dev
        );
        let guard = rcu::read_lock();
        if let Some(area) = this.area.get(&guard) {
            this.break_off(&area, ENODEV);
        }
    }

    fn truncated(this: ArcBorrow<'_, Self>, nr_sectors: u64) {
        let _ = this.with_map(ChangeMap::lose);
        // Pairs with the barrier in `take`.
        smp_mb(Full);
        let guard = rcu::read_lock();
        if let Some(area) = this.area.get(&guard) {
            if nr_sectors == 0 {
                this.break_off(&area, ESTALE);
            } else if nr_sectors < area.geometry().nr_sectors() {
                this.break_off(&area, ENXIO);
            }
        }
    }

    fn ctl(this: ArcBorrow<'_, Self>, bdev: &BlockDevice, cmd: u32, arg: UserSlice) -> Result {
        match cmd {
            uapi::blksnap_filter_cmd_BLKSNAP_FILTER_CBTINFO => {
                expect(&arg, &[size_of::<uapi::blksnap_cbtinfo>(), compat::CBTINFO])?;
                this.cbt_info(arg)
            }
            uapi::blksnap_filter_cmd_BLKSNAP_FILTER_CBTMAP => {
                expect(&arg, &[size_of::<uapi::blksnap_cbtmap>()])?;
                this.cbt_map(arg)
            }
            uapi::blksnap_filter_cmd_BLKSNAP_FILTER_CBTDIRTY => {
                expect(
                    &arg,
                    &[size_of::<uapi::blksnap_cbtdirty>(), compat::CBTDIRTY],
                )?;
                this.cbt_dirty(arg)
            }
            uapi::blksnap_filter_cmd_BLKSNAP_FILTER_SNAPSHOTADD => {
                expect(&arg, &[size_of::<uapi::blksnap_snapshotadd>()])?;
                let id = Uuid::from_bytes(arg.reader().read()?);
                Snapshot::find(id)?.add(this.into(), bdev)
            }
            uapi::blksnap_filter_cmd_BLKSNAP_FILTER_SNAPSHOTINFO => {
                expect(&arg, &[size_of::<uapi::blksnap_snapshotinfo>()])?;
                this.snapshot_info(arg)
            }
            uapi::blksnap_filter_cmd_BLKSNAP_FILTER_CBTTAKES => {
                if arg.len() < size_of::<uapi::blksnap_cbttakes>() {
                    return Err(EINVAL);
                }
                this.cbt_takes(arg)
            }
            uapi::blksnap_filter_cmd_BLKSNAP_FILTER_SELECT => {
                if arg.len() < size_of::<uapi::blksnap_select>() {
                    return Err(EINVAL);
                }
                Self::select_changed(this, arg)
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
        let area = this.area.get(&guard);
        if let Some(area) = area.filter(|area| area.ignores(&guard, &bio, range)) {
            // It changes nothing, so there is nothing to track.
            return area.ignore(bio, range);
        }
        token::check(&guard, &bio, &this);
        if let Some(map) = this.map.get(&guard) {
            map.mark(range);
        }
        match area {
            Some(area) if !area.may_pass(range) => Area::intercept(area, bio, range),
            _ => bio.pass(),
        }
    }
}
