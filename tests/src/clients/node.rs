//! A program for Node: run, answered when it asks for a deed, and judged by the lines it prints.

use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use backplane_conformance::bound;
use backplane_conformance::broker::Folder;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use super::program::{folder, node};

/// How long a whole program may run.
const DEADLINE: Duration = Duration::from_secs(120);

/// How many of its last lines, of both outputs, stand in a failure.
const KEPT_LINES: usize = 400;

/// One of the programs in `tests/clients`.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    /// Its name, without the ending.
    pub name: &'static str,
    /// How many checks it makes. It must say so itself, and print a line for each.
    pub checks: usize,
}

impl Script {
    /// Runs it with `settings`. `false`: Node is not installed, or what it needs of npm; the skip was printed.
    ///
    /// # Panics
    /// When a check failed or was left out, and when the program ended otherwise than in order, or not in time.
    pub async fn run(self, settings: &Value) -> bool {
        self.run_with(settings, async |deed| Err(format!("nobody here can {deed}"))).await
    }

    /// As [`run`](Script::run). What the program cannot do itself (`kill south`) is done by `deeds`.
    ///
    /// # Panics
    /// As [`run`](Script::run).
    pub async fn run_with(
        self,
        settings: &Value,
        mut deeds: impl AsyncFnMut(&str) -> Result<(), String>,
    ) -> bool {
        let Some(node) = node() else { return false };
        // Libraries leave files behind when their browser ends first.
        let temporary = Folder::new("node").expect("a temporary folder can be made");
        let mut child = Command::new(node)
            .env("TMPDIR", temporary.path())
            .arg(folder().join(self.name).with_extension("mjs"))
            .arg(settings.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node can be run");
        let said = Arc::new(Mutex::new(Vec::new()));
        let mut judge = Judge::default();
        let course = self.follow(&mut child, &said, &mut judge, &mut deeds);
        let status = tokio::time::timeout(bound(DEADLINE), course).await;
        let verdict = match status {
            Ok(status) => judge.verdict(self.checks, status),
            Err(_) => Err(format!("it did not end within {:?}", bound(DEADLINE))),
        };
        if let Err(why) = verdict {
            panic!("{}: {why}; it said:\n{}", self.name, said.lock().join("\n"));
        }
        true
    }

    async fn follow(
        self,
        child: &mut Child,
        said: &Arc<Mutex<Vec<String>>>,
        judge: &mut Judge,
        deeds: &mut impl AsyncFnMut(&str) -> Result<(), String>,
    ) -> ExitStatus {
        let mut answers = child.stdin.take().expect("its input was piped");
        let output = child.stdout.take().expect("its output was piped");
        let errors = child.stderr.take().expect("its error output was piped");
        let (_, ()) = tokio::join!(lines(errors, said, async |_| {}), async {
            lines(output, said, async |line| {
                if let Some(deed) = line.strip_prefix("do ") {
                    let done = deeds(deed).await;
                    answer(&mut answers, done).await;
                } else {
                    judge.hear(line);
                }
            })
            .await;
        });
        child.wait().await.expect("a child of ours can be waited for")
    }
}

/// Hands each line to `hear`, and keeps the last of them.
async fn lines(
    from: impl AsyncRead + Unpin,
    said: &Arc<Mutex<Vec<String>>>,
    mut hear: impl AsyncFnMut(&str),
) {
    let mut from = BufReader::new(from).lines();
    while let Ok(Some(line)) = from.next_line().await {
        hear(&line).await;
        let mut said = said.lock();
        if said.len() >= KEPT_LINES {
            said.remove(0);
        }
        said.push(line);
    }
}

async fn answer(to: &mut ChildStdin, done: Result<(), String>) {
    let line = match done {
        Ok(()) => "done\n".to_owned(),
        Err(why) => format!("failed {}\n", why.replace('\n', " ")),
    };
    // A program that has ended needs no answer; its verdict tells.
    let _ = to.write_all(line.as_bytes()).await;
}

/// What a program claimed.
#[derive(Debug, Default)]
struct Judge {
    planned: Option<usize>,
    passed: usize,
    failed: Vec<String>,
    strange: Vec<String>,
}

impl Judge {
    fn hear(&mut self, line: &str) {
        if let Some(number) = line.strip_prefix("plan ") {
            self.planned = number.parse().ok();
        } else if line.strip_prefix("ok ").is_some() {
            self.passed += 1;
        } else if line.strip_prefix("not ok ").is_some() {
            self.failed.push(line.to_owned());
        } else {
            self.strange.push(line.to_owned());
        }
    }

    fn verdict(&self, checks: usize, status: ExitStatus) -> Result<(), String> {
        if !self.failed.is_empty() {
            return Err(self.failed.join("\n"));
        }
        if !self.strange.is_empty() {
            return Err(format!("unexpected lines: {}", self.strange.join("\n")));
        }
        if !status.success() {
            return Err(format!("it ended with {status}"));
        }
        if self.planned != Some(checks) || self.passed != checks {
            return Err(format!(
                "{checks} checks were expected, it planned {:?} and passed {}",
                self.planned, self.passed
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn verdict(lines: &[&str], code: i32) -> Result<(), String> {
        let mut judge = Judge::default();
        lines.iter().for_each(|line| judge.hear(line));
        judge.verdict(2, ExitStatus::from_raw(code << 8))
    }

    #[test]
    fn only_all_checks_and_an_orderly_end_are_a_success() {
        assert_eq!(verdict(&["plan 2", "ok a", "ok b"], 0), Ok(()));
        for (lines, code, says) in [
            (&["plan 2", "ok a", "not ok b: why"][..], 0, "not ok b: why"),
            (&["plan 2", "ok a"], 0, "passed 1"),
            (&["plan 1", "ok a"], 0, "planned Some(1)"),
            (&["ok a", "ok b"], 0, "planned None"),
            (&["plan 2", "ok a", "ok b"], 1, "ended with"),
            (&["plan 2", "ok a", "ok b", "Segmentation"], 0, "unexpected lines"),
        ] {
            let why = verdict(lines, code).unwrap_err();
            assert!(why.contains(says), "{why}");
        }
    }
}
