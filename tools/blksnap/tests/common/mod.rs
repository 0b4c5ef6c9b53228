// SPDX-License-Identifier: GPL-2.0-only

//! What tests with real processes share: the test program starts itself again,
//! with its test `role` as what that process runs.

// Each test program has its own use for it.
#[allow(dead_code)]
pub mod files;

use std::process::Child;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;

use blksnap::Uuid;
use rustix::process::kill_process;
use rustix::process::Pid;
use rustix::process::Signal;

/// Names the role in the environment.
pub const ROLE: &str = "BLKSNAP_TEST_ROLE";
/// Names the directory of the kernel of files.
pub const DIRECTORY: &str = "BLKSNAP_TEST_DIRECTORY";

/// The snapshot of a kernel of files.
pub const ID: Uuid = Uuid::from_bytes([0x42; 16]);
/// How long something is waited for that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

pub fn start_role(role: &str) -> Command {
    // Under nohup, or in the background of a script, signals are ignored, and would be by all
    // processes started from there.
    let mut command = Command::new("env");
    command
        .arg("--default-signal=HUP,INT,QUIT")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "role", "--nocapture", "--test-threads=1"])
        .env(ROLE, role);
    command
}

/// Waits until something is done, and fails with what `otherwise` says if that takes too long.
pub fn wait_until(mut done: impl FnMut() -> bool, otherwise: impl Fn() -> String) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{}", otherwise());
        sleep(Duration::from_millis(10));
    }
}

pub fn kill(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
}
