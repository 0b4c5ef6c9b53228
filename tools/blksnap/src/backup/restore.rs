// SPDX-License-Identifier: GPL-2.0-only

//! Writing restore points back.

use std::path::Path;
use std::path::PathBuf;

use serde::Serialize;

use crate::error::Error;
use crate::error::Operation;
use crate::error::Result;
use crate::stack::Stack;

use super::changes::Extent;
use super::grounds::Grounds;
use super::image::CLUSTER;
use super::manifest::Image;
use super::manifest::Manifest;
use super::manifest::PointDevice;
use super::readback;
use super::source::Buffer;
use super::spot::Spot;
use super::store::Store;
use super::target::Allow;
use super::target::Target;
use super::target::Wanted;
use super::verify::RUN;
use super::view::Run;
use super::view::View;
use super::Progress;
use super::Watch;

/// Where a GPT begins: in the second logical block.
const GPT_AT: [usize; 2] = [512, 4096];
const GPT_MAGIC: &[u8] = b"EFI PART";

/// What goes where.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The restore point.
    pub point: u64,
    pub device: String,
    /// Bytes of the device.
    pub size: u64,
    /// Bytes of a logical block of the device, if that is known.
    pub logical_block_size: Option<u32>,
    #[serde(serialize_with = "crate::lossy::path")]
    pub target: PathBuf,
    /// What the target is and holds.
    pub before: String,
}

/// What became of a device.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The restore point.
    pub point: u64,
    pub device: String,
    #[serde(serialize_with = "crate::lossy::path")]
    pub target: PathBuf,
    /// Bytes of the device.
    pub size: u64,
    /// Bytes of data that were written.
    pub data_bytes: u64,
    /// What is not as it was, since its checksum is wrong, or since of it something
    /// cannot be read and is zeroes now.
    pub damaged: Vec<Extent>,
    /// What could not be read when the device was backed up, and is zeroes.
    pub unreadable: Vec<Extent>,
    /// The target is smaller, so that the end is missing.
    pub truncated: bool,
    /// The device had a GPT, and the target has another size, so that the GPT's copy is
    /// not at the end of the target.
    pub gpt_to_move: bool,
    /// The target was read back.
    pub checked: bool,
    /// What was read back is not what was written.
    pub differs: Vec<Extent>,
}

impl Report {
    fn add(&mut self, cluster: u64) {
        let offset = cluster * CLUSTER;
        let length = CLUSTER.min(self.size - offset);
        match self.damaged.last_mut() {
            Some(last) if last.end() == offset => last.length += length,
            _ => self.damaged.push(Extent { offset, length }),
        }
    }
}

/// The same onto a file as if it were a device: what was in it is not known.
#[cfg(test)]
pub(super) fn restore_over(store: &Store, image: &str, path: &Path, watch: &mut dyn Watch) {
    let view = View::open(store, &store.manifest().chain(image)).unwrap();
    let mut options = std::fs::File::options();
    let file = options.read(true).write(true).open(path).unwrap();
    let mut target = Target::of_file(file, path);
    let mut report = Report::new(0, "", path, view.size());
    write(view, &mut report, &mut target, watch).unwrap();
    let view = View::open(store, &store.manifest().chain(image)).unwrap();
    let (file, room) = (target.file().unwrap(), target.room().unwrap());
    let differs = readback::differences(view, file, path, room, watch).unwrap();
    assert!(differs.is_empty(), "{differs:?}");
}

impl Report {
    fn new(point: u64, device: &str, target: &Path, size: u64) -> Self {
        Self {
            point,
            device: device.to_owned(),
            target: target.to_owned(),
            size,
            data_bytes: 0,
            damaged: Vec::new(),
            unreadable: Vec::new(),
            truncated: false,
            gpt_to_move: false,
            checked: false,
            differs: Vec::new(),
        }
    }
}

/// Opens targets, each of which is refused if it is one that was opened before or
/// belongs to the backup.
pub struct Opener<'a> {
    store: &'a Store,
    stack: Stack,
    grounds: Grounds,
    allow: Allow,
    salvage: bool,
}

impl<'a> Opener<'a> {
    pub fn new(store: &'a Store, allow: Allow) -> Result<Self> {
        let stack = Stack::default();
        Ok(Self {
            store,
            grounds: Grounds::of(store.directory(), &stack)?,
            stack,
            allow,
            salvage: false,
        })
    }

    /// What is left of a damaged image is restored, too, with `salvage`.
    pub fn salvaging(self, salvage: bool) -> Self {
        Self { salvage, ..self }
    }

    /// Looks at images, together with what they are based on, and opens a target for each
    /// of them. Nothing is lost yet.
    pub fn open(&self, wanted: &[(u64, &'a PointDevice, &Path)]) -> Result<Vec<Restore<'a>>> {
        let mut spots: Vec<Spot> = Vec::new();
        for (_, _, path) in wanted {
            let spot = Spot::find(path)?;
            for other in &spots {
                spot.refuse_as(other, &self.stack)?;
            }
            spot.refuse_within(&self.grounds, &self.stack)?;
            spots.push(spot);
        }
        let mut restores = Vec::new();
        for (&(point, device, _), spot) in wanted.iter().zip(spots) {
            let chain = self.store.manifest().chain(&device.image);
            // Opened again when its turn comes: many images are many open files.
            let size = open(self.store, &chain, self.salvage)?.size();
            let block_size = chain.first().and_then(|image| image.logical_block_size);
            let wanted = Wanted { size, block_size };
            let target = Target::open(spot, wanted, self.allow, &self.stack)?;
            restores.push(Restore {
                store: self.store,
                plan: Plan {
                    point,
                    device: device.device.clone(),
                    size,
                    logical_block_size: block_size,
                    target: target.path().to_owned(),
                    before: target.before().to_owned(),
                },
                image: &device.image,
                salvage: self.salvage,
                target,
            });
        }
        Ok(restores)
    }
}

/// Opens images. An error says if salvaging would be none.
fn open(store: &Store, chain: &[&Image], salvage: bool) -> Result<View> {
    if salvage {
        return View::open_to_salvage(store, chain);
    }
    View::open(store, chain).map_err(|error| {
        let can_be_salvaged = error.operation() == Operation::CheckBackup
            && View::open_to_salvage(store, chain).is_ok();
        match can_be_salvaged {
            true => error.remedied_by(
                "restore another restore point, as \"blksnap verify DIR\" names the damaged ones; \
                 or say --salvage to restore what is left, with zeroes for the rest",
            ),
            false => error,
        }
    })
}

/// An image that can be read, and a target that can be written to.
pub struct Restore<'a> {
    store: &'a Store,
    plan: Plan,
    image: &'a str,
    salvage: bool,
    target: Target,
}

impl Restore<'_> {
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Writes the image, and checks it at that. What was in the target is lost; a
    /// larger block device keeps what it has after the end. With `check` the target is
    /// read back.
    pub fn run(mut self, check: bool, watch: &mut dyn Watch) -> Result<Report> {
        let manifest: &Manifest = self.store.manifest();
        let chain: Vec<&Image> = manifest.chain(self.image);
        let view = open(self.store, &chain, self.salvage)?;
        for path in view.without_tables() {
            watch.tell(&format!(
                "{}: it is cut off or damaged, so that its tables cannot be used; its data is \
                 taken from where it was written",
                path.display()
            ));
        }
        let size = view.size();
        let again = match check {
            true => Some(open(self.store, &chain, self.salvage)?),
            false => None,
        };
        let begin = Progress {
            done: 0,
            total: size,
        };
        watch.keep_on(begin)?;
        self.target.begin(size, &mut || watch.keep_on(begin))?;
        let (plan, target) = (&self.plan, &mut self.target);
        let mut report = Report::new(plan.point, &plan.device, target.path(), size);
        if let Some(image) = chain.first() {
            report.unreadable.clone_from(&image.unreadable);
        }
        write(view, &mut report, target, watch)?;
        if let (Some(view), Some(file)) = (again, target.file()) {
            let room = target.room().unwrap_or(size);
            report.differs = readback::differences(view, file, target.path(), room, watch)?;
            report.checked = true;
        }
        Ok(report)
    }
}

/// Reads a run that could not be read as a whole; returns the clusters that are
/// not what was written. What of them cannot be read becomes zeroes, unless it is as if
/// the backup was gone: the rest of the target would be zeroes, too.
fn salvage(
    view: &mut View,
    run: &Run,
    bytes: &mut [u8],
    keep_on: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<u64>> {
    let mut damaged = Vec::new();
    for (cluster, bytes) in run.clusters().zip(bytes.chunks_mut(CLUSTER as usize)) {
        keep_on()?;
        damaged.extend(view.salvage(&cluster, bytes)?);
    }
    Ok(damaged)
}

fn write(
    mut view: View,
    report: &mut Report,
    target: &mut Target,
    watch: &mut dyn Watch,
) -> Result<()> {
    let size = view.size();
    let progress = |done| Progress { done, total: size };
    let mut at = 0;
    let mut told = None;
    let mut has_gpt = false;
    let mut buffer = Buffer::new(RUN * CLUSTER as usize);
    while let Some(run) = view.next(RUN)? {
        let (offset, length) = view.range(&run);
        watch.keep_on(progress(offset))?;
        if run.is_zero() {
            // Together with what follows.
            continue;
        }
        let bytes = buffer.first(length as usize);
        let damaged = match view.read(&run, bytes) {
            Ok(damaged) => damaged,
            Err(error) => {
                let keep_on = &mut || watch.keep_on(progress(offset));
                let damaged = salvage(&mut view, &run, bytes, keep_on)?;
                let note = format!("{error}; what cannot be read is zeroes now");
                if told.as_ref() != Some(&note) {
                    watch.tell(&note);
                    told = Some(note);
                }
                damaged
            }
        };
        for cluster in damaged {
            report.add(cluster);
        }
        if offset == 0 {
            has_gpt = GPT_AT
                .iter()
                .any(|&at| bytes.get(at..).is_some_and(|it| it.starts_with(GPT_MAGIC)));
        }
        target.zero(at, offset, &mut |at| watch.keep_on(progress(at)))?;
        target.write(offset, bytes, &mut || watch.keep_on(progress(offset)))?;
        report.data_bytes += length;
        at = offset + length;
    }
    target.zero(at, size, &mut |at| watch.keep_on(progress(at)))?;
    target.finish()?;
    watch.keep_on(progress(size))?;
    report.truncated = target.room().is_some_and(|room| room < size);
    report.gpt_to_move = has_gpt && target.room().is_some_and(|room| room != size);
    Ok(())
}

/// A target that differs from what was written to it.
pub fn differs(target: &Path, extent: &Extent) -> Error {
    let reason = format!(
        "its bytes {} to {} are not what was written there",
        extent.offset,
        extent.end()
    );
    Error::new(Operation::CheckTarget, reason)
        .on(target)
        .remedied_by(
            "do not use it: look into the kernel's log with \"dmesg\", whether something else \
             writes to it, and restore to another disk",
        )
}
