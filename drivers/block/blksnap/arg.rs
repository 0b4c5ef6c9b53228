// SPDX-License-Identifier: GPL-2.0-only

//! Arguments of ioctls: structures that can grow, and arrays of them.
//!
//! A caller that was compiled with a longer structure than this kernel knows has zeroes in the
//! rest of it, or it wants something that is not known here.

use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    uaccess::{
        UserSliceReader,
        UserSliceWriter, //
    },
};

/// Fails with [`E2BIG`] if what is left to read is not all zeroes, or longer than a page.
pub(crate) fn expect_zeroes(mut from: UserSliceReader) -> Result {
    if from.len() > PAGE_SIZE {
        return Err(E2BIG);
    }
    let mut piece = [0; 64];
    while !from.is_empty() {
        let len = from.len().min(piece.len());
        from.read_slice(&mut piece[..len])?;
        if piece[..len].iter().any(|byte| *byte != 0) {
            return Err(E2BIG);
        }
    }
    Ok(())
}

/// Fills what is left to write with zeroes.
pub(crate) fn fill_zeroes(mut to: UserSliceWriter) -> Result {
    let zeroes = [0; 64];
    while !to.is_empty() {
        let len = to.len().min(zeroes.len());
        to.write_slice(&zeroes[..len])?;
    }
    Ok(())
}
