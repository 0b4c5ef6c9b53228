// SPDX-License-Identifier: GPL-2.0-only

//! Locks of a directory of backups, and who holds them.
//!
//! There are two, each a file that is locked as a whole with flock(2), for which a reader needs
//! no write access. What takes both takes them in this order:
//!
//! 1. The writer's ([`WRITER`]), exclusively, by what changes the backup: one does at a time.
//! 2. That of the files ([`LOCK`]), shared by what reads files that a manifest names, and
//!    exclusively by what removes or replaces such files.
//!
//! So a backup, which only adds files, excludes other writers and no reader.
//!
//! A writer notes in its lock's file who it is. The note proves nothing and is looked at
//! only while the lock cannot be had: a process that was killed leaves it there. The kernel's
//! list of locks counts more, where the holder is on it.
//!
//! [`WRITER`]: super::names::WRITER
//! [`LOCK`]: super::names::LOCK

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;

use rustix::fs::flock;
use rustix::fs::fstat;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::param::clock_ticks_per_second;
use rustix::system::uname;
use serde::Deserialize;
use serde::Serialize;

use crate::date::rfc3339;
use crate::device::DeviceNumber;
use crate::error::Error;
use crate::error::Exit;
use crate::error::Operation;
use crate::error::Result;

use super::now;
use super::Progress;
use super::Watch;

/// How long a lock is waited for in any case: a process that is just being started has all
/// files of its parent.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often it is tried then, and later.
const FIRST_NAPS: Duration = Duration::from_millis(10);
const NAPS: Duration = Duration::from_millis(200);

/// Upper limits of what is read of a note, and told of it.
const NOTE_BYTES: u64 = 4096;
const TEXT_CHARS: usize = 160;
/// How many holders are named.
const NAMED: usize = 3;

const LOCKS: &str = "/proc/locks";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A file that is locked until this is dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
    is_signed: bool,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.is_signed {
            // The note is about this holder only.
            let _ = self.file.set_len(0);
        }
    }
}

/// How long a lock is waited for, and who gets a note of that.
pub struct Wait<'a> {
    pub limit: Duration,
    pub watch: &'a mut dyn Watch,
}

impl Lock {
    /// Locks a file of the backup in `directory`. If that takes longer than `wait` says, it is
    /// an error with the exit code for that, which names the `holders`.
    pub fn take(
        file: File,
        operation: FlockOperation,
        directory: &Path,
        wait: Wait<'_>,
        holders: &dyn Fn(&File) -> String,
    ) -> Result<Self> {
        let lock = Self {
            file,
            is_signed: false,
        };
        lock.change(operation, directory, wait, holders)?;
        Ok(lock)
    }

    /// Makes a shared lock exclusive or the other way round. In between, or after an error, it
    /// is none at all.
    pub fn change(
        &self,
        operation: FlockOperation,
        directory: &Path,
        wait: Wait<'_>,
        holders: &dyn Fn(&File) -> String,
    ) -> Result<()> {
        let start = Instant::now();
        let mut told = String::new();
        loop {
            match flock(&self.file, operation) {
                Ok(()) => return Ok(()),
                // CIFS says EACCES, as POSIX has it for fcntl().
                Err(Errno::AGAIN | Errno::ACCESS) => (),
                Err(errno) if is_without_locks(errno) => return Err(no_locks(directory, errno)),
                Err(errno) => {
                    return Err(Error::from_errno(Operation::OpenBackup, errno).on(directory))
                }
            }
            let elapsed = start.elapsed();
            if elapsed < PATIENCE {
                sleep(FIRST_NAPS);
                continue;
            }
            let holders = holders(&self.file);
            if elapsed >= wait.limit {
                return Err(locked(directory, &holders, wait.limit));
            }
            if told != holders {
                wait.watch.tell(&format!(
                    "{} is locked by {holders}; waiting for at most {} s",
                    directory.display(),
                    wait.limit.saturating_sub(elapsed).as_secs_f64().ceil()
                ));
                told = holders;
            }
            wait.watch.keep_on(Progress { done: 0, total: 0 })?;
            sleep(NAPS.min(wait.limit - elapsed));
        }
    }

    /// Writes to the file who holds it, as far as that is possible.
    pub fn sign(&mut self) {
        // A file with another name elsewhere is not for us to write to.
        if fstat(&self.file).is_ok_and(|stat| stat.st_nlink == 1) {
            self.is_signed = true;
            let _ = self
                .file
                .set_len(0)
                .and_then(|()| self.file.write_all_at(Note::own().to_json().as_bytes(), 0));
        }
    }
}

/// Whether a filesystem that says so keeps no locks at all.
pub fn is_without_locks(errno: Errno) -> bool {
    matches!(errno, Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS)
}

fn no_locks(directory: &Path, errno: Errno) -> Error {
    Error::from_errno(Operation::OpenBackup, errno)
        .because("its filesystem keeps no locks now, without which two writers could meet")
        .on(directory)
        .remedied_by(
            "NFS before version 4 needs rpc.statd on both machines, or the mount option \
             \"local_lock=flock\" if no other machine uses the backup; CIFS has the mount option \
             \"nobrl\" for that",
        )
}

fn locked(directory: &Path, holders: &str, waited: Duration) -> Error {
    let remedy = match waited.is_zero() {
        true => "wait until that has ended, or say --lock-wait SECONDS to have it waited for",
        false => "it was waited for as long as --lock-wait said; see what that process does",
    };
    Error::from_errno(Operation::OpenBackup, Errno::AGAIN)
        .because(format!("it is locked by {holders}"))
        .on(directory)
        .remedied_by(remedy)
        .exiting(Exit::Locked)
}

/// What holds a file locked exclusively: `note` is the file in which it says who it is.
pub fn writers(locked: &File, note: Option<&File>) -> String {
    let note = note.and_then(Note::read);
    let pids = pids(locked, "WRITE");
    match &pids[..] {
        [] => note.map_or_else(unseen, |note| note.to_string()),
        [pid, ..] => match note.filter(|note| note.is_of(*pid)) {
            Some(note) => note.to_string(),
            // It has not noted it yet.
            None => process(*pid),
        },
    }
}

/// What holds a file locked exclusively, as far as the kernel's list of locks has it. Takes no
/// lock, so that nobody else has to wait.
pub fn writer_seen(locked: &File, note: Option<&File>) -> Option<String> {
    (!pids(locked, "WRITE").is_empty()).then(|| writers(locked, note))
}

/// What holds a file locked together with others.
pub fn readers(locked: &File) -> String {
    let pids = pids(locked, "READ");
    if pids.is_empty() {
        return "a verify or restore that cannot be seen from here, as on another machine"
            .to_owned();
    }
    let mut named: Vec<String> = pids.iter().take(NAMED).map(|pid| process(*pid)).collect();
    match pids.len() - named.len() {
        0 => (),
        more => named.push(format!("{more} more")),
    }
    named.join(", ")
}

fn unseen() -> String {
    "a process that cannot be seen from here, as on another machine".to_owned()
}

/// The holder of a lock, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    host: String,
    /// The id of the start of the machine, without which the number of a process says nothing.
    boot: String,
    pid: u32,
    command: String,
    /// As RFC 3339 has it.
    since: String,
}

impl Note {
    fn own() -> Self {
        let arguments: Vec<_> = std::env::args_os()
            .map(|it| it.to_string_lossy().into_owned())
            .collect();
        Self {
            host: uname().nodename().to_string_lossy().into_owned(),
            boot: boot_id(),
            pid: std::process::id(),
            command: shortened(&arguments.join(" ")),
            since: rfc3339(now()),
        }
    }

    fn to_json(&self) -> String {
        let mut text = serde_json::to_string(self).expect("it has only plain keys");
        text.push('\n');
        text
    }

    /// What another process noted, if it makes sense.
    fn read(file: &File) -> Option<Self> {
        let mut text = String::new();
        file.take(NOTE_BYTES).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Whether it is that of a process of this machine.
    fn is_of(&self, pid: u32) -> bool {
        self.pid == pid && self.boot == boot_id()
    }
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "\"{}\" (process {} on {}) since {}",
            shortened(&self.command),
            self.pid,
            shortened(&self.host),
            shortened(&self.since)
        )
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(TEXT_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

fn boot_id() -> String {
    let text = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    text.trim().to_owned()
}

/// The processes of this machine that have a file locked; none if they cannot be seen from here.
fn pids(file: &File, kind: &str) -> Vec<u32> {
    let Ok(stat) = fstat(file) else {
        return Vec::new();
    };
    let number = number_of(file).unwrap_or(DeviceNumber::from_raw(stat.st_dev));
    let text = std::fs::read_to_string(LOCKS).unwrap_or_default();
    parse_locks(&text, kind, number, stat.st_ino)
}

/// The number that the kernel's list has for the filesystem of a file, which for btrfs is not
/// that of stat().
fn number_of(file: &File) -> Option<DeviceNumber> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let id = info.lines().find_map(|it| it.strip_prefix("mnt_id:"))?;
    let mounts = std::fs::read("/proc/self/mountinfo").ok()?;
    let mounts = String::from_utf8_lossy(&mounts);
    let mut lines = mounts.lines().map(|line| line.split(' '));
    let mut line = lines.find(|line| line.clone().next() == Some(id.trim()))?;
    DeviceNumber::parse(line.nth(2)?)
}

/// From lines such as "1: FLOCK  ADVISORY  WRITE 1234 08:01:131 0 EOF". Those that wait have an
/// arrow after the colon.
fn parse_locks(text: &str, kind: &str, number: DeviceNumber, inode: u64) -> Vec<u32> {
    let parse = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let is_wanted =
            words.next() == Some("FLOCK") && words.nth(1).is_some_and(|word| word == kind);
        let pid = words.next().filter(|_| is_wanted)?.parse().ok()?;
        let mut place = words.next()?.split(':');
        let mut hex = || u32::from_str_radix(place.next()?, 16).ok();
        let found = DeviceNumber::parse(&format!("{}:{}", hex()?, hex()?))?;
        (found == number && place.next()?.parse() == Ok(inode)).then_some(pid)
    };
    text.lines().filter_map(parse).collect()
}

/// What a process is, in words.
fn process(pid: u32) -> String {
    let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let command = read("cmdline");
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    let text = match command.trim() {
        "" => format!("process {pid}"),
        command => format!("\"{}\" (process {pid})", shortened(command)),
    };
    let stat = read("stat");
    let system = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    match started(&String::from_utf8_lossy(&stat), &system) {
        Some(seconds) => format!("{text} since {}", rfc3339(seconds)),
        None => text,
    }
}

/// When a process was started, in seconds since 1970, from its "stat" and that of the system.
fn started(stat: &str, system: &str) -> Option<u64> {
    // The name before may have any character.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: u64 = fields.split_ascii_whitespace().nth(19)?.parse().ok()?;
    let boot: u64 = system
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()?;
    Some(boot + ticks / clock_ticks_per_second().max(1))
}

#[cfg(test)]
mod tests;
