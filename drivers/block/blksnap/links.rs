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
    /// How often links or media were added.
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

/// Looks where writes come in the end, by way of snapshots. The links are those of one moment,
/// since nothing is locked while it is tried.
struct Search<'a> {
    prober: &'a Prober,
    links: KVec<(Arc<Tracker>, Arc<Storage>)>,
    /// Where they must not come.
    origins: KVec<Arc<Tracker>>,
    /// The storages that they come to.
    reached: KVec<Arc<Storage>>,
}

impl Search<'_> {
    /// What comes after writes that trackers have seen.
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

    /// What comes after that.
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

    /// A search in the links as they are now, and how often they have changed.
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
        // Before anything is written there.
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
        let is_saved_there = |link: &&Link| Arc::ptr_eq(&link.storage, storage);
        let is_origin = |list: &List| {
            let mut links = list.links.iter().filter(is_saved_there);
            links.any(|link| link.origin.overlaps(bdev))
        };
        // It is not even opened.
        if is_origin(&self.list.lock()) {
            return Err(EDEADLK);
        }
        storage.extend(bdev, sectors, |spots| loop {
            let (mut search, changes) = self.search()?;
            for (tracker, other) in &search.links {
                if Arc::ptr_eq(other, storage) {
                    search.origins.push(tracker.clone(), GFP_KERNEL)?;
                }
            }
            let mut to_try = KVec::with_capacity(spots.len(), GFP_KERNEL)?;
            for spot in spots {
                to_try.push(spot.clone(), GFP_KERNEL)?;
            }
            let seen = self.prober.seen_from(to_try)?;
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
