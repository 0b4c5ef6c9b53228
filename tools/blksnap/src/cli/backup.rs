// SPDX-License-Identifier: GPL-2.0-only

//! "blksnap backup", and what works with its restore points; "changed", for
//! other backup programs.

use std::path::Path;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use blksnap::backup;
use blksnap::backup::changes;
use blksnap::backup::changes::Extent;
use blksnap::backup::directory::Place;
use blksnap::backup::grounds::refuse_sources;
use blksnap::backup::manifest::Manifest;
use blksnap::backup::manifest::Point;
use blksnap::backup::plan::Mode;
use blksnap::backup::plan::WhyAll;
use blksnap::backup::store::Store;
use blksnap::backup::verify::Finding;
use blksnap::backup::DeviceReport;
use blksnap::device::Takes;
use blksnap::error::Exit;
use blksnap::error::Operation;
use blksnap::identity::Machine;
use blksnap::printable::printable;
use blksnap::stack::Stack;
use blksnap::Bytes;
use blksnap::Device;
use blksnap::Error;
use blksnap::Result;
use blksnap::Uuid;
use serde_json::json;

use super::args;
use super::commands::check_devices;
use super::events::rfc3339;
use super::metrics;
use super::output::print;
use super::output::seen;
use super::output::Output;
use super::progress::Attendant;
use super::run::kernel_with;
use super::status::row;
use super::status::table;

pub fn backup(output: &Output, args: args::Backup) -> Result<u8> {
    check_devices(&args.devices)?;
    refuse_sources(&args.to, &args.devices, &Stack::default())?;
    let plan = args.store.plan(&args.devices)?;
    let request = backup::Request {
        limit: plan.limit,
        store: args.store.store,
        hooks: args.hooks.into(),
        mode: match (args.full, args.differential, args.compare) {
            (true, _, _) => Mode::Full,
            (_, true, _) => Mode::Differential,
            (_, _, true) => Mode::Compare,
            _ => Mode::Incremental,
        },
        bandwidth: args.bandwidth,
        devices: args.devices,
        is_trusted: args.trust.place(&args.to).is_trusted,
        to: args.to,
        existing: args.existing,
        is_shared: args.shared,
        spot_check: args.spot_check,
        salvage: args.salvage,
        lock_wait: args.lock.wait,
    };
    let kernel = kernel_with(plan, *output);
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
    let is_missed = |device: &DeviceReport| matches!(device.compared, Some(WhyAll::Missed(_)));
    let lacks = |device: &DeviceReport| !device.unreadable.is_empty();
    let code = match &report.devices {
        _ if !report.errors.is_empty() => Exit::Failure.code(),
        devices if devices.iter().any(lacks) => Exit::Unreadable.code(),
        devices if devices.iter().any(is_missed) => Exit::Missed.code(),
        _ => 0,
    };
    Ok(output.result(&report, &lines.join("\n"), code))
}

fn kind(base: Option<u64>) -> String {
    match base {
        None => "full".to_owned(),
        Some(base) => format!("changes since {base}"),
    }
}

/// What a restore point lacks of a device, in words.
pub fn lost(unreadable: &[Extent]) -> Option<String> {
    let first = unreadable.first()?;
    let ranges = match unreadable.len() {
        1 => "1 range".to_owned(),
        count => format!("{count} ranges"),
    };
    Some(format!(
        "{ranges} of it with {} could not be read when it was backed up and are zeroes, the first \
         at byte {}",
        Bytes(changes::total(unreadable)),
        first.offset
    ))
}

/// The restore point that is wanted, or the newest.
pub fn find(store: &Store, wanted: Option<u64>) -> Result<&Point> {
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

pub fn verify(output: &Output, place: Place<'_>, point: Option<u64>) -> Result<u8> {
    let mut attendant = Attendant::new(*output, Operation::OpenBackup, place.path)?;
    let store = Store::open_watched(place, &mut attendant)?;
    if point.is_some() {
        find(&store, point)?;
    }
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
    for it in &report.unreadable {
        let device = printable(&it.device);
        lines.extend(
            lost(&it.extents).map(|lost| format!("restore point {}: {device}: {lost}", it.point)),
        );
    }
    if report.damaged.is_empty() && report.not_checked.is_empty() {
        lines.push(format!(
            "all restore points looked at ({}) are what was backed up; {} read",
            report.points.len(),
            Bytes(report.read_bytes)
        ));
    }
    let code = report.errors.iter().map(|error| error.exit().code()).max();
    let code = code.unwrap_or(match report.unreadable.is_empty() {
        true => 0,
        false => Exit::Unreadable.code(),
    });
    Ok(output.result(&report, &lines.join("\n"), code))
}

pub fn metrics(place: Place<'_>) -> Result<u8> {
    let text = metrics::text(place.path, Store::look(place)?.manifest());
    seen(print(&text))?;
    Ok(0)
}

pub fn list(output: &Output, place: Place<'_>) -> Result<u8> {
    let store = Store::look(place)?;
    let manifest = store.manifest();
    let are_several = manifest.machines().len() > 1;
    let mut rows = vec![row(["POINT", "TIME", "DEVICE", "SIZE", "DATA", "KIND"])];
    if are_several {
        rows[0].push("MACHINE".to_owned());
    }
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
                match changes::total(&image.unreadable) {
                    0 => kind(base),
                    lost => format!("{}, {} could not be read", kind(base), Bytes(lost)),
                },
            ]));
            if let (true, Some(row)) = (are_several, rows.last_mut()) {
                let host = point.machine.as_ref().map(Machine::short);
                row.push(host.unwrap_or("unknown").to_owned());
            }
            devices.push(json!({
                "device": device.device,
                "disk": device.disk,
                "size": image.size,
                "data_bytes": image.data_bytes,
                "base": base,
                "image": image.name,
                "file": store.qcow2(&image.name).display().to_string(),
                "generation_id": image.generation_id,
                "changes_number": image.changes_number,
                "take_id": image.take_id,
                "unreadable": image.unreadable,
            }));
        }
        points.push(json!({
            "point": point.number,
            "time": point.time,
            "machine": point.machine,
            "devices": devices,
        }));
    }
    let text = match points.len() {
        0 => "no restore points".to_owned(),
        _ => table(&rows),
    };
    Ok(output.result(&json!({ "points": points }), text.trim_end(), 0))
}

/// Whose restore points are meant: of the machine that a user calls like this, of the only
/// one, or of this one. `None` for all of them.
pub fn machine_of<'a>(
    store: &'a Store,
    called: Option<&str>,
    here: &Machine,
) -> Result<Option<&'a Machine>> {
    let machines = store.manifest().machines();
    let mut called_so = machines.clone();
    called_so.retain(|it| called.is_some_and(|name| it.is_called(name)));
    if let (Some(name), [_, _, ..]) = (called, &called_so[..]) {
        let reason = format!(
            "{name} is the name of several machines, {}",
            Machine::names(&called_so).join(", ")
        );
        return Err(Error::new(Operation::Arguments, reason)
            .on(store.directory())
            .remedied_by("say --machine with the machine id or the UUID of the hardware"));
    }
    let found = match called {
        Some(_) => called_so.first(),
        None if machines.len() <= 1 => return Ok(None),
        None => machines.iter().find(|it| it.is(here)),
    };
    if let Some(machine) = found {
        return Ok(Some(machine));
    }
    let all = Machine::names(&machines);
    let reason = match (called, machines.is_empty()) {
        (Some(name), true) => {
            format!("its restore points do not say of which machine they are, {name} or another")
        }
        (Some(name), false) => format!(
            "it has no restore point of {name}, but of {}",
            all.join(", ")
        ),
        (None, _) => format!(
            "it has restore points of several machines, {}",
            all.join(", ")
        ),
    };
    let error = Error::new(Operation::Arguments, reason).on(store.directory());
    Err(match machines.is_empty() {
        true => error.remedied_by("leave out --machine"),
        false => error.remedied_by("say --machine with one of these"),
    })
}

pub fn rebuild(output: &Output, place: Place<'_>) -> Result<u8> {
    let mut attendant = Attendant::new(*output, Operation::OpenBackup, place.path)?;
    let (mut store, lost) = Store::open_to_rebuild(place, &mut attendant)?;
    let report = backup::rebuild::rebuild(&mut store, lost, &mut attendant)?;
    drop(attendant);
    for error in &report.errors {
        output.error(error);
    }
    let gone = report.gone.iter().map(|it| {
        let device = printable(&it.device);
        format!("restore point {}: {device} is lost", it.point)
    });
    let mut lines: Vec<String> = gone.collect();
    let list = |numbers: &[u64]| {
        let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
        numbers.join(", ")
    };
    if !report.forgotten.is_empty() {
        lines.push(format!(
            "restore points that were forgotten, and whose removal was interrupted, stay \
             forgotten: {}",
            list(&report.forgotten)
        ));
    }
    if !report.added.is_empty() {
        lines.push(format!(
            "restore points that can be had again: {}",
            list(&report.added)
        ));
    }
    lines.push(match (&report.lost, report.parts.len()) {
        (Some(_), _) if report.points.is_empty() && !report.errors.is_empty() => {
            "no restore point can be had again, and all is left as it is: set right what can be, \
             and rebuild again, or begin in a new directory"
                .to_owned()
        }
        (Some(_), _) => format!(
            "the manifest has {} restore points again",
            report.points.len()
        ),
        (None, 0) if !report.errors.is_empty() => {
            "the manifest is right, but not all that is there can be used: set right what can be, \
             and rebuild again"
                .to_owned()
        }
        (None, 0) if !report.added.is_empty() => "the manifest has them now".to_owned(),
        (None, 0) => "the manifest is right, and nothing of it is missing".to_owned(),
        (None, count) => format!("the manifest is right; {count} of its parts are written again"),
    });
    let code = report.errors.iter().map(|error| error.exit().code()).max();
    Ok(output.result(&report, &lines.join("\n"), code.unwrap_or(0)))
}

/// The number of the take with this id.
fn number_of(take: Uuid, takes: Option<&Takes>) -> std::result::Result<u8, String> {
    takes
        .ok_or("the kernel's driver does not tell the ids of snapshots".to_owned())?
        .number_of(take)
        .ok_or(format!(
            "its change tracking does not know the snapshot {take}"
        ))
}

pub fn changed(
    path: &Path,
    since: Option<u8>,
    take: Option<Uuid>,
    generation: Option<Uuid>,
) -> Result<u8> {
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
    let takes = device.takes()?;
    let since = match take {
        Some(take) => number_of(take, takes.as_ref())
            .map_err(|reason| refused(reason).remedied_by("read everything"))?,
        None => since.unwrap_or(tracking.changes_number - 1),
    };
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
    let fit = takes.as_ref().is_none_or(|takes| takes.fit(&tracking));
    if !fit || device.takes()? != takes || device.tracking()? != tracking {
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
            "take_id": takes.as_ref().and_then(Takes::newest),
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

    #[test]
    fn takes_are_found_by_their_ids() {
        let id = |byte| Uuid::from_bytes([byte; 16]);
        let takes = Takes {
            generation_id: id(9),
            ids: vec![Some(id(1)), None, Some(id(3))],
        };
        assert_eq!(number_of(id(3), Some(&takes)), Ok(3));
        assert!(number_of(id(2), Some(&takes))
            .unwrap_err()
            .contains("does not know"));
        assert!(number_of(id(3), None).unwrap_err().contains("driver"));
    }
}
