// SPDX-License-Identifier: GPL-2.0-only

use std::io::Write;

use blksnap::Error;
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
    /// unless it is empty.
    pub fn result(&self, value: &impl Serialize, text: &str) {
        // A reader that has seen enough closes the pipe.
        let _ = self.item(value, text);
    }

    /// One of several results, each of which is seen at once.
    pub fn item(&self, value: &impl Serialize, text: &str) -> std::io::Result<()> {
        let line = if self.json {
            serde_json::to_string(value).expect("results have only plain keys")
        } else if text.is_empty() {
            return Ok(());
        } else {
            text.to_owned()
        };
        let mut stdout = std::io::stdout();
        writeln!(stdout, "{line}")?;
        stdout.flush()
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

    fn complain(&self, line: &str) {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}
