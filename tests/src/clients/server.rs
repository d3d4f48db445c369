//! A server of ours as a process of its own, which can be killed, stopped and started again on its port.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use backplane_conformance::bound;
use backplane_conformance::broker::{Folder, Launch, Process, StartError, free_port};

/// How many free ports are tried: somebody else may be faster.
const PORTS: usize = 5;

/// How long a start may take.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// A loopback port on which nobody listens.
///
/// # Panics
/// When the machine has none.
#[must_use]
pub fn port() -> u16 {
    free_port().expect("a loopback port is free")
}

/// One process that listens on a loopback port. It ends when this is dropped.
#[derive(Debug)]
pub struct Server {
    process: Process,
    ports: Vec<u16>,
    ready: String,
}

impl Server {
    /// Starts `reference-hub` on a free port, with `arguments` beside `--port`.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn reference_hub(program: &str, arguments: &[&str]) -> Self {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        Self::start("reference-hub", Path::new(program), 1, |ports| {
            let port = ports[0].to_string();
            (
                ["--port".into(), port.clone().into()].into_iter().chain(arguments.clone()).collect(),
                format!("READY {port}"),
            )
        })
        .await
    }

    /// Starts a program on `ports` free ports. `how` makes its arguments from them, and what it prints when it is
    /// ready.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(
        name: &'static str,
        program: &Path,
        ports: usize,
        how: impl Fn(&[u16]) -> (Vec<OsString>, String),
    ) -> Self {
        let mut taken = None;
        for _ in 0..PORTS {
            let ports: Vec<u16> = (0..ports).map(|_| port()).collect();
            let (arguments, ready) = how(&ports);
            let deadline = bound(START_DEADLINE);
            let launch = Launch { arguments, deadline, ..Launch::new(name, program.to_owned()) };
            let folder = Folder::new(name).expect("a temporary folder can be made");
            let server = Self { process: Process::new(launch, folder), ports, ready };
            match server.run().await {
                Ok(()) => return server,
                Err(StartError::PortTaken(error)) => taken = Some(error),
                // As two-servers says it.
                Err(StartError::Failed(error)) if server.process.output().contains("is in use") => {
                    taken = Some(error)
                }
                Err(StartError::Failed(error)) => panic!("{name}: {error}"),
            }
        }
        panic!("{name}: no port of {PORTS} was free: {taken:?}");
    }

    async fn run(&self) -> Result<(), StartError> {
        self.process.start(async |_| self.process.output().contains(&self.ready)).await
    }

    /// Its address, as a client writes it.
    ///
    /// # Panics
    /// When it was started without a port.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// Its first port.
    ///
    /// # Panics
    /// When it was started without a port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    /// All its ports.
    #[must_use]
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// The process itself.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Does to it what a script asks for: `kill` (SIGKILL), `stop` (SIGTERM, and awaits the end) or `start` (on the
    /// same port).
    ///
    /// # Errors
    /// What went wrong, in words.
    pub async fn suffer(&self, verb: &str) -> Result<(), String> {
        match verb {
            "kill" => self.process.kill(),
            "stop" => self.process.stop().await,
            "start" => self.run().await.map_err(|error| format!("{error:?}"))?,
            _ => return Err(format!("unknown deed {verb}")),
        }
        Ok(())
    }
}
