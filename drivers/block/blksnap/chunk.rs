// SPDX-License-Identifier: GPL-2.0-only

//! Chunks: the unit in which a device is copied before it is overwritten.
//!
//! A chunk is a power of two of sectors. All chunks of a device have the same size, but the last
//! one ends where the device does.

use kernel::{
    block::{
        bdev::SectorRange,
        SECTOR_SHIFT, //
    },
    prelude::*, //
};

/// A run of chunks, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkRange {
    /// The first one.
    pub(crate) start: u64,
    /// The one after the last.
    pub(crate) end: u64,
}

impl ChunkRange {
    pub(crate) const NONE: Self = Self { start: 0, end: 0 };

    pub(crate) fn len(self) -> u64 {
        self.end - self.start
    }

    pub(crate) fn contains(self, chunk: u64) -> bool {
        self.start <= chunk && chunk < self.end
    }
}

/// How a device is divided into chunks.
///
/// # Invariants
///
/// A chunk is at least a page and at most [`Geometry::MAX_SHIFT`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    shift: u32,
    nr_sectors: u64,
}

impl Geometry {
    /// The binary logarithm of the smallest chunk's bytes: a page.
    pub(crate) const MIN_SHIFT: u32 = kernel::page::PAGE_SHIFT as u32;
    /// The binary logarithm of the largest chunk's bytes: what one bio can read, 256 pages.
    pub(crate) const MAX_SHIFT: u32 = Self::MIN_SHIFT + 8;

    /// The bytes of the largest run that one bio can read.
    pub(crate) const MAX_BYTES: usize = 1 << Self::MAX_SHIFT;

    /// A device of `nr_sectors` in chunks of `1 << shift` bytes; a shift outside of the limits
    /// is taken as the nearest.
    pub(crate) fn new(shift: u32, nr_sectors: u64) -> Self {
        // INVARIANT: The shift is clamped.
        Self {
            shift: shift.clamp(Self::MIN_SHIFT, Self::MAX_SHIFT),
            nr_sectors,
        }
    }

    fn sector_shift(self) -> u32 {
        self.shift - SECTOR_SHIFT
    }

    /// The binary logarithm of the size of a chunk in bytes.
    pub(crate) fn chunk_shift(self) -> u32 {
        self.shift
    }

    /// The size of a chunk in bytes.
    pub(crate) fn chunk_bytes(self) -> usize {
        1 << self.shift
    }

    /// The size of the device in sectors.
    pub(crate) fn nr_sectors(self) -> u64 {
        self.nr_sectors
    }

    /// The number of chunks.
    pub(crate) fn nr_chunks(self) -> u64 {
        self.nr_sectors.div_ceil(1 << self.sector_shift())
    }

    /// The number of chunks in the largest run that one bio can read.
    pub(crate) fn max_run(self) -> u64 {
        1 << (Self::MAX_SHIFT - self.shift)
    }

    /// The region that all of `chunks` are in: as many chunks as one bio can read, aligned, and as
    /// far as the device goes.
    pub(crate) fn region_of(self, chunks: ChunkRange) -> Option<ChunkRange> {
        let start = chunks.start & !(self.max_run() - 1);
        let end = start + self.max_run();
        (chunks.end <= end).then_some(ChunkRange {
            start,
            end: end.min(self.nr_chunks()),
        })
    }

    /// The chunks that a range of sectors touches. What is past the end of the device is cut off.
    pub(crate) fn chunks_of(self, range: SectorRange) -> ChunkRange {
        let shift = self.sector_shift();
        let end = range.start.saturating_add(range.len).min(self.nr_sectors);
        let start = range.start.min(end);
        ChunkRange {
            start: start >> shift,
            end: end.div_ceil(1 << shift).max(start >> shift),
        }
    }

    /// The sectors of chunks, as far as the device goes.
    pub(crate) fn sectors_of(self, chunks: ChunkRange) -> SectorRange {
        let start = chunks.start << self.sector_shift();
        let end = (chunks.end << self.sector_shift()).min(self.nr_sectors);
        SectorRange {
            start,
            len: end - start,
        }
    }

    /// How many bytes chunks have, the last one with what it has past the end of the device.
    pub(crate) fn bytes_of(self, chunks: ChunkRange) -> usize {
        chunks.len() as usize * self.chunk_bytes()
    }

    /// The first byte of a chunk on the device.
    pub(crate) fn byte_of(self, chunk: u64) -> u64 {
        chunk << self.shift
    }
}

#[kunit_tests(blksnap_chunk)]
mod tests {
    use super::*;

    const G: fn(u64) -> Geometry = |sectors| Geometry::new(14, sectors);

    fn chunks(start: u64, end: u64) -> ChunkRange {
        ChunkRange { start, end }
    }

    #[test]
    fn regions() {
        // 64 chunks are a region; the last one has a chunk and a half.
        let geometry = G(2 * 2048 + 48);
        assert_eq!(geometry.region_of(chunks(0, 1)), Some(chunks(0, 64)));
        assert_eq!(geometry.region_of(chunks(63, 64)), Some(chunks(0, 64)));
        assert_eq!(geometry.region_of(chunks(63, 65)), None);
        assert_eq!(geometry.region_of(chunks(64, 128)), Some(chunks(64, 128)));
        assert_eq!(geometry.region_of(chunks(129, 130)), Some(chunks(128, 130)));
    }

    #[test]
    fn sizes() {
        assert_eq!(G(64).chunk_bytes(), 16384);
        assert_eq!(G(64).nr_chunks(), 2);
        assert_eq!(G(65).nr_chunks(), 3);
        assert_eq!(G(0).nr_chunks(), 0);
        assert_eq!(
            G(64).max_run() * 16384,
            256 * kernel::page::PAGE_SIZE as u64
        );
        assert_eq!(Geometry::new(1, 8).chunk_bytes(), kernel::page::PAGE_SIZE);
        assert_eq!(Geometry::new(60, 8).max_run(), 1);
    }

    #[test]
    fn rounding() {
        let range = |start, len| G(1000).chunks_of(SectorRange { start, len });
        assert_eq!(range(0, 1), chunks(0, 1));
        assert_eq!(range(31, 2), chunks(0, 2));
        assert_eq!(range(32, 32), chunks(1, 2));
        assert_eq!(range(33, 64), chunks(1, 4));
    }

    #[test]
    fn end_of_device() {
        let g = G(1000);
        let all = g.chunks_of(SectorRange {
            start: 0,
            len: 1000,
        });
        assert_eq!(all, chunks(0, 32));
        assert_eq!(g.nr_chunks(), 32);
        assert_eq!(
            g.sectors_of(all),
            SectorRange {
                start: 0,
                len: 1000
            }
        );
        assert_eq!(
            g.sectors_of(chunks(31, 32)),
            SectorRange { start: 992, len: 8 }
        );
        // Whatever is past the end is cut off, without an overflow.
        let past = SectorRange {
            start: 990,
            len: u64::MAX,
        };
        assert_eq!(g.chunks_of(past), chunks(30, 32));
        let beyond = SectorRange {
            start: u64::MAX,
            len: 2,
        };
        assert!(g.chunks_of(beyond).end <= 32);
    }
}
