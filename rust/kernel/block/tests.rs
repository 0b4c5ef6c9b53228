// SPDX-License-Identifier: GPL-2.0-only

//! Tests of bios, bio sets and disks.
//!
//! Here are bios that the block layer does not know, for what can be tested without it. `disk` has
//! disks in memory for the rest.

use super::{
    bio::{
        BioList,
        Op,
        OwnedBio, //
    },
    SECTOR_SHIFT, //
};
use crate::{
    bindings,
    page::{
        Page,
        Pages,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    types::Opaque, //
};

mod disk;

pub(super) use self::disk::memory_disk;

/// The byte that a test puts at `at`.
fn pattern(at: usize) -> u8 {
    (at ^ (at >> 8)) as u8 | 1
}

/// Pages that hold the pattern.
fn patterned(count: usize) -> Result<Pages> {
    let pages = Pages::alloc(count, GFP_KERNEL)?;
    for (i, page) in pages.iter().enumerate() {
        for j in 0..PAGE_SIZE {
            // SAFETY: The byte is valid for reads, and nobody else has the page.
            unsafe { page.write_raw(&pattern(i * PAGE_SIZE + j), j, 1)? };
        }
    }
    Ok(pages)
}

fn byte(page: &Page, at: usize) -> u8 {
    let mut byte = 0;
    // SAFETY: The byte is valid for writes, and nobody writes to the page now.
    let _ = unsafe { page.read_raw(&mut byte, at, 1) };
    byte
}

/// How often a bio ended, and its last status.
struct Ended {
    count: Atomic<u32>,
    errno: Atomic<i32>,
}

/// A bio that the block layer does not know.
pub(super) struct TestBio {
    bio: KBox<Opaque<bindings::bio>>,
    _vecs: KVec<bindings::bio_vec>,
    ended: KBox<Ended>,
}

impl TestBio {
    extern "C" fn end_io(bio: *mut bindings::bio) {
        // SAFETY: `new` has made the bio, which lives as long as what it points to.
        let ended = unsafe { &*(*bio).bi_private.cast::<Ended>() };
        // SAFETY: The bio is valid.
        let errno = unsafe { bindings::blk_status_to_errno((*bio).bi_status) };
        ended.errno.store(errno, Relaxed);
        ended.count.add(1, Relaxed);
    }

    /// A bio whose data is in `vecs`: page, offset and length.
    fn new(
        op: bindings::req_op,
        sector: u64,
        vecs: &[(*mut bindings::page, usize, usize)],
    ) -> Result<Self> {
        let mut raw = KVec::new();
        let mut size = 0;
        for (page, offset, len) in vecs {
            let vec = bindings::bio_vec {
                bv_page: *page,
                bv_len: *len as u32,
                bv_offset: *offset as u32,
            };
            raw.push(vec, GFP_KERNEL)?;
            size += *len as u32;
        }
        let ended = KBox::new(
            Ended {
                count: Atomic::new(0),
                errno: Atomic::new(0),
            },
            GFP_KERNEL,
        )?;
        let bio = KBox::new(Opaque::<bindings::bio>::zeroed(), GFP_KERNEL)?;
        // SAFETY: The bio and the vectors are valid, and live as long as what is returned.
        unsafe {
            let (ptr, len) = (raw.as_mut_ptr(), raw.len() as u16);
            bindings::bio_init(bio.get(), core::ptr::null_mut(), ptr, len, op);
            (*bio.get()).bi_vcnt = len;
            (*bio.get()).bi_iter.bi_sector = sector;
            (*bio.get()).bi_iter.bi_size = size;
            (*bio.get()).bi_end_io = Some(Self::end_io);
            (*bio.get()).bi_private = core::ptr::from_ref(&*ended).cast_mut().cast();
        }
        Ok(Self {
            bio,
            _vecs: raw,
            ended,
        })
    }

    /// A bio without data, of a number of sectors.
    pub(super) fn without_data(op: bindings::req_op, sector: u64, sectors: u32) -> Result<Self> {
        let this = Self::new(op, sector, &[])?;
        // SAFETY: The bio is ours.
        unsafe { (*this.bio.get()).bi_iter.bi_size = sectors << SECTOR_SHIFT };
        Ok(this)
    }

    pub(super) fn as_raw(&self) -> *mut bindings::bio {
        self.bio.get()
    }

    /// To be called once, and `self` lives longer.
    fn own(&self) -> OwnedBio {
        // SAFETY: The bio is valid, and the test has not ended it.
        unsafe { OwnedBio::from_raw(self.bio.get()) }
    }

    /// How often it has ended, and how the last time.
    pub(super) fn ended(&self) -> (u32, i32) {
        (
            self.ended.count.load(Relaxed),
            self.ended.errno.load(Relaxed),
        )
    }
}

#[kunit_tests(rust_block_bio)]
mod bio_tests {
    use super::*;

    const READ: bindings::req_op = bindings::req_op_REQ_OP_READ;
    const WRITE: bindings::req_op = bindings::req_op_REQ_OP_WRITE;
    const DISCARD: bindings::req_op = bindings::req_op_REQ_OP_DISCARD;

    #[test]
    fn says_what_it_is() -> Result {
        for (raw, op) in [
            (READ, Op::Read),
            (WRITE, Op::Write),
            (DISCARD, Op::Discard),
            (bindings::req_op_REQ_OP_SECURE_ERASE, Op::SecureErase),
            (bindings::req_op_REQ_OP_WRITE_ZEROES, Op::WriteZeroes),
            (bindings::req_op_REQ_OP_FLUSH, Op::Other),
        ] {
            let test = TestBio::without_data(raw, 7, 9)?;
            let bio = test.own();
            assert_eq!(bio.op(), op);
            assert_eq!(bio.sector(), 7);
            assert_eq!(bio.sectors(), 9);
            assert_eq!(bio.size(), 9 * 512);
            assert_eq!(op.changes_media(), op != Op::Read);
        }
        Ok(())
    }

    #[test]
    fn segments_are_cut_at_pages() -> Result {
        let one = Page::alloc_page(GFP_KERNEL)?;
        // SAFETY: Always safe. Two pages in a row.
        let two = unsafe { bindings::alloc_pages(GFP_KERNEL.as_raw(), 1) };
        if two.is_null() {
            return Err(ENOMEM);
        }
        let vecs = [(one.as_ptr(), 512, 100), (two, 1000, 2 * PAGE_SIZE - 1000)];
        let test = TestBio::new(WRITE, 0, &vecs)?;
        let bio = test.own();

        let mut lengths = KVec::new();
        for segment in bio.segments() {
            lengths.push(segment.len(), GFP_KERNEL)?;
        }
        assert_eq!(&lengths[..], &[100, PAGE_SIZE - 1000, PAGE_SIZE]);
        // Looking at them does not change the bio.
        assert_eq!(bio.segments().count(), 3);
        assert_eq!(bio.size(), 2 * PAGE_SIZE - 900);

        drop(bio);
        // SAFETY: They were allocated above, and the bio has ended.
        unsafe { bindings::__free_pages(two, 1) };
        Ok(())
    }

    #[test]
    fn no_segments_without_data() -> Result {
        let test = TestBio::without_data(DISCARD, 0, 8)?;
        assert_eq!(test.own().segments().count(), 0);
        Ok(())
    }

    #[test]
    fn copies_across_segments_and_pages() -> Result {
        let source = patterned(3)?;
        let to = Pages::alloc(2, GFP_KERNEL | __GFP_ZERO)?;
        let (first, second) = (to[0].as_ptr(), to[1].as_ptr());
        // 300 bytes, then a page less 100, and one that ends in the middle of a page.
        let vecs = [
            (first, 200, 300),
            (second, 100, PAGE_SIZE - 100),
            (first, 1000, 500),
        ];
        let test = TestBio::new(READ, 0, &vecs)?;
        let mut bio = test.own();

        // All but the first 10 bytes and the last 20, from the end of the first page on.
        let from = PAGE_SIZE - 5;
        let len = bio.size() - 30;
        bio.copy_from_pages(10, &source, from, len)?;
        drop(bio);

        let mut wrong = 0;
        let mut at = 0;
        for (page, offset, len_of_vec) in [(0, 200, 300), (1, 100, PAGE_SIZE - 100), (0, 1000, 500)]
        {
            for i in 0..len_of_vec {
                let want = if at < 10 || at >= 10 + len {
                    0
                } else {
                    pattern(from + at - 10)
                };
                wrong += u32::from(byte(&to[page], offset + i) != want);
                at += 1;
            }
        }
        assert_eq!(wrong, 0);
        // Nothing is outside of the segments.
        assert_eq!(byte(&to[0], 199), 0);
        assert_eq!(byte(&to[0], 500), 0);
        assert_eq!(byte(&to[0], 1500), 0);
        assert_eq!(byte(&to[1], 99), 0);
        Ok(())
    }

    #[test]
    fn copies_only_what_fits() -> Result {
        let source = patterned(1)?;
        let to = Pages::alloc(1, GFP_KERNEL | __GFP_ZERO)?;
        let test = TestBio::new(READ, 0, &[(to[0].as_ptr(), 0, 1024)])?;
        let mut bio = test.own();
        assert_eq!(bio.copy_from_pages(1, &source, 0, 1024), Err(EINVAL));
        assert_eq!(bio.copy_from_pages(usize::MAX, &source, 0, 2), Err(EINVAL));
        assert_eq!(
            bio.copy_from_pages(0, &source, PAGE_SIZE - 1, 2),
            Err(EINVAL)
        );
        assert_eq!(bio.copy_from_pages(0, &source, usize::MAX, 2), Err(EINVAL));
        assert_eq!(byte(&to[0], 0), 0);
        assert_eq!(bio.copy_from_pages(1024, &source, PAGE_SIZE, 0), Ok(()));
        assert_eq!(bio.copy_from_pages(1023, &source, PAGE_SIZE - 1, 1), Ok(()));
        assert_eq!(byte(&to[0], 1023), pattern(PAGE_SIZE - 1));
        Ok(())
    }

    #[test]
    fn memory_of_a_write_is_not_written_to() -> Result {
        let source = patterned(1)?;
        let to = Pages::alloc(1, GFP_KERNEL | __GFP_ZERO)?;
        let test = TestBio::new(WRITE, 0, &[(to[0].as_ptr(), 0, 512)])?;
        assert_eq!(test.own().copy_from_pages(0, &source, 0, 512), Err(EINVAL));
        assert_eq!(byte(&to[0], 0), 0);
        Ok(())
    }

    #[test]
    fn ends_once() -> Result {
        let test = TestBio::without_data(WRITE, 0, 8)?;
        drop(test.own());
        assert_eq!(test.ended(), (1, EIO.to_errno()));

        let test = TestBio::without_data(WRITE, 0, 8)?;
        test.own().end(Ok(()));
        assert_eq!(test.ended(), (1, 0));

        let test = TestBio::without_data(WRITE, 0, 8)?;
        test.own().end(Err(ENOSPC));
        assert_eq!(test.ended(), (1, ENOSPC.to_errno()));
        Ok(())
    }

    #[test]
    fn list_keeps_the_order() -> Result {
        let mut tests = KVec::new();
        for sector in 0..6 {
            tests.push(TestBio::without_data(WRITE, sector, 8)?, GFP_KERNEL)?;
        }
        let mut list = BioList::new();
        assert!(list.is_empty());
        assert!(list.pop().is_none());
        list.push(tests[1].own());
        list.push(tests[2].own());
        list.push_front(tests[0].own());
        let mut other = BioList::new();
        other.push_front(tests[3].own());
        other.push(tests[4].own());
        list.append(&mut other);
        list.append(&mut other);
        assert!(other.is_empty());
        // What was appended to is its own list again.
        other.push(tests[5].own());

        let mut taken = list.take();
        assert!(list.is_empty());
        for sector in 0..5 {
            assert_eq!(taken.pop().map(|bio| bio.sector()), Some(sector));
            assert_eq!(tests[sector as usize].ended(), (1, EIO.to_errno()));
        }
        assert!(taken.pop().is_none());

        // An empty list takes another one over.
        list.append(&mut other);
        assert_eq!(tests[5].ended(), (0, 0));
        drop(list);
        assert_eq!(tests[5].ended(), (1, EIO.to_errno()));
        Ok(())
    }
}
