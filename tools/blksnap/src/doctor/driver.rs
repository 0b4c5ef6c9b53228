// SPDX-License-Identifier: GPL-2.0-only

//! The control device of the driver, and the driver's version.

use std::path::Path;

use rustix::io::Errno;

use crate::abi::CONTROL_PATH;

use super::caller;
use super::module;
use super::Check;
use super::Root;
use super::System;

const CHECK: &str = "driver";

/// Checks that the driver can be talked to.
pub fn check(root: &Root, system: &dyn System) -> Check {
    let path = Path::new(CONTROL_PATH);
    if !root.exists(CONTROL_PATH) {
        return match module::is_loaded(root) {
            true => Check::problem(
                CHECK,
                CONTROL_PATH,
                "the driver is loaded, but its control device is not there",
                "check with \"findmnt /dev\" that devtmpfs is mounted at /dev; in a container, run \
                 the command on the host",
            ),
            false => Check::note(
                CHECK,
                CONTROL_PATH,
                "not checked, as the driver is not loaded",
                "do what \"module\" says, then run \"blksnap doctor\" again",
            ),
        };
    }
    match system.driver(&root.join(path)) {
        Ok(version) => Check::ok(
            CHECK,
            CONTROL_PATH,
            format!("the driver has version {version}"),
        ),
        Err(error)
            if matches!(error.errno(), Some(Errno::ACCESS | Errno::PERM))
                && !caller::is_privileged(root) =>
        {
            Check::note(
                CHECK,
                CONTROL_PATH,
                "not checked, as only root can open it",
                "run \"blksnap doctor\" as root",
            )
        }
        Err(error) => Check::error(CHECK, CONTROL_PATH, &error),
    }
}
