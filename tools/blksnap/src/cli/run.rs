// SPDX-License-Identifier: GPL-2.0-only

//! "blksnap run".

use blksnap::error::Operation;
use blksnap::kernel::Linux;
use blksnap::run;
use blksnap::Error;
use blksnap::Result;

use super::args::Run;
use super::commands::check_devices;
use super::grow;
use super::grow::Plan;
use super::output::Output;

pub fn run(output: &Output, args: Run) -> Result<u8> {
    if args.command.first().is_some_and(|name| name.is_empty()) {
        return Err(
            Error::new(Operation::Arguments, "the name of COMMAND is empty")
                .remedied_by("name a program behind \"--\""),
        );
    }
    check_devices(&args.devices)?;
    let plan = args.store.plan(&args.devices)?;
    let request = run::Request {
        limit: plan.limit,
        devices: args.devices,
        store: args.store.store,
        detach: args.detach,
        hooks: args.hooks.into(),
        command: args.command,
        stdout_to_stderr: output.is_json(),
    };
    let kernel = kernel_with(plan, *output);
    let report = run::run(&kernel, &request)?;
    for warning in &report.warnings {
        output.warning(warning);
    }
    for error in &report.errors {
        output.error(error);
    }
    Ok(output.result(&report, "", report.exit_code))
}

/// The running kernel, where the storage of a snapshot is as `plan` says.
pub fn kernel_with(plan: Plan, output: Output) -> Linux<'static> {
    Linux::new(move |id, store| {
        plan.set_threshold(id)?;
        match plan.growth {
            Some(growth) => grow::start_thread(id, store, plan.limit, growth, output),
            None => Ok(()),
        }
    })
}
