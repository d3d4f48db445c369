//! A configuration from a URL, strictly: what is not understood is an error that names it.

use backplane_core::Result;
use percent_encoding::percent_decode_str;
use url::Url;

use super::config::{RabbitAddress, RabbitConfig};
use crate::parameters::{Parameters, invalid};

/// Every query parameter that [`RabbitConfig::from_url`] knows.
const PARAMETERS: &[&str] = &[
    "exchange",
    "create",
    "buckets",
    "prefetch",
    "max_queue_bytes",
    "message_ttl_ms",
    "unbind_after_ms",
    "max_frame",
    "command_timeout_ms",
    "ca",
    "cert",
    "key",
];

impl RabbitConfig {
    /// Reads `amqp://[user:password@]host[:port][,host[:port]...][/vhost][?parameters]`, or `amqps://` for TLS. The
    /// parameters are listed in the [module's documentation](crate::rabbitmq#url). Files that it names are read at once.
    ///
    /// ```
    /// use backplane_amqp::RabbitConfig;
    ///
    /// let config = RabbitConfig::from_url("amqp://app:secret@one,two:5673/team%2Fa?buckets=256")?;
    /// assert_eq!(config.addresses[1].to_string(), "two:5673");
    /// assert_eq!((config.vhost.as_str(), config.buckets), ("team/a", Some(256)));
    ///
    /// let error = RabbitConfig::from_url("amqp://localhost?heartbeat=3").unwrap_err();
    /// assert!(error.to_string().contains("heartbeat"));
    /// # Ok::<(), backplane_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidConfig`](backplane_core::ErrorKind::InvalidConfig) when something in the URL is unknown, given twice or
    /// cannot work.
    pub fn from_url(text: &str) -> Result<Self> {
        let (scheme, hosts, one) = split_hosts(text)?;
        // The parser's own error never repeats the text, which may hold a password.
        let url = Url::parse(&one).map_err(|error| invalid("the URL cannot be read").with_source(error))?;
        let tls = match scheme {
            "amqp" => false,
            "amqps" => true,
            _ => {
                return Err(invalid(format!("`{scheme}` is no scheme of RabbitMQ; it takes amqp and amqps")));
            }
        };
        if url.fragment().is_some() {
            return Err(invalid("a fragment (#...) has no meaning here"));
        }
        let addresses =
            hosts.into_iter().map(|host| address(scheme, host, tls)).collect::<Result<Vec<_>>>()?;
        let mut config = Self { addresses, ..Self::default() };
        if !url.username().is_empty() {
            config.username = decoded("user", url.username())?;
        }
        match (url.username().is_empty(), url.password()) {
            (_, Some(password)) => config.password = decoded("password", password)?,
            (false, None) => return Err(invalid("a user needs a password")),
            (true, None) => {}
        }
        let path = url.path().strip_prefix('/').unwrap_or(url.path());
        if path.contains('/') {
            return Err(invalid("the path is the virtual host; write a `/` in its name as %2F"));
        }
        if !path.is_empty() {
            config.vhost = decoded("virtual host", path)?;
        }
        read_parameters(&url, &mut config, tls)?;
        config.validate()?;
        Ok(config)
    }
}

/// The scheme, the hosts, and the same URL with the first host only: several are no part of what URLs can say.
fn split_hosts(text: &str) -> Result<(&str, Vec<&str>, String)> {
    let (scheme, rest) = text.split_once("://").ok_or_else(|| invalid("the URL names no host"))?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let (credentials, hosts) = match authority.rfind('@') {
        Some(at) => authority.split_at(at + 1),
        None => ("", authority),
    };
    let hosts: Vec<&str> = hosts.split(',').collect();
    let one = format!("{scheme}://{credentials}{}{tail}", hosts[0]);
    Ok((scheme, hosts, one))
}

fn address(scheme: &str, text: &str, tls: bool) -> Result<RabbitAddress> {
    let wrong = || invalid("an address cannot be read; write HOST or HOST:PORT, separated by commas");
    let url = Url::parse(&format!("{scheme}://{text}")).map_err(|error| wrong().with_source(error))?;
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(RabbitAddress { host, port: url.port().unwrap_or(if tls { 5671 } else { 5672 }) })
}

fn decoded(what: &str, text: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    Ok(decoded.map_err(|error| invalid(format!("the {what} is not UTF-8")).with_source(error))?.into_owned())
}

fn read_parameters(url: &Url, config: &mut RabbitConfig, tls: bool) -> Result<()> {
    let parameters = Parameters::read(url, PARAMETERS)?;
    if let Some(exchange) = parameters.text("exchange") {
        exchange.clone_into(&mut config.exchange);
    }
    config.create = parameters.boolean("create")?.unwrap_or(config.create);
    if let Some(buckets) = parameters.text("buckets") {
        config.buckets = match buckets {
            "0" => None,
            _ => parameters.number("buckets")?,
        };
    }
    config.prefetch = parameters.number("prefetch")?.unwrap_or(config.prefetch);
    config.max_queue_bytes = parameters.number("max_queue_bytes")?.unwrap_or(config.max_queue_bytes);
    config.message_ttl = parameters.milliseconds("message_ttl_ms")?.unwrap_or(config.message_ttl);
    config.unbind_after = parameters.milliseconds("unbind_after_ms")?.unwrap_or(config.unbind_after);
    config.max_frame = parameters.number("max_frame")?.unwrap_or(config.max_frame);
    config.command_timeout = parameters.milliseconds("command_timeout_ms")?;
    if tls {
        config.tls = Some(parameters.tls()?);
    } else {
        parameters.no_tls("amqps://")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use backplane_core::ErrorKind;

    use super::*;

    fn read(url: &str) -> RabbitConfig {
        RabbitConfig::from_url(url).unwrap()
    }

    fn refused(url: &str) -> String {
        let error = RabbitConfig::from_url(url).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        error.to_string()
    }

    #[test]
    fn every_part_of_a_url_is_read() {
        let config = read(
            "amqp://us%40er:p%2Fw@[::1]:7000,rabbit-2,10.0.0.3:9/a%2Fb?exchange=chat&create=false&buckets=512&prefetch=7\
             &max_queue_bytes=100000&message_ttl_ms=2000&unbind_after_ms=0&max_frame=1000&command_timeout_ms=250",
        );
        let addresses: Vec<_> = config.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["[::1]:7000", "rabbit-2:5672", "10.0.0.3:9"]);
        assert_eq!((config.username.as_str(), config.password.as_str()), ("us@er", "p/w"));
        assert_eq!((config.vhost.as_str(), config.exchange.as_str(), config.create), ("a/b", "chat", false));
        assert_eq!((config.buckets, config.prefetch, config.max_queue_bytes), (Some(512), 7, 100_000));
        assert_eq!((config.message_ttl, config.unbind_after), (Duration::from_secs(2), Duration::ZERO));
        assert_eq!((config.max_frame, config.command_timeout), (1_000, Some(Duration::from_millis(250))));
        let debug = format!("{config:?}");
        assert!(!debug.contains("us@er") && !debug.contains("p/w"), "{debug}");
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        for url in
            ["amqp://localhost", "amqp://localhost/", "amqp://localhost/%2f", "amqp://localhost?buckets=0"]
        {
            let config = read(url);
            assert_eq!(
                (config.vhost.as_str(), config.username.as_str(), config.buckets),
                ("/", "guest", None),
                "{url}"
            );
            assert_eq!(config.addresses[0].port, 5672);
        }
        assert_eq!(read("amqps://one,two:9").addresses[0].port, 5671);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (url, named) in [
            ("amqp://localhost?heartbeat=3", "`heartbeat`; known are exchange, create"),
            ("amqp://localhost?prefetch=1&prefetch=2", "`prefetch` is given twice"),
            ("amqp://localhost?prefetch=0", "prefetch must be at least 1"),
            ("amqp://localhost?prefetch=70000", "`prefetch` must be a whole number"),
            ("amqp://localhost?create=yes", "`create` must be true or false"),
            ("amqp://localhost?buckets=1", "buckets must be from 2"),
            ("amqp://localhost?exchange=amq.direct", "`amq.`"),
            ("amqp://localhost?message_ttl_ms=10", "message_ttl"),
            ("amqp://localhost?max_frame=0", "max_frame"),
            ("amqp://localhost/a/b", "%2F"),
            ("amqp://user@localhost", "needs a password"),
            ("amqp://localhost?ca=/x.pem", "amqps://"),
            ("amqps://localhost?ca=/no/such/file.pem", "/no/such/file.pem"),
            ("amqp://localhost#x", "fragment"),
            ("amqp://a,:5672", "an address"),
            ("http://localhost", "`http`"),
            ("localhost", "names no host"),
        ] {
            let error = refused(url);
            assert!(error.contains(named), "{url}: {error}");
        }
        assert!(!refused("amqp://user:hush@host:port").contains("hush"));
    }
}
