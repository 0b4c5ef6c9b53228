// SPDX-License-Identifier: GPL-2.0-only

//! What a block device or file holds: file systems, partition tables, members of
//! LVM, MD and the like, as blkid of util-linux finds them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::process::Stdio;

use crate::date::date;
use crate::size::Bytes;

/// Where blkid is; that of PATH comes first, which often lacks the directories for
/// administrators.
pub const BLKID: [&str; 3] = ["blkid", "/usr/sbin/blkid", "/sbin/blkid"];

/// How much of the start and of the end is looked at for data without a signature.
const LOOK_AT: u64 = 1 << 20;

/// Where ext2, ext3 and ext4 have their superblock.
const EXT_SUPERBLOCK: u64 = 1024;

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// No signature, and zeroes at the start and at the end.
    Nothing,
    /// In words, such as `ext4 "data", last mounted on /srv (2026-11-28)`.
    Something(String),
    /// It cannot be told, for this reason.
    Unknown(String),
}

/// Looks at a block device or file of `size` bytes with the first of `programs` that
/// is there.
pub fn probe(file: &File, size: u64, programs: &[&str]) -> Content {
    let signature = match signature(file, programs) {
        Ok(signature) => signature,
        Err(reason) => return Content::Unknown(reason),
    };
    if let Some(mut found) = signature {
        if let Some(last) = last_mount(file) {
            found.push_str(&last);
        }
        return Content::Something(found);
    }
    match data_at_ends(file, size) {
        Ok(None) => Content::Nothing,
        Ok(Some(offset)) => Content::Something(format!(
            "data at byte {offset}, of a kind that blkid does not know"
        )),
        Err(error) => Content::Unknown(format!("it cannot be read: {error}")),
    }
}

/// What blkid says of it.
fn signature(file: &File, programs: &[&str]) -> Result<Option<String>, String> {
    Ok(match blkid(file, programs)? {
        Probed::Text(text) => describe(&text),
        Probed::Several => Some("signatures of several kinds (\"wipefs\" lists them)".to_owned()),
    })
}

/// UUIDs that are there.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Uuids {
    /// Of the partition table.
    pub table: Option<String>,
    /// The kind of what it holds as a whole, such as ext4, and its UUID.
    pub content: Option<(String, String)>,
}

/// The UUIDs that the first of `programs` that is there finds. What cannot be told is left
/// out.
pub fn uuids(file: &File, programs: &[&str]) -> Uuids {
    let Ok(Probed::Text(text)) = blkid(file, programs) else {
        return Uuids::default();
    };
    Uuids {
        table: value(&text, "PTUUID"),
        content: value(&text, "TYPE").zip(value(&text, "UUID")),
    }
}

/// What blkid prints.
enum Probed {
    /// Lines of NAME=value, none where it knows nothing.
    Text(String),
    /// Several signatures, of which it cannot tell the right one.
    Several,
}

fn blkid(file: &File, programs: &[&str]) -> Result<Probed, String> {
    let output = programs.iter().find_map(|program| {
        // By the descriptor, so that it is this device that is looked at.
        let stdin = file.try_clone().ok()?;
        let output = Command::new(program)
            .args(["-p", "-o", "export", "/proc/self/fd/0"])
            .env("LC_ALL", "C.UTF-8")
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output();
        match output {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            output => Some(output),
        }
    });
    let output = match output {
        None => return Err("blkid, of the package util-linux, is not installed".to_owned()),
        Some(Err(error)) => return Err(format!("blkid cannot be run: {error}")),
        Some(Ok(output)) => output,
    };
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint = complaint.trim();
    match output.status.code() {
        // Also for what it could not open or read.
        Some(2) if !complaint.is_empty() => Err(format!("blkid says: {complaint}")),
        Some(0 | 2) => Ok(Probed::Text(
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )),
        Some(8) => Ok(Probed::Several),
        _ => Err(format!("blkid failed: {} {complaint}", output.status)),
    }
}

/// What `blkid -o export` printed for a name.
fn value(text: &str, name: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| unescape(value))
}

/// Words for what `blkid -o export` prints.
fn describe(text: &str) -> Option<String> {
    let value = |name| value(text, name);
    let mut parts = Vec::new();
    if let Some(table) = value("PTTYPE") {
        parts.push(format!("a partition table ({table})"));
    }
    if let Some(kind) = value("TYPE") {
        let label = value("LABEL").map(|label| format!(" {label:?}"));
        parts.push(format!("{kind}{}", label.unwrap_or_default()));
    }
    (!parts.is_empty()).then(|| parts.join(" and "))
}

/// Undoes the backslashes in front of what is special in a shell.
fn unescape(value: &str) -> String {
    let mut plain = String::new();
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => plain.extend(chars.next()),
            c => plain.push(c),
        }
    }
    plain
}

/// Where and when an ext2, ext3 or ext4 was mounted last.
fn last_mount(file: &File) -> Option<String> {
    let mut block = [0; 1024];
    file.read_exact_at(&mut block, EXT_SUPERBLOCK).ok()?;
    if block[56..58] != 0xef53u16.to_le_bytes() {
        return None;
    }
    let time = u32::from_le_bytes(block[44..48].try_into().ok()?);
    if time == 0 {
        return Some(", never mounted".to_owned());
    }
    let place = block[136..200].split(|&byte| byte == 0).next()?;
    let place = match place {
        b"" => String::new(),
        place => format!(" on {}", String::from_utf8_lossy(place).escape_debug()),
    };
    Some(format!(", last mounted{place} ({})", date(time.into())))
}

/// Where the first byte near the start or the end is that is not zero.
fn data_at_ends(file: &File, size: u64) -> io::Result<Option<u64>> {
    let length = LOOK_AT.min(size);
    let mut bytes = vec![0; length as usize];
    for start in [0, size - length] {
        file.read_exact_at(&mut bytes, start)?;
        if let Some(at) = bytes.iter().position(|&byte| byte != 0) {
            return Ok(Some(start + at as u64));
        }
    }
    Ok(None)
}

/// How a target is called in messages: what it is, how large, what it holds.
pub fn sentence(identity: Option<&str>, size: u64, content: &Content) -> String {
    let mut parts: Vec<String> = identity.map(str::to_owned).into_iter().collect();
    parts.push(Bytes(size).to_string());
    match content {
        Content::Nothing => parts.push("nothing on it".to_owned()),
        Content::Something(what) => parts.push(what.clone()),
        Content::Unknown(why) => parts.push(format!("what is on it is not known, as {why}")),
    }
    // sysfs and labels are not ours.
    parts.join(", ").replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn look(path: &Path) -> Content {
        let file = File::open(path).unwrap();
        probe(&file, file.metadata().unwrap().len(), &BLKID)
    }

    /// Whether a program of the tests is there.
    fn has(program: &str) -> bool {
        ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
            .iter()
            .any(|directory| Path::new(directory).join(program).exists())
    }

    fn run(command: &str, path: &Path) {
        let path_of_admins = format!("PATH=$PATH:/usr/sbin:/sbin; {command}");
        let status = Command::new("sh")
            .args(["-c", &path_of_admins, "sh"])
            .arg(path)
            .status()
            .unwrap();
        assert!(status.success(), "{command}");
    }

    #[test]
    fn file_systems_and_tables_are_named() {
        if !has("blkid") {
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("disk");
        for (tool, command, wanted) in [
            (
                "mkfs.ext4",
                "mkfs.ext4 -q -F -L 'my \"data\\' \"$1\"",
                "ext4 \"my \\\"data\\\\\", never mounted",
            ),
            ("mkswap", "mkswap -q \"$1\"", "swap"),
            (
                "sfdisk",
                "echo label: gpt | sfdisk -q \"$1\"",
                "a partition table (gpt)",
            ),
            (
                "sfdisk",
                "echo label: dos | sfdisk -q \"$1\"",
                "a partition table (dos)",
            ),
        ] {
            if !has(tool) {
                continue;
            }
            let _ = std::fs::remove_file(&path);
            File::create(&path).unwrap().set_len(16 << 20).unwrap();
            assert_eq!(look(&path), Content::Nothing);
            run(command, &path);
            assert_eq!(look(&path), Content::Something(wanted.to_owned()));
        }
    }

    #[test]
    fn data_that_nobody_knows_is_no_nothing() {
        if !has("blkid") {
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("disk");
        let size = 8 << 20;
        for at in [0, 4711, size - 1] {
            let file = File::create(&path).unwrap();
            file.set_len(size).unwrap();
            file.write_all_at(b"x", at).unwrap();
            let Content::Something(text) = look(&path) else {
                panic!("{at}");
            };
            assert!(text.contains(&format!("byte {at},")), "{text}");
        }
        File::create(&path).unwrap();
        assert_eq!(look(&path), Content::Nothing);
    }

    #[test]
    fn without_blkid_nothing_is_claimed() {
        let file = tempfile::tempfile().unwrap();
        let Content::Unknown(why) = probe(&file, 0, &["/nonexistent/blkid"]) else {
            panic!();
        };
        assert!(why.contains("util-linux"), "{why}");
        assert!(matches!(probe(&file, 0, &["false"]), Content::Unknown(_)));
    }

    /// The exit code of "nothing found" is also that of "cannot be read".
    #[test]
    fn a_blkid_that_complains_has_found_nothing_out() {
        use std::os::unix::fs::PermissionsExt;
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("blkid");
        let file = tempfile::tempfile().unwrap();
        for (script, is_known) in [
            ("exit 2", true),
            ("echo no such file >&2; exit 2", false),
            ("exit 4", false),
        ] {
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let content = probe(&file, 0, &[path.to_str().unwrap()]);
            assert_eq!(content == Content::Nothing, is_known, "{script}");
        }
    }

    #[test]
    fn what_blkid_prints_is_put_into_words() {
        assert_eq!(
            describe("DEVNAME=/dev/stdin\nPART_ENTRY_SIZE=20480\n"),
            None
        );
        assert_eq!(
            describe("LABEL=my\\ disk\\'s\nTYPE=xfs\n").unwrap(),
            "xfs \"my disk's\""
        );
        assert_eq!(
            describe("TYPE=LVM2_member\nUUID=x\n").unwrap(),
            "LVM2_member"
        );
        assert_eq!(
            describe("TYPE=vfat\nPTTYPE=dos\n").unwrap(),
            "a partition table (dos) and vfat"
        );
    }

    #[test]
    fn the_last_mount_is_told() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("disk");
        let mut bytes = vec![0; 4096];
        bytes[1024 + 56..][..2].copy_from_slice(&[0x53, 0xef]);
        bytes[1024 + 44..][..4].copy_from_slice(&1_709_164_800u32.to_le_bytes());
        bytes[1024 + 136..][..6].copy_from_slice(b"/srv\x1b[");
        std::fs::write(&path, &bytes).unwrap();
        let text = last_mount(&File::open(&path).unwrap()).unwrap();
        assert_eq!(text, ", last mounted on /srv\\u{1b}[ (2024-02-29)");
        bytes[1024 + 56] = 0;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(last_mount(&File::open(&path).unwrap()), None);
    }
}
