// SPDX-License-Identifier: GPL-2.0-only

//! A kernel whose devices are in memory, with a change tracking that does what
//! the driver documents.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::backup::changes::Extent;
use crate::backup::source;
use crate::device::Attachment;
use crate::device::SnapshotState;
use crate::device::Takes;
use crate::device::Tracking;
use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;
use crate::held::HeldDevice;
use crate::identity;
use crate::kernel::Kernel;
use crate::size::Sectors;
use crate::Uuid;

const ID: Uuid = Uuid::from_bytes([7; 16]);

/// A change tracking as the driver has it.
#[derive(Clone)]
pub struct Tracker {
    pub generation: u128,
    pub number: u8,
    pub live: Vec<u8>,
    pub frozen: Vec<u8>,
    pub size: usize,
    pub takes: Vec<u128>,
    /// The generation has ended; the next take begins another one.
    pub is_over: bool,
}

#[derive(Clone, Default)]
pub struct Disk {
    pub content: Vec<u8>,
    pub tracker: Option<Tracker>,
    pub error_code: i32,
    pub is_held: bool,
}

/// All that a virtual machine has, its disks and its memory.
pub type Machine = BTreeMap<PathBuf, Disk>;

/// A kernel whose devices are in memory, and their images files.
pub struct Model {
    pub directory: tempfile::TempDir,
    pub disks: RefCell<Machine>,
    random: Cell<u128>,
    block_size: usize,
    /// What the map is replaced by.
    pub map: RefCell<Option<Vec<u8>>>,
    /// Whether the driver has ids of takes.
    pub tells_takes: Cell<bool>,
    /// Why it cannot be read.
    pub map_error: Cell<Option<Errno>>,
    pub machine: RefCell<identity::Machine>,
    pub boot_id: Cell<Option<Uuid>>,
    /// What is known of devices.
    pub identities: RefCell<BTreeMap<PathBuf, identity::Disk>>,
}

impl Model {
    pub fn new(block_size: usize, disks: &[(&str, usize)]) -> Self {
        let disk = |&(name, size): &(&str, usize)| {
            let content = vec![0; size];
            let disk = Disk {
                content,
                ..Disk::default()
            };
            (PathBuf::from(name), disk)
        };
        Self {
            directory: tempfile::tempdir().unwrap(),
            disks: RefCell::new(disks.iter().map(disk).collect()),
            random: Cell::new(0),
            tells_takes: Cell::new(true),
            block_size,
            map: RefCell::new(None),
            map_error: Cell::new(None),
            machine: RefCell::default(),
            boot_id: Cell::default(),
            identities: RefCell::default(),
        }
    }

    pub fn with<T>(&self, device: &Path, act: impl FnOnce(&mut Disk) -> T) -> T {
        act(self.disks.borrow_mut().get_mut(device).unwrap())
    }

    fn tracker(&self, size: usize) -> Tracker {
        let map = vec![0; size.div_ceil(self.block_size)];
        Tracker {
            generation: self.random(),
            number: 0,
            live: map.clone(),
            frozen: map,
            size,
            takes: Vec::new(),
            is_over: false,
        }
    }

    /// A number that never comes again, whatever is put back.
    fn random(&self) -> u128 {
        self.random.set(self.random.get() + 1);
        self.random.get()
    }

    pub fn write(&self, device: &str, offset: usize, bytes: &[u8]) {
        let block_size = self.block_size;
        self.with(Path::new(device), |disk| {
            let end = (offset + bytes.len()).min(disk.content.len());
            disk.content[offset..end].copy_from_slice(&bytes[..end - offset]);
            if let Some(tracker) = &mut disk.tracker {
                let mark = tracker.number + 1;
                tracker.live[offset / block_size..end.div_ceil(block_size)].fill(mark);
            }
        });
    }

    pub fn freeze(&self, device: &Path) {
        let size = self.with(device, |disk| disk.content.len());
        let fits = self.with(device, |disk| {
            let tracker = disk.tracker.as_ref().unwrap();
            tracker.number < 254 && tracker.size == size && !tracker.is_over
        });
        if !fits {
            let tracker = self.tracker(size);
            self.with(device, |disk| disk.tracker = Some(tracker));
        }
        let id = self.random();
        self.with(device, |disk| {
            let tracker = disk.tracker.as_mut().unwrap();
            tracker.frozen.clone_from(&tracker.live);
            tracker.number += 1;
            tracker.takes.push(id);
        });
    }

    /// The machine as it is now, for [`Self::put_back`].
    pub fn machine(&self) -> Machine {
        self.disks.borrow().clone()
    }

    /// The machine is put back to what it was. What is random does not come again.
    pub fn put_back(&self, machine: &Machine) {
        self.disks.replace(machine.clone());
    }

    /// The hypervisor tells that the machine was resumed as a copy.
    pub fn tell_of_copy(&self) {
        for disk in self.disks.borrow_mut().values_mut() {
            if let Some(tracker) = &mut disk.tracker {
                tracker.is_over = true;
            }
        }
    }

    /// The device gets another content below the filter, of which the kernel
    /// knows.
    pub fn swap(&self, device: &str, content: Vec<u8>) {
        self.with(Path::new(device), |disk| {
            disk.content = content;
            if disk.is_held {
                disk.error_code = -116;
            }
            if let Some(tracker) = &mut disk.tracker {
                tracker.is_over = true;
            }
        });
    }

    /// From now on a device is known to have this serial number.
    pub fn give_serial(&self, device: &str, serial: &str) {
        let disk = identity::Disk {
            serial: Some(serial.to_owned()),
            ..identity::Disk::default()
        };
        self.identities.borrow_mut().insert(device.into(), disk);
    }

    /// What is known of one device is known of the other one.
    pub fn swap_identities(&self, names: [&str; 2]) {
        let mut identities = self.identities.borrow_mut();
        let known = names.map(|name| identities.remove(Path::new(name)));
        for (name, disk) in names.into_iter().rev().zip(known) {
            identities.extend(disk.map(|disk| (PathBuf::from(name), disk)));
        }
    }

    /// Reading these bytes of the device's image, which is returned, fails from now on, and no
    /// others.
    pub fn spoil(&self, device: &str, sectors: &[(u64, u64)], errno: Errno) -> PathBuf {
        let image = self.image_node(&image_name(Path::new(device))).unwrap();
        let bad = |&(offset, length): &(u64, u64)| (Extent { offset, length }, errno);
        source::bad::set(&image, &sectors.iter().map(bad).collect::<Vec<_>>());
        image
    }

    pub fn content(&self, device: &str) -> Vec<u8> {
        self.with(Path::new(device), |disk| disk.content.clone())
    }

    pub fn backup_directory(&self) -> PathBuf {
        self.directory.path().join("backup")
    }

    pub fn is_held(&self) -> bool {
        self.disks.borrow().values().any(|disk| disk.is_held)
    }
}

fn image_name(device: &Path) -> String {
    device.display().to_string().replace('/', "-")
}

impl Kernel for Model {
    fn attach(&self, device: &Path) -> Result<Attachment> {
        if self.with(device, |disk| disk.tracker.is_some()) {
            return Ok(Attachment::Already);
        }
        let size = self.with(device, |disk| disk.content.len());
        let tracker = self.tracker(size);
        self.with(device, |disk| disk.tracker = Some(tracker));
        Ok(Attachment::New)
    }

    fn detach(&self, device: &Path) -> Result<()> {
        self.with(device, |disk| disk.tracker = None);
        Ok(())
    }

    fn create(&self, _store: &Path, _limit: Sectors) -> Result<Uuid> {
        Ok(ID)
    }

    fn add(&self, _id: Uuid, device: &Path) -> Result<()> {
        self.with(device, |disk| disk.is_held = true);
        Ok(())
    }

    fn freeze_above(&self, _id: Uuid, _devices: &[PathBuf]) -> Result<()> {
        Ok(())
    }

    fn take(&self, _id: Uuid) -> Result<()> {
        let held = |(path, disk): (&PathBuf, &Disk)| disk.is_held.then(|| path.clone());
        let devices: Vec<PathBuf> = self.disks.borrow().iter().filter_map(held).collect();
        for device in devices {
            self.freeze(&device);
            let content = self.with(&device, |disk| disk.content.clone());
            fs::write(self.image_node(&image_name(&device)).unwrap(), content).unwrap();
        }
        Ok(())
    }

    fn destroy(&self, _id: Uuid) -> Result<()> {
        for disk in self.disks.borrow_mut().values_mut() {
            disk.is_held = false;
        }
        Ok(())
    }

    fn snapshot_state(&self, device: &Path) -> Result<SnapshotState> {
        Ok(SnapshotState {
            error_code: self.with(device, |disk| disk.error_code),
            image: Some(image_name(device)),
        })
    }

    fn tracking(&self, device: &Path) -> Result<Tracking> {
        Ok(self.with(device, |disk| {
            let tracker = disk.tracker.as_ref().unwrap();
            Tracking {
                device_capacity: tracker.size as u64,
                block_size: self.block_size as u32,
                block_count: tracker.frozen.len() as u32,
                generation_id: Uuid::from_bytes(tracker.generation.to_ne_bytes()),
                changes_number: tracker.number,
            }
        }))
    }

    fn takes(&self, device: &Path) -> Result<Option<Takes>> {
        if !self.tells_takes.get() {
            return Ok(None);
        }
        Ok(self.with(device, |disk| {
            let tracker = disk.tracker.as_ref().unwrap();
            let id = |number: &u128| Some(Uuid::from_bytes(number.to_ne_bytes()));
            Some(Takes {
                generation_id: Uuid::from_bytes(tracker.generation.to_ne_bytes()),
                ids: tracker.takes.iter().map(id).collect(),
            })
        }))
    }

    fn read_map(&self, device: &Path, map: &mut [u8]) -> Result<()> {
        if let Some(errno) = self.map_error.get() {
            return Err(Error::from_errno(Operation::CbtMap, errno));
        }
        match &*self.map.borrow() {
            Some(other) => map.copy_from_slice(other),
            None => self.with(device, |disk| {
                map.copy_from_slice(&disk.tracker.as_ref().unwrap().frozen);
            }),
        }
        Ok(())
    }

    fn image_node(&self, image: &str) -> Option<PathBuf> {
        Some(self.directory.path().join(format!("image{image}")))
    }

    fn users_of_image(&self, _image: &str) -> Vec<String> {
        Vec::new()
    }

    fn boot_id(&self) -> Option<Uuid> {
        self.boot_id.get()
    }

    fn machine(&self) -> identity::Machine {
        self.machine.borrow().clone()
    }

    fn disk(&self, device: &HeldDevice) -> identity::Disk {
        let known = self.identities.borrow();
        known.get(&device.path).cloned().unwrap_or_default()
    }
}
