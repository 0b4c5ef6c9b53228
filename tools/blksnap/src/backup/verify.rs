// SPDX-License-Identifier: GPL-2.0-only

//! Confirming that restore points are what was written.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use serde::Serialize;

use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;

use super::changes::Extent;
use super::image;
use super::image::CLUSTER;
use super::manifest::Image;
use super::manifest::Manifest;
use super::member::Member;
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
    pub damaged: Vec<Finding>,
    /// Those of which nothing wrong was found, but something could not be read now.
    pub not_checked: Vec<Finding>,
    /// Those of which something could not be read when they were backed up, which is zeroes.
    pub unreadable: Vec<Unreadable>,
    /// Bytes of data that were read.
    pub read_bytes: u64,
    pub errors: Vec<Error>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    pub point: u64,
    pub device: String,
    pub extents: Vec<Extent>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
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
    /// It could not be read to the end, which says nothing about it.
    is_unread: bool,
}

/// What is said of a device in a restore point.
enum Verdict {
    Sound,
    Damaged(Vec<String>),
    NotChecked(Vec<String>),
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
        names.insert(device.image.as_str());
    }
    let names = manifest.needed(names.into_iter());
    let images = || {
        manifest
            .images
            .iter()
            .filter(|image| names.contains(image.name.as_str()))
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
            Err(error) if error.operation() == Operation::CheckBackup => {
                damage.whole = true;
                errors.push(with_remedy(error));
            }
            Err(error) if error.operation() == Operation::ReadBackup => {
                damage.is_unread = true;
                errors.push(error);
            }
            result => result?,
        }
        errors.extend(tell(store, image, &damage.clusters));
        if damage.whole || damage.is_unread || !damage.clusters.is_empty() {
            damages.insert(&image.name, damage);
        }
    }
    let (mut damaged, mut not_checked, mut unreadable) = (Vec::new(), Vec::new(), Vec::new());
    for point in points() {
        for device in &point.devices {
            let image = manifest.image(&device.image);
            if let Some(image) = image.filter(|image| !image.unreadable.is_empty()) {
                unreadable.push(Unreadable {
                    point: point.number,
                    device: device.device.clone(),
                    extents: image.unreadable.clone(),
                });
            }
            let finding = |images| Finding {
                point: point.number,
                device: device.device.clone(),
                images,
            };
            match judge(store, manifest, &device.image, &damages)? {
                Verdict::Sound => (),
                Verdict::Damaged(images) => damaged.push(finding(images)),
                Verdict::NotChecked(images) => not_checked.push(finding(images)),
            }
        }
    }
    Ok(Report {
        points: points().map(|point| point.number).collect(),
        damaged,
        not_checked,
        unreadable,
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
    check_tables(&store.qcow2_file(&image.name), image)?;
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

/// Looks at all of a qcow2 file but the data. An error of [`Operation::CheckBackup`] if it is
/// missing or not that of an image.
pub(super) fn check_tables(file: &Member, image: &Image) -> Result<()> {
    let base = image.base.as_deref().map(relative);
    let reader = image::Reader::open(file, image.size, base.as_deref(), image.file_bytes)?;
    match reader.metadata_sum()? == image.metadata {
        true => Ok(()),
        false => Err(damaged(file.path(), "the checksum of its tables is wrong")),
    }
}

fn tell(store: &Store, image: &Image, clusters: &BTreeSet<u64>) -> Option<Error> {
    let first = clusters.first()?;
    let reason = format!(
        "{} of its clusters have a wrong checksum, the first at byte {} of the device",
        clusters.len(),
        first * CLUSTER
    );
    Some(with_remedy(damaged(&store.qcow2(&image.name), reason)))
}

/// Says what can be done about damage that was found by looking at all.
fn with_remedy(error: Error) -> Error {
    error.remedied_by(
        "restore none of the restore points that are named, but one of the others; the next \
         backups build on what is damaged, so make one with \"blksnap backup --full\"",
    )
}

/// What is known of an image with its bases, and which images are the reason.
fn judge(
    store: &Store,
    manifest: &Manifest,
    image: &str,
    damages: &BTreeMap<&str, Damage>,
) -> Result<Verdict> {
    let chain = manifest.chain(image);
    let named = |is_wanted: &dyn Fn(&Damage) -> bool| -> Vec<String> {
        chain
            .iter()
            .filter(|image| damages.get(image.name.as_str()).is_some_and(is_wanted))
            .map(|image| image.name.clone())
            .collect()
    };
    let is_damaged = |damage: &Damage| damage.whole || !damage.clusters.is_empty();
    if !named(&|damage| damage.whole).is_empty() {
        return Ok(Verdict::Damaged(named(&is_damaged)));
    }
    let damaged = named(&is_damaged);
    let unread = named(&|damage| damage.is_unread);
    let seen = match damaged.is_empty() {
        true => Ok(BTreeSet::new()),
        false => visible(store, &chain, damages),
    };
    Ok(match seen {
        Ok(seen) if !seen.is_empty() => {
            Verdict::Damaged(damaged.into_iter().filter(|it| seen.contains(it)).collect())
        }
        Ok(_) if unread.is_empty() => Verdict::Sound,
        // Which of several images has a cluster cannot be known now.
        Err(error) if error.operation() != Operation::ReadBackup => return Err(error),
        Err(_) if unread.is_empty() => Verdict::NotChecked(damaged),
        _ => Verdict::NotChecked(unread),
    })
}

/// The images of which a wrong cluster is not hidden by a newer one.
fn visible(
    store: &Store,
    chain: &[&Image],
    damages: &BTreeMap<&str, Damage>,
) -> Result<BTreeSet<String>> {
    let mut seen = BTreeSet::new();
    let mut view = View::open(store, chain)?;
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
    Ok(seen)
}
