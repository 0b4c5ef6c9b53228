// SPDX-License-Identifier: GPL-2.0-only

//! The content of an image together with what it is based on.

use std::path::Path;

use crate::error::Result;

use super::image;
use super::image::CLUSTER;
use super::manifest::Image;
use super::store::Store;
use super::sums::Sum;
use super::sums::Sums;
use super::sums::ZERO;

/// Several images, of which the newest that holds a cluster has its content.
/// Clusters that none holds are zeroes, or those of a base left out.
///
/// It is walked through from the start to the end once.
pub struct View {
    layers: Vec<Layer>,
    size: u64,
}

struct Layer {
    name: String,
    image: image::Reader,
    sums: Sums,
}

/// Neighbouring clusters that one image holds, all of them zeroes or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    layer: usize,
    /// The first cluster.
    pub start: u64,
    pub sums: Vec<Sum>,
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
        let mut layers = Vec::new();
        for image in images {
            let base = image.base.as_deref().map(relative);
            layers.push(Layer {
                name: image.name.clone(),
                image: image::Reader::open(
                    &store.qcow2(&image.name),
                    image.size,
                    base.as_deref(),
                    image.file_bytes,
                )?,
                sums: Sums::open(&store.sums(&image.name), &image.sums)?,
            });
        }
        let size = images.first().map_or(0, |image| image.size);
        Ok(Self { layers, size })
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
        // Of equals the first, which is the newest image.
        self.layers
            .iter()
            .enumerate()
            .filter_map(|(layer, it)| it.sums.peek().map(|e| (layer, e.cluster, e.sum)))
            .min_by_key(|&(layer, cluster, _)| (cluster, layer))
    }

    fn pass(&mut self, cluster: u64) -> Result<()> {
        for layer in &mut self.layers {
            while layer
                .sums
                .peek()
                .is_some_and(|entry| entry.cluster <= cluster)
            {
                layer.sums.step()?;
            }
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
        self.layers[run.layer].image.read(offset, bytes)?;
        Ok(wrong(run, bytes))
    }

    /// The same with a run of one cluster, as far as it can be read: the rest of it
    /// becomes zeroes. An error if it is more than that which cannot be read.
    pub fn salvage(&mut self, run: &Run, bytes: &mut [u8]) -> Result<Vec<u64>> {
        let (offset, _) = self.range(run);
        self.layers[run.layer].image.salvage(offset, bytes)?;
        Ok(wrong(run, bytes))
    }

    /// The file that holds a run.
    pub fn path_of(&self, run: &Run) -> &Path {
        self.layers[run.layer].image.path()
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
