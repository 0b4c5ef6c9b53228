// SPDX-License-Identifier: GPL-2.0-only

//! Values that count their references.

use core::ops::Deref;

/// A counted reference.
pub struct ARef<T>(Box<T>);

impl<T> Deref for ARef<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
