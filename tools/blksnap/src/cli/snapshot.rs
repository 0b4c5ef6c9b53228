// SPDX-License-Identifier: GPL-2.0-only

//! "blksnap snapshot", and the process that guards it.

use std::path::Path;

use blksnap::error::Operation;
use blksnap::guardian;
use blksnap::guardian::Guarded;
use blksnap::kernel::Linux;
use blksnap::run;
use blksnap::Error;
use blksnap::Result;

use super::args::Snapshot;
use super::commands::check_devices;
use super::grow;
use super::grow::Plan;
use super::output::Output;

pub fn snapshot(output: &Output, args: Snapshot) -> Result<u8> {
    check_devices(&args.devices)?;
    let plan = args.store.plan()?;
    let request = run::Request {
        limit: plan.limit,
        devices: args.devices,
        store: args.store.store,
        detach: args.detach,
        command: args.command,
        stdout_to_stderr: output.is_json(),
    };
    let kernel = guarded(plan, output.is_json());
    let report = run::run(&kernel, &request)?;
    for warning in &report.warnings {
        output.warning(warning);
    }
    for error in &report.errors {
        output.error(error);
    }
    Ok(output.result(&report, "", report.exit_code))
}

/// The running kernel, whose snapshot is destroyed if this process is killed.
pub fn guarded(plan: Plan, is_json: bool) -> Guarded<Linux> {
    Guarded::new(Linux::default(), move |store| {
        let mut command = grow::role("blksnap-guard", "guard");
        command.args(plan.options(store));
        if is_json {
            command.arg("--json");
        }
        command
    })
}

pub fn guard(output: Output, store: &Path, plan: &Plan) -> Result<u8> {
    let start = |id| {
        plan.set_threshold(id)?;
        match plan.growth {
            Some(growth) => grow::start_thread(id, store, plan.limit, growth, output),
            None => Ok(()),
        }
    };
    let left_over = guardian::serve(&Linux::default(), store, plan.limit, &start)
        .map_err(|error| Error::from_io(Operation::Guard, &error))?;
    if let Some(id) = left_over {
        output.warning(&format!(
            "the holder of snapshot {id} was killed; the snapshot is destroyed"
        ));
    }
    Ok(0)
}
