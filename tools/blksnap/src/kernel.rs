// SPDX-License-Identifier: GPL-2.0-only

//! What holding a snapshot needs from the kernel, as a trait, so that the
//! logic above it can be tested on any kernel.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::open;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::control::Control;
use crate::device::Attachment;
use crate::device::Device;
use crate::device::DeviceNumber;
use crate::device::SnapshotState;
use crate::device::Takes;
use crate::device::Tracking;
use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;
use crate::held::HeldDevice;
use crate::identity::Disk;
use crate::identity::Machine;
use crate::identity::Sources;
use crate::size::Sectors;
use crate::stack::Stack;
use crate::sysfs::Sysfs;
use crate::Uuid;

/// The kernel's part in holding a snapshot.
pub trait Kernel {
    /// Attaches the filter to `device` unless it is attached already.
    fn attach(&self, device: &Path) -> Result<Attachment>;
    fn detach(&self, device: &Path) -> Result<()>;
    fn create(&self, store: &Path, limit: Sectors) -> Result<Uuid>;
    fn add(&self, id: Uuid, device: &Path) -> Result<()>;
    /// Has file systems on devices that are stacked on `devices` frozen while it is taken.
    fn freeze_above(&self, id: Uuid, devices: &[PathBuf]) -> Result<()>;
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
    /// What uses the disk `image` or a partition of it, in words.
    fn users_of_image(&self, image: &str) -> Vec<String>;

    /// The machine that this is.
    fn machine(&self) -> Machine {
        Machine::here()
    }

    /// An id that is another one after each restart; none if it is not known.
    fn boot_id(&self) -> Option<Uuid> {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        id.trim().parse().ok()
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

/// Attaches the filter, but not to a path of a multipath device, whose writes it would not see.
pub fn attach(device: &Path) -> Result<Attachment> {
    let multipath = crate::device::check(device)
        .ok()
        .and_then(|number| Stack::default().multipath_above(number));
    if let Some(multipath) = multipath {
        let multipath = multipath.display();
        return Err(Error::new(
            Operation::Attach,
            format!(
                "it is a path of the multipath device {multipath}, and what is written by way of \
                 that cannot be seen here"
            ),
        )
        .remedied_by(format!("name {multipath} instead"))
        .on(device));
    }
    Device::open(device)?.attach()
}

/// Has the file systems on devices that are stacked on `devices` frozen when a snapshot is taken.
/// With a driver that cannot do that, they are as after a power cut in it.
pub fn freeze_above(control: &Control, id: Uuid, devices: &[PathBuf]) -> Result<()> {
    let numbers: Vec<DeviceNumber> = devices
        .iter()
        .filter_map(|device| crate::device::check(device).ok())
        .collect();
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    for node in Stack::default().above(&numbers) {
        // One that cannot be opened is going away, or has no medium.
        let Ok(device) = open(&node, flags, Mode::empty()) else {
            continue;
        };
        if let Err(error) = control.freeze(id, &device) {
            match error.errno() {
                Some(Errno::ALREADY | Errno::NODEV | Errno::NXIO) => {}
                Some(Errno::NOTTY) => return Ok(()),
                _ => return Err(error.on(&node)),
            }
        }
    }
    Ok(())
}

/// What is done with a snapshot that was just created; an error destroys it again.
type AtCreate<'a> = Box<dyn Fn(Uuid, &Path) -> Result<()> + 'a>;

/// The running kernel. It destroys the snapshots that were created with this when this is dropped or
/// the process ends, and if it is killed.
pub struct Linux<'a> {
    sysfs: Sysfs,
    at_create: AtCreate<'a>,
    /// The files that the snapshots end with, one for each.
    owners: RefCell<HashMap<Uuid, Control>>,
}

impl Default for Linux<'_> {
    fn default() -> Self {
        Self::new(|_, _| Ok(()))
    }
}

impl<'a> Linux<'a> {
    /// `at_create` gets the id of a snapshot that was just created, and its storage.
    pub fn new(at_create: impl Fn(Uuid, &Path) -> Result<()> + 'a) -> Self {
        Self {
            sysfs: Sysfs::default(),
            at_create: Box::new(at_create),
            owners: RefCell::default(),
        }
    }

    fn hold(&self, id: Uuid, owner: Control) {
        self.owners.borrow_mut().insert(id, owner);
    }

    /// Whether somebody has a block device for himself, as a mount has.
    fn is_claimed(&self, number: DeviceNumber) -> bool {
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let node = self.sysfs.node_of(number);
        node.is_some_and(|node| matches!(open(node, flags, Mode::empty()), Err(Errno::BUSY)))
    }
}

impl Kernel for Linux<'_> {
    fn attach(&self, device: &Path) -> Result<Attachment> {
        attach(device)
    }

    fn detach(&self, device: &Path) -> Result<()> {
        Device::open_empty(device)?.detach()
    }

    fn create(&self, store: &Path, limit: Sectors) -> Result<Uuid> {
        let control = Control::open()?;
        // Before there is one, so that it has its owner from the start.
        control.own()?;
        let id = control.create(store, limit)?;
        (self.at_create)(id, store)?;
        self.hold(id, control);
        Ok(id)
    }

    fn add(&self, id: Uuid, device: &Path) -> Result<()> {
        Device::open(device)?.add_to_snapshot(id)
    }

    fn freeze_above(&self, id: Uuid, devices: &[PathBuf]) -> Result<()> {
        freeze_above(&Control::open()?, id, devices)
    }

    fn take(&self, id: Uuid) -> Result<()> {
        Control::open()?.take(id)
    }

    fn destroy(&self, id: Uuid) -> Result<()> {
        let owner = self.owners.borrow_mut().remove(&id);
        match owner {
            // Even after an error it ends, as this is closed.
            Some(control) => control.destroy(id),
            None => Control::open()?.destroy(id),
        }
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

    fn users_of_image(&self, image: &str) -> Vec<String> {
        let numbers = self.sysfs.numbers_of_disk(image);
        let Some(disk) = numbers.first() else {
            return Vec::new();
        };
        let mut users = Stack::default().users(*disk);
        if users.is_empty() && numbers.iter().any(|it| self.is_claimed(*it)) {
            users.push(
                "it is mounted or claimed by what cannot be seen from here, such as a process that \
                 is hidden"
                    .to_owned(),
            );
        }
        users
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_boot_has_an_id() {
        let id = Linux::default().boot_id();
        assert!(id.is_some());
        assert_eq!(id, Linux::default().boot_id());
    }

    /// A file in place of the control device, and one that tells whether it is still open.
    fn owner() -> (Control, UnixStream) {
        let (file, watch) = UnixStream::pair().unwrap();
        watch.set_nonblocking(true).unwrap();
        (Control::from(OwnedFd::from(file)), watch)
    }

    fn is_closed(mut watch: &UnixStream) -> bool {
        matches!(watch.read(&mut [0]), Ok(0))
    }

    #[test]
    fn snapshots_end_one_by_one() {
        let kernel = Linux::default();
        let [first, second, third] = [1, 2, 3].map(|number| {
            let id = Uuid::from_bytes([number; 16]);
            let (owner, watch) = owner();
            kernel.hold(id, owner);
            (id, watch)
        });
        for (_, watch) in [&first, &second, &third] {
            assert!(!is_closed(watch));
        }
        // The file is none of the driver.
        let error = kernel.destroy(second.0).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NOTTY));
        assert!(is_closed(&second.1));
        assert!(!is_closed(&first.1) && !is_closed(&third.1));
        drop(kernel);
        assert!(is_closed(&first.1) && is_closed(&third.1));
    }
}
