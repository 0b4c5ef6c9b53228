// SPDX-License-Identifier: GPL-2.0-only

//! Completions and man pages, from the definitions of the command line.

use std::io::Write;
use std::path::Path;

use blksnap::error::Operation;
use blksnap::Error;
use blksnap::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use super::args::Args;

pub fn completions(shell: Shell) -> Result<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "blksnap", &mut text);
    // A reader that has seen enough closes the pipe.
    let _ = std::io::stdout().write_all(&text);
    Ok(0)
}

pub fn man(directory: &Path) -> Result<u8> {
    clap_mangen::generate_to(Args::command(), directory)
        .map_err(|error| Error::from_io(Operation::Document, &error).on(directory))?;
    Ok(0)
}
