// SPDX-License-Identifier: GPL-2.0-only

//! Chunks that may be unreadable.

use crate::chunk::ChunkRange;
use kernel::prelude::*;

/// The chunks of needed reads that have failed, and all chunks between them.
///
/// Each is read in a request of its own: if the device's queue merges reads, an unreadable chunk
/// fails the reads of its neighbours, too.
pub(crate) struct Suspects(ChunkRange);

impl Suspects {
    pub(crate) fn new() -> Self {
        Self(ChunkRange { start: 0, end: 0 })
    }

    pub(crate) fn add(&mut self, chunks: ChunkRange) {
        if self.0.len() == 0 {
            self.0 = chunks;
        }
        self.0.start = self.0.start.min(chunks.start);
        self.0.end = self.0.end.max(chunks.end);
    }

    pub(crate) fn contains(&self, chunk: u64) -> bool {
        self.0.contains(chunk)
    }

    /// Returns the part of `chunks`, from the first one on, that one read may have.
    pub(crate) fn limit(&self, ChunkRange { start, end }: ChunkRange) -> ChunkRange {
        let end = if self.contains(start) {
            start + 1
        } else if start < self.0.start {
            end.min(self.0.start)
        } else {
            end
        };
        ChunkRange { start, end }
    }
}

#[kunit_tests(blksnap_suspects)]
mod tests {
    use super::*;

    fn chunks(start: u64, end: u64) -> ChunkRange {
        ChunkRange { start, end }
    }

    #[test]
    fn suspects_are_read_one_by_one() {
        let mut suspects = Suspects::new();
        assert!(!suspects.contains(0));
        assert_eq!(suspects.limit(chunks(0, 9)), chunks(0, 9));
        suspects.add(chunks(4, 6));
        suspects.add(chunks(7, 8));
        suspects.add(chunks(5, 6));
        for (run, limited) in [
            ((0, 4), (0, 4)),
            ((2, 9), (2, 4)),
            ((4, 9), (4, 5)),
            ((6, 7), (6, 7)),
            ((7, 9), (7, 8)),
            ((8, 11), (8, 11)),
        ] {
            let [run, limited] = [run, limited].map(|(start, end)| chunks(start, end));
            assert_eq!(suspects.limit(run), limited);
        }
        assert!(!suspects.contains(3) && !suspects.contains(8));
    }
}
