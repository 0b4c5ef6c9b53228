// SPDX-License-Identifier: GPL-2.0-only

//! Freezing of file systems, for a limited time.
//!
//! A file system whose device does not answer can be neither frozen nor thawed. Others must not
//! stay frozen for that. So a worker does it: the task that waits gives up after some time, and
//! what the worker has done then is undone.

use crate::{
    deadline::Deadline,
    params, //
};
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
    workqueue::OwnedQueue, //
};

/// State of a job.
enum State<R> {
    Running,
    Done(Result<R>),
    /// The deadline has passed: the result is dropped.
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

    /// Freezes the file system on the device. May sleep, but not after the deadline.
    ///
    /// # Errors
    ///
    /// Those of [`FrozenFs::new`], and of [`Self::run`]: then it is thawed once it is frozen.
    pub(crate) fn freeze(&self, device: Arc<BdevFile>, deadline: Deadline) -> Result<FrozenFs> {
        let dev = device.dev();
        self.run(deadline, move || FrozenFs::new(device))
            .inspect_err(|error| {
                pr_err!("the file system on {dev} cannot be frozen: {error:?}\n");
            })
    }

    /// Thaws file systems, the last one first. May sleep, but not after `freeze_timeout`.
    ///
    /// # Errors
    ///
    /// [`EAGAIN`] if one had been thawed before, as far as that can be told, and might have been
    /// written to before its device was stopped. Those of [`Self::run`]: then they are thawed once
    /// that is possible.
    pub(crate) fn thaw(&self, mut frozen: KVec<FrozenFs>) -> Result {
        let deadline = Deadline::after(params::freeze_timeout());
        let mut result = Ok(());
        while let Some(fs) = frozen.pop() {
            result = result.and(self.run(deadline, move || fs.thaw()));
        }
        result.map_err(|error| if error == EINVAL { EAGAIN } else { error })
    }

    /// Calls `f` in a worker, and waits for it until the deadline.
    ///
    /// # Errors
    ///
    /// [`ETIMEDOUT`] after the deadline: the result of `f` is dropped. [`ENOMEM`] if `f` was not
    /// called. Those of `f`.
    fn run<R: Send + Unpin + 'static>(
        &self,
        deadline: Deadline,
        f: impl FnOnce() -> Result<R> + Send + 'static,
    ) -> Result<R> {
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
        // The state says whether it was in time.
        let _ = job.done.wait_for_completion_timeout(deadline.left());
        let state = core::mem::replace(&mut *job.state.lock(), State::GivenUp);
        match state {
            State::Done(result) => result,
            State::Running | State::GivenUp => Err(ETIMEDOUT),
        }
    }
}
