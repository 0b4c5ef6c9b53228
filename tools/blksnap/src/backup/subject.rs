// SPDX-License-Identifier: GPL-2.0-only

//! What is counted, found and compared as one device through all restore points.

use crate::identity::Disk;
use crate::identity::Machine;

use super::manifest::Point;
use super::manifest::PointDevice;

/// A device of a machine, as far as both are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject<'a> {
    pub machine: Option<&'a Machine>,
    pub device: &'a str,
    pub disk: Option<&'a Disk>,
}

impl<'a> Subject<'a> {
    /// A device of a restore point.
    pub fn of(point: &'a Point, device: &'a PointDevice) -> Self {
        Self {
            machine: point.machine.as_ref(),
            device: &device.device,
            disk: device.disk.as_ref(),
        }
    }

    /// Whether both are one disk of one machine. Names count where nothing better is known.
    ///
    /// Two that have one number and hold different things are two disks, even if one has the name
    /// that the other had: some makers give all of their disks one number. So is one that was
    /// formatted, which is backed up in full then.
    pub fn is(self, other: Subject<'_>) -> bool {
        let is_elsewhere = self
            .machine
            .zip(other.machine)
            .is_some_and(|(a, b)| !a.is(b));
        let disks = self.disk.zip(other.disk);
        let is_same =
            disks.and_then(|(a, b)| a.is(b).map(|is_same| is_same && !a.has_other_content(b)));
        !is_elsewhere && is_same.unwrap_or(self.device == other.device)
    }
}

/// Returns for each device the restore points that have it, by their indices and in their order.
///
/// `points` has the devices of each restore point, the oldest first.
pub fn series<'a>(
    points: impl DoubleEndedIterator<Item = impl Iterator<Item = Subject<'a>>> + ExactSizeIterator,
) -> Vec<Vec<usize>> {
    let mut found: Vec<(Subject<'a>, Vec<usize>)> = Vec::new();
    // The newest restore point has the names that count now.
    for (index, subjects) in points.enumerate().rev() {
        for subject in subjects {
            match found.iter_mut().find(|(it, _)| it.is(subject)) {
                // Two paths to one disk are one device.
                Some((_, points)) if points.last() == Some(&index) => {}
                Some((_, points)) => points.push(index),
                None => found.push((subject, vec![index])),
            }
        }
    }
    found
        .into_iter()
        .map(|(_, points)| points.into_iter().rev().collect())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Content;

    fn disk(serial: &str) -> Disk {
        Disk {
            serial: Some(serial.to_owned()),
            ..Disk::default()
        }
    }

    fn machine(id: &str) -> Machine {
        Machine {
            id: Some(id.to_owned()),
            host: Some("host".to_owned()),
            ..Machine::default()
        }
    }

    #[test]
    fn numbers_count_before_names() {
        let (a, b, unknown) = (disk("a"), disk("b"), Disk::default());
        let is = |device, disk, other_device, other_disk| {
            let subject = |device, disk| Subject {
                machine: None,
                device,
                disk,
            };
            subject(device, disk).is(subject(other_device, other_disk))
        };
        assert!(is("/dev/sda", Some(&a), "/dev/sdb", Some(&a)));
        assert!(!is("/dev/sda", Some(&a), "/dev/sda", Some(&b)));
        for other in [None, Some(&unknown)] {
            assert!(is("/dev/sda", Some(&a), "/dev/sda", other));
            assert!(!is("/dev/sda", Some(&a), "/dev/sdb", other));
        }
    }

    #[test]
    fn a_number_that_two_disks_have_tells_them_not_apart() {
        let holding = |uuid: &str| Disk {
            contents: vec![Content {
                partition: None,
                kind: "ext4".to_owned(),
                uuid: uuid.to_owned(),
            }],
            ..disk("0123456789ABCDEF")
        };
        let (a, b) = (holding("a"), holding("b"));
        let of = |device, disk| Subject {
            machine: None,
            device,
            disk: Some(disk),
        };
        assert!(!of("/dev/sda", &a).is(of("/dev/sdb", &b)));
        assert!(of("/dev/sda", &a).is(of("/dev/sdb", &a)));
        // One after the other in one place, or formatted
        assert!(!of("/dev/sda", &a).is(of("/dev/sda", &b)));
        let unknown = disk("0123456789ABCDEF");
        assert!(of("/dev/sda", &a).is(of("/dev/sda", &unknown)));
        let points = [[of("/dev/sda", &a)], [of("/dev/sdb", &b)]];
        assert_eq!(
            series(points.into_iter().map(<[_; 1]>::into_iter)),
            [[1], [0]]
        );
    }

    #[test]
    fn one_name_in_two_machines_is_two_devices() {
        let (a, b) = (machine("a"), machine("b"));
        let one = disk("1");
        for disk in [None, Some(&one)] {
            let of = |machine| Subject {
                machine,
                device: "/dev/sda",
                disk,
            };
            assert!(of(Some(&a)).is(of(Some(&a))));
            assert!(!of(Some(&a)).is(of(Some(&b))));
            assert!(of(Some(&a)).is(of(None)));
        }
    }

    #[test]
    fn two_paths_to_a_disk_count_once() {
        let one = disk("1");
        let path = |device| Subject {
            machine: None,
            device,
            disk: Some(&one),
        };
        let paths = [path("/dev/sda"), path("/dev/sdb")];
        let points = [&paths[..], &[], &paths[1..], &paths];
        let series = series(points.into_iter().map(|it| it.iter().copied()));
        assert_eq!(series, [[0, 2, 3]]);
    }
}
