// SPDX-License-Identifier: GPL-2.0-only

//! A kernel of files, for backups without a driver.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use blksnap::device::Attachment;
use blksnap::device::SnapshotState;
use blksnap::device::Tracking;
use blksnap::error::Operation;
use blksnap::kernel::Kernel;
use blksnap::Error;
use blksnap::Result;
use blksnap::Sectors;
use blksnap::Uuid;

use super::ID;

pub const SIZE: usize = 2 << 20;
pub const BLOCK: usize = 64 << 10;

/// A kernel of files: "disk" is the device, "held" its image while there is a
/// snapshot, "number" that of the newest. Everything counts as changed.
#[derive(Clone)]
pub struct Files(pub PathBuf);

impl Files {
    fn number(&self) -> u8 {
        let text = fs::read_to_string(self.0.join("number")).unwrap_or_default();
        text.parse().unwrap_or(0)
    }
}

impl Kernel for Files {
    fn attach(&self, _device: &Path) -> Result<Attachment> {
        Ok(Attachment::Already)
    }

    fn detach(&self, _device: &Path) -> Result<()> {
        Ok(())
    }

    fn create(&self, _store: &Path, _limit: Sectors) -> Result<Uuid> {
        Ok(ID)
    }

    fn add(&self, _id: Uuid, _device: &Path) -> Result<()> {
        Ok(())
    }

    fn take(&self, _id: Uuid) -> Result<()> {
        fs::write(self.0.join("number"), (self.number() + 1).to_string()).unwrap();
        fs::copy(self.0.join("disk"), self.0.join("held")).unwrap();
        Ok(())
    }

    fn destroy(&self, id: Uuid) -> Result<()> {
        fs::remove_file(self.0.join("held"))
            .map_err(|_| Error::from_errno(Operation::Destroy, rustix::io::Errno::NODEV).of(id))
    }

    fn snapshot_state(&self, _device: &Path) -> Result<SnapshotState> {
        Ok(SnapshotState {
            error_code: 0,
            image: Some("held".to_owned()),
        })
    }

    fn tracking(&self, _device: &Path) -> Result<Tracking> {
        Ok(Tracking {
            device_capacity: SIZE as u64,
            block_size: BLOCK as u32,
            block_count: (SIZE / BLOCK) as u32,
            generation_id: Uuid::from_bytes([1; 16]),
            changes_number: self.number(),
        })
    }

    fn read_map(&self, _device: &Path, map: &mut [u8]) -> Result<()> {
        map.fill(self.number());
        Ok(())
    }

    fn image_node(&self, image: &str) -> Option<PathBuf> {
        Some(self.0.join(image))
    }

    fn mounts_of_image(&self, _image: &str) -> Vec<PathBuf> {
        Vec::new()
    }
}
