// SPDX-License-Identifier: GPL-2.0-only

//! Several machines in one directory, and disks whose names or sizes change.

use crate::identity::Content;
use crate::identity::Machine;

use super::*;

const DISKS: [&str; 2] = ["/dev/a", "/dev/b"];

/// Two disks with other content.
fn two_disks() -> Model {
    let model = Model::new(UNIT, &DISKS.map(|name| (name, 8 * UNIT)));
    for (name, fill) in DISKS.into_iter().zip(1..) {
        model.give_serial(name, name);
        for at in 0..8 {
            model.write(name, at * UNIT, &[10 * fill + at as u8; UNIT]);
        }
    }
    model
}

/// All change trackings begin again.
fn restart(model: &Model) {
    for disk in model.disks.borrow_mut().values_mut() {
        disk.tracker = None;
    }
}

#[test]
fn disks_whose_names_have_moved_are_compared_with_themselves() {
    let model = two_disks();
    let mut expected = Expected::new();
    note(
        &mut expected,
        &model,
        &back_up(&model, &DISKS, Mode::Incremental),
    );
    restart(&model);
    let [a, b] = DISKS.map(|name| model.content(name));
    model.swap(DISKS[0], b);
    model.swap(DISKS[1], a);
    model.swap_identities(DISKS);
    model.write(DISKS[0], 3 * UNIT, &[99; UNIT]);
    let report = back_up(&model, &DISKS, Mode::Incremental);
    note(&mut expected, &model, &report);
    for (device, data) in report.devices.iter().zip([UNIT, 0]) {
        assert_eq!((device.base, device.full.as_ref()), (Some(1), None));
        assert!(device.compared.is_some());
        assert_eq!(device.data_bytes, data as u64, "{device:?}");
    }
    check(&model.backup_directory(), &expected);
    // Each disk has two restore points, whatever its names.
    let mut store = Store::open_to_change(&*model.backup_directory(), false).unwrap();
    let kept = keep_newest(&mut store, 2, &mut Watcher::default())
        .unwrap()
        .kept;
    assert_eq!(kept, [1, 2]);
}

#[test]
fn a_disk_under_a_new_name_is_compared() {
    let model = two_disks();
    let mut expected = Expected::new();
    let report = back_up(&model, &DISKS[..1], Mode::Incremental);
    note(&mut expected, &model, &report);
    model.swap(DISKS[1], model.content(DISKS[0]));
    model.swap_identities(DISKS);
    let report = back_up(&model, &DISKS[1..], Mode::Incremental);
    note(&mut expected, &model, &report);
    let device = &report.devices[0];
    assert_eq!((device.base, device.data_bytes), (Some(1), 0));
    check(&model.backup_directory(), &expected);
}

#[test]
fn another_disk_under_an_old_name_is_its_first_backup() {
    let model = two_disks();
    back_up(&model, &DISKS[..1], Mode::Incremental);
    restart(&model);
    model.give_serial(DISKS[0], "new");
    let report = back_up(&model, &DISKS[..1], Mode::Incremental);
    assert_eq!(report.devices[0].full, Some(WhyAll::First));
    // And does not push out what there is of the old one.
    back_up(&model, &DISKS[..1], Mode::Incremental);
    let mut store = Store::open_to_change(&*model.backup_directory(), false).unwrap();
    let report = keep_newest(&mut store, 1, &mut Watcher::default()).unwrap();
    assert_eq!((report.kept, report.removed), (vec![1, 3], vec![2]));
}

/// Two disks whose bridges report one serial number are backed up in turn under one name.
#[test]
fn disks_in_turn_with_one_number_are_told_apart_by_what_they_hold() {
    let with_table = |uuid: &str| Disk {
        table_uuid: Some(uuid.to_owned()),
        ..Disk::default()
    };
    let with_files = |uuid: &str| Disk {
        contents: vec![Content {
            partition: None,
            kind: "ext4".to_owned(),
            uuid: uuid.to_owned(),
        }],
        ..Disk::default()
    };
    let disks: [&dyn Fn(&str) -> Disk; 2] = [&with_table, &with_files];
    for disk in disks {
        let model = two_disks();
        let device = DISKS[0];
        let contents = DISKS.map(|name| model.content(name));
        let mut expected = Expected::new();
        let mut plug = |which: usize| {
            restart(&model);
            model.swap(device, contents[which].clone());
            let disk = Disk {
                serial: Some("0123456789ABCDEF".to_owned()),
                ..disk(["first", "second"][which])
            };
            let mut known = model.identities.borrow_mut();
            known.insert(device.into(), disk);
            drop(known);
            let report = back_up(&model, &[device], Mode::Incremental);
            note(&mut expected, &model, &report);
            let report = &report.devices[0];
            (report.base, report.full.clone(), report.data_bytes)
        };
        let all = 8 * CLUSTER;
        assert_eq!(plug(0), (None, Some(WhyAll::First), all));
        assert_eq!(plug(1), (None, Some(WhyAll::First), all));
        assert_eq!(plug(0), (Some(1), None, 0));
        assert_eq!(plug(1), (Some(2), None, 0));
        // Neither pushes out what there is of the other.
        let mut store = Store::open_to_change(&*model.backup_directory(), false).unwrap();
        let report = keep_newest(&mut store, 1, &mut Watcher::default()).unwrap();
        assert_eq!(report.kept, [3, 4]);
        drop(store);
        check(&model.backup_directory(), &expected);
    }
}

/// The earliest version noted no machine.
#[test]
fn restore_points_of_an_unknown_machine_are_taken_to_be_of_this_one() {
    let (model, mut expected) = three_points();
    let again = request(&model, &["/dev/a"], Mode::Incremental);
    let mut back_up_again = || {
        let mut watcher = Watcher::default();
        let report = run(&model, &again, &mut watcher).unwrap();
        note(&mut expected, &model, &report);
        watcher.notes.retain(|note| note.contains("machine"));
        (report.devices[0].base, watcher.notes)
    };
    // Nothing is known of this one either, nor noted.
    assert_eq!(back_up_again(), (Some(3), Vec::new()));
    model.machine.replace(machine("db1"));
    let (base, notes) = back_up_again();
    assert_eq!((base, notes.len()), (Some(4), 1));
    for part in [
        "do not say of which machine",
        "taken to be of this one, db1",
    ] {
        assert!(notes[0].contains(part), "{notes:?}");
    }
    assert_eq!(back_up_again(), (Some(5), Vec::new()));
    let store = Store::look(&*model.backup_directory()).unwrap();
    assert_eq!(store.manifest().machines(), [&machine("db1")]);
    drop(store);
    let error = {
        model.machine.replace(machine("db2"));
        run(&model, &again, &mut Watcher::default()).unwrap_err()
    };
    assert!(error.to_string().contains("db1"), "{error}");
    check(&model.backup_directory(), &expected);
}

#[test]
fn a_resized_device_is_compared_with_what_it_was() {
    let model = two_disks();
    let device = DISKS[0];
    let mut expected = Expected::new();
    let mut data = Vec::new();
    let mut back_up_with = |size: usize| {
        let mut content = model.content(device);
        // What comes new is no zeroes, and what comes back is not what it was.
        content.resize(size, data.len() as u8 + 1);
        model.swap(device, content);
        let report = back_up(&model, &[device], Mode::Incremental);
        note(&mut expected, &model, &report);
        let report = &report.devices[0];
        data.push((report.base, report.data_bytes / UNIT as u64));
    };
    back_up_with(8 * UNIT);
    // Larger, of which 512 bytes take a cluster, and smaller, within one.
    back_up_with(9 * UNIT + 512);
    back_up_with(9 * UNIT);
    back_up_with(5 * UNIT + 512);
    back_up_with(5 * UNIT);
    // Nothing of restore points 1 to 3 may show at the end again: it is full.
    back_up_with(7 * UNIT);
    assert_eq!(
        data,
        [
            (None, 8),
            (Some(1), 1),
            (Some(2), 0),
            (Some(3), 0),
            (Some(4), 0),
            (None, 7)
        ]
    );
    let directory = model.backup_directory();
    check(&directory, &expected);
    check_with_qemu(&directory, &expected);
    for keep in (1..=5).rev() {
        let mut store = Store::open_to_change(&*directory, false).unwrap();
        keep_newest(&mut store, keep, &mut Watcher::default()).unwrap();
        drop(store);
        assert_eq!(points(&directory).len(), keep);
        check(&directory, &expected);
        check_with_qemu(&directory, &expected);
    }
}

fn machine(host: &str) -> Machine {
    Machine {
        id: Some(format!("id of {host}")),
        host: Some(host.to_owned()),
        ..Machine::default()
    }
}

#[test]
fn another_machine_needs_leave() {
    let model = two_disks();
    let back_up_from = |host: &str, is_shared| {
        model.machine.replace(machine(host));
        let request = Request {
            is_shared,
            ..request(&model, &DISKS[..1], Mode::Incremental)
        };
        run(&model, &request, &mut Watcher::default())
    };
    back_up_from("db1", false).unwrap();
    back_up_from("db1", false).unwrap();
    let error = back_up_from("db2", false).unwrap_err();
    for part in ["db1 (machine id id of db1)", "this is db2"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert!(error.remedy().unwrap().contains("--shared"));
    assert_eq!(points(&model.backup_directory()), [1, 2]);
    assert!(!model.is_held());

    back_up_from("db2", true).unwrap();
    // Once it has a restore point there it is at home.
    back_up_from("db2", false).unwrap();
    back_up_from("db1", false).unwrap();

    let mut store = Store::open_to_change(&*model.backup_directory(), false).unwrap();
    let db2 = machine("db2");
    let policy = newest(1);
    let old = prune::Which::Old(&policy);
    let watch = &mut Watcher::default();
    let trial = prune::prune(&mut store, old, Some(&db2), true, watch).unwrap();
    assert_eq!(trial.removed, [3]);
    drop(store);
    assert_eq!(points(&model.backup_directory()), [1, 2, 3, 4, 5]);
    let mut store = Store::open_to_change(&*model.backup_directory(), false).unwrap();
    let report = prune::prune(&mut store, old, Some(&db2), false, watch).unwrap();
    assert_eq!((report.removed, report.kept), (vec![3], vec![1, 2, 4, 5]));
}

#[test]
fn chosen_restore_points_go_and_the_others_stay() {
    let model = two_disks();
    let mut expected = Expected::new();
    for round in 1..=5 {
        model.write(DISKS[0], round * UNIT, &[90 + round as u8; UNIT]);
        let report = back_up(&model, &DISKS[..1], Mode::Incremental);
        note(&mut expected, &model, &report);
    }
    let directory = model.backup_directory();
    for (gone, left) in [
        (&[3][..], &[1, 2, 4, 5][..]),
        (&[1, 4], &[2, 5]),
        (&[5], &[2]),
        (&[2], &[]),
    ] {
        let mut store = Store::open_to_change(&*directory, false).unwrap();
        let which = prune::Which::Numbers(gone);
        prune::prune(&mut store, which, None, false, &mut Watcher::default()).unwrap();
        drop(store);
        assert_eq!(points(&directory), left);
        check(&directory, &expected);
    }
    assert_eq!(Store::open(&*directory).unwrap().manifest().images, []);
    // And the numbers go on.
    assert_eq!(back_up(&model, &DISKS[..1], Mode::Incremental).point, 6);
}
