// SPDX-License-Identifier: GPL-2.0-only

//! Reading a target back, to see whether it is what the restore point has.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::fadvise;
use rustix::fs::Advice;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;

use super::changes::Extent;
use super::image::CLUSTER;
use super::source::Buffer;
use super::verify::RUN;
use super::view::Run;
use super::view::View;
use super::Progress;
use super::Watch;

/// Reads what was written, past the page cache where that is possible.
struct Reader<'a> {
    file: &'a File,
    direct: Option<File>,
    path: &'a Path,
}

impl<'a> Reader<'a> {
    fn new(file: &'a File, path: &'a Path) -> Self {
        let direct = File::options()
            .read(true)
            .custom_flags(OFlags::DIRECT.bits() as i32)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Self {
            file,
            direct: direct.ok(),
            path,
        }
    }

    fn read(&mut self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.read_at(offset, bytes)
            .map_err(|error| Error::from_io(Operation::CheckTarget, &error).on(self.path))
    }

    fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        if let Some(direct) = &self.direct {
            match direct.read_exact_at(bytes, offset) {
                // As at the end of what is no multiple of its blocks.
                Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => (),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => (),
                result => return result,
            }
        }
        // What is in the page cache was written by us; it is on the medium by now.
        fadvise(
            self.file,
            offset,
            NonZeroU64::new(bytes.len() as u64),
            Advice::DontNeed,
        )?;
        self.file.read_exact_at(bytes, offset)
    }
}

/// The ranges of a target, which has room for `room` bytes, that differ from what the
/// view has. What is damaged in the backup itself is left out.
pub fn differences(
    mut view: View,
    file: &File,
    path: &Path,
    room: u64,
    watch: &mut dyn Watch,
) -> Result<Vec<Extent>> {
    let total = view.size().min(room);
    let mut check = Check {
        reader: Reader::new(file, path),
        buffer: Buffer::new(RUN * CLUSTER as usize),
        differs: Vec::new(),
        total,
    };
    let mut at = 0;
    while let Some(run) = view.next(RUN)? {
        let (offset, length) = view.range(&run);
        if offset >= total {
            break;
        }
        if run.is_zero() {
            // Together with what follows.
            continue;
        }
        check.zeroes(at, offset, watch)?;
        check.data(&mut view, &run, offset, length, watch)?;
        at = offset + length;
    }
    check.zeroes(at, total, watch)?;
    watch.keep_on(Progress { done: total, total })?;
    Ok(check.differs)
}

struct Check<'a> {
    reader: Reader<'a>,
    buffer: Buffer,
    differs: Vec<Extent>,
    total: u64,
}

impl Check<'_> {
    fn add(&mut self, offset: u64, length: u64) {
        match self.differs.last_mut() {
            Some(last) if last.end() == offset => last.length += length,
            _ => self.differs.push(Extent { offset, length }),
        }
    }

    fn progress(&self, done: u64) -> Progress {
        Progress {
            done,
            total: self.total,
        }
    }

    fn zeroes(&mut self, start: u64, end: u64, watch: &mut dyn Watch) -> Result<()> {
        let mut at = start;
        while at < end {
            watch.keep_on(self.progress(at))?;
            let length = (end - at).min(RUN as u64 * CLUSTER);
            let bytes = self.buffer.first(length as usize);
            self.reader.read(at, bytes)?;
            let wrong: Vec<_> = (at..)
                .step_by(CLUSTER as usize)
                .zip(bytes.chunks(CLUSTER as usize))
                .filter(|(_, cluster)| cluster.iter().any(|&byte| byte != 0))
                .map(|(offset, cluster)| (offset, cluster.len() as u64))
                .collect();
            for (offset, length) in wrong {
                self.add(offset, length);
            }
            at += length;
        }
        Ok(())
    }

    fn data(
        &mut self,
        view: &mut View,
        run: &Run,
        offset: u64,
        length: u64,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        watch.keep_on(self.progress(offset))?;
        let length = length.min(self.total - offset);
        let bytes = self.buffer.first(length as usize);
        self.reader.read(offset, bytes)?;
        let mut wrong = Vec::new();
        for (cluster, bytes) in run.clusters().zip(bytes.chunks(CLUSTER as usize)) {
            let (offset, length) = view.range(&cluster);
            if blake3::hash(bytes).as_bytes() == &cluster.sums[0] {
                continue;
            }
            // It may be the backup that is wrong, or the target has room for a part only.
            let mut wanted = vec![0; length as usize];
            let damaged = view.salvage(&cluster, &mut wanted)?;
            if damaged.is_empty() && wanted[..bytes.len()] != *bytes {
                wrong.push((offset, bytes.len() as u64));
            }
        }
        for (offset, length) in wrong {
            self.add(offset, length);
        }
        Ok(())
    }
}
