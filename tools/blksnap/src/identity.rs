// SPDX-License-Identifier: GPL-2.0-only

//! Which machine this is, and which disk a device is, whatever their names.
//!
//! Nothing here is proof of what a disk holds. It tells which restore points are
//! of one disk, so that they are counted, found and compared together.

use std::fmt;
use std::fs;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::device::DeviceNumber;
use crate::signature;
use crate::signature::BLKID;
use crate::stack::node_number;
use crate::stack::NumberOf;

/// Bytes of a text, and entries of a list, that are noted.
pub const MAX_TEXT: usize = 4096;
pub const MAX_LIST: usize = 1024;

/// A machine. What is not known is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Machine {
    /// As machine-id(5) has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The UUID that the firmware or the hypervisor tells. Copies of a virtual machine often have
    /// one machine id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware: Option<String>,
    /// Only a label: names change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        Self::of(Path::new("/"))
    }

    fn of(root: &Path) -> Self {
        let read = |name: &str| text(&root.join(name));
        // What firmware tells that was not set up.
        let is_set = |uuid: &String| {
            let mut digits = uuid.chars().filter(char::is_ascii_hexdigit);
            let first = digits.next();
            !digits.all(|digit| Some(digit) == first)
        };
        Self {
            id: read("etc/machine-id").filter(|id| id.len() == 32 && is_set(id)),
            hardware: read("sys/class/dmi/id/product_uuid")
                .map(|uuid| uuid.to_ascii_lowercase())
                .filter(is_set),
            // What the kernel begins with
            host: read("proc/sys/kernel/hostname").filter(|host| host != "(none)"),
        }
    }

    /// Whether both are one machine.
    pub fn is(&self, other: &Self) -> bool {
        let ids = [
            compare(&self.id, &other.id),
            compare(&self.hardware, &other.hardware),
        ];
        all(&ids)
            .or_else(|| compare(&self.host, &other.host))
            // Nothing is known of both.
            .unwrap_or(self == other)
    }

    /// Whether a user means this one: by the name of the host, or by an id.
    pub fn is_called(&self, name: &str) -> bool {
        [&self.host, &self.id, &self.hardware]
            .iter()
            .any(|it| it.as_deref() == Some(name))
    }

    /// What several are called, with all that is known where they have one name.
    pub fn names(machines: &[&Self]) -> Vec<String> {
        let short: Vec<String> = machines.iter().map(|it| it.to_string()).collect();
        let is_enough = |name: &String| short.iter().filter(|it| *it == name).count() == 1;
        let name = |(name, machine): (&String, &&Self)| match &machine.hardware {
            Some(uuid) if !is_enough(name) => format!("{name} in hardware {uuid}"),
            _ => name.clone(),
        };
        short.iter().zip(machines).map(name).collect()
    }

    /// What it is called in a table.
    pub fn short(&self) -> &str {
        let names = [&self.host, &self.id, &self.hardware];
        names
            .into_iter()
            .flatten()
            .next()
            .map_or("unknown", String::as_str)
    }

    /// The texts that it has.
    pub fn texts(&self) -> impl Iterator<Item = &String> {
        [&self.id, &self.hardware, &self.host].into_iter().flatten()
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.id.as_ref().or(self.hardware.as_ref());
        match (&self.host, id) {
            (Some(host), Some(id)) => write!(f, "{host} (machine id {id})"),
            (Some(name), None) | (None, Some(name)) => f.write_str(name),
            (None, None) => f.write_str("a machine without a name"),
        }
    }
}

/// A file system, or what else is found by its UUID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// The number of the partition that has it; none if it is the whole device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    /// As blkid calls it, such as ext4 or LVM2_member.
    pub kind: String,
    pub uuid: String,
}

/// A disk, a partition of one, or another block device. What is not known is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Disk {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The world wide name, as the kernel writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wwid: Option<String>,
    /// Of a device of device-mapper. That of a logical volume has its UUID and that of the
    /// volume group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dm_uuid: Option<String>,
    /// Of an array of MD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub md_uuid: Option<String>,
    /// Of a loop device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_file: Option<String>,
    /// The number of the partition; what comes before is of its disk then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition_uuid: Option<String>,
    /// Of the partition table that the device has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_uuid: Option<String>,
    /// Its names in /dev/disk/by-id.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub contents: Vec<Content>,
}

impl Disk {
    /// Whether both are one disk by what they are made of, whatever they hold. `None` if
    /// that is not known.
    pub fn is_same_hardware(&self, other: &Self) -> Option<bool> {
        if self.partition != other.partition {
            return Some(false);
        }
        self.is_given(other).or_else(|| {
            let serial = |disk: &Self| Some((disk.model.clone(), disk.serial.clone()?));
            all(&[
                compare(&self.wwid, &other.wwid),
                compare(&serial(self), &serial(other)),
            ])
        })
    }

    /// Whether both are one disk. `None` if that is not known.
    ///
    /// Some makers give all of their disks one serial number: where partition tables are known
    /// and differ, the disks are told apart by that. So are disks without any number.
    pub fn is(&self, other: &Self) -> Option<bool> {
        let is_given = self.dm_uuid.is_some() || self.md_uuid.is_some();
        let hardware = self.is_same_hardware(other);
        if hardware == Some(false) || (hardware == Some(true) && is_given) {
            return hardware;
        }
        all(&[hardware, self.has_table_of(other)])
            .or_else(|| compare(&self.whole(), &other.whole()))
    }

    /// Whether both have other partition tables, or without those other file systems as a whole,
    /// and the numbers by which they are one disk are such as several disks may have.
    pub fn has_other_content(&self, other: &Self) -> bool {
        let is_same = self
            .has_table_of(other)
            .or_else(|| compare(&self.whole(), &other.whole()));
        self.is_given(other).is_none() && is_same == Some(false)
    }

    /// Whether both have the number that is given by who made the device, and never twice.
    fn is_given(&self, other: &Self) -> Option<bool> {
        all(&[
            compare(&self.dm_uuid, &other.dm_uuid),
            compare(&self.md_uuid, &other.md_uuid),
            compare(&self.backing_file, &other.backing_file),
        ])
    }

    /// Whether both have one partition table, or are one partition of it.
    fn has_table_of(&self, other: &Self) -> Option<bool> {
        all(&[
            compare(&self.table_uuid, &other.table_uuid),
            compare(&self.partition_uuid, &other.partition_uuid),
        ])
    }

    /// The UUID of what the whole device holds.
    fn whole(&self) -> Option<&str> {
        let whole = self.contents.iter().find(|it| it.partition.is_none())?;
        Some(&whole.uuid)
    }

    /// The texts that it has.
    pub fn texts(&self) -> impl Iterator<Item = &String> {
        let single = [
            &self.model,
            &self.serial,
            &self.wwid,
            &self.dm_uuid,
            &self.md_uuid,
            &self.backing_file,
            &self.partition_uuid,
            &self.table_uuid,
        ];
        let contents = self.contents.iter().flat_map(|it| [&it.kind, &it.uuid]);
        single
            .into_iter()
            .flatten()
            .chain(&self.names)
            .chain(contents)
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = Vec::new();
        words.extend(
            self.partition
                .map(|number| format!("partition {number} of")),
        );
        words.extend(self.model.clone());
        let number = self.serial.as_ref().or(self.wwid.as_ref());
        words.extend(number.map(|number| format!("serial number {number}")));
        words.extend(self.dm_uuid.clone());
        words.extend(self.md_uuid.as_ref().map(|uuid| format!("array {uuid}")));
        words.extend(
            self.backing_file
                .as_ref()
                .map(|it| format!("a loop device on {it}")),
        );
        let table = self.table_uuid.as_ref();
        words.extend(table.map(|uuid| format!("with partition table {uuid}")));
        if words.is_empty() {
            words.extend(
                self.contents
                    .first()
                    .map(|it| format!("with {} {}", it.kind, it.uuid)),
            );
        }
        match words.is_empty() {
            true => f.write_str("a disk without a number"),
            false => f.write_str(&words.join(" ")),
        }
    }
}

/// Whether two are equal, if both are known.
fn compare<T: PartialEq>(a: &Option<T>, b: &Option<T>) -> Option<bool> {
    Some(a.as_ref()? == b.as_ref()?)
}

/// Whether what is known of several speaks for it, all of it.
fn all(verdicts: &[Option<bool>]) -> Option<bool> {
    verdicts.iter().flatten().copied().reduce(|a, b| a && b)
}

/// Where block devices are looked at.
#[derive(Debug, Clone)]
pub struct Sources {
    sys: PathBuf,
    dev: PathBuf,
    number_of: NumberOf,
}

impl Default for Sources {
    fn default() -> Self {
        Self::at(Path::new("/"), node_number)
    }
}

impl Sources {
    /// The same below another root.
    pub(crate) fn at(root: &Path, number_of: NumberOf) -> Self {
        Self {
            sys: root.join("sys"),
            dev: root.join("dev"),
            number_of,
        }
    }

    /// What is known of a device. What it holds is read from `content`, which is the
    /// device itself or a snapshot of it.
    pub fn disk(&self, device: DeviceNumber, content: DeviceNumber) -> Disk {
        let mut disk = self.hardware(device).unwrap_or_default();
        disk.names = self.names(device);
        self.add_content(content, &mut disk);
        disk
    }

    fn directory(&self, number: DeviceNumber) -> Option<PathBuf> {
        fs::canonicalize(self.sys.join("dev/block").join(number.to_string())).ok()
    }

    fn hardware(&self, number: DeviceNumber) -> Option<Disk> {
        let directory = self.directory(number)?;
        let partition = text(&directory.join("partition")).and_then(|it| it.parse().ok());
        let disk = match partition {
            Some(_) => directory.parent()?,
            None => &directory,
        };
        let read = |name: &str| text(&disk.join(name));
        // Since 6.12.
        let uevent = text(&directory.join("uevent")).unwrap_or_default();
        let partition_uuid = uevent.lines().find_map(|it| it.strip_prefix("PARTUUID="));
        Some(Disk {
            model: read("device/model"),
            serial: read("serial")
                .or_else(|| read("device/serial"))
                .or_else(|| page_80(&disk.join("device/vpd_pg80"))),
            wwid: read("wwid").or_else(|| read("device/wwid")),
            dm_uuid: read("dm/uuid"),
            md_uuid: read("md/uuid"),
            backing_file: read("loop/backing_file"),
            partition,
            partition_uuid: partition_uuid.map(str::to_owned),
            ..Disk::default()
        })
    }

    /// The links in /dev/disk/by-id to a device.
    pub(crate) fn names(&self, number: DeviceNumber) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.dev.join("disk/by-id")) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter(|entry| (self.number_of)(&entry.path()) == Some(number))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.len() <= MAX_TEXT)
            .collect();
        names.sort();
        names.truncate(MAX_LIST);
        names
    }

    fn add_content(&self, number: DeviceNumber, disk: &mut Disk) {
        let Some(directory) = self.directory(number) else {
            return;
        };
        let mut places = vec![(None, directory.clone())];
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if let Some(partition) = text(&path.join("partition")) {
                places.push((partition.parse().ok(), path));
            }
        }
        places.sort();
        for (partition, path) in places {
            let node = path.file_name().and_then(|name| name.to_str());
            let Some(node) = node.map(|name| self.dev.join(name.replace('!', "/"))) else {
                continue;
            };
            let Ok(file) = File::open(&node) else {
                continue;
            };
            let found = signature::uuids(&file, &BLKID);
            if partition.is_none() {
                disk.table_uuid = found.table;
            }
            disk.contents
                .extend(found.content.map(|(kind, uuid)| Content {
                    partition,
                    kind,
                    uuid,
                }));
        }
        disk.contents.truncate(MAX_LIST);
    }
}

/// A file's text without the white space around it, unless it is empty.
fn text(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    (!text.is_empty() && text.len() <= MAX_TEXT).then_some(text)
}

/// The serial number of a SCSI disk: SPC, "Unit Serial Number VPD page". Four bytes come
/// before it, of which the last two are its length.
fn page_80(path: &Path) -> Option<String> {
    let bytes = fs::read(path).ok()?;
    let length = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    let serial = String::from_utf8_lossy(bytes.get(4..)?.get(..length.into())?).into_owned();
    let serial = serial.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!serial.is_empty()).then(|| serial.to_owned())
}

#[cfg(test)]
mod tests;
