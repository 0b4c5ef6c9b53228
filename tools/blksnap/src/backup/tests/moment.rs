// SPDX-License-Identifier: GPL-2.0-only

//! Errors that say nothing about what is in a backup.

use super::*;

const ERRNOS: [Errno; 9] = [
    Errno::MFILE,
    Errno::NFILE,
    Errno::IO,
    Errno::STALE,
    Errno::ACCESS,
    Errno::PERM,
    Errno::TIMEDOUT,
    Errno::NOMEM,
    Errno::NOTCONN,
];

#[test]
fn a_base_that_cannot_be_read_now_makes_no_full_backup() {
    let (model, mut expected) = three_points();
    let request = request(&model, &["/dev/a"], Mode::Incremental);
    for file in ["000001/a.qcow2", "000002/a.sums", "000003/a.qcow2"] {
        for errno in ERRNOS {
            let mut store = Store::open_to_change(&request.to, false).unwrap();
            store.fail(Operation::ReadBackup, file, errno);
            let watcher = &mut Watcher::default();
            let error = run_in(&mut store, &model, &request, watcher).unwrap_err();
            assert_eq!((error.errno(), error.exit().code()), (Some(errno), 1));
            assert_eq!(error.path(), Some(&*request.to.join(file)));
            assert!(error.remedy().is_some(), "{error}");
            assert!(watcher.notes.is_empty(), "{:?}", watcher.notes);
        }
    }
    assert!(!model.is_held());
    assert_eq!(points(&request.to), [1, 2, 3]);
    assert!(!request.to.join("000004.partial").exists());
    let report = back_up(&model, &["/dev/a"], Mode::Incremental);
    assert_eq!(report.devices[0].base, Some(3));
    note(&mut expected, &model, &report);
    check(&request.to, &expected);
}

#[test]
fn a_map_that_cannot_be_read_now_makes_no_full_backup() {
    let (model, _) = three_points();
    let request = request(&model, &["/dev/a"], Mode::Incremental);
    for errno in ERRNOS.into_iter().chain([Errno::AGAIN]) {
        model.map_error.set(Some(errno));
        let error = run(&model, &request, &mut Watcher::default()).unwrap_err();
        assert_eq!((error.errno(), error.exit().code()), (Some(errno), 1));
        assert!(error.remedy().is_some(), "{error}");
    }
    assert_eq!(points(&request.to), [1, 2, 3]);
    // Which needs no map.
    let report = back_up(&model, &["/dev/a"], Mode::Full);
    assert_eq!(report.devices[0].full, Some(WhyAll::Asked));
}

#[test]
fn a_link_in_place_of_a_base_is_not_damage() {
    for name in ["000002/a.qcow2", "000001/a.sums", "000001"] {
        let (model, _) = three_points();
        let path = model.backup_directory().join(name);
        let moved = model.directory.path().join("moved");
        fs::rename(&path, &moved).unwrap();
        std::os::unix::fs::symlink(&moved, &path).unwrap();
        let request = request(&model, &["/dev/a"], Mode::Incremental);
        let error = run(&model, &request, &mut Watcher::default()).unwrap_err();
        assert_eq!((error.errno(), error.exit().code()), (Some(Errno::LOOP), 1));
        assert!(error.to_string().contains("symbolic link"), "{error}");
        assert!(moved.exists());
    }
}

#[test]
fn damage_of_every_kind_makes_a_full_backup() {
    let kinds: [fn(&Path); 4] = [
        |path| fs::remove_file(path).unwrap(),
        |path| fs::write(path, "x").unwrap(),
        |path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[3] ^= 1;
            fs::write(path, bytes).unwrap();
        },
        |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        },
    ];
    for damage in kinds {
        for name in ["000002/a.qcow2", "000001/a.sums"] {
            let (model, _) = three_points();
            damage(&model.backup_directory().join(name));
            let report = back_up(&model, &["/dev/a"], Mode::Incremental);
            let why = &report.devices[0].full;
            assert!(matches!(why, Some(WhyAll::Base(_))), "{name}: {why:?}");
        }
    }
}

/// The restore points that are damaged, those that were not checked, and the exit code.
fn verified(store: &Store) -> (Vec<u64>, Vec<u64>, u8) {
    let report = verify::verify(store, None, &mut Watcher::default()).unwrap();
    let points = |list: &[verify::Finding]| list.iter().map(|it| it.point).collect();
    let codes = report.errors.iter().map(|error| error.exit().code());
    (
        points(&report.damaged),
        points(&report.not_checked),
        codes.max().unwrap_or(0),
    )
}

#[test]
fn what_cannot_be_read_now_is_not_called_damaged() {
    let (model, _) = three_points();
    let directory = model.backup_directory();
    for errno in ERRNOS {
        for end in ["qcow2", "sums"] {
            let store = Store::open(&directory).unwrap();
            store.fail(Operation::ReadBackup, &format!("000001/a.{end}"), errno);
            assert_eq!(verified(&store), (vec![], vec![1, 2, 3], 1));
            store.fail(Operation::ReadBackup, &format!("000003/a.{end}"), errno);
            assert_eq!(verified(&store), (vec![], vec![3], 1));
        }
    }
    // Damage and the rest are told apart, of which damage is worse.
    let path = directory.join("000003/a.sums");
    let good = fs::read(&path).unwrap();
    fs::write(&path, &good[1..]).unwrap();
    let store = Store::open(&directory).unwrap();
    assert_eq!(verified(&store), (vec![3], vec![], 4));
    store.fail(Operation::ReadBackup, "000002/a.qcow2", Errno::IO);
    assert_eq!(verified(&store), (vec![3], vec![2], 4));
    fs::write(&path, good).unwrap();
    drop(store);

    // A cluster that is wrong in the first image, which the second one may hide.
    let path = directory.join("000001/a.qcow2");
    let mut bytes = fs::read(&path).unwrap();
    let data = bytes.iter().position(|byte| *byte == 11).unwrap();
    bytes[data] = 12;
    fs::write(&path, bytes).unwrap();
    let store = Store::open(&directory).unwrap();
    assert_eq!(verified(&store), (vec![1, 2, 3], vec![], 4));
    store.fail(Operation::ReadBackup, "000002/a.sums", Errno::IO);
    assert_eq!(verified(&store), (vec![1], vec![2, 3], 4));
}

#[test]
fn obsolete_files_that_stay_stop_nothing() {
    for errno in [Errno::PERM, Errno::ACCESS, Errno::ROFS] {
        let (model, mut expected) = three_points();
        let directory = model.backup_directory();
        let mut store = Store::open_to_change(&directory, false).unwrap();
        store.fail(Operation::WriteBackup, "000001/a.qcow2", errno);
        let mut watcher = Watcher::default();
        keep_newest(&mut store, 1, &mut watcher).unwrap();
        let [warning] = &watcher.warnings[..] else {
            panic!("{:?}", watcher.warnings);
        };
        assert!(warning.contains("000001/a.qcow2"), "{warning}");
        assert_eq!(store.manifest().todo.remove, ["000001/a.qcow2"]);

        // The same store again, as one that is opened fails the same way.
        for base in [3, 4] {
            model.write("/dev/a", 0, &[base; 512]);
            let request = request(&model, &["/dev/a"], Mode::Incremental);
            let mut watcher = Watcher::default();
            let report = run_in(&mut store, &model, &request, &mut watcher).unwrap();
            assert_eq!(report.devices[0].base, Some(base.into()));
            assert!(report.errors.is_empty());
            assert_eq!(watcher.warnings.len(), 1);
            assert_eq!(store.manifest().todo.remove, ["000001/a.qcow2"]);
            note(&mut expected, &model, &report);
        }
        drop(store);
        check(&directory, &expected);
        assert!(directory.join("000001/a.qcow2").exists());
        assert!(!directory.join("000002").exists());
        let store = Store::open_to_change(&directory, false).unwrap();
        assert!(store.manifest().todo.is_empty());
        assert!(!directory.join("000001").exists());
    }
}

#[test]
fn partial_files_that_stay_stop_nothing() {
    let (model, mut expected) = three_points();
    let directory = model.backup_directory();
    fs::create_dir(directory.join("000004.partial")).unwrap();
    fs::write(directory.join("000004.partial/a.sums"), "x").unwrap();
    let mut store = Store::open(&directory).unwrap();
    store.fail(Operation::WriteBackup, "000004.partial/a.sums", Errno::PERM);
    store.remove_partial().unwrap();
    let mut watcher = Watcher::default();
    let request = request(&model, &["/dev/a"], Mode::Incremental);
    let report = run_in(&mut store, &model, &request, &mut watcher).unwrap();
    assert_eq!((report.point, report.devices[0].base), (5, Some(3)));
    let warning = &watcher.warnings[0];
    assert!(warning.contains("000004.partial/a.sums"), "{warning}");
    note(&mut expected, &model, &report);
    drop(store);
    check(&directory, &expected);
}
