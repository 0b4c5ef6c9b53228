// SPDX-License-Identifier: GPL-2.0-only

//! The command restores what a kernel of files was backed up from: to what, and to
//! what not. What needs loop devices is left out where there are none.

// Each test program uses a part of it.
#[allow(dead_code)]
mod common;
#[path = "common/loops.rs"]
mod loops;

use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs;
use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use blksnap::backup;
use blksnap::backup::Progress;
use blksnap::backup::Watch;
use blksnap::stack::Stack;
use blksnap::Result;
use rustix::fs::Mode as FileMode;
use serde_json::Value;

use common::files::Files;
use common::files::SIZE;
use loops::Loop;
use loops::Mounted;

struct Quiet;

impl Watch for Quiet {
    fn keep_on(&mut self, _progress: Progress) -> Result<()> {
        Ok(())
    }

    fn tell(&mut self, _note: &str) {}
}

/// A directory with disks, and a backup of them.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Gives a disk some content: its second half is zeroes.
    fn fill(&self, name: &OsStr, byte: u8) -> Vec<u8> {
        let mut content: Vec<u8> = (0..SIZE).map(|at| byte ^ (at / 7) as u8).collect();
        content[SIZE / 2..].fill(0);
        content[..16].fill(byte);
        fs::write(self.path(name), &content).unwrap();
        content
    }

    fn back_up(&self, names: &[&OsStr]) {
        self.back_up_to(names, &self.path("backup"));
    }

    fn back_up_to(&self, names: &[&OsStr], to: &Path) {
        let kernel = Files(self.directory.path().to_owned());
        let request = backup::Request {
            devices: names.iter().map(|name| self.path(name)).collect(),
            to: to.to_owned(),
            ..kernel.request()
        };
        let report = backup::run(&kernel, &request, &mut Quiet).unwrap();
        assert!(report.errors.is_empty());
    }

    /// With one restore point of a disk.
    fn with_backup() -> (Self, Vec<u8>) {
        let place = Self::new();
        let content = place.fill("disk".as_ref(), 7);
        place.back_up(&["disk".as_ref()]);
        (place, content)
    }

    fn command(&self, arguments: &[&OsStr]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blksnap"));
        command
            .arg("restore")
            .arg(self.path("backup"))
            .args(arguments)
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        self.command(&arguments).output().unwrap()
    }

    /// What is said by a command that ends with this code.
    fn told(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        text
    }

    fn names(&self) -> Vec<OsString> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<_> = entries.map(|it| it.unwrap().file_name()).collect();
        names.sort();
        names
    }
}

fn assert_has(text: &str, wanted: &[&str]) {
    for wanted in wanted {
        assert!(text.contains(wanted), "{wanted:?} is not in {text:?}");
    }
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_device_that_is_in_no_restore_point_is_an_error() {
    let (place, _) = Place::with_backup();
    let before = place.names();
    for target in ["sda=out.img", "/dev/sda=out.img", "a=b"] {
        let text = place.told(2, &[target]);
        assert_has(&text, &[name(&place.path("disk")), "./NAME"]);
    }
    assert_eq!(place.names(), before);
}

#[test]
fn a_file_with_an_equals_sign_is_still_a_target() {
    let (place, content) = Place::with_backup();
    place.told(0, &["./sda=out.img"]);
    assert!(fs::read(place.path("sda=out.img")).unwrap() == content);
}

#[test]
fn a_device_is_restored_from_the_newest_point_that_has_it() {
    let place = Place::new();
    let (a, b) = (OsStr::new("a"), OsStr::new("b"));
    place.fill(a, 1);
    let old_b = place.fill(b, 2);
    place.back_up(&[a, b]);
    let new_a = place.fill(a, 3);
    place.fill(b, 4);
    place.back_up(&[a]);

    let text = place.told(2, &["x"]);
    assert_has(&text, &[name(&place.path("b")), "DEV=TARGET"]);
    let (from_a, from_b) = (place.path("a"), place.path("b"));
    let of_b = format!("{}=x", name(&from_b));
    let text = place.told(2, &["--point=2", &of_b]);
    assert_has(&text, &["newest that has it is 1", "--point 1"]);
    assert!(!place.path("x").exists());

    let of_a = format!("{}=y", name(&from_a));
    let output = place.run(&[&of_b, &of_a, "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["point"], Value::Null);
    assert_eq!(report["devices"][0]["point"], 1);
    assert_eq!(report["devices"][1]["point"], 2);
    assert!(fs::read(place.path("x")).unwrap() == old_b);
    assert!(fs::read(place.path("y")).unwrap() == new_a);
}

#[test]
fn names_that_are_no_text_are_restored() {
    let place = Place::new();
    let disk = OsStr::from_bytes(b"d\xff=\n\x1b[7m");
    let content = place.fill(disk, 9);
    place.fill("other".as_ref(), 8);
    place.back_up(&[disk, "other".as_ref()]);

    let mut target = place.path(disk).into_os_string();
    target.push("=out");
    let output = place.command(&[&target]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(fs::read(place.path("out")).unwrap() == content);

    // As it is shown, too, which a terminal can show.
    let list = Command::new(env!("CARGO_BIN_EXE_blksnap"))
        .arg("list")
        .arg(place.path("backup"))
        .args(["--json"])
        .output()
        .unwrap();
    let list: Value = serde_json::from_slice(&list.stdout).unwrap();
    let shown = list["points"][0]["devices"][0]["device"].as_str().unwrap();
    assert!(!shown.contains(char::is_control), "{shown:?}");
    place.told(0, &[&format!("{shown}=again")]);
    assert!(fs::read(place.path("again")).unwrap() == content);

    fs::write(place.path(disk), "x").unwrap();
    place.told(0, &["--in-place", "--moved-name", "--overwrite"]);
    assert!(fs::read(place.path(disk)).unwrap() == content);
}

#[test]
fn there_is_an_option_for_each_thing() {
    let (place, _) = Place::with_backup();
    let text = place.told(2, &["x", "--force"]);
    assert_has(
        &text,
        &[
            "--overwrite",
            "--in-use",
            "--truncate",
            "--moved-name",
            "--other-block-size",
        ],
    );
    assert!(!place.path("x").exists());
}

#[test]
fn a_file_that_holds_something_is_named() {
    let (place, content) = Place::with_backup();
    let file = File::create(place.path("target")).unwrap();
    file.set_len(8 << 20).unwrap();
    drop(file);
    if loops::run(
        "mkfs.ext4",
        &["-q", "-F", "-L", "data"],
        &place.path("target"),
    ) {
        let text = place.told(1, &["target"]);
        assert_has(&text, &["ext4 \"data\"", "--overwrite"]);
    }
    place.told(1, &["target", "--in-use", "--truncate"]);
    assert_eq!(fs::metadata(place.path("target")).unwrap().len(), 8 << 20);
    place.told(0, &["target", "--overwrite", "--check"]);
    assert!(fs::read(place.path("target")).unwrap() == content);
}

#[test]
fn a_file_that_something_has_open_is_in_use() {
    let (place, content) = Place::with_backup();
    let user = File::create(place.path("target")).unwrap();
    let text = place.told(1, &["target"]);
    assert_has(&text, &["in use", "--in-use"]);
    place.told(0, &["target", "--in-use"]);
    drop(user);
    assert!(fs::read(place.path("target")).unwrap() == content);
}

/// What is before the cut is restored, and what is lost is told.
#[test]
fn an_image_that_was_cut_off_is_salvaged() {
    let place = Place::new();
    let mut content = place.fill("disk".as_ref(), 7);
    place.back_up(&["disk".as_ref()]);
    // A second layer, which stays.
    content[3 << 16..4 << 16].fill(99);
    fs::write(place.path("disk"), &content).unwrap();
    place.back_up(&["disk".as_ref()]);
    let image = place.path("backup/000001/disk.qcow2");
    let file = fs::File::options().write(true).open(&image).unwrap();
    // The header, five clusters of data, and a part of the next.
    file.set_len((6 << 16) + 4096).unwrap();

    let refused = place.run(&["out"]);
    assert_eq!(refused.status.code(), Some(4));
    let error = String::from_utf8_lossy(&refused.stderr);
    assert_has(&error, &["000001/disk.qcow2", "bytes", "--salvage"]);
    assert!(!place.path("out").exists());

    let salvaged = place.run(&["out", "--salvage", "--check"]);
    let text = String::from_utf8_lossy(&salvaged.stderr);
    assert_eq!(salvaged.status.code(), Some(7), "{text}");
    let found = fs::read(place.path("out")).unwrap();
    let cut = (5 << 16) + 4096;
    assert!(found[..cut] == content[..cut]);
    assert_eq!(found.len(), content.len());
    let half = SIZE / 2;
    let lost = format!("its bytes {} to {half} are not what was backed up", 5 << 16);
    assert_has(&text, &["000001/disk.qcow2: it is cut off", &lost]);

    // One that is not there has nothing to be salvaged.
    fs::remove_file(&image).unwrap();
    let refused = place.run(&["other", "--salvage"]);
    assert_eq!(refused.status.code(), Some(4));
    let error = String::from_utf8_lossy(&refused.stderr);
    assert_has(&error, &["000001/disk.qcow2", "missing"]);
    let refused = place.run(&["other"]);
    assert!(!String::from_utf8_lossy(&refused.stderr).contains("--salvage"));
}

#[test]
fn a_dry_run_writes_nothing() {
    let (place, _) = Place::with_backup();
    fs::write(place.path("full"), "x").unwrap();
    let before = place.names();
    let output = place.run(&["new", "--dry-run"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_has(
        &text,
        &["restore point 1", "(2M)", "goes to new", "a new file"],
    );
    let output = place.run(&["full", "--overwrite", "--dry-run", "--json"]);
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["plan"][0]["target"], "full");
    assert!(plan["plan"][0]["before"]
        .as_str()
        .unwrap()
        .contains("a file, 1"));
    assert_eq!(fs::read(place.path("full")).unwrap(), b"x");
    // What would be refused is refused.
    place.told(1, &["full", "--dry-run"]);
    assert_eq!(place.names(), before);
}

#[test]
fn standard_output_and_pipes_get_everything_in_order() {
    let (place, content) = Place::with_backup();
    let output = place.run(&["-"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stdout == content);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_has(&text, &["is restored to -"]);
    assert!(!place.path("-").exists());

    let output = place.run(&["/dev/stdout", "--json"]);
    assert!(output.stdout.starts_with(&content));
    place.told(2, &["-", "--check"]);
    // A file that the shell has opened.
    let file = File::create(place.path("out")).unwrap();
    (&file).write_all(b"before").unwrap();
    let status = place
        .command(&["-".as_ref()])
        .stdout(file)
        .status()
        .unwrap();
    assert!(status.success());
    let out = fs::read(place.path("out")).unwrap();
    assert!(out.starts_with(b"before") && out[6..] == content);
    place.told(0, &["./-"]);
    assert!(fs::read(place.path("-")).unwrap() == content);

    let fifo = place.path("fifo");
    let mode = FileMode::RUSR | FileMode::WUSR;
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).unwrap();
    let mut child = place
        .command(&["fifo".as_ref()])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut found = Vec::new();
    File::open(&fifo).unwrap().read_to_end(&mut found).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(found == content);

    let mut child = place
        .command(&["fifo".as_ref()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = File::open(&fifo).unwrap();
    reader.read_exact(&mut [0; 5]).unwrap();
    drop(reader);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let mut text = String::new();
    child.stderr.unwrap().read_to_string(&mut text).unwrap();
    assert_has(&text, &["EPIPE", "what to do"]);
}

#[test]
fn a_restore_that_waits_for_a_reader_can_be_stopped() {
    let (place, _) = Place::with_backup();
    let fifo = place.path("fifo");
    let mode = FileMode::RUSR | FileMode::WUSR;
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).unwrap();
    for reads in [false, true] {
        let mut reader = File::options();
        let reader = reads.then(|| reader.read(true).write(true).open(&fifo).unwrap());
        let child = place.command(&["fifo".as_ref()]).spawn();
        let mut child = child.unwrap();
        std::thread::sleep(std::time::Duration::from_millis(700));
        common::kill(&child, rustix::process::Signal::TERM);
        assert_eq!(child.wait().unwrap().code(), Some(143), "{reads}");
        drop(reader);
    }
}

#[test]
fn standard_output_in_the_backup_is_refused() {
    let (place, _) = Place::with_backup();
    let path = place.path("backup/out");
    let file = File::create(&path).unwrap();
    let status = place
        .command(&["-".as_ref()])
        .stdout(file)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(1));
    assert_eq!(fs::metadata(path).unwrap().len(), 0);
}

/// What is shown on a terminal, and what became of it.
fn on_terminal(place: &Place, arguments: &[&str], answer: &str) -> (Option<i32>, String) {
    use rustix::pty;
    let flags = pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY;
    let ours = pty::openpt(flags).unwrap();
    pty::grantpt(&ours).unwrap();
    pty::unlockpt(&ours).unwrap();
    let path = pty::ptsname(&ours, Vec::new()).unwrap();
    let path = Path::new(OsStr::from_bytes(path.as_bytes()));
    let open = || File::options().read(true).write(true).open(path).unwrap();
    let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
    let mut child = place
        .command(&arguments)
        .stdin(open())
        .stderr(open())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut ours = File::from(ours);
    ours.write_all(answer.as_bytes()).unwrap();
    let mut text = Vec::new();
    // The end is an error, as nobody has the other side open.
    let _ = ours.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    (child.wait().unwrap().code(), text)
}

#[test]
fn on_a_terminal_it_asks() {
    let (place, content) = Place::with_backup();
    fs::write(place.path("target"), "x").unwrap();
    let run = |more: &[&str], answer: &str| {
        on_terminal(&place, &[&["target", "--overwrite"], more].concat(), answer)
    };
    for answer in ["n\n", "\n", "yess\n", "\u{4}"] {
        let (code, text) = run(&[], answer);
        assert_eq!(code, Some(1), "{text}");
        assert_has(
            &text,
            &["goes to target", "a file, 1", "[y/N]", "not confirmed"],
        );
        assert_eq!(fs::read(place.path("target")).unwrap(), b"x");
    }
    let (code, _) = run(&["--json"], "");
    assert_eq!(code, Some(1));
    assert_eq!(fs::read(place.path("target")).unwrap(), b"x");
    let (code, text) = run(&[], "y\n");
    assert_eq!(code, Some(0), "{text}");
    assert!(fs::read(place.path("target")).unwrap() == content);
    let (code, text) = run(&["--yes"], "");
    assert_eq!(code, Some(0), "{text}");
    assert!(!text.contains("[y/N]"), "{text}");
    // What would be refused is not asked about.
    let (code, text) = on_terminal(&place, &["target"], "");
    assert_eq!(code, Some(1), "{text}");
    assert!(!text.contains("[y/N]"), "{text}");
    // A new file that was not confirmed is not there.
    let (code, _) = on_terminal(&place, &["new"], "n\n");
    assert_eq!((code, place.path("new").exists()), (Some(1), false));
}

#[test]
fn a_device_that_holds_something_is_named() {
    let (place, content) = Place::with_backup();
    let Some(device) = Loop::new(&place.path("loop"), 8 << 20, 512) else {
        return;
    };
    let dev = device.name();
    for (tool, options, wanted) in [
        (
            "mkfs.ext4",
            &["-q", "-F", "-L", "data"][..],
            "ext4 \"data\"",
        ),
        ("mkswap", &[], "swap"),
    ] {
        device.clear();
        if !loops::run(tool, options, device.path()) {
            continue;
        }
        for others in [&[][..], &["--in-use", "--truncate", "--other-block-size"]] {
            let text = place.told(1, &[&[dev], others].concat());
            assert_has(&text, &[dev, wanted, "8M", "--overwrite"]);
            assert!(text.contains("loop device on"), "{text}");
        }
    }
    // Data that no signature tells of, at the start or at the end.
    for at in [4711, (8 << 20) - 1] {
        device.clear();
        device.file().write_all_at(b"x", at).unwrap();
        let text = place.told(1, &[dev]);
        assert_has(&text, &[&format!("byte {at}"), "--overwrite"]);
    }
    place.told(0, &[dev, "--overwrite", "--check"]);
    let found = device.read(SIZE);
    assert!(found == content);
    // An empty one needs no option.
    device.clear();
    place.told(0, &[dev]);
    assert!(device.read(SIZE) == content);
}

#[test]
fn partitions_of_a_target_are_told_of() {
    let (place, _) = Place::with_backup();
    let Some(device) = Loop::new(&place.path("loop"), 32 << 20, 512) else {
        return;
    };
    if !loops::feed("sfdisk", &["-q"], device.path(), "label: gpt\nsize=16M\n") {
        return;
    }
    let text = place.told(1, &[device.name()]);
    assert_has(&text, &["partition table (gpt)"]);
}

#[test]
fn a_device_that_is_mounted_is_in_use() {
    let (place, _) = Place::with_backup();
    let Some(device) = Loop::new(&place.path("loop"), 8 << 20, 512) else {
        return;
    };
    let Some(mounted) = Mounted::new(&device, &place.path("mount point")) else {
        return;
    };
    let text = place.told(1, &[device.name(), "--overwrite", "--truncate"]);
    assert_has(&text, &["in use", "mounted on", "mount point", "--in-use"]);
    // Each thing has its own option.
    let text = place.told(1, &[device.name(), "--in-use"]);
    assert_has(&text, &["ext4", "--overwrite"]);
    drop(mounted);
}

#[test]
fn a_device_that_is_mounted_in_another_namespace_is_in_use() {
    let (place, _) = Place::with_backup();
    let Some(device) = Loop::new(&place.path("loop"), 8 << 20, 512) else {
        return;
    };
    fs::create_dir(place.path("mounted")).unwrap();
    if !loops::run("mkfs.ext4", &["-q", "-F"], device.path()) {
        return;
    }
    let script = "mount \"$1\" \"$2\" && echo && exec sleep 600";
    let mut holder = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .args([device.path(), &place.path("mounted")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mounted = holder.stdout.as_mut().unwrap().read_exact(&mut [0]).is_ok();
    let output = place.run(&[device.name(), "--overwrite", "--truncate"]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    if mounted {
        let text = String::from_utf8(output.stderr).unwrap();
        assert_has(
            &text,
            &["in use", "in the mount namespace of process", "--in-use"],
        );
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn what_the_backup_lies_on_is_never_a_target() {
    let place = Place::new();
    place.fill("disk".as_ref(), 7);
    let Some(device) = Loop::new(&place.path("loop"), 64 << 20, 512) else {
        return;
    };
    let Some(mounted) = Mounted::new(&device, &place.path("mounted")) else {
        return;
    };
    let inside = place.path("mounted/dir");
    place.back_up_to(&["disk".as_ref()], &inside);
    std::os::unix::fs::symlink(&inside, place.path("backup")).unwrap();
    let all = [
        "--in-use",
        "--overwrite",
        "--truncate",
        "--other-block-size",
    ];
    for target in [device.name(), name(&place.path("loop"))] {
        let text = place.told(1, &[&[target], &all[..]].concat());
        assert_has(&text, &["lies on it"]);
    }
    drop(mounted);
}

/// A loop device is known by the number of what it is on, not by the name of the node.
#[test]
fn a_loop_device_on_a_node_elsewhere_is_seen() {
    let temp = tempfile::tempdir().unwrap();
    let Some(below) = Loop::new(&temp.path().join("file"), 1 << 20, 512) else {
        return;
    };
    let number = fs::metadata(below.path()).unwrap().rdev();
    let node = temp.path().join("node");
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        &node,
        rustix::fs::FileType::BlockDevice,
        FileMode::RUSR | FileMode::WUSR,
        number,
    );
    if made.is_err() {
        return;
    }
    let Some(above) = Loop::on(&node, 512) else {
        return;
    };
    let stack = Stack::default();
    let number = blksnap::device::check(below.path()).unwrap();
    let name = above.path().file_name().unwrap().to_str().unwrap();
    let users = stack.users(number);
    assert!(users.iter().any(|it| it.contains(name)), "{users:?}");
    let top = blksnap::device::check(above.path()).unwrap();
    assert!(stack.below_device(top).devices.contains(&number));
    drop(above);
    assert!(Stack::default().users(number).is_empty());
}

#[test]
fn a_smaller_device_needs_its_option() {
    let (place, content) = Place::with_backup();
    let Some(device) = Loop::new(&place.path("loop"), 1 << 19, 512) else {
        return;
    };
    let text = place.told(1, &[device.name(), "--overwrite", "--in-use"]);
    assert_has(&text, &["524288", "--truncate"]);
    let text = place.told(0, &[device.name(), "--truncate", "--check"]);
    assert_has(&text, &["the end is missing"]);
    assert!(device.read(1 << 19) == content[..1 << 19]);
}

/// 20 MiB of data in 64 MiB take about 20 MiB, whatever was there.
#[test]
fn thin_targets_stay_thin() {
    let place = Place::new();
    let mut content = vec![0; 64 << 20];
    content[3 << 20..23 << 20].fill(0x5a);
    fs::write(place.path("disk"), &content).unwrap();
    place.back_up(&["disk".as_ref()]);
    let taken = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
    let wanted = (20 << 20)..(24 << 20);

    place.told(0, &["out", "--check"]);
    assert!(wanted.contains(&taken(&place.path("out"))));
    let Some(device) = Loop::new(&place.path("loop"), 64 << 20, 512) else {
        return;
    };
    place.told(0, &[device.name(), "--check"]);
    assert!(wanted.contains(&device.taken()), "{}", device.taken());
    // Data where there are zeroes is deallocated.
    device.file().write_all_at(&vec![1; 64 << 20], 0).unwrap();
    device.file().sync_all().unwrap();
    assert!(device.taken() >= 64 << 20);
    place.told(0, &[device.name(), "--overwrite", "--check"]);
    assert!(wanted.contains(&device.taken()), "{}", device.taken());
    assert!(device.read(content.len()) == content);
}

/// A disk with a GPT for logical blocks of this size.
fn gpt(place: &Place, block_size: u32) -> Option<Loop> {
    let disk = Loop::new(&place.path("disk"), 32 << 20, block_size)?;
    let script = "label: gpt\nsize=16M\n";
    if !loops::feed("sfdisk", &["-q"], disk.path(), script) {
        return None;
    }
    // The image of the kernel of files.
    fs::write(place.path("disk.held.node"), disk.name()).unwrap();
    place.back_up(&["disk".as_ref()]);
    Some(disk)
}

#[test]
fn logical_blocks_of_another_size_need_their_option() {
    let place = Place::new();
    let Some(_disk) = gpt(&place, 4096) else {
        return;
    };
    let text = place.told(0, &["out"]);
    assert_has(&text, &["losetup --sector-size 4096"]);
    let Some(device) = Loop::new(&place.path("loop"), 32 << 20, 512) else {
        return;
    };
    let text = place.told(1, &[device.name(), "--overwrite", "--in-use", "--truncate"]);
    assert_has(&text, &["512", "4096", "--other-block-size"]);
    place.told(0, &[device.name(), "--other-block-size", "--check"]);
    let same = Loop::new(&place.path("same"), 32 << 20, 4096).unwrap();
    place.told(0, &[same.name(), "--check"]);
}

#[test]
fn the_backup_gpt_of_a_larger_target_is_told_of() {
    for block_size in [512, 4096] {
        let place = Place::new();
        let Some(_disk) = gpt(&place, block_size) else {
            return;
        };
        let larger = Loop::new(&place.path("larger"), 48 << 20, block_size).unwrap();
        let text = place.told(0, &[larger.name()]);
        assert_has(
            &text,
            &["sgdisk -e", "sfdisk --relocate gpt-bak-std", larger.name()],
        );
        let same = Loop::new(&place.path("same"), 32 << 20, block_size).unwrap();
        let text = place.told(0, &[same.name()]);
        assert!(!text.contains("sgdisk"), "{text}");
    }
}

#[test]
fn two_loop_devices_on_one_file_are_no_two_targets() {
    let place = Place::new();
    let (a, b) = (OsStr::new("a"), OsStr::new("b"));
    place.fill(a, 1);
    place.fill(b, 2);
    place.back_up(&[a, b]);
    let backing = place.path("backing");
    let Some(first) = Loop::new(&backing, SIZE as u64, 512) else {
        return;
    };
    let Some(second) = Loop::new(&backing, SIZE as u64, 512) else {
        return;
    };
    let to =
        |from: &str, target: &Loop| format!("{}={}", place.path(from).display(), target.name());
    let text = place.told(2, &[&to("a", &first), &to("b", &second)]);
    assert_has(&text, &[first.name(), second.name(), "overlap"]);
    assert!(first.read(SIZE).iter().all(|&byte| byte == 0));
}

#[test]
fn a_write_protected_device_is_named_as_such() {
    let (place, _) = Place::with_backup();
    let Some(device) = Loop::new(&place.path("backing"), SIZE as u64, 512) else {
        return;
    };
    assert!(loops::run("blockdev", &["--setro"], device.path()));
    let output = place.run(&[device.name()]);
    // The next user of the loop device would find it read-only.
    assert!(loops::run("blockdev", &["--setrw"], device.path()));
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_has(&text, &["write-protected", "--setrw"]);
}

#[test]
fn a_limit_of_file_sizes_is_an_error_and_leaves_nothing() {
    let (place, _) = Place::with_backup();
    let restore = place.command(&["out".as_ref()]);
    let before = place.names();
    let output = Command::new("sh")
        .args(["-c", "ulimit -f 100; exec \"$0\" \"$@\""])
        .arg(restore.get_program())
        .args(restore.get_args())
        .current_dir(place.directory.path())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_has(&text, &["EFBIG", "ulimit -f"]);
    assert_eq!(place.names(), before);
}
