//! The example `two-servers`, built by the cargo that runs the tests: it belongs to another package.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use backplane_conformance::bound;
use tokio::process::Command;
use tokio::sync::OnceCell;

/// How long a build may take, from nothing.
const BUILD_DEADLINE: Duration = Duration::from_secs(600);

static BUILT: OnceCell<PathBuf> = OnceCell::const_new();

/// The program, as the sources are now.
///
/// # Panics
/// When it cannot be built.
pub async fn two_servers() -> PathBuf {
    BUILT.get_or_init(build).await.clone()
}

async fn build() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = Command::new(cargo)
        .args(["build", "-p", "two-servers", "--message-format", "json-render-diagnostics"])
        .args((!cfg!(debug_assertions)).then_some("--release"))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output =
        tokio::time::timeout(bound(BUILD_DEADLINE), build).await.expect("two-servers is built in time");
    let output = output.expect("cargo can be run");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "two-servers cannot be built: {errors}");
    let built = String::from_utf8_lossy(&output.stdout).lines().find_map(|line| {
        let artifact: serde_json::Value = serde_json::from_str(line).ok()?;
        (artifact["target"]["name"] == "two-servers")
            .then(|| artifact["executable"].as_str().map(PathBuf::from))?
    });
    built.expect("cargo names the program that it built")
}
