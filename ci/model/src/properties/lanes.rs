// SPDX-License-Identifier: GPL-2.0-only

use super::{chunks, config};
use crate::{
    budget::Budget,
    chunk::Geometry,
    lanes::{Key, Lanes, Step},
    status::Status,
    taken::{Taken, TakenList},
};
use kernel::{
    alloc::fail_after,
    block::{
        bdev::BdevFile,
        bio::{resubmitted, Bio, Cgroup, OwnedBio},
        filter::FilteredBio,
    },
    prelude::*,
};
use proptest::{collection::vec, prelude::*};
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Action {
    /// A write of a group, or of none, comes; there may be no memory for its lane.
    Write(Option<usize>, bool),
    /// Starts workers for lanes with work.
    Start,
    /// Starting one fails.
    NotStarted,
    /// One of the workers makes a step. It claims only some writes, and stalls with the others.
    Work(prop::sample::Index, usize),
    Unstall,
}

fn action() -> impl Strategy<Value = Action> {
    let group = prop::option::of(0..3usize);
    let work = (
        any::<prop::sample::Index>(),
        prop_oneof![0..3usize, Just(99)],
    );
    prop_oneof![
        4 => (group, any::<bool>()).prop_map(|(group, short)| Action::Write(group, short)),
        2 => Just(Action::Start),
        1 => Just(Action::NotStarted),
        4 => work.prop_map(|(worker, some)| Action::Work(worker, some)),
        1 => Just(Action::Unstall),
    ]
}

/// The lanes, and those with a worker.
struct World {
    lanes: Lanes,
    /// With the writes that the worker has to claim.
    running: Vec<(Key, TakenList)>,
    origin: BdevFile,
    geometry: Geometry,
    status: Status,
}

impl World {
    fn new() -> Self {
        let geometry = Geometry::new(12, 8);
        let status = Status::new(1, &Budget::new(0).unwrap()).unwrap();
        let leaves = status.saved().prepare(chunks(0, 1), GFP_KERNEL).unwrap();
        status.saved().reserve(leaves);
        status.saved().set(chunks(0, 1));
        Self {
            lanes: Lanes::new().unwrap(),
            running: Vec::new(),
            origin: BdevFile::new(0, 8),
            geometry,
            status,
        }
    }

    fn write(&mut self, id: u64, cgroup: Option<Cgroup>) {
        let mut bio = Bio::write(id, 0, 8);
        bio.cgroup = cgroup;
        let (write, verdict) = Taken::take(FilteredBio::new(OwnedBio::new(bio)));
        assert!(verdict.passed().is_none());
        self.lanes.push_taken(write);
    }

    fn start(&mut self) {
        while let Some(key) = self.lanes.start() {
            assert!(self.running.iter().all(|(other, _)| *other != key));
            self.running.push((key, TakenList::new()));
        }
    }

    /// Makes a step of a worker, which claims at most `some` writes.
    fn work(&mut self, worker: usize, some: usize) {
        let (key, ref mut list) = self.running[worker];
        if !list.is_empty() {
            for _ in 0..some {
                let Some(write) = list.pop() else {
                    return;
                };
                match key {
                    Key::Shared => {}
                    Key::AsRoot => assert_eq!(write.cgroup(), None),
                    Key::Group(group) => assert_eq!(write.cgroup(), Some(group)),
                }
                let released = write.release(&self.origin, self.geometry, &self.status);
                self.lanes.push_ready(released.ok().unwrap());
            }
            if !list.is_empty() {
                self.lanes.stall(key, list.take());
                assert!(self.lanes.is_stalled());
            }
            return;
        }
        match self.lanes.next(key) {
            Some(Step::Resubmit(mut list)) => {
                while let Some(write) = list.pop() {
                    write.resubmit();
                }
            }
            Some(Step::Claim(claim)) => *list = claim,
            None => {
                self.running.remove(worker);
            }
        }
    }

    fn finish(&mut self) {
        self.lanes.unstall();
        loop {
            self.start();
            if self.running.is_empty() {
                return;
            }
            self.work(0, usize::MAX);
        }
    }
}

proptest! {
    #![proptest_config(config())]

    /// Each write is resubmitted once, and those of a group in order, if there was memory.
    #[test]
    fn no_write_is_lost(actions in vec(action(), 1..80), can_be_short: bool) {
        let mut groups = BTreeMap::<Option<Cgroup>, Vec<u64>>::new();
        let mut count = 0;
        let done = resubmitted(|| {
            let mut world = World::new();
            for action in actions {
                match action {
                    Action::Write(group, short) => {
                        let group = group.map(Cgroup);
                        groups.entry(group).or_default().push(count);
                        let _failing = (short && can_be_short).then(|| fail_after(0));
                        world.write(count, group);
                        count += 1;
                    }
                    Action::Start => world.start(),
                    Action::NotStarted => {
                        if let Some(key) = world.lanes.start() {
                            world.lanes.not_started(key);
                        }
                    }
                    Action::Work(worker, some) => {
                        if !world.running.is_empty() {
                            world.work(worker.index(world.running.len()), some);
                        }
                    }
                    Action::Unstall => {
                        world.lanes.unstall();
                        assert!(!world.lanes.is_stalled());
                    }
                }
            }
            world.finish();
        });
        let mut all = done.clone();
        all.sort_unstable();
        prop_assert_eq!(all, (0..count).collect::<Vec<_>>());
        if !can_be_short {
            for group in groups.values() {
                let order: Vec<_> = done.iter().filter(|id| group.contains(id)).copied().collect();
                prop_assert_eq!(&order, group);
            }
        }
    }
}
