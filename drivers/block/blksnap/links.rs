// SPDX-License-Identifier: GPL-2.0-only

//! Which device is saved on which: a write to a device of a snapshot may become one to the device
//! that has the snapshot's storage. If that went in a circle, each of the writes could wait for
//! the next one.

use crate::storage::Storage;
use kernel::{
    block::bdev::BdevFile,
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
        // Where writes to the storage come
        let mut reached = KVec::with_capacity(list.len() + 1, GFP_KERNEL)?;
        reached.push(storage, GFP_KERNEL)?;
        let mut next = 0;
        while let Some(storage) = reached.get(next) {
            next += 1;
            let Some(bdev) = storage.bdev() else {
                continue;
            };
            if bdev.reaches(origin)? {
                return Err(EDEADLK);
            }
            for link in list.iter() {
                if bdev.reaches(&link.origin)?
                    && !reached.iter().any(|s| Arc::ptr_eq(s, &link.storage))
                {
                    reached.push(&link.storage, GFP_KERNEL)?;
                }
            }
        }
        drop(reached);
        list.push(
            Link {
                origin: origin.clone(),
                storage: storage.clone(),
            },
            GFP_KERNEL,
        )?;
        Ok(())
    }

    /// Nothing of `origin` is saved any more.
    pub(crate) fn remove(&self, origin: &Arc<BdevFile>) {
        self.list
            .lock()
            .retain(|link| !Arc::ptr_eq(&link.origin, origin));
    }
}
