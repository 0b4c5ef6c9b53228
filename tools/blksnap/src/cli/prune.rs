// SPDX-License-Identifier: GPL-2.0-only

//! "blksnap prune" and "blksnap forget".

use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use blksnap::backup::directory::Place;
use blksnap::backup::prune::prune as remove;
use blksnap::backup::prune::Report;
use blksnap::backup::prune::Which;
use blksnap::backup::retention::Policy;
use blksnap::backup::retention::Rules;
use blksnap::backup::store::Store;
use blksnap::date::rfc3339_at;
use blksnap::error::Operation;
use blksnap::identity::Machine;
use blksnap::zone::Zone;
use blksnap::Error;
use blksnap::Result;

use super::backup::find;
use super::backup::machine_of;
use super::output::Output;
use super::progress::Attendant;
use super::status::row;
use super::status::table;

/// Removes the restore points that no rule keeps.
pub fn prune(
    output: &Output,
    place: Place<'_>,
    rules: Rules,
    slack: usize,
    machine: Option<&str>,
    is_trial: bool,
) -> Result<u8> {
    rules.check()?;
    let zone = match Zone::here() {
        Err(reason) if rules.are_by_time() => {
            return Err(Error::new(Operation::Prune, reason)
                .on(place.path)
                .remedied_by(
                "set TZ to the name of a zone in /usr/share/zoneinfo, such as Europe/Berlin, or \
                     to UTC0",
            ))
        }
        // Only for the times that are shown.
        zone => zone.unwrap_or_default(),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let policy = Policy {
        rules,
        slack,
        now: now.map_or(0, |now| now.as_secs()),
        zone,
    };
    let mut attendant = Attendant::new(*output, Operation::Prune, place.path)?;
    let mut store = open(place, is_trial, &mut attendant)?;
    let machine = machine_of(&store, machine, &Machine::here())?.cloned();
    let which = Which::Old(&policy);
    let report = remove(
        &mut store,
        which,
        machine.as_ref(),
        is_trial,
        &mut attendant,
    )?;
    drop(attendant);
    let text = match is_trial {
        true => shown(&report, &store, &policy.zone) + &removed(&report, is_trial),
        false => removed(&report, is_trial),
    };
    Ok(output.result(&report, &text, 0))
}

/// Removes the restore points with these numbers.
pub fn forget(output: &Output, place: Place<'_>, numbers: &[u64], is_trial: bool) -> Result<u8> {
    let mut attendant = Attendant::new(*output, Operation::Prune, place.path)?;
    let mut store = open(place, is_trial, &mut attendant)?;
    for number in numbers {
        find(&store, Some(*number))?;
    }
    let which = Which::Numbers(numbers);
    let report = remove(&mut store, which, None, is_trial, &mut attendant)?;
    drop(attendant);
    Ok(output.result(&report, &removed(&report, is_trial), 0))
}

fn open(place: Place<'_>, is_trial: bool, attendant: &mut Attendant) -> Result<Store> {
    match is_trial {
        true => Store::open_watched(place, attendant),
        false => Store::open_to_change_watched(place, false, attendant),
    }
}

/// A table of the restore points that stay. Their times are local ones, by which the rules go.
fn shown(report: &Report, store: &Store, zone: &Zone) -> String {
    let mut rows = vec![row(["POINT", "TIME", "KEPT BY"])];
    for kept in &report.reasons {
        let time = store.manifest().point(kept.point).map_or(0, |it| it.time);
        let time = i64::try_from(time).unwrap_or(i64::MAX);
        let reasons: Vec<String> = kept.kept_by.iter().map(ToString::to_string).collect();
        rows.push(row([
            kept.point.to_string(),
            rfc3339_at(time, zone.offset(time)),
            reasons.join(", "),
        ]));
    }
    table(&rows)
}

fn removed(report: &Report, is_trial: bool) -> String {
    let (removed, kept) = (&report.removed, report.kept.len());
    let numbers: Vec<String> = removed.iter().map(u64::to_string).collect();
    match (is_trial, removed.is_empty()) {
        (false, _) => format!("restore points removed: {}, kept: {kept}", removed.len()),
        (true, true) => "no restore point would be removed".to_owned(),
        (true, false) => format!(
            "restore points that would be removed: {}; {kept} would be kept",
            numbers.join(", ")
        ),
    }
}
