// SPDX-License-Identifier: GPL-2.0-only

//! How far long work is, and the signals that stop it.

use std::io::IsTerminal;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use blksnap::backup::Progress;
use blksnap::backup::Watch;
use blksnap::error::Exit;
use blksnap::error::Operation;
use blksnap::signals::Signals;
use blksnap::Bytes;
use blksnap::Error;
use blksnap::Result;
use indicatif::HumanDuration;
use indicatif::ProgressBar;
use indicatif::ProgressStyle;

use super::output::Output;

const TEMPLATE: &str =
    "{wide_bar} {percent} % of {total_bytes}, {binary_bytes_per_sec}, {eta} left";

/// How often lines tell it where there is no terminal, such as in a journal, and with --json.
const LINE_EVERY: Duration = Duration::from_secs(60);
const JSON_EVERY: Duration = Duration::from_secs(5);

/// Tells how far work is from time to time.
struct Reporter {
    every: Duration,
    /// When it was told last, or the work has begun, and how far that was then.
    last: Option<(Instant, Progress)>,
}

impl Reporter {
    fn new(output: Output) -> Self {
        let every = match output.is_json() {
            true => JSON_EVERY,
            false => LINE_EVERY,
        };
        Self { every, last: None }
    }

    /// The bytes in a second since the last time, if it is time to tell.
    fn rate(&mut self, progress: Progress, now: Instant) -> Option<u64> {
        let (then, before) = match self.last {
            // Another piece of work
            Some((then, before)) if before.total == progress.total => (then, before),
            _ => {
                self.last = Some((now, progress));
                return None;
            }
        };
        let time = now.saturating_duration_since(then);
        if time < self.every {
            return None;
        }
        self.last = Some((now, progress));
        let bytes = progress.done.saturating_sub(before.done);
        Some((bytes as f64 / time.as_secs_f64()) as u64)
    }
}

/// How far it is, in a line.
fn line(progress: Progress, rate: u64) -> String {
    let Progress { done, total } = progress;
    let percent = (u128::from(done) * 100 / u128::from(total.max(1))) as u64;
    let mut text = format!("{percent} % of {}, {}/s", Bytes(total), Bytes(rate));
    if let Some(seconds) = total.saturating_sub(done).checked_div(rate) {
        let left = HumanDuration(Duration::from_secs(seconds));
        text += &format!(", {left} left");
    }
    text
}

/// Looks at long work for the user.
pub struct Attendant {
    output: Output,
    signals: Signals,
    bar: Option<ProgressBar>,
    reporter: Reporter,
    operation: Operation,
    path: PathBuf,
}

impl Attendant {
    /// `operation` on `path` is what a signal stops.
    pub fn new(output: Output, operation: Operation, path: &Path) -> Result<Self> {
        let bar = (!output.is_json() && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template(TEMPLATE);
            ProgressBar::no_length().with_style(style.expect("it is a valid template"))
        });
        Ok(Self {
            output,
            signals: Signals::catch().map_err(|error| Error::from_io(operation, &error))?,
            bar,
            reporter: Reporter::new(output),
            operation,
            path: path.to_owned(),
        })
    }
}

impl Watch for Attendant {
    fn keep_on(&mut self, progress: Progress) -> Result<()> {
        if let Some(bar) = self.bar.as_ref().filter(|_| progress.total > 0) {
            if bar.length() != Some(progress.total) {
                bar.set_length(progress.total);
                bar.reset_eta();
            }
            bar.set_position(progress.done);
        }
        if self.bar.is_none() && progress.total > 0 {
            if let Some(rate) = self.reporter.rate(progress, Instant::now()) {
                self.output.progress(progress, rate, &line(progress, rate));
            }
        }
        match self.signals.pending().first() {
            None => Ok(()),
            Some(stop) => {
                let signal = stop.signal;
                let remedy = match self.operation {
                    Operation::Restore => "run it again; the target is not complete",
                    _ => "run it again; what was there is as it was",
                };
                Err(Error::new(self.operation, format!("signal {signal} came"))
                    .on(&self.path)
                    .remedied_by(remedy)
                    .exiting(Exit::of_signal(signal)))
            }
        }
    }

    fn tell(&mut self, note: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.output.note(note)),
            None => self.output.note(note),
        }
    }

    fn warn(&mut self, warning: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.output.warning(warning)),
            None => self.output.warning(warning),
        }
    }
}

/// Tells what is waited for. A signal ends the process, which has done nothing yet.
pub struct Waiter(pub Output);

impl Watch for Waiter {
    fn keep_on(&mut self, _progress: Progress) -> Result<()> {
        Ok(())
    }

    fn tell(&mut self, note: &str) {
        self.0.note(note);
    }

    fn warn(&mut self, warning: &str) {
        self.0.warning(warning);
    }
}

impl Drop for Attendant {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(done: u64, total: u64) -> Progress {
        Progress { done, total }
    }

    #[test]
    fn it_is_told_from_time_to_time() {
        let mut reporter = Reporter::new(Output::new(false));
        let begin = Instant::now();
        let mut at = |seconds, done, total| {
            reporter.rate(progress(done, total), begin + Duration::from_secs(seconds))
        };
        // Short work says nothing.
        assert_eq!(at(0, 0, 1 << 30), None);
        assert_eq!(at(59, 100, 1 << 30), None);
        assert_eq!(at(60, 6000, 1 << 30), Some(100));
        assert_eq!(at(61, 7000, 1 << 30), None);
        assert_eq!(at(130, 6000 + 70 * 9, 1 << 30), Some(9));
        // Other work, of which less is done, has a beginning of its own.
        assert_eq!(at(200, 0, 1 << 20), None);
        assert_eq!(at(260, 600, 1 << 20), Some(10));
    }

    #[test]
    fn lines_tell_what_is_left() {
        assert_eq!(
            line(progress(1 << 30, 4 << 30), 1 << 20),
            "25 % of 4G, 1M/s, 51 minutes left"
        );
        assert_eq!(line(progress(0, 1 << 20), 0), "0 % of 1M, 0/s");
        assert!(line(progress(u64::MAX, u64::MAX), 1).starts_with("100 % of "));
    }
}
