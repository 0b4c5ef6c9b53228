// SPDX-License-Identifier: GPL-2.0-only

//! The barrier of a take: no device has I/O in flight.
//!
//! A stacked device must be quiesced before the device below it, or its I/O blocks there and it is
//! late. The driver does not know the stacking, so it finds a working order by trial: the I/O of
//! all devices is held back. If some are late for much longer than any other device took, those
//! that are quiesced resume, since one of them may be in the way; they are stopped again when the
//! late ones are quiesced. A late device stays stopped: if it is only slow, none of that is lost.

use crate::deadline::Deadline;
use kernel::{
    block::bdev::{
        BlockDevice,
        Quiesce, //
    },
    prelude::*,
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    }, //
};

/// A late device may be blocked if it takes longer than this many times the slowest one before it,
/// and `PATIENCE` milliseconds.
///
/// Each time that devices resume, half as much again is needed for the next time: a wrong guess
/// lets two devices, or two sets of slow ones, resume each other. The more of all this, the longer
/// it takes to find a stack, and the less often independent devices resume in vain.
const FACTOR: i64 = 2;
const PATIENCE: i64 = 40;

/// In milliseconds, how often late devices are looked at.
const TICK: u32 = 10;

/// What quiesces devices, as [`Quiesce`] does; times are in milliseconds.
trait Gates {
    fn now(&self) -> i64;
    fn sleep(&mut self, millis: u32);
    fn start(&mut self, count: usize) -> Result;
    fn wait(&mut self, millis: u32) -> usize;
    fn resume(&mut self, count: usize);
}

struct Devices<'a> {
    devices: Quiesce<'a>,
    begin: Instant<Monotonic>,
}

impl Gates for Devices<'_> {
    fn now(&self) -> i64 {
        self.begin.elapsed().as_millis()
    }

    fn sleep(&mut self, millis: u32) {
        fsleep(Delta::from_millis(millis.into()));
    }

    fn start(&mut self, count: usize) -> Result {
        self.devices.start(count)
    }

    fn wait(&mut self, millis: u32) -> usize {
        self.devices.wait(Delta::from_millis(millis.into()))
    }

    fn resume(&mut self, count: usize) {
        self.devices.resume(count);
    }
}

/// Why devices are not quiesced.
#[derive(Debug)]
struct Failed {
    /// Of those that are started, the number of late ones, which come first.
    late: usize,
    error: Error,
}

/// Quiesces all devices. `groups` has the ends of the groups in which they are started, the first
/// one last, and room for as many as there are devices.
fn quiesce(gates: &mut impl Gates, groups: &mut KVec<usize>, timeout: i64) -> Result<(), Failed> {
    let mut started = 0;
    // The longest time that a device took
    let mut longest = 0;
    let mut percent = 100;
    while let Some(end) = groups.pop() {
        match gates.start(end - started) {
            Err(EBUSY) if gates.now() < timeout => {
                // What suspends the device may wait for I/O to the others.
                gates.resume(0);
                let _ = groups.push_within_capacity(end);
                if started > 0 {
                    let _ = groups.push_within_capacity(started);
                }
                started = 0;
                gates.sleep(TICK);
                continue;
            }
            Err(error) => return Err(Failed { late: 0, error }),
            Ok(()) => started = end,
        }
        let mut begin = gates.now();
        let mut before = started;
        loop {
            let late = gates.wait(TICK);
            let now = gates.now();
            if late < before {
                before = late;
                longest = longest.max(now - begin);
            }
            if late == 0 {
                break;
            }
            if now >= timeout {
                let error = ETIMEDOUT;
                return Err(Failed { late, error });
            }
            let patience = (FACTOR * longest + PATIENCE) * percent / 100;
            if late < started && now - begin > patience {
                gates.resume(late);
                // There is room: the ends of groups differ.
                let _ = groups.push_within_capacity(started);
                started = late;
                begin = now;
                percent += percent / 2;
            }
        }
    }
    Ok(())
}

/// The devices of a barrier.
pub(crate) struct Barrier<'a> {
    devices: Quiesce<'a>,
    groups: KVec<usize>,
}

impl<'a> Barrier<'a> {
    /// May sleep.
    pub(crate) fn new(devices: KVec<&'a BlockDevice>) -> Result<Self> {
        // A disk is quiesced once, even if there are several partitions of it.
        let mut disks: KVec<&BlockDevice> = KVec::with_capacity(devices.len(), GFP_KERNEL)?;
        for device in devices {
            if !disks.iter().any(|disk| disk.has_disk_of(device)) {
                disks.push(device, GFP_KERNEL)?;
            }
        }
        let mut groups = KVec::with_capacity(disks.len(), GFP_KERNEL)?;
        groups.push(disks.len(), GFP_KERNEL)?;
        Ok(Self {
            devices: Quiesce::new(disks),
            groups,
        })
    }

    /// Runs `f` while no I/O is in flight to any of the devices; see [`Quiesce`] for what it must
    /// not do. May sleep, but hardly after the deadline. Does not allocate.
    ///
    /// # Errors
    ///
    /// Those of [`Quiesce::start`], and [`ETIMEDOUT`] if I/O in flight was not completed in time;
    /// `f` has not run then.
    pub(crate) fn run(self, deadline: Deadline, f: impl FnOnce()) -> Result {
        let Self {
            devices,
            mut groups,
        } = self;
        let begin = Instant::now();
        let timeout = deadline.left_millis().into();
        let mut gates = Devices { devices, begin };
        let Err(Failed { late, error }) = quiesce(&mut gates, &mut groups, timeout) else {
            f();
            return Ok(());
        };
        gates.resume(0);
        for device in &gates.devices.devices()[..late] {
            pr_err!(
                "I/O in flight to {} did not complete in {timeout} ms\n",
                device.dev()
            );
        }
        Err(error)
    }
}

#[kunit_tests(blksnap_barrier)]
mod tests {
    use super::*;

    struct Disk {
        number: usize,
        /// How long its I/O takes. There always is some in flight, each after the other.
        takes: i64,
        /// When the present one began, unless the disk is started.
        began: i64,
        /// What is left of it then.
        left: i64,
    }

    /// For each disk the bits of those in which its I/O blocks.
    type Below = [u8; 8];

    /// Disks in simulated time.
    struct Disks {
        disks: KVec<Disk>,
        below: Below,
        started: usize,
        now: i64,
        resumed: usize,
        /// How often a disk is being suspended.
        busy: usize,
    }

    impl Disks {
        fn new(disks: &[(usize, i64)], below: Below) -> Result<Self> {
            let mut all = KVec::new();
            for (number, takes) in disks.iter().copied() {
                let disk = Disk {
                    number,
                    takes,
                    began: 0,
                    left: 0,
                };
                all.push(disk, GFP_KERNEL)?;
            }
            Ok(Self {
                disks: all,
                below,
                started: 0,
                now: 0,
                resumed: 0,
                busy: 0,
            })
        }

        /// A millisecond passes.
        fn advance(&mut self) {
            self.now += 1;
            let started = &mut self.disks[..self.started];
            let stopped = started.iter().fold(0, |bits, disk| bits | 1 << disk.number);
            for disk in started {
                if self.below[disk.number] & stopped == 0 {
                    disk.left = (disk.left - 1).max(0);
                }
            }
        }

        /// Quiesces all of them; returns the milliseconds that it took.
        fn quiesce(&mut self) -> Result<i64> {
            let mut groups = KVec::with_capacity(self.disks.len(), GFP_KERNEL)?;
            groups.push(self.disks.len(), GFP_KERNEL)?;
            quiesce(self, &mut groups, 5000).map_err(|failed| failed.error)?;
            assert_eq!(self.started, self.disks.len());
            assert!(self.disks.iter().all(|disk| disk.left == 0));
            Ok(self.now)
        }
    }

    impl Gates for Disks {
        fn now(&self) -> i64 {
            self.now
        }

        fn sleep(&mut self, millis: u32) {
            for _ in 0..millis {
                self.advance();
            }
        }

        fn start(&mut self, count: usize) -> Result {
            if self.busy > 0 {
                self.busy -= 1;
                return Err(EBUSY);
            }
            for disk in &mut self.disks[self.started..][..count] {
                let since = (self.now - disk.began) % disk.takes.max(1);
                disk.left = disk.takes - since;
            }
            self.started += count;
            Ok(())
        }

        fn wait(&mut self, millis: u32) -> usize {
            for _ in 0..millis {
                if self.disks[..self.started].iter().all(|disk| disk.left == 0) {
                    break;
                }
                self.advance();
            }
            let mut late = 0;
            for at in 0..self.started {
                if self.disks[at].left > 0 {
                    self.disks.swap(at, late);
                    late += 1;
                }
            }
            late
        }

        fn resume(&mut self, count: usize) {
            for disk in &mut self.disks[count..self.started] {
                disk.began = self.now;
            }
            self.resumed += self.started - count;
            self.started = count;
        }
    }

    #[test]
    fn slow_ones_are_waited_for_together() -> Result {
        let slow = [(0, 900), (1, 1000), (2, 1100), (3, 1200), (4, 1300)];
        let mut disks = Disks::new(&slow, [0; 8])?;
        assert!((1300..1320).contains(&disks.quiesce()?));
        assert_eq!(disks.resumed, 0);

        // Nor is a single one that is slow stopped twice, though it was taken for a blocked one.
        let mut disks = Disks::new(&[(0, 3), (1, 1500), (2, 4)], [0; 8])?;
        assert!((1500..1520).contains(&disks.quiesce()?));
        assert_eq!(disks.resumed, 2);
        Ok(())
    }

    /// Their writes end at different times, and those that resume have one in flight at once.
    #[test]
    fn slow_ones_do_not_resume_each_other_for_ever() -> Result {
        for takes in [200, 500, 1000, 1500] {
            for apart in [20, 60, 150, 250] {
                let mut disks = Disks::new(&[0, 1, 2, 3, 4, 5].map(|i| (i, takes)), [0; 8])?;
                for disk in &mut disks.disks {
                    disk.began = -apart * disk.number as i64;
                }
                assert!(disks.quiesce()? < 3 * takes);
            }
        }
        Ok(())
    }

    #[test]
    fn stacks_are_found() -> Result {
        // Each one is stacked on all with a larger number.
        let below = core::array::from_fn(|number| (0xfe << number) as u8);
        for order in [[5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5], [3, 1, 0, 2, 5, 4]] {
            let mut disks = Disks::new(&order.map(|number| (number, 20)), below)?;
            assert!(disks.quiesce()? < 1500);
        }
        Ok(())
    }

    /// A fast disk beside them, and a device that is as slow as the lower one that it is on
    #[test]
    fn guess_that_was_wrong_is_not_made_for_ever() -> Result {
        for takes in [50, 100, 200, 250, 300, 400, 600] {
            let disks = [(0, takes), (1, takes), (2, 40)];
            let mut disks = Disks::new(&disks, [2, 0, 0, 0, 0, 0, 0, 0])?;
            assert!(disks.quiesce()? < 500 + 5 * takes);
        }
        Ok(())
    }

    /// Trees of 3 to 6 devices, whose own I/O takes up to 100 ms, in any order. A device without
    /// I/O in flight is started before the one that is stacked on it.
    #[test]
    fn any_stacks_are_found() -> Result {
        let mut state = 1u64;
        let mut random = |below: usize| {
            // The constants are Knuth's, "MMIX".
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for _ in 0..200 {
            let count = 3 + random(4);
            let mut below = Below::default();
            let mut latency = [0; 8];
            // A lower device has a larger number.
            for number in (0..count).rev() {
                latency[number] = random(101) as i64;
                let lower = number + 1 + random(count);
                if lower < count {
                    below[number] = below[lower] | 1 << lower;
                    latency[number] += latency[lower];
                }
            }
            let mut disks = KVec::new();
            for number in 0..count {
                let takes = if random(5) > 0 { latency[number] } else { 0 };
                disks.push((number, takes), GFP_KERNEL)?;
                disks.swap(number, random(number + 1));
            }
            let took = Disks::new(&disks, below)?.quiesce()?;
            assert!(took < 4000);
        }
        Ok(())
    }

    #[test]
    fn suspended_ones_are_asked_again() -> Result {
        let mut disks = Disks::new(&[(0, 5), (1, 5)], [0; 8])?;
        disks.busy = 3;
        assert!((30..60).contains(&disks.quiesce()?));
        disks = Disks::new(&[(0, 5)], [0; 8])?;
        disks.busy = usize::MAX;
        assert_eq!(disks.quiesce(), Err(EBUSY));
        Ok(())
    }

    #[test]
    fn late_ones_come_first() -> Result {
        let mut disks = Disks::new(&[(0, 1), (1, 9000), (2, 2)], [0; 8])?;
        assert_eq!(disks.quiesce(), Err(ETIMEDOUT));
        assert_eq!(disks.disks[0].number, 1);
        assert!((5000..5020).contains(&disks.now));
        Ok(())
    }
}
