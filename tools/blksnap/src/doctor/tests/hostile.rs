// SPDX-License-Identifier: GPL-2.0-only

//! What an attacker, or a broken machine, puts in the way.

use std::fs;
use std::path::Path;

use rustix::fs::mknodat;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::CWD;
use rustix::io::Errno;

use super::paths;
use super::sound;
use super::tree::Tree;
use crate::doctor::examine;
use crate::doctor::root::Found;
use crate::doctor::Level;
use crate::doctor::Report;
use crate::doctor::Request;

fn all(tree: &Tree) -> Report {
    let request = Request {
        devices: Vec::new(),
        target: Some("/backup".into()),
        store: Some("/backup".into()),
    };
    examine(&tree.root(), &request, &tree.system)
}

fn fifo(tree: &Tree, path: &str) {
    let path = tree.path(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

#[test]
fn links_that_lead_nowhere_end() {
    let tree = sound();
    tree.link("loop/a", "b");
    tree.link("loop/b", "/loop/a");
    tree.link("loop/deep", "deep/x");
    tree.link("loop/dots", "../../../../loop/./../loop");
    let find = |path: &str| tree.root().find(Path::new(path));
    assert_eq!(find("/loop/a"), Err(Errno::LOOP));
    assert_eq!(find("/loop/deep"), Err(Errno::LOOP));
    assert_eq!(find("/loop/dots"), Ok(Found::Local("/loop".into())));
    assert_eq!(find("/loop/none"), Err(Errno::NOENT));
    assert_eq!(find("/dev/sda/x"), Err(Errno::NOTDIR));
    // Everything that is looked at
    for path in ["boot", "lib/modules", "run/udev", "proc/config.gz"] {
        tree.link(path, "/loop/a");
    }
    tree.by_id("loop", "disk/by-id/loop");
    let report = all(&tree);
    assert!(report.worst() < Level::Problem, "{report:?}");
}

#[test]
fn pipes_are_not_waited_for() {
    let tree = sound();
    for path in [
        "proc/config.gz",
        "boot/config-7.0.0-test",
        "lib/modules/7.0.0-test/modules.dep",
        "run/udev/data/b8:1",
        "store",
    ] {
        fifo(&tree, path);
    }
    fs::remove_dir_all(tree.path("sys/module")).unwrap();
    let request = Request {
        devices: paths(&["/dev/sda", "/store"]),
        target: Some("/store".into()),
        store: Some("/store".into()),
    };
    let report = examine(&tree.root(), &request, &tree.system);
    let about = |check: &str| {
        let mut found = report.checks.iter();
        found
            .find(|it| it.check == check && it.subject == "/store")
            .unwrap()
    };
    for check in ["storage", "target"] {
        assert_eq!(about(check).level, Level::Problem, "{report:?}");
    }
}

#[test]
fn files_that_make_no_sense_are_no_trouble() {
    let tree = sound();
    let before = all(&tree);
    tree.disk("sdc", "8:32", 1 << 30);
    for (attribute, text) in [
        ("dm/uuid", "\u{1b}[2J-\n"),
        ("dm/name", "../../\u{7}\n"),
        ("device/model", "a\nb\u{202e}\u{0}\n"),
        ("queue/logical_block_size", "-1\n"),
        ("holders/sdc", ""),
        ("slaves/nothing", ""),
        ("holders/nothing", ""),
    ] {
        tree.set("sdc", attribute, text);
    }
    tree.disk("sdd", "8:48", 1 << 30);
    tree.set("sdd", "size", "99999999999999999999999\n");
    tree.file("proc/self/limits", "Max open files\n");
    tree.file("proc/meminfo", "MemTotal: -1\nMemAvailable:\n");
    tree.file("proc/swaps", "\n\n \n");
    tree.file("proc/self/uid_map", "\u{0}");
    let after = all(&tree);
    assert!(after.checks.len() > before.checks.len(), "{after:?}");
    assert!(after.checks.iter().any(|it| it.subject.contains('\u{7}')));
}

#[test]
fn stacks_in_a_circle_end() {
    let tree = sound();
    tree.mapped("dm-0", "253:0", "LVM-a", "a", "sda1");
    tree.mapped("dm-1", "253:1", "LVM-b", "b", "dm-0");
    tree.stack("dm-1", "dm-0");
    let report = all(&tree);
    let disk = report
        .checks
        .iter()
        .find(|it| it.subject == "/dev/sda")
        .unwrap();
    assert_eq!(disk.message.matches("b lvm").count(), 1, "{disk:?}");
}

#[test]
fn names_of_text_that_is_none_are_no_trouble() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let tree = sound();
    let name = Path::new(OsStr::from_bytes(b"/dev/\xff\x1b[2J"));
    let request = Request {
        devices: vec![name.to_owned()],
        target: Some(name.to_owned()),
        store: Some(name.to_owned()),
    };
    let report = examine(&tree.root(), &request, &tree.system);
    let about = report.checks.iter().filter(|it| it.subject.contains("[2J"));
    assert!(about.clone().count() >= 3, "{report:?}");
    serde_json::to_string(&report).unwrap();
}

#[test]
fn remote_mounts_are_nowhere_asked() {
    let mut tree = sound();
    tree.mount_with("0:60", "/net", "nfs4", "server:/", "rw");
    // A disk that is mounted below it
    tree.disk("sdc", "8:32", 1 << 30);
    tree.mount("8:32", "/net/usb", "ext4", "/dev/sdc");
    tree.mount_with("0:61", "/boot", "autofs", "systemd-1", "rw");
    tree.file("boot/config-7.0.0-test", "CONFIG_BLK_FILTER=y\n");
    tree.disk("loop0", "7:0", 1 << 30);
    tree.set("loop0", "loop/backing_file", "/net/disk.img\n");
    // The space of what is below /net makes the test fail.
    let request = Request {
        devices: paths(&["/dev/loop0", "/dev/sdc"]),
        target: Some("/backup".into()),
        store: None,
    };
    let report = examine(&tree.root(), &request, &tree.system);
    assert!(report.checks.iter().any(|it| it.subject == "/dev/loop0"));
    assert!(!report.checks.iter().any(|it| it.subject == "/net/usb"));
    assert_eq!(
        tree.root().text("/boot/config-7.0.0-test"),
        Err(Errno::REMOTE)
    );
    let request = Request {
        devices: paths(&["/net/dev/sda"]),
        store: Some("/net/x".into()),
        target: Some("/net/y".into()),
    };
    let report = examine(&tree.root(), &request, &tree.system);
    for (check, level) in [
        ("disk", Level::Problem),
        ("storage", Level::Problem),
        ("target", Level::Note),
    ] {
        let mut found = report.checks.iter();
        let found = found.find(|it| it.check == check).unwrap();
        assert_eq!(found.level, level, "{found:?}");
    }
}
