// SPDX-License-Identifier: GPL-2.0-only

use super::*;
use crate::backup::member::tests::member;

fn create(path: &Path, size: u64, base: Option<&str>) -> Writer {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(true);
    Writer::new(options.open(path).unwrap(), path, size, base)
}

fn open(path: &Path, size: u64, base: Option<&str>, file_bytes: u64) -> Result<Reader> {
    Reader::open(&member(path), size, base, file_bytes)
}

const SIZE: u64 = 5 * CLUSTER + 512;

fn write(path: &Path, base: Option<&str>) -> Written {
    let mut image = create(path, SIZE, base);
    image
        .write(CLUSTER, &vec![1; 2 * CLUSTER as usize])
        .unwrap();
    image.write(5 * CLUSTER, &[2; 512]).unwrap();
    image.zero(3 * CLUSTER, CLUSTER).unwrap();
    image.finish().unwrap()
}

#[test]
fn content_is_read_back() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("a.qcow2");
    let written = write(&path, Some("../b.qcow2"));
    let open = |size, base| open(&path, size, base, written.file_bytes);
    let mut image = open(SIZE, Some("../b.qcow2")).unwrap();
    assert_eq!(image.metadata_sum().unwrap(), written.metadata);
    let mut bytes = vec![9; SIZE as usize];
    image.read(0, &mut bytes).unwrap();
    let expected = [(1, 0), (2, 1), (2, 0)]
        .iter()
        .flat_map(|&(count, byte)| vec![byte; count * CLUSTER as usize])
        .chain([2; 512]);
    assert!(bytes.into_iter().eq(expected));

    for (size, base) in [
        (SIZE, None),
        (SIZE, Some("b")),
        (SIZE + 512, Some("../b.qcow2")),
    ] {
        let error = open(size, base).err().unwrap();
        assert_eq!(error.operation(), Operation::CheckBackup);
    }
}

/// Without data of that size.
#[test]
fn a_large_device_has_several_tables() {
    const TIB: u64 = 1 << 40;
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("a.qcow2");
    let size = 70 * TIB + 512;
    let table = L2_ENTRIES * CLUSTER;
    let mut image = create(&path, size, None);
    // Across the end of a table, and far behind it.
    let bytes: Vec<u8> = (0..4 * CLUSTER)
        .map(|at| (at / CLUSTER) as u8 + 1)
        .collect();
    image.write(table - 2 * CLUSTER, &bytes).unwrap();
    image.zero(5 * table - CLUSTER, 2 * CLUSTER).unwrap();
    image.write(70 * TIB, &[7; 512]).unwrap();
    let written = image.finish().unwrap();
    let mut image = open(&path, size, None, written.file_bytes).unwrap();
    let mut found = vec![9; bytes.len() + 2 * CLUSTER as usize];
    image.read(table - 3 * CLUSTER, &mut found).unwrap();
    let (before, rest) = found.split_at(CLUSTER as usize);
    assert!(before.iter().all(|byte| *byte == 0));
    assert!(rest[..bytes.len()] == bytes);
    assert!(rest[bytes.len()..].iter().all(|byte| *byte == 0));
    let mut found = [0; 512];
    image.read(70 * TIB, &mut found).unwrap();
    assert_eq!(found, [7; 512]);
    check_with_qemu(&path);
}

#[test]
fn what_can_be_read_is_salvaged() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("a.qcow2");
    let written = write(&path, None);
    let open = || open(&path, SIZE, None, written.file_bytes).unwrap();
    let cut = |length| {
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(length).unwrap();
    };
    let mut bytes = vec![9; CLUSTER as usize];

    // Only the first piece of the L2 table is left, which has all that there is.
    let mut image = open();
    cut((image.l1[0] & OFFSET) + PIECE as u64);
    image.read(CLUSTER, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 1));
    let (_, table) = image.l2.as_ref().unwrap();
    let (_, lost) = table.as_ref().unwrap().split_at(PIECE / 8);
    assert_eq!(lost, vec![UNREADABLE; L2_ENTRIES as usize - PIECE / 8]);
    let error = image.data(UNREADABLE).unwrap_err();
    assert_eq!(error.operation(), Operation::CheckBackup);

    // The same of the cluster, which is the first after the header.
    cut(CLUSTER + PIECE as u64);
    image.read(CLUSTER, &mut bytes).unwrap_err();
    image.salvage(CLUSTER, &mut bytes).unwrap();
    let (left, lost) = bytes.split_at(PIECE);
    assert!(left.iter().all(|byte| *byte == 1) && lost.iter().all(|byte| *byte == 0));
}

#[test]
fn a_backup_that_is_gone_is_not_damaged() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("a.qcow2");
    let written = write(&path, None);
    let mut image = open(&path, SIZE, None, written.file_bytes).unwrap();
    let confirmed = |image: &Reader, errno| {
        image.confirm_damage(Error::from_errno(Operation::ReadBackup, errno))
    };
    for errno in [Errno::IO, Errno::ILSEQ, Errno::BADMSG, Errno::NODATA] {
        assert!(confirmed(&image, errno).is_ok(), "{errno}");
    }
    for errno in [Errno::STALE, Errno::NOMEM, Errno::NXIO, Errno::TIMEDOUT] {
        let error = confirmed(&image, errno).unwrap_err();
        assert_eq!(error.errno(), Some(errno));
    }
    // All of which fails with EIO, as nothing is mapped there.
    image.file = File::open("/proc/self/mem").unwrap();
    let mut bytes = vec![9; CLUSTER as usize];
    let error = image.salvage(CLUSTER, &mut bytes).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::IO));
    assert!(confirmed(&image, Errno::IO).is_err());
}

fn check_with_qemu(path: &Path) {
    let check = std::process::Command::new("qemu-img")
        .arg("check")
        .arg(path)
        .output();
    if let Ok(output) = check {
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn refcounts_count_themselves() {
    for before in [
        1,
        2,
        1000,
        32_765,
        32_766,
        32_767,
        65_532,
        65_533,
        1 << 28,
        (1 << 28) + 7,
    ] {
        let (table, blocks) = refcount_clusters(before);
        let total = before + table + blocks;
        assert!(blocks * REFCOUNTS >= total);
        assert!((blocks - 1) * REFCOUNTS < total);
        assert_eq!(table, (blocks * 8).div_ceil(CLUSTER));
    }
}

#[test]
fn every_byte_that_is_no_data_counts() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("a.qcow2");
    let written = write(&path, None);
    let good = std::fs::read(&path).unwrap();
    let data: usize = good.iter().filter(|&&byte| byte == 1).count();
    assert!(data >= 2 * CLUSTER as usize);
    for at in (0..good.len()).step_by(997) {
        if good[at] == 1 || good[at] == 2 {
            continue;
        }
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&path, &bad).unwrap();
        let sum =
            open(&path, SIZE, None, written.file_bytes).and_then(|image| image.metadata_sum());
        assert!(sum.is_err() || sum.unwrap() != written.metadata, "{at}");
    }
}

/// Where data lies is known without the tables, also where several of them lie between.
#[test]
fn places_are_known_without_tables() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("image");
    let size = 3 * L2_ENTRIES * CLUSTER;
    let clusters = [
        (0, false),
        (5, true),
        (L2_ENTRIES - 1, false),
        (L2_ENTRIES, true),
        (2 * L2_ENTRIES, false),
        (2 * L2_ENTRIES + 1, false),
        (3 * L2_ENTRIES - 1, false),
    ];
    let mut writer = create(&path, size, None);
    for (cluster, is_zero) in clusters {
        match is_zero {
            true => writer.zero(cluster * CLUSTER, CLUSTER).unwrap(),
            false => writer
                .write(cluster * CLUSTER, &[1; CLUSTER as usize])
                .unwrap(),
        }
    }
    let written = writer.finish().unwrap();
    let file = File::open(&path).unwrap();
    let mut image = Reader::new(file, &path, size, None, written.file_bytes).unwrap();
    let mut places = Places::default();
    for (cluster, is_zero) in clusters {
        let (place, _) = image.run_at(cluster, CLUSTER).unwrap();
        assert_eq!(places.next(cluster, is_zero), place, "{cluster}");
    }
}
