// SPDX-License-Identifier: GPL-2.0-only

//! What this process is allowed to do.

use super::Check;
use super::Root;

/// Number of the capability CAP_SYS_ADMIN.
const CAP_SYS_ADMIN: u32 = 21;
/// Number of files that a backup of some devices has open, with some to spare.
const FILES: u64 = 256;

/// Whether this process can do all that backups need: in the initial user namespace it has
/// CAP_SYS_ADMIN.
pub fn is_privileged(root: &Root) -> bool {
    has_capability(root) == Some(true) && is_in_initial_namespace(root) != Some(false)
}

/// Checks the privileges of this process.
pub fn capabilities(root: &Root) -> Check {
    const CHECK: &str = "capabilities";
    const SUBJECT: &str = "this process";
    match (has_capability(root), is_in_initial_namespace(root)) {
        (Some(true), Some(false)) => Check::problem(
            CHECK,
            SUBJECT,
            "it is root in a user namespace only, as in an unprivileged container",
            "run blksnap as root on the host",
        ),
        (Some(true), _) => Check::ok(CHECK, SUBJECT, "it has CAP_SYS_ADMIN"),
        (Some(false), _) if is_root(root) => Check::problem(
            CHECK,
            SUBJECT,
            "it is root without CAP_SYS_ADMIN, as in a container",
            "run blksnap on the host; a systemd unit needs \
             CapabilityBoundingSet=CAP_SYS_ADMIN CAP_DAC_OVERRIDE",
        ),
        (Some(false), _) => Check::note(
            CHECK,
            SUBJECT,
            "it does not run as root: what only root can see is not checked, and backups need \
             root",
            "run \"blksnap doctor\" as root",
        ),
        (None, _) => Check::note(
            CHECK,
            SUBJECT,
            "its capabilities cannot be read from /proc/self/status",
            "check that proc is mounted at /proc",
        ),
    }
}

/// Checks how many files this process can have open. The command raises the soft limit itself.
pub fn open_files(root: &Root) -> Check {
    const CHECK: &str = "open_files";
    const SUBJECT: &str = "RLIMIT_NOFILE";
    let limits = root.text("/proc/self/limits").unwrap_or_default();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let hard = line.and_then(|line| line.split_ascii_whitespace().nth(1));
    match hard.map(|text| (text, text.parse::<u64>())) {
        Some((text, Ok(limit))) if limit < FILES => Check::warning(
            CHECK,
            SUBJECT,
            format!("this process can have {text} files open, which a backup can need more of"),
            format!(
                "raise the hard limit to {FILES} or more, as with \"ulimit -Hn 1024\", in \
                 /etc/security/limits.conf, or with LimitNOFILE= of a systemd unit"
            ),
        ),
        Some((text, _)) => Check::ok(
            CHECK,
            SUBJECT,
            format!("this process can have {text} files open"),
        ),
        None => Check::note(
            CHECK,
            SUBJECT,
            "the limit of open files cannot be read from /proc/self/limits",
            "check that proc is mounted at /proc",
        ),
    }
}

/// A line of `/proc/self/status`.
fn status(root: &Root, name: &str) -> Option<String> {
    let text = root.text("/proc/self/status").ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.find(|(key, _)| *key == name)?;
    Some(value.trim().to_owned())
}

fn has_capability(root: &Root) -> Option<bool> {
    let effective = u64::from_str_radix(&status(root, "CapEff")?, 16).ok()?;
    Some(effective >> CAP_SYS_ADMIN & 1 == 1)
}

fn is_root(root: &Root) -> bool {
    let uids = status(root, "Uid").unwrap_or_default();
    uids.split_ascii_whitespace().nth(1) == Some("0")
}

/// The initial user namespace has all users, each as itself.
fn is_in_initial_namespace(root: &Root) -> Option<bool> {
    let map = root.text("/proc/self/uid_map").ok()?;
    let fields: Vec<&str> = map.split_ascii_whitespace().collect();
    Some(fields == ["0", "0", "4294967295"])
}
