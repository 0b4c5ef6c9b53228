// SPDX-License-Identifier: GPL-2.0-only

//! Filters of bios.

use super::bio::{Bio, OwnedBio};
use core::{marker::PhantomData, ops::Deref};

/// A bio that a filter has to decide on.
pub struct FilteredBio<'a> {
    bio: OwnedBio,
    call: PhantomData<fn(&'a ()) -> &'a ()>,
}

/// What a filter has decided.
#[must_use]
pub struct Verdict<'a> {
    passed: Option<OwnedBio>,
    call: PhantomData<*mut &'a ()>,
}

impl<'a> FilteredBio<'a> {
    /// For tests: a bio that comes to a filter.
    pub fn new(bio: OwnedBio) -> Self {
        Self {
            bio,
            call: PhantomData,
        }
    }

    /// Lets the bio go on to the device.
    pub fn pass(self) -> Verdict<'a> {
        Verdict {
            passed: Some(self.bio),
            call: PhantomData,
        }
    }

    /// Takes the bio over.
    pub fn take(self) -> (OwnedBio, Verdict<'a>) {
        let verdict = Verdict {
            passed: None,
            call: PhantomData,
        };
        (self.bio, verdict)
    }
}

impl Deref for FilteredBio<'_> {
    type Target = Bio;

    fn deref(&self) -> &Bio {
        &self.bio
    }
}

impl Verdict<'_> {
    /// For tests: the bio, if it goes on to the device.
    pub fn passed(self) -> Option<OwnedBio> {
        self.passed
    }
}
