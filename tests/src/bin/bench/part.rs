//! Parts that are played in processes of their own: this program again, told its part by its arguments.
//!
//! A part prints `ready` when it is set up, is told `go` when it shall start, and prints its outcome as one line of
//! JSON. It ends with its spawner, whose end it notices at its standard input.

use std::io::BufRead as _;
use std::process::Stdio;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::Result;

/// The first argument of a process that plays a part; its name and its task in JSON follow.
pub(crate) const FLAG: &str = "--part";

/// How long a part may take to set up, and beyond its measurement to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which of the two that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Side {
    /// The `redis` crate alone.
    Bare,
    /// The router over the Redis bus.
    Ours,
}

/// A part being played elsewhere. Dropping it ends its process.
#[derive(Debug)]
pub(crate) struct Part {
    name: &'static str,
    orders: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    process: Child,
}

impl Part {
    /// Starts a process; returns when it is ready.
    pub(crate) async fn start(name: &'static str, task: &impl Serialize) -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args([FLAG, name, &serde_json::to_string(task)?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let orders = process.stdin.take().expect("its input is a pipe");
        let output = process.stdout.take().expect("its output is a pipe");
        let mut part = Self { name, orders, lines: BufReader::new(output).lines(), process };
        part.said("ready").await?;
        Ok(part)
    }

    /// Tells it to start.
    pub(crate) async fn go(&mut self) -> Result<()> {
        self.orders.write_all(b"go\n").await?;
        Ok(self.orders.flush().await?)
    }

    /// Waits until it says that word.
    pub(crate) async fn said(&mut self, word: &str) -> Result<()> {
        match self.line(PATIENCE).await? {
            line if line == word => Ok(()),
            other => Err(format!("{} said {other:?} instead of {word:?}", self.name).into()),
        }
    }

    /// What it found in a measurement of that length.
    pub(crate) async fn outcome<T: DeserializeOwned>(mut self, measured: Duration) -> Result<T> {
        let line = self.line(measured + PATIENCE).await?;
        Ok(serde_json::from_str(&line)?)
    }

    /// What it says next.
    pub(crate) async fn told<T: DeserializeOwned>(&mut self) -> Result<T> {
        Ok(serde_json::from_str(&self.line(PATIENCE).await?)?)
    }

    /// The id of its process.
    pub(crate) fn process(&self) -> Result<u32> {
        self.process.id().ok_or_else(|| format!("{} ended early", self.name).into())
    }

    async fn line(&mut self, deadline: Duration) -> Result<String> {
        let name = self.name;
        let line = timeout(deadline, self.lines.next_line()).await;
        let line = line.map_err(|_| format!("{name} said nothing within {deadline:?}"))??;
        line.ok_or_else(|| format!("{name} ended early").into())
    }
}

/// The cue of a part.
#[derive(Debug)]
pub(crate) struct Cue(oneshot::Receiver<()>);

impl Cue {
    /// Says `ready` and waits for `go`.
    pub(crate) async fn ready(self) -> Result<()> {
        println!("ready");
        Ok(self.0.await?)
    }
}

/// Plays a part in this process and prints its outcome.
pub(crate) async fn play<T, O>(task: &str, act: impl AsyncFnOnce(T, Cue) -> Result<O>) -> Result<()>
where
    T: DeserializeOwned,
    O: Serialize,
{
    let (go, cue) = oneshot::channel();
    // On its own thread, which ends with the process: reading the standard input cannot be given up.
    std::thread::Builder::new().name("orders".to_owned()).spawn(move || {
        let mut go = Some(go);
        for line in std::io::stdin().lock().lines().map_while(std::io::Result::ok) {
            if line == "go"
                && let Some(go) = go.take()
            {
                // A part that has given up already needs no order.
                let _ = go.send(());
            }
        }
        std::process::exit(3);
    })?;
    let outcome = act(serde_json::from_str(task)?, Cue(cue)).await?;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}
