// SPDX-License-Identifier: GPL-2.0-only

//! "blksnap backup", and what works with its restore points; "changed", for
//! other backup programs.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use blksnap::backup;
use blksnap::backup::changes;
use blksnap::backup::directory::Place;
use blksnap::backup::manifest::Manifest;
use blksnap::backup::manifest::Point;
use blksnap::backup::manifest::PointDevice;
use blksnap::backup::plan::Mode;
use blksnap::backup::restore::Restore;
use blksnap::backup::store::Store;
use blksnap::backup::verify::Finding;
use blksnap::error::Exit;
use blksnap::error::Operation;
use blksnap::printable::printable;
use blksnap::Bytes;
use blksnap::Device;
use blksnap::Error;
use blksnap::Result;
use blksnap::Uuid;
use serde_json::json;

use super::args;
use super::commands::check_devices;
use super::events::rfc3339;
use super::output::Output;
use super::progress::Attendant;
use super::snapshot::guarded;
use super::status::row;
use super::status::table;

pub fn backup(output: &Output, args: args::Backup) -> Result<u8> {
    check_devices(&args.devices)?;
    let plan = args.store.plan()?;
    let request = backup::Request {
        limit: plan.limit,
        store: args.store.store,
        mode: match (args.full, args.differential) {
            (true, _) => Mode::Full,
            (_, true) => Mode::Differential,
            _ => Mode::Incremental,
        },
        bandwidth: args.bandwidth,
        devices: args.devices,
        is_trusted: args.trust.place(&args.to).is_trusted,
        to: args.to,
        existing: args.existing,
    };
    let kernel = guarded(plan, output.is_json());
    let mut attendant = Attendant::new(*output, Operation::BackUp, &request.devices[0])?;
    let report = backup::run(&kernel, &request, &mut attendant)?;
    drop(attendant);
    for error in &report.errors {
        output.error(error);
    }
    let lines: Vec<String> = report
        .devices
        .iter()
        .map(|device| {
            format!(
                "restore point {}: {}, {}, {} read, {} written",
                report.point,
                printable(&device.device),
                kind(device.base),
                Bytes(device.read_bytes),
                Bytes(device.data_bytes)
            )
        })
        .collect();
    let code = failed_if(!report.errors.is_empty(), Exit::Failure);
    Ok(output.result(&report, &lines.join("\n"), code))
}

fn kind(base: Option<u64>) -> String {
    match base {
        None => "full".to_owned(),
        Some(base) => format!("changes since {base}"),
    }
}

fn failed_if(is_failed: bool, exit: Exit) -> u8 {
    if is_failed {
        exit.code()
    } else {
        0
    }
}

/// The restore point that is wanted, or the newest.
fn find(store: &Store, wanted: Option<u64>) -> Result<&Point> {
    let manifest = store.manifest();
    let found = match wanted {
        Some(number) => manifest.point(number),
        None => manifest.points.last(),
    };
    found.ok_or_else(|| {
        let directory = store.directory();
        let reason = match wanted {
            Some(number) => format!("it has no restore point {number}"),
            None => "it has no restore point".to_owned(),
        };
        Error::new(Operation::OpenBackup, reason)
            .on(directory)
            .remedied_by(format!(
                "\"blksnap list {}\" shows what it has",
                directory.display()
            ))
    })
}

pub fn restore(output: &Output, args: &args::Restore) -> Result<u8> {
    let store = Store::open(args.trust.place(&args.directory))?;
    let point = find(&store, args.point)?;
    let targets = match args.in_place {
        true => in_place(point, args.force)?,
        false => assign(point, &args.targets)?,
    };
    // All are looked at before anything is written.
    let mut attendants = Vec::new();
    let mut restores = Vec::new();
    for (device, target) in &targets {
        attendants.push(Attendant::new(*output, Operation::Restore, target)?);
        restores.push(Restore::open(
            &store,
            &device.device,
            &device.image,
            target,
            args.force,
            &restores,
        )?);
    }
    let mut reports = Vec::new();
    let mut text = Vec::new();
    for ((restore, mut attendant), (device, target)) in
        restores.into_iter().zip(attendants).zip(&targets)
    {
        let report = restore.run(&mut attendant)?;
        drop(attendant);
        if report.truncated {
            output.warning(&format!(
                "{} is smaller; the end is missing",
                target.display()
            ));
        }
        for extent in &report.damaged {
            let reason = format!(
                "its bytes {} to {} are not what was backed up: the backup has a wrong checksum \
                 there, or cannot be read",
                extent.offset,
                extent.end()
            );
            output.error(&Error::new(Operation::CheckBackup, reason).on(target));
        }
        text.push(format!(
            "restore point {}: {} is restored to {}",
            point.number,
            device.device,
            target.display()
        ));
        reports.push(report);
    }
    let is_damaged = reports.iter().any(|report| !report.damaged.is_empty());
    Ok(output.result(
        &json!({ "point": point.number, "devices": reports }),
        &text.join("\n"),
        failed_if(is_damaged, Exit::Damaged),
    ))
}

/// Every device with where it came from, as far as that can be known by its name.
fn in_place(point: &Point, force: bool) -> Result<Vec<(&PointDevice, PathBuf)>> {
    let mut places = Vec::new();
    for device in &point.devices {
        let path = PathBuf::from(&device.device);
        if !force && !is_lasting(&path, Path::new("/dev")) {
            let reason = "names like this move from disk to disk, and it may be another one now";
            let remedy = format!(
                "say where to instead of --in-place, as \"{}=TARGET\"",
                device.device
            );
            return Err(Error::new(Operation::Restore, reason)
                .on(&path)
                .remedied_by(remedy));
        }
        places.push((device, path));
    }
    Ok(places)
}

/// Whether a name is that of one disk for ever, as those in /dev/disk/by-id: not
/// one that the kernel gives in the order in which it finds disks, as are all in `dev`
/// itself but links, nor one that depends on the directory.
fn is_lasting(path: &Path, dev: &Path) -> bool {
    let is_plain = path.is_absolute() && !path.components().any(|it| it == Component::ParentDir);
    let Ok(name) = path.strip_prefix(dev) else {
        return is_plain;
    };
    let is_link = || fs::symlink_metadata(path).is_ok_and(|it| it.is_symlink());
    let is_number = name.starts_with("block") || name.starts_with("disk/by-diskseq");
    is_plain && !is_number && (name.components().count() > 1 || is_link())
}

/// Whether what a user says is this device, which was made absolute when it was backed up.
fn is_name(said: &OsStr, device: &str) -> bool {
    let absolute = std::path::absolute(said);
    said == device || absolute.is_ok_and(|path| path.display().to_string() == device)
}

/// Which device goes where.
fn assign<'a>(point: &'a Point, targets: &[OsString]) -> Result<Vec<(&'a PointDevice, PathBuf)>> {
    let names = || {
        let names: Vec<&str> = point.devices.iter().map(|it| it.device.as_str()).collect();
        names.join(", ")
    };
    let mut assigned: Vec<(&PointDevice, PathBuf)> = Vec::new();
    for target in targets {
        // A name may have any character, so that it is looked for in what there is.
        let named = target.as_bytes().iter().enumerate().find_map(|(at, byte)| {
            let (name, path) = target.as_bytes().split_at(at);
            let named = |it: &&PointDevice| is_name(OsStr::from_bytes(name), &it.device);
            let device = (*byte == b'=').then(|| point.devices.iter().find(named))?;
            Some((device?, &path[1..]))
        });
        let (device, path) = match (named, &point.devices[..]) {
            (Some(named), _) => named,
            (None, [only]) => (only, target.as_bytes()),
            (None, _) => {
                let reason = format!("the restore point has several devices: {}", names());
                return Err(Error::new(Operation::Arguments, reason)
                    .remedied_by("say which one goes where, as DEV=TARGET"));
            }
        };
        assigned.push((device, PathBuf::from(OsStr::from_bytes(path))));
    }
    Ok(assigned)
}

pub fn verify(output: &Output, place: Place<'_>, point: Option<u64>) -> Result<u8> {
    let store = Store::open(place)?;
    if point.is_some() {
        find(&store, point)?;
    }
    let mut attendant = Attendant::new(*output, Operation::OpenBackup, place.path)?;
    let report = backup::verify::verify(&store, point, &mut attendant)?;
    drop(attendant);
    for error in &report.errors {
        output.error(error);
    }
    let line = |it: &Finding, what| format!("restore point {}: {} {what}", it.point, it.device);
    let damaged = report.damaged.iter().map(|it| line(it, "is damaged"));
    let not_checked = report
        .not_checked
        .iter()
        .map(|it| line(it, "was not checked"));
    let mut lines: Vec<String> = damaged
        .chain(not_checked)
        .map(|line| printable(&line).into_owned())
        .collect();
    if lines.is_empty() {
        lines.push(format!(
            "all restore points looked at ({}) are what was backed up; {} read",
            report.points.len(),
            Bytes(report.read_bytes)
        ));
    }
    let code = report.errors.iter().map(|error| error.exit().code()).max();
    Ok(output.result(&report, &lines.join("\n"), code.unwrap_or(0)))
}

pub fn list(output: &Output, place: Place<'_>) -> Result<u8> {
    let store = Store::look(place)?;
    let manifest = store.manifest();
    let mut rows = vec![row(["POINT", "TIME", "DEVICE", "SIZE", "DATA", "KIND"])];
    let mut points = Vec::new();
    for point in &manifest.points {
        let time = rfc3339(UNIX_EPOCH + Duration::from_secs(point.time)).replace(".000", "");
        let mut devices = Vec::new();
        for device in &point.devices {
            let Some(image) = manifest.image(&device.image) else {
                continue;
            };
            let base = image.base.as_deref().map(Manifest::number_of);
            rows.push(row([
                point.number.to_string(),
                time.clone(),
                device.device.clone(),
                Bytes(image.size).to_string(),
                Bytes(image.data_bytes).to_string(),
                kind(base),
            ]));
            devices.push(json!({
                "device": device.device,
                "size": image.size,
                "data_bytes": image.data_bytes,
                "base": base,
                "image": image.name,
                "file": store.qcow2(&image.name).display().to_string(),
                "generation_id": image.generation_id,
                "changes_number": image.changes_number,
            }));
        }
        points.push(json!({ "point": point.number, "time": point.time, "devices": devices }));
    }
    let text = match points.len() {
        0 => "no restore points".to_owned(),
        _ => table(&rows),
    };
    Ok(output.result(&json!({ "points": points }), text.trim_end(), 0))
}

pub fn prune(output: &Output, place: Place<'_>, keep: NonZeroUsize, slack: usize) -> Result<u8> {
    let mut store = Store::open_to_change(place, false)?;
    let mut attendant = Attendant::new(*output, Operation::Prune, place.path)?;
    let report = backup::prune::prune(&mut store, keep.get(), slack, &mut attendant)?;
    drop(attendant);
    let text = format!(
        "restore points removed: {}, kept: {}",
        report.removed.len(),
        report.kept.len()
    );
    Ok(output.result(&report, &text, 0))
}

pub fn changed(path: &Path, since: Option<u8>, generation: Option<Uuid>) -> Result<u8> {
    let refused = |reason: String| Error::new(Operation::Changed, reason).on(path);

    let device = Device::open(path)?;
    let tracking = device.tracking()?;
    if let Some(generation) = generation.filter(|wanted| *wanted != tracking.generation_id) {
        return Err(refused(format!(
            "its change tracking is of generation {}, not of {generation}",
            tracking.generation_id
        ))
        .remedied_by("read everything"));
    }
    if tracking.changes_number == 0 {
        return Err(refused("no snapshot of it was taken yet".to_owned())
            .remedied_by("take one first; what changed is known as of the newest"));
    }
    let since = since.unwrap_or(tracking.changes_number - 1);
    if since > tracking.changes_number {
        return Err(refused(format!(
            "there is no snapshot {since}, as the newest is {}",
            tracking.changes_number
        ))
        .remedied_by("read everything, if the number is of another generation"));
    }
    let mut map = vec![0; tracking.block_count as usize];
    device.read_map(0, &mut map)?;
    // A snapshot may have been taken meanwhile.
    if device.tracking()? != tracking {
        return Err(refused("a snapshot of it was taken meanwhile".to_owned())
            .remedied_by("try again while a snapshot is held"));
    }
    if let Some(reason) = changes::distrust(&map, &tracking) {
        return Err(refused(reason).remedied_by("read everything"));
    }
    let extents = changes::changed(&map, since, &tracking);
    Ok(Output::new(true).result(
        &json!({
            "device": path.display().to_string(),
            "generation_id": tracking.generation_id,
            "changes_number": tracking.changes_number,
            "since": since,
            "block_size": tracking.block_size,
            "size": tracking.device_capacity,
            "changed_bytes": changes::total(&extents),
            "extents": extents,
        }),
        "",
        0,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(names: &[&str]) -> Point {
        Point {
            number: 1,
            time: 0,
            devices: names
                .iter()
                .map(|name| PointDevice {
                    device: (*name).to_owned(),
                    image: "000001/x".to_owned(),
                })
                .collect(),
        }
    }

    fn assigned(names: &[&str], targets: &[&str]) -> Result<Vec<(String, PathBuf)>> {
        let targets: Vec<OsString> = targets.iter().map(OsString::from).collect();
        let point = point(names);
        let assigned = assign(&point, &targets)?;
        Ok(assigned
            .into_iter()
            .map(|(device, path)| (device.device.clone(), path))
            .collect())
    }

    #[test]
    fn targets_find_their_devices() {
        let one = ["/dev/a"];
        let two = ["/dev/a", "/dev/a=b"];
        let pair = |device: &str, path: &str| (device.to_owned(), PathBuf::from(path));
        assert_eq!(assigned(&one, &["x=y"]).unwrap(), [pair("/dev/a", "x=y")]);
        assert_eq!(
            assigned(&one, &["/dev/a=x"]).unwrap(),
            [pair("/dev/a", "x")]
        );
        assert_eq!(
            assigned(&two, &["/dev/a=x", "/dev/a=y"]).unwrap(),
            [pair("/dev/a", "x"), pair("/dev/a", "y")]
        );
        // Names need not be written as they are in the backup.
        let here = std::env::current_dir().unwrap().join("disks/a=b");
        let here = here.to_str().unwrap();
        assert_eq!(
            assigned(&["/dev/a", here], &["disks/a=b=x=y", "/dev//./a=z"]).unwrap(),
            [pair(here, "x=y"), pair("/dev/a", "z")]
        );
        assert_eq!(assigned(&["a"], &["a=x"]).unwrap(), [pair("a", "x")]);
        for targets in [&["x"][..], &["/dev/b=x"]] {
            assert_eq!(assigned(&two, targets).unwrap_err().exit().code(), 2);
        }
    }

    #[test]
    fn names_that_move_are_not_restored_to() {
        for name in [
            "/dev/disk/by-id/ata-DISK",
            "/dev/mapper/vg-home",
            "/dev/vdata/home",
            "/dev/md/home",
            "/dev/blocks/home",
            "/srv/disk.img",
        ] {
            assert!(in_place(&point(&[name]), false).is_ok(), "{name}");
        }
        for name in [
            "/dev/sda",
            "/dev//sda1",
            "/dev/./nvme0n1p2",
            "/dev/mapper/../vda",
            "/dev/md127",
            "/dev/dm-3",
            "/dev/loop0",
            "/dev/rbd0p1",
            "/dev/block/8:16",
            "/dev/disk/by-diskseq/3",
            "/dev",
            "sda",
            "disk/by-id/ata-DISK",
        ] {
            let error = in_place(&point(&["/srv/x", name]), false).unwrap_err();
            assert_eq!(error.exit().code(), 1, "{name}");
            let remedy = error.remedy().unwrap();
            assert!(remedy.contains(&format!("{name}=TARGET")), "{remedy}");
            assert!(!remedy.contains("--force"), "{remedy}");
            assert!(in_place(&point(&[name]), true).is_ok(), "{name}");
        }

        let dev = tempfile::tempdir().unwrap();
        let of_udev = dev.path().join("backup-disk");
        fs::write(dev.path().join("sda"), "").unwrap();
        std::os::unix::fs::symlink("sda", &of_udev).unwrap();
        assert!(is_lasting(&of_udev, dev.path()));
        assert!(!is_lasting(&dev.path().join("sda"), dev.path()));
    }
}
