// SPDX-License-Identifier: GPL-2.0-only

use std::collections::BTreeMap;
use std::collections::HashMap;

use crate::backup::manifest::PointDevice;
use crate::date::rfc3339;
use crate::identity::Disk;
use crate::identity::Machine;

use super::*;

macro_rules! rules {
    ($($rule:ident: $count:expr),*) => {
        Rules { $($rule: $count,)* ..Rules::default() }
    };
}

mod model;

const BERLIN: &str = "CET-1CEST,M3.5.0,M10.5.0/3";

/// A restore point with these disks, which are named by their serial numbers.
fn point(number: u64, time: i64, machine: &str, disks: &[&str]) -> Point {
    let devices = disks.iter().map(|serial| PointDevice {
        device: format!("/dev/{serial}"),
        disk: Some(Disk {
            serial: Some((*serial).to_owned()),
            ..Disk::default()
        }),
        image: String::new(),
    });
    Point {
        number,
        time: time.try_into().unwrap(),
        machine: Some(Machine {
            id: Some(machine.to_owned()),
            host: Some(machine.to_owned()),
            ..Machine::default()
        }),
        devices: devices.collect(),
    }
}

fn reasons(policy: &Policy, points: &[Point]) -> Vec<BTreeSet<Reason>> {
    policy.reasons(&points.iter().collect::<Vec<_>>())
}

/// An instant in UTC.
fn utc(year: i64, month: i64, day: i64, hour: i64, minute: i64) -> i64 {
    days(year, month, day) * DAY + hour * HOUR + minute * 60
}

fn policy(rules: Rules, zone: &str) -> Policy {
    Policy {
        rules,
        slack: 0,
        now: utc(2100, 1, 1, 0, 0) as u64,
        zone: zone.parse().unwrap(),
    }
}

/// The indices of those of one disk that stay.
fn kept(policy: &Policy, times: &[i64]) -> Vec<usize> {
    let points: Vec<Point> = (1..)
        .zip(times)
        .map(|(number, time)| point(number, *time, "db1", &["a"]))
        .collect();
    let reasons = reasons(policy, &points);
    (0..times.len())
        .filter(|&at| !reasons[at].is_empty())
        .collect()
}

#[test]
fn the_newest_of_each_period_stays() {
    let times: Vec<i64> = (0..100)
        .map(|at| utc(2024, 1, 1, 0, 0) + at * 6 * HOUR)
        .collect();
    let daily = kept(&policy(rules!(daily: 3), "UTC0"), &times);
    assert_eq!(daily, [91, 95, 99]);
    let weekly = kept(&policy(rules!(weekly: 2), "UTC0"), &times);
    // 2024-01-01 is a Monday; the last whole week ends before 2024-01-22.
    assert_eq!(weekly, [83, 99]);
    let both = kept(
        &policy(rules!(last: 2, weekly: 2, yearly: 5), "UTC0"),
        &times,
    );
    assert_eq!(both, [83, 98, 99]);
}

#[test]
fn days_without_a_restore_point_do_not_count() {
    let day = |day| utc(2024, 5, day, 12, 0);
    let times = [day(1), day(2), day(20), day(30)];
    assert_eq!(kept(&policy(rules!(daily: 3), "UTC0"), &times), [1, 2, 3]);
}

#[test]
fn the_hour_that_is_repeated_counts_twice() {
    // Local: 01:30 and 02:30 of summer, 02:30 and 03:30 of winter
    let times = [23, 24, 25, 26].map(|hour| utc(2024, 10, 26, hour, 30));
    assert_eq!(
        kept(&policy(rules!(hourly: 4), BERLIN), &times),
        [0, 1, 2, 3]
    );
    assert_eq!(kept(&policy(rules!(hourly: 2), BERLIN), &times), [2, 3]);
    // And the day has 25 hours, from 22:00 UTC to 23:00 UTC.
    let minute = 60;
    let (start, end) = (utc(2024, 10, 26, 22, 0), utc(2024, 10, 27, 23, 0));
    let times = [start - minute, start, end - minute, end];
    assert_eq!(kept(&policy(rules!(daily: 3), BERLIN), &times), [0, 2, 3]);
}

#[test]
fn the_hour_that_is_left_out_changes_nothing() {
    // Local: 00:30, 01:30, 03:30; the day has 23 hours.
    let times = [23, 24, 25].map(|hour| utc(2024, 3, 30, hour, 30));
    assert_eq!(kept(&policy(rules!(hourly: 3), BERLIN), &times), [0, 1, 2]);
    let (start, end) = (utc(2024, 3, 30, 23, 0), utc(2024, 3, 31, 22, 0));
    let times = [start - 60, start, end - 60, end];
    assert_eq!(kept(&policy(rules!(daily: 3), BERLIN), &times), [0, 2, 3]);
}

#[test]
fn weeks_go_over_the_end_of_the_year() {
    let day = |year, month, day| utc(year, month, day, 12, 0);
    // Week 53 of 2020 is from Monday 2020-12-28 to Sunday 2021-01-03.
    let times = [
        day(2020, 12, 27),
        day(2020, 12, 28),
        day(2020, 12, 31),
        day(2021, 1, 3),
        day(2021, 1, 4),
    ];
    assert_eq!(kept(&policy(rules!(weekly: 9), "UTC0"), &times), [0, 3, 4]);
    assert_eq!(kept(&policy(rules!(yearly: 9), "UTC0"), &times), [2, 4]);
    // Week 1 of 2025 begins on Monday 2024-12-30.
    let times = [day(2024, 12, 29), day(2024, 12, 30), day(2025, 1, 1)];
    assert_eq!(kept(&policy(rules!(weekly: 9), "UTC0"), &times), [0, 2]);
    assert_eq!(kept(&policy(rules!(monthly: 9), "UTC0"), &times), [1, 2]);
}

#[test]
fn the_leap_day_is_of_february() {
    let times = [
        utc(2024, 2, 28, 23, 59),
        utc(2024, 2, 29, 0, 0),
        utc(2024, 2, 29, 23, 59),
        utc(2024, 3, 1, 0, 0),
    ];
    assert_eq!(kept(&policy(rules!(monthly: 9), "UTC0"), &times), [2, 3]);
    assert_eq!(kept(&policy(rules!(daily: 9), "UTC0"), &times), [0, 2, 3]);
}

#[test]
fn durations_count_from_the_newest() {
    let newest = utc(2024, 3, 31, 10, 0);
    for (text, start) in [
        ("12h", utc(2024, 3, 30, 22, 0)),
        ("14d", utc(2024, 3, 17, 10, 0)),
        ("3w", utc(2024, 3, 10, 10, 0)),
        ("1m", utc(2024, 2, 29, 10, 0)),
        ("13m", utc(2023, 2, 28, 10, 0)),
        ("1y", utc(2023, 3, 31, 10, 0)),
        ("1y6m", utc(2022, 9, 30, 10, 0)),
        ("1y1m1w1d1h", utc(2023, 2, 20, 9, 0)),
    ] {
        let within = text.parse().unwrap();
        let times = [start - 1, start, newest];
        assert_eq!(
            kept(&policy(rules!(within: within), "UTC0"), &times),
            [1, 2],
            "{text}"
        );
    }
    // A year before the leap day is the day before March.
    let within = "1y".parse().unwrap();
    let start = utc(2023, 2, 28, 10, 0);
    let times = [start - 1, start, utc(2024, 2, 29, 10, 0)];
    assert_eq!(
        kept(&policy(rules!(within: within), "UTC0"), &times),
        [1, 2]
    );
    // 10:00 in winter, a month before 10:00 in summer
    let within = "1m".parse().unwrap();
    let start = utc(2024, 3, 15, 9, 0);
    let times = [start - 1, start, utc(2024, 4, 15, 8, 0)];
    assert_eq!(
        kept(&policy(rules!(within: within), BERLIN), &times),
        [1, 2]
    );
}

#[test]
fn machines_and_disks_have_their_own() {
    let day = |day| utc(2024, 6, day, 3, 0);
    // Disk b is backed up on every third day only, and db2 has a disk with the same number.
    let points = [
        point(1, day(1), "db1", &["a", "b"]),
        point(2, day(1), "db2", &["a"]),
        point(3, day(2), "db1", &["a"]),
        point(4, day(3), "db1", &["a"]),
        point(5, day(4), "db1", &["a", "b"]),
        point(6, day(5), "db1", &["a"]),
        point(7, day(6), "db1", &["a"]),
    ];
    let found = reasons(&policy(rules!(daily: 2), "UTC0"), &points);
    let kept: Vec<bool> = found.iter().map(|it| !it.is_empty()).collect();
    assert_eq!(kept, [true, true, false, false, true, true, true]);
    // Both devices of the fifth need it by the rule, one of them by its number, too.
    let found = reasons(&policy(rules!(last: 1, daily: 2), "UTC0"), &points);
    assert_eq!(found[4], BTreeSet::from([Reason::Last, Reason::Daily]));
    assert_eq!(found[0], BTreeSet::from([Reason::Daily]));
}

#[test]
fn the_slack_is_for_each_device() {
    let hours = |count: i64| (0..count).map(|hour| utc(2024, 6, 1, hour, 0));
    let with = |slack, count| {
        let policy = Policy {
            slack,
            ..policy(rules!(daily: 1), "UTC0")
        };
        let mut points = Vec::new();
        for (number, time) in (0..).zip(hours(count)) {
            points.push(point(2 * number + 1, time, "db1", &["a"]));
            points.push(point(2 * number + 2, time, "db2", &["a"]));
        }
        let found = reasons(&policy, &points);
        let is_slack = |it: &&BTreeSet<Reason>| it.contains(&Reason::Slack);
        let slack = found.iter().filter(is_slack).count();
        (slack, found.iter().filter(|it| it.is_empty()).count())
    };
    assert_eq!(with(3, 4), (6, 0));
    assert_eq!(with(3, 5), (0, 8));
    assert_eq!(with(0, 5), (0, 8));
}

#[test]
fn a_wrong_time_takes_no_place() {
    let day = |day| utc(2024, 6, day, 3, 0);
    let now = day(5) + 60;
    let policy = Policy {
        now: now as u64,
        ..policy(rules!(daily: 3, within: "2d".parse().unwrap()), "UTC0")
    };
    for (wrong, name) in [(now + 1, "after now"), (day(1) - 9 * DAY, "before all")] {
        for place in 1..=4 {
            let mut times = vec![day(1), day(2), day(3), day(4), day(5)];
            times.insert(place, wrong);
            let points: Vec<Point> = (1..)
                .zip(&times)
                .map(|(number, time)| point(number, *time, "db1", &["a"]))
                .collect();
            let found = reasons(&policy, &points);
            let clock = BTreeSet::from([Reason::Clock]);
            let wrong_ones: Vec<usize> =
                (0..times.len()).filter(|&at| found[at] == clock).collect();
            // The first two contradict each other, and nothing else tells which one is wrong.
            let blamed = if place == 1 && wrong < now { 0 } else { place };
            assert_eq!(wrong_ones, [blamed], "{name} at {place}");
            for (reasons, time) in found.iter().zip(&times) {
                let is_due = day(3) <= *time && *time <= now;
                assert!(
                    !is_due || reasons.contains(&Reason::Daily),
                    "{name} at {place}"
                );
                assert!(
                    !is_due || reasons.contains(&Reason::Within),
                    "{name} at {place}"
                );
            }
        }
    }
    // With the clock of this machine wrong, all of them are after now.
    let times = [day(1), day(2), day(3), day(4), day(5)];
    let early = Policy { now: 0, ..policy };
    assert_eq!(kept(&early, &times), [0, 1, 2, 3, 4]);
    // The order needs no clock.
    let last = Policy {
        rules: rules!(last: 2),
        ..early
    };
    assert_eq!(kept(&last, &times), [3, 4]);
}

#[test]
fn no_rule_is_an_error() {
    assert!(rules!(daily: 0, within: "0y0d".parse().unwrap())
        .check()
        .is_err());
    let zero = Span::default();
    for rules in [
        rules!(last: 1),
        rules!(hourly: 1),
        rules!(daily: 1),
        rules!(weekly: 1),
        rules!(monthly: 1),
        rules!(yearly: 1),
        rules!(within: "1h".parse().unwrap()),
        rules!(last: 0, within: Span { months: 1, ..zero }),
    ] {
        rules.check().unwrap();
        assert_eq!(rules.are_by_time(), rules.last == 0);
        // Whatever the rule, the newest stays.
        let times = [100, 200, 300].map(|day| day * DAY);
        assert_eq!(
            kept(&policy(rules, "UTC0"), &times).last(),
            Some(&2),
            "{rules:?}"
        );
    }
}

#[test]
fn durations_have_a_grammar() {
    let span = |text: &str| text.parse::<Span>();
    let (day, hour) = (DAY, HOUR);
    for (text, months, seconds) in [
        ("14d", 0, 14 * day),
        ("12h", 0, 12 * hour),
        ("3w", 0, 21 * day),
        ("2m", 2, 0),
        ("1y", 12, 0),
        ("1y2m3w4d5h", 14, 25 * day + 5 * hour),
        ("0d", 0, 0),
        ("4294967295y4294967295m", 13 * 4_294_967_295, 0),
    ] {
        assert_eq!(span(text), Ok(Span { months, seconds }), "{text}");
        // However long it is, it can be counted back.
        span(text).unwrap().before(0, &BERLIN.parse().unwrap());
    }
    for text in [
        "",
        "d",
        "14",
        "-1d",
        "+1d",
        "1.5d",
        "1 d",
        " 1d",
        "1d ",
        "1D",
        "1M",
        "30min",
        "1d1w",
        "1d1d",
        "1s",
        "1dé",
        "é",
        "4294967296d",
        "1d12",
    ] {
        assert_eq!(span(text), Err(ParseSpanError), "{text}");
    }
}
