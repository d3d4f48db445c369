//! A node in a process of its own, which can be stopped and measured as a whole.

use std::process::Stdio;
use std::time::Duration;

use backplane_conformance::bound;
use backplane_core::{Backplane as _, Event};
use backplane_tests::redis::until;
use backplane_tests::sql::bus_at;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

use crate::member::{Member, SOON};

/// Tells that process the URL of its log.
const URL: &str = "BACKPLANE_TEST_NODE_URL";

/// What it says when it is up.
const UP: &str = "up";

/// How many times a second the kernel counts a process's time (`USER_HZ`, the same on every Linux).
const TICKS: f64 = 100.0;

/// See the module. Ends when dropped, and when this process dies.
pub(crate) struct Process {
    process: Child,
    said: Lines<BufReader<ChildStderr>>,
}

impl Process {
    /// A node on the log at `url`, up when this returns.
    pub(crate) async fn start(url: &str) -> Self {
        let own = std::env::current_exe().expect("a running program has a path");
        let mut process = Command::new(own)
            .args(["process::in_a_process_of_its_own", "--exact", "--ignored", "--nocapture"])
            .env(URL, url)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("this program can be started once more");
        let said = BufReader::new(process.stderr.take().expect("it was piped")).lines();
        let mut process = Self { process, said };
        process.says(UP).await;
        process
    }

    /// Waits until it says `line`, and returns what it said before.
    pub(crate) async fn says(&mut self, line: &str) -> Vec<String> {
        let mut before = Vec::new();
        let waited = tokio::time::timeout(bound(SOON), async {
            while let Some(said) = self.said.next_line().await.expect("its words can be read") {
                if said == line {
                    return;
                }
                before.push(said);
            }
            panic!("it ended, and said {before:?}");
        });
        assert!(waited.await.is_ok(), "it did not say {line:?}, but {before:?}");
        before
    }

    /// Stops it without ending it (SIGSTOP): it does nothing more when this returns.
    pub(crate) async fn stop(&self) {
        self.signal(Signal::STOP);
        until("it to stop", SOON, async || self.state().starts_with('T')).await;
    }

    /// Ends a [`stop`](Self::stop).
    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let id = self.process.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        kill_process(id.expect("it runs"), signal).expect("it runs and is ours");
    }

    /// The time that it has kept a processor busy.
    pub(crate) fn busy(&self) -> Duration {
        // The 12th and 13th word: in user and in kernel mode.
        let ticks: f64 = self
            .state()
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|word| word.parse::<f64>().expect("a number of ticks"))
            .sum();
        Duration::from_secs_f64(ticks / TICKS)
    }

    /// What the kernel says of it (proc(5), `stat`), behind the name in parentheses, which may hold anything.
    fn state(&self) -> String {
        let id = self.process.id().expect("it runs");
        let state = std::fs::read_to_string(format!("/proc/{id}/stat")).expect("the kernel knows it");
        state.rsplit_once(") ").expect("it has a name").1.to_owned()
    }
}

/// Not a test: what that process does. It says each text that it hears, and each gap.
#[tokio::test]
#[ignore = "started by other tests in a process of its own"]
async fn in_a_process_of_its_own() {
    let Ok(url) = std::env::var(URL) else { return };
    let mut member = Member::open(bus_at(&url)).await;
    let mut events = member.router.events();
    // Until whoever started it dies, if it is not killed before.
    let mut end = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    eprintln!("{UP}");
    loop {
        tokio::select! {
            _ = &mut end => return,
            text = member.hears_next() => eprintln!("heard {text}"),
            event = events.recv() => match event.expect("all events are read") {
                Event::Gap(gap) => eprintln!("gap {:?}", gap.reason),
                Event::LinkDown { error } => eprintln!("link down: {error}"),
                _ => {}
            },
        }
    }
}
