// SPDX-License-Identifier: GPL-2.0-only

//! Which block devices lie below a file, and what uses a block device.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::fs;
use std::fs::Metadata;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use crate::device::DeviceNumber;
use crate::mounts;
use crate::mounts::Elsewhere;
use crate::mounts::Mount;
use crate::sys;

/// Device and inode number of a file.
pub type FileId = (u64, u64);

pub fn file_id(metadata: &Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

/// What something lies on, all the way down.
#[derive(Debug, Default)]
pub struct Below {
    pub devices: BTreeSet<DeviceNumber>,
    /// Backing files of loop devices.
    pub files: BTreeSet<FileId>,
}

/// Returns the number of the block device that a node is of.
pub(crate) type NumberOf = fn(&Path) -> Option<DeviceNumber>;

/// A view of sysfs and of the mounts.
#[derive(Debug)]
pub struct Stack {
    sys: PathBuf,
    dev: PathBuf,
    proc: PathBuf,
    /// Returns the number of the block device that a node is of.
    number_of: NumberOf,
    /// Whether files on remote file systems are left alone, which may not answer.
    leaves_remote: bool,
    mounts: Vec<Mount>,
    /// Those of other namespaces, which are looked at only if they are asked for.
    elsewhere: OnceCell<Vec<Elsewhere>>,
}

impl Default for Stack {
    fn default() -> Self {
        let mut stack = Self::at(Path::new("/"), node_number);
        stack.leaves_remote = false;
        stack
    }
}

impl Stack {
    /// The same below another root, and without a look at files that may not answer.
    pub(crate) fn at(root: &Path, number_of: NumberOf) -> Self {
        let proc = root.join("proc");
        Self {
            sys: root.join("sys"),
            dev: root.join("dev"),
            mounts: mounts::read_in(&proc).unwrap_or_default(),
            proc,
            number_of,
            leaves_remote: true,
            elsewhere: OnceCell::new(),
        }
    }

    /// What a file or directory lies on, as far as sysfs knows.
    pub fn below_file(&self, path: &Path) -> Below {
        let mut below = Below::default();
        self.add_file(path, &mut below);
        below
    }

    /// What a block device lies on: itself, its disk if it is a partition, and the
    /// devices that it is made of.
    pub fn below_device(&self, number: DeviceNumber) -> Below {
        let mut below = Below::default();
        self.add_device(number, &mut below);
        below
    }

    /// The nodes of the block devices that are stacked on `devices` or on partitions of them, all
    /// the way up: of device-mapper, of MD, and loop devices, also those on a file of a mounted
    /// file system. No file is looked at: a file server that is gone would keep us waiting.
    pub fn above(&self, devices: &[DeviceNumber]) -> Vec<PathBuf> {
        let mut below: BTreeSet<DeviceNumber> = devices.iter().copied().collect();
        for number in devices {
            let partitions = self.partitions(*number);
            below.extend(partitions.iter().filter_map(|(_, path)| number_in(path)));
        }
        let mut found = Vec::new();
        loop {
            let mut names: Vec<String> = below
                .iter()
                .filter_map(|number| self.directory(*number))
                .flat_map(|directory| names_in(&directory.join("holders")))
                .collect();
            names.extend(self.loops_on(&below));
            let before = below.len();
            for name in names {
                let number = number_in(&self.sys.join("class/block").join(&name));
                if number.is_some_and(|number| below.insert(number)) {
                    found.push(self.dev.join(name.replace('!', "/")));
                }
            }
            if below.len() == before {
                return found;
            }
        }
    }

    /// The loop devices directly on one of the devices, or on a file of what is mounted from it.
    fn loops_on(&self, below: &BTreeSet<DeviceNumber>) -> Vec<String> {
        let is_on = |name: &str| {
            let directory = self.sys.join("class/block").join(name);
            let Some(file) = backing_file(&directory) else {
                return false;
            };
            if let Some(number) = self.backing_device(&directory) {
                return below.contains(&number);
            }
            let mount = self.mount_of(&file);
            mount.is_some_and(|mount| {
                below.contains(&mount.number)
                    || self
                        .block_device(&mount.source)
                        .is_some_and(|it| below.contains(&it))
            })
        };
        let names = names_in(&self.sys.join("class/block"));
        names.into_iter().filter(|name| is_on(name)).collect()
    }

    /// What is mounted where a path is.
    pub fn mount_of(&self, path: &Path) -> Option<&Mount> {
        self.mounts
            .iter()
            .filter(|mount| path.starts_with(&mount.mount_point))
            // Of several at one place the last one counts.
            .max_by_key(|mount| mount.mount_point.components().count())
    }

    /// Whether loop devices that they lie on, or are, have bytes of one file in common.
    pub fn share_a_file(&self, one: DeviceNumber, other: DeviceNumber) -> bool {
        let (ones, others) = (self.loops_below(one), self.loops_below(other));
        ones.iter().any(|(number, file, range)| {
            others.iter().any(|(other_number, other_file, other)| {
                number != other_number
                    && file == other_file
                    && range.start < other.end
                    && other.start < range.end
            })
        })
    }

    /// The loop devices below a device, each with its file and the bytes that it has of that.
    fn loops_below(&self, number: DeviceNumber) -> Vec<(DeviceNumber, FileId, Range<u64>)> {
        let range = |directory: &Path| {
            let read = |name: &str| {
                let text = fs::read_to_string(directory.join(name)).unwrap_or_default();
                text.trim().parse().unwrap_or(0)
            };
            let start: u64 = read("loop/offset");
            // 0 if it goes on to the end of the file.
            match read("loop/sizelimit") {
                0 => start..u64::MAX,
                limit => start..start.saturating_add(limit),
            }
        };
        let devices = self.below_device(number).devices;
        devices
            .into_iter()
            .filter_map(|number| {
                let directory = self.directory(number)?;
                let file = fs::metadata(backing_file(&directory)?).ok()?;
                Some((number, file_id(&file), range(&directory)))
            })
            .collect()
    }

    fn add_file(&self, path: &Path, below: &mut Below) {
        let Ok(path) = fs::canonicalize(path) else {
            return;
        };
        let Ok(metadata) = fs::metadata(&path) else {
            return;
        };
        let number = DeviceNumber::from_raw(metadata.dev());
        if self.directory(number).is_some() {
            return self.add_device(number, below);
        }
        // That of a btrfs is anonymous, and another one for each subvolume.
        let mount = self.mount_of(&path);
        if let Some(number) = mount.and_then(|mount| self.block_device(&mount.source)) {
            self.add_device(number, below);
        }
    }

    /// The block device with a node of this name. Names outside of /dev are not looked at: a file
    /// server that is gone would keep us waiting.
    pub(crate) fn block_device(&self, path: &Path) -> Option<DeviceNumber> {
        (self.number_of)(&self.dev.join(path.strip_prefix("/dev").ok()?))
    }

    fn add_device(&self, number: DeviceNumber, below: &mut Below) {
        if !below.devices.insert(number) {
            return;
        }
        let Some(directory) = self.directory(number) else {
            return;
        };
        if directory.join("partition").exists() {
            if let Some(disk) = directory.parent().and_then(number_in) {
                self.add_device(disk, below);
            }
        }
        for name in names_in(&directory.join("slaves")) {
            self.add_named(&name, below);
        }
        for name in self.btrfs_siblings(&directory) {
            self.add_named(&name, below);
        }
        if let Some(number) = self.backing_device(&directory) {
            self.add_device(number, below);
        } else if let Some(path) = backing_file(&directory) {
            if self.leaves_remote && self.mount_of(&path).is_some_and(Mount::is_remote) {
                return;
            }
            if let Ok(metadata) = fs::metadata(&path) {
                below.files.insert(file_id(&metadata));
                self.add_file(&path, below);
            }
        }
    }

    fn add_named(&self, name: &str, below: &mut Below) {
        if let Some(number) = number_in(&self.sys.join("class/block").join(name)) {
            self.add_device(number, below);
        }
    }

    /// The devices that have a btrfs together with this one.
    fn btrfs_siblings(&self, directory: &Path) -> Vec<String> {
        let Some(name) = directory.file_name().and_then(|name| name.to_str()) else {
            return Vec::new();
        };
        let filesystems = self.sys.join("fs/btrfs");
        names_in(&filesystems)
            .into_iter()
            .map(|uuid| names_in(&filesystems.join(uuid).join("devices")))
            .find(|names| names.iter().any(|it| it == name))
            .unwrap_or_default()
    }

    /// What uses a block device or a partition of it, in words; empty if that cannot
    /// be seen from here.
    pub fn users(&self, number: DeviceNumber) -> Vec<String> {
        let Some(directory) = self.directory(number) else {
            return Vec::new();
        };
        let mut directories = vec![directory.clone()];
        directories.extend(self.partitions(number).into_iter().map(|(_, path)| path));
        let numbers: Vec<_> = directories.iter().filter_map(|it| number_in(it)).collect();

        let is_source = |source: &Path| {
            self.block_device(source)
                .is_some_and(|it| numbers.contains(&it))
        };
        let mut users: Vec<String> = mounts::points_on(&self.mounts, &numbers, is_source)
            .iter()
            .map(|point| format!("it is mounted on {}", point.display()))
            .collect();
        for it in self.others() {
            let points = mounts::points_on(&it.mounts, &numbers, is_source);
            users.extend(points.iter().map(|point| {
                let (point, process) = (point.display(), &it.process);
                format!("it is mounted on {point} in the mount namespace of process {process}")
            }));
        }
        for name in names_in(&self.sys.join("block")) {
            let directory = self.sys.join("block").join(&name);
            let is_on_top = match self.backing_device(&directory) {
                Some(number) => numbers.contains(&number),
                None => backing_file(&directory).is_some_and(|file| is_source(&file)),
            };
            if is_on_top {
                users.push(format!("the loop device {name} is on top of it"));
            }
        }
        for holder in directories
            .iter()
            .flat_map(|it| names_in(&it.join("holders")))
        {
            let name = attribute(&self.sys.join("class/block").join(&holder), "dm/name");
            users.push(match name {
                Some(name) => format!("{holder} ({name}) is on top of it"),
                None => format!("{holder} is on top of it"),
            });
        }
        let is_on_it = |it: &DeviceNumber| numbers.contains(it);
        let swaps = self.swaps().into_iter().filter(is_on_it);
        users.extend(swaps.map(|_| "it is swap space in use".to_owned()));
        users
    }

    /// The mounts of other namespaces.
    fn others(&self) -> &[Elsewhere] {
        self.elsewhere
            .get_or_init(|| mounts::elsewhere_in(&self.proc))
    }

    /// The block devices that are swapped to.
    fn swaps(&self) -> Vec<DeviceNumber> {
        let swaps = fs::read_to_string(self.proc.join("swaps")).unwrap_or_default();
        let names = swaps.lines().skip(1).filter_map(|it| it.split(' ').next());
        names
            .filter_map(|name| self.block_device(Path::new(name)))
            .collect()
    }

    /// Vendor, model and serial number, or what else tells a person which device
    /// it is.
    pub fn identity(&self, number: DeviceNumber) -> Option<String> {
        let directory = self.directory(number)?;
        if let Some(file) = attribute(&directory, "loop/backing_file") {
            return Some(format!("a loop device on {file}"));
        }
        if let Some(name) = attribute(&directory, "dm/name") {
            return Some(format!("device-mapper {name}"));
        }
        let (what, disk) = match directory.join("partition").exists() {
            true => ("a partition of ", directory.parent()?),
            false => ("", directory.as_path()),
        };
        let vendor = attribute(disk, "device/vendor").filter(|text| !text.starts_with("0x"));
        let serial = attribute(disk, "serial").or_else(|| attribute(disk, "device/serial"));
        let words: Vec<String> = [
            vendor,
            attribute(disk, "device/model"),
            serial.map(|serial| format!("serial number {serial}")),
        ]
        .into_iter()
        .flatten()
        .collect();
        match words.is_empty() {
            true => None,
            false => Some(format!("{what}{}", words.join(" "))),
        }
    }

    /// The partitions of a disk: node and directory in sysfs.
    pub fn partitions(&self, number: DeviceNumber) -> Vec<(PathBuf, PathBuf)> {
        let Some(disk) = self.directory(number) else {
            return Vec::new();
        };
        let mut found: Vec<_> = names_in(&disk)
            .into_iter()
            .filter(|name| disk.join(name).join("partition").is_file())
            .map(|name| (self.dev.join(name.replace('!', "/")), disk.join(&name)))
            .collect();
        found.sort();
        found
    }

    /// Whether it can discard: then it may be thin.
    pub fn can_discard(&self, number: DeviceNumber) -> bool {
        let below = |directory: &Path| {
            let text = attribute(directory, "queue/discard_max_bytes")?;
            text.parse::<u64>().ok()
        };
        self.directory(number).is_some_and(|directory| {
            let bytes = below(&directory).or_else(|| below(directory.parent()?));
            bytes.is_some_and(|bytes| bytes > 0)
        })
    }

    /// Whether it is a thin volume of LVM, of which a discarded block reads as zeroes, or
    /// as its external origin.
    pub fn is_thin_volume(&self, number: DeviceNumber) -> bool {
        let uuid = |directory: &Path| attribute(directory, "dm/uuid");
        let Some(directory) = self.directory(number) else {
            return false;
        };
        let pools = names_in(&directory.join("slaves"));
        uuid(&directory).is_some_and(|uuid| uuid.starts_with("LVM-"))
            && pools.iter().any(|pool| {
                uuid(&self.sys.join("class/block").join(pool))
                    .is_some_and(|uuid| uuid.ends_with("-tpool"))
            })
    }

    /// The multipath device that a device, or its disk, is a path of. What is written by way of that
    /// no filter of the path sees.
    pub fn multipath_above(&self, number: DeviceNumber) -> Option<PathBuf> {
        let directory = self.directory(number)?;
        let disk = match directory.join("partition").exists() {
            true => directory.parent()?,
            false => &directory,
        };
        let mapped = names_in(&disk.join("holders"))
            .iter()
            .map(|holder| self.sys.join("class/block").join(holder))
            // A device that takes requests has their queues, and sends them past filters. For
            // the uuid see UUID_PREFIX of multipath-tools.
            .find(|it| {
                it.join("dm").is_dir() && it.join("mq").is_dir()
                    || attribute(it, "dm/uuid").is_some_and(|uuid| uuid.starts_with("mpath-"))
            })?;
        Some(self.dev.join("mapper").join(attribute(&mapped, "dm/name")?))
    }

    /// Whether it cannot be written to by anybody.
    pub fn is_write_protected(&self, number: DeviceNumber) -> bool {
        self.directory(number)
            .and_then(|directory| attribute(&directory, "ro"))
            .is_some_and(|text| text == "1")
    }

    /// The block device that a loop device is on, wherever the node is that it was set up with;
    /// none if that is a file, or cannot be asked for.
    fn backing_device(&self, directory: &Path) -> Option<DeviceNumber> {
        if !directory.join("loop/backing_file").exists() {
            return None;
        }
        let node = self.dev.join(directory.file_name()?);
        // A node left over from another device has another number.
        if (self.number_of)(&node)? != number_in(directory)? {
            return None;
        }
        let file = fs::File::open(node).ok()?;
        match sys::loop_backing_device(file.as_fd()) {
            Ok(0) | Err(_) => None,
            Ok(number) => Some(DeviceNumber::from_raw(number)),
        }
    }

    /// Where sysfs has a block device.
    fn directory(&self, number: DeviceNumber) -> Option<PathBuf> {
        fs::canonicalize(self.sys.join("dev/block").join(number.to_string())).ok()
    }
}

/// What an attribute of a device in sysfs says, or `None` if that is nothing.
fn attribute(directory: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(directory.join(name)).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// What a loop device lies on.
fn backing_file(directory: &Path) -> Option<PathBuf> {
    let file = fs::read(directory.join("loop/backing_file")).ok()?;
    Some(String::from_utf8_lossy(&file).trim_end_matches('\n').into())
}

fn number_in(directory: &Path) -> Option<DeviceNumber> {
    DeviceNumber::parse(&fs::read_to_string(directory.join("dev")).ok()?)
}

/// The number of the block device that a node is of.
pub(crate) fn node_number(path: &Path) -> Option<DeviceNumber> {
    use std::os::unix::fs::FileTypeExt;
    let metadata = fs::metadata(path).ok()?;
    metadata
        .file_type()
        .is_block_device()
        .then(|| DeviceNumber::from_raw(metadata.rdev()))
}

fn names_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

mod query;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Numbers that no device has here: sda with sda1; dm-0 on sda1; loop0 on a file; sdb and sdc in one btrfs.
    fn sample() -> (tempfile::TempDir, Stack) {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        let device = |path: &str, number: &str| {
            let directory = root.join("devices").join(path);
            fs::create_dir_all(directory.join("slaves")).unwrap();
            fs::create_dir_all(directory.join("holders")).unwrap();
            fs::write(directory.join("dev"), format!("{number}\n")).unwrap();
            for link in [
                format!("dev/block/{number}"),
                format!("class/block/{}", path.rsplit('/').next().unwrap()),
            ] {
                let link = root.join(link);
                fs::create_dir_all(link.parent().unwrap()).unwrap();
                symlink(&directory, link).unwrap();
            }
            directory
        };
        let disk = device("sda", "4008:0");
        fs::create_dir_all(disk.join("device")).unwrap();
        fs::create_dir_all(disk.join("queue")).unwrap();
        fs::write(disk.join("device/model"), "WD40 \n").unwrap();
        fs::write(disk.join("device/vendor"), "ATA\n").unwrap();
        fs::write(disk.join("queue/discard_max_bytes"), "0\n").unwrap();
        let part = device("sda/sda1", "4008:1");
        fs::write(part.join("partition"), "1\n").unwrap();
        fs::write(part.join("holders/dm-0"), "").unwrap();
        let map = device("dm-0", "4000:0");
        fs::write(map.join("slaves/sda1"), "").unwrap();
        fs::create_dir_all(map.join("dm")).unwrap();
        fs::create_dir_all(map.join("queue")).unwrap();
        fs::write(map.join("dm/name"), "vg-home\n").unwrap();
        fs::write(map.join("queue/discard_max_bytes"), "4096\n").unwrap();
        let pool = device("dm-1", "4000:1");
        fs::create_dir_all(pool.join("dm")).unwrap();
        fs::write(pool.join("dm/uuid"), "LVM-xy-tpool\n").unwrap();
        let thin = device("dm-2", "4000:2");
        fs::create_dir_all(thin.join("dm")).unwrap();
        fs::write(thin.join("dm/uuid"), "LVM-xz\n").unwrap();
        fs::write(thin.join("slaves/dm-1"), "").unwrap();
        let multipath = device("dm-3", "4000:3");
        fs::create_dir_all(multipath.join("dm")).unwrap();
        fs::write(multipath.join("dm/uuid"), "mpath-36001\n").unwrap();
        fs::write(multipath.join("dm/name"), "mpatha\n").unwrap();
        let path = device("sdd", "4008:48");
        fs::write(path.join("holders/dm-3"), "").unwrap();
        let part = device("sdd/sdd1", "4008:49");
        fs::write(part.join("partition"), "1\n").unwrap();
        let by_hand = device("dm-4", "4000:4");
        fs::create_dir_all(by_hand.join("dm")).unwrap();
        fs::create_dir_all(by_hand.join("mq")).unwrap();
        fs::write(by_hand.join("dm/name"), "map\n").unwrap();
        let path = device("sde", "4008:64");
        fs::write(path.join("holders/dm-4"), "").unwrap();
        let on_file = device("loop0", "4007:0");
        fs::create_dir_all(on_file.join("loop")).unwrap();
        let file = root.join("backing");
        fs::write(&file, "").unwrap();
        fs::write(
            on_file.join("loop/backing_file"),
            format!("{}\n", file.display()),
        )
        .unwrap();
        device("sdb", "4008:16");
        device("sdc", "4008:32");
        let pool = root.join("fs/btrfs/x/devices");
        fs::create_dir_all(&pool).unwrap();
        for name in ["sdb", "sdc"] {
            fs::write(pool.join(name), "").unwrap();
        }
        let stack = Stack {
            sys: root.to_owned(),
            mounts: Vec::new(),
            elsewhere: OnceCell::from(Vec::new()),
            ..Stack::default()
        };
        (temp, stack)
    }

    fn number(text: &str) -> DeviceNumber {
        DeviceNumber::parse(text).unwrap()
    }

    #[test]
    fn everything_below_is_found() {
        let (temp, stack) = sample();
        let below = |text: &str| {
            let devices = stack.below_device(number(text)).devices;
            let names: Vec<_> = devices.iter().map(ToString::to_string).collect();
            names.join(" ")
        };
        assert_eq!(below("4000:0"), "4000:0 4008:0 4008:1");
        assert_eq!(below("4008:1"), "4008:0 4008:1");
        assert_eq!(below("4008:0"), "4008:0");
        assert_eq!(below("4008:16"), "4008:16 4008:32");
        assert_eq!(below("9:9"), "9:9");
        let file = fs::metadata(temp.path().join("backing")).unwrap();
        assert!(stack
            .below_device(number("4007:0"))
            .files
            .contains(&file_id(&file)));
    }

    #[test]
    fn files_on_servers_can_be_left_alone() {
        let (temp, mut stack) = sample();
        let mount = Mount {
            number: number("0:50"),
            mount_point: temp.path().to_owned(),
            kind: "nfs4".to_owned(),
            source: "server:/x".into(),
            is_read_only: false,
        };
        stack.mounts = vec![mount];
        for leaves_remote in [false, true] {
            stack.leaves_remote = leaves_remote;
            let below = stack.below_device(number("4007:0"));
            assert_eq!(below.files.is_empty(), leaves_remote);
        }
    }

    #[test]
    fn everything_above_is_found() {
        let (temp, mut stack) = sample();
        let above = |stack: &Stack, text: &str| {
            let mut nodes = stack.above(&[number(text)]);
            nodes.sort();
            nodes
        };
        let dev = |name: &str| Path::new("/dev").join(name);
        assert_eq!(above(&stack, "4008:0"), [dev("dm-0")]);
        assert_eq!(above(&stack, "4008:1"), [dev("dm-0")]);
        assert!(above(&stack, "4008:16").is_empty());
        assert!(above(&stack, "9:9").is_empty());
        // The loop device is on a file of what is mounted from dm-0.
        let path = fs::canonicalize(temp.path()).unwrap();
        let mount = |number, mount_point: &Path| Mount {
            number,
            mount_point: mount_point.to_owned(),
            kind: "ext4".to_owned(),
            is_read_only: false,
            source: "/dev/null".into(),
        };
        stack.mounts = vec![
            mount(number("4008:16"), Path::new("/")),
            mount(number("4000:0"), &path),
        ];
        assert_eq!(above(&stack, "4008:0"), [dev("dm-0"), dev("loop0")]);
        assert_eq!(above(&stack, "4000:0"), [dev("loop0")]);
        assert!(above(&stack, "4008:16").is_empty());
    }

    #[test]
    fn loop_devices_share_the_bytes_that_both_have() {
        let (temp, stack) = sample();
        let other = temp.path().join("devices/loop1");
        fs::create_dir_all(other.join("loop")).unwrap();
        symlink(&other, temp.path().join("dev/block/4007:1")).unwrap();
        let first = temp.path().join("devices/loop0");
        let set = |directory: &Path, offset: &str, limit: &str| {
            let file = format!("{}\n", temp.path().join("backing").display());
            fs::write(directory.join("loop/backing_file"), file).unwrap();
            fs::write(directory.join("loop/offset"), offset).unwrap();
            fs::write(directory.join("loop/sizelimit"), limit).unwrap();
        };
        let share = |a, b| stack.share_a_file(number(a), number(b));
        for (offset, limit, is_shared) in [
            ("0\n", "0\n", true),
            ("4095\n", "1\n", true),
            ("4096\n", "0\n", false),
        ] {
            set(&first, "0\n", "4096\n");
            set(&other, offset, limit);
            assert_eq!(share("4007:0", "4007:1"), is_shared, "{offset}");
            assert_eq!(share("4007:1", "4007:0"), is_shared, "{offset}");
        }
        // One device is told apart by its number.
        assert!(!share("4007:0", "4007:0"));
        assert!(!share("4007:0", "4008:0"));
    }

    #[test]
    fn files_lie_on_the_device_of_their_mount() {
        let (temp, mut stack) = sample();
        // As with btrfs, the number that stat() tells is nowhere in sysfs.
        let at = |mount_point: &Path, source: &str| Mount {
            number: number("0:44"),
            mount_point: mount_point.to_owned(),
            kind: "ext4".to_owned(),
            is_read_only: false,
            source: source.into(),
        };
        let path = fs::canonicalize(temp.path()).unwrap();
        stack.mounts = vec![at(Path::new("/"), "/dev/null"), at(&path, "server:/x")];
        assert!(stack.below_file(&path.join("backing")).devices.is_empty());
    }

    #[test]
    fn paths_of_a_multipath_device_are_found() {
        let (_temp, stack) = sample();
        let above = |text: &str| stack.multipath_above(number(text));
        let multipath = Some(PathBuf::from("/dev/mapper/mpatha"));
        assert_eq!(above("4008:48"), multipath);
        assert_eq!(above("4008:49"), multipath);
        assert_eq!(above("4008:64"), Some(PathBuf::from("/dev/mapper/map")));
        for text in ["4008:0", "4008:1", "4000:3", "4000:0", "4999:0"] {
            assert_eq!(above(text), None, "{text}");
        }
    }

    #[test]
    fn devices_are_described_for_people() {
        let (_temp, mut stack) = sample();
        let identity = |text: &str| stack.identity(number(text)).unwrap_or_default();
        assert_eq!(identity("4008:0"), "ATA WD40");
        assert_eq!(identity("4008:1"), "a partition of ATA WD40");
        assert_eq!(identity("4000:0"), "device-mapper vg-home");
        assert!(identity("4007:0").starts_with("a loop device on /"));
        assert_eq!(identity("4008:16"), "");
        assert_eq!(
            stack.users(number("4008:0")),
            ["dm-0 (vg-home) is on top of it"]
        );
        assert!(stack.users(number("4008:16")).is_empty());
        let mount = Mount {
            number: number("4008:16"),
            mount_point: "/srv".into(),
            kind: "ext4".to_owned(),
            is_read_only: false,
            source: "/dev/sdb".into(),
        };
        stack.elsewhere = OnceCell::from(vec![Elsewhere {
            process: "7 (sh)".to_owned(),
            mounts: vec![mount],
        }]);
        assert_eq!(
            stack.users(number("4008:16")),
            ["it is mounted on /srv in the mount namespace of process 7 (sh)"]
        );
        stack.elsewhere = OnceCell::from(Vec::new());
        assert_eq!(
            stack.partitions(number("4008:0")).first().unwrap().0,
            Path::new("/dev/sda1")
        );
        assert!(stack.can_discard(number("4000:0")));
        assert!(!stack.can_discard(number("4008:1")));
        for (text, is_thin) in [("4000:2", true), ("4000:1", false), ("4000:0", false)] {
            assert_eq!(stack.is_thin_volume(number(text)), is_thin, "{text}");
        }
        assert!(!stack.can_discard(number("4008:16")));
    }
}
