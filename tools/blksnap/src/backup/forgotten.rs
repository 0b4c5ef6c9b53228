// SPDX-License-Identifier: GPL-2.0-only

//! Marks of restore points that are forgotten, for a manifest that is lost before their files
//! are removed.
//!
//! A mark is written to the directory of a restore point after the manifest without it is on the
//! medium under the name that ends in ".partial", and before that one takes its place. It has the
//! digest of that manifest. As long as there is a ".partial" manifest with this digest, the old
//! manifest counts, and nothing is forgotten; a mark that is not complete is of that time, too.

use std::io::Read;
use std::io::Write;

use rustix::io::Errno;

use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;

use super::directory::Directory;
use super::image;
use super::names;
use super::names::MANIFEST;
use super::store::concerns_one_file;
use super::store::unless_missing;

/// Hexadecimal digits of a digest.
const DIGITS: usize = 2 * blake3::OUT_LEN;

/// Marks a restore point as forgotten by a manifest with this text, which is on the medium.
pub fn mark(directory: &Directory, number: u64, manifest: &str) -> Result<()> {
    let name = names::forgotten(number);
    let write = || {
        unless_missing(directory.remove_file(&name))?;
        let failed =
            |error| Error::from_io(Operation::WriteBackup, &error).on(&directory.path_of(&name));
        let mut file = directory.create(&name)?;
        file.write_all(digest(manifest.as_bytes()).as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
        directory.sync(&names::directory(number))
    };
    match write() {
        // What cannot be read there will not be had again either. And where there is no space,
        // it is made by the removal.
        Err(error)
            if concerns_one_file(&error)
                || matches!(
                    error.errno(),
                    Some(Errno::NOENT | Errno::NOSPC | Errno::DQUOT)
                ) =>
        {
            Ok(())
        }
        result => result,
    }
}

/// The digest of a manifest that did not come to take its place, if there is one.
pub fn unpublished(directory: &Directory) -> Result<Option<String>> {
    let name = names::partial(MANIFEST);
    let mut bytes = Vec::new();
    let file = match directory.read(Operation::OpenBackup, &name) {
        Ok(file) => file,
        Err(error) if error.errno() == Some(Errno::NOENT) => return Ok(None),
        // What is no file was never written.
        Err(error) if image::means_damage(&error) || concerns_one_file(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    file.take(super::manifest::MAX_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|error| {
            Error::from_io(Operation::OpenBackup, &error).on(&directory.path_of(&name))
        })?;
    Ok(Some(digest(&bytes)))
}

/// Whether a restore point is marked, and not by the manifest with the digest `unpublished`.
pub fn is_marked(directory: &Directory, number: u64, unpublished: Option<&str>) -> Result<bool> {
    let name = names::forgotten(number);
    let file = match directory.read(Operation::OpenBackup, &name) {
        Ok(file) => file,
        Err(error)
            if matches!(error.errno(), Some(Errno::NOENT | Errno::NOTDIR))
                || image::means_damage(&error) =>
        {
            return Ok(false)
        }
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    let read = file.take(DIGITS as u64 + 1).read_to_string(&mut text);
    match read {
        Ok(_) => (),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => return Ok(false),
        Err(error) => {
            let path = directory.path_of(&name);
            return Err(Error::from_io(Operation::OpenBackup, &error).on(&path));
        }
    }
    let is_complete = text.len() == DIGITS && text.bytes().all(|it| it.is_ascii_hexdigit());
    Ok(is_complete && Some(text.as_str()) != unpublished)
}

/// Removes the marks of a manifest that did not come to take its place; that one is removed only
/// after this.
pub fn unmark(directory: &Directory) -> Result<()> {
    let Some(digest) = unpublished(directory)? else {
        return Ok(());
    };
    for name in directory.entries("")? {
        let Some(number) = names::number(&name) else {
            continue;
        };
        let mark = names::forgotten(number);
        match directory.look(Operation::OpenBackup, &mark) {
            Ok(()) if !is_marked(directory, number, Some(&digest))? => {
                directory.remove_file(&mark)?;
                directory.sync(&name)?;
            }
            _ => (),
        }
    }
    Ok(())
}

fn digest(manifest: &[u8]) -> String {
    blake3::hash(manifest).to_string()
}
