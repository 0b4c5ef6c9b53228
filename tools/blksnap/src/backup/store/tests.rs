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
    for error in [Store::open(&path), Store::open_to_change(&path, true)].map(Result::err) {
        assert_eq!(error.unwrap().errno(), Some(Errno::AGAIN));
    }
    drop(writer);
    let _reader = Store::open(&path).unwrap();
    Store::open(&path).unwrap();
    assert!(Store::open_to_change(&path, true).is_err());
}

#[test]
fn leftovers_are_removed_and_nothing_else() {
    let (_temp, path) = store();
    drop(Store::open_to_change(&path, true).unwrap());
    let ours = [
        "blksnap.json.partial",
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
