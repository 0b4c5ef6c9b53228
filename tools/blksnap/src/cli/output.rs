// SPDX-License-Identifier: GPL-2.0-only

use std::io;
use std::io::Write;

use blksnap::backup::Progress;
use blksnap::error::Operation;
use blksnap::printable::printable;
use blksnap::printable::printable_json;
use blksnap::printable::printable_lines;
use blksnap::Error;
use blksnap::Result;
use serde::Serialize;
use serde_json::json;

/// Prints for people or for machines.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    pub fn is_json(&self) -> bool {
        self.json
    }

    /// The result of a command: `value` as JSON, or `text` with a newline
    /// unless it is empty. Returns `code`, or another exit code if that was 0 and
    /// the result could not be printed.
    pub fn result(&self, value: &impl Serialize, text: &str, code: u8) -> u8 {
        match seen(self.item(value, text)) {
            Ok(()) => code,
            Err(error) => {
                self.error(&error);
                code.max(error.exit().code())
            }
        }
    }

    /// One of several results, each of which is seen at once.
    pub fn item(&self, value: &impl Serialize, text: &str) -> io::Result<()> {
        let line = if self.json {
            let text = serde_json::to_string(value).expect("results have only plain keys");
            printable_json(&text).into_owned()
        } else if text.is_empty() {
            return Ok(());
        } else {
            printable_lines(text).into_owned()
        };
        print(&format!("{line}\n"))
    }

    pub fn error(&self, error: &Error) {
        if self.json {
            self.complain(&json!({ "error": error }).to_string());
            return;
        }
        self.complain(&format!("blksnap: {error}"));
        if let Some(remedy) = error.remedy() {
            self.complain(&format!("blksnap: what to do: {remedy}"));
        }
    }

    pub fn warning(&self, text: &str) {
        if self.json {
            self.complain(&json!({ "warning": text }).to_string());
        } else {
            self.complain(&format!("blksnap: warning: {text}"));
        }
    }

    /// What is no trouble, and no result.
    pub fn note(&self, text: &str) {
        if self.json {
            self.complain(&json!({ "note": text }).to_string());
        } else {
            self.complain(&format!("blksnap: {text}"));
        }
    }

    /// How far work is, and how many bytes of it were done in a second.
    pub fn progress(&self, progress: Progress, rate: u64, text: &str) {
        if self.json {
            let Progress { done, total } = progress;
            let value = json!({ "done": done, "total": total, "bytes_per_second": rate });
            self.complain(&json!({ "progress": value }).to_string());
        } else {
            self.complain(&format!("blksnap: {text}"));
        }
    }

    /// A result on standard error, for machines, where standard output has data.
    pub fn record(&self, value: &impl Serialize) {
        self.complain(&json!({ "result": value }).to_string());
    }

    fn complain(&self, line: &str) {
        // At once, so that lines of several processes do not mix.
        let line = match self.json {
            true => printable_json(line),
            false => printable(line),
        };
        let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
    }
}

/// Writes to standard output, all the way.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// What became of printing: a reader that has seen enough closes the pipe.
pub fn seen(printed: io::Result<()>) -> Result<()> {
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(unseen(&error)),
        _ => Ok(()),
    }
}

/// The same where the result must not be lost.
pub fn unseen(error: &io::Error) -> Error {
    Error::from_io(Operation::Print, error)
}
