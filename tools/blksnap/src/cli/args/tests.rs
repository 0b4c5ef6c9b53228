// SPDX-License-Identifier: GPL-2.0-only

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use blksnap::grow::Growth;
use blksnap::Bytes;
use blksnap::Sectors;
use blksnap::Uuid;

use super::command;
use super::help::parse_from;
use super::place::seconds;
use super::Step;
use super::Subcommand;
use crate::cli::grow::Plan;

#[test]
fn definition_is_sound() {
    command().debug_assert();
}

#[test]
fn every_command_has_examples() {
    for command in command().get_subcommands() {
        if command.is_hide_set() {
            continue;
        }
        let help = command.get_after_help().map(ToString::to_string);
        assert!(
            help.is_some_and(|help| help.contains("Examples:")),
            "{}",
            command.get_name()
        );
    }
}

fn plan(store: &Path, options: &[&str]) -> blksnap::Result<Plan> {
    let store = store.to_str().unwrap();
    let args = [&["blksnap", "create", "--store", store], options].concat();
    match parse_from(args).unwrap().command {
        Subcommand::Flat(Step::Create { store, .. }) => store.plan(&[]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn growing_begins_with_a_step() {
    let temp = tempfile::tempdir().unwrap();
    let plan = |options: &[&str]| plan(temp.path(), options).unwrap();
    let growing = |limit, low_space, max| Plan {
        limit: Sectors(limit),
        low_space: Some(Sectors(low_space)),
        growth: Some(Growth {
            step: Sectors(2048),
            max,
        }),
    };
    assert_eq!(plan(&["--grow=1M"]), growing(2048, 1024, None));
    assert_eq!(
        plan(&["--grow=1M", "--max=512K", "--low-space=4K"]),
        growing(1024, 8, Some(Sectors(1024)))
    );
    assert_eq!(
        plan(&["--grow=1M", "--limit=4M", "--max=4M"]),
        growing(8192, 1024, Some(Sectors(8192)))
    );
    assert_eq!(plan(&["--grow=512"]).low_space, Some(Sectors(1)));

    let fixed = plan(&["--limit=1M", "--low-space=4K"]);
    assert_eq!(fixed.low_space, Some(Sectors(8)));
    assert_eq!(fixed.growth, None);
    assert_eq!(plan(&["--limit=1M"]).low_space, None);
}

#[test]
fn a_limit_above_the_maximum_makes_no_sense() {
    let temp = tempfile::tempdir().unwrap();
    let error = plan(temp.path(), &["--grow=1M", "--limit=3M", "--max=2M"]).unwrap_err();
    assert_eq!(error.exit().code(), 2);
    assert!(error.to_string().contains("--max"), "{error}");
}

#[test]
fn plans_reach_other_processes() {
    for growth in [
        None,
        Some(Growth {
            step: Sectors(4),
            max: None,
        }),
        Some(Growth {
            step: Sectors(4),
            max: Some(Sectors(9)),
        }),
    ] {
        let plan = Plan {
            limit: Sectors(7),
            low_space: growth.map(|_| Sectors(2)),
            growth,
        };
        let mut args: Vec<OsString> = vec!["blksnap".into(), "grow".into()];
        args.extend(plan.options("/a store".as_ref()));
        args.push(Uuid::from_bytes([1; 16]).to_string().into());
        match parse_from(args).unwrap().command {
            Subcommand::Grow {
                store,
                plan: options,
                ..
            } => {
                assert_eq!(store, Path::new("/a store"));
                assert_eq!(Plan::from(options), plan);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn times_are_seconds() {
    assert_eq!(seconds("60"), Ok(Duration::from_secs(60)));
    assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
    for text in ["", "-1", "1m", "nan", "inf"] {
        assert!(seconds(text).is_err(), "{text}");
    }
}

#[test]
fn locks_are_not_waited_for_unless_that_is_said() {
    let wait = |options: &[&str]| {
        let args = [&["blksnap", "verify", "/b"], options].concat();
        match parse_from(args).unwrap().command {
            Subcommand::Verify { lock, .. } => lock.wait,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(wait(&[]), Duration::ZERO);
    assert_eq!(wait(&["--lock-wait", "90"]), Duration::from_secs(90));
}

#[test]
fn options_of_the_command_are_left_to_it() {
    let args = parse_from([
        "blksnap", "snapshot", "/dev/a", "/dev/b", "--store", "/s", "--limit", "1G", "--", "ls",
        "--json", "--", "-l",
    ])
    .unwrap();
    assert!(!args.json);
    let Subcommand::Run(snapshot) = args.command else {
        panic!();
    };
    assert_eq!(snapshot.devices.len(), 2);
    assert_eq!(snapshot.store.limit, Some(Bytes(1 << 30)));
    assert_eq!(snapshot.command, ["ls", "--json", "--", "-l"]);
}
