// SPDX-License-Identifier: GPL-2.0-only

//! Making a device read as zeroes so that a thin one stays thin.

use std::fs::File;
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::fadvise;
use rustix::fs::fallocate;
use rustix::fs::Advice;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::sys;

use super::image::CLUSTER;

/// How much the kernel is asked for at a time.
const PIECE: u64 = 1 << 30;

/// How much is read or written at a time.
const SMALL_PIECE: u64 = 1 << 20;

/// What became of a piece, in bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// It reads as zeroes.
    Done(u64),
    /// Zeroes have to be written to it.
    Left(u64),
}

/// The ways that a device has, the best first.
#[derive(Debug, Clone)]
pub struct Zeroer {
    /// To deallocate what reads as zeroes then, or to fail.
    punches: bool,
    /// To discard, and to look what that made. Not on any device that can discard, as
    /// what others read then is not certain to stay.
    discards: bool,
    /// To look whether there are zeroes already, as on a thin device that was not
    /// written to.
    looks: bool,
    /// To let the kernel write zeroes, or the device by itself.
    ranges: bool,
    /// Discarded up to here.
    discarded: u64,
}

impl Zeroer {
    /// For a device that may be thin as it can discard, or is a thin volume.
    pub fn new(may_be_thin: bool, is_thin_volume: bool) -> Self {
        Self {
            punches: true,
            discards: is_thin_volume,
            looks: may_be_thin || is_thin_volume,
            ranges: true,
            discarded: 0,
        }
    }

    /// Deals with the first piece from `at` to `end`.
    pub fn zero(&mut self, file: &File, at: u64, end: u64) -> Piece {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let length = PIECE.min(end - at);
        if allocate(file, punch, at, length, &mut self.punches) {
            return Piece::Done(length);
        }
        let mut length = length;
        if self.discards && at >= self.discarded {
            // What it leaves, as parts of blocks, is found by looking.
            self.discards = sys::discard(file.as_fd(), at, length).is_ok();
            self.discarded = at + length;
        }
        if self.looks {
            match look(file, at, SMALL_PIECE.min(length)) {
                Some(Piece::Left(left)) => length = left,
                Some(done) => return done,
                None => self.looks = false,
            }
        }
        if allocate(
            file,
            FallocateFlags::ZERO_RANGE,
            at,
            length,
            &mut self.ranges,
        ) {
            return Piece::Done(length);
        }
        Piece::Left(length.min(SMALL_PIECE))
    }
}

/// Tries one way; `works` is false from then on if the device does not have it.
fn allocate(file: &File, how: FallocateFlags, at: u64, length: u64, works: &mut bool) -> bool {
    if !*works {
        return false;
    }
    match fallocate(file, how, at, length) {
        Ok(()) => true,
        Err(errno) => {
            *works = !matches!(errno, Errno::OPNOTSUPP | Errno::NODEV | Errno::NOSYS);
            false
        }
    }
}

/// The zeroes that a piece begins with, or else what precedes the first ones.
fn look(file: &File, at: u64, length: u64) -> Option<Piece> {
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, at).ok()?;
    let _ = fadvise(file, at, NonZeroU64::new(length), Advice::DontNeed);
    let mut units = bytes
        .chunks(CLUSTER as usize)
        .map(|unit| unit.iter().all(|&byte| byte == 0))
        .peekable();
    let is_zero = *units.peek()?;
    let count = units.take_while(|&it| it == is_zero).count() as u64;
    let length = length.min(count * CLUSTER);
    Some(match is_zero {
        true => Piece::Done(length),
        false => Piece::Left(length),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const UNIT: usize = CLUSTER as usize;

    fn zero_all(zeroer: &mut Zeroer, file: &File, end: u64) -> u64 {
        let (mut at, mut written) = (0, 0);
        while at < end {
            match zeroer.zero(file, at, end) {
                Piece::Done(length) => at += length,
                Piece::Left(length) => {
                    file.write_all_at(&vec![0; length as usize], at).unwrap();
                    at += length;
                    written += length;
                }
            }
        }
        written
    }

    #[test]
    fn what_is_zero_is_not_written_in_whatever_way() {
        let ways = [
            (true, false, true),
            (false, true, true),
            (false, true, false),
            (false, false, false),
        ];
        for (punches, looks, ranges) in ways {
            let file = tempfile::tempfile().unwrap();
            let size = 32 * CLUSTER + 512;
            file.set_len(size).unwrap();
            for at in [3, 4, 17, 31] {
                file.write_all_at(&[7; UNIT], at * CLUSTER).unwrap();
            }
            let before = file.metadata().unwrap().blocks();
            let mut zeroer = Zeroer {
                punches,
                discards: false,
                looks,
                ranges,
                discarded: 0,
            };
            let written = zero_all(&mut zeroer, &file, size);
            let mut bytes = vec![1; size as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes.iter().all(|&byte| byte == 0));
            let blocks = file.metadata().unwrap().blocks();
            match (punches, looks, ranges) {
                (true, ..) => assert_eq!((written, blocks), (0, 0)),
                (_, true, true) => assert!(written == 0 && blocks <= before),
                (_, true, false) => assert!(written == 4 * CLUSTER && blocks <= before),
                _ => assert_eq!(written, size),
            }
        }
    }

    #[test]
    fn a_way_that_there_is_not_is_tried_once() {
        // That it failed for another reason says nothing of the next time.
        let file = File::open("/dev/null").unwrap();
        let mut works = true;
        assert!(!allocate(
            &file,
            FallocateFlags::ZERO_RANGE,
            0,
            512,
            &mut works
        ));
        assert!(works);
        let file = File::options().write(true).open("/dev/null").unwrap();
        assert!(!allocate(
            &file,
            FallocateFlags::ZERO_RANGE,
            0,
            512,
            &mut works
        ));
        assert!(!works);
    }
}
