// SPDX-License-Identifier: GPL-2.0-only

use super::config;
use crate::log::{Log, Logs, Ranges};
use kernel::prelude::*;
use proptest::{collection::vec, prelude::*};
use std::collections::BTreeSet;

const MIB: u64 = 1 << 20;

/// A part, byte by byte.
#[derive(Clone, Copy, Debug)]
struct Part {
    limit: u64,
    allocated: u64,
    available: u64,
}

impl Part {
    /// Returns how many bytes can be appended after `next`: those that are allocated, and as many
    /// more as the file system has.
    fn room(&self, next: u64) -> u64 {
        let mut available = self.available;
        let bytes = (next..self.limit).take_while(|at| {
            let there = *at < self.allocated;
            if !there && available == 0 {
                return false;
            }
            available -= u64::from(!there);
            true
        });
        bytes.count() as u64
    }
}

fn part() -> impl Strategy<Value = Part> {
    (0..40u64, 0..50u64, prop_oneof![Just(u64::MAX), 0..40u64]).prop_map(
        |(limit, allocated, available)| Part {
            limit,
            allocated,
            available,
        },
    )
}

#[derive(Clone, Debug)]
enum Step {
    Append(u64),
    Room(u64),
    Add(Part),
    /// What the file system of a part has left.
    Available(prop::sample::Index, u64),
    /// Sets the limit of a part to what it has and this much more.
    Limit(prop::sample::Index, u64),
    Threshold(u64),
    Low,
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1..30u64).prop_map(Step::Append),
        2 => (1..45u64).prop_map(Step::Room),
        1 => part().prop_map(Step::Add),
        2 => (any::<prop::sample::Index>(), 0..40u64)
            .prop_map(|(part, available)| Step::Available(part, available)),
        1 => (any::<prop::sample::Index>(), 0..40u64)
            .prop_map(|(part, more)| Step::Limit(part, more)),
        1 => (0..60u64).prop_map(Step::Threshold),
        3 => Just(Step::Low),
        1 => Just(Step::Reset),
    ]
}

struct Model {
    parts: Vec<Part>,
    next: Vec<u64>,
    /// Bytes in use: the number of the part, and where in it.
    used: BTreeSet<(usize, u64)>,
    threshold: u64,
    told: bool,
}

impl Model {
    fn add(&mut self, logs: &mut Logs, part: Part) {
        let mut log = Log::new(part.allocated, part.limit, 0);
        log.available = part.available;
        logs.list.push(log, GFP_KERNEL).unwrap();
        self.parts.push(part);
        self.next.push(0);
    }

    fn room(&self, number: usize) -> u64 {
        self.parts[number].room(self.next[number])
    }

    /// The first part with room, if there is one, and the most that can be appended at once.
    fn part_for(&self, len: u64) -> (Option<usize>, u64) {
        let mut parts = 0..self.parts.len();
        match parts.find(|part| self.room(*part) >= len) {
            Some(part) => (Some(part), self.room(part)),
            None => {
                let rooms = (0..self.parts.len()).map(|part| self.room(part));
                (None, rooms.max().unwrap_or(0))
            }
        }
    }

    fn left(&self) -> u64 {
        (0..self.parts.len()).map(|part| self.room(part)).sum()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn logs_agree_with_a_set_of_bytes(
        first in part(),
        steps in vec(step(), 1..60),
    ) {
        let mut logs = Logs::new();
        prop_assert_eq!((logs.total(), logs.used(), logs.left()), (0, 0, 0));
        let mut model = Model {
            parts: Vec::new(),
            next: Vec::new(),
            used: BTreeSet::new(),
            threshold: 0,
            told: false,
        };
        model.add(&mut logs, first);
        for step in steps {
            match step {
                Step::Append(len) => {
                    let (part, room) = model.part_for(len);
                    match logs.append(len) {
                        Ok((number, log)) => {
                            prop_assert!(room >= len);
                            prop_assert_eq!(Some(number), part);
                            prop_assert!(log.next <= log.limit);
                            for at in log.next - len..log.next {
                                prop_assert!(model.used.insert((number, at)), "overlaps");
                            }
                            // They are allocated, as the caller does.
                            let part = &mut model.parts[number];
                            let grown = log.next.saturating_sub(part.allocated);
                            prop_assert!(grown <= part.available);
                            part.allocated += grown;
                            part.available -= grown;
                            log.allocated = part.allocated;
                            log.available = part.available;
                            model.next[number] += len;
                        }
                        Err(e) => {
                            prop_assert_eq!(e, ENOSPC);
                            prop_assert!(room < len);
                        }
                    }
                }
                Step::Room(len) => prop_assert_eq!(logs.room_for(len), model.part_for(len).1),
                Step::Add(part) => model.add(&mut logs, part),
                Step::Available(part, available) => {
                    let part = part.index(model.parts.len());
                    logs.list[part].available = available;
                    model.parts[part].available = available;
                }
                Step::Limit(part, more) => {
                    let part = part.index(model.parts.len());
                    let limit = model.next[part] + more;
                    logs.list[part].limit = limit;
                    model.parts[part].limit = limit;
                }
                Step::Threshold(threshold) => {
                    logs.low_space = threshold;
                    model.threshold = threshold;
                }
                Step::Low => {
                    let left = model.left();
                    let low = left < model.threshold;
                    let tell = low && !model.told;
                    model.told = low;
                    prop_assert_eq!(logs.low(), tell.then_some(left));
                }
                Step::Reset => {
                    logs.reset();
                    model.used.clear();
                    model.next.fill(0);
                    model.told = false;
                }
            }
            prop_assert_eq!(logs.left(), model.left());
            prop_assert_eq!(logs.used(), model.used.len() as u64);
            let total: u64 = model.parts.iter().map(|part| part.limit).sum();
            prop_assert_eq!(logs.total(), total);
        }
    }

    #[test]
    fn growth_is_needed_and_possible(
        (limit, allocated, next) in (0..1u64 << 36)
            .prop_flat_map(|limit| (Just(limit), 0..=limit + MIB, 0..=limit)),
        step in prop_oneof![0..MIB, 0..1u64 << 32],
        available in prop_oneof![0..2 * MIB, 0..1u64 << 37, Just(u64::MAX)],
    ) {
        let mut log = Log::new(allocated, limit, step);
        log.next = next;
        log.available = available;
        match log.growth() {
            Some((start, len)) => {
                prop_assert_eq!(start, allocated);
                prop_assert!(len > 0);
                prop_assert!(start + len <= limit);
                prop_assert!(start + len >= next);
                // What is not needed: a small part of the file system, or the rest of a unit.
                prop_assert!(start + len - next <= (available / 16).max(MIB - 1));
                log.allocated += len;
                prop_assert_eq!(log.growth(), None);
            }
            None => {
                prop_assert!(allocated >= next);
                if step <= available / 16 {
                    prop_assert!(allocated >= (next + step / 2).min(limit));
                }
            }
        }
    }

    #[test]
    fn ranges_agree_with_bytes(list in vec((0..300u64, 1..30u64), 0..12)) {
        let mut ranges = Ranges::new();
        // The place of each byte, and how many bytes there are up to the end of the range.
        let mut bytes = Vec::new();
        for (start, len) in list {
            ranges.push(start, len).unwrap();
            bytes.extend((0..len).map(|at| (start + at, len - at)));
        }
        prop_assert_eq!(ranges.len(), bytes.len() as u64);
        for at in 0..bytes.len() + 2 {
            prop_assert_eq!(ranges.locate(at as u64), bytes.get(at).copied());
        }
        prop_assert_eq!(ranges.locate(u64::MAX), None);
    }

    #[test]
    fn overlap_is_a_byte_in_two_ranges(
        lists in vec(vec((0..600u64, 1..16u64), 0..6), 1..4),
    ) {
        let mut parts = Vec::new();
        let mut bytes = BTreeSet::new();
        let mut overlap = false;
        for list in lists {
            let mut ranges = Ranges::new();
            for (start, len) in list {
                ranges.push(start, len).unwrap();
                for at in start..start + len {
                    overlap |= !bytes.insert(at);
                }
            }
            parts.push(ranges);
        }
        prop_assert_eq!(parts[0].overlap(parts[1..].iter()).unwrap(), overlap);
    }
}
