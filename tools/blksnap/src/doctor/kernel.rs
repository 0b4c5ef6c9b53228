// SPDX-License-Identifier: GPL-2.0-only

//! Whether the running kernel was built with block device filters.

use std::fs::File;
use std::io::Read;
use std::process::Command;
use std::process::Stdio;

use rustix::io::Errno;

use super::Check;
use super::Root;

const CHECK: &str = "kernel";

/// Upper limit of a configuration's text.
const MAX_BYTES: u64 = 4 << 20;

/// What an option of the kernel is set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    BuiltIn,
    Module,
    Off,
}

/// The configuration of the running kernel, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file; none if no file could be read.
    pub file: Option<String>,
    pub filter: Option<Choice>,
    pub blksnap: Option<Choice>,
}

impl Config {
    pub fn read(root: &Root) -> Self {
        let release = root.release();
        let compressed = "/proc/config.gz";
        let plain = [
            format!("/boot/config-{release}"),
            format!("/lib/modules/{release}/config"),
        ];
        let found = match root.open(compressed).and_then(unpack) {
            Ok(text) => Some((compressed.to_owned(), text)),
            Err(_) => plain
                .into_iter()
                .filter(|_| !release.is_empty())
                .find_map(|file| Some((file.clone(), root.text(&file).ok()?))),
        };
        // What has not a single option is no configuration.
        let found = found.filter(|(_, text)| text.contains("CONFIG_"));
        let option = |name| found.as_ref().map(|(_, text)| choice(text, name));
        Self {
            filter: option("CONFIG_BLK_FILTER"),
            blksnap: option("CONFIG_BLKSNAP"),
            file: found.map(|(file, _)| file),
        }
    }
}

fn choice(text: &str, name: &str) -> Choice {
    let value = text.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key == name).then_some(value.trim())
    });
    match value {
        Some("y") => Choice::BuiltIn,
        Some("m") => Choice::Module,
        _ => Choice::Off,
    }
}

/// Unpacks a file with gzip, which is on every system.
fn unpack(file: File) -> Result<String, Errno> {
    let failed = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let mut child = Command::new("gzip")
        .arg("-dc")
        .stdin(file)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let mut text = String::new();
    let output = child.stdout.take().ok_or(Errno::IO)?;
    // With the pipe closed a longer one ends, too.
    let read = output.take(MAX_BYTES).read_to_string(&mut text);
    let status = child.wait().map_err(failed)?;
    read.map_err(failed)?;
    match status.success() {
        true => Ok(text),
        false => Err(Errno::IO),
    }
}

/// Checks that block devices can have filters: they have the attribute "filter" then.
pub fn check(root: &Root, config: &Config) -> Check {
    let release = root.release();
    let subject = format!("kernel {release}");
    let disks = root.stack.disks();
    let has_attribute = |number| root.stack.has(number, "filter");
    let off = |reason: String| {
        Check::problem(
            CHECK,
            &subject,
            reason,
            "boot a kernel built with CONFIG_BLK_FILTER=y and CONFIG_BLKSNAP=m",
        )
    };
    if disks.iter().any(|(_, number)| has_attribute(*number)) {
        return Check::ok(CHECK, subject, "it has block device filters");
    }
    let file = config.file.as_deref().unwrap_or_default();
    match (config.filter, disks.first()) {
        (Some(Choice::Off), _) => off(format!(
            "it has no block device filters: CONFIG_BLK_FILTER is not set in {file}"
        )),
        // The file can be of another build with the same release.
        (_, Some((name, _))) => off(format!(
            "it has no block device filters: there is no /sys/block/{name}/filter"
        )),
        (Some(_), None) => Check::ok(
            CHECK,
            subject,
            format!("it has block device filters, as {file} says"),
        ),
        (None, None) => Check::note(
            CHECK,
            subject,
            "whether it has block device filters cannot be found out: no configuration and no disk \
             can be seen",
            "run \"blksnap doctor\" as root outside of containers, and check that sysfs is mounted \
             at /sys",
        ),
    }
}
