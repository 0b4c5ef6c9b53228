// SPDX-License-Identifier: GPL-2.0-only

//! Confirming that restore points are what was written.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;

use crate::error::Error;
use crate::error::Result;

use super::image;
use super::image::CLUSTER;
use super::manifest::Image;
use super::manifest::Manifest;
use super::source::Buffer;
use super::store::Store;
use super::sums::damaged;
use super::view::relative;
use super::view::View;
use super::Progress;
use super::Watch;

/// How many clusters are read at a time.
pub const RUN: usize = 64;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Numbers of the restore points that were looked at.
    pub points: Vec<u64>,
    /// The devices in them whose content is not what was written.
    pub damaged: Vec<DamagedDevice>,
    /// Bytes of data that were read.
    pub read_bytes: u64,
    pub errors: Vec<Error>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct DamagedDevice {
    pub point: u64,
    pub device: String,
    /// The images that cause it.
    pub images: Vec<String>,
}

/// What is wrong with an image.
#[derive(Debug, Default)]
struct Damage {
    /// Clusters whose content is wrong.
    clusters: BTreeSet<u64>,
    /// The file as a whole cannot be relied on.
    whole: bool,
}

/// Reads all data of one restore point, or of all of them.
pub fn verify(store: &Store, point: Option<u64>, watch: &mut dyn Watch) -> Result<Report> {
    let manifest = store.manifest();
    let points = || {
        manifest
            .points
            .iter()
            .filter(move |it| point.is_none_or(|wanted| it.number == wanted))
    };
    // Every image once, in whatever many points it is.
    let mut names = BTreeSet::new();
    for device in points().flat_map(|point| &point.devices) {
        names.extend(
            manifest
                .chain(&device.image)
                .iter()
                .map(|image| &image.name),
        );
    }
    let images = || {
        manifest
            .images
            .iter()
            .filter(|image| names.contains(&image.name))
    };
    let mut progress = Progress {
        done: 0,
        total: images().map(|image| image.data_bytes).sum(),
    };
    let mut damages: BTreeMap<&str, Damage> = BTreeMap::new();
    let mut errors = Vec::new();
    for image in images() {
        let mut damage = Damage::default();
        match check(store, image, &mut damage, &mut progress, watch) {
            // What cannot be read is lost as well.
            Err(error) if error.path().is_some_and(|path| is_of(store, image, path)) => {
                damage.whole = true;
                errors.push(error);
            }
            result => result?,
        }
        errors.extend(tell(store, image, &damage.clusters));
        if damage.whole || !damage.clusters.is_empty() {
            damages.insert(&image.name, damage);
        }
    }
    let mut damaged = Vec::new();
    for point in points() {
        for device in &point.devices {
            let images = causes(store, manifest, &device.image, &damages)?;
            if !images.is_empty() {
                damaged.push(DamagedDevice {
                    point: point.number,
                    device: device.device.clone(),
                    images,
                });
            }
        }
    }
    Ok(Report {
        points: points().map(|point| point.number).collect(),
        damaged,
        read_bytes: progress.done,
        errors,
    })
}

/// Looks at all that an image itself has.
fn check(
    store: &Store,
    image: &Image,
    damage: &mut Damage,
    progress: &mut Progress,
    watch: &mut dyn Watch,
) -> Result<()> {
    watch.keep_on(*progress)?;
    let path = store.qcow2(&image.name);
    let base = image.base.as_deref().map(relative);
    let reader = image::Reader::open(&path, image.size, base.as_deref(), image.file_bytes)?;
    if reader.metadata_sum()? != image.metadata {
        return Err(damaged(&path, "the checksum of its tables is wrong"));
    }
    let mut view = View::open(store, &[image])?;
    let mut buffer = Buffer::new(RUN * CLUSTER as usize);
    while let Some(run) = view.next(RUN)? {
        if !run.is_zero() {
            let (_, length) = view.range(&run);
            let damaged = view.read(&run, buffer.first(length as usize))?;
            damage.clusters.extend(damaged);
            progress.done += length;
        }
        watch.keep_on(*progress)?;
    }
    Ok(())
}

fn is_of(store: &Store, image: &Image, path: &Path) -> bool {
    path == store.qcow2(&image.name) || path == store.sums(&image.name)
}

fn tell(store: &Store, image: &Image, clusters: &BTreeSet<u64>) -> Option<Error> {
    let first = clusters.first()?;
    let reason = format!(
        "{} of its clusters have a wrong checksum, the first at byte {} of the device",
        clusters.len(),
        first * CLUSTER
    );
    Some(damaged(&store.qcow2(&image.name), reason))
}

/// The images that make an image with its bases differ from what was written.
fn causes(
    store: &Store,
    manifest: &Manifest,
    image: &str,
    damages: &BTreeMap<&str, Damage>,
) -> Result<Vec<String>> {
    let chain = manifest.chain(image);
    let affected: Vec<&Image> = chain
        .iter()
        .copied()
        .filter(|image| damages.contains_key(image.name.as_str()))
        .collect();
    let name = |image: &&Image| image.name.clone();
    if affected
        .iter()
        .any(|image| damages[image.name.as_str()].whole)
    {
        return Ok(affected.iter().map(name).collect());
    }
    if affected.is_empty() {
        return Ok(Vec::new());
    }
    // A cluster that is wrong may be hidden by a newer one.
    let mut seen = BTreeSet::new();
    let mut view = View::open(store, &chain)?;
    while let Some(run) = view.next(RUN)? {
        let holder = view.image_of(&run);
        let end = run.start + run.sums.len() as u64;
        if damages
            .get(holder)
            .is_some_and(|damage| damage.clusters.range(run.start..end).next().is_some())
        {
            seen.insert(holder.to_owned());
        }
    }
    Ok(affected
        .iter()
        .map(name)
        .filter(|name| seen.contains(name))
        .collect())
}
