//! A bus address. Opaque bytes to every bus; only wire formats make them.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// The address that frames are published to and that a node subscribes to. Cheap to clone; compared byte by byte.
///
/// With [`TopicSyntax::Tokens`] it consists of dot-separated, non-empty tokens of `[A-Za-z0-9_-]`, at most
/// [`Topic::MAX_TOKENS_LEN`] bytes in all, so that every broker can carry it. With [`TopicSyntax::Any`] it may be any
/// bytes of any length.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<[u8]>);

impl Topic {
    /// Longest topic of the [`TopicSyntax::Tokens`] form, in bytes, the application prefix included.
    pub const MAX_TOKENS_LEN: usize = 200;

    /// From bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it has the form that [`TopicSyntax::Tokens`] promises.
    #[must_use]
    pub fn is_tokens(&self) -> bool {
        !self.0.is_empty()
            && self.0.len() <= Self::MAX_TOKENS_LEN
            && self.0.split(|byte| *byte == b'.').all(|token| {
                !token.is_empty()
                    && token.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
            })
    }
}

impl From<&str> for Topic {
    fn from(text: &str) -> Self {
        Self::new(text.as_bytes())
    }
}

impl From<String> for Topic {
    fn from(text: String) -> Self {
        Self::new(text.as_bytes())
    }
}

impl Borrow<[u8]> for Topic {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.escape_ascii(), f)
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// Which topics a bus can carry, or a wire format makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicSyntax {
    /// Any bytes, any length.
    Any,
    /// Dot-separated tokens, see [`Topic`].
    Tokens,
}
