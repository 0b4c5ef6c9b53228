// SPDX-License-Identifier: GPL-2.0-only

//! Atomics with the orderings of the kernel.

use core::sync::atomic::Ordering as Order;
#[cfg(loom)]
use loom::sync::atomic::{self as imp, fence};
#[cfg(not(loom))]
use std::sync::atomic::{self as imp, fence};

pub use ordering::{Acquire, Full, Relaxed, Release};

/// The orderings.
pub mod ordering {
    use super::Order;

    /// Orders later accesses after a load.
    pub struct Acquire;
    /// Orders earlier accesses before a store.
    pub struct Release;
    /// Orders nothing.
    pub struct Relaxed;
    /// Orders everything.
    pub struct Full;

    /// An ordering of an access that reads and writes.
    pub trait Ordering {
        /// What it is in the language.
        const ORDER: Order;
        /// It is a barrier on both sides.
        const FULL: bool = false;
    }

    /// An ordering of a load.
    pub trait AcquireOrRelaxed: Ordering {}

    /// An ordering of a store.
    pub trait ReleaseOrRelaxed: Ordering {}

    impl Ordering for Acquire {
        const ORDER: Order = Order::Acquire;
    }

    impl Ordering for Release {
        const ORDER: Order = Order::Release;
    }

    impl Ordering for Relaxed {
        const ORDER: Order = Order::Relaxed;
    }

    impl Ordering for Full {
        const ORDER: Order = Order::SeqCst;
        const FULL: bool = true;
    }

    impl AcquireOrRelaxed for Acquire {}
    impl AcquireOrRelaxed for Relaxed {}
    impl ReleaseOrRelaxed for Release {}
    impl ReleaseOrRelaxed for Relaxed {}
}

use ordering::{AcquireOrRelaxed, Ordering, ReleaseOrRelaxed};

/// A type that [`Atomic`] can hold.
pub trait AtomicType: Copy {
    /// The library's atomic for it.
    type Imp;

    /// Returns the library's atomic for a value in memory.
    ///
    /// # Safety
    ///
    /// All accesses to the value during `'a` are atomic.
    #[cfg(not(loom))]
    unsafe fn at<'a>(value: *mut Self) -> &'a Self::Imp;
    #[cfg(loom)]
    fn wrap(self) -> Self::Imp;
    #[doc(hidden)]
    fn load(imp: &Self::Imp, order: Order) -> Self;
    #[doc(hidden)]
    fn store(imp: &Self::Imp, value: Self, order: Order);
    #[doc(hidden)]
    fn swap(imp: &Self::Imp, value: Self, order: Order) -> Self;
    #[doc(hidden)]
    fn exchange(imp: &Self::Imp, old: Self, new: Self, order: Order) -> Result<Self, Self>;
}

/// A number that [`Atomic`] can hold.
pub trait AtomicNumber: AtomicType {
    #[doc(hidden)]
    fn fetch_add(imp: &Self::Imp, value: Self, order: Order) -> Self;
    #[doc(hidden)]
    fn fetch_sub(imp: &Self::Imp, value: Self, order: Order) -> Self;
}

macro_rules! atomic_types {
    ($($value:ty: $imp:ident,)*) => {$(
        impl AtomicType for $value {
            type Imp = imp::$imp;

            #[cfg(not(loom))]
            unsafe fn at<'a>(value: *mut Self) -> &'a Self::Imp {
                // SAFETY: The caller promises what this needs.
                unsafe { imp::$imp::from_ptr(value) }
            }

            #[cfg(loom)]
            fn wrap(self) -> Self::Imp {
                imp::$imp::new(self)
            }

            fn load(imp: &Self::Imp, order: Order) -> Self {
                imp.load(order)
            }

            fn store(imp: &Self::Imp, value: Self, order: Order) {
                imp.store(value, order);
            }

            fn swap(imp: &Self::Imp, value: Self, order: Order) -> Self {
                imp.swap(value, order)
            }

            fn exchange(imp: &Self::Imp, old: Self, new: Self, order: Order) -> Result<Self, Self> {
                // One that fails orders nothing in the kernel.
                imp.compare_exchange(old, new, order, Order::Relaxed)
            }
        }
    )*};
}

macro_rules! atomic_numbers {
    ($($value:ty: $imp:ident,)*) => {
        atomic_types! { $($value: $imp,)* }
        $(
            impl AtomicNumber for $value {
                fn fetch_add(imp: &Self::Imp, value: Self, order: Order) -> Self {
                    imp.fetch_add(value, order)
                }

                fn fetch_sub(imp: &Self::Imp, value: Self, order: Order) -> Self {
                    imp.fetch_sub(value, order)
                }
            }
        )*
    };
}

atomic_types! { bool: AtomicBool, }
atomic_numbers! {
    i8: AtomicI8,
    i16: AtomicI16,
    i32: AtomicI32,
    i64: AtomicI64,
    isize: AtomicIsize,
    u32: AtomicU32,
    u64: AtomicU64,
    usize: AtomicUsize,
}

// The library's types have no constant constructor that is generic, which statics need.
#[cfg(not(loom))]
type Held<T> = core::cell::UnsafeCell<T>;
#[cfg(loom)]
type Held<T> = <T as AtomicType>::Imp;

/// A value that threads can change at once.
pub struct Atomic<T: AtomicType>(Held<T>);

// SAFETY: All accesses by `&self` are atomic.
#[cfg(not(loom))]
unsafe impl<T: AtomicType + Send> Sync for Atomic<T> {}

#[cfg(not(loom))]
impl<T: AtomicType> Atomic<T> {
    /// Returns one with this value.
    pub const fn new(value: T) -> Self {
        Self(core::cell::UnsafeCell::new(value))
    }

    /// Returns the value for changes by the owner.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }

    fn imp(&self) -> &T::Imp {
        // SAFETY: All accesses by `&self` are by this function.
        unsafe { T::at(self.0.get()) }
    }
}

#[cfg(loom)]
impl<T: AtomicType> Atomic<T> {
    /// Returns one with this value.
    pub fn new(value: T) -> Self {
        Self(value.wrap())
    }

    fn imp(&self) -> &T::Imp {
        &self.0
    }
}

/// Calls `f` with a barrier before and after it, if the ordering is [`Full`].
fn ordered<O: Ordering, R>(f: impl FnOnce(Order) -> R) -> R {
    if O::FULL {
        fence(Order::SeqCst);
    }
    let result = f(O::ORDER);
    if O::FULL {
        fence(Order::SeqCst);
    }
    result
}

impl<T: AtomicType> Atomic<T> {
    /// Returns the value.
    pub fn load<O: AcquireOrRelaxed>(&self, _: O) -> T {
        T::load(self.imp(), O::ORDER)
    }

    /// Sets the value.
    pub fn store<O: ReleaseOrRelaxed>(&self, value: T, _: O) {
        T::store(self.imp(), value, O::ORDER);
    }

    /// Sets the value and returns the former one.
    pub fn xchg<O: Ordering>(&self, value: T, _: O) -> T {
        ordered::<O, _>(|order| T::swap(self.imp(), value, order))
    }

    /// Sets the value to `new` if it is `old`. Returns what it was, as an error if not `old`.
    pub fn cmpxchg<O: Ordering>(&self, old: T, new: T, _: O) -> Result<T, T> {
        ordered::<O, _>(|order| T::exchange(self.imp(), old, new, order))
    }
}

impl<T: AtomicNumber> Atomic<T> {
    /// Adds to the value.
    pub fn add(&self, value: T, _: Relaxed) {
        T::fetch_add(self.imp(), value, Order::Relaxed);
    }

    /// Adds to the value and returns what it was before.
    pub fn fetch_add<O: Ordering>(&self, value: T, _: O) -> T {
        ordered::<O, _>(|order| T::fetch_add(self.imp(), value, order))
    }

    /// Subtracts from the value and returns what it was before.
    pub fn fetch_sub<O: Ordering>(&self, value: T, _: O) -> T {
        ordered::<O, _>(|order| T::fetch_sub(self.imp(), value, order))
    }
}

impl<T: AtomicType + core::fmt::Debug> core::fmt::Debug for Atomic<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.load(Relaxed).fmt(f)
    }
}
