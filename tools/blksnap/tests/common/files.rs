// SPDX-License-Identifier: GPL-2.0-only

//! A kernel of files, for tests with real processes and the real command.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use blksnap::backup;
use blksnap::backup::names::label;
use blksnap::backup::plan::Mode;
use blksnap::backup::Progress;
use blksnap::backup::Watch;
use blksnap::device::Attachment;
use blksnap::device::SnapshotState;
use blksnap::device::Takes;
use blksnap::device::Tracking;
use blksnap::error::Operation;
use blksnap::identity::Machine;
use blksnap::kernel::Kernel;
use blksnap::Error;
use blksnap::Result;
use blksnap::Sectors;
use blksnap::Uuid;

use super::ID;

pub const SIZE: usize = 2 << 20;
pub const BLOCK: usize = 64 << 10;

/// Goes on whatever happens.
pub struct Nobody;

impl Watch for Nobody {
    fn keep_on(&mut self, _progress: Progress) -> Result<()> {
        Ok(())
    }

    fn tell(&mut self, note: &str) {
        eprintln!("{note}");
    }
}

/// A kernel whose devices are files in a directory, called as the last part of the
/// device's name; with ".held" its image while there is a snapshot. "number" is that
/// of the newest snapshot; "host" the machine, if it is not this one, with a second line if
/// several have its name and id. Everything counts as changed.
#[derive(Clone)]
pub struct Files(pub PathBuf);

impl Files {
    /// An incremental backup of "disk" into a directory beside it.
    pub fn request(&self) -> backup::Request {
        backup::Request {
            devices: vec!["/dev/disk".into()],
            store: "/store".into(),
            hooks: Default::default(),
            limit: Sectors(1),
            to: self.0.join("backup"),
            is_trusted: false,
            existing: false,
            is_shared: false,
            mode: Mode::Incremental,
            bandwidth: None,
            spot_check: 1,
            salvage: false,
            // A child that another test has forked holds the lock until it executes a program.
            lock_wait: Duration::from_secs(5),
        }
    }

    fn number(&self) -> u8 {
        let text = fs::read_to_string(self.0.join("number")).unwrap_or_default();
        text.parse().unwrap_or(0)
    }

    fn disk(&self, device: &Path) -> PathBuf {
        self.0.join(device.file_name().unwrap())
    }

    fn added(&self) -> Vec<String> {
        let text = fs::read_to_string(self.0.join("added")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// What the image of a device is called.
fn held(device: &Path) -> String {
    format!("{}.held", label(&device.to_string_lossy()))
}

/// Of each device another one.
fn generation(device: &Path) -> Uuid {
    Uuid::from_bytes([mark(device); 16])
}

/// Of each device and number another one.
fn take_id(device: &Path, number: u8) -> Uuid {
    let mut bytes = [mark(device); 16];
    bytes[0] = number;
    Uuid::from_bytes(bytes)
}

fn mark(device: &Path) -> u8 {
    let name = device.file_name().unwrap().as_encoded_bytes();
    let sum = name.iter().fold(1u8, |sum, byte| sum.wrapping_add(*byte));
    sum.max(1)
}

impl Kernel for Files {
    fn attach(&self, _device: &Path) -> Result<Attachment> {
        Ok(Attachment::Already)
    }

    fn detach(&self, _device: &Path) -> Result<()> {
        Ok(())
    }

    fn create(&self, _store: &Path, _limit: Sectors) -> Result<Uuid> {
        fs::write(self.0.join("added"), "").unwrap();
        Ok(ID)
    }

    fn add(&self, _id: Uuid, device: &Path) -> Result<()> {
        let names = fs::read_to_string(self.0.join("added")).unwrap();
        fs::write(self.0.join("added"), format!("{names}{}\n", held(device))).unwrap();
        fs::copy(self.disk(device), self.0.join(held(device) + ".new")).unwrap();
        Ok(())
    }

    fn freeze_above(&self, _id: Uuid, _devices: &[PathBuf]) -> Result<()> {
        Ok(())
    }

    fn take(&self, _id: Uuid) -> Result<()> {
        fs::write(self.0.join("number"), (self.number() + 1).to_string()).unwrap();
        for name in self.added() {
            fs::rename(self.0.join(name.clone() + ".new"), self.0.join(name)).unwrap();
        }
        Ok(())
    }

    fn destroy(&self, id: Uuid) -> Result<()> {
        for name in self.added() {
            fs::remove_file(self.0.join(name)).map_err(|_| {
                Error::from_errno(Operation::Destroy, rustix::io::Errno::NODEV).of(id)
            })?;
        }
        Ok(())
    }

    fn snapshot_state(&self, device: &Path) -> Result<SnapshotState> {
        Ok(SnapshotState {
            error_code: 0,
            image: Some(held(device)),
        })
    }

    fn tracking(&self, device: &Path) -> Result<Tracking> {
        let size = fs::metadata(self.disk(device)).unwrap().len();
        Ok(Tracking {
            device_capacity: size,
            block_size: BLOCK as u32,
            block_count: size.div_ceil(BLOCK as u64) as u32,
            generation_id: generation(device),
            changes_number: self.number(),
        })
    }

    fn takes(&self, device: &Path) -> Result<Option<Takes>> {
        Ok(Some(Takes {
            generation_id: generation(device),
            ids: (1..=self.number())
                .map(|number| Some(take_id(device, number)))
                .collect(),
        }))
    }

    fn read_map(&self, _device: &Path, map: &mut [u8]) -> Result<()> {
        map.fill(self.number());
        Ok(())
    }

    fn image_node(&self, image: &str) -> Option<PathBuf> {
        // A test may have a block device for it.
        let node = fs::read_to_string(self.0.join(format!("{image}.node")));
        Some(node.map_or_else(|_| self.0.join(image), PathBuf::from))
    }

    fn users_of_image(&self, _image: &str) -> Vec<String> {
        Vec::new()
    }

    fn machine(&self) -> Machine {
        match fs::read_to_string(self.0.join("host")) {
            Err(_) => Machine::here(),
            Ok(text) => {
                let mut lines = text.lines().map(str::to_owned);
                let host = lines.next().unwrap_or_default();
                Machine {
                    id: Some(format!("id of {host}")),
                    hardware: lines.next(),
                    host: Some(host),
                }
            }
        }
    }
}
