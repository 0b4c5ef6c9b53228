// SPDX-License-Identifier: GPL-2.0-only

//! A target that is open for writing, and what it must not be unless it is allowed.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::io::Seek;
use std::io::SeekFrom;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::unlinkat;
use rustix::fs::AtFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::device::DeviceNumber;
use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;
use crate::signature;
use crate::signature::probe;
use crate::signature::Content;
use crate::signature::BLKID;
use crate::size::Bytes;
use crate::stack::Stack;
use crate::sys;

use super::sink::Sink;
use super::spot;
use super::spot::Place;
use super::spot::Spot;
use super::stream::Stream;
use super::zero::Piece;
use super::zero::Zeroer;

/// What is written to nevertheless. One for each thing that can be lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allow {
    /// What is mounted or in use otherwise.
    pub in_use: bool,
    /// What holds something.
    pub overwrite: bool,
    /// What is smaller.
    pub truncate: bool,
    /// What has logical blocks of another size.
    pub other_block_size: bool,
}

/// What is going to be written.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Bytes of the device.
    pub size: u64,
    /// Bytes of a logical block of the device, if that is known.
    pub block_size: Option<u32>,
}

enum Medium {
    /// A file that is created when it is written to.
    New {
        parent: OwnedFd,
        name: OsString,
    },
    File(Sink),
    Device(Sink, Zeroer),
    Fifo(OwnedFd),
    Stream(Stream),
}

/// A device, file or stream that is written to.
pub struct Target {
    path: PathBuf,
    medium: Medium,
    /// Bytes that there is room for; none if that is not known before.
    room: Option<u64>,
    /// What it was before, in words.
    before: String,
    /// To be removed if it is not completed.
    unfinished: Option<(OwnedFd, OsString)>,
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some((parent, name)) = &self.unfinished {
            // The error that led here is the one to tell.
            let _ = unlinkat(parent.as_fd(), name, AtFlags::empty());
        }
    }
}

impl Target {
    /// Opens what was found. Refuses what may be lost, unless that is allowed; nothing
    /// is lost yet.
    pub fn open(spot: Spot, wanted: Wanted, allow: Allow, stack: &Stack) -> Result<Self> {
        let path = spot.path;
        let target = |medium, room, before: String| Self {
            path: path.clone(),
            medium,
            room,
            before,
            unfinished: None,
        };
        Ok(match spot.place {
            Place::New { parent, name } => {
                target(Medium::New { parent, name }, None, "a new file".to_owned())
            }
            Place::Fifo(handle, _) => target(Medium::Fifo(handle), None, "a FIFO".to_owned()),
            Place::Output { file, is_pipe } => {
                let stream = Stream::new(file, &path, is_pipe);
                target(Medium::Stream(stream), None, "standard output".to_owned())
            }
            Place::File(handle, _) => {
                let (file, before) = open_file(&handle, &path, allow)?;
                let sink = Sink::new(file, &path, Operation::Restore);
                target(Medium::File(sink), None, before)
            }
            Place::Device(handle, number) => {
                let (file, room, before) =
                    open_device(&handle, number, &path, wanted, allow, stack)?;
                let sink = Sink::new(file, &path, Operation::Restore);
                let zeroer = Zeroer::new(stack.can_discard(number), stack.is_thin_volume(number));
                target(Medium::Device(sink, zeroer), Some(room), before)
            }
        })
    }

    /// An open file as if it were a device.
    #[cfg(test)]
    pub fn of_file(file: File, path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            room: Some(file.metadata().unwrap().len()),
            medium: Medium::Device(
                Sink::new(file, path, Operation::Restore),
                Zeroer::new(false, false),
            ),
            before: String::new(),
            unfinished: None,
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of a block device.
    pub fn room(&self) -> Option<u64> {
        self.room
    }

    /// What it was before, in words.
    pub fn before(&self) -> &str {
        &self.before
    }

    pub fn is_device(&self) -> bool {
        matches!(self.medium, Medium::Device(..))
    }

    /// Whether it has no content that could be read back.
    pub fn is_stream(&self) -> bool {
        matches!(self.medium, Medium::Fifo(_) | Medium::Stream(_))
    }

    /// What is written to, if it has offsets.
    pub fn file(&self) -> Option<&File> {
        match &self.medium {
            Medium::File(sink) | Medium::Device(sink, _) => Some(sink.file()),
            _ => None,
        }
    }

    /// Makes it ready for `size` bytes: from here on what was in it is lost.
    pub fn begin(&mut self, size: u64, keep_on: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let failed = |error: io::Error| Error::from_io(Operation::Restore, &error).on(&self.path);
        self.medium = match &self.medium {
            Medium::Fifo(handle) => Medium::Stream(Stream::open(handle, &self.path, keep_on)?),
            Medium::New { parent, name } => {
                let file = spot::create(parent, name).map_err(failed)?;
                let parent = parent.try_clone().map_err(failed)?;
                self.unfinished = Some((parent, name.clone()));
                file.set_len(size).map_err(failed)?;
                Medium::File(Sink::new(file, &self.path, Operation::Restore))
            }
            Medium::File(sink) => {
                let file = sink.file();
                return file
                    .set_len(0)
                    .and_then(|()| file.set_len(size))
                    .map_err(failed);
            }
            Medium::Device(..) | Medium::Stream(_) => return Ok(()),
        };
        Ok(())
    }

    /// Writes as much as there is room for.
    pub fn write(
        &mut self,
        offset: u64,
        bytes: &[u8],
        keep_on: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let room = self
            .room
            .map_or(u64::MAX, |room| room.saturating_sub(offset));
        let bytes = &bytes[..room.min(bytes.len() as u64) as usize];
        match &mut self.medium {
            Medium::File(sink) | Medium::Device(sink, _) => sink.write(offset, bytes),
            Medium::Stream(stream) => stream.write(offset, bytes, keep_on),
            Medium::New { .. } | Medium::Fifo(_) => unreachable!("begin() has opened it"),
        }
    }

    /// Makes all from `start` to `end` read as zeroes.
    pub fn zero(
        &mut self,
        start: u64,
        end: u64,
        keep_on: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        const ZEROES: &[u8] = &[0; 1 << 20];
        let end = self.room.map_or(end, |room| room.min(end));
        let mut at = start;
        while at < end {
            keep_on(at)?;
            let piece = match &mut self.medium {
                // It had no content.
                Medium::File(_) => return Ok(()),
                Medium::Device(sink, zeroer) => zeroer.zero(sink.file(), at, end),
                _ => Piece::Left(end - at),
            };
            at += match piece {
                Piece::Done(length) => length,
                Piece::Left(length) => {
                    let length = length.min(ZEROES.len() as u64);
                    self.write(at, &ZEROES[..length as usize], &mut || keep_on(at))?;
                    length
                }
            };
        }
        Ok(())
    }

    /// Makes all of it durable.
    pub fn finish(&mut self) -> Result<()> {
        match &self.medium {
            Medium::File(sink) | Medium::Device(sink, _) => sink.sync()?,
            Medium::Stream(stream) => stream.finish()?,
            Medium::New { .. } | Medium::Fifo(_) => (),
        }
        if let Some((parent, _)) = self.unfinished.take() {
            let here = Path::new(".");
            let opened = rustix::fs::openat(
                &parent,
                here,
                OFlags::RDONLY | OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            );
            match opened.and_then(rustix::fs::fsync) {
                // A filesystem that cannot do that has nothing to do.
                Ok(()) | Err(Errno::INVAL | Errno::ACCESS) => (),
                Err(errno) => {
                    return Err(Error::from_errno(Operation::Restore, errno).on(&self.path))
                }
            }
        }
        Ok(())
    }
}

fn refused(path: &Path, reason: impl Into<String>, remedy: impl Into<String>) -> Error {
    Error::new(Operation::Restore, reason)
        .on(path)
        .remedied_by(remedy)
}

fn open_file(handle: &OwnedFd, path: &Path, allow: Allow) -> Result<(File, String)> {
    let failed = |error: io::Error| Error::from_io(Operation::Restore, &error).on(path);
    let file = spot::reopen(handle, OFlags::empty()).map_err(failed)?;
    if !allow.in_use && sys::is_open_elsewhere(file.as_fd()) {
        return Err(refused(
            path,
            "the file is in use: another program or a loop device has it open",
            "end what uses it (\"fuser -v FILE\" and \"losetup -j FILE\" show that), or say \
             --in-use if the file may change under it",
        ));
    }
    let length = file.metadata().map_err(failed)?.len();
    if length == 0 {
        return Ok((file, "an empty file".to_owned()));
    }
    let content = probe(&file, length, &BLKID);
    let before = format!("a file, {}", signature::sentence(None, length, &content));
    if !allow.overwrite {
        let reason = format!("the file is not empty: it is {before}");
        let remedy =
            "name a file that does not exist, or say --overwrite if its content may be lost";
        return Err(refused(path, reason, remedy));
    }
    Ok((file, before))
}

fn open_device(
    handle: &OwnedFd,
    number: DeviceNumber,
    path: &Path,
    wanted: Wanted,
    allow: Allow,
    stack: &Stack,
) -> Result<(File, u64, String)> {
    let failed = |error: io::Error| Error::from_io(Operation::Restore, &error).on(path);
    // It can be opened for writing nevertheless; what fails is to write.
    if stack.is_write_protected(number) {
        let remedy = format!(
            "name another device, or say \"blockdev --setrw {}\" if what is on it may be lost",
            path.display()
        );
        return Err(refused(path, "it is write-protected", remedy));
    }
    // The kernel refuses what is mounted or part of something else, wherever that is.
    let flags = match allow.in_use {
        true => OFlags::empty(),
        false => OFlags::EXCL,
    };
    let mut file = spot::reopen(handle, flags).map_err(|error| {
        match error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) {
            true => busy(number, path, stack),
            false => failed(error),
        }
    })?;
    let room = file.seek(SeekFrom::End(0)).map_err(failed)?;
    if room < wanted.size && !allow.truncate {
        let reason = format!(
            "it has {} bytes, and the restore point {} ({})",
            room,
            wanted.size,
            Bytes(wanted.size)
        );
        let remedy = "name a device that is as large, or say --truncate if the end may be lost";
        return Err(refused(path, reason, remedy));
    }
    if !allow.other_block_size {
        refuse_block_size(&file, path, wanted)?;
    }
    let content = with_partitions(probe(&file, room, &BLKID), number, stack);
    let identity = stack.identity(number);
    let before = signature::sentence(identity.as_deref(), room, &content);
    if !allow.overwrite {
        match content {
            Content::Nothing => (),
            Content::Something(_) => {
                return Err(refused(
                    path,
                    format!("it is not empty: {} is {before}", path.display()),
                    "name another device, or say --overwrite if what is on it may be lost",
                ))
            }
            Content::Unknown(why) => {
                return Err(refused(
                    path,
                    format!("whether it is empty cannot be told: {why}"),
                    "see to that, or say --overwrite if what is on it may be lost",
                ))
            }
        }
    }
    Ok((file, room, before))
}

fn busy(number: DeviceNumber, path: &Path, stack: &Stack) -> Error {
    let users = match &stack.users(number)[..] {
        [] => {
            "by what cannot be seen from here, such as a mount of processes that are hidden, or by \
               way of its disk"
                .to_owned()
        }
        users => users.join(", "),
    };
    refused(
        path,
        format!("it is in use: {}", users.replace(char::is_control, "?")),
        "unmount it or end what uses it, or say --in-use if its content may change under that",
    )
}

fn refuse_block_size(file: &File, path: &Path, wanted: Wanted) -> Result<()> {
    let own = rustix::fs::ioctl_blksszget(file).ok();
    let (Some(origin), Some(own)) = (wanted.block_size, own) else {
        return Ok(());
    };
    if own == origin {
        return Ok(());
    }
    Err(refused(
        path,
        format!(
            "its logical blocks have {own} bytes, and those of the backed-up device had {origin}: \
             partition tables and some file systems count in them, and would not be recognized"
        ),
        format!(
            "name a device with logical blocks of {origin} bytes, or restore to a file and use \
             \"losetup --sector-size {origin} --partscan --find FILE\"; or say --other-block-size \
             if there is no partition table, or you will make it anew"
        ),
    ))
}

/// What is on a disk, with what is on its partitions.
fn with_partitions(content: Content, number: DeviceNumber, stack: &Stack) -> Content {
    let Content::Something(mut text) = content else {
        return content;
    };
    for (node, _) in stack.partitions(number) {
        let Ok(mut file) = File::open(&node) else {
            continue;
        };
        let size = file.seek(SeekFrom::End(0)).unwrap_or(0);
        if let Content::Something(what) = probe(&file, size, &BLKID) {
            text.push_str(&format!(", {} is {what}", node.display()));
        }
    }
    Content::Something(text)
}
