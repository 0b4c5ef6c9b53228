// SPDX-License-Identifier: GPL-2.0-only

//! How far long work is, on a terminal, and the signals that stop it.

use std::io::IsTerminal;
use std::path::Path;
use std::path::PathBuf;

use blksnap::backup::Progress;
use blksnap::backup::Watch;
use blksnap::error::Exit;
use blksnap::error::Operation;
use blksnap::signals::Signals;
use blksnap::Error;
use blksnap::Result;
use indicatif::ProgressBar;
use indicatif::ProgressStyle;

use super::output::Output;

const TEMPLATE: &str =
    "{wide_bar} {percent} % of {total_bytes}, {binary_bytes_per_sec}, {eta} left";

/// Looks at long work for the user.
pub struct Attendant {
    output: Output,
    signals: Signals,
    bar: Option<ProgressBar>,
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
