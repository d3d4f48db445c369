//! A private MariaDB server.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use backplane_core::{Error, ErrorKind, Result};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;

use super::Broker;
use super::account::{Account, launch_as};
use super::folder::Folder;
use super::port::free_port;
use super::process::{Process, StartError};
use super::require::find;
use super::tls::TlsFiles;

/// With how many ports a start is tried.
const PORTS: usize = 5;

/// How long a restart waits for its port, when somebody else has it.
const PORT_DEADLINE: Duration = Duration::from_secs(5);

/// How long a server that shares the machine with many others may take until it accepts.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// How long statements of the suite may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// The user with all rights that clients are given.
const USER: &str = "backplane";

/// The suite's own user, by socket only.
const SUITE_USER: &str = "root";

/// The database.
const DATABASE: &str = "backplane";

/// How a private MariaDB is set up.
#[derive(Clone, Debug)]
pub struct MariaDbOptions {
    /// Whether it speaks TLS, with a certificate of a private authority, and refuses anything else over TCP. Default: no.
    pub tls: bool,
    /// The names in that certificate. Default `localhost` and `127.0.0.1`; the server listens on the latter.
    pub tls_names: Vec<String>,
    /// The user's password. Default: none.
    pub password: Option<String>,
    /// More options of the server, such as `--max-allowed-packet=1M`.
    pub options: Vec<String>,
}

impl Default for MariaDbOptions {
    fn default() -> Self {
        Self {
            tls: false,
            tls_names: vec!["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string()],
            password: None,
            options: Vec::new(),
        }
    }
}

/// A private `mariadbd`, with the user `backplane`, who may do everything, and the database `backplane`. It listens on a
/// loopback port and on a socket in its own folder, and ends when dropped.
#[derive(Debug)]
pub struct MariaDb {
    options: MariaDbOptions,
    address: SocketAddr,
    tls: Option<TlsFiles>,
    client: PathBuf,
    process: Process,
}

impl Broker for MariaDb {
    type Options = MariaDbOptions;
    const NAME: &'static str = "mariadb";
    const PROGRAM: &'static str = "mariadbd";

    async fn start(options: MariaDbOptions) -> Result<Self> {
        let mut taken = None;
        for _ in 0..PORTS {
            let mariadb = Self::prepare(options.clone()).await?;
            match mariadb.run().await {
                Ok(()) => return Ok(mariadb),
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

impl MariaDb {
    async fn prepare(options: MariaDbOptions) -> Result<Self> {
        let found = |program: &str| {
            find(program).map_err(|missing| Error::new(ErrorKind::Unsupported, "start").with_source(missing))
        };
        let (program, installer, client) =
            (found(Self::PROGRAM)?, found("mariadb-install-db")?, found("mariadb")?);
        let account = Account::instead_of_root("mysql")?;
        let folder = Folder::new(Self::NAME)?;
        let port = free_port().map_err(|error| failed("no free port", error))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let tls = options.tls.then(|| TlsFiles::create(&folder, &options.tls_names)).transpose()?;
        let users = folder.write("users.sql", users(&options))?;
        if let Some(account) = &account {
            account.give(folder.path())?;
            account.give(&users)?;
            if let Some(tls) = &tls {
                account.give(&tls.key)?;
            }
        }
        install(&installer, account.as_ref(), folder.path()).await?;
        let launch = launch_as(account.as_ref(), Self::NAME, program);
        let mut launch = arguments(folder.path(), &users, address, tls.as_ref())
            .into_iter()
            .chain(options.options.iter().cloned())
            .fold(launch, super::Launch::argument);
        launch.deadline = START_DEADLINE;
        Ok(Self { options, address, tls, client, process: Process::new(launch, folder) })
    }

    async fn run(&self) -> Result<(), StartError> {
        // The socket stands in our own folder, so it is the process that we started who greets there; one that was left
        // by a killed server refuses.
        let socket = self.socket();
        self.process.start(async |_| greets(&socket).await.is_ok_and(|greets| greets)).await
    }

    /// Where it listens for TCP.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.process.folder().path().join("socket")
    }

    /// The URL for the user with all rights when reached at another address, such as that of a
    /// [`FaultProxy`](crate::proxy::FaultProxy).
    #[must_use]
    pub fn url_at(&self, address: SocketAddr) -> String {
        let password =
            self.options.password.as_ref().map_or_else(String::new, |text| format!(":{}", escape(text)));
        format!("mysql://{USER}{password}@{address}/{DATABASE}")
    }

    /// The URL for another user.
    #[must_use]
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!("mysql://{}:{}@{}/{DATABASE}", escape(user), escape(password), self.address)
    }

    /// The files of its TLS identity, if it has one.
    #[must_use]
    pub fn tls(&self) -> Option<&TlsFiles> {
        self.tls.as_ref()
    }

    /// Runs statements with all rights over a new connection, past every proxy, and returns what they answer: rows as
    /// lines, columns separated by tabs.
    ///
    /// # Errors
    /// [`Denied`](ErrorKind::Denied) with the server's words, [`Unavailable`](ErrorKind::Unavailable) when it does not
    /// run, [`Timeout`](ErrorKind::Timeout) after 10 s.
    pub async fn query(&self, statements: &str) -> Result<String> {
        let mut command = tokio::process::Command::new(&self.client);
        command
            .arg("--no-defaults")
            .arg(format!("--socket={}", self.socket().display()))
            .args(["--user", SUITE_USER, "--database", DATABASE])
            .args(["--batch", "--skip-column-names", "--execute", statements])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let ran = tokio::time::timeout(DEADLINE, command.output()).await;
        let output = ran
            .map_err(|_| Error::new(ErrorKind::Timeout, "query"))?
            .map_err(|error| Error::new(ErrorKind::Unavailable, "query").with_source(error))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
        }
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        // 2002: nobody listens. 2006, 2013: the connection ended.
        let gone = ["ERROR 2002", "ERROR 2006", "ERROR 2013"].iter().any(|code| words.contains(code));
        let kind = if gone { ErrorKind::Unavailable } else { ErrorKind::Denied };
        Err(Error::new(kind, "query").with_context(words))
    }

    /// Ends all sessions of clients, as an operator does.
    ///
    /// # Errors
    /// As [`query`](MariaDb::query).
    pub async fn terminate_sessions(&self) -> Result<()> {
        self.query(&format!("KILL HARD USER {USER}")).await.map(drop)
    }
}

/// Whether somebody accepts at the socket and speaks first, as the protocol wants it.
async fn greets(socket: &Path) -> std::io::Result<bool> {
    let mut stream = UnixStream::connect(socket).await?;
    let mut greeting = [0; 5];
    stream.read_exact(&mut greeting).await?;
    // Three bytes of length, a number, and the protocol's version.
    Ok(greeting[4] == 10)
}

/// Runs at each start, before anybody is let in.
fn users(options: &MariaDbOptions) -> String {
    let password = options.password.as_deref().unwrap_or_default().replace('\\', "\\\\").replace('\'', "''");
    format!(
        "CREATE DATABASE IF NOT EXISTS {DATABASE};\n\
         CREATE USER IF NOT EXISTS '{USER}'@'%' IDENTIFIED BY '{password}';\n\
         GRANT ALL ON *.* TO '{USER}'@'%' WITH GRANT OPTION;\n"
    )
}

/// What the installer and the server must agree on: small files.
const SIZES: [&str; 2] = ["--innodb-log-file-size=48M", "--innodb-buffer-pool-size=64M"];

async fn install(installer: &Path, account: Option<&Account>, folder: &Path) -> Result<()> {
    let mut command = match account {
        Some(account) => {
            let (program, arguments) = account.command();
            let mut command = tokio::process::Command::new(program);
            command.args(arguments).arg(installer);
            command
        }
        None => tokio::process::Command::new(installer),
    };
    command
        .arg("--no-defaults")
        .arg(format!("--datadir={}", folder.join("data").display()))
        .arg(tmpdir(folder))
        .args(["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"])
        .args(SIZES)
        .arg("--innodb-flush-method=nosync")
        .current_dir("/")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(START_DEADLINE, command.output())
        .await
        .map_err(|_| {
            let context = format!("mariadb-install-db took more than {START_DEADLINE:?}");
            Error::new(ErrorKind::Timeout, "start").with_context(context)
        })?
        .map_err(|error| failed("cannot run mariadb-install-db", error))?;
    if output.status.success() {
        return Ok(());
    }
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let words = format!("mariadb-install-db: {} {}", words(&output.stdout), words(&output.stderr));
    Err(Error::new(ErrorKind::InvalidConfig, "start").with_context(words))
}

/// Its own: a server that starts deletes the temporary tables that others have where it has its own.
fn tmpdir(folder: &Path) -> String {
    format!("--tmpdir={}", folder.display())
}

fn arguments(folder: &Path, users: &Path, address: SocketAddr, tls: Option<&TlsFiles>) -> Vec<String> {
    let at = |name: &str| folder.join(name).display().to_string();
    let mut arguments = vec![
        "--no-defaults".to_owned(),
        format!("--datadir={}", at("data")),
        tmpdir(folder),
        format!("--socket={}", at("socket")),
        format!("--pid-file={}", at("pid")),
        format!("--bind-address={}", address.ip()),
        format!("--port={}", address.port()),
        format!("--init-file={}", users.display()),
        "--skip-name-resolve".to_owned(),
        "--max-connections=300".to_owned(),
        // Written at each commit, and left to the operating system: these tests kill processes and no machines.
        "--innodb-flush-log-at-trx-commit=2".to_owned(),
        "--innodb-flush-method=nosync".to_owned(),
        // So that a statement of the suite which waits in vain ends before its deadline.
        "--lock-wait-timeout=5".to_owned(),
    ];
    arguments.extend(SIZES.map(str::to_owned));
    if let Some(tls) = tls {
        arguments.push(format!("--ssl-cert={}", tls.certificate.display()));
        arguments.push(format!("--ssl-key={}", tls.key.display()));
        arguments.push("--require-secure-transport=ON".to_owned());
    }
    arguments
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

    #[tokio::test]
    async fn killed_it_comes_back_with_what_was_committed() {
        let Some(mariadb) = MariaDb::require(MariaDbOptions::default()).await else { return };
        mariadb.query("CREATE TABLE kept AS SELECT 41 AS number").await.unwrap();
        mariadb.freeze().unwrap();
        mariadb.thaw().unwrap();
        assert_eq!(mariadb.query("SELECT number, 'x' FROM kept").await.unwrap(), "41\tx");
        mariadb.kill();
        let address = mariadb.address();
        assert!(std::net::TcpStream::connect(address).is_err());
        let error = mariadb.query("SELECT 1").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        mariadb.restart().await.unwrap();
        assert_eq!(mariadb.query("SELECT number + 1 FROM kept").await.unwrap(), "42");
        assert_eq!(mariadb.query("SELEKT").await.unwrap_err().kind(), ErrorKind::Denied);
        mariadb.stop().await;
        let folder = mariadb.process().folder().path().to_owned();
        drop(mariadb);
        assert!(!folder.exists() && std::net::TcpStream::connect(address).is_err());
    }
}
