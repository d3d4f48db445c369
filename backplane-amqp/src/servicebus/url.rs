//! A configuration from a URL or from Azure's connection string, strictly.

use backplane_core::Result;
use backplane_core::parameters::{Parameters, authority, host, invalid, percent_decode};
use backplane_tls::TlsFiles;
use url::Url;

use super::config::{Credentials, Entities, ManagementAddress, ServiceBusConfig};
use super::filters::Filters;

/// Every key of a connection string that is known here.
const KEYS: &[&str] =
    &["Endpoint", "SharedAccessKeyName", "SharedAccessKey", "EntityPath", "UseDevelopmentEmulator"];

/// Where the emulator's management interface listens.
const EMULATOR_MANAGEMENT_PORT: u16 = 5300;

impl ServiceBusConfig {
    /// Reads `servicebus://[key name:key@]host[:port][/topic][?parameters]`, or the connection string that Azure shows:
    /// `Endpoint=sb://...;SharedAccessKeyName=...;SharedAccessKey=...[;EntityPath=...][;UseDevelopmentEmulator=true]`.
    /// The parameters are listed in the [module documentation](crate::servicebus#url). In a URL, `/`, `+` and `=` of a
    /// key are written `%2F`, `%2B` and `%3D`. Files that it names are read at once.
    ///
    /// ```
    /// use backplane_amqp::ServiceBusConfig;
    ///
    /// let config = ServiceBusConfig::from_url("servicebus://app:secret@chat.servicebus.windows.net/live?prefetch=500")?;
    /// assert_eq!((config.topic.as_str(), config.prefetch), ("live", 500));
    ///
    /// let same = ServiceBusConfig::from_url(
    ///     "Endpoint=sb://chat.servicebus.windows.net/;SharedAccessKeyName=app;SharedAccessKey=c2VjcmV0;EntityPath=live",
    /// )?;
    /// assert_eq!((same.host, same.topic), (config.host, config.topic));
    ///
    /// let error = ServiceBusConfig::from_url("servicebus://a:b@localhost?retries=3").unwrap_err();
    /// assert!(error.to_string().contains("retries"));
    /// # Ok::<(), backplane_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidConfig`](backplane_core::ErrorKind::InvalidConfig) when something in it is unknown, given twice or
    /// cannot work.
    pub fn from_url(text: &str) -> Result<Self> {
        let config = match text.split_once("://") {
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("servicebus") => from_url(text)?,
            _ if text.contains('=') => from_connection_string(text)?,
            _ => {
                return Err(invalid(
                    "write servicebus://... or a connection string that begins with Endpoint=sb://...",
                ));
            }
        };
        config.validate()?;
        Ok(config)
    }
}

fn decoded(text: &str) -> Result<String> {
    percent_decode(text).ok_or_else(|| invalid("credentials or topic are not percent-encoded UTF-8"))
}

fn from_url(text: &str) -> Result<ServiceBusConfig> {
    let (address, mut parameters) = Parameters::of(text)?;
    // Before the port of one of them is called unreadable.
    if authority(address).1.contains(',') {
        return Err(invalid("the URL names several servers; one is needed. Options belong behind `?`"));
    }
    // The parser's own error never repeats the text, which may hold a key.
    let url = Url::parse(address).map_err(|error| invalid("the URL cannot be read").with_source(error))?;
    let mut config =
        ServiceBusConfig { host: host_of(&url)?, port: url.port(), ..ServiceBusConfig::default() };
    let topic = url.path().trim_matches('/');
    if !topic.is_empty() {
        config.topic = decoded(topic)?;
    }
    config.credentials = credentials(&url, &mut parameters)?;
    let mut tls = true;
    parameters.flag("tls", &mut tls)?;
    config.plain = !tls;
    let files = TlsFiles::take(&mut parameters);
    entities(&mut parameters, &mut config)?;
    if parameters.has("ttl") && config.entities != Entities::Created {
        return Err(invalid(
            "`ttl` is set on entities that this bus makes: leave it away where it makes none",
        ));
    }
    if parameters.has("token_lifetime") && !matches!(config.credentials, Credentials::Key { .. }) {
        return Err(invalid("`token_lifetime` is for tokens, which only a shared access key makes"));
    }
    parameters.parse(
        "filters",
        &mut config.filters,
        "none, topics, or a number of buckets up to 1,000",
        |text| match text {
            "none" => Some(Filters::None),
            "topics" => Some(Filters::Topics),
            buckets => buckets.parse().ok().map(Filters::Buckets),
        },
    )?;
    parameters.duration("ttl", &mut config.ttl)?;
    parameters.duration("token_lifetime", &mut config.token_lifetime)?;
    parameters.number("prefetch", &mut config.prefetch)?;
    parameters.size("pack", &mut config.pack)?;
    parameters.size("max_frame", &mut config.max_frame)?;
    parameters.size("max_undelivered", &mut config.max_undelivered)?;
    parameters.duration("publish_timeout", &mut config.publish_timeout)?;
    parameters.finish("servicebus")?;
    // Entities are made over HTTPS, unless something else is said.
    let makes_over_tls = config.entities == Entities::Created
        && config.management.as_ref().is_none_or(|management| management.tls);
    let any_tls = !config.plain || makes_over_tls;
    if !any_tls {
        files.refuse("tls=true")?;
    } else if files.given() {
        config.tls = Some(files.open()?);
    }
    Ok(config)
}

fn host_of(url: &Url) -> Result<String> {
    host(url.host_str().unwrap_or_default())
}

fn credentials(url: &Url, parameters: &mut Parameters<'_>) -> Result<Credentials> {
    let (sas_name, sas_key) = (parameters.take("sas_name"), parameters.take("sas_key"));
    let given = match (url.username(), url.password(), sas_name, sas_key) {
        ("", None, None, None) => None,
        ("", None, Some(name), Some(key)) => Some((name, key)),
        (name, Some(key), None, None) if !name.is_empty() => Some((decoded(name)?, decoded(key)?)),
        _ => {
            return Err(invalid(
                "a key needs its name: write name:key@ in front of the host, or `sas_name` and `sas_key`",
            ));
        }
    };
    match (parameters.take("auth").as_deref(), given) {
        (None | Some("cbs"), Some((name, key))) => Ok(Credentials::Key { name, key }),
        (Some("sasl"), Some((user, password))) => Ok(Credentials::Plain { user, password }),
        (None | Some("anonymous"), None) => Ok(Credentials::Anonymous),
        (Some("anonymous"), Some(_)) => Err(invalid("`auth=anonymous` sends no credentials; leave them out")),
        (Some("cbs" | "sasl"), None) => {
            Err(invalid("`auth` needs credentials: write name:key@ in front of the host"))
        }
        (Some(_), _) => Err(invalid("`auth` is cbs, sasl or anonymous")),
    }
}

fn entities(parameters: &mut Parameters<'_>, config: &mut ServiceBusConfig) -> Result<()> {
    let mut create = None;
    parameters.parse("create", &mut create, "true or false", |text| text.parse().ok().map(Some))?;
    let subscription = parameters.take("subscription");
    let addresses = [parameters.take("publish_to"), parameters.take("receive_from")];
    let management_at = parameters.take("management");
    let none = management_at.as_deref() == Some("none");
    if !none && addresses.iter().any(Option::is_some) {
        return Err(invalid(
            "`publish_to` and `receive_from` are for brokers without entities: `management=none`",
        ));
    }
    config.entities = match (none, create, subscription) {
        (true, None | Some(false), None) => {
            let default = format!("/topic/{}", config.topic);
            let [publish_to, receive_from] =
                addresses.map(|address| address.unwrap_or_else(|| default.clone()));
            Entities::Addresses { publish_to, receive_from }
        }
        (true, ..) => {
            return Err(invalid("`management=none` goes with neither `create=true` nor `subscription`"));
        }
        (false, Some(false), Some(_)) if management_at.is_some() => {
            return Err(invalid("`management` makes entities: leave it away with `create=false`"));
        }
        (false, Some(false), Some(subscription)) => Entities::Provisioned { subscription },
        (false, Some(false), None) => {
            return Err(invalid("`create=false` needs the `subscription` that was provided for this node"));
        }
        (false, None | Some(true), Some(_)) => {
            return Err(invalid("`subscription` goes with `create=false`"));
        }
        (false, None | Some(true), None) => Entities::Created,
    };
    if let Some(address) = management_at.filter(|_| !none) {
        config.management = Some(management(&address)?);
    }
    Ok(())
}

fn management(address: &str) -> Result<ManagementAddress> {
    let wrong = || invalid("`management` is none, or http(s)://host[:port]");
    let url = Url::parse(address).map_err(|_| wrong())?;
    let tls = match url.scheme() {
        "https" => true,
        "http" => false,
        _ => return Err(wrong()),
    };
    let bare = url.path() == "/" && url.query().is_none() && has_no_credentials(address, &url);
    match url.port_or_known_default() {
        Some(port) if bare => Ok(ManagementAddress { host: host_of(&url)?, port, tls }),
        _ => Err(wrong()),
    }
}

/// Not empty ones either, which the parser drops.
fn has_no_credentials(text: &str, url: &Url) -> bool {
    url.username().is_empty() && url.password().is_none() && authority(text).0.is_none()
}

fn from_connection_string(text: &str) -> Result<ServiceBusConfig> {
    let mut config = ServiceBusConfig::default();
    let (mut endpoint, mut name, mut key, mut emulator) = (None, None, None, false);
    let mut seen = Vec::new();
    for pair in text.split(';').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (given, value) =
            pair.split_once('=').ok_or_else(|| invalid("the connection string has a part without `=`"))?;
        let value = value.trim();
        let Some(known) = KEYS.iter().find(|known| known.eq_ignore_ascii_case(given.trim())) else {
            // The name may be part of a key with a `;` in it: it is not shown.
            return Err(invalid(format!(
                "the connection string has an unknown key; known are {}",
                KEYS.join(", ")
            )));
        };
        if seen.contains(known) {
            return Err(invalid(format!("`{known}` is given twice")));
        }
        seen.push(known);
        match *known {
            "Endpoint" => endpoint = Some(value),
            "SharedAccessKeyName" => name = Some(value.to_owned()),
            "SharedAccessKey" => key = Some(value.to_owned()),
            "EntityPath" => config.topic = value.to_owned(),
            _ => {
                emulator = match value.to_ascii_lowercase().as_str() {
                    "true" => true,
                    "false" => false,
                    _ => return Err(invalid("`UseDevelopmentEmulator` must be true or false")),
                };
            }
        }
    }
    let endpoint = endpoint.ok_or_else(|| invalid("the connection string has no `Endpoint`"))?;
    let url =
        Url::parse(endpoint).map_err(|error| invalid("`Endpoint` cannot be read").with_source(error))?;
    if url.scheme() != "sb" {
        return Err(invalid("`Endpoint` begins with sb://"));
    }
    let bare = matches!(url.path(), "" | "/")
        && url.query().is_none()
        && url.fragment().is_none()
        && has_no_credentials(endpoint, &url);
    if !bare {
        return Err(invalid("`Endpoint` is sb://host[:port]/ and nothing else"));
    }
    config.host = host_of(&url)?;
    config.port = url.port();
    let (Some(name), Some(key)) = (name, key) else {
        return Err(invalid("the connection string needs `SharedAccessKeyName` and `SharedAccessKey`"));
    };
    config.credentials = Credentials::Key { name, key };
    if emulator {
        config.plain = true;
        let host = config.host.clone();
        config.management = Some(ManagementAddress { host, port: EMULATOR_MANAGEMENT_PORT, tls: false });
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use backplane_core::ErrorKind;

    use super::*;

    fn refused(text: &str) -> String {
        let error = ServiceBusConfig::from_url(text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{text}");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
        shown
    }

    #[test]
    fn a_url_sets_every_field() {
        let config = ServiceBusConfig::from_url(
            "servicebus://policy:s3cret%2Bkey%2F%3D@space.servicebus.windows.net:5673/live/chat?filters=64\
             &management=http://127.0.0.1:5300&ttl=30s&token_lifetime=5s&prefetch=10&pack=0&max_frame=2048\
             &max_undelivered=4096&publish_timeout=700ms",
        )
        .unwrap();
        assert_eq!((config.host.as_str(), config.port), ("space.servicebus.windows.net", Some(5673)));
        assert!(matches!(&config.credentials, Credentials::Key { name, key }
            if name == "policy" && key == "s3cret+key/="));
        assert_eq!((config.topic.as_str(), config.filters), ("live/chat", Filters::Buckets(64)));
        assert_eq!(
            config.management,
            Some(ManagementAddress { host: "127.0.0.1".to_owned(), port: 5300, tls: false })
        );
        assert_eq!((config.ttl.as_secs(), config.token_lifetime.as_secs()), (30, 5));
        assert_eq!((config.prefetch, config.pack, config.max_frame), (10, 0, 2048));
        assert_eq!(config.max_undelivered, 4096);
        assert_eq!(config.publish_timeout.unwrap().as_millis(), 700);
        assert!(!format!("{config:?}").contains("s3cret"));
    }

    #[test]
    fn entities_follow_from_what_is_given() {
        let of = |text: &str| ServiceBusConfig::from_url(text).unwrap().entities;
        assert_eq!(of("servicebus://a:b@h"), Entities::Created);
        assert_eq!(
            of("servicebus://a:b@h/t?create=false&subscription=node-1"),
            Entities::Provisioned { subscription: "node-1".to_owned() }
        );
        let addresses = |publish_to: &str, receive_from: &str| Entities::Addresses {
            publish_to: publish_to.to_owned(),
            receive_from: receive_from.to_owned(),
        };
        assert_eq!(of("servicebus://a:b@h/t?auth=sasl&management=none"), addresses("/topic/t", "/topic/t"));
        assert_eq!(of("servicebus://h/t?auth=anonymous&management=none"), addresses("/topic/t", "/topic/t"));
        assert_eq!(
            of("servicebus://h?management=none&publish_to=/exchange/x/&receive_from=/exchange/x/k"),
            addresses("/exchange/x/", "/exchange/x/k")
        );
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        for (text, named) in [
            ("servicebus://a:s3cret@h?retries=3", "retries"),
            ("servicebus://a:s3cret@h?prefetch=0", "prefetch"),
            ("servicebus://a:s3cret@h?prefetch=1&prefetch=2", "twice"),
            ("servicebus://a:s3cret@h#x", "%23"),
            ("servicebus://a@h", "key"),
            ("servicebus://h", "shared access key"),
            ("servicebus://a:s3cret@h?auth=ntlm", "auth"),
            ("servicebus://a:s3cret@h?auth=anonymous", "anonymous"),
            ("servicebus://h?auth=sasl", "credentials"),
            ("servicebus://a:s3cret@h?create=false", "subscription"),
            ("servicebus://a:s3cret@h?subscription=x", "create=false"),
            ("servicebus://a:s3cret@h?create=false&subscription=x&filters=topics", "filters"),
            ("servicebus://a:s3cret@h?filters=0", "buckets"),
            ("servicebus://a:s3cret@h?filters=some", "filters"),
            ("servicebus://a:s3cret@h?publish_to=x", "management=none"),
            ("servicebus://a:s3cret@h?management=none&create=true", "management=none"),
            ("servicebus://a:s3cret@h?management=ftp://x", "management"),
            ("servicebus://a:s3cret@h?management=http://x/path", "management"),
            ("servicebus://a:s3cret@h?management=http://:%40x", "management"),
            ("servicebus://a:s3cret@h?tls=false&management=http://h&ca=x", "TLS"),
            ("servicebus://a:s3cret@h?tls=false&create=false&subscription=x&ca=x", "TLS"),
            ("servicebus://a:s3cret@h?tls=false&auth=sasl&management=none&ca=x", "TLS"),
            ("servicebus://a:s3cret@h?tls=false&ca=/does/not/exist", "/does/not/exist"),
            ("servicebus://a:s3cret@h?tls=false&management=https://h&ca=/does/not/exist", "/does/not/exist"),
            ("servicebus://@h", "empty"),
            ("servicebus://:@h", "empty"),
            ("servicebus://@h?auth=anonymous&management=none", "empty"),
            ("servicebus://a:@h", "key"),
            ("servicebus://:s3cret@h", "name"),
            ("servicebus://h?sas_name=&sas_key=s3cret", "empty"),
            ("servicebus://h?sas_name=a&sas_key=", "empty"),
            ("servicebus://a:s3cret@h:0", "port"),
            ("servicebus://a:s3cret@h?management=http://h:0", "port"),
            (
                "servicebus://a:s3cret@h?publish_timeout=0s",
                "publish_timeout` must be above 0 and at most 1 hour",
            ),
            (
                "servicebus://a:s3cret@h?publish_timeout=18446744073709551615s",
                "publish_timeout` must be above 0 and at most 1 hour",
            ),
            ("servicebus://a:s3cret@h,key=s3cret", "several servers"),
            ("servicebus://a:s3cret@one:5671,two:5671", "several servers"),
            ("servicebus://a:s3cret@h:5671,key=s3cret", "several servers"),
            ("servicebus://a:s3cret@h;SharedAccessKey=s3cret", "behind `?`"),
            ("servicebus://a:s3cret@h?ca=/does/not/exist", "/does/not/exist"),
            ("servicebus://a:s3cret@h/t%20x", "topic"),
            ("servicebus://a:s3cret@h?create=false&subscription=x&management=http://y", "management"),
            ("servicebus://a:s3cret@h?create=false&subscription=x&ttl=10s", "ttl"),
            ("servicebus://a:s3cret@h?auth=sasl&management=none&token_lifetime=10s", "token_lifetime"),
            ("servicebus://a:s3cret@h?ttl=1ms", "ttl"),
            ("redis://a:s3cret@h", "servicebus://"),
            ("Endpoint=sb://h;SharedAccessKeyName=a;SharedAccessKey=s3cret;Timeout=3", "EntityPath"),
            ("Endpoint=sb://h;SharedAccessKeyName=a", "SharedAccessKey"),
            ("Endpoint=sb://h;SharedAccessKeyName=a;SharedAccessKey=", "empty"),
            ("Endpoint=sb://h;SharedAccessKeyName=;SharedAccessKey=s3cret", "empty"),
            ("Endpoint=sb://h:0;SharedAccessKeyName=a;SharedAccessKey=s3cret", "port"),
            ("SharedAccessKeyName=a;SharedAccessKey=s3cret", "Endpoint"),
            ("Endpoint=sb://@h;SharedAccessKeyName=a;SharedAccessKey=s3cret", "nothing else"),
            ("Endpoint=sb://h/path;SharedAccessKeyName=a;SharedAccessKey=s3cret", "nothing else"),
            ("Endpoint=sb://a:s3cret@h;SharedAccessKeyName=a;SharedAccessKey=s3cret", "nothing else"),
            ("servicebus://h?sas_name=a&sas_key=s3cret+x=", "%2B"),
            ("servicebus://a:s3cret@h?create=false&subscription=a/b", "subscription"),
            ("Endpoint=https://h;SharedAccessKeyName=a;SharedAccessKey=s3cret", "sb://"),
            ("Endpoint=sb://h;Endpoint=sb://h;SharedAccessKeyName=a;SharedAccessKey=s3cret", "twice"),
        ] {
            let shown = refused(text);
            assert!(shown.contains(named), "{text}: {shown}");
        }
    }

    #[test]
    fn the_connection_string_of_azure_and_of_the_emulator() {
        let config = ServiceBusConfig::from_url(
            "Endpoint=sb://space.servicebus.windows.net/;SharedAccessKeyName=Root;SharedAccessKey=c2VjcmV0/+=;EntityPath=chat",
        )
        .unwrap();
        assert_eq!((config.host.as_str(), config.topic.as_str()), ("space.servicebus.windows.net", "chat"));
        assert!(
            matches!(&config.credentials, Credentials::Key { name, key } if name == "Root" && key == "c2VjcmV0/+=")
        );
        assert!(!config.plain && config.management.is_none());

        let emulator = ServiceBusConfig::from_url(
            "UseDevelopmentEmulator=True ; sharedaccesskey = KEY= ;SharedAccessKeyName= Root;endpoint = sb://localhost:5673;",
        )
        .unwrap();
        assert_eq!((emulator.plain, emulator.port), (true, Some(5673)));
        assert!(
            matches!(&emulator.credentials, Credentials::Key { name, key } if name == "Root" && key == "KEY=")
        );
        assert_eq!(emulator.management.unwrap().port, 5300);
    }
}
