// SPDX-License-Identifier: GPL-2.0-only

//! A made-up machine: its `/sys`, `/proc` and `/dev`, and what its system says.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;

use rustix::io::Errno;
use tempfile::TempDir;

use crate::control::DriverVersion;
use crate::device::DeviceNumber;
use crate::doctor::disks::selected;
use crate::doctor::disks::Device;
use crate::doctor::system::Space;
use crate::doctor::Root;
use crate::doctor::System;
use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;
use crate::Bytes;

pub const RELEASE: &str = "7.0.0-test";

/// 2026-11-30
pub const NOW: u64 = 1_795_996_800;

pub struct Fake {
    pub now: u64,
    pub page_size: u64,
    pub driver: std::result::Result<u16, Errno>,
    pub can_write: std::result::Result<(), Errno>,
    /// By the path of the mount point.
    spaces: BTreeMap<PathBuf, Space>,
    root: PathBuf,
}

impl System for Fake {
    fn now(&self) -> u64 {
        self.now
    }

    fn page_size(&self) -> u64 {
        self.page_size
    }

    fn space(&self, path: &Path) -> Option<Space> {
        let path = Path::new("/").join(path.strip_prefix(&self.root).unwrap());
        assert!(!path.starts_with("/net"), "a server was asked: {path:?}");
        path.ancestors().find_map(|it| self.spaces.get(it).copied())
    }

    fn can_write(&self, path: &Path) -> std::result::Result<(), Errno> {
        assert!(path.exists(), "{path:?}");
        self.can_write
    }

    fn driver(&self, path: &Path) -> Result<DriverVersion> {
        assert!(path.ends_with("dev/blksnap-control"), "{path:?}");
        let version = |major| DriverVersion {
            major,
            minor: 0,
            revision: 0,
            build: 0,
        };
        let error = |errno| Error::from_errno(Operation::OpenControl, errno);
        self.driver.map(version).map_err(error)
    }
}

pub struct Tree {
    temp: TempDir,
    mounts: String,
    pub system: Fake,
}

/// Nodes of this machine are files with the number.
fn number_of(path: &Path) -> Option<DeviceNumber> {
    // Reading a FIFO would wait for a writer.
    fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    DeviceNumber::parse(&fs::read_to_string(path).ok()?)
}

impl Tree {
    /// A machine without disks, with a kernel that has filters, and no module.
    pub fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(temp.path()).unwrap();
        let tree = Self {
            system: Fake {
                now: NOW,
                page_size: 4096,
                driver: Ok(1),
                can_write: Ok(()),
                spaces: BTreeMap::new(),
                root,
            },
            temp,
            mounts: String::new(),
        };
        for directory in [
            "sys/block",
            "sys/class/block",
            "sys/dev/block",
            "dev/disk/by-id",
        ] {
            fs::create_dir_all(tree.path(directory)).unwrap();
        }
        tree.file("proc/sys/kernel/osrelease", &format!("{RELEASE}\n"));
        tree.file(
            "proc/self/status",
            "Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n",
        );
        tree.file("proc/self/uid_map", "         0          0 4294967295\n");
        tree.file(
            "proc/self/limits",
            "Limit Soft Hard Units\nMax open files            1024                 524288     files\n",
        );
        tree.file(
            "proc/meminfo",
            "MemTotal:       16000000 kB\nMemAvailable:   12000000 kB\n",
        );
        tree
    }

    pub fn root(&self) -> Root {
        Root::at(&self.system.root, number_of)
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.temp.path().join(path)
    }

    pub fn file(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn link(&self, path: &str, target: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    /// A disk that has requests, and nothing on it.
    pub fn disk(&self, name: &str, number: &str, size: u64) {
        self.disk_at(&format!("virtual/block/{name}"), name, number, size);
        fs::create_dir(self.path(&format!("sys/block/{name}/mq"))).unwrap();
    }

    /// A disk without requests.
    pub fn bio_disk(&self, name: &str, number: &str, size: u64) {
        self.disk_at(&format!("virtual/block/{name}"), name, number, size);
    }

    /// A disk at a place in `/sys/devices`.
    pub fn disk_at(&self, place: &str, name: &str, number: &str, size: u64) {
        self.device(place, name, number, size);
        self.link(&format!("sys/block/{name}"), &format!("../devices/{place}"));
        for (attribute, text) in [("queue/zoned", "none\n"), ("queue/dax", "0\n")] {
            self.set(name, attribute, text);
        }
    }

    pub fn partition(&self, disk: &str, name: &str, number: &str, size: u64) {
        self.device(&format!("virtual/block/{disk}/{name}"), name, number, size);
        self.set(name, "partition", "1\n");
    }

    fn device(&self, place: &str, name: &str, number: &str, size: u64) {
        let directory = format!("sys/devices/{place}");
        for (attribute, text) in [
            ("dev", format!("{number}\n")),
            ("size", format!("{}\n", size / 512)),
            ("ro", "0\n".to_owned()),
            ("filter", "\n".to_owned()),
        ] {
            self.file(&format!("{directory}/{attribute}"), &text);
        }
        for list in ["holders", "slaves"] {
            fs::create_dir_all(self.path(&format!("{directory}/{list}"))).unwrap();
        }
        let target = format!("../../devices/{place}");
        self.link(&format!("sys/class/block/{name}"), &target);
        self.link(&format!("sys/dev/block/{number}"), &target);
        self.file(&format!("dev/{}", name.replace('!', "/")), number);
    }

    /// An attribute of a block device.
    pub fn set(&self, name: &str, attribute: &str, text: &str) {
        self.file(&format!("sys/class/block/{name}/{attribute}"), text);
    }

    pub fn unset(&self, name: &str, attribute: &str) {
        fs::remove_file(self.path(&format!("sys/class/block/{name}/{attribute}"))).unwrap();
    }

    /// A device of device-mapper on another device.
    pub fn mapped(&self, name: &str, number: &str, uuid: &str, called: &str, below: &str) {
        self.bio_disk(name, number, 1 << 30);
        self.set(name, "dm/uuid", uuid);
        self.set(name, "dm/name", called);
        self.file(&format!("dev/mapper/{called}"), number);
        self.stack(below, name);
    }

    pub fn stack(&self, below: &str, above: &str) {
        self.set(below, &format!("holders/{above}"), "");
        self.set(above, &format!("slaves/{below}"), "");
    }

    pub fn by_id(&self, id: &str, name: &str) {
        self.link(&format!("dev/disk/by-id/{id}"), &format!("../../{name}"));
    }

    pub fn mount(&mut self, number: &str, point: &str, kind: &str, source: &str) {
        self.mount_with(number, point, kind, source, "rw");
        fs::create_dir_all(self.path(point.trim_start_matches('/'))).unwrap();
    }

    /// A mount, whose mount point need not be there.
    pub fn mount_with(&mut self, number: &str, point: &str, kind: &str, source: &str, mode: &str) {
        self.mounts += &format!("1 1 {number} / {point} {mode} shared:1 - {kind} {source} rw\n");
        self.file("proc/self/mountinfo", &self.mounts);
    }

    /// What a file system has, and how much of it is in use.
    pub fn space(&mut self, point: &str, total: u64, free: u64) {
        let space = Space {
            total: Bytes(total),
            free: Bytes(free),
            used: Bytes(total - free),
        };
        self.system.spaces.insert(point.into(), space);
    }

    /// The devices of these names.
    pub fn named(&self, names: &[&str]) -> Vec<Device> {
        if names.is_empty() {
            return Vec::new();
        }
        let (devices, checks) = selected(&self.root(), &super::paths(names));
        assert_eq!(checks, []);
        devices
    }
}
