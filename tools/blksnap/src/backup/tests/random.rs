// SPDX-License-Identifier: GPL-2.0-only

//! Random histories of devices.

use super::*;

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
