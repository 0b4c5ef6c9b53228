// SPDX-License-Identifier: GPL-2.0-only

//! Paths in JSON, which has only text. A path need not be text; then the rest
//! of a report is worth more than an error.

use std::path::Path;

use serde::Serializer;

pub(crate) fn path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}
