// SPDX-License-Identifier: GPL-2.0-only

//! Runs a command while a snapshot is held.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;

use rustix::process::kill_process;
use rustix::process::Pid;
use rustix::process::Signal;
use serde::Serialize;

use crate::error::Error;
use crate::error::Exit;
use crate::error::Operation;
use crate::error::Result;
use crate::held::variables;
use crate::held::Held;
use crate::hooks::Hooks;
use crate::kernel::Kernel;
use crate::signals::Signals;
use crate::size::Sectors;
use crate::Uuid;

/// What to snapshot, and what to run meanwhile.
#[derive(Debug, Clone)]
pub struct Request {
    pub devices: Vec<PathBuf>,
    pub store: PathBuf,
    pub limit: Sectors,
    /// Detach the filter in the end from devices that had none before.
    pub detach: bool,
    pub hooks: Hooks,
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Send the program's standard output to standard error.
    pub stdout_to_stderr: bool,
}

/// What became of it.
#[derive(Debug, Serialize)]
pub struct Report {
    pub id: Uuid,
    pub images: Vec<Image>,
    /// How the command ended.
    pub command: Ending,
    /// Whether an image cannot be trusted.
    pub corrupted: bool,
    /// All that went wrong after the command had started.
    pub errors: Vec<Error>,
    pub warnings: Vec<String>,
    pub exit_code: u8,
}

#[derive(Debug, Serialize)]
pub struct Image {
    #[serde(serialize_with = "crate::lossy::path")]
    pub device: PathBuf,
    #[serde(serialize_with = "crate::lossy::path")]
    pub image: PathBuf,
    /// Whether it was true to the end.
    pub valid: bool,
}

/// How a program ended: one of both is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Ending {
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
}

impl Ending {
    fn code(self) -> u8 {
        match (self.exit_code, self.signal) {
            // An exit code has eight bits.
            (Some(code), _) => code as u8,
            (None, Some(signal)) => Exit::of_signal(signal).code(),
            (None, None) => Exit::Failure.code(),
        }
    }
}

impl From<ExitStatus> for Ending {
    fn from(status: ExitStatus) -> Self {
        Self {
            exit_code: status.code(),
            signal: status.signal(),
        }
    }
}

/// Takes the snapshot, runs the command and releases the snapshot, whatever
/// happens. An error means that the command did not run.
pub fn run(kernel: &dyn Kernel, request: &Request) -> Result<Report> {
    let mut signals = Signals::catch().map_err(|error| Error::from_io(Operation::Run, &error))?;
    let held = Held::take(
        kernel,
        &request.devices,
        &request.store,
        request.limit,
        request.detach,
        &request.hooks,
        &mut || match signals.pending().first() {
            None => Ok(()),
            Some(stop) => Err(stopped(request, stop.signal)),
        },
    )?;
    let child = spawn(request, &held)?;
    let ending = wait(child, &mut signals)
        .map_err(|error| Error::from_io(Operation::Run, &error).on(program(request)))?;
    Ok(finish(held, ending.into()))
}

fn stopped(request: &Request, signal: i32) -> Error {
    let reason = format!("signal {signal} came before it was started");
    Error::new(Operation::Run, reason)
        .on(program(request))
        .exiting(Exit::of_signal(signal))
}

fn program(request: &Request) -> &Path {
    request
        .command
        .first()
        .map_or(Path::new(""), |name| Path::new(name))
}

fn spawn(request: &Request, held: &Held<'_>) -> Result<Child> {
    let failed = |error: io::Error| {
        let exit = match error.kind() {
            io::ErrorKind::NotFound => Exit::Code(127),
            _ => Exit::Code(126),
        };
        Error::from_io(Operation::Run, &error)
            .on(program(request))
            .exiting(exit)
    };
    let mut command = Command::new(program(request));
    command
        .args(request.command.iter().skip(1))
        .envs(environment(held));
    if request.stdout_to_stderr {
        command.stdout(Stdio::from(io::stderr()));
    }
    command.spawn().map_err(failed)
}

/// The environment by which the command finds the images.
pub fn environment(held: &Held<'_>) -> Vec<(String, OsString)> {
    let devices = held.devices();
    let mut images = OsString::new();
    let mut variables = variables(held.id(), devices.iter().map(|it| it.device.as_path()));
    for (number, device) in (1..).zip(devices) {
        if number > 1 {
            images.push("\n");
        }
        images.push(&device.node);
        variables.push((
            format!("BLKSNAP_IMAGE_{number}"),
            device.node.clone().into(),
        ));
    }
    variables.push(("BLKSNAP_IMAGES".to_owned(), images));
    variables
}

/// Waits for the command and hands on the signals that came for it.
fn wait(mut child: Child, signals: &mut Signals) -> io::Result<ExitStatus> {
    let forward = |child: &Child, signal: i32| {
        // Not reaped yet, so the number is still that of the child. One that
        // just ended takes no signal, which is all right.
        if let (Some(pid), Some(signal)) = (
            Pid::from_raw(child.id() as i32),
            Signal::from_named_raw(signal),
        ) {
            let _ = kill_process(pid, signal);
        }
    };
    // What came while the child was started may have missed it.
    for stop in signals.pending() {
        forward(&child, stop.signal);
    }
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        for stop in signals.wait() {
            // Twice the same signal means "at once" to some programs.
            if !stop.to_group {
                forward(&child, stop.signal);
            }
        }
    }
}

fn finish(held: Held<'_>, command: Ending) -> Report {
    let mut errors = Vec::new();
    let mut warnings = Vec::new();
    let mut images = Vec::new();
    for device in held.devices() {
        let verdict = held.verify(device);
        images.push(Image {
            device: device.device.clone(),
            image: device.node.clone(),
            valid: verdict.is_ok(),
        });
        errors.extend(verdict.err());
        for user in held.users(device) {
            warnings.push(format!(
                "{} is still in use: {user}; what is read there will fail from now on",
                device.node.display()
            ));
        }
    }
    let corrupted = !errors.is_empty();
    errors.extend_from_slice(held.hook_errors());
    let id = held.id();
    errors.extend(held.release());

    let exit_code = match command.code() {
        _ if corrupted => Exit::Corrupted.code(),
        0 if !errors.is_empty() => Exit::Failure.code(),
        code => code,
    };
    Report {
        id,
        images,
        command,
        corrupted,
        errors,
        warnings,
        exit_code,
    }
}
