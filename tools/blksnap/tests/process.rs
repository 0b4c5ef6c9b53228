// SPDX-License-Identifier: GPL-2.0-only

//! Holder, grower and COMMAND as real processes, on a kernel that only
//! writes down what is asked of it.
//!
//! This test program starts itself again in the role of one of them; [`role`] is
//! what those processes run.

mod common;

use std::fs;
use std::fs::File;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::thread::sleep;
use std::thread::spawn;
use std::time::Duration;
use std::time::Instant;

use blksnap::control::StorageInfo;
use blksnap::device::Attachment;
use blksnap::device::SnapshotState;
use blksnap::device::Takes;
use blksnap::device::Tracking;
use blksnap::error::Operation;
use blksnap::grow;
use blksnap::grow::Growth;
use blksnap::grow::Storage;
use blksnap::kernel::Kernel;
use blksnap::run;
use blksnap::Error;
use blksnap::Result;
use blksnap::Sectors;
use blksnap::Uuid;
use rustix::io::Errno;
use rustix::process::Signal;
use tempfile::TempDir;

use common::start_role;
use common::DIRECTORY;
use common::ID;
use common::ROLE;

const SCRIPT: &str = "BLKSNAP_TEST_SCRIPT";
const BEHAVIOUR: &str = "BLKSNAP_TEST_BEHAVIOUR";

/// A kernel of files: "log" has the calls, "held" exists while the snapshot
/// does, "limit" and "used" are the sectors of its storage.
#[derive(Clone)]
struct Files {
    directory: PathBuf,
    behaviour: String,
}

impl Files {
    fn from_environment() -> Self {
        Self {
            directory: std::env::var_os(DIRECTORY).unwrap().into(),
            behaviour: std::env::var(BEHAVIOUR).unwrap_or_default(),
        }
    }

    fn note(&self, call: &str) {
        let mut log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.join("log"))
            .unwrap();
        writeln!(log, "{call}").unwrap();
    }
}

impl Kernel for Files {
    fn attach(&self, _device: &Path) -> Result<Attachment> {
        self.note("attach");
        Ok(Attachment::New)
    }

    fn detach(&self, _device: &Path) -> Result<()> {
        self.note("detach");
        Ok(())
    }

    fn create(&self, store: &Path, limit: Sectors) -> Result<Uuid> {
        if self.behaviour == "no space" {
            return Err(Error::from_errno(Operation::Create, Errno::NOSPC).on(store));
        }
        assert_eq!(limit, Sectors(2048));
        File::create_new(self.directory.join("held")).unwrap();
        self.note("create");
        // As the driver does when the file is closed.
        start(self).inspect_err(|_| self.destroy(ID).unwrap())?;
        Ok(ID)
    }

    fn add(&self, _id: Uuid, _device: &Path) -> Result<()> {
        self.note("add");
        Ok(())
    }

    fn freeze_above(&self, _id: Uuid, _devices: &[PathBuf]) -> Result<()> {
        Ok(())
    }

    fn take(&self, id: Uuid) -> Result<()> {
        self.note("take");
        match self.behaviour.as_str() {
            "take fails" => Err(Error::from_errno(Operation::Take, Errno::IO).of(id)),
            "take is slow" => {
                let end = Instant::now() + Duration::from_secs(2);
                while let Some(rest) = end.checked_duration_since(Instant::now()) {
                    sleep(rest);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn destroy(&self, id: Uuid) -> Result<()> {
        fs::remove_file(self.directory.join("held"))
            .map_err(|_| Error::from_errno(Operation::Destroy, Errno::NODEV).of(id))?;
        self.note("destroy");
        Ok(())
    }

    fn snapshot_state(&self, device: &Path) -> Result<SnapshotState> {
        let overflowed = self.behaviour == "overflow";
        Ok(SnapshotState {
            error_code: if overflowed { -28 } else { 0 },
            image: Some(format!("image{}", device.display()).replace('/', "-")),
        })
    }

    fn tracking(&self, _device: &Path) -> Result<Tracking> {
        unreachable!("a snapshot is held without it");
    }

    fn takes(&self, _device: &Path) -> Result<Option<Takes>> {
        unreachable!("a snapshot is held without it");
    }

    fn read_map(&self, _device: &Path, _map: &mut [u8]) -> Result<()> {
        unreachable!("a snapshot is held without it");
    }

    fn image_node(&self, image: &str) -> Option<PathBuf> {
        Some(Path::new("/dev").join(image))
    }

    fn users_of_image(&self, _image: &str) -> Vec<String> {
        Vec::new()
    }
}

impl Files {
    fn sectors(&self, name: &str) -> Option<Sectors> {
        let text = fs::read_to_string(self.directory.join(name)).ok()?;
        text.trim().parse().ok().map(Sectors)
    }
}

impl Storage for Files {
    fn info(&self) -> Result<StorageInfo> {
        if !self.directory.join("held").exists() {
            return Err(Error::from_errno(Operation::StorageInfo, Errno::SRCH).of(ID));
        }
        Ok(StorageInfo {
            total: self.sectors("limit").unwrap_or(Sectors(2048)),
            used: self.sectors("used").unwrap_or(Sectors(0)),
            low_space: Sectors(500),
            lost: Sectors(0),
            held_ms: 0,
        })
    }

    fn set_limit(&self, limit: Sectors) -> Result<()> {
        fs::write(self.directory.join("limit"), limit.0.to_string()).unwrap();
        self.note(&format!("limit {}", limit.0));
        Ok(())
    }

    fn free(&self) -> Result<Option<Sectors>> {
        Ok(None)
    }

    fn wait(&self) -> Result<()> {
        sleep(Duration::from_millis(10));
        Ok(())
    }
}

const GROWTH: Growth = Growth {
    step: Sectors(1000),
    max: Some(Sectors(4000)),
};

/// What is done when the snapshot exists.
fn start(files: &Files) -> Result<()> {
    match files.behaviour.as_str() {
        "old driver" => Err(Error::from_errno(Operation::SetLowSpace, Errno::NOTTY)),
        "no growth" => {
            Err(Error::new(Operation::Grow, "the moon is full").remedied_by("wait a week"))
        }
        "grow" => {
            let files = files.clone();
            spawn(move || {
                grow::run(&files, Sectors(2048), GROWTH, &|news| eprintln!("{news}"));
            });
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Not a test, but what the processes started by the tests run.
#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let files = Files::from_environment();
    let store = Path::new("/store");
    let code = match role.as_str() {
        "grower" => {
            grow::serve(&files, Sectors(2048), GROWTH, &|news| eprintln!("{news}")).unwrap();
            0
        }
        "holder" => {
            let behaviour = files.behaviour.clone();
            let request = run::Request {
                devices: vec!["/dev/a".into(), "/dev/b".into()],
                store: store.to_owned(),
                hooks: Default::default(),
                limit: Sectors(2048),
                detach: false,
                command: match std::env::var_os(SCRIPT) {
                    Some(script) if behaviour == "bare" => vec![script],
                    Some(script) => vec!["sh".into(), "-c".into(), script],
                    None => vec!["/nonexistent/command".into()],
                },
                stdout_to_stderr: true,
            };
            match run::run(&files, &request) {
                Ok(report) => {
                    eprintln!("{}", serde_json::to_string(&report).unwrap());
                    report.exit_code
                }
                Err(error) => {
                    eprintln!("{error}\n{}", error.remedy().unwrap_or_default());
                    error.exit().code()
                }
            }
        }
        other => panic!("{other}"),
    };
    std::process::exit(code.into());
}

/// A holder that runs a script, or a process in another role, and its
/// directory.
struct Holder {
    child: Child,
    directory: TempDir,
}

fn read(directory: &TempDir, name: &str) -> String {
    fs::read_to_string(directory.path().join(name)).unwrap_or_default()
}

fn late(directory: &TempDir, what: &str) -> String {
    let (log, stderr) = (read(directory, "log"), read(directory, "stderr"));
    format!("{what}; log {log:?}, stderr {stderr:?}")
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Where the test has failed it may still run.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Holder {
    fn start(script: Option<&str>, behaviour: &str) -> Self {
        let mut command = start_role("holder");
        if let Some(script) = script {
            command.env(SCRIPT, script);
        }
        Self::spawn(command, behaviour)
    }

    /// A process that lets the storage of a held snapshot grow.
    fn start_grower() -> Self {
        let grower = Self::spawn(start_role("grower"), "grower");
        let comm = format!("/proc/{}/comm", grower.child.id());
        grower.wait_until("grower", || {
            fs::read_to_string(&comm).is_ok_and(|comm| comm.trim() == "blksnap-grow")
        });
        grower
    }

    fn spawn(mut command: Command, behaviour: &str) -> Self {
        let directory = TempDir::new().unwrap();
        if behaviour == "grower" {
            File::create(directory.path().join("held")).unwrap();
        }
        let child = command
            .env(DIRECTORY, directory.path())
            .env(BEHAVIOUR, behaviour)
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .stderr(File::create(directory.path().join("stderr")).unwrap())
            .spawn()
            .unwrap();
        Self { child, directory }
    }

    fn read(&self, name: &str) -> String {
        read(&self.directory, name)
    }

    fn wait_until(&self, what: &str, done: impl Fn() -> bool) {
        common::wait_until(done, || late(&self.directory, what));
    }

    fn wait_for_file(&self, name: &str) -> String {
        self.wait_until(name, || self.read(name).ends_with('\n'));
        self.read(name).trim().to_owned()
    }

    fn kill(&self, signal: Signal) {
        common::kill(&self.child, signal);
    }

    fn end(&mut self) -> ExitStatus {
        let child = &mut self.child;
        common::wait_until(
            || child.try_wait().unwrap().is_some(),
            || late(&self.directory, "the end"),
        );
        child.wait().unwrap()
    }

    fn code(&mut self) -> i32 {
        let status = self.end();
        status
            .code()
            .unwrap_or_else(|| panic!("{status}: {}", self.read("stderr")))
    }

    #[track_caller]
    fn assert_log(&self, calls: &[&str]) {
        let log = self.read("log");
        assert_eq!(log.lines().collect::<Vec<_>>(), calls);
        assert!(!self.directory.path().join("held").exists());
    }
}

const HELD: [&str; 6] = ["attach", "attach", "create", "add", "add", "take"];
const RELEASED: [&str; 7] = [
    "attach", "attach", "create", "add", "add", "take", "destroy",
];
const UNDONE: [&str; 9] = [
    "attach", "attach", "create", "add", "add", "take", "destroy", "detach", "detach",
];

#[test]
fn command_finds_the_images_in_its_environment() {
    let script = "test -e held || exit 1
        env | grep ^BLKSNAP_ | grep -v ^BLKSNAP_TEST | sort > environment
        printf %s \"$BLKSNAP_IMAGES\" > images
        exit 5";
    let mut holder = Holder::start(Some(script), "");
    assert_eq!(holder.code(), 5);
    holder.assert_log(&RELEASED);
    assert_eq!(holder.read("images"), "/dev/image-dev-a\n/dev/image-dev-b");
    let environment = holder.read("environment");
    for line in [
        format!("BLKSNAP_ID={ID}").as_str(),
        "BLKSNAP_COUNT=2",
        "BLKSNAP_DEVICE_1=/dev/a",
        "BLKSNAP_DEVICE_2=/dev/b",
        "BLKSNAP_IMAGE_1=/dev/image-dev-a",
        "BLKSNAP_IMAGE_2=/dev/image-dev-b",
    ] {
        assert!(
            environment.lines().any(|found| found == line),
            "{environment}"
        );
    }
}

#[test]
fn report_is_json() {
    let mut holder = Holder::start(Some("exit 0"), "");
    assert_eq!(holder.code(), 0);
    let stderr = holder.read("stderr");
    let report: serde_json::Value =
        serde_json::from_str(stderr.lines().last().unwrap()).expect(&stderr);
    assert_eq!(report["id"], ID.to_string());
    assert_eq!(report["images"][1]["device"], "/dev/b");
    assert_eq!(report["images"][1]["image"], "/dev/image-dev-b");
    assert_eq!(report["images"][1]["valid"], true);
    assert_eq!(report["command"]["exit_code"], 0);
    assert_eq!(report["corrupted"], false);
    assert_eq!(report["exit_code"], 0);
}

#[test]
fn a_crash_of_the_command_releases() {
    let mut holder = Holder::start(Some("kill -SEGV $$"), "");
    assert_eq!(holder.code(), 128 + 11);
    holder.assert_log(&RELEASED);
}

#[test]
fn a_missing_command_releases() {
    let mut holder = Holder::start(None, "");
    assert_eq!(holder.code(), 127);
    holder.assert_log(&RELEASED);
    assert!(holder.read("stderr").contains("/nonexistent/command"));
}

#[test]
fn a_command_that_cannot_be_run_releases() {
    // A directory is no program.
    let mut holder = Holder::start(Some("/dev"), "bare");
    assert_eq!(holder.code(), 126);
    holder.assert_log(&RELEASED);
}

#[test]
fn signals_reach_the_command_before_the_release() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let script = "trap 'test -e held && echo yes > still_held; exit 7' INT TERM HUP QUIT
            echo > ready
            while :; do sleep 0.05; done";
        let mut holder = Holder::start(Some(script), "");
        holder.wait_for_file("ready");
        holder.kill(signal);
        assert_eq!(holder.code(), 7, "{signal:?}");
        assert_eq!(holder.read("still_held"), "yes\n", "{signal:?}");
        holder.assert_log(&RELEASED);
    }
}

#[test]
fn a_signal_that_ends_the_command_is_in_the_exit_code() {
    let mut holder = Holder::start(Some("echo > ready; exec sleep 60"), "");
    holder.wait_for_file("ready");
    holder.kill(Signal::TERM);
    assert_eq!(holder.code(), 128 + 15);
    holder.assert_log(&RELEASED);
}

#[test]
fn a_signal_before_the_command_undoes_everything() {
    let mut holder = Holder::start(Some("echo > started"), "take is slow");
    holder.wait_until("take", || holder.read("log").contains("take"));
    holder.kill(Signal::TERM);
    assert_eq!(holder.code(), 128 + 15);
    holder.assert_log(&UNDONE);
    assert!(!holder.directory.path().join("started").exists());
}

#[test]
fn a_failing_take_undoes_everything() {
    let mut holder = Holder::start(Some("echo > started"), "take fails");
    assert_eq!(holder.code(), 1);
    holder.assert_log(&UNDONE);
    assert!(!holder.directory.path().join("started").exists());
}

#[test]
fn the_kernels_refusal_undoes_everything() {
    let mut holder = Holder::start(Some("echo > started"), "no space");
    assert_eq!(holder.code(), 1);
    holder.assert_log(&["attach", "attach", "detach", "detach"]);
    let stderr = holder.read("stderr");
    assert!(stderr.contains("storage at /store"), "{stderr}");
    assert!(stderr.contains("ENOSPC"), "{stderr}");
}

#[test]
fn an_error_says_all_there_is_to_say() {
    let mut holder = Holder::start(Some("echo > started"), "no growth");
    assert_eq!(holder.code(), 1);
    let stderr = holder.read("stderr");
    let lines: Vec<&str> = stderr.lines().collect();
    let wanted = "cannot let the storage of the snapshot grow: the moon is full";
    assert_eq!(lines, [wanted, "wait a week"]);
}

#[test]
fn signals_that_were_blocked_are_not_waited_for_in_vain() {
    let role = start_role("holder");
    let mut command = Command::new("env");
    command
        .arg("--block-signal=CHLD,TERM")
        .arg(role.get_program())
        .args(role.get_args())
        .env(ROLE, "holder")
        .env(
            SCRIPT,
            "echo > ready; until test -e go; do sleep 0.05; done",
        );
    let mut holder = Holder::spawn(command, "");
    holder.wait_for_file("ready");
    // It waits for the end by now, most likely.
    sleep(Duration::from_millis(200));
    File::create(holder.directory.path().join("go")).unwrap();
    assert_eq!(holder.code(), 0);
    holder.assert_log(&RELEASED);
}

#[test]
fn an_overflow_shows_even_if_the_command_succeeds() {
    let mut holder = Holder::start(Some("exit 0"), "overflow");
    assert_eq!(holder.code(), 3);
    holder.assert_log(&RELEASED);
    let stderr = holder.read("stderr");
    assert!(stderr.contains("overflowed"), "{stderr}");
}

#[test]
fn the_storage_grows_while_the_command_runs() {
    let script = "echo 1600 > used; until grep -q 3048 limit; do sleep 0.05; done
        echo 3000 > used; until grep -q 4000 limit; do sleep 0.05; done";
    let mut holder = Holder::start(Some(script), "grow");
    assert_eq!(holder.code(), 0);
    let mut calls = HELD.to_vec();
    calls.extend(["limit 3048", "limit 4000", "destroy"]);
    holder.assert_log(&calls);
    let stderr = holder.read("stderr");
    assert!(stderr.contains("raised to 1.5M"), "{stderr}");
}

#[test]
fn a_driver_that_is_too_old_undoes_everything() {
    let mut holder = Holder::start(Some("echo > started"), "old driver");
    assert_eq!(holder.code(), 1);
    holder.assert_log(&["attach", "attach", "create", "destroy", "detach", "detach"]);
    let stderr = holder.read("stderr");
    assert!(stderr.contains("driver is too old"), "{stderr}");
    assert!(!holder.directory.path().join("started").exists());
}

#[test]
fn a_grower_ends_with_the_snapshot() {
    let mut grower = Holder::start_grower();
    for signal in [Signal::INT, Signal::HUP, Signal::QUIT] {
        grower.kill(signal);
    }
    let directory = grower.directory.path().to_owned();
    fs::write(directory.join("used"), "1600").unwrap();
    grower.wait_until("growth", || grower.read("log").contains("limit 3048"));
    fs::write(directory.join("used"), "3900").unwrap();
    grower.wait_until("maximum", || grower.read("stderr").contains("its maximum"));
    fs::remove_file(directory.join("held")).unwrap();
    assert_eq!(grower.code(), 0);
    grower.assert_log(&["limit 3048", "limit 4000"]);
}

#[test]
fn a_grower_ends_when_it_is_asked_to() {
    let mut grower = Holder::start_grower();
    grower.kill(Signal::TERM);
    assert_eq!(grower.end().signal(), Some(15));
}
