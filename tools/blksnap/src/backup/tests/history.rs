// SPDX-License-Identifier: GPL-2.0-only

//! What happens to a machine or a device between two backups that a change map
//! says nothing of.

use super::*;

/// An incremental backup of /dev/a into the directory of that name.
fn back_up_to(model: &Model, directory: &str) -> Report {
    let request = Request {
        to: model.directory.path().join(directory),
        ..request(model, &["/dev/a"], Mode::Incremental)
    };
    let report = run(model, &request, &mut Watcher::default()).unwrap();
    assert!(report.errors.is_empty());
    report
}

/// Changes /dev/a, backs it up into a directory, and notes what is expected there.
fn change_and_back_up(
    model: &Model,
    directory: &str,
    at: usize,
    expected: &mut Expected,
) -> Option<u64> {
    model.write("/dev/a", at * UNIT, &[at as u8; UNIT]);
    let report = back_up_to(model, directory);
    note(expected, model, &report);
    report.devices[0].base
}

#[test]
fn a_machine_that_was_put_back_between_two_directories_is_noticed() {
    let model = Model::new(UNIT, &[("/dev/a", 10 * UNIT)]);
    let [mut a, mut b] = [Expected::new(), Expected::new()];
    let mut bases = vec![change_and_back_up(&model, "A", 1, &mut a)];
    let then = model.machine();
    // The line that is abandoned: takes 2 and 3.
    bases.push(change_and_back_up(&model, "B", 2, &mut b));
    bases.push(change_and_back_up(&model, "A", 3, &mut a));
    model.put_back(&then);
    // Another line, with the same numbers.
    bases.push(change_and_back_up(&model, "A", 4, &mut a));
    bases.push(change_and_back_up(&model, "B", 5, &mut b));
    bases.push(change_and_back_up(&model, "A", 6, &mut a));
    bases.push(change_and_back_up(&model, "B", 7, &mut b));
    check(&model.directory.path().join("A"), &a);
    check(&model.directory.path().join("B"), &b);
    let wanted = [None, None, Some(1), Some(1), Some(1), Some(3), Some(2)];
    assert_eq!(bases, wanted);
}

#[test]
fn a_machine_that_was_put_back_between_other_snapshots_is_noticed() {
    let model = Model::new(UNIT, &[("/dev/a", 10 * UNIT)]);
    let mut expected = Expected::new();
    let mut bases = vec![change_and_back_up(&model, "backup", 1, &mut expected)];
    let then = model.machine();
    bases.push(change_and_back_up(&model, "backup", 2, &mut expected));
    model.put_back(&then);
    // Somebody else takes number 2, so that the numbers go on.
    model.write("/dev/a", 3 * UNIT, &[3; UNIT]);
    model.freeze(Path::new("/dev/a"));
    bases.push(change_and_back_up(&model, "backup", 4, &mut expected));
    bases.push(change_and_back_up(&model, "backup", 5, &mut expected));
    check(&model.backup_directory(), &expected);
    assert_eq!(bases, [None, Some(1), Some(1), Some(3)]);
}

#[test]
fn a_copy_that_the_hypervisor_tells_of_begins_anew() {
    let model = Model::new(UNIT, &[("/dev/a", 10 * UNIT)]);
    let mut expected = Expected::new();
    change_and_back_up(&model, "backup", 1, &mut expected);
    model.tell_of_copy();
    model.write("/dev/a", 2 * UNIT, &[2; UNIT]);
    let report = back_up_to(&model, "backup");
    note(&mut expected, &model, &report);
    let device = &report.devices[0];
    assert_eq!(device.compared, Some(WhyAll::OtherGeneration));
    assert_eq!(device.changes_number, 1);
    let base = change_and_back_up(&model, "backup", 3, &mut expected);
    assert_eq!(base, Some(2));
    check(&model.backup_directory(), &expected);
}

#[test]
fn a_restart_is_told_as_what_it_is() {
    let model = Model::new(UNIT, &[("/dev/a", 10 * UNIT)]);
    let boot = |number| model.boot_id.set(Some(Uuid::from_bytes([number; 16])));
    let why = || {
        model.detach(Path::new("/dev/a")).unwrap();
        back_up_to(&model, "backup").devices[0].compared.clone()
    };
    boot(1);
    back_up_to(&model, "backup");
    assert_eq!(why(), Some(WhyAll::TrackedAgain));
    boot(2);
    assert_eq!(why(), Some(WhyAll::Restarted));
    assert_eq!(why(), Some(WhyAll::TrackedAgain));
}

/// That the longest chain is at its end, so that nothing is compared, is told beside why all is
/// read.
#[test]
fn a_full_backup_for_a_long_chain_says_so() {
    let model = Model::new(UNIT, &[("/dev/a", UNIT)]);
    for _ in 0..manifest::MAX_CHAIN {
        back_up_to(&model, "backup");
    }
    model.detach(Path::new("/dev/a")).unwrap();
    let mut watcher = Watcher::default();
    let request = request(&model, &["/dev/a"], Mode::Incremental);
    let report = run(&model, &request, &mut watcher).unwrap();
    assert_eq!(
        report.devices[0].full,
        Some(WhyAll::Long(manifest::MAX_CHAIN))
    );
    let note = &watcher.notes[0];
    for part in [
        "all of /dev/a is read",
        "tracking began after",
        "in full",
        "blksnap prune",
    ] {
        assert!(note.contains(part), "{note}");
    }
}

#[test]
fn another_content_below_the_filter_is_read() {
    let model = Model::new(UNIT, &[("/dev/a", 4 * UNIT)]);
    let mut expected = Expected::new();
    change_and_back_up(&model, "backup", 1, &mut expected);
    model.swap("/dev/a", vec![7; 4 * UNIT]);
    let report = back_up_to(&model, "backup");
    note(&mut expected, &model, &report);
    assert_eq!(report.devices[0].compared, Some(WhyAll::OtherGeneration));
    check(&model.backup_directory(), &expected);
}

#[test]
fn another_content_while_a_backup_runs_ends_it() {
    let model = Model::new(UNIT, &[("/dev/a", 4 * UNIT)]);
    let mut expected = Expected::new();
    change_and_back_up(&model, "backup", 1, &mut expected);
    model.write("/dev/a", 0, &[5; UNIT]);
    let mut watcher = Watcher {
        at_call: Some(Box::new(|| {
            if model.is_held() {
                model.swap("/dev/a", vec![7; 4 * UNIT]);
            }
        })),
        ..Watcher::default()
    };
    let request = Request {
        to: model.backup_directory(),
        ..request(&model, &["/dev/a"], Mode::Incremental)
    };
    let error = run(&model, &request, &mut watcher).unwrap_err();
    assert_eq!(error.exit().code(), 3);
    assert!(error.to_string().contains("another content"), "{error}");
    assert_eq!(points(&model.backup_directory()), [1]);

    model.with(Path::new("/dev/a"), |disk| disk.error_code = 0);
    let base = change_and_back_up(&model, "backup", 2, &mut expected);
    assert_eq!(base, Some(1));
    check(&model.backup_directory(), &expected);
}

#[test]
fn a_machine_that_is_put_back_while_a_backup_runs_is_noticed() {
    let model = Model::new(UNIT, &[("/dev/a", 4 * UNIT)]);
    let mut expected = Expected::new();
    change_and_back_up(&model, "backup", 1, &mut expected);
    model.write("/dev/a", 0, &[5; UNIT]);
    // The number of the snapshot stays, but it is another one at each look.
    let other = || {
        if model.is_held() {
            model.with(Path::new("/dev/a"), |disk| {
                *disk.tracker.as_mut().unwrap().takes.last_mut().unwrap() += 1000;
            });
        }
    };
    let mut watcher = Watcher {
        at_call: Some(Box::new(other)),
        ..Watcher::default()
    };
    let request = request(&model, &["/dev/a"], Mode::Incremental);
    let error = run(&model, &request, &mut watcher).unwrap_err();
    assert_eq!(error.operation(), Operation::Verify);
    assert_eq!(points(&model.backup_directory()), [1]);
    change_and_back_up(&model, "backup", 2, &mut expected);
    check(&model.backup_directory(), &expected);
}

#[test]
fn without_ids_everything_is_read_and_told() {
    let model = Model::new(UNIT, &[("/dev/a", 4 * UNIT)]);
    let mut expected = Expected::new();
    // Neither the driver nor the backup has ids.
    model.tells_takes.set(false);
    change_and_back_up(&model, "backup", 1, &mut expected);
    model.write("/dev/a", 0, &[5; UNIT]);
    let mut watcher = Watcher::default();
    let request = Request {
        to: model.backup_directory(),
        ..request(&model, &["/dev/a"], Mode::Incremental)
    };
    let report = run(&model, &request, &mut watcher).unwrap();
    note(&mut expected, &model, &report);
    assert_eq!(report.devices[0].compared, Some(WhyAll::NoIdFromDriver));
    assert_eq!(report.devices[0].take_id, None);
    assert!(
        watcher.notes[0].contains("newer driver"),
        "{:?}",
        watcher.notes
    );
    // Now the driver has.
    model.tells_takes.set(true);
    let report = back_up_to(&model, "backup");
    note(&mut expected, &model, &report);
    assert_eq!(report.devices[0].compared, Some(WhyAll::NoIdInBackup));
    assert!(report.devices[0].take_id.is_some());
    assert_eq!(
        change_and_back_up(&model, "backup", 2, &mut expected),
        Some(3)
    );
    check(&model.backup_directory(), &expected);
}

/// What an incremental backup is where the change tracking knows nothing: all is read, and stored
/// is what differs.
#[test]
fn what_is_compared_is_stored_only_where_it_differs() {
    let model = Model::new(UNIT, &[("/dev/a", 10 * UNIT + 512)]);
    let mut expected = Expected::new();
    change_and_back_up(&model, "backup", 1, &mut expected);
    let all = 10 * UNIT as u64 + 512;
    for mode in [Mode::Incremental, Mode::Compare] {
        for (write, stored) in [(None, 0), (Some(3), UNIT), (Some(10), 512)] {
            if mode == Mode::Incremental {
                model.tell_of_copy();
            }
            if let Some(at) = write {
                // Past the tracking
                model.with(Path::new("/dev/a"), |disk| disk.content[at * UNIT] += 1);
            }
            let request = Request {
                to: model.backup_directory(),
                ..request(&model, &["/dev/a"], mode)
            };
            let mut watcher = Watcher::default();
            let report = run(&model, &request, &mut watcher).unwrap();
            note(&mut expected, &model, &report);
            let device = &report.devices[0];
            assert_eq!((device.read_bytes, device.data_bytes), (all, stored as u64));
            assert_eq!(device.base, Some(report.point - 1));
            assert_eq!(device.full, None);
            assert!(device.compared.is_some());
            assert!(watcher.notes[0].contains("compared"), "{:?}", watcher.notes);
        }
    }
    check(&model.backup_directory(), &expected);
}

/// What is written past the change tracking is found by a sample, and then all of it.
#[test]
fn writes_past_the_tracking_are_found() {
    let model = Model::new(UNIT, &[("/dev/a", 10 * UNIT + 512)]);
    let mut expected = Expected::new();
    change_and_back_up(&model, "backup", 1, &mut expected);
    let past = |at: usize| model.with(Path::new("/dev/a"), |disk| disk.content[at] += 1);
    let report = back_up_to(&model, "backup");
    let device = &report.devices[0];
    assert_eq!((device.read_bytes, device.compared.clone()), (0, None));
    assert_eq!(device.checked_bytes, 10 * UNIT as u64 + 512);
    note(&mut expected, &model, &report);

    past(3 * UNIT + 77);
    past(10 * UNIT);
    let mut watcher = Watcher::default();
    let request = Request {
        to: model.backup_directory(),
        ..request(&model, &["/dev/a"], Mode::Incremental)
    };
    let report = run(&model, &request, &mut watcher).unwrap();
    note(&mut expected, &model, &report);
    let device = &report.devices[0];
    assert_eq!(device.compared, Some(WhyAll::Missed(3 * CLUSTER)));
    assert_eq!(device.data_bytes, CLUSTER + 512);
    let warnings = &watcher.warnings;
    assert!(warnings[0].contains("writes past it"), "{warnings:?}");

    // Nobody looks, so nobody sees it: that is what the check is for.
    let stale = model.content("/dev/a");
    past(5 * UNIT);
    let request = Request {
        spot_check: 0,
        ..request
    };
    let report = run(&model, &request, &mut watcher).unwrap();
    assert_eq!(report.devices[0].checked_bytes, 0);
    assert_eq!(report.devices[0].data_bytes, 0);
    expected.insert((report.point, "/dev/a".to_owned()), stale);
    let report = back_up_to(&model, "backup");
    assert_eq!(
        report.devices[0].compared,
        Some(WhyAll::Missed(5 * CLUSTER))
    );
    note(&mut expected, &model, &report);
    check(&model.backup_directory(), &expected);
}

/// Any number of reverts of a machine, with snapshots of others in between.
#[test]
fn no_history_makes_a_wrong_restore_point() {
    for seed in 0..10 {
        let random = &mut Random(seed);
        let model = Model::new(UNIT, &[("/dev/a", 6 * UNIT)]);
        let mut expected = [Expected::new(), Expected::new()];
        let mut then = vec![model.machine()];
        for step in 0..40 {
            match random.below(20) {
                0..=1 => then.push(model.machine()),
                2..=3 => model.put_back(&then[random.below(then.len())]),
                4 => model.tell_of_copy(),
                5 => model.swap("/dev/a", random.bytes(6 * UNIT)),
                6..=8 => {
                    if model.with(Path::new("/dev/a"), |disk| disk.tracker.is_some()) {
                        model.freeze(Path::new("/dev/a"));
                    }
                }
                _ => {
                    let at = random.below(6) * UNIT;
                    model.write("/dev/a", at, &[step + 1; UNIT]);
                    let which = random.below(2);
                    let report = back_up_to(&model, ["A", "B"][which]);
                    note(&mut expected[which], &model, &report);
                }
            }
        }
        for (directory, expected) in ["A", "B"].iter().zip(&expected) {
            check(&model.directory.path().join(directory), expected);
        }
    }
}
