// SPDX-License-Identifier: GPL-2.0-only

//! The process that creates a snapshot for "blksnap snap create", and destroys it if that is killed
//! before it has told the id.
//!
//! Not by owning it: the kernel lets nobody give a snapshot up again, so that it would end with
//! this process. Nor by a process that owns it until it is destroyed: a service manager that ends
//! what a script has left would destroy the snapshot.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Child;
use std::process::ChildStdin;
use std::process::Stdio;

use blksnap::error::Operation;
use blksnap::Control;
use blksnap::Error;
use blksnap::Result;
use blksnap::Sectors;
use blksnap::Uuid;
use rustix::io::Errno;

use super::grow::role;

/// Sent to that process once the id is known or the snapshot is destroyed.
const KNOWN: &[u8] = b"known\n";

/// A snapshot that is destroyed if this process is killed before [`Self::release`].
pub struct Guarded {
    pub id: Uuid,
    /// None if the process could not be started.
    process: Option<(Child, ChildStdin)>,
}

impl Guarded {
    /// Creates a snapshot as [`Control::create`] does.
    pub fn create(control: &Control, store: &Path, limit: Sectors) -> Result<Self> {
        let spawned = role("blksnap-create", "guard")
            .arg(format!("--sectors={}", limit.0))
            .arg("--")
            .arg(store)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // Not to be killed together with this one.
            .process_group(0)
            .spawn();
        let Ok(mut child) = spawned else {
            // As where there is no /proc.
            let id = control.create(store, limit)?;
            return Ok(Self { id, process: None });
        };
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both are pipes");
        };
        let mut answer = String::new();
        let read = BufReader::new(output).read_line(&mut answer);
        let id = read
            .map_err(|error| Error::from_io(Operation::Create, &error).on(store))
            .and_then(|_| created(&answer, store));
        match id {
            Ok(id) => Ok(Self {
                id,
                process: Some((child, input)),
            }),
            Err(error) => {
                drop(input);
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// From now on the snapshot stays.
    pub fn release(self) {
        if let Some((mut child, mut input)) = self.process {
            // If it was killed, nothing destroys the snapshot.
            let _ = input.write_all(KNOWN);
            drop(input);
            let _ = child.wait();
        }
    }
}

/// The snapshot of an answer, or the error.
fn created(answer: &str, store: &Path) -> Result<Uuid> {
    let errno = || answer.trim_end().strip_prefix("errno ")?.parse().ok();
    let id = || answer.trim_end().strip_prefix("id ")?.parse().ok();
    id().ok_or_else(|| match errno() {
        Some(errno) => Error::from_errno(Operation::Create, Errno::from_raw_os_error(errno)),
        None => Error::new(Operation::Create, "the process that creates it was killed")
            .remedied_by("run it again"),
    })
    .map_err(|error| error.on(store))
}

/// What such a process does.
pub fn guard(store: &Path, limit: Sectors) -> Result<u8> {
    let control = Control::open()?;
    let created = control.create(store, limit);
    let destroy = |id| control.destroy(id).map(drop);
    keep(created, io::stdin(), io::stdout(), destroy);
    Ok(0)
}

/// Tells of a snapshot, and destroys it unless its id is known in the end.
fn keep(
    created: Result<Uuid>,
    mut input: impl Read,
    mut output: impl Write,
    destroy: impl FnOnce(Uuid) -> Result<()>,
) {
    let answer = match &created {
        Ok(id) => format!("id {id}\n"),
        Err(error) => format!("errno {}\n", error.errno().map_or(0, Errno::raw_os_error)),
    };
    let told = output
        .write_all(answer.as_bytes())
        .and_then(|()| output.flush());
    let Ok(id) = created else {
        return;
    };
    let mut text = Vec::new();
    let is_known = told.is_ok() && input.read_to_end(&mut text).is_ok() && text == KNOWN;
    if !is_known {
        // The one who would want to know of an error is gone.
        let _ = destroy(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Uuid = Uuid::from_bytes([7; 16]);

    /// What is told and destroyed if this comes.
    fn after(created: Result<Uuid>, input: &[u8]) -> (String, Option<Uuid>) {
        let (mut output, mut destroyed) = (Vec::new(), None);
        keep(created, input, &mut output, |id| {
            destroyed = Some(id);
            Ok(())
        });
        (String::from_utf8(output).unwrap(), destroyed)
    }

    #[test]
    fn a_snapshot_that_nobody_knows_is_destroyed() {
        let answer = format!("id {ID}\n");
        assert_eq!(after(Ok(ID), KNOWN), (answer.clone(), None));
        for input in [&b""[..], b"known", b"unknown\n"] {
            assert_eq!(after(Ok(ID), input), (answer.clone(), Some(ID)));
        }
        let store = Path::new("/store");
        assert_eq!(created(&answer, store), Ok(ID));
    }

    #[test]
    fn nothing_is_known_to_one_that_is_gone() {
        let mut destroyed = None;
        let full: &mut [u8] = &mut [];
        keep(Ok(ID), KNOWN, full, |id| {
            destroyed = Some(id);
            Ok(())
        });
        assert_eq!(destroyed, Some(ID));
    }

    #[test]
    fn errors_are_passed_on() {
        let store = Path::new("/store");
        let error = Error::from_errno(Operation::Create, Errno::NOSPC).on(store);
        let (answer, destroyed) = after(Err(error.clone()), b"");
        assert_eq!(destroyed, None);
        assert_eq!(created(&answer, store), Err(error));
        let error = created("", store).unwrap_err();
        assert!(error.to_string().contains("killed"), "{error}");
    }
}
