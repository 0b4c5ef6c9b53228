// SPDX-License-Identifier: GPL-2.0-only

//! "blksnap doctor": whether backups will work on this machine.

use blksnap::doctor::examine;
use blksnap::doctor::system::Here;
use blksnap::doctor::Check;
use blksnap::doctor::Level;
use blksnap::doctor::Report;
use blksnap::doctor::Request;
use blksnap::doctor::Root;
use blksnap::error::Exit;
use blksnap::printable::printable;
use blksnap::Result;

use super::args;
use super::output::Output;

/// As wide as the longest level.
const WIDTH: usize = 7;

pub fn doctor(output: &Output, args: args::Doctor) -> Result<u8> {
    let request = Request {
        devices: args.devices,
        target: args.target,
        store: args.store,
    };
    let report = examine(&Root::default(), &request, &Here);
    let code = match report.worst() {
        Level::Problem => Exit::Failure.code(),
        _ => 0,
    };
    Ok(output.result(&report, &text_of(&report), code))
}

fn text_of(report: &Report) -> String {
    let lines: Vec<String> = report.checks.iter().map(line).collect();
    lines.join("\n")
}

/// A line of a check, and one with what to do.
fn line(check: &Check) -> String {
    let mut text = format!(
        "{:WIDTH$}  {}: {}: {}",
        check.level.name(),
        check.check,
        printable(&check.subject),
        printable(&check.message)
    );
    if let Some(remedy) = &check.remedy {
        text += &format!("\n{:WIDTH$}  what to do: {}", "", printable(remedy));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_command_a_terminal() {
        let check = Check {
            check: "disk",
            level: Level::Problem,
            subject: "/dev/a\u{1b}[2J\nok".to_owned(),
            message: "b\u{202e}\r".to_owned(),
            remedy: Some("c\u{7}\nd".to_owned()),
        };
        assert_eq!(
            line(&check),
            "problem  disk: /dev/a\\u{1b}[2J\\nok: b\\u{202e}\\r\n         \
             what to do: c\\u{7}\\nd"
        );
    }
}
