// SPDX-License-Identifier: GPL-2.0-only

//! Removing old restore points, so that those that stay are as they were.
//!
//! An image that only one other is based on, and that no restore point is left
//! of, is merged into that other: a new file is written that has what both had,
//! and takes the place of the other when it is complete. The rest reads through
//! it as before.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;

use serde::Serialize;

use crate::error::Result;
use crate::identity::Machine;

use super::image;
use super::manifest::Image;
use super::manifest::Manifest;
use super::manifest::Point;
use super::manifest::Todo;
use super::names;
use super::retention::Policy;
use super::retention::Reason;
use super::source::Buffer;
use super::store::Store;
use super::sums;
use super::sums::damaged;
use super::sums::Entry;
use super::verify::RUN;
use super::view::relative;
use super::view::View;
use super::Progress;
use super::Watch;

/// What became of it.
#[derive(Debug, Serialize)]
pub struct Report {
    pub kept: Vec<u64>,
    pub removed: Vec<u64>,
    /// Images that were written again, with what they were based on.
    pub merged: Vec<String>,
    /// Why restore points stay. None if those that go were chosen by their numbers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Kept>,
}

/// Why a restore point stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    pub point: u64,
    pub kept_by: BTreeSet<Reason>,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    kept: Vec<u64>,
    removed: Vec<u64>,
    /// An image, and those below it that are to be merged into it.
    merges: Vec<(String, Vec<String>)>,
    /// Images whose files are not needed any more.
    obsolete: Vec<String>,
}

/// Which restore points go.
#[derive(Debug, Clone, Copy)]
pub enum Which<'a> {
    /// Those that no rule keeps.
    Old(&'a Policy),
    /// Those with these numbers.
    Numbers(&'a [u64]),
}

/// Returns why restore points stay; those that are not there go. Those that are not of `machine`
/// stay.
fn kept(manifest: &Manifest, policy: &Policy, machine: Option<&Machine>) -> Vec<Kept> {
    let points: Vec<&Point> = manifest.of(machine).collect();
    let numbers = points.iter().map(|point| point.number);
    let mut reasons: HashMap<_, _> = numbers.zip(policy.reasons(&points)).collect();
    let of_others = || BTreeSet::from([Reason::Machine]);
    let all = manifest.points.iter().map(|point| Kept {
        point: point.number,
        kept_by: reasons.remove(&point.number).unwrap_or_else(of_others),
    });
    all.filter(|it| !it.kept_by.is_empty()).collect()
}

/// The numbers of the restore points that go, if these stay.
fn removed(manifest: &Manifest, kept: &[Kept]) -> Vec<u64> {
    let kept: HashSet<u64> = kept.iter().map(|it| it.point).collect();
    let numbers = manifest.points.iter().map(|point| point.number);
    numbers.filter(|number| !kept.contains(number)).collect()
}

/// Tells of restore points that no rule removes, so that they do not stay unnoticed.
fn tell_of_wrong_times(kept: &[Kept], watch: &mut dyn Watch) {
    let wrong = kept
        .iter()
        .filter(|it| it.kept_by.iter().eq([&Reason::Clock]));
    let numbers: Vec<String> = wrong.map(|it| it.point.to_string()).collect();
    if !numbers.is_empty() {
        watch.tell(&format!(
            "restore points stay only since their times are after now or out of order: {}; \
             \"blksnap forget\" removes those that are not needed",
            numbers.join(", ")
        ));
    }
}

fn plan(manifest: &Manifest, removed: &[u64]) -> Plan {
    let removed: HashSet<&u64> = removed.iter().collect();
    let mut plan = Plan::default();
    let mut images: HashSet<&str> = HashSet::new();
    for point in &manifest.points {
        if removed.contains(&point.number) {
            plan.removed.push(point.number);
        } else {
            plan.kept.push(point.number);
            images.extend(point.devices.iter().map(|device| device.image.as_str()));
        }
    }
    let needed = manifest.needed(images.iter().copied());
    let mut users: HashMap<&str, usize> = HashMap::new();
    for image in manifest
        .images
        .iter()
        .filter(|image| needed.contains(image.name.as_str()))
    {
        if let Some(base) = &image.base {
            *users.entry(base).or_default() += 1;
        }
    }
    // Only what one other image is based on can go into that one.
    let stays = |name: &str| images.contains(name) || users.get(name).is_some_and(|&n| n > 1);
    for image in &manifest.images {
        let name = image.name.as_str();
        if !needed.contains(name) {
            plan.obsolete.push(image.name.clone());
        } else if stays(name) {
            let below = manifest.chain(name);
            let merged: Vec<String> = below[1..]
                .iter()
                .take_while(|base| !stays(&base.name))
                .map(|base| base.name.clone())
                .collect();
            if !merged.is_empty() {
                plan.obsolete.extend(merged.iter().cloned());
                plan.merges.push((image.name.clone(), merged));
            }
        }
    }
    plan
}

/// Removes restore points, so that the others are as they were. Until all is written nothing
/// is changed.
///
/// Of restore points that are chosen by rules, those that are not of `machine` stay. With
/// `is_trial` it is only found out which ones go. Rules that keep nothing are an error.
pub fn prune(
    store: &mut Store,
    which: Which<'_>,
    machine: Option<&Machine>,
    is_trial: bool,
    watch: &mut dyn Watch,
) -> Result<Report> {
    let manifest = store.manifest();
    let (removed, reasons) = match which {
        Which::Numbers(numbers) => (numbers.to_vec(), Vec::new()),
        Which::Old(policy) => {
            policy.rules.check()?;
            let kept = kept(manifest, policy, machine);
            tell_of_wrong_times(&kept, watch);
            (removed(manifest, &kept), kept)
        }
    };
    let result =
        prune_in(store, &removed, is_trial, watch).map(|report| Report { reasons, ..report });
    if result.is_err() && store.manifest().todo.rename.is_empty() {
        // The error that led here is the one to tell.
        let _ = store.remove_partial();
    }
    store.warn(watch);
    result
}

fn prune_in(
    store: &mut Store,
    removed: &[u64],
    is_trial: bool,
    watch: &mut dyn Watch,
) -> Result<Report> {
    let mut manifest = store.manifest().clone();
    let plan = plan(&manifest, removed);
    let report = Report {
        kept: plan.kept.clone(),
        removed: plan.removed.clone(),
        merged: plan.merges.iter().map(|(name, _)| name.clone()).collect(),
        reasons: Vec::new(),
    };
    if is_trial || (plan.removed.is_empty() && plan.obsolete.is_empty()) {
        return Ok(report);
    }
    store.exclude_readers(watch)?;
    let involved = plan
        .merges
        .iter()
        .flat_map(|(name, below)| below.iter().chain([name]));
    let mut progress = Progress {
        done: 0,
        total: involved
            .filter_map(|name| manifest.image(name))
            .map(|image| image.data_bytes)
            .sum(),
    };
    let mut todo = Todo::default();
    for (name, below) in &plan.merges {
        let merged = merge(store, name, below, &mut progress, watch)?;
        for end in names::ENDS {
            let file = format!("{name}.{end}");
            todo.rename.push((names::partial(&file), file));
        }
        for image in &mut manifest.images {
            if image.name == *name {
                *image = merged.clone();
            }
        }
    }
    for name in &plan.obsolete {
        todo.remove
            .extend(names::ENDS.map(|end| format!("{name}.{end}")));
    }
    manifest
        .images
        .retain(|image| !plan.obsolete.contains(&image.name));
    manifest
        .points
        .retain(|point| plan.kept.contains(&point.number));
    for number in store.manifest().numbers() {
        let part = manifest.part(number);
        if part.is_empty() {
            todo.remove.push(names::part(number));
        } else if part != store.manifest().part(number) {
            todo.rename.push(store.renew_part(number, &part)?);
            manifest.without_part.remove(&number);
        }
    }
    let numbers = manifest.numbers();
    manifest.without_part.retain(|it| numbers.contains(it));
    manifest.todo = todo;
    store.publish(manifest)?;
    Ok(report)
}

/// Writes an image anew together with those below it. Damage is not carried
/// over: then nothing is merged.
fn merge(
    store: &Store,
    name: &str,
    below: &[String],
    progress: &mut Progress,
    watch: &mut dyn Watch,
) -> Result<Image> {
    let chain = store.manifest().chain(name);
    let layers = &chain[..=below.len()];
    let mut view = View::open(store, layers)?;
    let (top, bottom) = (layers[0], layers[below.len()]);
    let base = bottom.base.clone();
    let relative = base.as_deref().map(relative);

    let create = |end| store.create(&names::partial(&format!("{name}.{end}")));
    let (file, path) = create("qcow2")?;
    let mut image = image::Writer::new(file, &path, top.size, relative.as_deref());
    let (file, path) = create("sums")?;
    let mut sums = sums::Writer::new(file, &path)?;
    let mut data_bytes = 0;
    let mut buffer = Buffer::new(RUN * image::CLUSTER as usize);
    while let Some(run) = view.next(RUN)? {
        watch.keep_on(*progress)?;
        let (offset, length) = view.range(&run);
        if run.is_zero() {
            if base.is_none() {
                // There is nothing below that would have to be hidden.
                continue;
            }
            image.zero(offset, length)?;
        } else {
            let bytes = buffer.first(length as usize);
            if !view.read(&run, bytes)?.is_empty() {
                return Err(damaged(view.path_of(&run), "its data has a wrong checksum"));
            }
            image.write(offset, bytes)?;
            data_bytes += length;
            progress.done += length;
        }
        for (cluster, sum) in (run.start..).zip(run.sums) {
            sums.push(Entry { cluster, sum })?;
        }
    }
    let sums = sums.finish()?;
    let written = image.finish()?;
    Ok(Image {
        base,
        data_bytes,
        file_bytes: written.file_bytes,
        metadata: written.metadata,
        sums,
        ..top.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::manifest::tests::image;
    use crate::backup::manifest::tests::manifest;
    use crate::backup::retention::Rules;
    use crate::identity::Disk;

    const NAMES: [&str; 5] = ["000001/a", "000002/a", "000003/a", "000004/a", "000005/a"];

    /// The numbers of those that go so that `keep` stay of each device of a machine.
    fn removed(
        manifest: &Manifest,
        (keep, slack): (usize, usize),
        machine: Option<&Machine>,
    ) -> Vec<u64> {
        let rules = Rules {
            last: keep,
            ..Rules::default()
        };
        let policy = Policy {
            rules,
            slack,
            ..Policy::default()
        };
        super::removed(manifest, &kept(manifest, &policy, machine))
    }

    /// What goes so that `keep` stay.
    fn plan(manifest: &Manifest, keep: usize, slack: usize) -> Plan {
        super::plan(manifest, &removed(manifest, (keep, slack), None))
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn chain() -> Manifest {
        let mut images = vec![image(NAMES[0], None, 1, 1)];
        for (pair, number) in NAMES.windows(2).zip(2..) {
            images.push(image(pair[1], Some(pair[0]), 1, number));
        }
        manifest(images)
    }

    #[test]
    fn the_oldest_that_stays_takes_what_is_below() {
        let plan = plan(&chain(), 2, 0);
        assert_eq!(plan.kept, [4, 5]);
        assert_eq!(plan.removed, [1, 2, 3]);
        let below = names(&[NAMES[2], NAMES[1], NAMES[0]]);
        assert_eq!(plan.merges, [(NAMES[3].to_owned(), below.clone())]);
        assert_eq!(plan.obsolete, below);
    }

    #[test]
    fn nothing_is_done_if_all_stay() {
        for keep in [5, 6, 100] {
            let plan = plan(&chain(), keep, 0);
            assert_eq!(plan.kept, [1, 2, 3, 4, 5]);
            assert!(plan.merges.is_empty() && plan.obsolete.is_empty());
        }
    }

    #[test]
    fn none_goes_until_there_are_more_than_the_slack() {
        let plan_with = |slack| plan(&chain(), 2, slack);
        assert_eq!(plan_with(2).removed, [1, 2, 3]);
        assert_eq!(plan_with(3), plan(&chain(), 5, 0));
    }

    #[test]
    fn an_old_chain_goes_as_a_whole() {
        let mut manifest = chain();
        manifest.images[3].base = None;
        let plan = plan(&manifest, 2, 0);
        assert!(plan.merges.is_empty());
        assert_eq!(plan.obsolete, names(&NAMES[..3]));
    }

    #[test]
    fn what_several_are_based_on_stays_below_them() {
        let mut manifest = chain();
        for image in &mut manifest.images[1..] {
            image.base = Some(NAMES[0].to_owned());
        }
        let two = plan(&manifest, 2, 0);
        assert_eq!(two.removed, [1, 2, 3]);
        assert!(two.merges.is_empty());
        assert_eq!(two.obsolete, names(&NAMES[1..3]));
        // The last one takes it.
        let one = plan(&manifest, 1, 0);
        assert_eq!(one.merges, [(NAMES[4].to_owned(), names(&[NAMES[0]]))]);
    }

    #[test]
    fn a_device_left_out_lately_keeps_its_own() {
        let mut manifest = chain();
        manifest.points[0].devices[0].device = "/dev/rare".to_owned();
        assert!(plan(&manifest, 2, 2).removed.is_empty());
        let plan = plan(&manifest, 2, 0);
        assert_eq!(plan.kept, [1, 4, 5]);
        assert_eq!(
            plan.merges,
            [(NAMES[3].to_owned(), names(&[NAMES[2], NAMES[1]]))]
        );
        assert_eq!(plan.obsolete, names(&[NAMES[2], NAMES[1]]));
    }

    fn machine(host: &str) -> Machine {
        Machine {
            host: Some(host.to_owned()),
            ..Machine::default()
        }
    }

    #[test]
    fn machines_do_not_count_together() {
        let (a, b) = (machine("a"), machine("b"));
        let mut manifest = chain();
        for (point, machine) in manifest.points.iter_mut().zip([&a, &a, &b, &b, &b]) {
            point.machine = Some(machine.clone());
        }
        assert_eq!(removed(&manifest, (1, 0), None), [1, 3, 4]);
        assert_eq!(removed(&manifest, (1, 0), Some(&a)), [1]);
        assert_eq!(removed(&manifest, (1, 0), Some(&b)), [3, 4]);
        assert!(removed(&manifest, (2, 0), Some(&a)).is_empty());
    }

    #[test]
    fn disks_count_whatever_their_names() {
        let mut manifest = chain();
        let disks = ["x", "y", "x", "y", "x"];
        for (point, serial) in manifest.points.iter_mut().zip(disks) {
            point.devices[0].disk = Some(Disk {
                serial: Some(serial.to_owned()),
                ..Disk::default()
            });
        }
        // One name, two disks
        assert_eq!(removed(&manifest, (1, 0), None), [1, 2, 3]);
        assert_eq!(removed(&manifest, (2, 0), None), [1]);
        // One disk, two names
        manifest.points[4].devices[0].device = "/dev/other".to_owned();
        assert_eq!(removed(&manifest, (1, 0), None), [1, 2, 3]);
    }

    #[test]
    fn chosen_ones_go_whatever_their_age() {
        let newest = super::plan(&chain(), &[5]);
        assert_eq!((newest.kept, newest.removed), (vec![1, 2, 3, 4], vec![5]));
        assert_eq!(newest.obsolete, names(&[NAMES[4]]));
        let between = super::plan(&chain(), &[2, 4]);
        assert_eq!(between.kept, [1, 3, 5]);
        let merge = |top: &str, below: &str| (top.to_owned(), names(&[below]));
        assert_eq!(
            between.merges,
            [merge(NAMES[2], NAMES[1]), merge(NAMES[4], NAMES[3])]
        );
        let all = super::plan(&chain(), &[1, 2, 3, 4, 5]);
        assert_eq!((all.kept.len(), all.obsolete.len()), (0, 5));
    }
}
