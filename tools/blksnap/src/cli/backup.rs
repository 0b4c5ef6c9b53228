// SPDX-License-Identifier: GPL-2.0-only

//! "blksnap backup", and what works with its restore points; "changed", for
//! other backup programs.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use blksnap::backup;
use blksnap::backup::changes;
use blksnap::backup::manifest::Manifest;
use blksnap::backup::manifest::Point;
use blksnap::backup::manifest::PointDevice;
use blksnap::backup::plan::Mode;
use blksnap::backup::store::Store;
use blksnap::error::Exit;
use blksnap::error::Operation;
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
                device.device,
                kind(device.base),
                Bytes(device.read_bytes),
                Bytes(device.data_bytes)
            )
        })
        .collect();
    output.result(&report, &lines.join("\n"));
    Ok(failed_if(!report.errors.is_empty(), Exit::Failure))
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
    let store = Store::open(&args.directory)?;
    let point = find(&store, args.point)?;
    let targets = if args.in_place {
        point
            .devices
            .iter()
            .map(|device| (device, PathBuf::from(&device.device)))
            .collect()
    } else {
        assign(point, &args.targets)?
    };
    let mut reports = Vec::new();
    let mut text = Vec::new();
    for (device, target) in targets {
        let mut attendant = Attendant::new(*output, Operation::Restore, &target)?;
        let report = backup::restore::restore(
            &store,
            &device.device,
            &device.image,
            &target,
            args.force,
            &mut attendant,
        )?;
        drop(attendant);
        if report.truncated {
            output.warning(&format!(
                "{} is smaller; the end is missing",
                target.display()
            ));
        }
        for extent in &report.damaged {
            let reason = format!(
                "its bytes {} to {} are not what was backed up, as their checksum is wrong",
                extent.offset,
                extent.end()
            );
            output.error(&Error::new(Operation::CheckBackup, reason).on(&target));
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
    output.result(
        &json!({ "point": point.number, "devices": reports }),
        &text.join("\n"),
    );
    Ok(failed_if(is_damaged, Exit::Damaged))
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
        let named = point.devices.iter().find_map(|device| {
            let rest = target.as_bytes().strip_prefix(device.device.as_bytes())?;
            Some((device, rest.strip_prefix(b"=")?))
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
        let path = PathBuf::from(OsStr::from_bytes(path));
        if assigned.iter().any(|(_, other)| *other == path) {
            let reason = format!("{} is named twice", path.display());
            return Err(
                Error::new(Operation::Arguments, reason).remedied_by("name every target once")
            );
        }
        assigned.push((device, path));
    }
    Ok(assigned)
}

pub fn verify(output: &Output, directory: &Path, point: Option<u64>) -> Result<u8> {
    let store = Store::open(directory)?;
    if point.is_some() {
        find(&store, point)?;
    }
    let mut attendant = Attendant::new(*output, Operation::OpenBackup, directory)?;
    let report = backup::verify::verify(&store, point, &mut attendant)?;
    drop(attendant);
    for error in &report.errors {
        output.error(error);
    }
    let mut lines: Vec<String> = report
        .damaged
        .iter()
        .map(|it| format!("restore point {}: {} is damaged", it.point, it.device))
        .collect();
    if lines.is_empty() {
        lines.push(format!(
            "all restore points looked at ({}) are what was backed up; {} read",
            report.points.len(),
            Bytes(report.read_bytes)
        ));
    }
    output.result(&report, &lines.join("\n"));
    Ok(failed_if(!report.errors.is_empty(), Exit::Damaged))
}

pub fn list(output: &Output, directory: &Path) -> Result<u8> {
    let store = Store::look(directory)?;
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
    output.result(&json!({ "points": points }), text.trim_end());
    Ok(0)
}

pub fn prune(output: &Output, directory: &Path, keep: NonZeroUsize, slack: usize) -> Result<u8> {
    let mut store = Store::open_to_change(directory, false)?;
    let mut attendant = Attendant::new(*output, Operation::Prune, directory)?;
    let report = backup::prune::prune(&mut store, keep.get(), slack, &mut attendant)?;
    drop(attendant);
    let text = format!(
        "restore points removed: {}, kept: {}",
        report.removed.len(),
        report.kept.len()
    );
    output.result(&report, &text);
    Ok(0)
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
    Output::new(true).result(
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
    );
    Ok(0)
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
        for targets in [&["x"][..], &["/dev/b=x"], &["/dev/a=x", "/dev/a=x"]] {
            assert_eq!(assigned(&two, targets).unwrap_err().exit().code(), 2);
        }
    }
}
