// SPDX-License-Identifier: GPL-2.0-only

//! Sectors of devices that cannot be read.

use super::*;
use crate::backup::source;

const A: &str = "/dev/a";
const B: &str = "/dev/b";

fn extent(offset: u64, length: u64) -> Extent {
    Extent { offset, length }
}

fn salvaging(model: &Model, devices: &[&str], mode: Mode) -> Request {
    Request {
        salvage: true,
        ..request(model, devices, mode)
    }
}

fn salvage(model: &Model, devices: &[&str], mode: Mode) -> Report {
    let request = salvaging(model, devices, mode);
    let report = run(model, &request, &mut Watcher::default()).unwrap();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    report
}

/// What a device has, with zeroes for what cannot be read.
fn without(model: &Model, device: &str, unreadable: &[Extent]) -> Vec<u8> {
    let mut content = model.content(device);
    for extent in unreadable {
        content[extent.offset as usize..extent.end() as usize].fill(0);
    }
    content
}

fn filled() -> Model {
    let model = Model::new(UNIT, &[(A, 10 * UNIT + 512), (B, 3 * UNIT)]);
    model.write(A, 0, &vec![1; 10 * UNIT + 512]);
    model.write(B, 0, &vec![2; 3 * UNIT]);
    model
}

/// The files of the backup that are of a device.
fn files_of(model: &Model, label: &str) -> Vec<String> {
    let files = all_files(&model.backup_directory());
    files.into_iter().filter(|it| it.contains(label)).collect()
}

#[test]
fn the_other_devices_are_kept() {
    for errno in [Errno::IO, Errno::NODATA, Errno::TIMEDOUT, Errno::NOMEM] {
        let model = filled();
        let mut expected = Expected::new();
        let report = back_up(&model, &[A, B], Mode::Incremental);
        note(&mut expected, &model, &report);

        model.write(A, 3 * UNIT, &vec![5; 2 * UNIT]);
        model.write(B, 0, &[6; 512]);
        model.spoil(A, &[(4 * CLUSTER + 1024, 512)], errno);
        let request = request(&model, &[A, B], Mode::Incremental);
        let report = run(&model, &request, &mut Watcher::default()).unwrap();
        assert!(!model.is_held());
        let [error] = &report.errors[..] else {
            panic!("{:?}", report.errors);
        };
        assert_eq!((error.errno(), error.exit().code()), (Some(errno), 1));
        assert_eq!(error.path(), Some(Path::new(A)));
        let is_of_medium = matches!(errno, Errno::IO | Errno::NODATA);
        let place = format!("its bytes {} to {}", 4 * UNIT + 1024, 4 * UNIT + 1536);
        assert_eq!(error.to_string().contains(&place), is_of_medium, "{error}");
        assert!(!is_of_medium || error.remedy().unwrap().contains("--salvage"));
        assert_eq!(report.devices.len(), 1);
        note(&mut expected, &model, &report);
        check(&request.to, &expected);
        assert_eq!(files_of(&model, "000002/a"), [""; 0]);
        assert_eq!(files_of(&model, "partial"), [""; 0]);

        // Where it is missing, the one before is the base.
        model.spoil(A, &[], errno);
        let report = back_up(&model, &[A, B], Mode::Incremental);
        let bases: Vec<_> = report.devices.iter().map(|device| device.base).collect();
        assert_eq!(bases, [Some(1), Some(2)]);
        note(&mut expected, &model, &report);
        check(&request.to, &expected);
    }
}

#[test]
fn without_any_device_there_is_no_restore_point() {
    let model = filled();
    model.spoil(A, &[(CLUSTER, 512)], Errno::IO);
    model.spoil(B, &[(512, 512)], Errno::IO);
    let request = request(&model, &[A, B], Mode::Incremental);
    let mut watcher = Watcher::default();
    let error = run(&model, &request, &mut watcher).unwrap_err();
    assert_eq!(error.path(), Some(Path::new(A)));
    assert!(
        error.to_string().contains("bytes 65536 to 66048"),
        "{error}"
    );
    assert!(watcher.warnings[0].contains(B), "{:?}", watcher.warnings);
    assert!(watcher.warnings[0].contains("bytes 512 to 1024"));
    assert_eq!(files_of(&model, "00000"), [""; 0]);
    assert!(!model.is_held());
}

#[test]
fn a_sector_costs_only_itself_and_is_read_again() {
    let model = filled();
    let mut expected = Expected::new();
    let put = |expected: &mut Expected, report: &Report| {
        let device = &report.devices[0];
        let content = without(&model, A, &device.unreadable);
        expected.insert((report.point, A.to_owned()), content);
    };
    // Two of one cluster, three in a row, and the last one.
    let bad = [
        (CLUSTER + 4096, 512),
        (CLUSTER + 9216, 512),
        (4 * CLUSTER - 512, 1536),
        (10 * CLUSTER, 512),
    ];
    let lost = bad.map(|(offset, length)| extent(offset, length));
    model.spoil(A, &bad, Errno::NODATA);
    let mut watcher = Watcher::default();
    let request = salvaging(&model, &[A], Mode::Incremental);
    let report = run(&model, &request, &mut watcher).unwrap();
    assert!(report.errors.is_empty());
    assert_eq!(report.devices[0].unreadable, lost);
    assert_eq!(watcher.warnings.len(), lost.len());
    assert!(watcher.warnings[0].contains("/dev/a: its bytes 69632 to 70144"));
    put(&mut expected, &report);

    // Nothing was written, and it still cannot be read.
    let report = salvage(&model, &[A], Mode::Incremental);
    let device = &report.devices[0];
    assert_eq!((device.base, device.data_bytes), (Some(1), 0));
    assert_eq!(device.read_bytes, 3 * CLUSTER + 512);
    assert_eq!(device.unreadable, lost);
    put(&mut expected, &report);
    let again = super::request(&model, &[A], Mode::Incremental);
    let error = run(&model, &again, &mut Watcher::default()).unwrap_err();
    assert!(
        error.to_string().contains("bytes 69632 to 70144"),
        "{error}"
    );

    // Two of them can be read now, and are what they were.
    model.spoil(A, &bad[2..], Errno::IO);
    let report = salvage(&model, &[A], Mode::Incremental);
    let device = &report.devices[0];
    assert_eq!(device.unreadable, lost[2..]);
    assert_eq!(device.data_bytes, CLUSTER);
    put(&mut expected, &report);

    // All of them, and nobody asks for that.
    model.spoil(A, &[], Errno::IO);
    let report = back_up(&model, &[A], Mode::Incremental);
    assert_eq!(report.devices[0].unreadable, []);
    assert_eq!(report.devices[0].data_bytes, 2 * CLUSTER + 512);
    put(&mut expected, &report);
    let report = back_up(&model, &[A], Mode::Incremental);
    assert_eq!(report.devices[0].read_bytes, 0);
    put(&mut expected, &report);

    let directory = model.backup_directory();
    check(&directory, &expected);
    check_with_qemu(&directory, &expected);
    let marks = |directory: &Path| -> Vec<(u64, Vec<Extent>)> {
        let store = Store::open(directory).unwrap();
        let report = verify::verify(&store, None, &mut Watcher::default()).unwrap();
        let found = report.unreadable.into_iter();
        found.map(|it| (it.point, it.extents)).collect()
    };
    let all = [
        (1, lost.to_vec()),
        (2, lost.to_vec()),
        (3, lost[2..].to_vec()),
    ];
    assert_eq!(marks(&directory), all);
    let store = Store::open(&directory).unwrap();
    let target = model.directory.path().join("target");
    let none = Allow::default();
    let watch = &mut Watcher::default();
    let report = restore(&store, A, "000003/a", &target, none, watch).unwrap();
    assert_eq!(report.unreadable, lost[2..]);
    assert!(report.damaged.is_empty() && report.differs.is_empty() && report.checked);
    drop(store);

    // What takes over the rest lacks what it did before.
    for (keep, left) in [(4, &all[1..]), (3, &all[2..]), (2, &[][..])] {
        let mut store = Store::open_to_change(&directory, false).unwrap();
        keep_newest(&mut store, keep, &mut Watcher::default()).unwrap();
        drop(store);
        check(&directory, &expected);
        assert_eq!(marks(&directory), left);
    }
}

/// Every way to read all.
#[test]
fn what_is_read_as_a_whole_is_salvaged() {
    for mode in [Mode::Full, Mode::Compare, Mode::Differential] {
        let model = filled();
        back_up(&model, &[A], Mode::Incremental);
        model.write(A, 2 * UNIT, &vec![7; UNIT]);
        model.spoil(A, &[(2 * CLUSTER, CLUSTER)], Errno::IO);
        let report = salvage(&model, &[A], mode);
        let lost = [extent(2 * CLUSTER, CLUSTER)];
        assert_eq!(report.devices[0].unreadable, lost);
        let store = Store::open(&model.backup_directory()).unwrap();
        assert!(restored(&store, 2, A).unwrap() == without(&model, A, &lost));
    }
}

/// A sector that did not change is in the base: a sample that finds it costs nothing.
#[test]
fn a_sample_that_cannot_be_read_is_told() {
    let model = filled();
    let mut expected = Expected::new();
    let report = back_up(&model, &[A], Mode::Incremental);
    note(&mut expected, &model, &report);
    model.write(A, 0, &[3; 512]);
    model.spoil(A, &[(5 * CLUSTER, 512)], Errno::IO);
    let request = request(&model, &[A], Mode::Incremental);
    let mut watcher = Watcher::default();
    let report = run(&model, &request, &mut watcher).unwrap();
    assert!(report.errors.is_empty());
    assert_eq!(report.devices[0].compared, None);
    assert_eq!(report.devices[0].unreadable, []);
    let [warning] = &watcher.warnings[..] else {
        panic!("{:?}", watcher.warnings);
    };
    assert!(
        warning.contains("bytes 327680 to 328192") && warning.contains("the last backup has"),
        "{warning}"
    );
    note(&mut expected, &model, &report);
    check(&request.to, &expected);
}

#[test]
fn a_snapshot_that_broke_is_no_bad_sector() {
    let model = filled();
    model.spoil(A, &[(CLUSTER, 512)], Errno::IO);
    let breaks = || {
        let is_held = model.is_held();
        model.with(Path::new(A), |disk| {
            disk.error_code = if is_held { -5 } else { 0 };
        });
    };
    for request in [
        request(&model, &[A, B], Mode::Incremental),
        salvaging(&model, &[A, B], Mode::Incremental),
    ] {
        let mut watcher = Watcher {
            at_call: Some(Box::new(breaks)),
            ..Watcher::default()
        };
        let error = run(&model, &request, &mut watcher).unwrap_err();
        assert_eq!(error.exit().code(), 3, "{error}");
        assert_eq!(watcher.warnings, [""; 0]);
        drop(watcher);
        model.with(Path::new(A), |disk| disk.error_code = 0);
        assert_eq!(files_of(&model, "00000"), [""; 0]);
    }
}

#[test]
fn a_device_that_is_gone_is_no_bad_sector() {
    let model = filled();
    model.spoil(A, &[(0, 10 * CLUSTER + 512)], Errno::IO);
    let request = salvaging(&model, &[A, B], Mode::Incremental);
    let report = run(&model, &request, &mut Watcher::default()).unwrap();
    let error = &report.errors[0];
    assert!(error.to_string().contains("any more"), "{error}");
    assert_eq!(report.devices.len(), 1);
    // Nor one that does not answer.
    model.spoil(A, &[(0, 512)], Errno::TIMEDOUT);
    let report = run(&model, &request, &mut Watcher::default()).unwrap();
    assert_eq!(report.errors[0].errno(), Some(Errno::TIMEDOUT));
}

#[test]
fn a_manifest_has_no_end_of_bad_sectors() {
    let model = Model::new(UNIT, &[(A, 20 * UNIT), (B, UNIT)]);
    let bad = |count: u64| {
        (0..count)
            .map(|it| (it * 1024 + 512, 512))
            .collect::<Vec<_>>()
    };
    let most = manifest::MAX_UNREADABLE as u64;
    model.spoil(A, &bad(most), Errno::IO);
    let report = salvage(&model, &[A, B], Mode::Full);
    assert_eq!(report.devices[0].unreadable.len() as u64, most);
    model.spoil(A, &bad(most + 1), Errno::IO);
    let request = salvaging(&model, &[A, B], Mode::Full);
    let report = run(&model, &request, &mut Watcher::default()).unwrap();
    assert!(report.errors[0]
        .to_string()
        .contains("more than 1024 ranges"));
    assert_eq!(report.devices.len(), 1);
    Store::open(&model.backup_directory()).unwrap();
}

/// An error that does not come again costs nothing.
#[test]
fn what_can_be_read_in_the_end_is_there() {
    let model = filled();
    let image = model.spoil(A, &[(3 * CLUSTER, 512)], Errno::IO);
    let request = request(&model, &[A], Mode::Incremental);
    let mut watcher = Watcher {
        at_call: Some(Box::new(|| {
            if source::bad::failures(&image) > 0 {
                model.spoil(A, &[], Errno::IO);
            }
        })),
        ..Watcher::default()
    };
    let report = run(&model, &request, &mut watcher).unwrap();
    assert!(report.errors.is_empty());
    assert_eq!(report.devices[0].unreadable, []);
    assert!(
        watcher.warnings[0].contains("second try"),
        "{:?}",
        watcher.warnings
    );
    drop(watcher);
    let store = Store::open(&model.backup_directory()).unwrap();
    assert!(restored(&store, 1, A).unwrap() == model.content(A));
}

/// Whatever cannot be read when: what a restore point does not say to lack is right.
#[test]
fn no_history_of_bad_sectors_makes_a_wrong_restore_point() {
    for seed in 0..12 {
        let random = &mut Random(seed);
        let model = filled();
        let mut expected = Expected::new();
        let size = 10 * UNIT + 512;
        for step in 0..30 {
            match random.below(10) {
                0..=2 => {
                    let at = random.below(size / 512) * 512;
                    let length = (random.below(2 * UNIT / 512) + 1) * 512;
                    model.write(A, at, &vec![step + 1; length]);
                }
                3..=4 => {
                    let bad: Vec<_> = (0..random.below(4))
                        .map(|_| (random.below(size / 512) as u64 * 512, 512))
                        .collect();
                    model.spoil(A, &bad, Errno::IO);
                }
                5 if !expected.is_empty() => {
                    let directory = model.backup_directory();
                    let mut store = Store::open_to_change(&directory, false).unwrap();
                    let keep = random.below(4) + 1;
                    keep_newest(&mut store, keep, &mut Watcher::default()).unwrap();
                }
                6 => model.tell_of_copy(),
                _ => {
                    let modes = [
                        Mode::Incremental,
                        Mode::Incremental,
                        Mode::Differential,
                        Mode::Compare,
                        Mode::Full,
                    ];
                    let report = salvage(&model, &[A], modes[random.below(5)]);
                    let unreadable = &report.devices[0].unreadable;
                    let content = without(&model, A, unreadable);
                    expected.insert((report.point, A.to_owned()), content);
                    check(&model.backup_directory(), &expected);
                }
            }
        }
    }
}
