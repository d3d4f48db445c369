//! What a URL says: which dialect, the options of the log, and what is left for the dialect.
//!
//! Each dialect module has `pub(crate) fn open(url: &str, rest: &mut Parameters, config: &LogConfig) ->
//! Result<Arc<dyn Database>>`. `url` is what stands before the `?`, scheme included and not decoded (for SQL Server it may
//! be an ADO connection string as it was given); `rest` holds the parameters that are not options of the log; `config` is
//! complete and checked. It takes from `rest` what it knows (by then [`Parameters`] has noted its names for the error that
//! lists them), connects nothing, and its errors hold neither user nor password.

use std::borrow::Cow;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use backplane_core::{Error, ErrorKind, Result};

use crate::config::{Durability, LogConfig, LogOrder};
use crate::store::Database;

/// A configuration that cannot work, with a sentence about it.
pub(crate) fn invalid(context: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidConfig, "open").with_context(context)
}

/// The database that `url` names, and the options of the log: `config`, changed by what the URL says.
pub(crate) fn open(url: &str, mut config: LogConfig) -> Result<(Arc<dyn Database>, LogConfig)> {
    let (dialect, address, mut parameters) = match scheme_of(url) {
        Some(scheme) => {
            let dialect = Dialect::of(&scheme)?;
            let (address, parameters) = Parameters::of(url)?;
            (dialect, address, parameters)
        }
        // An ADO connection string has its own keywords and no parameters of ours.
        None if is_ado(url) => (Dialect::SqlServer, url, Parameters::default()),
        None => {
            return Err(invalid(
                "not a URL: it begins with a scheme and a colon, such as `postgres://` or `sqlite:`",
            ));
        }
    };
    log_options(&mut parameters, &mut config)?;
    config.validate()?;
    let database = dialect.open(address, &mut parameters, &config)?;
    parameters.finish(dialect)?;
    Ok((database, config))
}

/// The options of the log, each under its field's name.
fn log_options(parameters: &mut Parameters, config: &mut LogConfig) -> Result<()> {
    config.schema = parameters.take("schema").or(config.schema.take());
    if let Some(table) = parameters.take("table") {
        config.table = table;
    }
    parameters.flag("create", &mut config.create)?;
    parameters.duration("retention", &mut config.retention)?;
    parameters.number("retention_rows", &mut config.retention_rows)?;
    parameters.duration("poll_min", &mut config.poll_min)?;
    parameters.duration("poll_max", &mut config.poll_max)?;
    parameters.duration("hole_deadline", &mut config.hole_deadline)?;
    parameters.parse("order", &mut config.order, "`publisher` or `total`", |text| match text {
        "publisher" => Some(LogOrder::PerPublisher),
        "total" => Some(LogOrder::Total),
        _ => None,
    })?;
    parameters.parse("durability", &mut config.durability, "`full` or `relaxed`", |text| match text {
        "full" => Some(Durability::Full),
        "relaxed" => Some(Durability::Relaxed),
        _ => None,
    })?;
    parameters.flag("doorbell", &mut config.doorbell)?;
    parameters.size("max_frame", &mut config.max_frame)?;
    parameters.size("max_undelivered", &mut config.max_undelivered)
}

/// Which kind of database a scheme means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Postgres,
    MySql,
    Sqlite,
    SqlServer,
}

impl Dialect {
    fn of(scheme: &str) -> Result<Self> {
        match scheme {
            "postgres" | "postgresql" => Ok(Self::Postgres),
            "mysql" | "mariadb" => Ok(Self::MySql),
            "sqlite" => Ok(Self::Sqlite),
            "mssql" | "sqlserver" => Ok(Self::SqlServer),
            _ => Err(invalid(
                "not a scheme of the SQL bus; it knows postgres, postgresql, mysql, mariadb, sqlite, mssql and sqlserver",
            )),
        }
    }

    /// The feature that brings it, and how errors call it.
    fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::MySql => "mysql",
            Self::Sqlite => "sqlite",
            Self::SqlServer => "mssql",
        }
    }

    fn open(self, url: &str, rest: &mut Parameters, config: &LogConfig) -> Result<Arc<dyn Database>> {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres => crate::postgres::open(url, rest, config),
            #[cfg(feature = "mysql")]
            Self::MySql => crate::mysql::open(url, rest, config),
            #[cfg(feature = "sqlite")]
            Self::Sqlite => crate::sqlite::open(url, rest, config),
            #[cfg(feature = "mssql")]
            Self::SqlServer => crate::mssql::open(url, rest, config),
            #[cfg(not(all(feature = "postgres", feature = "mysql", feature = "sqlite", feature = "mssql")))]
            missing => {
                let _ = (url, rest, config);
                Err(invalid(format!(
                    "`{0}` is not compiled in: enable the feature `{0}` of the crate `backplane-sql`",
                    missing.name()
                )))
            }
        }
    }
}

/// The scheme in lower case; `None` where the text has none.
fn scheme_of(url: &str) -> Option<String> {
    let (scheme, _) = url.split_once(':')?;
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
    is_scheme.then(|| scheme.to_ascii_lowercase())
}

/// Whether it looks like `Server=...;Database=...`.
fn is_ado(text: &str) -> bool {
    text.split(';').any(|pair| {
        let key = pair.split_once('=').map_or("", |(key, _)| key.trim());
        ["server", "data source", "address", "addr", "network address"]
            .iter()
            .any(|known| key.eq_ignore_ascii_case(known))
    })
}

/// The parameters of a URL that nobody has taken yet, and the names that were asked for.
#[derive(Default)]
pub(crate) struct Parameters {
    left: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl Parameters {
    /// Splits a URL into what stands before the query and its parameters. Refuses what would be read differently from
    /// what was meant: a fragment, raw `@` behind the host (a password that is not percent-encoded), bytes that are not
    /// UTF-8, names that occur twice.
    pub(crate) fn of(url: &str) -> Result<(&str, Self)> {
        if url.contains('#') {
            return Err(invalid("a `#` in a URL must be written %23"));
        }
        let (address, query) = url.split_once('?').unwrap_or((url, ""));
        let behind_authority = address.split_once("//").map_or("", |(_, rest)| match rest.split_once('/') {
            Some((authority, path)) if !authority.is_empty() => path,
            _ => "",
        });
        if query.contains('@') || behind_authority.contains('@') {
            return Err(invalid(
                "`@` behind the host: `/`, `?` and `@` in user, password or parameters must be written %2F, %3F and %40",
            ));
        }
        let mut parameters = Self::default();
        for raw in query.split('&').filter(|raw| !raw.is_empty()) {
            let (name, value) = raw.split_once('=').unwrap_or((raw, ""));
            let read = |text: &str| decode(&text.replace('+', " "));
            let name =
                read(name).ok_or_else(|| invalid("a parameter's name is not percent-encoded UTF-8"))?;
            let value = read(value).ok_or_else(|| {
                let name = name.escape_debug();
                invalid(format!("the value of the parameter `{name}` is not percent-encoded UTF-8"))
            })?;
            if parameters.left.iter().any(|(earlier, _)| *earlier == name) {
                return Err(invalid(format!("the parameter `{}` occurs twice", name.escape_debug())));
            }
            parameters.left.push((name, value));
        }
        Ok((address, parameters))
    }

    /// The value of a parameter, when given; from then on it counts as known.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        let index = self.left.iter().position(|(given, _)| given == name)?;
        Some(self.left.remove(index).1)
    }

    /// Sets `field` to `true` or `false`, when given.
    pub(crate) fn flag(&mut self, name: &'static str, field: &mut bool) -> Result<()> {
        self.parse(name, field, "`true` or `false`", |text| text.parse().ok())
    }

    /// Sets `field` to a whole number of its type, when given.
    pub(crate) fn number<T: FromStr>(&mut self, name: &'static str, field: &mut T) -> Result<()> {
        self.parse(name, field, "a whole number", |text| {
            if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
        })
    }

    /// Sets `field` to a number of bytes (`65536`, `64KiB`, `8MiB`, `1GiB`), when given.
    pub(crate) fn size(&mut self, name: &'static str, field: &mut usize) -> Result<()> {
        self.parse(name, field, "a number of bytes such as `65536`, `64KiB`, `8MiB` or `1GiB`", parse_size)
    }

    /// Sets `field` to a duration (`500ms`, `10s`, `2m`), when given.
    pub(crate) fn duration(&mut self, name: &'static str, field: &mut Duration) -> Result<()> {
        self.parse(name, field, "a duration such as `500ms`, `10s` or `2m`", parse_duration)
    }

    /// Sets `field` to what `parse` makes of the value, when given; `form` says in an error what it must be.
    pub(crate) fn parse<T>(
        &mut self,
        name: &'static str,
        field: &mut T,
        form: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<()> {
        if let Some(text) = self.take(name) {
            *field = parse(&text).ok_or_else(|| invalid(format!("the parameter `{name}` must be {form}")))?;
        }
        Ok(())
    }

    /// Refuses what is left.
    fn finish(self, dialect: Dialect) -> Result<()> {
        match self.left.first() {
            None => Ok(()),
            Some((unknown, _)) => Err(invalid(format!(
                "`{}` has no parameter `{}`; it knows {}",
                dialect.name(),
                unknown.escape_debug(),
                self.known.join(", ")
            ))),
        }
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        _ => None,
    }
}

fn parse_size(text: &str) -> Option<usize> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: usize = number.parse().ok()?;
    number.checked_mul(match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    })
}

/// Percent-decodes; `None` for a broken escape or what is not UTF-8. A `+` stays one: only in parameters it is a space.
pub(crate) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => hex(rest.next()?)? << 4 | hex(rest.next()?)?,
            plain => plain,
        });
    }
    String::from_utf8(bytes).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(url: &str) -> Result<LogConfig> {
        let (_, mut parameters) = Parameters::of(url)?;
        let mut config = LogConfig::default();
        log_options(&mut parameters, &mut config)?;
        config.validate()?;
        parameters.finish(Dialect::Postgres)?;
        Ok(config)
    }

    fn refusal(url: &str) -> String {
        let error = options(url).expect_err(url);
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        error.to_string()
    }

    #[test]
    fn every_option_of_the_log_is_a_parameter() {
        let config = options(
            "postgres://u:p%40ss@host/db?schema=app&table=chat&create=false&retention=2m&retention_rows=5000&\
             poll_min=2ms&poll_max=1s&hole_deadline=500ms&order=total&durability=relaxed&doorbell=false&\
             max_frame=1MiB&max_undelivered=64KiB",
        )
        .expect("a good URL");
        let expected = LogConfig {
            schema: Some("app".into()),
            table: "chat".into(),
            create: false,
            retention: Duration::from_secs(120),
            retention_rows: 5_000,
            poll_min: Duration::from_millis(2),
            poll_max: Duration::from_secs(1),
            hole_deadline: Duration::from_millis(500),
            order: LogOrder::Total,
            durability: Durability::Relaxed,
            doorbell: false,
            max_frame: 1 << 20,
            max_undelivered: 64 << 10,
        };
        assert_eq!(config, expected);
        assert_eq!(options("postgres://host").expect("no parameters"), LogConfig::default());
    }

    #[test]
    fn what_is_unknown_repeated_or_unreadable_is_refused_by_name() {
        let unknown = refusal("postgres://h?retentoin=60s");
        assert!(unknown.contains("`retentoin`") && unknown.contains("retention_rows, poll_min"), "{unknown}");
        assert!(refusal("postgres://h?table=a&table=b").contains("`table` occurs twice"));
        for (parameter, name) in [
            ("retention=60", "`retention`"),
            ("retention_rows=+5000", "`retention_rows`"),
            ("order=Total", "`order`"),
            ("durability=none", "`durability`"),
            ("doorbell=1", "`doorbell`"),
            ("create", "`create`"),
            ("max_frame=1MB", "`max_frame`"),
            ("table=%FF", "`table`"),
            ("table=a%20b", "table must"),
            ("schema=1a", "schema must"),
            ("retention=10ms", "retention must"),
            ("poll_min=1s", "poll_min must"),
        ] {
            let refused = refusal(&format!("postgres://h?{parameter}"));
            assert!(refused.contains(name), "{parameter}: {refused}");
        }
    }

    #[test]
    fn no_refusal_shows_a_password() {
        for url in [
            "postgres://u:secret@h?x=1",
            "postgres://u:sec#ret@h",
            "postgres://u:sec/secret@h",
            "oracle://u:secret@h",
            "u:secret@h",
            "secret",
            "Server=h;Password=secret?#",
            "postgres://u:secret@h",
        ] {
            if let Err(error) = open(url, LogConfig::default()) {
                let shown = format!("{error} {error:?}");
                assert!(!shown.contains("secret") && !shown.contains("sec#ret"), "{shown}");
            }
        }
    }

    #[test]
    fn a_connection_string_is_told_from_a_url() {
        assert_eq!(scheme_of("Postgres://h").as_deref(), Some("postgres"));
        assert_eq!(scheme_of("sqlite:demo.db").as_deref(), Some("sqlite"));
        for ado in ["Server=tcp:h,1433;Database=d", "Database=d; data source = h", "addr=h"] {
            assert!(scheme_of(ado).is_none() && is_ado(ado), "{ado}");
        }
        assert!(!is_ado("Database=d") && !is_ado("nonsense"));
    }

    #[test]
    fn escapes_are_decoded_strictly_and_a_plus_is_a_space_in_parameters_only() {
        assert_eq!(decode("a%2Fb+c%C3%A4").as_deref(), Some("a/b+cä"));
        for wrong in ["%", "%4", "%zz", "%+1", "%FF", "%C3"] {
            assert_eq!(decode(wrong), None, "{wrong:?}");
        }
        let (address, mut parameters) = Parameters::of("mysql://h/d?a=b+c%2B").expect("a good URL");
        assert_eq!((address, parameters.take("a").as_deref()), ("mysql://h/d", Some("b c+")));
    }

    #[test]
    fn durations_and_sizes_have_units() {
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Some(Duration::from_secs(120)));
        assert_eq!(parse_size("65536"), parse_size("64KiB"));
        assert_eq!(parse_size("1GiB"), Some(1 << 30));
        for wrong in ["", "10", "s", "-1s", "1.5s", "10 s", "10S", "1h", "18446744073709551615m"] {
            assert_eq!(parse_duration(wrong), None, "{wrong:?}");
        }
        for wrong in ["", "KiB", "1kb", "1MB", "-1", "1.5MiB", "18446744073709551615GiB"] {
            assert_eq!(parse_size(wrong), None, "{wrong:?}");
        }
    }
}
