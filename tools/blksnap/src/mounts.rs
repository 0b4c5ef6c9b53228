// SPDX-License-Identifier: GPL-2.0-only

//! Where block devices are mounted, as this process sees it.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::path::PathBuf;

use crate::device::DeviceNumber;

/// One line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Number of the filesystem's device; an anonymous one for some, such as
    /// btrfs.
    pub number: DeviceNumber,
    pub mount_point: PathBuf,
    /// The kind of file system, such as ext4 or nfs4.
    pub kind: String,
    /// The device as it was named to mount.
    pub source: PathBuf,
    pub is_read_only: bool,
}

/// Kinds of file systems that ask a server or another process, which need not answer.
const REMOTE: [&str; 24] = [
    "9p",
    "afs",
    "autofs",
    "beegfs",
    "ceph",
    "cifs",
    "coda",
    "fuse",
    "gfs2",
    "glusterfs",
    "gpfs",
    "lustre",
    "ncpfs",
    "nfs",
    "nfs4",
    "ocfs2",
    "orangefs",
    "panfs",
    "pvfs2",
    "smb3",
    "smbfs",
    "vboxsf",
    "virtiofs",
    "vmhgfs",
];

impl Mount {
    /// Whether a look at a file there can take forever.
    pub fn is_remote(&self) -> bool {
        REMOTE.contains(&self.kind.as_str()) || self.kind.starts_with("fuse.")
    }
}

/// The mounts of this process's namespace.
pub fn read() -> io::Result<Vec<Mount>> {
    read_in(Path::new("/proc"))
}

pub(crate) fn read_in(proc: &Path) -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read(proc.join("self/mountinfo"))?))
}

/// The mounts of another namespace, and a process that is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elsewhere {
    /// Its number and name.
    pub process: String,
    pub mounts: Vec<Mount>,
}

/// The mounts of all other namespaces that a process is in, as far as they can be seen. Processes
/// with different roots see different parts of a namespace, so each part is listed.
pub(crate) fn elsewhere_in(proc: &Path) -> Vec<Elsewhere> {
    let namespace = |process: &Path| std::fs::read_link(process.join("ns/mnt")).ok();
    let own = namespace(&proc.join("self"));
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(proc).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(number) = name.to_str().filter(|it| it.parse::<u32>().is_ok()) else {
            continue;
        };
        let process = entry.path();
        let Some(namespace) = namespace(&process).filter(|it| Some(it) != own.as_ref()) else {
            continue;
        };
        let view = (namespace, std::fs::read_link(process.join("root")).ok());
        if seen.contains(&view) {
            continue;
        }
        // One that has just ended says nothing of the others.
        let Ok(text) = std::fs::read(process.join("mountinfo")) else {
            continue;
        };
        seen.insert(view);
        let comm = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
        found.push(Elsewhere {
            process: format!("{number} ({})", comm.trim()),
            mounts: parse(&text),
        });
    }
    found
}

fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|&byte| byte == b'\n')
        .filter_map(parse_line)
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let number = DeviceNumber::parse(std::str::from_utf8(fields.nth(2)?).ok()?)?;
    let mount_point = unescape(fields.nth(1)?);
    let is_read_only = |options: &[u8]| options.split(|&byte| byte == b',').any(|it| it == b"ro");
    let here = is_read_only(fields.next()?);
    // Optional fields end with a dash; the type, the source and the options of the file system
    // follow.
    fields.find(|field| *field == b"-")?;
    let kind = unescape(fields.next()?).to_string_lossy().into_owned();
    let source = unescape(fields.next()?);
    Some(Mount {
        number,
        mount_point,
        kind,
        source,
        is_read_only: here || fields.next().is_some_and(is_read_only),
    })
}

/// Undoes the kernel's `\040` for a space and the like.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) =
            (first, tail)
        {
            bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = after;
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    OsString::from_vec(bytes).into()
}

/// The mount points of filesystems on one of `numbers`, or mounted from
/// something in /dev of which `is_source` is true. Others are not asked about:
/// looking at them may take forever, as with a file server that is gone.
pub fn points_on(
    mounts: &[Mount],
    numbers: &[DeviceNumber],
    is_source: impl Fn(&Path) -> bool,
) -> Vec<PathBuf> {
    mounts
        .iter()
        .filter(|mount| {
            numbers.contains(&mount.number)
                || (mount.source.starts_with("/dev") && is_source(&mount.source))
        })
        .map(|mount| mount.mount_point.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] = b"\
25 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
31 25 259:1 / /mnt/my\\040backup ro shared:2 master:1 - xfs /dev/blksnap-image0 ro\n\
32 25 0:44 / /mnt/b ro - btrfs /dev/blksnap-image1p2 ro\n\
33 25 0:45 / /mnt/c rw - nfs4 server:/dev/export rw\n\
34 25 0:46 / /mnt/d rw - fuse /mnt/c/file rw\n\
garbage\n";

    #[test]
    fn mounts_are_found_by_number_or_source() {
        let mounts = parse(SAMPLE);
        assert_eq!(mounts.len(), 5);
        assert_eq!(mounts[1].mount_point, Path::new("/mnt/my backup"));
        let what: Vec<_> = mounts
            .iter()
            .map(|it| (it.kind.as_str(), it.is_read_only, it.is_remote()))
            .collect();
        assert_eq!(
            what,
            [
                ("ext4", false, false),
                ("xfs", true, false),
                ("btrfs", true, false),
                ("nfs4", false, true),
                ("fuse", false, true),
            ]
        );

        let image = DeviceNumber {
            major: 259,
            minor: 1,
        };
        assert_eq!(
            points_on(&mounts, &[image], |_| false),
            [Path::new("/mnt/my backup")]
        );
        let is_image = |source: &Path| source == Path::new("/dev/blksnap-image1p2");
        assert_eq!(points_on(&mounts, &[], is_image), [Path::new("/mnt/b")]);
        assert!(points_on(&mounts, &[], |_| false).is_empty());
        let in_dev = |source: &Path| {
            assert!(source.starts_with("/dev"), "{source:?}");
            true
        };
        assert_eq!(points_on(&mounts, &[], in_dev).len(), 3);
    }

    #[test]
    fn escapes_are_undone_and_nothing_else() {
        assert_eq!(unescape(b"a\\134b\\011"), Path::new("a\\b\t"));
        assert_eq!(unescape(b"a\\9\\04"), Path::new("a\\9\\04"));
    }

    #[test]
    fn a_process_that_ends_hides_no_namespace() {
        use std::os::unix::fs::symlink;
        let temp = tempfile::tempdir().unwrap();
        for number in 10..30 {
            let process = temp.path().join(number.to_string());
            std::fs::create_dir_all(process.join("ns")).unwrap();
            symlink("mnt:[2]", process.join("ns/mnt")).unwrap();
            symlink("/", process.join("root")).unwrap();
        }
        // The others have ended since their namespace was read.
        std::fs::write(temp.path().join("17/mountinfo"), SAMPLE).unwrap();
        let found = elsewhere_in(temp.path());
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].mounts, parse(SAMPLE));
    }

    #[test]
    fn a_process_sees_what_is_below_its_root_only() {
        use std::os::unix::fs::symlink;
        let temp = tempfile::tempdir().unwrap();
        for (number, root, text) in [
            ("7", "/jail", &b""[..]),
            ("8", "/", SAMPLE),
            ("9", "/jail", b""),
            ("10", "/", SAMPLE),
        ] {
            let process = temp.path().join(number);
            std::fs::create_dir_all(process.join("ns")).unwrap();
            symlink("mnt:[2]", process.join("ns/mnt")).unwrap();
            symlink(root, process.join("root")).unwrap();
            std::fs::write(process.join("mountinfo"), text).unwrap();
        }
        let found = elsewhere_in(temp.path());
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().any(|it| it.mounts == parse(SAMPLE)));
    }

    #[test]
    fn namespaces_are_looked_at_once() {
        use std::os::unix::fs::symlink;
        let temp = tempfile::tempdir().unwrap();
        for (number, namespace) in [("7", "mnt:[1]"), ("8", "mnt:[2]"), ("9", "mnt:[2]")] {
            let process = temp.path().join(number);
            std::fs::create_dir_all(process.join("ns")).unwrap();
            symlink(namespace, process.join("ns/mnt")).unwrap();
            std::fs::write(process.join("mountinfo"), SAMPLE).unwrap();
            std::fs::write(process.join("comm"), "sh\n").unwrap();
        }
        // Another user's process, and what is none
        std::fs::create_dir_all(temp.path().join("10")).unwrap();
        std::fs::create_dir_all(temp.path().join("sys/ns")).unwrap();
        symlink("7", temp.path().join("self")).unwrap();
        let found = elsewhere_in(temp.path());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(["8 (sh)", "9 (sh)"].contains(&found[0].process.as_str()));
        assert_eq!(found[0].mounts, parse(SAMPLE));
    }
}
