// SPDX-License-Identifier: GPL-2.0-only

//! Checks of made-up machines.

mod disks;
mod filter;
mod hostile;
mod kernel;
mod machine;
mod storage;
mod target;
mod tree;

use std::path::PathBuf;

use super::*;

use tree::Tree;

/// Fails unless a check has this level, and says these things.
fn expect(check: &Check, level: Level, parts: &[&str]) {
    assert_eq!(check.level, level, "{check:?}");
    for part in parts {
        let remedy = check.remedy.as_deref().unwrap_or_default();
        let found = check.message.contains(part) || remedy.contains(part);
        assert!(found, "\"{part}\" is not in {check:?}");
    }
}

/// The paths of devices.
fn paths(names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(PathBuf::from).collect()
}

/// A machine on which backups work: sda has the root, sdb the backups.
fn sound() -> Tree {
    let mut tree = Tree::new();
    tree.disk("sda", "8:0", 1 << 30);
    tree.partition("sda", "sda1", "8:1", 1 << 30);
    tree.disk("sdb", "8:16", 8 << 30);
    tree.by_id("ata-A", "sda");
    tree.by_id("ata-B", "sdb");
    tree.mount("8:1", "/", "ext4", "/dev/sda1");
    tree.mount("8:16", "/backup", "xfs", "/dev/sdb");
    tree.space("/", 1 << 30, 1 << 29);
    tree.space("/backup", 8 << 30, 8 << 30);
    tree.file("sys/module/blksnap/initstate", "live\n");
    tree.file("dev/blksnap-control", "");
    tree
}

#[test]
fn a_sound_machine_has_no_problem() {
    let tree = sound();
    let request = Request {
        devices: paths(&["/dev/disk/by-id/ata-A"]),
        target: Some("/backup".into()),
        store: Some("/backup".into()),
    };
    let report = examine(&tree.root(), &request, &tree.system);
    for check in &report.checks {
        assert_eq!(check.level, Level::Ok, "{check:?}");
        assert_eq!(check.remedy, None, "{check:?}");
    }
    assert_eq!(report.worst(), Level::Ok);
    let names: Vec<&str> = report.checks.iter().map(|it| it.check).collect();
    assert_eq!(
        names,
        [
            "capabilities",
            "kernel",
            "module",
            "driver",
            "disk",
            "filter",
            "tracking",
            "name",
            "memory",
            "open_files",
            "storage",
            "storage",
            "target",
            "lock",
            "target",
            "clock",
        ]
    );
}

#[test]
fn the_only_disk_has_no_place_for_its_backup() {
    let mut tree = sound();
    let request = Request {
        devices: Vec::new(),
        target: Some("/backup".into()),
        store: None,
    };
    let about = |tree: &Tree, check: &str| {
        let report = examine(&tree.root(), &request, &tree.system);
        let of = report.checks.into_iter().filter(|it| it.check == check);
        of.collect::<Vec<_>>()
    };
    let of_target = about(&tree, "target");
    expect(&of_target[1], Level::Ok, &["disks other than /dev/sdb"]);
    tree.set("sda", "hidden", "1");
    let of_target = about(&tree, "target");
    assert_eq!(of_target.len(), 1);
    expect(&of_target[0], Level::Problem, &["lies on /dev/sdb"]);
    tree.set("sda", "hidden", "0");
    tree.set("sdb", "hidden", "1");
    tree.space("/backup", 1, 1);
    expect(&about(&tree, "storage")[0], Level::Warning, &["add a disk"]);
}

#[test]
fn one_problem_is_the_worst() {
    let tree = sound();
    let request = Request {
        devices: paths(&["/dev/sda"]),
        target: None,
        store: Some("/var".into()),
    };
    std::fs::create_dir(tree.path("var")).unwrap();
    let report = examine(&tree.root(), &request, &tree.system);
    assert_eq!(report.worst(), Level::Problem);
    let bad: Vec<&Check> = report
        .checks
        .iter()
        .filter(|it| it.level == Level::Problem)
        .collect();
    assert_eq!(bad.len(), 1, "{bad:?}");
    expect(bad[0], Level::Problem, &["lies on /dev/sda"]);
}

#[test]
fn the_document_stays_what_it_is() {
    let tree = Tree::new();
    let report = examine(&tree.root(), &Request::default(), &tree.system);
    let json = serde_json::to_value(&report).unwrap();
    let keys = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(keys(&json), ["checks"]);
    let checks = json["checks"].as_array().unwrap();
    assert!(!checks.is_empty());
    for check in checks {
        let mut found = keys(check);
        found.sort();
        assert_eq!(found, ["check", "level", "message", "remedy", "subject"]);
        for text in ["check", "level", "message", "subject"] {
            assert!(check[text].is_string(), "{check}");
        }
        let is_bad = ["warning", "problem"].contains(&check["level"].as_str().unwrap());
        assert!(check["remedy"].is_string() || !is_bad, "{check}");
    }
    let names: Vec<String> = [Level::Ok, Level::Note, Level::Warning, Level::Problem]
        .iter()
        .map(|it| {
            serde_json::to_value(it)
                .unwrap()
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(names, ["ok", "note", "warning", "problem"]);
}
