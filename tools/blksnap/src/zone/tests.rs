// SPDX-License-Identifier: GPL-2.0-only

use std::io::Write;
use std::process::Command;
use std::process::Stdio;

use super::*;

const BERLIN: &str = "CET-1CEST,M3.5.0,M10.5.0/3";

fn zone(text: &str) -> Zone {
    text.parse().unwrap()
}

#[test]
fn summer_begins_and_ends_to_the_second() {
    // 2024-03-31 01:00 and 2024-10-27 01:00 UTC
    for (zone, start, end, outside) in [
        (BERLIN, 1_711_846_800, 1_729_990_800, 3600),
        // Sydney: 2024-04-06 16:00 and 2024-10-05 16:00 UTC, winter between them
        (
            "AEST-10AEDT,M10.1.0,M4.1.0/3",
            1_712_419_200,
            1_728_144_000,
            39600,
        ),
        // New York: 2024-03-10 07:00 and 2024-11-03 06:00 UTC
        (
            "EST5EDT,M3.2.0,M11.1.0",
            1_710_054_000,
            1_730_613_600,
            -18000,
        ),
        // Lord Howe has half an hour: 2024-04-06 15:00 and 2024-10-05 15:30 UTC
        (
            "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0",
            1_712_415_600,
            1_728_142_200,
            39600,
        ),
    ] {
        let zone: Zone = zone.parse().unwrap();
        let other = zone.offset(start);
        assert_ne!(other, outside);
        for (time, offset) in [
            (start - 1, outside),
            (start, other),
            (end - 1, other),
            (end, outside),
        ] {
            assert_eq!(zone.offset(time), offset, "{zone:?} at {time}");
        }
    }
}

#[test]
fn days_of_the_year_are_counted_in_both_ways() {
    // Day 60 from 1 on, without leap days, is always March 1. Day 60 from 0 on is that only in a
    // leap year.
    let julian = zone("AAA0BBB,J60/0,J61/1");
    let zero = zone("AAA0BBB,60/0,61/1");
    for (year, of_julian, of_zero) in [(2024, (3, 1), (3, 1)), (2023, (3, 1), (3, 2))] {
        for (zone, (month, day)) in [(&julian, of_julian), (&zero, of_zero)] {
            let start = days(year, month, day) * DAY;
            let offsets = [-1, 0, DAY - 1, DAY].map(|after| zone.offset(start + after));
            assert_eq!(offsets, [0, 3600, 3600, 0], "{zone:?} in {year}");
        }
    }
    // Summer all the year
    let always = zone("XXX3EDT4,0/0,J365/23");
    for time in [
        0,
        1_709_251_199,
        1_709_510_400,
        1_735_700_400,
        1_735_707_599,
    ] {
        assert_eq!(always.offset(time), -14400, "{time}");
    }
}

#[test]
fn other_texts_are_no_zones() {
    for text in [
        "",
        "C",
        "CE1",
        "CET",
        "CET-",
        "CET25",
        "CET-1:60",
        "CET-1CEST",
        "CET-1CEST,",
        "CET-1CEST,M3.5.0",
        "CET-1CEST,M13.5.0,M10.5.0",
        "CET-1CEST,M3.0.0,M10.5.0",
        "CET-1CEST,M3.5.7,M10.5.0",
        "CET-1CEST,J0,J5",
        "CET-1CEST,366,5",
        "CET-1CEST,M3.5.0,M10.5.0/168",
        "CET-1CEST,M3.5.0,M10.5.0 ",
        "<+03-3",
        "<+0>-3",
        "CET99999999999",
    ] {
        assert_eq!(text.parse::<Zone>(), Err(()), "{text}");
    }
    for name in [
        "Nowhere/Town",
        "../../etc/passwd",
        "/etc/passwd",
        "/",
        "a\0b",
    ] {
        let reason = Zone::named(name).unwrap_err();
        assert!(reason.contains("is not known"), "{reason}");
    }
    for name in ["", ":", "UTC", ":UTC0", "UTC0"] {
        assert_eq!(
            Zone::named(name).unwrap().offset(1_720_000_000),
            0,
            "{name}"
        );
    }
}

/// A file of version 2 with some changes, which are of types 0 and 1 in turn.
fn tzif(times: &[i64], offsets: [i32; 2], rule: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for size in [4, 8] {
        let times = if size == 4 { &[] } else { times };
        bytes.extend(b"TZif2");
        bytes.extend([0; 15]);
        for count in [1, 1, 1, times.len() as u32, 2, 4] {
            bytes.extend(count.to_be_bytes());
        }
        for time in times {
            bytes.extend(time.to_be_bytes());
        }
        bytes.extend((1..=times.len()).map(|index| (index % 2) as u8));
        for offset in offsets {
            bytes.extend(offset.to_be_bytes());
            bytes.extend([0, 0]);
        }
        bytes.extend(b"ABC\0");
        bytes.extend(vec![0; size + 4]);
        bytes.extend([0; 2]);
    }
    bytes.extend(format!("\n{rule}\n").bytes());
    bytes
}

#[test]
fn files_have_the_past_and_the_rule() {
    let bytes = tzif(
        &[-2_000_000_000_000, 100, 1_000_000_000],
        [600, -1200],
        BERLIN,
    );
    let zone = Zone::from_tzif(&bytes).unwrap();
    for (time, offset) in [
        (i64::MIN, 600),
        (-2_000_000_000_001, 600),
        (-2_000_000_000_000, -1200),
        (99, -1200),
        (100, 600),
        (999_999_999, 600),
        // From here on by the rule
        (1_000_000_000, 7200),
        (1_709_510_400, 3600),
    ] {
        assert_eq!(zone.offset(time), offset, "{time}");
    }
    let without = Zone::from_tzif(&tzif(&[100], [600, -1200], "")).unwrap();
    assert_eq!(without.offset(1_709_510_400), -1200);
}

#[test]
fn damaged_files_are_refused() {
    let bytes = tzif(&[100, 200], [600, -1200], BERLIN);
    for end in 0..bytes.len() {
        assert_eq!(Zone::from_tzif(&bytes[..end]), None, "{end}");
    }
    assert_eq!(Zone::from_tzif(&tzif(&[200, 100], [600, -1200], "")), None);
    // Whatever a byte becomes, nothing is read past the end.
    for at in 0..bytes.len() {
        for value in [0, 0x7f, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            if let Some(zone) = Zone::from_tzif(&bytes) {
                zone.offset(1_709_510_400);
            }
        }
    }
}

/// What date(1), so the C library, makes of a zone and instants.
fn by_date(name: &str, times: &[i64]) -> Vec<i32> {
    let mut child = Command::new("date")
        .args(["-f", "-", "+%::z"])
        .env("TZ", name)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input: String = times.iter().map(|time| format!("@{time}\n")).collect();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let offset = |line: &str| {
        let sign = if line.starts_with('-') { -1 } else { 1 };
        let parts = line[1..]
            .split(':')
            .map(|part| part.parse::<i32>().unwrap());
        sign * parts.fold(0, |sum, part| sum * 60 + part)
    };
    text.lines().map(offset).collect()
}

#[test]
fn zones_are_those_of_the_c_library() {
    let mut times = Vec::new();
    let mut random = fastrand::Rng::with_seed(5);
    for _ in 0..3000 {
        times.push(random.i64(-3_000_000_000..8_000_000_000));
    }
    // Every half hour of the weeks in which most zones change.
    for start in [1_711_756_800, 1_729_900_800, 2_216_160_000] {
        times.extend((0..400).map(|half| start + half * 1800));
    }
    let posix = [
        BERLIN,
        "EST5EDT,M3.2.0,M11.1.0",
        "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0",
    ];
    let files = [
        "Europe/Berlin",
        "America/New_York",
        "America/St_Johns",
        "Australia/Lord_Howe",
        "Asia/Kathmandu",
        "Africa/Casablanca",
        "Pacific/Apia",
        "Europe/Dublin",
        "UTC",
    ];
    for name in posix.iter().chain(&files) {
        if files.contains(name) && !Path::new(DATABASE).join(name).exists() {
            // Not by a macro, whose output would be kept back.
            let _ = writeln!(
                io::stderr(),
                "skipped: {DATABASE}/{name} (Debian's tzdata) is not there"
            );
            continue;
        }
        // The C library has no such rules before 1970.
        let is_file = files.contains(name);
        let mut times = times.clone();
        times.retain(|time| is_file || *time >= 0);
        let zone = Zone::named(name).unwrap();
        let ours: Vec<i32> = times.iter().map(|time| zone.offset(*time)).collect();
        let theirs = by_date(name, &times);
        assert_eq!(ours.len(), theirs.len(), "{name}");
        for ((time, ours), theirs) in times.iter().zip(ours).zip(theirs) {
            assert_eq!(ours, theirs, "{name} at {time}");
        }
    }
}
