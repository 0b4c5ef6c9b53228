// SPDX-License-Identifier: GPL-2.0-only

//! Writes that were taken.
//!
//! A [`Taken`] write cannot be resubmitted. Only a [`Released`] one can, which [`Taken::release`]
//! makes of it if the old data of its chunks is saved, or the image is broken.

use crate::{
    chunk::Geometry,
    status::Status, //
};
use core::ops::Deref;
use kernel::block::{
    bdev::BdevFile,
    bio::{
        Bio,
        BioList,
        OwnedBio, //
    },
    filter::{
        FilteredBio,
        Verdict, //
    }, //
};

/// A write whose old data may not be saved yet.
pub(crate) struct Taken(OwnedBio);

/// A write that can go to the origin.
pub(crate) struct Released(OwnedBio);

impl Taken {
    /// Does not sleep.
    pub(crate) fn take(bio: FilteredBio<'_>) -> (Self, Verdict<'_>) {
        let (bio, verdict) = bio.take();
        (Self(bio), verdict)
    }

    /// Releases the write, or returns it if its chunks have to be saved first. Does not sleep.
    pub(crate) fn release(
        self,
        origin: &BdevFile,
        geometry: Geometry,
        status: &Status,
    ) -> Result<Released, Self> {
        match origin.range_of(&self) {
            Some(range) if !status.may_release(geometry.chunks_of(range)) => Err(self),
            _ => Ok(Released(self.0)),
        }
    }
}

impl Deref for Taken {
    type Target = Bio;

    fn deref(&self) -> &Bio {
        &self.0
    }
}

impl Deref for Released {
    type Target = Bio;

    fn deref(&self) -> &Bio {
        &self.0
    }
}

impl Released {
    /// Gives the write back to the origin. May sleep.
    pub(crate) fn resubmit(self) {
        self.0.resubmit();
    }
}

/// A list of [`Taken`] writes.
pub(crate) struct TakenList(BioList);

impl TakenList {
    pub(crate) fn new() -> Self {
        Self(BioList::new())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn push(&mut self, write: Taken) {
        self.0.push(write.0);
    }

    pub(crate) fn push_front(&mut self, write: Taken) {
        self.0.push_front(write.0);
    }

    pub(crate) fn pop(&mut self) -> Option<Taken> {
        self.0.pop().map(Taken)
    }

    /// Moves all of `other` to the end of this list.
    pub(crate) fn append(&mut self, other: &mut Self) {
        self.0.append(&mut other.0);
    }

    /// Returns the whole list, and leaves it empty.
    pub(crate) fn take(&mut self) -> Self {
        Self(self.0.take())
    }
}

/// A list of [`Released`] writes.
pub(crate) struct ReleasedList(BioList);

impl ReleasedList {
    pub(crate) fn new() -> Self {
        Self(BioList::new())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn push(&mut self, write: Released) {
        self.0.push(write.0);
    }

    pub(crate) fn pop(&mut self) -> Option<Released> {
        self.0.pop().map(Released)
    }

    /// Returns the whole list, and leaves it empty.
    pub(crate) fn take(&mut self) -> Self {
        Self(self.0.take())
    }
}
