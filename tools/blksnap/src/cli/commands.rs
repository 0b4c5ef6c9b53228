// SPDX-License-Identifier: GPL-2.0-only

//! The commands that are one or a few requests to the kernel.

use std::collections::HashMap;
use std::path::Path;
use std::path::PathBuf;

use blksnap::abi::SectorRange;
use blksnap::control::DriverVersion;
use blksnap::device;
use blksnap::device::Attachment;
use blksnap::error::Exit;
use blksnap::error::Operation;
use blksnap::kernel;
use blksnap::kernel::freeze_above;
use blksnap::signals::Signals;
use blksnap::storage;
use blksnap::Control;
use blksnap::Device;
use blksnap::Error;
use blksnap::Result;
use blksnap::StorageRange;
use blksnap::Uuid;
use rustix::io::Errno;
use serde::Serialize;
use serde_json::json;

use super::args::Store;
use super::grow;
use super::guard::Guarded;
use super::output::unseen;
use super::output::Output;

/// Checks that all are block devices, each named once, before anything is
/// done with one of them.
pub fn check_devices(devices: &[PathBuf]) -> Result<()> {
    let mut seen: HashMap<_, &Path> = HashMap::new();
    for path in devices {
        if let Some(other) = seen.insert(device::check(path)?, path) {
            let reason = format!(
                "{} and {} are the same device",
                other.display(),
                path.display()
            );
            return Err(Error::new(Operation::Arguments, reason)
                .on(path)
                .remedied_by("name every device once"));
        }
    }
    Ok(())
}

/// Does something with every device, also after an error with one of them,
/// and prints what was done.
fn each_device<T: Serialize>(
    output: &Output,
    devices: &[PathBuf],
    act: impl Fn(&Path) -> Result<(T, String)>,
) -> Result<u8> {
    check_devices(devices)?;
    let mut code = 0;
    let mut done = Vec::new();
    let mut text = Vec::new();
    for path in devices {
        match act(path) {
            Ok((value, line)) => {
                done.push(value);
                text.push(format!("{}: {line}", path.display()));
            }
            Err(error) => {
                output.error(&error);
                code = error.exit().code();
            }
        }
    }
    Ok(output.result(&json!({ "devices": done }), &text.join("\n"), code))
}

pub fn attach(output: &Output, devices: &[PathBuf]) -> Result<u8> {
    each_device(output, devices, |path| {
        let already = kernel::attach(path)? == Attachment::Already;
        let line = if already {
            "was attached already"
        } else {
            "attached"
        };
        Ok((
            json!({ "device": path.display().to_string(), "already": already }),
            line.to_owned(),
        ))
    })
}

pub fn detach(output: &Output, devices: &[PathBuf]) -> Result<u8> {
    each_device(output, devices, |path| {
        Device::open_empty(path)?.detach()?;
        Ok((
            json!({ "device": path.display().to_string() }),
            "detached".to_owned(),
        ))
    })
}

pub fn create(output: &Output, store: &Store, devices: &[PathBuf]) -> Result<u8> {
    check_devices(devices)?;
    let plan = store.plan(devices)?;
    // A snapshot whose id nobody knows must not stay. Being killed is seen to by the guard.
    let mut signals =
        Signals::catch().map_err(|error| Error::from_io(Operation::Create, &error))?;
    let control = Control::open()?;
    let guarded = Guarded::create(&control, &store.store, plan.limit)?;
    let id = guarded.id;
    let mut publish = || {
        plan.set_threshold(id)?;
        for path in devices {
            Device::open(path)?.add_to_snapshot(id)?;
        }
        freeze_above(&control, id, devices)?;
        if plan.growth.is_some() {
            grow::start_process(id, &store.store, &plan)?;
        }
        if let Some(stop) = signals.pending().first() {
            let reason = format!("signal {} came", stop.signal);
            return Err(Error::new(Operation::Create, reason)
                .on(&store.store)
                .exiting(Exit::of_signal(stop.signal)));
        }
        let printed = output.item(
            &json!({
                "id": id,
                "store": store.store.display().to_string(),
                "limit_sectors": plan.limit,
                "low_space_sectors": plan.low_space,
                "growth": plan.growth,
                "devices": names(devices),
            }),
            &id.to_string(),
        );
        printed.map_err(|error| unseen(&error))
    };
    if let Err(error) = publish() {
        if let Err(error) = control.destroy(id) {
            output.error(&error);
        }
        guarded.release();
        return Err(error);
    }
    guarded.release();
    Ok(0)
}

pub fn add(output: &Output, id: Uuid, since: Option<Uuid>, devices: &[PathBuf]) -> Result<u8> {
    if since.is_some() && devices.len() > 1 {
        let reason = "--changed-since is an earlier snapshot of one device";
        return Err(
            Error::new(Operation::Arguments, reason).remedied_by("add the devices one by one")
        );
    }
    each_device(output, devices, |path| {
        let device = Device::open(path)?;
        if let Some(since) = since {
            // Before the device is added, so that it can be without that.
            let takes = device.takes()?;
            if !takes.is_none_or(|takes| takes.ids.contains(&Some(since))) {
                return Err(Error::from_errno(Operation::Select, Errno::STALE)
                    .on(path)
                    .of(id));
            }
        }
        // A second time, to say it of a device that was added before, is as good.
        match device.add_to_snapshot(id) {
            Err(error) if since.is_some() && error.errno() == Some(Errno::ALREADY) => {}
            result => result?,
        }
        if let Some(since) = since {
            device.select_changed_since(id, since)?;
        }
        freeze_above(&Control::open()?, id, &[path.to_owned()])?;
        Ok((
            json!({ "device": path.display().to_string(), "snapshot": id }),
            format!("added to snapshot {id}"),
        ))
    })
}

pub fn append(
    output: &Output,
    id: Uuid,
    path: &Path,
    ranges: &[StorageRange],
    overwrite: bool,
) -> Result<u8> {
    let device = storage::open_device(path)?;
    if !overwrite {
        storage::refuse_data_in(&device, path, ranges)?;
    }
    let ranges: Vec<SectorRange> = ranges.iter().copied().map(SectorRange::from).collect();
    let control = Control::open()?;
    control
        .append_storage(id, &device, &ranges)
        .map_err(|error| error.on(path))?;
    let storage = control.storage_info(id)?;
    Ok(output.result(
        &json!({ "id": id, "device": path.display().to_string(), "storage": storage }),
        &format!(
            "storage of snapshot {id}: {}, of which {} are used",
            storage.total.bytes(),
            storage.used.bytes()
        ),
        0,
    ))
}

pub fn take(output: &Output, id: Uuid) -> Result<u8> {
    Control::open()?.take(id)?;
    Ok(output.result(
        &json!({ "id": id, "taken": true }),
        &format!("snapshot {id} is taken"),
        0,
    ))
}

pub fn version(output: &Output) -> Result<u8> {
    let driver = Control::open().and_then(|control| control.version());
    let known = driver.as_ref().ok();
    let text = known.map(DriverVersion::to_string);
    let code = output.result(
        &json!({ "command": env!("CARGO_PKG_VERSION"), "driver": known }),
        &format!(
            "command {}\ndriver {}",
            env!("CARGO_PKG_VERSION"),
            text.as_deref().unwrap_or("unknown")
        ),
        0,
    );
    driver.map(|_| code)
}

/// Paths as text, which is all that JSON has.
pub fn names(paths: &[PathBuf]) -> Vec<String> {
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect()
}

/// The exit code of a snapshot that has this trouble.
pub fn corrupted(is_corrupted: bool) -> u8 {
    if is_corrupted {
        Exit::Corrupted.code()
    } else {
        0
    }
}
