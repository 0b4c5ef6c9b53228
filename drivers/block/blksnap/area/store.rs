// SPDX-License-Identifier: GPL-2.0-only

//! Moves copies from memory to the storage.

use super::{
    Area,
    Old,
    GATHER_BYTES,
    STORE, //
};
use crate::{
    chunk::Geometry,
    event::What,
    params, //
};
use kernel::{
    block::SECTOR_SHIFT,
    page::Pages,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    },
    time::{
        hrtimer::{
            HrTimerCallback,
            HrTimerCallbackContext,
            HrTimerPointer,
            HrTimerRestart, //
        },
        msecs_to_jiffies, //
    },
    workqueue::WorkItem, //
};

/// A write begins when [`GATHER_BYTES`] of copies are there, or after so many milliseconds.
const GATHER_MSECS: u32 = 10;

/// So many bytes it takes at the most, if they came while the last one was under way.
const STORE_BYTES: usize = 1 << 20;

impl Area {
    /// Moves what is in memory to the storage.
    fn store_all(this: &Arc<Self>) {
        loop {
            let mut state = this.state.lock();
            if state.read_bytes < GATHER_BYTES && !state.starved && this.error() == 0 {
                let _ = this
                    .gathered
                    .wait_interruptible_timeout(&mut state, msecs_to_jiffies(GATHER_MSECS));
            }
            if state.read.is_empty() {
                state.storing = false;
                return;
            }
            drop(state);
            let timer = this.clone().start(params::storage_timeout());
            let stored = this.store_batch();
            drop(timer);
            if let Err(e) = stored {
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

    fn store_batch(&self) -> Result {
        self.check()?;
        let count = self.state.lock().read.len();
        // Where pages are larger than 4 KiB, a chunk can be more than that.
        let count = count.min((STORE_BYTES / self.geometry.chunk_bytes()).max(1));
        let mut starts = KVec::with_capacity(count, GFP_NOIO)?;
        let mut pages: KVec<Arc<Pages>> = KVec::with_capacity(count, GFP_NOIO)?;
        let mut len = 0;
        let max = STORE_BYTES.min(self.storage.room(Geometry::MAX_BYTES));
        {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            for start in state.read.iter().take(count) {
                if let Some((_, Old::Memory(old))) = state.map.get_mut(*start) {
                    if len > 0 && len + old.len() > max {
                        break;
                    }
                    len += old.len();
                    let _ = starts.push_within_capacity(*start);
                    let _ = pages.push_within_capacity(old.clone());
                }
            }
        }

        let mut refs = KVec::with_capacity(pages.len(), GFP_NOIO)?;
        for pages in &pages {
            refs.push(&**pages, GFP_NOIO)?;
        }
        let mut at = self.storage.append(&refs, len).inspect_err(|e| {
            if *e == ENOSPC {
                self.fail(*e, What::NoSpace((len >> SECTOR_SHIFT) as u64));
            }
        })?;

        let ahead_room = params::ahead_room(&self.storage.space());
        let mut state = self.state.lock();
        state.ahead_room = ahead_room;
        // They are in the same order.
        let mut gone = starts.iter().peekable();
        state
            .read
            .retain(|start| gone.next_if_eq(&&*start).is_none());
        for (start, pages) in starts.iter().zip(&pages) {
            if let Some((_, place)) = state.map.get_mut(*start) {
                *place = Old::Stored {
                    at,
                    chunk_shift: self.geometry.chunk_shift(),
                };
            }
            at += pages.len() as u64;
            state.map.merge(*start);
        }
        state.copies -= starts.len();
        state.copy_bytes -= len;
        state.read_bytes -= len;
        state.stored_bytes += len as u64;
        self.done(&mut state, starts.len());
        Ok(())
    }

    /// The area has failed: gives the memory of the copies back.
    fn forget_copies(&self) {
        loop {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            let Some(start) = state.read.pop() else {
                return;
            };
            let old = state.map.remove(start);
            if let Some((_, Old::Memory(pages))) = &old {
                state.copies -= 1;
                state.copy_bytes -= pages.len();
                state.read_bytes -= pages.len();
            }
            self.done(state, 1);
            drop(guard);
            drop(old);
        }
    }
}

impl WorkItem<STORE> for Area {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        Self::store_all(&this);
    }
}

impl HrTimerCallback for Area {
    type Pointer<'a> = Arc<Self>;

    /// A write to the storage takes long.
    fn run(
        this: ArcBorrow<'_, Self>,
        mut timer: HrTimerCallbackContext<'_, Self>,
    ) -> HrTimerRestart {
        if !this.state.lock().starved {
            timer.forward_now(params::storage_timeout());
            return HrTimerRestart::Restart;
        }
        this.fail_io(ETIMEDOUT);
        Self::unstall(this, &mut this.state.lock());
        HrTimerRestart::NoRestart
    }
}
