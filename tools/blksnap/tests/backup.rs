// SPDX-License-Identifier: GPL-2.0-only

//! Backups by real processes that are stopped and killed, on a kernel of files;
//! and the command on what they left.
//!
//! This test program starts itself again in the role of one of them; [`role`] is
//! what those processes run.

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use blksnap::backup;
use blksnap::backup::Progress;
use blksnap::backup::Watch;
use blksnap::error::Exit;
use blksnap::error::Operation;
use blksnap::signals::Signals;
use blksnap::Bytes;
use blksnap::Error;
use blksnap::Result;
use rustix::process::Signal;
use serde_json::Value;

use common::files::Files;
use common::files::BLOCK;
use common::files::SIZE;
use common::kill;
use common::start_role;
use common::DIRECTORY;
use common::ROLE;

const BANDWIDTH: &str = "BLKSNAP_TEST_BANDWIDTH";

/// Stops at a signal.
struct Watcher(Signals);

impl Watch for Watcher {
    fn keep_on(&mut self, _progress: Progress) -> Result<()> {
        match self.0.pending().first() {
            None => Ok(()),
            Some(stop) => {
                Err(Error::new(Operation::BackUp, "stop").exiting(Exit::of_signal(stop.signal)))
            }
        }
    }

    fn tell(&mut self, _note: &str) {}
}

/// Not a test, but what the processes started by the tests run.
#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let directory = PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
    let files = Files(directory.clone());
    let code = match role.as_str() {
        "backup" => {
            let request = backup::Request {
                bandwidth: std::env::var(BANDWIDTH)
                    .ok()
                    .map(|text| text.parse().unwrap()),
                ..files.request()
            };
            let mut watcher = Watcher(Signals::catch().unwrap());
            match backup::run(&files, &request, &mut watcher) {
                Ok(report) => {
                    eprintln!("{}", serde_json::to_string(&report).unwrap());
                    0
                }
                Err(error) => {
                    eprintln!("{error}");
                    error.exit().code()
                }
            }
        }
        other => panic!("{other}"),
    };
    std::process::exit(code.into());
}

/// A disk with random content, and one restore point of it.
struct Disk {
    directory: tempfile::TempDir,
    restore_points: Vec<Vec<u8>>,
}

impl Disk {
    fn new() -> Self {
        let mut disk = Self {
            directory: tempfile::tempdir().unwrap(),
            restore_points: Vec::new(),
        };
        disk.change(1);
        disk.back_up();
        disk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Overwrites all of it.
    fn change(&self, seed: u32) {
        let mut state = seed;
        let content: Vec<u8> = (0..SIZE)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        fs::write(self.path("disk"), content).unwrap();
    }

    fn start(&self, mut command: Command, bandwidth: Option<Bytes>) -> Child {
        if let Some(bandwidth) = bandwidth {
            command.env(BANDWIDTH, bandwidth.0.to_string());
        }
        command
            .env(DIRECTORY, self.directory.path())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.path("stderr")).unwrap())
            .spawn()
            .unwrap()
    }

    /// Starts a backup that takes many seconds, and waits until it writes.
    fn start_slowly(&self) -> Child {
        let child = self.start(start_role("backup"), Some(Bytes(BLOCK as u64)));
        let partial = self.path("backup/000002.partial/disk.sums");
        self.wait_until("the backup", || partial.exists());
        child
    }

    fn wait_until(&self, what: &str, done: impl Fn() -> bool) {
        common::wait_until(done, || format!("{what}: {}", self.stderr()));
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    /// Makes a restore point, and returns the report.
    fn back_up(&mut self) -> Value {
        let status = self.start(start_role("backup"), None).wait().unwrap();
        assert!(status.success(), "{}", self.stderr());
        self.restore_points
            .push(fs::read(self.path("disk")).unwrap());
        serde_json::from_str(self.stderr().lines().last().unwrap()).unwrap()
    }

    /// Runs the command on the backup.
    fn run(&self, arguments: &[&str]) -> Output {
        let (command, rest) = arguments.split_first().unwrap();
        Command::new(env!("CARGO_BIN_EXE_blksnap"))
            .arg(command)
            .arg(self.path("backup"))
            .args(rest)
            .output()
            .unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// All restore points are what the disk was.
    fn check(&self) {
        assert!(!self.path("disk.held").exists());
        let list = self.json(&["list"]);
        assert_eq!(
            list["points"].as_array().unwrap().len(),
            self.restore_points.len()
        );
        assert!(self.json(&["verify"])["damaged"]
            .as_array()
            .unwrap()
            .is_empty());
        for (number, content) in (1..).zip(&self.restore_points) {
            let target = self.path("restored");
            let _ = fs::remove_file(&target);
            let number = format!("--point={number}");
            self.json(&["restore", &number, target.to_str().unwrap()]);
            assert!(fs::read(&target).unwrap() == *content, "{number}");
        }
    }
}

#[test]
fn a_signal_stops_a_backup_and_leaves_no_trace() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let mut disk = Disk::new();
        disk.change(2);
        let mut child = disk.start_slowly();
        kill(&child, signal);
        assert_eq!(
            child.wait().unwrap().code(),
            Some(code),
            "{}",
            disk.stderr()
        );
        assert!(!disk.path("backup/000002.partial").exists());
        disk.check();
        assert_eq!(disk.back_up()["devices"][0]["base"], 1);
        disk.check();
    }
}

#[test]
fn a_backup_that_is_killed_is_cleared_away_by_the_next() {
    let mut disk = Disk::new();
    disk.change(2);
    let mut child = disk.start_slowly();
    assert!(disk.path("disk.held").exists());
    // Readers are not in its way, nor it in theirs. Another writer is.
    assert_eq!(disk.json(&["verify"])["points"], serde_json::json!([1]));
    let target = disk.path("meanwhile");
    disk.json(&["restore", target.to_str().unwrap()]);
    assert!(fs::read(&target).unwrap() == disk.restore_points[0]);
    assert_eq!(disk.json(&["list"])["points"][0]["point"], 1);
    let output = disk.run(&["prune", "--keep=1", "--json"]);
    assert_eq!(output.status.code(), Some(6));
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["errno_name"], "EAGAIN");
    assert_eq!(error["error"]["exit_code"], 6);
    let message = error["error"]["message"].as_str().unwrap();
    assert!(
        message.contains(&format!("(process {} on ", child.id())),
        "{message}"
    );
    assert!(message.contains(" since 20"), "{message}");

    kill(&child, Signal::KILL);
    child.wait().unwrap();
    // As the driver does when the file is closed.
    fs::remove_file(disk.path("disk.held")).unwrap();
    assert!(disk.path("backup/000002.partial").exists());
    disk.check();
    assert_eq!(disk.back_up()["devices"][0]["base"], 1);
    assert!(!disk.path("backup/000002.partial").exists());
    disk.check();
}

/// Starts the command on the backup, and waits until it says that it waits.
fn start_waiting(disk: &Disk, arguments: &[&str]) -> Child {
    let (name, rest) = arguments.split_first().unwrap();
    let stderr = disk.path("waiting");
    let child = Command::new("env")
        .arg("--default-signal=INT,TERM")
        .arg(env!("CARGO_BIN_EXE_blksnap"))
        .arg(name)
        .arg(disk.path("backup"))
        .args(["--lock-wait", "60"])
        .args(rest)
        .stdout(Stdio::null())
        .stderr(fs::File::create(&stderr).unwrap())
        .spawn()
        .unwrap();
    let text = || fs::read_to_string(&stderr).unwrap();
    common::wait_until(|| text().contains("waiting for at most"), text);
    child
}

#[test]
fn what_waits_for_a_lock_goes_on_or_is_stopped() {
    let mut disk = Disk::new();
    disk.back_up();
    let mut backup = disk.start(start_role("backup"), Some(Bytes(BLOCK as u64)));
    let partial = disk.path("backup/000003.partial");
    disk.wait_until("the backup", || partial.exists());
    let mut prune = start_waiting(&disk, &["prune", "--keep=1"]);
    kill(&prune, Signal::INT);
    assert_eq!(prune.wait().unwrap().code(), Some(130));
    let mut prune = start_waiting(&disk, &["prune", "--keep=1"]);
    kill(&backup, Signal::TERM);
    backup.wait().unwrap();
    assert!(prune.wait().unwrap().success());
    assert_eq!(disk.json(&["list"])["points"][0]["point"], 2);

    let lock = fs::File::open(disk.path("backup/blksnap.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let target = disk.path("meanwhile");
    let target = target.to_str().unwrap();
    for arguments in [&["verify"][..], &["restore", target]] {
        let mut reader = start_waiting(&disk, arguments);
        kill(&reader, Signal::TERM);
        let status = reader.wait().unwrap();
        assert!(status.signal() == Some(15) || status.code() == Some(143));
        assert!(!Path::new(target).exists());
        let mut reader = start_waiting(&disk, arguments);
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::Unlock).unwrap();
        assert!(reader.wait().unwrap().success());
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    }
    assert!(fs::read(target).unwrap() == disk.restore_points[1]);
}

#[test]
fn a_full_target_leaves_the_restore_points_as_they_were() {
    let mut disk = Disk::new();
    disk.change(2);
    // No file may be larger than the disk and a little; its image is.
    let role = start_role("backup");
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 4200; exec \"$0\" \"$@\""])
        .arg(role.get_program())
        .args(role.get_args())
        .env(ROLE, "backup");
    let status = disk.start(limited, None).wait().unwrap();
    assert_eq!(status.code(), Some(1));
    let error = disk.stderr();
    assert!(error.contains("as large as that"), "{error}");
    assert!(error.contains("000002.partial/disk.qcow2"), "{error}");
    assert!(!disk.path("backup/000002.partial").exists());
    disk.check();
    assert_eq!(disk.back_up()["devices"][0]["base"], 1);
    disk.check();
}

#[test]
fn the_command_restores_verifies_and_prunes() {
    let mut disk = Disk::new();
    for seed in 2..=4 {
        disk.change(seed);
        disk.back_up();
    }
    disk.check();
    let list = disk.run(&["list"]);
    let text = String::from_utf8(list.stdout).unwrap();
    assert_eq!(text.lines().count(), 5, "{text}");
    assert!(text.lines().nth(1).unwrap().ends_with("full"), "{text}");
    assert!(
        text.lines().nth(4).unwrap().ends_with("changes since 3"),
        "{text}"
    );

    let pruned = disk.json(&["prune", "--keep", "2", "--slack", "2"]);
    assert_eq!(pruned["kept"], serde_json::json!([1, 2, 3, 4]));
    assert_eq!(pruned["merged"], serde_json::json!([]));
    disk.check();
    let pruned = disk.json(&["prune", "--keep", "2", "--slack", "1"]);
    assert_eq!(pruned["kept"], serde_json::json!([3, 4]));
    assert_eq!(pruned["merged"], serde_json::json!(["000003/disk"]));
    let target = disk.path("restored");
    let target = target.to_str().unwrap();
    let code = |arguments: &[&str]| disk.run(arguments).status.code().unwrap();
    assert_eq!(code(&["restore", "--point=1", target, "--overwrite"]), 1);
    assert_eq!(code(&["restore", target]), 1);
    // A name mistyped makes no file among the devices.
    assert_eq!(code(&["restore", "/dev/blksnap-no-such-disk"]), 1);
    assert!(!Path::new("/dev/blksnap-no-such-disk").exists());
    let name = format!("/dev/disk={target}");
    assert_eq!(code(&["restore", &name, &name, "--overwrite"]), 2);
    assert_eq!(code(&["restore", target, "--overwrite"]), 0);
    assert!(fs::read(target).unwrap() == disk.restore_points[3]);

    let image = disk.path("backup/000003/disk.qcow2");
    let mut bytes = fs::read(&image).unwrap();
    // Behind the header the data begins.
    bytes[BLOCK + 5] ^= 1;
    fs::write(&image, bytes).unwrap();
    let output = disk.run(&["verify", "--json"]);
    assert_eq!(output.status.code(), Some(4));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("backup --full"), "{errors}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    // All of the disk was changed after that.
    assert_eq!(report["damaged"].as_array().unwrap().len(), 1);
    assert_eq!(report["damaged"][0]["point"], 3);
    assert_eq!(report["damaged"][0]["images"][0], "000003/disk");
    let output = disk.run(&["restore", "--point=3", target, "--overwrite", "--json"]);
    assert_eq!(output.status.code(), Some(4));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["devices"][0]["damaged"][0]["length"], BLOCK);
    fs::write(disk.path("backup/blksnap.json"), "{}").unwrap();
    for command in [
        &["list"][..],
        &["verify"],
        &["restore", "x"],
        &["prune", "--keep=1"],
    ] {
        assert_eq!(code(command), 4, "{command:?}");
    }
}
