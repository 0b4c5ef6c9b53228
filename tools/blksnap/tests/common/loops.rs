// SPDX-License-Identifier: GPL-2.0-only

//! Loop devices for tests, where there are any and one may set them up.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

fn program(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.exists())
}

/// Says why less is tested; not by a macro, whose output would be kept back.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// Runs a tool on a file; false if it is not there.
pub fn run(tool: &str, options: &[&str], path: &Path) -> bool {
    feed(tool, options, path, "")
}

/// The same with something to read.
pub fn feed(tool: &str, options: &[&str], path: &Path, input: &str) -> bool {
    let Some(program) = program(tool) else {
        skipped(&format!("{tool} is not there"));
        return false;
    };
    let mut child = Command::new(program)
        .args(options)
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let written = child.stdin.take().unwrap().write_all(input.as_bytes());
    assert!(child.wait().unwrap().success(), "{tool}");
    written.unwrap();
    true
}

/// A loop device on a sparse file.
pub struct Loop {
    path: PathBuf,
    backing: PathBuf,
}

impl Loop {
    /// None where there are no loop devices.
    pub fn new(backing: &Path, size: u64, block_size: u32) -> Option<Self> {
        let file = File::create(backing).unwrap();
        file.set_len(size).unwrap();
        drop(file);
        Self::on(backing, block_size)
    }

    /// The same on what there is.
    pub fn on(backing: &Path, block_size: u32) -> Option<Self> {
        let output = Command::new(program("losetup")?)
            .args(["--find", "--show", "--sector-size"])
            .arg(block_size.to_string())
            .arg(backing)
            .output()
            .unwrap();
        if !output.status.success() {
            skipped("there are no loop devices for this test");
            return None;
        }
        let path = String::from_utf8(output.stdout).unwrap();
        Some(Self {
            path: path.trim().into(),
            backing: backing.to_owned(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn name(&self) -> &str {
        self.path.to_str().unwrap()
    }

    pub fn file(&self) -> File {
        File::options()
            .read(true)
            .write(true)
            .open(&self.path)
            .unwrap()
    }

    /// Makes it all zeroes.
    pub fn clear(&self) {
        let size = std::fs::metadata(&self.backing).unwrap().len();
        let file = self.file();
        file.write_all_at(&vec![0; size as usize], 0).unwrap();
        file.sync_all().unwrap();
    }

    pub fn read(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.file().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// How much of its file is allocated.
    pub fn taken(&self) -> u64 {
        std::fs::metadata(&self.backing).unwrap().blocks() * 512
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Some(losetup) = program("losetup") {
            let _ = Command::new(losetup).arg("-d").arg(&self.path).status();
        }
    }
}

/// An ext4 on a loop device that is mounted.
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn new(device: &Loop, point: &Path) -> Option<Self> {
        if !run("mkfs.ext4", &["-q", "-F"], device.path()) {
            return None;
        }
        std::fs::create_dir(point).unwrap();
        let mounted = Command::new(program("mount")?)
            .args([device.path(), point])
            .status();
        if !mounted.unwrap().success() {
            skipped("nothing can be mounted here");
            return None;
        }
        Some(Self(point.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(umount) = program("umount") {
            let _ = Command::new(umount).arg(&self.0).status();
        }
    }
}
