// SPDX-License-Identifier: GPL-2.0-only

//! Making a manifest again that was lost, from what the directories of the restore points
//! have of it.
//!
//! A prune or backup may have been interrupted before, so that files have not got their names
//! yet. Of each image the record counts whose files are there; data is not read.

use std::collections::BTreeMap;
use std::collections::HashMap;

use rustix::io::Errno;
use serde::Serialize;

use crate::error::Error;
use crate::error::Result;

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
    /// How the manifest was lost; none if it was right, and nothing but missing parts of it
    /// were written.
    pub lost: Option<Error>,
    /// The restore points that there are now.
    pub points: Vec<u64>,
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
}

/// Makes the manifest again if it is missing or damaged; else the parts of it that are.
/// `lost` is what [`Store::open_to_rebuild`] said.
pub fn rebuild(store: &mut Store, lost: Option<Error>, watch: &mut dyn Watch) -> Result<Report> {
    match lost {
        None => renew_parts(store),
        Some(lost) => from_parts(store, lost, watch),
    }
}

fn renew_parts(store: &mut Store) -> Result<Report> {
    let mut manifest = store.manifest().clone();
    let mut report = Report {
        lost: None,
        points: manifest.points.iter().map(|it| it.number).collect(),
        parts: Vec::new(),
        gone: Vec::new(),
        errors: Vec::new(),
    };
    // What was interrupted comes first, and may renew some. What is to be removed is taken over
    // from the manifest that is there.
    manifest.todo.remove.clear();
    store.publish(manifest.clone())?;
    manifest.todo = Todo::default();
    for number in manifest.numbers() {
        let part = manifest.part(number);
        match store.read_part(&names::part(number)) {
            Ok(Some(found)) if found == part => continue,
            Err(error) if !image::means_damage(&error) => return Err(error),
            _ => (),
        }
        manifest.todo.rename.push(store.renew_part(number, &part)?);
        report.parts.push(number);
    }
    if !report.parts.is_empty() {
        store.publish(manifest)?;
    }
    Ok(report)
}

fn from_parts(store: &mut Store, lost: Error, watch: &mut dyn Watch) -> Result<Report> {
    let (mut gone, mut errors) = (Vec::new(), Vec::new());
    let found = find(store, &mut errors)?;
    let mut manifest = Manifest::default();
    let mut progress = Progress {
        done: 0,
        total: found.len() as u64,
    };
    for (number, found) in &found {
        watch.keep_on(progress)?;
        add(store, *number, found, &mut manifest, &mut gone, &mut errors)?;
        manifest.next = number + 1;
        progress.done += 1;
    }
    if let Some(reason) = manifest.contradiction() {
        let reason = format!("what is left of it contradicts itself: {reason}");
        return Err(damaged(store.directory(), reason)
            .remedied_by("the images can still be opened, with qemu-nbd for example"));
    }
    if manifest.points.is_empty() && !errors.is_empty() {
        // A manifest without any would hide that there is something to be saved.
        return Ok(Report {
            lost: Some(lost),
            points: Vec::new(),
            parts: Vec::new(),
            gone,
            errors,
        });
    }
    store.publish_rebuilt(manifest)?;
    // Without what was lost.
    let renewed = renew_parts(store)?;
    Ok(Report {
        lost: Some(lost),
        parts: renewed.parts,
        points: renewed.points,
        gone,
        errors,
    })
}

/// Reads what all directories have.
fn find(store: &Store, errors: &mut Vec<Error>) -> Result<BTreeMap<u64, Found>> {
    let mut found: BTreeMap<u64, Found> = BTreeMap::new();
    let mut directories = store.opened_directory().entries("")?;
    // Those that are finished come first.
    directories.sort_by_key(|name| name.len());
    'directories: for directory in directories {
        let finished = names::finished(&directory).unwrap_or(&directory);
        let Some(number) = names::number(finished).filter(|it| !found.contains_key(it)) else {
            continue;
        };
        let mut parts = Vec::new();
        let name = format!("{directory}/{}", names::PART);
        for name in [names::partial(&name), name] {
            match store.read_part(&name) {
                // One that cannot be right must not make all of them useless.
                Ok(Some(part)) => match part.contradiction(number) {
                    None => parts.push(part),
                    Some(reason) => {
                        let path = store.opened_directory().path_of(&name);
                        errors.push(damaged(&path, reason));
                    }
                },
                Ok(None) => (),
                Err(error) if image::means_damage(&error) => errors.push(error),
                // What has this name is no directory, and so none of a backup.
                Err(error) if error.errno() == Some(Errno::NOTDIR) => continue 'directories,
                Err(error) => return Err(error),
            }
        }
        if parts.is_empty() {
            let path = store.opened_directory().path_of(&directory);
            let is_interrupted = directory != finished;
            let files = store.opened_directory().entries(&directory)?;
            if !is_interrupted && files.iter().any(|file| names::is_file_of_point(file)) {
                errors.push(damaged(&path, format!("it has no usable {}", names::PART)));
            }
            continue;
        }
        found.insert(number, Found { directory, parts });
    }
    Ok(found)
}

/// Adds what can be used of a directory.
fn add(
    store: &Store,
    number: u64,
    found: &Found,
    manifest: &mut Manifest,
    gone: &mut Vec<Gone>,
    errors: &mut Vec<Error>,
) -> Result<()> {
    let name = names::directory(number);
    if found.directory != name {
        let rename = (found.directory.clone(), name);
        manifest.todo.rename.push(rename);
    }
    let mut images: Vec<&str> = Vec::new();
    let mut records: HashMap<&str, Vec<&Image>> = HashMap::new();
    for record in found.parts.iter().flat_map(|part| &part.images) {
        let known = records.entry(&record.name).or_default();
        if known.is_empty() {
            images.push(&record.name);
        }
        known.push(record);
    }
    for image in images {
        let mut failed = None;
        for record in &records[image] {
            match usable(store, &found.directory, record, manifest) {
                Ok(renames) => {
                    manifest.todo.rename.extend(renames);
                    manifest.images.push((*record).clone());
                    failed = None;
                    break;
                }
                Err(error) if image::means_damage(&error) => failed = Some(error),
                Err(error) => return Err(error),
            }
        }
        errors.extend(failed);
    }
    let point = found.parts.iter().find_map(|part| part.point.as_ref());
    if let Some(point) = point {
        let mut devices = point.devices.clone();
        devices.retain(|device| manifest.image(&device.image).is_some());
        let lost = point.devices.iter().filter(|it| !devices.contains(it));
        gone.extend(lost.map(|it| Gone {
            point: number,
            device: it.device.clone(),
        }));
        if !devices.is_empty() {
            manifest.points.push(Point {
                devices,
                ..point.clone()
            });
        }
    }
    Ok(())
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
