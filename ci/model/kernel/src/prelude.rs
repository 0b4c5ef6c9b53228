// SPDX-License-Identifier: GPL-2.0-only

//! What all files of the driver import.

pub use crate::{
    alloc::{flags::*, Box, KBox, KVBox, KVVec, KVec, VBox, VVec},
    error::{code::*, Error, Result},
    pr_err, pr_info, pr_warn,
};
pub use core::pin::Pin;
pub use kunit::{kunit_tests, pin_data, vtable};
pub use pin_init::{pin_init, Init, PinInit};
