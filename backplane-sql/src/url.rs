//! What a URL says: which dialect, the options of the log, and what is left for the dialect.
//!
//! Each dialect module has `pub(crate) fn open(url: &str, rest: &mut Parameters<'_>, config: &LogConfig) ->
//! Result<Arc<dyn Database>>`. `url` is what stands before the `?`, scheme included and not decoded (for SQL Server it may
//! be an ADO connection string as it was given); `rest` holds the parameters that are not options of the log; `config` is
//! complete and checked. It takes from `rest` what it knows (by then [`Parameters`] has noted its names for the error that
//! lists them), connects nothing, and its errors hold neither user nor password.

use std::sync::Arc;

use backplane_core::Result;
use backplane_core::parameters::{Parameters, invalid};

use crate::config::{Durability, LogConfig, LogOrder};
use crate::store::Database;

/// The database that `url` names, and the options of the log: `config`, changed by what the URL says.
pub(crate) fn open(url: &str, mut config: LogConfig) -> Result<(Arc<dyn Database>, LogConfig)> {
    let (dialect, address, mut parameters) = match scheme_of(url) {
        Some(scheme) => {
            let dialect = Dialect::of(&scheme)?;
            let (address, parameters) = Parameters::of(url)?;
            if dialect != Dialect::Sqlite {
                check_database(address)?;
            }
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
    parameters.finish(dialect.name())?;
    Ok((database, config))
}

/// Refuses options where the name of a database stands (`/chat;password=...`), which errors and logs show.
fn check_database(address: &str) -> Result<()> {
    let (_, rest) = address.split_once("://").unwrap_or((address, ""));
    match rest.split_once('/') {
        Some((_, database)) if database.contains([';', ',']) => Err(invalid(
            "the name of the database ends at `;` or `,`: options stand behind a `?`, and in a name these are %3B and %2C",
        )),
        _ => Ok(()),
    }
}

/// The options of the log, each under its field's name.
fn log_options(parameters: &mut Parameters<'_>, config: &mut LogConfig) -> Result<()> {
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

    fn open(self, url: &str, rest: &mut Parameters<'_>, config: &LogConfig) -> Result<Arc<dyn Database>> {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use backplane_core::ErrorKind;

    use super::*;

    fn options(url: &str) -> Result<LogConfig> {
        let (_, mut parameters) = Parameters::of(url)?;
        let mut config = LogConfig::default();
        log_options(&mut parameters, &mut config)?;
        config.validate()?;
        parameters.finish("postgres")?;
        Ok(config)
    }

    fn refusal(url: &str) -> String {
        let error = options(url).expect_err(url);
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        error.to_string()
    }

    #[test]
    fn options_in_the_place_of_a_database_are_refused_and_not_shown() {
        for url in [
            "postgres://h/d;password=s3cret",
            "mysql://u:p@h/d;password=s3cret?retention=2m",
            "mssql://u:p@h/d,password=s3cret",
        ] {
            let error = open(url, LogConfig::default()).expect_err(url);
            let shown = format!("{error} {error:?}");
            assert!(error.kind() == ErrorKind::InvalidConfig && !shown.contains("s3cret"), "{shown}");
            assert!(shown.contains("behind a `?`"), "{shown}");
        }
        for url in ["postgres://u:p@h/d%3Bpassword%2C", "mysql://u:p@h/", "postgres://h", "sqlite:/a;b,c"] {
            assert!(check_database(url).is_ok(), "{url}");
        }
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
        assert!(refusal("postgres://h?table=a&table=b").contains("`table` is given twice"));
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
}
