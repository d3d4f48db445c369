//! What the things we address are called: nodes, hubs, connections, groups, users, invocations.
//!
//! Newtypes, because two `&str` in a row is a bug waiting. All text ids are opaque UTF-8, compared byte by byte
//! (case-sensitive), cheap to clone, and of any length.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

macro_rules! text_id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl From<&$name> for $name {
            fn from(id: &$name) -> Self {
                id.clone()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

text_id! {
    /// One client connection, unique in the whole fleet. Minted by the wire format
    /// ([`WireFormat::new_connection_id`](crate::WireFormat::new_connection_id)); public, not a secret.
    ConnectionId
}
text_id! {
    /// A group of connections inside one hub. Any UTF-8, also empty.
    GroupName
}
text_id! {
    /// The user that a connection belongs to. Any UTF-8; an empty user id means "no user", as in SignalR.
    UserId
}
text_id! {
    /// A hub: connections, groups and users of different hubs never meet. For a .NET fleet this is the full name of
    /// the hub type, such as `Demo.ChatHub`.
    HubName
}
text_id! {
    /// One question to a client (a client result), unique in the whole fleet. Minted by the wire format.
    InvocationId
}

/// Correlates an acknowledged command with its acknowledgement. Meaningful only to the node that minted it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct AckId(pub i64);

/// One running process: six random bytes, new at each start, so a restarted process is another node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId([u8; NodeId::LEN]);

impl NodeId {
    /// Length in bytes.
    pub const LEN: usize = 6;

    /// A new random id, from the system's source of randomness.
    ///
    /// # Panics
    /// When the operating system has no randomness to give; nothing safe can be done then.
    #[must_use]
    pub fn random() -> Self {
        Self(random_bytes())
    }

    /// From its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl fmt::Display for NodeId {
    /// Eight base64url characters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Random bytes for ids. See [`NodeId::random`] for its panic.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system provides randomness");
    bytes
}

/// A hub protocol by name: how a client's messages are encoded. `json` and `messagepack` are the official ones; any
/// other name may be used, as long as sender and receiver mean the same by it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Protocol(Cow<'static, str>);

impl Protocol {
    /// SignalR's JSON hub protocol.
    pub const JSON: Self = Self(Cow::Borrowed("json"));
    /// SignalR's MessagePack hub protocol.
    pub const MESSAGEPACK: Self = Self(Cow::Borrowed("messagepack"));

    /// By name; allocates only for names that are not official.
    #[must_use]
    pub fn named(name: &str) -> Self {
        match name {
            "json" => Self::JSON,
            "messagepack" => Self::MESSAGEPACK,
            other => Self(Cow::Owned(other.to_owned())),
        }
    }

    /// Its name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
