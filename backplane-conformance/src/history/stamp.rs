//! A message of a judged run: who sent it, and which of its messages it is.

use std::fmt;

use backplane_core::EncodedMessage;
use bytes::Bytes;

/// Sender and number of one message; numbers of a sender start at 0 and have no holes.
///
/// As a payload it is `12:345;`, or `12:345.....;` when padded, so that joined payloads come apart again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stamp {
    /// Index of the sender.
    pub sender: u32,
    /// Which of its messages.
    pub number: u32,
}

impl Stamp {
    /// The payload, padded to `len` bytes where it is shorter (up to 22 bytes are needed).
    #[must_use]
    pub fn payload(&self, len: usize) -> Bytes {
        let mut text = format!("{}:{}", self.sender, self.number);
        while text.len() + 1 < len {
            text.push('.');
        }
        text.push(';');
        text.into()
    }

    /// The payload as a message for `json` clients.
    #[must_use]
    pub fn message(&self, len: usize) -> EncodedMessage {
        EncodedMessage::json(self.payload(len))
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message {} of sender {}", self.number, self.sender)
    }
}

/// Bytes that no sender wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable(pub Bytes);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unreadable: \"{}\"", self.0.escape_ascii())
    }
}

/// The stamps of payloads joined one behind the other. What is damaged is handed out as such, up to its end (`;`).
pub fn stamps(mut joined: &[u8]) -> impl Iterator<Item = Result<Stamp, Unreadable>> + '_ {
    std::iter::from_fn(move || {
        if joined.is_empty() {
            return None;
        }
        let end = joined.iter().position(|&byte| byte == b';').map_or(joined.len(), |end| end + 1);
        let (payload, rest) = joined.split_at(end);
        joined = rest;
        Some(parse(payload).ok_or_else(|| Unreadable(Bytes::copy_from_slice(payload))))
    })
}

fn parse(payload: &[u8]) -> Option<Stamp> {
    let (sender, rest) = number(payload)?;
    let (number, rest) = number(rest.strip_prefix(b":")?)?;
    let padding = rest.strip_suffix(b";")?;
    padding.iter().all(|&byte| byte == b'.').then_some(Stamp { sender, number })
}

fn number(text: &[u8]) -> Option<(u32, &[u8])> {
    let digits = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(digits);
    let mut number: u32 = 0;
    if digits.is_empty() {
        return None;
    }
    for digit in digits {
        number = number.checked_mul(10)?.checked_add(u32::from(digit - b'0'))?;
    }
    Some((number, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_payloads_come_apart_again() {
        let sent = [
            Stamp { sender: 0, number: 0 },
            Stamp { sender: 12, number: 345 },
            Stamp { sender: u32::MAX, number: u32::MAX },
        ];
        let joined: Vec<u8> =
            sent.iter().zip([0, 128, 30]).flat_map(|(stamp, len)| stamp.payload(len)).collect();
        let read: Vec<Stamp> = stamps(&joined).map(Result::unwrap).collect();
        assert_eq!(read, sent);
        assert_eq!(joined.len(), "0:0;".len() + 128 + 30);
    }

    #[test]
    fn damage_is_told_and_confined() {
        let read: Vec<_> = stamps(b"1:2;1x3;:;4294967296:1;1:4..x;1:5").collect();
        assert_eq!(read[0], Ok(Stamp { sender: 1, number: 2 }));
        assert_eq!(read.len(), 6);
        assert!(read[1..].iter().all(Result::is_err), "{read:?}");
    }
}
