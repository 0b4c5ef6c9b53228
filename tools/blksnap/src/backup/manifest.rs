// SPDX-License-Identifier: GPL-2.0-only

//! What a directory of backups holds: restore points, and the images that they
//! are made of.
//!
//! It is the only thing that says so: whatever it does not name is no part of
//! the backup, and it is replaced as a whole.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;

use serde::de::DeserializeOwned;
use serde::Deserialize;
use serde::Serialize;

use crate::identity::Disk;
use crate::identity::Machine;
use crate::identity::MAX_LIST;
use crate::identity::MAX_TEXT;
use crate::Uuid;

use super::changes::Extent;
use super::image;
use super::names;
use super::subject::Subject;

/// The version of this format. Later ones are not understood.
///
/// * 1: the first one
/// * 2: machines, disks, parts of the manifest, and images of another size than their base
pub const VERSION: u32 = 2;
/// The one in which restore points had no parts of the manifest.
const WITHOUT_PARTS: u32 = 1;

/// Upper limits, so that a manifest takes no more memory and time than a real one would.
/// Bytes of the file.
pub const MAX_BYTES: u64 = 256 << 20;
/// Bytes of a restore point's part: of 128 devices, each with all ranges that could not be read
/// and 32 KiB of other text. A restore point that needs more is not made.
pub const MAX_PART_BYTES: u64 = 128 * (MAX_UNREADABLE as u64 * MAX_EXTENT_TEXT + (32 << 10));
/// Bytes of a range in the text of a part.
const MAX_EXTENT_TEXT: u64 = 128;
const MAX_POINTS: usize = 1 << 16;
const MAX_IMAGES: usize = 1 << 18;
/// Bytes of the name of a device, as of any path.
const MAX_DEVICE: usize = 4096;
/// Ranges of a device that could not be read.
pub const MAX_UNREADABLE: usize = 1 << 10;
/// The last second of the year 9999.
const MAX_TIME: u64 = 253_402_300_799;
/// The last number of a snapshot in a generation.
const MAX_CHANGES: u8 = 254;
/// Images that are based on each other, of which a new one is made. Each of them takes memory and
/// time whenever the newest is read.
pub const MAX_CHAIN: usize = 200;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The number of the next restore point; numbers are not used again.
    pub next: u64,
    /// In the order in which they were made.
    pub points: Vec<Point>,
    /// Bases come before what is based on them.
    pub images: Vec<Image>,
    /// What is still to be done for this to be true of the files.
    pub todo: Todo,
    /// Numbers of those whose directories have no part of the manifest: older backups do not
    /// have any.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub without_part: BTreeSet<u64>,
}

/// The content of devices at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    pub number: u64,
    /// Seconds since 1970, UTC.
    pub time: u64,
    /// The machine that the devices were in; older backups do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    pub devices: Vec<PointDevice>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointDevice {
    /// The device as it was named then, made absolute, as [`name`] writes it. Only a
    /// label: names may move from disk to disk.
    ///
    /// [`name`]: super::name
    pub device: String,
    /// Which disk it was; older backups do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
    /// Name of its image.
    pub image: String,
}

/// The content of a device when a snapshot was taken, or its difference from
/// the base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Such as "000003/sda", of the files 000003/sda.qcow2 and 000003/sda.sums.
    pub name: String,
    /// Name of the base; none of an image that has everything. What is past the end of a
    /// base reads as zeroes.
    pub base: Option<String>,
    /// Bytes of the device.
    pub size: u64,
    /// Bytes of a logical block of the device; older backups do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logical_block_size: Option<u32>,
    /// The generation of the device's change tracking. Proves that it is the
    /// same device, as every start of tracking has another one.
    pub generation_id: Uuid,
    /// The kernel's boot id then; older backups do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<Uuid>,
    /// The number of the snapshot within the generation, from 1 on.
    pub changes_number: u8,
    /// The random id of the snapshot's take. None if the driver did not tell it;
    /// then nothing can be based on this by a change map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub take_id: Option<Uuid>,
    /// Bytes of data in it.
    pub data_bytes: u64,
    /// Bytes of the qcow2 file.
    pub file_bytes: u64,
    /// BLAKE3 digest of the qcow2 file without the data.
    pub metadata: String,
    /// BLAKE3 digest of the file of digests.
    pub sums: String,
    /// What of the device could not be read, in bytes and ascending order: all of it, whether it
    /// is stored here or in a base. It reads as zeroes, and nothing can be based on that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Extent>,
}

/// Changes of files that this manifest implies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Todo {
    /// Files and directories to rename, from and to, in this order.
    pub rename: Vec<(String, String)>,
    /// Files to remove after that, and their directories when they are empty.
    pub remove: Vec<String>,
}

impl Todo {
    pub fn is_empty(&self) -> bool {
        self.rename.is_empty() && self.remove.is_empty()
    }

    /// Whether a file that readers know is replaced by another one of that name, as a prune does.
    pub fn replaces_files(&self) -> bool {
        let mut targets = self.rename.iter().map(|(_, to)| to);
        targets.any(|to| names::image_of_file(to).is_some())
    }

    /// What the command never has in such a list: of renaming that which is not finished yet,
    /// of a new restore point or of an image; of removing the files of images that
    /// are in the list no more.
    fn foreign(&self, images: &HashMap<&str, &Image>, next: u64) -> Option<&str> {
        let is_past = |number: u64| number < next;
        let used: HashSet<_> = images.keys().map(|it| Manifest::number_of(it)).collect();
        for (from, to) in &self.rename {
            if names::finished(from) != Some(to) {
                return Some(from);
            }
            let is_image = || names::image_of_file(to).is_some_and(|it| images.contains_key(it));
            let number = names::number(to).or_else(|| names::number_of_part(to));
            if !number.is_some_and(is_past) && !is_image() {
                return Some(to);
            }
        }
        let is_obsolete = |file: &&String| {
            names::image_of_file(file).is_some_and(|image| {
                !images.contains_key(image) && names::number_of_image(image).is_some_and(is_past)
            }) || names::number_of_part(file).is_some_and(|it| is_past(it) && !used.contains(&it))
        };
        let foreign = self.remove.iter().find(|file| !is_obsolete(file));
        foreign.map(String::as_str)
    }
}

impl Point {
    /// What no machine and no disk has, as the command does not note that much.
    fn excess(&self) -> Option<&'static str> {
        let is_long = |text: &String| text.len() > MAX_TEXT;
        if self.machine.iter().any(|it| it.texts().any(is_long)) {
            return Some("a machine with a longer name than can be");
        }
        let mut disks = self.devices.iter().filter_map(|it| it.disk.as_ref());
        let is_excessive = |disk: &Disk| {
            disk.names.len() > MAX_LIST
                || disk.contents.len() > MAX_LIST
                || disk.texts().any(is_long)
        };
        disks
            .any(is_excessive)
            .then_some("a disk of which more is noted than can be")
    }

    /// What no restore point has.
    fn contradiction(&self) -> Option<String> {
        let number = self.number;
        if self.time > MAX_TIME {
            return Some(format!(
                "restore point {number} is of the time {}",
                self.time
            ));
        }
        if let Some(reason) = self.excess() {
            return Some(format!("restore point {number} has {reason}"));
        }
        let mut devices = self.devices.iter();
        devices
            .any(|device| device.device.len() > MAX_DEVICE)
            .then(|| format!("a device of restore point {number} has no name of one"))
    }

    /// Its devices, to be told from others.
    pub fn subjects(&self) -> impl Iterator<Item = Subject<'_>> {
        self.devices.iter().map(|device| Subject::of(self, device))
    }
}

impl Image {
    /// What no image has.
    fn contradiction(&self) -> Option<String> {
        if self.size > image::MAX_SIZE {
            return Some(format!("is of a device of {} bytes", self.size));
        }
        // The end of the last cluster may count as data.
        if self.data_bytes > self.size.next_multiple_of(image::CLUSTER)
            || self.file_bytes > image::max_file_bytes(self.size)
        {
            return Some("has more bytes than its device".to_owned());
        }
        if self.changes_number > MAX_CHANGES {
            return Some(format!("is of snapshot {}", self.changes_number));
        }
        let mut end = Some(0);
        for extent in &self.unreadable {
            let is_behind = extent.length > 0 && end.is_some_and(|end| extent.offset >= end);
            end = extent
                .offset
                .checked_add(extent.length)
                .filter(|_| is_behind);
        }
        if self.unreadable.len() > MAX_UNREADABLE || end.is_none_or(|end| end > self.size) {
            return Some("has ranges that could not be read and cannot be".to_owned());
        }
        let is_digest = |text: &String| {
            text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        let are_digests = is_digest(&self.metadata) && is_digest(&self.sums);
        (!are_digests).then(|| "has no digests".to_owned())
    }
}

/// What the directory of a restore point has of the manifest, so that it can be made again from
/// all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// None if it was removed and others are based on its images.
    pub point: Option<Point>,
    /// Those in its directory.
    pub images: Vec<Image>,
}

impl Part {
    pub fn is_empty(&self) -> bool {
        self.point.is_none() && self.images.is_empty()
    }

    /// What the part of a restore point's directory does not have.
    pub(super) fn contradiction(&self, number: u64) -> Option<String> {
        let images = self.images.iter().map(|image| &image.name);
        let devices = self.point.iter().flat_map(|point| &point.devices);
        for name in images.chain(devices.map(|device| &device.image)) {
            match names::number_of_image(name) {
                Some(found) if found == number => (),
                Some(found) => return Some(format!("it is of restore point {found}")),
                None => return Some(format!("{name:?} is no name of an image")),
            }
        }
        for image in &self.images {
            if let Some(reason) = image.contradiction() {
                return Some(format!("{} {reason}", image.name));
            }
        }
        match &self.point {
            Some(point) if point.number != number => {
                Some(format!("it is of restore point {}", point.number))
            }
            point => point.as_ref()?.contradiction(),
        }
    }

    pub fn to_json(&self) -> String {
        Envelope::<Self>::text(self)
    }

    /// An error says why it cannot be used.
    pub fn from_json(text: &str) -> Result<Self, String> {
        Envelope::<Self>::parse(text, "it", true).map(|(part, _)| part)
    }
}

/// How the manifest, or a part of it, lies in its file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<T> {
    version: u32,
    /// BLAKE3 digest of `backup` in compact JSON.
    checksum: String,
    backup: T,
}

impl<T: Serialize + DeserializeOwned> Envelope<T> {
    fn text(backup: &T) -> String
    where
        T: Clone,
    {
        let envelope = Self {
            version: VERSION,
            checksum: checksum(backup),
            backup: backup.clone(),
        };
        let mut text = serde_json::to_string_pretty(&envelope).expect("it has only plain keys");
        text.push('\n');
        text
    }

    /// Returns its version, too. An error calls it `what`.
    fn parse(text: &str, what: &str, is_checked: bool) -> Result<(T, u32), String> {
        let unreadable = |error: serde_json::Error| format!("{what} is damaged: {error}");
        let version: Version = serde_json::from_str(text).map_err(unreadable)?;
        if !(1..=VERSION).contains(&version.version) {
            return Err(format!(
                "{what} has version {}, and this command knows versions 1 to {VERSION}",
                version.version
            ));
        }
        let envelope: Self = serde_json::from_str(text).map_err(unreadable)?;
        if is_checked && checksum(&envelope.backup) != envelope.checksum {
            return Err(format!("{what} is damaged: the checksum is wrong"));
        }
        Ok((envelope.backup, envelope.version))
    }
}

fn checksum(backup: &impl Serialize) -> String {
    let text = serde_json::to_vec(backup).expect("it has only plain keys");
    blake3::hash(&text).to_string()
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Default for Manifest {
    fn default() -> Self {
        Self {
            next: 1,
            points: Vec::new(),
            images: Vec::new(),
            todo: Todo::default(),
            without_part: BTreeSet::new(),
        }
    }
}

impl Manifest {
    pub fn to_json(&self) -> String {
        Envelope::<Self>::text(self)
    }

    /// An error says why it cannot be used.
    pub fn from_json(text: &str) -> Result<Self, String> {
        Self::parse(text, true)
    }

    /// The same as if the checksum were right.
    pub(super) fn from_json_unchecked(text: &str) -> Result<Self, String> {
        Self::parse(text, false)
    }

    fn parse(text: &str, is_checked: bool) -> Result<Self, String> {
        let (mut manifest, version) = Envelope::<Self>::parse(text, "its manifest", is_checked)?;
        if let Some(reason) = manifest.contradiction() {
            return Err(format!("its manifest is damaged: {reason}"));
        }
        if version == WITHOUT_PARTS {
            manifest.without_part = manifest.numbers();
        }
        Ok(manifest)
    }

    /// What the directory of a restore point is to have of this.
    pub fn part(&self, number: u64) -> Part {
        let images = self.images.iter();
        Part {
            point: self.point(number).cloned(),
            images: images
                .filter(|image| Self::number_of(&image.name) == number)
                .cloned()
                .collect(),
        }
    }

    /// The numbers of the restore points that there are or whose images are needed.
    pub fn numbers(&self) -> BTreeSet<u64> {
        let points = self.points.iter().map(|point| point.number);
        let images = self.images.iter().map(|it| Self::number_of(&it.name));
        points.chain(images).collect()
    }

    /// What cannot be, if anything.
    pub(super) fn contradiction(&self) -> Option<String> {
        if self.points.len() > MAX_POINTS || self.images.len() > MAX_IMAGES {
            return Some("it has more restore points or images than can be".to_owned());
        }
        if !(1..=names::LAST + 1).contains(&self.next) {
            return Some(format!("{} is no number of a restore point", self.next));
        }
        let mut known: HashMap<&str, &Image> = HashMap::new();
        // The size of the largest image of each chain. No base in it is smaller than both one
        // above and one below: past its end what is below would show again.
        let mut largest: HashMap<&str, u64> = HashMap::new();
        for image in &self.images {
            let name = &image.name;
            let Some(number) = names::number_of_image(name) else {
                return Some(format!("{name:?} is no name of an image"));
            };
            if number >= self.next {
                return Some(format!("{name} is out of order"));
            }
            if let Some(base) = &image.base {
                let Some(base) = known.get(base.as_str()) else {
                    return Some(format!("{name} is based on {base:?}, which is not there"));
                };
                let largest = largest[base.name.as_str()];
                if image.size > base.size && largest > base.size {
                    return Some(format!(
                        "{name} is larger than its base, and so is what that is based on"
                    ));
                }
            }
            let below = image.base.as_deref().and_then(|base| largest.get(base));
            let below = below.copied().unwrap_or(0);
            largest.insert(name, image.size.max(below));
            if let Some(reason) = image.contradiction() {
                return Some(format!("{name} {reason}"));
            }
            if known.insert(name, image).is_some() {
                return Some(format!("{name} is there twice"));
            }
        }
        let mut last = 0;
        for point in &self.points {
            if point.number <= last || point.number >= self.next {
                return Some(format!("restore point {} is out of order", point.number));
            }
            last = point.number;
            if let Some(reason) = point.contradiction() {
                return Some(reason);
            }
            for device in &point.devices {
                if !known.contains_key(device.image.as_str()) {
                    return Some(format!("{:?} is not there", device.image));
                }
            }
        }
        let path = self.todo.foreign(&known, self.next)?;
        Some(format!(
            "{path:?} is no file of a backup to rename or remove"
        ))
    }

    pub fn image(&self, name: &str) -> Option<&Image> {
        self.images.iter().find(|image| image.name == name)
    }

    pub fn point(&self, number: u64) -> Option<&Point> {
        self.points.iter().find(|point| point.number == number)
    }

    /// An image and what it is based on, down to one that has everything.
    pub fn chain<'a>(&'a self, name: &str) -> Vec<&'a Image> {
        // Bases come before what is based on them, so that one pass from the end finds all.
        let mut chain = Vec::new();
        let mut wanted = Some(name);
        for image in self.images.iter().rev() {
            if wanted == Some(&image.name) {
                chain.push(image);
                wanted = image.base.as_deref();
            }
        }
        chain
    }

    /// The image of a device in the newest restore point that has it.
    pub fn newest_of(&self, subject: Subject<'_>) -> Option<&Image> {
        let image = self.points.iter().rev().find_map(|point| {
            let of_subject = || point.devices.iter().zip(point.subjects());
            // Two disks with one number are told apart by their names.
            let named = of_subject().find(|(_, it)| it.is(subject) && it.device == subject.device);
            named
                .or_else(|| of_subject().find(|(_, it)| it.is(subject)))
                .map(|(device, _)| &device.image)
        })?;
        self.image(image)
    }

    /// The restore points of a machine, or all of them. One that does not say of which it is
    /// belongs to the only machine that others say.
    pub fn of<'a>(
        &'a self,
        machine: Option<&'a Machine>,
    ) -> impl DoubleEndedIterator<Item = &'a Point> {
        let is_only = self.machines().len() <= 1;
        self.points.iter().filter(move |point| {
            machine.is_none_or(|wanted| match &point.machine {
                Some(machine) => machine.is(wanted),
                None => is_only,
            })
        })
    }

    /// The machines of which there are restore points, the newest first. Not those of
    /// restore points that do not say it.
    pub fn machines(&self) -> Vec<&Machine> {
        let mut machines: Vec<&Machine> = Vec::new();
        for machine in self
            .points
            .iter()
            .rev()
            .filter_map(|it| it.machine.as_ref())
        {
            if !machines.iter().any(|it| it.is(machine)) {
                machines.push(machine);
            }
        }
        machines
    }

    /// Names of images and of all that they are based on.
    pub fn needed<'a>(&'a self, names: impl Iterator<Item = &'a str>) -> HashSet<&'a str> {
        let mut needed: HashSet<&str> = names.collect();
        for image in self.images.iter().rev() {
            if needed.contains(image.name.as_str()) {
                needed.extend(image.base.as_deref());
            }
        }
        needed
    }

    /// The number of the restore point in which an image was made.
    pub fn number_of(name: &str) -> u64 {
        names::number_of_image(name).unwrap_or(0)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn image(name: &str, base: Option<&str>, generation: u8, number: u8) -> Image {
        Image {
            name: name.to_owned(),
            base: base.map(str::to_owned),
            size: 1 << 20,
            logical_block_size: None,
            generation_id: Uuid::from_bytes([generation; 16]),
            boot_id: None,
            changes_number: number,
            take_id: Some(take(generation, number)),
            data_bytes: 0,
            file_bytes: 0,
            metadata: "0".repeat(64),
            sums: "f".repeat(64),
            unreadable: Vec::new(),
        }
    }

    /// The id of a take, other ones for other numbers and generations.
    pub fn take(generation: u8, number: u8) -> Uuid {
        let mut bytes = [generation; 16];
        bytes[15] = number;
        Uuid::from_bytes(bytes)
    }

    /// Restore points with one device and one image each.
    pub fn manifest(images: Vec<Image>) -> Manifest {
        let points: Vec<_> = images
            .iter()
            .map(|image| Point {
                number: Manifest::number_of(&image.name),
                time: 0,
                machine: None,
                devices: vec![PointDevice {
                    device: "/dev/sda".to_owned(),
                    disk: None,
                    image: image.name.clone(),
                }],
            })
            .collect();
        Manifest {
            next: points.last().map_or(1, |point| point.number + 1),
            points,
            images,
            ..Manifest::default()
        }
    }

    fn sample() -> Manifest {
        manifest(vec![
            image("000001/sda", None, 1, 1),
            image("000002/sda", Some("000001/sda"), 1, 2),
            image("000003/sda", Some("000002/sda"), 1, 5),
        ])
    }

    #[test]
    fn it_is_read_back() {
        let mut manifest = sample();
        manifest
            .todo
            .rename
            .push(("000003.partial".to_owned(), "000003".to_owned()));
        manifest.todo.remove.push("000001/sdb.qcow2".to_owned());
        assert_eq!(Manifest::from_json(&manifest.to_json()), Ok(manifest));
    }

    #[test]
    fn images_from_before_takes_had_ids_are_read() {
        let mut manifest = sample();
        for image in &mut manifest.images {
            image.take_id = None;
        }
        let text = manifest.to_json();
        assert!(!text.contains("take_id"));
        assert_eq!(Manifest::from_json(&text), Ok(manifest));
        assert!(sample().to_json().contains("take_id"));
    }

    #[test]
    fn images_without_a_block_size_are_read_as_before() {
        let mut manifest = sample();
        let old = manifest.to_json();
        assert!(!old.contains("logical_block_size"));
        assert_eq!(Manifest::from_json(&old), Ok(manifest.clone()));
        manifest.images[2].logical_block_size = Some(4096);
        assert_eq!(Manifest::from_json(&manifest.to_json()), Ok(manifest));
    }

    #[test]
    fn images_without_a_boot_id_are_read_as_before() {
        let mut manifest = sample();
        let old = manifest.to_json();
        assert!(!old.contains("boot_id"));
        assert_eq!(Manifest::from_json(&old), Ok(manifest.clone()));
        manifest.images[2].boot_id = Some(take(9, 9));
        assert_eq!(Manifest::from_json(&manifest.to_json()), Ok(manifest));
    }

    #[test]
    fn what_could_not_be_read_is_in_order_and_within() {
        let extents = |list: &[(u64, u64)]| -> Vec<Extent> {
            let extent = |&(offset, length)| Extent { offset, length };
            list.iter().map(extent).collect()
        };
        let with = |list: Vec<Extent>| {
            let mut manifest = sample();
            manifest.images[1].unreadable = list;
            let text = manifest.to_json();
            Manifest::from_json(&text).map(|read| assert_eq!(read, manifest))
        };
        assert!(!sample().to_json().contains("unreadable"));
        let size = 1 << 20;
        for good in [&[][..], &[(0, 512)], &[(512, 512), (1024, 1)], &[(0, size)]] {
            with(extents(good)).unwrap();
        }
        for bad in [
            &[(0, 0)][..],
            &[(size, 1)],
            &[(0, size + 1)],
            &[(1, u64::MAX)],
            &[(512, 512), (0, 512)],
            &[(0, 512), (511, 512)],
            &[(u64::MAX, 1), (0, 1)],
        ] {
            assert!(with(extents(bad))
                .unwrap_err()
                .contains("could not be read"));
        }
        let many = |count| (0..count).map(|it| (it as u64 * 2, 1)).collect::<Vec<_>>();
        with(extents(&many(MAX_UNREADABLE))).unwrap();
        with(extents(&many(MAX_UNREADABLE + 1))).unwrap_err();
    }

    #[test]
    fn another_version_is_not_guessed_at() {
        let text = sample()
            .to_json()
            .replace("\"version\": 2", "\"version\": 3");
        let error = Manifest::from_json(&text).unwrap_err();
        assert!(error.contains("version 3"), "{error}");
        // Even if nothing else is known.
        let error = Manifest::from_json("{\"version\":3,\"chains\":[]}").unwrap_err();
        assert!(error.contains("version 3"), "{error}");
    }

    #[test]
    fn a_changed_digit_is_noticed() {
        let text = sample().to_json();
        let bad = text.replace("\"changes_number\": 5", "\"changes_number\": 4");
        assert_ne!(text, bad);
        assert!(Manifest::from_json(&bad).unwrap_err().contains("checksum"));
        assert!(Manifest::from_json(&text[..text.len() / 2]).is_err());
        assert!(Manifest::from_json("").is_err());
        // Where nothing is said, nothing can be wrong.
        assert_eq!(
            Manifest::from_json(&text.replace("\n", "\n ")),
            Ok(sample())
        );
    }

    #[test]
    fn sizes_go_up_and_then_down() {
        let with = |sizes: [u64; 3]| {
            let mut manifest = sample();
            for (image, size) in manifest.images.iter_mut().zip(sizes) {
                image.size = size;
            }
            Manifest::from_json(&manifest.to_json()).is_ok()
        };
        for sizes in [[1, 2, 3], [3, 2, 1], [1, 3, 2], [1, 1, 2], [2, 1, 1]] {
            assert!(with(sizes.map(|it| it << 20)), "{sizes:?}");
        }
        for sizes in [[2, 1, 2], [3, 1, 2]] {
            assert!(!with(sizes.map(|it| it << 20)), "{sizes:?}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let refused = |change: &dyn Fn(&mut Manifest)| {
            let mut manifest = sample();
            change(&mut manifest);
            Manifest::from_json(&manifest.to_json()).unwrap_err()
        };
        assert!(refused(&|m| m.images[0].name = "../../etc/x".to_owned()).contains("no name"));
        assert!(refused(&|m| m.images[2].base = Some("000003/sda".to_owned())).contains("based"));
        assert!(refused(&|m| m.images[1].size = 512).contains("larger than its base"));
        assert!(refused(&|m| m.images.swap(0, 1)).contains("not there"));
        assert!(refused(&|m| m.images[1] = m.images[0].clone()).contains("twice"));
        assert!(refused(&|m| m.points[0].devices[0].image = "9".to_owned()).contains("not there"));
        assert!(refused(&|m| m.next = 3).contains("out of order"));
        for path in [
            "/etc/passwd",
            "..",
            "../x",
            "a/../b",
            "a/b/c",
            "",
            "a//b",
            "blksnap.json",
            "blksnap.lock",
            "notes.txt",
            "000001",
            "000001/notes",
            "000001/.sums",
            // Of images that there are, or are going to be.
            "000001/sda.qcow2",
            "000003/sda.sums",
            "000004/sda.sums",
            "999999/sda.sums",
        ] {
            let reason = refused(&|m| m.todo.remove.push(path.to_owned()));
            assert!(reason.contains("no file"), "{path}");
        }
        for (from, to) in [
            ("000003.partial", "/etc"),
            ("/etc/shadow.partial", "/etc/shadow"),
            ("000003.partial", "000002"),
            ("000004.partial", "000004"),
            ("000003/sda.qcow2", "000003/sda.sums"),
            ("000003/sda.sums", "000003/sda.sums.partial"),
            ("000003/sdb.sums.partial", "000003/sdb.sums"),
            ("blksnap.json.partial", "blksnap.json"),
            ("../x.partial", "../x"),
        ] {
            let reason = refused(&|m| m.todo.rename.push((from.to_owned(), to.to_owned())));
            assert!(reason.contains("no file"), "{from}");
        }
    }

    #[test]
    fn numbers_that_no_backup_has_are_refused() {
        let refused = |change: &dyn Fn(&mut Manifest)| {
            let mut manifest = sample();
            change(&mut manifest);
            Manifest::from_json(&manifest.to_json()).unwrap_err()
        };
        assert!(refused(&|m| m.points[2].time = u64::MAX).contains("time"));
        assert!(refused(&|m| m.points[2].time = MAX_TIME + 1).contains("time"));
        for next in [0, names::LAST + 2, u64::MAX] {
            assert!(refused(&|m| m.next = next).contains("no number"));
        }
        for size in [image::MAX_SIZE + 1, u64::MAX] {
            let set = |m: &mut Manifest| m.images.iter_mut().for_each(|it| it.size = size);
            assert!(refused(&set).contains("device of"));
        }
        let most = image::max_file_bytes(1 << 20);
        for bytes in [most + 1, u64::MAX] {
            assert!(refused(&|m| m.images[1].file_bytes = bytes).contains("more bytes"));
        }
        for bytes in [(1 << 20) + 1, u64::MAX] {
            assert!(refused(&|m| m.images[1].data_bytes = bytes).contains("more bytes"));
        }
        assert!(refused(&|m| m.images[1].changes_number = 255).contains("snapshot 255"));
        for digest in [
            "",
            "00",
            &"g".repeat(64),
            &"A".repeat(64),
            &"0".repeat(1 << 20),
        ] {
            assert!(refused(&|m| m.images[1].sums = digest.to_owned()).contains("digest"));
            assert!(refused(&|m| m.images[1].metadata = digest.to_owned()).contains("digest"));
        }
        for name in ["/".repeat(MAX_DEVICE + 1), "x".repeat(1 << 20)] {
            assert!(refused(&|m| m.points[1].devices[0].device = name.clone()).contains("name"));
        }
        let mut largest = sample();
        for image in &mut largest.images {
            image.size = image::MAX_SIZE;
            image.data_bytes = image::MAX_SIZE;
            image.file_bytes = image::max_file_bytes(image::MAX_SIZE);
            image.changes_number = MAX_CHANGES;
        }
        largest.points[2].time = MAX_TIME;
        largest.next = names::LAST + 1;
        assert_eq!(Manifest::from_json(&largest.to_json()), Ok(largest));
    }

    #[test]
    fn chains_end_where_everything_is() {
        let manifest = sample();
        let names = |name| -> Vec<&str> {
            manifest
                .chain(name)
                .iter()
                .map(|image| image.name.as_str())
                .collect()
        };
        assert_eq!(
            names("000003/sda"),
            ["000003/sda", "000002/sda", "000001/sda"]
        );
        assert_eq!(names("000001/sda"), ["000001/sda"]);
        assert!(names("000009/sda").is_empty());
    }
}
