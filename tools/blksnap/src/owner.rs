// SPDX-License-Identifier: GPL-2.0-only

//! Who can change a file.

use rustix::process::geteuid;

/// Why users other than the caller and root can change a file with this owner and mode, if they can.
pub(crate) fn distrust(owner: u32, mode: u32) -> Option<String> {
    if owner != 0 && owner != geteuid().as_raw() {
        return Some(format!("it belongs to another user (uid {owner})"));
    }
    let mode = mode & 0o7777;
    (mode & 0o022 != 0).then(|| format!("others can write to it (mode {mode:04o})"))
}
