//! One connection, and the two manners of talking over it.

use std::fmt::Write as _;
use std::sync::Arc;

use backplane_core::Result;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection, Row as _};

use super::fault::fault;
use super::options::Settings;

/// Settings of our sessions. A statement that nobody waits for any more ends by itself; nothing waits long for a lock;
/// the isolation is the one for which the statements are written; a peer that vanished is noticed; and the few
/// statements keep to the indexes, however small or new the tables are.
const OPTIONS: [(&str, &str); 12] = [
    ("statement_timeout", "30s"),
    ("lock_timeout", "5s"),
    ("idle_in_transaction_session_timeout", "30s"),
    ("default_transaction_isolation", "read committed"),
    ("tcp_keepalives_idle", "20"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("plan_cache_mode", "force_generic_plan"),
    ("jit", "off"),
    ("standard_conforming_strings", "on"),
];

/// A setting that means nothing to the server: a session that has our value is ours.
const TOKEN: &str = "backplane.session";

/// How one talks to this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Manner {
    pub(super) statements: Travel,
    pub(super) sessions: Sessions,
}

/// How statements travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Travel {
    /// Prepared once, the values as parameters.
    Prepared,
    /// Each as one message, its values as literals.
    Literal,
}

/// Whose sessions these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sessions {
    /// One for each connection, as the server makes them.
    Ours,
    /// A pooler lends them, one transaction at a time: nothing may stay in them.
    Lent,
}

/// A value of a statement.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Int(i64),
    Bytes(&'a [u8]),
    Ints(&'a [i64]),
    Blobs(&'a [&'a [u8]]),
}

/// One connection.
pub(super) struct Session {
    connection: PgConnection,
    manner: Manner,
}

impl Session {
    /// Connects, and finds out whose sessions these are.
    pub(super) async fn open(settings: &Settings) -> Result<Self> {
        let mut token = [0; 8];
        getrandom::fill(&mut token).map_err(|error| {
            backplane_core::Error::new(backplane_core::ErrorKind::Unavailable, "connect")
                .with_context("the system has no random numbers")
                .with_source(error)
        })?;
        let token = format!("{:016x}", u64::from_be_bytes(token));
        let travel = |otherwise| match settings.prepared {
            None => otherwise,
            Some(true) => Travel::Prepared,
            Some(false) => Travel::Literal,
        };
        let lent = Manner { statements: travel(Travel::Literal), sessions: Sessions::Lent };
        let mut connection = match with_options(&settings.plain, &token).connect().await {
            Ok(connection) => connection,
            Err(error) if refuses_options(&error) => return Self::open_as(settings, lent).await,
            Err(error) => return Err(fault("connect", error)),
        };
        let ours = format!("SELECT coalesce(current_setting('{TOKEN}', true), '')");
        let row = connection.fetch_one(sqlx::raw_sql(AssertSqlSafe(ours))).await;
        let kept: String = row.and_then(|row| row.try_get(0)).map_err(|error| fault("connect", error))?;
        let manner = if kept == token {
            Manner { statements: travel(Travel::Prepared), sessions: Sessions::Ours }
        } else {
            lent
        };
        Ok(Self { connection, manner })
    }

    /// One more connection of the kind that was found.
    pub(super) async fn open_as(settings: &Settings, manner: Manner) -> Result<Self> {
        let options = match manner.sessions {
            Sessions::Ours => with_options(&settings.plain, "ours"),
            Sessions::Lent => settings.plain.clone(),
        };
        let connection = options.connect().await.map_err(|error| fault("connect", error))?;
        Ok(Self { connection, manner })
    }

    pub(super) fn manner(&self) -> Manner {
        self.manner
    }

    /// The rows that a statement answers.
    pub(super) async fn rows(
        &mut self,
        statement: &Arc<str>,
        values: &[Value<'_>],
    ) -> sqlx::Result<Vec<PgRow>> {
        if self.manner.statements == Travel::Prepared {
            self.connection.fetch_all(bind(statement, values)).await
        } else {
            let text = AssertSqlSafe(literal(statement, values));
            self.connection.fetch_all(sqlx::raw_sql(text)).await
        }
    }

    /// How many rows a statement changed.
    pub(super) async fn changed(&mut self, statement: &Arc<str>, values: &[Value<'_>]) -> sqlx::Result<u64> {
        let result = if self.manner.statements == Travel::Prepared {
            self.connection.execute(bind(statement, values)).await
        } else {
            let text = AssertSqlSafe(literal(statement, values));
            self.connection.execute(sqlx::raw_sql(text)).await
        };
        result.map(|result| result.rows_affected())
    }

    /// Everything that `COPY ... FROM STDIN` is to take: all of it or nothing.
    pub(super) async fn copy(&mut self, statement: &str, bytes: &[u8]) -> sqlx::Result<u64> {
        let mut copy = self.connection.copy_in_raw(statement).await?;
        copy.send(bytes).await?;
        copy.finish().await
    }

    /// Several statements at once, without values: all of them or none.
    pub(super) async fn script(&mut self, text: String) -> sqlx::Result<()> {
        let mut transaction = self.connection.begin().await?;
        transaction.execute(sqlx::raw_sql(AssertSqlSafe(text))).await?;
        transaction.commit().await
    }
}

fn with_options(plain: &PgConnectOptions, token: &str) -> PgConnectOptions {
    plain.clone().options(OPTIONS).options([(TOKEN, token)])
}

/// Whether a pooler, or a service like one, would not hear of options of a session.
fn refuses_options(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(database) = error else { return false };
    matches!(database.code().as_deref(), Some("08P01" | "0A000" | "42704" | "22023"))
        || database.message().contains("startup parameter")
}

fn bind(
    statement: &Arc<str>,
    values: &[Value<'_>],
) -> sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments> {
    let query = sqlx::query(AssertSqlSafe(statement.clone()));
    values.iter().fold(query, |query, value| match *value {
        Value::Int(number) => query.bind(number),
        Value::Bytes(bytes) => query.bind(bytes),
        Value::Ints(numbers) => query.bind(numbers),
        Value::Blobs(blobs) => query.bind(blobs),
    })
}

/// The statement with its values in it, as numbers and hexadecimal digits: nothing of what they are made of can be
/// read as anything else.
fn literal(statement: &str, values: &[Value<'_>]) -> String {
    let room: usize = values.iter().map(|value| value.room()).sum();
    let mut text = String::with_capacity(statement.len() + room);
    let mut rest = statement;
    while let Some((before, after)) = rest.split_once('$') {
        text.push_str(before);
        let digits = after.len() - after.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: usize =
            after[..digits].parse().expect("a dollar stands before the number of a value only");
        values[number - 1].write(&mut text);
        rest = &after[digits..];
    }
    text.push_str(rest);
    text
}

impl Value<'_> {
    /// About how many characters it takes as a literal.
    fn room(&self) -> usize {
        match self {
            Self::Int(_) => 32,
            Self::Bytes(bytes) => bytes.len() * 2 + 24,
            Self::Ints(numbers) => numbers.len() * 21 + 32,
            Self::Blobs(blobs) => blobs.iter().map(|bytes| bytes.len() * 2 + 24).sum::<usize>() + 24,
        }
    }

    fn write(&self, text: &mut String) {
        match *self {
            Self::Int(number) => {
                write!(text, "('{number}'::bigint)").expect("writing to a string cannot fail")
            }
            Self::Bytes(bytes) => write_bytes(bytes, text),
            Self::Ints(numbers) => {
                text.push_str("('{");
                for (place, number) in numbers.iter().enumerate() {
                    let comma = if place == 0 { "" } else { "," };
                    write!(text, "{comma}{number}").expect("writing to a string cannot fail");
                }
                text.push_str("}'::bigint[])");
            }
            Self::Blobs(blobs) => {
                text.push_str("(ARRAY[");
                for (place, bytes) in blobs.iter().enumerate() {
                    if place > 0 {
                        text.push(',');
                    }
                    write_bytes(bytes, text);
                }
                text.push_str("]::bytea[])");
            }
        }
    }
}

fn write_bytes(bytes: &[u8], text: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    text.push_str("decode('");
    let mut digits = [0; 4_096];
    for part in bytes.chunks(digits.len() / 2) {
        for (place, byte) in part.iter().enumerate() {
            digits[2 * place] = DIGITS[usize::from(byte >> 4)];
            digits[2 * place + 1] = DIGITS[usize::from(byte & 15)];
        }
        text.push_str(str::from_utf8(&digits[..2 * part.len()]).expect("digits are ASCII"));
    }
    text.push_str("','hex')");
}

#[cfg(test)]
mod units {
    use super::*;

    #[test]
    fn literals_are_digits_whatever_the_values_are() {
        let values = [
            Value::Int(i64::MIN),
            Value::Bytes(b"'; DROP"),
            Value::Ints(&[1, -2]),
            Value::Blobs(&[b"\0\xff", b""]),
        ];
        let text = literal("SELECT $1, $2 WHERE x = ANY($3) AND $4 <> $1", &values);
        assert_eq!(
            text,
            "SELECT ('-9223372036854775808'::bigint), decode('273b2044524f50','hex') WHERE x = ANY(('{1,-2}'::bigint[])) \
             AND (ARRAY[decode('00ff','hex'),decode('','hex')]::bytea[]) <> ('-9223372036854775808'::bigint)"
        );
        assert_eq!(literal("SELECT ANY($1)", &[Value::Ints(&[])]), "SELECT ANY(('{}'::bigint[]))");
    }
}
