// SPDX-License-Identifier: GPL-2.0-only

//! Names of disks that stay the same.

use std::fs;
use std::path::Component;
use std::path::Path;

/// Whether a name is that of one disk forever, as those in /dev/disk/by-id: not
/// one that the kernel gives in the order in which it finds disks, as are all in `dev`
/// itself but links, nor one that depends on the directory.
pub fn is_lasting(path: &Path, dev: &Path) -> bool {
    let is_plain = path.is_absolute() && !path.components().any(|it| it == Component::ParentDir);
    let Ok(name) = path.strip_prefix(dev) else {
        return is_plain;
    };
    let is_link = || fs::symlink_metadata(path).is_ok_and(|it| it.is_symlink());
    let is_number = name.starts_with("block") || name.starts_with("disk/by-diskseq");
    is_plain && !is_number && (name.components().count() > 1 || is_link())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_in_dev_last() {
        let dev = tempfile::tempdir().unwrap();
        let of_udev = dev.path().join("backup-disk");
        fs::write(dev.path().join("sda"), "").unwrap();
        std::os::unix::fs::symlink("sda", &of_udev).unwrap();
        assert!(is_lasting(&of_udev, dev.path()));
        assert!(!is_lasting(&dev.path().join("sda"), dev.path()));
    }
}
