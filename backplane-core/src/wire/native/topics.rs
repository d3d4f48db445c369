//! How names become topics: the first table of `wire/native/mod.rs`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, ErrorKind, Result};
use crate::id::{GroupName, HubName, NodeId, UserId};
use crate::topic::Topic;

/// Longest spelling of one name. Three of them and the fixed tokens, `.h.` and `.g.`, fit a topic.
const MAX_NAME_LEN: usize = 64;
const _: () = assert!(3 * MAX_NAME_LEN + ".h.".len() + ".g.".len() <= Topic::MAX_TOKENS_LEN);

/// Up to here a name takes at most [`MAX_NAME_LEN`] bytes, whatever they are.
const SHORT_NAME_LEN: usize = MAX_NAME_LEN / 3;

/// A topic under construction, on the stack.
struct Text {
    bytes: [u8; Topic::MAX_TOKENS_LEN],
    len: usize,
}

impl Text {
    fn new() -> Self {
        Self { bytes: [0; Topic::MAX_TOKENS_LEN], len: 0 }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.bytes[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

/// Names the topics of one application prefix.
#[derive(Debug)]
pub(super) struct Topics {
    /// As spelled.
    prefix: Box<[u8]>,
}

impl Topics {
    pub(super) fn new(prefix: &str) -> Result<Self> {
        let wrong = |what: String| Err(Error::new(ErrorKind::InvalidConfig, "open").with_context(what));
        match Spelling::of(prefix) {
            Spelling::Empty => wrong("prefix must not be empty".into()),
            Spelling::Hashed => {
                wrong(format!("prefix must take at most {MAX_NAME_LEN} bytes when escaped for a topic"))
            }
            Spelling::Escaped => {
                let mut text = Text::new();
                push_name(&mut text, prefix);
                Ok(Self { prefix: text.as_bytes().into() })
            }
        }
    }

    /// All nodes.
    pub(super) fn common(&self) -> Topic {
        self.topic(|text| text.extend_from_slice(b".c"))
    }

    /// One node.
    pub(super) fn node(&self, node: NodeId) -> Topic {
        self.topic(|text| {
            let mut token = [0; 8];
            URL_SAFE_NO_PAD
                .encode_slice(node.as_bytes(), &mut token)
                .expect("6 bytes are 8 base64url characters");
            text.extend_from_slice(b".n.");
            text.extend_from_slice(&token);
        })
    }

    /// All connections of a hub.
    pub(super) fn all(&self, hub: &HubName) -> Topic {
        self.topic(|text| {
            push_hub(text, hub);
            text.extend_from_slice(b".all");
        })
    }

    /// The members of a group.
    pub(super) fn group(&self, hub: &HubName, group: &GroupName) -> Topic {
        self.topic(|text| {
            push_hub(text, hub);
            text.extend_from_slice(b".g.");
            push_name(text, group.as_str());
        })
    }

    /// The connections of a user.
    pub(super) fn user(&self, hub: &HubName, user: &UserId) -> Topic {
        self.topic(|text| {
            push_hub(text, hub);
            text.extend_from_slice(b".u.");
            push_name(text, user.as_str());
        })
    }

    fn topic(&self, rest: impl FnOnce(&mut Text)) -> Topic {
        let mut text = Text::new();
        text.extend_from_slice(&self.prefix);
        rest(&mut text);
        Topic::new(text.as_bytes())
    }
}

/// Whether the topic holds only a hash of this name, so that frames must carry the name itself.
pub(super) fn is_hashed(name: &str) -> bool {
    name.len() > SHORT_NAME_LEN && Spelling::of(name) == Spelling::Hashed
}

/// The form in which a name stands in a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    /// With all but plain bytes escaped.
    Escaped,
    /// A lone `_`.
    Empty,
    /// `__` and a hash: escaped text never has `_` before `_`.
    Hashed,
}

impl Spelling {
    fn of(name: &str) -> Self {
        match name.len() {
            0 => Self::Empty,
            1..=SHORT_NAME_LEN => Self::Escaped,
            length @ ..=MAX_NAME_LEN => {
                let special = name.bytes().filter(|byte| !is_plain(*byte)).count();
                if length + 2 * special <= MAX_NAME_LEN { Self::Escaped } else { Self::Hashed }
            }
            _ => Self::Hashed,
        }
    }
}

fn is_plain(byte: u8) -> bool {
    /// Looked up rather than compared: this is done for each byte of each topic.
    const PLAIN: [bool; 256] = {
        let mut plain = [false; 256];
        let mut byte = 0;
        while byte < 256 {
            plain[byte] = (byte as u8).is_ascii_alphanumeric() || byte == b'-' as usize;
            byte += 1;
        }
        plain
    };
    PLAIN[usize::from(byte)]
}

fn push_hub(text: &mut Text, hub: &HubName) {
    text.extend_from_slice(b".h.");
    push_name(text, hub.as_str());
}

fn push_name(text: &mut Text, name: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    match Spelling::of(name) {
        Spelling::Escaped if name.bytes().all(is_plain) => text.extend_from_slice(name.as_bytes()),
        Spelling::Escaped => {
            for byte in name.bytes() {
                if is_plain(byte) {
                    text.push(byte);
                } else {
                    let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 0xF)]];
                    text.extend_from_slice(&[b'_', digits[0], digits[1]]);
                }
            }
        }
        Spelling::Empty => text.push(b'_'),
        Spelling::Hashed => {
            let mut hash = [0; 43];
            URL_SAFE_NO_PAD
                .encode_slice(Sha256::digest(name.as_bytes()), &mut hash)
                .expect("32 bytes are 43 base64url characters");
            text.extend_from_slice(b"__");
            text.extend_from_slice(&hash);
        }
    }
}
