//! What the URL says about the server, and how to connect to it.

use std::fmt;
use std::str::FromStr;

use backplane_core::parameters::{
    Parameters, authority, check_credentials, host, invalid, percent_decode, read_file,
};
use backplane_core::{Error, Result};
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
                let unreadable = |error: Error| {
                    invalid(format!(
                        "`listen_url`: {}. What is percent-encoded once in a URL is so once more there: `/` in a password is \
                         %252F",
                        error.context().unwrap_or("it cannot be read")
                    ))
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
    let (credentials, hosts) = authority(url);
    if hosts.contains(',') {
        return Err(invalid(format!("{what} names several servers; one is needed, the primary")));
    }
    let credentials = credentials.unwrap_or_default();
    // An empty password is none, as to libpq: where the server trusts, many write it.
    check_credentials(credentials.strip_suffix(':').unwrap_or(credentials))?;
    percent_decode(credentials)
        .ok_or_else(|| invalid(format!("user or password in {what} is not percent-encoded UTF-8")))?;
    let options = PgConnectOptions::from_str(&format!("postgres://{rest}")).map_err(|_| wrong())?;
    if options.get_port() == 0 {
        return Err(invalid(format!("the port in {what} must not be 0")));
    }
    let is_socket = hosts.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("%2F"));
    // The driver does not take the brackets of IPv6 off where it asks for a certificate.
    let host = if is_socket || hosts.is_empty() {
        // Without one in the URL it is the environment's, which may be a socket too.
        options.get_host().trim_start_matches('[').trim_end_matches(']').to_owned()
    } else {
        host(options.get_host())?
    };
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
        if root.is_some() && matches!(mode, Some(PgSslMode::Disable | PgSslMode::Prefer)) {
            return Err(invalid(
                "`sslrootcert` is asked only with `sslmode=require`, `verify-ca` or `verify-full`",
            ));
        }
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
            // Who names an authority wants it to be asked (libpq does so with `require`, and ignores it with `prefer`), and
            // not to lose what the mode, of the URL or of the environment, asks besides.
            if !verifies(options.get_ssl_mode()) {
                options = options.ssl_mode(PgSslMode::VerifyCa);
            }
        } else if verifies(options.get_ssl_mode()) && std::env::var_os("PGSSLROOTCERT").is_none() {
            options = options.ssl_root_cert_from_pem(crate::tls::roots_of_this_machine());
        }
        if let Some((certificate, key)) = &self.identity {
            options = options.ssl_client_cert_from_pem(certificate).ssl_client_key_from_pem(key);
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_raises_the_mode_and_never_lowers_it() {
        use PgSslMode::{Allow, Disable, Prefer, Require, VerifyCa, VerifyFull};
        // As `PGSSLMODE` of the environment set it, and as the URL says. Any file will do: it is not looked into here.
        for (environment, said, in_effect) in [
            (VerifyFull, "sslrootcert=Cargo.toml", VerifyFull),
            (VerifyCa, "sslrootcert=Cargo.toml", VerifyCa),
            (Disable, "sslrootcert=Cargo.toml", VerifyCa),
            (Allow, "sslrootcert=Cargo.toml", VerifyCa),
            (Prefer, "sslrootcert=Cargo.toml", VerifyCa),
            (Require, "sslrootcert=Cargo.toml", VerifyCa),
            (VerifyFull, "sslrootcert=Cargo.toml&sslmode=require", VerifyCa),
            (VerifyFull, "sslrootcert=Cargo.toml&sslmode=verify-ca", VerifyCa),
            (Prefer, "sslrootcert=Cargo.toml&sslmode=verify-full", VerifyFull),
            (VerifyFull, "", VerifyFull),
            (VerifyFull, "sslmode=require", Require),
            (Prefer, "", Prefer),
        ] {
            let url = format!("postgres://h/d?{said}");
            let tls = Tls::read(&mut Parameters::of(&url).unwrap().1).unwrap();
            let options = tls.apply(PgConnectOptions::new_without_pgpass().ssl_mode(environment));
            let shown = format!("{environment:?} {said}");
            assert_eq!(format!("{:?}", options.get_ssl_mode()), format!("{in_effect:?}"), "{shown}");
        }
    }
}
