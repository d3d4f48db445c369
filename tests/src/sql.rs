//! Databases for the tests of the SQL bus: a private server or a file of each kind, and what is done to them behind the
//! bus's back.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use backplane_conformance::broker::{
    Broker as _, Folder, MariaDb, MariaDbOptions, Missing, Postgres, PostgresOptions, given_url, missing,
};
use backplane_conformance::proxy::FaultProxy;
use backplane_sql::SqlBus;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, Row as _};

/// What `BACKPLANE_TEST_<NAME>_URL` calls a SQL Server.
const SQL_SERVER: &str = "mssql";

/// In a database that is not ours.
const TABLES: &str = "table=backplane_test_chaos";

/// The file of a [`SqliteFile`].
const FILE: &str = "log.db";

/// A database that holds a log.
#[derive(Debug)]
pub enum Database {
    /// A private PostgreSQL.
    Postgres(Box<Postgres>),
    /// A private MariaDB.
    MariaDb(Box<MariaDb>),
    /// A file in a folder of its own.
    Sqlite(SqliteFile),
    /// The SQL Server that the environment names (`BACKPLANE_TEST_MSSQL_URL`). It belongs to somebody else: it is neither
    /// killed nor frozen, and the tables stay.
    SqlServer(String),
}

/// A file, and the folder that goes with it.
#[derive(Debug)]
pub struct SqliteFile {
    folder: Folder,
}

impl SqliteFile {
    /// The log.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().join(FILE)
    }

    /// The log, and what lies beside it while it is open.
    #[must_use]
    pub fn paths(&self) -> [PathBuf; 3] {
        ["", "-wal", "-shm"].map(|end| self.folder.path().join(format!("{FILE}{end}")))
    }
}

impl Database {
    /// A private PostgreSQL. `None`: it is not installed; the skip was printed.
    ///
    /// # Panics
    /// When it is missing although `BACKPLANE_TEST_REQUIRE` names it, or does not start.
    pub async fn postgres() -> Option<Self> {
        Self::postgres_with(Vec::new()).await
    }

    /// As [`postgres`](Self::postgres), with more lines of its configuration.
    ///
    /// # Panics
    /// As [`postgres`](Self::postgres).
    pub async fn postgres_with(config: Vec<String>) -> Option<Self> {
        let options = PostgresOptions { config, ..PostgresOptions::default() };
        Some(Self::Postgres(Box::new(Postgres::require(options).await?)))
    }

    /// A private MariaDB. `None`: it is not installed; the skip was printed.
    ///
    /// # Panics
    /// As [`postgres`](Self::postgres).
    pub async fn mariadb() -> Option<Self> {
        Some(Self::MariaDb(Box::new(MariaDb::require(MariaDbOptions::default()).await?)))
    }

    /// A file that is not there yet, in a new folder.
    ///
    /// # Panics
    /// When no folder can be made.
    #[must_use]
    pub fn sqlite() -> Self {
        Self::Sqlite(SqliteFile { folder: Folder::new("sqlite").expect("a temporary folder can be made") })
    }

    /// The SQL Server that the environment names by a URL, with tables of these tests' own. `None`: it names none; the skip
    /// was printed.
    ///
    /// # Panics
    /// When it names none although `BACKPLANE_TEST_REQUIRE` does.
    #[must_use]
    pub fn sql_server() -> Option<Self> {
        let given = given_url(SQL_SERVER);
        if given.is_none() {
            missing(
                SQL_SERVER,
                &Missing { program: "SQL Server (named by BACKPLANE_TEST_MSSQL_URL)".to_owned() },
            );
        }
        given.map(|url| Self::SqlServer(with_parameters(url, TABLES)))
    }

    /// How tests call it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::MariaDb(_) => "mariadb",
            Self::Sqlite(_) => "sqlite",
            Self::SqlServer(_) => "mssql",
        }
    }

    /// Its URL, with `parameters` such as `retention=1s&doorbell=false`.
    #[must_use]
    pub fn url(&self, parameters: &str) -> String {
        let url = match self {
            Self::Postgres(server) => server.url(),
            Self::MariaDb(server) => server.url(),
            Self::Sqlite(file) => format!("sqlite:{}", file.path().display()),
            Self::SqlServer(url) => url.clone(),
        };
        with_parameters(url, parameters)
    }

    /// A bus straight to it.
    ///
    /// # Panics
    /// When the URL is none of the SQL bus.
    #[must_use]
    pub fn bus(&self, parameters: &str) -> Arc<SqlBus> {
        bus_at(&self.url(parameters))
    }

    /// A bus through `proxy`, which stands before this server.
    ///
    /// # Panics
    /// When this is no private server, or the URL is none of the SQL bus.
    #[must_use]
    pub fn bus_through(&self, proxy: &FaultProxy, parameters: &str) -> Arc<SqlBus> {
        let url = match self {
            Self::Postgres(server) => server.url_at(proxy.address()),
            Self::MariaDb(server) => server.url_at(proxy.address()),
            Self::Sqlite(_) | Self::SqlServer(_) => panic!("{} has no proxy", self.name()),
        };
        bus_at(&with_parameters(url, parameters))
    }

    /// A proxy before it. `None`: it has no address that is ours.
    ///
    /// # Panics
    /// When no port is free.
    #[must_use]
    pub fn proxy(&self) -> Option<FaultProxy> {
        let address = self.address()?;
        Some(FaultProxy::start(address).expect("a loopback port is free"))
    }

    /// Where it listens. `None`: it has no address that is ours.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Postgres(server) => Some(server.address()),
            Self::MariaDb(server) => Some(server.address()),
            Self::Sqlite(_) | Self::SqlServer(_) => None,
        }
    }

    /// Ends the server at once (SIGKILL).
    ///
    /// # Panics
    /// When it is no private server.
    pub fn kill(&self) {
        match self {
            Self::Postgres(server) => server.kill(),
            Self::MariaDb(server) => server.kill(),
            Self::Sqlite(_) | Self::SqlServer(_) => panic!("{} is no server of ours", self.name()),
        }
    }

    /// Starts the killed server again.
    ///
    /// # Panics
    /// When it is no private server or does not start.
    pub async fn restart(&self) {
        match self {
            Self::Postgres(server) => server.restart().await.expect("it starts again on its port"),
            Self::MariaDb(server) => server.restart().await.expect("it starts again on its port"),
            Self::Sqlite(_) | Self::SqlServer(_) => panic!("{} is no server of ours", self.name()),
        }
    }

    /// Stops the server without ending it (SIGSTOP).
    ///
    /// # Panics
    /// When it is no private server or does not run.
    pub fn freeze(&self) {
        match self {
            Self::Postgres(server) => server.freeze().expect("it runs"),
            Self::MariaDb(server) => server.freeze().expect("it runs"),
            Self::Sqlite(_) | Self::SqlServer(_) => panic!("{} is no server of ours", self.name()),
        }
    }

    /// Ends a [`freeze`](Self::freeze).
    ///
    /// # Panics
    /// When it is no private server or does not run.
    pub fn thaw(&self) {
        match self {
            Self::Postgres(server) => server.thaw().expect("it runs"),
            Self::MariaDb(server) => server.thaw().expect("it runs"),
            Self::Sqlite(_) | Self::SqlServer(_) => panic!("{} is no server of ours", self.name()),
        }
    }

    /// A session of somebody else, past every proxy.
    ///
    /// # Panics
    /// When it cannot be opened, and on a SQL Server: what is not ours is left alone.
    pub async fn session(&self) -> Session {
        let opened = match self {
            Self::Postgres(server) => sqlx::PgConnection::connect(&server.url()).await.map(Session::Postgres),
            Self::MariaDb(server) => sqlx::MySqlConnection::connect(&server.url()).await.map(Session::MySql),
            Self::Sqlite(file) => return Session::open_file(&file.path()).await,
            Self::SqlServer(_) => panic!("what is not ours is left alone"),
        };
        opened.expect("the database lets us in")
    }

    /// Runs statements in a session of their own, past every proxy.
    ///
    /// # Panics
    /// When one fails.
    pub async fn run(&self, statements: &str) {
        self.session().await.run(statements).await;
    }

    /// The number that a query answers.
    ///
    /// # Panics
    /// When it fails or answers anything but one number.
    pub async fn number(&self, query: &str) -> i64 {
        self.session().await.number(query).await
    }
}

/// A session of somebody else.
#[derive(Debug)]
pub enum Session {
    /// With a PostgreSQL server.
    Postgres(sqlx::PgConnection),
    /// With a MySQL or MariaDB server.
    MySql(sqlx::MySqlConnection),
    /// With a file.
    Sqlite(sqlx::SqliteConnection),
}

impl Session {
    /// Opens a SQLite file that is there.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub async fn open_file(path: &Path) -> Self {
        let options = SqliteConnectOptions::from_str("sqlite:").expect("a URL without a name").filename(path);
        let patient = options.busy_timeout(Duration::from_secs(10));
        Self::Sqlite(patient.connect().await.expect("the file can be opened"))
    }

    /// Runs statements; a transaction that they begin stays open.
    ///
    /// # Errors
    /// What the database says against one.
    pub async fn tries(&mut self, statements: &str) -> sqlx::Result<()> {
        let statements = sqlx::raw_sql(AssertSqlSafe(statements.to_owned()));
        match self {
            Self::Postgres(connection) => connection.execute(statements).await.map(drop),
            Self::MySql(connection) => connection.execute(statements).await.map(drop),
            Self::Sqlite(connection) => connection.execute(statements).await.map(drop),
        }
    }

    /// As [`tries`](Self::tries), of what cannot fail.
    ///
    /// # Panics
    /// When one fails.
    pub async fn run(&mut self, statements: &str) {
        self.tries(statements).await.unwrap_or_else(|error| panic!("{statements}: {error}"));
    }

    /// The number that a query answers.
    ///
    /// # Panics
    /// When it fails or answers anything but one number.
    pub async fn number(&mut self, query: &str) -> i64 {
        let query = sqlx::raw_sql(AssertSqlSafe(query.to_owned()));
        let number = match self {
            Self::Postgres(connection) => connection.fetch_one(query).await.and_then(|row| row.try_get(0)),
            Self::MySql(connection) => connection.fetch_one(query).await.and_then(|row| row.try_get(0)),
            Self::Sqlite(connection) => connection.fetch_one(query).await.and_then(|row| row.try_get(0)),
        };
        number.expect("the query answers a number")
    }
}

/// A bus to whatever `url` names.
///
/// # Panics
/// When the URL is none of the SQL bus.
#[must_use]
pub fn bus_at(url: &str) -> Arc<SqlBus> {
    Arc::new(SqlBus::from_url(url).unwrap_or_else(|error| panic!("{url}: {error}")))
}

fn with_parameters(url: String, parameters: &str) -> String {
    match parameters {
        "" => url,
        _ if url.contains('?') => format!("{url}&{parameters}"),
        _ => format!("{url}?{parameters}"),
    }
}
