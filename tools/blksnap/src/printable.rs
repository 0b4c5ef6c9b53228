// SPDX-License-Identifier: GPL-2.0-only

//! Text that a terminal shows and does not obey.

use std::borrow::Cow;

/// Escapes control characters, line ends among them, and those that change the direction
/// of text, as `\u{1b}`. For names that come from a file, a path or the kernel.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c.is_control() || is_invisible(c))
}

/// The same for text of several lines.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| (c.is_control() && c != '\n') || is_invisible(c))
}

/// Escapes what JSON does not have to escape. Such characters are in its strings only.
pub fn printable_json(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|c| c.is_control() || is_invisible(c)) {
        return Cow::Borrowed(text);
    }
    let mut result = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_invisible(c) {
            // All of them have four digits.
            result += &format!("\\u{:04x}", u32::from(c));
        } else {
            result.push(c);
        }
    }
    Cow::Owned(result)
}

fn escaped(text: &str, is_bad: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(&is_bad) {
        return Cow::Borrowed(text);
    }
    let mut result = String::with_capacity(text.len());
    for c in text.chars() {
        match is_bad(c) {
            true => result.extend(c.escape_default()),
            false => result.push(c),
        }
    }
    Cow::Owned(result)
}

/// Marks of direction, separators of lines and paragraphs, and the byte order mark.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_command_a_terminal() {
        assert_eq!(
            printable("/dev/m\u{e9}dia \\ \u{4e00}"),
            "/dev/m\u{e9}dia \\ \u{4e00}"
        );
        assert_eq!(
            printable("a\u{1b}]0;x\u{7}\u{9b}2J\nb"),
            "a\\u{1b}]0;x\\u{7}\\u{9b}2J\\nb"
        );
        assert_eq!(
            printable("gpj\u{202e}.x\u{200b}"),
            "gpj\\u{202e}.x\\u{200b}"
        );
        assert_eq!(printable_lines("a\tb\nc\r\u{7f}"), "a\\tb\nc\\r\\u{7f}");
    }

    #[test]
    fn json_stays_what_it_says() {
        let name = "a\u{1b}\n\u{9b}\u{7f}\u{202e}\"";
        let text = serde_json::to_string(name).unwrap();
        let shown = printable_json(&text);
        assert!(!shown.chars().any(|c| c.is_control() || is_invisible(c)));
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), name);
    }
}
