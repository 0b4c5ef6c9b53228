// SPDX-License-Identifier: GPL-2.0-only

//! The directory of a backup, opened once, and what is beneath it.
//!
//! Every name is looked up from the opened directory, never through a link and never out of
//! it, so that an attacker's link cannot make the command read, write or remove other
//! files. Only regular files are opened, and opening a pipe does not block. A directory or
//! file that other users can write is refused: its content could change at any time.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::fstat;
use rustix::fs::fsync;
use rustix::fs::mkdirat;
use rustix::fs::openat;
use rustix::fs::openat2;
use rustix::fs::renameat;
use rustix::fs::statat;
use rustix::fs::unlinkat;
use rustix::fs::AtFlags;
use rustix::fs::Dir;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::ResolveFlags;
use rustix::fs::Stat;
use rustix::fs::CWD;
use rustix::io::Errno;

use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;
use crate::owner;

use super::sums::damaged;

/// Of new files and directories, which only their owner can read.
const FILE: Mode = Mode::from_raw_mode(0o600);
const DIRECTORY: Mode = Mode::from_raw_mode(0o700);

/// How a directory is found.
const PATH: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// A path to a directory of backups.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub path: &'a Path,
    /// Use it even if other users can write to it.
    pub is_trusted: bool,
    /// How long its locks are waited for.
    pub lock_wait: Duration,
}

impl<'a> Place<'a> {
    pub fn new(path: &'a Path, is_trusted: bool) -> Self {
        Self {
            path,
            is_trusted,
            lock_wait: Duration::ZERO,
        }
    }

    /// The same whose locks are waited for.
    pub fn waiting(self, lock_wait: Duration) -> Self {
        Self { lock_wait, ..self }
    }
}

impl<'a> From<&'a Path> for Place<'a> {
    fn from(path: &'a Path) -> Self {
        Self::new(path, false)
    }
}

impl<'a> From<&'a PathBuf> for Place<'a> {
    fn from(path: &'a PathBuf) -> Self {
        Self::new(path, false)
    }
}

/// An opened directory of backups.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
    is_trusted: bool,
    /// Makes what is done to files whose names end in this fail: reading them for
    /// [`Operation::ReadBackup`], removing them for [`Operation::WriteBackup`].
    #[cfg(test)]
    pub fails: std::sync::Mutex<Option<(Operation, String, Errno)>>,
}

/// The directory that a file is in.
enum Parent<'a> {
    Top(BorrowedFd<'a>),
    Below(OwnedFd),
}

impl AsFd for Parent<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Top(fd) => *fd,
            Self::Below(fd) => fd.as_fd(),
        }
    }
}

impl Directory {
    /// Opens a directory. Its own path may have links, as its user named it.
    pub fn open<'a>(place: impl Into<Place<'a>>) -> Result<Self> {
        let Place {
            path, is_trusted, ..
        } = place.into();
        let refused = |errno| Error::from_errno(Operation::OpenBackup, errno).on(path);

        let fd = openat(CWD, path, PATH | OFlags::CLOEXEC, Mode::empty()).map_err(refused)?;
        let directory = Self {
            fd,
            path: path.to_owned(),
            is_trusted,
            #[cfg(test)]
            fails: std::sync::Mutex::new(None),
        };
        let stat = fstat(&directory.fd).map_err(refused)?;
        directory.distrust(&stat, path)?;
        Ok(directory)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file beneath it, for messages.
    pub fn path_of(&self, name: &str) -> PathBuf {
        match name {
            "" => self.path.clone(),
            name => self.path.join(name),
        }
    }

    fn refused(&self, operation: Operation, name: &str) -> impl Fn(Errno) -> Error {
        let path = self.path_of(name);
        move |errno| Error::from_errno(operation, errno).on(&path)
    }

    #[cfg(test)]
    fn fail(&self, operation: Operation, name: &str) -> Result<()> {
        match &*self.fails.lock().unwrap() {
            Some((wanted, end, errno)) if *wanted == operation && name.ends_with(end) => {
                Err(self.refused(operation, name)(*errno))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a file that users other than the caller and root can change.
    fn distrust(&self, stat: &Stat, path: &Path) -> Result<()> {
        if self.is_trusted {
            return Ok(());
        }
        let Some(reason) = owner::distrust(stat.st_uid, stat.st_mode) else {
            return Ok(());
        };
        let directory = self.path.display();
        let remedy = format!(
            "see what is in it, then make it yours alone with \"chown -R $(id -u) {directory}\" \
             and \"chmod -R go-w {directory}\"; or say --trust-directory if only users that you \
             trust have access to it"
        );
        Err(Error::new(Operation::OpenBackup, reason)
            .on(path)
            .remedied_by(remedy))
    }

    /// The directory that a file is in, and what the file is called there.
    fn parent<'n>(&self, operation: Operation, name: &'n str) -> Result<(Parent<'_>, &'n str)> {
        let Some((above, last)) = name.rsplit_once('/') else {
            return Ok((Parent::Top(self.fd.as_fd()), name));
        };
        let refused = self.refused(operation, name);
        let fd = beneath(self.fd.as_fd(), above, PATH, Mode::empty()).map_err(&refused)?;
        self.distrust(&fstat(&fd).map_err(&refused)?, &self.path_of(above))?;
        Ok((Parent::Below(fd), last))
    }

    /// Opens a regular file.
    fn file(&self, operation: Operation, name: &str, flags: OFlags) -> Result<File> {
        let refused = self.refused(operation, name);
        #[cfg(test)]
        self.fail(operation, name)?;
        let (parent, last) = self.parent(operation, name)?;
        let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = match beneath(parent.as_fd(), last, flags, FILE) {
            // It is a socket, or a pipe that is to be written to.
            Err(Errno::NXIO) => return Err(no_file(&self.path_of(name))),
            result => result.map_err(&refused)?,
        };
        let stat = fstat(&fd).map_err(&refused)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(no_file(&self.path_of(name)));
        }
        self.distrust(&stat, &self.path_of(name))?;
        Ok(File::from(fd))
    }

    /// Opens a file to read it.
    pub fn read(&self, operation: Operation, name: &str) -> Result<File> {
        self.file(operation, name, OFlags::RDONLY)
    }

    /// Opens a file that is created if it is not there.
    pub fn open_or_create(&self, operation: Operation, name: &str) -> Result<File> {
        self.file(operation, name, OFlags::RDWR | OFlags::CREATE)
    }

    /// A new file. None of that name is there.
    pub fn create(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        self.file(Operation::WriteBackup, name, flags)
    }

    pub fn create_directory(&self, name: &str) -> Result<()> {
        let (parent, last) = self.parent(Operation::WriteBackup, name)?;
        mkdirat(parent, last, DIRECTORY).map_err(self.refused(Operation::WriteBackup, name))
    }

    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        let (old, from_last) = self.parent(Operation::WriteBackup, from)?;
        let (new, to_last) = self.parent(Operation::WriteBackup, to)?;
        renameat(old, from_last, new, to_last).map_err(self.refused(Operation::WriteBackup, from))
    }

    /// Removes a file, whatever kind it is of. A link goes, not what it leads to.
    pub fn remove_file(&self, name: &str) -> Result<()> {
        self.remove(name, AtFlags::empty())
    }

    /// Removes an empty directory.
    pub fn remove_directory(&self, name: &str) -> Result<()> {
        self.remove(name, AtFlags::REMOVEDIR)
    }

    fn remove(&self, name: &str, flags: AtFlags) -> Result<()> {
        let refused = self.refused(Operation::WriteBackup, name);
        #[cfg(test)]
        self.fail(Operation::WriteBackup, name)?;
        let (parent, last) = self.parent(Operation::WriteBackup, name)?;
        unlinkat(parent, last, flags).map_err(refused)
    }

    /// Fails if nothing is there.
    pub fn look(&self, operation: Operation, name: &str) -> Result<()> {
        let (parent, last) = self.parent(operation, name)?;
        statat(parent, last, AtFlags::SYMLINK_NOFOLLOW)
            .map(drop)
            .map_err(self.refused(operation, name))
    }

    /// Opens a directory to read it; "" is the directory itself.
    fn listed(&self, operation: Operation, name: &str) -> Result<OwnedFd> {
        let refused = self.refused(operation, name);
        let (parent, last) = self.parent(operation, name)?;
        let last = if name.is_empty() { "." } else { last };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = match last {
            // Not beneath itself, for the walk without openat2.
            "." => openat(&parent, last, flags | OFlags::CLOEXEC, Mode::empty()),
            last => beneath(parent.as_fd(), last, flags, Mode::empty()),
        };
        let fd = fd.map_err(&refused)?;
        self.distrust(&fstat(&fd).map_err(&refused)?, &self.path_of(name))?;
        Ok(fd)
    }

    /// Fails if what is in it cannot be known.
    pub fn can_be_listed(&self, operation: Operation) -> Result<()> {
        self.listed(operation, "").map(drop)
    }

    /// The names in a directory that are text.
    pub fn entries(&self, name: &str) -> Result<Vec<String>> {
        let refused = self.refused(Operation::OpenBackup, name);
        let mut names = Vec::new();
        let fd = self.listed(Operation::OpenBackup, name)?;
        for entry in Dir::new(fd).map_err(&refused)? {
            let entry = entry.map_err(&refused)?;
            names.extend(entry.file_name().to_str().ok().map(str::to_owned));
        }
        names.retain(|name| name != "." && name != "..");
        Ok(names)
    }

    /// Makes the names in a directory durable.
    pub fn sync(&self, name: &str) -> Result<()> {
        let fd = self.listed(Operation::WriteBackup, name)?;
        match fsync(fd) {
            // A filesystem that cannot do that has nothing to do.
            Err(Errno::INVAL) => Ok(()),
            result => result.map_err(self.refused(Operation::WriteBackup, name)),
        }
    }
}

fn no_file(path: &Path) -> Error {
    damaged(path, "it is no regular file")
}

/// Opens what is beneath a directory, through no link.
fn beneath(
    directory: BorrowedFd<'_>,
    name: &str,
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    let mode = if flags.contains(OFlags::CREATE) {
        mode
    } else {
        Mode::empty()
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(directory, name, flags, mode, resolve) {
        Err(Errno::NOSYS) => walk(directory, name, flags, mode),
        result => result,
    }
}

/// The same for kernels before 5.6: step by step.
fn walk(
    directory: BorrowedFd<'_>,
    name: &str,
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let mut above: Option<OwnedFd> = None;
    let mut rest = name;
    loop {
        let (part, after) = match rest.split_once('/') {
            Some((part, after)) => (part, Some(after)),
            None => (rest, None),
        };
        if matches!(part, "" | "." | "..") {
            return Err(Errno::XDEV);
        }
        let at = above.as_ref().map_or(directory, AsFd::as_fd);
        let step = match after {
            Some(_) => PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            None => flags | OFlags::NOFOLLOW,
        };
        let opened = openat(at, part, step, mode).map_err(|errno| {
            // Which the kernel says of a link where a directory should be, too.
            let is_link = errno == Errno::NOTDIR
                && statat(at, part, AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|it| FileType::from_raw_mode(it.st_mode) == FileType::Symlink);
            match is_link {
                true => Errno::LOOP,
                false => errno,
            }
        })?;
        match after {
            None => return Ok(opened),
            Some(after) => (above, rest) = (Some(opened), after),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::geteuid;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::fs::PermissionsExt;

    /// A directory with a file and ways out of it.
    fn hostile() -> (tempfile::TempDir, Directory) {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path().join("backup");
        fs::create_dir_all(top.join("000001")).unwrap();
        fs::write(temp.path().join("secret"), "s").unwrap();
        fs::write(top.join("000001/a.sums"), "x").unwrap();
        symlink(temp.path(), top.join("out")).unwrap();
        symlink("../secret", top.join("up.sums")).unwrap();
        symlink("000001", top.join("within")).unwrap();
        symlink("/proc/self/root", top.join("magic")).unwrap();
        rustix::fs::mknodat(CWD, top.join("pipe"), FileType::Fifo, FILE, 0).unwrap();
        let directory = Directory::open(&top).unwrap();
        (temp, directory)
    }

    const OUT: [&str; 6] = [
        "out/secret",
        "up.sums",
        "within/a.sums",
        "magic/etc/passwd",
        "../secret",
        "000001/../../secret",
    ];

    #[test]
    fn no_link_is_followed() {
        let (temp, directory) = hostile();
        let read = |name| directory.read(Operation::ReadBackup, name);
        assert!(read("000001/a.sums").is_ok());
        for name in OUT {
            let errno = read(name).unwrap_err().errno();
            assert!(matches!(errno, Some(Errno::LOOP | Errno::XDEV)), "{name}");
            directory.create(name).unwrap_err();
            directory
                .open_or_create(Operation::OpenBackup, name)
                .unwrap_err();
        }
        for name in ["out/new", "within/new", "magic/tmp/new"] {
            directory.create(name).unwrap_err();
            directory.create_directory(name).unwrap_err();
            directory.rename("000001/a.sums", name).unwrap_err();
        }
        for name in ["out/secret", "within/a.sums", "../secret"] {
            directory.remove_file(name).unwrap_err();
            directory.rename(name, "000001/b.sums").unwrap_err();
        }
        for name in ["out", "within"] {
            directory.entries(name).unwrap_err();
            directory.sync(name).unwrap_err();
        }
        // The link itself goes.
        directory.remove_file("up.sums").unwrap();
        assert_eq!(fs::read(temp.path().join("secret")).unwrap(), b"s");
        assert!(directory.path().join("000001/a.sums").exists());
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 2);
    }

    #[test]
    fn the_walk_of_older_kernels_is_as_strict() {
        let (_temp, directory) = hostile();
        let open = |name| walk(directory.fd.as_fd(), name, OFlags::NOFOLLOW, Mode::empty());
        assert!(open("000001/a.sums").is_ok());
        for name in OUT {
            let errno = open(name).unwrap_err();
            assert!(
                matches!(errno, Errno::LOOP | Errno::XDEV),
                "{name}: {errno}"
            );
        }
        for name in ["", ".", "/etc/passwd", "000001//a.sums", "000001/"] {
            assert_eq!(open(name).unwrap_err(), Errno::XDEV, "{name}");
        }
        assert_eq!(open("000001/b").unwrap_err(), Errno::NOENT);
        assert_eq!(open("pipe/b").unwrap_err(), Errno::NOTDIR);
    }

    #[test]
    fn only_files_are_opened_and_no_pipe_is_waited_for() {
        let (_temp, directory) = hostile();
        std::os::unix::net::UnixListener::bind(directory.path().join("socket")).unwrap();
        for name in ["pipe", "socket", "000001"] {
            let error = directory.read(Operation::ReadBackup, name).unwrap_err();
            assert!(error.to_string().contains("no regular file"), "{error}");
            let error = directory.open_or_create(Operation::OpenBackup, name);
            assert!(error.is_err(), "{name}");
        }
    }

    #[test]
    fn what_others_can_write_is_refused() {
        let (_temp, directory) = hostile();
        let top = directory.path().to_owned();
        let open = |is_trusted| {
            let directory = Directory::open(Place::new(&top, is_trusted))?;
            directory.entries("000001")?;
            directory
                .read(Operation::ReadBackup, "000001/a.sums")
                .map(drop)
        };
        open(false).unwrap();
        for name in ["", "000001", "000001/a.sums"] {
            let path = directory.path_of(name);
            let before = fs::metadata(&path).unwrap().permissions();
            for mode in [0o777, 0o1777, 0o770, 0o702] {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                let error = open(false).unwrap_err();
                assert!(error.to_string().contains("others can write"), "{error}");
                assert_eq!((error.path(), error.exit().code()), (Some(&*path), 1));
                let remedy = error.remedy().unwrap();
                assert!(remedy.contains("go-w") && remedy.contains("--trust-directory"));
                open(true).unwrap();
            }
            fs::set_permissions(&path, before).unwrap();
            if geteuid().is_root() {
                std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
                let error = open(false).unwrap_err();
                assert!(error.to_string().contains("another user"), "{error}");
                open(true).unwrap();
                std::os::unix::fs::chown(&path, Some(0), None).unwrap();
            }
        }
        open(false).unwrap();
    }
}
