// SPDX-License-Identifier: GPL-2.0-only

mod args;
mod assign;
mod backup;
mod commands;
mod doctor;
mod document;
mod events;
mod grow;
mod guard;
mod metrics;
mod output;
mod progress;
mod prune;
mod restore;
mod run;
mod status;

use std::ffi::OsString;

use blksnap::error::Exit;
use blksnap::error::Operation;
use blksnap::Error;
use blksnap::Result;
use blksnap::Sectors;
use clap::error::ContextKind;
use clap::error::ContextValue;
use clap::error::ErrorKind;
use rustix::process::getrlimit;
use rustix::process::setrlimit;
use rustix::process::Resource;

use args::Step;
use args::Subcommand;
use output::seen;
use output::Output;

/// Runs the command line of this process; returns the exit code.
pub fn main() -> u8 {
    let args = match args::parse() {
        Ok(args) => args,
        Err(error) => return refuse(&error),
    };
    let output = Output::new(args.json);
    let is_of_backups = matches!(
        args.command,
        Subcommand::Backup(_)
            | Subcommand::Restore(_)
            | Subcommand::Verify { .. }
            | Subcommand::List { .. }
            | Subcommand::Prune { .. }
            | Subcommand::Forget { .. }
            | Subcommand::Rebuild { .. }
    );
    // Not where COMMAND is run, which gets the limits that were set for it.
    if is_of_backups {
        raise_open_files();
        // Without it such a write ends the command, which only says less.
        let _ = blksnap::signals::outlive_file_limit();
    }
    let result = match args.command {
        Subcommand::Doctor(args) => doctor::doctor(&output, args),
        Subcommand::Attach { devices } => commands::attach(&output, &devices),
        Subcommand::Detach { devices } => commands::detach(&output, &devices),
        Subcommand::Status { devices } => status::status(&output, &devices),
        Subcommand::Snap { step } | Subcommand::Flat(step) => take_step(&output, step),
        Subcommand::Version => commands::version(&output),
        Subcommand::Run(args) => run::run(&output, args),
        Subcommand::Backup(args) => backup::backup(&output, args),
        Subcommand::Restore(args) => restore::restore(&output, &args),
        Subcommand::Verify {
            directory,
            point,
            trust,
            lock,
        } => backup::verify(&output, trust.place(&directory).waiting(lock.wait), point),
        Subcommand::List {
            directory,
            metrics,
            trust,
        } => match metrics {
            true => backup::metrics(trust.place(&directory)),
            false => backup::list(&output, trust.place(&directory)),
        },
        Subcommand::Prune {
            directory,
            keep,
            slack,
            dry_run,
            machine,
            trust,
            lock,
        } => {
            let place = trust.place(&directory).waiting(lock.wait);
            let machine = machine.machine.as_deref();
            prune::prune(&output, place, keep.into(), slack, machine, dry_run)
        }
        Subcommand::Forget {
            directory,
            points,
            dry_run,
            trust,
            lock,
        } => {
            let place = trust.place(&directory).waiting(lock.wait);
            prune::forget(&output, place, &points, dry_run)
        }
        Subcommand::Rebuild {
            directory,
            trust,
            lock,
        } => backup::rebuild(&output, trust.place(&directory).waiting(lock.wait)),
        Subcommand::Changed {
            device,
            since,
            take,
            generation,
        } => backup::changed(&device, since, take, generation),
        Subcommand::Completions { shell } => document::completions(shell),
        Subcommand::Man { directory } => document::man(&directory),
        Subcommand::Guard { store, sectors } => guard::guard(&store, Sectors(sectors)),
        Subcommand::Grow { id, store, plan } => grow::grow(id, &store, &plan.into()),
    };
    result.unwrap_or_else(|error| {
        output.error(&error);
        error.exit().code()
    })
}

fn take_step(output: &Output, step: Step) -> Result<u8> {
    match step {
        Step::Create { store, devices } => commands::create(output, &store, &devices),
        Step::Add {
            id,
            changed_since,
            devices,
        } => commands::add(output, id, changed_since, &devices),
        Step::Append {
            id,
            device,
            ranges,
            overwrite,
        } => commands::append(output, id, &device, &ranges, overwrite),
        Step::Take { id } => commands::take(output, id),
        Step::Image { targets } => status::image(output, &targets),
        Step::Events {
            id,
            follow,
            timeout,
        } => events::events(output, id, follow, timeout),
        Step::Destroy { id, force } => status::destroy(output, id, force),
    }
}

/// Lets this process have as many files open as it may: less is only for programs that use
/// select().
fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // What needs more than there is tells.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Answers --help and --version, and command lines that make no sense.
fn refuse(error: &clap::Error) -> u8 {
    let is_error = error.use_stderr();
    if is_error && asks_for_json(std::env::args_os()) {
        let mut text = error.to_string();
        if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            // The whole help text is not an error message.
            text = "no command given".to_owned();
        }
        let text = text.trim().trim_start_matches("error: ");
        let reason = text.lines().next().unwrap_or(text).to_owned();
        let reason = empty(error).unwrap_or(reason);
        let error = Error::new(Operation::Arguments, reason)
            .remedied_by("run \"blksnap --help\" or \"blksnap COMMAND --help\"");
        Output::new(true).error(&error);
        return error.exit().code();
    }
    if let Some(reason) = empty(error) {
        eprintln!("error: {reason}\n\nFor more information, try '--help'.");
        return Exit::Usage.code();
    }
    let printed = error.print();
    if is_error {
        return Exit::Usage.code();
    }
    match seen(printed) {
        Ok(()) => 0,
        Err(error) => {
            Output::new(false).error(&error);
            error.exit().code()
        }
    }
}

/// What is wrong if a value is missing or empty, which clap calls missing.
fn empty(error: &clap::Error) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let is_empty =
        error.kind() == ErrorKind::InvalidValue && text(ContextKind::InvalidValue) == Some("");
    let argument = text(ContextKind::InvalidArg).filter(|_| is_empty)?;
    Some(format!("the value of '{argument}' is missing or empty"))
}

/// Whether there is a --json that is not part of another command.
fn asks_for_json(args: impl Iterator<Item = OsString>) -> bool {
    args.take_while(|arg| arg != "--")
        .any(|arg| arg == "--json")
}
