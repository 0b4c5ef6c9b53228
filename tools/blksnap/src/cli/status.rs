// SPDX-License-Identifier: GPL-2.0-only

//! What there is: "blksnap status", "image", and "destroy", which looks
//! before it acts.

use std::path::Path;
use std::path::PathBuf;

use blksnap::abi::FILTER_NAME;
use blksnap::control::DriverVersion;
use blksnap::control::StorageInfo;
use blksnap::device;
use blksnap::device::SnapshotState;
use blksnap::device::Tracking;
use blksnap::error::Operation;
use blksnap::explain::errno_name;
use blksnap::kernel::Kernel;
use blksnap::kernel::Linux;
use blksnap::printable::printable;
use blksnap::sysfs::Filtered;
use blksnap::sysfs::Sysfs;
use blksnap::Bytes;
use blksnap::Control;
use blksnap::Device;
use blksnap::Error;
use blksnap::Result;
use blksnap::Uuid;
use rustix::io::Errno;
use serde::Serialize;
use serde_json::json;

use super::commands::corrupted;
use super::commands::names;
use super::output::Output;

#[derive(Debug, Serialize)]
struct Status {
    driver: DriverVersion,
    snapshots: Vec<SnapshotStatus>,
    devices: Vec<DeviceStatus>,
}

#[derive(Debug, Serialize)]
struct SnapshotStatus {
    id: Uuid,
    /// Unknown if there are several snapshots.
    devices: Option<Vec<String>>,
    /// Unknown to older drivers.
    #[serde(skip_serializing_if = "Option::is_none")]
    storage: Option<StorageInfo>,
}

#[derive(Debug, Serialize)]
struct DeviceStatus {
    #[serde(flatten)]
    filtered: Filtered,
    tracking: Option<Tracking>,
    snapshot: Option<ImageStatus>,
    /// Why the rest is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Error>,
}

#[derive(Debug, Serialize)]
struct ImageStatus {
    image: PathBuf,
    /// 0, or a negative errno if it cannot be trusted.
    error_code: i32,
}

/// The state of a device that has the filter; `None` if it is in no snapshot
/// that is taken.
fn state_of(path: &Path) -> Result<Option<SnapshotState>> {
    match Device::open_empty(path)?.snapshot_state() {
        Ok(state) => Ok(state.image.is_some().then_some(state)),
        Err(error) if matches!(error.errno(), Some(Errno::SRCH | Errno::NODATA)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_ours(filtered: &Filtered) -> bool {
    filtered.filter.as_deref() == Some(FILTER_NAME)
}

fn scan() -> Result<Vec<Filtered>> {
    Sysfs::default()
        .filtered()
        .map_err(|error| Error::from_io(Operation::Scan, &error).on(Path::new("/sys/block")))
}

/// Whether the device is gone since it was found.
fn is_gone(error: &Error) -> bool {
    let gone = [Errno::NOENT, Errno::NODEV, Errno::NXIO];
    error.errno().is_some_and(|errno| gone.contains(&errno))
}

/// Whether the device has nothing now that could be read, which is no trouble.
fn is_empty(error: &Error) -> bool {
    matches!(error.errno(), Some(Errno::NOMEDIUM | Errno::MEDIUMTYPE))
}

/// Devices in a snapshot that is taken, with its state.
type Found = Vec<(PathBuf, SnapshotState)>;

/// All of them; and why of some devices it is not known.
fn snapshotted() -> Result<(Found, Vec<Error>)> {
    let mut found = Vec::new();
    let mut errors = Vec::new();
    for filtered in scan()?.into_iter().filter(is_ours) {
        match state_of(&filtered.device) {
            Ok(state) => found.extend(state.map(|state| (filtered.device, state))),
            Err(error) if is_gone(&error) || is_empty(&error) => (),
            Err(error) => errors.push(error),
        }
    }
    Ok((found, errors))
}

fn device_status(filtered: Filtered) -> DeviceStatus {
    let mut status = DeviceStatus {
        filtered,
        tracking: None,
        snapshot: None,
        error: None,
    };
    if is_ours(&status.filtered) {
        status.error = status.ask().err();
    }
    status
}

impl DeviceStatus {
    fn ask(&mut self) -> Result<()> {
        let path = &self.filtered.device;
        self.tracking = Some(Device::open_empty(path)?.tracking()?);
        self.snapshot = state_of(path)?.and_then(|state| {
            Some(ImageStatus {
                image: Sysfs::default().node(&state.image?),
                error_code: state.error_code,
            })
        });
        Ok(())
    }

    fn state(&self) -> String {
        match (&self.error, &self.snapshot) {
            (Some(error), _) => match error.errno() {
                Some(errno) => format!("unknown ({})", errno_name(errno)),
                None => "unknown".to_owned(),
            },
            (None, Some(snapshot)) => state_text(snapshot.error_code),
            (None, None) if self.tracking.is_some() => "tracked".to_owned(),
            (None, None) => "-".to_owned(),
        }
    }
}

/// How full the storage of a snapshot is; nothing if the driver is too old to
/// tell, or the snapshot is destroyed meanwhile.
fn storage_of(control: &Control, id: Uuid) -> Result<Option<StorageInfo>> {
    match control.storage_info(id) {
        Ok(info) => Ok(Some(info)),
        Err(error) if matches!(error.errno(), Some(Errno::NOTTY | Errno::SRCH)) => Ok(None),
        Err(error) => Err(error),
    }
}

pub fn status(output: &Output, only: &[PathBuf]) -> Result<u8> {
    let mut wanted = Vec::new();
    for path in only {
        let number = device::check(path)?;
        wanted.push(Filtered {
            device: path.clone(),
            filter: Sysfs::default().filter_of(number),
        });
    }
    let control = Control::open()?;
    let driver = control.version()?;
    let ids = control.collect()?;
    if only.is_empty() {
        wanted = scan()?;
    }
    let mut devices: Vec<DeviceStatus> = wanted.into_iter().map(device_status).collect();
    let mut errors = Vec::new();
    let members = if ids.len() != 1 {
        None
    } else if only.is_empty() {
        let in_snapshot = devices.iter().filter(|device| device.snapshot.is_some());
        let paths: Vec<_> = in_snapshot.map(|it| it.filtered.device.clone()).collect();
        Some(names(&paths))
    } else {
        let (found, unknown) = snapshotted()?;
        errors = unknown;
        let paths: Vec<_> = found.into_iter().map(|(path, _)| path).collect();
        Some(names(&paths))
    };
    if only.is_empty() {
        devices.retain(|device| !device.error.as_ref().is_some_and(is_gone));
    }
    for error in devices.iter().filter_map(|device| device.error.as_ref()) {
        if !is_empty(error) && !errors.contains(error) {
            errors.push(error.clone());
        }
    }
    let mut snapshots = Vec::new();
    for id in ids {
        snapshots.push(SnapshotStatus {
            id,
            devices: members.clone(),
            storage: storage_of(&control, id)?,
        });
    }
    let status = Status {
        driver,
        snapshots,
        devices,
    };
    for error in &errors {
        output.error(error);
    }
    let is_corrupted = status.devices.iter().any(|device| {
        let snapshot = device.snapshot.as_ref();
        snapshot.is_some_and(|snapshot| snapshot.error_code != 0)
    });
    let code = match errors.first() {
        Some(error) if !is_corrupted => error.exit().code(),
        _ => corrupted(is_corrupted),
    };
    Ok(output.result(&status, &text_of(&status), code))
}

fn text_of(status: &Status) -> String {
    let mut text = format!("driver {}\n", status.driver);
    if status.snapshots.is_empty() {
        text += "\nno snapshots\n";
    } else {
        // An older driver tells nothing of any storage.
        let told = status.snapshots.iter().any(|s| s.storage.is_some());
        let mut header = row(["SNAPSHOT"]);
        if told {
            header.extend(row(["USED", "TOTAL", "LOW AT"]));
        }
        header.push("TAKEN DEVICES".to_owned());
        let mut rows = vec![header];
        for snapshot in &status.snapshots {
            let devices = match snapshot.devices.as_deref() {
                None => "unknown, as there are several snapshots".to_owned(),
                Some([]) => "-".to_owned(),
                Some(devices) => devices.join(" "),
            };
            let mut cells = row([snapshot.id.to_string()]);
            if told {
                cells.extend(storage_cells(snapshot.storage.as_ref()));
            }
            cells.push(devices);
            rows.push(cells);
        }
        text += &format!("\n{}", table(&rows));
        text.extend(status.snapshots.iter().filter_map(notes_of));
    }
    if status.devices.is_empty() {
        text += "\nno device has a filter";
        return text;
    }
    let mut rows = vec![row([
        "DEVICE", "FILTER", "BLOCK", "TAKES", "IMAGE", "STATE",
    ])];
    for device in &status.devices {
        let none = || "-".to_owned();
        let tracking = device.tracking.as_ref();
        let snapshot = device.snapshot.as_ref();
        rows.push(row([
            device.filtered.device.display().to_string(),
            device.filtered.filter.clone().unwrap_or_else(none),
            tracking.map_or_else(none, |t| Bytes(t.block_size.into()).to_string()),
            tracking.map_or_else(none, |t| t.changes_number.to_string()),
            snapshot.map_or_else(none, |s| s.image.display().to_string()),
            device.state(),
        ]));
    }
    text += &format!("\n{}", table(&rows));
    text.trim_end().to_owned()
}

/// What an administrator is to know of a snapshot, a line each.
fn notes_of(snapshot: &SnapshotStatus) -> Option<String> {
    let storage = snapshot.storage.as_ref()?;
    let mut notes = String::new();
    if storage.lost.0 > 0 {
        notes += &format!(
            "{}: {} could not be read and are missing from the images\n",
            snapshot.id,
            storage.lost.bytes()
        );
    }
    if storage.held_ms > 0 {
        notes += &format!(
            "{}: its storage is slow, writers have waited {:.1} s for it\n",
            snapshot.id,
            storage.held_ms as f64 / 1000.0
        );
    }
    Some(notes)
}

fn storage_cells(storage: Option<&StorageInfo>) -> [String; 3] {
    let Some(storage) = storage else {
        return ["-"; 3].map(str::to_owned);
    };
    let low_space = match storage.low_space.0 {
        0 => "-".to_owned(),
        _ => storage.low_space.bytes().to_string(),
    };
    [
        storage.used.bytes().to_string(),
        storage.total.bytes().to_string(),
        low_space,
    ]
}

fn state_text(error_code: i32) -> String {
    let state = SnapshotState {
        error_code,
        image: None,
    };
    match state.corruption() {
        None => "held".to_owned(),
        Some(errno) => format!("corrupted ({})", errno_name(errno)),
    }
}

pub fn row<const N: usize>(cells: [impl Into<String>; N]) -> Vec<String> {
    cells.map(Into::into).into()
}

/// Columns as wide as they must be.
pub fn table(rows: &[Vec<String>]) -> String {
    // A name may have any character.
    let rows: Vec<Vec<_>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| printable(cell)).collect())
        .collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line += &format!("{cell:<width$}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

pub fn image(output: &Output, targets: &[PathBuf]) -> Result<u8> {
    let id = match targets {
        [target] => target.to_str().and_then(|text| text.parse().ok()),
        _ => None,
    };
    let found = match id {
        Some(id) => images_of_snapshot(id)?,
        None => images_of_devices(targets)?,
    };
    let kernel = Linux::default();
    let mut images = Vec::new();
    let mut errors = Vec::new();
    for (path, state) in &found {
        let name = state.image.as_deref().unwrap_or_default();
        let node = kernel.image_node(name).ok_or_else(|| {
            Error::new(
                Operation::FindImage,
                format!("there is no device node of disk {name}"),
            )
            .on(path)
            .remedied_by("check that devtmpfs is mounted at /dev")
        })?;
        if let Some(errno) = state.corruption() {
            errors.push(Error::from_corruption(errno).on(path));
        }
        images.push((path, node, state.error_code));
    }
    let text: Vec<String> = images
        .iter()
        .map(|(_, node, _)| node.display().to_string())
        .collect();
    let list: Vec<_> = images
        .iter()
        .zip(&text)
        .map(|((path, _, error_code), node)| {
            json!({
                "device": path.display().to_string(),
                "image": node,
                "error_code": error_code,
            })
        })
        .collect();
    let code = corrupted(!errors.is_empty());
    let code = output.result(&json!({ "images": list }), &text.join("\n"), code);
    for error in &errors {
        output.error(error);
    }
    Ok(code)
}

fn images_of_devices(devices: &[PathBuf]) -> Result<Found> {
    for path in devices {
        device::check(path)?;
    }
    let mut found = Vec::new();
    for path in devices {
        let state = state_of(path)?.ok_or_else(|| {
            Error::new(
                Operation::FindImage,
                "it is in no snapshot that is taken".to_owned(),
            )
            .on(path)
            .remedied_by("take its snapshot first with \"blksnap snap take ID\"")
        })?;
        found.push((path.clone(), state));
    }
    Ok(found)
}

fn images_of_snapshot(id: Uuid) -> Result<Found> {
    let refuse = |reason: &str| Error::new(Operation::FindImage, reason).of(id);
    let ids = Control::open()?.collect()?;
    if !ids.contains(&id) {
        return Err(Error::from_errno(Operation::FindImage, Errno::SRCH).of(id));
    }
    if ids.len() > 1 {
        return Err(refuse(
            "the kernel does not tell which devices belong to which of several snapshots",
        )
        .remedied_by("name the devices instead of the snapshot"));
    }
    let (found, errors) = snapshotted()?;
    if let Some(error) = errors.into_iter().next() {
        return Err(error);
    }
    if found.is_empty() {
        return Err(
            refuse("it is not taken").remedied_by("take it first with \"blksnap snap take ID\"")
        );
    }
    Ok(found)
}

pub fn destroy(output: &Output, id: Uuid, force: bool) -> Result<u8> {
    let control = Control::open()?;
    let ids = control.collect()?;
    if !ids.contains(&id) {
        return Err(Error::from_errno(Operation::Destroy, Errno::NODEV).of(id));
    }
    let kernel = Linux::default();
    let (found, errors) = snapshotted().or_else(|error| match force {
        true => Ok((Vec::new(), vec![error])),
        false => Err(unless_forced(error)),
    })?;
    for error in errors {
        if !force {
            return Err(unless_forced(error));
        }
        output.warning(&error.to_string());
    }
    // With other snapshots about, the image may be one of theirs.
    let perhaps = if ids.len() > 1 {
        ", and may be one of this snapshot"
    } else {
        ""
    };
    for (path, state) in found {
        for user in kernel.users_of_image(&state.image.unwrap_or_default()) {
            let reason = format!("the image of {} is in use{perhaps}: {user}", path.display());
            if !force {
                let remedy = "end that first, or use --force; what is read there fails then";
                return Err(Error::new(Operation::Destroy, reason)
                    .of(id)
                    .remedied_by(remedy));
            }
            output.warning(&reason);
        }
    }
    control.destroy(id)?;
    Ok(output.result(
        &json!({ "id": id, "destroyed": true }),
        &format!("snapshot {id} is destroyed"),
        0,
    ))
}

/// What keeps a snapshot from being destroyed, as an image may be in use.
fn unless_forced(error: Error) -> Error {
    let remedy = error.remedy().map(|remedy| format!("{remedy}; or "));
    error.remedied_by(format!(
        "{}destroy the snapshot with --force, if none of its images is in use",
        remedy.unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use blksnap::Sectors;

    fn sample() -> Status {
        let tracking = Tracking {
            device_capacity: 1 << 30,
            block_size: 65536,
            block_count: 16384,
            generation_id: Uuid::from_bytes([1; 16]),
            changes_number: 3,
        };
        let device = |name: &str, filter: Option<&str>| Filtered {
            device: name.into(),
            filter: filter.map(str::to_owned),
        };
        Status {
            driver: DriverVersion {
                major: 1,
                minor: 2,
                revision: 3,
                build: 4,
            },
            snapshots: vec![SnapshotStatus {
                id: Uuid::from_bytes([2; 16]),
                devices: Some(vec!["/dev/sda".to_owned()]),
                storage: Some(StorageInfo {
                    total: Sectors(2 << 21),
                    used: Sectors(1 << 20),
                    low_space: Sectors(0),
                    lost: Sectors(8),
                    held_ms: 1250,
                }),
            }],
            devices: vec![
                DeviceStatus {
                    filtered: device("/dev/sda", Some("blksnap")),
                    tracking: Some(tracking),
                    snapshot: Some(ImageStatus {
                        image: "/dev/blksnap-image0".into(),
                        error_code: -28,
                    }),
                    error: None,
                },
                DeviceStatus {
                    filtered: device("/dev/sdb", None),
                    tracking: None,
                    snapshot: None,
                    error: None,
                },
            ],
        }
    }

    #[test]
    fn status_is_json() {
        let json = serde_json::to_value(sample()).unwrap();
        assert_eq!(json["driver"], "1.2.3.4");
        assert_eq!(
            json["snapshots"][0]["id"],
            Uuid::from_bytes([2; 16]).to_string()
        );
        assert_eq!(json["snapshots"][0]["devices"][0], "/dev/sda");
        assert_eq!(json["snapshots"][0]["storage"]["total_sectors"], 2 << 21);
        assert_eq!(json["snapshots"][0]["storage"]["used_sectors"], 1 << 20);
        assert_eq!(json["snapshots"][0]["storage"]["low_space_sectors"], 0);
        let device = &json["devices"][0];
        assert_eq!(device["device"], "/dev/sda");
        assert_eq!(device["filter"], "blksnap");
        assert_eq!(device["tracking"]["block_size"], 65536);
        assert_eq!(device["tracking"]["changes_number"], 3);
        assert_eq!(device["snapshot"]["image"], "/dev/blksnap-image0");
        assert_eq!(device["snapshot"]["error_code"], -28);
        assert!(json["devices"][1]["snapshot"].is_null());
    }

    #[test]
    fn status_is_a_table() {
        let text = text_of(&sample());
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap();
        let words: Vec<&str> = line("/dev/sda").split_whitespace().collect();
        assert_eq!(
            words,
            [
                "/dev/sda",
                "blksnap",
                "64K",
                "3",
                "/dev/blksnap-image0",
                "corrupted",
                "(ENOSPC)"
            ]
        );
        assert_eq!(line("/dev/sdb").split_whitespace().count(), 6);
        let words: Vec<&str> = line("02020202").split_whitespace().collect();
        assert_eq!(words[1..], ["512M", "2G", "-", "/dev/sda"]);
        assert!(
            text.contains(": 4K could not be read and are missing"),
            "{text}"
        );
        assert!(
            text.contains("writers have waited 1.2 s for it\n\n"),
            "{text}"
        );
        assert!(text.lines().all(|line| line == line.trim_end()));
    }

    #[test]
    fn a_device_that_cannot_be_asked_is_told_of() {
        let mut status = sample();
        let error = Error::from_errno(Operation::OpenDevice, Errno::MEDIUMTYPE);
        assert!(is_empty(&error) && !is_gone(&error));
        status.devices[1].error = Some(error);
        let text = text_of(&status);
        assert!(text.contains("unknown (EMEDIUMTYPE)"), "{text}");
        let json = serde_json::to_value(status).unwrap();
        assert_eq!(json["devices"][1]["error"]["errno_name"], "EMEDIUMTYPE");
        assert!(json["devices"][0].get("error").is_none());
    }

    #[test]
    fn what_keeps_from_destroying_can_be_forced() {
        let error = unless_forced(Error::from_errno(Operation::OpenDevice, Errno::IO));
        let remedy = error.remedy().unwrap();
        assert!(
            remedy.contains("dmesg") && remedy.contains("--force"),
            "{remedy}"
        );
    }

    #[test]
    fn storage_is_left_out_if_the_driver_is_too_old() {
        let mut status = sample();
        status.snapshots[0].storage = None;
        let text = text_of(&status);
        assert!(!text.contains("TOTAL"), "{text}");
        let line = text.lines().find(|line| line.starts_with("02020202"));
        assert_eq!(line.unwrap().split_whitespace().count(), 2);
        let json = serde_json::to_value(status).unwrap();
        assert!(json["snapshots"][0].get("storage").is_none());
    }
}
