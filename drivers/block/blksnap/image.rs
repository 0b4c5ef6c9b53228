// SPDX-License-Identifier: GPL-2.0-only

//! The image: a read-only disk with the content that a device had when its snapshot was taken.

use crate::area::Area;
use kernel::{
    block::{
        bio::OwnedBio,
        bio_disk::{
            BioDisk,
            Operations,
            Options, //
        },
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        ArcBorrow, //
    }, //
};

/// The driver of images.
pub(crate) struct ImageOps;

#[vtable]
impl Operations for ImageOps {
    type Data = Arc<Area>;

    fn submit_bio(area: ArcBorrow<'_, Area>, bio: OwnedBio) {
        Area::read_image(area, bio);
    }
}

/// An image.
pub(crate) type Image = BioDisk<ImageOps>;

/// Makes the image of an area, with the size and the block sizes of the origin. May sleep.
pub(crate) fn new(area: &Arc<Area>) -> Result<Image> {
    // Names are not used again, so that nobody takes an image for a later one.
    static NUMBER: Atomic<u64> = Atomic::new(0);

    let number = NUMBER.fetch_add(1, Relaxed);
    let origin = area.origin();
    let options = Options {
        nr_sectors: area.geometry().nr_sectors(),
        logical_block_size: origin.logical_block_size(),
        physical_block_size: origin.physical_block_size(),
        dma_alignment: area.dma_alignment(),
        read_only: true,
        sparse: area.is_selective(),
    };
    Image::new(fmt!("blksnap-image{number}"), &options, area.clone())
}
