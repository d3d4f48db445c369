//! A private headless Chromium, driven by a program for Node over its debugging port.

use std::time::Duration;

use backplane_conformance::bound;
use backplane_conformance::broker::{Folder, Launch, Process};

use super::program::required;

/// How long a start may take, on a machine that builds something else beside it.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// A browser with a profile of its own, which goes with it. It ends when this is dropped.
#[derive(Debug)]
pub struct Chromium {
    process: Process,
}

impl Chromium {
    /// Starts one. The name `origin` leads to the loopback port `port`, as if a server on another machine had it; every
    /// other name leads nowhere. `None`: it is not installed; the skip was printed.
    ///
    /// # Panics
    /// When it is missing although `BACKPLANE_TEST_REQUIRE` names it, or does not start.
    pub async fn require(origin: &str, port: u16) -> Option<Self> {
        let program = required("chromium")?;
        let folder = Folder::new("chromium").expect("a temporary folder can be made");
        let profile = folder.path().join("profile");
        let names = format!("MAP {origin}:80 127.0.0.1:{port}, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1");
        let mut launch = Launch::new("chromium", program)
            .argument("--remote-debugging-port=0")
            .argument(format!("--user-data-dir={}", profile.display()))
            .argument(format!("--host-resolver-rules={names}"))
            .argument("about:blank")
            // Whatever it keeps outside its profile goes with the folder too.
            .variable("TMPDIR", folder.path())
            .variable("HOME", folder.path())
            .variable("XDG_CONFIG_HOME", folder.path())
            .variable("XDG_CACHE_HOME", folder.path());
        launch.arguments.extend(FLAGS.map(Into::into));
        launch.deadline = bound(START_DEADLINE);
        let chromium = Self { process: Process::new(launch, folder) };
        let started = chromium.process.start(async |_| chromium.debugging_port().is_some()).await;
        started.unwrap_or_else(|error| panic!("chromium: {error:?}"));
        Some(chromium)
    }

    /// Where a program for Node connects to it.
    ///
    /// # Panics
    /// When it has not said yet, which [`require`](Chromium::require) waits for.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.debugging_port().expect("it has started"))
    }

    /// It writes the port, and in a second line a path, as soon as it listens.
    fn debugging_port(&self) -> Option<u16> {
        let file = self.process.folder().path().join("profile/DevToolsActivePort");
        let text = std::fs::read_to_string(file).ok()?;
        let (port, path) = text.split_once('\n')?;
        (!path.is_empty()).then(|| port.parse().ok())?
    }

    /// Asks it to end in order and awaits that, so that nobody writes into the profile while it is removed.
    pub async fn stop(self) {
        self.process.stop().await;
    }
}

const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    // Where the shared memory of a container is small, a page would crash.
    "--disable-dev-shm-usage",
];
