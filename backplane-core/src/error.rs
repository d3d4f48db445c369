//! The one error of core and buses: what went wrong, in which operation, and whether trying again can help.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// Result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure it was: the part one programs against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A URL, an option or a combination of them cannot work. Mend the configuration.
    InvalidConfig,
    /// The link is down or broke. Retry after it came back; see [`Error::outcome_unknown`].
    Unavailable,
    /// A bounded queue of this node is full. Retry later, or send less.
    Overloaded,
    /// A deadline passed before the answer came. Whether the other side acted is not known.
    Timeout,
    /// No node has that connection, or it left before it answered.
    ConnectionNotFound,
    /// The message does not fit the bus; nothing was sent.
    TooLarge,
    /// Bytes that are not what they claim to be.
    Malformed,
    /// The broker refused (credentials, permissions), or a connection answered for another one.
    Denied,
    /// This bus or wire format cannot do that at all.
    Unsupported,
    /// The link, queue or node was shut down by its owner.
    Closed,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InvalidConfig => "invalid configuration",
            Self::Unavailable => "unavailable",
            Self::Overloaded => "overloaded",
            Self::Timeout => "timed out",
            Self::ConnectionNotFound => "connection not found",
            Self::TooLarge => "too large",
            Self::Malformed => "malformed",
            Self::Denied => "denied",
            Self::Unsupported => "unsupported",
            Self::Closed => "closed",
        })
    }
}

/// How much of a send of several frames the broker accepted before it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Frames that the broker accepted.
    pub accepted: usize,
    /// Frames that the send consisted of.
    pub frames: usize,
}

/// A failure, with the operation that failed and what one needs to know to act on it. Cheap to clone.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{operation}: {kind}{}", Details(self))]
pub struct Error {
    kind: ErrorKind,
    operation: &'static str,
    context: Option<Cow<'static, str>>,
    outcome_unknown: bool,
    partial: Option<Partial>,
    #[source]
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

struct Details<'a>(&'a Error);

impl fmt::Display for Details<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(context) = &self.0.context {
            write!(f, ": {context}")?;
        }
        if self.0.outcome_unknown {
            f.write_str(" (whether it took effect is not known)")?;
        }
        if let Some(Partial { accepted, frames }) = self.0.partial {
            write!(f, " ({accepted} of {frames} frames were accepted)")?;
        }
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl Error {
    /// A failure of `operation` (a verb: `publish`, `connect`, `subscribe`, ...).
    #[must_use]
    pub fn new(kind: ErrorKind, operation: &'static str) -> Self {
        Self { kind, operation, context: None, outcome_unknown: false, partial: None, source: None }
    }

    /// Adds a sentence that says what was wrong and, where possible, what to do.
    #[must_use]
    pub fn with_context(mut self, context: impl Into<Cow<'static, str>>) -> Self {
        self.context = Some(context.into());
        self
    }

    /// Adds the failure underneath.
    #[must_use]
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// Marks that the operation was under way: it may have taken effect.
    #[must_use]
    pub fn with_outcome_unknown(mut self) -> Self {
        self.outcome_unknown = true;
        self
    }

    /// Adds how many frames of the send were accepted.
    #[must_use]
    pub fn with_partial(mut self, partial: Partial) -> Self {
        self.partial = Some(partial);
        self
    }

    /// What to say when several addresses were tried and each failed: final only if all of them are. It is the first failure
    /// that can pass, if there is one, with the first that cannot as its source, for that one has to be mended all the
    /// same; else the first. `None`: there was no failure.
    ///
    /// ```
    /// use backplane_core::{Error, ErrorKind};
    ///
    /// let certificate = Error::new(ErrorKind::InvalidConfig, "connect").with_context("one: wrong certificate");
    /// let down = Error::new(ErrorKind::Unavailable, "connect").with_context("two: connection refused");
    /// let both = Error::of_several([certificate.clone(), down]).expect("there were failures");
    /// assert!(both.is_retryable() && both.to_string().contains("wrong certificate"));
    /// assert!(!Error::of_several([certificate]).expect("there was a failure").is_retryable());
    /// ```
    #[must_use]
    pub fn of_several(failures: impl IntoIterator<Item = Self>) -> Option<Self> {
        let (mut passing, mut lasting) = (None, None);
        for failure in failures {
            let first = if failure.is_retryable() { &mut passing } else { &mut lasting };
            first.get_or_insert(failure);
        }
        match (passing, lasting) {
            (Some(passing), Some(lasting)) => {
                // An error has one source: what lies under the first becomes words.
                let source = passing.source.as_ref().map(ToString::to_string);
                let words = [passing.context.as_deref(), source.as_deref()];
                let said: String = words.into_iter().flatten().map(|words| format!("{words}; ")).collect();
                let context = format!("{said}another address cannot work until it is mended");
                Some(passing.with_context(context).with_source(lasting))
            }
            (passing, lasting) => passing.or(lasting),
        }
    }

    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The operation that failed.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    /// The sentence about it, if any.
    #[must_use]
    pub fn context(&self) -> Option<&str> {
        self.context.as_deref()
    }

    /// Whether the operation may have taken effect although it failed: it was in flight when the link broke, or its
    /// deadline passed. `false` means that it reached nobody.
    #[must_use]
    pub fn outcome_unknown(&self) -> bool {
        self.outcome_unknown
    }

    /// For a send of several frames that failed in part: how many were accepted.
    #[must_use]
    pub fn partial(&self) -> Option<Partial> {
        self.partial
    }

    /// Whether the same call can succeed later without a change of configuration or arguments.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, ErrorKind::Unavailable | ErrorKind::Overloaded | ErrorKind::Timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_failures_one_that_can_pass_decides_and_what_cannot_is_told_too() {
        let down = Error::new(ErrorKind::Unavailable, "connect")
            .with_context("one:1")
            .with_source(std::io::Error::other("nobody listens"));
        let late = Error::new(ErrorKind::Timeout, "connect").with_context("two:2");
        let wrong = Error::new(ErrorKind::InvalidConfig, "connect").with_context("three:3 speaks no TLS");
        let denied = Error::new(ErrorKind::Denied, "connect");
        let told =
            |failures: &[&Error]| Error::of_several(failures.iter().copied().cloned()).unwrap().to_string();

        assert_eq!(
            told(&[&denied, &wrong, &down, &late]),
            "connect: unavailable: one:1; nobody listens; another address cannot work until it is mended: \
             connect: denied"
        );
        assert_eq!(
            told(&[&late, &wrong, &down]),
            "connect: timed out: two:2; another address cannot work until it is mended: \
             connect: invalid configuration: three:3 speaks no TLS"
        );
        let both = Error::of_several([wrong.clone(), down.clone()]).unwrap();
        assert!(both.is_retryable() && both.kind() == ErrorKind::Unavailable);
        assert_eq!(told(&[&late, &down]), late.to_string());
        assert_eq!(told(&[&wrong, &denied]), wrong.to_string());
        assert!(Error::of_several([]).is_none());
    }
}
