// SPDX-License-Identifier: GPL-2.0-only

//! What a backup of a device can be based on.
//!
//! One rule decides: a base is an image whose take the change tracking still
//! knows, by its random id; of several the newest, in the order of the manifest.
//! Neither names nor generations nor numbers prove anything: a virtual machine
//! that was put back to an earlier state, disk and memory, counts on from there.
//!
//! Where there is no base, all of the device is read. It is compared with the newest
//! image of the same disk, and what differs is stored. That is right whatever the
//! image is of, since the digests of all content decide.

use std::fmt;

use serde::Serialize;

use crate::device::Takes;
use crate::device::Tracking;
use crate::Uuid;

use super::manifest::Image;
use super::manifest::Manifest;
use super::manifest::MAX_CHAIN;
use super::subject::Subject;

/// What the kernel says of a device whose snapshot is held.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    pub tracking: &'a Tracking,
    /// None if the driver does not tell.
    pub takes: Option<&'a Takes>,
    /// The kernel's boot id, if it is known.
    pub boot_id: Option<Uuid>,
}

/// What a backup is based on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base<'a> {
    pub image: &'a Image,
    /// The number that the tracking has for its take.
    pub since: u8,
}

/// What is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// What changed since the last backup.
    Incremental,
    /// What changed since the last full backup.
    Differential,
    /// What differs from the last backup, whatever the change tracking says.
    Compare,
    /// Everything.
    Full,
}

/// Why everything has to be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "because", content = "detail")]
pub enum WhyAll {
    /// A full backup or a comparison was asked for.
    Asked,
    /// Nothing of that name was ever backed up here.
    First,
    /// No image is of this generation, and the newest does not say of which boot it is.
    OtherGeneration,
    /// No image is of this generation, since all are from before the machine was restarted.
    Restarted,
    /// No image is of this generation, though the newest is of this boot.
    TrackedAgain,
    /// The device has another size.
    Resized,
    /// So many images are based on each other.
    Long(usize),
    /// Images are of this generation, but none of a take that it knows.
    PutBack,
    /// The images of this generation were made without ids of takes.
    NoIdInBackup,
    /// The driver does not tell ids of takes.
    NoIdFromDriver,
    /// The change map makes no sense.
    Map(String),
    /// The base cannot be used.
    Base(String),
    /// Something else than in the base is at this byte, and the change tracking has not seen that.
    Missed(u64),
}

impl fmt::Display for WhyAll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("that was asked for"),
            Self::First => f.write_str("this is its first backup here"),
            Self::OtherGeneration => f.write_str(
                "its change tracking began after its last backup here: the machine was restarted \
                 or resumed as a copy, the filter was detached, the device was resized or \
                 got another content, it is another device, or 254 snapshots were taken",
            ),
            Self::Restarted => {
                f.write_str("the machine was restarted since its last backup here")
            }
            Self::TrackedAgain => f.write_str(
                "its change tracking began again after its last backup here, without a restart: the \
                 filter was detached or the driver loaded again, the machine was resumed as a \
                 copy, the device got another content or is another one, or 254 snapshots were \
                 taken",
            ),
            Self::Resized => f.write_str("it has another size than at its last backup"),
            Self::Long(images) => write!(
                f,
                "its last backup here is the last of {images} that are based on each other, and \
                 there are no more than {MAX_CHAIN}; \"blksnap prune\" makes fewer of them"
            ),
            Self::PutBack => f.write_str(
                "its change tracking does not know the snapshots of its backups here: the machine \
                 was put back to an earlier state",
            ),
            Self::NoIdInBackup => f.write_str(
                "its last backup here was made before backups noted the ids of snapshots",
            ),
            Self::NoIdFromDriver => f.write_str(
                "the kernel's driver does not tell the ids of snapshots, so a change map proves \
                 nothing; a newer driver does",
            ),
            Self::Map(reason) => f.write_str(reason),
            Self::Base(reason) => write!(f, "its last backup cannot be built on: {reason}"),
            Self::Missed(offset) => {
                write!(f, "bytes from {offset} on changed past the change tracking")
            }
        }
    }
}

/// What a backup of `device` can be based on, or why on nothing.
pub fn base<'a>(
    manifest: &'a Manifest,
    device: Subject<'_>,
    known: Known<'_>,
    mode: Mode,
) -> Result<Base<'a>, WhyAll> {
    if matches!(mode, Mode::Full | Mode::Compare) {
        return Err(WhyAll::Asked);
    }
    let tracking = known.tracking;
    if let Some(takes) = known.takes.filter(|takes| !takes.fit(tracking)) {
        return Err(WhyAll::Map(format!(
            "the ids of {} snapshots do not fit to its change tracking, whose newest is {}",
            takes.ids.len(),
            tracking.changes_number
        )));
    }
    let known_as = |image: &'a Image| {
        let since = known.takes?.number_of(image.take_id?)?;
        // The newest take is the one that is to be backed up.
        (since < tracking.changes_number).then_some(Base { image, since })
    };
    let Some(newest) = manifest.images.iter().rev().find_map(known_as) else {
        return Err(why_nothing(manifest, device, known));
    };
    let base = match mode {
        Mode::Differential => {
            let full = manifest.chain(&newest.image.name).last().copied();
            full.and_then(known_as).ok_or(WhyAll::OtherGeneration)?
        }
        _ => newest,
    };
    if base.image.size != tracking.device_capacity {
        return Err(WhyAll::Resized);
    }
    let length = manifest.chain(&base.image.name).len();
    match length < MAX_CHAIN {
        true => Ok(base),
        false => Err(WhyAll::Long(length)),
    }
}

/// What a device of `size` bytes is compared with, as `why` all of it is read; or why it is
/// to be backed up in full instead.
pub fn compared<'a>(
    manifest: &'a Manifest,
    device: Subject<'_>,
    size: u64,
    why: &WhyAll,
    mode: Mode,
) -> Result<&'a Image, WhyAll> {
    let is_useless = matches!(why, WhyAll::First | WhyAll::Base(_) | WhyAll::Long(_));
    let newest = manifest.newest_of(device);
    let Some(newest) = newest.filter(|_| mode != Mode::Full && !is_useless) else {
        return Err(why.clone());
    };
    let chain = manifest.chain(&newest.name);
    let below = match mode {
        Mode::Differential => &chain[chain.len() - 1..],
        _ => &chain[..],
    };
    let image = below[0];
    // What is past the end of a base must not show again, see Manifest.
    let fits = size <= image.size || below.iter().all(|it| it.size <= image.size);
    match (fits, below.len() < MAX_CHAIN) {
        (false, _) => Err(why.clone()),
        (true, false) => Err(WhyAll::Long(below.len())),
        (true, true) => Ok(image),
    }
}

/// Why the tracking knows the take of no image.
fn why_nothing(manifest: &Manifest, device: Subject<'_>, known: Known<'_>) -> WhyAll {
    let generation = known.tracking.generation_id;
    let of_generation = |image: &&Image| image.generation_id == generation;
    let newest = manifest.images.iter().rev().find(of_generation);
    let newest_of_device = manifest.newest_of(device);
    let is_known = || newest_of_device.is_some();
    match newest {
        _ if known.takes.is_none() => {
            if newest.is_some() || is_known() {
                WhyAll::NoIdFromDriver
            } else {
                WhyAll::First
            }
        }
        Some(image) if image.take_id.is_none() => WhyAll::NoIdInBackup,
        Some(_) => WhyAll::PutBack,
        None => newest_of_device.map_or(WhyAll::First, |image| why_other(image, known)),
    }
}

/// Why the tracking is of another generation than the newest image.
fn why_other(newest: &Image, known: Known<'_>) -> WhyAll {
    let is_same_boot = newest.boot_id.zip(known.boot_id).map(|(a, b)| a == b);
    match is_same_boot {
        Some(false) => WhyAll::Restarted,
        // Whatever else happened, the tracking begins again with that.
        _ if newest.size != known.tracking.device_capacity => WhyAll::Resized,
        Some(true) => WhyAll::TrackedAgain,
        None => WhyAll::OtherGeneration,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::manifest::tests::image;
    use crate::backup::manifest::tests::manifest;
    use crate::backup::manifest::tests::take;
    use crate::backup::manifest::Point;
    use crate::backup::manifest::PointDevice;

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

    /// The takes of a tracking that was never put back.
    fn takes(tracking: &Tracking) -> Takes {
        let generation = tracking.generation_id;
        Takes {
            generation_id: generation,
            ids: (1..=tracking.changes_number)
                .map(|number| Some(take(generation.bytes()[0], number)))
                .collect(),
        }
    }

    /// A device of which only the name is known.
    fn named(device: &str) -> Subject<'_> {
        Subject {
            machine: None,
            device,
            disk: None,
        }
    }

    fn decide_in<'a>(
        manifest: &'a Manifest,
        device: &str,
        tracking: &Tracking,
        takes: &Takes,
        mode: Mode,
    ) -> Result<(&'a str, u8), WhyAll> {
        let known = Known {
            tracking,
            takes: Some(takes),
            boot_id: None,
        };
        base(manifest, named(device), known, mode)
            .map(|base| (base.image.name.as_str(), base.since))
    }

    fn decide(tracking: Tracking, mode: Mode) -> Result<(String, u8), WhyAll> {
        decide_in(&sample(), "/dev/sda", &tracking, &takes(&tracking), mode)
            .map(|(name, since)| (name.to_owned(), since))
    }

    #[test]
    fn the_newest_image_whose_take_is_known_is_the_base() {
        // Others may have taken snapshots between.
        for number in [5, 6, 254] {
            let decided = decide(tracking(1, number), Mode::Incremental);
            assert_eq!(decided, Ok((SECOND.to_owned(), 4)));
            let decided = decide(tracking(1, number), Mode::Differential);
            assert_eq!(decided, Ok((FIRST.to_owned(), 1)));
            for mode in [Mode::Full, Mode::Compare] {
                assert_eq!(decide(tracking(1, number), mode), Err(WhyAll::Asked));
            }
        }
    }

    #[test]
    fn why_the_tracking_began_anew_is_told_as_far_as_it_is_known() {
        let (this, last) = (Some(take(8, 1)), Some(take(8, 2)));
        let why = |noted, boot_id, device_capacity| {
            let mut sample = sample();
            sample.images[1].boot_id = noted;
            let tracking = Tracking {
                device_capacity,
                ..tracking(2, 1)
            };
            let takes = takes(&tracking);
            let known = Known {
                tracking: &tracking,
                takes: Some(&takes),
                boot_id,
            };
            base(&sample, named("/dev/sda"), known, Mode::Incremental).unwrap_err()
        };
        let (same, other) = (1 << 20, 1 << 21);
        for size in [same, other] {
            assert_eq!(why(last, this, size), WhyAll::Restarted);
        }
        assert_eq!(why(this, this, other), WhyAll::Resized);
        assert_eq!(why(None, this, other), WhyAll::Resized);
        assert_eq!(why(this, this, same), WhyAll::TrackedAgain);
        for (noted, now) in [(None, this), (this, None), (None, None)] {
            assert_eq!(why(noted, now, same), WhyAll::OtherGeneration);
        }
        assert!(!WhyAll::TrackedAgain.to_string().contains("was restarted"));
    }

    #[test]
    fn names_prove_nothing() {
        let sample = sample();
        let decide = |tracking: Tracking| {
            let takes = takes(&tracking);
            decide_in(&sample, "/dev/sdq", &tracking, &takes, Mode::Incremental)
        };
        assert_eq!(decide(tracking(1, 5)), Ok((SECOND, 4)));
        assert_eq!(decide(tracking(2, 5)), Err(WhyAll::First));
        let tracking = tracking(2, 5);
        let takes = takes(&tracking);
        let decided = decide_in(&sample, "/dev/sda", &tracking, &takes, Mode::Incremental);
        assert_eq!(decided, Err(WhyAll::OtherGeneration));
    }

    #[test]
    fn numbers_prove_nothing() {
        let tracking = tracking(1, 9);
        let sample = sample();
        let mut takes = takes(&tracking);
        let decide = |takes: &Takes, mode| decide_in(&sample, "/dev/sda", &tracking, takes, mode);
        // Put back to between the first take and the second: number 4 is another one.
        takes.ids[3] = Some(take(7, 4));
        assert_eq!(decide(&takes, Mode::Incremental), Ok((FIRST, 1)));
        assert_eq!(decide(&takes, Mode::Differential), Ok((FIRST, 1)));
        // A known take under another number than the image has
        takes.ids.swap(0, 5);
        assert_eq!(decide(&takes, Mode::Incremental), Ok((FIRST, 6)));
        // To before the first
        takes.ids[5] = None;
        for mode in [Mode::Incremental, Mode::Differential] {
            assert_eq!(decide(&takes, mode), Err(WhyAll::PutBack));
        }
    }

    #[test]
    fn the_order_is_that_of_the_manifest() {
        // The abandoned line had got to number 200.
        let mut manifest = manifest(vec![
            image(FIRST, None, 1, 1),
            image(SECOND, Some(FIRST), 1, 200),
            image("000003/sda", Some(FIRST), 1, 2),
        ]);
        let now = tracking(1, 201);
        let takes = takes(&now);
        let decided = decide_in(&manifest, "/dev/sda", &now, &takes, Mode::Incremental);
        assert_eq!(decided, Ok(("000003/sda", 2)));
        manifest.images[2].take_id = Some(take(9, 9));
        let decided = decide_in(&manifest, "/dev/sda", &now, &takes, Mode::Incremental);
        assert_eq!(decided, Ok((SECOND, 200)));
    }

    #[test]
    fn takes_of_another_moment_are_no_base() {
        for number in [0, 1, 3, 4] {
            for mode in [Mode::Incremental, Mode::Differential] {
                let decided = decide(tracking(1, number), mode);
                match number {
                    // What is backed up is the newest take, or was none.
                    0 | 1 => assert_eq!(decided, Err(WhyAll::PutBack)),
                    _ => assert_eq!(decided, Ok((FIRST.to_owned(), 1))),
                }
            }
        }
        let (now, then) = (tracking(1, 5), tracking(1, 4));
        let decided = decide_in(
            &sample(),
            "/dev/sda",
            &now,
            &takes(&then),
            Mode::Incremental,
        )
        .map(|_| ());
        assert!(matches!(decided, Err(WhyAll::Map(_))), "{decided:?}");
        let resized = Tracking {
            device_capacity: 1 << 21,
            ..tracking(1, 5)
        };
        assert_eq!(decide(resized, Mode::Incremental), Err(WhyAll::Resized));
    }

    #[test]
    fn images_without_an_id_are_no_base() {
        let mut manifest = sample();
        let tracking = tracking(1, 5);
        let takes = takes(&tracking);
        manifest.images[1].take_id = None;
        let decide = |manifest: &Manifest| {
            decide_in(manifest, "/dev/sda", &tracking, &takes, Mode::Incremental)
                .map(|(name, _)| name.to_owned())
        };
        assert_eq!(decide(&manifest), Ok(FIRST.to_owned()));
        manifest.images[0].take_id = None;
        assert_eq!(decide(&manifest), Err(WhyAll::NoIdInBackup));
    }

    #[test]
    fn a_driver_without_ids_gives_no_base() {
        let sample = sample();
        let decide = |device, tracking: &Tracking| {
            let known = Known {
                tracking,
                takes: None,
                boot_id: None,
            };
            base(&sample, named(device), known, Mode::Incremental)
        };
        let (same, other) = (tracking(1, 5), tracking(2, 5));
        assert_eq!(decide("/dev/sda", &same), Err(WhyAll::NoIdFromDriver));
        assert_eq!(decide("/dev/sdq", &same), Err(WhyAll::NoIdFromDriver));
        assert_eq!(decide("/dev/sda", &other), Err(WhyAll::NoIdFromDriver));
        assert_eq!(decide("/dev/sdq", &other), Err(WhyAll::First));
    }

    #[test]
    fn what_is_compared_with_is_the_newest_of_the_name() {
        let mut sample = sample();
        for (number, image) in [(1, FIRST), (2, SECOND)] {
            sample.points.push(Point {
                number,
                time: 0,
                machine: None,
                devices: vec![PointDevice {
                    device: "/dev/sda".to_owned(),
                    disk: None,
                    image: image.to_owned(),
                }],
            });
        }
        let size = 1 << 20;
        let compared = |device, size, why: &WhyAll, mode| {
            super::compared(&sample, named(device), size, why, mode)
                .map(|image| image.name.as_str())
                .ok()
        };
        let why = WhyAll::OtherGeneration;
        let all = |mode| compared("/dev/sda", size, &why, mode);
        assert_eq!(all(Mode::Incremental), Some(SECOND));
        assert_eq!(all(Mode::Compare), Some(SECOND));
        assert_eq!(all(Mode::Differential), Some(FIRST));
        assert_eq!(all(Mode::Full), None);
        for size in [size - 512, size + 512] {
            let why = WhyAll::Resized;
            let compared = compared("/dev/sda", size, &why, Mode::Compare);
            assert_eq!(compared, Some(SECOND));
        }
        assert_eq!(compared("/dev/sdq", size, &why, Mode::Compare), None);
        for why in [WhyAll::First, WhyAll::Long(3), WhyAll::Base(String::new())] {
            assert_eq!(compared("/dev/sda", size, &why, Mode::Incremental), None);
        }
    }

    #[test]
    fn nothing_past_the_end_of_a_base_shows_again() {
        let mut sample = sample();
        sample.images[1].size = 1 << 19;
        let why = WhyAll::Resized;
        let compared = |size, mode| {
            super::compared(&sample, named("/dev/sda"), size, &why, mode)
                .map(|image| image.name.as_str())
                .ok()
        };
        for size in [1 << 18, 1 << 19] {
            assert_eq!(compared(size, Mode::Incremental), Some(SECOND));
        }
        assert_eq!(compared((1 << 19) + 512, Mode::Incremental), None);
        assert_eq!(compared(1 << 20, Mode::Differential), Some(FIRST));
    }

    #[test]
    fn a_chain_has_an_end() {
        let mut images = vec![image("000001/sda", None, 1, 1)];
        for number in 2..=MAX_CHAIN {
            let base = format!("{:06}/sda", number - 1);
            let name = format!("{number:06}/sda");
            let number = u8::try_from(number).unwrap();
            images.push(image(&name, Some(&base), 1, number));
        }
        let full = manifest(images);
        let mut shorter = full.clone();
        shorter.images.pop();
        shorter.points.pop();
        let now = tracking(1, 254);
        let decide = |manifest: &Manifest| {
            decide_in(manifest, "/dev/sda", &now, &takes(&now), Mode::Incremental)
                .map(|(_, since)| since)
        };
        assert_eq!(decide(&shorter), Ok(199));
        let why = decide(&full).unwrap_err();
        assert_eq!(why, WhyAll::Long(200));
        assert!(why.to_string().contains("blksnap prune"), "{why}");
        let compared = |manifest, mode| {
            let why = &WhyAll::OtherGeneration;
            compared(manifest, named("/dev/sda"), 1 << 20, why, mode)
                .map(|image| Manifest::number_of(&image.name))
        };
        assert_eq!(compared(&shorter, Mode::Compare), Ok(199));
        for mode in [Mode::Compare, Mode::Incremental] {
            assert_eq!(compared(&full, mode), Err(WhyAll::Long(200)));
        }
        // Which is based on the first one only.
        assert_eq!(compared(&full, Mode::Differential), Ok(1));
    }

    #[test]
    fn a_full_backup_asked_for_is_the_next_base() {
        let manifest = manifest(vec![
            image(FIRST, None, 1, 1),
            image(SECOND, Some(FIRST), 1, 4),
            image("000003/sda", None, 1, 5),
        ]);
        let tracking = tracking(1, 6);
        let takes = takes(&tracking);
        for mode in [Mode::Incremental, Mode::Differential] {
            let decided = decide_in(&manifest, "/dev/sda", &tracking, &takes, mode);
            assert_eq!(decided, Ok(("000003/sda", 5)));
        }
    }
}
