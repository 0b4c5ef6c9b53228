// SPDX-License-Identifier: GPL-2.0-only

//! Universally unique identifiers.
//!
//! C header: [`include/linux/uuid.h`](srctree/include/linux/uuid.h)

use crate::{
    bindings,
    fmt, //
};

/// A UUID, as in RFC 9562.
///
/// # Examples
///
/// ```
/// use kernel::{str::CString, uuid::Uuid};
///
/// let id = Uuid::random();
/// assert_ne!(id, Uuid::random());
/// assert_eq!(Uuid::from_bytes(*id.as_bytes()), id);
/// // The version: random.
/// assert_eq!(id.as_bytes()[6] >> 4, 4);
///
/// let mut bytes = [0; 16];
/// bytes[0] = 0x12;
/// bytes[15] = 0xff;
/// let text = CString::try_from_fmt(fmt!("{}", Uuid::from_bytes(bytes)))?;
/// assert_eq!(&*text, c"12000000-0000-0000-0000-0000000000ff");
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uuid([u8; 16]);

impl Uuid {
    /// Makes a random one. Does not sleep, but may take locks that do in a kernel with
    /// `CONFIG_PREEMPT_RT`; not for NMIs.
    pub fn random() -> Self {
        let mut uuid = bindings::uuid_t { b: [0; 16] };
        // SAFETY: The pointer is to a UUID that is valid for writes.
        unsafe { bindings::uuid_gen(&mut uuid) };
        Self(uuid.b)
    }

    /// The one with the given bytes, the first byte of its text form first.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}
