// SPDX-License-Identifier: GPL-2.0-only

//! The directory of a backup, and how it changes from one state to the next.
//!
//! New files have names that end in ".partial". When they are on the medium,
//! the manifest is replaced; from then on they count, whatever happens. Only
//! then they get their names, and what is not needed any more is removed: the
//! manifest lists what is to be done, and the next one to change something
//! does what was left. Restore points that are forgotten are marked before, see
//! [`super::forgotten`].
//!
//! A reader goes by the manifest that it found. What is published meanwhile only adds files, as
//! a backup does; what takes files away waits until no reader is left (see [`super::lock`]).

use std::collections::HashSet;
use std::fs::DirBuilder;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;
use crate::size::Bytes;

use super::directory::Directory;
use super::directory::Place;
use super::forgotten;
use super::image;
use super::lock;
use super::lock::Lock;
use super::lock::Wait;
use super::manifest;
use super::manifest::Manifest;
use super::manifest::Part;
use super::manifest::Todo;
use super::member::Member;
use super::names;
use super::names::LOCK;
use super::names::MANIFEST;
use super::names::WRITER;
use super::sums::damaged;
use super::Progress;
use super::Watch;

/// Locked as a whole by one, or by several.
const EXCLUSIVE: FlockOperation = FlockOperation::NonBlockingLockExclusive;
const SHARED: FlockOperation = FlockOperation::NonBlockingLockShared;

/// How many files that cannot be removed are tried again, so that the list of them does not
/// grow without end.
const LEFT: usize = 1024;

/// A directory of backups, of which no files go away meanwhile.
pub struct Store {
    directory: Arc<Directory>,
    manifest: Manifest,
    /// Files that could not be removed, and are not needed.
    left: Vec<Error>,
    /// How long locks are waited for.
    lock_wait: Duration,
    /// Keeps the files; none if the directory cannot be locked.
    files: Option<Lock>,
    /// That of a writer; dropped last.
    _writer: Option<Lock>,
    /// Called whenever something may just have reached the medium.
    #[cfg(test)]
    pub(super) at_step: Option<Box<dyn Fn()>>,
}

impl Store {
    /// Looks at what a directory has. Files may be removed meanwhile.
    pub fn look<'a>(place: impl Into<Place<'a>>) -> Result<Self> {
        let directory = Directory::open(place)?;
        has_manifest(&directory)?;
        Self::load(directory, Duration::ZERO, None, None)
    }

    /// Opens a directory to read from it, together with others and while a backup is made.
    pub fn open<'a>(place: impl Into<Place<'a>>) -> Result<Self> {
        Self::open_watched(place, &mut Unwatched)
    }

    /// The same if the lock may have to be waited for.
    pub fn open_watched<'a>(place: impl Into<Place<'a>>, watch: &mut dyn Watch) -> Result<Self> {
        let place = place.into();
        let limit = place.lock_wait;
        let directory = Directory::open(place)?;
        has_manifest(&directory)?;
        let file = match directory.read(Operation::OpenBackup, LOCK) {
            Ok(file) => file,
            // A copy need not have it.
            Err(error) if error.errno() == Some(Errno::NOENT) => {
                return Self::load(directory, limit, None, None);
            }
            Err(error) => return Err(error),
        };
        let holders = |file: &File| lock::writers(file, note(&directory).as_ref());
        let wait = Wait {
            limit,
            watch: &mut *watch,
        };
        let files = match Lock::take(file, SHARED, place.path, wait, &holders) {
            Ok(lock) => Some(lock),
            Err(error) if error.errno().is_some_and(lock::is_without_locks) => {
                watch.warn(&format!(
                    "{}: its filesystem keeps no locks now, so that a \"blksnap prune\" would not \
                     be kept from removing files that are being read",
                    place.path.display()
                ));
                None
            }
            Err(error) => return Err(error),
        };
        Self::load(directory, limit, files, None)
    }

    /// Opens a directory to change it, which may have to be created first, and
    /// finishes or undoes what an interrupted run has left.
    pub fn open_to_change<'a>(place: impl Into<Place<'a>>, create: bool) -> Result<Self> {
        Self::open_to_change_watched(place, create, &mut Unwatched)
    }

    /// The same if the locks may have to be waited for.
    pub fn open_to_change_watched<'a>(
        place: impl Into<Place<'a>>,
        create: bool,
        watch: &mut dyn Watch,
    ) -> Result<Self> {
        let place = place.into();
        let limit = place.lock_wait;
        if create {
            match DirBuilder::new().mode(0o700).create(place.path) {
                Ok(()) => sync_directory(parent(place.path))?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
                Err(error) => {
                    return Err(Error::from_io(Operation::WriteBackup, &error).on(place.path));
                }
            }
        }
        let directory = Directory::open(place)?;
        if !create {
            has_manifest(&directory)?;
        }
        let (writer, files) = lock_to_change(&directory, place, watch)?;
        let mut store = Self::load(directory, limit, Some(files), Some(writer))?;
        if store.manifest.todo.replaces_files() {
            store.exclude_readers(watch)?;
            store.finish()?;
            store.admit_readers()?;
        } else {
            store.finish()?;
        }
        store.remove_partial()?;
        Ok(store)
    }

    /// Opens a directory whose manifest may be lost, and leaves all as it is. Nothing else can
    /// read or change it meanwhile. The error says how the manifest is lost; the one here is
    /// empty then.
    pub fn open_to_rebuild(
        place: Place<'_>,
        watch: &mut dyn Watch,
    ) -> Result<(Self, Option<Error>)> {
        let directory = Directory::open(place)?;
        if !has_points(&directory)? {
            has_manifest(&directory)?;
        }
        let (writer, files) = lock_to_change(&directory, place, watch)?;
        let (manifest, lost) = match load(&directory) {
            Ok(manifest) => (manifest, None),
            Err(error) if image::means_damage(&error) => (Manifest::default(), Some(error)),
            Err(error) => return Err(error),
        };
        let limit = place.lock_wait;
        let store = Self::new(directory, manifest, limit, Some(files), Some(writer));
        store.exclude_readers(watch)?;
        Ok((store, lost))
    }

    /// Takes the place of the manifest that was lost, which is kept under another name as far
    /// as it is there.
    pub(super) fn publish_rebuilt(&mut self, manifest: Manifest) -> Result<()> {
        unless_missing(self.directory.rename(MANIFEST, names::OLD_MANIFEST))?;
        self.publish(manifest)
    }

    pub(super) fn opened_directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// Writes a restore point's part of the manifest to a file that is not there yet.
    pub(super) fn write_part(&self, name: &str, part: &Part) -> Result<()> {
        let text = part.to_json();
        if text.len() as u64 > manifest::MAX_PART_BYTES {
            let reason = format!(
                "what is to be noted of the restore point takes {}, and there is no more than {}",
                Bytes(text.len() as u64),
                Bytes(manifest::MAX_PART_BYTES)
            );
            return Err(Error::new(Operation::WriteBackup, reason)
                .on(&self.directory.path_of(name))
                .remedied_by("back up fewer devices at once"));
        }
        let (mut file, path) = self.create(name)?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(|error| Error::from_io(Operation::WriteBackup, &error).on(&path))
    }

    /// Writes a restore point's part of the manifest beside the one that is there; returns what
    /// is to be renamed so that it takes its place.
    pub(super) fn renew_part(&self, number: u64, part: &Part) -> Result<(String, String)> {
        let name = names::part(number);
        if self.directory.entries(&name).is_ok() {
            // Once the manifest says that the file is renamed, it would have to be.
            let reason = "it is a directory, and a file of the backup belongs there";
            return Err(Error::new(Operation::WriteBackup, reason)
                .on(&self.directory.path_of(&name))
                .remedied_by("see what is in it, and move it out of the backup"));
        }
        let new = names::partial(&name);
        unless_missing(self.directory.remove_file(&new))?;
        self.write_part(&new, part)?;
        Ok((new, name))
    }

    /// Writes those parts that restore points of older backups do not have, without which what
    /// is based on their images could not be had again either; returns what is to be renamed.
    /// `manifest` is the next one.
    pub(super) fn write_missing_parts(
        &self,
        manifest: &mut Manifest,
        watch: &mut dyn Watch,
    ) -> Vec<(String, String)> {
        let mut rename = Vec::new();
        let missing = std::mem::take(&mut manifest.without_part);
        for number in missing.intersection(&self.manifest.numbers()).copied() {
            let look = self
                .directory
                .look(Operation::OpenBackup, &names::part(number));
            let is_missing = look.is_err_and(|error| error.errno() == Some(Errno::NOENT));
            if !is_missing {
                continue;
            }
            match self.renew_part(number, &self.manifest.part(number)) {
                Ok(names) => rename.push(names),
                Err(error) => {
                    manifest.without_part.insert(number);
                    watch.warn(&format!("{error}. The backup goes on without it"));
                }
            }
        }
        rename
    }

    /// Reads a restore point's part of the manifest; none if it is not there. An error of
    /// [`Operation::CheckBackup`] if it is damaged.
    pub(super) fn read_part(&self, name: &str) -> Result<Option<Part>> {
        let file = match self.directory.read(Operation::OpenBackup, name) {
            Err(error) if error.errno() == Some(Errno::NOENT) => return Ok(None),
            result => result?,
        };
        let path = self.directory.path_of(name);
        let text = read_text(file, &path, "it", manifest::MAX_PART_BYTES)?;
        let refused = |reason: String| damaged(&path, reason);
        Part::from_json(&text).map(Some).map_err(refused)
    }

    fn load(
        directory: Directory,
        lock_wait: Duration,
        files: Option<Lock>,
        writer: Option<Lock>,
    ) -> Result<Self> {
        let manifest = load(&directory)?;
        Ok(Self::new(directory, manifest, lock_wait, files, writer))
    }

    fn new(
        directory: Directory,
        manifest: Manifest,
        lock_wait: Duration,
        files: Option<Lock>,
        writer: Option<Lock>,
    ) -> Self {
        Self {
            manifest,
            directory: Arc::new(directory),
            left: Vec::new(),
            lock_wait,
            files,
            _writer: writer,
            #[cfg(test)]
            at_step: None,
        }
    }

    /// Waits until nothing reads the files that there are, and lets nothing begin to. For a
    /// writer that is going to remove or replace some.
    pub fn exclude_readers(&self, watch: &mut dyn Watch) -> Result<()> {
        let limit = self.lock_wait;
        let wait = Wait { limit, watch };
        self.lock_files(EXCLUSIVE, wait, &lock::readers)
    }

    /// Undoes that.
    pub fn admit_readers(&self) -> Result<()> {
        let wait = Wait {
            limit: self.lock_wait,
            watch: &mut Unwatched,
        };
        self.lock_files(SHARED, wait, &|file| lock::writers(file, None))
    }

    fn lock_files(
        &self,
        operation: FlockOperation,
        wait: Wait<'_>,
        holders: &dyn Fn(&File) -> String,
    ) -> Result<()> {
        match &self.files {
            Some(files) => files.change(operation, self.directory(), wait, holders),
            None => Ok(()),
        }
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Makes what is done to files whose names end in `end` fail, see [`Directory`].
    #[cfg(test)]
    pub(super) fn fail(&self, operation: Operation, end: &str, errno: Errno) {
        *self.directory.fails.lock().unwrap() = Some((operation, end.to_owned(), errno));
    }

    /// Where the qcow2 file of an image is.
    pub fn qcow2(&self, image: &str) -> PathBuf {
        self.qcow2_file(image).path().to_owned()
    }

    /// Where the digests of an image are.
    pub fn sums(&self, image: &str) -> PathBuf {
        self.sums_file(image).path().to_owned()
    }

    pub(super) fn qcow2_file(&self, image: &str) -> Member {
        self.file(&format!("{image}.qcow2"))
    }

    pub(super) fn sums_file(&self, image: &str) -> Member {
        self.file(&format!("{image}.sums"))
    }

    /// A file that may still have to be renamed, here or by a writer.
    fn file(&self, file: &str) -> Member {
        for (from, to) in &self.manifest.todo.rename {
            let rest = file.strip_prefix(to.as_str());
            if let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with('/')) {
                let name = format!("{from}{rest}");
                if self.directory.look(Operation::ReadBackup, &name).is_ok() {
                    return Member::renamed(&self.directory, &name, file);
                }
            }
        }
        Member::new(&self.directory, file)
    }

    /// Tells which files could not be removed.
    pub fn warn(&self, watch: &mut dyn Watch) {
        for error in &self.left {
            let mut text = format!("{error}. It is not needed any more");
            if self.manifest.todo.remove.len() >= LEFT {
                text += "; there are too many of them for all to be tried again";
            } else {
                text += ", and the next backup or prune tries again";
            }
            watch.warn(&text);
        }
    }

    /// The number that the next restore point has.
    pub fn next_number(&self) -> Result<u64> {
        // A directory that is in the way is none of ours to know of.
        let highest = self
            .directory
            .entries("")?
            .iter()
            .map(|name| names::finished(name).unwrap_or(name))
            .filter_map(names::number)
            .max()
            .unwrap_or(0);
        let next = self.manifest.next.max(highest + 1);
        if next > names::LAST {
            return Err(
                Error::new(Operation::WriteBackup, "there are no numbers left in it")
                    .on(self.directory())
                    .remedied_by("make the backup in a new directory"),
            );
        }
        Ok(next)
    }

    /// Creates the directory for a new restore point; returns its name.
    pub fn create_partial(&self, number: u64) -> Result<String> {
        let name = names::partial(&names::directory(number));
        self.directory.create_directory(&name)?;
        self.step();
        Ok(name)
    }

    /// A new file, and its path for messages.
    pub(super) fn create(&self, name: &str) -> Result<(File, PathBuf)> {
        Ok((self.directory.create(name)?, self.directory.path_of(name)))
    }

    /// Removes a file of a restore point that is not finished, if it was created.
    pub(super) fn discard(&self, name: &str) -> Result<()> {
        unless_missing(self.directory.remove_file(name))
    }

    /// Replaces the manifest, and does what that implies. All new files are on
    /// the medium already, but not their names.
    ///
    /// After an error it may be replaced or not, as the manifest here says.
    pub fn publish(&mut self, mut manifest: Manifest) -> Result<()> {
        for (from, _) in &manifest.todo.rename {
            match self.directory.sync(from) {
                Err(error) if error.errno() == Some(Errno::NOTDIR) => {
                    self.directory.sync(parent_name(from))?;
                }
                result => result?,
            }
        }
        self.directory.sync("")?;
        self.step();
        // What could not be removed is not forgotten.
        let before = self.manifest.todo.remove.iter().cloned();
        manifest.todo.remove.splice(0..0, before);
        self.replace(manifest)?;
        self.finish()
    }

    fn replace(&mut self, manifest: Manifest) -> Result<()> {
        let new = names::partial(MANIFEST);
        forgotten::unmark(&self.directory)?;
        // It is always a new file, never a link's target.
        unless_missing(self.directory.remove_file(&new))?;
        let mut file = self.directory.create(&new)?;
        let text = manifest.to_json();
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(|error| {
                let path = self.directory.path_of(MANIFEST);
                Error::from_io(Operation::WriteBackup, &error).on(&path)
            })?;
        self.step();
        let stay: HashSet<u64> = manifest.points.iter().map(|it| it.number).collect();
        let points = self.manifest.points.iter().map(|point| point.number);
        let gone: Vec<u64> = points.filter(|number| !stay.contains(number)).collect();
        if !gone.is_empty() {
            // Before the first mark, whatever the filesystem does with the order.
            self.directory.sync("")?;
        }
        for number in gone {
            forgotten::mark(&self.directory, number, &text)?;
            self.step();
        }
        self.directory.rename(&new, MANIFEST)?;
        self.manifest = manifest;
        self.step();
        self.directory.sync("")
    }

    /// Does what the manifest says is to be done. What cannot be removed stays on the list.
    fn finish(&mut self) -> Result<()> {
        if self.manifest.todo.is_empty() {
            return Ok(());
        }
        let Todo { rename, remove } = self.manifest.todo.clone();
        for (from, to) in rename {
            unless_missing(self.directory.rename(&from, &to))?;
            self.step();
            self.unmark(&to)?;
            self.directory.sync(parent_name(&to))?;
        }
        let mut left = Vec::new();
        for file in remove {
            if !self.remove(&file)? {
                left.push(file);
                continue;
            }
            self.step();
            self.unmark(&file)?;
            // Only the last one finds it empty.
            let _ = self.directory.remove_directory(parent_name(&file));
            self.step();
        }
        // The newest ones, of which the reason is most likely to pass.
        left.drain(..left.len().saturating_sub(LEFT));
        let todo = Todo {
            rename: Vec::new(),
            remove: left,
        };
        if todo == self.manifest.todo {
            return Ok(());
        }
        self.replace(Manifest {
            todo,
            ..self.manifest.clone()
        })
    }

    /// Removes the mark of a restore point that is forgotten once its part of the manifest
    /// does not have it any more.
    fn unmark(&mut self, part: &str) -> Result<()> {
        let Some(number) = names::number_of_part(part) else {
            return Ok(());
        };
        if self.manifest.point(number).is_none() {
            // The part has to be gone before.
            unless_missing(self.directory.sync(parent_name(part)))?;
            self.remove(&names::forgotten(number))?;
        }
        Ok(())
    }

    /// Removes a file that is not needed. Whether it is gone; an error if that says
    /// that nothing can be changed here now.
    fn remove(&mut self, name: &str) -> Result<bool> {
        match unless_missing(self.directory.remove_file(name)) {
            Err(error) if concerns_one_file(&error) => {
                if !self.left.iter().any(|it| it.path() == error.path()) {
                    self.left.push(error);
                }
                Ok(false)
            }
            result => result.map(|()| true),
        }
    }

    /// Removes what an interrupted run has left, which no manifest names.
    pub fn remove_partial(&mut self) -> Result<()> {
        forgotten::unmark(&self.directory)?;
        for name in self.directory.entries("")? {
            let finished = names::finished(&name);
            if finished == Some(MANIFEST) {
                self.remove(&name)?;
            } else if finished.and_then(names::number).is_some() {
                self.remove_files(&name, names::is_file_of_point)?;
                // There is something else in it: that stays.
                let _ = self.directory.remove_directory(&name);
            } else if names::number(&name).is_some() {
                self.remove_files(&name, |file| {
                    names::finished(file).is_some_and(names::is_file_of_point)
                })?;
            }
        }
        Ok(())
    }

    fn remove_files(&mut self, directory: &str, is_ours: impl Fn(&str) -> bool) -> Result<()> {
        let entries = match self.directory.entries(directory) {
            Err(error) if concerns_one_file(&error) => {
                // A foreign link or file, or a directory whose images are checked when needed.
                return Ok(());
            }
            result => result?,
        };
        for name in entries.iter().filter(|name| is_ours(name)) {
            self.remove(&format!("{directory}/{name}"))?;
            self.step();
        }
        Ok(())
    }

    fn step(&self) {
        #[cfg(test)]
        if let Some(at_step) = &self.at_step {
            at_step();
        }
    }
}

/// Does not look at what is done, and lets it go on.
struct Unwatched;

impl Watch for Unwatched {
    fn keep_on(&mut self, _progress: Progress) -> Result<()> {
        Ok(())
    }

    fn tell(&mut self, _note: &str) {}
}

/// The file in which a writer says who it is.
fn note(directory: &Directory) -> Option<File> {
    directory.read(Operation::OpenBackup, WRITER).ok()
}

/// Whether an error says that this one file cannot be removed, as one that is immutable, and
/// not that nothing works here.
pub(super) fn concerns_one_file(error: &Error) -> bool {
    const ERRNOS: [Errno; 8] = [
        Errno::PERM,
        Errno::ACCESS,
        Errno::ROFS,
        Errno::BUSY,
        Errno::TXTBSY,
        Errno::ISDIR,
        Errno::NOTDIR,
        Errno::LOOP,
    ];
    error.errno().is_some_and(|errno| ERRNOS.contains(&errno))
}

/// Takes the locks of one that changes a backup.
fn lock_to_change(
    directory: &Directory,
    place: Place<'_>,
    watch: &mut dyn Watch,
) -> Result<(Lock, Lock)> {
    let limit = place.lock_wait;
    let file = directory.open_or_create(Operation::OpenBackup, WRITER)?;
    let holders = |file: &File| lock::writers(file, note(directory).as_ref());
    let wait = Wait {
        limit,
        watch: &mut *watch,
    };
    let mut writer = Lock::take(file, EXCLUSIVE, place.path, wait, &holders)?;
    writer.sign();
    // Nothing can have it exclusively but a version of this command that has no other lock.
    let file = directory.open_or_create(Operation::OpenBackup, LOCK)?;
    let wait = Wait {
        limit,
        watch: &mut *watch,
    };
    let holders = |file: &File| lock::writers(file, None);
    let files = Lock::take(file, SHARED, place.path, wait, &holders)?;
    Ok((writer, files))
}

/// An error if there is no manifest, which says so if there are restore points.
fn has_manifest(directory: &Directory) -> Result<()> {
    match directory.look(Operation::OpenBackup, MANIFEST) {
        Err(error) if error.errno() == Some(Errno::NOENT) && has_points(directory)? => {
            Err(lost(directory))
        }
        result => result.map_err(|error| error.on(directory.path())),
    }
}

/// Whether there are directories of restore points with files of the command.
fn has_points(directory: &Directory) -> Result<bool> {
    for name in directory.entries("")? {
        if names::number(&name).is_none() {
            continue;
        }
        match directory.entries(&name) {
            Ok(files) if files.iter().any(|it| names::is_file_of_point(it)) => return Ok(true),
            Err(error) if !concerns_one_file(&error) => return Err(error),
            _ => (),
        }
    }
    Ok(false)
}

fn lost(directory: &Directory) -> Error {
    let reason = format!("it has restore points, but their manifest, {MANIFEST}, is missing");
    damaged(directory.path(), reason).remedied_by(remedy_of_lost(directory))
}

fn remedy_of_lost(directory: &Directory) -> String {
    format!(
        "\"blksnap rebuild {}\" makes it again from what is in the directories of the restore \
         points",
        directory.path().display()
    )
}

fn load(directory: &Directory) -> Result<Manifest> {
    let path = directory.path();
    let file = match directory.read(Operation::OpenBackup, MANIFEST) {
        Err(error) if error.errno() == Some(Errno::NOENT) => {
            return match has_points(directory)? {
                true => Err(lost(directory)),
                false => Ok(Manifest::default()),
            };
        }
        result => result?,
    };
    let text = read_text(file, path, "its manifest", manifest::MAX_BYTES);
    text.and_then(|text| Manifest::from_json(&text).map_err(|reason| damaged(path, reason)))
        .map_err(|error| match image::means_damage(&error) {
            true => error.remedied_by(remedy_of_lost(directory)),
            false => error,
        })
}

/// The text of a file of no more than `most` bytes.
fn read_text(file: File, path: &Path, what: &str, most: u64) -> Result<String> {
    let mut bytes = Vec::new();
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::from_io(Operation::OpenBackup, &error).on(path))?;
    if bytes.len() as u64 > most {
        return Err(damaged(path, format!("{what} is larger than it can be")));
    }
    String::from_utf8(bytes).map_err(|_| damaged(path, format!("{what} is damaged: it is no text")))
}

pub(super) fn unless_missing(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.errno() == Some(Errno::NOENT) => Ok(()),
        result => result,
    }
}

/// The directory that a name of a backup is in.
fn parent_name(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
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

#[cfg(test)]
mod tests;
