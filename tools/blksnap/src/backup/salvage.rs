// SPDX-License-Identifier: GPL-2.0-only

//! Reading of a device what can be read, where something cannot.
//!
//! A read that failed is done again in smaller pieces, down to logical blocks. What is left
//! are the sectors that cannot be read, if it is only them: not if the snapshot broke, which
//! makes all reads of its images fail, nor if the device does not answer at all.
//!
//! The driver returns an error of the origin to the reader of the image, and the snapshot stays
//! intact. If the read was for copy-on-write, the snapshot breaks instead. So the first write to
//! a chunk with a bad sector costs the backup.

use std::io;
use std::path::Path;

use rustix::io::Errno;

use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;
use crate::explain::errno_name;

use super::changes;
use super::changes::Extent;
use super::image::CLUSTER;
use super::manifest::MAX_UNREADABLE;
use super::source::Buffer;
use super::source::Source;

/// What a disk loses at once, as a rule.
const SECTOR: u64 = 4096;

/// Reads the image of a device around what cannot be read.
pub struct Rescue<'a> {
    pub source: &'a Source,
    /// For messages.
    pub device: &'a Path,
    /// Whether what cannot be read is left out, and not an error.
    pub is_wanted: bool,
    /// Fails if the snapshot is broken, which is the reason then.
    pub is_sound: &'a dyn Fn() -> Result<()>,
    pub keep_on: &'a mut dyn FnMut() -> Result<()>,
}

/// What became of reading something.
pub type Attempt<T> = std::result::Result<T, Failure>;

/// Why something could not be read.
pub enum Failure {
    /// The other devices can still be read.
    Device(Error),
    /// The backup as a whole cannot go on.
    All(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::All(error)
    }
}

impl Rescue<'_> {
    /// Fills `bytes`, reading which failed with `error`; what cannot be read are zeroes. Returns
    /// where, in ascending order, which is nowhere if it was only that once.
    pub fn read(
        &mut self,
        offset: u64,
        bytes: &mut [u8],
        error: &io::Error,
    ) -> Attempt<Vec<Extent>> {
        (self.is_sound)()?;
        if !is_of_medium(error) {
            return Err(Failure::Device(self.failed(error)));
        }
        let block = u64::from(self.source.logical_block_size().unwrap_or(512)).max(512);
        let mut sizes = vec![CLUSTER, SECTOR, block];
        sizes.retain(|size| *size >= block);
        sizes.dedup();
        let mut bad = Vec::new();
        self.pieces(offset, bytes, &sizes, &mut bad)?;
        Ok(bad)
    }

    fn pieces(
        &mut self,
        offset: u64,
        bytes: &mut [u8],
        sizes: &[u64],
        bad: &mut Vec<Extent>,
    ) -> Attempt<()> {
        let Some((size, smaller)) = sizes.split_first() else {
            return Ok(());
        };
        let step = *size as usize;
        for (at, piece) in (offset..).step_by(step).zip(bytes.chunks_mut(step)) {
            (self.keep_on)()?;
            let Err(error) = self.source.read(at, piece) else {
                continue;
            };
            (self.is_sound)()?;
            if !is_of_medium(&error) {
                return Err(Failure::Device(self.failed(&error)));
            }
            if !smaller.is_empty() {
                self.pieces(at, piece, smaller, bad)?;
                continue;
            }
            let extent = Extent {
                offset: at,
                length: piece.len() as u64,
            };
            self.confirm_alive(&extent, &error)?;
            if !self.is_wanted {
                return Err(Failure::Device(self.unreadable(&extent, &error)));
            }
            piece.fill(0);
            changes::push(bad, extent);
        }
        Ok(())
    }

    /// Fails if nothing else can be read either, as if the disk was unplugged.
    fn confirm_alive(&self, bad: &Extent, error: &io::Error) -> Attempt<()> {
        let size = self.source.size();
        let others = [0, size / 4, size / 2, size / 4 * 3, size.saturating_sub(1)];
        let mut buffer = Buffer::new(bad.length as usize);
        let is_readable = |at: &u64| {
            let at = at / bad.length * bad.length;
            let length = bad.length.min(size - at) as usize;
            at != bad.offset && self.source.read(at, buffer.first(length)).is_ok()
        };
        if size <= bad.length || others.iter().any(is_readable) {
            return Ok(());
        }
        let reason = format!(
            "it cannot be read any more, as tried at byte {} and at others ({})",
            bad.offset,
            name(error)
        );
        Err(Failure::Device(
            Error::new(Operation::BackUp, reason)
                .on(self.device)
                .remedied_by(
                    "see whether it is still there, and look into the kernel's log with \"dmesg\"",
                ),
        ))
    }

    fn unreadable(&self, extent: &Extent, error: &io::Error) -> Error {
        let reason = format!(
            "its bytes {} to {} cannot be read ({})",
            extent.offset,
            extent.end(),
            name(error)
        );
        Error::from_io(Operation::BackUp, error)
            .because(reason)
            .on(self.device)
            .remedied_by(
                "the kernel's log (\"dmesg\") says which disk failed, this one or that of --store; \
                 with --salvage there are zeroes for what cannot be read, and the rest is kept",
            )
    }

    fn failed(&self, error: &io::Error) -> Error {
        Error::from_io(Operation::BackUp, error).on(self.device)
    }
}

fn name(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(raw) => errno_name(Errno::from_raw_os_error(raw)),
        None => error.to_string(),
    }
}

/// Whether an error can be that of a single sector: the general one, and those for a medium
/// error, wrong protection information and a target failure. A device that does not answer or
/// cannot be reached has others, such as ETIMEDOUT and ENOLINK.
fn is_of_medium(error: &io::Error) -> bool {
    const ERRNOS: [Errno; 4] = [Errno::IO, Errno::NODATA, Errno::ILSEQ, Errno::REMOTEIO];
    let raw = error.raw_os_error();
    ERRNOS.iter().any(|it| raw == Some(it.raw_os_error()))
}

/// The device has more of it than a manifest may have.
pub fn too_many(device: &Path) -> Error {
    let reason = format!("more than {MAX_UNREADABLE} ranges of it cannot be read");
    Error::new(Operation::BackUp, reason)
        .on(device)
        .remedied_by(
            "it is failing as a whole: copy it to another one with ddrescue, and back up that",
        )
}
