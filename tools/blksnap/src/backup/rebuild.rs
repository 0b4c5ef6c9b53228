// SPDX-License-Identifier: GPL-2.0-only

//! Making a manifest again that was lost, from what the directories of the restore points
//! have of it.
//!
//! A prune or backup may have been interrupted before, so that files have not got their names
//! yet. Of each image the record counts whose files are there; data is not read.
//!
//! A manifest that is there may have been made like this when some files were missing. What
//! the directories have and it does not is added then.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;

use rustix::io::Errno;
use serde::Serialize;

use crate::error::Error;
use crate::error::Result;

use super::forgotten;
use super::image;
use super::image::CLUSTER;
use super::manifest::Image;
use super::manifest::Manifest;
use super::manifest::Part;
use super::manifest::Point;
use super::manifest::Todo;
use super::member::Member;
use super::names;
use super::store::Store;
use super::sums::damaged;
use super::sums::Sums;
use super::verify::check_tables;
use super::view::ENTRIES_OF_ONE;
use super::Progress;
use super::Watch;

/// What became of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// How the manifest was lost; none if it was right, and only what was missing in it or of
    /// its parts was added.
    pub lost: Option<Error>,
    /// The restore points that there are now.
    pub points: Vec<u64>,
    /// Those that were not in a right manifest, or not with all of their devices.
    pub added: Vec<u64>,
    /// Those that are there as far as they were not removed yet, but are forgotten.
    pub forgotten: Vec<u64>,
    /// Those of which the directory's part of the manifest was written again.
    pub parts: Vec<u64>,
    /// The devices of restore points of which files are missing or damaged, here or in a base.
    pub gone: Vec<Gone>,
    /// What could not be used.
    pub errors: Vec<Error>,
}

/// What is not in the manifest any more.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Gone {
    pub point: u64,
    pub device: String,
}

/// A restore point's directory.
struct Found {
    /// Its name, which ends in ".partial" if it was not finished.
    directory: String,
    /// What it has of the manifest; what was written last comes first.
    parts: Vec<Part>,
    /// Its restore point was forgotten.
    is_forgotten: bool,
}

/// Makes the manifest again if it is missing or damaged; else adds what it, or its parts, do not
/// have. `lost` is what [`Store::open_to_rebuild`] said.
pub fn rebuild(store: &mut Store, lost: Option<Error>, watch: &mut dyn Watch) -> Result<Report> {
    let found = match &lost {
        Some(_) => Rebuilt::gather(store, None, watch)?,
        None => {
            // What was interrupted comes first, and may renew some. What is to be removed is
            // taken over from the manifest that is there.
            let mut manifest = store.manifest().clone();
            manifest.todo.remove.clear();
            store.publish(manifest)?;
            let known = store.manifest().clone();
            Rebuilt::gather(store, Some(&known), watch)?
        }
    };
    let before = store.manifest().clone();
    let Rebuilt {
        mut manifest,
        gone,
        mut errors,
        incomplete,
        forgotten,
    } = found;
    if let Some(reason) = manifest.contradiction() {
        let reason = format!("what is left of it contradicts itself: {reason}");
        let error = damaged(store.directory(), reason)
            .remedied_by("the images can still be opened, with qemu-nbd for example");
        if lost.is_some() {
            return Err(error);
        }
        errors.push(error);
        manifest = before.clone();
    }
    if lost.is_some() && manifest.points.is_empty() && !errors.is_empty() {
        // A manifest without any would hide that there is something to be saved.
        return Ok(Report {
            lost,
            points: Vec::new(),
            added: Vec::new(),
            forgotten,
            parts: Vec::new(),
            gone,
            errors,
        });
    }
    let mut added = Vec::new();
    if lost.is_some() {
        store.publish_rebuilt(manifest)?;
    } else if manifest.points != before.points || manifest.images != before.images {
        let is_new = |point: &&Point| before.point(point.number) != Some(*point);
        added.extend(manifest.points.iter().filter(is_new).map(|it| it.number));
        store.publish(manifest)?;
    }
    let parts = renew_parts(store, &incomplete)?;
    let points = store.manifest().points.iter();
    Ok(Report {
        lost,
        points: points.map(|it| it.number).collect(),
        added,
        forgotten,
        parts,
        gone,
        errors,
    })
}

/// Writes those parts again that are missing, damaged or not as the manifest has them. Parts
/// that have more than could be used stay as they are, as that may be set right.
fn renew_parts(store: &mut Store, incomplete: &BTreeSet<u64>) -> Result<Vec<u64>> {
    let mut manifest = store.manifest().clone();
    manifest.todo = Todo::default();
    manifest.without_part.clear();
    let mut renewed = Vec::new();
    for number in manifest.numbers() {
        let part = manifest.part(number);
        match store.read_part(&names::part(number)) {
            Ok(Some(found)) if found == part => continue,
            Ok(Some(_)) if incomplete.contains(&number) => continue,
            Err(error) if !image::means_damage(&error) => return Err(error),
            _ => (),
        }
        manifest.todo.rename.push(store.renew_part(number, &part)?);
        renewed.push(number);
    }
    if !renewed.is_empty() || !store.manifest().without_part.is_empty() {
        store.publish(manifest)?;
    }
    Ok(renewed)
}

/// A manifest of all that can be used.
#[derive(Default)]
struct Rebuilt {
    manifest: Manifest,
    gone: Vec<Gone>,
    errors: Vec<Error>,
    /// The restore points whose parts have more than the manifest.
    incomplete: BTreeSet<u64>,
    forgotten: Vec<u64>,
}

impl Rebuilt {
    /// What is in `known` counts as it is there, and the rest as far as its files are there.
    fn gather(store: &Store, known: Option<&Manifest>, watch: &mut dyn Watch) -> Result<Self> {
        let is_lost = known.is_none();
        let empty = Manifest::default();
        let known = known.unwrap_or(&empty);
        let mut rebuilt = Self {
            manifest: Manifest {
                next: known.next,
                without_part: known.without_part.clone(),
                ..Manifest::default()
            },
            ..Self::default()
        };
        let found = find(store, known, is_lost, &mut rebuilt.errors)?;
        let mut numbers = known.numbers();
        numbers.extend(found.keys());
        let mut progress = Progress {
            done: 0,
            total: numbers.len() as u64,
        };
        for number in numbers {
            watch.keep_on(progress)?;
            rebuilt.add(store, number, known, found.get(&number))?;
            rebuilt.manifest.next = rebuilt.manifest.next.max(number + 1);
            progress.done += 1;
        }
        rebuilt.forget(known, &found);
        Ok(rebuilt)
    }

    /// Adds what can be used of a restore point.
    fn add(
        &mut self,
        store: &Store,
        number: u64,
        known: &Manifest,
        found: Option<&Found>,
    ) -> Result<()> {
        let Part { point, images } = known.part(number);
        let mut wanted: Vec<&str> = Vec::new();
        let mut records: HashMap<&str, Vec<&Image>> = HashMap::new();
        let parts = found.map_or(&[][..], |found| &found.parts);
        // In the order of the part, if there is one.
        for record in parts.iter().flat_map(|part| &part.images).chain(&images) {
            let entry = records.entry(&record.name).or_default();
            if entry.is_empty() {
                wanted.push(&record.name);
            }
            entry.push(record);
        }
        for name in wanted {
            if let Some(image) = images.iter().find(|it| it.name == name) {
                self.manifest.images.push(image.clone());
            } else if let Some(found) = found {
                self.add_image(store, found, number, &records[name])?;
            }
        }
        let noted = parts.iter().find_map(|part| part.point.as_ref());
        let noted = noted.filter(|_| point.is_some() || !found.is_some_and(|it| it.is_forgotten));
        let (Some(source), true) = (noted.or(point.as_ref()), point.is_some() || noted.is_some())
        else {
            return Ok(());
        };
        let manifest = &self.manifest;
        let mut devices = source.devices.clone();
        devices.retain(|device| manifest.image(&device.image).is_some());
        for device in &source.devices {
            if !devices.contains(device) {
                self.incomplete.insert(number);
                self.gone.push(Gone {
                    point: number,
                    device: device.device.clone(),
                });
            }
        }
        let rest = point.iter().flat_map(|point| &point.devices);
        for device in rest {
            if !devices.iter().any(|it| it.image == device.image) {
                devices.push(device.clone());
            }
        }
        if !devices.is_empty() {
            self.manifest.points.push(Point {
                devices,
                ..point.as_ref().unwrap_or(source).clone()
            });
        }
        if let Some(found) = found.filter(|_| point.is_none()) {
            let name = names::directory(number);
            if found.directory != name {
                let rename = (found.directory.clone(), name);
                self.manifest.todo.rename.insert(0, rename);
            }
        }
        Ok(())
    }

    /// Adds an image of which there are these records, if it can be used.
    fn add_image(
        &mut self,
        store: &Store,
        found: &Found,
        number: u64,
        records: &[&Image],
    ) -> Result<()> {
        let mut failed = None;
        for record in records {
            match usable(store, &found.directory, record, &self.manifest) {
                Ok(renames) => {
                    self.manifest.todo.rename.extend(renames);
                    self.manifest.images.push((*record).clone());
                    return Ok(());
                }
                Err(error) if image::means_damage(&error) => failed = Some(error),
                Err(error) => return Err(error),
            }
        }
        // What is forgotten may have been removed.
        if !found.is_forgotten {
            self.incomplete.insert(number);
            self.errors.extend(failed);
        }
        Ok(())
    }

    /// Leaves out what is only there because the removal was interrupted. It is removed
    /// if nothing else is missing, which could be based on it once it was set right.
    fn forget(&mut self, known: &Manifest, found: &BTreeMap<u64, Found>) {
        let is_forgotten = |number: &u64| {
            let is_marked = found.get(number).is_some_and(|it| it.is_forgotten);
            is_marked && known.point(*number).is_none()
        };
        self.forgotten
            .extend(found.keys().copied().filter(is_forgotten));
        let manifest = &mut self.manifest;
        let points = manifest.points.iter().flat_map(|it| &it.devices);
        let needed = manifest.needed(points.map(|it| it.image.as_str()));
        let is_used = |image: &Image| {
            needed.contains(image.name.as_str())
                || known.image(&image.name).is_some()
                || !is_forgotten(&Manifest::number_of(&image.name))
        };
        let used: Vec<bool> = manifest.images.iter().map(is_used).collect();
        let mut used = used.into_iter();
        manifest.images.retain(|_| used.next() == Some(true));
        let kept: HashSet<&str> = manifest.images.iter().map(|it| it.name.as_str()).collect();
        let todo = &mut manifest.todo;
        todo.rename
            .retain(|(_, to)| names::image_of_file(to).is_none_or(|image| kept.contains(image)));
        if !self.errors.is_empty() {
            self.incomplete.extend(&self.forgotten);
            return;
        }
        let numbers: BTreeSet<u64> = kept.iter().map(|it| Manifest::number_of(it)).collect();
        for number in &self.forgotten {
            let images = found[number].parts.iter().flat_map(|it| &it.images);
            for image in images.filter(|it| !kept.contains(it.name.as_str())) {
                let files = names::ENDS.map(|end| format!("{}.{end}", image.name));
                todo.remove.extend(files);
            }
            if !numbers.contains(number) {
                todo.remove.push(names::part(*number));
            }
        }
    }
}

/// Reads what all directories have that may have more than `known`.
fn find(
    store: &Store,
    known: &Manifest,
    is_lost: bool,
    errors: &mut Vec<Error>,
) -> Result<BTreeMap<u64, Found>> {
    let unpublished = forgotten::unpublished(store.opened_directory())?;
    let numbers = known.numbers();
    let mut found: BTreeMap<u64, Found> = BTreeMap::new();
    let mut directories = store.opened_directory().entries("")?;
    // Those that are finished come first.
    directories.sort_by_key(|name| name.len());
    'directories: for directory in directories {
        let finished = names::finished(&directory).unwrap_or(&directory);
        let Some(number) = names::number(finished).filter(|it| !found.contains_key(it)) else {
            continue;
        };
        let is_interrupted = directory != finished;
        let is_removed = known.todo.remove.contains(&names::part(number));
        if !is_lost && (is_interrupted || is_removed) {
            continue;
        }
        let is_known = numbers.contains(&number);
        let mut parts = Vec::new();
        let name = format!("{directory}/{}", names::PART);
        for name in [names::partial(&name), name] {
            match store.read_part(&name) {
                // One that cannot be right must not make all of them useless.
                Ok(Some(part)) => match part.contradiction(number) {
                    None => parts.push(part),
                    Some(reason) if !is_known => {
                        let path = store.opened_directory().path_of(&name);
                        errors.push(damaged(&path, reason));
                    }
                    Some(_) => (),
                },
                Ok(None) => (),
                Err(error) if image::means_damage(&error) => {
                    errors.extend(Some(error).filter(|_| !is_known));
                }
                // What has this name is no directory, and so none of a backup.
                Err(error) if error.errno() == Some(Errno::NOTDIR) => continue 'directories,
                Err(error) => return Err(error),
            }
        }
        let is_forgotten =
            forgotten::is_marked(store.opened_directory(), number, unpublished.as_deref())?;
        if parts.is_empty() {
            let path = store.opened_directory().path_of(&directory);
            let files = store.opened_directory().entries(&directory)?;
            let is_missed = !is_interrupted && !is_known && !is_forgotten;
            if is_missed && files.iter().any(|file| names::is_file_of_point(file)) {
                errors.push(damaged(&path, format!("it has no usable {}", names::PART)));
            }
            continue;
        }
        let to_remove = |image: &Image| {
            let mut files = names::ENDS
                .iter()
                .map(|end| format!("{}.{end}", image.name));
            files.any(|file| known.todo.remove.contains(&file))
        };
        for part in &mut parts {
            part.images.retain(|image| !to_remove(image));
        }
        found.insert(
            number,
            Found {
                directory,
                parts,
                is_forgotten,
            },
        );
    }
    Ok(found)
}

/// Looks whether the files of an image are there; returns which of them are to be renamed.
fn usable(
    store: &Store,
    directory: &str,
    image: &Image,
    manifest: &Manifest,
) -> Result<Vec<(String, String)>> {
    if let Some(base) = &image.base {
        if manifest.image(base).is_none() {
            let reason = format!("{base}, which it is based on, is lost");
            return Err(damaged(&store.qcow2(&image.name), reason));
        }
    }
    let label = image.name.rsplit('/').next().unwrap_or_default();
    let mut renames = Vec::new();
    for end in names::ENDS {
        let file = format!("{directory}/{label}.{end}");
        let new = names::partial(&file);
        let member = |name: &str| Member::new(store.opened_directory(), name);
        match check(&member(&new), end, image) {
            Ok(()) => renames.push((new, format!("{}.{end}", image.name))),
            Err(error) if image::means_damage(&error) => check(&member(&file), end, image)?,
            Err(error) => return Err(error),
        }
    }
    Ok(renames)
}

/// An error of [`Operation::CheckBackup`] if a file is missing or not that of an image.
///
/// [`Operation::CheckBackup`]: crate::error::Operation::CheckBackup
fn check(file: &Member, end: &str, image: &Image) -> Result<()> {
    if end == "sums" {
        let clusters = image.size.div_ceil(CLUSTER);
        return Sums::open(file, &image.sums, clusters, ENTRIES_OF_ONE).map(drop);
    }
    check_tables(file, image)
}
