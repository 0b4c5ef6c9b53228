// SPDX-License-Identifier: GPL-2.0-only

//! Stand-in for the kernel's pin-init: an initializer just returns the value.
//!
//! There is no difference between [`Init`] and [`PinInit`], since nothing here depends on its
//! address.

use core::convert::Infallible;
use core::marker::PhantomData;

/// Makes a `T`, or fails.
pub trait Init<T, E = Infallible> {
    /// Makes the value.
    fn make(self) -> Result<T, E>;
}

impl<T> Init<T> for T {
    fn make(self) -> Result<T, Infallible> {
        Ok(self)
    }
}

pub use Init as PinInit;

struct FromFn<F, T, E>(F, PhantomData<fn() -> Result<T, E>>);

impl<T, E, F: FnOnce() -> Result<T, E>> Init<T, E> for FromFn<F, T, E> {
    fn make(self) -> Result<T, E> {
        (self.0)()
    }
}

/// Returns an initializer that calls `make`.
pub fn from_fn<T, E>(make: impl FnOnce() -> Result<T, E>) -> impl Init<T, E> {
    FromFn(make, PhantomData)
}

/// Returns an initializer of an array that makes each element of what `make` returns for its index.
pub fn init_array_from_fn<I, const N: usize, T, E>(
    mut make: impl FnMut(usize) -> I,
) -> impl Init<[T; N], E>
where
    I: Init<T, E>,
{
    from_fn(move || {
        let elements: Result<Vec<T>, E> = (0..N).map(|index| make(index).make()).collect();
        match elements?.try_into() {
            Ok(array) => Ok(array),
            Err(_) => unreachable!("there are N elements"),
        }
    })
}

/// Returns an initializer of a struct; `field <- initializer` makes the field by another one.
#[macro_export]
macro_rules! pin_init {
    ($name:ident { $($fields:tt)* }) => {
        $crate::pin_init!(@ $name [] $($fields)*)
    };
    (@ $name:ident [$($done:tt)*] $field:ident <- $init:expr $(, $($rest:tt)*)?) => {
        $crate::pin_init!(@ $name [
            $($done)* $field: $crate::Init::make($init)?,
        ] $($($rest)*)?)
    };
    (@ $name:ident [$($done:tt)*] $field:ident $(: $value:expr)? $(, $($rest:tt)*)?) => {
        $crate::pin_init!(@ $name [$($done)* $field $(: $value)?,] $($($rest)*)?)
    };
    (@ $name:ident [$($done:tt)*]) => {
        $crate::from_fn(move || Ok::<_, ::core::convert::Infallible>($name { $($done)* }))
    };
}
