// SPDX-License-Identifier: GPL-2.0-only

//! What the state machine of copy-on-write counts.

/// Copies are runs of chunks that are claimed and not stored. First they are being read, then they
/// are in memory until a store takes them, and then until that is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Counts {
    /// Copies, and the bytes in them.
    pub(crate) copies: usize,
    pub(crate) copy_bytes: usize,
    /// Those of them that are being read.
    pub(crate) claimed_bytes: usize,
    /// The bytes that are to be stored and that no store has taken.
    pub(crate) unstored_bytes: usize,
    /// Bytes that were stored.
    pub(crate) stored_bytes: u64,
    /// Writes that were taken and not resubmitted yet.
    pub(crate) parked: usize,
    /// The most there were of these at a time.
    pub(crate) peak_copy_bytes: usize,
    pub(crate) peak_parked: usize,
}

impl Counts {
    /// A write was taken.
    pub(crate) fn park(&mut self) {
        self.parked += 1;
        self.peak_parked = self.peak_parked.max(self.parked);
    }

    /// A copy begins.
    pub(crate) fn claim(&mut self, bytes: usize) {
        self.copies += 1;
        self.copy_bytes += bytes;
        self.claimed_bytes += bytes;
        self.peak_copy_bytes = self.peak_copy_bytes.max(self.copy_bytes);
    }

    /// It was read.
    pub(crate) fn read(&mut self, bytes: usize) {
        self.claimed_bytes -= bytes;
        self.unstored_bytes += bytes;
    }

    /// It was not read, and ends.
    pub(crate) fn not_read(&mut self, bytes: usize) {
        self.claimed_bytes -= bytes;
        self.forget(bytes);
    }

    /// A copy that a store had taken ends.
    pub(crate) fn forget(&mut self, bytes: usize) {
        self.copies -= 1;
        self.copy_bytes -= bytes;
    }
}
