//! Which brokers are there, which must be, and what happens when one is not.

use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Brokers that must be there, separated by commas (`redis,postgres`), or `all`. A missing one then fails the test
/// instead of skipping it.
pub const REQUIRE_VARIABLE: &str = "BACKPLANE_TEST_REQUIRE";

/// Where servers are installed that are not in everybody's `PATH`.
const MORE_FOLDERS: [&str; 4] = ["/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/opt/homebrew/bin"];

/// A program that is not installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its name.
    pub program: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not installed (looked in PATH and {})", self.program, MORE_FOLDERS.join(", "))
    }
}

impl std::error::Error for Missing {}

/// Finds a server's program in `PATH` and in the usual places beside it.
///
/// # Errors
/// [`Missing`] when it is in none of them.
pub fn find(program: &str) -> Result<PathBuf, Missing> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(MORE_FOLDERS.iter().map(PathBuf::from))
        .chain(versioned_folders())
        .map(|folder| folder.join(program))
        .find(|candidate| is_executable(candidate))
        .ok_or_else(|| Missing { program: program.to_owned() })
}

/// Where Debian keeps the servers of each version of PostgreSQL, the newest first.
fn versioned_folders() -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir("/usr/lib/postgresql") else { return Vec::new() };
    let mut versions: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin")))
        })
        .collect();
    versions.sort_unstable_by_key(|(version, _)| std::cmp::Reverse(*version));
    versions.into_iter().map(|(_, folder)| folder).collect()
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// The URL of a broker that the environment gives for `name`: `BACKPLANE_TEST_REDIS_URL` for `redis`.
#[must_use]
pub fn given_url(name: &str) -> Option<String> {
    std::env::var(url_variable(name)).ok().filter(|url| !url.is_empty())
}

fn url_variable(name: &str) -> String {
    format!("BACKPLANE_TEST_{}_URL", name.to_uppercase())
}

/// Says that a test is skipped for want of a broker, in one line on the standard error that no test harness hides.
///
/// # Panics
/// When `BACKPLANE_TEST_REQUIRE` names the broker.
pub fn missing(name: &str, why: &Missing) {
    let required = std::env::var(REQUIRE_VARIABLE).unwrap_or_default();
    assert!(!is_required(&required, name), "{name} is required by {REQUIRE_VARIABLE}={required}: {why}");
    let thread = std::thread::current();
    let line = skip_line(thread.name().unwrap_or("a test"), name, why);
    // The macros' output is captured by the test harness, and nobody would see the skip. A closed standard error
    // is no reason to fail.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

fn skip_line(test: &str, name: &str, why: &Missing) -> String {
    format!("SKIPPED {test}: {why}; {REQUIRE_VARIABLE}={name} makes this a failure\n")
}

fn is_required(required: &str, name: &str) -> bool {
    required.split(',').map(str::trim).any(|word| word == "all" || word == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_requirement_names_brokers_or_all() {
        assert!(is_required("redis", "redis"));
        assert!(is_required("postgres, redis", "redis"));
        assert!(is_required("all", "redis"));
        assert!(!is_required("", "redis"));
        assert!(!is_required("postgres,nats", "redis"));
        assert!(!is_required("redis-cluster", "redis"));
    }

    #[test]
    fn a_missing_program_is_named_and_the_skip_says_how_to_make_it_fail() {
        let why = find("no-such-server").unwrap_err();
        let line = skip_line("some_test", "redis", &why);
        assert!(line.starts_with("SKIPPED some_test: no-such-server is not installed"), "{line}");
        assert!(line.contains("BACKPLANE_TEST_REQUIRE=redis") && line.ends_with('\n'), "{line}");
        assert!(find("sh").is_ok());
        assert_eq!(url_variable("redis"), "BACKPLANE_TEST_REDIS_URL");
    }
}
