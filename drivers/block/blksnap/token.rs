// SPDX-License-Identifier: GPL-2.0-only

//! Finds the tracked devices that writes to a storage reach through partitions, file systems, loop
//! devices or device-mapper. The prober writes a page with a random token to the storage, and the
//! filters check the writes that they see for this token.
//!
//! A layer that changes the data, as dm-crypt does, hides the token.

use crate::{
    storage::{
        Spot,
        Storage,
        Trial, //
    },
    tracker::Tracker, //
};
use kernel::{
    block::{
        bio::Bio,
        SECTOR_SIZE, //
    },
    new_condvar,
    new_mutex,
    new_spinlock_irq,
    page::{
        Pages,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        rcu::{
            self,
            RcuArc, //
        },
        Arc,
        CondVar,
        CondVarTimeoutResult,
        Mutex,
        SpinLockIrq, //
    },
    time::msecs_to_jiffies,
    uuid::Uuid,
    workqueue::OwnedQueue, //
};

/// The token that the filters check writes for; empty unless a storage is being probed.
static WANTED: RcuArc<Token> = RcuArc::empty();

/// For how many milliseconds the writes of a token are waited for.
const TIMEOUT: u32 = 30_000;

/// Upper bound of the tracked devices that one write reaches.
const MAX_SEEN: usize = 64;

/// Addresses of the trackers that have seen a token. They are compared, not dereferenced.
pub(crate) struct Seen(KVec<usize>);

impl Seen {
    pub(crate) fn by(&self, tracker: &Tracker) -> bool {
        self.0.contains(&address_of(tracker))
    }
}

fn address_of(tracker: &Tracker) -> usize {
    core::ptr::from_ref(tracker).addr()
}

#[pin_data]
struct Token {
    id: Uuid,
    #[pin]
    seen: SpinLockIrq<Seen>,
}

impl Token {
    fn new() -> Result<Arc<Self>> {
        let seen = Seen(KVec::with_capacity(MAX_SEEN, GFP_KERNEL)?);
        Arc::pin_init(
            pin_init!(Self {
                id: Uuid::random(),
                seen <- new_spinlock_irq!(seen, "blksnap_token"),
            }),
            GFP_KERNEL,
        )
    }

    /// Returns a page that begins with the token. The rest is random, too, so that the page cannot
    /// be compressed.
    fn page(&self) -> Result<Pages> {
        let mut page = Pages::alloc(1, GFP_KERNEL)?;
        page.copy_from_slice(0, 0, self.id.as_bytes())?;
        for at in (0..PAGE_SIZE).step_by(size_of::<Uuid>()).skip(1) {
            page.copy_from_slice(0, at, Uuid::random().as_bytes())?;
        }
        Ok(page)
    }

    /// Whether one of the bio's sectors begins with the token. Does not sleep.
    fn is_in(&self, bio: &Bio) -> bool {
        let sector = SECTOR_SIZE as usize;
        let mut start = 0_usize;
        for segment in bio.segments() {
            // Offset of the next sector in the segment
            let mut at = start.next_multiple_of(sector) - start;
            let mut bytes = [0; size_of::<Uuid>()];
            while at + bytes.len() <= segment.len() {
                segment.copy_to_slice(at, &mut bytes);
                if bytes == *self.id.as_bytes() {
                    return true;
                }
                at += sector;
            }
            start += segment.len();
        }
        false
    }
}

/// Checks a write to the device of `tracker` for the token. Does not sleep.
#[inline]
pub(crate) fn check(guard: &rcu::Guard, bio: &Bio, tracker: &Tracker) {
    if let Some(token) = WANTED.get(guard) {
        if token.is_in(bio) {
            let mut seen = token.seen.lock();
            if !seen.by(tracker) {
                // seen_from() checks for overflow.
                let _ = seen.0.push_within_capacity(address_of(tracker));
            }
        }
    }
}

/// Signals that the token was written.
#[pin_data]
struct Waiter {
    #[pin]
    written: Mutex<bool>,
    #[pin]
    changed: CondVar,
}

impl Waiter {
    /// # Errors
    ///
    /// [`EINTR`] for a signal, [`ETIMEDOUT`] after [`TIMEOUT`].
    fn wait(&self) -> Result {
        let mut left = msecs_to_jiffies(TIMEOUT);
        let mut written = self.written.lock();
        while !*written {
            left = match self.changed.wait_interruptible_timeout(&mut written, left) {
                CondVarTimeoutResult::Woken { jiffies } => jiffies,
                CondVarTimeoutResult::Timeout => return Err(ETIMEDOUT),
                CondVarTimeoutResult::Signal { .. } => return Err(EINTR),
            };
        }
        Ok(())
    }
}

/// Probes storages, one at a time.
#[pin_data]
pub(crate) struct Prober {
    #[pin]
    one: Mutex<()>,
    queue: OwnedQueue,
}

impl Prober {
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            one <- new_mutex!((), "blksnap_prober"),
            queue: OwnedQueue::new_mem_reclaim(c"blksnap_prober")?,
        })
    }

    /// Writes a token to each of `spots`, which are unused parts of a storage, and returns the
    /// trackers that have seen it. Failed writes reach no tracker. May sleep.
    ///
    /// # Errors
    ///
    /// - [`EINTR`] on a signal, [`ETIMEDOUT`] after [`TIMEOUT`]; the writes then continue,
    /// - [`EBUSY`] while such writes of an earlier call are in flight,
    /// - [`E2BIG`] if more than [`MAX_SEEN`] trackers have seen the token,
    /// - [`ENOMEM`].
    pub(crate) fn seen_from(&self, storage: &Arc<Storage>, spots: KVec<Spot>) -> Result<Seen> {
        let token = Token::new()?;
        let page = token.page()?;
        let waiter = Arc::pin_init(
            pin_init!(Waiter {
                written <- new_mutex!(false, "blksnap_token_written"),
                changed <- new_condvar!("blksnap_token_written"),
            }),
            GFP_KERNEL,
        )?;
        let _one = self.one.lock();
        let trial = Trial::begin(storage)?;
        WANTED.replace(Some(token.clone()));
        let signal = waiter.clone();
        let spawned = self.queue.try_spawn(GFP_KERNEL, move || {
            Spot::try_out(&spots, &page);
            drop(trial);
            *signal.written.lock() = true;
            signal.changed.notify_all();
        });
        let result = spawned.map_err(Error::from).and_then(|()| waiter.wait());
        WANTED.replace(None);
        result?;
        let seen = core::mem::replace(&mut token.seen.lock().0, KVec::new());
        if seen.len() >= MAX_SEEN {
            return Err(E2BIG);
        }
        Ok(Seen(seen))
    }
}
