// SPDX-License-Identifier: GPL-2.0-only

//! The command line as a whole, and its help.

use clap::error::Result;
use clap::Command;
use clap::CommandFactory;
use clap::FromArgMatches;
use clap::Subcommand;

use super::Args;
use super::Step;

/// The commands by what they are for, in the order in which they are shown.
const GROUPS: [(&str, &[&str]); 5] = [
    (
        "Backups",
        &[
            "backup", "restore", "list", "verify", "prune", "forget", "rebuild",
        ],
    ),
    ("Run on a snapshot", &["run"]),
    (
        "Tracking of changes",
        &["attach", "detach", "changed", "status"],
    ),
    ("By hand", &["snap"]),
    ("Help", &["doctor", "version", "man", "completions", "help"]),
];

/// No line of the help is longer: it is for reading.
const WIDTH: usize = 100;

/// The definition of the command line.
pub fn command() -> Command {
    let mut command = Args::command().max_term_width(WIDTH);
    // They were there before "snap" was.
    for step in Step::augment_subcommands(Command::new("")).get_subcommands() {
        command = command.mut_subcommand(step.get_name(), |it| it.hide(true));
    }
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{}Options:\n{{options}}{{after-help}}",
        groups(&command)
    );
    command.help_template(template)
}

/// Parses the command line of this process.
pub fn parse() -> Result<Args> {
    parse_from(std::env::args_os())
}

/// Parses a command line, which begins with the name of the program.
pub fn parse_from<T>(args: impl IntoIterator<Item = T>) -> Result<Args>
where
    T: Into<std::ffi::OsString> + Clone,
{
    let mut command = command();
    let matches = command.try_get_matches_from_mut(args)?;
    Args::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// The lists of commands.
fn groups(command: &Command) -> String {
    let about = |name: &str| {
        let found = command.find_subcommand(name).and_then(Command::get_about);
        found.map_or_else(
            || "Print this message or the help of a command".to_owned(),
            ToString::to_string,
        )
    };
    let mut text = String::new();
    for (heading, names) in GROUPS {
        text += &format!("{heading}:\n");
        for name in names {
            text += &format!("  {name:<11}  {}\n", about(name));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_a_group() {
        let mut listed: Vec<&str> = GROUPS
            .iter()
            .flat_map(|(_, names)| names.to_vec())
            .collect();
        listed.sort_unstable();
        let mut command = command();
        command.build();
        let visible = command.get_subcommands().filter(|it| !it.is_hide_set());
        let mut names: Vec<&str> = visible.map(Command::get_name).collect();
        names.sort_unstable();
        assert_eq!(listed, names);
    }

    #[test]
    fn groups_fit_a_terminal() {
        let text = groups(&command());
        let long = text.lines().find(|line| line.chars().count() > 80);
        assert_eq!(long, None);
    }

    #[test]
    fn steps_have_two_names() {
        for step in ["take", "destroy", "events", "image"] {
            let id = "5f0c1c1e-8f0e-4a57-9f6c-0d8a3a1f6a11";
            let flat = parse_from(["blksnap", step, id]).unwrap().command;
            let snap = parse_from(["blksnap", "snap", step, id]).unwrap().command;
            let shown = format!("{snap:?}");
            assert_eq!(
                format!("{flat:?}"),
                shown
                    .replace("Snap { step: ", "Flat(")
                    .replace(" } }", " })")
            );
        }
        assert!(
            parse_from(["blksnap", "snapshot", "/dev/a", "--store", "/", "--", "true"]).is_ok()
        );
    }

    #[test]
    fn help_has_no_long_lines() {
        let mut command = command();
        command.build();
        let mut all = vec![&command];
        while let Some(command) = all.pop() {
            let help = command
                .clone()
                .term_width(80)
                .render_long_help()
                .to_string();
            let long = help.lines().find(|line| line.chars().count() > 90);
            assert_eq!(long, None, "{}", command.get_name());
            assert!(!help.contains('`'), "{}", command.get_name());
            all.extend(command.get_subcommands());
        }
    }
}
