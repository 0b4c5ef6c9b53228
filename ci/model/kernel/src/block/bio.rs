// SPDX-License-Identifier: GPL-2.0-only

//! Bios without data, and a record of what has become of them.

use super::SECTOR_SHIFT;
use crate::error::Result;
use core::{cell::RefCell, mem::take, ops::Deref};
use std::collections::VecDeque;

/// What a [`Bio`] asks the device to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Read sectors.
    Read,
    /// Write sectors.
    Write,
    /// Discard sectors.
    Discard,
    /// Discard sectors so that they cannot be read back.
    SecureErase,
    /// Write zeroes.
    WriteZeroes,
    /// Any other operation.
    Other,
}

impl Op {
    /// Returns whether the operation changes what sectors hold.
    pub fn changes_media(self) -> bool {
        self != Op::Read
    }
}

/// Identifies a control group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Cgroup(pub usize);

/// A block I/O request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bio {
    /// For tests: tells it from others.
    pub id: u64,
    /// What it asks for.
    pub op: Op,
    /// The first sector on the disk.
    pub sector: u64,
    /// The number of sectors.
    pub sectors: u64,
    /// The group that it is accounted to, unless it is issued as root.
    pub cgroup: Option<Cgroup>,
}

impl Bio {
    /// For tests: returns a write without a control group.
    pub fn write(id: u64, sector: u64, sectors: u64) -> Self {
        Self {
            id,
            op: Op::Write,
            sector,
            sectors,
            cgroup: None,
        }
    }

    /// Returns the operation.
    pub fn op(&self) -> Op {
        self.op
    }

    /// Returns the first sector on the disk.
    pub fn sector(&self) -> u64 {
        self.sector
    }

    /// Returns the number of sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Returns the number of bytes.
    pub fn size(&self) -> usize {
        (self.sectors << SECTOR_SHIFT) as usize
    }

    /// Returns the control group whose limits can delay the bio.
    pub fn cgroup(&self) -> Option<Cgroup> {
        self.cgroup
    }
}

/// A [`Bio`] that has to be completed.
///
/// Clones are for models, which explore several futures of a state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OwnedBio(Option<Bio>);

impl OwnedBio {
    /// For tests: returns a bio that was submitted.
    pub fn new(bio: Bio) -> Self {
        Self(Some(bio))
    }

    /// Completes the bio.
    pub fn end(mut self, result: Result) {
        note(self.0.take(), Outcome::Ended(result));
    }

    /// Gives the bio back to its device.
    pub fn resubmit(mut self) {
        note(self.0.take(), Outcome::Resubmitted);
    }
}

impl Deref for OwnedBio {
    type Target = Bio;

    fn deref(&self) -> &Bio {
        self.0
            .as_ref()
            .expect("only methods that consume it take it")
    }
}

impl Drop for OwnedBio {
    fn drop(&mut self) {
        note(self.0.take(), Outcome::Dropped);
    }
}

/// For tests: what has become of a bio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was given back to its device.
    Resubmitted,
    /// It was completed.
    Ended(Result),
    /// It was dropped, which completes it with an error.
    Dropped,
}

thread_local! {
    static RECORD: RefCell<Option<Vec<(Bio, Outcome)>>> = const { RefCell::new(None) };
}

fn note(bio: Option<Bio>, outcome: Outcome) {
    if let Some(bio) = bio {
        RECORD.with_borrow_mut(|record| {
            if let Some(record) = record {
                record.push((bio, outcome));
            }
        });
    }
}

/// For tests: calls `f`, and returns what has become of bios in this thread meanwhile.
pub fn record<R>(f: impl FnOnce() -> R) -> (R, Vec<(Bio, Outcome)>) {
    let outer = RECORD.replace(Some(Vec::new()));
    let result = f();
    let record = RECORD.replace(outer);
    (result, record.unwrap_or_default())
}

/// For tests: calls `f`, and returns the numbers of the bios that were resubmitted meanwhile.
pub fn resubmitted(f: impl FnOnce()) -> Vec<u64> {
    let ((), record) = record(f);
    let resubmitted = record
        .iter()
        .filter(|(_, outcome)| *outcome == Outcome::Resubmitted);
    resubmitted.map(|(bio, _)| bio.id).collect()
}

/// A first-in, first-out list of bios.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct BioList(VecDeque<OwnedBio>);

impl BioList {
    /// Returns an empty list.
    pub const fn new() -> Self {
        Self(VecDeque::new())
    }

    /// Returns whether there is no bio in the list.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a bio at the end.
    pub fn push(&mut self, bio: OwnedBio) {
        self.0.push_back(bio);
    }

    /// Adds a bio at the front.
    pub fn push_front(&mut self, bio: OwnedBio) {
        self.0.push_front(bio);
    }

    /// Removes the first bio.
    pub fn pop(&mut self) -> Option<OwnedBio> {
        self.0.pop_front()
    }

    /// Moves all bios of `other` to the end of this list.
    pub fn append(&mut self, other: &mut BioList) {
        self.0.append(&mut other.0);
    }

    /// Takes all bios out.
    pub fn take(&mut self) -> BioList {
        take(self)
    }
}
