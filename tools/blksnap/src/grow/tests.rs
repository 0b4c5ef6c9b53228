// SPDX-License-Identifier: GPL-2.0-only

use std::cell::Cell;
use std::cell::RefCell;

use super::*;

const LIMIT: Sectors = Sectors(1000);
const GROWTH: Growth = Growth {
    step: Sectors(1000),
    max: Some(Sectors(3500)),
};

fn next(limit: u64, left: u64, free: u64) -> std::result::Result<u64, Obstacle> {
    GROWTH
        .next(Sectors(limit), Sectors(left), Some(Sectors(free)))
        .map(|limit| limit.0)
}

#[test]
fn the_maximum_is_not_exceeded() {
    let next = |limit| GROWTH.next(Sectors(limit), Sectors(0), None);
    assert_eq!(next(1000), Ok(Sectors(2000)));
    assert_eq!(next(3000), Ok(Sectors(3500)));
    assert_eq!(next(3500), Err(Obstacle::Maximum));
    assert_eq!(next(4000), Err(Obstacle::Maximum));

    let endless = Growth {
        max: None,
        ..GROWTH
    };
    let next = endless.next(Sectors(u64::MAX - 1), Sectors(0), None);
    assert_eq!(next, Ok(Sectors(u64::MAX)));
}

#[test]
fn a_step_of_the_filesystem_stays_free() {
    assert_eq!(next(1000, 0, 2000), Ok(2000));
    // What is left takes of what is free.
    assert_eq!(next(1000, 400, 2400), Ok(2000));
    assert_eq!(next(1000, 400, 2000), Ok(1600));
    // Another storage was appended, and has that much left.
    assert_eq!(next(1000, u64::MAX, 3000), Ok(2000));
    // Too little to be worth it.
    for free in [0, 999, 1000, 1124] {
        let free = Sectors(free);
        assert_eq!(next(1000, 0, free.0), Err(Obstacle::Filesystem { free }));
    }
    assert_eq!(next(1000, 0, 1125), Ok(1125));
    // Little is enough if it is all that is wanted.
    assert_eq!(next(3499, 0, 1001), Ok(3500));
}

/// A storage that is used more every time it is waited for, and is destroyed
/// in the end.
struct Script {
    info: Cell<StorageInfo>,
    used: RefCell<std::slice::Iter<'static, u64>>,
    free: Cell<Option<Sectors>>,
    refuse: Cell<Option<Errno>>,
    limits: RefCell<Vec<u64>>,
    news: RefCell<Vec<News>>,
}

impl Script {
    fn new(low_space: u64, used: &'static [u64]) -> Self {
        Self {
            info: Cell::new(StorageInfo {
                total: LIMIT,
                used: Sectors(0),
                low_space: Sectors(low_space),
                lost: Sectors(0),
                held_ms: 0,
            }),
            used: RefCell::new(used.iter()),
            free: Cell::new(None),
            refuse: Cell::new(None),
            limits: RefCell::default(),
            news: RefCell::default(),
        }
    }

    fn run(&self) {
        run(self, LIMIT, GROWTH, &|news| {
            self.news.borrow_mut().push(news.clone());
        });
    }

    fn stuck(&self) -> usize {
        let news = self.news.borrow();
        news.iter().filter(|news| news.is_trouble()).count()
    }
}

impl Storage for Script {
    fn info(&self) -> Result<StorageInfo> {
        if self.info.get().used.0 == u64::MAX {
            return Err(Error::from_errno(Operation::StorageInfo, Errno::SRCH));
        }
        Ok(self.info.get())
    }

    fn set_limit(&self, limit: Sectors) -> Result<()> {
        if let Some(errno) = self.refuse.get() {
            return Err(Error::from_errno(Operation::SetLimit, errno));
        }
        let mut info = self.info.get();
        info.total = limit;
        self.info.set(info);
        self.limits.borrow_mut().push(limit.0);
        Ok(())
    }

    fn free(&self) -> Result<Option<Sectors>> {
        Ok(self.free.get())
    }

    fn wait(&self) -> Result<()> {
        let mut info = self.info.get();
        info.used = Sectors(self.used.borrow_mut().next().copied().unwrap_or(u64::MAX));
        self.info.set(info);
        Ok(())
    }
}

#[test]
fn it_grows_when_less_is_left_than_the_threshold() {
    let script = Script::new(500, &[500, 501, 1500, 1501]);
    script.run();
    assert_eq!(*script.limits.borrow(), [2000, 3000]);
    assert_eq!(
        *script.news.borrow(),
        [
            News::Grown {
                limit: Sectors(2000),
                used: Sectors(501)
            },
            News::Grown {
                limit: Sectors(3000),
                used: Sectors(1501)
            }
        ]
    );
}

#[test]
fn it_grows_until_enough_is_left() {
    let script = Script::new(2100, &[]);
    script.run();
    assert_eq!(*script.limits.borrow(), [2000, 3000]);
}

#[test]
fn it_never_grows_without_a_threshold() {
    let script = Script::new(0, &[1000]);
    script.run();
    assert!(script.limits.borrow().is_empty());
}

#[test]
fn that_it_cannot_grow_is_told_once() {
    let script = Script::new(500, &[3400, 3410, 3420]);
    script.run();
    assert_eq!(*script.limits.borrow(), [2000, 3000, 3500]);
    assert_eq!(script.stuck(), 1);

    let script = Script::new(500, &[600, 700, 800]);
    script.refuse.set(Some(Errno::INVAL));
    script.run();
    assert!(script.limits.borrow().is_empty());
    assert_eq!(script.stuck(), 1);
}

#[test]
fn it_is_tried_again_when_there_may_be_more_free_space() {
    struct Filling(Script);
    impl Storage for Filling {
        fn info(&self) -> Result<StorageInfo> {
            self.0.info()
        }
        fn set_limit(&self, limit: Sectors) -> Result<()> {
            self.0.set_limit(limit)
        }
        fn free(&self) -> Result<Option<Sectors>> {
            // Somebody makes room after a while.
            let free = self.0.free.replace(Some(Sectors(1 << 20)));
            Ok(free)
        }
        fn wait(&self) -> Result<()> {
            self.0.wait()
        }
    }
    let storage = Filling(Script::new(500, &[600, 601]));
    storage.0.free.set(Some(Sectors(0)));
    let news = RefCell::new(Vec::new());
    run(&storage, LIMIT, GROWTH, &|told| {
        news.borrow_mut().push(told.is_trouble());
    });
    assert_eq!(*news.borrow(), [true, false]);
    assert_eq!(*storage.0.limits.borrow(), [2000]);
}

#[test]
fn news_are_words() {
    let grown = News::Grown {
        limit: Sectors(4 << 20),
        used: Sectors(3 << 20),
    };
    let text = grown.to_string();
    assert!(text.contains("2G") && text.contains("1.5G"), "{text}");
    let stuck = |obstacle| {
        let news = News::Stuck {
            limit: Sectors(4 << 20),
            obstacle,
        };
        assert!(news.is_trouble());
        news.to_string()
    };
    assert!(stuck(Obstacle::Maximum).ends_with("beyond 2G: that is its maximum"));
    let free = Sectors(2048);
    assert!(stuck(Obstacle::Filesystem { free }).contains("1M free"));
    let error = Error::from_errno(Operation::SetLimit, Errno::INVAL);
    assert!(stuck(Obstacle::Error(error)).contains("(EINVAL)"));
}

#[test]
fn what_is_open_stays_with_this_process() {
    // As a shell hands it on.
    let inherited = rustix::io::dup(std::io::stderr()).unwrap();
    let flags = || rustix::io::fcntl_getfd(&inherited).unwrap();
    assert_eq!(flags(), rustix::io::FdFlags::empty());
    close_on_exec().unwrap();
    assert_eq!(flags(), rustix::io::FdFlags::CLOEXEC);
}
