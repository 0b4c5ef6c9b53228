// SPDX-License-Identifier: GPL-2.0-only

//! "blksnap snap events": what happened to a snapshot.

use std::io;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use blksnap::control::Event;
use blksnap::control::EventKind;
use blksnap::date;
use blksnap::device::DeviceNumber;
use blksnap::device::SnapshotState;
use blksnap::error::Exit;
use blksnap::error::Operation;
use blksnap::explain::errno_name;
use blksnap::sysfs::Sysfs;
use blksnap::Control;
use blksnap::Error;
use blksnap::Result;
use blksnap::Uuid;
use rustix::event::poll;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::time::clock_gettime;
use rustix::time::ClockId;
use rustix::time::Timespec;
use serde_json::json;
use serde_json::Value;

use super::commands::corrupted;
use super::output::seen;
use super::output::Output;

/// How often an older driver, which cannot be polled, is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// Where events come from.
trait Source {
    /// The oldest event that is waiting.
    fn next(&self) -> Result<Option<Event>>;
    /// Waits for an event, so long or forever, or now and then for nothing.
    /// Returns whether somebody still reads what is printed.
    fn wait(&self, limit: Option<Duration>) -> Result<bool>;
}

struct Driver {
    control: Control,
    id: Uuid,
    can_poll: bool,
}

impl Driver {
    fn open(id: Uuid) -> Result<Self> {
        let control = Control::open()?;
        let can_poll = match control.watch(id) {
            Ok(()) => true,
            Err(error) if error.errno() == Some(Errno::NOTTY) => false,
            Err(error) => return Err(error),
        };
        Ok(Self {
            control,
            id,
            can_poll,
        })
    }
}

impl Source for Driver {
    fn next(&self) -> Result<Option<Event>> {
        self.control.wait_event(self.id, Duration::ZERO)
    }

    fn wait(&self, mut limit: Option<Duration>) -> Result<bool> {
        let stdout = io::stdout();
        // Without a wish for events, what comes is that the reader is gone.
        let mut fds = vec![PollFd::new(&stdout, PollFlags::empty())];
        if self.can_poll {
            fds.push(PollFd::new(&self.control, PollFlags::IN));
        } else {
            limit = Some(limit.map_or(INTERVAL, |limit| limit.min(INTERVAL)));
        }
        // What does not fit is forever.
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) => Ok(fds[0].revents().is_empty()),
            Err(Errno::INTR) => Ok(true),
            Err(errno) => Err(Error::from_errno(Operation::WaitEvent, errno).of(self.id)),
        }
    }
}

/// Prints the events that are waiting, or else waits for some until
/// `deadline`; with `follow` goes on until the snapshot is destroyed. Returns
/// whether one said that the snapshot is broken.
fn relay(
    source: &impl Source,
    follow: bool,
    deadline: Option<Instant>,
    print: &mut dyn FnMut(&Event) -> io::Result<()>,
) -> Result<bool> {
    let mut broken = false;
    let mut printed = false;
    let mut existed = false;
    // Whatever fails afterwards, this is what matters.
    let failed = |broken: bool, error: Error| match broken {
        true => error.exiting(Exit::Corrupted),
        false => error,
    };
    loop {
        match source.next() {
            Ok(Some(event)) => {
                broken |= corruption(&event.kind).is_some();
                printed = true;
                if let Err(error) = print(&event) {
                    return match seen(Err(error)) {
                        Ok(()) => Ok(broken),
                        Err(error) => Err(failed(broken, error)),
                    };
                }
                existed = true;
                continue;
            }
            Ok(None) => existed = true,
            Err(error) if existed && error.errno() == Some(Errno::SRCH) => return Ok(broken),
            Err(error) => return Err(failed(broken, error)),
        }
        let waits = follow || (deadline.is_some() && !printed);
        let rest = deadline.map(|end| end.saturating_duration_since(Instant::now()));
        if !waits || rest.is_some_and(|rest| rest.is_zero()) {
            return Ok(broken);
        }
        if !source.wait(rest).map_err(|error| failed(broken, error))? {
            return Ok(broken);
        }
    }
}

/// Why the snapshot is broken, if the event says so.
fn corruption(kind: &EventKind) -> Option<Errno> {
    match kind {
        EventKind::Corrupted { error_code, .. } => SnapshotState {
            error_code: *error_code,
            image: None,
        }
        .corruption()
        .or(Some(Errno::IO)),
        EventKind::NoSpace { .. } => Some(Errno::NOSPC),
        EventKind::LowSpace { .. }
        | EventKind::Lost { .. }
        | EventKind::SlowStorage { .. }
        | EventKind::Other { .. } => None,
    }
}

pub fn events(output: &Output, id: Uuid, follow: bool, timeout: Option<Duration>) -> Result<u8> {
    let source = Driver::open(id)?;
    // One that does not fit is never.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let broken = relay(&source, follow, deadline, &mut |event| {
        let (value, text) = describe(id, event, |number| Sysfs::default().node_of(number));
        // On standard error it is told even if it cannot be printed.
        let printed = output.item(&value, &text);
        if let Some(errno) = corruption(&event.kind) {
            let error = Error::from_corruption(errno).of(id);
            output.error(&match value["device"].as_str() {
                Some(device) => error.on(device.as_ref()),
                None => error,
            });
        }
        printed
    })?;
    Ok(corrupted(broken))
}

fn describe<P: AsRef<Path>>(
    id: Uuid,
    event: &Event,
    node_of: impl Fn(DeviceNumber) -> Option<P>,
) -> (Value, String) {
    let when = rfc3339(wall_clock(event.time_label));
    let named = |device: DeviceNumber| {
        let node = node_of(device).map(|node| node.as_ref().display().to_string());
        let text = match &node {
            Some(node) => format!("{node} ({device})"),
            None => device.to_string(),
        };
        (node, text)
    };
    let (kind, figures, text) = match &event.kind {
        EventKind::LowSpace { left } => (
            "low-space",
            json!({ "left_sectors": left }),
            format!("{} left", left.bytes()),
        ),
        EventKind::NoSpace { requested } => (
            "no-space",
            json!({ "requested_sectors": requested }),
            format!("{} more were needed", requested.bytes()),
        ),
        EventKind::Lost {
            device,
            sector,
            length,
            error_code,
        } => {
            let name = errno_name(Errno::from_raw_os_error(-error_code));
            let (node, text) = named(*device);
            let text = format!(
                "{text}, {} at byte {} cannot be read, {name}",
                length.bytes(),
                sector.bytes().0
            );
            let figures = json!({
                "device": node,
                "device_number": device,
                "sector": sector,
                "sectors": length,
                "error_code": error_code,
                "errno_name": name,
            });
            ("lost", figures, text)
        }
        EventKind::SlowStorage {
            device,
            held_ms,
            limit_ms,
        } => {
            let (node, text) = named(*device);
            let [held, limit] = [held_ms, limit_ms].map(|ms| f64::from(*ms) / 1000.0);
            let text = format!(
                "{text}, writers waited {held:.1} s of the last minute for the storage; the \
                 snapshot is given up when it is {limit} s"
            );
            let figures = json!({
                "device": node,
                "device_number": device,
                "held_ms": held_ms,
                "limit_ms": limit_ms,
            });
            ("slow-storage", figures, text)
        }
        EventKind::Corrupted { device, error_code } => {
            let errno = corruption(&event.kind).unwrap_or(Errno::IO);
            let name = errno_name(errno);
            let (node, text) = named(*device);
            let text = format!("{text}, {name}");
            (
                if errno == Errno::NODEV {
                    "device-gone"
                } else {
                    "corrupted"
                },
                json!({
                    "device": node,
                    "device_number": device,
                    "error_code": error_code,
                    "errno_name": name,
                }),
                text,
            )
        }
        EventKind::Other { code, .. } => {
            ("unknown", json!({ "code": code }), format!("code {code}"))
        }
    };
    let mut value = json!({ "kind": kind, "when": when, "id": id });
    if let (Value::Object(all), Value::Object(figures)) = (&mut value, figures) {
        all.extend(figures);
    }
    (value, format!("{when} {kind}: {text}"))
}

/// The time of day of a moment in nanoseconds of CLOCK_MONOTONIC, as far as
/// the machine has not slept since.
fn wall_clock(label: i64) -> SystemTime {
    let now = clock_gettime(ClockId::Monotonic);
    let now = Duration::new(
        now.tv_sec.try_into().unwrap_or(0),
        now.tv_nsec.try_into().unwrap_or(0),
    );
    let then = Duration::from_nanos(label.try_into().unwrap_or(0));
    SystemTime::now() - now.saturating_sub(then)
}

/// In UTC, with milliseconds.
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = since.subsec_millis();
    date::rfc3339(since.as_secs()).replace('Z', &format!(".{millis:03}Z"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use blksnap::Sectors;
    use std::cell::RefCell;
    use std::path::PathBuf;

    const ID: Uuid = Uuid::from_bytes([9; 16]);

    /// What happens next: an event comes, nothing is there, it is destroyed.
    enum Step {
        Event(EventKind),
        Nothing,
        Gone,
    }

    struct Script {
        steps: RefCell<std::vec::IntoIter<Step>>,
        reader: bool,
        waits: RefCell<Vec<bool>>,
    }

    impl Script {
        fn new(steps: Vec<Step>) -> Self {
            Self {
                steps: RefCell::new(steps.into_iter()),
                reader: true,
                waits: RefCell::default(),
            }
        }
    }

    impl Source for Script {
        fn next(&self) -> Result<Option<Event>> {
            match self.steps.borrow_mut().next().expect("asked too often") {
                Step::Event(kind) => Ok(Some(Event {
                    time_label: 0,
                    kind,
                })),
                Step::Nothing => Ok(None),
                Step::Gone => Err(Error::from_errno(Operation::WaitEvent, Errno::SRCH).of(ID)),
            }
        }

        fn wait(&self, limit: Option<Duration>) -> Result<bool> {
            self.waits.borrow_mut().push(limit.is_some());
            Ok(self.reader)
        }
    }

    fn low(left: u64) -> EventKind {
        EventKind::LowSpace {
            left: Sectors(left),
        }
    }

    fn broken(error_code: i32) -> EventKind {
        EventKind::Corrupted {
            device: DeviceNumber { major: 8, minor: 0 },
            error_code,
        }
    }

    fn lost() -> EventKind {
        EventKind::Lost {
            device: DeviceNumber { major: 8, minor: 0 },
            sector: Sectors(800),
            length: Sectors(8),
            error_code: -5,
        }
    }

    /// How many events were printed, and what it came to.
    fn run(script: &Script, follow: bool, timeout: Option<Duration>) -> (usize, Result<bool>) {
        let mut count = 0;
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let result = relay(script, follow, deadline, &mut |_| {
            count += 1;
            Ok(())
        });
        (count, result)
    }

    const LONG: Option<Duration> = Some(Duration::from_secs(1000));

    #[test]
    fn without_follow_only_what_is_waiting_is_printed() {
        let script = Script::new(vec![
            Step::Event(low(1)),
            Step::Event(low(2)),
            Step::Nothing,
        ]);
        let (count, result) = run(&script, false, LONG);
        assert_eq!((count, result), (2, Ok(false)));
        assert!(script.waits.borrow().is_empty());

        let script = Script::new(vec![Step::Nothing]);
        assert_eq!(run(&script, false, None), (0, Ok(false)));
        assert!(script.waits.borrow().is_empty());
    }

    #[test]
    fn a_timeout_waits_for_the_first_event() {
        let script = Script::new(vec![
            Step::Nothing,
            Step::Nothing,
            Step::Event(low(1)),
            Step::Nothing,
        ]);
        assert_eq!(run(&script, false, LONG), (1, Ok(false)));
        assert_eq!(*script.waits.borrow(), [true, true]);

        for follow in [false, true] {
            let script = Script::new(vec![Step::Nothing]);
            let result = run(&script, follow, Some(Duration::ZERO));
            assert_eq!(result, (0, Ok(false)));
        }
    }

    #[test]
    fn follow_ends_when_the_snapshot_is_destroyed() {
        let script = Script::new(vec![
            Step::Event(low(1)),
            Step::Nothing,
            Step::Nothing,
            Step::Event(broken(-5)),
            Step::Nothing,
            Step::Gone,
        ]);
        assert_eq!(run(&script, true, None), (2, Ok(true)));
        assert_eq!(*script.waits.borrow(), [false; 3]);
    }

    #[test]
    fn a_snapshot_that_never_was_is_an_error() {
        let (count, result) = run(&Script::new(vec![Step::Gone]), true, None);
        assert_eq!(count, 0);
        assert_eq!(result.unwrap_err().errno(), Some(Errno::SRCH));
    }

    #[test]
    fn it_ends_when_nobody_reads() {
        let script = Script {
            reader: false,
            ..Script::new(vec![Step::Nothing])
        };
        assert_eq!(run(&script, true, None), (0, Ok(false)));

        let script = Script::new(vec![Step::Event(broken(-5))]);
        let result = relay(&script, true, None, &mut |_| {
            Err(io::ErrorKind::BrokenPipe.into())
        });
        assert_eq!(result, Ok(true));
    }

    #[test]
    fn events_that_cannot_be_written_are_an_error() {
        for (kind, code) in [(low(1), 1), (broken(-5), 3)] {
            let script = Script::new(vec![Step::Event(kind)]);
            let result = relay(&script, true, None, &mut |_| Err(Errno::NOSPC.into()));
            let error = result.unwrap_err();
            assert_eq!(error.operation(), Operation::Print);
            assert_eq!(error.exit().code(), code);
        }
    }

    #[test]
    fn events_are_described() {
        let node = |number: DeviceNumber| (number.major == 8).then(|| PathBuf::from("/dev/sda"));
        let describe = |kind| {
            let (value, text) = describe(
                ID,
                &Event {
                    time_label: 0,
                    kind,
                },
                node,
            );
            let (when, text) = text.split_once(' ').unwrap();
            assert_eq!(value["when"], when);
            assert_eq!(value["id"], ID.to_string());
            (value, text.to_owned())
        };

        let (value, text) = describe(low(2048));
        assert_eq!(value["kind"], "low-space");
        assert_eq!(value["left_sectors"], 2048);
        assert_eq!(text, "low-space: 1M left");

        let (value, text) = describe(EventKind::NoSpace {
            requested: Sectors(32),
        });
        assert_eq!(value["kind"], "no-space");
        assert_eq!(value["requested_sectors"], 32);
        assert_eq!(text, "no-space: 16K more were needed");

        let (value, text) = describe(broken(-5));
        assert_eq!(value["kind"], "corrupted");
        assert_eq!(value["device"], "/dev/sda");
        assert_eq!(value["device_number"], "8:0");
        assert_eq!(value["error_code"], -5);
        assert_eq!(value["errno_name"], "EIO");
        assert_eq!(text, "corrupted: /dev/sda (8:0), EIO");

        let (value, text) = describe(EventKind::Corrupted {
            device: DeviceNumber { major: 7, minor: 1 },
            error_code: -19,
        });
        assert_eq!(value["kind"], "device-gone");
        assert!(value["device"].is_null());
        assert_eq!(text, "device-gone: 7:1, ENODEV");

        let (value, text) = describe(lost());
        assert_eq!(value["kind"], "lost");
        assert_eq!(value["device"], "/dev/sda");
        assert_eq!(value["sector"], 800);
        assert_eq!(value["sectors"], 8);
        assert_eq!(value["errno_name"], "EIO");
        assert_eq!(
            text,
            "lost: /dev/sda (8:0), 4K at byte 409600 cannot be read, EIO"
        );

        let (value, text) = describe(EventKind::SlowStorage {
            device: DeviceNumber { major: 8, minor: 0 },
            held_ms: 5040,
            limit_ms: 30_000,
        });
        assert_eq!(value["kind"], "slow-storage");
        assert_eq!(value["device"], "/dev/sda");
        assert_eq!(
            (&value["held_ms"], &value["limit_ms"]),
            (&json!(5040), &json!(30_000))
        );
        assert!(text.contains("waited 5.0 s of the last minute"), "{text}");
        assert!(text.ends_with("when it is 30 s"), "{text}");

        let (value, _) = describe(EventKind::Other {
            code: 99,
            data: Vec::new(),
        });
        assert_eq!(
            (&value["kind"], &value["code"]),
            (&json!("unknown"), &json!(99))
        );
    }

    #[test]
    fn only_some_events_say_that_the_snapshot_is_broken() {
        assert_eq!(corruption(&low(0)), None);
        assert_eq!(corruption(&lost()), None);
        assert_eq!(corruption(&broken(-19)), Some(Errno::NODEV));
        assert_eq!(corruption(&broken(0)), Some(Errno::IO));
        let full = EventKind::NoSpace {
            requested: Sectors(1),
        };
        assert_eq!(corruption(&full), Some(Errno::NOSPC));
    }

    #[test]
    fn times_are_those_of_a_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_399, "2000-02-28T23:59:59.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (951_868_800, "2000-03-01T00:00:00.007Z"),
            (1_709_164_800, "2024-02-29T00:00:00.007Z"),
            (1_735_689_599, "2024-12-31T23:59:59.007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.007Z"),
        ] {
            let time = UNIX_EPOCH + Duration::new(seconds, 7_000_000);
            assert_eq!(rfc3339(time), text);
        }
    }

    #[test]
    fn the_monotonic_clock_becomes_the_time_of_day() {
        let now = clock_gettime(ClockId::Monotonic);
        let label = now.tv_sec as i64 * 1_000_000_000 + now.tv_nsec as i64;
        let earlier = wall_clock(label - 10_000_000_000);
        let age = SystemTime::now().duration_since(earlier).unwrap();
        assert!((9..12).contains(&age.as_secs()), "{age:?}");
    }
}
