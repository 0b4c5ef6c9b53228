// SPDX-License-Identifier: GPL-2.0-only

//! A device with writers and image readers, and the driver's state machine between them.
//!
//! What the driver's glue does with bios, locks and workers is done here with numbers. A step is
//! what happens between two points where another processor can come in between: the sections of
//! the driver under its lock, and what a device does. [`World::actions`] says which steps can come
//! next, so a checker can try all orders.
//!
//! A chunk's content is one number: 0 at first, then the number of the writer plus 1.

use crate::{
    batch::{Batch, Recorded},
    budget::Budget,
    chunk::{ChunkRange, Geometry},
    copy_memory::CopyMemory,
    cow::{Cow, Found, Look},
    extent_map::Piece,
    lanes::{Key, Lanes, Step},
    new_claim::{ClaimMemory, NewClaim},
    status::Status,
    stored_map::Rooms,
    taken::{ReleasedList, Taken, TakenList},
};
use kernel::{
    block::{
        bdev::BdevFile,
        bio::{self, Bio, Cgroup, Op, OwnedBio},
        filter::FilteredBio,
    },
    prelude::*,
    sync::Arc,
};
use std::rc::Rc;

/// The binary logarithm of a chunk's bytes.
const SHIFT: u32 = 12;
const SECTORS: u64 = 1 << (SHIFT - 9);
/// Stores in flight at a time.
const STORES: usize = 2;
/// In [`Writer::since`]: the write was released.
const READY: u32 = 1 << 31;

/// What there is in a world.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub chunks: u64,
    /// The first chunk of each write, the one after the last, and its control group.
    pub writers: &'static [(u64, u64, Option<usize>)],
    /// The first chunk of each image read, and the one after the last.
    pub readers: &'static [(u64, u64)],
    /// How many chunks there may be in copies that are not stored.
    pub max_copies: usize,
    /// How many snapshots are taken, one after the other.
    pub takes: usize,
    /// How often memory is short, I/O fails, and a snapshot breaks for another reason.
    pub no_memory: u8,
    pub errors: u8,
    pub breaks: u8,
}

/// What can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Take,
    /// The snapshot fails, is taken off the device, and is closed.
    Shut,
    Detach,
    Close(u8),
    Break,
    Timeout,
    /// A writer submits its write.
    Submit(u8),
    /// The filter looks at a write, and copies no more than it needs.
    Hook(u8),
    /// The same, and copies what is free around.
    HookMore(u8),
    /// It finds no memory.
    HookNoMemory(u8),
    /// It claims what it has prepared.
    HookClaim(u8),
    /// A chunk of a write reaches the origin.
    Write(u8, u8),
    /// The next step of a worker for writes, of a snapshot.
    Work(u8, u8),
    WorkNoMemory(u8, u8),
    /// A read of old data gets it, completes, or fails.
    Read(u8, u8),
    ReadDone(u8, u8),
    ReadFails(u8, u8),
    /// A store begins, completes, fails, or finds no space.
    Store(u8),
    StoreDone(u8, u8),
    StoreFails(u8, u8),
    StoreNoSpace(u8, u8),
    /// The next step of an image read.
    Image(u8),
}

use Action::*;

/// A promise that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// An image read has got data that was never there at the take.
    WrongImage,
    /// The old data of a chunk is gone, though the image is not broken.
    Lost,
    /// A write has not reached the origin, or a copy was not stored, and nothing will happen.
    Stuck,
    /// The machine has counted wrongly.
    Miscounted,
    /// More copies than are allowed.
    TooMany,
    /// A write was dropped.
    Dropped,
}

/// Old data, of the chunks from `first` on.
struct Content {
    first: u64,
    chunks: Vec<u8>,
}

type Data = Rc<Content>;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    New,
    /// On its way to the filter.
    Submitted,
    /// In the filter, which has prepared a copy of these chunks.
    Prepared(ChunkRange),
    /// In one of the driver's lists.
    Held,
    /// On its way to the origin; a bit for each chunk that is not there yet.
    Passed(u8),
    Done,
}

/// Where a held write is, for [`World::digest`].
#[derive(Clone, Copy, PartialEq)]
enum At {
    Nowhere,
    Behind(u8, u64),
    Lane(u8, u8),
    Worker(u8, u8),
}

struct Writer {
    bio: Bio,
    chunks: ChunkRange,
    phase: Phase,
    at: At,
    /// Orders the writes in a list.
    since: u32,
}

/// The kinds of the driver's `ClaimRead`.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Optional,
    Needed,
    Alone,
}

struct ReadInFlight {
    start: u64,
    chunks: ChunkRange,
    kind: Kind,
    data: Option<Data>,
}

struct StoreInFlight {
    batch: Batch<Data>,
    at: usize,
    /// Its copies are forgotten, and the error is not told yet.
    failed: bool,
}

enum Job {
    Idle,
    Resubmit(ReleasedList, usize),
    Claim(TakenList, Current),
}

/// A write that a worker claims chunks for.
struct Current {
    write: Taken,
    chunks: ChunkRange,
    rest: ChunkRange,
    next: Next,
}

#[derive(Clone, Copy, PartialEq)]
enum Next {
    Look,
    Claim(ChunkRange, Kind),
    Release,
    Stall,
}

struct Worker {
    key: Key,
    job: Job,
}

/// A snapshot of the device.
struct Snapshot {
    at_take: Vec<u8>,
    status: Status,
    memory: Arc<CopyMemory>,
    cow: Cow<TakenList, Data>,
    lanes: Lanes,
    stalled: Vec<Key>,
    workers: Vec<Worker>,
    reads: Vec<ReadInFlight>,
    stores: Vec<StoreInFlight>,
    storage: Vec<u8>,
    /// Chunks of which a read of nothing else has failed.
    unreadable: Vec<u64>,
    shut: bool,
    closing: bool,
    closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Reading {
    New,
    Find,
    /// From the origin up to this chunk, and what was read.
    Origin(u64),
    OriginRead(u64),
    /// From this chunk of the storage.
    Stored(u64, usize),
    Done,
}

struct Reader {
    chunks: ChunkRange,
    next: u64,
    snapshot: usize,
    reading: Reading,
    data: Vec<u8>,
    piece: Vec<u8>,
}

/// All of it.
pub struct World {
    config: Config,
    geometry: Geometry,
    bdev: BdevFile,
    origin: Vec<u8>,
    writers: Vec<Writer>,
    readers: Vec<Reader>,
    snapshots: Vec<Snapshot>,
    /// The one that the filter knows.
    current: Option<usize>,
    no_memory: u8,
    errors: u8,
    breaks: u8,
    clock: u32,
    /// The promise that was broken first.
    pub fault: Option<Fault>,
}

fn number(key: Key) -> u8 {
    match key {
        Key::Shared => 0,
        Key::AsRoot => 1,
        Key::Group(Cgroup(group)) => 2 + group as u8,
    }
}

impl World {
    pub fn new(config: Config) -> Self {
        let writer = |(id, (start, end, group)): (usize, &(u64, u64, Option<usize>))| Writer {
            bio: Bio {
                id: id as u64,
                op: Op::Write,
                sector: start * SECTORS,
                sectors: (end - start) * SECTORS,
                cgroup: group.map(Cgroup),
            },
            chunks: ChunkRange {
                start: *start,
                end: *end,
            },
            phase: Phase::New,
            at: At::Nowhere,
            since: 0,
        };
        let reader = |(start, end): &(u64, u64)| Reader {
            chunks: ChunkRange {
                start: *start,
                end: *end,
            },
            next: *start,
            snapshot: 0,
            reading: Reading::New,
            data: Vec::new(),
            piece: Vec::new(),
        };
        Self {
            config,
            geometry: Geometry::new(SHIFT, config.chunks * SECTORS),
            bdev: BdevFile::new(0, config.chunks * SECTORS),
            origin: vec![0; config.chunks as usize],
            writers: config.writers.iter().enumerate().map(writer).collect(),
            readers: config.readers.iter().map(reader).collect(),
            snapshots: Vec::new(),
            current: None,
            no_memory: config.no_memory,
            errors: config.errors,
            breaks: config.breaks,
            clock: 0,
            fault: None,
        }
    }

    fn break_promise(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
    }

    /// Returns the steps that come by themselves sooner or later.
    pub fn progress(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        for (w, writer) in self.writers.iter().enumerate() {
            let w = w as u8;
            match writer.phase {
                Phase::Submitted => {
                    actions.push(Hook(w));
                    if self.current.is_some() && self.config.chunks > 1 {
                        actions.push(HookMore(w));
                    }
                }
                Phase::Prepared(_) => actions.push(HookClaim(w)),
                Phase::Passed(left) => {
                    let chunks = (0..8).filter(|chunk| left & 1 << chunk != 0);
                    actions.extend(chunks.map(|chunk| Write(w, chunk)));
                }
                _ => {}
            }
        }
        for (s, snapshot) in self.snapshots.iter().enumerate() {
            let s = s as u8;
            actions.extend((0..snapshot.workers.len()).map(|i| Work(s, i as u8)));
            for (i, read) in snapshot.reads.iter().enumerate() {
                actions.push(match read.data {
                    None => Read(s, i as u8),
                    Some(_) => ReadDone(s, i as u8),
                });
            }
            if snapshot.cow.unstored() > 0 && snapshot.stores.len() < STORES {
                actions.push(Store(s));
            }
            for (i, store) in snapshot.stores.iter().enumerate() {
                actions.push(match store.failed {
                    false => StoreDone(s, i as u8),
                    true => StoreFails(s, i as u8),
                });
            }
        }
        for (r, reader) in self.readers.iter().enumerate() {
            if !matches!(reader.reading, Reading::New | Reading::Done) {
                actions.push(Image(r as u8));
            }
        }
        actions
    }

    /// Returns all that can happen next.
    pub fn actions(&self) -> Vec<Action> {
        if self.fault.is_some() {
            return Vec::new();
        }
        let mut actions = self.progress();
        for (w, writer) in self.writers.iter().enumerate() {
            match writer.phase {
                Phase::New => actions.push(Submit(w as u8)),
                Phase::Submitted if self.no_memory > 0 => {
                    let passes = |s: usize| self.snapshots[s].status.may_release(writer.chunks);
                    if self.current.is_some_and(|s| !passes(s)) {
                        actions.push(HookNoMemory(w as u8));
                    }
                }
                _ => {}
            }
        }
        for (s, snapshot) in self.snapshots.iter().enumerate() {
            let s = s as u8;
            if self.no_memory > 0 {
                for (i, worker) in snapshot.workers.iter().enumerate() {
                    if let Job::Claim(_, current) = &worker.job {
                        if matches!(current.next, Next::Claim(..)) {
                            actions.push(WorkNoMemory(s, i as u8));
                        }
                    }
                }
            }
            if self.errors > 0 {
                let reads = snapshot.reads.iter().enumerate();
                let reads = reads.filter(|(_, read)| read.data.is_none());
                actions.extend(reads.map(|(i, _)| ReadFails(s, i as u8)));
                let stores = snapshot.stores.iter().enumerate();
                for (i, _) in stores.filter(|(_, store)| !store.failed) {
                    actions.push(StoreFails(s, i as u8));
                    actions.push(StoreNoSpace(s, i as u8));
                }
            }
            if snapshot.shut && self.current != Some(s as usize) && !snapshot.closing {
                actions.push(Close(s));
            }
        }
        // A barrier: nothing is in the filter or on its way to the origin.
        let in_filter = |writer: &Writer| matches!(writer.phase, Phase::Prepared(_));
        let busy = |writer: &Writer| matches!(writer.phase, Phase::Passed(_)) || in_filter(writer);
        match self.current {
            None if self.snapshots.len() < self.config.takes && !self.writers.iter().any(busy) => {
                actions.push(Take);
            }
            Some(current) => {
                let snapshot = &self.snapshots[current];
                if !snapshot.shut {
                    // Only what has something after it is worth it.
                    if self.snapshots.len() < self.config.takes || self.breaks > 0 {
                        actions.push(Shut);
                    }
                    if self.breaks > 0 && snapshot.status.error() == 0 {
                        actions.push(Break);
                        if snapshot.lanes.is_stalled() {
                            actions.push(Timeout);
                        }
                    }
                } else if !self.writers.iter().any(in_filter) {
                    actions.push(Detach);
                }
            }
            None => {}
        }
        for (r, reader) in self.readers.iter().enumerate() {
            if reader.reading == Reading::New && self.current.is_some() {
                actions.push(Image(r as u8));
            }
        }
        actions
    }

    /// Does a step that [`Self::actions`] has returned.
    pub fn step(&mut self, action: Action) {
        let ((), record) = bio::record(|| self.do_step(action));
        for (bio, outcome) in record {
            match outcome {
                bio::Outcome::Resubmitted => {
                    let writer = &mut self.writers[bio.id as usize];
                    writer.phase = Phase::Submitted;
                    writer.at = At::Nowhere;
                }
                _ => self.break_promise(Fault::Dropped),
            }
        }
        self.check();
    }

    fn do_step(&mut self, action: Action) {
        match action {
            Take => self.take(),
            Shut => {
                let snapshot = &mut self.snapshots[self.current.unwrap()];
                let _ = snapshot.status.fail(ESHUTDOWN);
                snapshot.shut = true;
            }
            Detach => self.current = None,
            Close(s) => {
                let snapshot = &mut self.snapshots[s as usize];
                snapshot.closing = true;
                snapshot.unstall();
            }
            Break => {
                self.breaks -= 1;
                let _ = self.snapshots[self.current.unwrap()].status.fail(EIO);
            }
            Timeout => {
                self.breaks -= 1;
                let snapshot = &mut self.snapshots[self.current.unwrap()];
                let _ = snapshot.status.fail(ETIMEDOUT);
                snapshot.unstall();
            }
            Submit(w) => self.writers[w as usize].phase = Phase::Submitted,
            Hook(w) => self.hook(w, false),
            HookMore(w) => self.hook(w, true),
            HookNoMemory(w) => {
                self.no_memory -= 1;
                self.hold(w, None);
            }
            HookClaim(w) => self.hook_claim(w),
            Write(w, chunk) => {
                let writer = &mut self.writers[w as usize];
                if let Phase::Passed(left) = &mut writer.phase {
                    self.origin[chunk as usize] = w + 1;
                    *left &= !(1 << chunk);
                    if *left == 0 {
                        writer.phase = Phase::Done;
                    }
                }
            }
            Work(s, i) => self.work(s, i, false),
            WorkNoMemory(s, i) => {
                self.no_memory -= 1;
                self.work(s, i, true);
            }
            Read(s, i) => {
                let read = &mut self.snapshots[s as usize].reads[i as usize];
                let chunks = read.chunks.start as usize..read.chunks.end as usize;
                read.data = Some(Rc::new(Content {
                    first: read.start,
                    chunks: self.origin[chunks].to_vec(),
                }));
            }
            ReadDone(s, i) => self.read_done(s, i, true),
            ReadFails(s, i) => {
                self.errors -= 1;
                self.read_done(s, i, false);
            }
            Store(s) => self.store(s),
            StoreDone(s, i) => {
                let snapshot = &mut self.snapshots[s as usize];
                let mut store = snapshot.stores.remove(i as usize);
                let data = store.batch.data().iter().flat_map(|data| &data.chunks);
                for (at, content) in data.enumerate() {
                    snapshot.storage[store.at + at] = *content;
                }
                let at = (store.at as u64) << SHIFT;
                let mut rooms = Rooms::new(store.batch.runs().len(), GFP_NOIO).unwrap();
                let cow = &mut snapshot.cow;
                loop {
                    match cow.stored(&mut store.batch, at, &mut rooms, drop).unwrap() {
                        Recorded::All => break,
                        Recorded::Some => {}
                        Recorded::NoMemory => rooms.allocate(GFP_NOIO).unwrap(),
                    }
                }
                snapshot.store_ended();
            }
            StoreNoSpace(s, i) => {
                let _ = self.snapshots[s as usize].status.fail(ENOSPC);
                self.store_fails(s, i);
            }
            StoreFails(s, i) => self.store_fails(s, i),
            Image(r) => self.image(r as usize),
        }
    }

    fn take(&mut self) {
        let nr_chunks = self.geometry.nr_chunks();
        let memory = CopyMemory::new(self.config.max_copies << SHIFT, 1);
        let memory = Arc::new(memory, GFP_KERNEL).unwrap();
        self.snapshots.push(Snapshot {
            at_take: self.origin.clone(),
            status: Status::new(nr_chunks, &Budget::new(usize::MAX).unwrap()).unwrap(),
            cow: Cow::new(self.geometry, memory.clone()).unwrap(),
            memory,
            lanes: Lanes::new().unwrap(),
            stalled: Vec::new(),
            workers: Vec::new(),
            reads: Vec::new(),
            stores: Vec::new(),
            storage: Vec::new(),
            unreadable: Vec::new(),
            shut: false,
            closing: false,
            closed: false,
        });
        self.current = Some(self.snapshots.len() - 1);
    }

    /// The write goes to the origin.
    fn pass(&mut self, w: u8) {
        let writer = &mut self.writers[w as usize];
        let chunks = writer.chunks.start..writer.chunks.end;
        writer.phase = Phase::Passed(chunks.map(|chunk| 1 << chunk).sum());
    }

    /// The filter takes the write: it waits for the claim that starts at `behind`, or for a worker.
    fn hold(&mut self, w: u8, behind: Option<u64>) {
        let s = self.current.unwrap();
        let writer = &mut self.writers[w as usize];
        let (write, verdict) = Taken::take(FilteredBio::new(OwnedBio::new(writer.bio.clone())));
        assert!(verdict.passed().is_none());
        writer.phase = Phase::Held;
        let snapshot = &mut self.snapshots[s];
        snapshot.cow.park();
        match behind {
            Some(start) => {
                self.clock += 1;
                writer.since = self.clock;
                writer.at = At::Behind(s as u8, start);
                snapshot.cow.claimed(start).unwrap().push(write);
            }
            None => self.push_taken(s, write),
        }
        self.snapshots[s].start_workers();
    }

    fn push_taken(&mut self, s: usize, write: Taken) {
        let key = write.cgroup().map_or(Key::AsRoot, Key::Group);
        self.clock += 1;
        let writer = &mut self.writers[write.id as usize];
        writer.since = self.clock;
        writer.at = At::Lane(s as u8, number(key));
        self.snapshots[s].lanes.push_taken(write);
    }

    fn hook(&mut self, w: u8, more: bool) {
        let chunks = self.writers[w as usize].chunks;
        let Some(current) = self.current else {
            return self.pass(w);
        };
        let snapshot = &self.snapshots[current];
        if snapshot.status.may_release(chunks) {
            return self.pass(w);
        }
        let run = match snapshot.cow.look_at(&snapshot.status, chunks) {
            Look::Passes => return self.pass(w),
            Look::Waits(found) => return self.hold(w, Some(found.start)),
            Look::Claims(run) => run,
        };
        if chunks.end > run.end || !snapshot.cow.has_room(run, 0) {
            return self.hold(w, None);
        }
        let run = match more {
            true => self.free_around(current, run),
            false => run,
        };
        self.writers[w as usize].phase = Phase::Prepared(run);
    }

    /// The free chunks around those of `run`.
    fn free_around(&self, s: usize, run: ChunkRange) -> ChunkRange {
        let Snapshot { cow, status, .. } = &self.snapshots[s];
        let mut rest = ChunkRange {
            start: 0,
            end: self.config.chunks,
        };
        loop {
            match cow.unsaved(status, rest) {
                Some((start, Piece::Hole(end))) if end > run.start => {
                    return ChunkRange { start, end };
                }
                Some((_, Piece::Hole(end))) => rest.start = end,
                Some((_, Piece::Extent(found))) => rest.start = found.end,
                None => return run,
            }
        }
    }

    fn hook_claim(&mut self, w: u8) {
        let writer = &mut self.writers[w as usize];
        let Phase::Prepared(run) = writer.phase else {
            return;
        };
        let s = self.current.unwrap();
        if self.snapshots[s].claim(run, Kind::Optional) {
            self.hold(w, Some(run.start));
        } else {
            writer.phase = Phase::Submitted;
        }
    }

    fn work(&mut self, s: u8, i: u8, no_memory: bool) {
        let (s, i) = (s as usize, i as usize);
        let snapshot = &mut self.snapshots[s];
        let key = snapshot.workers[i].key;
        let job = std::mem::replace(&mut snapshot.workers[i].job, Job::Idle);
        let job = match job {
            Job::Idle => match snapshot.lanes.next(key) {
                Some(Step::Resubmit(writes)) => {
                    self.hand_over(s, i, key, true);
                    Job::Resubmit(writes, 0)
                }
                Some(Step::Claim(writes)) => {
                    self.hand_over(s, i, key, false);
                    self.claim_next(writes)
                }
                None => {
                    snapshot.workers.remove(i);
                    return self.renumber(s, i);
                }
            },
            Job::Resubmit(mut writes, count) => match writes.pop() {
                Some(write) => {
                    write.resubmit();
                    Job::Resubmit(writes, count + 1)
                }
                None => {
                    snapshot.cow.unpark(count);
                    Job::Idle
                }
            },
            Job::Claim(writes, current) => self.claim_for(s, key, writes, current, no_memory),
        };
        self.snapshots[s].workers[i].job = job;
    }

    /// A worker has got all writes of its lane that are ready, or all others.
    fn hand_over(&mut self, s: usize, i: usize, key: Key, ready: bool) {
        for writer in &mut self.writers {
            let is_ready = writer.since & READY != 0;
            if writer.at == At::Lane(s as u8, number(key)) && is_ready == ready {
                writer.at = At::Worker(s as u8, i as u8);
            }
        }
    }

    /// A worker has ended, so those after it have other numbers.
    fn renumber(&mut self, s: usize, ended: usize) {
        for writer in &mut self.writers {
            match &mut writer.at {
                At::Worker(of, i) if *of as usize == s && *i as usize > ended => *i -= 1,
                _ => {}
            }
        }
    }

    fn claim_next(&self, mut writes: TakenList) -> Job {
        let Some(write) = writes.pop() else {
            return Job::Idle;
        };
        let chunks = self.writers[write.id as usize].chunks;
        let current = Current {
            write,
            chunks,
            rest: chunks,
            next: Next::Look,
        };
        Job::Claim(writes, current)
    }

    /// The next step of `Area::claim_for`, and what follows it in `Area::claim_all`.
    fn claim_for(
        &mut self,
        s: usize,
        key: Key,
        mut writes: TakenList,
        mut current: Current,
        no_memory: bool,
    ) -> Job {
        let snapshot = &mut self.snapshots[s];
        match current.next {
            Next::Look => {
                current.next = match snapshot.cow.look_at(&snapshot.status, current.rest) {
                    Look::Passes => Next::Release,
                    Look::Waits(found) => {
                        current.rest.start = found.end.min(current.rest.end);
                        Next::Look
                    }
                    Look::Claims(run) if !snapshot.cow.has_room(run, 0) => Next::Release,
                    Look::Claims(run) if snapshot.cow.is_suspect(run.start) => {
                        Next::Claim(run, Kind::Alone)
                    }
                    Look::Claims(run) => Next::Claim(run, Kind::Needed),
                };
            }
            Next::Claim(mut run, kind) => {
                current.next = Next::Look;
                if no_memory {
                    run.end = run.start + 1;
                }
                if no_memory && snapshot.cow.counts().copies > 0 {
                    current.next = Next::Release;
                } else if snapshot.claim(run, kind) {
                    current.rest.start = run.end;
                }
            }
            Next::Release => {
                match current
                    .write
                    .release(&self.bdev, self.geometry, &snapshot.status)
                {
                    Ok(write) => {
                        write.resubmit();
                        snapshot.cow.unpark(1);
                        return self.claim_next(writes);
                    }
                    Err(write) => match snapshot.cow.look_at(&snapshot.status, current.chunks) {
                        Look::Waits(found) => {
                            self.clock += 1;
                            let writer = &mut self.writers[write.id as usize];
                            writer.since = self.clock;
                            writer.at = At::Behind(s as u8, found.start);
                            snapshot.cow.claimed(found.start).unwrap().push(write);
                            return self.claim_next(writes);
                        }
                        _ => {
                            current.write = write;
                            current.next = Next::Stall;
                        }
                    },
                }
            }
            Next::Stall => {
                writes.push_front(current.write);
                if snapshot.cow.counts().copies == 0 {
                    return self.claim_next(writes);
                }
                snapshot.lanes.stall(key, writes);
                snapshot.stalled.push(key);
                for writer in &mut self.writers {
                    if let At::Worker(of, i) = writer.at {
                        if of as usize == s && snapshot.workers[i as usize].key == key {
                            writer.at = At::Lane(s as u8, number(key));
                        }
                    }
                }
                return Job::Idle;
            }
        }
        if current.next == Next::Look && current.rest.start == current.rest.end {
            current.next = Next::Release;
        }
        Job::Claim(writes, current)
    }

    /// What `Area::copied` and `Area::not_copied` do.
    fn read_done(&mut self, s: u8, i: u8, ok: bool) {
        let s = s as usize;
        let snapshot = &mut self.snapshots[s];
        let read = snapshot.reads.remove(i as usize);
        let garbage = Content {
            first: read.start,
            chunks: vec![u8::MAX; read.chunks.len() as usize],
        };
        let data = read.data.clone().unwrap_or_else(|| Rc::new(garbage));
        if !ok && read.kind == Kind::Alone {
            // What `Area::unreadable` does.
            if read.chunks.len() == 1 {
                snapshot.unreadable.push(read.start);
            }
            snapshot.cow.lose(&snapshot.status, read.start).unwrap();
        } else if !ok {
            let needed = read.kind == Kind::Needed;
            let waiting = snapshot.cow.not_read(read.start, needed);
            let mut waiting = waiting.expect("what is claimed is read once");
            while let Some(write) = waiting.pop() {
                self.push_taken(s, write);
            }
            return self.snapshots[s].unstall();
        }
        let saved = snapshot.cow.saved(&snapshot.status, read.start, data);
        let (_, mut waiting) = saved.expect("what is claimed is read once");
        while let Some(write) = waiting.pop() {
            let snapshot = &mut self.snapshots[s];
            match write.release(&self.bdev, self.geometry, &snapshot.status) {
                Ok(write) => {
                    let key = write.cgroup().map_or(Key::AsRoot, Key::Group);
                    self.clock += 1;
                    let writer = &mut self.writers[write.id as usize];
                    writer.since = self.clock | READY;
                    writer.at = At::Lane(s as u8, number(key));
                    snapshot.lanes.push_ready(write);
                }
                Err(write) => self.push_taken(s, write),
            }
        }
        self.snapshots[s].start_workers();
    }

    /// What `Area::store_batch` begins with.
    fn store(&mut self, s: u8) {
        let snapshot = &mut self.snapshots[s as usize];
        if snapshot.status.error() != 0 {
            return snapshot.forget();
        }
        let mut batch = Batch::new(snapshot.cow.unstored(), GFP_NOIO).unwrap();
        snapshot.cow.take(&mut batch, 2 << SHIFT);
        let at = snapshot.storage.len();
        snapshot
            .storage
            .resize(at + (batch.len() >> SHIFT), u8::MAX);
        snapshot.stores.push(StoreInFlight {
            batch,
            at,
            failed: false,
        });
    }

    fn store_fails(&mut self, s: u8, i: u8) {
        let snapshot = &mut self.snapshots[s as usize];
        if snapshot.stores[i as usize].failed {
            snapshot.stores.remove(i as usize);
            let _ = snapshot.status.fail(EIO);
            return snapshot.forget();
        }
        self.errors -= 1;
        let store = &mut snapshot.stores[i as usize];
        snapshot.cow.not_stored(&store.batch);
        store.failed = true;
    }

    fn image(&mut self, r: usize) {
        let reader = &mut self.readers[r];
        if reader.reading == Reading::New {
            reader.snapshot = self.current.unwrap();
        }
        let snapshot = &self.snapshots[reader.snapshot];
        let rest = ChunkRange {
            start: reader.next,
            ..reader.chunks
        };
        let piece = |end: u64| rest.start as usize..end as usize;
        reader.reading = match reader.reading {
            Reading::Done => Reading::Done,
            Reading::New if snapshot.status.error() != 0 => Reading::Done,
            Reading::New => Reading::Find,
            Reading::Find if rest.start == rest.end => {
                let chunks = reader.chunks.start as usize..reader.chunks.end as usize;
                if snapshot.status.error() == 0 && reader.data != snapshot.at_take[chunks] {
                    self.fault.get_or_insert(Fault::WrongImage);
                }
                Reading::Done
            }
            Reading::Find => match snapshot.find(rest) {
                Err(_) => Reading::Done,
                Ok((end, Found::Origin)) => Reading::Origin(end),
                Ok((end, Found::Memory(data, first))) => {
                    let from = (rest.start - first) as usize;
                    let to = from + (end - rest.start) as usize;
                    reader.data.extend(&data.chunks[from..to]);
                    reader.next = end;
                    Reading::Find
                }
                Ok((end, Found::Stored(at))) => Reading::Stored(end, (at >> SHIFT) as usize),
            },
            Reading::Origin(end) => {
                reader.piece = self.origin[piece(end)].to_vec();
                Reading::OriginRead(end)
            }
            Reading::OriginRead(end) => {
                if !snapshot.status.is_overtaken(ChunkRange { end, ..rest }) {
                    reader.data.append(&mut reader.piece);
                    reader.next = end;
                }
                reader.piece.clear();
                Reading::Find
            }
            Reading::Stored(end, at) => {
                let len = (end - rest.start) as usize;
                reader.data.extend(&snapshot.storage[at..at + len]);
                reader.next = end;
                Reading::Find
            }
        };
    }

    /// Finds promises that are broken.
    fn check(&mut self) {
        let reads = |s: usize| {
            let of = |reader: &&Reader| {
                reader.snapshot == s && !matches!(reader.reading, Reading::New | Reading::Done)
            };
            self.readers.iter().filter(of).count()
        };
        let readers: Vec<usize> = (0..self.snapshots.len()).map(reads).collect();
        for (s, readers) in readers.into_iter().enumerate() {
            let snapshot = &mut self.snapshots[s];
            let counts = snapshot.cow.counts();
            let is_idle = snapshot.cow.is_idle();
            if snapshot.closing && is_idle && readers == 0 {
                snapshot.closed = true;
            }
            let lost = snapshot.status.error() == 0 && !snapshot.has_all(&self.origin);
            let too_many = counts.copies > 1 && counts.copy_bytes > snapshot.memory.most();
            let storing = snapshot.stores.iter().filter(|store| !store.failed).count();
            let work = snapshot.reads.len() + storing + snapshot.cow.unstored();
            let extents = snapshot.cow.stored_map().count() as u64;
            let miscounted =
                is_idle && work > 0 || extents > self.config.chunks || snapshot.is_miscounted();
            for (fault, found) in [
                (Fault::Lost, lost),
                (Fault::TooMany, too_many),
                (Fault::Miscounted, miscounted),
            ] {
                if found {
                    self.break_promise(fault);
                }
            }
        }
        if self.progress().is_empty() {
            let waits = |writer: &Writer| !matches!(writer.phase, Phase::New | Phase::Done);
            let busy = |snapshot: &Snapshot| {
                !snapshot.cow.is_idle() || snapshot.closing && !snapshot.closed
            };
            if self.writers.iter().any(waits) || self.snapshots.iter().any(busy) {
                self.break_promise(Fault::Stuck);
            }
        }
    }

    /// Returns all that the future depends on.
    pub fn digest(&self) -> Vec<u8> {
        let mut out = self.origin.clone();
        let mut order: Vec<usize> = (0..self.writers.len()).collect();
        order.sort_by_key(|w| self.writers[*w].since & !READY);
        out.extend(order.iter().map(|w| *w as u8));
        for writer in &self.writers {
            match writer.phase {
                Phase::New => out.push(0),
                Phase::Submitted => out.push(1),
                Phase::Prepared(run) => out.extend([2, run.start as u8, run.end as u8]),
                Phase::Held => out.push(3),
                Phase::Passed(left) => out.extend([4, left]),
                Phase::Done => out.push(5),
            }
            match writer.at {
                At::Nowhere => out.push(0),
                At::Behind(s, start) => out.extend([1, s, start as u8]),
                At::Lane(s, key) => out.extend([2, s, key, (writer.since & READY != 0) as u8]),
                At::Worker(s, i) => out.extend([3, s, i]),
            }
        }
        for reader in &self.readers {
            out.extend([reader.snapshot as u8, reader.next as u8]);
            match reader.reading {
                Reading::New => out.push(0),
                Reading::Find => out.push(1),
                Reading::Origin(end) => out.extend([2, end as u8]),
                Reading::OriginRead(end) => out.extend([3, end as u8]),
                Reading::Stored(end, at) => out.extend([4, end as u8, at as u8]),
                Reading::Done => out.push(5),
            }
            out.push(reader.data.len() as u8);
            out.extend(&reader.data);
            out.extend(&reader.piece);
        }
        out.extend([
            self.current.map_or(9, |current| current as u8),
            self.no_memory,
            self.errors,
            self.breaks,
            self.fault.map_or(9, |fault| fault as u8),
        ]);
        for snapshot in &self.snapshots {
            snapshot.digest(self.config.chunks, &mut out);
        }
        out
    }
}

impl Snapshot {
    fn start_workers(&mut self) {
        while let Some(key) = self.lanes.start() {
            let job = Job::Idle;
            self.workers.push(Worker { key, job });
        }
    }

    fn unstall(&mut self) {
        self.lanes.unstall();
        self.stalled.clear();
        self.start_workers();
    }

    fn store_ended(&mut self) {
        if self.lanes.is_stalled() {
            self.unstall();
        }
    }

    /// The image is broken.
    fn forget(&mut self) {
        while self.cow.forget_unstored().is_some() {}
        self.store_ended();
    }

    fn claim(&mut self, chunks: ChunkRange, kind: Kind) -> bool {
        let memory = ClaimMemory::new(GFP_NOIO).unwrap();
        let new = NewClaim::new(memory, &self.status, chunks, GFP_NOIO).unwrap();
        let claimed = self.cow.claim(&self.status, new, chunks, TakenList::new());
        if claimed {
            self.reads.push(ReadInFlight {
                start: chunks.start,
                chunks,
                kind,
                data: None,
            });
        }
        claimed
    }

    /// What `Area::find` does.
    fn find(&self, chunks: ChunkRange) -> Result<(u64, Found<Data>)> {
        match self.status.on_origin(chunks) {
            Some(end) => Ok((end, Found::Origin)),
            None => self.cow.find(&self.status, chunks),
        }
    }

    /// Returns whether the old data of all chunks is where the machine says.
    fn has_all(&self, origin: &[u8]) -> bool {
        let failing = self.stores.iter().any(|store| store.failed);
        (0..self.at_take.len()).all(|chunk| {
            let chunks = ChunkRange {
                start: chunk as u64,
                end: chunk as u64 + 1,
            };
            let content = match self.find(chunks) {
                Ok((_, Found::Origin)) => origin[chunk],
                Ok((_, Found::Memory(data, first))) => data.chunks[chunk - first as usize],
                Ok((_, Found::Stored(at))) => self.storage[(at >> SHIFT) as usize],
                Err(_) => {
                    let lost = self.status.first_lost(chunks).is_some();
                    return failing || lost && self.unreadable.contains(&chunks.start);
                }
            };
            content == self.at_take[chunk]
        })
    }

    /// Returns whether the counts are not those of what there is.
    fn is_miscounted(&self) -> bool {
        let counts = self.cow.counts();
        let of = |chunks: ChunkRange| chunks.len() as usize;
        let reading: usize = self.reads.iter().map(|read| of(read.chunks)).sum();
        let stores = self.stores.iter().filter(|store| !store.failed);
        let storing: usize = stores.map(|store| store.batch.len() >> SHIFT).sum();
        let unstored = counts.unstored_bytes >> SHIFT;
        let left = self.memory.most().saturating_sub(counts.copy_bytes);
        !self.memory.has(counts.copy_bytes, left)
            || counts.claimed_bytes >> SHIFT != reading
            || counts.copy_bytes >> SHIFT != reading + unstored + storing
            || (self.cow.unstored() == 0) != (unstored == 0)
            || self.cow.has_claims() == self.reads.is_empty()
    }

    fn digest(&self, nr_chunks: u64, out: &mut Vec<u8>) {
        out.extend(&self.at_take);
        out.extend(self.status.error().to_le_bytes());
        out.extend([self.shut as u8, self.closing as u8, self.closed as u8]);
        for start in 0..nr_chunks {
            let chunks = ChunkRange {
                start,
                end: start + 1,
            };
            match self.cow.unsaved(&self.status, chunks) {
                None => out.push(0),
                Some((_, Piece::Hole(_))) => out.push(1),
                Some((_, Piece::Extent(found))) => {
                    out.extend([2, found.start as u8, found.end as u8]);
                }
            }
            out.push(self.status.first_lost(chunks).is_some() as u8);
            out.push(self.cow.is_suspect(start) as u8);
            match self.cow.find(&self.status, chunks) {
                Err(_) | Ok((_, Found::Origin)) => out.push(0),
                Ok((_, Found::Memory(data, first))) => {
                    out.extend([1, first as u8]);
                    out.extend(&data.chunks);
                }
                Ok((_, Found::Stored(at))) => out.extend([2, (at >> SHIFT) as u8]),
            }
        }
        let counts = self.cow.counts();
        out.extend([
            counts.copies as u8,
            (counts.copy_bytes >> SHIFT) as u8,
            (counts.claimed_bytes >> SHIFT) as u8,
            (counts.unstored_bytes >> SHIFT) as u8,
            counts.parked as u8,
            self.cow.stored_map().count() as u8,
            self.cow.unstored() as u8,
        ]);
        let free = self.cow.found_free();
        out.extend([free.start as u8, free.end as u8]);
        out.extend((0..nr_chunks).map(|chunk| self.unreadable.contains(&chunk) as u8));
        out.push(self.storage.len() as u8);
        out.extend(&self.storage);
        out.push(self.reads.len() as u8);
        for read in &self.reads {
            out.extend([read.start as u8, read.chunks.end as u8, read.kind as u8]);
            out.push(read.data.is_some() as u8);
            out.extend(read.data.iter().flat_map(|data| &data.chunks));
        }
        out.push(self.stores.len() as u8);
        for store in &self.stores {
            out.extend([store.at as u8, store.failed as u8]);
            for data in store.batch.data() {
                out.extend([data.first as u8, data.chunks.len() as u8]);
                out.extend(&data.chunks);
            }
        }
        out.push(self.stalled.len() as u8);
        out.extend(self.stalled.iter().map(|key| number(*key)));
        for worker in &self.workers {
            out.push(number(worker.key));
            match &worker.job {
                Job::Idle => out.push(0),
                Job::Resubmit(_, count) => out.extend([1, *count as u8]),
                Job::Claim(_, current) => {
                    out.extend([2, current.write.id as u8, current.rest.start as u8]);
                    match current.next {
                        Next::Look => out.push(0),
                        Next::Claim(run, kind) => {
                            out.extend([1, run.start as u8, run.end as u8, kind as u8]);
                        }
                        Next::Release => out.push(2),
                        Next::Stall => out.push(3),
                    }
                }
            }
        }
    }
}
