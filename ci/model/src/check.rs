// SPDX-License-Identifier: GPL-2.0-only

//! Tries all orders of the steps in small worlds, and looks whether a promise is broken.
//!
//! The driver's types cannot be copied, so a state is the steps that lead to it. Two states are the
//! same if the digests of their worlds are.
//!
//! One promise is about all orders: from each state an end can be reached by steps that come by
//! themselves. From a worker that goes round in circles it cannot.

use super::world::{Action, Config, Fault, World};
use stateright::{Checker, Model, Property};
use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Mutex,
    time::Instant,
};

#[derive(Clone, Debug)]
struct State {
    steps: Vec<Action>,
    next: Vec<Action>,
    /// How many of these come by themselves; they are the first ones.
    progress: usize,
    digest: Vec<u8>,
    /// A hash of the digest.
    id: u64,
    fault: Option<Fault>,
}

impl State {
    fn after(config: Config, steps: Vec<Action>) -> Self {
        let mut world = World::new(config);
        for step in &steps {
            world.step(*step);
        }
        let digest = world.digest();
        let mut hasher = DefaultHasher::new();
        digest.hash(&mut hasher);
        Self {
            steps,
            next: world.actions(),
            progress: world.progress().len(),
            digest,
            id: hasher.finish(),
            fault: world.fault,
        }
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

struct Orders {
    config: Config,
    /// The states before and after each step that comes by itself.
    steps: Mutex<Vec<(u64, u64)>>,
    /// The states in which nothing does.
    ends: Mutex<Vec<u64>>,
}

impl Orders {
    /// Returns whether there is a state from which no end can be reached.
    fn has_circle(&self) -> bool {
        let steps = self.steps.lock().unwrap();
        let mut before: HashMap<u64, Vec<u64>> = HashMap::new();
        for (from, to) in steps.iter() {
            before.entry(*to).or_default().push(*from);
        }
        let mut left: HashSet<u64> = steps.iter().map(|(from, _)| *from).collect();
        let mut ends = self.ends.lock().unwrap().clone();
        while let Some(to) = ends.pop() {
            for from in before.remove(&to).unwrap_or_default() {
                if left.remove(&from) {
                    ends.push(from);
                }
            }
        }
        !left.is_empty()
    }
}

impl Model for Orders {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::after(self.config, Vec::new())]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.progress == 0 {
            self.ends.lock().unwrap().push(state.id);
        }
        actions.extend(&state.next);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut steps = last.steps.clone();
        steps.push(action);
        let state = State::after(self.config, steps);
        if last.next[..last.progress].contains(&action) {
            self.steps.lock().unwrap().push((last.id, state.id));
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("promises", |_, state: &State| {
            state.fault.is_none()
        })]
    }
}

const NONE: Config = Config {
    chunks: 2,
    writers: &[],
    readers: &[],
    max_copies: 2,
    takes: 1,
    no_memory: 0,
    errors: 0,
    breaks: 0,
};

/// The worlds, those with few states first.
const WORLDS: [(&str, Config); 7] = [
    (
        "groups, little memory and room for one copy",
        Config {
            writers: &[(0, 2, Some(0)), (1, 2, Some(1))],
            max_copies: 1,
            no_memory: 1,
            ..NONE
        },
    ),
    (
        "snapshot that breaks",
        Config {
            writers: &[(0, 2, None), (1, 2, None)],
            max_copies: 1,
            breaks: 1,
            ..NONE
        },
    ),
    (
        "two writers and an image read",
        Config {
            writers: &[(0, 2, None), (1, 2, None)],
            readers: &[(0, 2)],
            ..NONE
        },
    ),
    (
        "three writers",
        Config {
            writers: &[(0, 1, None), (0, 2, None), (1, 2, None)],
            ..NONE
        },
    ),
    (
        "two snapshots of one chunk",
        Config {
            chunks: 1,
            writers: &[(0, 1, None), (0, 1, None)],
            readers: &[(0, 1)],
            max_copies: 1,
            takes: 2,
            ..NONE
        },
    ),
    (
        "large write and reads that fail",
        Config {
            writers: &[(0, 2, None)],
            readers: &[(0, 2)],
            max_copies: 16,
            no_memory: 1,
            errors: 2,
            ..NONE
        },
    ),
    (
        "reads and stores that fail",
        Config {
            writers: &[(0, 1, None), (0, 2, None)],
            readers: &[(0, 2)],
            max_copies: 16,
            errors: 1,
            ..NONE
        },
    ),
];

/// Tries all orders in each world, or in the one of that name, and says how many states there are.
/// Returns whether all promises were kept; stops at the first one that was not.
pub fn run(only: Option<&str>) -> bool {
    let mut worlds = WORLDS
        .iter()
        .filter(|(name, _)| only.is_none_or(|only| only == *name))
        .peekable();
    worlds.peek().is_some()
        && worlds.all(|(name, config)| {
            let begin = Instant::now();
            let orders = Orders {
                config: *config,
                steps: Mutex::default(),
                ends: Mutex::default(),
            };
            let checker = orders.checker().threads(2).spawn_bfs().join();
            let seconds = begin.elapsed().as_secs_f32();
            let verdict = match checker.discovery("promises") {
                None if checker.model().has_circle() => {
                    println!("Circle after some steps");
                    "FAIL"
                }
                None => "PASS",
                Some(path) => {
                    let last = path.into_states().pop();
                    if let Some((fault, steps)) =
                        last.and_then(|last| Some((last.fault?, last.steps)))
                    {
                        println!("{fault:?} after {steps:?}");
                    }
                    "FAIL"
                }
            };
            let (states, steps) = (checker.unique_state_count(), checker.max_depth());
            println!("{verdict} {name}: {states} states, up to {steps} steps [{seconds:.1} s]");
            verdict == "PASS"
        })
}
