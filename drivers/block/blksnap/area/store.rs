// SPDX-License-Identifier: GPL-2.0-only

//! Moves copies from memory to the storage.
//!
//! Several workers do this at a time if there are enough copies. Each takes copies off the list for
//! one write to the storage.

use super::{
    memory::OldClaims,
    Area,
    State,
    STORE, //
};
use crate::{
    batch::{
        Batch,
        Recorded, //
    },
    chunk::Geometry,
    event::What,
    params,
    stored_map::Rooms,
    trace, //
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
        Delta,
        Monotonic, //
    },
    workqueue::WorkItem, //
};

/// Bytes of copies that are gathered for one store.
const GATHER_BYTES: usize = 256 << 10;

/// Upper limit of the copies that are kept though they could be stored: their list is sorted.
const KEPT_BYTES: usize = 32 << 20;

/// Milliseconds after which fewer are stored.
const GATHER_MSECS: u32 = 10;

/// Upper limit of one store; reached only if copies piled up behind those in flight.
pub(super) const STORE_BYTES: usize = 1 << 20;

/// Maximum number of stores in flight.
const STORES: usize = 4;

impl Area {
    /// Does what [`State::stores_to_start`] said. The area must not be closed meanwhile. Does not
    /// sleep.
    pub(super) fn start_storing(this: &Arc<Self>, start: Start) {
        match start {
            Start::None => {}
            Start::First => {
                let _ = this.queues.stores.enqueue::<Arc<Self>, STORE>(this.clone());
            }
            Start::Gathering => this.gathered.notify_all(),
            Start::Another => {
                let area = this.clone();
                let store = move || Self::store_all(&area);
                // If there is no memory, the running ones do it.
                if this.queues.stores.try_spawn(GFP_NOWAIT, store).is_err() {
                    this.state.lock().stores.running -= 1;
                }
            }
        }
    }

    /// Stores copies until there are none. The caller is counted in `stores`.
    fn store_all(this: &Arc<Self>) {
        loop {
            let mut state = this.state.lock();
            let few =
                state.cow.counts().unstored_bytes < state.until_scarce(state.stores.limits.enough);
            if few && !state.lanes.is_stalled() && this.error() == 0 {
                // One of them waits for more.
                if state.stores.gathering {
                    state.stores.running -= 1;
                    return;
                }
                state.stores.gathering = true;
                let _ = this
                    .gathered
                    .wait_interruptible_timeout(&mut state, msecs_to_jiffies(GATHER_MSECS));
                state.stores.gathering = false;
            }
            if state.cow.unstored() == 0 {
                state.stores.running -= 1;
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
            if state.lanes.is_stalled() {
                Self::unstall(this.as_arc_borrow(), &mut state);
                this.judge_storage(&mut state);
            }
        }
    }

    fn store_batch(this: &Arc<Self>) -> Result {
        this.check()?;
        let count = this.state.lock().cow.unstored();
        // Where pages are larger than 4 KiB, a chunk can be more than that.
        let count = count.min((STORE_BYTES / this.geometry.chunk_bytes()).max(1));
        let mut batch = Batch::new(count, GFP_NOIO)?;
        let mut refs = KVec::with_capacity(count, GFP_NOIO)?;
        let mut claims = OldClaims::with_capacity(count, GFP_NOIO)?;
        let watch = Arc::pin_init(Watch::new(this.clone()), GFP_NOIO)?;
        let watch = watch.start(Watch::INTERVAL);
        let begun = this.now();
        let stored = this
            .storage
            .reserve(Geometry::MAX_BYTES, |room| {
                let mut state = this.state.lock();
                let max = state.stores.limits.most.min(room);
                state.cow.take(&mut batch, max);
                batch.len()
            })
            .and_then(|at| {
                for pages in batch.data() {
                    let _ = refs.push_within_capacity(&**pages);
                }
                this.storage.write(at, &refs, batch.len()).map(|()| at)
            });
        drop(watch);
        drop(refs);
        if stored == Err(ENOSPC) {
            this.fail(ENOSPC, What::NoSpace((batch.len() >> SECTOR_SHIFT) as u64));
        }
        let ns = this.now().saturating_sub(begun);
        let result = stored.and_then(|at| this.stored(&mut batch, at, ns, &mut claims));
        let mut state = this.state.lock();
        state.cow.not_stored(&batch);
        this.notify_idle(&state);
        drop(state);
        this.keep(claims, batch);
        result
    }

    /// A batch is on the storage now, which has taken `ns`.
    fn stored(
        &self,
        batch: &mut Batch<Arc<Pages>>,
        at: u64,
        ns: u64,
        claims: &mut OldClaims,
    ) -> Result {
        trace::stored(self.origin.dev(), at, batch.len(), ns);
        let shares_disk = self.storage.shares_disk(&self.origin);
        let ahead_room = params::ahead_room(&self.storage.space());
        let mut rooms = Rooms::new(batch.runs().len(), GFP_NOIO)?;
        loop {
            let over = |claim| {
                let _ = claims.push_within_capacity(claim);
            };
            let recorded = self.state.lock().cow.stored(batch, at, &mut rooms, over)?;
            match recorded {
                Recorded::All => break,
                Recorded::Some => {}
                Recorded::NoMemory => {
                    // Without a task of the cgroup being killed for it
                    let flags = GFP_NOIO | __GFP_ACCOUNT | __GFP_RETRY_MAYFAIL | __GFP_NOWARN;
                    self.map_memory.account(|| rooms.allocate(flags))?;
                }
            }
        }
        let mut state = self.state.lock();
        self.count_maps(&mut state);
        state.ahead.room = ahead_room;
        state.ahead.costs.stored(ns, batch.len(), shares_disk);
        let max_copy_bytes = state.cow.memory().most();
        state.stores.limits = Limits::new(max_copy_bytes, shares_disk, self.origin.is_rotational());
        Ok(())
    }

    /// The image is broken: gives the memory of the copies back that no store has taken.
    fn forget_copies(&self) {
        loop {
            let old = self.state.lock().cow.forget_unstored();
            if old.is_none() {
                break;
            }
        }
        self.notify_idle(&self.state.lock());
    }
}

/// A worker that stores copies.
pub(super) enum Start {
    None,
    /// There is none yet.
    First,
    /// The one that waits for more copies.
    Gathering,
    /// One more.
    Another,
}

/// When copies are stored, and how many at a time, in bytes.
///
/// What is stored on the disk of the origin delays its writes. So they go first as long as there is
/// room in memory, and a store is small unless the disk has to seek for it.
pub(super) struct Limits {
    /// A worker waits for more if there are fewer.
    enough: usize,
    /// Another worker is started if there are as many.
    many: usize,
    /// Upper limit of one store.
    most: usize,
}

impl Limits {
    pub(super) fn new(max_copy_bytes: usize, shares_disk: bool, rotational: bool) -> Self {
        if !shares_disk {
            return Self {
                enough: GATHER_BYTES,
                many: GATHER_BYTES,
                most: STORE_BYTES,
            };
        }
        Self {
            enough: GATHER_BYTES.max((max_copy_bytes / 4 * 3).min(KEPT_BYTES)),
            many: GATHER_BYTES.max(max_copy_bytes / 8 * 7),
            most: if rotational {
                STORE_BYTES
            } else {
                GATHER_BYTES
            },
        }
    }
}

impl State {
    /// Which worker to start or to wake for a new copy, which is counted in `stores` then.
    pub(super) fn stores_to_start(&mut self) -> Start {
        let unstored = self.cow.counts().unstored_bytes;
        let start = if self.stores.running == 0 {
            Start::First
        } else if unstored < self.until_scarce(self.stores.limits.enough) {
            Start::None
        } else if self.stores.gathering {
            Start::Gathering
        } else if self.stores.running < STORES
            && unstored >= self.until_scarce(self.stores.limits.many)
        {
            Start::Another
        } else {
            Start::None
        };
        if matches!(start, Start::First | Start::Another) {
            self.stores.running += 1;
        }
        start
    }

    /// How many bytes of copies are kept, `bytes` as long as there is memory.
    fn until_scarce(&self, bytes: usize) -> usize {
        match self.cow.memory().is_scarce() {
            true => GATHER_BYTES,
            false => bytes,
        }
    }

    /// Whether writers that are stalled wait for the storage. On a slow device most of the copies
    /// are still being read.
    pub(super) fn is_held_for_storage(&self) -> bool {
        let counts = self.cow.counts();
        counts.claimed_bytes <= counts.copy_bytes / 2
    }
}

/// Looks after one write to the storage.
#[pin_data]
struct Watch {
    area: Arc<Area>,
    #[pin]
    timer: HrTimer<Watch>,
}

impl Watch {
    const INTERVAL: Delta = Delta::from_secs(1);

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
        let mut state = area.state.lock();
        if state.lanes.is_stalled() {
            area.begin_hold(&mut state);
            area.judge_storage(&mut state);
            if area.error() != 0 {
                Area::unstall(area.as_arc_borrow(), &mut state);
                return HrTimerRestart::NoRestart;
            }
        }
        timer.forward_now(Self::INTERVAL);
        HrTimerRestart::Restart
    }
}

impl WorkItem<STORE> for Area {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        Self::store_all(&this);
    }
}
