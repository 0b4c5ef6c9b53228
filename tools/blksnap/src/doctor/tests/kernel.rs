// SPDX-License-Identifier: GPL-2.0-only

use std::fs;
use std::process::Command;

use rustix::io::Errno;

use super::expect;
use super::tree::Tree;
use super::tree::RELEASE;
use crate::doctor::driver;
use crate::doctor::kernel;
use crate::doctor::kernel::Choice;
use crate::doctor::kernel::Config;
use crate::doctor::module;
use crate::doctor::Check;
use crate::doctor::Level;

const ON: &str = "CONFIG_BLOCK=y\nCONFIG_BLK_FILTER=y\nCONFIG_BLKSNAP=m\n";
const OFF: &str = "CONFIG_BLOCK=y\n# CONFIG_BLK_FILTER is not set\n";

fn config_file() -> String {
    format!("boot/config-{RELEASE}")
}

#[test]
fn filters_are_found_where_they_are() {
    let check = |set_up: &dyn Fn(&Tree)| {
        let tree = Tree::new();
        set_up(&tree);
        let root = tree.root();
        kernel::check(&root, &Config::read(&root))
    };
    let disk = |tree: &Tree| tree.disk("sda", "8:0", 512);
    let bare = |tree: &Tree| {
        disk(tree);
        tree.unset("sda", "filter");
    };
    type Case<'a> = (&'a dyn Fn(&Tree), Level, &'a [&'a str]);
    let cases: [Case<'_>; 6] = [
        (&disk, Level::Ok, &["has block device filters"]),
        // What disks have counts.
        (
            &|tree| {
                disk(tree);
                tree.file(&config_file(), OFF);
            },
            Level::Ok,
            &[],
        ),
        (
            &bare,
            Level::Problem,
            &["/sys/block/sda/filter", "CONFIG_BLK_FILTER=y"],
        ),
        (
            &|tree| {
                bare(tree);
                tree.file(&config_file(), OFF);
            },
            Level::Problem,
            &["/boot/config-7.0.0-test", "CONFIG_BLK_FILTER=y"],
        ),
        (
            &|tree| tree.file(&config_file(), ON),
            Level::Ok,
            &["/boot/config-7.0.0-test"],
        ),
        (&|_| (), Level::Note, &["cannot be found out", "/sys"]),
    ];
    for (set_up, level, parts) in cases {
        expect(&check(set_up), level, parts);
    }
}

#[test]
fn configurations_are_read() {
    let tree = Tree::new();
    let read = || Config::read(&tree.root());
    let nothing = Config {
        file: None,
        filter: None,
        blksnap: None,
    };
    assert_eq!(read(), nothing);
    let place = format!("lib/modules/{RELEASE}/config");
    tree.file(&place, "CONFIG_BLKSNAP=y\nCONFIG_BLK_FILTER_X=y\n");
    let config = read();
    assert_eq!(config.file, Some(format!("/{place}")));
    assert_eq!(config.filter, Some(Choice::Off));
    assert_eq!(config.blksnap, Some(Choice::BuiltIn));
    // The kernel itself knows best, but for what is none.
    tree.file("proc/config.gz", "no archive");
    assert_eq!(read(), config);
    tree.file("config", ON);
    let packed = Command::new("gzip")
        .arg("-c")
        .arg(tree.path("config"))
        .output()
        .unwrap();
    fs::write(tree.path("proc/config.gz"), packed.stdout).unwrap();
    let config = read();
    assert_eq!(config.file.as_deref(), Some("/proc/config.gz"));
    assert_eq!(config.filter, Some(Choice::BuiltIn));
    assert_eq!(config.blksnap, Some(Choice::Module));
}

fn module(set_up: &dyn Fn(&Tree)) -> Check {
    let tree = Tree::new();
    set_up(&tree);
    let root = tree.root();
    module::check(&root, &Config::read(&root))
}

/// A module built for a release.
fn built(tree: &Tree, path: &str, release: &str) {
    let text = format!("\u{1}ELF\0license=GPL\0vermagic={release} SMP preempt\0name=blksnap\0");
    tree.file(path, &text);
}

#[test]
fn the_module_is_found_or_missed() {
    const DEP: &str = "lib/modules/7.0.0-test/modules.dep";
    const FILE: &str = "lib/modules/7.0.0-test/kernel/drivers/block/blksnap/blksnap.ko";
    let listed = |tree: &Tree| {
        tree.file(
            DEP,
            "kernel/x.ko:\nkernel/drivers/block/blksnap/blksnap.ko: kernel/x.ko\n",
        );
    };
    let good = |tree: &Tree| {
        listed(tree);
        built(tree, FILE, RELEASE);
    };
    type Case<'a> = (&'a dyn Fn(&Tree), Level, &'a [&'a str]);
    let cases: [Case<'_>; 10] = [
        (
            &|tree| tree.file("sys/module/blksnap/initstate", "live"),
            Level::Ok,
            &["is loaded"],
        ),
        (
            &good,
            Level::Problem,
            &["not loaded", "modprobe blksnap", "modules-load.d"],
        ),
        (
            &|tree| {
                good(tree);
                tree.file("proc/sys/kernel/modules_disabled", "1\n");
            },
            Level::Problem,
            &["kernel.modules_disabled", "restart"],
        ),
        (
            &|tree| {
                listed(tree);
                built(tree, FILE, "6.9.0-old");
            },
            Level::Problem,
            &[
                "built for kernel 6.9.0-old",
                "7.0.0-test is running",
                "boot kernel 6.9.0-old",
            ],
        ),
        // On the list, but removed
        (
            &listed,
            Level::Problem,
            &["no module \"blksnap\" in /lib/modules/7.0.0-test"],
        ),
        (
            &|tree| built(tree, FILE, RELEASE),
            Level::Problem,
            &["depmod -a", "/lib/modules/7.0.0-test/kernel/drivers"],
        ),
        (
            &|tree| {
                tree.file("lib/modules/7.0.0-test/updates/dkms/blksnap.ko.zst", "x");
            },
            Level::Problem,
            &["depmod -a", "updates/dkms/blksnap.ko.zst"],
        ),
        (
            &|tree| {
                tree.file("lib/modules/7.0.0-test/modules.dep", "");
                tree.file("lib/modules/7.1.0-new/extra/blksnap.ko.xz", "");
            },
            Level::Problem,
            &["built for kernel 7.1.0-new", "boot kernel 7.1.0-new"],
        ),
        (
            &|tree| {
                tree.file(
                    "lib/modules/7.0.0-test/modules.builtin",
                    "kernel/drivers/block/blksnap/blksnap.ko\n",
                );
            },
            Level::Problem,
            &["built into", "dmesg"],
        ),
        (
            &|tree| tree.file(&config_file(), "CONFIG_BLK_FILTER=y\n"),
            Level::Problem,
            &["CONFIG_BLKSNAP is not set in /boot/config-7.0.0-test"],
        ),
    ];
    for (set_up, level, parts) in cases {
        expect(&module(set_up), level, parts);
    }
}

#[test]
fn the_control_device_is_opened() {
    const NODE: &str = "dev/blksnap-control";
    let check = |is_loaded: bool, is_there: bool, is_root: bool, driver| {
        let mut tree = Tree::new();
        if is_loaded {
            tree.file("sys/module/blksnap/initstate", "live");
        }
        if is_there {
            tree.file(NODE, "");
        }
        if !is_root {
            tree.file("proc/self/status", "Uid:\t7\t7\t7\t7\nCapEff:\t0\n");
        }
        tree.system.driver = driver;
        driver::check(&tree.root(), &tree.system)
    };
    let denied = Err(Errno::ACCESS);
    expect(
        &check(true, true, true, Ok(3)),
        Level::Ok,
        &["version 3.0.0.0"],
    );
    expect(
        &check(false, false, true, Ok(3)),
        Level::Note,
        &["not loaded", "again"],
    );
    expect(
        &check(true, false, true, Ok(3)),
        Level::Problem,
        &["devtmpfs"],
    );
    expect(
        &check(true, true, false, denied),
        Level::Note,
        &["only root", "as root"],
    );
    // What even root must not do
    expect(
        &check(true, true, true, denied),
        Level::Problem,
        &["permission denied", "container"],
    );
    expect(
        &check(true, true, false, Err(Errno::NODEV)),
        Level::Problem,
        &["modprobe blksnap"],
    );
}
