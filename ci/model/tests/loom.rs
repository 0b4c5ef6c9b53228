// SPDX-License-Identifier: GPL-2.0-only

//! What the driver reads without a lock, in all orders that the memory model allows.
//!
//! Some tests have twins without something that the order depends on. loom must find a failure of
//! these, or it would not have found one of the driver either.

#![cfg(loom)]
// Most of the driver's callers are not here.
#![allow(dead_code)]

#[path = "../../../drivers/block/blksnap/budget.rs"]
mod budget;
#[path = "../../../drivers/block/blksnap/chunk.rs"]
mod chunk;
#[path = "../../../drivers/block/blksnap/mark.rs"]
mod mark;
#[path = "../../../drivers/block/blksnap/saved_map.rs"]
mod saved_map;
#[path = "../../../drivers/block/blksnap/status.rs"]
mod status;

use budget::Budget;
use chunk::ChunkRange;
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Relaxed, Release},
        barrier::{smp_mb, Read, Write},
        SetOnce, SpinLock,
    },
};
use loom::{sync::Arc, thread};
use mark::Mark;
use saved_map::SavedMap;
use status::Status;

/// Number of chunks whose bits are in a leaf.
const LEAF: u64 = PAGE_SIZE as u64 * 8;

const OLD: u32 = 1;
const NEW: u32 = 2;

fn chunk(chunk: u64) -> ChunkRange {
    ChunkRange {
        start: chunk,
        end: chunk + 1,
    }
}

fn reserve(map: &SavedMap, chunks: ChunkRange) {
    map.reserve(map.prepare(chunks, GFP_KERNEL).unwrap());
}

/// What a thread does with the values that are shared.
type Role<T> = std::sync::Arc<dyn Fn(&T) + Send + Sync>;

fn role<T>(f: impl Fn(&T) + Send + Sync + 'static) -> Role<T> {
    std::sync::Arc::new(f)
}

/// Runs a thread for each of the roles, and then `check`.
///
/// If a thread has loaded a value and then stores it, loom forgets that others have loaded it
/// before, and does not try the store ahead of these. So this tries all orders of the threads, in
/// one of which they come later.
fn explore<T: Send + Sync + 'static>(make: fn() -> T, roles: &[Role<T>], check: fn(&T)) {
    for order in orders(roles.len()) {
        let roles: Vec<_> = order.into_iter().map(|at| roles[at].clone()).collect();
        loom::model(move || {
            let shared = Arc::new(make());
            let threads: Vec<_> = roles[1..]
                .iter()
                .map(|role| {
                    let (shared, role) = (shared.clone(), role.clone());
                    thread::spawn(move || role(&shared))
                })
                .collect();
            roles[0](&shared);
            for thread in threads {
                thread.join().unwrap();
            }
            check(&shared);
        });
    }
}

/// Returns all orders of the numbers up to `count`.
fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for order in orders(count - 1) {
        for at in 0..count {
            let mut order = order.clone();
            order.insert(at, count - 1);
            all.push(order);
        }
    }
    all
}

/// A map under the lock of an area, and data that is there before its chunk is saved.
struct Area {
    map: SavedMap,
    lock: SpinLock<()>,
    data: [Atomic<u32>; 2],
}

impl Area {
    fn new() -> Self {
        Self {
            map: SavedMap::new(2 * LEAF, Budget::new(0).unwrap()).unwrap(),
            lock: SpinLock::new(()),
            data: [Atomic::new(OLD), Atomic::new(OLD)],
        }
    }

    /// Both leaves are there.
    fn with_leaves() -> Self {
        let area = Self::new();
        let all = ChunkRange {
            start: 0,
            end: 2 * LEAF,
        };
        reserve(&area.map, all);
        area
    }

    fn save(&self, number: usize, at: u64) {
        self.data[number].store(NEW, Relaxed);
        let _locked = self.lock.lock();
        reserve(&self.map, chunk(at));
        self.map.set(chunk(at));
    }

    /// Returns whether the chunk is saved. If so, its data is there.
    fn is_saved(&self, number: usize, at: u64) -> bool {
        let saved = self.map.first_unsaved(chunk(at)).is_none();
        assert!(
            !saved || self.data[number].load(Relaxed) == NEW,
            "saved without its data"
        );
        saved
    }

    fn count(&self) -> u64 {
        self.map.count(ChunkRange {
            start: 0,
            end: 2 * LEAF,
        })
    }
}

/// Two threads save a chunk each, and a third one looks at both.
fn two_save(make: fn() -> Area, at: [u64; 2]) {
    let roles = [
        role(move |area: &Area| area.save(0, at[0])),
        role(move |area: &Area| area.save(1, at[1])),
        role(move |area: &Area| {
            area.is_saved(0, at[0]);
            area.is_saved(1, at[1]);
        }),
    ];
    explore(make, &roles, |area| assert_eq!(area.count(), 2));
}

#[test]
fn bits_of_a_word() {
    two_save(Area::with_leaves, [0, 1]);
}

#[test]
fn bits_of_two_words() {
    two_save(Area::with_leaves, [0, 64]);
}

#[test]
fn bits_of_a_new_leaf() {
    two_save(Area::new, [0, 1]);
}

#[test]
fn bits_of_two_new_leaves() {
    two_save(Area::new, [0, LEAF]);
}

/// A bit that was seen stays set, while others of its word are being set.
#[test]
fn bits_stay_set() {
    let make = || {
        let area = Area::with_leaves();
        area.save(0, 3);
        area
    };
    let roles = [
        role(|area: &Area| area.save(1, 4)),
        role(|area: &Area| {
            assert!(area.is_saved(0, 3));
            if area.is_saved(1, 4) {
                assert!(area.is_saved(1, 4) && area.is_saved(0, 3));
            }
        }),
    ];
    explore(make, &roles, |area| assert_eq!(area.count(), 2));
}

/// Without the lock one of the bits can be lost.
#[test]
#[should_panic(expected = "both are saved")]
fn setters_need_the_lock() {
    let roles = [
        role(|area: &Area| area.map.set(chunk(0))),
        role(|area: &Area| area.map.set(chunk(1))),
    ];
    explore(Area::with_leaves, &roles, |area| {
        assert_eq!(area.count(), 2, "both are saved");
    });
}

/// A bit and its data, with a reader that does not order what it reads.
#[test]
#[should_panic(expected = "data is there")]
fn data_needs_acquire() {
    let roles = [
        role(|shared: &[Atomic<u32>; 2]| {
            shared[1].store(NEW, Relaxed);
            shared[0].store(1, Release);
        }),
        role(|shared: &[Atomic<u32>; 2]| {
            if shared[0].load(Relaxed) == 1 {
                assert_eq!(shared[1].load(Relaxed), NEW, "data is there");
            }
        }),
    ];
    explore(|| [Atomic::new(0), Atomic::new(OLD)], &roles, |_| ());
}

/// Two writes to a block that is made dirty.
#[test]
fn dirty_block_stays_dirty() {
    let write = || role(|block: &Mark| block.set(2));
    let roles = [write(), write(), role(|block: &Mark| block.set_dirty(2))];
    explore(Mark::new, &roles, |block| {
        assert_eq!(block.at(1), 1, "it has changed before the take");
        assert_eq!(block.at(2), 2, "it has changed after the take");
    });
}

#[test]
fn value_that_is_seen_is_complete() {
    struct Shared {
        once: SetOnce<KBox<u32>>,
        set: [Atomic<bool>; 2],
    }

    impl Shared {
        fn populate(&self, number: usize) {
            let value = KBox::new(number as u32, GFP_KERNEL).unwrap();
            self.set[number].store(self.once.populate(value), Relaxed);
        }
    }

    let make = || Shared {
        once: SetOnce::new(),
        set: [Atomic::new(false), Atomic::new(false)],
    };
    let roles = [
        role(|shared: &Shared| shared.populate(0)),
        role(|shared: &Shared| shared.populate(1)),
        role(|shared: &Shared| {
            let value = |shared: &Shared| shared.once.as_ref().map(|value| **value);
            let seen = value(shared);
            assert!(seen.is_none() || seen < Some(2) && value(shared) == seen);
        }),
    ];
    explore(make, &roles, |shared| {
        let value = **shared.once.as_ref().unwrap() as usize;
        assert!(shared.set[value].load(Relaxed));
        assert!(!shared.set[1 - value].load(Relaxed));
    });
}

/// A leaf that appears while a reader looks has no bits set but those of its setter.
#[test]
fn leaf_appears() {
    let roles = [
        role(|area: &Area| area.save(0, 5)),
        role(|area: &Area| {
            assert_eq!(area.map.first_saved(chunk(4)), None);
            area.is_saved(0, 5);
        }),
    ];
    explore(Area::new, &roles, |area| assert!(area.is_saved(0, 5)));
}

/// How the origin gets the new data of a chunk after that is saved.
#[derive(Clone, Copy)]
enum Path {
    /// The worker that submits the write gets it under the lock under which the bit was set, and
    /// what makes a device start comes after what was stored before. For the kernel's model both
    /// order all stores before them with those after them. C's, which is loom's, has no such order
    /// for plain stores after a lock, so here it is a store that releases.
    Submitted,
    /// As if a barrier was between.
    Barrier,
    /// Nothing but what set() has of its own.
    Nothing,
}

/// An origin, and its image.
struct Image {
    origin: Atomic<u32>,
    status: Status,
}

impl Image {
    fn new() -> Self {
        let status = Status::new(1, &Budget::new(0).unwrap()).unwrap();
        reserve(status.saved(), chunk(0));
        Self {
            origin: Atomic::new(OLD),
            status,
        }
    }

    fn write(&self, path: Path) {
        match path {
            Path::Submitted => self.origin.store(NEW, Release),
            Path::Barrier => {
                smp_mb(Write);
                self.origin.store(NEW, Relaxed);
            }
            Path::Nothing => self.origin.store(NEW, Relaxed),
        }
    }
}

/// One thread releases a write by `release`, so that it reaches the origin by `path`. Another one
/// reads the origin for the image, and finds out by `keeps` whether to keep what it got.
fn overtakes(release: fn(&Status), path: Path, keeps: fn(&Status) -> bool) {
    let roles = [
        role(move |image: &Image| {
            release(&image.status);
            assert!(image.status.may_release(chunk(0)));
            image.write(path);
        }),
        role(move |image: &Image| read(image, keeps)),
    ];
    explore(Image::new, &roles, |_| ());
}

fn read(image: &Image, keeps: fn(&Status) -> bool) {
    let data = image.origin.load(Relaxed);
    let keeps = keeps(&image.status);
    assert!(data == OLD || !keeps, "new data in the image");
}

fn save(status: &Status) {
    status.saved().set(chunk(0));
}

fn fail(status: &Status) {
    assert!(status.fail(EIO));
}

/// As a read for the image: the data is right, unless the image is broken.
fn keeps(status: &Status) -> bool {
    !status.is_overtaken(chunk(0)) && status.error() == 0
}

/// Without the barrier.
fn keeps_unordered(status: &Status) -> bool {
    status.error() == 0 && status.saved().first_saved(chunk(0)).is_none()
}

#[test]
fn read_that_is_overtaken_by_a_write() {
    overtakes(save, Path::Submitted, keeps);
    overtakes(save, Path::Barrier, keeps);
}

#[test]
fn read_that_is_overtaken_by_a_failure() {
    overtakes(fail, Path::Submitted, keeps);
    overtakes(fail, Path::Barrier, keeps);
}

#[test]
#[should_panic(expected = "new data in the image")]
fn overtaken_read_needs_the_barrier() {
    overtakes(save, Path::Submitted, keeps_unordered);
}

#[test]
#[should_panic(expected = "new data in the image")]
fn overtaken_read_of_a_broken_image_needs_the_barrier() {
    overtakes(fail, Path::Submitted, keeps_unordered);
}

/// That set() releases orders what is before it. What is after it needs an order of its own.
#[test]
#[should_panic(expected = "new data in the image")]
fn write_needs_an_order_after_the_bit() {
    overtakes(save, Path::Nothing, keeps);
}

/// The write is of a third thread, which passes it since it sees that the chunk is saved, or that
/// the image is broken.
fn overtakes_and_passes(release: fn(&Status)) {
    let roles = [
        role(move |image: &Image| release(&image.status)),
        role(|image: &Image| {
            if image.status.may_release(chunk(0)) {
                image.write(Path::Submitted);
            }
        }),
        role(|image: &Image| read(image, keeps)),
    ];
    explore(Image::new, &roles, |_| ());
}

#[test]
fn read_that_is_overtaken_by_a_write_that_passes() {
    overtakes_and_passes(save);
    overtakes_and_passes(fail);
}

/// What `populate` without an order would be.
#[test]
#[should_panic(expected = "Causality violation")]
fn value_needs_release() {
    struct Shared(Atomic<u32>, loom::cell::UnsafeCell<u32>);

    // SAFETY: loom checks the accesses to the cell.
    unsafe impl Sync for Shared {}

    let roles = [
        role(|shared: &Shared| {
            // SAFETY: No reader looks before the flag is set, if that is seen in order.
            shared.1.with_mut(|value| unsafe { *value = 1 });
            shared.0.store(1, Relaxed);
        }),
        role(|shared: &Shared| {
            if shared.0.load(Acquire) == 1 {
                // SAFETY: As above.
                shared.1.with(|value| assert_eq!(unsafe { *value }, 1));
            }
        }),
    ];
    let make = || Shared(Atomic::new(0), loom::cell::UnsafeCell::new(0));
    explore(make, &roles, |_| ());
}

/// A queue that is frozen, and the area that a take makes meanwhile.
struct Queue {
    /// What percpu_ref_resurrect() stores.
    live: Atomic<u32>,
    has_area: Atomic<u32>,
}

/// A take lets the queue go on, and a writer gets a reference on it. `read` is what orders its two
/// loads: that of the reference, on which the other one only depends by a branch, and that of the
/// area.
fn take(read: fn()) {
    let make = || Queue {
        live: Atomic::new(0),
        has_area: Atomic::new(0),
    };
    let roles = [
        role(|queue: &Queue| {
            queue.has_area.store(1, Relaxed);
            // That of blk_filter_unquiesce()
            smp_mb(Write);
            queue.live.store(1, Relaxed);
        }),
        role(move |queue: &Queue| {
            if queue.live.load(Relaxed) == 1 {
                read();
                assert_eq!(queue.has_area.load(Relaxed), 1, "a write is not seen");
            }
        }),
    ];
    explore(make, &roles, |_| {});
}

/// blk_filter_bio() has a read barrier.
#[test]
fn write_after_a_take_is_seen() {
    take(|| smp_mb(Read));
}

#[test]
#[should_panic(expected = "a write is not seen")]
fn write_after_a_take_needs_the_barrier() {
    take(|| {});
}
