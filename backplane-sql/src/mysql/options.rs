//! What the URL says about the server.

use std::fmt;

use backplane_core::Result;
use backplane_core::parameters::{
    Parameters, authority, check_credentials, host, invalid, percent_decode, read_file,
};
use sqlx::ConnectOptions as _;
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};
use url::Url;

/// Where the server is, and how to talk to it.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) options: MySqlConnectOptions,
    place: String,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)
    }
}

impl Settings {
    /// Takes the parameters that belong to MySQL; `url` is what stands before them.
    pub(super) fn read(url: &str, rest: &mut Parameters<'_>) -> Result<Self> {
        // The parser's own words could hold a piece of the URL, and that a password.
        let wrong = || invalid("the URL is not of the form mysql://user:password@host:3306/database");
        let (credentials, hosts) = authority(url);
        if hosts.contains(',') {
            return Err(invalid("the URL names several servers; one is needed, the primary"));
        }
        // An empty password is one: many local servers have it.
        let credentials = credentials.unwrap_or_default();
        check_credentials(credentials.strip_suffix(':').unwrap_or(credentials))?;
        let parsed = Url::parse(url).map_err(|_| wrong())?;
        let host = host(parsed.host_str().filter(|host| !host.is_empty()).ok_or_else(wrong)?)?;
        let read = |text: &str| percent_decode(text).ok_or_else(wrong);
        let database = read(parsed.path().trim_start_matches('/'))?;
        if database.is_empty() {
            return Err(invalid("the URL names no database: mysql://user:password@host:3306/database"));
        }
        if database.contains('/') {
            return Err(wrong());
        }
        let port = parsed.port().unwrap_or(3306);
        if port == 0 {
            return Err(invalid("the port must not be 0"));
        }
        let mut options = MySqlConnectOptions::new()
            .host(&host)
            .port(port)
            .username(&read(parsed.username())?)
            .database(&database)
            // Said by our own session, in one statement.
            .pipes_as_concat(false)
            .no_engine_substitution(false)
            .timezone(None)
            .set_names(false)
            // What appends one row.
            .statement_cache_capacity(1)
            // Statements can hold frames.
            .disable_statement_logging();
        if let Some(password) = parsed.password() {
            options = options.password(&read(password)?);
        }
        let mut place = format!("{host}:{port}/{database}");
        if let Some(socket) = rest.take("socket") {
            place = format!("{socket}/{database}");
            options = options.socket(socket);
        }
        Ok(Self { options: secure(options, rest)?, place })
    }
}

/// The parameters about TLS, each as MySQL's own client understands it.
fn secure(mut options: MySqlConnectOptions, rest: &mut Parameters<'_>) -> Result<MySqlConnectOptions> {
    let mode = rest.take("ssl-mode").map(|text| text.to_ascii_uppercase().replace('-', "_"));
    let (root, certificate, key) = (rest.take("ssl-ca"), rest.take("ssl-cert"), rest.take("ssl-key"));
    let mode = match mode.as_deref() {
        // Who names an authority wants it to be asked.
        None if root.is_some() => MySqlSslMode::VerifyCa,
        None | Some("PREFERRED") => MySqlSslMode::Preferred,
        Some("DISABLED") => MySqlSslMode::Disabled,
        Some("REQUIRED") => MySqlSslMode::Required,
        Some("VERIFY_CA") => MySqlSslMode::VerifyCa,
        Some("VERIFY_IDENTITY") => MySqlSslMode::VerifyIdentity,
        Some(_) => {
            return Err(invalid(
                "the parameter `ssl-mode` must be `disabled`, `preferred`, `required`, `verify_ca` or `verify_identity`",
            ));
        }
    };
    let verifies = matches!(mode, MySqlSslMode::VerifyCa | MySqlSslMode::VerifyIdentity);
    options = match root {
        Some(_) if !verifies => {
            return Err(invalid(
                "`ssl-ca` is asked only with `ssl-mode=verify_ca` or `ssl-mode=verify_identity`",
            ));
        }
        Some(root) => options.ssl_ca_from_pem(read_file("ssl-ca", &root)?),
        None if verifies => options.ssl_ca_from_pem(crate::tls::roots_of_this_machine()),
        None => options,
    };
    match (certificate, key) {
        (Some(_), Some(_)) if matches!(mode, MySqlSslMode::Disabled) => {
            return Err(invalid("`ssl-cert` and `ssl-key` need TLS: leave `ssl-mode=disabled` away"));
        }
        (Some(certificate), Some(key)) => {
            options = options
                .ssl_client_cert_from_pem(read_file("ssl-cert", &certificate)?)
                .ssl_client_key_from_pem(read_file("ssl-key", &key)?);
        }
        (None, None) => {}
        _ => return Err(invalid("`ssl-cert` and `ssl-key` must be given together")),
    }
    Ok(options.ssl_mode(mode))
}
