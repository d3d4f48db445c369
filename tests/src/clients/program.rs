//! Which programs the tests with official clients need, and what happens when one is not there.

use std::path::{Path, PathBuf};

use backplane_conformance::broker::{Missing, find, missing};

/// Where the programs for Node are, and what they need of npm.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

/// Finds `program`. `None`: it is not installed; the skip was printed.
///
/// # Panics
/// When it is missing although `BACKPLANE_TEST_REQUIRE` names it.
#[must_use]
pub fn required(program: &str) -> Option<PathBuf> {
    find(program).map_err(|why| missing(program, &why)).ok()
}

/// Finds Node, and beside the programs for it what `npm ci` installs. `None` and panics as [`required`].
pub(super) fn node() -> Option<PathBuf> {
    let node = required("node")?;
    if folder().join("node_modules/@microsoft/signalr/package.json").is_file() {
        return Some(node);
    }
    missing("node", &Missing { program: "node_modules (`npm ci` in tests/clients)".to_owned() });
    None
}
