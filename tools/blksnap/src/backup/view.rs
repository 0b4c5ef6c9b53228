// SPDX-License-Identifier: GPL-2.0-only

//! The content of an image together with what it is based on.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;

use super::image;
use super::image::CLUSTER;
use super::manifest::Image;
use super::member::Member;
use super::store::Store;
use super::sums::Sum;
use super::sums::Sums;
use super::sums::ZERO;

/// Several images, of which the newest that holds a cluster has its content.
/// Clusters that none holds are zeroes, or those of a base left out.
///
/// It is walked through from the start to the end once. However many images there are, few
/// of their files are open at a time.
pub struct View {
    layers: Vec<Layer>,
    /// The lowest cluster of each layer that was not passed yet; of equal ones the
    /// newest layer comes first.
    next: BinaryHeap<Reverse<(u64, usize)>>,
    /// The layers whose image is open, the one used last at the end.
    open: VecDeque<usize>,
    size: u64,
}

struct Layer {
    name: String,
    file: Member,
    size: u64,
    base: Option<String>,
    file_bytes: u64,
    image: Option<image::Reader>,
    sums: Sums,
    /// Instead of the image if that is damaged.
    rest: Option<Rest>,
}

/// An image's file whose tables cannot be used.
struct Rest {
    file: File,
    places: image::Places,
    /// Where the data of the lowest cluster that was not passed yet is.
    next: Option<u64>,
}

impl Rest {
    /// Reads a cluster as far as it is there; the rest of it becomes zeroes.
    fn read(&self, at: Option<u64>, bytes: &mut [u8], path: &Path) -> Result<()> {
        bytes.fill(0);
        let mut done = 0;
        while let Some(at) = at.filter(|_| done < bytes.len()) {
            match self.file.read_at(&mut bytes[done..], at + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => {
                    let error = Error::from_io(Operation::ReadBackup, &error).on(path);
                    return match image::means_damage(&error) {
                        true => Ok(()),
                        false => Err(error),
                    };
                }
            }
        }
        Ok(())
    }
}

/// How many images are open at a time.
const OPEN: usize = 16;

/// Memory for the entries of all layers, and for those of one.
const ENTRIES: usize = 32 << 20;
pub(super) const ENTRIES_OF_ONE: usize = 64 << 10;

/// Neighbouring clusters that one image holds, all of them zeroes or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    layer: usize,
    /// The first cluster.
    pub start: u64,
    pub sums: Vec<Sum>,
    /// Where its data is in a file without tables; it is one cluster then.
    place: Option<u64>,
}

impl Run {
    pub fn is_zero(&self) -> bool {
        self.sums[0] == ZERO
    }

    /// Each of its clusters as a run.
    pub fn clusters(&self) -> impl Iterator<Item = Self> + '_ {
        (self.start..).zip(&self.sums).map(|(start, sum)| Self {
            layer: self.layer,
            start,
            sums: vec![*sum],
            place: self.place,
        })
    }
}

/// The path of a base relative to its image.
pub fn relative(base: &str) -> String {
    format!("../{base}.qcow2")
}

impl View {
    /// Opens images, the newest first.
    ///
    /// An error of [`CheckBackup`] if one of the files is not what
    /// the manifest says.
    ///
    /// [`CheckBackup`]: crate::error::Operation::CheckBackup
    pub fn open(store: &Store, images: &[&Image]) -> Result<Self> {
        Self::open_with(store, images, false)
    }

    /// The same, whatever is left of their qcow2 files if only they are there: what is lost
    /// reads as zeroes, with the wrong digest.
    pub fn open_to_salvage(store: &Store, images: &[&Image]) -> Result<Self> {
        Self::open_with(store, images, true)
    }

    fn open_with(store: &Store, images: &[&Image], salvage: bool) -> Result<Self> {
        let size = images.first().map_or(0, |image| image.size);
        let memory = (ENTRIES / images.len().max(1)).min(ENTRIES_OF_ONE);
        let mut view = Self {
            layers: Vec::new(),
            next: BinaryHeap::new(),
            open: VecDeque::new(),
            size,
        };
        for (index, image) in images.iter().enumerate() {
            let sums = store.sums_file(&image.name);
            let sums = Sums::open(&sums, &image.sums, image.size.div_ceil(CLUSTER), memory)?;
            view.layers.push(Layer {
                name: image.name.clone(),
                file: store.qcow2_file(&image.name),
                size: image.size,
                base: image.base.as_deref().map(relative),
                file_bytes: image.file_bytes,
                image: None,
                sums,
                rest: None,
            });
            match view.image(index) {
                Err(error) if salvage && image::means_damage(&error) => {
                    let layer = &mut view.layers[index];
                    layer.rest = Some(Rest {
                        file: layer.file.open()?,
                        places: image::Places::default(),
                        next: None,
                    });
                }
                result => drop(result?),
            }
            view.expect(index);
        }
        Ok(view)
    }

    /// Notes the lowest cluster of a layer that was not passed yet. A base may be larger.
    fn expect(&mut self, layer: usize) {
        let clusters = self.size.div_ceil(CLUSTER);
        let it = &mut self.layers[layer];
        let next = it.sums.peek();
        if let (Some(rest), Some(entry)) = (&mut it.rest, next) {
            rest.next = rest.places.next(entry.cluster, entry.sum == ZERO);
        }
        let next = next.filter(|entry| entry.cluster < clusters);
        self.next
            .extend(next.map(|entry| Reverse((entry.cluster, layer))));
    }

    /// The open image of a layer.
    fn image(&mut self, layer: usize) -> Result<&mut image::Reader> {
        self.open.retain(|other| *other != layer);
        if self.open.len() >= OPEN {
            if let Some(oldest) = self.open.pop_front() {
                self.layers[oldest].image = None;
            }
        }
        let it = &mut self.layers[layer];
        let image = match it.image.take() {
            Some(image) => image,
            None => image::Reader::open(&it.file, it.size, it.base.as_deref(), it.file_bytes)?,
        };
        self.open.push_back(layer);
        Ok(it.image.insert(image))
    }

    /// The files whose tables cannot be used.
    pub fn without_tables(&self) -> impl Iterator<Item = &Path> {
        let layers = self.layers.iter().filter(|it| it.rest.is_some());
        layers.map(|it| it.file.path())
    }

    /// Bytes of the device.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The image that holds a run.
    pub fn image_of(&self, run: &Run) -> &str {
        &self.layers[run.layer].name
    }

    /// The lowest cluster not passed yet that an image holds.
    fn peek(&self) -> Option<(usize, u64, Sum)> {
        let Reverse((cluster, layer)) = *self.next.peek()?;
        let entry = self.layers[layer].sums.peek()?;
        Some((layer, cluster, entry.sum))
    }

    fn pass(&mut self, cluster: u64) -> Result<()> {
        while let Some(&Reverse((at, layer))) = self.next.peek() {
            if at > cluster {
                break;
            }
            self.layers[layer].sums.step()?;
            self.next.pop();
            self.expect(layer);
        }
        Ok(())
    }

    /// The digest of a cluster, which is not below one that was asked for
    /// before. `None` if no image holds it.
    pub fn sum(&mut self, cluster: u64) -> Result<Option<Sum>> {
        if let Some(before) = cluster.checked_sub(1) {
            self.pass(before)?;
        }
        let found = self.peek().filter(|&(_, at, _)| at == cluster);
        Ok(found.map(|(_, _, sum)| sum))
    }

    /// The next clusters, at most `max` of them.
    pub fn next(&mut self, max: usize) -> Result<Option<Run>> {
        let Some((layer, start, sum)) = self.peek() else {
            return Ok(None);
        };
        let mut run = Run {
            layer,
            start,
            sums: vec![sum],
            place: self.layers[layer].rest.as_ref().and_then(|it| it.next),
        };
        let max = match &self.layers[layer].rest {
            Some(_) => 1,
            None => max,
        };
        self.pass(start)?;
        while run.sums.len() < max {
            match self.peek() {
                Some((layer, cluster, sum))
                    if layer == run.layer
                        && cluster == start + run.sums.len() as u64
                        && (sum == ZERO) == run.is_zero() =>
                {
                    run.sums.push(sum);
                    self.pass(cluster)?;
                }
                _ => break,
            }
        }
        Ok(Some(run))
    }

    /// The bytes of the device that a run is.
    pub fn range(&self, run: &Run) -> (u64, u64) {
        let offset = run.start * CLUSTER;
        let length = run.sums.len() as u64 * CLUSTER;
        (offset, length.min(self.size.saturating_sub(offset)))
    }

    /// Reads a run, which is not of zeroes, into `bytes`, which are as many;
    /// returns the clusters whose content is not what was written.
    pub fn read(&mut self, run: &Run, bytes: &mut [u8]) -> Result<Vec<u64>> {
        let (offset, _) = self.range(run);
        match &self.layers[run.layer].rest {
            Some(rest) => rest.read(run.place, bytes, self.path_of(run))?,
            None => self.image(run.layer)?.read(offset, bytes)?,
        }
        Ok(wrong(run, bytes))
    }

    /// The same with a run of one cluster, as far as it can be read: the rest of it
    /// becomes zeroes. An error if it is more than that which cannot be read.
    pub fn salvage(&mut self, run: &Run, bytes: &mut [u8]) -> Result<Vec<u64>> {
        let (offset, _) = self.range(run);
        match &self.layers[run.layer].rest {
            Some(rest) => rest.read(run.place, bytes, self.path_of(run))?,
            None => self.image(run.layer)?.salvage(offset, bytes)?,
        }
        Ok(wrong(run, bytes))
    }

    /// The file that holds a run.
    pub fn path_of(&self, run: &Run) -> &Path {
        self.layers[run.layer].file.path()
    }
}

/// The clusters of a run whose content is not what was written.
fn wrong(run: &Run, bytes: &[u8]) -> Vec<u64> {
    let mut damaged = Vec::new();
    let clusters = bytes.chunks(CLUSTER as usize);
    for (index, (cluster, sum)) in clusters.zip(&run.sums).enumerate() {
        if blake3::hash(cluster).as_bytes() != sum {
            damaged.push(run.start + index as u64);
        }
    }
    damaged
}
