// SPDX-License-Identifier: GPL-2.0-only

//! Names of devices as text that the manifest can hold and a terminal can show.
//!
//! A path need not be text. A byte that is not, or that belongs to a control
//! character, becomes `//x` and two hexadecimal digits. An absolute path as
//! [`std::path::absolute`] returns it has two neighbouring slashes at its start
//! at most, so that each text stands for one path, and names that were written
//! before there was this stand for themselves.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::path::PathBuf;

/// The text for an absolute path.
pub fn encode(path: &Path) -> String {
    let mut text = String::new();
    let escape = |text: &mut String, bytes: &[u8]| {
        for byte in bytes {
            text.push_str(&format!("//x{byte:02x}"));
        }
    };
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c.is_control() {
                true => escape(&mut text, c.encode_utf8(&mut [0; 4]).as_bytes()),
                false => text.push(c),
            }
        }
        escape(&mut text, chunk.invalid());
    }
    text
}

/// The path that a text stands for.
pub fn decode(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        // The two slashes that a path can begin with are its own.
        let is_start = bytes.is_empty();
        match escaped(rest).filter(|_| !is_start) {
            Some((byte, after)) => {
                bytes.push(byte);
                rest = after;
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

/// The byte that `text` begins with as an escape, and what follows.
fn escaped(text: &[u8]) -> Option<(u8, &[u8])> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let [high, low, after @ ..] = text.strip_prefix(b"//x")? else {
        return None;
    };
    Some((digit(*high)? << 4 | digit(*low)?, after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn every_name_is_read_back() {
        for name in [
            &b"/dev/sda"[..],
            b"/dev/mapper/caf\xc3\xa9",
            b"/dev/\xff",
            b"/\xff",
            b"//\xff/a",
            b"//x41/b",
            b"///x41/b",
            b"/a/x41",
            b"/a//x41",
            b"/a/\xc3",
            b"/a/b\x1b[31m\nc",
            b"/a/\xc2\x85",
            b"/a\xff\xfe//x4",
            b"sda",
        ] {
            let path = std::path::absolute(OsStr::from_bytes(name)).unwrap();
            let text = encode(&path);
            assert_eq!(decode(&text), path, "{text}");
            assert!(!text.contains(char::is_control), "{text:?}");
        }
    }

    #[test]
    fn names_that_are_text_stay_as_they_were() {
        for name in [
            "/dev/sda",
            "/dev/mapper/caf\u{e9}",
            "/a/\u{fffd}",
            "a=b",
            "",
        ] {
            assert_eq!(encode(Path::new(name)), name);
            assert_eq!(decode(name), Path::new(name));
        }
        assert_eq!(
            encode(Path::new(OsStr::from_bytes(b"/dev/\xff"))),
            "/dev///xff"
        );
    }
}
