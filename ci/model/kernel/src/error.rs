// SPDX-License-Identifier: GPL-2.0-only

//! Errors by number.

use crate::alloc::AllocError;
use core::{convert::Infallible, fmt, num::TryFromIntError};

/// An error number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Error(i32);

/// The result of most functions.
pub type Result<T = (), E = Error> = core::result::Result<T, E>;

impl Error {
    /// The negative number.
    pub const fn to_errno(self) -> i32 {
        self.0
    }
}

macro_rules! codes {
    ($($name:ident = $number:literal,)*) => {
        /// The error constants.
        pub mod code {
            use super::Error;
            $(
                #[doc = stringify!($name)]
                pub const $name: Error = Error(-$number);
            )*
        }

        impl fmt::Debug for Error {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match -self.0 {
                    $($number => f.write_str(stringify!($name)),)*
                    other => write!(f, "Error({other})"),
                }
            }
        }
    };
}

codes! {
    ENOENT = 2,
    EINTR = 4,
    EIO = 5,
    EAGAIN = 11,
    ENOMEM = 12,
    EBUSY = 16,
    EEXIST = 17,
    ENODEV = 19,
    EINVAL = 22,
    EFBIG = 27,
    ENOSPC = 28,
    ERANGE = 34,
    EOVERFLOW = 75,
    EOPNOTSUPP = 95,
    ESHUTDOWN = 108,
    ETIMEDOUT = 110,
    ESTALE = 116,
    ECANCELED = 125,
}

impl From<AllocError> for Error {
    fn from(_: AllocError) -> Self {
        code::ENOMEM
    }
}

impl From<TryFromIntError> for Error {
    fn from(_: TryFromIntError) -> Self {
        code::EINVAL
    }
}

impl From<Infallible> for Error {
    fn from(e: Infallible) -> Self {
        match e {}
    }
}
