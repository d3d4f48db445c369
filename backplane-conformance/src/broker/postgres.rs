//! A private PostgreSQL server.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use backplane_core::{Error, ErrorKind, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::Broker;
use super::account::{Account, launch_as};
use super::folder::Folder;
use super::port::free_port;
use super::process::{Process, StartError};
use super::require::find;
use super::tls::TlsFiles;
use super::tree;

/// With how many ports a start is tried.
const PORTS: usize = 5;

/// How long a restart waits for its port, when somebody else has it.
const PORT_DEADLINE: Duration = Duration::from_secs(5);

/// How long a statement of the suite may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// The superuser.
const USER: &str = "backplane";

/// The database.
const DATABASE: &str = "postgres";

/// How a private PostgreSQL is set up.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// Whether it speaks TLS, with a certificate of a private authority, and refuses to speak anything else. Default: no.
    pub tls: bool,
    /// The names in that certificate. Default `localhost` and `127.0.0.1`; the server listens on the latter.
    pub tls_names: Vec<String>,
    /// The superuser's password (SCRAM). Default: none, everybody on this machine is let in.
    pub password: Option<String>,
    /// Whether a commit waits for the disk. Default: no, for these tests kill processes and no machines.
    pub fsync: bool,
    /// More lines of `postgresql.conf`.
    pub config: Vec<String>,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            tls: false,
            tls_names: vec!["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string()],
            password: None,
            fsync: false,
            config: Vec::new(),
        }
    }
}

/// A private `postgres`, with the superuser `backplane` and the database `postgres`. It listens on a loopback port only,
/// and ends when dropped.
///
/// Its sessions are processes of their own, outside of its process group: [`kill`](Broker::kill),
/// [`freeze`](Broker::freeze) and [`thaw`](Broker::thaw) reach them too.
#[derive(Debug)]
pub struct Postgres {
    options: PostgresOptions,
    address: SocketAddr,
    tls: Option<TlsFiles>,
    psql: PathBuf,
    process: Process,
}

impl Broker for Postgres {
    type Options = PostgresOptions;
    const NAME: &'static str = "postgres";
    const PROGRAM: &'static str = "postgres";

    async fn start(options: PostgresOptions) -> Result<Self> {
        let mut taken = None;
        for _ in 0..PORTS {
            let postgres = Self::prepare(options.clone()).await?;
            match postgres.run().await {
                Ok(()) => return Ok(postgres),
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
        self.url_at(self.address)
    }

    async fn restart(&self) -> Result<()> {
        self.kill();
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

    fn kill(&self) {
        // Stopped first, it can start no more of them.
        let sessions = match (self.process.id(), self.process.freeze()) {
            (Some(id), Ok(())) => tree::children(id),
            _ => Vec::new(),
        };
        self.process.kill();
        let killed = tree::signal(&sessions, Signal::KILL);
        // What lives on would write into the files of the next run. One panic at a time tells more than two.
        assert!(killed.is_ok() || std::thread::panicking(), "{killed:?}");
    }

    fn freeze(&self) -> Result<()> {
        self.process.freeze()?;
        tree::signal(&self.sessions(), Signal::STOP)
    }

    fn thaw(&self) -> Result<()> {
        tree::signal(&self.sessions(), Signal::CONT)?;
        self.process.thaw()
    }

    async fn stop(&self) {
        // Asked to end in order (SIGTERM) it would wait for every session; SIGINT ends them.
        if let Some(id) = self.process.id() {
            // Nothing is waited for here.
            let _ = tree::signal(&self.sessions(), Signal::CONT);
            let _ = self.process.thaw();
            if let Some(main) = i32::try_from(id).ok().and_then(Pid::from_raw) {
                let _ = kill_process(main, Signal::INT);
            }
        }
        self.process.stop().await;
    }
}

impl Postgres {
    async fn prepare(options: PostgresOptions) -> Result<Self> {
        let unsupported = |missing| Error::new(ErrorKind::Unsupported, "start").with_source(missing);
        let program = find(Self::PROGRAM).map_err(unsupported)?;
        // Found by a link, it has its companions where the link leads.
        let program = program.canonicalize().unwrap_or(program);
        let account = Account::instead_of_root("postgres")?;
        let folder = Folder::new(Self::NAME)?;
        let port = free_port().map_err(|error| failed("no free port", error))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let tls = options.tls.then(|| TlsFiles::create(&folder, &options.tls_names)).transpose()?;
        let own = |path: &Path| account.as_ref().map_or(Ok(()), |account| account.give(path));
        own(folder.path())?;
        if let Some(tls) = &tls {
            // It refuses a key that others could read.
            let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(&tls.key, private)
                .map_err(|error| failed("cannot guard the key", error))?;
            own(&tls.key)?;
        }
        let password = folder.write("password", options.password.as_deref().unwrap_or("unused"))?;
        own(&password)?;
        let data = folder.path().join("data");
        initialise(&program.with_file_name("initdb"), account.as_ref(), &data, &password, &options).await?;
        let config = configuration(&options, address, tls.as_ref());
        folder.write("data/postgresql.auto.conf", config)?;
        if options.tls {
            let access = if options.password.is_some() { "scram-sha-256" } else { "trust" };
            folder.write("data/pg_hba.conf", format!("hostssl all all 127.0.0.1/32 {access}\n"))?;
        }
        let launch = launch_as(account.as_ref(), Self::NAME, program.clone()).argument("-D").argument(data);
        let beside = program.with_file_name("psql");
        let psql = if beside.is_file() { beside } else { find("psql").map_err(unsupported)? };
        Ok(Self { options, address, tls, psql, process: Process::new(launch, folder) })
    }

    async fn run(&self) -> Result<(), StartError> {
        // Its own word that it is the process we started: number and state stand in a file of its own folder.
        let state = self.process.folder().path().join("data/postmaster.pid");
        self.process
            .start(async |id| {
                let Ok(state) = std::fs::read_to_string(&state) else { return false };
                let mut lines = state.lines();
                lines.next() == Some(id.to_string().as_str())
                    && lines.nth(6).is_some_and(|word| word.trim() == "ready")
            })
            .await
    }

    fn sessions(&self) -> Vec<Pid> {
        self.process.id().map_or_else(Vec::new, tree::children)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL for the superuser when reached at another address, such as that of a
    /// [`FaultProxy`](crate::proxy::FaultProxy).
    #[must_use]
    pub fn url_at(&self, address: SocketAddr) -> String {
        let password =
            self.options.password.as_ref().map_or_else(String::new, |text| format!(":{}", escape(text)));
        format!("postgres://{USER}{password}@{address}/{DATABASE}")
    }

    /// The URL for another user.
    #[must_use]
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!("postgres://{}:{}@{}/{DATABASE}", escape(user), escape(password), self.address)
    }

    /// The files of its TLS identity, if it has one.
    #[must_use]
    pub fn tls(&self) -> Option<&TlsFiles> {
        self.tls.as_ref()
    }

    /// Runs statements as the superuser over a new connection, past every proxy, and returns what they answer: rows as
    /// lines, columns separated by `|`.
    ///
    /// # Errors
    /// [`Denied`](ErrorKind::Denied) with the server's words, [`Unavailable`](ErrorKind::Unavailable) when it does not
    /// run, [`Timeout`](ErrorKind::Timeout) after 10 s.
    pub async fn query(&self, statements: &str) -> Result<String> {
        let mut command = tokio::process::Command::new(&self.psql);
        command
            .args(["--no-psqlrc", "--no-password", "--quiet", "--tuples-only", "--no-align"])
            .args(["--set=ON_ERROR_STOP=1", "--username", USER, "--dbname", DATABASE])
            .args(["--host", &self.address.ip().to_string(), "--port", &self.address.port().to_string()])
            .args(["--command", statements])
            .env("PGPASSWORD", self.options.password.as_deref().unwrap_or_default())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let ran = tokio::time::timeout(DEADLINE, command.output()).await;
        let output = ran
            .map_err(|_| Error::new(ErrorKind::Timeout, "query"))?
            .map_err(|error| Error::new(ErrorKind::Unavailable, "query").with_source(error))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
        }
        // psql ends with 2 when it has no connection.
        let kind = if output.status.code() == Some(2) { ErrorKind::Unavailable } else { ErrorKind::Denied };
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::new(kind, "query").with_context(words))
    }

    /// Ends all sessions of clients, as an operator does.
    ///
    /// # Errors
    /// As [`query`](Postgres::query).
    pub async fn terminate_sessions(&self) -> Result<()> {
        let others = "backend_type = 'client backend' AND pid <> pg_backend_pid()";
        self.query(&format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"))
            .await
            .map(drop)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
        // Killed, it leaves a small segment of shared memory, whose number it had written down.
        let state = self.process.folder().path().join("data/postmaster.pid");
        let segment = std::fs::read_to_string(state)
            .ok()
            .and_then(|state| Some(state.lines().nth(6)?.split_whitespace().nth(1)?.to_owned()));
        if let Some(segment) = segment {
            let mut remove = std::process::Command::new("ipcrm");
            remove.args(["-m", &segment]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            // Without the program the segment stays, which the operating system bears.
            let _ = remove.status();
        }
    }
}

async fn initialise(
    initdb: &Path,
    account: Option<&Account>,
    data: &Path,
    password: &Path,
    options: &PostgresOptions,
) -> Result<()> {
    let access = if options.password.is_some() { "scram-sha-256" } else { "trust" };
    let mut command = match account {
        Some(account) => {
            let (program, arguments) = account.command();
            let mut command = tokio::process::Command::new(program);
            command.args(arguments).arg(initdb);
            command
        }
        None => tokio::process::Command::new(initdb),
    };
    command
        .args(["--no-sync", "--no-locale", "--encoding=UTF8", "--username", USER])
        .arg(format!("--auth={access}"))
        .arg(format!("--pwfile={}", password.display()))
        .arg(data)
        .current_dir("/")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(60), command.output())
        .await
        .map_err(|_| Error::new(ErrorKind::Timeout, "start").with_context("initdb took more than 60 s"))?
        .map_err(|error| failed("cannot run initdb", error))?;
    if output.status.success() {
        return Ok(());
    }
    let words = format!("initdb: {}", String::from_utf8_lossy(&output.stderr).trim());
    Err(Error::new(ErrorKind::InvalidConfig, "start").with_context(words))
}

fn configuration(options: &PostgresOptions, address: SocketAddr, tls: Option<&TlsFiles>) -> String {
    let quote = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', "''"));
    let mut lines = vec![
        format!("listen_addresses = '{}'", address.ip()),
        format!("port = {}", address.port()),
        "unix_socket_directories = ''".to_owned(),
        "shared_buffers = 32MB".to_owned(),
        // In its folder, and gone with it: segments of the system's shared memory stay when it is killed.
        "dynamic_shared_memory_type = mmap".to_owned(),
        // Instead of 1 GB: many run at a time.
        "max_wal_size = 64MB".to_owned(),
        "max_connections = 200".to_owned(),
        // Nobody replicates it.
        "max_wal_senders = 0".to_owned(),
        "wal_level = minimal".to_owned(),
        format!("fsync = {}", if options.fsync { "on" } else { "off" }),
    ];
    if let Some(tls) = tls {
        lines.push("ssl = on".to_owned());
        lines.push(format!("ssl_cert_file = {}", quote(&tls.certificate)));
        lines.push(format!("ssl_key_file = {}", quote(&tls.key)));
    }
    lines.extend(options.config.iter().cloned());
    lines.push(String::new());
    lines.join("\n")
}

fn failed(what: &'static str, source: std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "start").with_context(what).with_source(source)
}

/// As a user name or password stands in a URL.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte));
            }
            _ => write!(escaped, "%{byte:02X}").expect("writing to a string cannot fail"),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Launch;

    #[tokio::test]
    async fn killed_and_frozen_with_its_sessions_it_comes_back_with_what_was_committed() {
        let Some(postgres) = Postgres::require(PostgresOptions::default()).await else { return };
        let postgres = std::sync::Arc::new(postgres);
        postgres.query("CREATE TABLE kept AS SELECT 41 AS number").await.unwrap();
        let asleep = |postgres: std::sync::Arc<Postgres>| {
            tokio::spawn(async move { postgres.query("SELECT pg_sleep(60)").await })
        };
        let session = asleep(postgres.clone());
        let running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'";
        while postgres.query(running).await.unwrap() != "1" {
            assert!(!session.is_finished());
        }
        postgres.freeze().unwrap();
        let sessions = postgres.sessions();
        assert!(sessions.len() > 1, "{sessions:?}");
        postgres.thaw().unwrap();
        assert_eq!(postgres.query("SELECT number FROM kept").await.unwrap(), "41");
        postgres.kill();
        let error = session.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        let address = postgres.address();
        assert!(std::net::TcpStream::connect(address).is_err());
        postgres.restart().await.unwrap();
        assert_eq!(postgres.query("SELECT number + 1 FROM kept").await.unwrap(), "42");
        assert_eq!(postgres.query("SELEKT").await.unwrap_err().kind(), ErrorKind::Denied);

        let session = asleep(postgres.clone());
        while postgres.query(running).await.unwrap() != "1" {
            assert!(!session.is_finished());
        }
        let start = Instant::now();
        postgres.stop().await;
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert!(session.await.unwrap().is_err());
        let folder = postgres.process().folder().path().to_owned();
        drop(postgres);
        assert!(!folder.exists() && std::net::TcpStream::connect(address).is_err());
    }

    /// Set in the process of the test below.
    const DOOMED: &str = "BACKPLANE_TEST_DOOMED_POSTGRES";

    #[tokio::test]
    async fn starts_one_freezes_it_and_waits_to_be_killed() {
        if std::env::var_os(DOOMED).is_none() {
            return;
        }
        let postgres = Postgres::require(PostgresOptions::default()).await.unwrap();
        postgres.freeze().unwrap();
        let processes: Vec<_> =
            postgres.sessions().iter().map(|pid| pid.as_raw_nonzero().to_string()).collect();
        println!("FROZEN {} {}", postgres.process().id().unwrap(), processes.join(" "));
        std::future::pending::<()>().await;
    }

    #[tokio::test]
    async fn nothing_of_it_survives_a_killed_test_process_though_it_was_frozen() {
        use std::io::BufRead as _;

        if find(Postgres::PROGRAM).is_err() {
            return;
        }
        let test = "broker::postgres::tests::starts_one_freezes_it_and_waits_to_be_killed";
        let mut doomed = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(DOOMED, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = std::io::BufReader::new(doomed.stdout.take().unwrap());
        let frozen = output
            .lines()
            .map_while(std::io::Result::ok)
            .find_map(|line| line.split_once("FROZEN ").map(|(_, processes)| processes.to_owned()))
            .unwrap();
        let alive = |id: &str| {
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
        };
        assert!(frozen.split(' ').count() > 1 && frozen.split(' ').all(alive), "{frozen}");
        doomed.kill().unwrap();
        doomed.wait().unwrap();
        let deadline = Instant::now() + DEADLINE;
        while frozen.split(' ').any(alive) {
            assert!(Instant::now() < deadline, "some of {frozen} still live");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_pooler_in_front_lends_one_session_to_many() {
        use crate::broker::{PgBouncer, PgBouncerOptions};

        let Some(postgres) = Postgres::require(PostgresOptions::default()).await else { return };
        let options = PgBouncerOptions { server: postgres.address(), ..PgBouncerOptions::default() };
        let Some(bouncer) = PgBouncer::require(options).await else { return };
        let through = view(&postgres, bouncer.address());
        let session = through.query("SELECT pg_backend_pid()").await.unwrap();
        assert_eq!(through.query("SELECT pg_backend_pid()").await.unwrap(), session);
        bouncer.kill();
        assert!(through.query("SELECT 1").await.is_err());
        bouncer.restart().await.unwrap();
        assert_eq!(through.query("SELECT 1").await.unwrap(), "1");
    }

    /// The server as it is seen at another address.
    fn view(postgres: &Postgres, address: SocketAddr) -> Postgres {
        let folder = Folder::new("view").unwrap();
        Postgres {
            options: postgres.options.clone(),
            address,
            tls: None,
            psql: postgres.psql.clone(),
            process: Process::new(Launch::new("view", PathBuf::from("/bin/false")), folder),
        }
    }
}
