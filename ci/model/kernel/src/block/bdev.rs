// SPDX-License-Identifier: GPL-2.0-only

//! Block devices.

use super::bio::Bio;

/// Sectors, counted from the start of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SectorRange {
    /// The first sector.
    pub start: u64,
    /// The number of sectors.
    pub len: u64,
}

/// An open device, or partition: a range of a disk's sectors.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BdevFile {
    first: u64,
    nr_sectors: u64,
}

impl BdevFile {
    /// For tests: returns the device that begins at sector `first` of its disk.
    pub fn new(first: u64, nr_sectors: u64) -> Self {
        Self { first, nr_sectors }
    }

    /// Returns its size in sectors.
    pub fn nr_sectors(&self) -> u64 {
        self.nr_sectors
    }

    /// Returns the sectors of this device that `bio`, which is for its disk, touches.
    pub fn range_of(&self, bio: &Bio) -> Option<SectorRange> {
        let end = bio.sector().saturating_add(bio.sectors());
        let start = bio.sector().max(self.first);
        let end = end.min(self.first.saturating_add(self.nr_sectors));
        (start < end).then(|| SectorRange {
            start: start - self.first,
            len: end - start,
        })
    }
}
