// SPDX-License-Identifier: GPL-2.0-only

//! What there is in debugfs: the state of each difference area, and switches for tests.

use crate::area::Area;
use kernel::{
    debugfs::{
        Dir,
        File,
        Writer, //
    },
    fmt,
    prelude::*,
    sync::Arc,
    time::Delta, //
};

/// `/sys/kernel/debug/blksnap`, while it lives.
#[derive(Clone)]
pub(crate) struct Directory {
    dir: Dir,
    #[cfg(CONFIG_BLKSNAP_DEBUG)]
    _trust_reads: Arc<File<switch::TrustReads>>,
    #[cfg(CONFIG_BLKSNAP_DEBUG)]
    _vm_forked: Arc<File<switch::VmForked>>,
}

impl Directory {
    /// May sleep.
    pub(crate) fn new() -> Result<Self> {
        let dir = Dir::new(c"blksnap");
        Ok(Self {
            #[cfg(CONFIG_BLKSNAP_DEBUG)]
            _trust_reads: Arc::pin_init(
                dir.read_write_file(c"trust_reads", switch::TrustReads),
                GFP_KERNEL,
            )?,
            #[cfg(CONFIG_BLKSNAP_DEBUG)]
            _vm_forked: Arc::pin_init(
                dir.write_only_file(c"vm_forked", switch::VmForked),
                GFP_KERNEL,
            )?,
            dir,
        })
    }

    /// Makes the file of an area. May sleep.
    pub(crate) fn add(&self, name: &CStr, area: &Arc<Area>, frozen: Delta) -> Result<AreaFile> {
        let shown = Shown {
            area: area.clone(),
            frozen,
        };
        KBox::pin_init(self.dir.read_only_file(name, shown), GFP_KERNEL)
    }
}

/// The file of an area, which is removed when this is dropped.
pub(crate) type AreaFile = Pin<KBox<File<Shown>>>;

/// An area that is shown: a line for each figure, with its name.
pub(crate) struct Shown {
    area: Arc<Area>,
    /// How long the queues were frozen when the snapshot was taken.
    frozen: Delta,
}

impl Writer for Shown {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.area.write_figures(f)?;
        writeln!(f, "frozen_ns {}", self.frozen.as_nanos())
    }
}

#[cfg(CONFIG_BLKSNAP_DEBUG)]
mod switch {
    use kernel::{
        debugfs::{
            Reader,
            Writer, //
        },
        fmt,
        notifier::Handler,
        prelude::*,
        sync::atomic::{
            Atomic,
            Relaxed, //
        },
        uaccess::UserSliceReader, //
    };

    static TRUST_READS: Atomic<u32> = Atomic::new(0);

    /// The switch for [`super::trusts_reads`].
    pub(crate) struct TrustReads;

    impl Writer for TrustReads {
        fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            writeln!(f, "{}", TRUST_READS.load(Relaxed))
        }
    }

    impl Reader for TrustReads {
        fn read_from_slice(&self, reader: &mut UserSliceReader) -> Result {
            TRUST_READS.read_from_slice(reader)
        }
    }

    /// Whatever is written counts as the notification that the virtual machine was forked.
    pub(crate) struct VmForked;

    impl Reader for VmForked {
        fn read_from_slice(&self, _reader: &mut UserSliceReader) -> Result {
            crate::EndGenerations.notify(());
            Ok(())
        }
    }

    pub(super) fn get() -> bool {
        TRUST_READS.load(Relaxed) != 0
    }
}

/// Whether image reads from the origin are not to be looked at again when they are done. Then they
/// are wrong sometimes, which tests must notice.
pub(crate) fn trusts_reads() -> bool {
    #[cfg(CONFIG_BLKSNAP_DEBUG)]
    {
        switch::get()
    }
    #[cfg(not(CONFIG_BLKSNAP_DEBUG))]
    {
        false
    }
}
