// SPDX-License-Identifier: GPL-2.0-only

//! Which device of which restore point goes to which target.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;

use blksnap::backup::manifest::Manifest;
use blksnap::backup::manifest::Point;
use blksnap::backup::manifest::PointDevice;
use blksnap::backup::name;
use blksnap::error::Operation;
use blksnap::Error;
use blksnap::Result;

/// A device with its target.
#[derive(Debug)]
pub struct Assigned<'a> {
    pub point: &'a Point,
    pub device: &'a PointDevice,
    pub target: PathBuf,
}

/// Every device with where it came from, as far as that can be known by its name.
pub fn in_place(point: &Point, moved_name: bool) -> Result<Vec<Assigned<'_>>> {
    let mut places = Vec::new();
    for device in &point.devices {
        let target = name::decode(&device.device);
        if !moved_name && !is_lasting(&target, Path::new("/dev")) {
            let reason = "names like this move from disk to disk, and it may be another one now";
            let remedy = format!(
                "say where to instead of --in-place, as \"{}=TARGET\", or say --moved-name if it is \
                 the same disk",
                device.device
            );
            return Err(Error::new(Operation::Restore, reason)
                .on(&target)
                .remedied_by(remedy));
        }
        places.push(Assigned {
            point,
            device,
            target,
        });
    }
    Ok(places)
}

/// Whether a name is that of one disk forever, as those in /dev/disk/by-id: not
/// one that the kernel gives in the order in which it finds disks, as are all in `dev`
/// itself but links, nor one that depends on the directory.
fn is_lasting(path: &Path, dev: &Path) -> bool {
    let is_plain = path.is_absolute() && !path.components().any(|it| it == Component::ParentDir);
    let Ok(name) = path.strip_prefix(dev) else {
        return is_plain;
    };
    let is_link = || fs::symlink_metadata(path).is_ok_and(|it| it.is_symlink());
    let is_number = name.starts_with("block") || name.starts_with("disk/by-diskseq");
    is_plain && !is_number && (name.components().count() > 1 || is_link())
}

/// Whether what a user says is this device, which was made absolute when it was backed up.
fn is_name(said: &OsStr, device: &str) -> bool {
    let absolute = std::path::absolute(said);
    said == device || absolute.is_ok_and(|path| path == name::decode(device))
}

/// What a user says for a target: the name of a device, if there is one, and the target.
///
/// * What begins with `./` or `../` is a target as a whole.
/// * Else, what has a `=` is DEV=TARGET. If there are several, DEV is the longest that
///   is a device of the backup.
fn split<'a>(manifest: &Manifest, said: &'a OsStr) -> Result<(Option<&'a OsStr>, &'a OsStr)> {
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
        let mut devices = manifest.points.iter().flat_map(|point| &point.devices);
        devices.any(|it| is_name(name, &it.device))
    };
    match splits.find(|(name, _)| known(name)) {
        Some((name, target)) => Ok((Some(name), target)),
        None => Err(Error::new(
            Operation::Arguments,
            format!(
                "{} begins with the name of no device in the backup; there is {}",
                Path::new(said).display(),
                names(manifest.points.iter())
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
fn newest<'a>(manifest: &'a Manifest, name: &OsStr) -> Option<(&'a Point, &'a PointDevice)> {
    manifest.points.iter().rev().find_map(|point| {
        let device = point.devices.iter().find(|it| is_name(name, &it.device))?;
        Some((point, device))
    })
}

/// Which device goes where: those of the restore point that is wanted, or else each of
/// the newest that has it.
pub fn assign<'a>(
    manifest: &'a Manifest,
    wanted: Option<&'a Point>,
    targets: &[OsString],
) -> Result<Vec<Assigned<'a>>> {
    let mut assigned: Vec<Assigned<'a>> = Vec::new();
    for said in targets {
        let (name, target) = split(manifest, said)?;
        let (point, device) = match name {
            Some(name) => named(manifest, wanted, name)?,
            None => only(manifest, wanted)?,
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
        });
    }
    Ok(assigned)
}

/// The device of this name.
fn named<'a>(
    manifest: &'a Manifest,
    wanted: Option<&'a Point>,
    name: &OsStr,
) -> Result<(&'a Point, &'a PointDevice)> {
    let (newest, device) = newest(manifest, name).expect("it was found by its name");
    let Some(wanted) = wanted else {
        return Ok((newest, device));
    };
    match wanted.devices.iter().find(|it| is_name(name, &it.device)) {
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
    manifest: &'a Manifest,
    wanted: Option<&'a Point>,
) -> Result<(&'a Point, &'a PointDevice)> {
    let point = wanted.or(manifest.points.last());
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
    let all = manifest.points.iter().flat_map(|point| &point.devices);
    if wanted.is_none() && all.clone().any(|it| it.device != device.device) {
        return Err(several("the backup", names(manifest.points.iter())));
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
            devices: names
                .iter()
                .map(|name| PointDevice {
                    device: (*name).to_owned(),
                    image: format!("{number:06}/x"),
                })
                .collect(),
        }
    }

    fn manifest(points: &[&[&str]]) -> Manifest {
        let points = (1..).zip(points);
        Manifest {
            points: points.map(|(number, names)| point(number, names)).collect(),
            ..Manifest::default()
        }
    }

    /// Number of the restore point, device and target.
    fn assigned(
        points: &[&[&str]],
        wanted: Option<u64>,
        targets: &[&str],
    ) -> Result<Vec<(u64, String, String)>> {
        let targets: Vec<OsString> = targets.iter().map(OsString::from).collect();
        let manifest = manifest(points);
        let wanted = wanted.map(|number| manifest.point(number).unwrap());
        let assigned = assign(&manifest, wanted, &targets)?;
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
        let manifest = manifest(&[&[&device, "/dev/b"]]);
        for said in [&b"/dev/\xffa=x"[..], b"/dev///xffa=x"] {
            let said = OsStr::from_bytes(said).to_owned();
            let found = assign(&manifest, None, &[said]).unwrap();
            assert_eq!(found[0].device.device, device);
        }
        let places = in_place(&manifest.points[0], true).unwrap();
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
            assert!(in_place(&point(1, &[name]), false).is_ok(), "{name}");
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
            let error = in_place(&point, false).unwrap_err();
            assert_eq!(error.exit().code(), 1, "{name}");
            let remedy = error.remedy().unwrap();
            assert!(remedy.contains(&format!("{name}=TARGET")), "{remedy}");
            assert!(remedy.contains("--moved-name"), "{remedy}");
            assert!(in_place(&point, true).is_ok(), "{name}");
        }

        let dev = tempfile::tempdir().unwrap();
        let of_udev = dev.path().join("backup-disk");
        fs::write(dev.path().join("sda"), "").unwrap();
        std::os::unix::fs::symlink("sda", &of_udev).unwrap();
        assert!(is_lasting(&of_udev, dev.path()));
        assert!(!is_lasting(&dev.path().join("sda"), dev.path()));
    }
}
