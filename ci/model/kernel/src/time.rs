// SPDX-License-Identifier: GPL-2.0-only

//! Clocks.

use core::marker::PhantomData;
use std::time::{SystemTime, UNIX_EPOCH};

/// The clock that shows the time of day.
pub struct RealTime;

/// A time of a clock.
pub struct Instant<C>(i64, PhantomData<C>);

impl Instant<RealTime> {
    /// Returns the time.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self(since.map_or(0, |t| t.as_nanos() as i64), PhantomData)
    }

    /// Returns the nanoseconds since the epoch.
    pub fn as_nanos(&self) -> i64 {
        self.0
    }
}
