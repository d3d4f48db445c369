//! What the URL says about the server, and how to connect to it.

use std::fmt;
use std::str::FromStr;

use backplane_core::Result;
use backplane_core::parameters::{Parameters, invalid, percent_decode, read_file};
use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// Where the server is, and how to talk to it.
#[derive(Clone)]
pub(super) struct Settings {
    /// Without options of the session: a pooler would refuse them.
    pub(super) plain: PgConnectOptions,
    /// Where to listen instead, past a pooler.
    pub(super) listen: Option<PgConnectOptions>,
    /// Whether statements may be prepared. `None`: unless a pooler lends the sessions.
    pub(super) prepared: Option<bool>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |options: &PgConnectOptions| {
            format!(
                "{}:{}/{}",
                options.get_host(),
                options.get_port(),
                options.get_database().unwrap_or_default()
            )
        };
        f.debug_struct("Settings")
            .field("at", &place(&self.plain))
            .field("listen", &self.listen.as_ref().map(place))
            .field("prepared", &self.prepared)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Takes the parameters that belong to PostgreSQL; `url` is what stands before them.
    pub(super) fn read(url: &str, rest: &mut Parameters<'_>) -> Result<Self> {
        let application = rest.take("application_name").unwrap_or_else(|| "backplane".to_owned());
        let mut prepared = true;
        let was_given = rest.take("prepared");
        if let Some(text) = &was_given {
            prepared =
                text.parse().map_err(|_| invalid("the parameter `prepared` must be `true` or `false`"))?;
        }
        let tls = Tls::read(rest)?;
        let listen = rest
            .take("listen_url")
            .map(|listen| {
                if listen.contains(['?', '#']) {
                    return Err(invalid("`listen_url` takes no parameters: it has those of the URL"));
                }
                let unreadable = |_| {
                    invalid("in `listen_url` what is percent-encoded once in a URL is so once more: `/` in a password is %252F")
                };
                Parameters::of(&listen).map_err(unreadable)?;
                connect_options(&listen, &tls, &application, "`listen_url`")
            })
            .transpose()?;
        let plain = connect_options(url, &tls, &application, "the URL")?;
        Ok(Self { plain, listen, prepared: was_given.map(|_| prepared) })
    }

    /// How the listening connection is made.
    pub(super) fn listening(&self) -> PgConnectOptions {
        self.listen.clone().unwrap_or_else(|| self.plain.clone())
    }
}

fn connect_options(url: &str, tls: &Tls, application: &str, what: &str) -> Result<PgConnectOptions> {
    // The error's own words could hold a piece of the URL, and that a password.
    let wrong = || invalid(format!("{what} is not of the form postgres://user:password@host:5432/database"));
    // A scheme is the same in capital letters (RFC 3986, section 3.1), but not to the driver.
    let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
    if !["postgres", "postgresql"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Err(wrong());
    }
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.rsplit('@').next().is_some_and(|host| host.contains(',')) {
        return Err(invalid(format!("{what} names several servers; one is needed, the primary")));
    }
    let credentials = authority.rsplit_once('@').map_or("", |(credentials, _)| credentials);
    percent_decode(credentials)
        .ok_or_else(|| invalid(format!("user or password in {what} is not percent-encoded UTF-8")))?;
    let options = PgConnectOptions::from_str(&format!("postgres://{rest}")).map_err(|_| wrong())?;
    // The driver does not take the brackets of IPv6 off where it asks for a certificate.
    let host = options.get_host().trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(tls
        .apply(options.host(&host))
        .application_name(application)
        // Not used, and poolers refuse it.
        .extra_float_digits(None)
        // Statements can hold frames.
        .disable_statement_logging())
}

/// The parameters about TLS, each as libpq understands it.
#[derive(Clone, Default)]
struct Tls {
    mode: Option<PgSslMode>,
    root: Option<Vec<u8>>,
    /// Certificate and key.
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    fn read(rest: &mut Parameters<'_>) -> Result<Self> {
        let mode = match rest.take("sslmode").as_deref() {
            None => None,
            Some("disable") => Some(PgSslMode::Disable),
            Some("prefer") => Some(PgSslMode::Prefer),
            Some("require") => Some(PgSslMode::Require),
            Some("verify-ca") => Some(PgSslMode::VerifyCa),
            Some("verify-full") => Some(PgSslMode::VerifyFull),
            Some(_) => {
                return Err(invalid(
                    "the parameter `sslmode` must be `disable`, `prefer`, `require`, `verify-ca` or `verify-full`",
                ));
            }
        };
        let (root, certificate, key) = (rest.take("sslrootcert"), rest.take("sslcert"), rest.take("sslkey"));
        let mode = match (mode, &root) {
            // Who names an authority wants it to be asked (libpq does so with `require`, and ignores it with `prefer`).
            (None | Some(PgSslMode::Require), Some(_)) => Some(PgSslMode::VerifyCa),
            (Some(PgSslMode::Disable | PgSslMode::Prefer), Some(_)) => {
                return Err(invalid(
                    "`sslrootcert` is asked only with `sslmode=require`, `verify-ca` or `verify-full`",
                ));
            }
            (mode, _) => mode,
        };
        let identity = match (certificate, key) {
            (Some(_), Some(_)) if matches!(mode, Some(PgSslMode::Disable)) => {
                return Err(invalid("`sslcert` and `sslkey` need TLS: leave `sslmode=disable` away"));
            }
            (Some(certificate), Some(key)) => {
                Some((read_file("sslcert", &certificate)?, read_file("sslkey", &key)?))
            }
            (None, None) => None,
            _ => return Err(invalid("`sslcert` and `sslkey` must be given together")),
        };
        let root = root.map(|root| read_file("sslrootcert", &root)).transpose()?;
        Ok(Self { mode, root, identity })
    }

    fn apply(&self, mut options: PgConnectOptions) -> PgConnectOptions {
        if let Some(mode) = self.mode {
            options = options.ssl_mode(mode);
        }
        let verifies = |mode| matches!(mode, PgSslMode::VerifyCa | PgSslMode::VerifyFull);
        if let Some(root) = &self.root {
            options = options.ssl_root_cert_from_pem(root.clone());
        } else if verifies(options.get_ssl_mode()) && std::env::var_os("PGSSLROOTCERT").is_none() {
            options = options.ssl_root_cert_from_pem(crate::tls::roots_of_this_machine());
        }
        if let Some((certificate, key)) = &self.identity {
            options = options.ssl_client_cert_from_pem(certificate).ssl_client_key_from_pem(key);
        }
        options
    }
}
