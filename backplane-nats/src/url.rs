//! A configuration from a URL, strictly: what is not understood is an error that names it.

use backplane_core::Result;
use backplane_core::parameters::{
    Parameters, check_credentials, check_path, host, invalid, percent_decode, read_file,
};
use backplane_tls::TlsFiles;
use url::{Host, Url};

use crate::config::{Credentials, Durable, NatsConfig, NatsServer, Storage};

impl NatsConfig {
    /// Reads `nats://[user:password@|token@]host[:port][,host[:port]...][?parameters]`, or `tls://` for TLS. The
    /// parameters are listed in the [crate documentation](crate#url). Files that it names are read at once; `creds`
    /// again at each connection.
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
    /// [`InvalidConfig`](backplane_core::ErrorKind::InvalidConfig) when something in the URL is unknown, given twice or
    /// cannot work.
    pub fn from_url(text: &str) -> Result<Self> {
        let (address, mut parameters) = Parameters::of(text)?;
        let (scheme, authority) =
            address.split_once("://").ok_or_else(|| invalid("the URL cannot be read"))?;
        let tls = match &*scheme.to_ascii_lowercase() {
            "nats" => false,
            "tls" => true,
            _ => return Err(invalid("the NATS bus takes the schemes nats and tls")),
        };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (servers, credentials) = read_authority(scheme, authority)?;
        let mut config = Self { servers, credentials, ..Self::default() };
        read_parameters(&mut parameters, &mut config)?;
        let files = TlsFiles::take(&mut parameters);
        parameters.finish(scheme)?;
        if tls {
            config.tls = Some(files.open()?);
        } else {
            files.refuse("tls://")?;
        }
        config.validate()?;
        Ok(config)
    }
}

/// Addresses, separated by commas. NATS' own tools repeat the scheme and the credentials in front of each.
fn read_authority(scheme: &str, text: &str) -> Result<(Vec<NatsServer>, Credentials)> {
    let mut servers = Vec::new();
    let mut credentials = None;
    for (index, address) in text.split(',').enumerate() {
        let address = match address.split_once("://") {
            Some((repeated, rest)) if repeated.eq_ignore_ascii_case(scheme) => rest,
            _ => address,
        };
        if address.contains('/') {
            return Err(invalid("a path has no meaning here; write `/` in a password as %2F"));
        }
        let (user, host) =
            address.rsplit_once('@').map_or((None, address), |(user, host)| (Some(user), host));
        if index == 0 {
            credentials = user;
        } else if user.is_some() && user != credentials {
            return Err(invalid(
                "user and password, or a token, stand in front of the first address and hold for all; \
                 write `,` in a password as %2C",
            ));
        }
        servers.push(server(host)?);
    }
    Ok((servers, credentials.map_or(Ok(Credentials::None), read_credentials)?))
}

fn server(text: &str) -> Result<NatsServer> {
    let unreadable = || invalid("an address cannot be read: write HOST or HOST:PORT, separated by commas");
    let url = Url::parse(&format!("nats://{text}")).map_err(|error| unreadable().with_source(error))?;
    let host = match url.host() {
        Some(Host::Domain(name)) if !name.is_empty() => host(name)?,
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Ipv6(address)) => address.to_string(),
        _ => return Err(unreadable()),
    };
    Ok(NatsServer { host, port: url.port().unwrap_or(NatsServer::DEFAULT_PORT) })
}

fn read_credentials(text: &str) -> Result<Credentials> {
    let decoded = |text: &str| {
        percent_decode(text).ok_or_else(|| invalid("user, password or token is not percent-encoded UTF-8"))
    };
    check_credentials(text)?;
    match text.split_once(':') {
        Some((user, password)) => {
            Ok(Credentials::User { user: decoded(user)?, password: decoded(password)? })
        }
        None => Ok(Credentials::Token(decoded(text)?)),
    }
}

fn read_parameters(parameters: &mut Parameters<'_>, config: &mut NatsConfig) -> Result<()> {
    if let Some(subject) = parameters.take("subject") {
        config.subject = subject;
    }
    if let Some(inbox) = parameters.take("inbox") {
        config.inbox = inbox;
    }
    if let Some(path) = parameters.take("creds") {
        check_path("creds", &path)?;
        set_credentials(config, Credentials::CredentialsFile(path.into()))?;
    }
    if let Some(path) = parameters.take("nkey") {
        let seed = read_text("nkey", &path)?;
        // As the tools write it: comments, then the seed.
        let seed = seed.lines().map(str::trim).find(|line| line.starts_with("SU")).unwrap_or(seed.trim());
        set_credentials(config, Credentials::NkeySeed(seed.to_owned()))?;
    }
    parameters.size("max_frame", &mut config.max_frame)?;
    parameters.size("max_undelivered", &mut config.max_undelivered)?;
    let spreads = parameters.has("propagation");
    parameters.duration("propagation", &mut config.propagation)?;
    config.durable = read_durable(parameters)?;
    if spreads && config.durable.is_some() {
        return Err(invalid(
            "`propagation` is for core NATS: a stream has every frame, whoever subscribes when",
        ));
    }
    Ok(())
}

/// JetStream, when `durable=true`.
fn read_durable(parameters: &mut Parameters<'_>) -> Result<Option<Durable>> {
    let (mut is_durable, mut durable) = (false, Durable::default());
    parameters.flag("durable", &mut is_durable)?;
    let needs_it = ["stream", "storage", "replicas", "max_age", "max_bytes", "create"];
    if let Some(name) = needs_it.into_iter().find(|name| !is_durable && parameters.has(name)) {
        return Err(invalid(format!("`{name}` needs `durable=true`")));
    }
    durable.stream = parameters.take("stream");
    parameters.parse("storage", &mut durable.storage, "memory or file", |text| match text {
        "memory" => Some(Storage::Memory),
        "file" => Some(Storage::File),
        _ => None,
    })?;
    parameters.number("replicas", &mut durable.replicas)?;
    parameters.duration("max_age", &mut durable.max_age)?;
    parameters.size("max_bytes", &mut durable.max_bytes)?;
    parameters.flag("create", &mut durable.create)?;
    Ok(is_durable.then_some(durable))
}

fn set_credentials(config: &mut NatsConfig, credentials: Credentials) -> Result<()> {
    if !matches!(config.credentials, Credentials::None) {
        return Err(invalid("give one of user and password, token, `creds` and `nkey`"));
    }
    config.credentials = credentials;
    Ok(())
}

fn read_text(name: &str, path: &str) -> Result<String> {
    let text = String::from_utf8(read_file(name, path)?);
    text.map_err(|_| invalid(format!("`{name}`: the file {path} is no text")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use backplane_core::ErrorKind;

    use super::*;

    fn refused(url: &str) -> (ErrorKind, String) {
        let error = NatsConfig::from_url(url).unwrap_err();
        (error.kind(), error.to_string())
    }

    #[test]
    fn every_part_of_a_url_is_read() {
        let config = NatsConfig::from_url(
            "nats://us%40er:p%3Aw@[::1]:7000,two:1,nats://three/?subject=app.eu&inbox=_IN&max_frame=1000\
             &max_undelivered=70000&durable=true&stream=S&storage=file&replicas=3&max_age=1m\
             &max_bytes=2097152&create=false",
        )
        .unwrap();
        let servers: Vec<_> = config.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["[::1]:7000", "two:1", "three:4222"]);
        let Credentials::User { user, password } = &config.credentials else { panic!("{config:?}") };
        assert_eq!((user.as_str(), password.as_str()), ("us@er", "p:w"));
        assert_eq!((config.subject.as_str(), config.inbox.as_str()), ("app.eu", "_IN"));
        assert_eq!((config.max_frame, config.max_undelivered), (Some(1_000), 70_000));
        let spread = NatsConfig::from_url("NATS://localhost?propagation=20ms").unwrap();
        assert_eq!(spread.propagation, Some(Duration::from_millis(20)));
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
    fn scheme_and_credentials_may_be_repeated_in_front_of_each_address() {
        for url in [
            "nats://me:s3cret@one:1,two:2,three:3",
            "nats://me:s3cret@one:1,me:s3cret@two:2,me:s3cret@three:3",
            "nats://me:s3cret@one:1,nats://me:s3cret@two:2,nats://three:3/",
            "NATS://me:s3cret@one:1,nats://me:s3cret@two:2,Nats://three:3/",
        ] {
            let config = NatsConfig::from_url(url).unwrap();
            let servers: Vec<_> = config.servers.iter().map(ToString::to_string).collect();
            assert_eq!(servers, ["one:1", "two:2", "three:3"], "{url}");
            let Credentials::User { user, password } = &config.credentials else { panic!("{config:?}") };
            assert_eq!((user.as_str(), password.as_str()), ("me", "s3cret"), "{url}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (url, named) in [
            ("nats://localhost?wire=native", "`wire`"),
            ("nats://localhost?wire=native", "propagation"),
            ("nats://localhost?durable=yes", "`durable`"),
            ("nats://localhost?durable=true&durable=true", "given twice"),
            ("nats://localhost?storage=file", "`durable=true`"),
            ("nats://localhost?durable=false&create=true", "`durable=true`"),
            ("nats://localhost?durable=true&storage=tape", "`storage`"),
            ("nats://localhost?durable=true&replicas=6", "replicas"),
            ("nats://localhost?durable=true&max_age=1ms", "max_age"),
            ("nats://localhost?durable=true&max_bytes=1", "max_bytes"),
            ("nats://localhost?durable=true&stream=a.b", "stream"),
            ("nats://localhost?subject=a.*", "subject"),
            ("nats://localhost?subject=", "subject"),
            ("nats://localhost?inbox=backplane.inbox", "within each other"),
            ("nats://localhost?max_frame=1k", "`max_frame`"),
            ("nats://localhost?max_frame=0", "max_frame"),
            ("nats://localhost?propagation=2001ms", "propagation"),
            ("nats://localhost?max_undelivered=1", "max_undelivered"),
            ("nats://localhost?ca=ca.pem", "tls://"),
            ("tls://localhost?cert=cert.pem", "belong together"),
            ("tls://localhost?ca=no-such-file.pem", "no-such-file.pem"),
            ("nats://localhost?creds=no-such-file.creds", "no-such-file.creds"),
            ("nats://user:password@localhost?nkey=Cargo.toml", "one of"),
            ("nats://localhost?nkey=Cargo.toml", "nkey seed"),
            ("nats://localhost?creds=Cargo.toml", "credentials file"),
            ("nats://localhost/path", "path"),
            ("nats://@localhost", "empty"),
            ("nats://:@localhost", "empty"),
            ("nats://::@localhost", "empty"),
            ("nats://user:@localhost", "empty"),
            ("nats://:password@localhost", "empty"),
            ("nats://one,password=x", "behind `?`"),
            ("nats://one;password=x", "behind `?`"),
            ("nats://my%2Dhost", "percent-encoded"),
            ("nats://localhost?durable=true&propagation=1s", "core NATS"),
            (
                "nats://localhost?nkey=SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY",
                "`nkey` names a file",
            ),
            (
                "nats://localhost?creds=SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY",
                "`creds` names a file",
            ),
            ("nats://one,user:password@two", "first address"),
            ("nats://user:password@one,user:other@two", "first address"),
            ("nats://user:pass,word@one", "address"),
            ("nats://user:1,2@one", "%2C"),
            ("nats://user:a/b@one", "%2F"),
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
            "nats://:s3cret@localhost",
            "nats://localhost,password=s3cret",
            "nats://localhost;password=s3cret",
            "nats://localhost&password=s3cret",
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
