// SPDX-License-Identifier: GPL-2.0-only

//! Arguments of 32-bit tasks.
//!
//! On i386 a `u64` is aligned to 4 bytes, so there is no padding ahead of one that is behind a
//! `u32`, and none at the end of a structure whose length is not a multiple of 8. The length
//! tells which layout an argument has.

use kernel::{
    prelude::*,
    uaccess::{
        UserPtr,
        UserSliceReader, //
    },
    uapi, //
};

const PADDING: usize = size_of::<u64>() - size_of::<u32>();

/// Length of `struct blksnap_cbtinfo` on i386.
pub(crate) const CBTINFO: usize = size_of::<uapi::blksnap_cbtinfo>() - PADDING;

/// Length of `struct blksnap_cbtdirty` on i386.
pub(crate) const CBTDIRTY: usize = size_of::<uapi::blksnap_cbtdirty>() - PADDING;

/// As long as `struct blksnap_snapshot_collect` on i386, which is a part of the ioctl's number.
pub(crate) type SnapshotCollect = [u32; 3];

/// Reads a number of items and their user address, which are all that `from` has, in either layout.
pub(crate) fn read_array(from: &mut UserSliceReader) -> Result<(usize, UserPtr)> {
    let count = from.read::<u32>()? as usize;
    if from.len() > size_of::<u64>() {
        from.skip(PADDING)?;
    }
    let address = usize::try_from(from.read::<u64>()?)?;
    Ok((count, UserPtr::from_addr(address)))
}
