//! The query parameters of a URL, strictly: what is unknown, given twice or unreadable is an error that names it.

use std::borrow::Cow;
use std::str::FromStr;
use std::time::Duration;

use backplane_core::{Error, ErrorKind, Result};
use url::Url;

use crate::tls::{Tls, TlsIdentity, TlsRoots};

/// What a URL says behind its `?`.
#[derive(Debug)]
pub(crate) struct Parameters<'a> {
    pairs: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl<'a> Parameters<'a> {
    /// Reads them; `known` are the names that there are.
    pub(crate) fn read(url: &'a Url, known: &[&str]) -> Result<Self> {
        let mut pairs: Vec<(Cow<'a, str>, Cow<'a, str>)> = Vec::new();
        for (name, value) in url.query_pairs() {
            if !known.contains(&&*name) {
                let known = known.join(", ");
                return Err(invalid(format!("unknown parameter `{name}`; known are {known}")));
            }
            if pairs.iter().any(|(given, _)| *given == name) {
                return Err(invalid(format!("the parameter `{name}` is given twice")));
            }
            pairs.push((name, value));
        }
        Ok(Self { pairs })
    }

    /// As it stands there.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(given, _)| given == name).map(|(_, value)| &**value)
    }

    /// A whole number.
    pub(crate) fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        let number = |value: &str| {
            value.parse().map_err(|_| invalid(format!("`{name}` must be a whole number in its bounds")))
        };
        self.text(name).map(number).transpose()
    }

    /// Milliseconds.
    pub(crate) fn milliseconds(&self, name: &str) -> Result<Option<Duration>> {
        Ok(self.number(name)?.map(Duration::from_millis))
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&self, name: &str) -> Result<Option<bool>> {
        match self.text(name) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(invalid(format!("`{name}` must be true or false"))),
        }
    }

    /// TLS with the files that `ca`, `cert` and `key` name, which are read at once.
    pub(crate) fn tls(&self) -> Result<Tls> {
        let read = |name: &str| match self.text(name) {
            None => Ok(None),
            Some(path) => std::fs::read(path).map(Some).map_err(|error| {
                invalid(format!("`{name}`: the file {path} cannot be read")).with_source(error)
            }),
        };
        let roots = read("ca")?.map_or(TlsRoots::System, TlsRoots::Pem);
        let identity = match (read("cert")?, read("key")?) {
            (Some(certificates_pem), Some(key_pem)) => Some(TlsIdentity { certificates_pem, key_pem }),
            (None, None) => None,
            _ => return Err(invalid("`cert` and `key` belong together")),
        };
        Tls::new(roots, identity)
    }

    /// Refuses the parameters of TLS where there is none.
    pub(crate) fn no_tls(&self, scheme: &str) -> Result<()> {
        if ["ca", "cert", "key"].into_iter().any(|name| self.text(name).is_some()) {
            return Err(invalid(format!("`ca`, `cert` and `key` need TLS: write {scheme}")));
        }
        Ok(())
    }
}

/// An [`InvalidConfig`](ErrorKind::InvalidConfig).
pub(crate) fn invalid(context: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidConfig, "open").with_context(context)
}
