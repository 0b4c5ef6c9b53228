// SPDX-License-Identifier: GPL-2.0-only

//! Whether the driver is loaded, or modprobe would find it.

use super::kernel::Choice;
use super::kernel::Config;
use super::Check;
use super::Root;

const CHECK: &str = "module";
const SUBJECT: &str = "blksnap";

/// Where it is, if no list of modules has it.
const PLACES: [&str; 4] = [
    "kernel/drivers/block/blksnap",
    "updates/dkms",
    "updates",
    "extra",
];

/// Where `modprobe` would find it.
#[derive(Debug, PartialEq, Eq)]
enum Module {
    BuiltIn,
    /// The file, on the list that depmod makes.
    Listed(String),
    /// The file, not on the list.
    Unlisted(String),
}

pub fn is_loaded(root: &Root) -> bool {
    root.exists("/sys/module/blksnap")
}

/// Checks that the driver is there for the running kernel.
pub fn check(root: &Root, config: &Config) -> Check {
    let release = root.release();
    if is_loaded(root) {
        return Check::ok(CHECK, SUBJECT, "the driver is loaded");
    }
    match find(root, &release) {
        None => absent(root, &release, config),
        Some(Module::BuiltIn) => Check::problem(
            CHECK,
            SUBJECT,
            format!(
                "the driver is built into kernel {release}, but the running kernel does not have it"
            ),
            "look into the kernel's log with \"dmesg | grep blksnap\" for why it did not start",
        ),
        Some(Module::Listed(file) | Module::Unlisted(file))
            if built_for(root, &file).is_some_and(|it| it != release) =>
        {
            let other = built_for(root, &file).unwrap_or_default();
            Check::problem(
                CHECK,
                SUBJECT,
                format!("{file} was built for kernel {other}, and {release} is running"),
                format!("boot kernel {other}, or install the module that was built for {release}"),
            )
        }
        Some(Module::Unlisted(file)) => Check::problem(
            CHECK,
            SUBJECT,
            format!("modprobe does not know {file}"),
            "run \"depmod -a\", then \"modprobe blksnap\"",
        ),
        Some(Module::Listed(_)) if is_locked(root) => Check::problem(
            CHECK,
            SUBJECT,
            "the driver is not loaded, and no module can be loaded until the next start (the \
             sysctl kernel.modules_disabled is set)",
            "write \"blksnap\" to /etc/modules-load.d/blksnap.conf, and restart the machine",
        ),
        Some(Module::Listed(_)) => Check::problem(
            CHECK,
            SUBJECT,
            "the driver is not loaded",
            "load it with \"modprobe blksnap\"; a line \"blksnap\" in \
             /etc/modules-load.d/blksnap.conf has it loaded at each start",
        ),
    }
}

/// There is none for the running kernel.
fn absent(root: &Root, release: &str, config: &Config) -> Check {
    let others: Vec<String> = root.names("/lib/modules");
    let mut others = others.into_iter().filter(|it| it != release);
    if let Some(other) = others.find(|it| find(root, it).is_some()) {
        return Check::problem(
            CHECK,
            SUBJECT,
            format!("the driver was built for kernel {other}, and {release} is running"),
            format!("boot kernel {other}, or install the module that was built for {release}"),
        );
    }
    let file = config.file.as_deref().unwrap_or_default();
    let reason = match config.blksnap {
        Some(Choice::Off) => format!(
            "kernel {release} was built without the driver: CONFIG_BLKSNAP is not set in {file}"
        ),
        _ => format!("there is no module \"blksnap\" in /lib/modules/{release}"),
    };
    Check::problem(
        CHECK,
        SUBJECT,
        reason,
        "install and boot a kernel built with CONFIG_BLKSNAP=m, then run \"modprobe blksnap\"",
    )
}

/// Looks for the module as modprobe does.
fn find(root: &Root, release: &str) -> Option<Module> {
    if release.is_empty() {
        return None;
    }
    let directory = format!("/lib/modules/{release}");
    let list = |name: &str| {
        root.text(&format!("{directory}/{name}"))
            .unwrap_or_default()
    };
    if list("modules.builtin").lines().any(is_module) {
        return Some(Module::BuiltIn);
    }
    let listed = list("modules.dep");
    let mut listed = listed.lines().filter_map(|line| line.split_once(':'));
    if let Some((file, _)) = listed.find(|(file, _)| is_module(file)) {
        // A path that begins with a slash is one as it is.
        let file = match file.starts_with('/') {
            true => file.to_owned(),
            false => format!("{directory}/{file}"),
        };
        return root.exists(&file).then_some(Module::Listed(file));
    }
    PLACES.iter().find_map(|place| {
        let place = format!("{directory}/{place}");
        let name = root.names(&place).into_iter().find(|it| is_module(it))?;
        Some(Module::Unlisted(format!("{place}/{name}")))
    })
}

/// Whether a path is that of the module, which can be compressed.
fn is_module(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    matches!(
        name,
        "blksnap.ko" | "blksnap.ko.xz" | "blksnap.ko.zst" | "blksnap.ko.gz"
    )
}

/// The release that a module was built for; none if that cannot be read, as in a compressed one.
fn built_for(root: &Root, file: &str) -> Option<String> {
    const MARK: &[u8] = b"vermagic=";
    if !file.ends_with(".ko") {
        return None;
    }
    let bytes = root.bytes(file).ok()?;
    let at = bytes.windows(MARK.len()).position(|it| it == MARK)? + MARK.len();
    let text = bytes
        .get(at..)?
        .split(|byte| matches!(byte, b' ' | 0))
        .next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

fn is_locked(root: &Root) -> bool {
    let text = root.text("/proc/sys/kernel/modules_disabled");
    text.is_ok_and(|text| text.trim() == "1")
}
