// SPDX-License-Identifier: GPL-2.0-only

//! The memory that the maps of a snapshot may take, and to whom it is charged.

use core::mem;
use kernel::{
    mm::memcg::MemCgroup,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};

/// How much of a [`Budget`] is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Low,
    /// Half of it or more: what is added should be coarse.
    High,
    /// More than all of it.
    Over,
}

/// The memory, in bytes, that the devices of a snapshot share.
pub(crate) struct Budget {
    limit: usize,
    used: Atomic<usize>,
    /// The one of who created the snapshot.
    cgroup: Option<ARef<MemCgroup>>,
}

/// The part of a [`Budget`] that one device uses.
#[derive(Default)]
pub(crate) struct Charge(usize);

impl Budget {
    /// Of `limit` bytes, for a snapshot that the calling task creates.
    pub(crate) fn new(limit: usize) -> Result<Arc<Self>> {
        let budget = Self {
            limit,
            used: Atomic::new(0),
            cgroup: MemCgroup::current(),
        };
        Ok(Arc::new(budget, GFP_KERNEL)?)
    }

    /// Calls `f`, and has what it allocates with [`__GFP_ACCOUNT`] charged to the memory cgroup of
    /// who created the snapshot.
    pub(crate) fn account<R>(&self, f: impl FnOnce() -> R) -> R {
        MemCgroup::charge(self.cgroup.as_deref(), f)
    }

    /// A device uses `bytes` from now on, of which `charge` knows how many it used before.
    pub(crate) fn charge(&self, charge: &mut Charge, bytes: usize) -> Level {
        let before = mem::replace(&mut charge.0, bytes);
        // Whichever is larger: it wraps.
        self.used.add(bytes.wrapping_sub(before), Relaxed);
        self.level()
    }

    pub(crate) fn level(&self) -> Level {
        let used = self.used.load(Relaxed);
        if used > self.limit {
            Level::Over
        } else if used >= self.limit / 2 {
            Level::High
        } else {
            Level::Low
        }
    }
}

#[kunit_tests(blksnap_budget)]
mod tests {
    use super::*;

    #[test]
    fn devices_share_it() -> Result {
        let budget = Budget::new(100)?;
        let (mut one, mut two) = (Charge::default(), Charge::default());
        assert_eq!(budget.charge(&mut one, 49), Level::Low);
        assert_eq!(budget.charge(&mut two, 1), Level::High);
        assert_eq!(budget.charge(&mut two, 51), Level::High);
        assert_eq!(budget.charge(&mut one, 50), Level::Over);
        assert_eq!(budget.charge(&mut two, 0), Level::High);
        assert_eq!(budget.charge(&mut one, 10), Level::Low);
        assert_eq!(budget.level(), Level::Low);
        Ok(())
    }
}
