// SPDX-License-Identifier: GPL-2.0-only

//! What the fuzz targets in the directory "fuzz" run: each reader of a file of a backup on
//! bytes that anybody may have written. Neither panics, nor takes memory or time that
//! the bytes are no reason for; and what is accepted is consistent.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::memfd_create;
use rustix::fs::MemfdFlags;

use super::directory::Directory;
use super::directory::Place;
use super::image;
use super::image::CLUSTER;
use super::manifest::Manifest;
use super::manifest::Part;
use super::member::Member;
use super::sums;
use super::sums::Sums;

/// Clusters that are looked at, from the start of a device and from its end.
const SOME: u64 = 8;

/// A file without a name.
fn file(bytes: &[u8]) -> File {
    let fd = memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("there is memory");
    let file = File::from(fd);
    file.write_all_at(bytes, 0).expect("there is memory");
    file
}

/// Reads a manifest, once as it is and once as if its checksum were right, and a part of one.
pub fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(part) = Part::from_json(text) {
        assert_eq!(Part::from_json(&part.to_json()).as_ref(), Ok(&part));
    }
    for found in [
        Manifest::from_json(text),
        Manifest::from_json_unchecked(text),
    ] {
        let Ok(manifest) = found else {
            continue;
        };
        assert_eq!(
            Manifest::from_json(&manifest.to_json()).as_ref(),
            Ok(&manifest)
        );
        for device in manifest.points.iter().flat_map(|point| &point.devices) {
            let chain = manifest.chain(&device.image);
            assert!(!chain.is_empty());
            assert!(chain[chain.len() - 1].base.is_none());
        }
    }
}

/// Reads a file of digests, of which the first byte says how many clusters there are.
pub fn sums(bytes: &[u8]) {
    let Some((clusters, bytes)) = bytes.split_first() else {
        return;
    };
    let clusters = u64::from(*clusters);
    let digest = blake3::hash(bytes).to_string();
    // Nothing of it is read again, as there is memory for all.
    let directory = Directory::open(Place::new(Path::new("/"), true)).expect("there is one");
    let member = Member::new(&Arc::new(directory), "sums");
    let Ok(mut sums) = Sums::new(file(bytes), &member, &digest, clusters, 64 << 10) else {
        return;
    };
    let mut last = None;
    while let Some(sums::Entry { cluster, .. }) = sums.peek() {
        assert!(last.is_none_or(|last| last < cluster) && cluster < clusters);
        last = Some(cluster);
        if sums.step().is_err() {
            return;
        }
    }
}

/// Upper limit of the clusters of a file.
const CLUSTERS: usize = 12;
/// Bytes of a record without its content.
const RECORD: usize = 4;

/// The file of an image that is not mostly zeroes: the number of its clusters, how many
/// bytes less it has (2 bytes), and records of what is where: the number of the cluster,
/// the number of 8 bytes in it (2 bytes), the length and the content.
fn unpacked(bytes: &[u8]) -> Option<Vec<u8>> {
    let (head, mut rest) = bytes.split_first_chunk::<3>()?;
    let less = usize::from(u16::from_le_bytes([head[1], head[2]]));
    let clusters = usize::from(head[0]).min(CLUSTERS);
    let mut file = vec![0; (clusters * CLUSTER as usize).checked_sub(less)?];
    while let Some((record, after)) = rest.split_first_chunk::<RECORD>() {
        let word = usize::from(u16::from_le_bytes([record[1], record[2]]));
        let at = usize::from(record[0]) * CLUSTER as usize + word * 8;
        let (content, after) = after.split_at(after.len().min(record[3].into()));
        if let Some(place) = file
            .get_mut(at..)
            .and_then(|it| it.get_mut(..content.len()))
        {
            place.copy_from_slice(content);
        }
        rest = after;
    }
    Some(file)
}

/// Reads an image, see [`unpacked`], of the size and with the base that its header has.
pub fn image(packed: &[u8]) {
    let Some(bytes) = unpacked(packed) else {
        return;
    };
    let number = |at: usize, length: usize| -> u64 {
        let bytes = bytes.get(at..at + length).unwrap_or_default();
        bytes
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    let size = number(24, 8).min(image::MAX_SIZE);
    let (start, length) = (number(8, 8) as usize, number(16, 4).min(1023) as usize);
    let base = start
        .checked_add(length)
        .and_then(|end| bytes.get(start..end))
        .and_then(|base| std::str::from_utf8(base).ok())
        .unwrap_or_default();
    let length = bytes.len() as u64;
    let path = Path::new("image");
    let opened = image::Reader::new(file(&bytes), path, size, Some(base), length);
    let Ok(mut image) = opened else {
        return;
    };
    let sum = image.metadata_sum();
    assert!(sum.is_err() || length <= image::max_file_bytes(size));
    let clusters = size.div_ceil(CLUSTER);
    let mut buffer = vec![0; CLUSTER as usize];
    for cluster in (0..clusters.min(SOME)).chain(clusters.saturating_sub(SOME)..clusters) {
        let offset = cluster * CLUSTER;
        let bytes = &mut buffer[..CLUSTER.min(size - offset) as usize];
        let read = image.read(offset, bytes).is_ok();
        let before = bytes.to_vec();
        if image.salvage(offset, bytes).is_ok() && read {
            assert!(before == bytes);
        }
    }
}

#[cfg(test)]
mod tests;
