// SPDX-License-Identifier: GPL-2.0-only

use super::{chunks, config};
use crate::ahead::{Begun, Costs, Streams, STREAMS, UNIT_BYTES};
use proptest::{collection::vec, prelude::*};

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_is_copied_ahead_is_behind_the_write(
        writes in vec((0..200u64, 1..12u64, 0..16u64, 0..=16u64), 1..200),
    ) {
        let mut streams = Streams::new();
        for (start, len, limit, stop) in writes {
            let write = chunks(start, start + len);
            let follows = streams.follows(write);
            let ahead = streams.follow(write, limit);
            prop_assert_eq!(follows, ahead.is_some());
            let Some(ahead) = ahead else {
                continue;
            };
            prop_assert!(ahead.start >= write.end);
            prop_assert!((1..=limit.max(1)).contains(&ahead.len()));
            prop_assert!(streams.marks().contains(&ahead.start));
            if stop < ahead.len() {
                streams.stopped(ahead, ahead.start + stop);
            }
        }
    }

    /// As many streams at once as are followed, each of which goes on in writes of any size. What
    /// is copied ahead has no gaps, and no chunk is copied twice.
    #[test]
    fn streams_have_no_gaps(
        writes in vec((0..STREAMS, 1..40u64, prop::option::weighted(0.1, 0..20u64)), 1..300),
        limit in 1..64u64,
    ) {
        struct Stream {
            /// Where the next write starts.
            at: u64,
            /// What is ahead of this is saved.
            saved: u64,
            writes: usize,
            /// Number of chunks that were copied ahead last.
            window: u64,
        }

        let mut streams = Streams::new();
        let mut list: Vec<Stream> = (1..=STREAMS as u64)
            .map(|number| Stream {
                at: number << 32,
                saved: number << 32,
                writes: 0,
                window: 0,
            })
            .collect();
        for (number, len, stop) in writes {
            let stream = &mut list[number];
            let write = chunks(stream.at, stream.at + len);
            stream.at = write.end;
            let marks = streams.marks();
            let marked = marks.iter().any(|mark| write.start <= *mark && *mark < write.end);
            if write.end <= stream.saved && !marked {
                continue;
            }
            let ahead = streams.follow(write, limit);
            stream.writes += 1;
            stream.saved = stream.saved.max(write.end);
            if stream.writes == 1 {
                prop_assert!(ahead.is_none());
                continue;
            }
            let ahead = ahead.unwrap();
            prop_assert_eq!(ahead.start, stream.saved);
            let window = if stream.writes == 2 { len } else { 2 * stream.window };
            prop_assert_eq!(ahead.len(), window.min(limit));
            stream.window = ahead.len();
            stream.saved = ahead.end;
            if let Some(stop) = stop.filter(|stop| *stop < ahead.len()) {
                stream.saved = ahead.start + stop;
                streams.stopped(ahead, stream.saved);
            }
        }
    }

    /// Bytes that were not needed are at most twice those that were, unless they are cheap.
    #[test]
    fn rest_is_limited(
        rotational: bool,
        shares_disk: bool,
        reads in vec(
            (
                prop_oneof![0..10_000u64, 0..10_000_000u64, 0..1u64 << 50],
                prop_oneof![Just(4096u64), Just(16384), 512..UNIT_BYTES],
                0..64u64,
                any::<[bool; 3]>(),
            ),
            1..400,
        ),
    ) {
        let mut costs = Costs::new(rotational, shares_disk);
        let mut now = 0;
        let (mut needed, mut more) = (0, 0);
        for (ns, bytes, touched, [alone, first, stores]) in reads {
            costs.begin(now, first);
            let begun = Begun { ns: now, alone };
            now += ns;
            costs.end(now);
            costs.took(begun, now, bytes as usize);
            if stores {
                costs.stored(ns, bytes as usize, shares_disk);
            }
            let cheap = rotational && !shares_disk
                || costs.of(UNIT_BYTES).is_some_and(|(one, unit)| one.saturating_mul(4) >= unit);
            let rest = UNIT_BYTES - bytes;
            let takes = costs.take_rest(touched, bytes, rest);
            costs.ask(bytes as usize);
            needed += bytes;
            if takes && !cheap {
                more += rest;
            }
            let never = shares_disk && !rotational;
            prop_assert_eq!(takes && never, false);
            prop_assert!(takes || never || !cheap);
            prop_assert!(more <= 2 * needed);
        }
    }
}
