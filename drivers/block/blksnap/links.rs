// SPDX-License-Identifier: GPL-2.0-only

//! Which device is saved on which: a write to a device of a snapshot may become one to the device
//! that has the snapshot's storage. If that went in a circle, each of the writes could wait for
//! the next one.

use crate::{
    storage::Storage,
    token::{
        Prober,
        Seen, //
    },
    tracker::Tracker, //
};
use kernel::{
    block::bdev::{
        BdevFile,
        BlockDevice,
        SectorRange, //
    },
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    }, //
};

/// From a device to a storage.
struct Link {
    origin: Arc<BdevFile>,
    tracker: Arc<Tracker>,
    storage: Arc<Storage>,
}

struct List {
    links: KVec<Link>,
    /// Number of links and media added so far.
    changes: u64,
}

/// The links of all snapshots.
#[pin_data]
pub(crate) struct Links {
    #[pin]
    list: Mutex<List>,
    #[pin]
    prober: Prober,
}

/// Finds the devices that writes finally reach through other snapshots' storages. Works on a copy
/// of the links, since probing must not hold the lock.
struct Search<'a> {
    prober: &'a Prober,
    links: KVec<(Arc<Tracker>, Arc<Storage>)>,
    /// Trackers that writes must not reach.
    origins: KVec<Arc<Tracker>>,
    /// Storages that writes reach.
    reached: KVec<Arc<Storage>>,
}

impl Search<'_> {
    /// Adds the storages of trackers that have seen a write. [`EDEADLK`] if an origin has.
    fn visit(&mut self, seen: &Seen) -> Result {
        if self.origins.iter().any(|origin| seen.by(origin)) {
            return Err(EDEADLK);
        }
        for (tracker, storage) in &self.links {
            if seen.by(tracker) && !self.reached.iter().any(|s| Arc::ptr_eq(s, storage)) {
                self.reached.push(storage.clone(), GFP_KERNEL)?;
            }
        }
        Ok(())
    }

    /// Visits all storages that are reached.
    fn follow(&mut self) -> Result {
        let mut next = 0;
        while let Some(storage) = self.reached.get(next).cloned() {
            next += 1;
            let seen = storage.seen_by(self.prober)?;
            self.visit(&seen)?;
        }
        Ok(())
    }
}

impl Links {
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            list <- new_mutex!(List {
                links: KVec::new(),
                changes: 0,
            }, "blksnap_links"),
            prober <- Prober::new(),
        })
    }

    /// Returns a search over a copy of the links, and their change count.
    fn search(&self) -> Result<(Search<'_>, u64)> {
        let list = self.list.lock();
        let mut links = KVec::with_capacity(list.links.len(), GFP_KERNEL)?;
        for link in &list.links {
            links.push((link.tracker.clone(), link.storage.clone()), GFP_KERNEL)?;
        }
        let search = Search {
            prober: &self.prober,
            links,
            origins: KVec::new(),
            reached: KVec::new(),
        };
        Ok((search, list.changes))
    }

    /// What is overwritten on `origin` may go to `storage` from now on, which is not in use yet.
    /// May sleep.
    ///
    /// # Errors
    ///
    /// [`EDEADLK`] if writes to the storage come to the origin, also by way of other snapshots, and
    /// those of [`Prober::seen_from`].
    pub(crate) fn add(
        &self,
        origin: &Arc<BdevFile>,
        tracker: &Arc<Tracker>,
        storage: &Arc<Storage>,
    ) -> Result {
        // Before the probe writes to it.
        if storage.is_on(origin) {
            return Err(EDEADLK);
        }
        loop {
            let (mut search, changes) = self.search()?;
            search.origins.push(tracker.clone(), GFP_KERNEL)?;
            let seen = storage.unused_seen_by(&self.prober)?;
            search.visit(&seen)?;
            search.follow()?;
            let mut list = self.list.lock();
            if list.changes != changes {
                continue;
            }
            list.links.push(
                Link {
                    origin: origin.clone(),
                    tracker: tracker.clone(),
                    storage: storage.clone(),
                },
                GFP_KERNEL,
            )?;
            list.changes += 1;
            return Ok(());
        }
    }

    /// Adds sectors of a device to `storage`, as [`Storage::extend`] does. May sleep.
    ///
    /// # Errors
    ///
    /// Those of that, and [`EDEADLK`] if writes to the device come to what is saved there, also by
    /// way of other snapshots, and those of [`Prober::seen_from`].
    pub(crate) fn extend(
        &self,
        storage: &Arc<Storage>,
        bdev: &BlockDevice,
        sectors: &[SectorRange],
    ) -> Result {
        let is_origin =
            |link: &Link| Arc::ptr_eq(&link.storage, storage) && link.origin.overlaps(bdev);
        // It is not even opened.
        if self.list.lock().links.iter().any(is_origin) {
            return Err(EDEADLK);
        }
        storage.extend(bdev, sectors, |part| loop {
            let (mut search, changes) = self.search()?;
            for (tracker, other) in &search.links {
                if Arc::ptr_eq(other, storage) {
                    search.origins.push(tracker.clone(), GFP_KERNEL)?;
                }
            }
            let mut spots = KVec::new();
            part.spots(part.len(), &mut spots)?;
            let seen = self.prober.seen_from(storage, spots)?;
            search.visit(&seen)?;
            search.follow()?;
            let mut list = self.list.lock();
            if list.changes == changes {
                list.changes += 1;
                // So that no device is added meanwhile.
                return Ok(list);
            }
        })
    }

    /// Nothing of `origin` is saved any more.
    pub(crate) fn remove(&self, origin: &Arc<BdevFile>) {
        self.list
            .lock()
            .links
            .retain(|link| !Arc::ptr_eq(&link.origin, origin));
    }
}
