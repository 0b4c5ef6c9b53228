// SPDX-License-Identifier: GPL-2.0-only

//! Restores to targets of all kinds.

use super::*;

#[test]
fn targets_that_hold_something_are_refused() {
    let (model, expected) = three_points();
    let store = Store::open(&model.backup_directory()).unwrap();
    let path = model.directory.path().join("target");
    fs::write(&path, vec![1; 20 * UNIT]).unwrap();
    let restore = |allow| {
        let watch = &mut Watcher::default();
        super::tests::restore(&store, "/dev/a", "000002/a", &path, allow, watch)
    };
    // Each option is for its own thing.
    let others = Allow {
        in_use: true,
        overwrite: false,
        truncate: true,
        other_block_size: true,
    };
    for allow in [Allow::default(), others] {
        let error = restore(allow).unwrap_err();
        assert!(error.to_string().contains("not empty"), "{error}");
        assert!(error.remedy().unwrap().contains("--overwrite"));
        assert_eq!(fs::metadata(&path).unwrap().len(), 20 * CLUSTER);
    }
    assert!(restore(OVER).unwrap().damaged.is_empty());
    assert!(fs::read(&path).unwrap() == expected[&(2, "/dev/a".to_owned())]);

    let user = fs::File::open(&path).unwrap();
    let error = restore(OVER).unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    assert!(error.remedy().unwrap().contains("--in-use"));
    let both = Allow {
        in_use: true,
        ..OVER
    };
    restore(both).unwrap();
    drop(user);

    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(restore(both).is_err());
}

#[test]
fn what_was_zero_is_made_zero() {
    let (model, mut expected) = three_points();
    model.write("/dev/a", UNIT, &vec![0; 2 * UNIT]);
    let report = back_up(&model, &["/dev/a"], Mode::Incremental);
    note(&mut expected, &model, &report);
    let store = Store::open(&model.backup_directory()).unwrap();
    let path = model.directory.path().join("target");
    for (number, image) in [(1, "000001/a"), (3, "000003/a"), (4, "000004/a")] {
        // It is larger, and keeps its end; or it is smaller.
        for size in [9 * UNIT, 4 * UNIT + 512] {
            fs::write(&path, vec![0xee; size]).unwrap();
            restore::restore_over(&store, image, &path, &mut Watcher::default());
            let found = fs::read(&path).unwrap();
            let wanted = &expected[&(number, "/dev/a".to_owned())];
            let both = size.min(wanted.len());
            assert_eq!(found.len(), size);
            assert!(found[..both] == wanted[..both], "{image} to {size} bytes");
            assert!(found[both..].iter().all(|byte| *byte == 0xee));
        }
    }
}

#[test]
fn a_restore_that_is_stopped_leaves_no_half_file() {
    let (model, _) = three_points();
    let store = Store::open(&model.backup_directory()).unwrap();
    let path = model.directory.path().join("target");
    let mut watcher = Watcher {
        stop_at: Some(2),
        ..Watcher::default()
    };
    let none = Allow::default();
    restore(&store, "/dev/a", "000003/a", &path, none, &mut watcher).unwrap_err();
    assert!(!path.exists());
}

#[test]
fn one_target_is_not_written_to_twice() {
    let (model, _) = three_points();
    let store = Store::open(&model.backup_directory()).unwrap();
    let path = model.directory.path().join("target");
    let link = model.directory.path().join("link");
    let device = &store.manifest().points[0].devices[0];
    for exists in [false, true] {
        if exists {
            fs::write(&path, "x").unwrap();
            std::os::unix::fs::symlink("target", &link).unwrap();
        }
        let dotted = model.directory.path().join("./target");
        let again = [&path, &dotted, &link];
        for again in again.into_iter().take(if exists { 3 } else { 2 }) {
            let opener = Opener::new(&store, OVER).unwrap();
            let wanted = [(1, device, path.as_path()), (1, device, again)];
            let error = opener.open(&wanted).err().unwrap();
            assert_eq!(error.exit().code(), 2, "{error}");
        }
        // Nothing was done to it.
        assert_eq!(fs::read(&path).ok(), exists.then(|| b"x".to_vec()));
    }
}

#[test]
fn nothing_of_the_backup_is_written_to() {
    let (model, _) = three_points();
    let backup = model.backup_directory();
    let path = |name: &str| model.directory.path().join(name);
    let other = path("other");
    fs::create_dir(&other).unwrap();
    fs::hard_link(backup.join("000001/a.qcow2"), path("other/hard")).unwrap();
    std::os::unix::fs::symlink(backup.join("000001"), path("soft")).unwrap();
    let before = all_files(&backup);
    let all = Allow {
        in_use: true,
        overwrite: true,
        truncate: true,
        other_block_size: true,
    };
    let store = Store::open(&backup).unwrap();
    for target in [
        backup.join("new"),
        backup.join("000001/new"),
        backup.join("blksnap.json"),
        backup.join("000001/a.sums"),
        other.join("../backup/new"),
        path("soft/new"),
        path("soft/a.qcow2"),
        other.join("hard"),
    ] {
        let watch = &mut Watcher::default();
        let error = restore(&store, "/dev/a", "000003/a", &target, all, watch).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("backup directory"), "{target:?}: {text}");
    }
    assert_eq!(all_files(&backup), before);
    let report = verify::verify(&store, None, &mut Watcher::default()).unwrap();
    assert!(report.damaged.is_empty());
}

/// A target that changes what was written to it, in data and in zeroes.
#[test]
fn what_is_read_back_is_compared() {
    let (model, _) = three_points();
    let store = Store::open(&model.backup_directory()).unwrap();
    let path = model.directory.path().join("target");
    let device = &store.manifest().points[2].devices[0];
    let run = |check, watcher: &mut Watcher<'_>| {
        let _ = fs::remove_file(&path);
        let opener = Opener::new(&store, Allow::default()).unwrap();
        let mut opened = opener.open(&[(3, device, &path)]).unwrap();
        opened.remove(0).run(check, watcher).unwrap()
    };
    let mut watcher = Watcher::default();
    assert!(!run(false, &mut watcher).checked);
    let written = watcher.calls;

    let size = model.content("/dev/a").len() as u64;
    for at in [0, CLUSTER + 7, 4 * CLUSTER - 1, 6 * CLUSTER + 511] {
        let calls = Cell::new(0);
        let mut watcher = Watcher {
            at_call: Some(Box::new(|| {
                calls.set(calls.get() + 1);
                if calls.get() == written {
                    let file = fs::File::options().write(true).open(&path).unwrap();
                    file.write_all_at(b"x", at).unwrap();
                }
            })),
            ..Watcher::default()
        };
        let report = run(true, &mut watcher);
        let offset = at / CLUSTER * CLUSTER;
        let length = CLUSTER.min(size - offset);
        assert!(report.checked);
        assert_eq!(report.differs, [Extent { offset, length }], "{at}");
    }
}
