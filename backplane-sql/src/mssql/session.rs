//! One connection, which is there only while nothing is under way on it.
//!
//! A statement takes the connection out of the session and puts it back when its answer was read to the end. Where the
//! future of a statement is dropped, because somebody's deadline passed or a task was ended, the connection is dropped
//! with it: nobody can read the rest of an old answer as the beginning of a new one. So ownership does here what a task
//! for each connection would do, without its two hops between threads for each statement.

use backplane_core::Result;
use tiberius::error::Error;
use tiberius::{Client, Row, ToSql};
use tokio::net::TcpStream;
use tokio_util::compat::{Compat, TokioAsyncWriteCompatExt as _};

use super::fault::{fault, is_worth_another_try};
use super::options::Settings;

/// Of our sessions: a failure ends the transaction, nothing waits long for a lock, values are not cut off.
const SETTINGS: &str = "SET XACT_ABORT ON; SET LOCK_TIMEOUT 5000; SET TEXTSIZE 2147483647";

/// How often a server may send us elsewhere. Azure does it once.
const REDIRECTS: usize = 3;

type Connection = Client<Compat<TcpStream>>;

/// One connection.
pub(super) struct Session {
    /// `None`: it broke, or a statement was given up.
    connection: Option<Connection>,
}

impl Session {
    pub(super) async fn open(settings: &Settings) -> Result<Self> {
        let connection = Box::pin(connect(settings)).await.map_err(|error| fault("connect", error))?;
        let mut session = Self { connection: Some(connection) };
        session.batch(SETTINGS).await.map_err(|error| fault("connect", error))?;
        Ok(session)
    }

    /// The rows that a statement with parameters (`@P1`, ...) answers, one list for each of its results.
    pub(super) async fn results(
        &mut self,
        statement: &str,
        values: &[&dyn ToSql],
    ) -> tiberius::Result<Vec<Vec<Row>>> {
        let mut connection = self.take()?;
        let results = match connection.query(statement, values).await {
            Ok(stream) => stream.into_results().await,
            Err(error) => Err(error),
        };
        self.put_back(connection, results)
    }

    /// The rows of its last result.
    pub(super) async fn rows(
        &mut self,
        statement: &str,
        values: &[&dyn ToSql],
    ) -> tiberius::Result<Vec<Row>> {
        Ok(self.results(statement, values).await?.pop().unwrap_or_default())
    }

    /// Statements without parameters. Settings of the session made here stay.
    pub(super) async fn batch(&mut self, statements: &str) -> tiberius::Result<()> {
        let mut connection = self.take()?;
        let results = match connection.simple_query(statements).await {
            Ok(stream) => stream.into_results().await,
            Err(error) => Err(error),
        };
        self.put_back(connection, results).map(drop)
    }

    fn take(&mut self) -> tiberius::Result<Connection> {
        self.connection.take().ok_or_else(|| Error::Io {
            kind: std::io::ErrorKind::NotConnected,
            message: "the connection was given up".into(),
        })
    }

    fn put_back<T>(&mut self, connection: Connection, answer: tiberius::Result<T>) -> tiberius::Result<T> {
        if answer.as_ref().err().is_none_or(is_worth_another_try) {
            self.connection = Some(connection);
        }
        answer
    }
}

async fn connect(settings: &Settings) -> tiberius::Result<Connection> {
    let mut config = settings.config.clone();
    let (mut host, mut port) = (settings.host.clone(), settings.port);
    let mut redirects = 0;
    loop {
        let stream = TcpStream::connect((host.as_str(), port)).await?;
        stream.set_nodelay(true)?;
        match Box::pin(Client::connect(config.clone(), stream.compat_write())).await {
            Err(Error::Routing { host: other, port: at }) if redirects < REDIRECTS => {
                redirects += 1;
                (host, port) = (other, at);
                config.host(&host);
                config.port(port);
            }
            outcome => return outcome,
        }
    }
}
