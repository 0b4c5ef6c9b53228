// SPDX-License-Identifier: GPL-2.0-only

//! Snapshots of block devices for backup.
//!
//! A filter on each device ([`tracker`]) records which blocks change. A [`snapshot`] has one
//! difference [`area`] for each of its devices, which saves what is about to be overwritten in the
//! difference [`storage`] that the devices share, and an [`image`], a read-only disk with the
//! content of that moment.
//!
//! See Documentation/block/blksnap.rst.

use crate::{
    control::Control,
    snapshot::{
        Snapshot,
        Snapshots,
        SnapshotsGuard, //
    },
    tracker::Tracker, //
};
use kernel::{
    block::filter,
    miscdevice::MiscDeviceRegistration,
    notifier::{
        self,
        Hibernation,
        HibernationEvent,
        VmFork, //
    },
    prelude::*, //
};

mod ahead;
mod area;
mod arg;
mod barrier;
mod batch;
mod budget;
mod change_map;
mod chunk;
mod compat;
mod control;
mod copy_memory;
mod counts;
mod cow;
mod deadline;
mod debug;
mod event;
mod extent_map;
mod freeze;
mod holds;
mod image;
mod lanes;
mod links;
mod log;
mod mark;
mod marks;
mod new_claim;
mod params;
mod saved_map;
mod snapshot;
mod status;
mod storage;
mod stored_map;
mod suspects;
mod taken;
mod token;
mod trace;
mod tracker;

module! {
    type: Blksnap,
    name: "blksnap",
    authors: ["The blksnap authors"],
    description: "Snapshots of block devices for backup",
    license: "GPL",
    params: {
        diff_storage_minimum: u32 {
            default: 2097152,
            description: "By how many sectors a difference storage in a file grows at a time",
            perm: 0o444,
        },
        chunk_minimum_shift: u32 {
            default: 12,
            description: "Binary logarithm of the bytes that are copied at a time",
            perm: 0o444,
        },
        copy_memory: u32 {
            default: 32,
            description: "MiB of a snapshot's copies that may be in memory at a time",
            perm: 0o444,
        },
        map_memory: u32 {
            default: 0,
            description: "MiB that the maps of a snapshot may take; 0: 1/32 of all, 1024 at most",
            perm: 0o444,
        },
        copy_ahead: u32 {
            default: 50,
            description: "Percentage of the storage up to which data is copied ahead of writes",
            perm: 0o444,
        },
        ignore_discards: u32 {
            default: 1,
            description: "Ignored discards of unsaved chunks: 0 none, 1 file systems', 2 all",
            perm: 0o444,
        },
        freeze_timeout: u32 {
            default: 5,
            description: "Seconds that a take may keep file systems frozen and hold I/O back",
            perm: 0o444,
        },
        hold_writers: u32 {
            default: 30,
            description: "Seconds of each minute for which writers may be held for the storage",
            perm: 0o444,
        },
        tracking_block_minimum_shift: u32 {
            default: 16,
            description: "Binary logarithm of the smallest tracked block in bytes",
            perm: 0o444,
        },
        tracking_block_maximum_shift: u32 {
            default: 26,
            description: "Binary logarithm of the largest tracked block in bytes",
            perm: 0o444,
        },
        tracking_block_maximum_count: u32 {
            default: 268435456,
            description: "Number of tracked blocks of a device, unless they were too large",
            perm: 0o444,
        },
        tracking_memory: u32 {
            default: 0,
            description: "MiB that change maps may take; 0: 1/32 of all, 1024 at most",
            perm: 0o444,
        },
    },
}

/// Ends change tracking where numbers and ids could go on in two copies of a virtual machine.
struct EndGenerations;

impl notifier::Handler<VmFork> for EndGenerations {
    fn notify(&self, _event: ()) {
        change_map::end_generations();
        pr_info!("the virtual machine was forked, change tracking starts again\n");
    }
}

/// What is written when memory has been saved for hibernation is in no change map and no
/// difference area of the machine that goes on.
struct GiveUp;

impl notifier::Handler<Hibernation> for GiveUp {
    fn notify(&self, event: HibernationEvent) {
        change_map::end_generations();
        Snapshot::fail_all(ECANCELED);
        // A snapshot that was taken since then has no map of an earlier one.
        if event == HibernationEvent::Prepare {
            pr_info!("the machine hibernates, change tracking starts again\n");
        }
    }
}

#[pin_data]
struct Blksnap {
    // In the order in which they go.
    #[pin]
    _control: MiscDeviceRegistration<Control>,
    _filter: filter::Registration<Tracker>,
    #[pin]
    _vm_fork: notifier::Registration<VmFork, EndGenerations>,
    #[pin]
    _hibernation: notifier::Registration<Hibernation, GiveUp>,
    _snapshots: SnapshotsGuard,
}

impl kernel::InPlaceModule for Blksnap {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _snapshots: Snapshots::enable()?,
            _vm_fork <- notifier::Registration::new(EndGenerations),
            _hibernation <- notifier::Registration::new(GiveUp),
            _filter: filter::Registration::new()?,
            _control <- MiscDeviceRegistration::register(Control::OPTIONS),
        })
    }
}
