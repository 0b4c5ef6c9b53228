// SPDX-License-Identifier: GPL-2.0-only

//! When a block has changed last.

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

/// The mark of a block: the number of the newest snapshot plus one when it was last written to, or
/// 0; and what that was before, with a smaller number.
///
/// So there still is what the mark was when the newest snapshot was taken, and a take has nothing
/// to copy. Only [`Self::set`] and [`Self::set_dirty`] for the same number may be called at once:
/// while the number goes up, nothing is marked.
pub(crate) struct Mark(Atomic<i16>);

fn pack(last: u8, before: u8) -> i16 {
    i16::from_be_bytes([last, before])
}

impl Mark {
    /// Of a block that was not written to.
    pub(crate) fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// The block is about to be written to, and the newest snapshot is number `mark - 1`.
    #[inline]
    pub(crate) fn set(&self, mark: u8) {
        let old = self.0.load(Relaxed);
        let [last, _] = old.to_be_bytes();
        // Spares the cache line where a block is written again and again.
        if last != mark {
            // If it is another value by now, somebody else has set it to `mark`.
            let _ = self.0.cmpxchg(old, pack(mark, last), Relaxed);
        }
    }

    /// As [`Self::set`], and the block counts as written to before the newest snapshot, too.
    pub(crate) fn set_dirty(&self, mark: u8) {
        self.0.xchg(pack(mark, mark - 1), Relaxed);
    }

    /// Whether there is nothing to do for [`Self::set`].
    #[inline]
    pub(crate) fn is_set(&self, mark: u8) -> bool {
        self.0.load(Relaxed).to_be_bytes()[0] == mark
    }

    /// What the mark was when the newest snapshot was taken, which is `number`.
    pub(crate) fn at(&self, number: u8) -> u8 {
        let [last, before] = self.0.load(Relaxed).to_be_bytes();
        if last > number {
            before
        } else {
            last
        }
    }
}

#[kunit_tests(blksnap_mark)]
mod tests {
    use super::*;

    #[test]
    fn newest_snapshot_has_its_own() {
        let mark = Mark::new();
        assert_eq!(mark.at(0), 0);
        mark.set(1);
        assert_eq!(mark.at(0), 0);
        assert_eq!(mark.at(1), 1);
        mark.set(2);
        mark.set(2);
        assert_eq!(mark.at(1), 1);
        assert_eq!(mark.at(2), 2);
        assert_eq!(mark.at(9), 2);
        mark.set(255);
        assert_eq!(mark.at(254), 2);
        assert!(mark.is_set(255));
        assert!(!mark.is_set(2));
    }

    #[test]
    fn dirty_is_before_and_after() {
        for written in [false, true] {
            let mark = Mark::new();
            if written {
                mark.set(7);
            }
            mark.set_dirty(7);
            mark.set(7);
            assert_eq!(mark.at(6), 6);
            assert_eq!(mark.at(7), 7);
        }
        let mark = Mark::new();
        mark.set_dirty(1);
        assert_eq!(mark.at(0), 0);
        assert_eq!(mark.at(1), 1);
    }
}
