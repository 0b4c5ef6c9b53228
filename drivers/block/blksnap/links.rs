// SPDX-License-Identifier: GPL-2.0-only

//! Which device is saved on which: a write to a device of a snapshot may become one to the device
//! that has the snapshot's storage. If that went in a circle, each of the writes could wait for
//! the next one.

use crate::storage::Storage;
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
    storage: Arc<Storage>,
}

/// The links of all snapshots.
#[pin_data]
pub(crate) struct Links {
    #[pin]
    list: Mutex<KVec<Link>>,
}

/// Looks where writes come in the end, by way of snapshots.
struct Search<'a> {
    list: &'a [Link],
    /// Where they must not come.
    origins: KVec<&'a BlockDevice>,
    /// The storages that they come to.
    reached: KVec<&'a Arc<Storage>>,
}

impl<'a> Search<'a> {
    fn new(list: &'a [Link]) -> Self {
        Self {
            list,
            origins: KVec::new(),
            reached: KVec::new(),
        }
    }

    /// What writes come to at once, of which `reaches` says which devices they come to.
    fn visit(&mut self, reaches: impl Fn(&BlockDevice) -> Result<bool>) -> Result {
        for origin in &self.origins {
            if reaches(origin)? {
                return Err(EDEADLK);
            }
        }
        for link in self.list {
            if reaches(&link.origin)? && !self.reached.iter().any(|s| Arc::ptr_eq(s, &link.storage))
            {
                self.reached.push(&link.storage, GFP_KERNEL)?;
            }
        }
        Ok(())
    }

    /// What comes after that.
    fn follow(&mut self) -> Result {
        let mut next = 0;
        while let Some(storage) = self.reached.get(next).copied() {
            next += 1;
            self.visit(|lower| storage.reaches(lower))?;
        }
        Ok(())
    }
}

impl Links {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            list <- new_mutex!(KVec::new(), "blksnap_links"),
        })
    }

    /// What is overwritten on `origin` may go to `storage` from now on. May sleep.
    ///
    /// # Errors
    ///
    /// [`EDEADLK`] if writes to the storage come to the origin, also by way of other snapshots.
    pub(crate) fn add(&self, origin: &Arc<BdevFile>, storage: &Arc<Storage>) -> Result {
        let mut list = self.list.lock();
        let mut search = Search::new(&list);
        search.origins.push(origin, GFP_KERNEL)?;
        search.reached.push(storage, GFP_KERNEL)?;
        search.follow()?;
        drop(search);
        list.push(
            Link {
                origin: origin.clone(),
                storage: storage.clone(),
            },
            GFP_KERNEL,
        )?;
        Ok(())
    }

    /// Adds sectors of a device to `storage`, as [`Storage::extend`] does. May sleep.
    ///
    /// # Errors
    ///
    /// Those of that, and [`EDEADLK`] if writes to the device come to what is saved there, also by
    /// way of other snapshots.
    pub(crate) fn extend(
        &self,
        storage: &Arc<Storage>,
        bdev: &BlockDevice,
        sectors: &[SectorRange],
    ) -> Result {
        storage.extend(bdev, sectors, || {
            let list = self.list.lock();
            let mut search = Search::new(&list);
            for link in list.iter() {
                if Arc::ptr_eq(&link.storage, storage) {
                    search.origins.push(&link.origin, GFP_KERNEL)?;
                }
            }
            search.visit(|lower| bdev.reaches(lower))?;
            search.follow()?;
            drop(search);
            // So that no device is added meanwhile.
            Ok(list)
        })
    }

    /// Nothing of `origin` is saved any more.
    pub(crate) fn remove(&self, origin: &Arc<BdevFile>) {
        self.list
            .lock()
            .retain(|link| !Arc::ptr_eq(&link.origin, origin));
    }
}
