//! A configuration from a URL, strictly: what is not understood is an error that names it.

use std::collections::HashSet;
use std::time::Duration;

use backplane_core::{Error, ErrorKind, Result};
use percent_encoding::percent_decode_str;
use url::{Host, Url};

use crate::config::{Credentials, Durable, NatsConfig, NatsServer, Storage};
use crate::tls::{Tls, TlsIdentity, TlsRoots};

/// Every query parameter that [`NatsConfig::from_url`] knows.
const PARAMETERS: &[&str] = &[
    "subject",
    "inbox",
    "creds",
    "nkey",
    "ca",
    "cert",
    "key",
    "max_frame",
    "max_undelivered",
    "propagation_ms",
    "durable",
    "stream",
    "storage",
    "replicas",
    "max_age_ms",
    "max_bytes",
    "create",
];

impl NatsConfig {
    /// Reads `nats://[user:password@|token@]host[:port][,host[:port]...][?parameters]`, or `tls://` for TLS. The
    /// parameters are listed in the [crate documentation](crate#url). Files that it names are read at once.
    ///
    /// ```
    /// use backplane_nats::NatsConfig;
    ///
    /// let config = NatsConfig::from_url("nats://app:secret@one.internal,two.internal:4333?durable=true&storage=file")?;
    /// assert_eq!(config.servers.len(), 2);
    /// assert!(config.durable.is_some());
    ///
    /// let error = NatsConfig::from_url("nats://localhost?retries=3").unwrap_err();
    /// assert!(error.to_string().contains("retries"));
    /// # Ok::<(), backplane_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) when something in the URL is unknown, given twice or cannot work.
    pub fn from_url(text: &str) -> Result<Self> {
        let (scheme, rest) = text.split_once("://").ok_or_else(|| invalid("the URL cannot be read"))?;
        let tls = match scheme {
            "nats" => false,
            "tls" => true,
            _ => return Err(invalid("the NATS bus takes the schemes nats and tls")),
        };
        if rest.contains('#') {
            return Err(invalid(
                "a fragment (#...) has no meaning here; certificates are always verified, `ca` names a private CA",
            ));
        }
        let (authority, query) = rest.split_once('?').unwrap_or((rest, ""));
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        if authority.contains('/') && !authority.contains("://") {
            return Err(invalid("a path has no meaning here; write `/` in a password as %2F"));
        }
        let (credentials, hosts) =
            authority.rsplit_once('@').map_or((None, authority), |(user, hosts)| (Some(user), hosts));
        let mut config = Self {
            servers: hosts.split(',').map(|host| server(scheme, host)).collect::<Result<_>>()?,
            credentials: credentials.map_or(Ok(Credentials::None), read_credentials)?,
            ..Self::default()
        };
        let mut files = TlsFiles::default();
        read_parameters(query, &mut config, &mut files)?;
        if tls {
            config.tls = Some(files.open()?);
        } else if files != TlsFiles::default() {
            return Err(invalid("`ca`, `cert` and `key` need TLS: write tls://"));
        }
        config.validate()?;
        Ok(config)
    }
}

/// One address. NATS' own tools repeat the scheme in front of each.
fn server(scheme: &str, text: &str) -> Result<NatsServer> {
    let unreadable = || invalid("an address cannot be read: write HOST or HOST:PORT, separated by commas");
    let text = text.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://")).unwrap_or(text);
    if text.contains(['/', '@']) {
        return Err(unreadable());
    }
    let url = Url::parse(&format!("nats://{text}")).map_err(|error| unreadable().with_source(error))?;
    let host = match url.host() {
        Some(Host::Domain(name)) if !name.is_empty() => name.to_owned(),
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Ipv6(address)) => address.to_string(),
        _ => return Err(unreadable()),
    };
    Ok(NatsServer { host, port: url.port().unwrap_or(NatsServer::DEFAULT_PORT) })
}

fn read_credentials(text: &str) -> Result<Credentials> {
    let decoded = |text: &str| {
        let text = percent_decode_str(text).decode_utf8();
        text.map(Into::into).map_err(|_| invalid("user, password or token is not percent-encoded UTF-8"))
    };
    match text.split_once(':') {
        Some((user, password)) => {
            Ok(Credentials::User { user: decoded(user)?, password: decoded(password)? })
        }
        None => Ok(Credentials::Token(decoded(text)?)),
    }
}

fn read_parameters(query: &str, config: &mut NatsConfig, files: &mut TlsFiles) -> Result<()> {
    let mut seen = HashSet::new();
    let mut durable = Durable::default();
    let (mut is_durable, mut needs_durable) = (false, None);
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        if PARAMETERS.contains(&&*name) && !seen.insert(name.clone()) {
            return Err(invalid(format!("the parameter `{name}` is given twice")));
        }
        match &*name {
            "subject" => config.subject = value.into_owned(),
            "inbox" => config.inbox = value.into_owned(),
            "creds" => set_credentials(config, Credentials::CredentialsFile(read_text(&name, &value)?))?,
            "nkey" => {
                let seed = read_text(&name, &value)?;
                // As the tools write it: comments, then the seed.
                let seed =
                    seed.lines().map(str::trim).find(|line| line.starts_with("SU")).unwrap_or(seed.trim());
                set_credentials(config, Credentials::NkeySeed(seed.to_owned()))?;
            }
            "ca" => files.ca = Some(value.into_owned()),
            "cert" => files.cert = Some(value.into_owned()),
            "key" => files.key = Some(value.into_owned()),
            "max_frame" => config.max_frame = Some(number(&name, &value)?),
            "max_undelivered" => config.max_undelivered = number(&name, &value)?,
            "propagation_ms" => config.propagation = Some(Duration::from_millis(number(&name, &value)?)),
            "durable" => is_durable = switch(&name, &value)?,
            "stream" | "storage" | "replicas" | "max_age_ms" | "max_bytes" | "create" => {
                needs_durable = Some(name.clone().into_owned());
                read_durable(&name, &value, &mut durable)?;
            }
            _ => {
                let known = PARAMETERS.join(", ");
                return Err(invalid(format!(
                    "unknown parameter `{}`; known are {known}",
                    name.escape_debug()
                )));
            }
        }
    }
    if is_durable {
        config.durable = Some(durable);
    } else if let Some(name) = needs_durable {
        return Err(invalid(format!("`{name}` needs `durable=true`")));
    }
    Ok(())
}

fn read_durable(name: &str, value: &str, durable: &mut Durable) -> Result<()> {
    match name {
        "stream" => durable.stream = Some(value.to_owned()),
        "storage" => {
            durable.storage = match value {
                "memory" => Storage::Memory,
                "file" => Storage::File,
                _ => return Err(invalid("`storage` must be memory or file")),
            };
        }
        "replicas" => durable.replicas = number(name, value)?,
        "max_age_ms" => durable.max_age = Duration::from_millis(number(name, value)?),
        "max_bytes" => durable.max_bytes = number(name, value)?,
        _ => durable.create = switch(name, value)?,
    }
    Ok(())
}

fn set_credentials(config: &mut NatsConfig, credentials: Credentials) -> Result<()> {
    if !matches!(config.credentials, Credentials::None) {
        return Err(invalid("give one of user and password, token, `creds` and `nkey`"));
    }
    config.credentials = credentials;
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

fn read_text(name: &str, path: &str) -> Result<String> {
    String::from_utf8(read(name, path)?).map_err(|_| invalid(format!("`{name}`: the file {path} is no text")))
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T> {
    value.parse().map_err(|_| invalid(format!("`{name}` must be a whole number")))
}

fn switch(name: &str, value: &str) -> Result<bool> {
    value.parse().map_err(|_| invalid(format!("`{name}` must be true or false")))
}

fn invalid(context: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidConfig, "open").with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> (ErrorKind, String) {
        let error = NatsConfig::from_url(url).unwrap_err();
        (error.kind(), error.to_string())
    }

    #[test]
    fn every_part_of_a_url_is_read() {
        let config = NatsConfig::from_url(
            "nats://us%40er:p%3Aw@[::1]:7000,two:1,nats://three/?subject=app.eu&inbox=_IN&max_frame=1000\
             &max_undelivered=70000&propagation_ms=20&durable=true&stream=S&storage=file&replicas=3&max_age_ms=60000\
             &max_bytes=2097152&create=false",
        )
        .unwrap();
        let servers: Vec<_> = config.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["[::1]:7000", "two:1", "three:4222"]);
        let Credentials::User { user, password } = &config.credentials else { panic!("{config:?}") };
        assert_eq!((user.as_str(), password.as_str()), ("us@er", "p:w"));
        assert_eq!((config.subject.as_str(), config.inbox.as_str()), ("app.eu", "_IN"));
        assert_eq!((config.max_frame, config.max_undelivered), (Some(1_000), 70_000));
        assert_eq!(config.propagation, Some(Duration::from_millis(20)));
        let durable = Durable {
            stream: Some("S".to_owned()),
            storage: Storage::File,
            replicas: 3,
            max_age: Duration::from_secs(60),
            max_bytes: 2 << 20,
            create: false,
        };
        assert_eq!(config.durable, Some(durable));

        let plain = NatsConfig::from_url("nats://localhost").unwrap();
        assert_eq!(plain.servers[0].port, 4222);
        assert!(plain.durable.is_none() && matches!(plain.credentials, Credentials::None));
        let token = NatsConfig::from_url("nats://t0ken@localhost").unwrap();
        assert!(matches!(token.credentials, Credentials::Token(token) if token == "t0ken"));
        assert_eq!(Durable::default().stream_name("app.eu"), "app-eu");
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (url, named) in [
            ("nats://localhost?wire=native", "`wire`"),
            ("nats://localhost?wire=native", "propagation_ms"),
            ("nats://localhost?durable=yes", "`durable`"),
            ("nats://localhost?durable=true&durable=true", "given twice"),
            ("nats://localhost?storage=file", "`durable=true`"),
            ("nats://localhost?durable=true&storage=tape", "`storage`"),
            ("nats://localhost?durable=true&replicas=6", "replicas"),
            ("nats://localhost?durable=true&max_age_ms=1", "max_age"),
            ("nats://localhost?durable=true&max_bytes=1", "max_bytes"),
            ("nats://localhost?durable=true&stream=a.b", "stream"),
            ("nats://localhost?subject=a.*", "subject"),
            ("nats://localhost?subject=", "subject"),
            ("nats://localhost?inbox=backplane.inbox", "within each other"),
            ("nats://localhost?max_frame=1k", "`max_frame`"),
            ("nats://localhost?max_frame=0", "max_frame"),
            ("nats://localhost?max_undelivered=1", "max_undelivered"),
            ("nats://localhost?ca=ca.pem", "tls://"),
            ("tls://localhost?cert=cert.pem", "belong together"),
            ("tls://localhost?ca=no-such-file.pem", "no-such-file.pem"),
            ("nats://localhost?creds=no-such-file.creds", "no-such-file.creds"),
            ("nats://user:password@localhost?nkey=Cargo.toml", "one of"),
            ("nats://localhost?nkey=Cargo.toml", "nkey seed"),
            ("nats://localhost?creds=Cargo.toml", "credentials file"),
            ("nats://localhost/path", "path"),
            ("nats://localhost:4222:1", "address"),
            ("nats://one,,two", "address"),
            ("nats://one:0", "port"),
            ("nats://", "address"),
            ("tls://localhost#insecure", "verified"),
            ("http://localhost", "schemes"),
            ("localhost", "URL"),
        ] {
            let (kind, text) = refused(url);
            assert_eq!(kind, ErrorKind::InvalidConfig, "{url}: {text}");
            assert!(text.contains(named), "{url}: {text}");
        }
    }

    #[test]
    fn neither_errors_nor_debug_show_credentials() {
        for url in [
            "nats://user:s3cret@localhost?x=1",
            "nats://user:s3cret@:1:1",
            "nats://s3cret@@localhost:x",
            "x://u:s3cret@h",
        ] {
            let error = NatsConfig::from_url(url).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
        }
        for url in ["nats://someone:s3cret@localhost", "nats://s3cret@localhost"] {
            let shown = format!("{:?}", NatsConfig::from_url(url).unwrap());
            assert!(!shown.contains("s3cret") && !shown.contains("someone"), "{shown}");
        }
    }
}
