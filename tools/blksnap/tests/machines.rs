// SPDX-License-Identifier: GPL-2.0-only

//! The command on a directory in which several machines have restore points, and on one
//! whose manifest is lost.

// Not all of it is needed here.
#[allow(dead_code)]
mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::process::Output;

use blksnap::backup;
use serde_json::Value;
use tempfile::TempDir;

use common::files::Files;
use common::files::Nobody;
use common::files::SIZE;

/// Makes a restore point of a machine's disk, all bytes of which are `fill`.
fn back_up(temp: &Path, host: &str, fill: u8) {
    fs::write(temp.join("host"), host).unwrap();
    fs::write(temp.join("disk"), vec![fill; SIZE]).unwrap();
    let files = Files(temp.to_owned());
    let request = backup::Request {
        is_shared: true,
        spot_check: 0,
        ..files.request()
    };
    backup::run(&files, &request, &mut Nobody).unwrap();
}

/// Restore points 1, 2 and 5 of db1, and 3 and 4 of db2, filled with their numbers.
fn shared() -> TempDir {
    let temp = TempDir::new().unwrap();
    for (fill, host) in (1..).zip(["db1", "db1", "db2", "db2", "db1"]) {
        back_up(temp.path(), host, fill);
    }
    temp
}

fn blksnap(temp: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_blksnap"))
        .args(arguments)
        .current_dir(temp)
        .output()
        .unwrap()
}

/// What it prints, if it works.
fn printed(temp: &Path, arguments: &[&str]) -> String {
    let output = blksnap(temp, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What it says, if it ends with `code`.
fn refused(temp: &Path, arguments: &[&str], code: i32) -> String {
    let output = blksnap(temp, arguments);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}: {output:?}"
    );
    String::from_utf8(output.stderr).unwrap()
}

fn points(temp: &Path) -> Vec<u64> {
    let list: Value = serde_json::from_str(&printed(temp, &["list", "backup", "--json"])).unwrap();
    let points = list["points"].as_array().unwrap().iter();
    points.map(|it| it["point"].as_u64().unwrap()).collect()
}

#[test]
fn whose_restore_points_they_are_is_shown() {
    let temp = shared();
    let text = printed(temp.path(), &["list", "backup"]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].ends_with("MACHINE"), "{text}");
    assert!(
        lines[2].ends_with("db1") && lines[3].ends_with("db2"),
        "{text}"
    );
    let list: Value =
        serde_json::from_str(&printed(temp.path(), &["list", "backup", "--json"])).unwrap();
    assert_eq!(list["points"][2]["machine"]["host"], "db2");
    assert_eq!(list["points"][2]["machine"]["id"], "id of db2");

    let alone = TempDir::new().unwrap();
    back_up(alone.path(), "db1", 1);
    assert!(!printed(alone.path(), &["list", "backup"]).contains("MACHINE"));
}

#[test]
fn a_machine_prunes_its_own_only() {
    let temp = shared();
    let prune = ["prune", "backup", "--keep", "1"];
    // This machine is neither of both.
    let error = refused(temp.path(), &prune, 2);
    assert!(error.contains("db1 (machine id id of db1), db2") || error.contains("db2 (machine"));
    assert!(error.contains("--machine"), "{error}");
    let unknown = [&prune[..], &["--machine", "db3"]].concat();
    assert!(refused(temp.path(), &unknown, 2).contains("no restore point of db3"));
    let db2 = [&prune[..], &["--machine", "db2", "--dry-run"]].concat();
    let shown = printed(temp.path(), &db2);
    let (table, line) = shown.trim_end().rsplit_once('\n').unwrap();
    assert_eq!(
        line,
        "restore points that would be removed: 3; 4 would be kept"
    );
    for (line, (number, reason)) in table.lines().skip(1).zip([
        ("1 ", " machine"),
        ("2 ", " machine"),
        ("4 ", " last"),
        ("5 ", " machine"),
    ]) {
        assert!(
            line.starts_with(number) && line.ends_with(reason),
            "{shown}"
        );
    }
    assert_eq!(points(temp.path()), [1, 2, 3, 4, 5]);
    printed(temp.path(), &db2[..6]);
    assert_eq!(points(temp.path()), [1, 2, 4, 5]);
    let by_id = [&prune[..], &["--machine", "id of db1"]].concat();
    printed(temp.path(), &by_id);
    assert_eq!(points(temp.path()), [4, 5]);
    printed(temp.path(), &["verify", "backup"]);
}

#[test]
fn a_restore_is_of_one_machine() {
    let temp = shared();
    let restore = |target: &str, more: &[&str]| {
        printed(
            temp.path(),
            &[&["restore", "backup", target][..], more].concat(),
        );
        fs::read(temp.path().join(target)).unwrap()[0]
    };
    let error = refused(temp.path(), &["restore", "backup", "out"], 2);
    assert!(error.contains("--machine"), "{error}");
    assert_eq!(restore("a", &["--machine", "db1"]), 5);
    assert_eq!(restore("b", &["--machine", "db2"]), 4);
    // The number says whose it is.
    assert_eq!(restore("c", &["--point", "3"]), 3);
    refused(
        temp.path(),
        &["restore", "backup", "d", "--point", "3", "--machine", "db1"],
        2,
    );
}

#[test]
fn chosen_restore_points_go() {
    let temp = shared();
    let error = refused(temp.path(), &["forget", "backup", "2", "9"], 1);
    assert!(error.contains("no restore point 9"), "{error}");
    assert_eq!(points(temp.path()), [1, 2, 3, 4, 5]);
    let text = printed(temp.path(), &["forget", "backup", "2", "4", "--dry-run"]);
    assert_eq!(
        text,
        "restore points that would be removed: 2, 4; 3 would be kept\n"
    );
    assert_eq!(points(temp.path()), [1, 2, 3, 4, 5]);
    printed(temp.path(), &["forget", "backup", "4", "2", "2"]);
    assert_eq!(points(temp.path()), [1, 3, 5]);
    printed(temp.path(), &["verify", "backup"]);
}

#[test]
fn a_lost_manifest_is_told_and_made_again() {
    let temp = shared();
    let manifest = temp.path().join("backup/blksnap.json");
    let before = printed(temp.path(), &["list", "backup", "--json"]);
    fs::remove_file(&manifest).unwrap();
    for arguments in [
        &["list", "backup"][..],
        &["verify", "backup"],
        &["prune", "backup", "--keep", "1"],
        &["restore", "backup", "x"],
    ] {
        let error = refused(temp.path(), arguments, 4);
        assert!(error.contains("blksnap rebuild backup"), "{error}");
    }
    printed(temp.path(), &["rebuild", "backup"]);
    assert_eq!(printed(temp.path(), &["list", "backup", "--json"]), before);
    printed(temp.path(), &["verify", "backup"]);

    fs::remove_file(&manifest).unwrap();
    let sums = temp.path().join("backup/000005/disk.sums");
    let aside = temp.path().join("aside");
    fs::rename(&sums, &aside).unwrap();
    let error = refused(temp.path(), &["rebuild", "backup"], 4);
    assert!(error.contains("disk.sums"), "{error}");
    let text = String::from_utf8(blksnap(temp.path(), &["list", "backup"]).stdout).unwrap();
    assert!(!text.contains("\n5 "), "{text}");
    assert_eq!(points(temp.path()), [1, 2, 3, 4]);
    printed(temp.path(), &["verify", "backup"]);
    refused(temp.path(), &["rebuild", "nothing"], 1);

    // It says so until that is set right, and takes it in then.
    let error = refused(temp.path(), &["rebuild", "backup"], 4);
    assert!(error.contains("disk.sums"), "{error}");
    fs::rename(&aside, &sums).unwrap();
    let text = printed(temp.path(), &["rebuild", "backup"]);
    assert!(text.contains("can be had again: 5\n"), "{text}");
    assert_eq!(printed(temp.path(), &["list", "backup", "--json"]), before);
    let text = printed(temp.path(), &["rebuild", "backup"]);
    assert!(text.contains("nothing of it is missing"), "{text}");
}

#[test]
fn machines_of_one_name_are_told_apart() {
    let temp = TempDir::new().unwrap();
    back_up(temp.path(), "db1\nboard-a", 1);
    back_up(temp.path(), "db1\nboard-b", 2);
    for name in ["db1", "id of db1"] {
        for arguments in [
            &["restore", "backup", "x", "--machine", name][..],
            &["prune", "backup", "--keep", "1", "--machine", name],
        ] {
            let error = refused(temp.path(), arguments, 2);
            assert!(error.contains("name of several machines"), "{error}");
            assert!(
                error.contains("board-a") && error.contains("board-b"),
                "{error}"
            );
        }
    }
    let error = refused(temp.path(), &["restore", "backup", "x"], 2);
    assert!(
        error.contains("board-a") && error.contains("board-b"),
        "{error}"
    );
    let restore = ["restore", "backup", "x", "--machine", "board-a"];
    printed(temp.path(), &restore);
    assert_eq!(fs::read(temp.path().join("x")).unwrap()[0], 1);
}

/// Lets others write to a file, or no more.
fn share(path: &Path, is_shared: bool) {
    let mode = if is_shared { 0o620 } else { 0o600 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_file_that_others_can_write_to_is_not_lost() {
    let temp = shared();
    let path = |name: &str| temp.path().join("backup").join(name);
    let before = printed(temp.path(), &["list", "backup", "--json"]);
    let manifest = fs::read(path("blksnap.json")).unwrap();
    let check = |name: &str| {
        share(&path(name), true);
        let error = refused(temp.path(), &["rebuild", "backup"], 1);
        assert!(error.contains("others can write to it"), "{error}");
        assert!(!path("blksnap.json.damaged").exists());
        share(&path(name), false);
    };
    check("blksnap.json");
    assert_eq!(fs::read(path("blksnap.json")).unwrap(), manifest);
    check("000001/point.json");
    fs::remove_file(path("blksnap.json")).unwrap();
    for name in ["000001/point.json", "000001/disk.qcow2", "000001/disk.sums"] {
        check(name);
        assert!(!path("blksnap.json").exists());
    }
    printed(temp.path(), &["rebuild", "backup"]);
    assert_eq!(printed(temp.path(), &["list", "backup", "--json"]), before);
}

#[test]
fn where_nothing_can_be_had_again_all_stays() {
    let temp = shared();
    let backup = temp.path().join("backup");
    for number in 1..=5 {
        fs::remove_file(backup.join(format!("{number:06}/point.json"))).unwrap();
    }
    for manifest in [Some("{"), None] {
        match manifest {
            Some(text) => fs::write(backup.join("blksnap.json"), text).unwrap(),
            None => fs::remove_file(backup.join("blksnap.json")).unwrap(),
        }
        let output = blksnap(temp.path(), &["rebuild", "backup"]);
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("all is left as it is"), "{text}");
        assert_eq!(backup.join("blksnap.json").exists(), manifest.is_some());
        refused(temp.path(), &["list", "backup"], 4);
    }
}

#[test]
fn what_is_in_the_way_of_a_part_stops_nothing_for_ever() {
    let temp = shared();
    let part = temp.path().join("backup/000001/point.json");
    fs::remove_file(&part).unwrap();
    fs::create_dir(&part).unwrap();
    let error = refused(temp.path(), &["rebuild", "backup"], 1);
    assert!(error.contains("it is a directory"), "{error}");
    printed(temp.path(), &["forget", "backup", "3"]);
    back_up(temp.path(), "db1", 6);
    fs::remove_dir(&part).unwrap();
    printed(temp.path(), &["rebuild", "backup"]);
    assert!(part.is_file());
    assert_eq!(points(temp.path()), [1, 2, 4, 5, 6]);
    printed(temp.path(), &["verify", "backup"]);
}

#[test]
fn a_file_with_the_name_of_a_directory_is_no_restore_point() {
    let temp = shared();
    let before = printed(temp.path(), &["list", "backup", "--json"]);
    fs::write(temp.path().join("backup/000009"), "").unwrap();
    fs::remove_file(temp.path().join("backup/blksnap.json")).unwrap();
    printed(temp.path(), &["rebuild", "backup"]);
    assert_eq!(printed(temp.path(), &["list", "backup", "--json"]), before);
}
