// SPDX-License-Identifier: GPL-2.0-only

//! The memory for copies that are not stored, which the devices of a snapshot share.
//!
//! Half of it is in equal parts for each device, so that none has to wait for the storage because
//! of another one. The other half is for those that need it.

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// The memory of a snapshot, in bytes.
pub(crate) struct CopyMemory {
    /// What each device has for itself.
    own: usize,
    /// What they share.
    shared: usize,
    /// What is left of that. Negative if a device has its only copy for which there is no room.
    left: Atomic<isize>,
}

impl CopyMemory {
    /// `bytes` for `devices`, of which there is one at least.
    pub(crate) fn new(bytes: usize, devices: usize) -> Self {
        let own = bytes / 2 / devices.max(1);
        let shared = bytes - own * devices;
        Self {
            own,
            shared,
            left: Atomic::new(shared as isize),
        }
    }

    /// What each device has for itself.
    pub(crate) fn own(&self) -> usize {
        self.own
    }

    /// Whether not much is left of what is shared, so that copies should be stored soon.
    pub(crate) fn is_scarce(&self) -> bool {
        self.left.load(Relaxed) < self.shared as isize / 4
    }

    /// The most that one device can have.
    pub(crate) fn most(&self) -> usize {
        self.own + self.shared
    }

    /// What a device with `bytes` has of what is shared.
    fn excess(&self, bytes: usize) -> isize {
        bytes.saturating_sub(self.own) as isize
    }

    /// How much of `more` bytes is of what is shared, of a device that has `bytes`.
    fn need(&self, bytes: usize, more: usize) -> isize {
        self.excess(bytes + more) - self.excess(bytes)
    }

    /// Whether a device that has `bytes` can have `more`. Others may be faster.
    pub(crate) fn has(&self, bytes: usize, more: usize) -> bool {
        let need = self.need(bytes, more);
        need == 0 || need <= self.left.load(Relaxed)
    }

    /// Gives a device that has `bytes` some `more`. Returns false if there is no room, unless these
    /// are its first ones.
    pub(crate) fn take(&self, bytes: usize, more: usize) -> bool {
        let need = self.need(bytes, more);
        if need == 0 || self.left.fetch_sub(need, Relaxed) >= need || bytes == 0 {
            return true;
        }
        self.left.add(need, Relaxed);
        false
    }

    /// Takes `less` back from a device that has `bytes`.
    pub(crate) fn give(&self, bytes: usize, less: usize) {
        let need = self.need(bytes - less, less);
        if need != 0 {
            self.left.add(need, Relaxed);
        }
    }
}

#[kunit_tests(blksnap_copy_memory)]
mod tests {
    use super::*;

    #[test]
    fn one_device_has_all() {
        let memory = CopyMemory::new(101, 1);
        assert_eq!(memory.most(), 101);
        assert!(memory.take(0, 60) && memory.take(60, 41));
        assert!(!memory.has(101, 1) && !memory.take(101, 1));
        memory.give(101, 1);
        assert!(memory.has(100, 1) && !memory.has(100, 2) && memory.take(100, 1));
    }

    #[test]
    fn each_device_has_its_own() {
        let memory = CopyMemory::new(100, 2);
        assert_eq!(memory.most(), 75);
        assert!(memory.take(0, 75));
        assert!(memory.is_scarce());
        // The other one has no more than its own.
        assert!(memory.has(0, 25) && memory.take(0, 25));
        assert!(!memory.has(25, 1) && !memory.take(25, 1));
        memory.give(75, 60);
        // All of it is given back.
        assert!(!memory.take(25, 51) && memory.take(25, 50));
        memory.give(75, 75);
        memory.give(15, 15);
        assert!(!memory.is_scarce());
        assert!(memory.take(0, 75));
    }

    #[test]
    fn only_copy_has_room() {
        let memory = CopyMemory::new(100, 4);
        assert!(memory.take(0, 1000));
        // Others have their own still.
        assert!(memory.take(0, 12) && !memory.take(12, 1));
        memory.give(1000, 1000);
        assert!(memory.take(12, 52) && !memory.take(64, 1));
    }
}
