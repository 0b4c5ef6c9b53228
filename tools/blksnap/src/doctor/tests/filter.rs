// SPDX-License-Identifier: GPL-2.0-only

use super::expect;
use super::tree::Tree;
use crate::doctor::disks;
use crate::doctor::filter;
use crate::doctor::Check;
use crate::doctor::Level;

const G: u64 = 1 << 30;

fn filter_of(tree: &Tree, name: &str) -> Check {
    let devices = tree.named(&[name]);
    let mut checks = filter::check(&tree.root(), &devices[0], tree.system.page_size);
    assert_eq!(checks.len(), 1);
    checks.remove(0)
}

#[test]
fn kinds_that_cannot_have_filters_are_told() {
    type Case<'a> = (&'a str, &'a dyn Fn(&Tree), &'a [&'a str]);
    let refused: [Case<'_>; 9] = [
        (
            "sda",
            &|tree| tree.set("sda", "queue/zoned", "host-managed\n"),
            &["zoned", "host-managed", "LVM"],
        ),
        (
            "sda",
            &|tree| tree.set("sda", "queue/dax", "1\n"),
            &["DAX", "ndctl"],
        ),
        (
            "sda",
            &|tree| tree.set("sda", "filter", "other\n"),
            &["\"other\"", "detach"],
        ),
        (
            "sda",
            &|tree| tree.set("sda", "queue/logical_block_size", "8192\n"),
            &["8192", "page of memory (4096)"],
        ),
        (
            "sda",
            &|tree| tree.mapped("dm-0", "253:0", "mpath-1", "mpatha", "sda"),
            &[
                "path of the multipath device",
                "name /dev/mapper/mpatha instead",
            ],
        ),
        (
            "bcache0",
            &|tree| {
                tree.bio_disk("bcache0", "252:0", G);
                tree.stack("sda", "bcache0");
            },
            &[
                "bcache",
                "backing device (/dev/sda)",
                "/sys/block/bcache0/bcache/cache_mode",
            ],
        ),
        (
            "drbd1",
            &|tree| {
                tree.bio_disk("drbd1", "147:1", G);
                tree.stack("sda", "drbd1");
            },
            &["DRBD", "name /dev/sda"],
        ),
        (
            "nvme0n1",
            &|tree| {
                tree.bio_disk("nvme0n1", "259:0", G);
                tree.mapped("dm-1", "253:1", "LVM-x", "vg-home", "nvme0n1");
            },
            &[
                "NVMe multipath",
                "nvme_core.multipath=N",
                "/dev/mapper/vg-home",
            ],
        ),
        (
            "odd0",
            &|tree| tree.bio_disk("odd0", "251:0", G),
            &["request queue"],
        ),
    ];
    for (name, set_up, parts) in refused {
        let tree = Tree::new();
        tree.disk("sda", "8:0", G);
        set_up(&tree);
        expect(
            &filter_of(&tree, &format!("/dev/{name}")),
            Level::Problem,
            parts,
        );
        // Nobody has asked to back it up.
        let (devices, _) = disks::selected(&tree.root(), &[]);
        let ends_in_name = |it: &&disks::Device| it.subject.ends_with(name);
        let device = devices.iter().find(ends_in_name).unwrap();
        let checks = filter::check(&tree.root(), device, 4096);
        assert!(checks[0].level < Level::Problem, "{:?}", checks[0]);
        assert!(checks[0].level > Level::Ok, "{:?}", checks[0]);
    }
}

#[test]
fn kinds_that_can_have_filters_are_told() {
    let tree = Tree::new();
    tree.disk("sda", "8:0", G);
    tree.partition("sda", "sda1", "8:1", G);
    tree.set("sda", "queue/logical_block_size", "4096\n");
    tree.mapped("dm-0", "253:0", "LVM-x", "vg-home", "sda1");
    tree.bio_disk("md0", "9:0", G);
    tree.set("md0", "md/level", "raid1\n");
    for (number, name) in ["ram0", "zram0", "pmem0s"].iter().enumerate() {
        tree.bio_disk(name, &format!("1:{number}"), G);
    }
    for name in [
        "sda",
        "sda1",
        "mapper/vg-home",
        "md0",
        "ram0",
        "zram0",
        "pmem0s",
    ] {
        expect(
            &filter_of(&tree, &format!("/dev/{name}")),
            Level::Ok,
            &["can have"],
        );
    }
    tree.set("sda1", "filter", "blksnap\n");
    expect(
        &filter_of(&tree, "/dev/sda1"),
        Level::Ok,
        &["has the filter"],
    );
    // What holds for the disk holds for its partition.
    tree.set("sda", "queue/zoned", "host-aware\n");
    expect(&filter_of(&tree, "/dev/sda1"), Level::Problem, &["zoned"]);
}
