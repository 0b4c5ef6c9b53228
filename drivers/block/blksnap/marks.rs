// SPDX-License-Identifier: GPL-2.0-only

//! The marks of a device's blocks.
//!
//! They are in leaves, which are allocated when one of their blocks is first written to. Each leaf
//! has one mark more, for all of its blocks: for writes to all of them, and where there is no
//! memory for the leaf. The greater one counts.

use crate::mark::Mark;
use core::ops::Range;
use kernel::{
    mm::memcg::MemCgroup,
    new_spinlock,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        SetOnce,
        SpinLock, //
    }, //
};

/// The number of blocks whose marks are allocated together.
pub(crate) const LEAF_BLOCKS: usize = 256;

type Leaf = [Mark; LEAF_BLOCKS];

/// The memory that leaves take, in bytes.
struct Memory {
    /// Those of all devices.
    all: &'static Atomic<usize>,
    max: usize,
    /// Those of this one.
    own: Atomic<usize>,
}

impl Memory {
    fn has_room(&self) -> bool {
        self.all.load(Relaxed).saturating_add(size_of::<Leaf>()) <= self.max
    }

    fn add(&self) {
        self.own.add(size_of::<Leaf>(), Relaxed);
        self.all.add(size_of::<Leaf>(), Relaxed);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.all.fetch_sub(self.own.load(Relaxed), Relaxed);
    }
}

/// The marks of [`LEAF_BLOCKS`] blocks.
struct Group {
    /// Of each block, if there was memory when there was a write to some of them.
    leaf: SetOnce<KBox<Leaf>>,
    /// Of all blocks.
    all: Mark,
}

/// A mark for each block.
#[pin_data]
pub(crate) struct Marks {
    nr_blocks: usize,
    groups: VVec<Group>,
    memory: Memory,
    cgroup: Option<ARef<MemCgroup>>,
    /// Held while a leaf is added, so that nobody sees one that is half there.
    #[pin]
    adding: SpinLock<()>,
}

impl Marks {
    /// Of `nr_blocks` blocks that were not written to. The leaves of all devices, which `used`
    /// counts, take `max` bytes at most. The memory is charged to `cgroup`. May sleep.
    pub(crate) fn new(
        nr_blocks: usize,
        used: &'static Atomic<usize>,
        max: usize,
        cgroup: Option<ARef<MemCgroup>>,
    ) -> Result<impl PinInit<Self>> {
        let nr_groups = nr_blocks.div_ceil(LEAF_BLOCKS);
        let mut groups = MemCgroup::charge(cgroup.as_deref(), || {
            VVec::with_capacity(nr_groups, GFP_KERNEL_ACCOUNT)
        })?;
        for _ in 0..nr_groups {
            let group = Group {
                leaf: SetOnce::new(),
                all: Mark::new(),
            };
            groups.push(group, GFP_KERNEL)?;
        }
        Ok(pin_init!(Self {
            nr_blocks,
            groups,
            memory: Memory {
                all: used,
                max,
                own: Atomic::new(0),
            },
            cgroup,
            adding <- new_spinlock!((), "blksnap_leaves"),
        }))
    }

    pub(crate) fn nr_blocks(&self) -> usize {
        self.nr_blocks
    }

    /// The leaf of a group, allocated if it is missing and there is memory. Does not sleep.
    #[inline]
    fn leaf<'a>(&self, group: &'a Group) -> Option<&'a Leaf> {
        match group.leaf.as_ref() {
            Some(leaf) => Some(leaf),
            None => self.add_leaf(group),
        }
    }

    #[cold]
    fn add_leaf<'a>(&self, group: &'a Group) -> Option<&'a Leaf> {
        if self.memory.has_room() {
            let leaf = pin_init::init_array_from_fn(|_| Mark::new());
            // There is the mark of all of them: no reason to take what reclaim needs.
            let flags = GFP_NOWAIT | __GFP_NOMEMALLOC | __GFP_NOWARN | __GFP_ACCOUNT;
            let leaf = MemCgroup::charge(self.cgroup.as_deref(), || KBox::init(leaf, flags));
            let _adding = self.adding.lock();
            // If somebody else was faster, this one is not needed.
            if leaf.is_ok_and(|leaf| group.leaf.populate(leaf)) {
                self.memory.add();
            }
        }
        group.leaf.as_ref().map(|leaf| &**leaf)
    }

    /// Calls `f` with the marks of `blocks`, where the one of a group stands for those of all of
    /// its blocks; leaves out groups for whose mark `skip` returns true.
    #[inline]
    fn each(&self, blocks: Range<usize>, skip: impl Fn(&Mark) -> bool, f: impl Fn(&Mark)) {
        let mut start = blocks.start;
        while start < blocks.end {
            let (index, at) = (start / LEAF_BLOCKS, start % LEAF_BLOCKS);
            let group = &self.groups[index];
            let len = (blocks.end - start).min(LEAF_BLOCKS - at);
            start += len;
            if skip(&group.all) {
                continue;
            }
            let leaf = (len < LEAF_BLOCKS).then(|| self.leaf(group)).flatten();
            match leaf {
                Some(leaf) => leaf[at..at + len].iter().for_each(&f),
                None => f(&group.all),
            }
        }
    }

    /// Blocks are about to be written to, and the newest snapshot is number `mark - 1`. Does not
    /// sleep. The number does not go up meanwhile.
    #[inline]
    pub(crate) fn set(&self, blocks: Range<usize>, mark: u8) {
        self.each(blocks, |all| all.is_set(mark), |block| block.set(mark));
    }

    /// As [`Self::set`], and the blocks count as written to before the newest snapshot, too.
    pub(crate) fn set_dirty(&self, blocks: Range<usize>, mark: u8) {
        self.each(blocks, |_| false, |block| block.set_dirty(mark));
    }

    /// Whether `f` returns true for one of the marks of `blocks`, as they were when the newest
    /// snapshot was taken, which is `number`.
    #[inline]
    pub(crate) fn any(&self, blocks: Range<usize>, number: u8, f: impl Fn(u8) -> bool) -> bool {
        blocks.into_iter().any(|block| {
            let group = &self.groups[block / LEAF_BLOCKS];
            let own = group
                .leaf
                .as_ref()
                .map_or(0, |leaf| leaf[block % LEAF_BLOCKS].at(number));
            f(own.max(group.all.at(number)))
        })
    }

    /// Copies the marks from block `at` on, as they were when the newest snapshot was taken, which
    /// is `number`. Returns how many there were.
    pub(crate) fn read(&self, at: usize, number: u8, buffer: &mut [u8]) -> usize {
        let count = buffer.len().min(self.nr_blocks.saturating_sub(at));
        let mut done = 0;
        while done < count {
            let (index, first) = ((at + done) / LEAF_BLOCKS, (at + done) % LEAF_BLOCKS);
            let group = &self.groups[index];
            let len = (count - done).min(LEAF_BLOCKS - first);
            let bytes = &mut buffer[done..done + len];
            bytes.fill(group.all.at(number));
            if let Some(leaf) = group.leaf.as_ref() {
                for (byte, block) in bytes.iter_mut().zip(&leaf[first..]) {
                    *byte = block.at(number).max(*byte);
                }
            }
            done += len;
        }
        count
    }
}

#[kunit_tests(blksnap_marks)]
mod tests {
    use super::*;
    use kernel::sync::Arc;

    const LEAF: usize = LEAF_BLOCKS;

    fn new(nr_blocks: usize, used: &'static Atomic<usize>, max: usize) -> Result<Arc<Marks>> {
        Arc::pin_init(Marks::new(nr_blocks, used, max, None)?, GFP_KERNEL)
    }

    #[test]
    fn memory_is_for_what_is_written() -> Result {
        static USED: Atomic<usize> = Atomic::new(0);

        // 1 TiB of 64 KiB each
        let marks = new(1 << 24, &USED, usize::MAX)?;
        for n in 0..10 {
            marks.set(n * LEAF..n * LEAF + 1, 1);
            marks.set(n * LEAF + 1..n * LEAF + 2, 1);
        }
        assert_eq!(USED.load(Relaxed), 10 * size_of::<Leaf>());
        // If all blocks of a leaf are written to, it is not needed.
        marks.set(20 * LEAF..23 * LEAF, 1);
        marks.set(21 * LEAF + 7..21 * LEAF + 8, 1);
        assert_eq!(USED.load(Relaxed), 10 * size_of::<Leaf>());
        let mut read = KVec::from_elem(7, 2 * LEAF, GFP_KERNEL)?;
        assert_eq!(marks.read(9 * LEAF, 1, &mut read), 2 * LEAF);
        assert_eq!(read[..2], [1, 1]);
        assert!(read[2..].iter().all(|mark| *mark == 0));
        marks.read(22 * LEAF, 1, &mut read);
        assert!(read[..LEAF].iter().all(|mark| *mark == 1));
        assert!(read[LEAF..].iter().all(|mark| *mark == 0));
        Ok(())
    }

    #[test]
    fn blocks_are_marked_together_without_memory() -> Result {
        static USED: Atomic<usize> = Atomic::new(0);

        let marks = new(3 * LEAF - 1, &USED, size_of::<Leaf>() - 1)?;
        let groups = |number| -> Result<[u8; 3]> {
            let mut read = KVec::from_elem(7, 3 * LEAF - 1, GFP_KERNEL)?;
            assert_eq!(marks.read(0, number, &mut read), 3 * LEAF - 1);
            let mut groups = [0; 3];
            for (group, read) in groups.iter_mut().zip(read.chunks(LEAF)) {
                assert!(read.iter().all(|mark| *mark == read[0]));
                *group = read[0];
            }
            Ok(groups)
        };
        marks.set(LEAF - 1..LEAF + 1, 1);
        assert_eq!(groups(0)?, [0, 0, 0]);
        assert_eq!(groups(1)?, [1, 1, 0]);
        marks.set(3 * LEAF - 2..3 * LEAF - 1, 2);
        marks.set_dirty(LEAF..LEAF + 1, 3);
        assert_eq!(groups(2)?, [1, 2, 2]);
        assert_eq!(groups(3)?, [1, 3, 2]);
        assert_eq!(USED.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn greater_mark_counts() -> Result {
        static USED: Atomic<usize> = Atomic::new(0);

        let marks = new(2 * LEAF, &USED, usize::MAX)?;
        let some = |number| {
            let mut read = [7; 3];
            marks.read(4, number, &mut read);
            read
        };
        marks.set(0..LEAF, 1);
        marks.set(5..6, 2);
        assert_eq!(some(1), [1, 1, 1]);
        assert_eq!(some(2), [1, 2, 1]);
        marks.set(0..LEAF, 3);
        assert_eq!(some(2), [1, 2, 1]);
        assert_eq!(some(3), [3, 3, 3]);
        Ok(())
    }

    #[test]
    fn devices_share_memory() -> Result {
        static USED: Atomic<usize> = Atomic::new(0);

        let max = 3 * size_of::<Leaf>();
        let (one, two) = (new(10 * LEAF, &USED, max)?, new(10 * LEAF, &USED, max)?);
        for n in 0..2 {
            one.set(n * LEAF..n * LEAF + 1, 1);
            two.set(n * LEAF..n * LEAF + 1, 1);
        }
        let mut read = [7; 2];
        one.read(LEAF, 1, &mut read);
        assert_eq!(read, [1, 0]);
        two.read(LEAF, 1, &mut read);
        assert_eq!(read, [1, 1]);
        assert_eq!(USED.load(Relaxed), max);
        drop(one);
        two.set(LEAF..LEAF + 1, 2);
        two.read(LEAF, 2, &mut read);
        assert_eq!(read, [2, 1]);
        drop(two);
        assert_eq!(USED.load(Relaxed), 0);
        Ok(())
    }
}
