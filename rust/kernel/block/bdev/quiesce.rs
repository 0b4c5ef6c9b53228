// SPDX-License-Identifier: GPL-2.0-only

//! Stopping the I/O of block devices.
//!
//! C header: [`include/linux/blk-filter.h`](srctree/include/linux/blk-filter.h)

use super::BlockDevice;
use crate::{
    bindings,
    error::to_result,
    prelude::*,
    time::{
        msecs_to_jiffies,
        Delta,
        Instant,
        Monotonic, //
    },
    types::NotThreadSafe, //
};

/// Devices whose I/O is stopped, one group after the other.
///
/// A device is quiesced when each write that the filters of its disk have let pass is completed.
/// New I/O waits outside from [`start`](Self::start) on, until [`resume`](Self::resume) or the end
/// of this. Meanwhile the owner must not wait for I/O to the device, and its allocations are
/// `GFP_NOIO`. Nor may it open or close devices of the disk, or take locks that are held while I/O
/// to it is waited for. It must be dropped where sleeping is allowed.
///
/// # Invariants
///
/// `started` is not larger than the number of devices. Those in front of it were started by this
/// task, and not resumed since.
///
/// # Examples
///
/// ```
/// use kernel::{
///     block::bdev::{BlockDevice, Quiesce},
///     sync::atomic::{Atomic, Relaxed},
///     time::Delta,
/// };
///
/// /// Writes before this count for the old generation, those after it for the new one.
/// fn next_generation(bdev: &BlockDevice, generation: &Atomic<u64>) -> Result {
///     let mut devices = KVec::new();
///     devices.push(bdev, GFP_KERNEL)?;
///     let mut devices = Quiesce::new(devices);
///     devices.start(1)?;
///     if devices.wait(Delta::from_secs(1)) > 0 {
///         return Err(ETIMEDOUT);
///     }
///     generation.add(1, Relaxed);
///     Ok(())
/// }
/// ```
pub struct Quiesce<'a> {
    devices: KVec<&'a BlockDevice>,
    started: usize,
    // Drivers may hold a mutex, which the task that has locked it unlocks.
    _not_send: NotThreadSafe,
}

impl<'a> Quiesce<'a> {
    /// For `devices`, each on a disk of its own: others may not start. Nothing is stopped yet.
    pub fn new(devices: KVec<&'a BlockDevice>) -> Self {
        // INVARIANT: None is started.
        Self {
            devices,
            started: 0,
            _not_send: NotThreadSafe,
        }
    }

    /// All devices; those that are started come first.
    pub fn devices(&self) -> &[&'a BlockDevice] {
        &self.devices
    }

    /// Holds new I/O of the next `count` devices back, or of as many as there are. May sleep.
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] if filters do not see all writes to a device, [`EBUSY`] if a device is being
    /// suspended or resumed, or its disk is started already and its driver can stop it only once.
    /// None of the `count` devices is started then.
    pub fn start(&mut self, count: usize) -> Result {
        let begin = self.started;
        let end = self.devices.len().min(begin.saturating_add(count));
        for device in &self.devices[begin..end] {
            // SAFETY: The device is borrowed, so it stays.
            let result = to_result(unsafe { bindings::blk_filter_start_quiesce(device.as_raw()) });
            if result.is_err() {
                self.resume(begin);
                return result;
            }
            // INVARIANT: This one was started just now.
            self.started += 1;
        }
        Ok(())
    }

    /// Waits at most `timeout` for the devices that are started, and returns how many are not
    /// quiesced then. These come first from now on. May sleep.
    ///
    /// If a device is stacked on another one that is started, I/O of the upper device can block in
    /// the lower one, and is completed some time after the lower one was resumed.
    pub fn wait(&mut self, timeout: Delta) -> usize {
        let begin = Instant::<Monotonic>::now();
        let mut late = 0;
        for i in 0..self.started {
            let left = (timeout - begin.elapsed()).as_millis();
            let left = msecs_to_jiffies(left.clamp(0, i32::MAX.into()) as u32);
            // SAFETY: By the type invariants this device is started, by this task. It is borrowed,
            // so it stays. `i32::MAX` milliseconds do not overflow.
            let quiesced = unsafe {
                bindings::blk_filter_wait_quiesce(self.devices[i].as_raw(), left as isize)
            };
            if !quiesced {
                self.devices.swap(i, late);
                late += 1;
            }
        }
        late
    }

    /// Lets the I/O of all devices but the first `count` go on, quiesced or not. May sleep.
    pub fn resume(&mut self, count: usize) {
        while self.started > count {
            // INVARIANT: Those in front of it are started still.
            self.started -= 1;
            // SAFETY: By the type invariants this device was started, by this task. It is
            // borrowed, so it stays.
            unsafe { bindings::blk_filter_unquiesce(self.devices[self.started].as_raw()) };
        }
    }
}

impl Drop for Quiesce<'_> {
    fn drop(&mut self) {
        self.resume(0);
    }
}
