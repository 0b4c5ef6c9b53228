// SPDX-License-Identifier: GPL-2.0-only

//! Backups of devices on a model of the kernel, whatever happens to both.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use rustix::io::Errno;

use super::restore::Opener;
use super::target::Allow;
use super::*;

mod history;
mod identities;
mod model;
mod moment;
mod rebuilding;
mod rescue;
mod together;

use model::Model;

const UNIT: usize = CLUSTER as usize;

/// Counts, and stops when it is told to.
#[derive(Default)]
struct Watcher<'a> {
    notes: Vec<String>,
    warnings: Vec<String>,
    calls: usize,
    stop_at: Option<usize>,
    at_call: Option<Box<dyn Fn() + 'a>>,
}

impl Watch for Watcher<'_> {
    fn keep_on(&mut self, progress: Progress) -> Result<()> {
        assert!(progress.done <= progress.total);
        self.calls += 1;
        if let Some(at_call) = &self.at_call {
            at_call();
        }
        if self.stop_at == Some(self.calls) {
            return Err(Error::new(Operation::BackUp, "stop"));
        }
        Ok(())
    }

    fn tell(&mut self, note: &str) {
        self.notes.push(note.to_owned());
    }

    fn warn(&mut self, warning: &str) {
        self.warnings.push(warning.to_owned());
    }
}

fn request(model: &Model, devices: &[&str], mode: Mode) -> Request {
    Request {
        devices: devices.iter().map(PathBuf::from).collect(),
        store: "/store".into(),
        limit: Sectors(1),
        to: model.backup_directory(),
        is_trusted: false,
        existing: false,
        is_shared: false,
        mode,
        bandwidth: None,
        spot_check: 1,
        salvage: false,
        lock_wait: Duration::ZERO,
    }
}

fn back_up(model: &Model, devices: &[&str], mode: Mode) -> Report {
    let report = run(
        model,
        &request(model, devices, mode),
        &mut Watcher::default(),
    )
    .unwrap();
    assert!(report.errors.is_empty());
    assert!(!model.is_held());
    report
}

/// The content of devices by restore point and name.
type Expected = BTreeMap<(u64, String), Vec<u8>>;

fn note(expected: &mut Expected, model: &Model, report: &Report) {
    for device in &report.devices {
        let key = (report.point, device.device.clone());
        expected.insert(key, model.content(&device.device));
    }
}

/// Options that allow to overwrite what is there.
const OVER: Allow = Allow {
    in_use: false,
    overwrite: true,
    truncate: false,
    other_block_size: false,
};

fn restore(
    store: &Store,
    device: &str,
    image: &str,
    target: &Path,
    allow: Allow,
    watch: &mut Watcher<'_>,
) -> Result<restore::Report> {
    let device = PointDevice {
        device: device.to_owned(),
        disk: None,
        image: image.to_owned(),
    };
    let mut opened = Opener::new(store, allow)?.open(&[(1, &device, target)])?;
    opened.remove(0).run(true, watch)
}

fn restored(store: &Store, point: u64, device: &str) -> Result<Vec<u8>> {
    let temp = tempfile::tempdir().unwrap();
    let target = temp.path().join("restored");
    let point = store.manifest().point(point).unwrap();
    let image = &point
        .devices
        .iter()
        .find(|it| it.device == device)
        .unwrap()
        .image;
    let watch = &mut Watcher::default();
    let report = restore(store, device, image, &target, Allow::default(), watch)?;
    if !report.damaged.is_empty() {
        return Err(Error::new(Operation::CheckBackup, "damaged"));
    }
    Ok(fs::read(target).unwrap())
}

/// Removes all restore points but the newest of each device.
fn keep_newest(store: &mut Store, keep: usize, watch: &mut Watcher<'_>) -> Result<prune::Report> {
    let old = prune::Which::Old { keep, slack: 0 };
    prune::prune(store, old, None, false, watch)
}

/// Every restore point there is has what is expected, and verifies.
fn check(directory: &Path, expected: &Expected) {
    let store = Store::open(directory).unwrap();
    for point in &store.manifest().points {
        for device in &point.devices {
            let content = restored(&store, point.number, &device.device).unwrap();
            let wanted = &expected[&(point.number, device.device.clone())];
            assert!(content == *wanted, "{} of {}", device.device, point.number);
        }
    }
    let report = verify::verify(&store, None, &mut Watcher::default()).unwrap();
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert!(report.damaged.is_empty());
}

fn points(directory: &Path) -> Vec<u64> {
    let store = Store::open(directory).unwrap();
    store
        .manifest()
        .points
        .iter()
        .map(|point| point.number)
        .collect()
}

/// A generator of numbers that are different enough.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.below(256) as u8).collect()
    }
}

/// What qemu makes of the images, if it is there.
fn check_with_qemu(directory: &Path, expected: &Expected) {
    use std::process::Command;
    if Command::new("qemu-img").arg("--version").output().is_err() {
        // Not by a macro, whose output would be kept back.
        let _ = writeln!(
            std::io::stderr(),
            "skipped: qemu-img (Debian's qemu-utils) is not there to open the images"
        );
        return;
    }
    let qemu = |arguments: &[&std::ffi::OsStr]| {
        let output = Command::new("qemu-img").args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    let store = Store::open(directory).unwrap();
    for image in &store.manifest().images {
        qemu(&["check".as_ref(), store.qcow2(&image.name).as_ref()]);
    }
    let temp = tempfile::tempdir().unwrap();
    let raw = temp.path().join("raw");
    for point in &store.manifest().points {
        for device in &point.devices {
            let path = store.qcow2(&device.image);
            qemu(&[
                "convert".as_ref(),
                "-Oraw".as_ref(),
                path.as_ref(),
                raw.as_ref(),
            ]);
            let wanted = &expected[&(point.number, device.device.clone())];
            assert!(
                fs::read(&raw).unwrap() == *wanted,
                "{device:?} of {}",
                point.number
            );
        }
    }
}

/// Whatever happens to devices, each restore point is what they were.
#[test]
fn restore_points_are_what_the_devices_were() {
    for seed in 0..6 {
        let random = &mut Random(seed);
        let block_size = [UNIT, UNIT / 2, 4 * UNIT][random.below(3)];
        let names = ["/dev/a", "/dev/b"];
        let model = Model::new(
            block_size,
            &[("/dev/a", 12 * UNIT), ("/dev/b", 5 * UNIT + 512)],
        );
        if seed % 2 == 0 {
            for name in names {
                model.give_serial(name, name);
            }
        }
        let directories = ["A", "B"].map(|name| model.directory.path().join(name));
        let mut expected = [Expected::new(), Expected::new()];
        let mut then = model.machine();
        for _ in 0..60 {
            let name = names[random.below(2)];
            let size = model.content(name).len();
            match random.below(17) {
                0 => model.detach(Path::new(name)).unwrap(),
                1 => {
                    // The machine was restarted, and the names have moved.
                    let mut disks = model.disks.borrow_mut();
                    for disk in disks.values_mut() {
                        disk.tracker = None;
                    }
                    let mut contents: Vec<_> = std::mem::take(&mut *disks).into_values().collect();
                    contents.reverse();
                    disks.extend(names.iter().map(PathBuf::from).zip(contents));
                    model.swap_identities(names);
                }
                2 => {
                    let size = (random.below(14) + 1) * UNIT + random.below(128) * 512;
                    model.with(Path::new(name), |disk| disk.content.resize(size, 3));
                }
                3 => {
                    // Somebody else takes a snapshot.
                    if model.with(Path::new(name), |disk| disk.tracker.is_some()) {
                        model.freeze(Path::new(name));
                    }
                }
                4 => {
                    let directory = &directories[random.below(2)];
                    if !directory.exists() {
                        continue;
                    }
                    let mut store = Store::open_to_change(directory, false).unwrap();
                    let keep = random.below(4) + 1;
                    let report = keep_newest(&mut store, keep, &mut Watcher::default()).unwrap();
                    assert!(!report.kept.is_empty());
                }
                5 => then = model.machine(),
                6 => model.put_back(&then),
                7 => model.tell_of_copy(),
                8 => model.swap(name, random.bytes(size)),
                9..=12 => {
                    let offset = random.below(size / 512) * 512;
                    let length = (random.below(3 * UNIT / 512) + 1) * 512;
                    let bytes = match random.below(3) {
                        0 => vec![0; length],
                        1 => vec![random.below(256) as u8; length],
                        _ => random.bytes(length),
                    };
                    model.write(name, offset, &bytes);
                }
                _ => {
                    let devices: &[&str] = match random.below(3) {
                        0 => &names[..1],
                        1 => &names[1..],
                        _ => &names,
                    };
                    let modes = [
                        Mode::Incremental,
                        Mode::Incremental,
                        Mode::Differential,
                        Mode::Full,
                    ];
                    let which = random.below(2);
                    let request = Request {
                        to: directories[which].clone(),
                        ..request(&model, devices, modes[random.below(4)])
                    };
                    let report = run(&model, &request, &mut Watcher::default()).unwrap();
                    assert!(report.errors.is_empty());
                    note(&mut expected[which], &model, &report);
                    check(&directories[which], &expected[which]);
                }
            }
        }
        for (directory, expected) in directories.iter().zip(&expected) {
            if directory.exists() {
                check(directory, expected);
                check_with_qemu(directory, expected);
            }
        }
    }
}

/// A device with some content, and a backup of it with restore points 1 to 3.
fn three_points() -> (Model, Expected) {
    let model = Model::new(UNIT, &[("/dev/a", 6 * UNIT + 512), ("/dev/b", UNIT)]);
    let mut expected = Expected::new();
    for round in 1..=3 {
        model.write("/dev/a", UNIT, &vec![round; UNIT]);
        model.write(
            "/dev/a",
            (1 + usize::from(round)) * UNIT,
            &vec![10 + round; UNIT],
        );
        let report = back_up(&model, &["/dev/a"], Mode::Incremental);
        assert_eq!(report.point, u64::from(round));
        note(&mut expected, &model, &report);
    }
    (model, expected)
}

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
fn whoever_stops_a_backup_leaves_the_others_as_they_were() {
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

fn all_files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        found.push(entry.path().display().to_string());
        if entry.file_type().unwrap().is_dir() {
            found.extend(all_files(&entry.path()));
        }
    }
    found
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
fn whoever_stops_pruning_leaves_all_as_it_was() {
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

/// Which restore points are said to be damaged.
fn damaged(directory: &Path) -> Vec<u64> {
    let store = Store::open(directory).unwrap();
    let report = verify::verify(&store, None, &mut Watcher::default()).unwrap();
    assert_eq!(report.errors.is_empty(), report.damaged.is_empty());
    report.damaged.iter().map(|device| device.point).collect()
}

#[test]
fn every_changed_byte_is_noticed() {
    let (model, expected) = three_points();
    let directory = model.backup_directory();
    assert!(damaged(&directory).is_empty());
    let mut hidden = 0;
    for (number, file) in [(1, "000001/a"), (2, "000002/a"), (3, "000003/a")]
        .iter()
        .flat_map(|(number, name)| ["qcow2", "sums"].map(|end| (*number, format!("{name}.{end}"))))
    {
        let path = directory.join(&file);
        let good = fs::read(&path).unwrap();
        // A step that hits all kinds of places within a cluster.
        let step = if file.ends_with("sums") { 7 } else { 11_003 };
        for at in (0..good.len()).step_by(step) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(&path, &bad).unwrap();
            let said = damaged(&directory);
            let store = Store::open(&directory).unwrap();
            assert!(said.iter().all(|point| *point >= number), "{file} {at}");
            for point in 1..=3 {
                match restored(&store, point, "/dev/a") {
                    Ok(content) if content == expected[&(point, "/dev/a".to_owned())] => {}
                    Ok(_) => panic!("{file} {at}: {point} is restored wrongly"),
                    Err(_) => assert!(said.contains(&point), "{file} {at}"),
                }
            }
            assert!(said.contains(&number), "{file} {at}");
            hidden += usize::from(said.len() < 4 - number as usize);
        }
        for damage in [&good[..good.len() - 1], &good[..90], &[]] {
            fs::write(&path, damage).unwrap();
            assert!(damaged(&directory).contains(&number), "{file}");
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(
            damaged(&directory),
            (number..=3).collect::<Vec<_>>(),
            "{file}"
        );
        fs::write(&path, &good).unwrap();
    }
    // What later restore points have anew is no trouble to them.
    assert!(hidden > 0);
    assert!(damaged(&directory).is_empty());
}

#[test]
fn damage_is_not_merged() {
    let (model, _) = three_points();
    let path = model.backup_directory().join("000001/a.qcow2");
    let mut bytes = fs::read(&path).unwrap();
    let data = bytes.iter().position(|byte| *byte == 11).unwrap();
    assert_eq!(bytes[data..][..UNIT], [11; UNIT]);
    bytes[data + 5] = 12;
    fs::write(&path, bytes).unwrap();
    let mut store = Store::open_to_change(&model.backup_directory(), false).unwrap();
    let error = keep_newest(&mut store, 1, &mut Watcher::default()).unwrap_err();
    assert_eq!(error.exit().code(), 4);
    drop(store);
    assert_eq!(points(&model.backup_directory()), [1, 2, 3]);
    assert!(all_files(&model.backup_directory())
        .iter()
        .all(|name| !name.contains("partial")));
}

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

/// Two restore points share a full image, so that only what lies between goes
/// into the one above it.
#[test]
fn zeroes_still_hide_what_a_base_has_after_a_merge() {
    let model = Model::new(UNIT, &[("/dev/a", 8 * UNIT)]);
    let mut expected = Expected::new();
    model.write("/dev/a", 0, &vec![1; 8 * UNIT]);
    for (mode, offset, byte) in [
        (Mode::Incremental, 0, 2),
        (Mode::Incremental, UNIT, 0),
        (Mode::Incremental, 2 * UNIT, 3),
        (Mode::Differential, 3 * UNIT, 0),
    ] {
        model.write("/dev/a", offset, &vec![byte; UNIT]);
        let report = back_up(&model, &["/dev/a"], mode);
        note(&mut expected, &model, &report);
    }
    let mut store = Store::open_to_change(&model.backup_directory(), false).unwrap();
    let report = keep_newest(&mut store, 2, &mut Watcher::default()).unwrap();
    assert_eq!(
        (report.kept, report.merged),
        (vec![3, 4], vec!["000003/a".to_owned()])
    );
    assert_eq!(store.manifest().chain("000003/a").len(), 2);
    drop(store);
    check(&model.backup_directory(), &expected);
    check_with_qemu(&model.backup_directory(), &expected);
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
fn what_cannot_be_read_is_told_and_the_rest_restored() {
    let (model, expected) = three_points();
    let path = model.backup_directory().join("000001/a.qcow2");
    let mut bytes = fs::read(&path).unwrap();
    let table_at = |bytes: &[u8], at: usize| {
        let entry = u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
        (entry & 0x00ff_ffff_ffff_fe00) as usize
    };
    // The entry of the second cluster in the one L2 table: past the end of the file.
    let l2 = table_at(&bytes, table_at(&bytes, 40));
    bytes[l2 + 8..l2 + 16].copy_from_slice(&(1u64 << 63 | 1 << 40).to_be_bytes());
    fs::write(&path, bytes).unwrap();

    let store = Store::open(&model.backup_directory()).unwrap();
    let target = model.directory.path().join("target");
    let mut watcher = Watcher::default();
    let none = Allow::default();
    let report = restore(&store, "/dev/a", "000001/a", &target, none, &mut watcher).unwrap();
    let damaged = Extent {
        offset: CLUSTER,
        length: CLUSTER,
    };
    assert_eq!(report.damaged, [damaged]);
    let [note] = &watcher.notes[..] else {
        panic!("{:?}", watcher.notes);
    };
    assert!(
        note.contains("a.qcow2") && note.contains("zeroes"),
        "{note}"
    );
    let mut wanted = expected[&(1, "/dev/a".to_owned())].clone();
    wanted[UNIT..2 * UNIT].fill(0);
    assert!(fs::read(&target).unwrap() == wanted);

    // Now none of its tables, either.
    fs::remove_file(&target).unwrap();
    let mut watcher = Watcher {
        at_call: Some(Box::new(|| {
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_len(CLUSTER).unwrap();
        })),
        ..Watcher::default()
    };
    let none = Allow::default();
    let report = restore(&store, "/dev/a", "000001/a", &target, none, &mut watcher).unwrap();
    assert_eq!(report.damaged.len(), 1);
    assert_eq!(watcher.notes.len(), 1);
    assert!(fs::read(&target).unwrap() == vec![0; wanted.len()]);
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
