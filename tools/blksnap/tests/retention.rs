// SPDX-License-Identifier: GPL-2.0-only

//! "blksnap prune" with rules by age.

// Not all of it is needed here.
#[allow(dead_code)]
mod common;

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::time::Duration;

use blksnap::backup;
use blksnap::backup::manifest::Manifest;
use rustix::fs::flock;
use rustix::fs::FlockOperation;
use serde_json::json;
use serde_json::Value;
use tempfile::TempDir;

use common::files::Files;
use common::files::Nobody;
use common::files::SIZE;

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
/// 2024-03-04 00:00 UTC, a Monday.
const MONDAY: u64 = 1_709_510_400;

/// A process that another test starts has all open files until it runs its program, so that a lock
/// can outlast its owner by a moment.
const WAIT: Duration = Duration::from_secs(2);

/// A backup with a restore point of a machine at each of these times.
fn backup_of(points: &[(&str, u64)]) -> TempDir {
    let temp = TempDir::new().unwrap();
    for (fill, (host, _)) in (1..).zip(points) {
        fs::write(temp.path().join("host"), host).unwrap();
        fs::write(temp.path().join("disk"), vec![fill; SIZE]).unwrap();
        let files = Files(temp.path().to_owned());
        let request = backup::Request {
            is_shared: true,
            spot_check: 0,
            ..files.request()
        };
        backup::run(&files, &request, &mut Nobody).unwrap();
    }
    let path = temp.path().join("backup/blksnap.json");
    let mut manifest = Manifest::from_json(&fs::read_to_string(&path).unwrap()).unwrap();
    for (point, (_, time)) in manifest.points.iter_mut().zip(points) {
        point.time = *time;
    }
    fs::write(&path, manifest.to_json()).unwrap();
    temp
}

/// A backup of one machine with restore points at these times.
fn backup_at(times: &[u64]) -> TempDir {
    let points: Vec<_> = times.iter().map(|time| ("db1", *time)).collect();
    backup_of(&points)
}

fn prune_in(temp: &Path, zone: &str, options: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_blksnap"))
        .args(["prune", "backup", "--lock-wait"])
        .arg(WAIT.as_secs().to_string())
        .args(options)
        .current_dir(temp)
        .env("TZ", zone)
        .output()
        .unwrap()
}

fn prune(temp: &Path, options: &[&str]) -> Output {
    prune_in(temp, "UTC0", options)
}

/// What it prints, if it works.
fn text(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn document(output: Output) -> Value {
    serde_json::from_str(&text(output)).unwrap()
}

/// What it says, if it ends with `code`.
fn refused(output: Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// All files below a directory with their content.
fn picture(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(picture(&path)),
            false => found.push((path.clone(), fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

/// As `picture`, without the lock files, which say who had the directory last.
fn restore_points(temp: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = picture(&temp.join("backup"));
    found.retain(|(path, _)| {
        let name = path.file_name().unwrap();
        name != "blksnap.lock" && name != "blksnap.writer"
    });
    found
}

fn points(temp: &Path) -> Vec<u64> {
    let text = fs::read_to_string(temp.join("backup/blksnap.json")).unwrap();
    Manifest::from_json(&text)
        .unwrap()
        .numbers()
        .into_iter()
        .collect()
}

#[test]
fn a_prune_without_a_rule_is_refused() {
    let temp = backup_at(&[MONDAY, MONDAY + DAY]);
    let before = picture(temp.path());
    for options in [
        &[][..],
        &["--keep", "0"],
        &["--keep-last=0"],
        &["--keep-within=0d"],
        &[
            "--keep=0",
            "--keep-hourly=0",
            "--keep-daily=0",
            "--keep-weekly=0",
            "--keep-monthly=0",
            "--keep-yearly=0",
            "--keep-within=0h",
        ],
        &["--slack=3", "--dry-run"],
    ] {
        let error = refused(prune(temp.path(), options), 2);
        assert!(error.contains("no rule keeps a restore point"), "{error}");
        assert!(error.contains("--keep-daily 7"), "{error}");
        let error = refused(prune(temp.path(), &[options, &["--json"]].concat()), 2);
        let error: Value = serde_json::from_str(&error).unwrap();
        assert_eq!(error["error"]["exit_code"], 2);
        assert!(error["error"]["remedy"]
            .as_str()
            .unwrap()
            .contains("--keep"));
    }
    assert_eq!(picture(temp.path()), before);
    // A rule of 0 beside another one is none.
    text(prune(temp.path(), &["--keep=0", "--keep-daily=1"]));
    assert_eq!(points(temp.path()), [2]);
}

#[test]
fn malformed_rules_are_refused() {
    let temp = backup_at(&[MONDAY]);
    let before = picture(temp.path());
    for option in [
        "--keep=-1",
        "--keep-daily=x",
        "--keep-daily=",
        "--keep-weekly=1.5",
        "--keep-within=14",
        "--keep-within=d",
        "--keep-within=30min",
        "--keep-within=-1d",
        "--keep-within=1M",
        "--keep-within=1d1w",
        "--keep-within=4294967296d",
    ] {
        refused(prune(temp.path(), &[option]), 2);
    }
    let error = refused(prune(temp.path(), &["--keep-within=30min"]), 2);
    assert!(error.contains("such as 14d"), "{error}");
    refused(prune(temp.path(), &["--keep=1", "--keep-last=1"]), 2);
    assert_eq!(picture(temp.path()), before);
}

/// Two restore points on Monday and one on each of the three days after it.
fn a_week() -> TempDir {
    backup_at(&[
        MONDAY + 8 * HOUR,
        MONDAY + 20 * HOUR,
        MONDAY + DAY,
        MONDAY + 2 * DAY,
        MONDAY + 3 * DAY,
    ])
}

#[test]
fn a_dry_run_shows_which_rules_keep_what() {
    let temp = a_week();
    let before = restore_points(temp.path());
    let options = [
        "--keep-last=1",
        "--keep-daily=2",
        "--keep-within=2d",
        "--dry-run",
    ];
    assert_eq!(
        text(prune(temp.path(), &options)),
        "POINT  TIME                  KEPT BY\n\
         3      2024-03-05T00:00:00Z  within\n\
         4      2024-03-06T00:00:00Z  daily, within\n\
         5      2024-03-07T00:00:00Z  last, daily, within\n\
         restore points that would be removed: 1, 2; 3 would be kept\n"
    );
    let report = document(prune(temp.path(), &[&options[..], &["--json"]].concat()));
    assert_eq!(report["kept"], json!([3, 4, 5]));
    assert_eq!(report["removed"], json!([1, 2]));
    assert_eq!(
        report["reasons"],
        json!([
            {"point": 3, "kept_by": ["within"]},
            {"point": 4, "kept_by": ["daily", "within"]},
            {"point": 5, "kept_by": ["last", "daily", "within"]},
        ])
    );
    assert_eq!(restore_points(temp.path()), before);
}

#[test]
fn a_prune_keeps_what_its_dry_run_showed() {
    let temp = a_week();
    let options = ["--keep-daily=4", "--json"];
    let shown = document(prune(temp.path(), &[&options[..], &["--dry-run"]].concat()));
    let report = document(prune(temp.path(), &options));
    assert_eq!(report, shown);
    assert_eq!(report["removed"], json!([1]));
    assert_eq!(report["merged"], json!(["000002/disk"]));
    assert_eq!(points(temp.path()), [2, 3, 4, 5]);
    let yearly = text(prune(temp.path(), &["--keep-yearly=9", "--keep-weekly=1"]));
    assert_eq!(yearly, "restore points removed: 3, kept: 1\n");
    assert_eq!(points(temp.path()), [5]);
    let verified = Command::new(env!("CARGO_BIN_EXE_blksnap"))
        .args(["verify", "backup"])
        .current_dir(temp.path())
        .output();
    text(verified.unwrap());
}

#[test]
fn the_short_form_is_the_newest() {
    let temp = a_week();
    let of = |option| document(prune(temp.path(), &[option, "2", "--dry-run", "--json"]));
    let report = of("--keep");
    assert_eq!(report["kept"], json!([4, 5]));
    assert_eq!(
        report["reasons"][0],
        json!({"point": 4, "kept_by": ["last"]})
    );
    assert_eq!(of("--keep-last"), report);
    // And it goes together with the slack.
    let with = |slack| {
        let options = ["--keep-daily=2", slack, "--dry-run", "--json"];
        document(prune(temp.path(), &options))
    };
    assert_eq!(with("--slack=2")["removed"], json!([1, 2, 3]));
    let report = with("--slack=3");
    assert_eq!(report["removed"], json!([]));
    assert_eq!(
        report["reasons"][0],
        json!({"point": 1, "kept_by": ["slack"]})
    );
}

#[test]
fn days_are_those_of_the_zone() {
    // 22:30 and 23:30 UTC are 23:30 and, on the next day, 0:30 in Berlin.
    let temp = backup_at(&[MONDAY + 22 * HOUR + 1800, MONDAY + 23 * HOUR + 1800]);
    let options = ["--keep-daily=2", "--dry-run"];
    let berlin = text(prune_in(
        temp.path(),
        "CET-1CEST,M3.5.0,M10.5.0/3",
        &options,
    ));
    assert!(
        berlin.contains("1      2024-03-04T23:30:00+01:00  daily\n"),
        "{berlin}"
    );
    assert!(
        berlin.contains("no restore point would be removed"),
        "{berlin}"
    );
    let utc = text(prune(temp.path(), &options));
    assert!(
        utc.contains("would be removed: 1; 1 would be kept"),
        "{utc}"
    );
}

#[test]
fn a_zone_that_is_not_known_is_not_guessed() {
    let temp = backup_at(&[MONDAY, MONDAY + HOUR]);
    let before = restore_points(temp.path());
    let error = refused(
        prune_in(temp.path(), "Nowhere/Town", &["--keep-daily=1"]),
        1,
    );
    assert!(
        error.contains("Nowhere/Town") && error.contains("TZ"),
        "{error}"
    );
    assert_eq!(restore_points(temp.path()), before);
    // Where only the order counts, it is not needed.
    text(prune_in(temp.path(), "Nowhere/Town", &["--keep=1"]));
    assert_eq!(points(temp.path()), [2]);
}

#[test]
fn a_wrong_clock_loses_nothing() {
    let century = MONDAY + 36_525 * DAY;
    let times = [MONDAY, MONDAY + DAY, century, 1000, MONDAY + 2 * DAY];
    let temp = backup_at(&times);
    let output = prune(temp.path(), &["--keep-daily=2", "--json"]);
    let note = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = document(output);
    assert_eq!(report["kept"], json!([2, 3, 4, 5]));
    assert_eq!(report["removed"], json!([1]));
    assert_eq!(
        report["reasons"][1],
        json!({"point": 3, "kept_by": ["clock"]})
    );
    assert_eq!(
        report["reasons"][2],
        json!({"point": 4, "kept_by": ["clock"]})
    );
    for part in ["3, 4", "blksnap forget"] {
        assert!(note.contains(part), "{note}");
    }
    // The order alone needs no clock.
    let output = prune(temp.path(), &["--keep=2"]);
    assert!(output.stderr.is_empty(), "{output:?}");
    assert_eq!(points(temp.path()), [4, 5]);
}

#[test]
fn rules_are_for_each_machine() {
    let temp = backup_of(&[
        ("db1", MONDAY),
        ("db2", MONDAY + HOUR),
        ("db1", MONDAY + DAY),
        ("db2", MONDAY + DAY),
    ]);
    let options = ["--keep-daily=1", "--machine=db2", "--dry-run", "--json"];
    let report = document(prune(temp.path(), &options));
    assert_eq!(report["removed"], json!([2]));
    assert_eq!(
        report["reasons"],
        json!([
            {"point": 1, "kept_by": ["machine"]},
            {"point": 3, "kept_by": ["machine"]},
            {"point": 4, "kept_by": ["daily"]},
        ])
    );
}

#[test]
fn a_refused_prune_leaves_nothing_behind() {
    let temp = a_week();
    let before = restore_points(temp.path());
    let lock = fs::File::open(temp.path().join("backup/blksnap.lock")).unwrap();
    flock(&lock, FlockOperation::LockShared).unwrap();
    let error = refused(prune(temp.path(), &["--keep-daily=1"]), 6);
    assert!(error.contains("lock"), "{error}");
    let error = refused(prune(temp.path(), &["--keep-daily=1", "--machine=db3"]), 2);
    assert!(error.contains("db3"), "{error}");
    assert_eq!(restore_points(temp.path()), before);
    flock(&lock, FlockOperation::Unlock).unwrap();
    text(prune(temp.path(), &["--keep-daily=1"]));
    assert_eq!(points(temp.path()), [5]);
}

#[test]
fn the_rules_are_documented() {
    let help = Command::new(env!("CARGO_BIN_EXE_blksnap"))
        .args(["prune", "--help"])
        .output();
    let help = text(help.unwrap());
    let readme = include_str!("../README.md");
    for rule in [
        "last", "hourly", "daily", "weekly", "monthly", "yearly", "within",
    ] {
        let option = format!("--keep-{rule}");
        assert!(help.contains(&option), "{option}: {help}");
        assert!(readme.contains(&option), "{option}");
    }
    for text in [&help[..], readme] {
        assert!(text.contains("in short `--keep N`") || text.contains("in short --keep N"));
    }
}
