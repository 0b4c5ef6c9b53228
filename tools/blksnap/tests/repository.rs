// SPDX-License-Identifier: GPL-2.0-only

//! The command on directories that an attacker prepared or that cannot be read now, and
//! backups with few open files.

// Not all of it is needed here.
#[allow(dead_code)]
mod common;

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::fs::symlink;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::time::Duration;

use blksnap::backup;
use blksnap::backup::manifest::Manifest;
use blksnap::backup::manifest::Todo;
use blksnap::Result;
use serde_json::Value;

use common::files::Files;
use common::files::Nobody;
use common::files::BLOCK;
use common::files::SIZE;
use common::start_role;
use common::DIRECTORY;
use common::ROLE;

fn back_up(directory: &Path) -> Result<backup::Report> {
    let files = Files(directory.to_owned());
    backup::run(&files, &files.request(), &mut Nobody)
}

/// Not a test, but what the processes started by the tests run.
#[test]
fn role() {
    if std::env::var(ROLE).is_err() {
        return;
    }
    let directory = PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
    let code = match back_up(&directory) {
        Ok(report) => {
            eprintln!("base {:?}", report.devices[0].base);
            0
        }
        Err(error) => {
            eprintln!("{error}");
            error.exit().code()
        }
    };
    std::process::exit(code.into());
}

/// A disk, and a backup of it whose restore points change one block each.
struct Disk {
    temp: tempfile::TempDir,
    content: Vec<u8>,
}

impl Disk {
    fn new(points: usize) -> Self {
        let mut disk = Self {
            temp: tempfile::tempdir().unwrap(),
            content: vec![0; SIZE],
        };
        for point in 0..points {
            disk.change(point);
            back_up(disk.temp.path()).unwrap();
        }
        disk
    }

    fn change(&mut self, point: usize) {
        let at = point * BLOCK % SIZE;
        self.content[at..at + BLOCK].fill(point as u8 + 1);
        fs::write(self.temp.path().join("disk"), &self.content).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn backup(&self, name: &str) -> PathBuf {
        self.temp.path().join("backup").join(name)
    }

    fn manifest(&self) -> Manifest {
        let text = fs::read_to_string(self.backup("blksnap.json")).unwrap();
        Manifest::from_json(&text).unwrap()
    }

    fn set_manifest(&self, change: impl FnOnce(&mut Manifest)) {
        let mut manifest = self.manifest();
        change(&mut manifest);
        fs::write(self.backup("blksnap.json"), manifest.to_json()).unwrap();
    }

    /// Runs the command on the backup, which must end soon.
    fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(Command::new(env!("CARGO_BIN_EXE_blksnap")), arguments)
    }

    fn run_with(&self, mut command: Command, arguments: &[&str]) -> Output {
        let (name, rest) = arguments.split_first().unwrap();
        let mut child = command
            .arg(name)
            .arg(self.path("backup"))
            .args(rest)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut left = 600;
        while child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(50));
            left -= 1;
            if left == 0 {
                child.kill().unwrap();
                panic!("{arguments:?} does not end");
            }
        }
        child.wait_with_output().unwrap()
    }

    /// The exit code and all that is said.
    fn code(&self, arguments: &[&str]) -> (i32, String) {
        let target = self.path("target");
        let _ = fs::remove_file(&target);
        let target = target.to_str().unwrap();
        let arguments: Vec<&str> = arguments
            .iter()
            .map(|it| if *it == TARGET { target } else { it })
            .collect();
        let output = self.run(&arguments);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        assert!(!text.contains("panicked"), "{arguments:?}: {text}");
        (output.status.code().expect("no signal"), text)
    }
}

/// Stands for a file that is not there.
const TARGET: &str = "TARGET";
const READERS: [&[&str]; 3] = [&["list"], &["verify"], &["restore", TARGET]];
const WRITER: &[&str] = &["prune", "--keep=1"];

/// All files below a directory, and what they are.
fn picture(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap();
        if kind.is_dir() {
            found.extend(picture(&path));
        } else if kind.is_file() {
            let content = fs::read(&path).unwrap();
            found.push((path, content));
        }
    }
    found.sort();
    found
}

/// What is outside of a backup, with names that those of a backup could lead to.
fn outside(disk: &Disk) -> PathBuf {
    let outside = disk.path("outside");
    fs::create_dir(&outside).unwrap();
    for name in [
        "a.qcow2",
        "a.sums",
        "b.qcow2.partial",
        "secret",
        "disk.sums.partial",
    ] {
        fs::write(outside.join(name), name).unwrap();
    }
    outside
}

#[test]
fn links_lead_nowhere() {
    let places = [
        // Which are cleared away.
        "000009.partial",
        "000007",
        "blksnap.json.partial",
        // Which are read.
        "000001/disk.qcow2",
        "000002/disk.sums",
        "000001",
        "blksnap.lock",
        "blksnap.writer",
        "blksnap.json",
    ];
    for (index, place) in places.iter().enumerate() {
        let disk = Disk::new(2);
        let outside = outside(&disk);
        let path = disk.backup(place);
        let target = match *place {
            "000009.partial" | "000007" | "000001" => outside.clone(),
            _ => outside.join("secret"),
        };
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap();
        } else {
            let _ = fs::remove_file(&path);
        }
        symlink(&target, &path).unwrap();
        let before = picture(&outside);
        let (code, text) = disk.code(WRITER);
        if index < 3 {
            assert_eq!(code, 0, "{place}: {text}");
        } else {
            assert_eq!(code, 1, "{place}: {text}");
            assert!(text.contains("symbolic link"), "{place}: {text}");
        }
        for reader in READERS {
            let (code, text) = disk.code(reader);
            assert!(
                code == 0 || text.contains("symbolic link"),
                "{place}: {text}"
            );
        }
        let backup = back_up(disk.temp.path());
        assert!(picture(&outside) == before, "{place}");
        assert_eq!(backup.is_ok(), index < 3, "{place}: {backup:?}");
    }
}

#[test]
fn what_is_not_finished_takes_no_other_name_with_it() {
    let disk = Disk::new(2);
    let secret = disk.path("secret");
    fs::write(&secret, "s").unwrap();
    fs::hard_link(&secret, disk.backup("blksnap.json.partial")).unwrap();
    fs::remove_file(disk.backup("blksnap.writer")).unwrap();
    fs::hard_link(&secret, disk.backup("blksnap.writer")).unwrap();
    back_up(disk.temp.path()).unwrap();
    assert_eq!(fs::read(&secret).unwrap(), b"s");
}

#[test]
fn no_pipe_is_waited_for() {
    for place in [
        "blksnap.lock",
        "blksnap.writer",
        "blksnap.json",
        "000001/disk.qcow2",
        "000002/disk.sums",
        "blksnap.json.partial",
    ] {
        let disk = Disk::new(2);
        let path = disk.backup(place);
        let _ = fs::remove_file(&path);
        assert!(Command::new("mkfifo")
            .arg(&path)
            .status()
            .unwrap()
            .success());
        for command in READERS.into_iter().chain([WRITER]) {
            let (code, text) = disk.code(command);
            let says = text.contains("no regular file");
            assert!(code == 0 || (code == 4 && says), "{place} {code}: {text}");
        }
        assert!(!place.starts_with('0') || disk.code(&["verify"]).0 == 4);
    }
}

#[test]
fn a_manifest_has_no_other_files_renamed_or_removed() {
    let disk = Disk::new(2);
    let before = picture(disk.temp.path());
    fs::create_dir(disk.backup("etc")).unwrap();
    fs::write(disk.backup("etc/x"), "x").unwrap();
    let good = disk.manifest();
    let rename = |from: &str, to: &str| vec![(from.to_owned(), to.to_owned())];
    let remove = |name: &str| vec![name.to_owned()];
    for (rename, remove) in [
        (vec![], remove("etc/x")),
        (vec![], remove("blksnap.lock")),
        (vec![], remove("000001/disk.qcow2")),
        (rename("etc", "moved"), vec![]),
        (rename("000001", "000009"), vec![]),
        (rename("blksnap.lock", "000001/disk.sums"), vec![]),
    ] {
        let todo = Todo { rename, remove };
        disk.set_manifest(|manifest| manifest.todo = todo);
        for command in READERS.into_iter().chain([WRITER]) {
            let (code, text) = disk.code(command);
            assert_eq!(code, 4, "{text}");
            assert!(text.contains("no file of a backup"), "{text}");
        }
        fs::write(disk.backup("blksnap.json"), good.to_json()).unwrap();
    }
    assert!(disk.backup("etc/x").exists());
    fs::remove_dir_all(disk.backup("etc")).unwrap();
    assert!(picture(disk.temp.path()) == before);
}

#[test]
fn numbers_of_a_manifest_are_bounded() {
    let changes: [fn(&mut Manifest); 6] = [
        |it| it.points[1].time = u64::MAX,
        |it| it.next = u64::MAX,
        |it| it.images.iter_mut().for_each(|it| it.size = 1 << 62),
        |it| it.images[0].file_bytes = u64::MAX,
        |it| it.images[0].data_bytes = u64::MAX,
        |it| it.points[0].devices[0].device = "x".repeat(100_000),
    ];
    for change in changes {
        let disk = Disk::new(2);
        disk.set_manifest(change);
        for command in READERS.into_iter().chain([WRITER]) {
            let (code, text) = disk.code(command);
            assert_eq!(code, 4, "{text}");
            assert!(text.contains("its manifest is damaged"), "{text}");
            assert!(text.len() < 2000);
        }
        assert_eq!(back_up(disk.temp.path()).unwrap_err().exit().code(), 4);
    }
}

#[test]
fn no_name_commands_a_terminal() {
    let disk = Disk::new(2);
    let name = "/dev/\u{1b}]0;owned\u{7}\u{9b}2J\r\u{202e}\u{7f}x";
    disk.set_manifest(|manifest| {
        for point in &mut manifest.points {
            point.devices[0].device = name.to_owned();
        }
    });
    let path = disk.backup("000002/disk.qcow2");
    let mut bytes = fs::read(&path).unwrap();
    bytes[BLOCK + 5] ^= 1;
    fs::write(&path, bytes).unwrap();
    let target = disk.path("\u{1b}[2Jtarget");
    let target = target.to_str().unwrap();
    for command in [
        &["list"][..],
        &["verify"],
        &["restore", target],
        &["restore", "/dev/\u{1b}[2J\n/x"],
        &["restore", "--point=9", TARGET],
        &["restore", "--in-place"],
        &["list", "--json"],
        &["verify", "--json"],
        &["restore", target, "--force", "--json"],
    ] {
        let (_, text) = disk.code(command);
        let bad = text
            .chars()
            .find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
        assert_eq!(bad, None, "{command:?}: {text}");
    }
    // Programs get the name as it is.
    let output = disk.run(&["list", "--json"]);
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list["points"][0]["devices"][0]["device"], name);
}

#[test]
fn a_directory_that_others_can_write_is_refused() {
    let disk = Disk::new(1);
    for place in ["", "blksnap.json"] {
        let path = match place {
            "" => disk.path("backup"),
            place => disk.backup(place),
        };
        let before = fs::metadata(&path).unwrap().permissions();
        for mode in [0o777, 0o1777, 0o770] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            for command in READERS.into_iter().chain([WRITER]) {
                let (code, text) = disk.code(command);
                assert_eq!(code, 1, "{text}");
                assert!(text.contains("others can write to it"), "{text}");
                assert!(text.contains("go-w"), "{text}");
            }
            assert_eq!(back_up(disk.temp.path()).unwrap_err().exit().code(), 1);
            let (code, text) = disk.code(&["verify", "--trust-directory"]);
            assert_eq!(code, 0, "{text}");
        }
        fs::set_permissions(&path, before).unwrap();
        if rustix::process::geteuid().is_root() {
            chown(&path, Some(65534), None).unwrap();
            let (code, text) = disk.code(&["list"]);
            assert_eq!(code, 1, "{text}");
            assert!(text.contains("another user"), "{text}");
            chown(&path, Some(0), None).unwrap();
        }
    }
    assert_eq!(disk.code(&["verify"]).0, 0);
}

/// A command with a limit of open files.
fn limited(program: &Command, files: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("ulimit {files}; exec \"$0\" \"$@\"")])
        .arg(program.get_program())
        .args(program.get_args());
    command
}

#[test]
fn a_long_chain_needs_few_open_files() {
    let mut disk = Disk::new(104);
    disk.change(104);
    let mut command = limited(&start_role("backup"), "-n 40");
    command
        .env(ROLE, "backup")
        .env(DIRECTORY, disk.temp.path())
        .stdout(Stdio::null());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("base Some(104)"), "{text}");

    let program = Command::new(env!("CARGO_BIN_EXE_blksnap"));
    let target = disk.path("restored");
    for arguments in [
        &["verify"][..],
        &["restore", target.to_str().unwrap()],
        WRITER,
    ] {
        let output = disk.run_with(limited(&program, "-n 40"), arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
    assert!(fs::read(target).unwrap() == disk.content);
    assert_eq!(disk.code(&["verify"]).0, 0);

    // With less than is needed at all it is an error that says so.
    disk.change(105);
    let output = disk.run_with(limited(&program, "-n 4"), &["verify"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("EMFILE") && text.contains("ulimit -n"),
        "{text}"
    );
    // And one that can be raised is raised.
    let output = disk.run_with(limited(&program, "-Sn 4"), &["verify"]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn an_immutable_file_stops_nothing() {
    let mut disk = Disk::new(3);
    let path = disk.backup("000001/disk.qcow2");
    let chattr = |flag: &str| Command::new("chattr").arg(flag).arg(&path).output();
    if !chattr("+i").is_ok_and(|it| it.status.success()) {
        eprintln!("skipped: files cannot be made immutable here");
        return;
    }
    let pruned = disk.code(WRITER);
    let listed = disk.code(&["list"]);
    disk.change(3);
    let report = back_up(disk.temp.path());
    let again = disk.code(WRITER);
    chattr("-i").unwrap();
    assert_eq!(pruned.0, 0, "{}", pruned.1);
    let warning = "blksnap: warning: ";
    assert!(pruned.1.contains(warning), "{}", pruned.1);
    assert!(pruned.1.contains("000001/disk.qcow2"), "{}", pruned.1);
    assert_eq!(listed.0, 0, "{}", listed.1);
    assert_eq!(report.unwrap().devices[0].base, Some(3));
    assert_eq!(again.0, 0, "{}", again.1);
    assert!(again.1.contains("000001/disk.qcow2"), "{}", again.1);
    let (code, text) = disk.code(WRITER);
    assert_eq!((code, text.contains(warning)), (0, false), "{text}");
    assert!(!disk.backup("000001").exists());
    assert_eq!(disk.code(&["verify"]).0, 0);
}

#[test]
fn a_file_without_permission_is_not_checked() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can run the command as another user");
        return;
    }
    use std::os::unix::process::CommandExt;
    const USER: u32 = 65534;
    let disk = Disk::new(2);
    // Where another user can run it.
    let program = disk.path("blksnap");
    fs::copy(env!("CARGO_BIN_EXE_blksnap"), &program).unwrap();
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(disk.temp.path(), open.clone()).unwrap();
    fs::set_permissions(&program, open).unwrap();
    for name in ["", "000001", "000002", "blksnap.json", "blksnap.lock"] {
        chown(disk.backup(name), Some(USER), None).unwrap();
    }
    for name in ["000001/disk", "000002/disk"] {
        for end in ["qcow2", "sums"] {
            chown(disk.backup(&format!("{name}.{end}")), Some(USER), None).unwrap();
        }
    }
    let verify = || {
        let mut command = Command::new(&program);
        command.uid(USER);
        let output = disk.run_with(command, &["verify", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let points = |list: &str| report[list].as_array().unwrap().len();
        (
            output.status.code(),
            points("damaged"),
            points("not_checked"),
        )
    };
    assert_eq!(verify(), (Some(0), 0, 0));
    let set = |name: &str, mode| {
        fs::set_permissions(disk.backup(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    set("000002/disk.sums", 0);
    assert_eq!(verify(), (Some(1), 0, 1));
    set("000001", 0);
    assert_eq!(verify(), (Some(1), 0, 2));
    set("000001", 0o700);
    fs::write(disk.backup("000001/disk.sums"), "x").unwrap();
    assert_eq!(verify(), (Some(4), 2, 0));
}
