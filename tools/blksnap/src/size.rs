// SPDX-License-Identifier: GPL-2.0-only

//! Sizes, in newtypes so that bytes and sectors cannot be mixed up.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::abi::SectorRange;
use crate::abi::SECTOR_SIZE;

/// A number of bytes.
///
/// ```
/// use blksnap::Bytes;
///
/// assert_eq!("512M".parse(), Ok(Bytes(512 << 20)));
/// assert_eq!("4096".parse(), Ok(Bytes(4096)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// A number of sectors of 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Sectors(pub u64);

impl Bytes {
    /// The whole sectors in it; a started one does not count.
    pub const fn sectors(self) -> Sectors {
        Sectors(self.0 / SECTOR_SIZE)
    }
}

impl Sectors {
    /// The bytes in it, as far as they can be counted.
    pub const fn bytes(self) -> Bytes {
        Bytes(self.0.saturating_mul(SECTOR_SIZE))
    }
}

const UNITS: [(char, u32); 5] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];

/// The text is not a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParseSizeError {
    /// No number, or a suffix that is not known.
    Malformed,
    /// Less than a sector.
    TooSmall,
    /// Does not fit into 64 bits.
    TooLarge,
}

impl fmt::Display for ParseSizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => {
                "a size is a whole number of bytes, or one followed by \
                 K, M, G, T or P (powers of 1024), such as 512M or 10G"
            }
            Self::TooSmall => "a size must be at least one sector, 512 bytes",
            Self::TooLarge => "the size does not fit into 64 bits",
        })
    }
}

impl std::error::Error for ParseSizeError {}

impl FromStr for Bytes {
    type Err = ParseSizeError;

    /// Takes `512`, `512M`, `512m`, `512MiB`. Not `512MB`, which some read as
    /// a power of ten.
    fn from_str(text: &str) -> Result<Self, ParseSizeError> {
        let bytes = parse(text)?;
        if bytes < SECTOR_SIZE {
            return Err(ParseSizeError::TooSmall);
        }
        Ok(Self(bytes))
    }
}

/// A number of bytes, which may be 0.
fn parse(text: &str) -> Result<u64, ParseSizeError> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, suffix) = text.split_at(end);
    if digits.is_empty() {
        return Err(ParseSizeError::Malformed);
    }
    let number: u64 = digits.parse().map_err(|_| ParseSizeError::TooLarge)?;

    let mut letters = suffix.chars();
    let shift = match letters.next() {
        None => 0,
        Some(unit) => {
            if !matches!(letters.as_str(), "" | "i" | "iB") {
                return Err(ParseSizeError::Malformed);
            }
            UNITS
                .iter()
                .find(|(letter, _)| *letter == unit.to_ascii_uppercase())
                .ok_or(ParseSizeError::Malformed)?
                .1
        }
    };
    number
        .checked_mul(1 << shift)
        .ok_or(ParseSizeError::TooLarge)
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, shift) in UNITS.iter().rev() {
            let unit = 1u64 << shift;
            if self.0 < unit {
                continue;
            }
            return if self.0 % unit == 0 {
                write!(f, "{}{letter}", self.0 >> shift)
            } else {
                write!(f, "{:.1}{letter}", self.0 as f64 / unit as f64)
            };
        }
        write!(f, "{}", self.0)
    }
}

/// A range of bytes that can be storage.
///
/// ```
/// use blksnap::StorageRange;
///
/// let range: StorageRange = "1G:512M".parse().unwrap();
/// assert_eq!((range.offset(), range.length()), (1 << 30, 512 << 20));
/// assert!("0:100".parse::<StorageRange>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StorageRange {
    offset: u64,
    length: u64,
}

impl StorageRange {
    /// What every range is a multiple of. Where the blocks of the device are
    /// larger, the driver asks for more.
    pub const ALIGNMENT: u64 = 4096;

    pub const fn offset(&self) -> u64 {
        self.offset
    }

    pub const fn length(&self) -> u64 {
        self.length
    }
}

impl From<StorageRange> for SectorRange {
    fn from(range: StorageRange) -> Self {
        Self {
            offset: range.offset / SECTOR_SIZE,
            count: range.length / SECTOR_SIZE,
        }
    }
}

/// The text is not a range of storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParseRangeError;

impl fmt::Display for ParseRangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a range is OFFSET:LENGTH, both in bytes or with K, M, G, T or P, and multiples of \
             4096, such as 0:10G or 1G:512M",
        )
    }
}

impl std::error::Error for ParseRangeError {}

impl FromStr for StorageRange {
    type Err = ParseRangeError;

    fn from_str(text: &str) -> Result<Self, ParseRangeError> {
        let number = |text| {
            parse(text)
                .ok()
                .filter(|bytes| bytes % Self::ALIGNMENT == 0)
                .ok_or(ParseRangeError)
        };
        let (offset, length) = text.split_once(':').ok_or(ParseRangeError)?;
        let (offset, length) = (number(offset)?, number(length)?);
        if length == 0 || offset.checked_add(length).is_none() {
            return Err(ParseRangeError);
        }
        Ok(Self { offset, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("512", 512),
            ("1048576", 1 << 20),
            ("1K", 1 << 10),
            ("512M", 512 << 20),
            ("512m", 512 << 20),
            ("10G", 10 << 30),
            ("10GiB", 10 << 30),
            ("10Gi", 10 << 30),
            ("2T", 2 << 40),
            ("16383P", 16383 << 50),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn other_sizes_are_refused() {
        use ParseSizeError::*;
        for (text, error) in [
            ("", Malformed),
            ("M", Malformed),
            ("-1", Malformed),
            ("+1M", Malformed),
            ("1.5G", Malformed),
            ("10MB", Malformed),
            ("10X", Malformed),
            ("10 M", Malformed),
            ("10Mé", Malformed),
            ("0", TooSmall),
            ("511", TooSmall),
            ("0G", TooSmall),
            ("18446744073709551616", TooLarge),
            ("16384P", TooLarge),
        ] {
            assert_eq!(text.parse::<Bytes>(), Err(error), "{text}");
        }
    }

    #[test]
    fn sectors_are_whole() {
        assert_eq!(Bytes(1023).sectors(), Sectors(1));
        assert_eq!(Bytes(1024).sectors(), Sectors(2));
    }

    #[test]
    fn ranges_are_aligned_and_not_empty() {
        let range: StorageRange = "4096:1M".parse().unwrap();
        let range = SectorRange::from(range);
        assert_eq!((range.offset, range.count), (8, 2048));
        assert!("0:4K".parse::<StorageRange>().is_ok());
        for text in [
            "",
            "4096",
            ":",
            "0:",
            ":4096",
            "0:0",
            "0:512",
            "512:4096",
            "-4096:4096",
            "0:4K:4K",
            "16383P:2P",
        ] {
            assert_eq!(text.parse::<StorageRange>(), Err(ParseRangeError), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        assert_eq!(Bytes(100).to_string(), "100");
        assert_eq!(Bytes(512 << 20).to_string(), "512M");
        assert_eq!(Bytes(3 << 29).to_string(), "1.5G");
    }
}
