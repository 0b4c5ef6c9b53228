// SPDX-License-Identifier: GPL-2.0-only

//! The fuzz targets on what is checked in, and on mutations of it, the same ones each time.
//! BLKSNAP_WRITE_CORPUS=1 writes the seeds.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::backup::changes::Extent;
use crate::backup::image::Writer;
use crate::backup::manifest::tests::image as entry;
use crate::backup::manifest::tests::manifest as of_images;
use crate::identity::Disk;
use crate::identity::Machine;

const ROUNDS: usize = 400;

type Target = fn(&[u8]);

fn corpus(target: &str) -> PathBuf {
    let fuzz = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    fuzz.join("corpus").join(target)
}

/// Files of images are mostly zeroes.
fn packed(file: &[u8]) -> Vec<u8> {
    let clusters = file.len().div_ceil(CLUSTER as usize);
    let less = clusters * CLUSTER as usize - file.len();
    let mut packed = vec![clusters as u8];
    packed.extend((less as u16).to_le_bytes());
    for (number, cluster) in file.chunks(CLUSTER as usize).enumerate() {
        let mut words = cluster.chunks(8).enumerate().peekable();
        while let Some((at, word)) = words.next() {
            if word.iter().all(|byte| *byte == 0) {
                continue;
            }
            let mut content = word.to_vec();
            while content.len() < 240 {
                match words.next_if(|(_, word)| word.iter().any(|byte| *byte != 0)) {
                    Some((_, word)) => content.extend(word),
                    None => break,
                }
            }
            packed.push(number as u8);
            packed.extend((at as u16).to_le_bytes());
            packed.push(content.len() as u8);
            packed.extend(content);
        }
    }
    packed
}

fn image_seed(size: u64, base: Option<&str>, write: impl Fn(&mut Writer)) -> Vec<u8> {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("a.qcow2");
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    let mut writer = Writer::new(options.open(&path).unwrap(), &path, size, base);
    write(&mut writer);
    writer.finish().unwrap();
    let file = fs::read(path).unwrap();
    assert!(file.len() <= CLUSTERS * CLUSTER as usize);
    let packed = packed(&file);
    assert!(unpacked(&packed).unwrap() == file);
    packed
}

fn sums_seed(clusters: u8, entries: &[(u64, u8)]) -> Vec<u8> {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("a.sums");
    let mut writer = sums::Writer::new(File::create(&path).unwrap(), &path).unwrap();
    for &(cluster, byte) in entries {
        let sum = [byte; 32];
        writer.push(sums::Entry { cluster, sum }).unwrap();
    }
    writer.finish().unwrap();
    [vec![clusters], fs::read(path).unwrap()].concat()
}

fn manifest_seeds() -> [Manifest; 3] {
    let mut chain = of_images(vec![
        entry("000001/sda", None, 1, 1),
        entry("000002/sda", Some("000001/sda"), 1, 2),
        entry("000004/sda", Some("000002/sda"), 1, 254),
    ]);
    let two = of_images(vec![
        entry("000001/a", None, 1, 1),
        entry("000002/a-2", None, 2, 1),
    ]);
    let partial = ("000004.partial".to_owned(), "000004".to_owned());
    let merged = (
        "000002/sda.sums.partial".to_owned(),
        "000002/sda.sums".to_owned(),
    );
    chain.todo.rename = vec![partial, merged];
    chain.images[1].unreadable = vec![Extent {
        offset: 512,
        length: 1024,
    }];
    chain.points[2].machine = Some(Machine {
        host: Some("db1".to_owned()),
        ..Machine::default()
    });
    chain.points[2].devices[0].disk = Some(Disk {
        serial: Some("A1".to_owned()),
        ..Disk::default()
    });
    chain.todo.remove = vec!["000003/sda.qcow2".to_owned()];
    [Manifest::default(), chain, two]
}

fn seeds() -> Vec<(&'static str, Target, Vec<Vec<u8>>)> {
    let manifests = manifest_seeds();
    let part = manifests[1].part(2).to_json().into_bytes();
    let mut manifests = manifests.map(|it| it.to_json().into_bytes()).to_vec();
    manifests.push(part);
    let sums_of = [
        sums_seed(0, &[]),
        sums_seed(9, &[(0, 1), (1, 0), (8, 2)]),
        sums_seed(255, &[(3, 3), (254, 0xff)]),
    ];
    let table = 8192 * CLUSTER;
    let images = [
        image_seed(0, None, |_| ()),
        image_seed(5 * CLUSTER + 512, Some("../000001/sda.qcow2"), |image| {
            let mut cluster = vec![0; CLUSTER as usize];
            cluster[100] = 7;
            image.write(CLUSTER, &cluster).unwrap();
            image.zero(2 * CLUSTER, CLUSTER).unwrap();
            image.write(5 * CLUSTER, &cluster[..512]).unwrap();
        }),
        // Several tables.
        image_seed(3 * table, None, |image| {
            image.write(0, &[0; CLUSTER as usize]).unwrap();
            image
                .write(3 * table - CLUSTER, &[0; CLUSTER as usize])
                .unwrap();
        }),
    ];
    vec![
        ("manifest", manifest, manifests),
        ("sums", sums, sums_of.into()),
        ("image", image, images.into()),
    ]
}

#[test]
fn the_corpus_has_the_seeds() {
    for (name, _, seeds) in seeds() {
        for (number, seed) in (1..).zip(seeds) {
            let path = corpus(name).join(format!("seed-{number}"));
            if std::env::var_os("BLKSNAP_WRITE_CORPUS").is_some() {
                fs::create_dir_all(corpus(name)).unwrap();
                fs::write(&path, &seed).unwrap();
            }
            assert!(fs::read(&path).unwrap() == seed, "{}", path.display());
            assert!(seed.len() < 4096);
        }
    }
}

#[test]
fn seeds_are_accepted() {
    for manifest in manifest_seeds() {
        Manifest::from_json(&manifest.to_json()).unwrap();
        Part::from_json(&manifest.part(2).to_json()).unwrap();
    }
    for (name, _, seeds) in seeds() {
        for seed in seeds.iter().filter(|_| name == "image") {
            let file = unpacked(seed).unwrap();
            let size = u64::from_be_bytes(file[24..32].try_into().unwrap());
            let base = file[15] != 0;
            let base = base.then_some("../000001/sda.qcow2");
            let length = file.len() as u64;
            let image = image::Reader::new(super::file(&file), Path::new("a"), size, base, length);
            image.unwrap().metadata_sum().unwrap();
        }
    }
}

/// A generator of numbers that are different enough.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end.max(1)
    }
}

/// What a careless medium or a careful attacker makes of it.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    const NUMBERS: [&str; 6] = [
        "0",
        "-1",
        "255",
        "18446744073709551615",
        "1e400",
        "4294967296",
    ];
    let at = random.below(bytes.len());
    match random.below(7) {
        _ if bytes.is_empty() => bytes.push(0),
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.below(256) as u8,
        2 => bytes.truncate(at),
        3 => drop(bytes.remove(at)),
        4 => {
            // As large as numbers get.
            let end = (at + random.below(9)).min(bytes.len());
            bytes[at..end].fill(0xff);
        }
        5 => {
            let end = (at + random.below(64)).min(bytes.len());
            let piece = bytes[at..end].to_vec();
            let to = random.below(bytes.len());
            bytes.splice(to..to, piece);
        }
        _ => {
            // A number in text becomes another one.
            let is_digit = |it: &&u8| it.is_ascii_digit();
            let skip = bytes[at..].iter().take_while(|it| !is_digit(it)).count();
            let start = at + skip;
            let digits = bytes[start..].iter().take_while(is_digit).count();
            let number = NUMBERS[random.below(NUMBERS.len())];
            bytes.splice(start..start + digits, number.bytes());
        }
    }
}

#[test]
fn nothing_panics_on_mutations_of_the_corpus() {
    for (name, target, _) in seeds() {
        let mut files: Vec<_> = fs::read_dir(corpus(name))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        assert!(files.len() >= 3);
        for (number, path) in (1..).zip(files) {
            let seed = fs::read(&path).unwrap();
            target(&seed);
            let mut random = Random(number);
            for _ in 0..ROUNDS {
                let mut bytes = seed.clone();
                for _ in 0..=random.below(3) {
                    mutate(&mut bytes, &mut random);
                }
                target(&bytes);
            }
        }
    }
}
