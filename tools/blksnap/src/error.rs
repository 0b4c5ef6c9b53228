// SPDX-License-Identifier: GPL-2.0-only

//! The error type: what was tried, on what, why it failed, what to do.

use std::fmt;
use std::path::Path;
use std::path::PathBuf;

use rustix::io::Errno;
use serde::ser::SerializeStruct;
use serde::Deserialize;
use serde::Serialize;
use serde::Serializer;

use crate::explain::errno_name;
use crate::explain::explain;
use crate::explain::explain_corruption;
use crate::printable::printable;
use crate::Uuid;

pub type Result<T> = std::result::Result<T, Error>;

/// What was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Understanding the command line.
    Arguments,
    OpenDevice,
    OpenControl,
    Attach,
    Detach,
    CbtInfo,
    CbtTakes,
    CbtMap,
    CbtDirty,
    SnapshotAdd,
    Select,
    SnapshotInfo,
    Version,
    Create,
    Destroy,
    Take,
    Collect,
    WaitEvent,
    CreateEmpty,
    AppendStorage,
    SetLimit,
    SetLowSpace,
    StorageInfo,
    Watch,
    Own,
    Freeze,
    /// Reading what the kernel says about block devices.
    Scan,
    /// Finding the device node of an image.
    FindImage,
    /// Letting the storage of a snapshot grow.
    Grow,
    /// Running COMMAND.
    Run,
    /// Running a hook before or after the take.
    Hook,
    /// Confirming that the images stayed true to the end.
    Verify,
    /// Reading the image of a device into a backup.
    BackUp,
    /// Finding the restore points in a directory.
    OpenBackup,
    /// Reading a file of a backup.
    ReadBackup,
    /// Writing a file of a backup.
    WriteBackup,
    /// Confirming that a backup is what was written.
    CheckBackup,
    /// Removing old restore points.
    Prune,
    /// Writing a restore point to a device or file.
    Restore,
    /// Confirming that a target has what was written to it.
    CheckTarget,
    /// Telling which blocks of a device changed.
    Changed,
    /// Writing man pages.
    Document,
    /// Writing results to standard output.
    Print,
}

/// What an error means for the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The operation failed.
    Failure,
    /// The command was called wrongly.
    Usage,
    /// The images of a snapshot cannot be trusted.
    Corrupted,
    /// A backup is not what was written.
    Damaged,
    /// Writes went past the change tracking.
    Missed,
    /// Something else has the backup locked.
    Locked,
    /// Sectors of a device could not be read, and the restore point has zeroes for them.
    Unreadable,
    /// This code exactly, as shells have it for COMMAND.
    Code(u8),
}

impl Exit {
    /// How shells tell that a signal ended a command.
    pub fn of_signal(signal: i32) -> Self {
        Self::Code(128u8.saturating_add(signal.try_into().unwrap_or(u8::MAX)))
    }

    pub const fn code(self) -> u8 {
        match self {
            Self::Failure => 1,
            Self::Usage => 2,
            Self::Corrupted => 3,
            Self::Damaged => 4,
            Self::Missed => 5,
            Self::Locked => 6,
            Self::Unreadable => 7,
            Self::Code(code) => code,
        }
    }
}

/// Why something could not be done.
///
/// Boxed inside, so that results stay small.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(Box<Inner>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Inner {
    operation: Operation,
    path: Option<PathBuf>,
    snapshot: Option<Uuid>,
    errno: Option<Errno>,
    reason: Option<String>,
    remedy: Option<String>,
    exit: Exit,
}

impl Error {
    /// The kernel refused `operation` with `errno`.
    pub fn from_errno(operation: Operation, errno: Errno) -> Self {
        let mut error = Self::bare(operation);
        error.0.errno = Some(errno);
        error
    }

    /// The image cannot be trusted, as the snapshot has this error.
    pub fn from_corruption(errno: Errno) -> Self {
        let words = explain_corruption(errno);
        let reason = words.reason.unwrap_or_default();
        let mut error = Self::new(
            Operation::Verify,
            format!("{reason} ({})", errno_name(errno)),
        );
        error.0.remedy = words.remedy.map(str::to_owned);
        error
    }

    /// `operation` failed for a reason found without the kernel.
    pub fn new(operation: Operation, reason: impl Into<String>) -> Self {
        let mut error = Self::bare(operation);
        error.0.reason = Some(reason.into());
        error
    }

    /// `operation` failed with an error of the standard library.
    pub fn from_io(operation: Operation, error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(raw) => Self::from_errno(operation, Errno::from_raw_os_error(raw)),
            None => Self::new(operation, error.to_string()),
        }
    }

    fn bare(operation: Operation) -> Self {
        Self(Box::new(Inner {
            operation,
            path: None,
            snapshot: None,
            errno: None,
            reason: None,
            remedy: None,
            exit: match operation {
                Operation::Arguments => Exit::Usage,
                Operation::Verify => Exit::Corrupted,
                Operation::CheckBackup => Exit::Damaged,
                _ => Exit::Failure,
            },
        }))
    }

    /// Names the device, storage or program concerned.
    pub fn on(mut self, path: &Path) -> Self {
        self.0.path = Some(path.to_owned());
        self
    }

    /// Names the snapshot concerned.
    pub fn of(mut self, id: Uuid) -> Self {
        self.0.snapshot = Some(id);
        self
    }

    /// Says why it failed instead of what the table has for the errno.
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.0.reason = Some(reason.into());
        self
    }

    /// Says what to do instead of what the table has for the errno.
    pub fn remedied_by(mut self, remedy: impl Into<String>) -> Self {
        self.0.remedy = Some(remedy.into());
        self
    }

    /// Adds another error, which came of this one or is as bad, to what is to be done.
    pub fn besides(self, other: &Self) -> Self {
        let mut remedy = match self.remedy() {
            Some(remedy) => format!("{remedy}. Besides, {other}"),
            None => format!("besides, {other}"),
        };
        if let Some(more) = other.remedy() {
            remedy = format!("{remedy}: {more}");
        }
        self.remedied_by(remedy)
    }

    pub fn exiting(mut self, exit: Exit) -> Self {
        self.0.exit = exit;
        self
    }

    pub fn operation(&self) -> Operation {
        self.0.operation
    }

    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    pub fn snapshot(&self) -> Option<Uuid> {
        self.0.snapshot
    }

    pub fn errno(&self) -> Option<Errno> {
        self.0.errno
    }

    pub fn exit(&self) -> Exit {
        self.0.exit
    }

    /// One sentence for the user that says what to do, if there is one.
    pub fn remedy(&self) -> Option<String> {
        if let Some(remedy) = &self.0.remedy {
            return Some(printable(remedy).into_owned());
        }
        let remedy = explain(self.0.operation, self.0.errno?).remedy?;
        Some(remedy.to_owned())
    }

    /// Why it failed, without what was tried.
    pub fn reason(&self) -> String {
        if let Some(reason) = &self.0.reason {
            return reason.clone();
        }
        let Some(errno) = self.0.errno else {
            return "failed".to_owned();
        };
        match explain(self.0.operation, errno).reason {
            Some(reason) => format!("{reason} ({})", errno_name(errno)),
            // The standard library's text has the number in it.
            None => std::io::Error::from(errno).to_string(),
        }
    }

    fn attempt(&self) -> String {
        let path = match &self.0.path {
            Some(path) => path.display().to_string(),
            None => "the device".to_owned(),
        };
        let snapshot = match self.0.snapshot {
            Some(id) => format!("snapshot {id}"),
            None => "the snapshot".to_owned(),
        };
        match self.0.operation {
            Operation::Arguments => "understand the arguments".to_owned(),
            Operation::OpenDevice => format!("open {path}"),
            Operation::OpenControl => format!("open the control device {path}"),
            Operation::Attach => format!("attach the filter to {path}"),
            Operation::Detach => format!("detach the filter from {path}"),
            Operation::CbtInfo => format!("read the change tracking of {path}"),
            Operation::CbtTakes => format!("read the ids of the snapshots of {path}"),
            Operation::CbtMap => format!("read the change map of {path}"),
            Operation::CbtDirty => format!("mark ranges of {path} as changed"),
            Operation::SnapshotAdd => format!("add {path} to {snapshot}"),
            Operation::Select => {
                format!("leave what has not changed on {path} out of {snapshot}")
            }
            Operation::SnapshotInfo => format!("read the snapshot state of {path}"),
            Operation::Version => "read the driver's version".to_owned(),
            Operation::Create => format!("create a snapshot with its storage at {path}"),
            Operation::Destroy => format!("destroy {snapshot}"),
            Operation::Take => format!("take {snapshot}"),
            Operation::Collect => "list the snapshots".to_owned(),
            Operation::WaitEvent => format!("wait for an event of {snapshot}"),
            Operation::CreateEmpty => "create a snapshot without storage".to_owned(),
            Operation::AppendStorage => format!("append {path} to the storage of {snapshot}"),
            Operation::SetLimit => format!("change the limit of the storage of {snapshot}"),
            Operation::SetLowSpace => format!("set the low-space threshold of {snapshot}"),
            Operation::StorageInfo => format!("read how full the storage of {snapshot} is"),
            Operation::Watch => format!("watch {snapshot}"),
            Operation::Freeze => format!("have {path} frozen when {snapshot} is taken"),
            Operation::Own => "have snapshots end with this process".to_owned(),
            Operation::Scan => format!("read {path}"),
            Operation::FindImage => match self.0.path {
                Some(_) => format!("find the image of {path}"),
                None => format!("find the images of {snapshot}"),
            },
            Operation::Grow => "let the storage of the snapshot grow".to_owned(),
            Operation::Run | Operation::Hook => format!("run {path}"),
            Operation::Verify => format!("trust the image of {path}"),
            Operation::BackUp => format!("back up {path}"),
            Operation::OpenBackup => format!("use the backup in {path}"),
            Operation::ReadBackup => format!("read {path}"),
            Operation::WriteBackup => format!("write {path}"),
            Operation::CheckBackup => format!("trust {path}"),
            Operation::Prune => format!("prune the backup in {path}"),
            Operation::Restore => format!("restore to {path}"),
            Operation::CheckTarget => format!("confirm what was restored to {path}"),
            Operation::Changed => format!("tell what changed on {path}"),
            Operation::Document => format!("write {path}"),
            Operation::Print => "write to standard output".to_owned(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("cannot {}: {}", self.attempt(), self.reason());
        // Names may have any character.
        f.write_str(&printable(&text))
    }
}

impl std::error::Error for Error {}

impl Serialize for Error {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let path = self.path().map(|path| path.display().to_string());
        let mut fields = serializer.serialize_struct("Error", 8)?;
        fields.serialize_field("message", &self.to_string())?;
        fields.serialize_field("remedy", &self.remedy())?;
        fields.serialize_field("operation", &self.0.operation)?;
        fields.serialize_field("path", &path)?;
        fields.serialize_field("snapshot", &self.0.snapshot)?;
        fields.serialize_field("errno", &self.0.errno.map(Errno::raw_os_error))?;
        fields.serialize_field("errno_name", &self.0.errno.map(errno_name))?;
        fields.serialize_field("exit_code", &self.0.exit.code())?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_where_why_and_what_to_do() {
        let error =
            Error::from_errno(Operation::Attach, Errno::OPNOTSUPP).on(Path::new("/dev/sdz"));
        let text = error.to_string();
        assert!(
            text.starts_with("cannot attach the filter to /dev/sdz: "),
            "{text}"
        );
        assert!(text.contains("zoned"), "{text}");
        assert!(text.ends_with("(EOPNOTSUPP)"), "{text}");
        assert!(error.remedy().is_some());
    }

    #[test]
    fn json_has_everything_apart() {
        let id = Uuid::from_bytes([0x11; 16]);
        let error = Error::from_errno(Operation::SnapshotAdd, Errno::SRCH)
            .on(Path::new("/dev/sda"))
            .of(id);
        let json = serde_json::to_value(&error).unwrap();
        assert_eq!(json["operation"], "snapshot_add");
        assert_eq!(json["path"], "/dev/sda");
        assert_eq!(json["snapshot"], id.to_string());
        assert_eq!(json["errno"], 3);
        assert_eq!(json["errno_name"], "ESRCH");
        assert_eq!(json["exit_code"], 1);
        assert!(json["remedy"].as_str().unwrap().contains("blksnap status"));
        assert!(json["message"].as_str().unwrap().contains("/dev/sda"));
    }

    #[test]
    fn unknown_errno_keeps_its_text() {
        let error = Error::from_errno(Operation::Take, Errno::XFULL);
        assert!(error.to_string().contains("os error 54"), "{error}");
        assert_eq!(error.remedy(), None);
    }

    #[test]
    fn names_cannot_command_a_terminal() {
        let error = Error::new(Operation::BackUp, "no\u{7}")
            .on(Path::new("/dev/\u{1b}]0;x\u{9b}\n"))
            .remedied_by("rm \u{1b}");
        let json = serde_json::to_value(&error).unwrap();
        let message = json["message"].as_str().unwrap();
        for text in [&error.to_string(), &error.remedy().unwrap(), message] {
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
    }

    #[test]
    fn own_remedy_wins() {
        let error = Error::from_errno(Operation::Take, Errno::SRCH).remedied_by("wait");
        assert_eq!(error.remedy().unwrap(), "wait");
    }

    #[test]
    fn exit_codes_are_the_documented_ones() {
        assert_eq!(Error::new(Operation::Take, "x").exit().code(), 1);
        assert_eq!(Error::new(Operation::Arguments, "x").exit().code(), 2);
        assert_eq!(Error::new(Operation::Verify, "x").exit().code(), 3);
        assert_eq!(Error::new(Operation::CheckBackup, "x").exit().code(), 4);
    }
}
