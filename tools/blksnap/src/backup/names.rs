// SPDX-License-Identifier: GPL-2.0-only

//! What the files of a backup are called.
//!
//! A name that is not one of these is none of the command's: it is neither read, nor
//! written, nor removed, whatever a manifest says.

/// The manifest's file.
pub const MANIFEST: &str = "blksnap.json";
/// Where a damaged one is kept once there is another.
pub const OLD_MANIFEST: &str = "blksnap.json.damaged";
/// Locked by what reads, removes or replaces files, see [`super::lock`].
pub const LOCK: &str = "blksnap.lock";
/// Locked by what changes the backup.
pub const WRITER: &str = "blksnap.writer";

/// In the directory of a restore point: what the manifest has of it.
pub const PART: &str = "point.json";
/// Beside it: that the restore point is forgotten, see [`super::forgotten`].
pub const FORGOTTEN: &str = "point.forgotten";

/// Upper limit of the numbers of restore points.
pub const LAST: u64 = 999_999_999;

/// Ends the names of what is not finished.
const PARTIAL: &str = ".partial";

/// Characters of a label that comes from a device's name.
const LABEL: usize = 64;
/// The same with what makes it different from others: "-2" and on.
const LONGEST_LABEL: usize = LABEL + 24;

/// The kinds of files that an image has.
pub const ENDS: [&str; 2] = ["qcow2", "sums"];

/// What a file or directory is called before it is finished.
pub fn partial(name: &str) -> String {
    format!("{name}{PARTIAL}")
}

/// The name without the end of what is not finished.
pub fn finished(name: &str) -> Option<&str> {
    name.strip_suffix(PARTIAL)
}

/// The directory of a restore point.
pub fn directory(number: u64) -> String {
    format!("{number:06}")
}

/// The number of a restore point's directory.
pub fn number(name: &str) -> Option<u64> {
    let number = name.parse().ok()?;
    ((1..=LAST).contains(&number) && directory(number) == name).then_some(number)
}

/// What a device's files are called: the last part of its name, as far as it
/// is plain.
pub fn label(device: &str) -> String {
    let last = device
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let plain: String = last
        .chars()
        .take(LABEL)
        .map(|c| if is_plain(c) { c } else { '_' })
        .collect();
    match plain.trim_start_matches('.') {
        "" => "device".to_owned(),
        label => label.to_owned(),
    }
}

/// The restore point of an image's name, such as "000003/sda".
pub fn number_of_image(name: &str) -> Option<u64> {
    let (directory, label) = name.split_once('/')?;
    number(directory).filter(|_| is_label(label))
}

/// The image of a file's name, such as "000003/sda.qcow2".
pub fn image_of_file(name: &str) -> Option<&str> {
    let image = without_end(name)?;
    number_of_image(image).map(|_| image)
}

/// Whether a file in the directory of a restore point is the command's.
pub fn is_file_of_point(name: &str) -> bool {
    name == PART || without_end(name).is_some_and(is_label)
}

/// The file with a restore point's part of the manifest.
pub fn part(number: u64) -> String {
    format!("{}/{PART}", directory(number))
}

/// The file that says that a restore point is forgotten.
pub fn forgotten(number: u64) -> String {
    format!("{}/{FORGOTTEN}", directory(number))
}

/// The restore point of a file with its part of the manifest.
pub fn number_of_part(name: &str) -> Option<u64> {
    let (directory, file) = name.split_once('/')?;
    number(directory).filter(|_| file == PART)
}

fn without_end(name: &str) -> Option<&str> {
    let (name, end) = name.rsplit_once('.')?;
    ENDS.contains(&end).then_some(name)
}

fn is_label(label: &str) -> bool {
    (1..=LONGEST_LABEL).contains(&label.len())
        && !label.starts_with('.')
        && label.chars().all(is_plain)
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_plain() {
        for (device, expected) in [
            ("/dev/sda", "sda"),
            ("/dev/mapper/vg-home", "vg-home"),
            ("/dev/my disk\u{e9}", "my_disk_"),
            ("/dev/..", "device"),
            ("/dev/.hidden", "hidden"),
            ("", "device"),
            ("///", "device"),
            ("/dev/a\u{1b}[2J", "a__2J"),
        ] {
            assert_eq!(label(device), expected);
            assert_eq!(number_of_image(&format!("000001/{expected}")), Some(1));
        }
        // The longest one, with the largest number behind it.
        let longest = format!("000001/{}-{}", label(&"x".repeat(1000)), usize::MAX);
        assert_eq!(number_of_image(&longest), Some(1));
    }

    #[test]
    fn only_names_of_this_format_are_known() {
        for (name, expected) in [
            ("000001", Some(1)),
            ("999999", Some(999_999)),
            ("1000000", Some(1_000_000)),
            ("999999999", Some(LAST)),
            ("000000", None),
            ("0000001", None),
            ("1", None),
            ("1000000000", None),
            ("18446744073709551615", None),
            ("99999999999999999999", None),
            ("+00001", None),
            ("", None),
        ] {
            assert_eq!(number(name), expected, "{name}");
        }
        assert_eq!(image_of_file("000003/sda.qcow2"), Some("000003/sda"));
        assert_eq!(image_of_file("000003/a.qcow2.sums"), Some("000003/a.qcow2"));
        for name in [
            "000003/sda",
            "000003/sda.img",
            "000003/.qcow2",
            "000003/../x.qcow2",
            "000003/a/b.qcow2",
            "/etc/passwd.sums",
            "../000003/sda.sums",
            "000003/a\u{1b}.sums",
            "sda.sums",
            "000003/sda.sums.partial",
        ] {
            assert_eq!(image_of_file(name), None, "{name}");
        }
        let long = format!("000003/{}.sums", "x".repeat(200));
        assert_eq!(image_of_file(&long), None);
    }
}
