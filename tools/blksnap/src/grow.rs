// SPDX-License-Identifier: GPL-2.0-only

//! Raises the limit of a snapshot's storage when little space is left.
//!
//! What is asked is how much is left, not which event came: an event is told
//! only once, and may go to somebody else. So events are waited for, but not
//! taken away from those who ask for them.

use std::convert::Infallible;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::mem::discriminant;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::time::Timespec;
use serde::Serialize;

use crate::control::StorageInfo;
use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;
use crate::signals;
use crate::size::Sectors;
use crate::storage;
use crate::sys;
use crate::Control;
use crate::Uuid;

/// After this time it is looked without an event: one may have gone to
/// somebody else, and there may be more free space than before.
const INTERVAL: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// How a storage grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Growth {
    /// By how much its limit is raised at a time.
    #[serde(rename = "step_sectors")]
    pub step: Sectors,
    /// What the limit never exceeds.
    #[serde(rename = "max_sectors")]
    pub max: Option<Sectors>,
}

impl Growth {
    /// The limit after `limit`, when `left` of the storage is left and, unless
    /// it is a block device, `free` of its filesystem.
    fn next(
        &self,
        limit: Sectors,
        left: Sectors,
        free: Option<Sectors>,
    ) -> std::result::Result<Sectors, Obstacle> {
        let max = self.max.map_or(u64::MAX, |max| max.0);
        let mut next = limit.0.saturating_add(self.step.0).min(max);
        if next <= limit.0 {
            return Err(Obstacle::Maximum);
        }
        if let Some(free) = free {
            // What is left may not be allocated yet; then it takes of what is
            // free as well.
            let left = left.0.min(limit.0);
            let room = free.0.saturating_sub(left).saturating_sub(self.step.0);
            let bound = limit.0.saturating_add(room);
            if next > bound {
                // Not every few sectors that come free are worth it.
                if room < (self.step.0 / 8).max(1) {
                    return Err(Obstacle::Filesystem { free });
                }
                next = bound;
            }
        }
        Ok(Sectors(next))
    }
}

/// Why a storage cannot grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    Maximum,
    /// Less than a step of the filesystem would stay free.
    Filesystem {
        free: Sectors,
    },
    Error(Error),
}

/// What became of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    Grown { limit: Sectors, used: Sectors },
    Stuck { limit: Sectors, obstacle: Obstacle },
}

impl News {
    pub fn is_trouble(&self) -> bool {
        matches!(self, Self::Stuck { .. })
    }

    /// Writes it to the kernel's log, if that can be done: where others look
    /// when the snapshot is corrupted, and there may be no terminal.
    pub fn log(&self, id: Uuid) {
        let level = if self.is_trouble() { 4 } else { 6 };
        log(level, &format!("snapshot {id}: {self}"));
    }
}

/// Writes a line to the kernel's log, if that can be done.
fn log(level: u8, text: &str) {
    let _ = File::options()
        .write(true)
        .open("/dev/kmsg")
        .and_then(|mut log| log.write_all(format!("<{level}>blksnap: {text}\n").as_bytes()));
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Grown { limit, used } => write!(
                f,
                "the limit of the storage is raised to {}, with {} used",
                limit.bytes(),
                used.bytes()
            ),
            Self::Stuck { limit, obstacle } => {
                let limit = limit.bytes();
                write!(f, "the storage cannot grow beyond {limit}: ")?;
                match obstacle {
                    Obstacle::Maximum => f.write_str("that is its maximum"),
                    Obstacle::Filesystem { free } => {
                        write!(f, "its filesystem has only {} free", free.bytes())
                    }
                    Obstacle::Error(error) => error.fmt(f),
                }
            }
        }
    }
}

/// Before [`serve`] is started in a process of its own: marks all inherited
/// descriptors close-on-exec, so that the reader of a pipe does not wait for that process.
pub fn close_on_exec() -> Result<()> {
    sys::close_on_exec().map_err(|error| Error::from_io(Operation::Grow, &error))
}

/// The storage of one snapshot.
pub trait Storage {
    fn info(&self) -> Result<StorageInfo>;
    fn set_limit(&self, limit: Sectors) -> Result<()>;
    /// What its filesystem has free; `None` for a block device.
    fn free(&self) -> Result<Option<Sectors>>;
    /// Waits until something happens to the snapshot, or now and then for
    /// nothing.
    fn wait(&self) -> Result<()>;
}

/// The storage of a snapshot in the running kernel.
#[derive(Debug)]
pub struct Watched {
    control: Control,
    id: Uuid,
    /// Absolute. Not opened, as that would keep its filesystem from being
    /// unmounted.
    store: PathBuf,
    is_device: bool,
    epoll: OwnedFd,
}

impl Watched {
    pub fn open(id: Uuid, store: &Path) -> Result<Self> {
        let control = Control::open()?;
        control.watch(id)?;
        // Only new events wake it up: those that nobody has taken stay.
        let refused = |errno| Error::from_errno(Operation::Watch, errno).of(id);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(refused)?;
        epoll::add(
            &epoll,
            &control,
            epoll::EventData::new_u64(0),
            epoll::EventFlags::IN | epoll::EventFlags::ET,
        )
        .map_err(refused)?;
        Ok(Self {
            control,
            id,
            store: std::path::absolute(store)
                .map_err(|error| Error::from_io(Operation::Grow, &error).on(store))?,
            is_device: storage::device_size(store)?.is_some(),
            epoll,
        })
    }
}

impl Storage for Watched {
    fn info(&self) -> Result<StorageInfo> {
        self.control.storage_info(self.id)
    }

    fn set_limit(&self, limit: Sectors) -> Result<()> {
        self.control.set_limit(self.id, limit)
    }

    fn free(&self) -> Result<Option<Sectors>> {
        if self.is_device {
            return Ok(None);
        }
        storage::free(&self.store)
            .map(|free| Some(free.sectors()))
            .map_err(|errno| Error::from_errno(Operation::Grow, errno).on(&self.store))
    }

    fn wait(&self) -> Result<()> {
        let mut events = Vec::with_capacity(1);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&INTERVAL)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(Error::from_errno(Operation::Watch, errno).of(self.id)),
        }
    }
}

/// Lets a storage grow whenever less is left than its low-space threshold,
/// until the snapshot is destroyed. It was created with `limit`.
pub fn run(storage: &dyn Storage, mut limit: Sectors, growth: Growth, tell: &dyn Fn(&News)) {
    match keep_up(storage, &mut limit, growth, tell) {
        // This is how it ends.
        Err(error) if error.errno() == Some(Errno::SRCH) => (),
        Err(error) => tell(&News::Stuck {
            limit,
            obstacle: Obstacle::Error(error),
        }),
        Ok(never) => match never {},
    }
}

fn keep_up(
    storage: &dyn Storage,
    limit: &mut Sectors,
    growth: Growth,
    tell: &dyn Fn(&News),
) -> Result<Infallible> {
    // What was told already, and is not told every time.
    let mut stuck = None;
    loop {
        let info = storage.info()?;
        if info.left() < info.low_space {
            match raise(storage, *limit, growth, info) {
                Ok(raised) => {
                    *limit = raised;
                    stuck = None;
                    tell(&News::Grown {
                        limit: raised,
                        used: info.used,
                    });
                    // One step may not be enough.
                    continue;
                }
                Err(Obstacle::Error(error)) if error.errno() == Some(Errno::SRCH) => {
                    return Err(error);
                }
                Err(obstacle) => {
                    let kind = discriminant(&obstacle);
                    if stuck.replace(kind) != Some(kind) {
                        tell(&News::Stuck {
                            limit: *limit,
                            obstacle,
                        });
                    }
                }
            }
        }
        storage.wait()?;
    }
}

fn raise(
    storage: &dyn Storage,
    limit: Sectors,
    growth: Growth,
    info: StorageInfo,
) -> std::result::Result<Sectors, Obstacle> {
    let free = storage.free().map_err(Obstacle::Error)?;
    let next = growth.next(limit, info.left(), free)?;
    storage.set_limit(next).map_err(Obstacle::Error)?;
    Ok(next)
}

/// The whole life of a process that only lets a storage grow.
pub fn serve(
    storage: &dyn Storage,
    limit: Sectors,
    growth: Growth,
    tell: &dyn Fn(&News),
) -> Result<()> {
    // It outlives its terminal, but a signal that is sent to it alone ends it.
    signals::outlive_terminal().map_err(|error| Error::from_io(Operation::Grow, &error))?;
    // Best effort: the snapshot breaks without it.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let _ = std::fs::write("/proc/self/comm", "blksnap-grow");
    run(storage, limit, growth, tell);
    Ok(())
}

#[cfg(test)]
mod tests;
