//! What a hub method returns when it fails, and how much of it its client is told.

use std::any::{Any, type_name};
use std::borrow::Cow;
use std::fmt;

use crate::clients::InvokeError;

/// What hub methods return.
pub type HubResult<T = ()> = Result<T, HubError>;

/// The failure of a hub method. Only text marked public reaches the client; of any other error it is told that there
/// was one, unless [`detailed_errors`](crate::HubOptions::detailed_errors) is set.
///
/// Any [`std::error::Error`] becomes a private one by `?`. (That is why this type is none itself.)
pub struct HubError {
    name: Cow<'static, str>,
    message: Cow<'static, str>,
    public: bool,
}

/// The name under which clients of .NET servers know an error whose text they are told.
const PUBLIC: &str = "HubException";

impl HubError {
    /// An error whose text the client is told, always: what .NET calls `HubException`.
    #[must_use]
    pub fn public(message: impl Into<Cow<'static, str>>) -> Self {
        Self { name: PUBLIC.into(), message: message.into(), public: true }
    }

    /// An error that stays here. With detailed errors the client is told `name: message`.
    #[must_use]
    pub fn private(name: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Self { name: name.into(), message: message.into(), public: false }
    }

    /// Whether the client is told the text.
    #[must_use]
    pub fn is_public(&self) -> bool {
        self.public
    }

    /// The kind of error, as the client of a .NET server would see it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// `summary`, followed by name and text where the client may see them.
    pub(crate) fn tell(&self, summary: impl Into<String>, detailed: bool) -> String {
        let mut text = summary.into();
        if self.public || detailed {
            text.push(' ');
            text.push_str(&self.name);
            text.push_str(": ");
            text.push_str(&self.message);
        }
        text
    }
}

impl fmt::Debug for HubError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.message)
    }
}

impl fmt::Display for HubError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for HubError {
    /// Private, under the name of its type; except the answers of asked clients ([`InvokeError`]), which are told as
    /// .NET tells them.
    fn from(error: E) -> Self {
        if let Some(error) = (&error as &dyn Any).downcast_ref::<InvokeError>() {
            return error.to_hub_error();
        }
        let name = type_name::<E>().split('<').next().unwrap_or_default();
        let name = name.rsplit("::").next().unwrap_or_default();
        Self::private(name, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_text_reaches_a_client() {
        assert_eq!(HubError::public("no").tell("Failed.", false), "Failed. HubException: no");
        assert_eq!(HubError::private("Io", "disk").tell("Failed.", false), "Failed.");
        assert_eq!(HubError::private("Io", "disk").tell("Failed.", true), "Failed. Io: disk");
    }

    #[test]
    fn any_error_becomes_a_private_one_under_its_name() {
        let error = HubError::from("x".parse::<i32>().unwrap_err());
        assert_eq!((error.name(), error.is_public()), ("ParseIntError", false));
    }
}
