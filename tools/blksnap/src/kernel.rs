// SPDX-License-Identifier: GPL-2.0-only

//! What holding a snapshot needs from the kernel, as a trait, so that the
//! logic above it can be tested on any kernel.

use std::path::Path;
use std::path::PathBuf;

use crate::control::Control;
use crate::device::Attachment;
use crate::device::Device;
use crate::device::DeviceNumber;
use crate::device::SnapshotState;
use crate::device::Takes;
use crate::device::Tracking;
use crate::error::Result;
use crate::held::HeldDevice;
use crate::identity::Disk;
use crate::identity::Machine;
use crate::identity::Sources;
use crate::mounts;
use crate::size::Sectors;
use crate::sysfs::Sysfs;
use crate::Uuid;

/// The kernel's part in holding a snapshot.
pub trait Kernel {
    /// Attaches the filter to `device` unless it is attached already.
    fn attach(&self, device: &Path) -> Result<Attachment>;
    fn detach(&self, device: &Path) -> Result<()>;
    fn create(&self, store: &Path, limit: Sectors) -> Result<Uuid>;
    fn add(&self, id: Uuid, device: &Path) -> Result<()>;
    fn take(&self, id: Uuid) -> Result<()>;
    fn destroy(&self, id: Uuid) -> Result<()>;
    fn snapshot_state(&self, device: &Path) -> Result<SnapshotState>;
    fn tracking(&self, device: &Path) -> Result<Tracking>;
    /// The takes that the tracking knows, or `None` if the driver does not tell.
    fn takes(&self, device: &Path) -> Result<Option<Takes>>;
    /// The first `map.len()` bytes of the map frozen by the newest take.
    fn read_map(&self, device: &Path, map: &mut [u8]) -> Result<()>;
    /// The node of the disk `image`, or `None` as long as there is none.
    fn image_node(&self, image: &str) -> Option<PathBuf>;
    /// Where filesystems on the disk `image` are mounted.
    fn mounts_of_image(&self, image: &str) -> Vec<PathBuf>;

    /// The machine that this is.
    fn machine(&self) -> Machine {
        Machine::here()
    }

    /// What is known of the disk that a device is, and of what its image holds.
    fn disk(&self, device: &HeldDevice) -> Disk {
        let number = crate::device::check;
        match (number(&device.path), number(&device.node)) {
            (Ok(path), Ok(node)) => Sources::default().disk(path, node),
            _ => Disk::default(),
        }
    }
}

/// The running kernel.
#[derive(Debug, Default)]
pub struct Linux {
    sysfs: Sysfs,
}

impl Kernel for Linux {
    fn attach(&self, device: &Path) -> Result<Attachment> {
        Device::open(device)?.attach()
    }

    fn detach(&self, device: &Path) -> Result<()> {
        Device::open_empty(device)?.detach()
    }

    fn create(&self, store: &Path, limit: Sectors) -> Result<Uuid> {
        Control::open()?.create(store, limit)
    }

    fn add(&self, id: Uuid, device: &Path) -> Result<()> {
        Device::open(device)?.add_to_snapshot(id)
    }

    fn take(&self, id: Uuid) -> Result<()> {
        Control::open()?.take(id)
    }

    fn destroy(&self, id: Uuid) -> Result<()> {
        Control::open()?.destroy(id)
    }

    fn snapshot_state(&self, device: &Path) -> Result<SnapshotState> {
        Device::open_empty(device)?.snapshot_state()
    }

    fn tracking(&self, device: &Path) -> Result<Tracking> {
        Device::open(device)?.tracking()
    }

    fn takes(&self, device: &Path) -> Result<Option<Takes>> {
        Device::open(device)?.takes()
    }

    fn read_map(&self, device: &Path, map: &mut [u8]) -> Result<()> {
        Device::open(device)?.read_map(0, map)
    }

    fn image_node(&self, image: &str) -> Option<PathBuf> {
        let node = self.sysfs.node(image);
        // A node left over from another disk has another number.
        let number = crate::device::check(&node).ok()?;
        (self.sysfs.number_of(image)? == number).then_some(node)
    }

    fn mounts_of_image(&self, image: &str) -> Vec<PathBuf> {
        let numbers = self.sysfs.numbers_of_disk(image);
        let of_image = |source: &Path| {
            std::fs::metadata(source).is_ok_and(|metadata| {
                use std::os::unix::fs::FileTypeExt;
                use std::os::unix::fs::MetadataExt;
                metadata.file_type().is_block_device()
                    && numbers.contains(&DeviceNumber::from_raw(metadata.rdev()))
            })
        };
        // Unreadable in a chroot without /proc; then nothing is known.
        let mounts = mounts::read().unwrap_or_default();
        mounts::points_on(&mounts, &numbers, of_image)
    }
}
