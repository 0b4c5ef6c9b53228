// SPDX-License-Identifier: GPL-2.0-only

//! Backups and prunes that are stopped, or end with a power cut.

use super::*;

#[test]
fn a_stopped_backup_leaves_the_others_as_they_were() {
    let (model, mut expected) = three_points();
    for stop_at in 1.. {
        model.write("/dev/a", 0, &[stop_at as u8; 512]);
        model.write("/dev/b", 0, &[stop_at as u8; 512]);
        let mut watcher = Watcher {
            stop_at: Some(stop_at),
            ..Watcher::default()
        };
        let request = request(&model, &["/dev/a", "/dev/b"], Mode::Incremental);
        match run(&model, &request, &mut watcher) {
            Ok(report) => {
                assert!(stop_at > 5);
                assert_eq!(report.devices[0].base, Some(3));
                note(&mut expected, &model, &report);
                break;
            }
            Err(error) => assert!(error.to_string().contains("stop")),
        }
        assert!(!model.is_held());
        assert_eq!(points(&model.backup_directory()), [1, 2, 3]);
        assert!(!model.backup_directory().join("000004.partial").exists());
    }
    check(&model.backup_directory(), &expected);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Copies a directory whenever something may have reached the medium: what a
/// power cut would have left.
struct Camera {
    directory: PathBuf,
    pictures: tempfile::TempDir,
    count: Cell<usize>,
}

impl Camera {
    fn new(directory: &Path) -> Rc<Self> {
        Rc::new(Self {
            directory: directory.to_owned(),
            pictures: tempfile::tempdir().unwrap(),
            count: Cell::new(0),
        })
    }

    fn shoot(&self) {
        copy(&self.directory, &self.picture(self.count.get()));
        self.count.set(self.count.get() + 1);
    }

    fn picture(&self, number: usize) -> PathBuf {
        self.pictures.path().join(number.to_string())
    }

    /// All pictures, and the restore points as a reader finds them there.
    fn all(&self) -> Vec<(PathBuf, Vec<u64>)> {
        (0..self.count.get())
            .map(|number| (self.picture(number), points(&self.picture(number))))
            .collect()
    }
}

/// A backup to be changed, and a camera that shoots at every step and call.
fn filmed(directory: &Path) -> (Rc<Camera>, Store, Watcher<'static>) {
    let camera = Camera::new(directory);
    let mut store = Store::open_to_change(directory, false).unwrap();
    let at_step = Rc::clone(&camera);
    store.at_step = Some(Box::new(move || at_step.shoot()));
    let at_call = Rc::clone(&camera);
    let watcher = Watcher {
        at_call: Some(Box::new(move || at_call.shoot())),
        ..Watcher::default()
    };
    (camera, store, watcher)
}

#[test]
fn a_power_cut_loses_at_most_the_backup_at_work() {
    let (model, mut expected) = three_points();
    model.write("/dev/a", 0, &[5; 512]);
    let (camera, mut store, mut watcher) = filmed(&model.backup_directory());
    let request = request(&model, &["/dev/a", "/dev/b"], Mode::Incremental);
    let report = run_in(&mut store, &model, &request, &mut watcher).unwrap();
    note(&mut expected, &model, &report);

    let pictures = camera.all();
    assert!(pictures.len() > 10);
    let with = pictures
        .iter()
        .filter(|(_, points)| points.len() == 4)
        .count();
    assert!(with > 2 && with < pictures.len() - 5);
    for (picture, before) in pictures {
        check(&picture, &expected);
        let again = Request {
            to: picture.clone(),
            ..request.clone()
        };
        model.write("/dev/a", UNIT + 512, &[before.len() as u8; 512]);
        let report = run(&model, &again, &mut Watcher::default()).unwrap();
        assert_eq!(report.point, before.last().unwrap() + 1);
        assert_eq!(report.devices[0].base, before.last().copied());
        let mut expected = expected.clone();
        note(&mut expected, &model, &report);
        check(&picture, &expected);
        assert!(all_files(&picture)
            .iter()
            .all(|name| !name.contains("partial")));
    }
}

#[test]
fn a_power_cut_while_pruning_loses_nothing_that_stays() {
    for keep in [1, 2] {
        let (model, mut expected) = three_points();
        let report = back_up(&model, &["/dev/a"], Mode::Differential);
        note(&mut expected, &model, &report);
        let (camera, mut store, mut watcher) = filmed(&model.backup_directory());
        let report = keep_newest(&mut store, keep, &mut watcher).unwrap();
        assert_eq!(report.kept, [1, 2, 3, 4][4 - keep..]);
        drop(store);
        check(&model.backup_directory(), &expected);
        check_with_qemu(&model.backup_directory(), &expected);

        let pictures = camera.all();
        assert!(pictures.len() > 5);
        for (picture, before) in pictures {
            check(&picture, &expected);
            // Whatever was left is finished or undone, and then it goes on.
            let mut store = Store::open_to_change(&picture, false).unwrap();
            assert_eq!(points(&store_directory(&store)), before);
            keep_newest(&mut store, keep, &mut Watcher::default()).unwrap();
            drop(store);
            assert_eq!(points(&picture), report.kept);
            check(&picture, &expected);
            check_with_qemu(&picture, &expected);
            let files = all_files(&picture);
            assert!(
                files.iter().all(|name| !name.contains("partial")),
                "{files:?}"
            );
            assert!(!picture.join("000002").exists());
        }
    }
}

fn store_directory(store: &Store) -> PathBuf {
    // A copy, since the store is locked.
    let copied = store.directory().with_extension("copy");
    let _ = fs::remove_dir_all(&copied);
    copy(store.directory(), &copied);
    copied
}

#[test]
fn a_stopped_prune_leaves_all_as_it_was() {
    let (model, expected) = three_points();
    let before = all_files(&model.backup_directory());
    for stop_at in 1.. {
        let mut store = Store::open_to_change(&model.backup_directory(), false).unwrap();
        let mut watcher = Watcher {
            stop_at: Some(stop_at),
            ..Watcher::default()
        };
        if keep_newest(&mut store, 1, &mut watcher).is_ok() {
            assert!(stop_at > 1);
            break;
        }
        drop(store);
        assert_eq!(all_files(&model.backup_directory()).len(), before.len());
        assert_eq!(points(&model.backup_directory()), [1, 2, 3]);
    }
    assert_eq!(points(&model.backup_directory()), [3]);
    check(&model.backup_directory(), &expected);
    // The next backup builds on what was merged.
    let report = back_up(&model, &["/dev/a"], Mode::Incremental);
    assert_eq!(report.devices[0].base, Some(3));
}

/// Restore points of four days, two of them on each of the first two.
fn four_days() -> (Model, Expected) {
    let (model, mut expected) = three_points();
    for round in 4..=6 {
        model.write("/dev/a", usize::from(round) * 512, &[round; 512]);
        let report = back_up(&model, &["/dev/a"], Mode::Incremental);
        note(&mut expected, &model, &report);
    }
    let path = model.backup_directory().join("blksnap.json");
    let mut manifest = Manifest::from_json(&fs::read_to_string(&path).unwrap()).unwrap();
    let hours = [1, 2, 25, 26, 49, 73];
    for (point, hour) in manifest.points.iter_mut().zip(hours) {
        point.time = hour * 3600;
    }
    fs::write(path, manifest.to_json()).unwrap();
    (model, expected)
}

/// Rules that keep the newest restore point of each day.
fn daily() -> Policy {
    let rules = Rules {
        daily: 9,
        ..Rules::default()
    };
    Policy {
        rules,
        now: 100 * 3600,
        ..Policy::default()
    }
}

/// All files with their content, without the lock files, which say who had them last.
fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = all_files(directory).into_iter();
    let kept = files.filter(|name| !name.ends_with(".lock") && !name.ends_with(".writer"));
    kept.map(|name| (name.clone(), fs::read(&name).unwrap_or_default()))
        .collect()
}

#[test]
fn a_prune_by_time_that_is_stopped_or_refused_leaves_all_as_it_was() {
    let (model, expected) = four_days();
    let directory = model.backup_directory();
    let before = contents(&directory);
    let policy = daily();
    let prune = |policy: &Policy, is_trial, watch: &mut Watcher<'_>| {
        let mut store = Store::open_to_change(&*directory, false).unwrap();
        prune::prune(&mut store, prune::Which::Old(policy), None, is_trial, watch)
    };
    let none = prune(&Policy::default(), false, &mut Watcher::default()).unwrap_err();
    assert_eq!(none.exit().code(), 2);
    assert_eq!(contents(&directory), before);
    let trial = prune(&policy, true, &mut Watcher::default()).unwrap();
    assert_eq!(trial.removed, [1, 3]);
    assert_eq!(contents(&directory), before);
    for stop_at in 1.. {
        let mut watcher = Watcher {
            stop_at: Some(stop_at),
            ..Watcher::default()
        };
        if let Ok(report) = prune(&policy, false, &mut watcher) {
            // Both images were merged, and it could be stopped during each of them.
            assert!(stop_at > 2);
            assert_eq!(report.merged.len(), 2);
            assert_eq!(report.reasons, trial.reasons);
            break;
        }
        assert_eq!(contents(&directory), before);
    }
    assert_eq!(points(&directory), [2, 4, 5, 6]);
    check(&directory, &expected);
}

#[test]
fn a_power_cut_while_pruning_by_time_loses_nothing_that_stays() {
    let (model, expected) = four_days();
    let policy = daily();
    let prune = |store: &mut Store, watch: &mut Watcher<'_>| {
        prune::prune(store, prune::Which::Old(&policy), None, false, watch).unwrap()
    };
    let (camera, mut store, mut watcher) = filmed(&model.backup_directory());
    assert_eq!(prune(&mut store, &mut watcher).removed, [1, 3]);
    drop(store);
    let pictures = camera.all();
    let are_before = |(_, points): &&(PathBuf, Vec<u64>)| points.len() == 6;
    let before = pictures.iter().filter(are_before).count();
    assert!(before > 2 && before < pictures.len());
    for (picture, _) in pictures {
        check(&picture, &expected);
        let mut store = Store::open_to_change(&picture, false).unwrap();
        prune(&mut store, &mut Watcher::default());
        drop(store);
        assert_eq!(points(&picture), [2, 4, 5, 6]);
        check(&picture, &expected);
        let files = all_files(&picture);
        assert!(
            files.iter().all(|name| !name.contains("partial")),
            "{files:?}"
        );
        assert!(!picture.join("000001").exists() && !picture.join("000003").exists());
    }
}
