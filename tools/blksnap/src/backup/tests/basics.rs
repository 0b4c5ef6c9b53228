// SPDX-License-Identifier: GPL-2.0-only

//! What a backup keeps and names, and when it is refused.

use super::*;

#[test]
fn no_backup_begins_where_there_must_be_one() {
    let model = Model::new(UNIT, &[("/dev/a", UNIT)]);
    let again = Request {
        existing: true,
        ..request(&model, &["/dev/a"], Mode::Incremental)
    };
    let refused = || {
        let error = run(&model, &again, &mut Watcher::default()).unwrap_err();
        assert_eq!(error.operation(), Operation::OpenBackup);
        assert!(error.remedy().unwrap().starts_with("mount"), "{error}");
    };
    refused();
    assert!(!model.backup_directory().exists());
    // As a mount point is when nothing is mounted there.
    fs::create_dir(model.backup_directory()).unwrap();
    refused();
    assert_eq!(all_files(&model.backup_directory()).len(), 0);

    back_up(&model, &["/dev/a"], Mode::Incremental);
    let report = run(&model, &again, &mut Watcher::default()).unwrap();
    assert_eq!((report.point, report.devices[0].base), (2, Some(1)));
}

#[test]
fn only_what_changed_is_kept() {
    let (model, mut expected) = three_points();
    let report = back_up(&model, &["/dev/a"], Mode::Incremental);
    assert_eq!(report.devices[0].base, Some(3));
    assert_eq!(
        (report.devices[0].read_bytes, report.devices[0].data_bytes),
        (0, 0)
    );
    note(&mut expected, &model, &report);

    // The same again is read, but not kept.
    model.write("/dev/a", UNIT, &vec![3; UNIT]);
    model.write("/dev/a", 2 * UNIT, &vec![0; UNIT]);
    model.write("/dev/a", 6 * UNIT, &[9; 512]);
    let report = back_up(&model, &["/dev/a"], Mode::Incremental);
    let device = &report.devices[0];
    assert_eq!(
        (device.read_bytes, device.data_bytes),
        (2 * CLUSTER + 512, 512)
    );
    note(&mut expected, &model, &report);

    let report = back_up(&model, &["/dev/a"], Mode::Differential);
    assert_eq!(report.devices[0].base, Some(1));
    note(&mut expected, &model, &report);

    let report = back_up(&model, &["/dev/a", "/dev/b"], Mode::Incremental);
    assert_eq!(report.devices[0].full, None);
    assert_eq!(report.devices[1].full, Some(WhyAll::First));
    assert_eq!(report.devices[1].data_bytes, 0);
    note(&mut expected, &model, &report);
    check(&model.backup_directory(), &expected);
    check_with_qemu(&model.backup_directory(), &expected);
}

#[test]
fn a_map_that_cannot_be_trusted_makes_a_comparison() {
    let (model, mut expected) = three_points();
    model.map.replace(Some(vec![99; 7]));
    // Not tracked, so that only a comparison finds it.
    model.with(Path::new("/dev/a"), |disk| disk.content[5 * UNIT] = 77);
    let mut watcher = Watcher::default();
    let request = request(&model, &["/dev/a"], Mode::Incremental);
    let report = run(&model, &request, &mut watcher).unwrap();
    assert!(matches!(report.devices[0].compared, Some(WhyAll::Map(_))));
    assert!(
        watcher.notes[0].contains("all of /dev/a is read and compared with restore point 3"),
        "{:?}",
        watcher.notes
    );
    note(&mut expected, &model, &report);
    check(&model.backup_directory(), &expected);
}

#[test]
fn a_base_that_is_gone_makes_a_full_backup() {
    for file in ["000002/a.qcow2", "000001/a.sums"] {
        let (model, _) = three_points();
        fs::remove_file(model.backup_directory().join(file)).unwrap();
        let report = back_up(&model, &["/dev/a"], Mode::Incremental);
        let why = report.devices[0].full.clone();
        assert!(matches!(why, Some(WhyAll::Base(ref reason)) if reason.contains("missing")));
        let store = Store::open(&model.backup_directory()).unwrap();
        assert!(restored(&store, 4, "/dev/a").unwrap() == model.content("/dev/a"));
    }
}

#[test]
fn generations_end_after_254_snapshots() {
    let (model, mut expected) = three_points();
    model.with(Path::new("/dev/a"), |disk| {
        let tracker = disk.tracker.as_mut().unwrap();
        tracker.number = 253;
        tracker.takes.resize(253, 0);
    });
    model.write("/dev/a", 0, &[1]);
    let report = back_up(&model, &["/dev/a"], Mode::Incremental);
    assert_eq!(report.devices[0].changes_number, 254);
    assert_eq!(report.devices[0].base, Some(3));
    note(&mut expected, &model, &report);
    model.write("/dev/a", 0, &[2]);
    let report = back_up(&model, &["/dev/a"], Mode::Incremental);
    assert_eq!(report.devices[0].changes_number, 1);
    assert_eq!(report.devices[0].compared, Some(WhyAll::OtherGeneration));
    note(&mut expected, &model, &report);
    check(&model.backup_directory(), &expected);
}

#[test]
fn a_snapshot_that_broke_is_discarded() {
    let (model, mut expected) = three_points();
    model.write("/dev/a", 0, &[1; 512]);
    let breaks = || {
        let is_held = model.is_held();
        model.with(Path::new("/dev/a"), |disk| {
            disk.error_code = if is_held { -28 } else { 0 }
        });
    };
    let mut watcher = Watcher {
        at_call: Some(Box::new(breaks)),
        ..Watcher::default()
    };
    let request = request(&model, &["/dev/a"], Mode::Incremental);
    let error = run(&model, &request, &mut watcher).unwrap_err();
    assert_eq!(error.exit().code(), 3);
    assert!(error.to_string().contains("overflowed"), "{error}");
    assert!(!model.is_held());
    assert_eq!(points(&model.backup_directory()), [1, 2, 3]);
    assert!(!model.backup_directory().join("000004.partial").exists());

    model.with(Path::new("/dev/a"), |disk| disk.error_code = 0);
    let report = back_up(&model, &["/dev/a"], Mode::Incremental);
    assert_eq!(report.devices[0].base, Some(3));
    note(&mut expected, &model, &report);
    check(&model.backup_directory(), &expected);
}

#[test]
fn relative_names_are_made_absolute() {
    let model = Model::new(UNIT, &[("disks/a", UNIT)]);
    let report = back_up(&model, &["disks/a"], Mode::Incremental);
    let absolute = std::env::current_dir().unwrap().join("disks/a");
    assert_eq!(Path::new(&report.devices[0].device), absolute);
}

#[test]
fn a_backup_can_be_moved() {
    let (model, expected) = three_points();
    let moved = model.directory.path().join("moved");
    fs::rename(model.backup_directory(), &moved).unwrap();
    check(&moved, &expected);
    check_with_qemu(&moved, &expected);
}

#[test]
fn devices_of_one_name_have_their_own_files() {
    let model = Model::new(UNIT, &[("/dev/x/a", UNIT), ("/dev/y/a", UNIT)]);
    let report = back_up(&model, &["/dev/x/a", "/dev/y/a"], Mode::Incremental);
    let names: Vec<&str> = report
        .devices
        .iter()
        .map(|device| device.image.as_str())
        .collect();
    assert_eq!(names, ["000001/a", "000001/a-2"]);
}

#[test]
fn a_bandwidth_is_kept_to() {
    let model = Model::new(UNIT, &[("/dev/a", 12 * UNIT)]);
    model.write("/dev/a", 0, &vec![1; 12 * UNIT]);
    let request = Request {
        bandwidth: Some(Bytes(8 * CLUSTER)),
        ..request(&model, &["/dev/a"], Mode::Full)
    };
    let start = std::time::Instant::now();
    run(&model, &request, &mut Watcher::default()).unwrap();
    assert!(
        start.elapsed().as_secs_f64() >= 1.4,
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_full_target_is_told_as_such() {
    let error = Error::from_errno(Operation::WriteBackup, Errno::NOSPC);
    assert!(error.to_string().contains("stay as they were"), "{error}");
}
