// SPDX-License-Identifier: GPL-2.0-only

//! The command itself, as far as it needs nothing from the kernel.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use serde_json::Value;

struct Outcome {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Outcome {
    fn error(&self) -> Value {
        let json: Value = serde_json::from_str(self.stderr.trim())
            .unwrap_or_else(|error| panic!("{error}: {}", self.stderr));
        json["error"].clone()
    }
}

fn blksnap<S: AsRef<OsStr>>(args: &[S]) -> Outcome {
    let output = Command::new(env!("CARGO_BIN_EXE_blksnap"))
        .args(args)
        .output()
        .unwrap();
    Outcome {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

const ID: &str = "5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11";

#[test]
fn help_has_examples_and_exit_codes() {
    let help = blksnap(&["--help"]);
    assert_eq!(help.code, 0);
    assert!(help.stdout.contains("Exit codes:"));
    for command in [
        "doctor",
        "attach",
        "detach",
        "status",
        "snap",
        "version",
        "run",
        "backup",
        "restore",
        "verify",
        "list",
        "prune",
        "forget",
        "rebuild",
        "changed",
        "completions",
        "man",
    ] {
        assert!(help.stdout.contains(command), "{command}");
        let help = blksnap(&[command, "--help"]);
        assert_eq!(help.code, 0);
        assert!(help.stdout.contains("Examples:"), "{command}");
        assert!(!help.stdout.contains("\\\""), "{command}");
    }
    for step in [
        "create", "add", "append", "take", "image", "events", "destroy",
    ] {
        let flat = format!("\n  {step} ");
        assert!(!help.stdout.contains(&flat), "{step}");
        let snap = blksnap(&["snap", step, "--help"]).stdout;
        assert!(snap.contains("Examples:"), "{step}");
        // The name from before there was "snap"
        let flat = blksnap(&[step, "--help"]).stdout;
        assert_eq!(
            flat.split_once("Usage:").unwrap().0,
            snap.split_once("Usage:").unwrap().0
        );
    }
    assert_eq!(
        blksnap(&["snapshot", "--help"]).stdout,
        blksnap(&["run", "--help"]).stdout
    );
    assert!(!help.stdout.contains("\n  grow "));
}

/// What the help says of exit codes is in the README, too.
#[test]
fn exit_codes_are_documented_in_the_same_words() {
    let readme = include_str!("../README.md");
    for (args, count) in [(&["--help"][..], 9), (&["run", "--help"], 2)] {
        let help = blksnap(args).stdout;
        let (_, list) = help.split_once("Exit codes:\n").unwrap();
        let rows: Vec<String> = list
            .lines()
            .take_while(|line| line.starts_with("  "))
            .filter_map(|line| line.trim().split_once("  "))
            .map(|(code, text)| format!("| {code} | {text} |\n"))
            .collect();
        assert_eq!(rows.len(), count, "{list}");
        for row in rows {
            assert!(readme.contains(&row), "{row}");
        }
    }
}

#[test]
fn snapshot_documents_the_environment() {
    let help = blksnap(&["run", "--help"]).stdout;
    for name in [
        "BLKSNAP_ID",
        "BLKSNAP_COUNT",
        "BLKSNAP_IMAGE_1",
        "BLKSNAP_DEVICE_1",
        "BLKSNAP_IMAGES",
    ] {
        assert!(help.contains(name), "{name}");
    }
}

#[test]
fn wrong_command_lines_exit_with_2() {
    for args in [
        &["attach"][..],
        &["frobnicate"],
        &["create"],
        &["create", "--store", "/tmp", "--limit", "10MB"],
        &["create", "--store", "/tmp", "--limit", "0"],
        &["create", "--store", "/tmp", "--max", "1G"],
        &[
            "create",
            "--store",
            "/tmp",
            "--grow=1G",
            "--limit=2G",
            "--max=1G",
        ],
        &["take", "sda"],
        &["add", ID],
        &["append", ID],
        &["events"],
        &["events", ID, "--timeout", "1m"],
        &["append", ID, "/dev/null", "--range", "0:100"],
        &["backup", "/dev/null", "--store", "/tmp"],
        &["backup", "/dev/null", "--to", "/tmp"],
        &["backup", "--to", "/tmp", "--store", "/tmp"],
        &[
            "backup",
            "/dev/null",
            "--to=/tmp",
            "--store=/tmp",
            "--full",
            "--differential",
        ],
        &["restore", "/tmp"],
        &["restore", "/tmp", "x", "--in-place"],
        &["restore", "/tmp", "x", "--moved-name"],
        &["restore", "/tmp", "x", "--force"],
        &["prune", "/tmp"],
        &["prune", "/tmp", "--keep", "0"],
        &["changed", "/dev/null", "--since", "256"],
        &["changed", "/dev/null", "--take", "1"],
        &[
            "changed",
            "/dev/null",
            "--since",
            "1",
            "--take",
            "00112233-4455-6677-8899-aabbccddeeff",
        ],
        &["completions", "cmd.exe"],
        &["snapshot", "/dev/null", "--store", "/tmp"],
        &["snapshot", "--store", "/tmp", "--", "true"],
        &[],
    ] {
        let outcome = blksnap(args);
        assert_eq!(outcome.code, 2, "{args:?}: {}", outcome.stderr);
        assert!(outcome.stdout.is_empty(), "{args:?}");
        assert!(!outcome.stderr.is_empty(), "{args:?}");

        let outcome = blksnap(&[&["--json"], args].concat());
        assert_eq!(outcome.code, 2, "{args:?}: {}", outcome.stderr);
        let error = outcome.error();
        assert_eq!(error["operation"], "arguments", "{args:?}");
        assert_eq!(error["exit_code"], 2, "{args:?}");
    }
}

#[test]
fn what_is_no_block_device_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("disk.img");
    std::fs::write(&file, b"x").unwrap();
    let file = file.to_str().unwrap();
    let store = temp.path().to_str().unwrap();

    for args in [
        &["attach", file][..],
        &["detach", file],
        &["status", file],
        &["create", "--store", store, file],
        &["add", ID, file],
        &["append", ID, file],
        &["image", file],
        &["changed", file],
        &["backup", file, "--to", "/nonexistent/x", "--store", store],
        &["snapshot", file, "--store", store, "--", "true"],
    ] {
        let outcome = blksnap(args);
        assert_eq!(outcome.code, 1, "{args:?}");
        let lines: Vec<_> = outcome.stderr.lines().collect();
        assert_eq!(
            lines[0],
            format!("blksnap: cannot open {file}: it is not a block device (ENOTBLK)"),
            "{args:?}"
        );
        assert!(lines[1].contains("losetup"), "{args:?}: {}", lines[1]);

        let outcome = blksnap(&[&["--json"], args].concat());
        assert_eq!(outcome.code, 1, "{args:?}");
        let error = outcome.error();
        assert_eq!(error["errno_name"], "ENOTBLK");
        assert_eq!(error["path"], file);
        assert!(error["remedy"].is_string());
    }
}

#[test]
fn a_missing_device_is_named() {
    let error = blksnap(&["attach", "/dev/no such disk", "--json"]).error();
    assert_eq!(error["errno_name"], "ENOENT");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("/dev/no such disk"), "{message}");
}

#[test]
fn a_missing_storage_is_named() {
    let outcome = blksnap(&["create", "--store", "/nonexistent/store"]);
    assert_eq!(outcome.code, 1);
    assert!(
        outcome.stderr.contains("/nonexistent/store"),
        "{}",
        outcome.stderr
    );
    assert!(
        outcome.stderr.contains("does not exist"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn without_the_driver_its_loading_is_advised() {
    if Path::new(blksnap::abi::CONTROL_PATH).exists() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let store = temp.path().to_str().unwrap();
    for args in [
        &["status"][..],
        &["create", "--store", store],
        &["take", ID],
        &["image", ID],
        &["destroy", ID],
        &["events", ID],
        &["version"],
    ] {
        let outcome = blksnap(args);
        assert_eq!(outcome.code, 1, "{args:?}");
        assert!(
            outcome.stderr.contains("modprobe blksnap"),
            "{args:?}: {}",
            outcome.stderr
        );
        let error = blksnap(&[&["--json"], args].concat()).error();
        assert_eq!(error["operation"], "open_control", "{args:?}");
        assert_eq!(error["path"], blksnap::abi::CONTROL_PATH, "{args:?}");
    }
    // The command knows its own version in any case.
    let version: Value = serde_json::from_str(&blksnap(&["version", "--json"]).stdout).unwrap();
    assert_eq!(version["command"], env!("CARGO_PKG_VERSION"));
    assert!(version["driver"].is_null());
}

#[test]
fn results_that_cannot_be_written_are_an_error() {
    let run = |args: &[&str], stdout: Stdio| {
        let output = Command::new(env!("CARGO_BIN_EXE_blksnap"))
            .args(args)
            .stdout(stdout)
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), stderr)
    };
    for args in [
        &["version"][..],
        &["version", "--json"],
        &["completions", "bash"],
        &["attach", "--help"],
        &["--version"],
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full");
        let (code, stderr) = run(args, full.unwrap().into());
        assert_eq!(code, Some(1), "{args:?}");
        assert!(stderr.contains("standard output"), "{args:?}: {stderr}");
        assert!(stderr.contains("os error 28"), "{args:?}: {stderr}");
    }
    // But not those that nobody wants to see.
    for args in [&["completions", "bash"][..], &["--version"]] {
        let (reader, writer) = UnixStream::pair().unwrap();
        drop(reader);
        let (code, stderr) = run(args, OwnedFd::from(writer).into());
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn json_is_no_option_of_the_command_to_run() {
    let outcome = blksnap(&["snapshot", "/dev/null", "--", "true", "--json"]);
    assert_eq!(outcome.code, 2);
    assert!(serde_json::from_str::<Value>(&outcome.stderr).is_err());
}

#[test]
fn a_path_that_is_no_text_is_no_trouble() {
    use std::os::unix::ffi::OsStrExt;
    let path = OsStr::from_bytes(b"/dev/\xff");
    let outcome = blksnap(&["attach".as_ref(), "--json".as_ref(), path]);
    assert_eq!(outcome.code, 1);
    assert_eq!(outcome.error()["path"], "/dev/\u{fffd}");
}

#[test]
fn what_is_no_backup_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().to_str().unwrap();
    for args in [
        &["list", path][..],
        &["verify", path],
        &["prune", path, "--keep", "1"],
        &["restore", path, "x"],
    ] {
        let outcome = blksnap(&[&["--json"], args].concat());
        assert_eq!(outcome.code, 1, "{args:?}");
        let error = outcome.error();
        assert_eq!(error["operation"], "open_backup", "{args:?}");
        assert_eq!(error["path"], path);
        assert!(error["remedy"].as_str().unwrap().contains("blksnap backup"));
    }
    // Nothing was made there.
    assert_eq!(std::fs::read_dir(path).unwrap().count(), 0);
}

#[test]
fn completions_and_man_pages_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let outcome = blksnap(&["completions", shell]);
        assert_eq!(outcome.code, 0);
        assert!(outcome.stdout.contains("differential"), "{shell}");
    }
    let temp = tempfile::tempdir().unwrap();
    let outcome = blksnap(&["man".as_ref(), temp.path().as_os_str()]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let page = |name: &str| std::fs::read_to_string(temp.path().join(name)).unwrap();
    let main = page("blksnap.8");
    for text in [
        ".SH \"EXIT CODES\"",
        ".SH NOTES",
        ".SH EXAMPLES",
        "blksnap\\-prune(8)",
    ] {
        assert!(main.contains(text), "{text}");
    }
    // What stands in the help is there once, and after its own heading.
    assert_eq!(main.matches("Exit codes").count(), 0);
    let backup = page("blksnap-backup.8");
    assert!(backup.contains("[OPTIONS] \\-\\-to <DIR> \\-\\-store <PATH> <DEV>..."));
    assert!(backup.contains(".SH EXAMPLES\n.nf\n  blksnap backup"));
    let outcome = blksnap(&["man", "/nonexistent"]);
    assert_eq!(outcome.code, 1);
    assert!(
        outcome.stderr.contains("/nonexistent"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn an_empty_name_is_said_to_be_empty() {
    for args in [
        &["prune", "/backup", "--keep", "1", "--machine", ""][..],
        &["prune", "/backup", "--keep", "1", "--machine", "  "],
        &["restore", "/backup", "out", "--machine="],
        &["restore", "/backup", ""],
        &["restore", "", "out"],
        &["list", ""],
        &["verify", ""],
        &["forget", "", "1"],
        &["rebuild", ""],
        &["backup", "", "--to", "/backup"],
        &["backup", "/dev/null", "--to", ""],
        &["backup", "/dev/null", "--to", "/backup", "--store", ""],
        &["snapshot", "", "--store", "/s", "--", "true"],
        &["snapshot", "/dev/null", "--store", "/s", "--", ""],
        &["create", "--store", ""],
        &["attach", ""],
        &["doctor", ""],
        &["doctor", "--target", ""],
        &["status", ""],
        &["image", ""],
        &["changed", ""],
        &["man", ""],
    ] {
        let outcome = blksnap(args);
        assert_eq!(outcome.code, 2, "{args:?}: {}", outcome.stderr);
        assert!(
            outcome.stderr.contains("empty"),
            "{args:?}: {}",
            outcome.stderr
        );
    }
}

/// The levels and names of the checks of a report.
fn checks(outcome: &Outcome) -> Vec<Value> {
    let json: Value = serde_json::from_str(&outcome.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", outcome.stdout));
    assert_eq!(json.as_object().unwrap().len(), 1, "{json}");
    json["checks"].as_array().unwrap().clone()
}

#[test]
fn doctor_says_what_is_wrong_here() {
    if Path::new(blksnap::abi::CONTROL_PATH).exists() {
        return;
    }
    let outcome = blksnap(&["doctor", "--json"]);
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    assert!(outcome.stderr.is_empty(), "{}", outcome.stderr);
    let found = checks(&outcome);
    for check in [
        "capabilities",
        "kernel",
        "module",
        "driver",
        "memory",
        "open_files",
        "clock",
    ] {
        let of = found.iter().filter(|it| it["check"] == check);
        assert_eq!(of.count(), 1, "{check}: {found:?}");
    }
    let module = found.iter().find(|it| it["check"] == "module").unwrap();
    assert_eq!(module["level"], "problem", "{module}");
    let remedy = module["remedy"].as_str().unwrap();
    assert!(
        remedy.contains("modprobe blksnap") || remedy.contains("boot"),
        "{module}"
    );

    // People get the same.
    let text = blksnap(&["doctor"]);
    assert_eq!(text.code, 1);
    let lines: Vec<&str> = text.stdout.lines().collect();
    let of_module = lines
        .iter()
        .position(|it| it.starts_with("problem  module: blksnap: "))
        .unwrap();
    let remedy = format!("         what to do: {remedy}");
    assert_eq!(lines[of_module + 1], remedy);
}

#[test]
fn doctor_changes_nothing_and_follows_names() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("disk.img");
    std::fs::write(&file, b"x").unwrap();
    std::os::unix::fs::symlink("loop", temp.path().join("loop")).unwrap();
    let path = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
    let outcome = blksnap(&[
        "doctor",
        &path("disk.img"),
        &path("loop"),
        "/dev/no such\u{1b}disk",
        "--target",
        &path("new"),
        "--store",
        &path("gone"),
        "--json",
    ]);
    assert_eq!(outcome.code, 1);
    assert!(!outcome.stdout.contains('\u{1b}'));
    let found = checks(&outcome);
    let level = |check: &str, subject: &str| {
        let is_it = |it: &&Value| it["check"] == check && it["subject"] == subject;
        let it = found.iter().find(is_it);
        it.unwrap_or_else(|| panic!("{check} {subject}: {found:?}"))["level"].clone()
    };
    assert_eq!(level("disk", &path("disk.img")), "problem");
    assert_eq!(level("disk", &path("loop")), "problem");
    assert_eq!(level("disk", "/dev/no such\u{1b}disk"), "problem");
    assert_eq!(level("storage", &path("gone")), "problem");
    assert_eq!(level("target", &path("new")), "ok");
    let mut names: Vec<_> = std::fs::read_dir(temp.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["disk.img", "loop"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"x");
}
