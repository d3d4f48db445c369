//! A configuration from a URL, strictly: what is not understood is an error that names it.

use std::collections::HashSet;
use std::time::Duration;

use backplane_core::{Error, ErrorKind, Result};
use redis::IntoConnectionInfo;
use url::Url;

use crate::config::{RedisConfig, Resp};
use crate::tls::{Tls, TlsIdentity, TlsRoots};

/// Every query parameter that [`RedisConfig::from_url`] knows.
const PARAMETERS: &[&str] = &[
    "resp",
    "protocol",
    "ca",
    "cert",
    "key",
    "cluster",
    "max_frame",
    "max_undelivered",
    "command_timeout_ms",
];

impl RedisConfig {
    /// Reads `redis://[user:password@]host[:port][/database][?parameters]`, or `rediss://` for TLS. The parameters are
    /// listed in the [crate documentation](crate#url). Files that it names are read at once.
    ///
    /// ```
    /// use backplane_redis::{RedisConfig, Resp};
    ///
    /// let config = RedisConfig::from_url("redis://app:secret@redis.internal:7000/2?resp=3")?;
    /// assert_eq!((config.host.as_str(), config.port, config.database), ("redis.internal", 7000, 2));
    /// assert_eq!(config.resp, Resp::V3);
    ///
    /// let error = RedisConfig::from_url("redis://localhost?retries=3").unwrap_err();
    /// assert!(error.to_string().contains("retries"));
    /// # Ok::<(), backplane_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) when something in the URL is unknown, given twice or cannot work;
    /// [`Unsupported`](ErrorKind::Unsupported) for Sentinel and Cluster URLs, with what to do instead.
    pub fn from_url(text: &str) -> Result<Self> {
        // The parser's own error never repeats the text, which may hold a password.
        let url = Url::parse(text).map_err(|error| invalid("the URL cannot be read").with_source(error))?;
        let tls = match url.scheme() {
            "redis" => false,
            "rediss" => true,
            scheme => return Err(foreign_scheme(scheme)),
        };
        if url.fragment().is_some() {
            return Err(invalid(
                "a fragment (#...) has no meaning here; certificates are always verified, `ca` names a private CA",
            ));
        }
        let mut config = base(&url)?;
        let mut files = TlsFiles::default();
        read_parameters(&url, &mut config, &mut files)?;
        if tls {
            config.tls = Some(files.open()?);
        } else if files != TlsFiles::default() {
            return Err(invalid("`ca`, `cert` and `key` need TLS: write rediss://"));
        }
        config.validate()?;
        Ok(config)
    }
}

/// Host, port, database and credentials, as the `redis` crate reads them.
fn base(url: &Url) -> Result<RedisConfig> {
    let mut bare = url.clone();
    bare.set_query(None);
    // TLS is ours, so the crate need not be built with it.
    bare.set_scheme("redis").map_err(|()| invalid("the URL has no authority"))?;
    let parsed =
        bare.into_connection_info().map_err(|error| invalid("the URL cannot be used").with_source(error))?;
    let redis::ConnectionAddr::Tcp(host, port) = parsed.addr().clone() else {
        return Err(invalid("the URL names no TCP address"));
    };
    let settings = parsed.redis_settings();
    let database =
        u32::try_from(settings.db()).map_err(|_| invalid("the database in the path must be 0 or above"))?;
    Ok(RedisConfig {
        host,
        port,
        username: settings.username().map(str::to_owned),
        password: settings.password().map(str::to_owned),
        database,
        ..RedisConfig::default()
    })
}

fn read_parameters(url: &Url, config: &mut RedisConfig, files: &mut TlsFiles) -> Result<()> {
    let mut seen = HashSet::new();
    for (name, value) in url.query_pairs() {
        // Both names mean the version of the protocol.
        let identity = if name == "protocol" { "resp".into() } else { name.clone() };
        if PARAMETERS.contains(&&*name) && !seen.insert(identity) {
            return Err(invalid(format!("the parameter `{name}` is given twice")));
        }
        match &*name {
            "resp" | "protocol" => {
                config.resp = match &*value {
                    "2" | "resp2" => Resp::V2,
                    "3" | "resp3" => Resp::V3,
                    _ => return Err(invalid(format!("`{name}` must be 2 or 3 (or resp2, resp3)"))),
                };
            }
            "cluster" => {
                config.cluster = match &*value {
                    "true" => true,
                    "false" => false,
                    _ => return Err(invalid("`cluster` must be true or false")),
                };
            }
            "max_frame" => config.max_frame = number(&name, &value)?,
            "max_undelivered" => config.max_undelivered = number(&name, &value)?,
            "command_timeout_ms" => {
                config.command_timeout = Some(Duration::from_millis(number(&name, &value)?));
            }
            "ca" => files.ca = Some(value.into_owned()),
            "cert" => files.cert = Some(value.into_owned()),
            "key" => files.key = Some(value.into_owned()),
            _ => {
                let known = PARAMETERS.join(", ");
                return Err(invalid(format!("unknown parameter `{name}`; known are {known}")));
            }
        }
    }
    Ok(())
}

/// The files of TLS that the URL names.
#[derive(Default, PartialEq)]
struct TlsFiles {
    ca: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

impl TlsFiles {
    fn open(self) -> Result<Tls> {
        let roots = match self.ca {
            Some(path) => TlsRoots::Pem(read("ca", &path)?),
            None => TlsRoots::System,
        };
        let identity = match (self.cert, self.key) {
            (Some(cert), Some(key)) => {
                Some(TlsIdentity { certificates_pem: read("cert", &cert)?, key_pem: read("key", &key)? })
            }
            (None, None) => None,
            _ => return Err(invalid("`cert` and `key` belong together")),
        };
        Tls::new(roots, identity)
    }
}

fn read(name: &str, path: &str) -> Result<Vec<u8>> {
    std::fs::read(path)
        .map_err(|error| invalid(format!("`{name}`: the file {path} cannot be read")).with_source(error))
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T> {
    value.parse().map_err(|_| invalid(format!("`{name}` must be a whole number")))
}

fn foreign_scheme(scheme: &str) -> Error {
    let sentence = match scheme {
        "redis+sentinel" | "rediss+sentinel" | "redis-sentinel" | "rediss-sentinel" => {
            "Redis Sentinel is not supported: give the address of the master (a DNS name or proxy that follows it \
             will do) as redis://; a replica is refused, so that after a failover the link is retried until the \
             address leads to the new master"
        }
        "redis+cluster" | "rediss+cluster" | "redis-cluster" | "rediss-cluster" => {
            "Redis Cluster is not supported as such: give one of its nodes as redis://HOST:PORT?cluster=true; a \
             cluster carries every PUBLISH to all of its nodes"
        }
        _ => {
            return invalid(format!("`{scheme}` is no scheme of the Redis bus; it takes redis and rediss"));
        }
    };
    Error::new(ErrorKind::Unsupported, "open").with_context(sentence)
}

fn invalid(context: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidConfig, "open").with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> (ErrorKind, String) {
        let error = RedisConfig::from_url(url).unwrap_err();
        (error.kind(), error.to_string())
    }

    #[test]
    fn every_part_of_a_url_is_read() {
        let config = RedisConfig::from_url(
            "redis://us%40er:p%3Aw@[::1]:7000/3?protocol=resp3&cluster=true&max_frame=1000&max_undelivered=70000\
             &command_timeout_ms=250",
        )
        .unwrap();
        assert_eq!((config.host.as_str(), config.port, config.database), ("::1", 7000, 3));
        assert_eq!((config.username.as_deref(), config.password.as_deref()), (Some("us@er"), Some("p:w")));
        assert_eq!((config.resp, config.cluster), (Resp::V3, true));
        assert_eq!((config.max_frame, config.max_undelivered), (1000, 70_000));
        assert_eq!(config.command_timeout, Some(Duration::from_millis(250)));
        assert_eq!(config.address(), "redis://[::1]:7000");

        let plain = RedisConfig::from_url("redis://localhost").unwrap();
        assert_eq!((plain.port, plain.database, plain.resp, plain.password), (6379, 0, Resp::V2, None));
        assert_eq!(RedisConfig::from_url("redis://:pw@localhost").unwrap().password.as_deref(), Some("pw"));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (url, named) in [
            ("redis://localhost?wire=native", "`wire`"),
            ("redis://localhost?wire=native", "command_timeout_ms"),
            ("redis://localhost?resp=4", "`resp`"),
            ("redis://localhost?resp=2&protocol=3", "`protocol` is given twice"),
            ("redis://localhost?cluster=yes", "`cluster`"),
            ("redis://localhost?max_frame=1k", "`max_frame`"),
            ("redis://localhost?max_frame=0", "max_frame"),
            ("redis://localhost?ca=ca.pem", "rediss://"),
            ("rediss://localhost?cert=cert.pem", "belong together"),
            ("rediss://localhost?ca=no-such-file.pem", "no-such-file.pem"),
            ("redis://localhost/one", "database"),
            ("redis://localhost/-1", "database"),
            ("rediss://localhost#insecure", "verified"),
            ("redis://user@localhost", "password"),
            ("http://localhost", "`http`"),
            ("redis://", "URL"),
            ("localhost", "URL"),
        ] {
            let (kind, text) = refused(url);
            assert_eq!(kind, ErrorKind::InvalidConfig, "{url}: {text}");
            assert!(text.contains(named), "{url}: {text}");
        }
    }

    #[test]
    fn sentinel_and_cluster_urls_say_what_to_do_instead() {
        for (url, instead) in [
            ("redis+sentinel://localhost/master", "master"),
            ("redis-sentinel://localhost/master", "master"),
            ("redis+cluster://localhost", "cluster=true"),
            ("redis-cluster://localhost", "cluster=true"),
        ] {
            let (kind, text) = refused(url);
            assert_eq!(kind, ErrorKind::Unsupported);
            assert!(text.contains(instead), "{text}");
        }
    }

    #[test]
    fn neither_errors_nor_debug_show_credentials() {
        for url in
            ["redis://user:s3cret@localhost?x=1", "redis://user:s3cret@:1:1", "redis+sentinel://u:s3cret@h"]
        {
            let error = RedisConfig::from_url(url).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
        }
        let config = RedisConfig::from_url("redis://someone:s3cret@localhost").unwrap();
        let shown = format!("{config:?}");
        assert!(!shown.contains("s3cret") && !shown.contains("someone"), "{shown}");
    }
}
