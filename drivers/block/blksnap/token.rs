// SPDX-License-Identifier: GPL-2.0-only

//! Whether what is written to a medium comes to a device that has the filter, be it by way of a
//! partition, a file system, a loop device or device-mapper. That is tried: a page with a random
//! token is written, and the filters look for it in the writes that they see meanwhile.
//!
//! What changes the data on its way, as encryption does, hides the token.

use crate::{
    params,
    storage::Spot,
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

/// What the filters look for; nothing, almost always.
static WANTED: RcuArc<Token> = RcuArc::empty();

/// More devices than a write comes to.
const MAX_SEEN: usize = 64;

/// Which trackers a token came to, by their addresses.
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

    /// A page that begins with the token. The rest is random too, so that nobody compresses it.
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
            // Where in the segment the next sector begins
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

/// A device that has the filter is written. Does not sleep.
#[inline]
pub(crate) fn look_at(bio: &Bio, tracker: &Tracker) {
    let guard = rcu::read_lock();
    if let Some(token) = WANTED.get(&guard) {
        if token.is_in(bio) {
            let mut seen = token.seen.lock();
            if !seen.by(tracker) {
                // Whether there was room is looked at in the end.
                let _ = seen.0.push_within_capacity(address_of(tracker));
            }
        }
    }
}

/// Somebody who waits for the token to be written.
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
    /// [`EINTR`] for a signal, [`ETIMEDOUT`] after the time that a write to a storage may take.
    fn wait(&self) -> Result {
        let mut left = msecs_to_jiffies(params::storage_timeout().as_millis() as u32);
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

/// Tries where writes come to, one after the other.
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

    /// Which trackers see what is written to one of `spots`, where nothing is kept. What cannot be
    /// written comes to none. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINTR`] for a signal, [`ETIMEDOUT`] if the writes take too long; then they may still go
    /// on. [`ENOMEM`], and [`E2BIG`] for more trackers than make sense.
    pub(crate) fn seen_from(&self, spots: KVec<Spot>) -> Result<Seen> {
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
        WANTED.replace(Some(token.clone()));
        let signal = waiter.clone();
        let spawned = self.queue.try_spawn(GFP_KERNEL, move || {
            Spot::try_out(&spots, &page);
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
