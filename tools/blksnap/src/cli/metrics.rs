// SPDX-License-Identifier: GPL-2.0-only

//! What a backup has, as metrics in the text format of Prometheus, which node_exporter reads from a
//! directory of its own.
//!
//! The format: <https://prometheus.io/docs/instrumenting/exposition_formats/>

use std::collections::BTreeMap;
use std::path::Path;

use blksnap::backup::changes;
use blksnap::backup::manifest::Image;
use blksnap::backup::manifest::Manifest;
use blksnap::identity::Machine;

/// The restore points of one device of a machine.
struct Series<'a> {
    count: u64,
    /// Numbers and times of the oldest and the newest one
    oldest: (u64, u64),
    newest: (u64, u64),
    newest_image: &'a Image,
    file_bytes: u64,
}

type Value = fn(&Series<'_>) -> u64;

/// Name, what it is, and its value.
const METRICS: [(&str, &str, Value); 8] = [
    ("points", "Restore points.", |it| it.count),
    ("last_point", "Number of the newest restore point.", |it| {
        it.newest.0
    }),
    (
        "last_point_time_seconds",
        "When the newest restore point was taken, in seconds since 1970.",
        |it| it.newest.1,
    ),
    (
        "oldest_point_time_seconds",
        "When the oldest restore point was taken, in seconds since 1970.",
        |it| it.oldest.1,
    ),
    (
        "last_point_size_bytes",
        "Size of the device in the newest restore point.",
        |it| it.newest_image.size,
    ),
    (
        "last_point_data_bytes",
        "Data that the newest restore point has added.",
        |it| it.newest_image.data_bytes,
    ),
    (
        "last_point_unreadable_bytes",
        "What of the device could not be read for the newest restore point.",
        |it| changes::total(&it.newest_image.unreadable),
    ),
    (
        "file_bytes",
        "Size of the files with the images of all restore points.",
        |it| it.file_bytes,
    ),
];

/// All metrics of a backup.
pub fn text(directory: &Path, manifest: &Manifest) -> String {
    let mut all: BTreeMap<(String, String), Series<'_>> = BTreeMap::new();
    for point in &manifest.points {
        let machine = point.machine.as_ref().map_or("unknown", Machine::short);
        for device in &point.devices {
            let Some(image) = manifest.image(&device.image) else {
                continue;
            };
            let this = (point.number, point.time);
            let key = (machine.to_owned(), device.device.clone());
            let series = all.entry(key).or_insert(Series {
                count: 0,
                oldest: this,
                newest: this,
                newest_image: image,
                file_bytes: 0,
            });
            series.count += 1;
            series.file_bytes += image.file_bytes;
            // They are in the order in which they were made.
            series.newest = this;
            series.newest_image = image;
        }
    }
    let directory = value(&directory.to_string_lossy());
    let mut text = String::new();
    for (name, help, of) in METRICS {
        let name = format!("blksnap_{name}");
        text += &format!("# HELP {name} {help}\n# TYPE {name} gauge\n");
        for ((machine, device), series) in &all {
            let (machine, device) = (value(machine), value(device));
            text += &format!(
                "{name}{{directory=\"{directory}\",machine=\"{machine}\",device=\"{device}\"}} {}\n",
                of(series)
            );
        }
    }
    text
}

/// The value of a label, between the quotes.
fn value(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use blksnap::backup::manifest::Point;
    use blksnap::backup::manifest::PointDevice;
    use blksnap::Uuid;

    use super::*;

    fn image(name: &str, data_bytes: u64) -> Image {
        Image {
            name: name.to_owned(),
            base: None,
            size: 1 << 20,
            logical_block_size: None,
            generation_id: Uuid::from_bytes([1; 16]),
            boot_id: None,
            changes_number: 1,
            take_id: None,
            data_bytes,
            file_bytes: data_bytes + 1000,
            metadata: String::new(),
            sums: String::new(),
            unreadable: Vec::new(),
        }
    }

    fn point(number: u64, host: &str, devices: &[(&str, &str)]) -> Point {
        let device = |(device, image): &(&str, &str)| PointDevice {
            device: (*device).to_owned(),
            disk: None,
            image: (*image).to_owned(),
        };
        Point {
            number,
            time: 1_700_000_000 + number,
            machine: Some(Machine {
                host: Some(host.to_owned()),
                ..Machine::default()
            }),
            devices: devices.iter().map(device).collect(),
        }
    }

    #[test]
    fn each_device_has_its_own() {
        let manifest = Manifest {
            next: 4,
            points: vec![
                point(
                    1,
                    "one",
                    &[("/dev/sda", "000001/sda"), ("/dev/a\"b\\", "000001/b")],
                ),
                point(2, "two", &[("/dev/sda", "000002/sda")]),
                point(3, "one", &[("/dev/sda", "000003/sda")]),
            ],
            images: vec![
                image("000001/sda", 5000),
                image("000001/b", 10),
                image("000002/sda", 20),
                image("000003/sda", 30),
            ],
            todo: Default::default(),
            without_part: Default::default(),
        };
        let text = text(Path::new("/backup"), &manifest);
        let has = |name: &str, machine: &str, device: &str, value: u64| {
            let line = format!(
                "\nblksnap_{name}{{directory=\"/backup\",machine=\"{machine}\",device=\"{device}\"}} {value}\n"
            );
            assert!(text.contains(&line), "{line}{text}");
        };
        has("points", "one", "/dev/sda", 2);
        has("points", "one", r#"/dev/a\"b\\"#, 1);
        has("points", "two", "/dev/sda", 1);
        has("last_point", "one", "/dev/sda", 3);
        has("last_point_time_seconds", "one", "/dev/sda", 1_700_000_003);
        has(
            "oldest_point_time_seconds",
            "one",
            "/dev/sda",
            1_700_000_001,
        );
        has("last_point_data_bytes", "one", "/dev/sda", 30);
        has("file_bytes", "one", "/dev/sda", 7030);
        // Three lines and two of its own for each
        assert_eq!(text.lines().count(), METRICS.len() * 5);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, rest) = line.split_once('{').unwrap();
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{line}"
            );
            assert!(
                rest.rsplit_once("} ").unwrap().1.parse::<u64>().is_ok(),
                "{line}"
            );
        }
    }
}
