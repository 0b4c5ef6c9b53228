// SPDX-License-Identifier: GPL-2.0-only

//! What no file tells, as a trait, so that checks can be tested on any machine.

use std::path::Path;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use rustix::fs::accessat;
use rustix::fs::statvfs;
use rustix::fs::Access;
use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::io::Errno;

use crate::control::DriverVersion;
use crate::error::Result;
use crate::Bytes;
use crate::Control;

/// Bytes of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub total: Bytes,
    /// What an ordinary user can still take.
    pub free: Bytes,
    /// What is in use.
    pub used: Bytes,
}

/// The running system.
pub trait System {
    /// Seconds since 1970.
    fn now(&self) -> u64;
    /// Bytes of a page of memory.
    fn page_size(&self) -> u64;
    /// The space of the file system that a path is on. It must not be a remote one.
    fn space(&self, path: &Path) -> Option<Space>;
    /// Whether this process can write to a directory.
    fn can_write(&self, path: &Path) -> std::result::Result<(), Errno>;
    /// Opens the control device and asks for the driver's version.
    fn driver(&self, path: &Path) -> Result<DriverVersion>;
}

/// This machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct Here;

impl System for Here {
    fn now(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(0, |it| it.as_secs())
    }

    fn page_size(&self) -> u64 {
        rustix::param::page_size() as u64
    }

    fn space(&self, path: &Path) -> Option<Space> {
        let fs = statvfs(path).ok()?;
        let bytes = |blocks: u64| Bytes(blocks.saturating_mul(fs.f_frsize));
        Some(Space {
            total: bytes(fs.f_blocks),
            free: bytes(fs.f_bavail),
            used: bytes(fs.f_blocks.saturating_sub(fs.f_bfree)),
        })
    }

    fn can_write(&self, path: &Path) -> std::result::Result<(), Errno> {
        accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS)
    }

    fn driver(&self, path: &Path) -> Result<DriverVersion> {
        Control::open_at(path)?.version()
    }
}
