// SPDX-License-Identifier: GPL-2.0-only

//! Writing back and freezing of file systems.
//!
//! A file system whose device does not answer can be neither written back nor frozen nor thawed.
//! Others must not stay frozen for that, and the task that waits must not hang. So a worker does
//! it: the task gives up after some time or with a signal, and what the worker has done then is
//! undone.

use crate::deadline::Deadline;
use kernel::{
    block::bdev::{
        BdevFile,
        FrozenFs, //
    },
    new_mutex,
    noio,
    prelude::*,
    sync::{
        Arc,
        Completion,
        Mutex, //
    },
    time::Delta,
    workqueue::OwnedQueue, //
};

/// How long a file system may take to freeze before another order is tried; each time twice as
/// long.
const PATIENCE: Delta = Delta::from_millis(500);

/// State of a job.
enum State<R> {
    Running,
    Done(Result<R>),
    /// Nobody waits any more: the result is dropped.
    GivenUp,
}

#[pin_data]
struct Job<R> {
    #[pin]
    state: Mutex<State<R>>,
    #[pin]
    done: Completion,
}

/// The workers. Dropping it waits until they are done.
pub(crate) struct Freezer(OwnedQueue);

impl Freezer {
    /// May sleep.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(OwnedQueue::new_mem_reclaim(c"blksnap_freezer")?))
    }

    /// Writes what file systems on the device have not written yet. May sleep for long.
    ///
    /// # Errors
    ///
    /// [`ERESTARTSYS`] after a signal: then it goes on without the caller. [`ENOMEM`].
    pub(crate) fn sync(&self, device: Arc<BdevFile>) -> Result {
        let job = self.start(move || {
            device.sync();
            Ok(())
        })?;
        job.wait(Completion::wait_for_completion_interruptible)
    }

    /// Freezes the file systems on `devices`, and adds them to `frozen`, which has room for them.
    /// May sleep, but not after the deadline.
    ///
    /// One that writes to another one, as through a loop device, is to be frozen before that. If it
    /// comes later it takes long: then all are thawed, and it is the first one next time.
    ///
    /// # Errors
    ///
    /// Those of [`FrozenFs::new`], and of [`Self::run_until`]: then it is thawed once it is frozen.
    pub(crate) fn freeze(
        &self,
        devices: &mut [Arc<BdevFile>],
        frozen: &mut KVec<FrozenFs>,
        deadline: Deadline,
    ) -> Result {
        let mut patience = PATIENCE;
        loop {
            let trial = deadline.or_after(patience);
            let Err((at, error)) = self.try_freeze(devices, frozen, deadline, trial) else {
                return Ok(());
            };
            if error != ETIMEDOUT || at == 0 || deadline.left_millis() == 0 {
                let dev = devices[at].dev();
                pr_err!("the file system on {dev} cannot be frozen: {error:?}\n");
                return Err(error);
            }
            let _ = self.thaw(frozen, deadline);
            devices[..=at].rotate_right(1);
            patience += patience;
        }
    }

    /// Freezes the file systems in this order; all but the first one, which none that is frozen can
    /// block, until `trial`. On error returns the index of the one that is not frozen, too.
    fn try_freeze(
        &self,
        devices: &[Arc<BdevFile>],
        frozen: &mut KVec<FrozenFs>,
        deadline: Deadline,
        trial: Deadline,
    ) -> Result<(), (usize, Error)> {
        for (at, device) in devices.iter().enumerate() {
            let device = device.clone();
            let limit = if at == 0 { deadline } else { trial };
            let fs = self.run_until(limit, move || FrozenFs::new(device));
            // There is room for it.
            let _ = frozen.push_within_capacity(fs.map_err(|error| (at, error))?);
        }
        Ok(())
    }

    /// Thaws file systems, all at once: none waits for one that cannot be thawed. May sleep, but
    /// not after the deadline.
    ///
    /// # Errors
    ///
    /// [`EAGAIN`] if one had been thawed before, as far as that can be told, and might have been
    /// written to before its device was stopped. Those of [`Self::run_until`]: then they are thawed
    /// once that is possible.
    pub(crate) fn thaw(&self, frozen: &mut KVec<FrozenFs>, deadline: Deadline) -> Result {
        let mut result = Ok(());
        // Without the memory for it, one after the other.
        let mut jobs = KVec::with_capacity(frozen.len(), GFP_NOIO).unwrap_or(KVec::new());
        // The last one first: others may write to it.
        while let Some(fs) = frozen.pop() {
            match self.start(move || fs.thaw()) {
                Ok(job) if jobs.len() == jobs.capacity() => {
                    result = result.and(job.wait_until(deadline));
                }
                Ok(job) => {
                    let _ = jobs.push_within_capacity(job);
                }
                Err(error) => result = result.and(Err(error)),
            }
        }
        for job in jobs {
            result = result.and(job.wait_until(deadline));
        }
        result.map_err(|error| if error == EINVAL { EAGAIN } else { error })
    }

    /// Calls `f` in a worker, and waits for it until the deadline.
    ///
    /// # Errors
    ///
    /// Those of [`Self::start`] and of [`Job::wait_until`].
    fn run_until<R: Send + Unpin + 'static>(
        &self,
        deadline: Deadline,
        f: impl FnOnce() -> Result<R> + Send + 'static,
    ) -> Result<R> {
        self.start(f)?.wait_until(deadline)
    }

    /// Calls `f` in a worker.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`]: `f` is not called.
    fn start<R: Send + Unpin + 'static>(
        &self,
        f: impl FnOnce() -> Result<R> + Send + 'static,
    ) -> Result<Arc<Job<R>>> {
        let job = Arc::pin_init(
            pin_init!(Job {
                state <- new_mutex!(State::Running, "blksnap_job"),
                done <- Completion::new(),
            }),
            GFP_NOIO,
        )?;
        let of_worker = job.clone();
        self.0.try_spawn(GFP_NOIO, move || {
            // Reclaim could wait for what is frozen.
            noio::scope(|| {
                let result = f();
                let mut state = of_worker.state.lock();
                if let State::Running = *state {
                    *state = State::Done(result);
                    of_worker.done.complete_all();
                }
            });
        })?;
        Ok(job)
    }
}

impl<R: Unpin> Job<R> {
    /// Waits until the deadline.
    ///
    /// # Errors
    ///
    /// [`ETIMEDOUT`] after the deadline: the result is dropped. That of the job.
    fn wait_until(&self, deadline: Deadline) -> Result<R> {
        self.wait(|done| {
            let in_time = done.wait_for_completion_timeout(deadline.left());
            in_time.then_some(()).ok_or(ETIMEDOUT)
        })
    }

    /// Waits by `wait`.
    ///
    /// # Errors
    ///
    /// Those of `wait`: the result is dropped. That of the job.
    fn wait(&self, wait: impl FnOnce(&Completion) -> Result) -> Result<R> {
        let waited = wait(&self.done);
        // It may have been done since.
        let state = core::mem::replace(&mut *self.state.lock(), State::GivenUp);
        match state {
            State::Done(result) => result,
            State::Running | State::GivenUp => Err(waited.err().unwrap_or(EINTR)),
        }
    }
}
