// SPDX-License-Identifier: GPL-2.0-only

//! Readers and writers at once.

use super::*;

/// A reader goes by what there was when it began, whatever backups are made since.
#[test]
fn a_backup_is_made_under_a_reader() {
    let (model, mut expected) = three_points();
    let directory = model.backup_directory();
    let reader = Store::open(&directory).unwrap();
    let target = model.directory.path().join("target");
    let backups = Cell::new(0);
    let done = std::cell::RefCell::new(Vec::new());
    let mut watcher = Watcher {
        at_call: Some(Box::new(|| {
            model.write("/dev/a", UNIT, &vec![20 + backups.get() as u8; UNIT]);
            let report = back_up(&model, &["/dev/a"], Mode::Incremental);
            done.borrow_mut().push((report, model.content("/dev/a")));
            backups.set(backups.get() + 1);
        })),
        ..Watcher::default()
    };
    let report = verify::verify(&reader, None, &mut watcher).unwrap();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert_eq!(report.points, [1, 2, 3]);
    let none = Allow::default();
    restore(&reader, "/dev/a", "000003/a", &target, none, &mut watcher).unwrap();
    assert!(fs::read(&target).unwrap() == expected[&(3, "/dev/a".to_owned())]);
    drop(watcher);
    assert!(backups.get() > 5);
    for (report, content) in done.into_inner() {
        expected.insert((report.point, "/dev/a".to_owned()), content);
    }
    drop(reader);
    check(&directory, &expected);
}

#[test]
fn a_prune_is_not_made_under_a_reader() {
    let (model, expected) = three_points();
    let directory = model.backup_directory();
    let before = all_files(&directory);
    let reader = Store::open(&directory).unwrap();
    let mut store = Store::open_to_change(&directory, false).unwrap();
    // Nothing is to be done.
    keep_newest(&mut store, 3, &mut Watcher::default()).unwrap();
    let error = keep_newest(&mut store, 1, &mut Watcher::default()).unwrap_err();
    assert_eq!(error.exit().code(), 6);
    drop(store);
    assert_eq!(all_files(&directory), before);
    let report = verify::verify(&reader, None, &mut Watcher::default()).unwrap();
    assert!(report.errors.is_empty());
    drop(reader);
    let mut store = Store::open_to_change(&directory, false).unwrap();
    let mut watcher = Watcher {
        at_call: Some(Box::new(|| {
            let error = Store::open(&directory).err().unwrap();
            assert_eq!(error.exit().code(), 6);
        })),
        ..Watcher::default()
    };
    keep_newest(&mut store, 1, &mut watcher).unwrap();
    assert!(watcher.calls > 0);
    drop(store);
    check(&directory, &expected);
}
