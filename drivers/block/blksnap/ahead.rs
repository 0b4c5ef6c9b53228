// SPDX-License-Identifier: GPL-2.0-only

//! When more is copied than is about to be overwritten: ahead of writes in sequence, and around
//! writes to a region if a longer read costs little.

use crate::chunk::ChunkRange;
use kernel::prelude::*;

/// Writes in sequence that are known at a time.
pub(crate) const STREAMS: usize = 4;

/// No chunk.
pub(crate) const NO_MARK: u64 = u64::MAX;

/// Writes, one behind the other.
#[derive(Clone, Copy)]
struct Stream {
    /// The chunk after the last one that was written or is copied ahead.
    end: u64,
    /// How many chunks were copied ahead at a time; 0 if one write is all that there was so far.
    window: u64,
    /// A write to this chunk is the reason to copy more.
    mark: u64,
    /// When it was used, in writes that were looked at.
    used: u64,
}

/// The writes in sequence of a device.
///
/// A write that begins where another one has ended makes a stream of the two, and what follows is
/// copied ahead: as much as the write has, then twice as much each time, up to a limit. More is
/// copied when a write comes to what was copied last, so that it is ready in time.
pub(crate) struct Streams {
    list: [Stream; STREAMS],
    clock: u64,
}

impl Streams {
    /// One that was followed is kept for so many writes longer than one that was not.
    const PATIENCE: u64 = 64;

    pub(crate) const fn new() -> Self {
        let none = Stream {
            end: NO_MARK,
            window: 0,
            mark: NO_MARK,
            used: 0,
        };
        Self {
            list: [none; STREAMS],
            clock: 0,
        }
    }

    /// Whether [`Self::follow`] would return something.
    pub(crate) fn follows(&self, chunks: ChunkRange) -> bool {
        self.find(chunks).is_some()
    }

    fn find(&self, chunks: ChunkRange) -> Option<usize> {
        let follows = |stream: &Stream| {
            stream.end == chunks.start || chunks.start <= stream.mark && stream.mark < chunks.end
        };
        self.list.iter().position(follows)
    }

    /// There is a write to `chunks`, the first of which is not saved or has a mark. Returns what is
    /// to be copied ahead of those after it, at most `limit` chunks.
    pub(crate) fn follow(&mut self, chunks: ChunkRange, limit: u64) -> Option<ChunkRange> {
        self.clock += 1;
        let clock = self.clock;
        let Some(at) = self.find(chunks) else {
            self.replace(chunks.end);
            return None;
        };
        let stream = &mut self.list[at];
        let start = stream.end.max(chunks.end);
        stream.window = if stream.window == 0 {
            chunks.len()
        } else {
            stream.window.saturating_mul(2)
        };
        stream.window = stream.window.clamp(1, limit.max(1));
        stream.end = start.saturating_add(stream.window);
        stream.mark = start;
        stream.used = clock;
        Some(ChunkRange {
            start,
            end: stream.end,
        })
    }

    /// What [`Self::follow`] has returned is copied up to `end` only: the rest is tried again when
    /// that is written.
    pub(crate) fn stopped(&mut self, ahead: ChunkRange, end: u64) {
        if let Some(stream) = self.list.iter_mut().find(|s| s.end == ahead.end) {
            stream.end = end;
        }
    }

    /// Forgets the stream that is of least use for one that ends at `end`.
    fn replace(&mut self, end: u64) {
        let worth = |stream: &Stream| stream.used + u64::from(stream.window > 0) * Self::PATIENCE;
        if let Some(stream) = self.list.iter_mut().min_by_key(|stream| worth(stream)) {
            *stream = Stream {
                end,
                window: 0,
                mark: NO_MARK,
                used: self.clock,
            };
        }
    }

    /// The chunks a write to which [`Self::follow`] is to be told of.
    pub(crate) fn marks(&self) -> [u64; STREAMS] {
        self.list.map(|stream| stream.mark)
    }
}

/// What reads from the origin cost, and whether it is worth it to read more than what is asked for.
///
/// A read takes time for itself, and time for its bytes. The second is what a long read takes more
/// than short ones do then. The first is what is left of the time in which there was any read, for
/// each of them: with many at a time it is small, for one after the other it is what the writer
/// waits.
///
/// The rest of a unit is read once the reads of single chunks of it have taken as long as that will
/// take: so the two together are at most twice what the better of them takes, whatever is written
/// later (the "ski rental" of A. R. Karlin et al., "Competitive snoopy caching", 1988).
/// Nor is more read ahead than was asked for, or twice as much where all of the rest costs less
/// than one read: a storage lasts at least half, or a third, as long.
pub(crate) struct Costs {
    /// Mean times of short reads, and of what long ones took more, in ns; for so many bytes more as
    /// [`Costs::MORE_BYTES`]. None of them yet: None.
    short: Option<i64>,
    more_ns: Option<i64>,
    /// The mean time of storing [`Costs::MORE_BYTES`], and whether the storage is on the same disk.
    store_ns: Option<i64>,
    shares_disk: bool,
    /// The time with reads, up to when it is known, and the number and bytes of those that are
    /// done. All are halved from time to time.
    busy_ns: u64,
    busy_since: u64,
    reads: u64,
    bytes: u64,
    /// What was asked for, and what more was read, in bytes.
    asked: u64,
    more: u64,
    /// Times that it was asked whether more is to be read.
    tried: u32,
}

/// A read that has begun. Nobody has to tell of its end if it fails.
#[derive(Clone, Copy)]
pub(crate) struct Begun {
    pub(crate) ns: u64,
    /// Whether it is one that a writer waits for, not of many at once.
    pub(crate) alone: bool,
}

impl Costs {
    const SHORT_BYTES: usize = 16 << 10;
    const LONG_BYTES: usize = 128 << 10;
    const MORE_BYTES: u64 = 1 << 20;
    /// A new time is this part of a mean.
    const WEIGHT: i64 = 8;
    /// So many times more is read before it is known what that costs, and then one time of so many.
    const TRIES: u32 = 4;
    const TRY_EVERY: u32 = 4096;
    /// So many reads are remembered, and so many it takes to know what they cost.
    const MEMORY: u64 = 512;
    const ENOUGH: u64 = 64;

    pub(crate) const fn new(shares_disk: bool) -> Self {
        Self {
            short: None,
            more_ns: None,
            store_ns: None,
            shares_disk,
            busy_ns: 0,
            busy_since: 0,
            reads: 0,
            bytes: 0,
            asked: 0,
            more: 0,
            tried: 0,
        }
    }

    /// A read begins now. `first` if it is the only one.
    pub(crate) fn begin(&mut self, now: u64, first: bool) {
        if first {
            self.busy_since = now;
        }
    }

    /// One has ended.
    pub(crate) fn end(&mut self, now: u64) {
        self.busy_ns += now.saturating_sub(self.busy_since);
        self.busy_since = now;
    }

    /// A read of so many bytes has succeeded, which has ended before.
    pub(crate) fn took(&mut self, begun: Begun, now: u64, bytes: usize) {
        let ns = now.saturating_sub(begun.ns) as i64;
        if begun.alone && bytes <= Self::SHORT_BYTES {
            self.short = Self::mean(self.short, ns);
        } else if let Some(short) = self
            .short
            .filter(|_| begun.alone && bytes >= Self::LONG_BYTES)
        {
            let more = (ns - short).saturating_mul(Self::MORE_BYTES as i64) / bytes as i64;
            self.more_ns = Self::mean(self.more_ns, more);
        }
        self.reads += 1;
        self.bytes += bytes as u64;
        if self.reads >= Self::MEMORY {
            self.busy_ns /= 2;
            self.reads /= 2;
            self.bytes /= 2;
        }
    }

    fn mean(mean: Option<i64>, new: i64) -> Option<i64> {
        Some(mean.map_or(new, |mean| mean + (new - mean) / Self::WEIGHT))
    }

    /// Storing so many bytes has taken `ns`.
    pub(crate) fn stored(&mut self, ns: u64, bytes: usize, shares_disk: bool) {
        self.shares_disk = shares_disk;
        if let Some(ns) = ns
            .saturating_mul(Self::MORE_BYTES)
            .checked_div(bytes as u64)
        {
            self.store_ns = Self::mean(self.store_ns, ns as i64);
        }
    }

    /// The time of a read without that for its bytes, and that for `bytes`, in ns, if it is known.
    ///
    /// Bytes that are stored on the same disk are paid for there, too.
    pub(crate) fn of(&self, bytes: u64) -> Option<(u64, u64)> {
        let store = if self.shares_disk { self.store_ns? } else { 0 };
        let more = (self.more_ns?.max(0) + store) as u64;
        if self.reads < Self::ENOUGH {
            return None;
        }
        let for_bytes = |bytes: u64| bytes.saturating_mul(more) / Self::MORE_BYTES;
        let all = self.busy_ns.saturating_sub(for_bytes(self.bytes));
        Some((all / self.reads, for_bytes(bytes)))
    }

    /// Whether `rest` bytes are to be read beside the `asked` ones, as part of a unit that has
    /// `touched` chunks that were asked for so far.
    pub(crate) fn is_worth(&mut self, touched: u64, asked: u64, rest: u64) -> bool {
        self.tried = self.tried.saturating_add(1);
        let (worth, times) = match self.of(rest) {
            None => (self.tried <= Self::TRIES, 1),
            Some((one, for_rest)) => {
                let times = if for_rest <= one { 2 } else { 1 };
                (touched.saturating_mul(one) >= for_rest, times)
            }
        };
        let worth = (worth || self.tried.is_multiple_of(Self::TRY_EVERY))
            && self.more + rest <= (self.asked + asked).saturating_mul(times);
        if worth {
            self.more += rest;
        }
        worth
    }

    /// A write has asked for so many bytes.
    pub(crate) fn ask(&mut self, bytes: usize) {
        self.asked += bytes as u64;
    }
}

#[kunit_tests(blksnap_ahead)]
mod tests {
    use super::*;

    fn chunks(start: u64, end: u64) -> ChunkRange {
        ChunkRange { start, end }
    }

    #[test]
    fn windows_double_up_to_the_limit() {
        let mut streams = Streams::new();
        assert_eq!(streams.follow(chunks(10, 12), 16), None);
        assert!(streams.follows(chunks(12, 14)));
        assert_eq!(streams.follow(chunks(12, 14), 16), Some(chunks(14, 16)));
        assert!(streams.marks().contains(&14));
        // What is between the marks is no reason for more.
        assert!(!streams.follows(chunks(15, 16)));
        assert_eq!(streams.follow(chunks(14, 16), 16), Some(chunks(16, 20)));
        assert_eq!(streams.follow(chunks(16, 18), 16), Some(chunks(20, 28)));
        assert_eq!(streams.follow(chunks(20, 22), 16), Some(chunks(28, 44)));
        assert_eq!(streams.follow(chunks(28, 30), 16), Some(chunks(44, 60)));
    }

    #[test]
    fn what_is_beyond_the_end_goes_on_there() {
        let mut streams = Streams::new();
        streams.follow(chunks(0, 1), 8);
        assert_eq!(streams.follow(chunks(1, 2), 8), Some(chunks(2, 3)));
        // A write that is longer than what was copied ahead.
        assert_eq!(streams.follow(chunks(2, 10), 8), Some(chunks(10, 12)));
        // It was faster than the copies.
        assert_eq!(streams.follow(chunks(12, 13), 8), Some(chunks(13, 17)));
    }

    #[test]
    fn stops_where_there_is_no_room() {
        let mut streams = Streams::new();
        streams.follow(chunks(0, 4), 8);
        let ahead = streams.follow(chunks(4, 8), 8);
        assert_eq!(ahead, Some(chunks(8, 12)));
        streams.stopped(chunks(8, 12), 9);
        assert_eq!(streams.follow(chunks(9, 10), 8), Some(chunks(10, 18)));
    }

    #[test]
    fn random_writes_are_no_stream_and_spare_one() {
        let mut streams = Streams::new();
        streams.follow(chunks(0, 1), 8);
        assert!(streams.follow(chunks(1, 2), 8).is_some());
        for at in 0..50 {
            assert_eq!(
                streams.follow(chunks(1000 + 7 * at, 1002 + 7 * at), 8),
                None
            );
        }
        assert!(streams.follow(chunks(2, 3), 8).is_some());
        // One that has ended makes room in the end.
        for at in 0..500 {
            assert_eq!(
                streams.follow(chunks(9000 + 7 * at, 9002 + 7 * at), 8),
                None
            );
        }
        assert_eq!(streams.marks(), [NO_MARK; STREAMS]);
    }

    #[test]
    fn several_streams_at_once() {
        let mut streams = Streams::new();
        let first = |n: u64| 1000 * n;
        for n in 0..STREAMS as u64 {
            streams.follow(chunks(first(n), first(n) + 1), 4);
        }
        for n in 0..STREAMS as u64 {
            assert!(streams
                .follow(chunks(first(n) + 1, first(n) + 2), 4)
                .is_some());
        }
        for n in 0..STREAMS as u64 {
            assert!(streams
                .follow(chunks(first(n) + 2, first(n) + 3), 4)
                .is_some());
        }
    }

    /// A device that takes `one` ns for a read and `all` for 256 KiB, with one read at a time: how
    /// many of the 64 chunks of a unit are read on their own.
    fn single(one: u64, all: u64) -> u64 {
        let mut costs = Costs::new(false);
        let mut now = 0;
        let mut read = |costs: &mut Costs, bytes: usize| {
            let begun = Begun {
                ns: now,
                alone: true,
            };
            costs.begin(now, true);
            now += one + bytes as u64 * all / (256 << 10);
            costs.end(now);
            costs.took(begun, now, bytes);
        };
        for _ in 0..Costs::MEMORY * 3 {
            read(&mut costs, 4096);
            costs.ask(4096);
        }
        read(&mut costs, 256 << 10);
        (0..64)
            .find(|touched| costs.is_worth(*touched, 4096, (63 - touched) * 4096))
            .unwrap_or(64)
    }

    #[test]
    fn rest_is_read_when_it_has_paid() {
        // The bytes are free.
        assert_eq!(single(1000, 0), 0);
        // All of them cost as much as one read: after the first one.
        assert_eq!(single(10_000, 10_000), 1);
        // They cost 16: 13 touches have cost as much as the 50 chunks that are left.
        assert_eq!(single(1000, 16_000), 13);
        // They cost as much as 64 reads.
        assert!((30..34).contains(&single(1000, 64_000)));
    }

    #[test]
    fn many_at_a_time_cost_less_each() {
        let mut costs = Costs::new(false);
        let begun = |ns| Begun { ns, alone: true };
        for round in 0..100 {
            let start = round * 1000;
            costs.begin(start, round == 0);
            for _ in 0..10 {
                costs.end(start + 1000);
                costs.took(begun(start), start + 1000, 4096);
            }
        }
        costs.took(begun(99_000), 100_000, 256 << 10);
        assert_eq!(costs.of(0).map(|(one, _)| one / 10), Some(9));
        // As long as there is none, no time passes.
        costs.begin(1_000_000, true);
        costs.end(1_000_000);
        assert_eq!(costs.of(0).map(|(one, _)| one / 10), Some(9));
    }

    #[test]
    fn no_more_than_was_asked_for() {
        let mut costs = Costs::new(false);
        assert!(!costs.is_worth(64, 4096, 8192));
        costs.ask(8192);
        assert!(costs.is_worth(64, 0, 8192));
        assert!(!costs.is_worth(64, 0, 1));
    }

    #[test]
    fn few_tries_where_long_reads_fail() {
        let mut costs = Costs::new(false);
        costs.ask(1 << 30);
        let tries = (0..1000).filter(|_| costs.is_worth(64, 0, 4096));
        assert_eq!(tries.count(), 4);
    }
}
