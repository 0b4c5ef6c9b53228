// SPDX-License-Identifier: GPL-2.0-only

use std::os::unix::fs::PermissionsExt;

use super::*;

struct Test {
    temp: tempfile::TempDir,
    hooks: Hooks,
}

impl Test {
    fn new() -> Self {
        Self {
            temp: tempfile::tempdir().unwrap(),
            hooks: Hooks::default(),
        }
    }

    /// A command that notes `word` and what it knows, and ends with `code`.
    fn note(&self, word: &str, code: u8) -> OsString {
        let log = self.log();
        let log = log.display();
        format!("echo {word} $BLKSNAP_HOOK $BLKSNAP_DEVICE_1 >>'{log}'; exit {code}").into()
    }

    fn log(&self) -> PathBuf {
        self.temp.path().join("log")
    }

    fn program(&mut self, name: &str, mode: u32) -> PathBuf {
        let directory = self.temp.path().join("hooks");
        fs::create_dir_all(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let path = directory.join(name);
        let log = self.log();
        let text = format!("#!/bin/sh\necho {name} $1 >>'{}'\n", log.display());
        // Not by this process: a child of another test that is just forked could have the file open,
        // and what is open for writing cannot be run.
        let written = std::process::Command::new("/bin/sh")
            .args(["-c", "printf %s \"$1\" >\"$0\""])
            .arg(&path)
            .arg(text)
            .status();
        assert!(written.unwrap().success());
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        self.hooks.directory = Some(directory);
        path
    }

    /// Runs them around a moment that notes itself, or fails.
    fn run(&self, works: bool) -> (Result<()>, Vec<Error>) {
        let variables = [("BLKSNAP_DEVICE_1".to_owned(), "/dev/a".into())];
        let moment = |_: &mut dyn FnMut() -> Result<()>| {
            let told = std::process::Command::new("/bin/sh")
                .args(["-c", "echo moment >>\"$0\""])
                .arg(self.log())
                .status();
            assert!(told.unwrap().success());
            works
                .then_some(())
                .ok_or_else(|| Error::new(Operation::Take, "not now"))
        };
        let prepared = self.hooks.prepare().unwrap();
        prepared.around(&variables, &mut || Ok(()), moment)
    }

    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
fn they_run_around_the_moment() {
    let mut test = Test::new();
    test.program("10-first", 0o755);
    test.program("20-second", 0o755);
    // None of these is one.
    test.program("30-off", 0o644);
    test.program(".hidden", 0o755);
    test.program("40-old.dpkg-old", 0o755);
    test.program("50-backup~", 0o755);
    test.hooks.before = vec![test.note("one", 0), test.note("two", 0)];
    test.hooks.after = vec![test.note("three", 0)];
    let (result, errors) = test.run(true);
    assert_eq!((result, errors), (Ok(()), Vec::new()));
    assert_eq!(
        test.lines(),
        [
            "one before-take /dev/a",
            "two before-take /dev/a",
            "10-first before-take",
            "20-second before-take",
            "moment",
            "20-second after-take",
            "10-first after-take",
            "three after-take /dev/a",
        ]
    );
}

#[test]
fn what_comes_after_runs_whatever_happens() {
    let mut test = Test::new();
    test.hooks.before = vec![test.note("one", 3), test.note("two", 0)];
    test.hooks.after = vec![test.note("three", 4), test.note("four", 0)];
    let (result, errors) = test.run(true);
    let error = result.unwrap_err();
    assert_eq!(error.operation(), Operation::Hook);
    assert!(
        error
            .to_string()
            .contains("before-take hook: it has ended with exit code 3"),
        "{error}"
    );
    assert_eq!(errors.len(), 1);
    assert!(
        errors[0].to_string().contains("exit code 4"),
        "{}",
        errors[0]
    );
    assert_eq!(
        test.lines(),
        [
            "one before-take /dev/a",
            "three after-take /dev/a",
            "four after-take /dev/a"
        ]
    );
    // As if the take had failed.
    let mut test = Test::new();
    test.hooks.after = vec![test.note("three", 0)];
    assert_eq!(test.run(false).0.unwrap_err().operation(), Operation::Take);
    assert_eq!(test.lines(), ["moment", "three after-take /dev/a"]);
}

#[test]
fn one_that_takes_too_long_is_ended_with_all_that_it_started() {
    let mut test = Test::new();
    let log = test.log();
    let line = format!(
        "sh -c 'sleep 1; echo late >>\"{}\"' & sleep 100",
        log.display()
    );
    test.hooks.before = vec![line.into()];
    test.hooks.after = vec![test.note("after", 0)];
    test.hooks.timeout = Duration::from_millis(200);
    let begin = Instant::now();
    let error = test.run(true).0.unwrap_err();
    assert!(error.to_string().contains("took more than"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(4));
    sleep(Duration::from_millis(1500));
    assert_eq!(test.lines(), ["after after-take /dev/a"]);
}

#[test]
fn an_interruption_ends_what_runs_before_the_moment_only() {
    let mut test = Test::new();
    test.hooks.before = vec!["sleep 100".into()];
    test.hooks.after = vec![test.note("after", 0)];
    let prepared = test.hooks.prepare().unwrap();
    let mut left = 5;
    let mut keep_on = || {
        left -= 1;
        if left < 0 {
            return Err(Error::new(Operation::Run, "stopped"));
        }
        Ok(())
    };
    let begin = Instant::now();
    let variables = [("BLKSNAP_DEVICE_1".to_owned(), "/dev/a".into())];
    let (result, errors) = prepared.around(&variables, &mut keep_on, |_| Ok(()));
    assert_eq!(result.unwrap_err().operation(), Operation::Run);
    assert!(errors.is_empty());
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(test.lines(), ["after after-take /dev/a"]);
}

#[test]
fn what_others_can_write_to_is_not_run() {
    let mut test = Test::new();
    let path = test.program("10-first", 0o777);
    let refused = |test: &Test| test.hooks.prepare().err().unwrap();
    let error = refused(&test);
    assert!(
        error.to_string().contains("others can write to it"),
        "{error}"
    );
    assert!(error.remedy().unwrap().contains("chmod go-w"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(test.hooks.prepare().is_ok());
    let directory = path.parent().unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).unwrap();
    refused(&test);
    test.hooks.directory = Some("/nonexistent".into());
    assert_eq!(refused(&test).operation(), Operation::Hook);
}
