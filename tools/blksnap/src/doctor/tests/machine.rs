// SPDX-License-Identifier: GPL-2.0-only

//! Privileges, limits, memory and the clock.

use super::expect;
use super::tree::Tree;
use super::tree::NOW;
use crate::doctor::caller;
use crate::doctor::clock;
use crate::doctor::memory;
use crate::doctor::Level;

#[test]
fn privileges_are_those_of_the_host() {
    const ALL: &str = "0 0 4294967295\n";
    let status = |uid: u32, caps: &str| format!("Uid:\t{uid}\t{uid}\t0\t0\nCapEff:\t{caps}\n");
    for (text, map, level, parts) in [
        (
            status(0, "000001ffffffffff"),
            ALL,
            Level::Ok,
            &["CAP_SYS_ADMIN"][..],
        ),
        (status(7, "0000000000200000"), ALL, Level::Ok, &[]),
        (status(7, "0"), ALL, Level::Note, &["as root"]),
        (
            status(0, "00000000a80425fb"),
            ALL,
            Level::Problem,
            &["container", "host"],
        ),
        (
            status(0, "000001ffffffffff"),
            "0 100000 65536\n",
            Level::Problem,
            &["user namespace", "on the host"],
        ),
        ("nonsense".to_owned(), ALL, Level::Note, &["/proc"]),
    ] {
        let tree = Tree::new();
        tree.file("proc/self/status", &text);
        tree.file("proc/self/uid_map", map);
        let check = caller::capabilities(&tree.root());
        expect(&check, level, parts);
        assert_eq!(caller::is_privileged(&tree.root()), level == Level::Ok);
    }
}

#[test]
fn few_open_files_are_told() {
    for (hard, level, part) in [
        ("524288", Level::Ok, "524288"),
        ("unlimited", Level::Ok, "unlimited"),
        ("256", Level::Ok, "256"),
        ("255", Level::Warning, "LimitNOFILE="),
        ("64", Level::Warning, "ulimit -Hn"),
    ] {
        let tree = Tree::new();
        tree.file(
            "proc/self/limits",
            &format!("Max processes 5 5 processes\nMax open files  64  {hard}  files\n"),
        );
        expect(&caller::open_files(&tree.root()), level, &[part]);
    }
    let tree = Tree::new();
    tree.file("proc/self/limits", "");
    expect(&caller::open_files(&tree.root()), Level::Note, &["/proc"]);
}

#[test]
fn a_clock_before_backups_is_wrong() {
    for (now, newest, level, part) in [
        (NOW, None, Level::Ok, "2026-11-30"),
        (NOW, Some(NOW), Level::Ok, ""),
        (NOW, Some(NOW + 1), Level::Warning, "2026-11-30T00:00:01Z"),
        (1_735_689_599, None, Level::Warning, "2024-12-31T23:59:59Z"),
        (1_735_689_600, None, Level::Ok, "2025-01-01"),
        (0, Some(NOW), Level::Warning, "timedatectl"),
    ] {
        expect(&clock::check(now, newest), level, &[part]);
    }
}

#[test]
fn maps_have_the_size_that_the_driver_gives_them() {
    const TIB: u64 = 1 << 40;
    let tree = Tree::new();
    for (size, bytes) in [
        (0, 0),
        (1, 2),
        (65536, 2),
        (65537, 4),
        // As many blocks as there may be, and then larger ones
        (TIB / 8, 4 << 20),
        (TIB / 8 + 1, (2 << 20) + 2),
        // Blocks do not become larger than 64 MiB, unless there would be more than 2^27.
        (256 * TIB, 8 << 20),
        (u64::MAX / 2, 256 << 20),
    ] {
        assert_eq!(memory::of_maps(&tree.root(), size), bytes, "{size}");
    }
    let parameters = "sys/module/blksnap/parameters";
    tree.file(
        &format!("{parameters}/tracking_block_minimum_shift"),
        "20\n",
    );
    assert_eq!(memory::of_maps(&tree.root(), 1 << 30), 2048);
    tree.file(
        &format!("{parameters}/tracking_block_minimum_shift"),
        "rubbish",
    );
    tree.file(&format!("{parameters}/tracking_block_maximum_count"), "1\n");
    assert_eq!(memory::of_maps(&tree.root(), 1 << 30), 32);
}

#[test]
fn memory_has_to_be_free() {
    let tree = Tree::new();
    tree.disk("sda", "8:0", 1 << 30);
    let devices = tree.named(&["/dev/sda"]);
    let check = |info: &str, devices: &[_]| {
        tree.file("proc/meminfo", info);
        memory::check(&tree.root(), devices)
    };
    const FREE: &str = "MemTotal: 4194304 kB\nMemAvailable: 2097152 kB\n";
    // 32 KiB for the maps, 32 MiB for copies, 128 MiB for what is saved
    expect(
        &check(FREE, &devices).unwrap(),
        Level::Ok,
        &["32K", "32M", "128M", "2G are free"],
    );
    const SHORT: &str = "MemTotal: 4194304 kB\nMemAvailable: 163839 kB\n";
    expect(
        &check(SHORT, &devices).unwrap(),
        Level::Warning,
        &["copy_memory", "modprobe.d"],
    );
    expect(&check("", &devices).unwrap(), Level::Note, &["/proc"]);
    assert_eq!(check(FREE, &[]), None);
    // Numbers that no machine has
    let huge = format!("MemTotal: {0} kB\nMemAvailable: {0} kB\n", u64::MAX);
    expect(&check(&huge, &devices).unwrap(), Level::Ok, &[]);
    tree.file(
        "sys/module/blksnap/parameters/map_memory",
        &u64::MAX.to_string(),
    );
    expect(&check(FREE, &devices).unwrap(), Level::Warning, &[]);
}
