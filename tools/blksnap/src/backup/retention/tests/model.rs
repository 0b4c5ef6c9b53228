// SPDX-License-Identifier: GPL-2.0-only

//! Random restore points, compared with a model that follows the words of the manual: it looks at
//! all pairs of restore points, and has a calendar of its own.

use super::*;

/// A day of the calendar.
#[derive(Clone, Copy)]
struct Date {
    year: i64,
    month: i64,
    day: i64,
    /// The day of the year, from 0 on.
    ordinal: i64,
}

/// Days one by one from 1969-12-29 on, a Monday.
struct Calendar(Vec<Date>);

impl Calendar {
    fn new() -> Self {
        let mut days = Vec::new();
        let (mut year, mut month, mut day, mut ordinal) = (1969, 12, 29, 362);
        while year < 2101 {
            days.push(Date {
                year,
                month,
                day,
                ordinal,
            });
            let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 if is_leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            (day, ordinal) = (day + 1, ordinal + 1);
            if day > length {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month, ordinal) = (year + 1, 1, 0);
            }
        }
        Self(days)
    }

    fn index(local: i64) -> usize {
        (local.div_euclid(DAY) + 3) as usize
    }

    /// The year and week of ISO 8601: those of the week's Thursday.
    fn week(&self, local: i64) -> (i64, i64) {
        let index = Self::index(local);
        let thursday = self.0[index - index % 7 + 3];
        (thursday.year, thursday.ordinal / 7 + 1)
    }

    /// How far Berlin is from UTC: summer is from 01:00 UTC on the last Sunday of March to 01:00
    /// UTC on the last Sunday of October.
    fn berlin(&self, time: i64) -> i64 {
        let date = self.0[Self::index(time)];
        let is_late = |date: &Date| {
            // The last Sunday is on the 25th or later.
            let index = Self::index(time);
            let last_sunday = (25..=31).find(|day| {
                let of_day = index as i64 + day - date.day;
                of_day % 7 == 6
            });
            let second = time.rem_euclid(DAY);
            let since = (date.day - last_sunday.unwrap()) * DAY + second;
            since >= HOUR
        };
        let is_summer = match date.month {
            3 => is_late(&date),
            10 => !is_late(&date),
            month => (4..10).contains(&month),
        };
        if is_summer {
            2 * HOUR
        } else {
            HOUR
        }
    }

    /// The period of an instant for a rule.
    fn period(&self, reason: Reason, time: i64, is_berlin: bool) -> String {
        let offset = if is_berlin { self.berlin(time) } else { 0 };
        let local = time + offset;
        let date = self.0[Self::index(local)];
        let (year, month, day) = (date.year, date.month, date.day);
        match reason {
            Reason::Hourly => {
                let hour = local.rem_euclid(DAY) / HOUR;
                format!("{year}-{month}-{day} {hour} {offset}")
            }
            Reason::Daily => format!("{year}-{month}-{day}"),
            Reason::Weekly => format!("{:?}", self.week(local)),
            Reason::Monthly => format!("{year}-{month}"),
            _ => format!("{year}"),
        }
    }
}

/// A restore point: its time, machine and disks.
type Made = (i64, &'static str, Vec<&'static str>);

/// Restore points of each disk of each machine, by their indices.
fn by_disk(made: &[Made]) -> HashMap<(&str, &str), Vec<usize>> {
    let mut found: HashMap<_, Vec<usize>> = HashMap::new();
    for (at, (_, machine, disks)) in made.iter().enumerate() {
        for disk in disks {
            found.entry((*machine, *disk)).or_default().push(at);
        }
    }
    found
}

/// Why each one stays; `wrong` are those of a disk with a time that is skipped.
fn expected(
    calendar: &Calendar,
    made: &[Made],
    policy: &Policy,
    is_berlin: bool,
    wrong: &dyn Fn(&[usize]) -> BTreeSet<usize>,
) -> Vec<BTreeSet<Reason>> {
    let rules = &policy.rules;
    let mut reasons = vec![BTreeSet::new(); made.len()];
    let by_disk = by_disk(made);
    for of_disk in by_disk.values() {
        let wrong = wrong(of_disk);
        for &at in of_disk {
            let newer = of_disk.iter().filter(|&&other| other > at).count();
            if newer < rules.last {
                reasons[at].insert(Reason::Last);
            }
            if wrong.contains(&at) {
                reasons[at].insert(Reason::Clock);
                continue;
            }
            for (reason, count) in [
                (Reason::Hourly, rules.hourly),
                (Reason::Daily, rules.daily),
                (Reason::Weekly, rules.weekly),
                (Reason::Monthly, rules.monthly),
                (Reason::Yearly, rules.yearly),
            ] {
                let period = |at: usize| calendar.period(reason, made[at].0, is_berlin);
                let is_newer = |other: &&usize| **other > at && !wrong.contains(other);
                let newer = of_disk.iter().filter(is_newer).map(|&other| period(other));
                let newer: BTreeSet<String> = newer.collect();
                if newer.len() < count && !newer.contains(&period(at)) {
                    reasons[at].insert(reason);
                }
            }
            let newest = of_disk.iter().rev().find(|at| !wrong.contains(at)).unwrap();
            let age = made[*newest].0 - made[at].0;
            if rules.within != Span::default() && age <= rules.within.seconds {
                reasons[at].insert(Reason::Within);
            }
        }
    }
    let to_remove =
        |of_disk: &Vec<usize>| of_disk.iter().filter(|&&at| reasons[at].is_empty()).count();
    if by_disk.values().all(|it| to_remove(it) <= policy.slack) {
        for reasons in reasons.iter_mut().filter(|it| it.is_empty()) {
            reasons.insert(Reason::Slack);
        }
    }
    reasons
}

/// Some restore points with times in order.
fn made(random: &mut fastrand::Rng) -> Vec<Made> {
    let steps = [0, 600, HOUR, 5 * HOUR, DAY, 3 * DAY, 20 * DAY, 200 * DAY];
    // Half of them begin shortly before winter time or the end of a year.
    let mut time = match random.u8(..4) {
        0 => utc(2024, 10, 26, 20, 0),
        1 => utc(2020, 12, 26, 0, 0),
        _ => random.i64(utc(1971, 1, 1, 0, 0)..utc(2060, 1, 1, 0, 0)),
    };
    let longest = random.usize(1..=steps.len());
    let count = random.usize(..60);
    let (machines, disks) = (random.usize(1..=3), random.usize(1..=3));
    let mut made = Vec::new();
    for _ in 0..count {
        let step = steps[random.usize(..longest)];
        time += random.i64(0..=step);
        let machine = ["db1", "db2", "db3"][random.usize(..machines)];
        let mut names = ["a", "b", "c"][..disks].to_vec();
        names.retain(|_| random.bool());
        made.push((
            time,
            machine,
            if names.is_empty() { vec!["a"] } else { names },
        ));
    }
    made
}

fn random_policy(random: &mut fastrand::Rng, is_berlin: bool) -> Policy {
    let mut count = || match random.bool() {
        true => 0,
        false => random.usize(..6),
    };
    let mut rules = rules!(
        last: count(), hourly: count(), daily: count(), weekly: count(), monthly: count(),
        yearly: count()
    );
    if random.bool() {
        rules.within.seconds = random.i64(0..40 * DAY);
    }
    if rules.check().is_err() {
        rules.daily = 1;
    }
    let zone = if is_berlin { BERLIN } else { "UTC0" };
    Policy {
        slack: random.usize(..3),
        ..policy(rules, zone)
    }
}

fn points(made: &[Made]) -> Vec<Point> {
    (1..)
        .zip(made)
        .map(|(number, (time, machine, disks))| point(3 * number, *time, machine, disks))
        .collect()
}

fn described(made: &[Made]) -> Vec<String> {
    let lines = made
        .iter()
        .map(|(time, machine, disks)| format!("{} {machine} {disks:?}", rfc3339(*time as u64)));
    lines.collect()
}

#[test]
fn random_restore_points_stay_as_in_the_model() {
    let calendar = Calendar::new();
    let mut random = fastrand::Rng::with_seed(1);
    let mut counts: BTreeMap<Reason, usize> = BTreeMap::new();
    let mut removed = 0;
    for _ in 0..2000 {
        let is_berlin = random.bool();
        let made = made(&mut random);
        let policy = random_policy(&mut random, is_berlin);
        let found = reasons(&policy, &points(&made));
        let none = |_: &[usize]| BTreeSet::new();
        let wanted = expected(&calendar, &made, &policy, is_berlin, &none);
        assert_eq!(found, wanted, "{policy:?} {:#?}", described(&made));
        for reason in found.iter().flatten() {
            *counts.entry(*reason).or_default() += 1;
        }
        removed += found.iter().filter(|it| it.is_empty()).count();
        // The newest of each disk is there, and the next time nothing more goes.
        for of_disk in by_disk(&made).values() {
            assert!(!found[*of_disk.last().unwrap()].is_empty());
        }
        let mut rest = made.clone();
        let mut stays = found.iter().map(|it| !it.is_empty());
        rest.retain(|_| stays.next().unwrap());
        assert!(reasons(&policy, &points(&rest))
            .iter()
            .all(|it| !it.is_empty()));
    }
    // All rules had something to do.
    assert!(removed > 1000 && counts.len() == 8, "{removed} {counts:?}");
}

/// The most times that can be in order, of all combinations.
fn longest(times: &[i64]) -> usize {
    let subsets = (0..1_u32 << times.len()).map(|bits| {
        let chosen = (0..times.len()).filter(|at| bits >> at & 1 == 1);
        chosen.map(|at| times[at]).collect::<Vec<_>>()
    });
    subsets
        .filter(|it| it.is_sorted())
        .map(|it| it.len())
        .max()
        .unwrap()
}

#[test]
fn as_few_times_as_possible_are_out_of_order() {
    let mut random = fastrand::Rng::with_seed(2);
    for _ in 0..2000 {
        let times: Vec<i64> = (0..random.usize(..9)).map(|_| random.i64(0..12)).collect();
        let now = random.i64(3..14);
        let found = in_order(&times, now);
        let right: Vec<i64> = (0..times.len())
            .filter(|&at| found[at])
            .map(|at| times[at])
            .collect();
        assert!(
            right.is_sorted() && right.iter().all(|time| *time <= now),
            "{times:?}"
        );
        let past: Vec<i64> = times.iter().copied().filter(|time| *time <= now).collect();
        assert_eq!(right.len(), longest(&past), "{times:?} at {now}");
    }
}

#[test]
fn random_wrong_times_lose_nothing() {
    let calendar = Calendar::new();
    let mut random = fastrand::Rng::with_seed(3);
    let mut clocks = 0;
    for _ in 0..2000 {
        let is_berlin = random.bool();
        let before = made(&mut random);
        let mut policy = Policy {
            slack: 0,
            ..random_policy(&mut random, is_berlin)
        };
        // Those of one number less do not depend on the clock.
        policy.rules.last = 0;
        if policy.rules.check().is_err() {
            policy.rules.weekly = 2;
        }
        // A clock that is far ahead or back for one restore point
        let at = random.usize(..=before.len());
        let time = match random.bool() {
            true => policy.now as i64 + random.i64(1..DAY),
            false => random.i64(0..DAY),
        };
        let mut after = before.clone();
        after.insert(at, (time, "db1", vec!["a"]));
        let found = reasons(&policy, &points(&after));
        let mut others = found.clone();
        others.remove(at);
        for (without, with) in reasons(&policy, &points(&before)).iter().zip(&others) {
            assert!(
                without.is_empty() || !with.is_empty(),
                "{policy:?} {at} {:#?}",
                described(&after)
            );
        }
        // The others stay as if that were not there.
        let wrong = |of_disk: &[usize]| {
            let times: Vec<i64> = of_disk.iter().map(|&at| after[at].0).collect();
            let in_order = in_order(&times, policy.now as i64);
            let wrong = of_disk
                .iter()
                .zip(in_order)
                .filter(|(_, is_right)| !is_right);
            wrong.map(|(at, _)| *at).collect()
        };
        assert_eq!(
            found,
            expected(&calendar, &after, &policy, is_berlin, &wrong)
        );
        clocks += found
            .iter()
            .filter(|it| it.contains(&Reason::Clock))
            .count();
    }
    assert!(clocks > 1000, "{clocks}");
}
