// SPDX-License-Identifier: GPL-2.0-only

//! A time limit that several steps share.

use kernel::time::{
    msecs_to_jiffies,
    Delta,
    Instant,
    Jiffies,
    Monotonic, //
};

/// A point in time until which something has to be done.
#[derive(Clone, Copy)]
pub(crate) struct Deadline {
    start: Instant<Monotonic>,
    limit: Delta,
}

impl Deadline {
    /// Returns the point in time that is `limit` from now.
    pub(crate) fn after(limit: Delta) -> Self {
        Self {
            start: Instant::now(),
            limit,
        }
    }

    /// Returns the point in time that is `limit` from now, or this one if that is sooner.
    pub(crate) fn or_after(self, limit: Delta) -> Self {
        Self::after(limit.min(Delta::from_millis(self.left_millis().into())))
    }

    /// Returns the milliseconds that are left, 0 if it has passed.
    pub(crate) fn left_millis(&self) -> u32 {
        let left = self.limit.as_millis() - self.start.elapsed().as_millis();
        u32::try_from(left.max(0)).unwrap_or(u32::MAX)
    }

    /// Returns the time that is left in jiffies, 0 if it has passed.
    pub(crate) fn left(&self) -> Jiffies {
        msecs_to_jiffies(self.left_millis())
    }
}
