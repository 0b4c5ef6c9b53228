// SPDX-License-Identifier: GPL-2.0-only

//! Which device of which restore point goes to which target.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::path::PathBuf;

use blksnap::backup::manifest::Point;
use blksnap::backup::manifest::PointDevice;
use blksnap::backup::name;
use blksnap::backup::subject::Subject;
use blksnap::error::Operation;
use blksnap::identity::Disk;
use blksnap::lasting::is_lasting;
use blksnap::Error;
use blksnap::Result;

/// A device with its target.
#[derive(Debug)]
pub struct Assigned<'a> {
    pub point: &'a Point,
    pub device: &'a PointDevice,
    pub target: PathBuf,
    /// The newest restore point in which another disk has the device's name.
    pub other_disk_in: Option<u64>,
}

/// Every device with where it came from, as far as that can be known: by what `disk_at` says
/// of the disk that is there now, or else by its name.
pub fn in_place<'a>(
    point: &'a Point,
    moved_name: bool,
    disk_at: &dyn Fn(&Path) -> Disk,
) -> Result<Vec<Assigned<'a>>> {
    let mut places = Vec::new();
    for device in &point.devices {
        let target = name::decode(&device.device);
        if !moved_name {
            refuse_other_disk(device, &target, disk_at)?;
        }
        places.push(Assigned {
            point,
            device,
            target,
            other_disk_in: None,
        });
    }
    Ok(places)
}

fn refuse_other_disk(
    device: &PointDevice,
    target: &Path,
    disk_at: &dyn Fn(&Path) -> Disk,
) -> Result<()> {
    let before = device.disk.clone().unwrap_or_default();
    let now = disk_at(target);
    let reason = match before.is_same_hardware(&now) {
        Some(true) if before.has_other_content(&now) => {
            "a disk with the same serial number is there, but not with the same partition table \
             or file system, and some makers give all of their disks one number"
                .to_owned()
        }
        Some(true) => return Ok(()),
        Some(false) => format!("another disk is there now: {now}, not {before}"),
        None if is_lasting(target, Path::new("/dev")) => return Ok(()),
        None => "names like this move from disk to disk, and it may be another one now".to_owned(),
    };
    let remedy = format!(
        "say where to instead of --in-place, as \"{}=TARGET\", or say --moved-name if it is \
         where it shall go",
        device.device
    );
    Err(Error::new(Operation::Restore, reason)
        .on(target)
        .remedied_by(remedy))
}

/// Whether what a user says is this device, whose name was made absolute when it was backed
/// up, or another name that its disk had.
fn is_name(said: &OsStr, device: &PointDevice) -> bool {
    let absolute = std::path::absolute(said);
    said == device.device.as_str()
        || absolute.is_ok_and(|path| {
            let by_id = path.strip_prefix("/dev/disk/by-id").ok();
            let mut names = device.disk.iter().flat_map(|disk| &disk.names);
            path == name::decode(&device.device)
                || by_id.is_some_and(|said| names.any(|name| said == Path::new(name)))
        })
}

/// What a user says for a target: the name of a device, if there is one, and the target.
///
/// * What begins with `./` or `../` is a target as a whole.
/// * Else, what has a `=` is DEV=TARGET. If there are several, DEV is the longest that
///   is a device of the backup.
fn split<'a>(points: &[&Point], said: &'a OsStr) -> Result<(Option<&'a OsStr>, &'a OsStr)> {
    let bytes = said.as_bytes();
    if bytes.starts_with(b"./") || bytes.starts_with(b"../") || !bytes.contains(&b'=') {
        return Ok((None, said));
    }
    let mut splits = bytes
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'=')
        .map(|(at, _)| {
            (
                OsStr::from_bytes(&bytes[..at]),
                OsStr::from_bytes(&bytes[at + 1..]),
            )
        })
        .rev();
    let known = |name: &OsStr| {
        let mut devices = points.iter().flat_map(|point| &point.devices);
        devices.any(|it| is_name(name, it))
    };
    match splits.find(|(name, _)| known(name)) {
        Some((name, target)) => Ok((Some(name), target)),
        None => Err(Error::new(
            Operation::Arguments,
            format!(
                "{} begins with the name of no device in the backup; there is {}",
                Path::new(said).display(),
                names(points.iter().copied())
            ),
        )
        .remedied_by(
            "say DEV=TARGET with one of these, or \"./NAME\" for a file with a \"=\" in its name",
        )),
    }
}

/// The names of the devices in restore points.
fn names<'a>(points: impl Iterator<Item = &'a Point>) -> String {
    let mut names: Vec<&str> = points
        .flat_map(|point| &point.devices)
        .map(|device| device.device.as_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

/// The newest restore point that has a device, and the device in it.
fn newest<'a>(points: &[&'a Point], name: &OsStr) -> Option<(&'a Point, &'a PointDevice)> {
    points.iter().copied().rev().find_map(|point| {
        let device = point.devices.iter().find(|it| is_name(name, it))?;
        Some((point, device))
    })
}

/// The newest restore point in which another disk has the name of a device.
fn other_disk_in(points: &[&Point], point: &Point, device: &PointDevice) -> Option<u64> {
    let subject = Subject::of(point, device);
    let is_other = |point: &&&Point| {
        let mut subjects = point.subjects();
        subjects.any(|it| it.device == subject.device && !it.is(subject))
    };
    points.iter().rev().find(is_other).map(|point| point.number)
}

/// Which device goes where: those of the restore point that is wanted, or else each of
/// the newest of `points` that has it.
pub fn assign<'a>(
    points: &[&'a Point],
    wanted: Option<&'a Point>,
    targets: &[OsString],
) -> Result<Vec<Assigned<'a>>> {
    let mut assigned: Vec<Assigned<'a>> = Vec::new();
    for said in targets {
        let (name, target) = split(points, said)?;
        let (point, device) = match name {
            Some(name) => named(points, wanted, name)?,
            None => only(points, wanted)?,
        };
        if target.is_empty() {
            return Err(Error::new(
                Operation::Arguments,
                format!("\"{}\" names no target", Path::new(said).display()),
            )
            .remedied_by("say where to, as DEV=TARGET"));
        }
        assigned.push(Assigned {
            point,
            device,
            target: target.into(),
            other_disk_in: other_disk_in(points, point, device),
        });
    }
    Ok(assigned)
}

/// The device of this name.
fn named<'a>(
    points: &[&'a Point],
    wanted: Option<&'a Point>,
    name: &OsStr,
) -> Result<(&'a Point, &'a PointDevice)> {
    let (newest, device) = newest(points, name).expect("it was found by its name");
    let Some(wanted) = wanted else {
        return Ok((newest, device));
    };
    match wanted.devices.iter().find(|it| is_name(name, it)) {
        Some(device) => Ok((wanted, device)),
        None => Err(Error::new(
            Operation::Arguments,
            format!(
                "restore point {} does not have {}, but {}; the newest that has it is {}",
                wanted.number,
                device.device,
                names([wanted].into_iter()),
                newest.number
            ),
        )
        .remedied_by(format!(
            "say --point {}, or leave out --point for the newest that has it",
            newest.number
        ))),
    }
}

/// The device that need not be named, as there is no other.
fn only<'a>(
    points: &[&'a Point],
    wanted: Option<&'a Point>,
) -> Result<(&'a Point, &'a PointDevice)> {
    let point = wanted.or(points.last().copied());
    let point = point.expect("that there is one was looked at");
    let several = |what: &str, names: String| {
        let reason = format!("{what} has several devices: {names}");
        Error::new(Operation::Arguments, reason)
            .remedied_by("say which one goes where, as DEV=TARGET")
    };
    let [device] = &point.devices[..] else {
        let what = format!("restore point {}", point.number);
        return Err(several(&what, names([point].into_iter())));
    };
    let subject = Subject::of(point, device);
    let mut all = points.iter().flat_map(|point| point.subjects());
    if wanted.is_none() && all.any(|it| !it.is(subject)) {
        return Err(several("the backup", names(points.iter().copied())));
    }
    Ok((point, device))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(number: u64, names: &[&str]) -> Point {
        Point {
            number,
            time: 0,
            machine: None,
            devices: names
                .iter()
                .map(|name| PointDevice {
                    device: (*name).to_owned(),
                    disk: None,
                    image: format!("{number:06}/x"),
                })
                .collect(),
        }
    }

    fn points_with(points: &[&[&str]]) -> Vec<Point> {
        let points = (1..).zip(points);
        points.map(|(number, names)| point(number, names)).collect()
    }

    fn nothing_known(_: &Path) -> Disk {
        Disk::default()
    }

    fn disk(serial: &str) -> Disk {
        Disk {
            serial: Some(serial.to_owned()),
            names: vec![format!("ata-{serial}")],
            ..Disk::default()
        }
    }

    /// Number of the restore point, device and target.
    fn assigned(
        points: &[&[&str]],
        wanted: Option<u64>,
        targets: &[&str],
    ) -> Result<Vec<(u64, String, String)>> {
        let targets: Vec<OsString> = targets.iter().map(OsString::from).collect();
        let points = points_with(points);
        let points: Vec<&Point> = points.iter().collect();
        let wanted = wanted.map(|number| points[number as usize - 1]);
        let assigned = assign(&points, wanted, &targets)?;
        Ok(assigned
            .into_iter()
            .map(|it| {
                let target = it.target.to_str().unwrap().to_owned();
                (it.point.number, it.device.device.clone(), target)
            })
            .collect())
    }

    fn one(number: u64, device: &str, target: &str) -> [(u64, String, String); 1] {
        [(number, device.to_owned(), target.to_owned())]
    }

    #[test]
    fn targets_find_their_devices() {
        let single: &[&[&str]] = &[&["/dev/a"]];
        for (said, target) in [
            ("x", "x"),
            ("/dev/a=x", "x"),
            ("/dev//./a=x", "x"),
            ("/dev/a=x=y", "x=y"),
            ("/dev/a=-", "-"),
            ("./x=y", "./x=y"),
            ("../x=y", "../x=y"),
            ("./-", "./-"),
            ("-", "-"),
        ] {
            let found = assigned(single, None, &[said]).unwrap();
            assert_eq!(found, one(1, "/dev/a", target), "{said}");
        }
        // Names need not be written as they are in the backup.
        let here = std::env::current_dir().unwrap().join("disks/a=b");
        let here = here.to_str().unwrap();
        let both: &[&[&str]] = &[&["/dev/a", here]];
        let found = assigned(both, None, &["disks/a=b=x=y"]).unwrap();
        assert_eq!(found, one(1, here, "x=y"));
        assert_eq!(
            assigned(&[&["a"]], None, &["a=x"]).unwrap(),
            one(1, "a", "x")
        );
    }

    #[test]
    fn the_longest_name_counts() {
        let two: &[&[&str]] = &[&["/dev/a", "/dev/a=b"]];
        for (said, device, target) in [
            ("/dev/a=x", "/dev/a", "x"),
            ("/dev/a=b=x", "/dev/a=b", "x"),
            ("/dev/a=./b=x", "/dev/a", "./b=x"),
        ] {
            let found = assigned(two, None, &[said]).unwrap();
            assert_eq!(found, one(1, device, target), "{said}");
        }
    }

    #[test]
    fn a_name_that_there_is_not_is_no_target() {
        for said in ["sda=out.img", "/dev/b=x", "x=y", "=x", "/srv/x=y"] {
            let error = assigned(&[&["/dev/a"], &["/dev/c"]], None, &[said]).unwrap_err();
            assert_eq!(error.exit().code(), 2, "{said}");
            assert!(error.reason().contains("/dev/a, /dev/c"), "{error}");
            assert!(error.remedy().unwrap().contains("./NAME"), "{said}");
        }
        let error = assigned(&[&["/dev/a"]], None, &["/dev/a="]).unwrap_err();
        assert_eq!(error.exit().code(), 2);
    }

    #[test]
    fn a_device_is_looked_for_in_the_newest_point_that_has_it() {
        let points: &[&[&str]] = &[&["/dev/a", "/dev/b"], &["/dev/b"], &["/dev/a"]];
        let found = assigned(points, None, &["/dev/b=x", "/dev/a=y"]).unwrap();
        assert_eq!(found[0], one(2, "/dev/b", "x")[0]);
        assert_eq!(found[1], one(3, "/dev/a", "y")[0]);
        let found = assigned(points, Some(1), &["/dev/b=x"]).unwrap();
        assert_eq!(found, one(1, "/dev/b", "x"));
        let error = assigned(points, Some(3), &["/dev/b=x"]).unwrap_err();
        assert_eq!(error.exit().code(), 2);
        assert!(
            error.reason().contains("newest that has it is 2"),
            "{error}"
        );
        assert!(error.remedy().unwrap().contains("--point 2"), "{error}");
    }

    #[test]
    fn which_of_several_is_never_guessed() {
        for (points, wanted) in [
            (&[&["/dev/a", "/dev/b"][..]][..], None),
            (&[&["/dev/a", "/dev/b"]], Some(1)),
            (&[&["/dev/a"], &["/dev/b"]], None),
            (&[&["/dev/a", "/dev/b"], &["/dev/b"]], None),
        ] {
            let error = assigned(points, wanted, &["x"]).unwrap_err();
            assert_eq!(error.exit().code(), 2);
            assert!(error.reason().contains("/dev/a, /dev/b"), "{error}");
        }
        let found = assigned(&[&["/dev/a"], &["/dev/b"]], Some(1), &["x"]).unwrap();
        assert_eq!(found, one(1, "/dev/a", "x"));
    }

    #[test]
    fn names_that_are_no_text_are_found() {
        let device = name::encode(Path::new(OsStr::from_bytes(b"/dev/\xffa")));
        let points = points_with(&[&[&device, "/dev/b"]]);
        for said in [&b"/dev/\xffa=x"[..], b"/dev///xffa=x"] {
            let said = OsStr::from_bytes(said).to_owned();
            let found = assign(&[&points[0]], None, &[said]).unwrap();
            assert_eq!(found[0].device.device, device);
        }
        let places = in_place(&points[0], true, &nothing_known).unwrap();
        assert_eq!(places[0].target.as_os_str().as_bytes(), b"/dev/\xffa");
    }

    #[test]
    fn names_that_move_are_not_restored_to() {
        for name in [
            "/dev/disk/by-id/ata-DISK",
            "/dev/mapper/vg-home",
            "/dev/vdata/home",
            "/dev/md/home",
            "/dev/blocks/home",
            "/srv/disk.img",
        ] {
            assert!(
                in_place(&point(1, &[name]), false, &nothing_known).is_ok(),
                "{name}"
            );
        }
        for name in [
            "/dev/sda",
            "/dev//sda1",
            "/dev/./nvme0n1p2",
            "/dev/mapper/../vda",
            "/dev/md127",
            "/dev/dm-3",
            "/dev/loop0",
            "/dev/rbd0p1",
            "/dev/block/8:16",
            "/dev/disk/by-diskseq/3",
            "/dev",
            "sda",
            "disk/by-id/ata-DISK",
        ] {
            let point = point(1, &["/srv/x", name]);
            let error = in_place(&point, false, &nothing_known).unwrap_err();
            assert_eq!(error.exit().code(), 1, "{name}");
            let remedy = error.remedy().unwrap();
            assert!(remedy.contains(&format!("{name}=TARGET")), "{remedy}");
            assert!(remedy.contains("--moved-name"), "{remedy}");
            assert!(in_place(&point, true, &nothing_known).is_ok(), "{name}");
        }
    }

    #[test]
    fn the_disk_that_is_there_counts_before_its_name() {
        let mut point = point(1, &["/dev/sda"]);
        point.devices[0].disk = Some(disk("A"));
        let at = |serial: &str| {
            let there = disk(serial);
            in_place(&point, false, &|_| there.clone()).map(|_| ())
        };
        at("A").unwrap();
        let error = at("B").unwrap_err();
        for part in ["another disk", "serial number A", "serial number B"] {
            assert!(error.reason().contains(part), "{error}");
        }
        assert!(in_place(&point, true, &|_| disk("B")).is_ok());
        // Two disks with one number that changed places
        let with_table = |uuid: &str| Disk {
            table_uuid: Some(uuid.to_owned()),
            ..disk("A")
        };
        point.devices[0].disk = Some(with_table("a"));
        assert!(in_place(&point, false, &|_| with_table("a")).is_ok());
        let error = in_place(&point, false, &|_| with_table("b")).unwrap_err();
        assert!(error.reason().contains("same serial number"), "{error}");
        assert!(in_place(&point, true, &|_| with_table("b")).is_ok());
        point.devices[0].disk = Some(disk("A"));
        assert!(in_place(&point, false, &nothing_known).is_err());
    }

    #[test]
    fn a_disk_is_found_by_each_of_its_names() {
        let mut points = points_with(&[&["/dev/sda"], &["/dev/sdb"], &["/dev/sda"]]);
        for (point, serial) in points.iter_mut().zip(["A", "A", "B"]) {
            point.devices[0].disk = Some(disk(serial));
        }
        let points: Vec<&Point> = points.iter().collect();
        let find = |said: &str| {
            let said = OsString::from(said);
            let found = assign(&points, None, &[said]).unwrap();
            (found[0].point.number, found[0].other_disk_in)
        };
        assert_eq!(find("/dev/disk/by-id/ata-A=x"), (2, None));
        assert_eq!(find("/dev/disk/by-id/ata-B=x"), (3, Some(1)));
        assert_eq!(find("/dev/sda=x"), (3, Some(1)));
        assert_eq!(find("/dev/sdb=x"), (2, None));
        // Another name of the only disk there is makes no second one.
        let found = assign(&points[..2], None, &["x".into()]).unwrap();
        assert_eq!(found[0].point.number, 2);
        assert!(assign(&points, None, &["x".into()]).is_err());
    }
}
