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
use super::retention::Policy;
use super::retention::Rules;
use super::target::Allow;
use super::*;

mod basics;
mod damage;
mod history;
mod identities;
mod interrupted;
mod model;
mod moment;
mod random;
mod rebuilding;
mod rescue;
mod restoring;
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
        hooks: Default::default(),
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

/// Rules that keep the newest restore points of each device.
fn newest(keep: usize) -> Policy {
    let rules = Rules {
        last: keep,
        ..Rules::default()
    };
    Policy {
        rules,
        ..Policy::default()
    }
}

/// Removes all restore points but the newest of each device.
fn keep_newest(store: &mut Store, keep: usize, watch: &mut Watcher<'_>) -> Result<prune::Report> {
    let policy = newest(keep);
    prune::prune(store, prune::Which::Old(&policy), None, false, watch)
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
