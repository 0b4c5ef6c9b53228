// SPDX-License-Identifier: GPL-2.0-only

//! Space management of a difference storage: [`Logs`] picks a part for new data, and [`Ranges`]
//! maps its bytes to the medium.

use kernel::prelude::*;

/// What a part has of space, in bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Log {
    /// Where the next data goes.
    pub(crate) next: u64,
    /// Allocated up to here.
    pub(crate) allocated: u64,
    /// Hard limit.
    pub(crate) limit: u64,
    /// Growth step of a file.
    pub(crate) step: u64,
    /// What the file system has left.
    pub(crate) available: u64,
}

impl Log {
    /// Least growth of a file, so that not each store needs one.
    const MIN_GROWTH: u64 = 1 << 20;

    /// Least growth ahead of need.
    const MIN_AHEAD: u64 = 64 << 20;

    /// Part of a file system's space that growth ahead of need can take at a time.
    const AHEAD_SHARE: u64 = 16;

    pub(crate) const fn new(allocated: u64, limit: u64, step: u64) -> Self {
        Self {
            next: 0,
            allocated,
            limit,
            step,
            available: u64::MAX,
        }
    }

    /// Returns how many bytes can be appended.
    pub(crate) fn room(&self) -> u64 {
        let allocated = self.allocated.saturating_sub(self.next);
        (self.limit - self.next).min(allocated.saturating_add(self.available))
    }

    /// Returns the start and length of what to allocate: what was appended, and ahead of need as
    /// much as keeps half a step free, but never what others need of the file system.
    pub(crate) fn growth(&self) -> Option<(u64, u64)> {
        let wanted = self.next.saturating_add(self.step / 2).min(self.limit);
        if self.allocated >= wanted {
            return None;
        }
        let needed = match self.next.saturating_sub(self.allocated) {
            0 => 0,
            needed => needed.next_multiple_of(Self::MIN_GROWTH),
        };
        let step = self.step.min(self.available / Self::AHEAD_SHARE);
        let ahead = if step == self.step || step >= Self::MIN_AHEAD {
            self.next
                .saturating_add(step)
                .saturating_sub(self.allocated)
        } else {
            0
        };
        let len = needed.max(ahead).min(self.limit - self.allocated);
        (len > 0).then_some((self.allocated, len))
    }
}

/// The space of all parts.
pub(crate) struct Logs {
    pub(crate) list: KVec<Log>,
    /// Threshold in bytes of the low-space event; 0 for none.
    pub(crate) low_space: u64,
    pub(crate) told: bool,
}

impl Logs {
    pub(crate) const fn new() -> Self {
        Self {
            list: KVec::new(),
            low_space: 0,
            told: false,
        }
    }

    /// Returns the number and the room of the first part with room for `len` bytes, or else of one
    /// with the most room.
    fn part_for(&self, len: u64) -> Option<(usize, u64)> {
        let rooms = || self.list.iter().map(Log::room).enumerate();
        rooms()
            .find(|(_, room)| *room >= len)
            .or_else(|| rooms().max_by_key(|(_, room)| *room))
    }

    /// Returns how many bytes can be appended at once, or `len` or more.
    pub(crate) fn room_for(&self, len: u64) -> u64 {
        self.part_for(len).map_or(0, |(_, room)| room)
    }

    /// Appends `len` bytes and returns the number of the part and its log; the bytes are the last
    /// ones in it.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if no part has room for them.
    pub(crate) fn append(&mut self, len: u64) -> Result<(usize, &mut Log)> {
        let (number, _) = self
            .part_for(len)
            .filter(|(_, room)| *room >= len)
            .ok_or(ENOSPC)?;
        let log = self.list.get_mut(number).ok_or(ENOSPC)?;
        log.next += len;
        Ok((number, log))
    }

    /// Everything is free again. Files stay as large as they have become.
    pub(crate) fn reset(&mut self) {
        self.list.iter_mut().for_each(|log| log.next = 0);
        self.told = false;
    }

    pub(crate) fn total(&self) -> u64 {
        self.list.iter().map(|log| log.limit).sum()
    }

    pub(crate) fn used(&self) -> u64 {
        self.list.iter().map(|log| log.next).sum()
    }

    /// What can still be appended.
    pub(crate) fn left(&self) -> u64 {
        self.list.iter().map(Log::room).sum()
    }

    /// How many bytes are left, if that is little and the owner does not know.
    pub(crate) fn low(&mut self) -> Option<u64> {
        let left = self.left();
        let low = left < self.low_space;
        let tell = low && !self.told;
        self.told = low;
        tell.then_some(left)
    }
}

/// A part's bytes on its medium.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// The first byte in the part.
    at: u64,
    /// The first byte on the medium.
    start: u64,
    len: u64,
}

/// The ranges of a part, one behind the other.
pub(crate) struct Ranges(KVVec<Range>);

impl Ranges {
    pub(crate) fn new() -> Self {
        Self(KVVec::new())
    }

    /// The number of bytes.
    pub(crate) fn len(&self) -> u64 {
        self.0.last().map_or(0, |range| range.at + range.len)
    }

    pub(crate) fn push(&mut self, start: u64, len: u64) -> Result {
        let at = self.len();
        Ok(self.0.push(Range { at, start, len }, GFP_KERNEL)?)
    }

    /// Where the byte `at` of the part is on the medium, and how many of the following ones are
    /// there too.
    pub(crate) fn locate(&self, at: u64) -> Option<(u64, u64)> {
        let index = self.0.partition_point(|range| range.at + range.len <= at);
        let range = self.0.get(index)?;
        let skip = at - range.at;
        Some((range.start + skip, range.len - skip))
    }

    /// Whether a byte of the medium is in two ranges of these and of `others`, which are on the
    /// same one.
    pub(crate) fn overlap<'a>(&'a self, others: impl Iterator<Item = &'a Self>) -> Result<bool> {
        let mut sorted: KVVec<(u64, u64)> = KVVec::new();
        for range in Iterator::chain(self.0.iter(), others.flat_map(|ranges| &ranges.0)) {
            sorted.push((range.start, range.start + range.len), GFP_KERNEL)?;
        }
        sorted.sort_unstable();
        Ok(sorted.windows(2).any(|pair| pair[0].1 > pair[1].0))
    }
}

#[kunit_tests(blksnap_storage)]
mod tests {
    use super::*;

    fn log(limit: u64, step: u64) -> Log {
        Log::new(0, limit, step)
    }

    fn logs(limits: &[u64]) -> Result<Logs> {
        let mut logs = Logs::new();
        for limit in limits {
            logs.list.push(log(*limit, 0), GFP_KERNEL)?;
        }
        Ok(logs)
    }

    /// Appends, and returns the part and where the bytes are in it.
    fn append(logs: &mut Logs, len: u64) -> Result<(usize, u64)> {
        let (number, log) = logs.append(len)?;
        Ok((number, log.next - len))
    }

    #[test]
    fn appends_up_to_the_limit() -> Result {
        let mut logs = logs(&[100])?;
        assert_eq!(append(&mut logs, 60), Ok((0, 0)));
        assert_eq!(append(&mut logs, 41), Err(ENOSPC));
        assert_eq!(append(&mut logs, u64::MAX), Err(ENOSPC));
        // What did not fit has taken nothing.
        assert_eq!(append(&mut logs, 40), Ok((0, 60)));
        assert_eq!(append(&mut logs, 1), Err(ENOSPC));
        assert_eq!((logs.total(), logs.used(), logs.left()), (100, 100, 0));
        assert_eq!(append(&mut Logs::new(), 1), Err(ENOSPC));
        Ok(())
    }

    #[test]
    fn goes_on_to_the_next_part() -> Result {
        let mut logs = logs(&[100, 10, 200])?;
        assert_eq!(append(&mut logs, 90), Ok((0, 0)));
        assert_eq!(logs.room_for(5), 10);
        // What is left of the first part is too small, and so is the second.
        assert_eq!(append(&mut logs, 50), Ok((2, 0)));
        assert_eq!(logs.left(), 170);
        assert_eq!(append(&mut logs, 151), Err(ENOSPC));
        // It is not forgotten.
        assert_eq!(logs.room_for(151), 150);
        assert_eq!(append(&mut logs, 6), Ok((0, 90)));
        assert_eq!(append(&mut logs, 6), Ok((1, 0)));
        assert_eq!(append(&mut logs, 150), Ok((2, 50)));
        assert_eq!(logs.room_for(5), 4);
        logs.list.push(log(30, 0), GFP_KERNEL)?;
        assert_eq!(append(&mut logs, 5), Ok((3, 0)));
        assert_eq!(append(&mut logs, 4), Ok((0, 96)));
        Ok(())
    }

    #[test]
    fn low_space_is_told_once() -> Result {
        let mut logs = logs(&[100])?;
        assert_eq!(logs.low(), None);
        logs.low_space = 50;
        append(&mut logs, 50)?;
        assert_eq!(logs.low(), None);
        append(&mut logs, 1)?;
        assert_eq!(logs.low(), Some(49));
        append(&mut logs, 1)?;
        assert_eq!(logs.low(), None);
        logs.list.push(log(10, 0), GFP_KERNEL)?;
        assert_eq!(logs.low(), None);
        append(&mut logs, 20)?;
        assert_eq!(logs.low(), Some(38));
        Ok(())
    }

    #[test]
    fn all_is_free_after_a_reset() -> Result {
        let mut logs = logs(&[100, 50])?;
        logs.low_space = 100;
        append(&mut logs, 90)?;
        append(&mut logs, 40)?;
        assert_eq!(logs.low(), Some(20));
        logs.reset();
        assert_eq!((logs.used(), logs.left(), logs.low()), (0, 150, None));
        assert_eq!(append(&mut logs, 100), Ok((0, 0)));
        assert_eq!(logs.low(), Some(50));
        Ok(())
    }

    #[test]
    fn grows_ahead() {
        let mut log = log(100, 40);
        log.next = 1;
        assert_eq!(log.growth(), Some((0, 100)));
        let mut log = self::log(100 << 20, 40 << 20);
        assert_eq!(log.growth(), Some((0, 40 << 20)));
        log.allocated = 40 << 20;
        assert_eq!(log.growth(), None);
        log.next = 20 << 20;
        assert_eq!(log.growth(), None);
        log.next = 21 << 20;
        assert_eq!(log.growth(), Some((40 << 20, 21 << 20)));
        log.allocated = 80 << 20;
        log.next = 91 << 20;
        assert_eq!(log.growth(), Some((80 << 20, 20 << 20)));
        log.allocated = 100 << 20;
        assert_eq!(log.growth(), None);
    }

    #[test]
    fn growth_covers_a_large_append() {
        let mut log = log(10 << 20, 10);
        log.next = 500;
        assert_eq!(log.growth(), Some((0, 1 << 20)));
        log.next = 3 << 20;
        assert_eq!(log.growth(), Some((0, (3 << 20) + 10)));
        log.limit = log.next + 1;
        assert_eq!(log.growth(), Some((0, (3 << 20) + 1)));
    }

    #[test]
    fn growth_leaves_the_file_system_its_space() {
        let mut log = log(10 << 30, 1 << 30);
        log.next = 256 << 10;
        // Plenty
        log.available = 16 << 30;
        assert_eq!(log.growth(), Some((0, (1 << 30) + (256 << 10))));
        // A sixteenth of it
        log.available = 2 << 30;
        assert_eq!(log.growth(), Some((0, (128 << 20) + (256 << 10))));
        // What is needed
        log.available = 364 << 20;
        assert_eq!(log.growth(), Some((0, 1 << 20)));
        log.allocated = 1 << 20;
        assert_eq!(log.growth(), None);
    }

    #[test]
    fn room_is_what_there_is() -> Result {
        let mut logs = logs(&[1000, 1000])?;
        logs.list[0].allocated = 100;
        logs.list[0].available = 50;
        assert_eq!(logs.room_for(1), 150);
        assert_eq!(logs.left(), 1150);
        assert_eq!(append(&mut logs, 120), Ok((0, 0)));
        logs.list[0].available = 30;
        assert_eq!(append(&mut logs, 40), Ok((1, 0)));
        Ok(())
    }

    #[test]
    fn ranges_are_one_behind_the_other() -> Result {
        let mut ranges = Ranges::new();
        assert_eq!(ranges.locate(0), None);
        ranges.push(1000, 10)?;
        ranges.push(0, 5)?;
        ranges.push(2000, 100)?;
        assert_eq!(ranges.len(), 115);
        assert_eq!(ranges.locate(0), Some((1000, 10)));
        assert_eq!(ranges.locate(9), Some((1009, 1)));
        assert_eq!(ranges.locate(10), Some((0, 5)));
        assert_eq!(ranges.locate(15), Some((2000, 100)));
        assert_eq!(ranges.locate(114), Some((2099, 1)));
        assert_eq!(ranges.locate(115), None);
        Ok(())
    }

    #[test]
    fn overlapping_ranges() -> Result {
        let mut ranges = Ranges::new();
        ranges.push(100, 10)?;
        ranges.push(90, 10)?;
        ranges.push(110, 1)?;
        assert!(!ranges.overlap([].iter())?);
        let mut others = [Ranges::new(), Ranges::new()];
        others[1].push(0, 90)?;
        assert!(!ranges.overlap(others.iter())?);
        others[0].push(200, 1)?;
        others[0].push(109, 1)?;
        assert!(ranges.overlap(others.iter())?);
        ranges.push(99, 1)?;
        assert!(ranges.overlap([].iter())?);
        Ok(())
    }
}
