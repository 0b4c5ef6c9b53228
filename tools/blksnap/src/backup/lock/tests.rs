// SPDX-License-Identifier: GPL-2.0-only

use super::*;
use std::fs;
use std::fs::File;
use std::path::PathBuf;

const EXCLUSIVE: FlockOperation = FlockOperation::NonBlockingLockExclusive;
const SHARED: FlockOperation = FlockOperation::NonBlockingLockShared;

struct Nobody;

impl Watch for Nobody {
    fn keep_on(&mut self, _progress: Progress) -> Result<()> {
        Ok(())
    }

    fn tell(&mut self, _note: &str) {}
}

fn file() -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("lock");
    (temp, path)
}

fn open(path: &Path) -> File {
    let mut options = File::options();
    let options = options.read(true).write(true).create(true).truncate(false);
    options.open(path).unwrap()
}

fn take(path: &Path, operation: FlockOperation) -> Result<Lock> {
    let wait = Wait {
        limit: Duration::ZERO,
        watch: &mut Nobody,
    };
    let note = |file: &File| writers(file, File::open(path).ok().as_ref());
    Lock::take(open(path), operation, path, wait, &note)
}

fn stale() -> Note {
    Note {
        pid: 1,
        command: "stale".to_owned(),
        ..Note::own()
    }
}

#[test]
fn a_holder_is_named_as_long_as_it_holds() {
    let (_temp, path) = file();
    let mut lock = take(&path, EXCLUSIVE).unwrap();
    lock.sign();
    let note = Note::read(&open(&path)).unwrap();
    assert_eq!((note.pid, &note.boot), (std::process::id(), &boot_id()));
    let error = take(&path, EXCLUSIVE).unwrap_err();
    assert_eq!(error.exit(), Exit::Locked);
    assert!(error.to_string().contains(&note.to_string()), "{error}");
    drop(lock);
    assert_eq!(fs::read(&path).unwrap(), b"");
}

#[test]
fn what_was_left_is_not_believed() {
    let (_temp, path) = file();
    fs::write(&path, stale().to_json()).unwrap();
    // Nobody holds it.
    drop(take(&path, EXCLUSIVE).unwrap());
    // Somebody does, and has not noted it yet.
    let _lock = take(&path, EXCLUSIVE).unwrap();
    assert_eq!(Note::read(&open(&path)), Some(stale()));
    let error = take(&path, SHARED).unwrap_err().to_string();
    assert!(!error.contains("stale"), "{error}");
    let own = format!("(process {})", std::process::id());
    assert!(
        error.contains(&own) && error.contains(" since 20"),
        "{error}"
    );
}

/// What is on another machine is not on the list of this one.
#[test]
fn a_note_is_all_there_is_of_another_machine() {
    let (_temp, path) = file();
    fs::write(&path, stale().to_json()).unwrap();
    let text = writers(&open(&path), Some(&open(&path)));
    assert_eq!(text, stale().to_string());
    assert!(writers(&open(&path), None).contains("cannot be seen"));
    assert!(readers(&open(&path)).contains("cannot be seen"));
}

#[test]
fn notes_of_anybody_are_short_or_none() {
    let (_temp, path) = file();
    let note = |text: &str| {
        fs::write(&path, text).unwrap();
        Note::read(&open(&path))
    };
    let text = Note::own().to_json();
    for bad in [
        "",
        "{}",
        "\0\0",
        &text[1..],
        &text.replace("\"pid\":", "\"pid\":-"),
    ] {
        assert_eq!(note(bad), None, "{bad}");
    }
    assert_eq!(note(&" ".repeat(1 << 20)), None);
    let long = Note {
        command: "\u{e9}".repeat(1000),
        host: "h".repeat(1000),
        ..Note::own()
    };
    assert!(note(&long.to_json()).unwrap().to_string().chars().count() < 500);
    fs::write(&path, [0xff; 20]).unwrap();
    assert_eq!(Note::read(&open(&path)), None);
}

#[test]
fn nothing_is_noted_in_a_file_with_another_name() {
    let (temp, path) = file();
    fs::write(&path, "secret").unwrap();
    fs::hard_link(&path, temp.path().join("other")).unwrap();
    let mut lock = take(&path, EXCLUSIVE).unwrap();
    lock.sign();
    drop(lock);
    assert_eq!(fs::read(&path).unwrap(), b"secret");
}

#[test]
fn several_readers_are_named() {
    let (_temp, path) = file();
    let _locks: Vec<_> = (0..5).map(|_| take(&path, SHARED).unwrap()).collect();
    let text = readers(&open(&path));
    let own = format!("(process {})", std::process::id());
    assert_eq!(text.matches(&own).count(), NAMED, "{text}");
    assert!(text.ends_with(", 2 more"), "{text}");
    let error = take(&path, EXCLUSIVE).unwrap_err();
    assert_eq!(error.exit(), Exit::Locked);
}

#[test]
fn locks_are_found_on_the_list() {
    let text = "\
1: POSIX  ADVISORY  WRITE 11 08:01:131 0 EOF
2: FLOCK  ADVISORY  READ 12 08:01:131 0 EOF
2: -> FLOCK  ADVISORY  WRITE 13 08:01:131 0 EOF
3: FLOCK  ADVISORY  WRITE 14 08:0a:131 0 EOF
4: FLOCK  ADVISORY  READ 15 08:01:132 0 EOF
5: FLOCK  ADVISORY  READ 16 08:01:131 0 EOF
6: OFDLCK ADVISORY  READ -1 08:01:131 0 EOF
7: LEASE  ACTIVE    READ 17 08:01:131 0 EOF
8: FLOCK  ADVISORY  READ x
";
    let on = |number: &str| DeviceNumber::parse(number).unwrap();
    assert_eq!(parse_locks(text, "READ", on("8:1"), 131), [12, 16]);
    assert_eq!(parse_locks(text, "WRITE", on("8:1"), 131), [0u32; 0]);
    assert_eq!(parse_locks(text, "WRITE", on("8:10"), 131), [14]);
    assert_eq!(parse_locks("", "READ", on("8:1"), 131), [0u32; 0]);
}

#[test]
fn the_start_of_a_process_is_that_of_the_machine_and_more() {
    let ticks = clock_ticks_per_second();
    let stat = |start: u64| format!("7 (a) b) S {} {start} 0", "0 ".repeat(18).trim());
    let system = "cpu 1 2\nbtime 1000\nprocesses 3\n";
    assert_eq!(started(&stat(5 * ticks), system), Some(1005));
    assert_eq!(started(&stat(0), system), Some(1000));
    assert_eq!(started("7 (a) S", system), None);
    assert_eq!(started(&stat(0), "cpu 1\n"), None);
}
