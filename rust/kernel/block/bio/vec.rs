// SPDX-License-Identifier: GPL-2.0-only

//! The memory of a bio.
//!
//! C header: [`include/linux/bvec.h`](srctree/include/linux/bvec.h)

use super::Bio;
use crate::{
    bindings,
    page::{
        Page,
        PAGE_SIZE, //
    }, //
};
use core::marker::PhantomData;

/// A piece of a bio's data that lies within one page. It is not empty, and neither its start nor
/// its length need be multiples of a sector.
///
/// # Invariants
///
/// `page` is valid during `'a`, and `offset + len` is at most [`PAGE_SIZE`].
pub struct Segment<'a> {
    page: *mut bindings::page,
    offset: usize,
    len: usize,
    _bio: PhantomData<&'a Bio>,
}

impl Segment<'_> {
    /// The length in bytes, from 1 to [`PAGE_SIZE`].
    #[inline]
    #[expect(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Copies the bytes from `at` on to `to`. Does not sleep. The submitter of the bio can change
    /// the data concurrently.
    ///
    /// # Panics
    ///
    /// If the segment has fewer bytes.
    pub fn copy_to_slice(&self, at: usize, to: &mut [u8]) {
        assert!(at + to.len() <= self.len);
        // SAFETY: By the type invariants the page is valid, and the bytes are in it by the check
        // above. C code copies them, so that concurrent changes are no data race in Rust.
        unsafe {
            bindings::memcpy_from_page(
                to.as_mut_ptr().cast(),
                self.page,
                self.offset + at,
                to.len(),
            );
        }
    }

    /// Copies from a page to the segment.
    ///
    /// # Panics
    ///
    /// If one of the ranges is not inside.
    ///
    /// # Safety
    ///
    /// The memory of the bio may be written to, and nobody in the kernel does so at the same time.
    pub(super) unsafe fn copy_from_page(&self, at: usize, source: &Page, from: usize, len: usize) {
        assert!(at + len <= self.len && from + len <= PAGE_SIZE);
        // SAFETY: Both pages are valid, and both ranges inside of them: by the type invariants and
        // the check above. The caller promises that the segment may be written to.
        unsafe {
            bindings::memcpy_page(self.page, self.offset + at, source.as_ptr(), from, len);
            // User space may have the page mapped, where the caches do not see each other.
            bindings::flush_dcache_page(self.page);
        }
    }
}

/// Iterates over the [`Segment`]s of a [`Bio`], in order. The bio itself stays as it is.
///
/// # Invariants
///
/// `iter` is a valid position in `bio`.
pub struct BioSegmentIterator<'a> {
    bio: &'a Bio,
    iter: bindings::bvec_iter,
}

impl<'a> BioSegmentIterator<'a> {
    pub(super) fn new(bio: &'a Bio) -> Self {
        // SAFETY: The bio is valid by its type invariant.
        let mut iter = unsafe { (*bio.as_raw()).bi_iter };
        // SAFETY: As above.
        if !unsafe { bindings::bio_has_data(bio.as_raw()) } {
            iter.bi_size = 0;
        }
        // INVARIANT: This is the bio's own iterator, or one at its end.
        Self { bio, iter }
    }
}

impl<'a> Iterator for BioSegmentIterator<'a> {
    type Item = Segment<'a>;

    fn next(&mut self) -> Option<Segment<'a>> {
        if self.iter.bi_size == 0 {
            return None;
        }
        // SAFETY: By the type invariant `iter` is a position in the bio, and not its end. Those of
        // a bio are covered by its vectors.
        let vec = unsafe { bindings::bio_iter_iovec(self.bio.as_raw(), self.iter) };
        // INVARIANT: Advancing by the length of what is there gives a valid position.
        // SAFETY: As above.
        unsafe { bindings::bio_advance_iter(self.bio.as_raw(), &mut self.iter, vec.bv_len) };
        // INVARIANT: The block layer's single-page iterator gives a part of one page, which lives
        // as long as the bio is not completed.
        Some(Segment {
            page: vec.bv_page,
            offset: vec.bv_offset as usize,
            len: vec.bv_len as usize,
            _bio: PhantomData,
        })
    }
}
