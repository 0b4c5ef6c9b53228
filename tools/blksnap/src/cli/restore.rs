// SPDX-License-Identifier: GPL-2.0-only

//! "blksnap restore": shows what goes where, asks, and writes.

use std::io;
use std::io::BufRead;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use blksnap::backup::manifest::Point;
use blksnap::backup::restore;
use blksnap::backup::restore::Opener;
use blksnap::backup::restore::Plan;
use blksnap::backup::restore::Report;
use blksnap::backup::spot::STANDARD_OUTPUT;
use blksnap::backup::store::Store;
use blksnap::backup::target::Allow;
use blksnap::error::Exit;
use blksnap::error::Operation;
use blksnap::identity::Disk;
use blksnap::identity::Machine;
use blksnap::identity::Sources;
use blksnap::printable::printable;
use blksnap::Bytes;
use blksnap::Error;
use blksnap::Result;
use serde_json::json;
use serde_json::Value;

use super::args;
use super::assign::assign;
use super::assign::in_place;
use super::assign::Assigned;
use super::backup::find;
use super::backup::lost;
use super::backup::machine_of;
use super::events::rfc3339;
use super::output::Output;
use super::progress::Attendant;
use super::progress::Waiter;

pub fn restore(output: &Output, args: &args::Restore) -> Result<u8> {
    if args.force {
        return Err(Error::new(
            Operation::Arguments,
            "there is no --force, as it allowed everything at once",
        )
        .remedied_by(
            "say what may be lost: --overwrite (what is on the target), --in-use, --truncate (the \
             end, if the target is smaller), --moved-name (with --in-place), --other-block-size",
        ));
    }
    let place = args.trust.place(&args.directory).waiting(args.lock.wait);
    let store = Store::open_watched(place, &mut Waiter(*output))?;
    let wanted = match args.point {
        Some(_) => Some(find(&store, args.point)?),
        None => None,
    };
    let machine = match wanted {
        Some(point) => point.machine.as_ref(),
        None => machine_of(&store, args.machine.machine.as_deref(), &Machine::here())?,
    };
    let points: Vec<&Point> = store.manifest().of(machine).collect();
    let newest = match wanted.or(points.last().copied()) {
        Some(point) => point,
        None => find(&store, None)?,
    };
    let assigned = match args.in_place {
        true => in_place(newest, args.moved_name, &disk_at)?,
        false => assign(&points, wanted, &args.targets)?,
    };
    let allow = Allow {
        in_use: args.in_use,
        overwrite: args.overwrite,
        truncate: args.truncate,
        other_block_size: args.other_block_size,
    };
    // All are looked at before anything is written.
    let wanted: Vec<_> = assigned
        .iter()
        .map(|it| (it.point.number, it.device, it.target.as_path()))
        .collect();
    let restores = Opener::new(&store, allow)?
        .salvaging(args.salvage)
        .open(&wanted)?;
    if args.check {
        if let Some(stream) = restores.iter().find(|it| it.target().is_stream()) {
            return Err(Error::new(
                Operation::Arguments,
                format!("{} cannot be read back", stream.plan().target.display()),
            )
            .remedied_by("leave out --check, or name a file or block device"));
        }
    }
    let plans: Vec<Plan> = restores.iter().map(|it| it.plan().clone()).collect();
    let text: Vec<String> = plans.iter().zip(&assigned).map(sentence).collect();
    if args.dry_run {
        return Ok(output.result(&json!({ "plan": plans }), &text.join("\n"), 0));
    }
    let loses = restores.iter().any(|it| !it.target().is_stream());
    if loses && !args.yes && io::stdin().is_terminal() && io::stderr().is_terminal() {
        ask(output, &text)?;
    }
    tell_of_older_points(output, newest.number, &plans);
    tell_of_other_disks(output, &assigned);

    let mut attendants = Vec::new();
    for plan in &plans {
        attendants.push(Attendant::new(*output, Operation::Restore, &plan.target)?);
    }
    let mut reports = Vec::new();
    for ((restore, mut attendant), plan) in restores.into_iter().zip(attendants).zip(&plans) {
        let is_device = restore.target().is_device();
        let is_stream = restore.target().is_stream();
        let report = restore.run(args.check, &mut attendant)?;
        drop(attendant);
        tell(output, plan, &report, is_device, is_stream);
        tell_of_damage(output, &report, args.salvage);
        reports.push(report);
    }
    let is_damaged = reports.iter().any(|report| !report.damaged.is_empty());
    let differs = reports.iter().any(|report| !report.differs.is_empty());
    let lacks = reports.iter().any(|report| !report.unreadable.is_empty());
    let code = match (is_damaged, differs, lacks) {
        (true, _, _) if !args.salvage => Exit::Damaged.code(),
        (_, true, _) => Exit::Failure.code(),
        (true, _, _) | (_, _, true) => Exit::Unreadable.code(),
        _ => 0,
    };
    let text: Vec<String> = reports.iter().map(done).collect();
    let value = json!({ "point": common_point(&reports), "devices": reports });
    if plans
        .iter()
        .any(|plan| plan.target.as_os_str() == STANDARD_OUTPUT)
    {
        // Standard output has the data.
        match output.is_json() {
            true => output.record(&value),
            false => output.note(&text.join("\n")),
        }
        return Ok(code);
    }
    Ok(output.result(&value, &text.join("\n"), code))
}

/// What is known of the disk that has this name now.
fn disk_at(path: &Path) -> Disk {
    match blksnap::device::check(path) {
        Ok(number) => Sources::default().disk(number, number),
        Err(_) => Disk::default(),
    }
}

/// What goes where, in words.
fn sentence((plan, assigned): (&Plan, &Assigned<'_>)) -> String {
    let time = rfc3339(UNIX_EPOCH + Duration::from_secs(assigned.point.time)).replace(".000", "");
    let machine = assigned.point.machine.as_ref().map(Machine::short);
    let text = format!(
        "restore point {} of {}{time}: {} ({}) goes to {} ({})",
        plan.point,
        machine.map(|host| format!("{host}, ")).unwrap_or_default(),
        plan.device,
        Bytes(plan.size),
        plan.target.display(),
        plan.before
    );
    printable(&text).into_owned()
}

/// The number of the restore point that all are of.
fn common_point(reports: &[Report]) -> Value {
    let first = reports.first().map(|report| report.point);
    match first.filter(|&point| reports.iter().all(|it| it.point == point)) {
        Some(point) => json!(point),
        None => Value::Null,
    }
}

fn done(report: &Report) -> String {
    let checked = match report.checked && report.differs.is_empty() {
        true => ", and read back",
        false => "",
    };
    format!(
        "restore point {}: {} is restored to {}{checked}",
        report.point,
        report.device,
        report.target.display()
    )
}

/// Shows what goes where, and waits for a yes.
fn ask(output: &Output, text: &[String]) -> Result<()> {
    let no = |reason: &str, remedy: &str| {
        Err(Error::new(Operation::Arguments, reason)
            .remedied_by(remedy)
            .exiting(Exit::Failure))
    };
    if output.is_json() {
        return no(
            "on a terminal it asks, which --json does not go together with",
            "say --yes to have nothing asked, or --dry-run to see what goes where",
        );
    }
    for line in text {
        output.note(line);
    }
    output.note("what the targets hold is lost by that. Go on? [y/N]");
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| Error::from_io(Operation::Restore, &error))?;
    match answer.trim() {
        "y" | "Y" | "yes" | "Yes" | "YES" => Ok(()),
        _ => no(
            "it was not confirmed; nothing was written",
            "answer \"y\", or say --yes",
        ),
    }
}

fn tell_of_older_points(output: &Output, newest: u64, plans: &[Plan]) {
    for plan in plans.iter().filter(|plan| plan.point != newest) {
        output.note(&format!(
            "{} is not in restore point {newest}; the newest that has it is {}",
            plan.device, plan.point
        ));
    }
}

fn tell_of_other_disks(output: &Output, assigned: &[Assigned<'_>]) {
    for (it, number) in assigned
        .iter()
        .filter_map(|it| Some((it, it.other_disk_in?)))
    {
        output.note(&format!(
            "in restore point {number}, {} is another disk than in {}: it is {}",
            it.device.device,
            it.point.number,
            it.device.disk.clone().unwrap_or_default()
        ));
    }
}

/// Says what of a target is not what was backed up.
fn tell_of_damage(output: &Output, report: &Report, salvage: bool) {
    for extent in &report.damaged {
        let reason = format!(
            "its bytes {} to {} are not what was backed up: the backup has a wrong checksum \
             there, or cannot be read",
            extent.offset,
            extent.end()
        );
        match salvage {
            true => output.warning(&format!("{}: {reason}", report.target.display())),
            false => output.error(&Error::new(Operation::CheckBackup, reason).on(&report.target)),
        }
    }
}

/// What has to be said of a target that was written to.
fn tell(output: &Output, plan: &Plan, report: &Report, is_device: bool, is_stream: bool) {
    let target = report.target.display();
    if report.truncated {
        output.warning(&format!("{target} is smaller; the end is missing"));
    }
    if report.gpt_to_move {
        output.note(&format!(
            "{target} has another size than {}, so that the backup of its partition table (GPT) is \
             not at the end: \"sgdisk -e {target}\" or \"sfdisk --relocate gpt-bak-std {target}\" \
             puts it there",
            report.device
        ));
    }
    if let Some(size) = plan.logical_block_size.filter(|&size| size != 512) {
        if !is_device && !is_stream {
            output.note(&format!(
                "{} has logical blocks of {size} bytes: \"losetup --sector-size {size} --partscan \
                 --find {target}\" makes such a device of the file",
                report.device
            ));
        }
    }
    if let Some(lost) = lost(&report.unreadable) {
        output.warning(&format!("{target}: {lost}"));
    }
    for extent in &report.differs {
        output.error(&restore::differs(&report.target, extent));
    }
}
