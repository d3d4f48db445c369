//! A configuration from a URL, strictly: what is not understood is an error that names it.

use backplane_core::Result;
use backplane_core::parameters::{Parameters, host, invalid, percent_decode};
use backplane_tls::TlsFiles;
use url::Url;

use super::config::{RabbitAddress, RabbitConfig};

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
        let (address, parameters) = Parameters::of(text)?;
        let (scheme, hosts, one) = split_hosts(address)?;
        let scheme = &*scheme.to_ascii_lowercase();
        // The parser's own error never repeats the text, which may hold a password.
        let url = Url::parse(&one).map_err(|error| invalid("the URL cannot be read").with_source(error))?;
        let tls = match scheme {
            "amqp" => false,
            "amqps" => true,
            _ => {
                // Not repeated: what stands there may be a user.
                return Err(invalid("RabbitMQ takes the schemes amqp and amqps"));
            }
        };
        let addresses =
            hosts.into_iter().map(|host| read_address(scheme, host, tls)).collect::<Result<Vec<_>>>()?;
        let mut config = Self { addresses, ..Self::default() };
        if !url.username().is_empty() {
            config.username = decoded("user", url.username())?;
        }
        match (url.username().is_empty(), url.password()) {
            (false, Some(password)) => config.password = decoded("password", password)?,
            (false, None) => return Err(invalid("a user needs a password")),
            (true, Some(_)) => return Err(invalid("a password needs a user")),
            (true, None) => {}
        }
        let path = url.path().strip_prefix('/').unwrap_or(url.path());
        if path.contains('/') {
            return Err(invalid("the path is the virtual host; write a `/` in its name as %2F"));
        }
        if !path.is_empty() {
            config.vhost = decoded("virtual host", path)?;
        }
        read_parameters(parameters, scheme, &mut config)?;
        config.validate()?;
        Ok(config)
    }
}

/// The scheme, the hosts, and the same URL with the first host only: several are no part of what URLs can say.
fn split_hosts(text: &str) -> Result<(&str, Vec<&str>, String)> {
    let (scheme, rest) = text.split_once("://").ok_or_else(|| invalid("the URL names no host"))?;
    let end = rest.find('/').unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let (credentials, hosts) = match authority.rfind('@') {
        Some(at) => authority.split_at(at + 1),
        None => ("", authority),
    };
    if credentials.matches('@').count() > 1 {
        return Err(invalid("user and password stand once, before all hosts; an `@` in them is written %40"));
    }
    let hosts: Vec<&str> = hosts.split(',').collect();
    let one = format!("{scheme}://{credentials}{}{tail}", hosts[0]);
    Ok((scheme, hosts, one))
}

fn read_address(scheme: &str, text: &str, tls: bool) -> Result<RabbitAddress> {
    let wrong = || invalid("an address cannot be read; write HOST or HOST:PORT, separated by commas");
    let url = Url::parse(&format!("{scheme}://{text}")).map_err(|error| wrong().with_source(error))?;
    let host = host(url.host_str().filter(|host| !host.is_empty()).ok_or_else(wrong)?)?;
    Ok(RabbitAddress { host, port: url.port().unwrap_or(if tls { 5671 } else { 5672 }) })
}

fn decoded(what: &str, text: &str) -> Result<String> {
    percent_decode(text).ok_or_else(|| invalid(format!("the {what} is not percent-encoded UTF-8")))
}

fn read_parameters(mut parameters: Parameters<'_>, scheme: &str, config: &mut RabbitConfig) -> Result<()> {
    if let Some(exchange) = parameters.take("exchange") {
        config.exchange = exchange;
    }
    parameters.flag("create", &mut config.create)?;
    let mut buckets = config.buckets.unwrap_or_default();
    parameters.number("buckets", &mut buckets)?;
    config.buckets = (buckets > 0).then_some(buckets);
    parameters.number("prefetch", &mut config.prefetch)?;
    parameters.size("max_queue_bytes", &mut config.max_queue_bytes)?;
    parameters.duration("message_ttl", &mut config.message_ttl)?;
    parameters.duration("unbind_after", &mut config.unbind_after)?;
    parameters.size("max_frame", &mut config.max_frame)?;
    parameters.duration("command_timeout", &mut config.command_timeout)?;
    let files = TlsFiles::take(&mut parameters);
    parameters.finish(scheme)?;
    if scheme == "amqps" {
        config.tls = Some(files.open()?);
        return Ok(());
    }
    files.refuse("amqps://")
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
             &max_queue_bytes=100000&message_ttl=2s&unbind_after=0s&max_frame=1000&command_timeout=250ms",
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
            ("amqp://localhost?heartbeat=3", "`heartbeat`; it knows exchange, create"),
            ("amqp://localhost?prefetch=1&prefetch=2", "`prefetch` is given twice"),
            ("amqp://localhost?prefetch=0", "prefetch must be at least 1"),
            ("amqp://localhost?prefetch=70000", "`prefetch` must be a whole number"),
            ("amqp://localhost?create=yes", "`create` must be true or false"),
            ("amqp://localhost?buckets=1", "buckets must be from 2"),
            ("amqp://localhost?exchange=amq.direct", "`amq.`"),
            ("amqp://localhost?message_ttl=10ms", "message_ttl"),
            ("amqp://localhost?max_frame=0", "max_frame"),
            ("amqp://localhost?command_timeout=3600001ms", "command_timeout must be from 10 ms to 1 hour"),
            ("amqp://localhost/a/b", "%2F"),
            ("amqp://user@localhost", "needs a password"),
            ("amqp://:hush@localhost", "needs a user"),
            ("amqp://user:hush@one,user:hush@two", "once, before all hosts"),
            ("amqp://user:hush@one,amqp://user:hush@two", "%2F"),
            ("amqp://localhost?ca=/x.pem", "amqps://"),
            ("amqps://localhost?ca=/no/such/file.pem", "/no/such/file.pem"),
            ("amqp://localhost#x", "%23"),
            ("amqp://a,:5672", "an address"),
            ("amqp://@localhost", "empty"),
            ("amqp://:@localhost", "empty"),
            ("amqp://:@one,two", "empty"),
            ("amqp://user:@localhost", "needs a password"),
            ("amqp://my%2Dhost", "percent-encoded"),
            ("amqp://localhost,password=hush", "behind `?`"),
            ("amqp://localhost;password=hush/", "behind `?`"),
            ("http://localhost", "schemes amqp and amqps"),
            ("localhost", "names no host"),
        ] {
            let error = refused(url);
            assert!(error.contains(named) && !error.contains("hush"), "{url}: {error}");
        }
        assert!(!refused("amqp://user:hush@host:port").contains("hush"));
    }
}
