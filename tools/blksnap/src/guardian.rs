// SPDX-License-Identifier: GPL-2.0-only

//! A second process that destroys the snapshot when its holder is killed.
//!
//! No handler runs on SIGKILL, and neither does a destructor. So the snapshot
//! is created by a child of the holder, which then waits for the end of a
//! socket whose other end only the holder has: the kernel closes it however
//! the holder ends. As the child itself creates the snapshot, there is no
//! moment at which one exists that nobody would destroy.
//!
//! When all goes well the holder destroys the snapshot itself, and the
//! guardian finds that there is nothing left to do.

use std::cell::RefCell;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use rustix::io::Errno;
use serde::Deserialize;
use serde::Serialize;

use crate::device::Attachment;
use crate::device::SnapshotState;
use crate::device::Takes;
use crate::device::Tracking;
use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;
use crate::kernel::Kernel;
use crate::signals;
use crate::size::Sectors;
use crate::Uuid;

/// What the guardian tells its holder, as one line of JSON.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Created {
        id: String,
    },
    Refused {
        operation: Operation,
        errno: Option<i32>,
        reason: String,
        remedy: Option<String>,
    },
}

/// The holder's end.
#[derive(Debug)]
struct Guardian {
    socket: UnixStream,
    child: Child,
}

impl Guardian {
    fn start(mut command: Command) -> io::Result<Self> {
        // Both ends are closed on exec, so that COMMAND does not inherit them.
        let (socket, other) = UnixStream::pair()?;
        let child = command
            .stdin(Stdio::from(OwnedFd::from(other)))
            .stdout(Stdio::null())
            // Away from the signals of the terminal.
            .process_group(0)
            .spawn()?;
        Ok(Self { socket, child })
    }

    fn answer(&self) -> io::Result<Answer> {
        let mut line = String::new();
        BufReader::new(&self.socket).read_line(&mut line)?;
        if line.is_empty() {
            return Err(io::Error::other("it ended without an answer"));
        }
        Ok(serde_json::from_str(&line)?)
    }

    fn dismiss(mut self) {
        drop(self.socket);
        // Its exit code says nothing that destroying has not said.
        let _ = self.child.wait();
    }
}

/// Makes the command that runs the guardian.
type MakeCommand = Box<dyn Fn(&Path) -> Command>;

/// A kernel whose snapshot is guarded: [`Kernel::create`] starts the guardian,
/// [`Kernel::destroy`] dismisses it. Holds one snapshot at a time.
pub struct Guarded<K> {
    kernel: K,
    command: MakeCommand,
    guardian: RefCell<Option<Guardian>>,
}

impl<K: Kernel> Guarded<K> {
    /// `command` makes the command that runs [`serve`] in a new process with
    /// this storage, and the limit that is wanted.
    pub fn new(kernel: K, command: impl Fn(&Path) -> Command + 'static) -> Self {
        Self {
            kernel,
            command: Box::new(command),
            guardian: RefCell::new(None),
        }
    }
}

impl<K: Kernel> Kernel for Guarded<K> {
    /// With the limit that the command has.
    fn create(&self, store: &Path, _limit: Sectors) -> Result<Uuid> {
        let failed = |error: io::Error| Error::from_io(Operation::Guard, &error);

        let guardian = Guardian::start((self.command)(store)).map_err(failed)?;
        let answer = guardian.answer();
        let id = match answer {
            Ok(Answer::Created { id }) => id.parse().map_err(io::Error::other).map_err(failed),
            Ok(Answer::Refused {
                operation,
                errno,
                reason,
                remedy,
            }) => {
                let error = match errno {
                    Some(raw) => Error::from_errno(operation, Errno::from_raw_os_error(raw)),
                    None => Error::new(operation, reason),
                };
                Err(match remedy {
                    Some(remedy) => error.remedied_by(remedy),
                    None => error,
                })
            }
            Err(error) => Err(failed(error)),
        };
        match id {
            Ok(id) => {
                self.guardian.replace(Some(guardian));
                Ok(id)
            }
            Err(error) => {
                guardian.dismiss();
                Err(match error.operation() {
                    Operation::OpenControl => error.on(Path::new(crate::abi::CONTROL_PATH)),
                    _ => error.on(store),
                })
            }
        }
    }

    fn destroy(&self, id: Uuid) -> Result<()> {
        let result = self.kernel.destroy(id);
        // Even after an error: it tries once more.
        if let Some(guardian) = self.guardian.take() {
            guardian.dismiss();
        }
        result
    }

    fn attach(&self, device: &Path) -> Result<Attachment> {
        self.kernel.attach(device)
    }

    fn detach(&self, device: &Path) -> Result<()> {
        self.kernel.detach(device)
    }

    fn add(&self, id: Uuid, device: &Path) -> Result<()> {
        self.kernel.add(id, device)
    }

    fn take(&self, id: Uuid) -> Result<()> {
        self.kernel.take(id)
    }

    fn snapshot_state(&self, device: &Path) -> Result<SnapshotState> {
        self.kernel.snapshot_state(device)
    }

    fn tracking(&self, device: &Path) -> Result<Tracking> {
        self.kernel.tracking(device)
    }

    fn takes(&self, device: &Path) -> Result<Option<Takes>> {
        self.kernel.takes(device)
    }

    fn read_map(&self, device: &Path, map: &mut [u8]) -> Result<()> {
        self.kernel.read_map(device, map)
    }

    fn image_node(&self, image: &str) -> Option<PathBuf> {
        self.kernel.image_node(image)
    }

    fn mounts_of_image(&self, image: &str) -> Vec<PathBuf> {
        self.kernel.mounts_of_image(image)
    }
}

/// The guardian's whole life, in a process started by [`Guarded`]: creates
/// the snapshot, waits until the holder is gone, and destroys it.
///
/// `start` is called once the snapshot exists, for what is to go on as long as
/// it does; its error undoes the snapshot.
///
/// Standard input is the socket. Returns whether the holder left something
/// behind that was destroyed here.
pub fn serve(
    kernel: &dyn Kernel,
    store: &Path,
    limit: Sectors,
    start: &dyn Fn(Uuid) -> Result<()>,
) -> io::Result<Option<Uuid>> {
    // A service manager signals every process of the service at once, and the
    // holder still needs its time to clean up.
    signals::outlive()?;
    // Best effort: only the holder ends the guardian, not memory pressure and
    // not "killall blksnap".
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let _ = std::fs::write("/proc/self/comm", "blksnap-guard");

    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let created = kernel.create(store, limit).and_then(|id| {
        start(id).inspect_err(|_| {
            // The error that led here is the one to tell.
            let _ = kernel.destroy(id);
        })?;
        Ok(id)
    });
    guard(kernel, created, socket)
}

fn guard(
    kernel: &dyn Kernel,
    created: Result<Uuid>,
    mut socket: UnixStream,
) -> io::Result<Option<Uuid>> {
    let (answer, id) = match created {
        Ok(id) => (Answer::Created { id: id.to_string() }, Some(id)),
        Err(error) => (
            Answer::Refused {
                operation: error.operation(),
                errno: error.errno().map(Errno::raw_os_error),
                reason: error.reason(),
                remedy: error.remedy(),
            },
            None,
        ),
    };
    let told = serde_json::to_string(&answer)
        .map_err(io::Error::from)
        .and_then(|line| writeln!(socket, "{line}"));
    let Some(id) = id else {
        return told.map(|()| None);
    };
    if told.is_ok() {
        // Not to keep a filesystem from being unmounted.
        let _ = std::env::set_current_dir("/");
        // The holder writes nothing, so this is its end.
        let _ = io::copy(&mut socket, &mut io::sink());
    }
    match kernel.destroy(id) {
        Ok(()) => Ok(Some(id)),
        Err(error) if matches!(error.errno(), Some(Errno::NODEV | Errno::SRCH)) => Ok(None),
        Err(error) => Err(io::Error::other(error)),
    }
}
