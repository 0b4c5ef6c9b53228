// SPDX-License-Identifier: GPL-2.0-only

//! A snapshot that is released when its holder lets go of it.

use std::ffi::OsString;
use std::path::Path;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;

use crate::device::Attachment;
use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;
use crate::hooks::Hooks;
use crate::kernel::Kernel;
use crate::size::Sectors;
use crate::Uuid;

/// How long device nodes may take to appear after the take.
const IMAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// A device of a held snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldDevice {
    /// As it was named.
    pub device: PathBuf,
    /// What that was a link to. Requests go there, as links may change meanwhile.
    pub path: PathBuf,
    /// Disk name of the image.
    pub image: String,
    /// Device node of the image.
    pub node: PathBuf,
}

/// A taken snapshot. Dropping it destroys it.
///
/// The filter stays attached where it was attached here, as detaching loses
/// the change tracking that the next backup may want, unless asked otherwise.
/// But if the snapshot does not come about, everything is undone.
pub struct Held<'a> {
    kernel: &'a dyn Kernel,
    id: Option<Uuid>,
    devices: Vec<HeldDevice>,
    attached: Vec<PathBuf>,
    detach: bool,
    hook_errors: Vec<Error>,
}

impl<'a> Held<'a> {
    /// Takes a snapshot of `devices` and waits for the images' nodes. `hooks` are run right before
    /// and after the moment.
    ///
    /// `keep_on` is asked between the steps; its error undoes what was done.
    /// If `detach` is set, the release detaches the filter from those devices
    /// that had none before.
    pub fn take(
        kernel: &'a dyn Kernel,
        devices: &[PathBuf],
        store: &Path,
        limit: Sectors,
        detach: bool,
        hooks: &Hooks,
        keep_on: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Self> {
        let hooks = hooks.prepare()?;
        // From here on an early return drops it, which undoes what it has.
        let mut held = Self {
            kernel,
            id: None,
            devices: Vec::new(),
            attached: Vec::new(),
            detach: true,
            hook_errors: Vec::new(),
        };
        let paths: Vec<PathBuf> = devices.iter().map(|device| resolve(device)).collect();
        for (device, path) in devices.iter().zip(&paths) {
            keep_on()?;
            if kernel.attach(path).map_err(|error| error.on(device))? == Attachment::New {
                held.attached.push(path.clone());
            }
        }
        keep_on()?;
        let id = kernel.create(store, limit)?;
        held.id = Some(id);
        for (device, path) in devices.iter().zip(&paths) {
            keep_on()?;
            kernel.add(id, path).map_err(|error| error.on(device))?;
        }
        keep_on()?;
        let variables = variables(id, devices.iter().map(PathBuf::as_path));
        let (taken, errors) = hooks.around(&variables, keep_on, |keep_on| {
            kernel.freeze_above(id, &paths)?;
            keep_on()?;
            kernel.take(id)
        });
        held.hook_errors = errors;
        // This holder is dropped then, and who asked for it has to know of both.
        taken.map_err(|error| held.hook_errors.iter().fold(error, Error::besides))?;
        for (device, path) in devices.iter().zip(&paths) {
            let found = wait_for_image(kernel, device, path, keep_on)?;
            held.devices.push(found);
        }
        keep_on()?;
        held.detach = detach;
        Ok(held)
    }

    pub fn id(&self) -> Uuid {
        self.id.expect("only a release takes the id")
    }

    pub fn devices(&self) -> &[HeldDevice] {
        &self.devices
    }

    /// What went wrong with the hooks that ran after the moment.
    pub fn hook_errors(&self) -> &[Error] {
        &self.hook_errors
    }

    /// What speaks against trusting the image of `device`.
    pub fn verify(&self, device: &HeldDevice) -> Result<()> {
        let distrust = |reason: String| {
            Error::new(Operation::Verify, reason)
                .on(&device.device)
                .of(self.id())
        };
        let state = self.kernel.snapshot_state(&device.path).map_err(|error| {
            distrust(format!("its state is unknown, {error}"))
                .remedied_by("make the backup anew; look into the kernel's log with \"dmesg\"")
        })?;
        if let Some(errno) = state.corruption() {
            return Err(Error::from_corruption(errno)
                .on(&device.device)
                .of(self.id()));
        }
        if state.image.as_deref() != Some(&device.image) {
            return Err(distrust("someone else destroyed the snapshot".to_owned())
                .remedied_by("discard the backup and make it anew"));
        }
        Ok(())
    }

    /// What uses the image of `device`, in words.
    pub fn users(&self, device: &HeldDevice) -> Vec<String> {
        self.kernel.users_of_image(&device.image)
    }

    /// Destroys the snapshot, and detaches what is to be detached. Goes on
    /// after an error and returns all of them.
    pub fn release(mut self) -> Vec<Error> {
        self.undo()
    }

    fn undo(&mut self) -> Vec<Error> {
        let mut errors = Vec::new();
        if let Some(id) = self.id.take() {
            errors.extend(self.kernel.destroy(id).err());
        }
        if self.detach {
            for device in self.attached.drain(..).rev() {
                errors.extend(self.kernel.detach(&device).err());
            }
        }
        errors
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // The error that led here is the one to tell.
        self.undo();
    }
}

/// What a name is a link to. One that there is not is for the kernel to refuse.
fn resolve(device: &Path) -> PathBuf {
    std::fs::canonicalize(device).unwrap_or_else(|_| device.to_owned())
}

fn wait_for_image(
    kernel: &dyn Kernel,
    device: &Path,
    path: &Path,
    keep_on: &mut dyn FnMut() -> Result<()>,
) -> Result<HeldDevice> {
    let missing = |reason: String| Error::new(Operation::FindImage, reason).on(device);
    let image = kernel
        .snapshot_state(path)
        .map_err(|error| error.on(device))?
        .image
        .ok_or_else(|| missing("the kernel names none".to_owned()))?;
    let start = Instant::now();
    loop {
        keep_on()?;
        if let Some(node) = kernel.image_node(&image) {
            return Ok(HeldDevice {
                device: device.to_owned(),
                path: path.to_owned(),
                image,
                node,
            });
        }
        if start.elapsed() > IMAGE_TIMEOUT {
            return Err(
                missing(format!("the device node of disk {image} did not appear")).remedied_by(
                    "check that devtmpfs is mounted at /dev and that udev is not stuck",
                ),
            );
        }
        sleep(Duration::from_millis(10));
    }
}

/// What programs that are run for a snapshot have in their environment.
pub(crate) fn variables<'a>(
    id: Uuid,
    devices: impl ExactSizeIterator<Item = &'a Path>,
) -> Vec<(String, OsString)> {
    let count = devices.len().to_string();
    let mut variables = vec![
        ("BLKSNAP_ID".to_owned(), id.to_string().into()),
        ("BLKSNAP_COUNT".to_owned(), count.into()),
    ];
    for (number, device) in (1..).zip(devices) {
        variables.push((format!("BLKSNAP_DEVICE_{number}"), device.into()));
    }
    variables
}

#[cfg(test)]
mod tests;
