// SPDX-License-Identifier: GPL-2.0-only

use std::fs;
use std::fs::File;
use std::os::unix::fs::symlink;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::flock;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::expect;
use super::sound;
use super::tree::Tree;
use crate::backup::manifest::Manifest;
use crate::backup::store::Store;
use crate::doctor::target;
use crate::doctor::Check;
use crate::doctor::Level;

const G: u64 = 1 << 30;

fn check(tree: &Tree, path: &str, devices: &[&str]) -> (Vec<Check>, Option<u64>) {
    let devices = tree.named(devices);
    target::check(&tree.root(), Path::new(path), &devices, &tree.system)
}

fn worst(tree: &Tree, path: &str) -> Check {
    let (checks, _) = check(tree, path, &["/dev/sda"]);
    checks.into_iter().max_by_key(|it| it.level).unwrap()
}

#[test]
fn a_target_is_on_another_disk() {
    let mut tree = sound();
    expect(&worst(&tree, "/backup"), Level::Ok, &[]);
    let (checks, newest) = check(&tree, "/backup/new", &["/dev/sda"]);
    assert_eq!(newest, None);
    expect(
        &checks[0],
        Level::Ok,
        &["can be created on xfs, in /backup"],
    );
    // Nothing was created.
    assert!(!tree.path("backup/new").exists());
    for path in ["/", "/new"] {
        expect(
            &worst(&tree, path),
            Level::Problem,
            &["lies on /dev/sda", "another disk"],
        );
    }
    expect(
        &worst(&tree, "/backup/a/b"),
        Level::Problem,
        &["does not exist"],
    );
    tree.file("backup/file", "");
    expect(
        &worst(&tree, "/backup/file"),
        Level::Problem,
        &["not a directory"],
    );
    tree.system.can_write = Err(Errno::ACCESS);
    expect(
        &worst(&tree, "/backup"),
        Level::Problem,
        &["permission denied", "root"],
    );
    tree.system.can_write = Ok(());
    tree.mount_with("8:16", "/backup", "xfs", "/dev/sdb", "ro");
    expect(
        &worst(&tree, "/backup"),
        Level::Problem,
        &["read-only", "dmesg"],
    );
}

#[test]
fn a_directory_of_others_is_told() {
    let tree = sound();
    fs::set_permissions(tree.path("backup"), PermissionsExt::from_mode(0o777)).unwrap();
    let check = worst(&tree, "/backup");
    expect(
        &check,
        Level::Problem,
        &["others can write", "--trust-directory"],
    );
}

#[test]
fn the_first_backup_needs_the_space_that_is_in_use() {
    for (free, is_mounted, level, part) in [
        (8 * G, true, Level::Ok, "512M are in use"),
        (G / 2, true, Level::Ok, ""),
        (G / 2 - 1, true, Level::Problem, "the 512M that are in use"),
        (0, true, Level::Problem, "no space left"),
        // Any part of it can be in use.
        (G - 1, false, Level::Warning, "up to 1G"),
        (G, false, Level::Ok, ""),
    ] {
        let mut tree = sound();
        tree.space("/backup", 8 * G, free);
        if !is_mounted {
            fs::write(tree.path("proc/self/mountinfo"), MOUNTED_ELSEWHERE).unwrap();
        }
        let check = worst(&tree, "/backup");
        expect(&check, level, &[part]);
        // There is nothing yet that could be pruned.
        assert!(!check.remedy.unwrap_or_default().contains("prune"));
    }
}

const MOUNTED_ELSEWHERE: &str = "1 1 0:9 / / rw - tmpfs none rw\n\
                                 1 1 8:16 / /backup rw - xfs /dev/sdb rw\n";

/// A backup whose restore point has this time.
fn backup(tree: &Tree, time: u64) {
    let mut store = Store::open_to_change(&tree.path("backup"), false)
        .or_else(|_| Store::open_to_change(&tree.path("backup"), true))
        .unwrap();
    let mut manifest = Manifest::clone(store.manifest());
    let point = serde_json::from_value(serde_json::json!({
        "number": 1,
        "time": time,
        "devices": [],
    }));
    manifest.points = vec![point.unwrap()];
    manifest.next = 2;
    store.publish(manifest).unwrap();
}

#[test]
fn the_newest_restore_point_is_found() {
    let mut tree = sound();
    backup(&tree, 1_800_000_000);
    let (checks, newest) = check(&tree, "/backup", &["/dev/sda"]);
    assert_eq!(newest, Some(1_800_000_000), "{checks:?}");
    tree.space("/backup", 8 * G, 1 << 20);
    expect(
        &worst(&tree, "/backup"),
        Level::Warning,
        &["blksnap prune /backup --keep N"],
    );
    fs::write(tree.path("backup/blksnap.json"), "{").unwrap();
    expect(
        &worst(&tree, "/backup"),
        Level::Problem,
        &["blksnap rebuild"],
    );
}

#[test]
fn a_lock_is_told_and_left_alone() {
    let tree = sound();
    let path = tree.path("backup/blksnap.writer");
    let lock = |operation| {
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        flock(&file, operation).unwrap();
        file
    };
    let found = || {
        let (checks, _) = check(&tree, "/backup", &["/dev/sda"]);
        checks.into_iter().find(|it| it.check == "lock").unwrap()
    };
    expect(&found(), Level::Ok, &["no process"]);
    let held = lock(FlockOperation::NonBlockingLockExclusive);
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    let name = format!("process {}", std::process::id());
    expect(&found(), Level::Warning, &[&name, "--lock-wait"]);
    drop(held);
    expect(&found(), Level::Ok, &[]);
    lock(FlockOperation::NonBlockingLockExclusive);
}

#[test]
fn servers_are_not_asked() {
    let mut tree = sound();
    // The mount point itself is not there, and neither is what the link leads to.
    tree.mount_with("0:50", "/net/backup", "nfs4", "server:/export", "rw");
    symlink("/net/backup/deep", tree.path("link")).unwrap();
    fs::create_dir(tree.path("net")).unwrap();
    for path in ["/net/backup", "/net/backup/new/other", "/link", "/link/x"] {
        let check = worst(&tree, path);
        let parts = ["nfs4 (server:/export)", "timeout 10 df -h /net/backup"];
        expect(&check, Level::Note, &parts);
    }
}

#[test]
fn what_hides_a_file_system_is_not_taken_for_it() {
    let mut tree = sound();
    tree.mount("0:70", "/", "tmpfs", "none");
    tree.mount("8:16", "/backup", "xfs", "/dev/sdb");
    tree.space("/", 1 << 20, 0);
    tree.space("/backup", 8 * G, G - 1);
    // What of sda is in use cannot be seen now.
    expect(&worst(&tree, "/backup"), Level::Warning, &["up to 1G"]);
}
