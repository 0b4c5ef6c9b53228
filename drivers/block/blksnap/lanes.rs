// SPDX-License-Identifier: GPL-2.0-only

//! Taken writes of an area, by control group.
//!
//! Submitting a bio can block the task until the control group of the bio may go on, for example
//! with iocost. So each group has a [`Lane`] with a worker of its own, and a share of the memory
//! for reads in flight: neither can a slow group delay another one.

use kernel::{
    block::bio::{
        BioList,
        Cgroup,
        OwnedBio, //
    },
    prelude::*, //
};

/// Identifies a lane. `None` is the shared one, which takes in groups for whose lanes there is no
/// memory.
pub(crate) type Key = Option<Cgroup>;

/// What an area has of one control group.
struct Lane {
    key: Key,
    /// Writes whose chunks are to be claimed.
    taken: BioList,
    /// Writes that can be resubmitted.
    ready: BioList,
    /// The bytes that are being read on behalf of the group.
    reading: usize,
    /// A worker serves this lane.
    running: bool,
    /// `taken` has to wait until a copy is read or stored.
    stalled: bool,
}

impl Lane {
    fn new(key: Key) -> Self {
        Self {
            key,
            taken: BioList::new(),
            ready: BioList::new(),
            reading: 0,
            running: false,
            stalled: false,
        }
    }

    fn has_work(&self) -> bool {
        !self.ready.is_empty() || !self.stalled && !self.taken.is_empty()
    }

    fn is_unused(&self) -> bool {
        self.ready.is_empty() && self.taken.is_empty() && self.reading == 0 && !self.running
    }
}

/// What the worker of a lane does next.
pub(crate) enum Step {
    Resubmit(BioList),
    Claim(BioList),
}

/// The lanes of an area. All methods can be called in any context.
///
/// # Invariants
///
/// The first lane is the shared one.
pub(crate) struct Lanes(KVec<Lane>);

impl Lanes {
    pub(crate) fn new() -> Result<Self> {
        let mut lanes = KVec::with_capacity(4, GFP_KERNEL)?;
        lanes.push(Lane::new(None), GFP_KERNEL)?;
        // INVARIANT: It is the only one.
        Ok(Self(lanes))
    }

    fn find(&mut self, key: Key) -> Option<&mut Lane> {
        self.0.iter_mut().find(|lane| lane.key == key)
    }

    /// The lane of a group, a new one if there is none.
    fn of(&mut self, group: Cgroup) -> &mut Lane {
        let key = Some(group);
        let found = self.0.iter().position(|lane| lane.key == key);
        let at = found.unwrap_or_else(|| match self.0.push(Lane::new(key), GFP_NOWAIT) {
            Ok(()) => self.0.len() - 1,
            Err(_) => 0,
        });
        &mut self.0[at]
    }

    fn remove_if_unused(&mut self, key: Key) {
        if key.is_some() {
            self.0.retain(|lane| lane.key != key || !lane.is_unused());
        }
    }

    /// Adds a write whose chunks are to be claimed.
    pub(crate) fn push_taken(&mut self, bio: OwnedBio) {
        self.of(bio.cgroup()).taken.push(bio);
    }

    /// Adds a write that can be resubmitted.
    pub(crate) fn push_ready(&mut self, bio: OwnedBio) {
        self.of(bio.cgroup()).ready.push(bio);
    }

    /// Puts writes of the lane back, ahead of the others, until a copy is read or stored.
    pub(crate) fn stall(&mut self, key: Key, mut bios: BioList) {
        if let Some(lane) = self.find(key) {
            bios.append(&mut lane.taken);
            lane.taken = bios;
            lane.stalled = true;
        }
    }

    /// There is room for copies again.
    pub(crate) fn unstall(&mut self) {
        self.0.iter_mut().for_each(|lane| lane.stalled = false);
    }

    /// The bytes that are being read on behalf of a group.
    pub(crate) fn reading(&self, group: Cgroup) -> usize {
        let lane = self.0.iter().find(|lane| lane.key == Some(group));
        lane.map_or(0, |lane| lane.reading)
    }

    /// Counts a read on behalf of a group. Returns the lane for [`Self::end_read`].
    pub(crate) fn begin_read(&mut self, group: Cgroup, bytes: usize) -> Key {
        let lane = self.of(group);
        lane.reading += bytes;
        lane.key
    }

    /// The read is done.
    pub(crate) fn end_read(&mut self, key: Key, bytes: usize) {
        if let Some(lane) = self.find(key) {
            lane.reading -= bytes;
            lane.stalled = false;
            self.remove_if_unused(key);
        }
    }

    /// A lane that has work and no worker. The caller starts one, or calls [`Self::not_started`].
    pub(crate) fn start(&mut self) -> Option<Key> {
        let lane = self
            .0
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
        self.remove_if_unused(key);
        None
    }
}
