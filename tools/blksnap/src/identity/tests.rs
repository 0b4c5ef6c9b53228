// SPDX-License-Identifier: GPL-2.0-only

use super::*;

use std::os::unix::fs::symlink;

use tempfile::TempDir;

fn write(root: &Path, name: &str, content: impl AsRef<[u8]>) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn machine(id: &str, hardware: &str, host: &str) -> Machine {
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    Machine {
        id: some(id),
        hardware: some(hardware),
        host: some(host),
    }
}

#[test]
fn a_machine_is_known_by_its_ids() {
    let is = |a: &Machine, b: &Machine| {
        assert_eq!(a.is(b), b.is(a));
        a.is(b)
    };
    let one = machine("1", "x", "db1");
    assert!(is(&one, &machine("1", "x", "renamed")));
    assert!(is(&one, &machine("1", "", "")));
    assert!(!is(&one, &machine("2", "x", "db1")));
    // A copy of a virtual machine
    assert!(!is(&one, &machine("1", "y", "db1")));
    // Without any id
    assert!(is(&one, &machine("", "", "db1")));
    assert!(!is(&one, &machine("", "", "db2")));
    assert_eq!(one.to_string(), "db1 (machine id 1)");
    for name in ["1", "x", "db1"] {
        assert!(one.is_called(name));
    }
    assert!(!one.is_called("db2"));
}

#[test]
fn what_nobody_set_up_is_no_id() {
    let temp = TempDir::new().unwrap();
    let root = temp.path();
    assert_eq!(Machine::of(root), Machine::default());
    write(root, "proc/sys/kernel/hostname", "db1\n");
    for (id, uuid) in [
        ("uninitialized\n", "00000000-0000-0000-0000-000000000000\n"),
        ("", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF\n"),
        ("00000000000000000000000000000000\n", "\n"),
    ] {
        write(root, "etc/machine-id", id);
        write(root, "sys/class/dmi/id/product_uuid", uuid);
        assert_eq!(Machine::of(root), machine("", "", "db1"));
    }
    let id = "0123456789abcdef0123456789abcdef";
    write(root, "etc/machine-id", format!("{id}\n"));
    let uuid = "4C4C4544-0042-3010-8050-B7C04F4A4E31\n";
    write(root, "sys/class/dmi/id/product_uuid", uuid);
    let found = Machine::of(root);
    assert_eq!(found, machine(id, &uuid.trim().to_ascii_lowercase(), "db1"));
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn a_disk_is_known_by_its_numbers() {
    let serial = |serial: &str| Disk {
        model: some("WD40"),
        serial: some(serial),
        ..Disk::default()
    };
    let volume = |uuid: &str| Disk {
        dm_uuid: some(uuid),
        ..Disk::default()
    };
    let is = |a: &Disk, b: &Disk| {
        assert_eq!(a.is(b), b.is(a));
        a.is(b)
    };
    assert_eq!(is(&serial("1"), &serial("1")), Some(true));
    assert_eq!(is(&serial("1"), &serial("2")), Some(false));
    assert_eq!(is(&serial("1"), &volume("1")), None);
    assert_eq!(is(&Disk::default(), &Disk::default()), None);

    let with_table = |disk: Disk, table: &str| Disk {
        table_uuid: some(table),
        ..disk
    };
    // Of makers that have one number for all their disks
    let (a, b) = (with_table(serial("1"), "a"), with_table(serial("1"), "b"));
    assert_eq!(is(&a, &b), Some(false));
    assert_eq!(a.is_same_hardware(&b), Some(true));
    assert_eq!(is(&a, &serial("1")), Some(true));
    // A volume stays itself whatever it holds.
    let (a, b) = (with_table(volume("1"), "a"), with_table(volume("1"), "b"));
    assert_eq!(is(&a, &b), Some(true));
    // Disks without any number
    let table = |uuid| with_table(Disk::default(), uuid);
    assert_eq!(is(&table("a"), &table("a")), Some(true));
    assert_eq!(is(&table("a"), &table("b")), Some(false));

    let part = |number, uuid: Option<&str>| Disk {
        partition: Some(number),
        partition_uuid: uuid.map(str::to_owned),
        ..serial("1")
    };
    assert_eq!(is(&part(1, None), &part(1, None)), Some(true));
    assert_eq!(is(&part(1, None), &part(2, None)), Some(false));
    assert_eq!(is(&part(1, None), &serial("1")), Some(false));
    assert_eq!(is(&part(1, Some("a")), &part(1, Some("b"))), Some(false));
}

#[test]
fn what_a_disk_holds_counts_last() {
    let holding = |partition, uuid: &str| Disk {
        contents: vec![Content {
            partition,
            kind: "ext4".to_owned(),
            uuid: uuid.to_owned(),
        }],
        ..Disk::default()
    };
    let whole = |uuid| holding(None, uuid);
    assert_eq!(whole("a").is(&whole("a")), Some(true));
    assert_eq!(whole("a").is(&whole("b")), Some(false));
    assert_eq!(holding(Some(1), "a").is(&whole("a")), None);
    let serial = |disk: Disk| Disk {
        serial: some("1"),
        ..disk
    };
    // It was formatted.
    assert_eq!(serial(whole("a")).is(&serial(whole("b"))), Some(true));
    assert_eq!(whole("a").is_same_hardware(&whole("a")), None);
}

#[test]
fn disks_are_described() {
    let disk = Disk {
        partition: Some(2),
        model: some("WD40"),
        serial: some("1"),
        wwid: some("naa.1"),
        ..Disk::default()
    };
    assert_eq!(disk.to_string(), "partition 2 of WD40 serial number 1");
    assert_eq!(Disk::default().to_string(), "a disk without a number");
}

#[test]
fn sysfs_is_read() {
    let temp = TempDir::new().unwrap();
    let root = temp.path();
    let disk = "sys/devices/pci/block/sdq";
    write(root, &format!("{disk}/device/model"), "WD40 \n");
    write(root, &format!("{disk}/device/wwid"), "naa.5\n");
    let page = b"\0\x80\0\x08  AB12\0\0rest";
    write(root, &format!("{disk}/device/vpd_pg80"), page);
    write(root, &format!("{disk}/sdq3/partition"), "3\n");
    let uevent = "DEVNAME=sdq3\nPARTUUID=ab-03\n";
    write(root, &format!("{disk}/sdq3/uevent"), uevent);
    write(
        root,
        "sys/devices/virtual/block/loop9/loop/backing_file",
        "/a b\n",
    );
    fs::create_dir_all(root.join("sys/dev/block")).unwrap();
    for (number, name) in [
        ("1:1", "pci/block/sdq"),
        ("1:2", "pci/block/sdq/sdq3"),
        ("1:3", "virtual/block/loop9"),
    ] {
        let target = root.join("sys/devices").join(name);
        symlink(target, root.join("sys/dev/block").join(number)).unwrap();
    }
    let sources = Sources::at(root, node_number);
    let found = |minor| {
        let number = DeviceNumber { major: 1, minor };
        sources.disk(number, number)
    };
    let whole = Disk {
        model: some("WD40"),
        serial: some("AB12"),
        wwid: some("naa.5"),
        ..Disk::default()
    };
    assert_eq!(found(1), whole);
    let part = Disk {
        partition: Some(3),
        partition_uuid: some("ab-03"),
        ..whole
    };
    assert_eq!(found(2), part);
    assert_eq!(found(3).backing_file, some("/a b"));
    assert_eq!(found(4), Disk::default());
}

#[test]
fn a_page_that_is_cut_off_has_no_number() {
    let temp = TempDir::new().unwrap();
    let path = temp.path().join("page");
    for bytes in [&b""[..], b"\0\x80", b"\0\x80\0\x08AB", b"\0\x80\0\x02  "] {
        fs::write(&path, bytes).unwrap();
        assert_eq!(page_80(&path), None, "{bytes:?}");
    }
}

#[test]
fn a_machine_of_which_nothing_is_known_is_no_other() {
    let unknown = Machine::default();
    let with_id = Machine {
        id: Some("1".repeat(32)),
        ..Machine::default()
    };
    let with_hardware = Machine {
        hardware: Some("2".to_owned()),
        ..Machine::default()
    };
    assert!(!unknown.is(&with_id) && !with_id.is(&unknown));
    assert!(!with_hardware.is(&with_id));
    assert!(unknown.is(&unknown) && with_id.is(&with_id));
}
