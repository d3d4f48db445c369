//! A configuration from a URL, strictly: what is not understood is an error that names it.

use backplane_core::parameters::{self, Parameters, invalid, percent_decode};
use backplane_core::{Error, ErrorKind, Result};
use backplane_tls::TlsFiles;
use redis::IntoConnectionInfo;
use url::Url;

use crate::config::{RedisConfig, Resp};

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
        let (address, mut parameters) = Parameters::of(text)?;
        // Before the port of one of them is called unreadable.
        if parameters::authority(address).1.contains(',') {
            let scheme = address.split_once("://").map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
            return Err(match scheme.as_str() {
                "redis" | "rediss" => invalid(
                    "the URL names several servers; one is needed, the master. Options belong behind `?`",
                ),
                scheme => foreign_scheme(scheme),
            });
        }
        // The parser's own error never repeats the text, which may hold a password.
        let url =
            Url::parse(address).map_err(|error| invalid("the URL cannot be read").with_source(error))?;
        let tls = match url.scheme() {
            "redis" => false,
            "rediss" => true,
            scheme => return Err(foreign_scheme(scheme)),
        };
        let mut config = base(&url)?;
        read_resp(&mut parameters, &mut config)?;
        parameters.flag("cluster", &mut config.cluster)?;
        parameters.size("max_frame", &mut config.max_frame)?;
        parameters.size("max_undelivered", &mut config.max_undelivered)?;
        parameters.duration("command_timeout", &mut config.command_timeout)?;
        let files = TlsFiles::take(&mut parameters);
        parameters.finish(url.scheme())?;
        if tls {
            config.tls = Some(files.open()?);
        } else {
            files.refuse("rediss://")?;
        }
        config.validate()?;
        Ok(config)
    }
}

/// Two names for the version of the protocol.
fn read_resp(parameters: &mut Parameters<'_>, config: &mut RedisConfig) -> Result<()> {
    let version = |text: &str| match text {
        "2" | "resp2" => Some(Resp::V2),
        "3" | "resp3" => Some(Resp::V3),
        _ => None,
    };
    let (mut resp, mut protocol) = (None, None);
    for (name, field) in [("resp", &mut resp), ("protocol", &mut protocol)] {
        parameters.parse(name, field, "2 or 3 (or resp2, resp3)", |text| version(text).map(Some))?;
    }
    config.resp = match (resp, protocol) {
        (Some(_), Some(_)) => return Err(invalid("`resp` and `protocol` mean the same: give one")),
        (one, other) => one.or(other).unwrap_or(config.resp),
    };
    Ok(())
}

/// Host, port, database and credentials, as the `redis` crate reads them.
fn base(url: &Url) -> Result<RedisConfig> {
    for part in [url.username(), url.password().unwrap_or_default()] {
        percent_decode(part).ok_or_else(|| invalid("user or password is not percent-encoded UTF-8"))?;
    }
    parameters::host(url.host_str().unwrap_or_default())?;
    let mut bare = url.clone();
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
            // Not repeated: what stands there may be a user.
            return invalid("the Redis bus takes the schemes redis and rediss");
        }
    };
    Error::new(ErrorKind::Unsupported, "open").with_context(sentence)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn refused(url: &str) -> (ErrorKind, String) {
        let error = RedisConfig::from_url(url).unwrap_err();
        (error.kind(), error.to_string())
    }

    #[test]
    fn every_part_of_a_url_is_read() {
        let config = RedisConfig::from_url(
            "redis://us%40er:p%3Aw@[::1]:7000/3?protocol=resp3&cluster=true&max_frame=1000&max_undelivered=70000\
             &command_timeout=250ms",
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
            ("redis://localhost?wire=native", "command_timeout"),
            ("redis://localhost?resp=4", "`resp`"),
            ("redis://localhost?resp=2&protocol=3", "`resp` and `protocol`"),
            ("redis://localhost?cluster=yes", "`cluster`"),
            ("redis://localhost?max_frame=1k", "`max_frame`"),
            ("redis://localhost?max_frame=0", "max_frame"),
            ("redis://u:p%zz@localhost", "percent-encoded"),
            ("redis://b\u{fc}cher.example", "xn--"),
            ("redis://localhost?ca=ca.pem", "rediss://"),
            ("rediss://localhost?cert=cert.pem", "belong together"),
            ("rediss://localhost?ca=no-such-file.pem", "no-such-file.pem"),
            ("redis://localhost/one", "database"),
            ("redis://localhost/-1", "database"),
            ("rediss://localhost#insecure", "verified"),
            ("redis://user@localhost", "password"),
            ("redis://user:@localhost", "password"),
            ("redis://:@localhost", "are empty"),
            ("redis://@localhost", "are empty"),
            ("redis://a,b", "several servers"),
            ("redis://a:1,b:2", "several servers"),
            ("redis://localhost;db=1", "behind `?`"),
            ("redis://localhost?command_timeout=9ms", "command_timeout must be from 10 ms to 1 hour"),
            ("redis://localhost?command_timeout=3600001ms", "command_timeout must be from 10 ms to 1 hour"),
            (
                "redis://localhost?command_timeout=18446744073709551615s",
                "command_timeout must be from 10 ms to 1 hour",
            ),
            ("http://localhost", "schemes redis and rediss"),
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
            ("redis-sentinel://one:26379,two:26379/master", "master"),
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
        for url in [
            "redis://user:s3cret@localhost?x=1",
            "redis://user:s3cret@:1:1",
            "redis+sentinel://u:s3cret@h",
            // As StackExchange.Redis writes it.
            "redis://redis.internal,password=s3cret",
            "redis://redis.internal:6379,password=s3cret,ssl=true",
            "redis://redis.internal;password=s3cret",
        ] {
            let error = RedisConfig::from_url(url).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
        }
        let config = RedisConfig::from_url("redis://someone:s3cret@localhost").unwrap();
        let shown = format!("{config:?}");
        assert!(!shown.contains("s3cret") && !shown.contains("someone"), "{shown}");
    }
}
