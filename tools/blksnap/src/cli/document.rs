// SPDX-License-Identifier: GPL-2.0-only

//! Completions and man pages, from the definitions of the command line.

use std::fs::File;
use std::io;
use std::io::Write;
use std::path::Path;

use blksnap::error::Operation;
use blksnap::Error;
use blksnap::Result;
use clap::Command;
use clap_complete::Shell;
use clap_mangen::roff::roman;
use clap_mangen::roff::Roff;
use clap_mangen::Man;

use super::args;
use super::output::print;
use super::output::seen;

/// That of commands for administrators.
const SECTION: &str = "8";

pub fn completions(shell: Shell) -> Result<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "blksnap", &mut text);
    seen(print(&String::from_utf8_lossy(&text)))?;
    Ok(0)
}

pub fn man(directory: &Path) -> Result<u8> {
    let mut command = args::command().disable_help_subcommand(true);
    command.build();
    let mut pages = vec![&command];
    let mut next = 0;
    while let Some(page) = pages.get(next).copied() {
        pages.extend(page.get_subcommands().filter(|it| !it.is_hide_set()));
        next += 1;
        let name = page.get_display_name().unwrap_or(page.get_name());
        let path = directory.join(format!("{name}.{SECTION}"));
        let written = File::create(&path).and_then(|mut file| write_page(page, &mut file));
        written.map_err(|error| Error::from_io(Operation::Document, &error).on(&path))?;
    }
    Ok(0)
}

fn write_page(command: &Command, out: &mut impl Write) -> io::Result<()> {
    let man = Man::new(command.clone())
        .section(SECTION)
        // An empty one would not be written, and the next ones be taken for it.
        .date(" ")
        .source(concat!("blksnap ", env!("CARGO_PKG_VERSION")))
        .manual("System Administration");
    man.render_title(out)?;
    man.render_name_section(out)?;
    // That of the generator has no values of options.
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    Roff::new()
        .control("SH", ["SYNOPSIS"])
        .text([roman(usage)])
        .to_writer(out)?;
    man.render_description_section(out)?;
    man.render_options_section(out)?;
    if command.has_subcommands() {
        man.render_subcommands_section(out)?;
    }
    if let Some(text) = command.get_after_help() {
        sections(&text.to_string()).to_writer(out)?;
    }
    if !command.has_subcommands() {
        Roff::new()
            .control("SH", ["SEE ALSO"])
            .text([roman(format!("blksnap({SECTION})"))])
            .to_writer(out)?;
    }
    Ok(())
}

/// What follows the options in the help: a line that ends in a colon becomes the
/// heading of the indented lines below it, which stay as they are.
fn sections(text: &str) -> Roff {
    let mut roff = Roff::new();
    let mut is_in_notes = false;
    for paragraph in text.split("\n\n") {
        let (first, rest) = paragraph.split_once('\n').unwrap_or((paragraph, ""));
        let heading = first
            .strip_suffix(':')
            .filter(|_| rest.starts_with(' ') && !first.starts_with(' '));
        let lines = match heading {
            Some(heading) => {
                roff.control("SH", [heading.to_uppercase().as_str()]);
                is_in_notes = false;
                rest
            }
            None if paragraph.starts_with(' ') => {
                roff.control("PP", []);
                paragraph
            }
            None => {
                match is_in_notes {
                    true => roff.control("PP", []),
                    false => roff.control("SH", ["NOTES"]),
                };
                is_in_notes = true;
                roff.text([roman(paragraph)]);
                continue;
            }
        };
        roff.control("nf", []);
        roff.text([roman(lines)]);
        roff.control("fi", []);
    }
    roff
}
