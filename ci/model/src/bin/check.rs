// SPDX-License-Identifier: GPL-2.0-only

//! usage: check [WORLD]
//!
//! Tries all orders of what can happen in small worlds, or in the one of that name. Fails if a
//! promise is broken.

#[cfg(not(loom))]
fn main() -> std::process::ExitCode {
    let only = std::env::args().nth(1);
    match blksnap_model::check::run(only.as_deref()) {
        true => std::process::ExitCode::SUCCESS,
        false => std::process::ExitCode::FAILURE,
    }
}

#[cfg(loom)]
fn main() {}
