//! The SQL bus of the backplane: a retained, ordered log in a database that every node follows by polling, woken early
//! where the database can push. Because the log keeps what it carried, a node that lost its connection resumes without
//! loss.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use backplane_core::{Router, RouterConfig};
//! use backplane_sql::SqlBus;
//!
//! # async fn open() -> backplane_core::Result<()> {
//! let bus = SqlBus::from_url("postgres://app:secret@db.internal/app?retention=2m")?;
//! let node = Router::open(Arc::new(bus), RouterConfig::default()).await?;
//! # Ok(()) }
//! ```
//!
//! # What it promises
//! - **Order** is kept per publisher; with `order=total` all nodes see one order, at the price of one commit at a time.
//! - **No loss in silence.** Every row after the beginning of a link is delivered, however late it was committed. What can
//!   no longer be delivered is told as [`Lost`](backplane_core::Delivery::Lost): behind `retention`, after a restore, a
//!   truncation or a reinstallation, or when rows were deleted by somebody else.
//! - **Resume.** A link that is given a position of an earlier one continues there, if the row it stands on is still there.
//!   Frames around it may repeat; the router drops repeats.
//! - **Nobody waits for a stranger.** A transaction that somebody holds open does not stop delivery, and writers do not
//!   wait for each other unless `order=total`.
//! - **A dead or frozen database** ends the link within the heartbeat bound: a statement may take half of it, and a look is
//!   due each quarter of it at least.
//! - **Memory is bounded.** While more than `max_undelivered` waits for whoever polls `inbound`, nothing is read; the log
//!   keeps it. A statement brings half of that, or 64 KiB, at most, or a single larger frame, however frames grow from one
//!   moment to the next: those that are too large for a look are fetched in portions, when there is room.
//!
//! # How frames are stored
//! What a node sends to one topic without sending to another in between shares a row, as far as it is small (3.5 KiB
//! together) and leaves in one statement: a row costs a database many times what the bytes in it cost. Frames that go to
//! ever other topics have a row each.
//!
//! # URL
//! The scheme picks the database (`postgres`, `postgresql`; `mysql`, `mariadb`; `sqlite`; `mssql`, `sqlserver`), each a
//! feature of this crate. Each takes these parameters and some of its own; anything else is refused by name.
//!
//! | parameter | meaning | default |
//! |---|---|---|
//! | `schema` | schema of the tables; refused by MySQL and SQLite | the connection's |
//! | `table` | what the names of the tables begin with | `backplane` |
//! | `create` | `false`: the schema must be there | `true` |
//! | `retention` | how long rows are kept at least | `60s` |
//! | `retention_rows` | how many rows are kept at most | 1,000,000 |
//! | `poll_min`, `poll_max` | shortest and longest pause between two looks | `1ms`, `300ms` |
//! | `hole_deadline` | how long missing rows are looked for | `10s` |
//! | `order` | `publisher` or `total` | `publisher` |
//! | `durability` | `full` or `relaxed`; `relaxed` is refused by MySQL | `full` |
//! | `doorbell` | `false`: only polling, and no ring for others; MySQL and SQL Server have nothing to ring | `true` |
//! | `max_frame` | largest frame | `16MiB` |
//! | `max_undelivered` | most bytes that wait for the reader | `16MiB` |
//!
//! Durations are written `500ms`, `10s`, `2m`, sizes `65536`, `64KiB`, `8MiB`, `1GiB`.
//!
//! What each database takes besides, under the names that its own tools use; SQLite takes nothing else. Files are PEM.
//!
//! | database | parameter | meaning | default |
//! |---|---|---|---|
//! | PostgreSQL | `application_name` | what the server calls our sessions | `backplane` |
//! | | `prepared` | `false`: statements travel without being prepared | unless a pooler is noticed |
//! | | `sslmode` | `disable`, `prefer`, `require`, `verify-ca` or `verify-full` | `PGSSLMODE` of the environment, or `prefer`; with `sslrootcert` at least `verify-ca` |
//! | | `sslrootcert` | file of the authorities that are trusted; makes `require`, and what the environment says below it, mean `verify-ca` | those of this machine, where the mode verifies |
//! | | `sslcert`, `sslkey` | files of our certificate and its key, only together | none |
//! | | `listen_url` | where to listen for the doorbell, past a pooler; without parameters of its own, and what is percent-encoded in a URL is so once more (`/` in a password is `%252F`) | the URL itself |
//! | MySQL | `socket` | path of a Unix socket, instead of host and port | none |
//! | | `ssl-mode` | `disabled`, `preferred`, `required`, `verify_ca` or `verify_identity` | `verify_ca` with `ssl-ca`, else `preferred` |
//! | | `ssl-ca` | file of the authorities that are trusted; only with a mode that verifies | those of this machine, where the mode verifies |
//! | | `ssl-cert`, `ssl-key` | files of our certificate and its key, only together | none |
//! | SQL Server | `encrypt` | `false`: only the login is secret, unless the server wants more | `true` |
//! | | `trust_server_certificate` | `true`: any certificate will do | `false` |
//! | | `trust_server_certificate_ca` | file of an authority that is trusted besides; not with the one before | those of this machine |
//! | | `hostname_in_certificate` | the name that the certificate must have | the host |
//! | | `application_name` | what the server calls our sessions | `backplane` |
//!
//! Files are read when the bus is opened. `trust_server_certificate_ca` may be DER as well, whatever its name ends in.
//!
//! SQL Server takes an ADO connection string too (`Server=tcp:host,1433;Database=...`), with the keywords of ADO and none of
//! the parameters above.

mod bus;
mod config;
mod link;
#[cfg(feature = "mssql")]
mod mssql;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg_attr(
    not(any(test, feature = "mssql", feature = "mysql", feature = "postgres", feature = "sqlite")),
    allow(dead_code, reason = "the seam of dialects, and none is compiled in")
)]
mod store;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod tls;
mod url;

pub use bus::SqlBus;
pub use config::{Durability, LogConfig, LogOrder};
