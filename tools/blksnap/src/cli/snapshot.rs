// SPDX-License-Identifier: GPL-2.0-only

//! "blksnap snapshot", and the process that guards it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use blksnap::error::Operation;
use blksnap::guardian;
use blksnap::guardian::Guarded;
use blksnap::kernel::Linux;
use blksnap::run;
use blksnap::Error;
use blksnap::Result;
use blksnap::Sectors;

use super::args::Snapshot;
use super::commands::check_devices;
use super::output::Output;

pub fn snapshot(output: &Output, args: Snapshot) -> Result<u8> {
    check_devices(&args.devices)?;
    let request = run::Request {
        limit: args.store.checked_limit()?,
        devices: args.devices,
        store: args.store.store,
        detach: args.detach,
        command: args.command,
        stdout_to_stderr: output.is_json(),
    };
    let kernel = Guarded::new(Linux::default(), guard_command);
    let report = run::run(&kernel, &request)?;
    for warning in &report.warnings {
        output.warning(warning);
    }
    for error in &report.errors {
        output.error(error);
    }
    output.result(&report, "");
    Ok(report.exit_code)
}

fn guard_command(store: &Path, limit: Sectors) -> Command {
    let mut store_option = OsString::from("--store=");
    store_option.push(store);
    // This very program, even if an update has replaced the file.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("blksnap-guard")
        .arg("guard")
        .arg(format!("--sectors={}", limit.0))
        .arg(store_option);
    command
}

pub fn guard(store: &Path, sectors: u64) -> Result<u8> {
    let left_over = guardian::serve(&Linux::default(), store, Sectors(sectors))
        .map_err(|error| Error::from_io(Operation::Guard, &error))?;
    if let Some(id) = left_over {
        Output::new(false).warning(&format!(
            "the holder of snapshot {id} was killed; the snapshot is destroyed"
        ));
    }
    Ok(0)
}
