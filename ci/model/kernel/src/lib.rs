// SPDX-License-Identifier: GPL-2.0-only

//! Stand-in for the kernel crate: as much of it as the logic of the driver uses, on the host.
//!
//! Names and signatures are those of the kernel, so that the driver's files compile unchanged.
//! What tests need beyond that says "for tests". With `cfg(loom)` the atomics, locks and barriers
//! are those of loom, which tries all interleavings and the weak orders.

pub mod alloc;
pub mod block;
pub mod error;
pub mod mm;
pub mod page;
pub mod prelude;
pub mod rbtree;
pub mod sync;
pub mod time;
pub mod uuid;

/// Prints an error message.
#[macro_export]
macro_rules! pr_err {
    ($($arg:tt)*) => { eprint!($($arg)*) };
}

/// Prints a warning.
#[macro_export]
macro_rules! pr_warn {
    ($($arg:tt)*) => { eprint!($($arg)*) };
}

/// Prints a message.
#[macro_export]
macro_rules! pr_info {
    ($($arg:tt)*) => { eprint!($($arg)*) };
}

/// For tests: keeps the others of KUnit's suites from running as long as it exists.
#[cfg(not(loom))]
pub fn one_test() -> std::sync::MutexGuard<'static, ()> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    // A test that has failed does not let the others fail.
    ONE.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
