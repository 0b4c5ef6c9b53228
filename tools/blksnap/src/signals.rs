// SPDX-License-Identifier: GPL-2.0-only

//! The signals that ask a holder to stop.

use std::io;

use signal_hook::consts::SIGCHLD;
use signal_hook::consts::SIGHUP;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGQUIT;
use signal_hook::consts::SIGTERM;
use signal_hook::consts::SIGXFSZ;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::iterator::SignalsInfo;
use signal_hook::low_level::siginfo::Cause;

use crate::sys;

/// Signals that end a program by default and that users, terminals and
/// service managers send.
const STOP: [i32; 4] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT];

/// A request to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    pub signal: i32,
    /// The kernel sent it to the whole process group, for a key of the terminal or
    /// for a hangup. Of the latter the leader of the session is told alone.
    pub to_group: bool,
}

/// Receives requests to stop, and wakes up when a child ends.
///
/// As long as it lives the signals do not end this process. Programs started
/// from here have the default actions again.
pub struct Signals(SignalsInfo<WithOrigin>);

impl Signals {
    /// A signal that is ignored, as SIGHUP under nohup, stays so. One that the
    /// parent process has blocked does not, as it would be waited for in vain.
    pub fn catch() -> io::Result<Self> {
        let ignored = ignored();
        let wanted: Vec<i32> = STOP
            .into_iter()
            .filter(|signal| ignored & (1 << (signal - 1)) == 0)
            .chain([SIGCHLD])
            .collect();
        let signals = Self(SignalsInfo::new(&wanted)?);
        sys::unblock(&wanted)?;
        Ok(signals)
    }

    /// The requests that came since the last call; does not wait.
    pub fn pending(&mut self) -> Vec<Stop> {
        self.0.pending().filter_map(stop_of).collect()
    }

    /// Waits until a request comes or a child ends, or now and then for
    /// nothing.
    pub fn wait(&mut self) -> Vec<Stop> {
        self.0.wait().filter_map(stop_of).collect()
    }
}

fn stop_of(origin: signal_hook::low_level::siginfo::Origin) -> Option<Stop> {
    STOP.contains(&origin.signal).then_some(Stop {
        signal: origin.signal,
        to_group: is_to_group(origin.signal, origin.cause, sys::leads_session()),
    })
}

fn is_to_group(signal: i32, cause: Cause, leads_session: bool) -> bool {
    let is_known = matches!(signal, SIGINT | SIGQUIT) || signal == SIGHUP && !leads_session;
    cause == Cause::Kernel && is_known
}

/// Keeps the signals that a terminal sends from ending this process, for good.
pub fn outlive_terminal() -> io::Result<()> {
    for signal in [SIGINT, SIGHUP, SIGQUIT] {
        let unread = std::sync::Arc::default();
        signal_hook::flag::register(signal, unread)?;
    }
    Ok(())
}

/// Lets a write beyond the limit of file sizes fail with EFBIG instead of ending this process,
/// for good. Programs started from here have the default action.
pub fn outlive_file_limit() -> io::Result<()> {
    signal_hook::flag::register(SIGXFSZ, std::sync::Arc::default()).map(drop)
}

/// The mask of ignored signals.
fn ignored() -> u64 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| parse_ignored(&status))
        .unwrap_or(0)
}

fn parse_ignored(status: &str) -> Option<u64> {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use signal_hook::low_level::siginfo::Sent;

    #[test]
    fn ignored_signals_are_read_from_the_status() {
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        assert_eq!(parse_ignored(status), Some(0x1001));
        assert_eq!(parse_ignored("Name:\tx\n"), None);
    }

    #[test]
    fn only_the_terminal_reaches_the_whole_group() {
        for leads in [false, true] {
            let terminal = |signal| is_to_group(signal, Cause::Kernel, leads);
            assert_eq!(
                STOP.map(terminal),
                [true, false, !leads, true],
                "in the order of {STOP:?}"
            );
            let user = |signal| is_to_group(signal, Cause::Sent(Sent::User), leads);
            assert_eq!(STOP.map(user), [false; 4]);
        }
    }
}
