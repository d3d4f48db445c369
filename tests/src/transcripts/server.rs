//! A server to play against: a process of its own for each file.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

const START_DEADLINE: Duration = Duration::from_secs(30);
const EXIT_DEADLINE: Duration = Duration::from_secs(40);

/// A server, and the process that it is when it was started here. The process is killed when this is dropped.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    process: Option<(Child, Lines<BufReader<ChildStdout>>)>,
}

impl Server {
    /// A server that somebody else runs.
    #[must_use]
    pub fn at(address: SocketAddr) -> Self {
        Self { address, process: None }
    }

    /// Starts `program` with `--port 0` and `switches`, and waits for its line `READY port`.
    ///
    /// # Errors
    /// It did not start, or did not say READY within 30 s.
    pub async fn start(program: &Path, switches: &[String]) -> Result<Self, String> {
        let mut child = Command::new(program)
            .args(["--port", "0"])
            .args(switches)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let mut lines = BufReader::new(stdout).lines();
        let ready = async {
            while let Some(line) = lines.next_line().await.map_err(|error| error.to_string())? {
                if let Some(port) = line.strip_prefix("READY ") {
                    return port.trim().parse::<u16>().map_err(|_| format!("no port in {line:?}"));
                }
            }
            Err("it ended without READY".to_owned())
        };
        let port = timeout(START_DEADLINE, ready).await.map_err(|_| "not READY in time".to_owned())??;
        Ok(Self { address: (Ipv4Addr::LOCALHOST, port).into(), process: Some((child, lines)) })
    }

    /// The id of the process, while it was started here and runs.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref()?.0.id()
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    /// There is no process.
    pub fn terminate(&self) -> Result<(), String> {
        let (child, _) = self.process.as_ref().ok_or("the server is not our process")?;
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        kill_process(pid.ok_or("the server has ended")?, Signal::TERM).map_err(|error| error.to_string())
    }

    /// Waits for the end of the process; what it ended with.
    pub async fn exit(&mut self) -> String {
        let Some((child, _)) = self.process.as_mut() else {
            return "the server is not our process".to_owned();
        };
        match timeout(EXIT_DEADLINE, child.wait()).await {
            Ok(Ok(status)) => match status.code() {
                Some(code) => format!("exit code {code}"),
                None => status.to_string(),
            },
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it still runs".to_owned(),
        }
    }
}
