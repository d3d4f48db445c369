//! A private PgBouncer in transaction mode.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use backplane_core::{Error, ErrorKind, Result};

use super::Broker;
use super::account::{Account, launch_as};
use super::folder::Folder;
use super::port::free_port;
use super::process::{Process, StartError};
use super::require::find;

/// With how many ports a start is tried.
const PORTS: usize = 5;

/// How long a restart waits for its port, when somebody else has it.
const PORT_DEADLINE: Duration = Duration::from_secs(5);

/// How a private PgBouncer is set up.
#[derive(Clone, Debug)]
pub struct PgBouncerOptions {
    /// The server behind it: a [`Postgres`](super::Postgres) that lets everybody in. Default: the usual port of this
    /// machine.
    pub server: SocketAddr,
    /// As whom it logs in there. Default `backplane`.
    pub user: String,
    /// `transaction` (the default), `session` or `statement`.
    pub pool_mode: String,
    /// More lines of its configuration file.
    pub config: Vec<String>,
}

impl Default for PgBouncerOptions {
    fn default() -> Self {
        Self {
            server: (Ipv4Addr::LOCALHOST, 5432).into(),
            user: "backplane".to_owned(),
            pool_mode: "transaction".to_owned(),
            config: Vec::new(),
        }
    }
}

/// A private `pgbouncer` in front of a PostgreSQL server. It lets everybody in, and ends when dropped.
#[derive(Debug)]
pub struct PgBouncer {
    options: PgBouncerOptions,
    address: SocketAddr,
    process: Process,
}

impl Broker for PgBouncer {
    type Options = PgBouncerOptions;
    const NAME: &'static str = "pgbouncer";
    const PROGRAM: &'static str = "pgbouncer";

    async fn start(options: PgBouncerOptions) -> Result<Self> {
        let mut taken = None;
        for _ in 0..PORTS {
            let bouncer = Self::prepare(options.clone())?;
            match bouncer.run().await {
                Ok(()) => return Ok(bouncer),
                Err(StartError::PortTaken(error)) => taken = Some(error),
                Err(StartError::Failed(error)) => return Err(error),
            }
        }
        Err(taken.expect("PORTS is above 0"))
    }

    fn process(&self) -> &Process {
        &self.process
    }

    fn url(&self) -> String {
        format!("postgres://{}@{}/postgres", self.options.user, self.address)
    }

    async fn restart(&self) -> Result<()> {
        let deadline = Instant::now() + PORT_DEADLINE;
        loop {
            match self.run().await {
                Err(StartError::PortTaken(_)) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                run => return Ok(run?),
            }
        }
    }
}

impl PgBouncer {
    fn prepare(options: PgBouncerOptions) -> Result<Self> {
        let program = find(Self::PROGRAM)
            .map_err(|missing| Error::new(ErrorKind::Unsupported, "start").with_source(missing))?;
        let account = Account::instead_of_root("postgres")?;
        let folder = Folder::new(Self::NAME)?;
        let port =
            free_port().map_err(|error| Error::new(ErrorKind::Unavailable, "start").with_source(error))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let config = folder.write("pgbouncer.ini", configuration(&options, address, folder.path()))?;
        if let Some(account) = &account {
            account.give(folder.path())?;
        }
        let launch = launch_as(account.as_ref(), Self::NAME, program).argument(config);
        Ok(Self { options, address, process: Process::new(launch, folder) })
    }

    async fn run(&self) -> Result<(), StartError> {
        // Its own word that it is the process we started and holds the port: it writes the file after it listens.
        let state = self.process.folder().path().join("pid");
        let _ = std::fs::remove_file(&state);
        self.process
            .start(async |id| {
                std::fs::read_to_string(&state).is_ok_and(|own| own.trim() == id.to_string())
                    && tokio::net::TcpStream::connect(self.address).await.is_ok()
            })
            .await
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn configuration(options: &PgBouncerOptions, address: SocketAddr, folder: &Path) -> String {
    let PgBouncerOptions { server, user, pool_mode, config } = options;
    let mut lines = vec![
        "[databases]".to_owned(),
        format!("* = host={} port={} user={user}", server.ip(), server.port()),
        "[pgbouncer]".to_owned(),
        format!("listen_addr = {}", address.ip()),
        format!("listen_port = {}", address.port()),
        "unix_socket_dir =".to_owned(),
        format!("pidfile = {}", folder.join("pid").display()),
        "auth_type = any".to_owned(),
        format!("pool_mode = {pool_mode}"),
        "max_client_conn = 500".to_owned(),
        "default_pool_size = 20".to_owned(),
    ];
    lines.extend(config.iter().cloned());
    lines.push(String::new());
    lines.join("\n")
}
