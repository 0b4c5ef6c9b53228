// SPDX-License-Identifier: GPL-2.0-only

//! Taken writes of an area, by control group.
//!
//! Submitting a bio can block the task until the control group of the bio may go on, for example
//! with iocost. So each group has a [`Lane`] with a worker of its own.

use crate::taken::{
    Released,
    ReleasedList,
    Taken,
    TakenList, //
};
use kernel::{
    block::bio::{
        Bio,
        Cgroup, //
    },
    prelude::*, //
};

/// Identifies a lane.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// For groups for whose lanes there is no memory.
    Shared,
    /// For bios that are never delayed for their groups.
    AsRoot,
    Group(Cgroup),
}

/// The writes of one control group.
struct Lane {
    key: Key,
    /// Writes whose chunks are to be claimed.
    taken: TakenList,
    /// Writes that can be resubmitted.
    ready: ReleasedList,
    /// A worker serves this lane.
    running: bool,
    /// `taken` has to wait until copies are stored.
    stalled: bool,
}

impl Lane {
    fn new(key: Key) -> Self {
        Self {
            key,
            taken: TakenList::new(),
            ready: ReleasedList::new(),
            running: false,
            stalled: false,
        }
    }

    fn has_work(&self) -> bool {
        !self.ready.is_empty() || !self.stalled && !self.taken.is_empty()
    }
}

/// What the worker of a lane does next.
pub(crate) enum Step {
    Resubmit(ReleasedList),
    Claim(TakenList),
}

/// The lanes of an area. All methods can be called in any context.
///
/// # Invariants
///
/// The first one is [`Key::Shared`], the second one [`Key::AsRoot`].
pub(crate) struct Lanes {
    list: KVec<Lane>,
    /// One of them is.
    stalled: bool,
}

impl Lanes {
    pub(crate) fn new() -> Result<Self> {
        let mut list = KVec::with_capacity(4, GFP_KERNEL)?;
        list.push(Lane::new(Key::Shared), GFP_KERNEL)?;
        list.push(Lane::new(Key::AsRoot), GFP_KERNEL)?;
        // INVARIANT: They are in this order.
        Ok(Self {
            list,
            stalled: false,
        })
    }

    fn find(&mut self, key: Key) -> Option<&mut Lane> {
        self.list.iter_mut().find(|lane| lane.key == key)
    }

    /// The lane for a bio, a new one if its group has none.
    fn of(&mut self, bio: &Bio) -> &mut Lane {
        let key = bio.cgroup().map_or(Key::AsRoot, Key::Group);
        let found = self.list.iter().position(|lane| lane.key == key);
        let at = found.unwrap_or_else(|| match self.list.push(Lane::new(key), GFP_NOWAIT) {
            Ok(()) => self.list.len() - 1,
            Err(_) => 0,
        });
        &mut self.list[at]
    }

    /// Adds a write whose chunks are to be claimed.
    pub(crate) fn push_taken(&mut self, write: Taken) {
        self.of(&write).taken.push(write);
    }

    /// Adds a write that can be resubmitted.
    pub(crate) fn push_ready(&mut self, write: Released) {
        self.of(&write).ready.push(write);
    }

    /// Puts writes of the lane back, ahead of the others, until copies are stored.
    pub(crate) fn stall(&mut self, key: Key, mut writes: TakenList) {
        if let Some(lane) = self.find(key) {
            writes.append(&mut lane.taken);
            lane.taken = writes;
            lane.stalled = true;
            self.stalled = true;
        }
    }

    /// Whether a lane waits until copies are stored.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// There is room for copies again.
    pub(crate) fn unstall(&mut self) {
        self.list.iter_mut().for_each(|lane| lane.stalled = false);
        self.stalled = false;
    }

    /// A lane that has work and no worker. The caller starts one, or calls [`Self::not_started`].
    pub(crate) fn start(&mut self) -> Option<Key> {
        let lane = self
            .list
            .iter_mut()
            .find(|lane| !lane.running && lane.has_work())?;
        lane.running = true;
        Some(lane.key)
    }

    pub(crate) fn not_started(&mut self, key: Key) {
        if let Some(lane) = self.find(key) {
            lane.running = false;
        }
    }

    /// The next step of the lane's worker, which ends if there is none.
    pub(crate) fn next(&mut self, key: Key) -> Option<Step> {
        let lane = self.find(key)?;
        if !lane.ready.is_empty() {
            return Some(Step::Resubmit(lane.ready.take()));
        }
        if lane.has_work() {
            return Some(Step::Claim(lane.taken.take()));
        }
        lane.running = false;
        if matches!(key, Key::Group(_)) && lane.taken.is_empty() {
            self.list.retain(|lane| lane.key != key);
        }
        None
    }
}
