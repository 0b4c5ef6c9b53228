// SPDX-License-Identifier: GPL-2.0-only

//! Decides when to copy more than is about to be overwritten: ahead of sequential writes, and
//! around writes to a region if a longer read costs little.

use crate::chunk::ChunkRange;
use kernel::prelude::*;

/// Maximum number of streams that are followed at a time.
pub(crate) const STREAMS: usize = 4;

/// Number of bytes that are read around a write, at most, and their alignment.
pub(crate) const UNIT_BYTES: u64 = 256 << 10;

/// Mark of a stream that is not copied ahead.
pub(crate) const NO_MARK: u64 = u64::MAX;

/// Sequential writes.
#[derive(Clone, Copy)]
struct Stream {
    /// The chunk after the last one that was written or copied ahead.
    end: u64,
    /// Number of chunks that were copied ahead last; 0 if there was only one write.
    window: u64,
    /// A write to this chunk triggers the next window.
    mark: u64,
    /// Value of `clock` when it was followed last.
    used: u64,
}

/// The streams of sequential writes to a device.
///
/// A write that starts where another one has ended makes a stream of the two, and the chunks after
/// it are copied ahead: as many as the write has, then twice as many each time, up to a limit. The
/// next window is copied when a write reaches the one before, so that it is ready in time.
pub(crate) struct Streams {
    list: [Stream; STREAMS],
    /// Number of calls of follow().
    clock: u64,
}

impl Streams {
    /// Number of writes that a stream of two or more writes is kept longer than a single write.
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

    /// Returns whether [`Self::follow`] would return chunks.
    pub(crate) fn follows(&self, chunks: ChunkRange) -> bool {
        self.find(chunks).is_some()
    }

    fn find(&self, chunks: ChunkRange) -> Option<usize> {
        let follows = |stream: &Stream| {
            stream.end == chunks.start || chunks.start <= stream.mark && stream.mark < chunks.end
        };
        self.list.iter().position(follows)
    }

    /// Adds a write to `chunks`, the first of which is not saved or has a mark. Returns the chunks
    /// to copy ahead, at most `limit`.
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

    /// Cuts what [`Self::follow`] has returned off at `end`: no more could be copied. The rest is
    /// tried again when a write reaches `end`.
    pub(crate) fn stopped(&mut self, ahead: ChunkRange, end: u64) {
        if let Some(stream) = self.list.iter_mut().find(|s| s.end == ahead.end) {
            stream.end = end;
        }
    }

    /// Replaces the least useful stream by a write that ends at `end`.
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

    /// Returns the chunks a write to which must be passed to [`Self::follow`] even if they are
    /// saved.
    pub(crate) fn marks(&self) -> [u64; STREAMS] {
        self.list.map(|stream| stream.mark)
    }
}

/// Cost of reads from the origin. Decides whether to read more than what is needed now.
///
/// A read has a cost of its own and a cost per byte. The cost per byte is the time that long reads
/// take beyond short ones. The cost of its own is the time with reads in flight, without that for
/// bytes, divided by the number of reads: small if many are in flight, the latency if there is one
/// after the other.
///
/// If the bytes of a unit cost no more than a few reads, its rest is read right away. That takes
/// space, but hardly any time; the share of the storage that copying ahead can use is a parameter.
/// This is so if the disk has to seek, unless the storage is there, too.
///
/// Otherwise the rest is read once the reads of single chunks of the unit have cost as much as it
/// will. So the two together cost at most twice as much as the better of them, whatever is written
/// later (the "ski rental" of A. R. Karlin et al., "Competitive snoopy caching", 1988). No more is
/// read so than what was needed, or twice as much if the rest costs no more than one read: the
/// storage lasts at least half or a third as long.
pub(crate) struct Costs {
    /// Latency of short reads, in ns.
    short: Mean,
    /// Additional latency of long reads, in ns for [`Costs::MORE_BYTES`].
    more_ns: Mean,
    /// Time of storing [`Costs::MORE_BYTES`], in ns.
    store_ns: Mean,
    /// A seek costs much more than the bytes of a unit.
    rotational: bool,
    /// The storage is on the origin's disk.
    shares_disk: bool,
    /// Time with reads in flight, in ns, counted up to `busy_since`; number and bytes of completed
    /// reads. All three are halved every [`Costs::MEMORY`] reads.
    busy_ns: u64,
    busy_since: u64,
    reads: u64,
    bytes: u64,
    /// Bytes that were needed, and those that were read beyond, except where that was cheap.
    asked: u64,
    more: u64,
    /// Long reads that were tried, and decisions since the last one.
    tries: u32,
    decisions: u32,
}

/// A mean in which old values fade.
#[derive(Clone, Copy)]
struct Mean {
    value: i64,
    /// Number of values, up to [`Mean::FULL`].
    count: i64,
}

impl Mean {
    /// Number of values from which the mean is known, and reciprocal of a new one's weight then.
    const FULL: i64 = 8;

    const NONE: Self = Self { value: 0, count: 0 };

    fn add(&mut self, new: i64) {
        self.count = (self.count + 1).min(Self::FULL);
        self.value += (new - self.value) / self.count;
    }

    /// None if it is not known yet.
    fn get(&self) -> Option<i64> {
        (self.count == Self::FULL).then_some(self.value)
    }
}

/// A read in flight.
#[derive(Clone, Copy)]
pub(crate) struct Begun {
    /// Time of the submission, in ns.
    pub(crate) ns: u64,
    /// It is the only read for its write, so that its latency counts.
    pub(crate) alone: bool,
}

impl Costs {
    /// Upper limit of a short read.
    const SHORT_BYTES: usize = 16 << 10;
    /// Lower limit of a long read.
    const LONG_BYTES: usize = 64 << 10;
    /// Number of bytes that costs are given for.
    const MORE_BYTES: u64 = 1 << 20;
    /// Bytes are cheap if those of a unit cost at most as much as this number of single reads.
    const CHEAP: u64 = 4;
    /// Long reads that are tried while costs are not known.
    const TRIES: u32 = Mean::FULL as u32;
    /// Later one of this many decisions is for a long read, so that costs stay known.
    const TRY_EVERY: u32 = 4096;
    /// Number of reads after which older ones count half.
    const MEMORY: u64 = 512;
    /// Number of reads from which costs are known.
    const ENOUGH: u64 = 64;

    pub(crate) const fn new(rotational: bool, shares_disk: bool) -> Self {
        Self {
            short: Mean::NONE,
            more_ns: Mean::NONE,
            store_ns: Mean::NONE,
            rotational,
            shares_disk,
            busy_ns: 0,
            busy_since: 0,
            reads: 0,
            bytes: 0,
            asked: 0,
            more: 0,
            tries: 0,
            decisions: 0,
        }
    }

    /// Counts a read that is submitted; `first` if no other one is in flight.
    pub(crate) fn begin(&mut self, now: u64, first: bool) {
        if first {
            self.busy_since = now;
        }
    }

    /// Counts a read that has completed.
    pub(crate) fn end(&mut self, now: u64) {
        self.busy_ns += now.saturating_sub(self.busy_since);
        self.busy_since = now;
    }

    /// Learns from a read that has succeeded, after [`Self::end`].
    pub(crate) fn took(&mut self, begun: Begun, now: u64, bytes: usize) {
        let ns = now.saturating_sub(begun.ns) as i64;
        if begun.alone && bytes <= Self::SHORT_BYTES {
            self.short.add(ns);
        } else if begun.alone && bytes >= Self::LONG_BYTES {
            if let Some(short) = self.short.get() {
                let more = (ns - short).saturating_mul(Self::MORE_BYTES as i64);
                self.more_ns.add(more / bytes as i64);
            }
        }
        self.reads += 1;
        self.bytes += bytes as u64;
        if self.reads >= Self::MEMORY {
            self.busy_ns /= 2;
            self.reads /= 2;
            self.bytes /= 2;
        }
    }

    /// Learns from a store of `bytes` that has taken `ns`.
    pub(crate) fn stored(&mut self, ns: u64, bytes: usize, shares_disk: bool) {
        self.shares_disk = shares_disk;
        if let Some(ns) = ns
            .saturating_mul(Self::MORE_BYTES)
            .checked_div(bytes as u64)
        {
            self.store_ns.add(ns as i64);
        }
    }

    /// Returns the cost of a read without its bytes, and that of `bytes`, in ns. None if they are
    /// not known yet.
    ///
    /// If the storage is on the same disk, the cost of bytes includes that of storing them.
    pub(crate) fn of(&self, bytes: u64) -> Option<(u64, u64)> {
        let store = if self.shares_disk {
            self.store_ns.get()?
        } else {
            0
        };
        let more = (self.more_ns.get()?.max(0) + store) as u64;
        if self.reads < Self::ENOUGH {
            return None;
        }
        let for_bytes = |bytes: u64| bytes.saturating_mul(more) / Self::MORE_BYTES;
        let all = self.busy_ns.saturating_sub(for_bytes(self.bytes));
        Some((all / self.reads, for_bytes(bytes)))
    }

    /// Returns whether to read `rest` bytes together with `asked` ones that are needed now, of a
    /// unit with `touched` chunks that were needed before. If so, counts them.
    ///
    /// Never if they would be stored on the same disk, unless that has to seek: what it lacks is
    /// bandwidth.
    pub(crate) fn take_rest(&mut self, touched: u64, asked: u64, rest: u64) -> bool {
        if self.shares_disk && !self.rotational {
            return false;
        }
        let long = asked + rest >= Self::LONG_BYTES as u64;
        self.decisions = self.decisions.saturating_add(1);
        let costs = self.of(rest);
        // Whether that number of single reads costs as much as the rest.
        let pays =
            |reads: u64| costs.is_some_and(|(one, for_rest)| reads.saturating_mul(one) >= for_rest);
        let cheap = match self.of(UNIT_BYTES) {
            _ if self.rotational && !self.shares_disk => true,
            None => false,
            Some((one, unit)) => one.saturating_mul(Self::CHEAP) >= unit,
        };
        let tries = costs.is_none() && long && self.tries < Self::TRIES;
        let times = if pays(1) { 2 } else { 1 };
        let worth = pays(touched) || tries || self.decisions >= Self::TRY_EVERY;
        let takes = cheap || worth && self.more + rest <= (self.asked + asked) * times;
        if takes && !cheap {
            self.more += rest;
        }
        if takes && long {
            self.tries = self.tries.saturating_add(1);
            self.decisions = 0;
        }
        takes
    }

    /// Counts bytes that are read because a write needs them.
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

    /// Returns the costs of a device that takes `one` ns for a read and `all` for a unit, after
    /// reads one after the other.
    fn learned(one: u64, all: u64) -> Costs {
        let mut costs = Costs::new(false, false);
        let mut now = 0;
        let mut read = |costs: &mut Costs, bytes: usize| {
            let begun = Begun {
                ns: now,
                alone: true,
            };
            costs.begin(now, true);
            now += one + bytes as u64 * all / UNIT_BYTES;
            costs.end(now);
            costs.took(begun, now, bytes);
        };
        for _ in 0..Costs::MEMORY * 3 {
            read(&mut costs, 4096);
            costs.ask(4096);
        }
        for _ in 0..Mean::FULL {
            read(&mut costs, UNIT_BYTES as usize);
        }
        costs
    }

    /// Returns how many of the 64 chunks of a unit are read on their own then.
    fn single(one: u64, all: u64) -> u64 {
        let mut costs = learned(one, all);
        (0..64)
            .find(|touched| costs.take_rest(*touched, 4096, (63 - touched) * 4096))
            .unwrap_or(64)
    }

    #[test]
    fn rest_is_read_when_it_has_paid() {
        // The bytes are free, or cheap.
        assert_eq!(single(1000, 0), 0);
        assert_eq!(single(10_000, 40_000), 0);
        // They cost 16: 13 touches have cost as much as the 50 chunks that are left.
        assert_eq!(single(1000, 16_000), 13);
        // They cost as much as 64 reads.
        assert!((30..34).contains(&single(1000, 64_000)));
    }

    #[test]
    fn only_cheap_rest_has_no_limit() {
        let takes = |one, all| {
            let mut costs = learned(one, all);
            let takes = (0..1000).filter(|_| costs.take_rest(64, 4096, UNIT_BYTES - 4096));
            takes.count()
        };
        assert_eq!(takes(1_000, 4_000), 1000);
        // 6 MiB were needed before, and 4 KiB are for each of these.
        assert!((24..30).contains(&takes(1_000, 4_200)));
    }

    #[test]
    fn many_at_a_time_cost_less_each() {
        let mut costs = Costs::new(false, false);
        let begun = |ns| Begun { ns, alone: true };
        for round in 0..100 {
            let start = round * 1000;
            costs.begin(start, round == 0);
            for _ in 0..10 {
                costs.end(start + 1000);
                costs.took(begun(start), start + 1000, 4096);
            }
        }
        for _ in 0..Mean::FULL {
            costs.took(begun(99_000), 100_000, 256 << 10);
        }
        assert_eq!(costs.of(0).map(|(one, _)| one / 10), Some(9));
        // As long as there is none, no time passes.
        costs.begin(1_000_000, true);
        costs.end(1_000_000);
        assert_eq!(costs.of(0).map(|(one, _)| one / 10), Some(9));
    }

    #[test]
    fn no_more_than_was_asked_for() {
        let mut costs = learned(1000, 64_000);
        costs.asked = 0;
        assert!(!costs.take_rest(64, 4096, 8192));
        costs.ask(8192);
        assert!(costs.take_rest(64, 0, 8192));
        assert!(!costs.take_rest(64, 0, 8192));
    }

    #[test]
    fn few_tries_where_long_reads_fail() {
        let mut costs = Costs::new(false, false);
        costs.ask(1 << 30);
        let tries = (0..1000).filter(|_| costs.take_rest(64, 0, UNIT_BYTES));
        assert_eq!(tries.count(), Costs::TRIES as usize);
    }

    #[test]
    fn bytes_of_a_rotational_disk_are_cheap() {
        assert!(!Costs::new(false, true).take_rest(4, 4096, UNIT_BYTES));
        assert!(Costs::new(true, false).take_rest(4, 4096, UNIT_BYTES));
        let mut costs = Costs::new(true, true);
        assert!(!costs.take_rest(4, 4096, 4096));
    }
}
