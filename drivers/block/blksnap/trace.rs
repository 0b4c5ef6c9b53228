// SPDX-License-Identifier: GPL-2.0-only

//! Tracepoints. What each tells is described where C declares them, in
//! `include/trace/events/blksnap.h`.

use kernel::{
    block::bdev::{
        DevT,
        SectorRange, //
    },
    declare_trace,
    prelude::*,
    time::Delta,
    uuid::Uuid, //
};

declare_trace! {
    fn blksnap_claim(dev: u32, sector: u64, nr_sectors: u64);
    fn blksnap_saved(dev: u32, sector: u64, nr_sectors: u64);
    fn blksnap_released(dev: u32, sector: u64, nr_sectors: u64);
    fn blksnap_stored(dev: u32, offset: u64, bytes: u64, duration_ns: u64);
    fn blksnap_lost(dev: u32, sector: u64, nr_sectors: u64, error: i32);
    fn blksnap_broken(dev: u32, error: i32);
    fn blksnap_take(id0: u64, id1: u64, nr_devices: u32, frozen_ns: u64, error: i32);
    fn blksnap_destroy(id0: u64, id1: u64, timed_out: u8);
}

#[inline]
pub(crate) fn claim(dev: DevT, sectors: SectorRange) {
    blksnap_claim(dev.as_raw(), sectors.start, sectors.len);
}

#[inline]
pub(crate) fn saved(dev: DevT, sectors: SectorRange) {
    blksnap_saved(dev.as_raw(), sectors.start, sectors.len);
}

#[inline]
pub(crate) fn released(dev: DevT, sectors: SectorRange) {
    blksnap_released(dev.as_raw(), sectors.start, sectors.len);
}

#[inline]
pub(crate) fn stored(dev: DevT, offset: u64, bytes: usize, duration_ns: u64) {
    blksnap_stored(dev.as_raw(), offset, bytes as u64, duration_ns);
}

pub(crate) fn lost(dev: DevT, sectors: SectorRange, error: Error) {
    blksnap_lost(dev.as_raw(), sectors.start, sectors.len, error.to_errno());
}

pub(crate) fn broken(dev: DevT, error: Error) {
    blksnap_broken(dev.as_raw(), error.to_errno());
}

pub(crate) fn take(id: Uuid, nr_devices: usize, result: Result<Delta>) {
    let [id0, id1] = halves(id);
    let (frozen, error) = match result {
        Ok(frozen) => (frozen.as_nanos() as u64, 0),
        Err(e) => (0, e.to_errno()),
    };
    blksnap_take(id0, id1, nr_devices as u32, frozen, error);
}

pub(crate) fn destroy(id: Uuid, timed_out: bool) {
    let [id0, id1] = halves(id);
    blksnap_destroy(id0, id1, timed_out.into());
}

/// The bytes of an id as numbers.
fn halves(id: Uuid) -> [u64; 2] {
    let (bytes, _) = id.as_bytes().as_chunks();
    [0, 1].map(|half: usize| u64::from_ne_bytes(bytes[half]))
}
