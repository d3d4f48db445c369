//! The databases: private servers and a file, how they flush, and what they counted.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use backplane_conformance::broker::{
    Broker as _, Folder, MariaDb, MariaDbOptions, Postgres, PostgresOptions,
};

use super::bare;
use crate::{Result, machine};

/// Which database, and how durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `flushes`: a commit waits for the disk.
    Postgres {
        flushes: bool,
    },
    MariaDb,
    Sqlite,
}

/// One that runs.
#[derive(Debug)]
pub(super) struct Database {
    kind: Kind,
    server: Server,
    /// How many logs there were: a file has a new one for each.
    logs: u32,
}

#[derive(Debug)]
enum Server {
    Postgres(Box<Postgres>),
    MariaDb(Box<MariaDb>),
    File(Folder),
}

impl Database {
    /// Starts it; `None`: it is not installed, which was printed.
    pub(super) async fn start(kind: Kind) -> Result<Option<Self>> {
        let server = match kind {
            Kind::Postgres { flushes } => {
                let options = PostgresOptions { fsync: flushes, ..PostgresOptions::default() };
                Postgres::require(options).await.map(|server| Server::Postgres(Box::new(server)))
            }
            Kind::MariaDb => {
                // The last of two counts.
                let flush = ["--innodb-flush-log-at-trx-commit=1", "--innodb-flush-method=fsync"];
                let options =
                    MariaDbOptions { options: flush.map(str::to_owned).into(), ..MariaDbOptions::default() };
                MariaDb::require(options).await.map(|server| Server::MariaDb(Box::new(server)))
            }
            Kind::Sqlite => Some(Server::File(Folder::new("sqlite")?)),
        };
        Ok(server.map(|server| Self { kind, server, logs: 0 }))
    }

    pub(super) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Postgres { flushes: true } => "PostgreSQL",
            Kind::Postgres { flushes: false } => "PostgreSQL without flushes",
            Kind::MariaDb => "MariaDB",
            Kind::Sqlite => "SQLite",
        }
    }

    /// Whether figures are held against bounds.
    pub(super) fn is_bounded(&self) -> bool {
        matches!(self.kind, Kind::Postgres { .. })
    }

    pub(super) fn url(&self) -> String {
        match &self.server {
            Server::Postgres(server) => server.url(),
            Server::MariaDb(server) => server.url(),
            Server::File(_) => format!("sqlite:{}", self.file().display()),
        }
    }

    fn folder(&self) -> &Folder {
        match &self.server {
            Server::Postgres(server) => server.process().folder(),
            Server::MariaDb(server) => server.process().folder(),
            Server::File(folder) => folder,
        }
    }

    fn file(&self) -> PathBuf {
        self.folder().path().join(format!("log-{}.db", self.logs))
    }

    /// Version and settings as the server itself tells them, and how long its disk takes.
    pub(super) async fn description(&mut self) -> Result<String> {
        let told = match &self.server {
            Server::Postgres(server) => {
                let settings = "current_setting('server_version'), current_setting('fsync'), \
                                current_setting('synchronous_commit')";
                let text = "SELECT format('PostgreSQL %s, fsync %s, synchronous_commit %s', ";
                server.query(&format!("{text}{settings})")).await?
            }
            Server::MariaDb(server) => {
                let settings = "'MariaDB ', version(), ', innodb_flush_log_at_trx_commit ', \
                                @@innodb_flush_log_at_trx_commit, ', innodb_flush_method ', @@innodb_flush_method";
                server.query(&format!("SELECT concat({settings})")).await?
            }
            Server::File(_) => "SQLite, journal_mode WAL, synchronous FULL".to_owned(),
        };
        let flush = self.flush()?.as_secs_f64() * 1e3;
        Ok(format!("{told}; a write of 8 kB and its flush take {flush:.2} ms on this disk"))
    }

    /// What it takes to write 8 kB and have them on the disk: the median of many.
    fn flush(&self) -> Result<Duration> {
        let mut file = std::fs::File::create(self.folder().path().join("flush"))?;
        let mut times = Vec::new();
        for _ in 0..101 {
            let begun = Instant::now();
            file.write_all(&[b'.'; 8_192])?;
            file.sync_data()?;
            times.push(begun.elapsed());
        }
        times.sort();
        Ok(times[times.len() / 2])
    }

    /// Begins anew: without a log of ours, and with an empty one of the bare loop.
    pub(super) async fn renew(&mut self) -> Result<()> {
        self.logs += 1;
        let drop = "DROP TABLE IF EXISTS backplane_log; DROP TABLE IF EXISTS backplane_meta; \
                    DROP TABLE IF EXISTS bare_log;";
        let create = bare::schema(&self.url())?;
        match &self.server {
            Server::Postgres(server) => {
                let quiet = "SET client_min_messages = warning;";
                server.query(&format!("{quiet} {drop} {create}")).await.map(|_| ())?;
            }
            Server::MariaDb(server) => server.query(&format!("{drop} {create}")).await.map(|_| ())?,
            Server::File(_) => bare::create(&self.url()).await?,
        }
        Ok(())
    }

    /// Processor time that the server took so far, its sessions included. A file has no server.
    pub(super) fn processor_time(&self) -> Result<Duration> {
        let process = match &self.server {
            Server::Postgres(server) => server.process().id(),
            Server::MariaDb(server) => server.process().id(),
            Server::File(_) => return Ok(Duration::ZERO),
        };
        machine::processor_time_of_family(process.ok_or("the server does not run")?)
    }

    /// Statements that the server ran so far, or transactions of one statement each. Nobody counts those on a file.
    pub(super) async fn statements(&self) -> Result<Option<u64>> {
        let count = match &self.server {
            Server::Postgres(server) => {
                let count = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
                server.query(count).await?
            }
            Server::MariaDb(server) => {
                let count = "SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'QUESTIONS'";
                server.query(count).await?
            }
            Server::File(_) => return Ok(None),
        };
        Ok(Some(count.trim().parse()?))
    }
}
