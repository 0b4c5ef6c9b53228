// SPDX-License-Identifier: GPL-2.0-only

//! Single questions about a block device, which sysfs and the mounts answer.

use std::path::Path;
use std::path::PathBuf;

use crate::abi::SECTOR_SIZE;
use crate::device::DeviceNumber;
use crate::mounts::Mount;

use super::attribute;
use super::names_in;
use super::number_in;
use super::Below;
use super::Stack;

impl Stack {
    /// The disks there are, by name.
    pub fn disks(&self) -> Vec<(String, DeviceNumber)> {
        let directory = self.sys.join("block");
        let mut found: Vec<_> = names_in(&directory)
            .into_iter()
            .filter_map(|name| Some((name.clone(), number_in(&directory.join(name))?)))
            .collect();
        found.sort();
        found
    }

    /// The name of a block device in sysfs.
    pub fn name(&self, number: DeviceNumber) -> Option<String> {
        let directory = self.directory(number)?;
        directory.file_name()?.to_str().map(str::to_owned)
    }

    /// Where sysfs has a block device, without `/sys`. It tells which bus it is on.
    pub fn place(&self, number: DeviceNumber) -> Option<PathBuf> {
        let root = std::fs::canonicalize(&self.sys).ok()?;
        let directory = self.directory(number)?;
        directory.strip_prefix(root).map(Path::to_owned).ok()
    }

    /// What an attribute of a block device says, or `None` if that is nothing.
    pub fn attribute(&self, number: DeviceNumber, name: &str) -> Option<String> {
        attribute(&self.directory(number)?, name)
    }

    /// Whether a block device has this attribute or directory.
    pub fn has(&self, number: DeviceNumber, name: &str) -> bool {
        let directory = self.directory(number);
        directory.is_some_and(|directory| directory.join(name).exists())
    }

    /// Bytes of a block device.
    pub fn size(&self, number: DeviceNumber) -> u64 {
        let sectors = self
            .attribute(number, "size")
            .and_then(|it| it.parse().ok());
        sectors.map_or(0, |it: u64| it.saturating_mul(SECTOR_SIZE))
    }

    /// The disk that a partition is of, or the device itself.
    pub fn disk(&self, number: DeviceNumber) -> DeviceNumber {
        if !self.has(number, "partition") {
            return number;
        }
        let directory = self.directory(number);
        let disk = directory.as_deref().and_then(Path::parent);
        disk.and_then(number_in).unwrap_or(number)
    }

    /// The devices that are stacked directly on a block device.
    pub fn holders(&self, number: DeviceNumber) -> Vec<DeviceNumber> {
        self.linked(number, "holders")
    }

    /// The devices that a block device is made of.
    pub fn slaves(&self, number: DeviceNumber) -> Vec<DeviceNumber> {
        self.linked(number, "slaves")
    }

    fn linked(&self, number: DeviceNumber, name: &str) -> Vec<DeviceNumber> {
        let Some(directory) = self.directory(number) else {
            return Vec::new();
        };
        let mut names = names_in(&directory.join(name));
        names.sort();
        let class = self.sys.join("class/block");
        let numbers = names.iter().filter_map(|it| number_in(&class.join(it)));
        numbers.collect()
    }

    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// The file systems that are mounted from a block device, each with all of its mounts.
    pub fn mounts_on(&self, number: DeviceNumber) -> Vec<&Mount> {
        let is_on = |mount: &&Mount| {
            mount.number == number || self.block_device(&mount.source) == Some(number)
        };
        self.mounts.iter().filter(is_on).collect()
    }

    /// What a mounted file system lies on. No file is looked at.
    pub fn below_mount(&self, mount: &Mount) -> Below {
        let mut below = Below::default();
        let number = match self.directory(mount.number) {
            Some(_) => Some(mount.number),
            None => self.block_device(&mount.source),
        };
        if let Some(number) = number {
            self.add_device(number, &mut below);
        }
        below
    }

    /// Whether a block device is swapped to.
    pub fn is_swap(&self, number: DeviceNumber) -> bool {
        self.swaps().contains(&number)
    }
}
