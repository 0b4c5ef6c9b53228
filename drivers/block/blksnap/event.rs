// SPDX-License-Identifier: GPL-2.0-only

//! What a snapshot has to tell its owner.

use kernel::{
    block::bdev::{
        DevT,
        SectorRange, //
    },
    new_spinlock_irq,
    prelude::*,
    static_lock_class,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        poll::{
            PollCondVar,
            PollCondVarBox,
            PollMask, //
        },
        CondVarTimeoutResult,
        SpinLockIrq, //
    },
    time::{
        Instant,
        Jiffies,
        Monotonic, //
    }, //
};

/// What has happened.
#[derive(Clone, Copy)]
pub(crate) enum What {
    /// The snapshot is broken, because of an error on a device.
    Corrupted(DevT, Error),
    /// The difference storage is full: so many sectors were asked for.
    NoSpace(u64),
    /// The difference storage has only so many sectors left.
    LowSpace(u64),
    /// Sectors of a device could not be read when they were to be saved. Reads of them fail.
    Lost(DevT, SectorRange, Error),
    /// The writers of a device were held for the storage: milliseconds of the last minute, and
    /// those after which the snapshot is given up.
    SlowStorage(DevT, u32, u32),
}

/// Something that has happened.
#[derive(Clone, Copy)]
pub(crate) struct Event {
    pub(crate) what: What,
    pub(crate) time: Instant<Monotonic>,
}

/// How many events are kept for an owner that does not ask.
const MAX_EVENTS: usize = 16;

/// How many of these can be [`What::Lost`], so that there is room for others.
const MAX_LOST: usize = 8;

struct Queue {
    events: [Option<Event>; MAX_EVENTS],
    first: usize,
    count: usize,
    closed: bool,
}

/// The events of a snapshot, oldest first. When there are too many, new ones are dropped: the first
/// ones say why. Only the newest one of little space is kept, and that of a slow storage.
#[pin_data]
pub(crate) struct Events {
    #[pin]
    queue: SpinLockIrq<Queue>,
    /// Lost sectors, and milliseconds for which writers were held, of all devices.
    lost: Atomic<u64>,
    held: Atomic<u64>,
    changed: PollCondVarBox,
}

impl Events {
    /// May sleep.
    pub(crate) fn new() -> Result<impl PinInit<Self>> {
        let changed = PollCondVarBox::new(c"blksnap_events", static_lock_class!())?;
        Ok(pin_init!(Self {
            queue <- new_spinlock_irq!(Queue {
                events: [None; MAX_EVENTS],
                first: 0,
                count: 0,
                closed: false,
            }, "blksnap_events"),
            lost: Atomic::new(0),
            held: Atomic::new(0),
            changed: changed,
        }))
    }

    /// Adds milliseconds for which writers of a device were held.
    pub(crate) fn add_held(&self, ms: u64) {
        self.held.fetch_add(ms, Relaxed);
    }

    /// Returns the number of lost sectors and the milliseconds for which writers were held, of all
    /// devices together.
    pub(crate) fn figures(&self) -> (u64, u64) {
        (self.lost.load(Relaxed), self.held.load(Relaxed))
    }

    /// Adds an event. May be called in any context.
    pub(crate) fn push(&self, what: What) {
        if let What::Lost(_, sectors, _) = what {
            self.lost.fetch_add(sectors.len, Relaxed);
        }
        let mut queue = self.queue.lock();
        let event = Event {
            what,
            time: Instant::now(),
        };
        let is_lost = |event: &Event| matches!(event.what, What::Lost(..));
        let lost = queue.events.iter().flatten().filter(|e| is_lost(e));
        if is_lost(&event) && lost.count() >= MAX_LOST {
            return;
        }
        let replaces = |older: &Event| {
            matches!(
                (what, older.what),
                (What::LowSpace(_), What::LowSpace(_))
                    | (What::SlowStorage(..), What::SlowStorage(..))
            )
        };
        let older = queue.events.iter_mut().flatten().find(|e| replaces(e));
        if let Some(older) = older {
            *older = event;
        } else if queue.count < MAX_EVENTS {
            let at = (queue.first + queue.count) % MAX_EVENTS;
            queue.events[at] = Some(event);
            queue.count += 1;
        }
        drop(queue);
        self.changed.notify_all();
    }

    /// Forgets what was not told.
    pub(crate) fn clear(&self) {
        let mut queue = self.queue.lock();
        queue.events = [None; MAX_EVENTS];
        queue.count = 0;
    }

    /// Nobody has to wait any more.
    pub(crate) fn close(&self) {
        self.queue.lock().closed = true;
        self.changed.notify_all();
    }

    /// Takes the oldest event, after waiting for one at most so long.
    ///
    /// # Errors
    ///
    /// [`ENOENT`] when the time is over, [`EINTR`] on a signal, [`ESRCH`] when the snapshot is
    /// destroyed.
    pub(crate) fn wait(&self, mut timeout: Jiffies) -> Result<Event> {
        let mut queue = self.queue.lock();
        loop {
            if queue.closed {
                return Err(ESRCH);
            }
            let first = queue.first;
            if let Some(event) = queue.events[first].take() {
                queue.first = (first + 1) % MAX_EVENTS;
                queue.count -= 1;
                return Ok(event);
            }
            if timeout == 0 {
                return Err(ENOENT);
            }
            match self.changed.wait_interruptible_timeout(&mut queue, timeout) {
                CondVarTimeoutResult::Signal { .. } => return Err(EINTR),
                CondVarTimeoutResult::Timeout => timeout = 0,
                CondVarTimeoutResult::Woken { jiffies } => timeout = jiffies,
            }
        }
    }

    /// What is notified when [`Self::poll`] may say something else.
    pub(crate) fn changed(&self) -> &PollCondVar {
        &self.changed
    }

    /// Whether there is an event, or no more will come. May be called in any context.
    pub(crate) fn poll(&self) -> PollMask {
        let queue = self.queue.lock();
        match (queue.closed, queue.count) {
            (true, _) => PollMask::IN | PollMask::HUP,
            (false, 0) => PollMask::NONE,
            (false, _) => PollMask::IN,
        }
    }

    /// Puts an event back that [`Self::wait`] has returned and that could not be told.
    pub(crate) fn put_back(&self, event: Event) {
        let mut queue = self.queue.lock();
        // If there is no room any more, the newest one is dropped.
        let at = (queue.first + MAX_EVENTS - 1) % MAX_EVENTS;
        queue.first = at;
        queue.events[at] = Some(event);
        queue.count = MAX_EVENTS.min(queue.count + 1);
        drop(queue);
        self.changed.notify_all();
    }
}

#[kunit_tests(blksnap_event)]
mod tests {
    use super::*;

    fn sectors(event: Event) -> u64 {
        match event.what {
            What::NoSpace(sectors) | What::LowSpace(sectors) => sectors,
            What::Lost(_, sectors, _) => sectors.start,
            What::Corrupted(..) | What::SlowStorage(..) => u64::MAX,
        }
    }

    #[test]
    fn oldest_first_and_bounded() -> Result {
        let events = KBox::pin_init(Events::new()?, GFP_KERNEL)?;
        assert_eq!(events.wait(0).err(), Some(ENOENT));
        for round in 0..3 {
            for i in 0..MAX_EVENTS as u64 + 5 {
                events.push(What::NoSpace(round * 100 + i));
            }
            for i in 0..MAX_EVENTS as u64 {
                assert_eq!(sectors(events.wait(0)?), round * 100 + i);
            }
            assert_eq!(events.wait(0).err(), Some(ENOENT));
        }
        events.close();
        assert_eq!(events.wait(1000).err(), Some(ESRCH));
        Ok(())
    }

    #[test]
    fn lost_sectors_leave_room() -> Result {
        let events = KBox::pin_init(Events::new()?, GFP_KERNEL)?;
        for start in 0..100 {
            let sectors = SectorRange { start, len: 8 };
            events.push(What::Lost(DevT::default(), sectors, EIO));
        }
        events.push(What::NoSpace(1000));
        for start in 0..MAX_LOST as u64 {
            assert_eq!(sectors(events.wait(0)?), start);
        }
        assert_eq!(sectors(events.wait(0)?), 1000);
        assert_eq!(events.wait(0).err(), Some(ENOENT));
        Ok(())
    }

    #[test]
    fn cleared() -> Result {
        let events = KBox::pin_init(Events::new()?, GFP_KERNEL)?;
        for i in 0..3 {
            events.push(What::NoSpace(i));
        }
        assert_eq!(sectors(events.wait(0)?), 0);
        events.clear();
        assert_eq!(events.wait(0).err(), Some(ENOENT));
        events.push(What::NoSpace(7));
        assert_eq!(sectors(events.wait(0)?), 7);
        assert_eq!(events.wait(0).err(), Some(ENOENT));
        Ok(())
    }

    #[test]
    fn one_of_little_space() -> Result {
        let events = KBox::pin_init(Events::new()?, GFP_KERNEL)?;
        events.push(What::LowSpace(2));
        events.push(What::NoSpace(1));
        events.push(What::LowSpace(3));
        assert_eq!(sectors(events.wait(0)?), 3);
        assert_eq!(sectors(events.wait(0)?), 1);
        assert_eq!(events.wait(0).err(), Some(ENOENT));
        events.push(What::LowSpace(4));
        assert_eq!(sectors(events.wait(0)?), 4);
        Ok(())
    }

    #[test]
    fn put_back() -> Result {
        let events = KBox::pin_init(Events::new()?, GFP_KERNEL)?;
        events.push(What::NoSpace(0));
        events.put_back(events.wait(0)?);
        for i in 1..MAX_EVENTS as u64 {
            events.push(What::NoSpace(i));
        }
        let first = events.wait(0)?;
        events.push(What::NoSpace(100));
        events.put_back(first);
        for i in 0..MAX_EVENTS as u64 {
            assert_eq!(sectors(events.wait(0)?), i);
        }
        assert_eq!(events.wait(0).err(), Some(ENOENT));
        Ok(())
    }
}
