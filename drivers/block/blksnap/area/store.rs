// SPDX-License-Identifier: GPL-2.0-only

//! Moves copies from memory to the storage.
//!
//! Several workers do this at a time if there are enough copies. Each takes copies off the list for
//! one write to the storage.

use super::{
    Area,
    Old,
    State,
    STORE, //
};
use crate::{
    chunk::Geometry,
    event::What,
    params, //
};
use kernel::{
    block::SECTOR_SHIFT,
    impl_has_hr_timer,
    page::Pages,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    },
    time::{
        hrtimer::{
            HrTimer,
            HrTimerCallback,
            HrTimerCallbackContext,
            HrTimerPointer,
            HrTimerRestart,
            RelativeMode, //
        },
        msecs_to_jiffies,
        Monotonic, //
    },
    workqueue::WorkItem, //
};

/// Bytes of copies that are gathered for one store.
const GATHER_BYTES: usize = 256 << 10;

/// Milliseconds after which fewer are stored.
const GATHER_MSECS: u32 = 10;

/// Upper limit of one store; reached only if copies piled up behind those in flight.
const STORE_BYTES: usize = 1 << 20;

/// Maximum number of stores in flight.
const STORES: usize = 4;

impl Area {
    /// Starts or wakes a worker for a new copy. The area must not be closed while the caller holds
    /// the lock. Does not sleep.
    pub(super) fn start_storing(this: &Arc<Self>, state: &mut State) {
        if state.storing == 0 {
            state.storing = 1;
            let _ = this.queues.stores.enqueue::<Arc<Self>, STORE>(this.clone());
        } else if state.read_bytes >= GATHER_BYTES {
            if state.gathering {
                this.gathered.notify_all();
            } else if state.storing < STORES {
                let area = this.clone();
                let store = move || Self::store_all(&area);
                // If there is no memory, the running ones do it.
                if this.queues.stores.try_spawn(GFP_NOWAIT, store).is_ok() {
                    state.storing += 1;
                }
            }
        }
    }

    /// Stores copies until there are none. The caller is counted in `storing`.
    fn store_all(this: &Arc<Self>) {
        loop {
            let mut state = this.state.lock();
            if state.read_bytes < GATHER_BYTES && !state.starved && this.error() == 0 {
                // One of them waits for more.
                if state.gathering {
                    state.storing -= 1;
                    return;
                }
                state.gathering = true;
                let _ = this
                    .gathered
                    .wait_interruptible_timeout(&mut state, msecs_to_jiffies(GATHER_MSECS));
                state.gathering = false;
            }
            if state.read.is_empty() {
                state.storing -= 1;
                return;
            }
            drop(state);
            if let Err(e) = Self::store_batch(this) {
                if this.error() == 0 {
                    this.fail_io(e);
                }
                this.forget_copies();
            }
            let mut state = this.state.lock();
            if state.starved {
                Self::unstall(this.as_arc_borrow(), &mut state);
            }
        }
    }

    fn store_batch(this: &Arc<Self>) -> Result {
        this.check()?;
        let count = this.state.lock().read.len();
        // Where pages are larger than 4 KiB, a chunk can be more than that.
        let count = count.min((STORE_BYTES / this.geometry.chunk_bytes()).max(1));
        let mut batch = Batch {
            starts: KVec::with_capacity(count, GFP_NOIO)?,
            pages: KVec::with_capacity(count, GFP_NOIO)?,
            len: 0,
        };
        let mut refs = KVec::with_capacity(count, GFP_NOIO)?;
        let watch = Arc::pin_init(Watch::new(this.clone()), GFP_NOIO)?;
        let watch = watch.start(params::storage_timeout());
        let begun = this.now();
        let stored = this
            .storage
            .reserve(Geometry::MAX_BYTES, |room| this.take(&mut batch, room))
            .and_then(|at| {
                for pages in &batch.pages {
                    let _ = refs.push_within_capacity(&**pages);
                }
                this.storage.write(at, &refs, batch.len).map(|()| at)
            });
        drop(watch);
        match stored {
            Ok(at) => this.stored(&batch, at, this.now().saturating_sub(begun)),
            Err(e) => {
                if e == ENOSPC {
                    this.fail(e, What::NoSpace((batch.len >> SECTOR_SHIFT) as u64));
                }
                for start in &batch.starts {
                    this.forget(*start);
                }
                return Err(e);
            }
        }
        Ok(())
    }

    /// Takes copies for one write of at most `room` bytes, or larger if that is the first one.
    /// Returns the bytes of them. Does not sleep.
    fn take(&self, batch: &mut Batch, room: usize) -> usize {
        let max = STORE_BYTES.min(room);
        let mut guard = self.state.lock();
        let state = &mut *guard;
        for start in state.read.iter().take(batch.starts.capacity()) {
            if let Some((_, Old::Memory(old))) = state.map.get_mut(*start) {
                if batch.len > 0 && batch.len + old.len() > max {
                    break;
                }
                batch.len += old.len();
                let _ = batch.starts.push_within_capacity(*start);
                let _ = batch.pages.push_within_capacity(old.clone());
            }
        }
        let mut left = batch.starts.len();
        state.read.retain(|_| {
            let taken = left > 0;
            left -= usize::from(taken);
            !taken
        });
        state.read_bytes -= batch.len;
        batch.len
    }

    /// A batch is on the storage now, which has taken `ns`.
    fn stored(&self, batch: &Batch, mut at: u64, ns: u64) {
        let shares_disk = self.storage.shares_disk(&self.origin);
        let ahead_room = params::ahead_room(&self.storage.space());
        let mut state = self.state.lock();
        state.ahead_room = ahead_room;
        for (start, pages) in batch.starts.iter().zip(&batch.pages) {
            if let Some((_, place)) = state.map.get_mut(*start) {
                *place = Old::Stored {
                    at,
                    chunk_shift: self.geometry.chunk_shift(),
                };
            }
            at += pages.len() as u64;
            state.map.merge(*start);
        }
        state.copies -= batch.starts.len();
        state.copy_bytes -= batch.len;
        state.stored_bytes += batch.len as u64;
        state.costs.stored(ns, batch.len, shares_disk);
        self.done(&mut state, batch.starts.len());
    }

    /// The area has failed: gives the memory of the copies back that nobody has taken.
    fn forget_copies(&self) {
        loop {
            let mut state = self.state.lock();
            let Some(start) = state.read.pop() else {
                return;
            };
            if let Some((_, Old::Memory(pages))) = state.map.get_mut(start) {
                let len = pages.len();
                state.read_bytes -= len;
            }
            drop(state);
            self.forget(start);
        }
    }

    /// Gives the memory of a copy back, which is in no list any more. The area has failed.
    fn forget(&self, start: u64) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let old = state.map.remove(start);
        if let Some((_, Old::Memory(pages))) = &old {
            state.copies -= 1;
            state.copy_bytes -= pages.len();
        }
        self.done(state, 1);
        drop(guard);
        drop(old);
    }
}

/// Copies that are stored with one write: the first chunks of their extents and their memory.
struct Batch {
    starts: KVec<u64>,
    pages: KVec<Arc<Pages>>,
    /// In bytes.
    len: usize,
}

/// Looks after one write to the storage.
#[pin_data]
struct Watch {
    area: Arc<Area>,
    #[pin]
    timer: HrTimer<Watch>,
}

impl Watch {
    fn new(area: Arc<Area>) -> impl PinInit<Self> {
        pin_init!(Self {
            area,
            timer <- HrTimer::new(),
        })
    }
}

impl_has_hr_timer! {
    impl HasHrTimer<Self> for Watch {
        mode: RelativeMode<Monotonic>, field: self.timer
    }
}

impl HrTimerCallback for Watch {
    type Pointer<'a> = Arc<Self>;

    /// The write takes long.
    fn run(
        this: ArcBorrow<'_, Self>,
        mut timer: HrTimerCallbackContext<'_, Self>,
    ) -> HrTimerRestart {
        let area = &this.area;
        if !area.state.lock().starved {
            timer.forward_now(params::storage_timeout());
            return HrTimerRestart::Restart;
        }
        area.fail_io(ETIMEDOUT);
        Area::unstall(area.as_arc_borrow(), &mut area.state.lock());
        HrTimerRestart::NoRestart
    }
}

impl WorkItem<STORE> for Area {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        Self::store_all(&this);
    }
}
