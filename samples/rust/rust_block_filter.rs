// SPDX-License-Identifier: GPL-2.0

//! Rust block device filter sample: counts the writes to a block device.
//!
//! This program attaches it to a device, unless it is attached, and prints what it has counted:
//!
//! ```c
//! #include <fcntl.h>
//! #include <stdint.h>
//! #include <stdio.h>
//! #include <sys/ioctl.h>
//! #include <linux/blk-filter.h>
//!
//! int main(int argc, char **argv)
//! {
//!     uint64_t n[4];
//!     struct blkfilter_attach attach = { .name = "rust_write_counter" };
//!     struct blkfilter_ctl get = { "rust_write_counter", 0, sizeof(n), (uintptr_t)n };
//!     int fd = open(argv[1], O_RDONLY);
//!
//!     ioctl(fd, BLKFILTER_ATTACH, &attach);
//!     if (!ioctl(fd, BLKFILTER_CTL, &get))
//!         printf("%ju writes of %ju sectors, %ju discards of %ju\n", n[0], n[1], n[2], n[3]);
//! }
//! ```

use kernel::{
    block::{
        bdev::{
            BlockDevice,
            SectorRange, //
        },
        bio::Op,
        filter::{
            Filter,
            FilteredBio,
            Registration,
            Verdict, //
        },
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        ArcBorrow, //
    },
    uaccess::UserSlice,
};

module! {
    type: RustBlockFilter,
    name: "rust_block_filter",
    authors: ["Rust for Linux Contributors"],
    description: "Rust block device filter sample",
    license: "GPL",
}

/// Command: copy the counts, four numbers of 64 bits, to the argument.
const GET: u32 = 0;
/// Command: start again from 0. Has no argument.
const RESET: u32 = 1;

struct RustBlockFilter {
    _registration: Registration<WriteCounter>,
}

impl kernel::Module for RustBlockFilter {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self {
            _registration: Registration::new()?,
        })
    }
}

/// What is counted on one device: bios and sectors that were written, then those discarded.
struct WriteCounter([Atomic<u64>; 4]);

#[vtable]
impl Filter for WriteCounter {
    const NAME: &'static CStr = c"rust_write_counter";

    fn attach(bdev: &BlockDevice, _options: UserSlice) -> Result<Arc<Self>> {
        pr_info!("counting the writes to {}\n", bdev.dev());
        Ok(Arc::new(Self([const { Atomic::new(0) }; 4]), GFP_KERNEL)?)
    }

    fn ctl(this: ArcBorrow<'_, Self>, _bdev: &BlockDevice, cmd: u32, arg: UserSlice) -> Result {
        match cmd {
            GET => {
                let mut to = arg.writer();
                this.0.iter().try_for_each(|n| to.write(&n.load(Relaxed)))?
            }
            RESET => this.0.iter().for_each(|n| n.store(0, Relaxed)),
            _ => return Err(ENOTTY),
        }
        Ok(())
    }

    // Must not sleep. Several may run at once, so the counts are atomic. What remains of a bio that
    // is split to the limits of the device comes here again, and is counted again.
    fn submit_bio<'a>(
        this: ArcBorrow<'_, Self>,
        bio: FilteredBio<'a>,
        range: SectorRange,
    ) -> Verdict<'a> {
        let [writes, written, discards, discarded] = &this.0;
        let (bios, sectors) = match bio.op() {
            Op::Write | Op::WriteZeroes => (writes, written),
            Op::Discard | Op::SecureErase => (discards, discarded),
            Op::Read | Op::Other => return bio.pass(),
        };
        bios.add(1, Relaxed);
        sectors.add(range.len, Relaxed);
        bio.pass()
    }
}
