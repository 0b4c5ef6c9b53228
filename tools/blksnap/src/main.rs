// SPDX-License-Identifier: GPL-2.0-only

//! The command "blksnap".

#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(cli::main())
}
