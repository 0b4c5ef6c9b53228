// SPDX-License-Identifier: GPL-2.0-only

//! A manifest that is lost, and made again from its parts.

use super::*;

fn rebuild(directory: &Path) -> rebuild::Report {
    let watch = &mut Watcher::default();
    let place = Place::new(directory, false);
    let (mut store, lost) = Store::open_to_rebuild(place, watch).unwrap();
    rebuild::rebuild(&mut store, lost, watch).unwrap()
}

/// What a lost manifest is refused with, whatever is to be done.
fn check_refusal(directory: &Path) {
    for result in [
        Store::look(directory),
        Store::open(directory),
        Store::open_to_change(directory, false),
        Store::open_to_change(directory, true),
    ] {
        let error = result.map(drop).unwrap_err();
        assert_eq!(error.exit().code(), 4, "{error}");
        let remedy = error.remedy().unwrap();
        assert!(remedy.contains("blksnap rebuild"), "{remedy}");
    }
}

#[test]
fn a_lost_manifest_is_made_again_as_it_was() {
    let (model, expected) = three_points();
    let directory = model.backup_directory();
    let manifest = directory.join(names::MANIFEST);
    let before = Store::look(&*directory).unwrap().manifest().clone();
    let text = fs::read_to_string(&manifest).unwrap();
    let other = text.replacen("\"time\"", "\"tame\"", 1);
    for content in [None, Some(""), Some(&text[..text.len() / 2]), Some(&other)] {
        match content {
            None => fs::remove_file(&manifest).unwrap(),
            Some(content) => fs::write(&manifest, content).unwrap(),
        }
        check_refusal(&directory);
        let report = rebuild(&directory);
        assert!(report.lost.is_some() && report.errors.is_empty());
        assert_eq!(report.points, [1, 2, 3]);
        assert_eq!(*Store::look(&*directory).unwrap().manifest(), before);
        check(&directory, &expected);
    }
    // What was found damaged is kept for those who want to look at it.
    let kept = fs::read_to_string(directory.join(names::OLD_MANIFEST)).unwrap();
    assert_eq!(kept, other);
    let report = back_up(&model, &["/dev/a"], Mode::Incremental);
    assert_eq!((report.point, report.devices[0].base), (4, Some(3)));
}

#[test]
fn a_prune_renews_the_parts_of_what_it_merges() {
    let (model, expected) = three_points();
    let directory = model.backup_directory();
    for keep in [2, 1] {
        let mut store = Store::open_to_change(&*directory, false).unwrap();
        keep_newest(&mut store, keep, &mut Watcher::default()).unwrap();
        drop(store);
        let before = Store::look(&*directory).unwrap().manifest().clone();
        fs::remove_file(directory.join(names::MANIFEST)).unwrap();
        assert_eq!(rebuild(&directory).points.len(), keep);
        assert_eq!(*Store::look(&*directory).unwrap().manifest(), before);
        check(&directory, &expected);
    }
    // Nothing is left of what was removed.
    assert!(!directory.join("000001").exists());
}

#[test]
fn what_is_lost_of_a_backup_is_told_and_the_rest_stays() {
    for (file, left) in [
        ("000003/a.qcow2", &[1, 2][..]),
        ("000002/a.sums", &[1]),
        ("000002/point.json", &[1]),
        ("000001/a.qcow2", &[]),
    ] {
        for is_removed in [true, false] {
            let (model, expected) = three_points();
            let directory = model.backup_directory();
            fs::remove_file(directory.join(names::MANIFEST)).unwrap();
            let path = directory.join(file);
            match is_removed {
                true => fs::remove_file(&path).unwrap(),
                false => {
                    let length = fs::metadata(&path).unwrap().len();
                    let damaged = fs::File::options().write(true).open(&path).unwrap();
                    damaged.set_len(length / 2).unwrap();
                }
            }
            let report = rebuild(&directory);
            assert_eq!(report.points, left, "{file}");
            assert!(!report.errors.is_empty());
            assert!(report.errors.iter().all(|it| it.exit().code() == 4));
            let has_part = |number: &u64| file != format!("{number:06}/point.json");
            let gone = (1..=3).filter(|it| !left.contains(it) && has_part(it));
            let told: Vec<u64> = report.gone.iter().map(|it| it.point).collect();
            assert_eq!(told, gone.collect::<Vec<_>>(), "{file}");
            if left.is_empty() {
                // Which still says that it is lost.
                check_refusal(&directory);
                continue;
            }
            check(&directory, &expected);
            // The numbers of what is lost are not used again.
            assert_eq!(back_up(&model, &["/dev/a"], Mode::Full).point, 4);
        }
    }
}

/// The directory as it is at each step of `act`, without its manifest, and the restore points
/// that the manifest had.
fn states(directory: &Path, act: impl FnOnce(&mut Store)) -> Vec<(tempfile::TempDir, Vec<u64>)> {
    let copies = Rc::new(std::cell::RefCell::new(Vec::new()));
    let mut store = Store::open_to_change(directory, false).unwrap();
    let (from, to) = (directory.to_owned(), Rc::clone(&copies));
    store.at_step = Some(Box::new(move || {
        let copy = tempfile::tempdir().unwrap();
        copy_tree(&from, copy.path());
        let manifest = copy.path().join(names::MANIFEST);
        let text = fs::read_to_string(&manifest).unwrap();
        let points = manifest::Manifest::from_json(&text).unwrap().points;
        fs::remove_file(manifest).unwrap();
        let numbers = points.iter().map(|point| point.number).collect();
        to.borrow_mut().push((copy, numbers));
    }));
    act(&mut store);
    drop(store);
    Rc::into_inner(copies).unwrap().into_inner()
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => {
                fs::create_dir(&target).unwrap();
                copy_tree(&entry.path(), &target);
            }
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// Whenever a prune was interrupted, with the manifest lost on top: the restore points are those
/// that the manifest had, no fewer, and none that was forgotten.
#[test]
fn a_prune_that_was_interrupted_loses_nothing_and_brings_nothing_back() {
    for gone in [&[1, 2][..], &[1], &[2], &[3], &[2, 3]] {
        let (model, expected) = three_points();
        let directory = model.backup_directory();
        let states = states(&directory, |store| forget(store, gone));
        let has_all = |(_, points): &&(_, Vec<u64>)| points.len() == 3;
        assert!(states.iter().filter(has_all).count() >= 2 + gone.len());
        assert!(states.iter().filter(|it| !has_all(it)).count() > 3);
        for (step, (state, points)) in states.iter().enumerate() {
            let report = rebuild(state.path());
            assert_eq!(report.points, *points, "{gone:?}, step {step}");
            assert!(report.errors.is_empty(), "{:?}", report.errors);
            check(state.path(), &expected);
            // It stays like that, and the next one finds nothing in its way.
            assert_eq!(rebuild(state.path()).points, *points);
            fs::remove_file(state.path().join(names::MANIFEST)).unwrap();
            assert_eq!(
                rebuild(state.path()).points,
                *points,
                "{gone:?}, step {step}"
            );
            let mut store = Store::open_to_change(state.path(), false).unwrap();
            keep_newest(&mut store, 1, &mut Watcher::default()).unwrap();
            drop(store);
            check(state.path(), &expected);
        }
    }
}

fn forget(store: &mut Store, numbers: &[u64]) {
    let which = prune::Which::Numbers(numbers);
    prune::prune(store, which, None, false, &mut Watcher::default()).unwrap();
}

/// What several are based on stays without its restore point, which stays forgotten.
#[test]
fn a_forgotten_restore_point_whose_image_is_needed_stays_forgotten() {
    let model = Model::new(UNIT, &[("/dev/a", 4 * UNIT)]);
    let mut expected = Expected::new();
    for round in 0..3 {
        model.write("/dev/a", round * UNIT, &[7 + round as u8; UNIT]);
        let report = back_up(&model, &["/dev/a"], Mode::Differential);
        note(&mut expected, &model, &report);
    }
    let directory = model.backup_directory();
    let states = states(&directory, |store| forget(store, &[1]));
    for (step, (state, points)) in states.iter().enumerate() {
        assert_eq!(rebuild(state.path()).points, *points, "step {step}");
        check(state.path(), &expected);
        fs::remove_file(state.path().join(names::MANIFEST)).unwrap();
        assert_eq!(rebuild(state.path()).points, *points, "step {step}");
        check(state.path(), &expected);
    }
}

/// A prune that did not come to replace the manifest has forgotten nothing, even if the manifest
/// is lost later.
#[test]
fn what_was_not_forgotten_in_the_end_is_not_lost_later() {
    let (model, expected) = three_points();
    let directory = model.backup_directory();
    let text = fs::read(directory.join(names::MANIFEST)).unwrap();
    let states = states(&directory, |store| forget(store, &[1, 2]));
    for (state, _) in states.iter().filter(|(_, points)| points.len() == 3) {
        fs::write(state.path().join(names::MANIFEST), &text).unwrap();
        drop(Store::open_to_change(state.path(), false).unwrap());
        fs::remove_file(state.path().join(names::MANIFEST)).unwrap();
        assert_eq!(rebuild(state.path()).points, [1, 2, 3]);
        check(state.path(), &expected);
    }
}

/// What could not be had again can be once it was set right.
#[test]
fn a_second_rebuild_takes_in_what_was_set_right() {
    for (file, left) in [
        ("000003/a.qcow2", &[1, 2][..]),
        ("000002/a.sums", &[1]),
        ("000002/point.json", &[1]),
        ("000001/b.qcow2", &[1, 2, 3]),
    ] {
        let model = Model::new(UNIT, &[("/dev/a", 6 * UNIT), ("/dev/b", UNIT)]);
        let mut expected = Expected::new();
        for round in 0..3 {
            model.write("/dev/a", round * UNIT, &[7 + round as u8; UNIT]);
            let devices: &[&str] = match round {
                0 => &["/dev/a", "/dev/b"],
                _ => &["/dev/a"],
            };
            note(
                &mut expected,
                &model,
                &back_up(&model, devices, Mode::Incremental),
            );
        }
        let directory = model.backup_directory();
        let before = Store::look(&*directory).unwrap().manifest().clone();
        fs::remove_file(directory.join(names::MANIFEST)).unwrap();
        let aside = model.directory.path().join("aside");
        fs::rename(directory.join(file), &aside).unwrap();
        assert_eq!(rebuild(&directory).points, left, "{file}");

        // It is said again, as nothing was set right.
        let report = rebuild(&directory);
        assert!(report.lost.is_none());
        assert!(!report.errors.is_empty(), "{file}");
        assert_eq!(report.points, left, "{file}");
        check(&directory, &expected);

        fs::rename(&aside, directory.join(file)).unwrap();
        let report = rebuild(&directory);
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        assert_eq!(report.points, [1, 2, 3], "{file}");
        assert_eq!(*Store::look(&*directory).unwrap().manifest(), before);
        check(&directory, &expected);
        assert!(rebuild(&directory).errors.is_empty());
    }
}

#[test]
fn the_same_of_a_backup() {
    let (model, mut expected) = three_points();
    model.write("/dev/a", 0, &[77; UNIT]);
    let directory = model.backup_directory();
    let states = states(&directory, |store| {
        let request = request(&model, &["/dev/a"], Mode::Incremental);
        let report = run_in(store, &model, &request, &mut Watcher::default()).unwrap();
        note(&mut expected, &model, &report);
    });
    let mut last = Vec::new();
    for (state, _) in &states {
        let report = rebuild(state.path());
        last.extend(report.points.last().copied());
        check(state.path(), &expected);
    }
    // It is there once it is complete.
    assert!(last.is_sorted() && last.first() == Some(&3) && last.last() == Some(&4));
}

#[test]
fn parts_that_are_missing_are_written_again() {
    let (model, expected) = three_points();
    let directory = model.backup_directory();
    let before = Store::look(&*directory).unwrap().manifest().clone();
    assert!(rebuild(&directory).parts.is_empty());
    fs::remove_file(directory.join("000001/point.json")).unwrap();
    fs::write(directory.join("000003/point.json"), "{}").unwrap();
    let report = rebuild(&directory);
    assert!(report.lost.is_none() && report.errors.is_empty());
    assert_eq!(report.parts, [1, 3]);
    assert_eq!(*Store::look(&*directory).unwrap().manifest(), before);
    fs::remove_file(directory.join(names::MANIFEST)).unwrap();
    assert_eq!(rebuild(&directory).points, [1, 2, 3]);
    check(&directory, &expected);
}

/// A part with a right checksum that cannot be right costs its own restore point only, and that
/// is told.
#[test]
fn a_part_that_contradicts_itself_is_left_out() {
    let change = |act: &dyn Fn(&mut manifest::Part)| {
        let (model, expected) = three_points();
        let directory = model.backup_directory();
        fs::remove_file(directory.join(names::MANIFEST)).unwrap();
        let path = directory.join("000003/point.json");
        let mut part = manifest::Part::from_json(&fs::read_to_string(&path).unwrap()).unwrap();
        act(&mut part);
        fs::write(&path, part.to_json()).unwrap();
        let report = rebuild(&directory);
        assert_eq!(report.points, [1, 2], "{:?}", report.errors);
        check(&directory, &expected);
        report.errors[0].reason().to_string()
    };
    let of_point =
        |act: &dyn Fn(&mut manifest::Point)| change(&|part| act(part.point.as_mut().unwrap()));
    assert!(of_point(&|it| it.time = u64::MAX).contains("time"));
    assert!(of_point(&|it| it.number = 2).contains("restore point 2"));
    assert!(of_point(&|it| it.devices[0].device = "x".repeat(5000)).contains("no name of one"));
    assert!(of_point(&|it| it.devices[0].image = "000002/a".to_owned()).contains("point 2"));
    let of_image = |act: &dyn Fn(&mut Image)| change(&|part| act(&mut part.images[0]));
    for name in ["000003/../a", "/etc/passwd", ""] {
        assert!(of_image(&|it| it.name = name.to_owned()).contains("no name of an image"));
    }
    assert!(of_image(&|it| it.size = u64::MAX).contains("is of a device of"));
    assert!(of_image(&|it| it.sums = "x".to_owned()).contains("digests"));

    // Of a directory that was renamed
    let (model, _) = three_points();
    let directory = model.backup_directory();
    fs::remove_file(directory.join(names::MANIFEST)).unwrap();
    fs::rename(directory.join("000003"), directory.join("000007")).unwrap();
    let report = rebuild(&directory);
    assert_eq!(report.points, [1, 2]);
    assert!(report.errors[0].reason().contains("restore point 3"));
}

/// Backups of older versions do not have parts.
#[test]
fn a_backup_writes_the_parts_that_are_missing() {
    let (model, mut expected) = three_points();
    let directory = model.backup_directory();
    for number in [1, 2] {
        fs::remove_file(directory.join(names::part(number))).unwrap();
    }
    be_of_version_1(&directory);
    let report = back_up(&model, &["/dev/a"], Mode::Incremental);
    assert_eq!((report.point, report.devices[0].base), (4, Some(3)));
    note(&mut expected, &model, &report);
    let before = Store::look(&*directory).unwrap().manifest().clone();
    fs::remove_file(directory.join(names::MANIFEST)).unwrap();
    let report = rebuild(&directory);
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert_eq!(report.points, [1, 2, 3, 4]);
    assert_eq!(*Store::look(&*directory).unwrap().manifest(), before);
    check(&directory, &expected);

    // Where one cannot be written, the backup is as good.
    fs::remove_file(directory.join(names::part(1))).unwrap();
    be_of_version_1(&directory);
    let partial = directory.join("000001/point.json.partial");
    fs::create_dir(&partial).unwrap();
    let report = back_up(&model, &["/dev/a"], Mode::Incremental);
    note(&mut expected, &model, &report);
    assert_eq!(report.point, 5);
    assert!(!directory.join(names::part(1)).exists());
    // The next one tries again.
    fs::remove_dir(&partial).unwrap();
    let report = back_up(&model, &["/dev/a"], Mode::Incremental);
    note(&mut expected, &model, &report);
    assert!(directory.join(names::part(1)).exists());
    let without = |directory: &Path| {
        let store = Store::look(directory).unwrap();
        store.manifest().without_part.clone()
    };
    assert!(without(&directory).is_empty());
    check(&directory, &expected);

    // A prune and a rebuild know of them, too.
    be_of_version_1(&directory);
    let mut store = Store::open_to_change(&*directory, false).unwrap();
    forget(&mut store, &[1]);
    drop(store);
    assert_eq!(without(&directory), [3, 4, 5, 6].into());
    fs::remove_file(directory.join(names::part(3))).unwrap();
    assert_eq!(rebuild(&directory).parts, [3]);
    assert!(without(&directory).is_empty());
    check(&directory, &expected);
}

/// Makes the manifest one of the first version.
fn be_of_version_1(directory: &Path) {
    let path = directory.join(names::MANIFEST);
    let text = fs::read_to_string(&path).unwrap();
    let old = text.replacen("\"version\": 2", "\"version\": 1", 1);
    assert_ne!(text, old);
    fs::write(path, old).unwrap();
}

/// Which only those of version 1 need.
#[test]
fn a_backup_looks_for_no_parts_that_are_there() {
    let (model, _) = three_points();
    let directory = model.backup_directory();
    let part = directory.join(names::part(1));
    fs::remove_file(&part).unwrap();
    back_up(&model, &["/dev/a"], Mode::Incremental);
    assert!(!part.exists());
    be_of_version_1(&directory);
    back_up(&model, &["/dev/a"], Mode::Incremental);
    assert!(part.exists());
}

/// The largest part that there can be is written and read, and a larger one neither.
#[test]
fn a_part_has_a_largest_size() {
    let model = Model::new(UNIT, &[("/dev/a", UNIT)]);
    back_up(&model, &["/dev/a"], Mode::Incremental);
    let directory = model.backup_directory();
    let store = Store::look(&*directory).unwrap();
    let largest = |devices: usize| {
        let mut part = store.manifest().part(1);
        let point = part.point.as_mut().unwrap();
        let mut device = point.devices.remove(0);
        device.device = "x".repeat(4096);
        let text = || Some("y".repeat(255));
        device.disk = Some(Disk {
            model: text(),
            serial: text(),
            wwid: text(),
            dm_uuid: text(),
            backing_file: Some("z".repeat(4096)),
            names: vec!["n".repeat(255); 16],
            ..Disk::default()
        });
        let mut image = part.images.remove(0);
        image.size = image::MAX_SIZE;
        image.unreadable = (0..manifest::MAX_UNREADABLE as u64)
            .map(|at| Extent {
                offset: image::MAX_SIZE - (2000 - at) * CLUSTER,
                length: CLUSTER / 2,
            })
            .collect();
        point.devices = vec![device; devices];
        part.images = vec![image; devices];
        part
    };
    let part = largest(128);
    store.write_part("000001/most", &part).unwrap();
    assert!(store.read_part("000001/most").unwrap() == Some(part));
    let error = store.write_part("000001/more", &largest(200)).unwrap_err();
    assert!(error.remedy().unwrap().contains("fewer devices"), "{error}");
    let path = directory.join("000001/more");
    fs::write(&path, vec![b' '; manifest::MAX_PART_BYTES as usize + 1]).unwrap();
    let error = store.read_part("000001/more").unwrap_err();
    assert!(error.reason().contains("larger than it can be"), "{error}");
}

#[test]
fn what_cannot_be_removed_is_noted_once() {
    let (model, _) = three_points();
    let directory = model.backup_directory();
    let mut store = Store::open_to_change(&*directory, false).unwrap();
    store.fail(Operation::WriteBackup, "000001/a.sums", Errno::PERM);
    keep_newest(&mut store, 2, &mut Watcher::default()).unwrap();
    let noted = store.manifest().todo.remove.clone();
    assert_eq!(noted, ["000001/a.sums"]);
    rebuild::rebuild(&mut store, None, &mut Watcher::default()).unwrap();
    assert_eq!(store.manifest().todo.remove, noted);
    fs::remove_file(directory.join("000003/point.json")).unwrap();
    rebuild::rebuild(&mut store, None, &mut Watcher::default()).unwrap();
    assert_eq!(store.manifest().todo.remove, noted);
}

#[test]
fn what_is_no_backup_is_not_rebuilt() {
    let temp = tempfile::tempdir().unwrap();
    let rebuild = || {
        let place = Place::new(temp.path(), false);
        Store::open_to_rebuild(place, &mut Watcher::default()).map(drop)
    };
    assert_eq!(rebuild().unwrap_err().errno(), Some(Errno::NOENT));
    // Somebody else's
    fs::create_dir(temp.path().join("000001")).unwrap();
    fs::write(temp.path().join("000001/notes"), "").unwrap();
    assert_eq!(rebuild().unwrap_err().errno(), Some(Errno::NOENT));
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
}
