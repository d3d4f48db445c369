//! What the URL or the connection string says about the server.

use std::fmt;
use std::net::Ipv6Addr;

use backplane_core::Result;
use backplane_core::parameters::{
    Parameters, authority, check_credentials, host, invalid, percent_decode, read_file,
};
use tiberius::{AuthMethod, Config, EncryptionLevel};
use url::Url;

use super::ado;

/// Names the file of an authority.
const CA: &str = "trust_server_certificate_ca";

/// Where the server is, and how to talk to it.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) config: Config,
    pub(super) host: String,
    pub(super) port: u16,
    database: String,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.host, self.port, self.database)
    }
}

/// What is said in either form.
#[derive(Default)]
struct Said {
    host: Option<String>,
    port: Option<u16>,
    database: Option<String>,
    user: Option<String>,
    password: Option<String>,
    encrypt: Option<bool>,
    trust: Option<bool>,
    ca: Option<String>,
    certificate_name: Option<String>,
    application: Option<String>,
}

impl Settings {
    /// Takes the parameters that belong to SQL Server; `url` is what stands before them, or an ADO connection string.
    pub(super) fn read(url: &str, rest: &mut Parameters<'_>) -> Result<Self> {
        let lower = url.to_ascii_lowercase();
        if lower.starts_with("mssql:") || lower.starts_with("sqlserver:") {
            let mut said = from_url(url)?;
            rest.parse("encrypt", &mut said.encrypt, "`true` or `false`", |text| {
                Some(Some(text.parse().ok()?))
            })?;
            let trust = "trust_server_certificate";
            rest.parse(trust, &mut said.trust, "`true` or `false`", |text| Some(Some(text.parse().ok()?)))?;
            said.ca = rest.take(CA);
            said.certificate_name = rest.take("hostname_in_certificate");
            said.application = rest.take("application_name");
            said.settings()
        } else {
            from_ado(url)?.settings()
        }
    }
}

fn from_url(url: &str) -> Result<Said> {
    // The parser's own words could hold a piece of the URL, and that a password.
    let wrong = || invalid("the URL is not of the form mssql://user:password@host:1433/database");
    let (credentials, hosts) = authority(url);
    if hosts.contains(',') {
        return Err(invalid(
            "the port stands behind a colon (host:1433), and several servers cannot be named",
        ));
    }
    check_credentials(credentials.unwrap_or_default())?;
    let parsed = Url::parse(url).map_err(|_| wrong())?;
    let host = host(parsed.host_str().filter(|host| !host.is_empty()).ok_or_else(wrong)?)?;
    let read = |text: &str| percent_decode(text).ok_or_else(wrong);
    let database = read(parsed.path().trim_start_matches('/'))?;
    if database.contains('/') {
        return Err(wrong());
    }
    Ok(Said {
        host: Some(host),
        port: parsed.port(),
        database: Some(database).filter(|name| !name.is_empty()),
        user: Some(read(parsed.username())?),
        password: parsed.password().map(read).transpose()?,
        ..Said::default()
    })
}

fn from_ado(text: &str) -> Result<Said> {
    let mut said = Said::default();
    for (name, value) in ado::pairs(text)? {
        let twice = || invalid(format!("the connection string says `{name}` twice, under another name"));
        let set = |field: &mut Option<String>, value: String| match field.replace(value) {
            None => Ok(()),
            Some(_) => Err(twice()),
        };
        match name.as_str() {
            "server" | "data source" | "address" | "addr" | "network address" => {
                let (host, port) = server(&value)?;
                set(&mut said.host, host)?;
                said.port = port;
            }
            "database" | "initial catalog" => set(&mut said.database, value)?,
            "user id" | "uid" | "user" => set(&mut said.user, value)?,
            "password" | "pwd" => set(&mut said.password, value)?,
            "encrypt" => said.encrypt = Some(encrypt(&value)?),
            "trustservercertificate" | "trust server certificate" => {
                said.trust = Some(yes_or_no(&name, &value)?)
            }
            "trustservercertificateca" => set(&mut said.ca, value)?,
            "hostnameincertificate" | "host name in certificate" => set(&mut said.certificate_name, value)?,
            "application name" | "app" => set(&mut said.application, value)?,
            "integrated security" | "trusted_connection" => {
                if value.eq_ignore_ascii_case("sspi") || yes_or_no(&name, &value)? {
                    return Err(invalid(format!("`{name}` is not supported: give a user and a password")));
                }
            }
            "authentication" => {
                if !["sqlpassword", "sql password"].contains(&value.to_lowercase().as_str()) {
                    return Err(invalid("only `Authentication=SqlPassword` is supported"));
                }
            }
            "applicationintent" | "application intent" => {
                if !value.eq_ignore_ascii_case("readwrite") {
                    return Err(invalid("the log is written to: `ApplicationIntent` must be `ReadWrite`"));
                }
            }
            // Of no meaning here: they are about the pool and the results of ADO itself, and a link has its own deadline.
            "persist security info"
            | "persistsecurityinfo"
            | "multipleactiveresultsets"
            | "multiple active result sets"
            | "connect timeout"
            | "connection timeout"
            | "timeout"
            | "pooling"
            | "min pool size"
            | "max pool size" => {}
            // Not repeated: behind a `;` it may be the rest of a password.
            _ => {
                return Err(invalid(
                    "the connection string has an unknown name; known are Server, Database, User Id, Password, Encrypt, \
                     TrustServerCertificate, TrustServerCertificateCA, HostNameInCertificate and Application Name; a \
                     password that holds `;` stands in quotes",
                ));
            }
        }
    }
    Ok(said)
}

/// `tcp:host,port`, both but the host optional.
fn server(text: &str) -> Result<(String, Option<u16>)> {
    let wrong = || invalid("`Server` must be of the form `host`, `host,1433` or `tcp:host,1433`");
    let text = text.strip_prefix("tcp:").unwrap_or(text);
    if text.contains('\\') {
        return Err(invalid("`Server` names an instance: give its port instead (`host,1433`)"));
    }
    let (host, port) = match text.split_once(',') {
        Some((host, port)) => (host, Some(port.trim().parse().map_err(|_| wrong())?)),
        None => (text, None),
    };
    let host = match host.trim() {
        "." | "(local)" => "localhost".to_owned(),
        address if address.parse::<Ipv6Addr>().is_ok() => address.to_owned(),
        name => self::host(name).map_err(|_| wrong())?,
    };
    Ok((host, port))
}

fn encrypt(value: &str) -> Result<bool> {
    match value.to_ascii_lowercase().as_str() {
        "mandatory" => Ok(true),
        "optional" => Ok(false),
        "strict" => Err(invalid("`Encrypt=Strict` is not supported: `Encrypt=Mandatory` is the nearest")),
        _ => yes_or_no("encrypt", value),
    }
}

fn yes_or_no(name: &str, value: &str) -> Result<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "yes" => Ok(true),
        "false" | "no" => Ok(false),
        _ => Err(invalid(format!("`{name}` in the connection string must be `True` or `False`"))),
    }
}

impl Said {
    fn settings(self) -> Result<Settings> {
        let host = self.host.ok_or_else(|| invalid("the connection string names no server"))?;
        let port = self.port.unwrap_or(1433);
        if port == 0 {
            return Err(invalid("the port must not be 0"));
        }
        let database = self.database.ok_or_else(|| {
            invalid("no database is named: mssql://user:password@host:1433/database, or `Database=...`")
        })?;
        let user = self
            .user
            .filter(|user| !user.is_empty())
            .ok_or_else(|| invalid("no user is named; only SQL Server's own logins are supported"))?;
        if self.password.as_ref().is_some_and(String::is_empty) {
            return Err(invalid("the password is empty: was a variable not set?"));
        }
        let mut config = Config::new();
        config.host(&host);
        config.port(port);
        config.database(&database);
        // As other drivers: half of what the driver's own default takes in packets.
        config.packet_size(8_000);
        config.application_name(self.application.as_deref().unwrap_or("backplane"));
        config.authentication(AuthMethod::sql_server(user, self.password.unwrap_or_default()));
        // Without encryption only the login is secret, unless the server wants more.
        let encrypt = self.encrypt.unwrap_or(true);
        config.encryption(if encrypt { EncryptionLevel::Required } else { EncryptionLevel::Off });
        match (self.trust.unwrap_or(false), self.ca) {
            (true, Some(_)) => {
                return Err(invalid("either any certificate is trusted or an authority is asked, not both"));
            }
            (true, None) => config.trust_cert(),
            (false, Some(ca)) => config.trust_cert_ca_bundle(certificates(&ca)?),
            (false, None) => {}
        }
        if let Some(name) = self.certificate_name {
            config.hostname_in_certificate(name);
        }
        Ok(Settings { config, host, port, database })
    }
}

/// What stands in the file, for the driver, which tells PEM from DER. What holds no certificate is refused here, and not by each
/// attempt to connect.
fn certificates(path: &str) -> Result<Vec<u8>> {
    const PEM: &[u8] = b"-----BEGIN CERTIFICATE-----";
    let content = read_file(CA, path)?;
    let is_pem = content.windows(PEM.len()).any(|bytes| bytes == PEM);
    // A sequence of more than 127 bytes.
    let is_der = matches!(content.as_slice(), [0x30, 0x81..=0x84, ..]);
    if !is_pem && !is_der {
        return Err(invalid(format!(
            "`{CA}`: the file {path} holds no certificate, neither in PEM nor in DER"
        )));
    }
    Ok(content)
}
