// SPDX-License-Identifier: GPL-2.0-only

//! Where the storage of a snapshot is, and how it grows.

use std::path::PathBuf;

use blksnap::error::Operation;
use blksnap::grow::Growth;
use blksnap::stack::Stack;
use blksnap::storage;
use blksnap::Bytes;
use blksnap::Error;
use blksnap::Sectors;

use super::super::grow::Plan;

#[derive(Debug, clap::Args)]
pub struct Store {
    /// Where to keep what is overwritten: a directory, a file or a block device
    ///
    /// In a directory an unnamed file is made that vanishes with the snapshot.
    /// It must not lie on a device of the snapshot.
    #[arg(long, value_name = "PATH")]
    pub store: PathBuf,

    /// Use a file or block device as the store though it holds data
    #[arg(long)]
    pub overwrite: bool,

    /// How much it may take, such as 512M or 10G
    ///
    /// In bytes, or with K, M, G, T or P for powers of 1024. When it is used
    /// up, the snapshot is corrupted and the origins go on unharmed. By default
    /// half the free space of the filesystem, or all of the block device; with
    /// --grow its STEP.
    #[arg(long, value_name = "SIZE")]
    pub limit: Option<Bytes>,

    /// Tell with an event when less than this is left
    ///
    /// "blksnap snap events" prints it. By default never; with --grow half its STEP.
    #[arg(long, value_name = "SIZE")]
    pub low_space: Option<Bytes>,

    /// Raise the limit by so much whenever less than --low-space is left
    ///
    /// A process "blksnap-grow" does that as long as the snapshot exists ("run" and
    /// "backup" do it themselves). It never takes more than a block device has,
    /// and leaves as much as STEP of a filesystem free. What it does is in the
    /// kernel's log.
    #[arg(long, value_name = "STEP")]
    pub grow: Option<Bytes>,

    /// Never raise the limit above this
    #[arg(long, value_name = "SIZE", requires = "grow")]
    pub max: Option<Bytes>,
}

impl Store {
    /// Checks the store, and says how to create the snapshot of `devices`.
    pub fn plan(&self, devices: &[PathBuf]) -> blksnap::Result<Plan> {
        storage::refuse_sources(&self.store, devices, &Stack::default())?;
        if !self.overwrite {
            storage::refuse_data(&self.store)?;
        }
        let Some(step) = self.grow else {
            return Ok(Plan {
                limit: storage::limit(&self.store, self.limit)?,
                low_space: self.low_space.map(Bytes::sectors),
                growth: None,
            });
        };
        let first = self.max.map_or(step, |max| step.min(max));
        let limit = self.limit.unwrap_or(first);
        if self.max.is_some_and(|max| limit > max) {
            return Err(
                Error::new(Operation::Arguments, "--limit is larger than --max")
                    .remedied_by("give a --limit to begin with that can grow up to --max"),
            );
        }
        let mut limit = storage::limit(&self.store, Some(limit))?;
        let mut max = self.max.map(Bytes::sectors);
        if let Some(size) = storage::device_size(&self.store)? {
            limit = limit.min(size);
            max = Some(max.map_or(size, |max| max.min(size)));
        }
        let step = step.sectors();
        let low_space = self.low_space.map(Bytes::sectors);
        Ok(Plan {
            limit,
            // 0 is for never.
            low_space: low_space.or(Some(Sectors((step.0 / 2).max(1)))),
            growth: Some(Growth { step, max }),
        })
    }
}

/// A [`Plan`] on the way to another process, in sectors.
#[derive(Debug, clap::Args)]
pub struct PlanOptions {
    #[arg(long)]
    sectors: u64,

    #[arg(long)]
    low_space: Option<u64>,

    #[arg(long)]
    step: Option<u64>,

    #[arg(long, requires = "step")]
    max: Option<u64>,
}

impl From<PlanOptions> for Plan {
    fn from(options: PlanOptions) -> Self {
        Self {
            limit: Sectors(options.sectors),
            low_space: options.low_space.map(Sectors),
            growth: options.step.map(|step| Growth {
                step: Sectors(step),
                max: options.max.map(Sectors),
            }),
        }
    }
}
