// SPDX-License-Identifier: GPL-2.0-only

//! What a backup of a device can be based on.

use std::fmt;

use serde::Serialize;

use crate::device::Tracking;

use super::manifest::Image;
use super::manifest::Manifest;

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// What changed since the last backup.
    Incremental,
    /// What changed since the last full backup.
    Differential,
    /// Everything.
    Full,
}

/// Why everything has to be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "because", content = "detail")]
pub enum WhyFull {
    Asked,
    /// Nothing of that name was ever backed up here.
    First,
    /// No image is of this generation.
    OtherGeneration,
    /// The device has another size.
    Resized,
    /// The numbers of snapshots do not go on.
    OutOfOrder,
    /// The change map makes no sense.
    Map(String),
    /// The base cannot be used.
    Base(String),
}

impl fmt::Display for WhyFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("that was asked for"),
            Self::First => f.write_str("this is its first backup here"),
            Self::OtherGeneration => f.write_str(
                "its change tracking began after its last backup here: the machine was started \
                 anew, the filter was detached, the device was resized, it is another device, or \
                 254 snapshots were taken",
            ),
            Self::Resized => f.write_str("it has another size than at its last backup"),
            Self::OutOfOrder => f.write_str(
                "the numbers of its snapshots do not go on from those of its last backup",
            ),
            Self::Map(reason) => f.write_str(reason),
            Self::Base(reason) => write!(f, "its last backup cannot be built on: {reason}"),
        }
    }
}

/// The image that a backup of `device` with this tracking can be based on.
///
/// The same generation proves that it is the same device and that all changes
/// since were tracked, whatever it is called.
pub fn base<'a>(
    manifest: &'a Manifest,
    device: &str,
    tracking: &Tracking,
    mode: Mode,
) -> Result<&'a Image, WhyFull> {
    if mode == Mode::Full {
        return Err(WhyFull::Asked);
    }
    let newest = manifest
        .images
        .iter()
        .filter(|image| image.generation_id == tracking.generation_id)
        .max_by_key(|image| image.changes_number);
    let Some(newest) = newest else {
        let mut devices = manifest.points.iter().flat_map(|point| &point.devices);
        return Err(if devices.any(|known| known.device == device) {
            WhyFull::OtherGeneration
        } else {
            WhyFull::First
        });
    };
    let base = match mode {
        Mode::Differential => manifest
            .chain(&newest.name)
            .last()
            .copied()
            .unwrap_or(newest),
        _ => newest,
    };
    if base.size != tracking.device_capacity {
        return Err(WhyFull::Resized);
    }
    let numbers = 1..tracking.changes_number;
    if base.generation_id != tracking.generation_id
        || !numbers.contains(&base.changes_number)
        || !numbers.contains(&newest.changes_number)
    {
        return Err(WhyFull::OutOfOrder);
    }
    Ok(base)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::manifest::tests::image;
    use crate::backup::manifest::tests::manifest;
    use crate::Uuid;

    const FIRST: &str = "000001/sda";
    const SECOND: &str = "000002/sda";

    fn sample() -> Manifest {
        manifest(vec![
            image(FIRST, None, 1, 1),
            image(SECOND, Some(FIRST), 1, 4),
        ])
    }

    fn tracking(generation: u8, number: u8) -> Tracking {
        Tracking {
            device_capacity: 1 << 20,
            block_size: 65536,
            block_count: 16,
            generation_id: Uuid::from_bytes([generation; 16]),
            changes_number: number,
        }
    }

    fn decide(tracking: Tracking, mode: Mode) -> Result<String, WhyFull> {
        base(&sample(), "/dev/sda", &tracking, mode).map(|image| image.name.clone())
    }

    #[test]
    fn the_newest_image_of_the_generation_is_the_base() {
        // Others may have taken snapshots between.
        for number in [5, 6, 254] {
            assert_eq!(
                decide(tracking(1, number), Mode::Incremental).unwrap(),
                SECOND
            );
            assert_eq!(
                decide(tracking(1, number), Mode::Differential).unwrap(),
                FIRST
            );
            assert_eq!(decide(tracking(1, number), Mode::Full), Err(WhyFull::Asked));
        }
    }

    #[test]
    fn names_prove_nothing() {
        let sample = sample();
        let same = base(&sample, "/dev/sdq", &tracking(1, 5), Mode::Incremental);
        assert_eq!(same.unwrap().name, SECOND);
        let other = base(&sample, "/dev/sdq", &tracking(2, 5), Mode::Incremental);
        assert_eq!(other.unwrap_err(), WhyFull::First);
        let other = base(&sample, "/dev/sda", &tracking(2, 5), Mode::Incremental);
        assert_eq!(other.unwrap_err(), WhyFull::OtherGeneration);
    }

    #[test]
    fn what_does_not_go_on_is_no_base() {
        for number in [0, 1, 3, 4] {
            for mode in [Mode::Incremental, Mode::Differential] {
                assert_eq!(decide(tracking(1, number), mode), Err(WhyFull::OutOfOrder));
            }
        }
        let resized = Tracking {
            device_capacity: 1 << 21,
            ..tracking(1, 5)
        };
        assert_eq!(decide(resized, Mode::Incremental), Err(WhyFull::Resized));
    }

    #[test]
    fn a_number_of_zero_is_no_base() {
        let manifest = manifest(vec![image(FIRST, None, 1, 0)]);
        let decided = base(&manifest, "/dev/sda", &tracking(1, 5), Mode::Incremental);
        assert_eq!(decided.unwrap_err(), WhyFull::OutOfOrder);
    }

    #[test]
    fn a_full_backup_asked_for_is_the_next_base() {
        let manifest = manifest(vec![
            image(FIRST, None, 1, 1),
            image(SECOND, Some(FIRST), 1, 4),
            image("000003/sda", None, 1, 5),
        ]);
        for mode in [Mode::Incremental, Mode::Differential] {
            let decided = base(&manifest, "/dev/sda", &tracking(1, 6), mode);
            assert_eq!(decided.unwrap().name, "000003/sda");
        }
    }
}
