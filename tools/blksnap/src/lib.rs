// SPDX-License-Identifier: GPL-2.0-only

//! Snapshots and change tracking of Linux block devices with the in-tree
//! driver "blksnap".
//!
//! [`Device`] is a block device with the filter's requests, [`Control`] the
//! driver's control device. [`held::Held`] takes a snapshot of several devices
//! at one moment and releases it when dropped; [`run::run`] runs a program
//! meanwhile. Every [`Error`] knows what was tried, on what, why it failed and
//! what to do about it.
//!
//! ```no_run
//! use blksnap::{Control, Device};
//!
//! # fn main() -> blksnap::Result<()> {
//! let device = Device::open("/dev/sda".as_ref())?;
//! device.attach()?;
//!
//! let control = Control::open()?;
//! let limit = blksnap::storage::limit("/var/tmp".as_ref(), None)?;
//! let id = control.create("/var/tmp".as_ref(), limit)?;
//! device.add_to_snapshot(id)?;
//! control.take(id)?;
//! println!("{:?}", device.snapshot_state()?.image);
//! control.destroy(id)?;
//! # Ok(())
//! # }
//! ```

#![deny(unsafe_code)]

pub mod abi;
pub mod backup;
pub mod control;
pub mod date;
pub mod device;
pub mod doctor;
pub mod error;
pub mod explain;
pub mod grow;
pub mod held;
pub mod hooks;
pub mod identity;
pub mod kernel;
pub mod lasting;
pub mod mounts;
mod owner;
pub mod printable;
pub mod run;
pub mod signals;
pub mod signature;
pub mod stack;
pub mod storage;
pub mod sysfs;
pub mod zone;

mod id;
mod lossy;
mod size;
#[allow(unsafe_code)]
mod sys;

pub use control::Control;
pub use device::Device;
pub use error::Error;
pub use error::Result;
pub use id::ParseUuidError;
pub use id::Uuid;
pub use size::Bytes;
pub use size::ParseRangeError;
pub use size::ParseSizeError;
pub use size::Sectors;
pub use size::StorageRange;
