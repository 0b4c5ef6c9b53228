// SPDX-License-Identifier: GPL-2.0-only

//! Tests that need a disk: one in memory that can fail, hold or split bios.

use super::{
    byte,
    pattern,
    patterned,
    TestBio, //
};
use crate::{
    bindings,
    block::{
        bdev::{
            BdevFile,
            FrozenFs, //
        },
        bio::{
            BioList,
            BioSet,
            EndIo,
            Op,
            OwnedBio, //
        },
        bio_disk::{
            BioDisk,
            Operations,
            Options, //
        },
        SECTOR_SHIFT, //
    },
    new_spinlock_irq,
    page::{
        Page,
        Pages,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        ArcBorrow,
        Completion,
        SpinLockIrq,
        UniqueArc, //
    },
    time::Delta, //
};

/// What a disk in memory has.
#[pin_data]
pub(in crate::block) struct Store {
    pages: Pages,
    /// Whether all bios are ended with an error.
    fail: Atomic<bool>,
    /// Whether bios are kept.
    hold: Atomic<bool>,
    /// Upper limit of the pieces in which bios are served, in sectors; 0 for none.
    piece: Atomic<u64>,
    /// Bios that were served.
    served: Atomic<u32>,
    #[pin]
    held: SpinLockIrq<BioList>,
}

impl Store {
    fn serve(&self, mut bio: OwnedBio) {
        self.served.add(1, Relaxed);
        let at = (bio.sector() << SECTOR_SHIFT) as usize;
        let len = bio.size();
        let result = match bio.op() {
            Op::Read if !self.fail.load(Relaxed) => bio.copy_from_pages(0, &self.pages, at, len),
            _ => Err(EIO),
        };
        bio.end(result);
    }

    /// Serves what was kept.
    fn release(&self) {
        self.hold.store(false, Relaxed);
        let mut bios = self.held.lock().take();
        while let Some(bio) = bios.pop() {
            self.serve(bio);
        }
    }
}

pub(in crate::block) struct MemoryDisk;

#[vtable]
impl Operations for MemoryDisk {
    type Data = Arc<Store>;

    fn submit_bio(store: ArcBorrow<'_, Store>, bio: OwnedBio) {
        let piece = store.piece.load(Relaxed);
        let bio = if piece > 0 && piece < bio.sectors() {
            let Ok(first) = bio.split(piece) else { return };
            first
        } else {
            bio
        };
        if store.hold.load(Relaxed) {
            store.held.lock().push(bio);
        } else {
            store.serve(bio);
        }
    }
}

fn options(nr_sectors: u64) -> Options {
    Options {
        nr_sectors,
        logical_block_size: 512,
        physical_block_size: 4096,
        dma_alignment: 512,
        read_only: true,
        sparse: false,
    }
}

fn add<T: Operations>(options: &Options, data: T::Data) -> Result<BioDisk<T>> {
    static NUMBER: Atomic<u32> = Atomic::new(0);

    let number = NUMBER.fetch_add(1, Relaxed);
    BioDisk::new(fmt!("rust-kunit{number}"), options, data)
}

const DISK_PAGES: usize = 8;
const DISK_SECTORS: u64 = ((DISK_PAGES * PAGE_SIZE) >> SECTOR_SHIFT) as u64;

/// A disk in memory that holds the pattern.
pub(in crate::block) fn memory_disk() -> Result<(BioDisk<MemoryDisk>, Arc<Store>)> {
    let store = Arc::pin_init(
        try_pin_init!(Store {
            pages: patterned(DISK_PAGES)?,
            fail: Atomic::new(false),
            hold: Atomic::new(false),
            piece: Atomic::new(0),
            served: Atomic::new(0),
            held <- new_spinlock_irq!(BioList::new()),
        }? Error),
        GFP_KERNEL,
    )?;
    Ok((add(&options(DISK_SECTORS), store.clone())?, store))
}

/// What became of a read.
#[pin_data]
struct Outcome {
    #[pin]
    done: Completion,
    ends: Atomic<u32>,
    drops: Atomic<u32>,
    #[pin]
    got: SpinLockIrq<Option<(UniqueArc<Pages>, Result)>>,
}

impl Outcome {
    fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                done <- Completion::new(),
                ends: Atomic::new(0),
                drops: Atomic::new(0),
                got <- new_spinlock_irq!(None),
            }),
            GFP_KERNEL,
        )
    }

    /// How often it ended, and how often its data was dropped.
    fn counts(&self) -> (u32, u32) {
        (self.ends.load(Relaxed), self.drops.load(Relaxed))
    }

    fn result(&self) -> Option<Result> {
        self.got.lock().as_ref().map(|(_, result)| *result)
    }
}

/// The data of a read.
struct Read(Arc<Outcome>);

impl Drop for Read {
    fn drop(&mut self) {
        self.0.drops.add(1, Relaxed);
        self.0.done.complete_all();
    }
}

#[vtable]
impl EndIo for Read {
    type Held = UniqueArc<Pages>;

    fn end_io(self, pages: UniqueArc<Pages>, result: Result) {
        *self.0.got.lock() = Some((pages, result));
        self.0.ends.add(1, Relaxed);
    }
}

fn start(
    set: &BioSet<Read>,
    bdev: &Arc<BdevFile>,
    sector: u64,
    pages: usize,
    len: usize,
) -> Result<Arc<Outcome>> {
    let outcome = Outcome::new()?;
    let pages = UniqueArc::new(Pages::alloc(pages, GFP_KERNEL | __GFP_ZERO)?, GFP_KERNEL)?;
    set.read(bdev, sector, pages, len, Read(outcome.clone()), GFP_KERNEL);
    Ok(outcome)
}

fn read(
    set: &BioSet<Read>,
    bdev: &Arc<BdevFile>,
    sector: u64,
    pages: usize,
    len: usize,
) -> Result<Arc<Outcome>> {
    let outcome = start(set, bdev, sector, pages, len)?;
    outcome.done.wait_for_completion();
    Ok(outcome)
}

/// The number of bytes that are not those of the pattern from byte `from` on, and 0 behind `len`.
fn wrong_bytes(outcome: &Outcome, from: usize, len: usize) -> usize {
    let Some((pages, _)) = outcome.got.lock().take() else {
        return usize::MAX;
    };
    (0..pages.len())
        .filter(|at| {
            let want = if *at < len { pattern(from + at) } else { 0 };
            byte(&pages[at / PAGE_SIZE], at % PAGE_SIZE) != want
        })
        .count()
}

/// A disk that shows another one, from its second page on.
#[pin_data]
struct Shift {
    set: BioSet<Forward>,
    below: Arc<BdevFile>,
}

const SHIFT: u64 = (PAGE_SIZE >> SECTOR_SHIFT) as u64;

struct Forward;

#[vtable]
impl EndIo for Forward {
    type Held = OwnedBio;

    fn end_io(self, parent: OwnedBio, result: Result) {
        parent.end(result);
    }
}

struct ShiftDisk;

#[vtable]
impl Operations for ShiftDisk {
    type Data = Arc<Shift>;

    fn submit_bio(shift: ArcBorrow<'_, Shift>, bio: OwnedBio) {
        let sector = bio.sector() + SHIFT;
        shift
            .set
            .forward(&shift.below, sector, bio, Forward, GFP_NOIO);
    }
}

#[kunit_tests(rust_block_disk)]
mod disk_tests {
    use super::*;

    #[test]
    fn device_is_that_of_the_disk() -> Result {
        let (disk, _) = memory_disk()?;
        let (other, _) = memory_disk()?;
        let bdev = BdevFile::open(disk.dev())?;
        assert_eq!(bdev.dev(), disk.dev());
        assert_eq!(bdev.nr_sectors(), DISK_SECTORS);
        assert_eq!(bdev.logical_block_size(), 512);
        assert_eq!(bdev.physical_block_size(), 4096);
        assert!(!bdev.is_partition());
        assert!(!bdev.has_disk_of(&*BdevFile::open(other.dev())?));
        assert_eq!(bdev.next_partition(0), None);
        assert_eq!(bdev.partition(0)?.dev(), bdev.dev());
        assert_eq!(bdev.partition(1).err(), Some(ENXIO));
        Ok(())
    }

    #[test]
    fn newer_disks_have_larger_numbers() -> Result {
        let (disk, _) = memory_disk()?;
        let (other, _) = memory_disk()?;
        let older = BdevFile::open(disk.dev())?.disk_seq();
        assert!(BdevFile::open(other.dev())?.disk_seq() > older);
        Ok(())
    }

    #[test]
    fn impossible_disks_are_refused() -> Result {
        let make = |name, options: &Options| -> Result {
            let (_disk, store) = memory_disk()?;
            BioDisk::<MemoryDisk>::new(fmt!("{name}"), options, store).map(|_| ())
        };
        assert_eq!(
            make("rust-kunit-has-a-name-of-32-bytes", &options(8)),
            Err(EINVAL)
        );
        assert_eq!(make("rust-kunit", &options(1 << 54)), Err(EINVAL));
        for logical_block_size in [0, 256, 1000] {
            let options = Options {
                logical_block_size,
                ..options(8)
            };
            assert_eq!(make("rust-kunit", &options), Err(EINVAL));
        }
        for dma_alignment in [0, 3, 2 * PAGE_SIZE as u32] {
            let options = Options {
                dma_alignment,
                ..options(8)
            };
            assert_eq!(make("rust-kunit", &options), Err(EINVAL));
        }
        Ok(())
    }

    #[test]
    fn reads_into_several_pages() -> Result {
        let (disk, _) = memory_disk()?;
        let bdev = Arc::new(BdevFile::open(disk.dev())?, GFP_KERNEL)?;
        let set = BioSet::new(1)?;
        let len = 2 * PAGE_SIZE + 512;
        let outcome = read(&set, &bdev, 3, 4, len)?;
        assert_eq!(outcome.counts(), (1, 1));
        assert_eq!(outcome.result(), Some(Ok(())));
        assert_eq!(wrong_bytes(&outcome, 3 * 512, len), 0);
        Ok(())
    }

    #[test]
    fn failed_reads_end_once() -> Result {
        let (disk, store) = memory_disk()?;
        let bdev = Arc::new(BdevFile::open(disk.dev())?, GFP_KERNEL)?;
        let set = BioSet::new(0)?;
        // Beyond the end.
        let outcome = read(&set, &bdev, DISK_SECTORS, 1, 512)?;
        assert_eq!(outcome.counts(), (1, 1));
        assert_eq!(outcome.result(), Some(Err(EIO)));

        store.fail.store(true, Relaxed);
        let outcome = read(&set, &bdev, 0, 1, 512)?;
        assert_eq!(outcome.counts(), (1, 1));
        assert_eq!(outcome.result(), Some(Err(EIO)));

        // The disk is gone.
        drop(disk);
        let outcome = read(&set, &bdev, 0, 1, 512)?;
        assert_eq!(outcome.counts(), (1, 1));
        assert!(matches!(outcome.result(), Some(Err(_))));
        Ok(())
    }

    #[test]
    fn impossible_reads_end_once() -> Result {
        let (disk, _) = memory_disk()?;
        let bdev = Arc::new(BdevFile::open(disk.dev())?, GFP_KERNEL)?;
        let set = BioSet::new(1)?;
        let most = bindings::BIO_MAX_VECS as usize;
        for (pages, len) in [
            (1, 0),
            (1, 100),
            (1, PAGE_SIZE + 512),
            (most + 1, (most + 1) * PAGE_SIZE),
        ] {
            let outcome = read(&set, &bdev, 0, pages, len)?;
            assert_eq!(outcome.counts(), (1, 1));
            assert_eq!(outcome.result(), Some(Err(EINVAL)));
        }
        assert_eq!(BioSet::<Read>::new(u32::MAX).err(), Some(EINVAL));
        Ok(())
    }

    #[test]
    fn set_may_be_dropped_with_bios_in_flight() -> Result {
        let (disk, store) = memory_disk()?;
        let bdev = Arc::new(BdevFile::open(disk.dev())?, GFP_KERNEL)?;
        let set = BioSet::new(2)?;
        store.hold.store(true, Relaxed);
        let first = start(&set, &bdev, 0, 1, 512)?;
        let second = start(&set, &bdev, 1, 1, 512)?;
        drop(set);
        assert_eq!(first.counts(), (0, 0));
        store.release();
        first.done.wait_for_completion();
        second.done.wait_for_completion();
        assert_eq!(first.counts(), (1, 1));
        assert_eq!(second.counts(), (1, 1));
        assert_eq!(wrong_bytes(&second, 512, 512), 0);
        Ok(())
    }

    #[test]
    fn forwards_bios() -> Result {
        let (below, store) = memory_disk()?;
        let shift = Shift {
            set: BioSet::new(1)?,
            below: Arc::new(BdevFile::open(below.dev())?, GFP_KERNEL)?,
        };
        let shift = Arc::new(shift, GFP_KERNEL)?;
        let disk: BioDisk<ShiftDisk> = add(&options(DISK_SECTORS - SHIFT), shift)?;
        let bdev = Arc::new(BdevFile::open(disk.dev())?, GFP_KERNEL)?;
        let set = BioSet::new(1)?;

        let outcome = read(&set, &bdev, 1, 2, 2 * PAGE_SIZE)?;
        assert_eq!(outcome.result(), Some(Ok(())));
        assert_eq!(wrong_bytes(&outcome, PAGE_SIZE + 512, 2 * PAGE_SIZE), 0);

        store.fail.store(true, Relaxed);
        let outcome = read(&set, &bdev, 1, 1, 512)?;
        assert_eq!(outcome.counts(), (1, 1));
        assert_eq!(outcome.result(), Some(Err(EIO)));
        Ok(())
    }

    #[test]
    fn serves_bios_in_pieces() -> Result {
        let (disk, store) = memory_disk()?;
        let bdev = Arc::new(BdevFile::open(disk.dev())?, GFP_KERNEL)?;
        let set = BioSet::new(1)?;
        let served = store.served.load(Relaxed);
        store.piece.store(3, Relaxed);

        // 16 sectors from the first one on.
        let outcome = read(&set, &bdev, 1, 2, 2 * PAGE_SIZE)?;
        let pieces = ((2 * PAGE_SIZE) >> SECTOR_SHIFT).div_ceil(3) as u32;
        assert_eq!(outcome.counts(), (1, 1));
        assert_eq!(outcome.result(), Some(Ok(())));
        assert_eq!(wrong_bytes(&outcome, 512, 2 * PAGE_SIZE), 0);
        assert_eq!(store.served.load(Relaxed) - served, pieces);

        // All pieces are on their way before the first one has ended.
        store.hold.store(true, Relaxed);
        let outcome = start(&set, &bdev, 1, 2, 2 * PAGE_SIZE)?;
        assert_eq!(outcome.counts(), (0, 0));
        let mut held = 0;
        let mut bios = store.held.lock().take();
        while let Some(bio) = bios.pop() {
            held += 1;
            // The last one ends first, as far as this list goes.
            store.held.lock().push_front(bio);
        }
        assert_eq!(held, pieces);
        store.fail.store(true, Relaxed);
        store.release();
        assert_eq!(outcome.counts(), (1, 1));
        assert_eq!(outcome.result(), Some(Err(EIO)));
        Ok(())
    }

    #[test]
    fn splits_only_inside() -> Result {
        let page = Page::alloc_page(GFP_KERNEL)?;
        let vecs = [(page.as_ptr(), 0, 1024)];
        for sectors in [0, 2, 3, u64::MAX] {
            let test = TestBio::new(bindings::req_op_REQ_OP_READ, 0, &vecs)?;
            assert_eq!(test.own().split(sectors).err(), Some(EINVAL));
            assert_eq!(test.ended(), (1, EINVAL.to_errno()));
        }
        let test = TestBio::without_data(bindings::req_op_REQ_OP_DISCARD, 0, 8)?;
        assert_eq!(test.own().split(1).err(), Some(EINVAL));
        assert_eq!(test.ended(), (1, EINVAL.to_errno()));
        Ok(())
    }

    /// Forwards a bio to `sector` of a disk, and tells how often it ended, and how.
    fn forward(op: bindings::req_op, sector: u64) -> Result<(u32, i32)> {
        let (disk, _) = memory_disk()?;
        let bdev = Arc::new(BdevFile::open(disk.dev())?, GFP_KERNEL)?;
        let set = BioSet::<Forward>::new(1)?;
        let page = Page::alloc_page(GFP_KERNEL)?;
        let vecs = [(page.as_ptr(), 0, 512)];
        let test = TestBio::new(op, 0, &vecs)?;
        // As a filter gets it.
        // SAFETY: The bio is ours, and the device stays open longer.
        unsafe {
            (*test.as_raw()).bi_bdev = bdev.as_raw();
            (*test.as_raw()).bi_flags |= 1u16 << bindings::BIO_REMAPPED;
        }
        set.forward(&bdev, sector, test.own(), Forward, GFP_KERNEL);
        Ok(test.ended())
    }

    #[test]
    fn forwards_reads_only() -> Result {
        let failed = (1, EIO.to_errno());
        assert_eq!(forward(bindings::req_op_REQ_OP_WRITE, 0)?, failed);
        Ok(())
    }

    #[test]
    fn forwarding_checks_the_sector_again() -> Result {
        // The disk itself would say EINVAL.
        let failed = (1, EIO.to_errno());
        assert_eq!(forward(bindings::req_op_REQ_OP_READ, DISK_SECTORS)?, failed);
        Ok(())
    }

    #[test]
    fn freezes_what_is_on_the_device() -> Result {
        let (disk, _) = memory_disk()?;
        let bdev = Arc::new(BdevFile::open(disk.dev())?, GFP_KERNEL)?;
        let first = FrozenFs::new(bdev.clone())?;
        let second = FrozenFs::new(bdev)?;
        drop(first);
        second.thaw()
    }

    /// What it is for is tested where there are devices that can be quiesced.
    #[test]
    #[cfg(CONFIG_BLK_FILTER)]
    fn quiesces_no_device_whose_writes_are_not_counted() -> Result {
        use crate::block::bdev::Quiesce;

        let (disk, _) = memory_disk()?;
        let bdev = BdevFile::open(disk.dev())?;
        let mut devices = KVec::new();
        devices.push(&*bdev, GFP_KERNEL)?;
        let mut devices = Quiesce::new(devices);
        assert_eq!(devices.start(1), Err(EOPNOTSUPP));
        // None is started.
        assert_eq!(devices.wait(Delta::ZERO), 0);
        devices.resume(0);
        devices.start(0)?;
        Ok(())
    }
}
