// SPDX-License-Identifier: GPL-2.0-only

use super::*;
use std::fs;

fn store() -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("backup");
    (temp, path)
}

fn is_there(directory: &Path, names: &[&str]) -> bool {
    names.iter().all(|name| directory.join(name).exists())
}

#[test]
fn a_backup_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let (_temp, path) = store();
    let mut store = Store::open_to_change(&path, true).unwrap();
    store.publish(Manifest::default()).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join(MANIFEST)), 0o600);
}

#[test]
fn two_runs_do_not_meet() {
    let (_temp, path) = store();
    let error = Store::open(&path).err().unwrap();
    assert_eq!(error.errno(), Some(Errno::NOENT));
    let mut writer = Store::open_to_change(&path, true).unwrap();
    writer.publish(Manifest::default()).unwrap();
    let error = Store::open_to_change(&path, true).err().unwrap();
    assert_eq!(error.errno(), Some(Errno::AGAIN));
    assert_eq!(error.exit().code(), 6);
    let holder = format!("(process {} on ", std::process::id());
    assert!(error.to_string().contains(&holder), "{error}");
    assert!(error.remedy().unwrap().contains("--lock-wait"));
    drop(writer);
    Store::open_to_change(&path, true).unwrap();
}

#[test]
fn readers_exclude_only_what_takes_files_away() {
    let (_temp, path) = store();
    let mut writer = Store::open_to_change(&path, true).unwrap();
    writer.publish(Manifest::default()).unwrap();
    let reader = Store::open(&path).unwrap();
    writer.publish(Manifest::default()).unwrap();
    let error = writer.exclude_readers(&mut Unwatched).unwrap_err();
    assert_eq!(error.exit().code(), 6);
    let holder = format!("(process {})", std::process::id());
    assert!(error.to_string().contains(&holder), "{error}");
    drop(reader);
    writer.exclude_readers(&mut Unwatched).unwrap();
    let error = Store::open(&path).err().unwrap();
    assert_eq!(error.exit().code(), 6);
    let holder = format!("(process {} on ", std::process::id());
    assert!(error.to_string().contains(&holder), "{error}");
    // Which says only what there is.
    Store::look(&path).unwrap();
    writer.admit_readers().unwrap();
    Store::open(&path).unwrap();
}

/// What is told, and what is done after that.
#[derive(Default)]
struct Told {
    notes: Vec<String>,
    stops: bool,
    /// Let go of when that was told.
    holder: Option<Store>,
}

impl Watch for Told {
    fn keep_on(&mut self, _progress: Progress) -> Result<()> {
        self.holder = None;
        match self.stops {
            true => Err(Error::new(Operation::Prune, "stop")),
            false => Ok(()),
        }
    }

    fn tell(&mut self, note: &str) {
        self.notes.push(note.to_owned());
    }
}

#[test]
fn a_lock_is_waited_for_and_that_is_told() {
    let (_temp, path) = store();
    let mut first = Store::open_to_change(&path, true).unwrap();
    first.publish(Manifest::default()).unwrap();
    let wait = |seconds| Place::from(&path).waiting(Duration::from_secs(seconds));
    let write =
        |seconds, told: &mut Told| Store::open_to_change_watched(wait(seconds), false, told);
    let mut stop = Told {
        stops: true,
        ..Told::default()
    };
    let error = write(60, &mut stop).err().unwrap();
    assert!(error.to_string().contains("stop"), "{error}");

    let mut told = Told::default();
    let start = std::time::Instant::now();
    let error = write(1, &mut told).err().unwrap();
    assert_eq!(error.exit().code(), 6);
    assert!(error
        .remedy()
        .unwrap()
        .contains("as long as --lock-wait said"));
    assert!(start.elapsed() >= Duration::from_secs(1));
    let [note] = &told.notes[..] else {
        panic!("{:?}", told.notes);
    };
    let holder = format!("(process {} on ", std::process::id());
    assert!(note.contains(&holder) && note.contains("waiting"), "{note}");

    // A reader waits for a prune, a prune for a reader, a writer for a writer.
    first.exclude_readers(&mut Unwatched).unwrap();
    let mut told = Told {
        holder: Some(first),
        ..Told::default()
    };
    let reader = Store::open_watched(wait(60), &mut told).unwrap();
    assert_eq!(told.notes.len(), 1);
    let mut told = Told {
        holder: Some(reader),
        ..Told::default()
    };
    let writer = write(60, &mut Told::default()).unwrap();
    writer.exclude_readers(&mut told).unwrap();
    assert_eq!(told.notes.len(), 1);
    let mut told = Told {
        holder: Some(writer),
        ..Told::default()
    };
    write(60, &mut told).unwrap();
    assert_eq!(told.notes.len(), 1);
}

/// What an interrupted prune has left to be renamed takes the place of files that readers have.
#[test]
fn what_is_left_is_not_done_under_a_reader() {
    let (_temp, path) = store();
    let mut store = Store::open_to_change(&path, true).unwrap();
    for file in ["000001/a.sums", "000001/a.sums.partial"] {
        fs::create_dir_all(path.join(file).parent().unwrap()).unwrap();
        fs::write(path.join(file), file).unwrap();
    }
    let image = manifest::tests::image("000001/a", None, 1, 1);
    let with = |from: &str, to: &str| Manifest {
        todo: Todo {
            rename: vec![(from.to_owned(), to.to_owned())],
            remove: Vec::new(),
        },
        next: 3,
        ..manifest::tests::manifest(vec![image.clone()])
    };
    store
        .replace(with("000001/a.sums.partial", "000001/a.sums"))
        .unwrap();
    drop(store);
    let reader = Store::open(&path).unwrap();
    let error = Store::open_to_change(&path, false).err().unwrap();
    assert_eq!(error.exit().code(), 6);
    assert!(is_there(&path, &["000001/a.sums.partial"]));
    drop(reader);
    let mut store = Store::open_to_change(&path, false).unwrap();
    assert_eq!(
        fs::read_to_string(path.join("000001/a.sums")).unwrap(),
        "000001/a.sums.partial"
    );
    Store::open(&path).unwrap();

    // A new directory is in nobody's way, and a reader finds it under both names.
    let file = "000002.partial/a.sums";
    fs::create_dir(path.join("000002.partial")).unwrap();
    fs::write(path.join(file), file).unwrap();
    store.replace(with("000002.partial", "000002")).unwrap();
    drop(store);
    let reader = Store::open(&path).unwrap();
    let file = reader.sums_file("000002/a");
    assert_eq!(file.path(), path.join("000002.partial/a.sums"));
    file.open().unwrap();
    Store::open_to_change(&path, false).unwrap();
    assert!(!is_there(&path, &["000002.partial/a.sums"]));
    file.open().unwrap();
}

#[test]
fn a_copy_without_locks_is_read() {
    let (_temp, path) = store();
    Store::open_to_change(&path, true)
        .unwrap()
        .publish(Manifest::default())
        .unwrap();
    for lock in [LOCK, WRITER] {
        fs::remove_file(path.join(lock)).unwrap();
    }
    Store::open(&path).unwrap();
    assert!(!path.join(LOCK).exists());
}

#[test]
fn leftovers_are_removed_and_nothing_else() {
    let (_temp, path) = store();
    drop(Store::open_to_change(&path, true).unwrap());
    fs::write(path.join(MANIFEST), Manifest::default().to_json()).unwrap();
    let ours = [
        "blksnap.json.partial",
        "000007.partial/point.json",
        "000003/point.json.partial",
        "000007.partial/sda.qcow2",
        "000007.partial/sda.sums",
        "000003/sda.qcow2.partial",
        "000003/sda.sums.partial",
        "000008.partial/sdb.sums",
    ];
    let others = [
        "000003/sda.qcow2",
        "000008.partial/notes.txt",
        "photos.partial/sda.qcow2",
        "000003.txt",
        "sda.qcow2.partial",
    ];
    for name in ours.iter().chain(&others) {
        let file = path.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "x").unwrap();
    }
    let store = Store::open_to_change(&path, true).unwrap();
    assert!(is_there(&path, &others));
    for name in ours {
        assert!(!path.join(name).exists(), "{name}");
    }
    assert!(!path.join("000007.partial").exists());
    // What lies there is not overwritten.
    assert_eq!(store.next_number().unwrap(), 9);
}

#[test]
fn what_is_to_be_done_is_done_by_the_next() {
    let (_temp, path) = store();
    let mut store = Store::open_to_change(&path, true).unwrap();
    for file in ["000001/sda.qcow2", "000002.partial/sda.qcow2"] {
        fs::create_dir_all(path.join(file).parent().unwrap()).unwrap();
        fs::write(path.join(file), file).unwrap();
    }
    let manifest = Manifest {
        next: 3,
        todo: Todo {
            rename: vec![("000002.partial".to_owned(), "000002".to_owned())],
            remove: vec!["000001/sda.qcow2".to_owned()],
        },
        ..Manifest::default()
    };
    store.replace(manifest).unwrap();
    drop(store);

    let reader = Store::open(&path).unwrap();
    let file = reader.qcow2("000002/sda");
    assert_eq!(file, path.join("000002.partial/sda.qcow2"));
    assert!(is_there(&path, &["000001/sda.qcow2"]));
    drop(reader);

    let writer = Store::open_to_change(&path, false).unwrap();
    assert_eq!(writer.qcow2("000002/sda"), path.join("000002/sda.qcow2"));
    assert!(is_there(&path, &["000002/sda.qcow2"]));
    assert!(!path.join("000001").exists());
    assert!(writer.manifest().todo.is_empty());
}

#[test]
fn a_manifest_that_is_damaged_is_not_replaced() {
    let (_temp, path) = store();
    drop(Store::open_to_change(&path, true).unwrap());
    fs::write(path.join(MANIFEST), "{}").unwrap();
    let error = Store::open_to_change(&path, true).err().unwrap();
    assert_eq!(error.exit().code(), 4);
    assert_eq!(fs::read_to_string(path.join(MANIFEST)).unwrap(), "{}");
}

#[test]
fn numbers_end() {
    let (_temp, path) = store();
    let mut store = Store::open_to_change(&path, true).unwrap();
    for name in [
        "000007",
        "000009.partial",
        "18446744073709551615",
        "1000000000",
    ] {
        fs::create_dir(path.join(name)).unwrap();
    }
    assert_eq!(store.next_number().unwrap(), 10);
    fs::create_dir(path.join("999999999")).unwrap();
    assert!(store.next_number().is_err());
    fs::remove_dir(path.join("999999999")).unwrap();
    let next = names::LAST + 1;
    store
        .replace(Manifest {
            next,
            ..Manifest::default()
        })
        .unwrap();
    assert!(store.next_number().is_err());
}

#[test]
fn what_cannot_be_removed_is_tried_again_but_not_without_end() {
    let (_temp, path) = store();
    let mut store = Store::open_to_change(&path, true).unwrap();
    let manifest = |numbers: std::ops::Range<usize>| Manifest {
        next: 3,
        todo: Todo {
            rename: Vec::new(),
            remove: numbers.map(|it| format!("000001/{it}.sums")).collect(),
        },
        ..Manifest::default()
    };
    for errno in [Errno::PERM, Errno::ACCESS, Errno::ROFS] {
        store.fail(Operation::WriteBackup, ".sums", errno);
        for round in 0..3 {
            store
                .publish(manifest(round * 900..(round + 1) * 900))
                .unwrap();
            assert!(store.manifest().todo.remove.len() <= LEFT);
        }
    }
    assert_eq!(store.manifest().todo.remove[LEFT - 1], "000001/2699.sums");
    // It is read back, and nothing is left of it when it works again.
    drop(store);
    let store = Store::open_to_change(&path, false).unwrap();
    assert!(store.manifest().todo.is_empty());
    assert!(store.left.is_empty());
}

#[test]
fn other_errors_of_removing_are_errors() {
    let (_temp, path) = store();
    let mut store = Store::open_to_change(&path, true).unwrap();
    store.fail(Operation::WriteBackup, ".sums", Errno::IO);
    let todo = Todo {
        rename: Vec::new(),
        remove: vec!["000001/a.sums".to_owned()],
    };
    let manifest = Manifest {
        next: 3,
        todo: todo.clone(),
        ..Manifest::default()
    };
    let error = store.publish(manifest).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::IO));
    assert_eq!(store.manifest().todo, todo);
}
