// SPDX-License-Identifier: GPL-2.0-only

//! What sysfs says about block devices.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use serde::Serialize;

use crate::device::DeviceNumber;

/// A block device and the filter attached to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Filtered {
    /// The device node.
    #[serde(serialize_with = "crate::lossy::path")]
    pub device: PathBuf,
    /// Name of the filter, if one is attached.
    pub filter: Option<String>,
}

/// A view of sysfs and of the device nodes.
#[derive(Debug, Clone)]
pub struct Sysfs {
    root: PathBuf,
    dev: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self {
            root: "/sys".into(),
            dev: "/dev".into(),
        }
    }
}

impl Sysfs {
    /// The same below another root.
    pub(crate) fn at(root: &Path) -> Self {
        Self {
            root: root.join("sys"),
            dev: root.join("dev"),
        }
    }

    /// The disks and partitions that have a filter attached, by name. Empty
    /// on a kernel without filters.
    pub fn filtered(&self) -> io::Result<Vec<Filtered>> {
        let mut found = Vec::new();
        for disk in entries(&self.root.join("block"))? {
            found.extend(self.filtered_at(&disk));
            // A disk may vanish while its partitions are listed.
            for part in partitions(&disk) {
                found.extend(self.filtered_at(&part));
            }
        }
        found.sort_by(|a, b| a.device.cmp(&b.device));
        Ok(found)
    }

    fn filtered_at(&self, directory: &Path) -> Option<Filtered> {
        let filter = filter_in(directory)?;
        Some(Filtered {
            device: self.node(directory.file_name()?.to_str()?),
            filter: Some(filter),
        })
    }

    /// The name of the filter attached to a device.
    pub fn filter_of(&self, number: DeviceNumber) -> Option<String> {
        filter_in(&self.root.join("dev/block").join(number.to_string()))
    }

    /// The device node of a disk or partition. Where a name has a slash,
    /// sysfs has an exclamation mark.
    pub fn node(&self, name: &str) -> PathBuf {
        self.dev.join(name.replace('!', "/"))
    }

    /// The device node of what has this number, if it is still there.
    pub fn node_of(&self, number: DeviceNumber) -> Option<PathBuf> {
        let link = self.root.join("dev/block").join(number.to_string());
        let directory = fs::canonicalize(link).ok()?;
        Some(self.node(directory.file_name()?.to_str()?))
    }

    /// The number of a disk or partition, if there is one of that name.
    pub fn number_of(&self, name: &str) -> Option<DeviceNumber> {
        let directory = self.root.join("class/block").join(name.replace('/', "!"));
        number_in(&directory)
    }

    /// The numbers of a disk and its partitions.
    pub fn numbers_of_disk(&self, name: &str) -> Vec<DeviceNumber> {
        let directory = self.root.join("class/block").join(name.replace('/', "!"));
        let parts = partitions(&directory);
        std::iter::once(&directory)
            .chain(parts.iter())
            .filter_map(|directory| number_in(directory))
            .collect()
    }
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(directory)?
        .map(|entry| Ok(entry?.path()))
        .collect()
}

/// The directories of a disk's partitions. The test is strict, since the link
/// to the parent device may have a (character) device number as well.
fn partitions(disk: &Path) -> Vec<PathBuf> {
    let mut found = entries(disk).unwrap_or_default();
    found.retain(|path| path.join("partition").is_file());
    found
}

fn filter_in(directory: &Path) -> Option<String> {
    let text = fs::read_to_string(directory.join("filter")).ok()?;
    let name = text.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

fn number_in(directory: &Path) -> Option<DeviceNumber> {
    DeviceNumber::parse(&fs::read_to_string(directory.join("dev")).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(root: &Path, path: &str, number: &str, filter: Option<&str>) {
        let directory = root.join(path);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("dev"), format!("{number}\n")).unwrap();
        if let Some(filter) = filter {
            fs::write(directory.join("filter"), format!("{filter}\n")).unwrap();
        }
    }

    fn partition(root: &Path, path: &str, number: &str, filter: Option<&str>) {
        device(root, path, number, filter);
        fs::write(root.join(path).join("partition"), "1\n").unwrap();
    }

    fn sample() -> (tempfile::TempDir, Sysfs) {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        device(root, "block/sda", "8:0", Some("blksnap"));
        partition(root, "block/sda/sda1", "8:1", Some(""));
        partition(root, "block/sda/sda2", "8:2", Some("other"));
        device(root, "block/sdb", "8:16", None);
        device(root, "block/cciss!c0d0", "104:0", Some("blksnap"));
        fs::create_dir_all(root.join("block/sda/queue")).unwrap();
        device(root, "block/sda/device", "244:0", None);
        device(root, "dev/block/8:2", "8:2", Some("other"));
        device(root, "dev/block/8:16", "8:16", None);
        fs::create_dir(root.join("class")).unwrap();
        std::os::unix::fs::symlink("../block", root.join("class/block")).unwrap();
        let sysfs = Sysfs {
            root: root.to_owned(),
            dev: "/dev".into(),
        };
        (temp, sysfs)
    }

    #[test]
    fn disks_and_partitions_with_a_filter_are_found() {
        let (_temp, sysfs) = sample();
        let found: Vec<_> = sysfs
            .filtered()
            .unwrap()
            .into_iter()
            .map(|entry| (entry.device, entry.filter.unwrap()))
            .collect();
        assert_eq!(
            found,
            [
                ("/dev/cciss/c0d0".into(), "blksnap".to_owned()),
                ("/dev/sda".into(), "blksnap".to_owned()),
                ("/dev/sda2".into(), "other".to_owned()),
            ]
        );
    }

    #[test]
    fn filter_is_found_by_number() {
        let (_temp, sysfs) = sample();
        let number = |minor| DeviceNumber { major: 8, minor };
        assert_eq!(sysfs.filter_of(number(2)).unwrap(), "other");
        assert_eq!(sysfs.filter_of(number(16)), None);
        assert_eq!(sysfs.filter_of(number(99)), None);
    }

    #[test]
    fn node_is_found_by_number() {
        let (temp, sysfs) = sample();
        std::os::unix::fs::symlink(
            "../../block/cciss!c0d0",
            temp.path().join("dev/block/104:0"),
        )
        .unwrap();
        let node = |major| sysfs.node_of(DeviceNumber { major, minor: 0 });
        assert_eq!(node(104).unwrap(), Path::new("/dev/cciss/c0d0"));
        assert_eq!(node(105), None);
    }

    #[test]
    fn numbers_of_a_disk_include_its_partitions() {
        let (_temp, sysfs) = sample();
        let mut minors: Vec<_> = sysfs
            .numbers_of_disk("sda")
            .iter()
            .map(|number| number.minor)
            .collect();
        minors.sort_unstable();
        assert_eq!(minors, [0, 1, 2]);
        assert_eq!(sysfs.number_of("cciss/c0d0").unwrap().major, 104);
        assert_eq!(sysfs.number_of("sdz"), None);
    }
}
