// SPDX-License-Identifier: GPL-2.0-only

//! Files of a backup that changed or cannot be read.

use super::*;

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
