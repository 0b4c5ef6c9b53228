// SPDX-License-Identifier: GPL-2.0-only

use std::fs;

use super::expect;
use super::paths;
use super::tree::Tree;
use crate::doctor::disks;
use crate::doctor::naming;
use crate::doctor::tracking;
use crate::doctor::Check;
use crate::doctor::Level;

const G: u64 = 1 << 30;

fn tracking_of(tree: &Tree, name: &str) -> Vec<Check> {
    tracking::check(&tree.root(), &tree.named(&[name])[0])
}

#[test]
fn disks_are_described_as_lsblk_does() {
    let mut tree = Tree::new();
    tree.disk("sda", "8:0", 100 * G);
    tree.set("sda", "device/model", "WD40\n");
    tree.partition("sda", "sda1", "8:1", G);
    tree.partition("sda", "sda2", "8:2", G);
    tree.partition("sda", "sda3", "8:3", G);
    tree.partition("sda", "sda4", "8:4", G);
    tree.mapped("dm-0", "253:0", "CRYPT-LUKS2-1-x", "secret", "sda2");
    tree.mapped("dm-1", "253:1", "LVM-xyz", "vg-home", "dm-0");
    tree.mount("8:1", "/boot", "vfat", "/dev/sda1");
    // As btrfs has it, the number is nowhere else.
    tree.mount("0:44", "/home", "btrfs", "/dev/mapper/vg-home");
    tree.mount("0:44", "/srv", "btrfs", "/dev/mapper/vg-home");
    tree.file("proc/swaps", "Filename Type\n/dev/sda3 partition 1 0 -2\n");
    tree.file("run/udev/data/b8:4", "S:disk/x\nE:ID_FS_TYPE=xfs\n");
    tree.bio_disk("md0", "9:0", G);
    tree.set("md0", "md/level", "raid1\n");
    tree.stack("sda4", "md0");
    let check = disks::describe(&tree.root(), &tree.named(&["/dev/sda"])[0]);
    assert_eq!(check.level, Level::Ok);
    assert_eq!(
        check.message,
        "disk of 100G, WD40: sda1 part vfat on /boot; sda2 part crypto_LUKS; secret crypt \
         LVM2_member; vg-home lvm btrfs on /home, /srv; sda3 part swap on [SWAP]; sda4 part xfs; \
         md0 raid1"
    );
    tree.disk("sdb", "8:16", 0);
    let check = disks::describe(&tree.root(), &tree.named(&["/dev/sdb"])[0]);
    expect(&check, Level::Warning, &["no medium", "lsblk /dev/sdb"]);
}

#[test]
fn all_disks_are_those_that_have_something() {
    let tree = Tree::new();
    let names = || {
        let (devices, checks) = disks::selected(&tree.root(), &[]);
        let names: Vec<String> = devices.into_iter().map(|it| it.subject).collect();
        (names, checks)
    };
    let (none, checks) = names();
    assert!(none.is_empty());
    expect(&checks[0], Level::Warning, &["no disk", "lsblk"]);
    for (number, name) in [
        "sda",
        "zram0",
        "ram1",
        "sr0",
        "fd0",
        "blksnap-image3",
        "fdisk",
        "sdb",
    ]
    .iter()
    .enumerate()
    {
        tree.disk(name, &format!("8:{number}"), G);
    }
    tree.disk("loop0", "7:0", 0);
    tree.disk("loop1", "7:1", G);
    tree.set("loop1", "ro", "1\n");
    tree.disk("loop2", "7:2", G);
    tree.disk("nvme0c0n1", "259:0", G);
    tree.set("nvme0c0n1", "hidden", "1\n");
    tree.mapped("dm-0", "253:0", "LVM-x", "vg-home", "sda");
    tree.mapped("dm-1", "253:1", "mpath-x", "mpatha", "sdb");
    tree.disk("cciss!c0d0", "104:0", G);
    let (found, checks) = names();
    assert_eq!(
        found,
        [
            "/dev/cciss/c0d0",
            "/dev/mapper/mpatha",
            "/dev/fdisk",
            "/dev/loop2",
            "/dev/sda",
            "/dev/sdb"
        ]
    );
    assert_eq!(checks, []);
}

#[test]
fn names_of_no_device_are_told() {
    let tree = Tree::new();
    tree.disk("sda", "8:0", G);
    tree.file("tmp/file", "x");
    // A node that is left over
    tree.file("dev/sdz", "8:99");
    let check = |name: &str| {
        let (devices, mut checks) = disks::selected(&tree.root(), &paths(&[name]));
        assert!(devices.is_empty(), "{name}");
        checks.remove(0)
    };
    expect(
        &check("/dev/sdb"),
        Level::Problem,
        &["no such device", "lsblk -p"],
    );
    expect(
        &check("/tmp/file"),
        Level::Problem,
        &["not a block device", "losetup"],
    );
    expect(&check("/dev/sdz"), Level::Problem, &["/sys/dev/block/8:99"]);
}

#[test]
fn writes_past_the_tracking_are_told() {
    let mut tree = Tree::new();
    tree.disk("sda", "8:0", G);
    tree.partition("sda", "sda1", "8:1", G);
    let checks = tracking_of(&tree, "/dev/sda1");
    assert_eq!(checks.len(), 1);
    expect(&checks[0], Level::Ok, &["nothing is known"]);

    tree.disk("loop0", "7:0", G);
    tree.set("loop0", "loop/backing_file", "/srv/disk.img\n");
    tree.mapped("dm-0", "253:0", "LVM-x", "vg-a", "loop0");
    for name in ["/dev/loop0", "/dev/mapper/vg-a"] {
        let checks = tracking_of(&tree, name);
        assert_eq!(checks.len(), 1, "{checks:?}");
        expect(
            &checks[0],
            Level::Note,
            &["/srv/disk.img", "through /dev/loop0"],
        );
    }

    tree.bio_disk("drbd1", "147:1", G);
    tree.stack("sda1", "drbd1");
    tree.mapped("dm-1", "253:1", "LVM-y", "vg-b", "drbd1");
    let checks = tracking_of(&tree, "/dev/mapper/vg-b");
    assert_eq!(checks.len(), 1, "{checks:?}");
    expect(
        &checks[0],
        Level::Warning,
        &["/dev/drbd1", "name /dev/sda1 instead"],
    );
    // What the peer writes comes to the disk below as bios.
    expect(&tracking_of(&tree, "/dev/sda1")[0], Level::Ok, &[]);

    for (place, kind) in [
        ("platform/host5/session2/target5:0:0/block/sdc", "iSCSI"),
        (
            "pci0/host6/rport-6:0-1/target6:0:1/block/sdd",
            "Fibre Channel",
        ),
    ] {
        let name = place.rsplit('/').next().unwrap();
        tree.disk_at(place, name, &format!("8:{}", place.len()), G);
        let checks = tracking_of(&tree, &format!("/dev/{name}"));
        assert_eq!(checks.len(), 1, "{checks:?}");
        expect(&checks[0], Level::Note, &[kind, "--compare"]);
    }
    tree.disk("nvme1n1", "259:1", G);
    for (transport, level) in [("pcie\n", Level::Ok), ("tcp\n", Level::Note)] {
        tree.set("nvme1n1", "device/transport", transport);
        expect(&tracking_of(&tree, "/dev/nvme1n1")[0], level, &[]);
    }
    tree.disk("rbd0", "250:0", G);
    expect(&tracking_of(&tree, "/dev/rbd0")[0], Level::Note, &["Ceph"]);

    tree.mount_with("8:1", "/cluster", "ocfs2", "/dev/sda1", "rw");
    expect(
        &tracking_of(&tree, "/dev/sda")[0],
        Level::Warning,
        &["/cluster", "ocfs2"],
    );
}

#[test]
fn names_that_stay_are_recommended() {
    let tree = Tree::new();
    tree.disk("sda", "8:0", G);
    tree.disk("sdb", "8:16", G);
    tree.mapped("dm-0", "253:0", "LVM-x", "vg-home", "sdb");
    for id in ["wwn-0x5000", "scsi-A", "ata-A", "nvme-eui.1"] {
        tree.by_id(id, "sda");
    }
    tree.by_id("ata-gone", "sdz");
    let check = |name: &str| naming::check(&tree.root(), &tree.named(&[name])[0]);
    expect(
        &check("/dev/sda"),
        Level::Note,
        &["name /dev/disk/by-id/ata-A instead"],
    );
    expect(&check("/dev/disk/by-id/wwn-0x5000"), Level::Ok, &[]);
    expect(&check("/dev/mapper/vg-home"), Level::Ok, &[]);
    expect(
        &check("/dev/dm-0"),
        Level::Note,
        &["name /dev/mapper/vg-home instead"],
    );
    expect(
        &check("/dev/sdb"),
        Level::Note,
        &["/dev/disk/by-id", "serial number"],
    );
    tree.disk("loop0", "7:0", G);
    tree.set("loop0", "loop/backing_file", "/srv/x\n");
    expect(&check("/dev/loop0"), Level::Note, &["--loop-ref"]);
    tree.set("sdb", "serial", "B\n");
    expect(&check("/dev/sdb"), Level::Note, &["udev"]);
    fs::remove_file(tree.path("dev/disk/by-id/ata-A")).unwrap();
    let (devices, _) = disks::selected(&tree.root(), &[]);
    let sda = devices.iter().find(|it| it.subject == "/dev/sda").unwrap();
    let check = naming::check(&tree.root(), sda);
    expect(&check, Level::Ok, &["/dev/disk/by-id/scsi-A"]);
}
