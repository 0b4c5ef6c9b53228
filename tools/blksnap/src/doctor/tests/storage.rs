// SPDX-License-Identifier: GPL-2.0-only

use std::os::unix::fs::symlink;
use std::path::Path;

use super::expect;
use super::sound;
use super::tree::Tree;
use crate::doctor::storage;
use crate::doctor::Check;
use crate::doctor::Level;

const G: u64 = 1 << 30;

fn check(tree: &Tree, path: &str, devices: &[&str]) -> Vec<Check> {
    let devices = tree.named(devices);
    storage::check(&tree.root(), Path::new(path), &devices, &tree.system)
}

/// The worst one.
fn worst(tree: &Tree, path: &str, devices: &[&str]) -> Check {
    let checks = check(tree, path, devices);
    checks.into_iter().max_by_key(|it| it.level).unwrap()
}

#[test]
fn a_storage_is_on_another_disk() {
    let tree = sound();
    expect(&worst(&tree, "/backup", &["/dev/sda"]), Level::Ok, &[]);
    expect(&worst(&tree, "/backup", &[]), Level::Ok, &[]);
    for devices in [&["/dev/sda", "/dev/sdb"][..], &["/dev/sdb"]] {
        let check = worst(&tree, "/backup", devices);
        expect(
            &check,
            Level::Problem,
            &["lies on /dev/sdb", "on a disk that no"],
        );
    }
    // A partition of a disk that is backed up, and the other way round
    expect(
        &worst(&tree, "/", &["/dev/sda"]),
        Level::Problem,
        &["/dev/sda"],
    );
    expect(
        &worst(&tree, "/", &["/dev/sda1"]),
        Level::Problem,
        &["/dev/sda1"],
    );
    tree.partition("sda", "sda2", "8:2", G);
    expect(&worst(&tree, "/", &["/dev/sda2"]), Level::Ok, &[]);
    // By way of a link
    symlink("../backup/./", tree.path("backup/link")).unwrap();
    symlink("/backup", tree.path("store")).unwrap();
    for path in ["/store", "/backup/link/../store/../backup"] {
        let check = worst(&tree, path, &["/dev/sdb"]);
        expect(&check, Level::Problem, &["lies on /dev/sdb"]);
    }
}

#[test]
fn a_storage_on_stacked_devices_is_found() {
    let mut tree = sound();
    tree.mapped("dm-0", "253:0", "CRYPT-LUKS2-x", "secret", "sdb");
    tree.mount("253:0", "/secret", "ext4", "/dev/mapper/secret");
    tree.space("/secret", G, G);
    expect(
        &worst(&tree, "/secret", &["/dev/sdb"]),
        Level::Problem,
        &["/dev/sdb"],
    );
    expect(&worst(&tree, "/secret", &["/dev/sda"]), Level::Ok, &[]);
}

#[test]
fn kinds_of_file_systems_count() {
    for (kind, mode, level, part) in [
        ("ext4", "rw", Level::Ok, "mounted on /x"),
        ("btrfs", "rw", Level::Ok, ""),
        ("ext4", "ro,noatime", Level::Problem, "read-only"),
        ("tmpfs", "rw", Level::Warning, "--limit"),
        ("vfat", "rw", Level::Problem, "files without a name"),
        ("overlay", "rw", Level::Warning, "not tried"),
        ("nfs4", "rw", Level::Problem, "local file system"),
        ("fuse.sshfs", "rw", Level::Problem, "fuse.sshfs"),
    ] {
        let mut tree = sound();
        std::fs::create_dir(tree.path("x")).unwrap();
        tree.mount_with("0:99", "/x", kind, "none", mode);
        tree.space("/x", G, G);
        let checks = check(&tree, "/x", &["/dev/sda"]);
        expect(&checks[0], level, &[part]);
        assert_eq!(worst(&tree, "/x", &["/dev/sda"]).level, level);
    }
}

#[test]
fn a_storage_needs_space() {
    for (size, free, level, part) in [
        (G, G, Level::Ok, "1G are free"),
        (G, 256 << 20, Level::Ok, ""),
        (G, (256 << 20) - 1, Level::Warning, "256M"),
        (100 * G, 4 * G, Level::Warning, "less than 5G"),
        (100 * G, 5 * G, Level::Ok, ""),
        (G, 0, Level::Problem, "no space left"),
    ] {
        let mut tree = sound();
        tree.disk("sdc", "8:32", size);
        tree.space("/backup", G * 9, free);
        expect(&worst(&tree, "/backup", &["/dev/sdc"]), level, &[part]);
        // A block device as a whole
        if free > 0 {
            tree.disk("sdd", "8:48", free / 512 * 512);
            expect(&worst(&tree, "/dev/sdd", &["/dev/sdc"]), level, &[]);
        }
    }
}

#[test]
fn block_devices_in_use_are_no_storage() {
    let mut tree = sound();
    tree.disk("sdc", "8:32", G);
    tree.partition("sdc", "sdc1", "8:33", G);
    expect(&worst(&tree, "/dev/sdc", &["/dev/sda"]), Level::Ok, &[]);
    expect(
        &worst(&tree, "/dev/sdc1", &["/dev/sdc"]),
        Level::Problem,
        &["lies on /dev/sdc"],
    );
    expect(
        &worst(&tree, "/dev/sdb", &["/dev/sda"]),
        Level::Problem,
        &["mounted on /backup"],
    );
    tree.set("sdc", "ro", "1\n");
    expect(
        &worst(&tree, "/dev/sdc", &["/dev/sda"]),
        Level::Problem,
        &["read-only", "lsblk"],
    );
    tree.file("proc/swaps", "Filename\n/dev/sdc1 partition 1 0 -2\n");
    expect(
        &worst(&tree, "/dev/sdc", &["/dev/sda"]),
        Level::Problem,
        &["swap"],
    );
    tree.mount("8:33", "/late", "ext4", "/dev/sdc1");
    expect(
        &worst(&tree, "/dev/sdc1", &["/dev/sda"]),
        Level::Problem,
        &["/late"],
    );
}

#[test]
fn files_with_data_are_no_storage() {
    let tree = sound();
    tree.file("backup/empty", "");
    tree.file("backup/full", "the only copy");
    expect(
        &worst(&tree, "/backup/empty", &["/dev/sda"]),
        Level::Ok,
        &[],
    );
    expect(
        &worst(&tree, "/backup/full", &["/dev/sda"]),
        Level::Problem,
        &["holds data"],
    );
    expect(
        &worst(&tree, "/nowhere", &["/dev/sda"]),
        Level::Problem,
        &["does not exist"],
    );
}

#[test]
fn places_are_found_for_the_devices() {
    let mut tree = sound();
    let places = |tree: &Tree, devices: &[&str]| {
        let checks = storage::places(&tree.root(), &tree.named(devices), &tree.system);
        let of = |it: &Check| (it.level, it.subject.clone());
        (checks.iter().map(of).collect::<Vec<_>>(), checks)
    };
    let (found, checks) = places(&tree, &[]);
    assert_eq!(
        found,
        [
            (Level::Ok, "/".to_owned()),
            (Level::Ok, "/backup".to_owned())
        ]
    );
    expect(
        &checks[0],
        Level::Ok,
        &["ext4 with 512M free", "other than /dev/sda"],
    );
    let (found, checks) = places(&tree, &["/dev/sda"]);
    assert_eq!(found, [(Level::Ok, "/backup".to_owned())]);
    expect(
        &checks[0],
        Level::Ok,
        &["xfs with 8G free", "on none of the devices"],
    );
    // The same file system elsewhere is no other place; others are none.
    tree.mount("8:16", "/backup2", "xfs", "/dev/sdb");
    tree.mount("0:77", "/run", "tmpfs", "tmpfs");
    tree.mount_with("0:78", "/net", "nfs4", "server:/x", "rw");
    assert_eq!(places(&tree, &["/dev/sda"]).0, found);
    let (_, checks) = places(&tree, &["/dev/sda", "/dev/sdb"]);
    assert_eq!(checks.len(), 1);
    expect(&checks[0], Level::Warning, &["add a disk"]);
    tree.space("/backup", 8 * G, 100 << 20);
    expect(
        &places(&tree, &["/dev/sda"]).1[0],
        Level::Warning,
        &["has space"],
    );
}
