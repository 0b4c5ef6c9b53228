// SPDX-License-Identifier: GPL-2.0-only

//! The directory of a backup, and how it changes from one state to the next.
//!
//! New files have names that end in ".partial". When they are on the medium,
//! the manifest is replaced; from then on they count, whatever happens. Only
//! then they get their names, and what is not needed any more is removed: the
//! manifest lists what is to be done, and the next one to change something
//! does what was left.

use std::fs;
use std::fs::DirBuilder;
use std::fs::File;
use std::io;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;

use rustix::fs::flock;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;

use super::manifest;
use super::manifest::Manifest;
use super::manifest::Todo;
use super::sums::damaged;

/// The manifest's file.
pub const MANIFEST: &str = "blksnap.json";
const LOCK: &str = "blksnap.lock";
/// Ends the names of what is not finished.
const PARTIAL: &str = ".partial";

/// How long a lock is waited for.
const PATIENCE: Duration = Duration::from_millis(200);

/// A directory of backups that nobody else changes meanwhile.
pub struct Store {
    directory: PathBuf,
    manifest: Manifest,
    _lock: Option<File>,
    /// Called whenever something may just have reached the medium.
    #[cfg(test)]
    pub(super) at_step: Option<Box<dyn Fn()>>,
}

impl Store {
    /// Looks at what a directory has. Files may be removed meanwhile.
    pub fn look(directory: &Path) -> Result<Self> {
        let refused = |error| Error::from_io(Operation::OpenBackup, &error).on(directory);

        fs::metadata(directory.join(MANIFEST)).map_err(refused)?;
        Self::locked(directory, None, FlockOperation::NonBlockingLockShared)
    }

    /// Opens a directory to read from it, together with others.
    pub fn open(directory: &Path) -> Result<Self> {
        let refused = |error| Error::from_io(Operation::OpenBackup, &error).on(directory);

        fs::metadata(directory.join(MANIFEST)).map_err(refused)?;
        let lock = match File::open(directory.join(LOCK)) {
            Ok(file) => Some(file),
            // A copy need not have it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(refused(error)),
        };
        Self::locked(directory, lock, FlockOperation::NonBlockingLockShared)
    }

    /// Opens a directory to change it, which may have to be created first, and
    /// finishes or undoes what an interrupted run has left.
    pub fn open_to_change(directory: &Path, create: bool) -> Result<Self> {
        let refused = |error| Error::from_io(Operation::OpenBackup, &error).on(directory);

        if create {
            match DirBuilder::new().mode(0o700).create(directory) {
                Ok(()) => sync_directory(parent(directory))?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
                Err(error) => {
                    return Err(Error::from_io(Operation::WriteBackup, &error).on(directory));
                }
            }
        } else {
            fs::metadata(directory.join(MANIFEST)).map_err(refused)?;
        }
        let lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(directory.join(LOCK))
            .map_err(refused)?;
        let mut store = Self::locked(
            directory,
            Some(lock),
            FlockOperation::NonBlockingLockExclusive,
        )?;
        store.finish()?;
        store.remove_partial()?;
        Ok(store)
    }

    fn locked(directory: &Path, lock: Option<File>, operation: FlockOperation) -> Result<Self> {
        if let Some(lock) = &lock {
            let start = Instant::now();
            while let Err(errno) = flock(lock, operation) {
                // A process that is just being started has all files of its parent.
                if errno != Errno::AGAIN || start.elapsed() > PATIENCE {
                    return Err(Error::from_errno(Operation::OpenBackup, errno).on(directory));
                }
                sleep(PATIENCE / 20);
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
            manifest: load(directory)?,
            _lock: lock,
            #[cfg(test)]
            at_step: None,
        })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where the qcow2 file of an image is.
    pub fn qcow2(&self, image: &str) -> PathBuf {
        self.path(&format!("{image}.qcow2"))
    }

    /// Where the digests of an image are.
    pub fn sums(&self, image: &str) -> PathBuf {
        self.path(&format!("{image}.sums"))
    }

    /// Where a file is that may still have to be renamed.
    fn path(&self, file: &str) -> PathBuf {
        for (from, to) in &self.manifest.todo.rename {
            let rest = file.strip_prefix(to.as_str());
            if let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with('/')) {
                let path = self.directory.join(format!("{from}{rest}"));
                if path.exists() {
                    return path;
                }
            }
        }
        self.directory.join(file)
    }

    /// The number that the next restore point has.
    pub fn next_number(&self) -> Result<u64> {
        // A directory that is in the way is none of ours to know of.
        let highest = self
            .entries(&self.directory)?
            .iter()
            .map(|name| name.strip_suffix(PARTIAL).unwrap_or(name))
            .filter(|name| manifest::is_directory(name))
            .filter_map(|name| name.parse().ok())
            .max()
            .unwrap_or(0u64);
        Ok(self.manifest.next.max(highest.saturating_add(1)))
    }

    /// Creates the directory for a new restore point.
    pub fn create_partial(&self, number: u64) -> Result<PathBuf> {
        let path = self.directory.join(partial(&manifest::directory(number)));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| Error::from_io(Operation::WriteBackup, &error).on(&path))?;
        self.step();
        Ok(path)
    }

    /// Replaces the manifest, and does what that implies. All new files are on
    /// the medium already, but not their names.
    ///
    /// After an error it may be replaced or not, as the manifest here says.
    pub fn publish(&mut self, manifest: Manifest) -> Result<()> {
        for (from, _) in &manifest.todo.rename {
            let path = self.directory.join(from);
            let directory = if path.is_dir() {
                path.as_path()
            } else {
                path.parent().unwrap_or(&self.directory)
            };
            sync_directory(directory)?;
        }
        sync_directory(&self.directory)?;
        self.step();
        self.replace(manifest)?;
        self.finish()
    }

    fn replace(&mut self, manifest: Manifest) -> Result<()> {
        let path = self.directory.join(MANIFEST);
        let new = self.directory.join(partial(MANIFEST));
        let refused = |error| Error::from_io(Operation::WriteBackup, &error).on(&path);
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .map_err(refused)?;
        file.write_all(manifest.to_json().as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(refused)?;
        self.step();
        fs::rename(&new, &path).map_err(refused)?;
        self.manifest = manifest;
        self.step();
        sync_directory(&self.directory)
    }

    /// Does what the manifest says is to be done.
    fn finish(&mut self) -> Result<()> {
        if self.manifest.todo.is_empty() {
            return Ok(());
        }
        let Todo { rename, remove } = self.manifest.todo.clone();
        for (from, to) in rename {
            let (from, to) = (self.directory.join(from), self.directory.join(to));
            unless_missing(fs::rename(&from, &to), &from)?;
            self.step();
            sync_directory(parent(&to))?;
        }
        for file in remove {
            let path = self.directory.join(file);
            unless_missing(fs::remove_file(&path), &path)?;
            self.step();
            if let Some(directory) = path.parent().filter(|path| *path != self.directory) {
                // Only the last one finds it empty.
                let _ = fs::remove_dir(directory);
                self.step();
            }
        }
        let mut done = self.manifest.clone();
        done.todo = Todo::default();
        self.replace(done)
    }

    /// Removes what an interrupted run has left, which no manifest names.
    pub fn remove_partial(&self) -> Result<()> {
        for name in self.entries(&self.directory)? {
            let path = self.directory.join(&name);
            let finished = name.strip_suffix(PARTIAL);
            if finished == Some(MANIFEST) {
                unless_missing(fs::remove_file(&path), &path)?;
            } else if finished.is_some_and(manifest::is_directory) {
                self.remove_files(&path, is_image_file)?;
                // There is something else in it: that stays.
                let _ = fs::remove_dir(&path);
            } else if manifest::is_directory(&name) {
                self.remove_files(&path, |file| {
                    file.strip_suffix(PARTIAL).is_some_and(is_image_file)
                })?;
            }
        }
        Ok(())
    }

    fn remove_files(&self, directory: &Path, is_ours: impl Fn(&str) -> bool) -> Result<()> {
        for name in self.entries(directory)?.iter().filter(|name| is_ours(name)) {
            let path = directory.join(name);
            unless_missing(fs::remove_file(&path), &path)?;
            self.step();
        }
        Ok(())
    }

    /// The names in a directory that are text.
    fn entries(&self, directory: &Path) -> Result<Vec<String>> {
        let refused = |error| Error::from_io(Operation::OpenBackup, &error).on(directory);
        let mut names = Vec::new();
        for entry in fs::read_dir(directory).map_err(refused)? {
            names.extend(entry.map_err(refused)?.file_name().into_string());
        }
        Ok(names)
    }

    fn step(&self) {
        #[cfg(test)]
        if let Some(at_step) = &self.at_step {
            at_step();
        }
    }
}

/// What a file or directory is called before it is finished.
pub fn partial(name: &str) -> String {
    format!("{name}{PARTIAL}")
}

fn is_image_file(name: &str) -> bool {
    name.ends_with(".qcow2") || name.ends_with(".sums")
}

fn load(directory: &Path) -> Result<Manifest> {
    let path = directory.join(MANIFEST);
    match fs::read_to_string(&path) {
        Ok(text) => Manifest::from_json(&text).map_err(|reason| {
            damaged(directory, reason).remedied_by(
                "the images can still be opened, with qemu-nbd for example; for new backups \
                 name another directory",
            )
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Manifest::default()),
        Err(error) => Err(Error::from_io(Operation::OpenBackup, &error).on(directory)),
    }
}

fn unless_missing(result: io::Result<()>, path: &Path) -> Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::from_io(Operation::WriteBackup, &error).on(path))
        }
        _ => Ok(()),
    }
}

/// A new file that only its owner can read.
pub fn create_file(path: &Path) -> Result<File> {
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| Error::from_io(Operation::WriteBackup, &error).on(path))
}

/// The directory that a path is in.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Makes the names in a directory durable.
pub fn sync_directory(path: &Path) -> Result<()> {
    let sync = || match File::open(path)?.sync_all() {
        // A filesystem that cannot do that has nothing to do.
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(()),
        result => result,
    };
    sync().map_err(|error| Error::from_io(Operation::WriteBackup, &error).on(path))
}

/// The bytes of a file.
pub fn length(file: &File, path: &Path) -> Result<u64> {
    let metadata = file
        .metadata()
        .map_err(|error| Error::from_io(Operation::ReadBackup, &error).on(path))?;
    Ok(metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, PathBuf) {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("backup");
        (temp, path)
    }

    fn is_there(directory: &Path, names: &[&str]) -> bool {
        names.iter().all(|name| directory.join(name).exists())
    }

    #[test]
    fn a_backup_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let (_temp, path) = store();
        let mut store = Store::open_to_change(&path, true).unwrap();
        store.publish(Manifest::default()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join(MANIFEST)), 0o600);
    }

    #[test]
    fn two_runs_do_not_meet() {
        let (_temp, path) = store();
        let error = Store::open(&path).err().unwrap();
        assert_eq!(error.errno(), Some(Errno::NOENT));
        let mut writer = Store::open_to_change(&path, true).unwrap();
        writer.publish(Manifest::default()).unwrap();
        for error in [Store::open(&path), Store::open_to_change(&path, true)].map(Result::err) {
            assert_eq!(error.unwrap().errno(), Some(Errno::AGAIN));
        }
        drop(writer);
        let _reader = Store::open(&path).unwrap();
        Store::open(&path).unwrap();
        assert!(Store::open_to_change(&path, true).is_err());
    }

    #[test]
    fn leftovers_are_removed_and_nothing_else() {
        let (_temp, path) = store();
        drop(Store::open_to_change(&path, true).unwrap());
        let ours = [
            "blksnap.json.partial",
            "000007.partial/sda.qcow2",
            "000007.partial/sda.sums",
            "000003/sda.qcow2.partial",
            "000003/sda.sums.partial",
            "000008.partial/sdb.sums",
        ];
        let others = [
            "000003/sda.qcow2",
            "000008.partial/notes.txt",
            "photos.partial/sda.qcow2",
            "000003.txt",
            "sda.qcow2.partial",
        ];
        for name in ours.iter().chain(&others) {
            let file = path.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "x").unwrap();
        }
        let store = Store::open_to_change(&path, true).unwrap();
        assert!(is_there(&path, &others));
        for name in ours {
            assert!(!path.join(name).exists(), "{name}");
        }
        assert!(!path.join("000007.partial").exists());
        // What lies there is not overwritten.
        assert_eq!(store.next_number().unwrap(), 9);
    }

    #[test]
    fn what_is_to_be_done_is_done_by_the_next() {
        let (_temp, path) = store();
        let mut store = Store::open_to_change(&path, true).unwrap();
        for file in ["000001/sda.qcow2", "000002.partial/sda.qcow2"] {
            fs::create_dir_all(path.join(file).parent().unwrap()).unwrap();
            fs::write(path.join(file), file).unwrap();
        }
        let manifest = Manifest {
            todo: Todo {
                rename: vec![("000002.partial".to_owned(), "000002".to_owned())],
                remove: vec!["000001/sda.qcow2".to_owned()],
            },
            ..Manifest::default()
        };
        store.replace(manifest).unwrap();
        drop(store);

        let reader = Store::open(&path).unwrap();
        let file = reader.qcow2("000002/sda");
        assert_eq!(file, path.join("000002.partial/sda.qcow2"));
        assert!(is_there(&path, &["000001/sda.qcow2"]));
        drop(reader);

        let writer = Store::open_to_change(&path, false).unwrap();
        assert_eq!(writer.qcow2("000002/sda"), path.join("000002/sda.qcow2"));
        assert!(is_there(&path, &["000002/sda.qcow2"]));
        assert!(!path.join("000001").exists());
        assert!(writer.manifest().todo.is_empty());
    }

    #[test]
    fn a_manifest_that_is_damaged_is_not_replaced() {
        let (_temp, path) = store();
        drop(Store::open_to_change(&path, true).unwrap());
        fs::write(path.join(MANIFEST), "{}").unwrap();
        let error = Store::open_to_change(&path, true).err().unwrap();
        assert_eq!(error.exit().code(), 4);
        assert_eq!(fs::read_to_string(path.join(MANIFEST)).unwrap(), "{}");
    }
}
